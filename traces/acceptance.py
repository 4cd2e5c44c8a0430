"""Speculative decoding: how many drafted tokens were kept, by position."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from traces.schema import EngineConfig, Estimate, Record
from traces.statistics import Floats, ratio


@dataclass(frozen=True, kw_only=True)
class Acceptance(Record):
    """`accepted_per_position[i]`: of the drafts made, the share whose token i was kept.

    `length` is the tokens that a drafted step gives: 1 + the sum over positions. `drafted` is
    the number of drafted tokens.
    """

    method: str
    drafted: int | None
    accepted_per_position: tuple[Estimate | None, ...]
    length: Estimate | None


def acceptance(
    engine: EngineConfig, steps: pl.DataFrame, samples: pl.DataFrame
) -> Acceptance | None:
    """Return what was accepted, None when the engine does not speculate or nothing was seen.

    The samples' own counts give intervals over problems; without them the steps' sums give the
    values alone.
    """
    if engine.speculative is None:
        return None
    method = engine.speculative.method
    counted = samples.drop_nulls(["drafted_per_step", "accepted_per_step"])
    if counted.height:
        return _from_samples(method, counted)
    summed = steps.drop_nulls(["drafted", "accepted"])
    return _from_steps(method, summed) if summed.height else None


def _from_samples(method: str, samples: pl.DataFrame) -> Acceptance | None:
    drafts = (
        samples.select("problem", "drafted_per_step", "accepted_per_step")
        .explode("drafted_per_step", "accepted_per_step")
        .filter(pl.col("drafted_per_step") > 0)
    )
    if not drafts.height:
        return None
    positions = int(drafts["drafted_per_step"].cast(pl.Int64).to_numpy().max())
    by_problem = (
        drafts.group_by("problem")
        .agg(
            pl.len().alias("drafts"),
            pl.col("drafted_per_step").sum().alias("drafted"),
            pl.col("accepted_per_step").sum().alias("accepted"),
            *(
                (pl.col("accepted_per_step") > place).sum().alias(f"at{place}")
                for place in range(positions)
            ),
        )
        .sort("problem")
    )
    made = by_problem["drafts"].to_numpy().astype(float)
    kept = by_problem["accepted"].to_numpy().astype(float)
    return Acceptance(
        method=method,
        drafted=int(by_problem["drafted"].sum()),
        accepted_per_position=tuple(
            ratio(by_problem[f"at{place}"].to_numpy().astype(float), made, "1")
            for place in range(positions)
        ),
        length=ratio(kept + made, made, "tokens"),
    )


def _from_steps(method: str, steps: pl.DataFrame) -> Acceptance | None:
    drafted, accepted = (_sum_lists(steps[name]) for name in ("drafted", "accepted"))
    if not drafted.size or drafted[0] == 0:
        return None
    shares = accepted / drafted[0]
    return Acceptance(
        method=method,
        drafted=int(drafted.sum()),
        accepted_per_position=tuple(Estimate(value=float(share), unit="1") for share in shares),
        length=Estimate(value=float(1 + shares.sum()), unit="tokens"),
    )


def _sum_lists(lists: pl.Series) -> Floats:
    rows = lists.to_list()
    total = np.zeros(max(map(len, rows)))
    for row in rows:
        total[: len(row)] += row
    return total
