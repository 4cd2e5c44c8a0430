"""Advice over many long recordings: ``python benchmarks/many_recordings.py``.

Eight configurations (two models; 8 and 16 samples, greedy, and drafts by n-gram lookup) answer 25
problems, one at a time, in 100,000 steps each, by a law of step time with 5 % of noise. Each is
written three times with other noise; the recordings are these, hard-linked into as many folders as
asked for. Printed are wall and processor time and the peak memory of `ttscope advise`, in a process
of its own.
"""

import argparse
import os
import tempfile
from itertools import product
from pathlib import Path

import numpy as np
import polars as pl
from dense_models import dense
from live_day import measure

from traces.recording.manifest import ClockReading, Manifest, WorkloadFacts
from traces.recording.parts import write_part
from traces.recording.tables import TABLES
from traces.schema.engine import EngineConfig, ModelFacts, Speculative
from traces.schema.tts.policy import Policy

START = 1_700_000_000_000_000_000
PROBLEMS, PROMPT, NOISE, TAKES = 25, 150, 0.05, 3
MODELS = (
    dense("Qwen2.5-1.5B", "Qwen2ForCausalLM", (28, 1536, 12, 2, 8960, 151936), tied=True),
    dense("Qwen2.5-7B", "Qwen2ForCausalLM", (28, 3584, 28, 4, 18944, 152064)),
)
SKILL = (0.45, 0.7)
NGRAM = Speculative(method="ngram", num_speculative_tokens=3, prompt_lookup_max=4)
Shape = tuple[int, int, Speculative | None]
SHAPES: list[Shape] = [  # samples a problem, max_num_seqs, drafts
    (1, 16, None),
    (8, 16, None),
    (16, 16, None),
    (8, 16, NGRAM),
]


def configuration(facts: ModelFacts, shape: Shape) -> tuple[EngineConfig, Policy]:
    """Return engine and policy of a shape."""
    n, seqs, drafts = shape
    engine = EngineConfig(
        model=facts.name, dtype="bfloat16", max_num_seqs=seqs, max_num_batched_tokens=2048,
        max_model_len=32768, block_size=16, num_gpu_blocks=20_000, gpu="NVIDIA made",
        enable_prefix_caching=True, speculative=drafts, mode="in_process",
    )  # fmt: skip
    if n == 1:
        return engine, Policy(method="greedy", max_tokens=16_384)
    return engine, Policy(method="majority", n=n, temperature=0.8, max_tokens=16_384)


