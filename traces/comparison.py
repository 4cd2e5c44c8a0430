"""Two runs of the same problems: paired differences, and what differs in the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from traces.metrics import METRICS, Metric
from traces.schema import Estimate, Record
from traces.statistics import paired, paired_change, paired_quantile, problems_to_tell, wilson
from traces.summary import Run, to_plain

SAME = "cannot be told apart"


@dataclass(frozen=True, kw_only=True)
class Change:
    """One metric of the second run minus the first.

    `verdict` is better, worse or "cannot be told apart" (the 90 % interval contains 0);
    `times_as_many` how many times the problems would separate a true difference of this size,
    as the interval narrows with the root of their number. `relative` is the difference as a share
    of the first run's number, None where that is 0. `problems` have the number in both runs, which
    may be fewer than both decided: a prediction does not say whether a tied vote is right.
    """

    metric: Metric
    difference: Estimate
    relative: Estimate | None
    verdict: str
    problems: int
    times_as_many: int | None = None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The second run against the first; `reason` says why there are no paired numbers.

    `not_told` is what of "engine" and "policy" a recording does not tell, or not entirely: that
    `config` names no difference there does not say that there is none.
    """

    first: str
    second: str
    problems: int
    changes: tuple[Change, ...] = ()
    config: Mapping[str, tuple[Any, Any]]
    not_told: tuple[str, ...] = ()
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the document: estimates by metric tag with their verdicts, and the fields."""
        return {
            "first": self.first,
            "second": self.second,
            "problems": self.problems,
            "metrics": {
                change.metric.tag: {
                    "difference": to_plain(change.difference),
                    "relative": to_plain(change.relative),
                    "verdict": change.verdict,
                    "problems": change.problems,
                    "times_as_many_problems": change.times_as_many,
                }
                for change in self.changes
            },
            "config": {name: to_plain(list(values)) for name, values in self.config.items()},
            "not_told": list(self.not_told),
            "reason": self.reason,
        }


def compare(first: Run, second: Run) -> Difference:
    """Return what the second run changes, over the problems that both decided."""
    both = _paired_rows(first, second)
    changes: tuple[Change, ...] = ()
    if not isinstance(both, str):
        found = (_change(metric, both) for metric in METRICS if metric.column is not None)
        changes = tuple(change for change in found if change is not None)
    return Difference(
        first=first.recording,
        second=second.recording,
        problems=0 if isinstance(both, str) else both.height,
        changes=changes,
        config=config_changes(first, second),
        not_told=_not_told(first, second),
        reason=both if isinstance(both, str) else None,
    )


def _paired_rows(first: Run, second: Run) -> pl.DataFrame | str:
    """Return the problems that both decided, or why there are none."""
    if first.rows is None or second.rows is None:
        return "there is no row per problem to pair"
    hashes = [None if run.workload is None else run.workload.hash for run in (first, second)]
    if hashes[0] is None or hashes[0] != hashes[1]:
        return "the recordings are not known to pose the same problems, so nothing is paired"
    columns = [m.column for m in METRICS if m.column is not None]
    names = list(dict.fromkeys(columns))
    # A problem posed several times counts once, by its mean.
    tables = [
        run.rows.filter(pl.col("state") == "decided")
        .group_by("problem_id")
        .agg(pl.col(names).cast(pl.Float64).mean())
        for run in (first, second)
        if run.rows is not None
    ]
    both = tables[0].join(tables[1], on="problem_id", suffix="_second").sort("problem_id")
    return both if both.height else "no problem was decided in both"


def _change(metric: Metric, both: pl.DataFrame) -> Change | None:
    before, after = (
        both[name].fill_null(float("nan")).to_numpy()
        for name in (metric.column or "", f"{metric.column}_second")
    )
    if metric.q is None:
        found = paired(before, after, metric.unit)
    else:
        found = paired_quantile(before, after, metric.q, metric.unit)
    if found is None:
        return None
    relative = paired_change(before, after, metric.q)
    known = np.isfinite(before) & np.isfinite(after)
    if metric.column == "correct" and (before[known] == after[known]).all():
        found, relative = _all_agree(found, relative, before[known])
    verdict, times = _verdict(found, metric, int(known.sum()))
    return Change(
        metric=metric,
        difference=found,
        relative=relative,
        verdict=verdict,
        problems=int(known.sum()),
        times_as_many=times,
    )


def _all_agree(
    found: Estimate, relative: Estimate | None, right: NDArray[np.float64]
) -> tuple[Estimate, Estimate | None]:
    """Return the difference, 0, and its share with the interval of what other problems may show.

    That no problem was won or lost of so many does not prove that none would be: either may be as
    frequent as Wilson's upper end for none of them.
    """
    most = wilson(0, right.size)[1]
    wide = replace(found, low=-most, high=most)
    if relative is None:
        return wide, None
    share = most / float(right.mean())
    return wide, replace(relative, low=-share, high=share)


def _verdict(found: Estimate, metric: Metric, problems: int) -> tuple[str, int | None]:
    """Return what a difference says, and how many times the problems would tell it from none."""
    if found.low is None or found.high is None:
        return SAME, None
    if found.low <= 0 <= found.high:
        many = problems_to_tell(found, problems)
        return SAME, None if many is None else max(ceil(many / problems), 2)
    better = (found.value > 0) == (metric.better == "higher")
    return "better" if better else "worse", None


def config_changes(first: Run, second: Run) -> dict[str, tuple[Any, Any]]:
    """Return `engine.field` and `policy.field` that differ, with both values."""
    changes: dict[str, tuple[Any, Any]] = {}
    for part in ("engine", "policy"):
        one, two = (_fields(getattr(run, part)) for run in (first, second))
        for name in one | two:
            if one.get(name) != two.get(name):
                changes[f"{part}.{name}"] = (one.get(name), two.get(name))
    return changes


def _not_told(first: Run, second: Run) -> tuple[str, ...]:
    """Return which parts of the configurations a recording does not tell, or not entirely.

    An import has the engine's name at most, a server does not tell all of its settings (unless
    its plugin or the user does), and nobody tells how the traffic of others is sampled.
    """
    runs = (first, second)
    engine = any(
        run.imported is not None
        or (run.engine.mode == "server" and None in (run.engine.dtype, run.engine.max_num_seqs))
        for run in runs
    )
    policy = any(run.policy is None or run.policy.temperature is None for run in runs)
    return tuple(name for name, unknown in (("engine", engine), ("policy", policy)) if unknown)


def _fields(record: Record | None) -> dict[str, Any]:
    return {} if record is None else record.to_json()
