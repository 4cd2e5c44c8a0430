"""Two runs of the same problems: paired differences, and what differs in the configuration."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from itertools import pairwise
from math import ceil
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from traces.errors import RecordingError, TtscopeError, UsageError
from traces.recording.manifest import WorkloadFacts, identities_of
from traces.recording.reader import Recording, find_recordings
from traces.recording.tables import STEP_INTERVAL
from traces.schema.engine import EngineConfig
from traces.schema.estimate import Estimate
from traces.schema.formats import percent
from traces.schema.quantities import GATES
from traces.schema.record import Record
from traces.schema.tts.policy import Policy
from traces.statistics import (
    Z95,
    Drawn,
    change,
    difference,
    drawn,
    jeffreys,
    normal_scores,
    problems_to_reach,
    problems_to_tell,
    student_95,
)
from traces.summary.kernels import sample_times
from traces.summary.metrics import METRICS, Metric, estimate_of, latency_metric
from traces.summary.problems import mostly_told
from traces.summary.run import Run, conditions, day_of, summarise, to_plain

# How far apart two runs of the same configuration lie: the spread from run to run.
#
# The state of a machine is one factor on all times of a run: other work, clocks, placement. More
# problems do not average it out, so that it stands beside the spread over problems wherever times
# of two runs are compared. It is measured where recordings of the same configuration lie beside
# those that are compared, else assumed.


RUN_TO_RUN = 0.07  # spread (sd) of the same work done again, as measured on shared machines
FAR_OFF = 1.5  # times what was recorded, from which a replay does not tell of changes
PRIOR_REPEATS = 4  # how many held-out recordings that figure counts for in a law's error
MOST_BESIDE = 24  # repeats that are read
BLOCKS_DIFFER = 0.1  # by which the cache of the same engine may differ from start to start
_MOST_AT_ONCE = 1.25  # times as many requests that run at once tell two engines apart
_HELD, _WAITED = 0.05, 0.2  # shares of a run's busy time in which so many ran, and others waited
UNSTEADY = 1.5 * RUN_TO_RUN  # a spread from which the speed within a run is why it is as wide
_STRETCHES = 8  # of a run's busy time, for the spread within it
_FEWEST_STEPS = 10 * _STRETCHES
_MOST_FITTED = 100_000  # steps, evenly spaced, that tell what is usual


def lies_off(predicted: Estimate, low: float, high: float) -> bool:
    """Return whether what was measured, between two values, is not what was predicted.

    It lies off by `FAR_OFF`, or outside the interval by more than runs differ. Above an interval
    whose end is open lies nothing.
    """
    off = max(low / predicted.value, predicted.value / high)
    if predicted.low is None:
        return off >= FAR_OFF
    outside = max(low / (predicted.high or np.inf), predicted.low / high)
    return off >= FAR_OFF or outside > float(np.exp(Z95 * RUN_TO_RUN))


@dataclass(frozen=True, kw_only=True)
class RunSpread:
    """The spread from run to run of each time of one run or two, as the sd of its log.

    `recordings` are the repeats that it was measured from, 0 where it is assumed; `measured` maps
    a metric's tag to it. `assumed` is the assumed one of each run that is not in `printed`:
    `RUN_TO_RUN` and how much the speed of its own steps varied. `repeats` are the names of the
    recordings that were taken as repeats, those that are compared left out. `printed` names the
    replays whose times have the intervals that they printed, and `shared` what two are off by
    together, which does not tell them apart (`SHARED`). What was watched is not `repeatable`.
    """

    recordings: int = 0
    repeats: tuple[str, ...] = ()
    measured: Mapping[str, float] = field(default_factory=dict)
    assumed: tuple[float, ...] = (RUN_TO_RUN, RUN_TO_RUN)
    printed: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    repeatable: bool = True

    def to_json(self) -> dict[str, Any]:
        return {
            "assumed": not self.recordings,
            "recordings": self.recordings,
            "repeats": list(self.repeats),
            "sd": dict(self.measured) if self.recordings else list(self.assumed),
            "printed": list(self.printed),
            "shared": list(self.shared),
        }


def assumed(runs: Sequence[Run]) -> tuple[float, ...]:
    """Return the spread of runs where no repeat tells it."""
    return tuple(float(np.hypot(RUN_TO_RUN, within(run.step_rows))) for run in runs)


def within(steps: pl.DataFrame | None) -> float:
    """Return how much the speed of a run varies among the eighths of its busy time, as an sd.

    Steps are held against what as many requests and prompt tokens take in the run.
    """
    return varied(paces(steps))


def varied(factors: Floats) -> float:
    """Return the sd of the log of the `stretches` of runs of an engine.

    A disturbance that lasts for a stretch may last for a run, so that runs differ by as much as
    stretches do.
    """
    return float(np.std(np.log(factors), ddof=1)) if len(factors) > 1 else 0.0


def stretches(took: Floats, usual: Floats) -> Floats:
    """Return how long the steps of each eighth of a run's busy time took, in their usual time.

    `took` and `usual` [steps] are seconds. A step is of the eighth that its middle lies in, and an
    eighth may have none: it is left out.
    """
    middles = np.cumsum(took) - took / 2
    eighth = np.minimum(middles / took.sum() * _STRETCHES, _STRETCHES - 1).astype(int)
    sums = (np.bincount(eighth, each, _STRETCHES) for each in (took, usual))
    took_s, usual_s = (each[np.unique(eighth)] for each in sums)
    return np.asarray(took_s / usual_s)


def paces(steps: pl.DataFrame | None) -> Floats:
    """Return the `stretches` of a run's steps, none where they are too few."""
    times = None if steps is None else usual_times(steps)
    if times is None:
        return np.zeros(0)
    took, usual = times[:, np.isfinite(times).all(axis=0)]
    return stretches(took, usual)


