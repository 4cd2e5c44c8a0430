"""Two runs of the same problems: paired differences, and what differs in the configuration."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from itertools import pairwise
from math import ceil
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from traces.metrics import METRICS, Metric
from traces.repeats import (
    RunSpread,
    assumed,
    configuration,
    is_repeat,
)
from traces.schema import Estimate, Record
from traces.statistics import (
    Z95,
    Drawn,
    change,
    difference,
    drawn,
    normal_scores,
    problems_to_tell,
    student_95,
    wilson,
)
from traces.summary import Run, to_plain
from traces.window_times import sample_times

Floats = NDArray[np.float64]

SAME = "cannot be told apart"
THROUGHPUT = "throughput_tokens_per_s"


@dataclass(frozen=True, kw_only=True)
class Change:
    """One metric of the second run minus the first.

    `verdict` is better, worse or "cannot be told apart" (the 90 % interval contains 0);
    `times_as_many` how many times the problems would separate a true difference of this size, None
    where no number would, because the spread from run to run stays. `relative` is the difference
    as a share of the first run's number, None where that is 0. `problems` have the number in both
    runs, which may be fewer than both decided: a prediction does not say whether a tied vote is
    right. `of_problems` is the share of the interval's squared width that is the problems' own, and
    narrows with their number; `all_equal` says that every problem has the same number in both.
    """

    metric: Metric
    difference: Estimate
    relative: Estimate | None
    verdict: str
    problems: int
    times_as_many: int | None = None
    of_problems: float = 1.0
    all_equal: bool = False


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The second run against the first; `reason` says why there are no paired numbers.

    `not_told` is what of "engine" and "policy" a recording does not tell, or not entirely: that
    `config` names no difference there does not say that there is none.
    `run_to_run` is the spread from run to run that the times' intervals hold.
    """

    first: str
    second: str
    problems: int
    changes: tuple[Change, ...] = ()
    run_to_run: RunSpread = field(default_factory=RunSpread)
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
            "run_to_run": self.run_to_run.to_json() if self.changes else None,
        }


def compare(first: Run, second: Run, repeats: Sequence[Run] = ()) -> Difference:
    """Return what the second run changes, over the problems that both decided.

    Intervals hold the problems and, of times, the spread from run to run: as `repeats` of the two
    have it (others are not looked at), else as is assumed.
    """
    ids = _paired_problems(first, second)
    if isinstance(ids, str):
        return Difference(
            first=first.recording,
            second=second.recording,
            problems=0,
            config=config_changes(first, second),
            not_told=_not_told(first, second),
            reason=ids,
        )
    one, two = _Numbers(first, ids), _Numbers(second, ids)
    spread, beyond = _run_to_run((first, second), (one, two), repeats)
    found = (_change(metric, one, two, beyond(metric)) for metric in METRICS)
    return Difference(
        first=first.recording,
        second=second.recording,
        problems=ids.len(),
        changes=tuple(each for each in found if each is not None),
        run_to_run=spread,
        config=config_changes(first, second),
        not_told=_not_told(first, second),
    )


def _paired_problems(first: Run, second: Run) -> pl.Series | str:
    """Return the problems that both decided, or why there are none."""
    if first.rows is None or second.rows is None:
        return "there is no row per problem to pair"
    hashes = [None if run.workload is None else run.workload.hash for run in (first, second)]
    if hashes[0] is None or hashes[0] != hashes[1]:
        return "the recordings are not known to pose the same problems, so nothing is paired"
    decided = [
        run.rows.filter(pl.col("state") == "decided")["problem_id"].drop_nulls().unique()
        for run in (first, second)
        if run.rows is not None
    ]
    both = decided[0].filter(decided[0].is_in(decided[1].implode())).sort()
    return both if both.len() else "no problem was decided in both"


