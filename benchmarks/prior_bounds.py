"""Step times of the prior against the roofline: ``python benchmarks/prior_bounds.py CONFIGS``.

Needs ttscope[prior]. CONFIGS is a folder of config.json files (shared/data/model_configs). Each
model is priced on each `--gpu` (all there are, if none is given) in every split of up to eight GPUs
that holds it. Nothing is fitted. Of steps that decode, and of a whole prompt, these are printed
that

- take less than `LEAST` of the roofline: weights, keys and values, and states at the peak of the
  bandwidth, or FLOPs at the peak. Of mixtures `LEAST_OF_EXPERTS`, as tokens crowd on some experts,
- take more than `MOST` times the roofline and the start of `KERNELS` kernels a layer,
- fall with more requests, more context or a longer prompt, by more than `NOISE`,
- fall to less than half with twice the GPUs,
- are longer on a GPU than on a slower one of the same kind, by more than `NOISE`.

Each line has the worst place of its kind for a model and a split.
"""

import argparse
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from advisor.step_time.prior.offers import memory_on
from advisor.step_time.prior.operations.times import precision_of
from advisor.step_time.prior.prior import Prior, prior_of
from advisor.step_time.prior.relatives import RELATIVES, read_gpu
from advisor.step_time.prior.tables import PriorTables, known_systems, tables_folder
from profiler.engines.models.model_facts import facts_from_file
from traces.errors import TablesError, UsageError
from traces.schema.engine import EngineConfig, ModelFacts
from traces.schema.layers import Matrix

Floats = npt.NDArray[np.float64]