def write(
    folder: Path, facts: ModelFacts, shape: Shape, *, skill: float, seed: int, steps: int
) -> None:
    """Write one recording of a configuration; `skill` is how often a sample is right."""
    engine, policy = configuration(facts, shape)
    rng = np.random.default_rng([seed, steps])
    keys = {"engine": engine.key(), "policy": policy.key()}
    longest = np.diff(np.linspace(0, steps, PROBLEMS + 1).astype(int))
    tables: dict[str, list[pl.DataFrame]] = {"steps": [], "problems": [], "samples": []}
    now, first = START, 0
    for problem, count in enumerate(longest):
        verify = np.maximum((count * rng.uniform(0.3, 1.0, policy.n)).astype(int), 2)
        verify[0] = count  # steps of each sample, its prompt's among them
        pace = np.ones(policy.n)
        drafts: dict[str, object] = {}
        if engine.speculative is not None:
            accepted = [rng.binomial(3, 0.5, size - 1) for size in verify]
            pace = np.array([1 + each.mean() for each in accepted])
            drafts = {
                "drafted_per_step": [[3] * (size - 1) for size in verify],
                "accepted_per_step": [each.tolist() for each in accepted],
            }
            tokens = np.array([1 + (each + 1).sum() for each in accepted])
        else:
            tokens = verify
        at = np.arange(count)
        alive = (at[:, None] < verify) & (at[:, None] > 0)
        running = alive.sum(axis=1)
        context = ((PROMPT + at[:, None] * pace) * alive).sum(axis=1).astype(int)
        width = 1 if engine.speculative is None else 4
        seconds = 1e-3 + facts.weight_bytes / 2e12 + 2e-5 * running
        seconds += 1e-6 * width * running + context * facts.kv_bytes_per_token / 2e12
        seconds[0] += 2e-3
        if engine.speculative is not None:
            seconds[1:] += 3e-4
        wall = (1e9 * seconds * np.exp(rng.normal(0, NOISE, count))).astype(int)
        ends = now + np.cumsum(wall)
        prompt = (at == 0).astype(int)
        tables["steps"].append(
            pl.DataFrame(
                {
                    "engine": keys["engine"],
                    "step": first + at,
                    "end": ends,
                    "interval_ns": wall,
                    "wall_ns": wall,
                    "prefill_requests": policy.n * prompt,
                    "prefill_tokens": (PROMPT + policy.n - 1) * prompt,
                    "decode_requests": running,
                    "decode_tokens": width * running,
                    "running": running + policy.n * prompt,
                    "waiting": 0,
                    "prefill_kv_tokens": PROMPT * policy.n * prompt,
                    "decode_kv_tokens": context,
                    "prefill_query_context": PROMPT * (PROMPT + 1) // 2 * prompt,
                    "source": "measured",
                }
            )
        )
        end, name = int(ends[-1]), f"q{problem}"
        tables["problems"].append(
            pl.DataFrame(
                {
                    "problem_id": name, **keys, "span_id": f"p{problem}", "end": end,
                    "prompt_tokens": PROMPT, "arrival": now, "start": now, "decided_at": end,
                }
            )
        )  # fmt: skip
        chance = np.clip(skill + 0.3 * np.sin(problem), 0.05, 0.95)
        right = rng.random(policy.n) < chance
        wrong = rng.integers(1, 6, policy.n).astype(str)
        tables["samples"].append(
            pl.DataFrame(
                {
                    "problem_id": name, **keys, "sample_index": np.arange(policy.n),
                    "span_id": [f"s{problem}-{i}" for i in range(policy.n)], "role": "sample",
                    "prompt_tokens": PROMPT, "cached_tokens": 0, "output_tokens": tokens,
                    "arrival": now, "first_step": first, "last_step": first + verify - 1,
                    "first_token": int(ends[0]), "end": ends[verify - 1], "correct": right,
                    "answer": np.where(right, "0", wrong), "finish_reason": "stop", **drafts,
                }
            )
        )  # fmt: skip
        now, first = end, first + count
    folder.mkdir(parents=True)
    for table, frames in tables.items():
        columns = TABLES[table]
        whole = pl.concat(frames, how="vertical_relaxed")
        missing = [pl.lit(None, columns[c]).alias(c) for c in columns if c not in whole.columns]
        cast = [pl.col(name).cast(kind) for name, kind in columns.items()]
        write_part(folder, table, whole.with_columns(missing).select(cast), 0, 0)
    Manifest(
        clock_start=ClockReading(monotonic_ns=0, unix_ns=START),
        engines={keys["engine"]: engine},
        policies={keys["policy"]: policy},
        models={facts.name: facts},
        workload=WorkloadFacts(name="made", hash="made", problems=PROBLEMS, seed=0),
        concurrency=1,
        price_usd_per_device_hour=2.5,
        complete=True,
    ).write(folder)


def link(source: Path, target: Path) -> None:
    """Make a recording of the files of another."""
    target.mkdir(parents=True)
    for file in source.iterdir():
        os.link(file, target / file.name)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--recordings", type=int, default=1000)
    options.add_argument("--steps", type=int, default=100_000, help="of each")
    options.add_argument("--folder", type=Path, help="where to write, on a file system of its own")
    given = options.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        root, made = Path(name) / "runs", Path(name) / "made"
        every = list(product(range(TAKES), zip(MODELS, SKILL, strict=True), SHAPES))
        for seed, (_, (facts, skill), shape) in enumerate(every[: given.recordings]):
            write(made / str(seed), facts, shape, skill=skill, seed=seed, steps=given.steps)
        for number in range(given.recordings):
            link(made / str(number % len(every)), root / f"run-{number:05}")
        print(f"{given.recordings:,} recordings of {given.steps:,} steps")
        code = "import sys; from tui.cli import main; sys.exit(main())"
        wanted = ("--min-accuracy", "0.5", "--optimise", "latency")
        measure("advise", "-c", code, "advise", str(root), *wanted, lines=40)


if __name__ == "__main__":
    main()
