"""Speculative decoding: how many drafted tokens were kept, by position, phase and batch size.

A draft verifies k tokens in one step and gives the accepted ones and one more. Everything here
counts drafts, whatever made them. vLLM's own counts are kept as they are: in a sample's last step
they include tokens accepted past its end, which nobody received.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from traces.schema.engine import EngineConfig
from traces.schema.estimate import Estimate
from traces.schema.record import Record
from traces.statistics import ratio

PHASES = ("thinking", "answer")
STRETCHES = 40  # neighbouring steps are alike: intervals draw stretches of them


@dataclass(frozen=True, kw_only=True)
class PhaseAcceptance(Record):
    """`Acceptance` of the steps whose first token is a thought, or part of the answer."""

    phase: str
    drafted: int
    accepted_per_position: tuple[Estimate | None, ...]
    length: Estimate | None
    tokens_per_step: Estimate | None


@dataclass(frozen=True, kw_only=True)
class BatchAcceptance(Record):
    """`Acceptance` of the steps that decoded for `batch_low` to `batch_high` requests.

    `draft_s` is the mean time that a step's drafting took.
    """

    batch_low: int
    batch_high: int
    steps: int
    drafted: int
    accepted_per_position: tuple[Estimate | None, ...]
    length: Estimate | None
    draft_s: Estimate | None


@dataclass(frozen=True, kw_only=True)
class Acceptance(Record):
    """`accepted_per_position[i]`: of the drafts made, the share whose token i was kept.

    `length` is the tokens that a drafted step gives: 1 + the sum over positions. `drafted` is
    the number of drafted tokens. `tokens_per_step` is the tokens that a request gets from a
    decode step, drafted or not, and without those past its end: None where it is not known which
    steps drafted nothing, as is `by_phase`. Intervals are over problems, those of `by_batch` and
    `draft_s`, which steps tell, over stretches of steps.
    """

    method: str
    drafted: int | None
    accepted_per_position: tuple[Estimate | None, ...]
    length: Estimate | None
    tokens_per_step: Estimate | None = None
    draft_s: Estimate | None = None
    by_phase: tuple[PhaseAcceptance, ...] = ()
    by_batch: tuple[BatchAcceptance, ...] = ()


def acceptance(
    engine: EngineConfig, steps: pl.DataFrame, samples: pl.DataFrame
) -> Acceptance | None:
    """Return what was accepted, None when the engine does not speculate or nothing was seen.

    The samples' own counts give intervals over problems; without them the steps' sums stand in.
    """
    if engine.speculative is None:
        return None
    method = engine.speculative.method
    decoding = steps.filter(pl.col("drafted").list.len() > 0)
    per_step: dict[str, Any] = {
        "draft_s": _draft_time(
            decoding if decoding.height else steps.filter(pl.col("decode_requests") > 0)
        ),
        "by_batch": tuple(_by_batch(decoding)),
    }
    drafts = decode_steps(samples)
    if (drafts["drafted"] > 0).any():
        by_problem = kept_by_problem(drafts)
        phases = drafts.drop_nulls("phase")
        return Acceptance(
            method=method,
            **kept(by_problem),
            tokens_per_step=tokens_per_step(kept_by_problem(drafts.drop_nulls("tokens"))),
            by_phase=tuple(
                PhaseAcceptance(phase=phase, **kept(mine), tokens_per_step=tokens_per_step(mine))
                for phase in PHASES
                if (mine := kept_by_problem(phases.filter(pl.col("phase") == phase))).height
            ),
            **per_step,
        )
    if not decoding.height:
        return None
    return Acceptance(method=method, **kept(_stretches(decoding)), **per_step)


def decode_steps(samples: pl.DataFrame) -> pl.DataFrame:
    """Return one row per decode step of every sample whose drafts are recorded.

    Columns: problem, drafted, accepted, tokens (emitted; the last step's are cut at the sample's
    end) and phase. The last two are null where the steps do not account for the sample's tokens,
    so that some which drafted nothing are missing; phase also where the end of thinking is not
    known.
    """
    rows = (
        samples.drop_nulls(["drafted_per_step", "accepted_per_step"])
        .with_row_index("sample")
        .select(
            "sample",
            "problem",
            "output_tokens",
            "think_tokens",
            drafted="drafted_per_step",
            accepted="accepted_per_step",
        )
        .explode("drafted", "accepted")
        .drop_nulls("drafted")
    )
    emitted = pl.col("accepted") + 1
    start = 1 + emitted.cum_sum().over("sample") - emitted  # of the sample's output tokens
    left = pl.col("output_tokens") - pl.col("start")
    complete = (left.last() > 0) & (left.last() <= emitted.last())
    return (
        rows.with_columns(start=start)
        .with_columns(whole=complete.over("sample").fill_null(False))
        .select(
            "problem",
            "drafted",
            "accepted",
            tokens=pl.when("whole").then(pl.min_horizontal(emitted, left)),
            phase=pl.when(pl.col("whole") & pl.col("think_tokens").is_not_null()).then(
                pl.when(pl.col("start") <= pl.col("think_tokens"))
                .then(pl.lit(PHASES[0]))
                .otherwise(pl.lit(PHASES[1]))
            ),
        )
    )


def kept_by_problem(drafts: pl.DataFrame) -> pl.DataFrame:
    """Return sums per problem of `decode_steps`' rows, in the problems' order.

    Columns: steps, tokens, drafted and accepted tokens, lists of drafts and keeps per position.
    """
    width = int(drafts["drafted"].max() or 0)  # type: ignore[arg-type]
    made = pl.col("drafted") > 0
    positions = range(width)
    return (
        drafts.group_by("problem")
        .agg(
            pl.len().alias("steps"),
            pl.col("tokens").sum(),
            made.sum().alias("drafts"),
            pl.col("drafted").sum(),
            *((made & (pl.col("accepted") > at)).sum().alias(f"at{at}") for at in positions),
        )
        .sort("problem")
    )


def kept(sums: pl.DataFrame) -> dict[str, Any]:
    """Return `drafted`, `accepted_per_position` and `length` of rows that are drawn together.

    Columns: drafts, drafted and at0, at1, ...: how many drafts kept their token at each position.
    """
    made = sums["drafts"]
    at = [sums[name] for name in sums.columns if name.startswith("at")]
    return {
        "drafted": int(sums["drafted"].sum()),
        "accepted_per_position": tuple(ratio(each, made, "1") for each in at),
        "length": ratio(made + sum(at), made, "tokens", least=1.0),
    }


def tokens_per_step(sums: pl.DataFrame) -> Estimate | None:
    """Return the tokens that a request gets from a decode step."""
    return ratio(sums["tokens"], sums["steps"], "tokens", least=1.0)


def _by_batch(steps: pl.DataFrame) -> Iterator[BatchAcceptance]:
    """Yield the batch sizes 1, 2, 3 to 4, 5 to 8, ... that were seen."""
    size = steps["decode_requests"].fill_null(0).to_numpy()
    # Exact in binary: bit_length(n - 1) is 0 for 1, 1 for 2, 2 for 3 and 4, ...
    power = np.array([max(int(n) - 1, 0).bit_length() for n in size], dtype=np.int64)
    for bits in np.unique(power[size > 0]):
        mine = steps.filter(pl.Series((power == bits) & (size > 0)))
        high = 1 << int(bits)
        yield BatchAcceptance(
            batch_low=high // 2 + 1,
            batch_high=high,
            steps=mine.height,
            **kept(_stretches(mine)),
            draft_s=_draft_time(mine),
        )


def _stretches(steps: pl.DataFrame) -> pl.DataFrame:
    """Return sums over stretches of neighbouring steps, in the columns that `kept` reads."""
    number = np.arange(steps.height) * min(STRETCHES, steps.height) // max(steps.height, 1)
    width = int(steps["accepted"].list.len().max() or 0)  # type: ignore[arg-type]
    return (
        steps.with_columns(stretch=pl.Series(number))
        .group_by("stretch")
        .agg(position_sums(width))
        .sort("stretch")
    )


def position_sums(width: int) -> list[pl.Expr]:
    """Return the columns that `kept` reads, summed from lists per position of such a width."""
    return [
        pl.col("drafted").list.first().sum().alias("drafts"),
        pl.col("drafted").list.sum().sum().alias("drafted"),
        *(
            pl.col("accepted").list.get(at, null_on_oob=True).sum().alias(f"at{at}")
            for at in range(width)
        ),
    ]


def _draft_time(steps: pl.DataFrame) -> Estimate | None:
    timed = steps.filter(~pl.col("profiled").fill_null(False))["draft_ns"].drop_nulls()
    parts = np.array_split(timed.to_numpy() / 1e9, min(STRETCHES, max(timed.len(), 1)))
    return ratio([part.sum() for part in parts], [part.size for part in parts], "s")