def usual_times(steps: pl.DataFrame) -> Floats | None:
    """Return the time of each step and that of one of its size in the run, [2, steps] ns.

    The size is that of requests, prompt tokens and the cache in use. Both are nan where a step has
    no time of its own. None where fewer than `_FEWEST_STEPS` have.
    """
    own = pl.when(~pl.col("profiled").fill_null(False)).then(STEP_INTERVAL.cast(pl.Float64))
    took = steps.select(own.fill_null(np.nan)).to_series().to_numpy()
    timed = took > 0
    if np.count_nonzero(timed) < _FEWEST_STEPS:
        return None
    parts = steps.select(
        pl.col("decode_requests", "prefill_tokens", "kv_blocks").cast(pl.Float64).fill_null(0.0)
    )
    design = np.column_stack([np.ones(took.size), *parts.to_numpy().T])
    median = float(np.median(took[timed]))
    calm = np.flatnonzero(timed & (took <= 10 * median))  # a stall is no step's own time
    calm = calm[:: max(len(calm) // _MOST_FITTED, 1)]
    usual = np.maximum(design @ _costs(design[calm], took[calm]), 0.1 * median)
    return np.where(timed, np.array([took, usual]), np.nan)


def _costs(design: Floats, time: Floats) -> Floats:
    """Return what each column of `design` [steps, columns] costs of the steps' `time` [steps].

    None is below 0: where a machine was slow while little ran, the slope over requests is, and
    would hide that.
    """
    costs, left = np.zeros(design.shape[1]), np.arange(design.shape[1])
    while left.size:
        found, *_ = np.linalg.lstsq(design[:, left], time, rcond=None)
        if (found >= 0).all():
            costs[left] = found
            break
        left = left[found > 0]
    return costs


def assumed_words(sds: Sequence[float], runs: int, *, unsteady: bool = True) -> str:
    """Return which spread from run to run is assumed, and why it is wide where it is.

    `runs` are those that it is of, and `unsteady` is False where their speed is not why.
    """
    each = [percent(sd) for sd in sds]
    sizes = " and ".join(
        f"{sd} for {run}" for run, sd in zip(("the first", "the second"), each, strict=False)
    )
    sizes = each[0] if len(set(each)) == 1 else sizes
    text = f"assumed, not measured: {sizes} (one standard deviation)"
    if unsteady and max(sds) > UNSTEADY:
        were = "it was" if runs == 1 else "they were"
        text += f", because the speed varied that much while {were} recorded"
    return text


def configuration(run: Run) -> Hashable:
    """Return what two runs share of which one repeats the other, None where that is not known."""
    return _configuration(run.engine, run.policy, run.workload, run.conditions)


def _configuration(
    engine: EngineConfig,
    policy: Policy | None,
    workload: WorkloadFacts | None,
    conditions: Hashable,
) -> Hashable:
    if policy is None or workload is None:
        return None
    # vLLM gives the cache what memory is left, which differs a little from start to start.
    return replace(engine, num_gpu_blocks=None), policy, workload.hash, conditions


def is_repeat(run: Run) -> bool:
    """Whether a run can tell the spread: it was measured, and not cut off."""
    return run.complete and run.replay_of is None and configuration(run) is not None


def told_apart(one: Run, other: Run) -> bool:
    """Whether two runs of the same told configuration were surely of engines that differ.

    A server does not tell how many requests it runs at once (max_num_seqs). Where others waited
    while no more ran, and clearly more ran in the other run, it was another server.
    """
    blocks, others = one.engine.num_gpu_blocks or 0, other.engine.num_gpu_blocks or 0
    apart = abs(blocks - others) > BLOCKS_DIFFER * max(blocks, others)
    return bool(blocks and others and apart) or ran_apart(one, other) is not None


def ran_apart(one: Run, other: Run) -> tuple[int, int] | None:
    """Return how many requests of two runs ran at once where servers of two limits tell so."""
    if (one.engine.max_num_seqs, other.engine.max_num_seqs) != (None, None):
        return None
    (most, limit), (most_of_other, limit_of_other) = ran_at_once(one), ran_at_once(other)
    apart = exceeds(most_of_other, limit) or exceeds(most, limit_of_other)
    return (most, most_of_other) if apart else None


def exceeds(ran: int, limit: int | None) -> bool:
    """Whether clearly more ran at once than an engine has room for."""
    return limit is not None and ran > _MOST_AT_ONCE * limit


def ran_at_once(run: Run) -> tuple[int, int | None]:
    """Return how many requests gave tokens at once, and that number where others waited behind it.

    What ran for a moment is left out: a client sees the ends a little late. Where prompts are
    computed most of the time, requests wait for these, and not for room.
    """
    if run.sample_rows is None:
        return 0, None
    timed = run.sample_rows.drop_nulls(["arrival", "end"])
    began = timed.filter(pl.col("first_token") < pl.col("end"))
    events = timed["end"], began["end"], timed["arrival"], began["first_token"]
    times = np.concatenate([each.to_numpy() for each in events])
    sizes = [timed.height, began.height, timed.height, began.height]
    order = np.argsort(times, kind="stable")  # an end before a first token
    sent = np.repeat([-1, 0, 1, 0], sizes)[order].cumsum()[:-1]
    ran = np.repeat([0, -1, 0, 1], sizes)[order].cumsum()[:-1]
    lasted = np.diff(times[order]).astype(float)
    busy = float(lasted[ran > 0].sum())
    if not busy:
        return 0, None
    shares = np.bincount(ran, weights=lasted)[::-1].cumsum()[::-1] / busy  # of so many or more
    most = int(np.flatnonzero(shares >= _HELD)[-1])
    waited = sent > most
    behind = float(lasted[waited].sum())
    full = float(lasted[waited & (ran >= most)].sum())
    limited = behind >= _WAITED * busy and full >= behind / 2
    least_wait = float((began["first_token"] - began["arrival"]).to_numpy().min())
    limited = limited and least_wait * began.height <= busy / 2
    return most, most if limited else None


def beside(recordings: Sequence[Recording]) -> list[Run]:
    """Return the runs in the same folders that repeat the given, measured, whole and readable."""
    given = {each.path.resolve() for each in recordings}
    wanted = {name for each in recordings for name in _configurations(each)} - {None}
    repeats: list[Run] = []
    for folder in sorted({path.parent for path in given}):
        for path in find_recordings(folder):
            if path.resolve() in given or len(repeats) >= MOST_BESIDE:
                continue
            try:
                recording = Recording.open(path)
                if wanted.isdisjoint(_configurations(recording)):
                    continue
                runs = summarise(recording)
            except RecordingError:
                continue
            repeats += [each for each in runs if is_repeat(each) and configuration(each) in wanted]
    return repeats


def _configurations(recording: Recording) -> Iterable[Hashable]:
    manifest = recording.manifest
    return [
        _configuration(engine, policy, manifest.workload, conditions(manifest))
        for engine in manifest.engines.values()
        for policy in manifest.policies.values()
    ]


Floats = NDArray[np.float64]

SAME = "cannot be told apart"
SHARED = {  # kinds of causes by which two runs are off together
    "law": "the law of step times",
    "samples": "the samples",
    "power": "the law of power",
    "run": "the machine's state in the recording",
}
THROUGHPUT = "throughput_tokens_per_s"


@dataclass(frozen=True, kw_only=True)
class Change:
    """One metric of the second run minus the first.

    `verdict` is better, worse or "cannot be told apart" (the 90 % interval contains 0);
    `times_as_many` how many times the problems would separate a true difference of this size, None
    where no number would, because the spread from run to run stays. `relative` is the difference
    as a share of the first run's number, None where that is 0. `problems` have the number in both
    runs, which may be fewer than both decided. `of_problems` is the share of the interval's squared
    width that is the problems' own, and narrows with their number; `all_equal` says that every
    problem has the same number in both.
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
    `run_to_run` is the spread from run to run that the times' intervals hold. `unpaired` counts
    problems that are not among the `problems`, by why. `tied` are problems whose vote is tied in
    the same samples of both: a run gave it to the first sample, its replay shares it, and both are
    compared with it shared.
    """

    first: str
    second: str
    problems: int
    unpaired: Mapping[str, int] = field(default_factory=dict)
    tied: int = 0
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
            "unpaired": dict(self.unpaired),
            "tied": self.tied,
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
    have it (others are not looked at), else as is assumed. Of a replay that kept what it printed
    they hold that: its rows are one draw, and what it printed is the mean of all.
    """
    unpaired = Difference(
        first=first.recording,
        second=second.recording,
        problems=0,
        config=config_changes(first, second),
        not_told=_not_told(first, second),
    )
    ids = _paired_problems(first, second)
    if isinstance(ids, str):
        return replace(unpaired, reason=ids)
    ties = _tied(first, second)
    one, two = (_Numbers(replace(run, right={**run.right, **ties}), ids) for run in (first, second))
    spread, beyond = _run_to_run((first, second), (one, two), repeats, METRICS)
    changes = (_change(metric, one, two, beyond(metric)) for metric in METRICS)
    return replace(
        unpaired,
        problems=ids.len(),
        unpaired=_unpaired(first, second, ids),
        tied=len(ties),
        changes=tuple(each for each in changes if each is not None),
        run_to_run=replace(
            spread,
            assumed=tuple(
                sd
                for run, sd in zip((first, second), spread.assumed, strict=True)
                if not run.printed
            ),
            printed=tuple(run.recording for run in (first, second) if run.printed),
            shared=_shared(first, second),
        ),
    )


def _tied(first: Run, second: Run) -> dict[str, float]:
    """Return by problem the share of right answers of votes that are tied in both runs.

    That is in a run and in a replay of its very samples under its policy.
    """
    for run, replay in ((first, second), (second, first)):
        policy = run.policy
        if run.printed or not replay.printed or replay.started_ns != run.started_ns:
            continue
        if policy is not None and policy == replay.policy and policy.method == "majority":
            return {name: share for name, share in replay.right.items() if 0 < share < 1}
    return {}


def _shared(first: Run, second: Run) -> tuple[str, ...]:
    """Return in words what two runs are off by together, of which one is a replay."""
    if not (first.printed or second.printed):
        return ()
    causes = (
        {each.name for each in run.errors} if run.printed else {day_of(run.started_ns)}
        for run in (first, second)
    )
    kinds = {name.partition(" ")[0] for name in common(*causes)}
    return tuple(words for kind, words in SHARED.items() if kind in kinds)


def _paired_problems(first: Run, second: Run) -> pl.Series | str:
    """Return the problems that both decided, or why there are none."""
    if first.rows is None or second.rows is None:
        return "there is no row per problem to pair"
    if first.curve is not None or second.curve is not None:
        return "a published curve knows no problem by itself, so nothing is paired"
    same = of_one_workload(first, second)
    alike = None if same else _alike(first, second)
    if alike is None and not same:
        return "the recordings are not known to pose the same problems, so nothing is paired"
    one, two = _decided(first.rows), _decided(second.rows)
    both = one.filter(one.is_in(two.implode()))
    if alike is not None:
        both = both.filter(both.is_in(pl.Series(sorted(alike), dtype=pl.Utf8).implode()))
    return both if both.len() else "no problem was decided in both"


def _decided(rows: pl.DataFrame) -> pl.Series:
    """Return the problems with a decision, sorted, each once."""
    return rows.filter(pl.col("state") == "decided")["problem_id"].drop_nulls().unique().sort()


def of_one_workload(first: Run, second: Run) -> bool:
    """Whether both are known to pose the same problems: one workload, or one time of recording."""
    hashes = [None if run.workload is None else run.workload.hash for run in (first, second)]
    if hashes == [None, None]:
        return bool(first.started_ns) and first.started_ns == second.started_ns
    return hashes[0] == hashes[1]


def by_problems(runs: Sequence[Run]) -> list[list[int]]:
    """Return the places of runs, those together that are known to pose the same problems."""
    sets: list[list[int]] = []
    for place, run in enumerate(runs):
        for each in sets:
            first = runs[each[0]]
            if of_one_workload(first, run) or _alike(first, run) is not None:
                each.append(place)
                break
        else:
            sets.append([place])
    return sets


def _alike(first: Run, second: Run) -> set[str] | None:
    """Return the names under which two imports have the same problem, None where none tells."""
    identities = []
    for run in (first, second):
        names = [] if run.rows is None else run.rows["problem_id"].to_list()
        identities.append(identities_of(run.identities, names))
    one, two = identities
    if one is None or two is None:
        return None
    return {name for name, identity in one.items() if two.get(name) == identity} or None


def _unpaired(first: Run, second: Run, ids: pl.Series) -> dict[str, int]:
    """Return how many problems are not paired: of one run alone, or others of the same name."""
    assert first.rows is not None and second.rows is not None
    one, two = set(first.rows["problem_id"]), set(second.rows["problem_id"])
    counts = {
        "of 1 alone": len(one - two),
        "of 2 alone": len(two - one),
        "of the same name, not decided in both or other problems": len((one & two) - set(ids)),
    }
    return {why: count for why, count in counts.items() if count}


class _Numbers:
    """A run's numbers of some problems: one per problem and column, or one per sample."""

    def __init__(self, run: Run, ids: pl.Series) -> None:
        assert run.rows is not None
        self.ids, self._run, self.recording = ids, run, run.recording
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
        if run.right:
            told = zip(rows["problem_id"].to_list(), self._columns["correct"], strict=True)
            self._columns["correct"] = np.array([run.right.get(name, was) for name, was in told])

    def per_problem(self, column: str) -> Floats:
        """Return a number for each of the problems, nan where it is not known."""
        return self._columns[column]

    def tells(self, metric: Metric) -> bool:
        """Whether nearly all problems have the number; of a time, those that have a latency."""
        assert metric.column is not None
        numbers = self._columns[metric.column]
        of = np.isfinite(self._columns["latency_s"]) if metric.timed else slice(None)
        # The unjudged count as in the accuracy, and joules are missing where the profiler was.
        return metric.column in ("correct", "energy_j") or mostly_told(numbers[of])

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
        values = self._samples.select("place", column).drop_nulls().drop_nans()
        return values[column].to_numpy(), values["place"].to_numpy().astype(np.intp)

    def as_printed(self, metric: Metric, found: Drawn) -> Drawn:
        """Return a metric of one draw of a replay as it printed it, the mean of all draws."""
        printed = estimate_of(self._run, metric.tag) if self._run.printed else None
        recomputed = None if printed is None else _statistics(metric, [self._of_all])
        if printed is None or recomputed is None or recomputed[0].value <= 0:
            return found
        return found.scaled(printed.value / recomputed[0].value)

    def printed_sd(self, metric: Metric) -> float | None:
        """Return the sd of a metric's log that a replay printed, None where it holds no spread.

        The intervals of accuracy and of FLOPs are those of its problems, which are drawn here.
        """
        if not self._run.printed or not (metric.timed or metric.column == "tokens"):
            return None
        printed = estimate_of(self._run, metric.tag)
        low = None if printed is None else printed.low
        if printed is None or printed.high is None or low is None or low <= 0:
            return None
        return float(np.log(printed.high / low)) / (2 * Z95)

    @property
    def is_printed(self) -> bool:
        """Whether a replay printed the run's numbers."""
        return self._run.printed

    def error_parts(self, metric: Metric, own: float) -> dict[str, float]:
        """Return what a metric's log may be off by, as sds by cause; "" is of this run alone.

        `own` is the spread from run to run of a time that was measured.
        """
        printed = self.printed_sd(metric)
        if printed is None:
            own = own if metric.timed else 0.0
            return {"": own} if self._run.printed else {day_of(self._run.started_ns): own}
        tag = "device_s_per_problem" if metric.tag == "cost_usd_per_problem" else metric.tag
        parts = {each.name: each.sd[tag] for each in self._run.errors if tag in each.sd}
        rest = printed**2 - sum(np.square(list(parts.values())))
        return parts | {"": float(np.sqrt(max(rest, 0.0)))}

    @cached_property
    def _of_all(self) -> _Numbers:
        """The numbers of all problems that the run decided."""
        return _Numbers(self._run, _decided(self._decided))

    def throughput(self) -> float | None:
        """Return the throughput where it is that of these very problems."""
        estimate = self._run.throughput_tokens_per_s
        return estimate.value if estimate is not None and self._alone else None


def _statistics(metric: Metric, runs: Sequence[_Numbers]) -> list[Drawn] | None:
    """Return a metric of runs over the problems that have it in all of them, drawn together."""
    if metric.tag == THROUGHPUT:
        return _throughputs(runs)
    if metric.column is not None:
        columns = [run.per_problem(metric.column) for run in runs]
        finite = np.isfinite(columns).all(axis=0)
        if not all(run.tells(metric) for run in runs):
            return None
        return [drawn(each[finite], metric.q) for each in columns] if finite.any() else None
    if metric.sample_column is None:
        return None
    samples = [run.per_sample(metric.sample_column) for run in runs]
    common = reduce(np.intersect1d, (places for _, places in samples))
    if not common.size:
        return None
    draws = []
    for values, places in samples:
        kept = np.isin(places, common)
        problems = np.searchsorted(common, places[kept])
        draws.append(drawn(values[kept], metric.q, problems=problems))
    return draws


def _throughputs(runs: Sequence[_Numbers]) -> list[Drawn] | None:
    """Return throughputs; draws of the problems move them as tokens over latency (Little's law)."""
    draws_by_run = []
    for run in runs:
        value = run.throughput()
        tokens, latency = run.per_problem("tokens"), run.per_problem("latency_s")
        if value is None or not (np.isfinite([tokens, latency]).all() and tokens.any()):
            return None
        if not latency.all():  # times that nothing could take
            return None
        per_s = drawn(tokens).draws / drawn(latency).draws
        draws = value * per_s * (latency.mean() / tokens.mean())
        draws_by_run.append(Drawn(value=value, draws=draws, problems=tokens.size))
    return draws_by_run


def spread_of(
    run: Run, repeats: Sequence[Run], percentiles: Iterable[int] = ()
) -> tuple[RunSpread, Callable[[str], float]]:
    """Return a run's spread from run to run, and what of it a time has by its tag, as an sd.

    `percentiles` of the latency are measured too, beside those of `METRICS`.
    """
    assert run.rows is not None
    by_tag = {metric.tag: metric for metric in (*map(latency_metric, percentiles), *METRICS)}
    spread, of = _run_to_run(
        (run,), (_Numbers(run, _decided(run.rows)),), repeats, tuple(by_tag.values())
    )
    return spread, lambda tag: of(by_tag[tag])[0] if tag in by_tag else spread.assumed[0]


def _run_to_run(
    runs: Sequence[Run],
    numbers: Sequence[_Numbers],
    repeats: Sequence[Run],
    metrics: Sequence[Metric],
) -> tuple[RunSpread, Callable[[Metric], tuple[float, ...]]]:
    """Return the spread from run to run, and what a metric of each run has of it as an sd.

    Repeats are grouped by engine: by the configuration as it is told, and by what tells runs apart
    (`told_apart`). The runs belong to their groups, but two of the same engine: what they differ by
    is the question then, and no answer to it. What repeats differ by holds other draws of their
    samples too, which the draws of the problems hold already: that part is taken off.
    """
    names = [configuration(run) for run in runs]
    alike = len(runs) == 2 and names[0] == names[1] and not told_apart(*runs)
    groups: list[list[_Numbers]] = [
        [of_ids] if not alike and is_repeat(run) else []
        for run, of_ids in zip(runs, numbers, strict=True)
    ]
    seen = {_fingerprint(run) for run in runs}
    ids = numbers[0].ids
    for each in repeats:
        name = configuration(each)
        if name not in names or not is_repeat(each) or _fingerprint(each) in seen:
            continue
        seen.add(_fingerprint(each))  # a copy is no repeat
        like = [
            index
            for index, run in enumerate(runs)
            if name == names[index] and not told_apart(run, each)
        ]
        of_ids = _Numbers(each, ids)
        # Of two engines it is the repeat of one, and of one engine that of both runs.
        if of_ids.complete and len(like) == (2 if alike else 1):
            groups[like[0]].append(of_ids)
    repeated = [group for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in repeated)
    by_assumption = assumed(runs)
    if not freedom:
        known = all(name is not None for name in names)
        spread = RunSpread(assumed=by_assumption, repeatable=known)
        return spread, lambda metric: by_assumption
    measured: dict[str, float] = {}
    beyond: dict[str, float] = {}
    for metric in metrics:
        spreads = _measured(metric, repeated) if metric.timed else None
        if spreads is not None:
            measured[metric.tag], beyond[metric.tag] = spreads
    spread = RunSpread(
        recordings=sum(map(len, repeated)),
        repeats=tuple(
            each.recording for group in repeated for each in group if each not in numbers
        ),
        measured=measured,
        assumed=by_assumption,
    )

    def of(metric: Metric) -> tuple[float, ...]:
        sd = beyond.get(metric.tag)
        return by_assumption if sd is None else (sd,) * len(runs)

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
        statistics = _statistics(metric, group)
        if statistics is None or min(each.value for each in statistics) <= 0:
            return None
        logs = np.log([each.value for each in statistics])
        squares += float(np.square(logs - logs.mean()).sum())
        freedom += len(group) - 1
        for one, two in pairwise(statistics):
            share = change(one, two)
            if share is not None and share.low is not None and share.high is not None:
                halves.append(float(np.log((1 + share.high) / (1 + share.low))) / 2)
    sd = float(np.sqrt(squares / freedom))
    bound = 2 * (student_95(freedom) * sd) ** 2
    left = max(bound - float(np.mean(np.square(halves))) if halves else bound, 0.0)
    return sd, float(np.sqrt(left / 2)) / Z95


def _change(
    metric: Metric, first: _Numbers, second: _Numbers, spread: Sequence[float]
) -> Change | None:
    statistics = _statistics(metric, (first, second))
    if statistics is None:
        return None
    one, two = statistics
    size = one.problems
    same = np.array_equal(one.draws, two.draws, equal_nan=True) and _equal(metric, first, second)
    if not same:
        one, two = first.as_printed(metric, one), second.as_printed(metric, two)
    narrow = difference(one, two, metric.quantity.unit)
    errors = [
        {} if same and not metric.timed else each.error_parts(metric, own)
        for each, own in zip((first, second), spread, strict=True)
    ]
    if not (first.is_printed or second.is_printed):  # two runs of a day differ as others do
        errors = [{"": sum(each.values())} for each in errors]
    off = _off(errors, one.draws.size)
    if any(each.any() for each in off) and size > 1:
        one, two = (each.times(np.exp(log)) for each, log in zip((one, two), off, strict=True))
    absolute, relative = difference(one, two, metric.quantity.unit), change(one, two)
    if metric.column == "correct" and same:
        right = first.per_problem("correct")
        absolute, relative = _all_agree(absolute, relative, right[np.isfinite(right)])
    of_problems = 1.0
    if any(each.any() for each in off) and _width(absolute):
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


def common(one: Iterable[str], other: Iterable[str]) -> list[str]:
    """Return the causes that two numbers are off by together."""
    return sorted((set(one) & set(other)) - {""})


def _off(errors: Sequence[Mapping[str, float]], count: int) -> list[Floats]:
    """Return draws [count] of what the log of each of two numbers is off by.

    Of a cause that both have they take the same draws.
    """
    shared, off = common(*errors), []
    for seed, parts in enumerate(errors):
        alone = np.linalg.norm([sd for name, sd in parts.items() if name not in shared])
        log = float(alone) * normal_scores(count, seed)
        for place, name in enumerate(shared, len(errors)):
            log = log + parts[name] * normal_scores(count, place)
        off.append(log)
    return off


def _equal(metric: Metric, first: _Numbers, second: _Numbers) -> bool:
    """Whether every problem has the same number in both runs."""
    if metric.column is None:
        return False
    before, after = first.per_problem(metric.column), second.per_problem(metric.column)
    finite = np.isfinite(before) & np.isfinite(after)
    return bool((before[finite] == after[finite]).all())


def _width(estimate: Estimate) -> float:
    return 0.0 if estimate.low is None or estimate.high is None else estimate.high - estimate.low


def _all_agree(
    absolute: Estimate, relative: Estimate | None, right: Floats
) -> tuple[Estimate, Estimate | None]:
    """Return the difference, 0, and its share with the interval of what other problems may show.

    That no problem was won or lost of so many does not prove that none would be: either may be as
    frequent as Jeffreys' upper end for none of them.
    """
    most = jeffreys(0, right.size)[1]
    wide = replace(absolute, low=-most, high=most)
    if relative is None:
        return wide, None
    share = most / float(right.mean())
    return wide, replace(relative, low=-share, high=share)


def _verdict(
    absolute: Estimate, metric: Metric, problems: int, of_problems: float
) -> tuple[str, int | None]:
    """Return what a difference says, and how many times the problems would tell it from none."""
    if absolute.low is None or absolute.high is None:
        return SAME, None
    if absolute.low <= 0 <= absolute.high:
        many = problems_to_tell(absolute, problems, of_problems=of_problems)
        return SAME, None if many is None else max(ceil(many / problems), 2)
    better = (absolute.value > 0) == metric.quantity.higher_is_better
    return "better" if better else "worse", None


LOAD = ("load.concurrency", "load.rate_per_s")


def config_changes(first: Run, second: Run) -> dict[str, tuple[Any, Any]]:
    """Return `engine.field`, `policy.field` and parts of the load that differ, with both values.

    Of an imported engine the model alone is known, so that its other fields are None.
    """
    changes: dict[str, tuple[Any, Any]] = {}
    for name, *values in zip(LOAD, first.conditions, second.conditions, strict=False):
        if values[0] != values[1]:
            changes[name] = (values[0], values[1])
    for part in ("engine", "policy"):
        one, two = (_fields(getattr(run, part)) for run in (first, second))
        for name in one | two:
            if one.get(name) != two.get(name):
                both = _told(first, part, name, one), _told(second, part, name, two)
                changes[f"{part}.{name}"] = both
    return {name: values for name, values in changes.items() if values != (None, None)}


def _told(run: Run, part: str, name: str, fields: Mapping[str, Any]) -> Any:
    """Return a field of a configuration, None where an import does not tell it."""
    unknown = run.imported is not None and part == "engine" and name != "model"
    return None if unknown else fields.get(name)


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


# Limits on what a run may change against another, as people write them for CI: `p95>+5%`.
#
# A limit is broken when the whole 90 % interval of the difference lies beyond it. So the same
# configuration run twice breaks a limit no more often than an interval misses. Where the interval
# holds the limit nothing is sure, and how many problems would settle it is said. A regression is
# shown where the whole interval is a change for the worse, and is broken where what was measured
# lies beyond the limit too: a small change that many problems show is none.


EXAMPLE = "p95>+5%, accuracy<-.02 or tokens>+100"
_LIMIT = re.compile(r"\s*([a-z0-9_]+)\s*([<>])\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*(%?)\s*", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Limit:
    """How far the second run may go above (or below) the first in one metric.

    `amount` is in the metric's unit, or a share of the first run's number where `relative`. For a
    `regression` it is enough that a change for the worse is shown, and what was measured lies
    beyond.
    """

    text: str
    tag: str
    above: bool
    amount: float
    relative: bool
    regression: bool = False

    @property
    def shown_from(self) -> float:
        """The difference beyond which the whole interval must lie."""
        return 0.0 if self.regression else self.amount

    def beyond(self, value: float, amount: float | None = None) -> bool:
        """Whether a difference lies beyond the limit, or an amount; one that equals it does not."""
        amount = self.amount if amount is None else amount
        return value > amount if self.above else value < amount


@dataclass(frozen=True, kw_only=True)
class JudgedLimit:
    """A limit with the difference it was held against, in the limit's own terms.

    `shown`: the whole 90 % interval lies where a change must be shown. `broken`: that, and what was
    measured lies beyond the limit. `sure`: broken, or no part of the interval is beyond. Of the
    `problems` `problems_to_settle` would make it sure if the difference stayed, None where it is or
    no number would. `of_problems` and `timed` are those of the change.
    """

    limit: Limit
    difference: Estimate
    shown: bool
    broken: bool
    sure: bool
    problems: int
    problems_to_settle: int | None
    of_problems: float = 1.0
    timed: bool = False


def parse_limit(text: str) -> Limit:
    """Return the limit of `p95>+5%`: a metric, > or <, and by how much the second may differ.

    A plus or minus sign is needed, as the number is a difference. Raises UsageError.
    """
    match = _LIMIT.fullmatch(text)
    if match is None:
        raise UsageError(f"--fail-on {text!r}: is not understood. Write for example {EXAMPLE}")
    name, side, amount, per_cent = match.groups()
    if name not in GATES:
        raise UsageError(f"--fail-on {text!r}: no metric {name}. Choose one of {', '.join(GATES)}")
    if amount[0] not in "+-" and float(amount):
        raise UsageError(
            f"--fail-on {text!r}: the number is a difference, so give its sign, for example "
            f"{name}{side}+{amount}{per_cent}"
        )
    return Limit(
        text=text.strip(),
        tag=GATES[name].tag,
        above=side == ">",
        amount=float(amount) * (0.01 if per_cent else 1.0),
        relative=bool(per_cent),
    )


def judge(limits: Sequence[Limit], compared: Difference) -> tuple[JudgedLimit, ...]:
    """Hold limits against paired differences. Raises TtscopeError where one cannot be held."""
    if compared.reason is not None:
        raise TtscopeError(f"--fail-on cannot be judged: {compared.reason}")
    changes = {change.metric.tag: change for change in compared.changes}
    return tuple(_judge(limit, changes.get(limit.tag), compared) for limit in limits)


def _judge(limit: Limit, change: Change | None, compared: Difference) -> JudgedLimit:
    beyond = None if change is None else change.relative if limit.relative else change.difference
    if beyond is None and limit.tag == GATES["cost"].tag and change is None:
        raise TtscopeError(f"--fail-on {limit.text!r} cannot be judged: give --price")
    if beyond is None:
        raise TtscopeError(
            f"--fail-on {limit.text!r} cannot be judged: {limit.tag} was not measured in both "
            f"{compared.first} and {compared.second}"
            + (", or is 0 in the first" if change is not None else "")
        )
    if beyond.low is None or beyond.high is None:
        raise TtscopeError(
            f"--fail-on {limit.text!r} cannot be judged: too few problems for an interval. "
            "Record more"
        )
    assert change is not None
    return hold(
        limit,
        beyond,
        problems=change.problems,
        of_problems=change.of_problems,
        timed=change.metric.timed,
        # Where no problem was won or lost the interval narrows with their number itself.
        power=1 if limit.tag == "accuracy" and change.all_equal else 2,
    )


def hold(
    limit: Limit,
    difference: Estimate,
    *,
    problems: int,
    of_problems: float = 1.0,
    timed: bool = False,
    power: int = 2,
) -> JudgedLimit:
    """Hold a limit against a difference with both ends, in the limit's own terms."""
    assert difference.low is not None and difference.high is not None
    ends = difference.low, difference.high
    shown = all(limit.beyond(end, limit.shown_from) for end in ends)
    broken = shown and limit.beyond(difference.value)
    sure = broken or not any(map(limit.beyond, ends))
    needed = None
    if not sure:
        edge = limit.shown_from if limit.beyond(difference.value) else limit.amount
        needed = problems_to_reach(
            abs(difference.value - edge),
            (difference.high - difference.low) / 2,
            problems,
            of_problems=of_problems,
            power=power,
        )
    return JudgedLimit(
        limit=limit,
        difference=difference,
        shown=shown,
        broken=broken,
        sure=sure,
        problems=problems,
        problems_to_settle=needed,
        of_problems=of_problems,
        timed=timed,
    )