class _Numbers:
    """A run's numbers of some problems: one per problem and column, or one per sample."""

    def __init__(self, run: Run, ids: pl.Series) -> None:
        assert run.rows is not None
        self.ids, self._run = ids, run
        self._places = ids.to_frame("problem_id").with_row_index("place")
        self._decided = run.rows.filter(pl.col("state") == "decided")
        names = [metric.column for metric in METRICS if metric.column is not None]
        # A problem posed several times counts once, by its mean.
        means = self._decided.group_by("problem_id").agg(
            pl.col(list(dict.fromkeys(names))).cast(pl.Float64).mean().fill_null(float("nan"))
        )
        rows = self._places.join(means, on="problem_id", how="inner").sort("place")
        self.complete = rows.height == ids.len()
        self._alone = means.height == ids.len()
        self._columns = {name: rows[name].to_numpy() for name in names}

    def per_problem(self, column: str) -> Floats:
        """Return a number for each of the problems, nan where it is not known."""
        return self._columns[column]

    @cached_property
    def _samples(self) -> pl.DataFrame:
        if self._run.sample_rows is None or self._run.windows is None:
            return pl.DataFrame(
                schema={"place": pl.UInt32, "ttft_s": pl.Float64, "tpot_s": pl.Float64}
            )
        times = sample_times(self._decided, self._run.sample_rows, self._run.windows)
        return times.join(self._decided.select("problem", "problem_id"), on="problem").join(
            self._places, on="problem_id"
        )

    def per_sample(self, column: str) -> tuple[Floats, NDArray[np.intp]]:
        """Return the samples' numbers that are known, and the place of each one's problem."""
        known = self._samples.select("place", column).drop_nulls().drop_nans()
        return known[column].to_numpy(), known["place"].to_numpy().astype(np.intp)

    def throughput(self) -> float | None:
        """Return the throughput where it is that of these very problems."""
        found = self._run.throughput_tokens_per_s
        return found.value if found is not None and self._alone else None


def _statistics(metric: Metric, runs: Sequence[_Numbers]) -> list[Drawn] | None:
    """Return a metric of runs over the problems that have it in all of them, drawn together."""
    if metric.tag == THROUGHPUT:
        return _throughputs(runs)
    if metric.column is not None:
        columns = [run.per_problem(metric.column) for run in runs]
        known = np.isfinite(columns).all(axis=0)
        return [drawn(each[known], metric.q) for each in columns] if known.any() else None
    if metric.sample_column is None:
        return None
    samples = [run.per_sample(metric.sample_column) for run in runs]
    common = reduce(np.intersect1d, (places for _, places in samples))
    if not common.size:
        return None
    found = []
    for values, places in samples:
        kept = np.isin(places, common)
        problems = np.searchsorted(common, places[kept])
        found.append(drawn(values[kept], metric.q, problems=problems))
    return found


def _throughputs(runs: Sequence[_Numbers]) -> list[Drawn] | None:
    """Return throughputs; draws of the problems move them as tokens over latency (Little's law)."""
    found = []
    for run in runs:
        value = run.throughput()
        tokens, latency = run.per_problem("tokens"), run.per_problem("latency_s")
        if value is None or not np.isfinite([tokens, latency]).all():
            return None
        per_s = drawn(tokens).draws / drawn(latency).draws
        draws = value * per_s * (latency.mean() / tokens.mean())
        found.append(Drawn(value=value, draws=draws, problems=tokens.size))
    return found


def _run_to_run(
    runs: tuple[Run, Run], numbers: tuple[_Numbers, _Numbers], repeats: Sequence[Run]
) -> tuple[RunSpread, Callable[[Metric], tuple[float, float]]]:
    """Return the spread from run to run, and what a metric of each run has of it as an sd.

    Repeats are grouped by configuration. The two runs belong to their groups, but where they have
    the same configuration: what they differ by is the question then, and no answer to it. What
    repeats differ by holds other draws of their samples too, which the draws of the problems hold
    already: that part is taken off.
    """
    names = [configuration(run) for run in runs]
    groups: dict[Hashable, list[_Numbers]] = {name: [] for name in names if name is not None}
    seen = {_fingerprint(run) for run in runs}
    if names[0] != names[1]:
        for name, run, own in zip(names, runs, numbers, strict=True):
            if name is not None and is_repeat(run):
                groups[name].append(own)
    ids = numbers[0].ids
    for each in repeats:
        name = configuration(each)
        if name not in groups or not is_repeat(each) or _fingerprint(each) in seen:
            continue
        seen.add(_fingerprint(each))  # a copy is no repeat
        own = _Numbers(each, ids)
        if own.complete:
            groups[name].append(own)
    told = [group for group in groups.values() if len(group) > 1]
    freedom = sum(len(group) - 1 for group in told)
    by_assumption = assumed(runs)
    if not freedom:
        return RunSpread(assumed=by_assumption), lambda metric: by_assumption
    measured: dict[str, float] = {}
    beyond: dict[str, float] = {}
    for metric in METRICS:
        found = _measured(metric, told) if metric.timed else None
        if found is not None:
            measured[metric.tag], beyond[metric.tag] = found
    spread = RunSpread(recordings=sum(map(len, told)), measured=measured, assumed=by_assumption)

    def of(metric: Metric) -> tuple[float, float]:
        sd = beyond.get(metric.tag)
        return by_assumption if sd is None else (sd, sd)

    return spread, of