LEAST: Final = 0.9
LEAST_OF_EXPERTS: Final = 0.4
MOST: Final = 20.0
KERNELS: Final = 12  # of a layer
NOISE: Final = 0.03
BATCHES: Final = np.array([1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512.0])
CONTEXTS: Final = np.array([1, 2, 4, 8, 16, 32, 64, 128.0]) * 1024
PROMPTS: Final = np.array([128, 512, 1024, 2048, 4096, 8192.0])
# Tensor and data parallelism, and whether experts are parallel.
SPLITS: Final = (
    (1, 1, False), (2, 1, False), (4, 1, False), (8, 1, False),
    (2, 1, True), (4, 1, True), (8, 1, True), (1, 4, True), (1, 8, True), (2, 4, True),
)  # fmt: skip
SLOWER: Final = (
    ("a100_sxm_40gb", "a100_sxm"), ("a100_pcie", "a100_sxm"), ("h100_pcie", "h100_sxm"),
    ("h100_sxm", "h200_sxm"), ("l4", "l40s"), ("b200_sxm", "b300_sxm"), ("gb200", "gb300"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """Seconds of a model's steps in a split: decoding [BATCHES, CONTEXTS], and whole [PROMPTS]."""

    prior: Prior
    engine: EngineConfig
    decode: Floats
    prompts: Floats

    @property
    def split(self) -> tuple[int, int, bool]:
        """Tensor and data parallelism, and whether experts are parallel."""
        engine = self.engine
        return (
            engine.tensor_parallel_size, engine.data_parallel_size, engine.expert_parallel,
        )  # fmt: skip

    def label(self) -> str:
        """Say what it is: `h100_sxm Qwen3-32B tp2`."""
        tensor, data, experts = self.split
        size = f"tp{tensor}" + f" dp{data}" * (data > 1) + " ep" * experts
        return f"{self.prior.tables.system} {self.prior.facts.name} {size}"


def case(tables: PriorTables, facts: ModelFacts, split: tuple[int, int, bool]) -> Case | None:
    """Return a case; None where it is refused or does not fit in the memory."""
    tensor, data, experts = split
    engine = EngineConfig(
        model=facts.name, tensor_parallel_size=tensor, data_parallel_size=data, mode="server",
        other=(("enable_expert_parallel", "true"),) if experts else (),
    )  # fmt: skip
    if experts != bool(experts and facts.num_experts):
        return None
    try:
        memory = memory_on(tables, engine, facts)
        if memory is not None and memory.cache <= 0:
            return None
        prior = prior_of(tables, facts, engine)
    except (UsageError, TablesError, ValueError):
        return None
    decode = prior.decoding(BATCHES, CONTEXTS)
    decode = decode + (prior.token_seconds(BATCHES) + prior.logit_seconds(BATCHES))[:, None]
    chunks, _, alone = prior._chunks(int(PROMPTS[-1]))
    prompts = np.interp(PROMPTS, chunks, alone[:, 0]) + prior._token_seconds(PROMPTS, 512)
    return Case(prior=prior, engine=engine, decode=decode, prompts=prompts)


def roofline(given: Case, tokens: Floats, contexts: Floats, *, requests: float = 0.0) -> Floats:
    """Return the least seconds [tokens, contexts] of steps of so many requests.

    Each has one token, if not all tokens are of so many `requests`.
    """
    prior, (tensor, data, _) = given.prior, given.split
    facts, tables = prior.facts, prior.tables
    value = 1.0 if (facts.kv_cache_dtype or "").startswith("fp8") else 2.0
    moved, seconds = np.zeros((len(tokens), len(contexts))), np.zeros(len(tokens))
    matrices = [(group.count, each) for group in facts.layers or () for each in group.matrices]
    for count, each in (*matrices, *((1, each) for each in facts.others)):
        shared, ranks = _shared(each, tensor, data)
        if not each.used or shared is None:
            continue
        all_tokens = tokens * (ranks / tensor)
        moved += (
            count * np.array([shared * (each.read_bytes(n) or 0.0) for n in all_tokens])[:, None]
        )
        rows = 2.0 * count * each.active_parameters * shared * all_tokens
        seconds += rows / tables.peak(_peak(each.precision))
    for group in facts.layers or ():
        if (attention := group.attention) is not None:
            share = 1 if attention.latent is not None else min(tensor, attention.kv_heads)
            entry = attention.values * value / share
            half = 0.5 if attention.kind == "chunked_attention" else 1.0
            reads = np.array([half * attention.reads(c) for c in contexts])
            keys = np.array([attention.index_reads(c) for c in contexts]) * attention.index_bytes(
                value
            )
            moved += group.count * tokens[:, None] * (reads * entry + keys)
        if group.state is not None and group.state.size_bytes:
            moved += (2.0 * group.count * group.state.size_bytes / tensor) * (
                requests or tokens[:, None]
            )
    return np.maximum(moved / tables.peak_bandwidth, seconds[:, None])


def _shared(matrix: Matrix, tensor: int, data: int) -> tuple[float | None, int]:
    """Return what of a matrix is on one GPU, and how many GPUs' tokens it works on."""
    if 0 < matrix.used < matrix.copies:
        return 1.0 / (tensor * data), tensor * data
    return (None if matrix.name.startswith(("visual", "vision")) else 1.0 / tensor), tensor


def _peak(form: str) -> str:
    name = precision_of(form)
    return {"nvfp4": "fp4", "bfloat16": "bfloat16", "int4": "bfloat16", "mxfp4": "fp4"}.get(
        name, "fp8"
    )


def found(given: Case) -> Iterator[tuple[str, float, str]]:
    """Yield what is wrong of a case: its kind, how far off, and where."""
    facts = given.prior.facts
    least = roofline(given, BATCHES, CONTEXTS)
    share = LEAST_OF_EXPERTS if facts.num_experts else LEAST
    start = KERNELS * facts.num_hidden_layers * given.prior.tables.kernel_s
    low, high = given.decode / least, given.decode / (least + start)
    at = np.unravel_index(int(np.argmin(low)), low.shape)
    if low[at] < share:
        yield "below the roofline", float(low[at]), _place(at)
    at = np.unravel_index(int(np.argmax(high)), high.shape)
    if high[at] > MOST:
        yield "far above the roofline", float(high[at]), _place(at)
    axes = [(0, "more requests"), (1, "more context")]
    for axis, what in axes[:1] if facts.chunked else axes:  # chunks begin again
        fall = np.diff(np.log(given.decode), axis=axis)
        at = np.unravel_index(int(np.argmin(fall)), fall.shape)
        if fall[at] < -NOISE:
            yield f"falls with {what}", float(np.exp(fall[at])), _place(at)
    prompts = given.prompts / np.array(
        [roofline(given, np.array([n]), np.zeros(1), requests=1.0)[0, 0] for n in PROMPTS]
    )
    place = int(np.argmin(prompts))
    if prompts[place] < share:
        yield "prompt below the roofline", float(prompts[place]), f"{PROMPTS[place]:g} tokens"
    over = given.prompts / (given.prompts / prompts + start)
    place = int(np.argmax(over))
    if over[place] > MOST:
        yield "prompt far above", float(over[place]), f"{PROMPTS[place]:g} tokens"
    falls = np.diff(np.log(given.prompts))
    if falls.min() < -NOISE:
        place = int(np.argmin(falls))
        yield "prompt falls", float(np.exp(falls[place])), f"{PROMPTS[place]:g} tokens"


def compared(one: Case, other: Case, factor: float, what: str) -> Iterator[tuple[str, float, str]]:
    """Yield where the other takes less than `factor` times what one takes."""
    ratio = other.decode / one.decode
    at = np.unravel_index(int(np.argmin(ratio)), ratio.shape)
    if ratio[at] < factor * (1 - NOISE):
        yield what, float(ratio[at]), _place(at)


def _place(at: tuple[np.intp, ...]) -> str:
    return f"batch {BATCHES[at[0]]:g}, context {CONTEXTS[at[1]]:g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", type=Path)
    parser.add_argument("--gpu", action="append", help="a GPU, and others with more")
    parser.add_argument("--keep", default="", help="models alone whose name has this text")
    given = parser.parse_args()
    models = [
        facts_from_file(path)
        for path in sorted(given.configs.glob("*_config.json"))
        if "hf_quant" not in path.name and given.keep in path.name
    ]
    gpus = given.gpu or [*known_systems(tables_folder()), *RELATIVES]
    every: dict[tuple[str, str, tuple[int, int, bool]], Case] = {}
    kinds: Counter[str] = Counter()

    def told(each: Case, wrong: Iterator[tuple[str, float, str]]) -> None:
        for kind, ratio, where in wrong:
            kinds[kind] += 1
            print(f"  {kind}: {ratio:.3g}, {each.label()}, {where}")

    for gpu in gpus:
        tables = read_gpu(gpu)
        for facts in models:
            for split in SPLITS:
                made = case(tables, facts, split)
                if made is None:
                    continue
                every[gpu, facts.name, split] = made
                told(made, found(made))
                half = every.get((gpu, facts.name, (split[0] // 2, *split[1:])))
                if half is not None:
                    told(made, compared(half, made, 0.5, "less than half with twice the GPUs"))
    for slow, fast in SLOWER:
        for (gpu, name, split), made in every.items():
            other = every.get((fast, name, split))
            if gpu == slow and other is not None:
                told(other, compared(other, made, 1.0, f"slower than {slow}"))
    print(f"{len(every):,} cases of {len(models)} models on {len(gpus)} GPUs, "
          f"{math.prod((len(BATCHES), len(CONTEXTS))) * len(every):,} steps")  # fmt: skip
    for kind, count in sorted(kinds.items()):
        print(f"{count:>6} {kind}")


if __name__ == "__main__":
    main()
