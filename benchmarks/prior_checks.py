"""The prior of unmeasured GPUs against what others measured: ``python benchmarks/prior_checks.py``.

Needs ttscope[prior]. Nothing is fitted. With `--operators FOLDER --run FOLDER`, tables and a run of
Llama-3.1-8B in LLMServingSim's form (shared/data/ops, shared/data/vllm_runs): each layer and a real
run, predicted from the prior of the same GPU. With `--all-reduces CSV`, Vidur's times. Then runs
that aiconfigurator's authors publish with their tables: closed loops of a fixed number of requests
in flight, all of the same lengths, of dense bfloat16 models.
"""

import argparse
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from dense_models import dense
from real_runs import errors, read_run

from advisor.replay.limits import Limits
from advisor.replay.replay import replay
from advisor.replay.workload import ReplayWorkload
from advisor.step_time.cost import table_cost
from advisor.step_time.operators.communication import read_collectives
from advisor.step_time.operators.files import Operators, read_operators
from advisor.step_time.operators.tables import default_capture_sizes, interpolated, step_tables
from advisor.step_time.prior.prior import Prior, prior_of
from advisor.step_time.prior.recalibration import spread_of
from advisor.step_time.prior.tables import read_prior, tables_folder
from traces.schema.engine import EngineConfig, ModelFacts
from traces.statistics import Z95

Floats = npt.NDArray[np.float64]


LLAMA_8B = dense("Llama-3.1-8B", "LlamaForCausalLM", (32, 4096, 32, 8, 14336, 128256))
QWEN3_32B = dense("Qwen3-32B", "Qwen3ForCausalLM", (64, 5120, 64, 8, 25600, 151936))


def of(system: str, facts: ModelFacts, size: int) -> Prior:
    engine = EngineConfig(model=facts.name, tensor_parallel_size=size)
    return prior_of(read_prior(system), facts, engine)


def as_operators(prior: Prior) -> Operators:
    """Return the prior of a model whose layers are alike in the form of operator tables."""
    layers = prior.facts.num_hidden_layers
    made = prior.step_tables(max_num_batched_tokens=2048, max_num_seqs=256, capture_sizes=())
    rows = [
        (0.0, 0.0, batch, context, made.decode[i, j])
        for i, batch in enumerate(made.decode_batch)
        for j, context in enumerate(made.decode_kv)
    ]
    for (c, b, n, k), seconds in np.ndenumerate(made.mixed):
        if made.mixed_batch[n] or not k:
            context = made.mixed_kv[k] if made.mixed_batch[n] else 0.0
            rows.append((made.chunk[c], made.before[b], made.mixed_batch[n], context, seconds))
    attention = np.array(rows, dtype=float)
    attention[:, 4] /= layers
    return Operators(
        folder=prior.tables.folder,
        dense={each.name.rpartition(".")[2]: each.times.rows for each in prior.parts.dense},
        per_sequence={each.name: each.times.rows for each in prior.parts.logits},
        attention=attention,
        skew=None,
        gpu=prior.tables.device,
        model=prior.facts.name,
        vllm_version=prior.tables.versions["gemm"],
        tensor_parallel_size=1,
    )


def layers(system: str, folder: Path) -> None:
    ours, theirs = as_operators(of(system, LLAMA_8B, 1)), read_operators(folder)
    print(f"\n{folder.name}: prior over measured time of a call, by tokens or rows")
    counts = (1, 8, 64, 256, 512, 2048)
    print(f"{'layer':<16}" + "".join(f"{count:>8}" for count in counts) + "   (1: measured, us)")
    for ours_by, theirs_by in (
        (ours.dense, theirs.dense),
        (ours.per_sequence, theirs.per_sequence),
    ):
        for name, rows in theirs_by.items():
            at = np.array([c for c in counts if c <= rows[-1, 0]], dtype=float)
            ratio = interpolated(ours_by[name], at) / interpolated(rows, at)
            cells = "".join(f"{each:>8.2f}" for each in ratio)
            print(f"{name:<16}{cells:<48}   {1e6 * rows[0, 1]:.1f}")
    keys = {tuple(row[:4]): row[4] for row in theirs.attention}
    kinds: dict[str, list[float]] = {}
    cost = ours.attention
    ours_at = {tuple(row[:4]): row[4] for row in cost}
    for key, seconds in keys.items():
        near = (key[0], key[1], key[2], key[3] - 1 if key[2] and key[3] else key[3])
        if near in ours_at:
            chunk, before, batch, _ = key
            kind = (
                "decode" if not chunk else "a chunk" if not batch else "a chunk beside decoding"
            ) + (" after earlier tokens" if before else "")
            kinds.setdefault(kind, []).append(ours_at[near] / seconds)
    for kind, ratios in kinds.items():
        low, middle, high = np.quantile(ratios, [0.05, 0.5, 0.95])
        print(
            f"attention: {kind}, {len(ratios)} times: {middle:.2f} (5-95 %: {low:.2f}-{high:.2f})"
        )


def real_run(system: str, folder: Path, own: Path | None) -> None:
    """Replay a real run from the prior alone, and from the card's own tables."""
    run = read_run(folder)
    batched_tokens, seqs = run.limits.max_num_batched_tokens, run.limits.max_num_seqs
    assert batched_tokens and seqs
    cases = {"prior": as_operators(of(system, LLAMA_8B, 1))}
    if own is not None:
        cases["own tables alone"] = read_operators(own)
    print(f"\n{folder.name} from {system}: signed error in %, of mean, p50, p95")
    print(f"{'':<38}{'TTFT':>21} {'TPOT':>21} {'end to end':>21}")
    for name, operators in cases.items():
        tables = step_tables(
            operators,
            num_hidden_layers=LLAMA_8B.num_hidden_layers,
            max_num_batched_tokens=batched_tokens,
            max_num_seqs=seqs,
            capture_sizes=run.capture_sizes,
        )
        print(f"{name:<38}{errors(run, replay(run.workload, table_cost(tables), run.limits))}")