def _fingerprint(run: Run) -> tuple[float | None, ...]:
    """Return numbers that no two runs share."""
    mean, p95 = run.latency_s["mean"], run.latency_s["p95"]
    return tuple(None if each is None else each.value for each in (mean, p95))


def _measured(metric: Metric, groups: Sequence[Sequence[_Numbers]]) -> tuple[float, float] | None:
    """Return the sd of a metric's log among repeats, and what of it comes beside the problems.

    The second is widened as Student's t is, for a 90 % interval of the difference of two runs.
    """
    squares, freedom, halves = 0.0, 0, []
    for group in groups:
        found = _statistics(metric, group)
        if found is None or min(each.value for each in found) <= 0:
            return None
        logs = np.log([each.value for each in found])
        squares += float(np.square(logs - logs.mean()).sum())
        freedom += len(group) - 1
        for one, two in pairwise(found):
            share = change(one, two)
            if share is not None and share.low is not None and share.high is not None:
                halves.append(float(np.log((1 + share.high) / (1 + share.low))) / 2)
    sd = float(np.sqrt(squares / freedom))
    bound = 2 * (student_95(freedom) * sd) ** 2
    left = max(bound - float(np.mean(np.square(halves))) if halves else bound, 0.0)
    return sd, float(np.sqrt(left / 2)) / Z95


def _change(
    metric: Metric, first: _Numbers, second: _Numbers, spread: tuple[float, float]
) -> Change | None:
    found = _statistics(metric, (first, second))
    if found is None:
        return None
    one, two = found
    size = one.problems
    same = bool(np.array_equal(one.draws, two.draws)) and _equal(metric, first, second)
    narrow = difference(one, two, metric.unit)
    if metric.timed and size > 1:
        one, two = (
            each.times(np.exp(sd * normal_scores(each.draws.size, seed)))
            for seed, (each, sd) in enumerate(zip(found, spread, strict=True))
        )
    absolute, relative = difference(one, two, metric.unit), change(one, two)
    if metric.column == "correct" and same:
        right = first.per_problem("correct")
        absolute, relative = _all_agree(absolute, relative, right[np.isfinite(right)])
    of_problems = 1.0
    if metric.timed and _width(absolute):
        of_problems = min((_width(narrow) / _width(absolute)) ** 2, 1.0)
    verdict, times = _verdict(absolute, metric, size, of_problems)
    return Change(
        metric=metric,
        difference=absolute,
        relative=relative,
        verdict=verdict,
        problems=size,
        times_as_many=times,
        of_problems=of_problems,
        all_equal=same,
    )


def _equal(metric: Metric, first: _Numbers, second: _Numbers) -> bool:
    """Whether every problem has the same number in both runs."""
    if metric.column is None:
        return False
    before, after = first.per_problem(metric.column), second.per_problem(metric.column)
    known = np.isfinite(before) & np.isfinite(after)
    return bool((before[known] == after[known]).all())


def _width(found: Estimate) -> float:
    return 0.0 if found.low is None or found.high is None else found.high - found.low


def _all_agree(
    found: Estimate, relative: Estimate | None, right: Floats
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


def _verdict(
    found: Estimate, metric: Metric, problems: int, of_problems: float
) -> tuple[str, int | None]:
    """Return what a difference says, and how many times the problems would tell it from none."""
    if found.low is None or found.high is None:
        return SAME, None
    if found.low <= 0 <= found.high:
        many = problems_to_tell(found, problems, of_problems=of_problems)
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
