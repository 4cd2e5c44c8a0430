"""Why no candidate meets a budget, and what a limit that is missed would have to be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import ceil, floor, isfinite, log10

from advisor.limits import OPTIONS, which_latency
from advisor.question import Question
from advisor.reasons import interval, quantity
from traces.schema import NearMiss


def why_nothing(
    question: Question, misses: Sequence[NearMiss], rows: Sequence[tuple[str, int]]
) -> Iterator[str]:
    """Yield the sentences; `rows` are the limits and candidates of `misses`."""
    wanted = question.budget.confidence
    yield f"no candidate meets every limit with {wanted:.0%} probability"
    alone = {name: bool(question.within(name).any()) for name in question.met}
    never = [OPTIONS[name] for name, met in alone.items() if not met]
    if never:
        yield f"no candidate meets {' or '.join(never)}, whatever the other limits"
    elif len(alone) > 1:
        listed = " and ".join(OPTIONS[name] for name in alone)
        yield f"{listed} contradict each other: each alone is met, all together are not"
    for miss, (limit, row) in zip(misses, rows, strict=True):
        yield from _would_take(question, miss, limit, row)


def _would_take(question: Question, miss: NearMiss, limit: str, row: int) -> Iterable[str]:
    """Yield what the limit would have to be; nothing where it is met and the others are not."""
    engine, policy = miss.pick.engine, miss.pick.policy
    name = f"{engine.model} {engine.label()}, {policy.label()}"
    missed = miss.sure < question.budget.confidence
    if limit in ("max_gpus", "rate"):
        if missed:
            yield f"{OPTIONS[limit]}: {name} comes nearest, with {interval(miss.nearest)}"
        return
    needed, end = question.needed(limit, row, alone=False), "fit"
    if not isfinite(needed):
        if not missed:
            return
        needed, end = question.needed(limit, row), "be sure of it"
    value = quantity(_enough(needed, above=question.limits[limit].above), miss.nearest.unit)
    which = which_latency(limit, question.budget.latency_percentile)
    yield f"{OPTIONS[limit]} would have to be {value}{which} for {name} to {end}"


def _enough(value: float, *, above: bool) -> float:
    """Return a limit in three digits that is no tighter than `value`."""
    if above:
        return floor(value * 1000) / 1000
    if value <= 0:
        return value
    digits = 2 - floor(log10(value))
    return float(f"{ceil(value * 10**digits - 1e-9) / 10**digits:.3g}")