def all_reduces(path: Path) -> None:
    tables = read_prior("h100_sxm")
    print(f"\n{path.name}: prior (eager; in a graph) over Vidur's time, median by size")
    edges = [0, 2**16, 2**18, 2**20, 2**22, 2**24, 2**26, 2**40]
    for kind, rows in sorted(read_collectives(path).items()):
        ours = tables.all_reduces(kind.group_size)
        cells = []
        for low, high in pairwise(edges):
            part = rows[(rows[:, 0] > low) & (rows[:, 0] <= high)]
            if len(part):
                ratio = [
                    float(np.median(interpolated(ours[graph], part[:, 0]) / part[:, 1]))
                    for graph in (False, True)
                ]
                name = f"<{high >> 10} KiB" if high < 2**40 else "more"
                cells.append(f"{name} {ratio[0]:.2f};{ratio[1]:.2f}")
        print(f"{kind.group_size} GPUs: " + "   ".join(cells))


def closed_loop(prior: Prior, row: dict[str, Any], batched_tokens: int) -> float:
    """Return the mean TPOT in ms of a closed loop, without its first round and its last.

    TTFT is left out: who arrives with whom, when all have the same length, is not told.
    """
    count, flight = 6 * row["batch_size"], row["batch_size"]
    tables = prior.step_tables(
        max_num_batched_tokens=batched_tokens,
        max_num_seqs=256,
        capture_sizes=default_capture_sizes(256),
    )
    work = ReplayWorkload.from_requests(np.full(count, row["isl"]), np.full(count, row["osl"]))
    limits = Limits(
        max_num_seqs=256,
        max_num_batched_tokens=batched_tokens,
        async_scheduling=True,
        prefix_caching=False,
    )
    done = replay(work, table_cost(tables), limits, concurrency=flight)
    kept = slice(flight, count - flight)
    tpot = (done.end_s - done.first_token_s)[kept] / (row["osl"] - 1)
    return 1e3 * float(tpot.mean())


def published_runs(batched_tokens: int) -> None:
    """Compare with published closed loops of Qwen3-32B on H100."""
    runs = pl.read_csv(tables_folder() / "silicon_sample.csv", infer_schema_length=None).filter(
        backend="vllm", mode="agg", model_path="Qwen/Qwen3-32B", system="h100_sxm", isl=1024
    )
    runs = runs.filter(pl.col("gemm_quant_mode").is_null()).sort("tp_size", "osl", "batch_size")
    print("\nQwen3-32B on H100, vLLM 0.12, bfloat16, prompts of 1,024: ms, prior over measured")
    print(f"{'TP':>3}{'output':>7}{'in flight':>10}{'TPOT':>8}{'prior':>8}{'ratio':>7}")
    priors = {size: of("h100_sxm", QWEN3_32B, size) for size in runs["tp_size"].unique()}
    found: dict[tuple[int, int], dict[int, tuple[float, float]]] = {}
    for row in runs.iter_rows(named=True):
        tpot = closed_loop(priors[row["tp_size"]], row, batched_tokens)
        print(
            f"{row['tp_size']:>3}{row['osl']:>7}{row['batch_size']:>10}"
            f"{row['silicon_tpot_ms']:>8.2f}{tpot:>8.2f}{tpot / row['silicon_tpot_ms']:>7.2f}"
        )
        key = (row["osl"], row["batch_size"])
        found.setdefault(key, {})[row["tp_size"]] = (row["silicon_tpot_ms"], tpot)
    ratios = [ours / real for sizes in found.values() for real, ours in sizes.values()]
    error = 100 * float(np.mean(np.abs(np.array(ratios) - 1)))
    print(f"TPOT of {len(ratios)} runs: mean absolute error {error:.1f} %,"
          f" prior over measured {min(ratios):.2f} to {max(ratios):.2f}")  # fmt: skip
    recalibrated(found)


def recalibrated(found: dict[tuple[int, int], dict[int, tuple[float, float]]]) -> None:
    """Recalibrate by runs at one TP and predict runs at each; loads that taught are left out."""
    logs = {
        size: np.array([np.log(np.divide(*sizes[size])) for sizes in found.values()])
        for size in (2, 4, 8)
    }
    print("by all other loads: signed error of TPOT in %, its 90 % half-width, runs inside")
    for learned, known in logs.items():
        for size, asked in logs.items():
            rests = [np.delete(known, i) for i in range(len(known))]
            errors_ = asked - np.array([rest.mean() for rest in rests])
            spreads = np.array([spread_of(rest, float(rest.mean())) for rest in rests])
            inside = np.abs(errors_) <= Z95 * spreads
            error = 100 * float(np.mean(np.exp(-errors_) - 1))
            width = 100 * float(np.mean(np.exp(Z95 * spreads) - 1))
            print(f"  learned at TP {learned}, asked at TP {size}: {error:+.1f}, {width:.0f}, "
                  f"{inside.sum()} of {len(inside)}")  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--operators", type=Path)
    options.add_argument("--run", type=Path)
    options.add_argument("--system", default="rtx_pro_6000_server", help="of --operators and --run")
    options.add_argument("--all-reduces", type=Path)
    options.add_argument("--max-num-batched-tokens", type=int, default=8192)
    given = options.parse_args()
    if given.operators:
        layers(given.system, given.operators)
    if given.run:
        real_run(given.system, given.run, given.operators)
    if given.all_reduces:
        all_reduces(given.all_reduces)
    published_runs(given.max_num_batched_tokens)


if __name__ == "__main__":
    main()
