"""Seconds by count, and how they change from one precision, shape or GPU to another.

A rule carries a measured time over by what bounds both operations: the bytes that they move at the
bandwidth, or their FLOPs at the peak, whichever takes longer (the roofline, Williams et al. 2009,
doi 10.1145/1498765.1498785). What a kernel takes to start stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final, Self

import numpy as np

from advisor.step_time.prior.tables import PriorTables
from traces.errors import TablesError
from traces.statistics import Floats

# How far off each rule is where a table has what it stands for (benchmarks/prior_rules.py): the
# spread (root mean square) of the log of time. That of bytes alone is taken to be as wide.
PRECISION_SPREAD: Final = 0.50
SHAPE_SPREAD: Final = 0.33
GPU_SPREAD: Final = 0.50
BYTES_SPREAD: Final = 0.50


@dataclass(frozen=True, kw_only=True)
class Ruled:
    """Times with a part that no table has: the `rule` of it, and what it adds to their spread.

    `spread` is the sd of the log of time.
    """

    rule: str | None = None
    spread: float = 0.0

    def by_rule(self, rule: str, spread: float) -> Self:
        """Return the times as those of a rule, beside any that they come from."""
        rules = rule if self.rule is None else f"{self.rule}\n{rule}"
        return replace(self, rule=rules, spread=float(np.hypot(self.spread, spread)))

    def by_rules(self, rules: Iterable[tuple[str, float]]) -> Self:
        """Return the times as those of rules, each with its spread."""
        found = self
        for rule in rules:
            found = found.by_rule(*rule)
        return found


@dataclass(frozen=True, kw_only=True)
class CallTimes(Ruled):
    """`rows` [rows, (count, seconds)] of a call.

    `routing` is how far off (log of time) other routings of the experts are.
    """

    rows: Floats
    routing: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Precision:
    """What a form of weights asks of a GPU: bytes of a parameter, and which peak its FLOPs have."""

    parameter_bytes: float
    peak: str


PRECISIONS: Final = {
    "bfloat16": Precision(parameter_bytes=2.0, peak="bfloat16"),
    "fp8": Precision(parameter_bytes=1.0, peak="fp8"),
    "fp8_block": Precision(parameter_bytes=1.0, peak="fp8"),
    "mxfp8": Precision(parameter_bytes=1.0 + 1 / 32, peak="fp8"),
    "int8": Precision(parameter_bytes=1.0, peak="fp8"),
    "nvfp4": Precision(parameter_bytes=0.5 + 1 / 16, peak="fp4"),
    "mxfp4": Precision(parameter_bytes=0.5 + 1 / 32, peak="bfloat16"),  # weights alone
    "int4": Precision(parameter_bytes=0.5 + 2 / 128, peak="bfloat16"),
    "float32_cores": Precision(parameter_bytes=4.0, peak="float32"),  # without tensor cores
}
WHOLE: Final = ("float16", "half", "float32", "float")  # are asked about in bfloat16


def precision_of(name: str) -> str:
    """Return the precision that a form of weights is priced in. Raises TablesError for others."""
    plain = name.removeprefix("torch.")
    if plain in WHOLE:
        return "bfloat16"
    if plain not in PRECISIONS:
        raise TablesError(
            f"weights in {name} are in no table and no rule prices them. There are "
            f"{', '.join(PRECISIONS)}"
        )
    return plain


@dataclass(frozen=True, kw_only=True)
class LeastWork:
    """What an operation on so many tokens moves and computes at the least."""

    bytes: Callable[[Floats], Floats]
    flops: Callable[[Floats], Floats]
    peak: str = "bfloat16"

    def seconds(self, tables: PriorTables, counts: Floats) -> Floats:
        """Return the least that a GPU takes, by the roofline."""
        moving = self.bytes(counts) / tables.bandwidth_bytes_per_s
        computing = self.flops(counts) / tables.peak(self.peak)
        return np.maximum(moving, computing)


def carried(
    rows: Floats,
    before: LeastWork,
    after: LeastWork,
    own: PriorTables,
    other: PriorTables | None = None,
) -> Floats:
    """Return times of work `before`, measured on `other` if not here, as those of `after`."""
    there = own if other is None else other
    counts, seconds = rows.T
    start = np.minimum(there.kernel_s, seconds)
    ratio = after.seconds(own, counts) / np.maximum(before.seconds(there, counts), 1e-12)
    return np.column_stack(
        [counts, start * (own.kernel_s / there.kernel_s) + (seconds - start) * ratio]
    )
