"""A run held against what was promised of it, or against an earlier run: check by check.

A check is broken only where noise does not explain what was measured, and all checks together
break no more equal runs than one interval misses (traces/deployment/level.py). Of times the
interval holds the spread from run to run too (traces/summary/comparison.py). What was not measured
is said, and a gate that has nothing to judge must not pass. Nor does one of a run that did not end.
Accuracy is that of the problems that were judged, so a share of problems that failed breaks the
gate itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import hypot, inf, sqrt
from typing import Any, Final, Literal

import numpy as np
import polars as pl

from traces.deployment.documents import ASSUMED, Expectations, names_hash, plain_policy
from traces.deployment.level import (
    FALL,
    GATE_LEVEL,
    RISE,
    Power,
    Reach,
    by_noise,
    half_width,
    together,
)
from traces.errors import TtscopeError, UsageError
from traces.live.engine_names import SGLANG, software_of
from traces.live.numbers import Numbers
from traces.schema.engine import EngineConfig
from traces.schema.estimate import Estimate
from traces.schema.formats import ABSENT, number, percent, percent_change, with_interval, written
from traces.schema.quantities import LIMITS, latency, limited, quantity, which_latency
from traces.schema.record import Record
from traces.schema.tts.parameters import most_at_once, most_requests
from traces.schema.tts.policy import Policy
from traces.statistics import Z95, difference, drawn, mean, proportion
from traces.summary.comparison import (
    LOAD,
    Difference,
    JudgedLimit,
    Limit,
    RunSpread,
    exceeds,
    hold,
    judge,
    of_one_workload,
    parse_limit,
    ran_apart,
    ran_at_once,
    spread_of,
)
from traces.summary.metrics import METRICS, estimate_of
from traces.summary.problems import MOST_UNTOLD, voting_samples
from traces.summary.run import Run, to_plain

Verdict = Literal["ok", "broken", "unsure", "absent"]
Kind = Literal["promise", "limit", "change", "assumption"]
DEFAULT_LIMITS: Final = ("accuracy<-.02", "p95>+10%", "tokens>+10%", "energy>+10%")
ACCEPTANCE: Final = Limit(  # of the tokens that a drafted step gives
    text="acceptance<-5%",
    tag="acceptance",
    above=False,
    amount=-0.05,
    relative=True,
    regression=True,
)
ROOM: Final = 0.1  # by which traffic may differ from what was assumed
NEIGHBOURS: Final = 4  # problems that come after one, whose gap tells the rate that it met
BURSTS: Final = 2.0  # times the mean rate, from which problems came in bursts
FAILED: Final = "problems that failed"
IDLE_INCLUDED: Final = " with idle time"  # device time or cost at a rate, where idle is paid too
MOST_FAILED: Final = 0.02  # of the problems: as much as accuracy may fall by default
CUT_OFF: Final = ("client gone", "server ended")  # errors of served questions that were cut off
_TIMED = frozenset(each.tag for each in METRICS if each.timed)
_SETTINGS = (  # of an engine that servers do not tell, or that change no answer and no step
    *("mode", "num_gpu_blocks", "gpu_memory_utilization", "other", "num_gpus", "block_size"),
    *("max_model_len", "vllm_version"),
)


@dataclass(frozen=True, kw_only=True)
class Check(Record):
    """One thing that was held against a run: `wanted` in words, `measured`, and the verdict.

    `promised` is the estimate that `wanted` names, None of limits. `why` says what decided it, or
    what is missing. Checks of `kind` assumption break no gate. They say what a broken promise may
    come from. `by_noise` is how often noise alone would show as much
    in one of the gate's checks, None where nothing was judged. `reach` is what the check can tell.
    """

    name: str
    kind: Kind
    verdict: Verdict
    wanted: str
    measured: Estimate | None
    why: str
    promised: Estimate | None = None
    by_noise: float | None = None
    reach: Reach | None = None

    @property
    def judged(self) -> bool:
        """Whether it may break the gate."""
        return self.kind != "assumption" and self.verdict != "absent"

    def to_json(self) -> dict[str, Any]:
        """Return the document, without what it can tell: the gate has that as its power."""
        return {name: to_plain(each) for name, each in vars(self).items() if name != "reach"}


@dataclass(frozen=True, kw_only=True)
class Gate(Record):
    """All checks of a run, and in what its configuration differs from the one promised.

    `unjudged` says why a limit that was given cannot be judged. `run_to_run` is the spread that the
    intervals of times hold, None where no time was judged.
    """

    against: str
    recording: str
    checks: tuple[Check, ...]
    differs: tuple[str, ...] = ()
    unjudged: str | None = None
    run_to_run: RunSpread | None = None

    @property
    def broken(self) -> tuple[Check, ...]:
        """The checks that break the gate."""
        return tuple(
            each for each in self.checks if each.verdict == "broken" and each.kind != "assumption"
        )

    @property
    def not_judged(self) -> str | None:
        """Why a gate that nothing breaks does not pass: a limit, or everything, is not judged."""
        if self.unjudged is not None:
            return self.unjudged
        for each in self.checks:
            if each.verdict == "absent" and each.kind == "limit":
                return f"{each.name} ({each.wanted}) cannot be judged: {each.why}"
        held = [each for each in self.checks if each.kind != "assumption" and each.name != FAILED]
        if all(each.verdict == "absent" for each in held):
            return f"{self.recording}: nothing that was promised was measured there"
        return None

    @property
    def verdict(self) -> str:
        """What becomes of it, in a word."""
        if self.broken:
            return "failed"
        return "passed" if self.not_judged is None else "not judged"

    @property
    def judged(self) -> int:
        """How many checks share the level of the gate."""
        return sum(each.judged for each in self.checks)

    @property
    def power(self) -> tuple[Power, ...]:
        """How often the gate fails where a run is worse, check by check."""
        reaches = (each.reach for each in self.checks if each.judged)
        return tuple(each.power(self.judged) for each in reaches if each is not None)

    def to_json(self) -> dict[str, Any]:
        """Return the document."""
        return {
            "against": self.against,
            "recording": self.recording,
            "verdict": self.verdict,
            "differs": list(self.differs),
            "run_to_run": None if self.run_to_run is None else self.run_to_run.to_json(),
            "level": GATE_LEVEL,
            "judged": self.judged,
            "power": to_plain(self.power),
            "checks": [each.to_json() for each in self.checks],
        }


# Against promises.


def against_promises(
    expected: Expectations,
    run: Run,
    name: str,
    repeats: Sequence[Run] = (),
    *,
    price_usd_per_device_hour: float | None = None,
) -> Gate:
    """Hold a run against `expect.json`; `repeats` of it tell the spread from run to run.

    The price is that of the run's own devices, where it is known.
    """
    budget = expected.budget
    quantities = [latency(budget.latency_percentile), *map(quantity, expected.promised)]
    parts = {each.tag.removeprefix("latency_s.p") for each in quantities}
    percentiles = [int(part) for part in parts if part.isdecimal() and 0 < int(part) < 100]
    spread, sd_of = spread_of(run, repeats, sorted(percentiles))
    checks = []
    for field, limit in budget.limits().items():
        if field == "max_gpus":
            continue
        of = limited(field, budget.latency_percentile)
        unit = of.unit
        side = "at least" if LIMITS[field].at_least else "at most"
        wanted = f"{side} {written(limit, unit)}{which_latency(field, budget.latency_percentile)}"
        checks.append(_held(expected, run, sd_of, of.name, "limit", limit, wanted))
    for metric, promised in expected.promised.items():
        if promised is None or metric == "throughput_problems_per_s":
            continue
        same = promised.which("fresh")  # as a run of other problems is not judged
        bound = same.low if quantity(metric).higher_is_better else same.high
        checks.append(
            _held(expected, run, sd_of, metric, "promise", bound, with_interval(same), same)
        )
    timed = {quantity(tag).noun for tag in _TIMED} | {latency(each).noun for each in percentiles}
    judged = any(
        each.name.removesuffix(IDLE_INCLUDED) in timed and each.verdict != "absent"
        for each in checks
    )
    checks = _at_one_level([*checks, *_share_failed(run)])
    checks += assumptions(expected, observed(run))
    undone = unfinished(run)
    return Gate(
        against=name,
        recording=run.recording,
        checks=_unless(undone, checks),
        differs=_differs(expected, run, price_usd_per_device_hour),
        unjudged=undone,
        run_to_run=spread if judged and undone is None else None,
    )


def _held(
    expected: Expectations,
    run: Run,
    sd_of: Callable[[str], float],
    metric: str,
    kind: Kind,
    bound: float | None,
    wanted: str,
    promise: Estimate | None = None,
) -> Check:
    """Hold a number of a run against a bound, None where the promise leaves that end open.

    Of a `promise` it is the worse end of its interval. One of a fresh run of the same problems
    holds what such a run may have, so that the run's own interval counts for nothing there.
    """
    promised = None if promise is None else promise.value
    of = quantity(metric)
    timed = of.tag in _TIMED or of.tag.startswith("latency_s.")
    try:
        measured = estimate_of(run, of.tag)
    except (AttributeError, KeyError):  # what no run tells, such as devices
        measured = None
    paid = _paid_at_rate(expected, run, of.tag)
    name = of.noun if paid is None else of.noun + IDLE_INCLUDED
    why = None if measured is None else _unlike(expected, run, timed)
    if measured is not None and why is None and kind == "promise" and metric.startswith("latency"):
        why = _other_path(expected, run)
    if measured is None:
        why = "not measured in this recording"
        if metric == "cost_usd" and run.device_s_per_problem is not None:
            why = "no price is known. Give --price"
    elif measured.low is None and measured.high is None:
        why = "too few problems for an interval. Record more"
    elif why is None and bound is None:
        end = "lower" if of.higher_is_better else "upper"
        why = f"the promise has no {end} end, so nothing can break it"
    if why is not None or measured is None or bound is None:
        return Check(
            name=name,
            kind=kind,
            verdict="absent",
            wanted=wanted,
            measured=measured,
            why=why or "",
            promised=promise,
        )
    alone = shown = measured
    above, sd = not of.higher_is_better, sd_of(of.tag) if timed else 0.0
    if timed:
        shown = _from_run_to_run(measured, sd)
    if paid is not None:
        shown = shown.at_least(paid)
    measured, is_fresh = shown, promise is not None and promise.of == "fresh"
    if is_fresh:
        measured = replace(shown, low=shown.value, high=shown.value)
    check = _judged(name, kind, measured, bound, wanted, above=above, promised=promised)
    check = replace(check, measured=shown, promised=promise)
    beside = 0.0 if promised is None else abs(bound - promised)
    half = half_width(measured, above=above, beside=beside)
    base = bound if promised is None else promised
    if half and base and paid is None:
        points = of.unit == "1"
        own, differ = half_width(alone, above=above) or half, Z95 * sd * base
        reach = Reach(
            check=name,
            kind=kind,
            metric=of.tag,
            unit="1" if points else "share",
            half=half if points else half / base,
            worse_by=FALL if points else RISE,
            problems=run.problems,
            # What one more run may have holds that runs differ, too.
            of_problems=max(1 - (differ / half) ** 2, 0.0) if is_fresh else (own / half) ** 2,
        )
        check = replace(check, reach=reach)
    words, share = _load_beside(expected, run)
    # Under the whole load a latency may be broken, and the devices' share may be less.
    lighter = timed and share is not None and share < 1 - ROOM
    if lighter and not (check.verdict == "broken" and of.tag.startswith("latency_s.")):
        return replace(check, verdict="absent", why=words)
    return check


def _paid_at_rate(expected: Expectations, run: Run, tag: str) -> float | None:
    """Return the device time or cost of a problem at the promised rate: idle devices are paid too.

    Busy devices take no less. None of other numbers. A server that does not tell its devices has
    those of the promise.
    """
    price_s = {"device_s_per_problem": 1.0}
    if run.price_usd_per_device_hour is not None:
        price_s["cost_usd_per_problem"] = run.price_usd_per_device_hour / 3600
    if expected.rate_per_s is None or tag not in price_s:
        return None
    untold = run.engine.mode == "server" and run.engine.num_devices == 1
    devices = (expected.engine if untold else run.engine).num_devices
    return devices / expected.rate_per_s * price_s[tag] * (1 - 1e-9)  # of rounding


def _judged(
    name: str,
    kind: Kind,
    measured: Estimate,
    bound: float,
    wanted: str,
    *,
    above: bool,
    promised: float | None = None,
) -> Check:
    """Hold a number against a bound, which is the worse end of what was `promised`, if anything.

    A limit is broken by an interval wholly beyond it. A promise is broken by more than its own
    interval and that of the run together explain.
    """
    low, high = measured.low, measured.high
    open_ends = (-inf if low is None else low, inf if high is None else high)
    ends = [end > bound if above else end < bound for end in open_ends]
    if promised is None:
        noise = by_noise(measured, bound, above=above)
        broken = all(ends)
    else:
        noise = by_noise(measured, promised, above=above, beside=abs(bound - promised))
        broken = noise < GATE_LEVEL
    verdict: Verdict = "broken" if broken else "unsure" if any(ends) else "ok"
    end = percent_change(bound) if measured.unit == "share" else number(bound, measured.unit)
    edge = f"{'above' if above else 'below'} {end}"
    why = {
        "broken": f"the whole interval lies {edge}",
        "unsure": f"the interval reaches {edge}, and not all of it",
        "ok": f"no part of the interval lies {edge}",
    }[verdict]
    if low is not None and low == high:
        side = "lies" if any(ends) else "does not lie"
        why = f"it {side} {edge}, the end of what one more run of these problems may have"
    elif broken and not all(ends):
        why = "worse than promised by more than both intervals explain"
    if verdict == "unsure" and None in (low, high):
        why = f"too few problems to say whether it is {edge}. Record more"
    return Check(
        name=name,
        kind=kind,
        verdict=verdict,
        wanted=wanted,
        measured=measured,
        why=why,
        by_noise=noise,
    )


def _at_one_level(checks: Sequence[Check]) -> list[Check]:
    """Return the checks, none broken that noise alone breaks too often among so many."""
    judged = [each for each in checks if each.judged]
    noise = iter(together([1.0 if each.by_noise is None else each.by_noise for each in judged]))
    return [_of_several(each, next(noise), len(judged)) if each.judged else each for each in checks]


def _of_several(check: Check, noise: float, count: int) -> Check:
    if check.verdict != "broken" or noise < GATE_LEVEL:
        return replace(check, by_noise=noise)
    why = f"{check.why}, but noise does so in {percent(noise)} of gates with {count} checks"
    return replace(check, verdict="unsure", why=why, by_noise=noise)


def _from_run_to_run(measured: Estimate, sd: float) -> Estimate:
    """Return a time with the spread from run to run in its interval."""
    spread = Z95 * sd * measured.value
    low, high = measured.low, measured.high
    return replace(
        measured,
        low=None if low is None else measured.value - hypot(low - measured.value, spread),
        high=None if high is None else measured.value + hypot(high - measured.value, spread),
    )


def _unlike(expected: Expectations, run: Run, timed: bool) -> str | None:
    """Return why a number of a run is not the one that was promised; None where it is."""
    if (other := _other_problems(expected, run)) is not None:
        return other
    words, share = _load_beside(expected, run)
    return words if timed and (share is None or share > 1 + ROOM) else None


def _load_beside(expected: Expectations, run: Run) -> tuple[str, float | None]:
    """Return a run's load beside the promised one in words, and its share of that, if known."""
    wanted, rate = expected.concurrency, expected.rate_per_s
    at = run.conditions[1] if run.conditions else None
    if rate is not None and isinstance(at, int | float) and at:
        times = _times_in_bursts(run)
        came = "arrived" if times == 1.0 else "arrived in its bursts"
        return f"{times * at:.3g}/s {came}, and it was promised for {rate:g}/s", times * at / rate
    if wanted is None and rate is None:
        return "the promise does not say its load", None
    in_flight = _in_flight(run)
    load = f"{wanted} in flight" if wanted is not None else f"{rate:g}/s"
    ran = "an unknown load" if in_flight is None else f"{in_flight:.3g} in flight"
    share = None if wanted is None or in_flight is None else in_flight / wanted
    return f"ran with {ran}, and was promised for {load}", share


def _times_in_bursts(run: Run) -> float:
    """Return how many times the mean rate problems met, 1 where they did not come in bursts.

    Of problems at random the gap over k of them is k - 1/3 of the mean gap in the median (of the
    gamma law). They came in bursts where it is less than 1 / BURSTS of that.
    """
    came = np.zeros(0) if run.rows is None else np.sort(run.rows["arrival"].drop_nulls().to_numpy())
    if came.size <= NEIGHBOURS:
        return 1.0
    mean_gap = float(came[-1] - came[0]) / (came.size - 1)
    near = float(np.median(came[NEIGHBOURS:] - came[:-NEIGHBOURS])) / (NEIGHBOURS - 1 / 3)
    return mean_gap / near if 0 < BURSTS * near < mean_gap else 1.0


def _other_problems(expected: Expectations, run: Run) -> str | None:
    """Return why a run's problems are not those of the promise; None where they are."""
    promised, asked = expected.workload, run.workload
    if promised is None or asked is None or promised.hash == asked.hash:
        return None
    reason = f"other problems than the {promised.problems} of {promised.name} promised for"
    if expected.problem_names is None:
        return f"{reason}. Record those"
    if run.rows is not None and names_hash(run.rows["problem_id"]) == expected.problem_names:
        return None
    return f"{reason}, which outcomes know by name alone. Record all, each with its problem_id"


def _in_flight(run: Run) -> float | None:
    """Return the problems in flight: as they were kept, or as problems met them on average.

    That is over the seconds of all problems, so that hours without any count for nothing. Other
    runs of the recording are in the mean by Little's law alone, which is taken where it is more.
    """
    kept, rate = run.conditions[:2] if run.conditions else (None, None)
    if isinstance(kept, int | float):
        return float(kept)
    latency = run.latency_s["mean"]
    if not isinstance(rate, int | float) or latency is None or run.rows is None:
        return None
    lives = run.rows.select("arrival", ended=pl.coalesce("decided_at", "end")).drop_nulls()
    times = np.concatenate([lives["arrival"].to_numpy(), lives["ended"].to_numpy()])
    order = np.argsort(times, kind="stable")
    there = np.where(order < lives.height, 1, -1).cumsum()[:-1].astype(float)
    problem_s = there * np.diff(times[order])
    met = float(there @ problem_s / problem_s.sum()) if problem_s.any() else 0.0
    return max(met, float(rate * latency.value))


def _other_path(expected: Expectations, run: Run) -> str | None:
    """Return why a latency promised on one side of HTTP is not judged on the other."""
    through = run.engine.mode == "server"
    if through and expected.served is None:
        return (
            "promised for the engine alone, and this went through a server. Record the server, and "
            "advise on that recording too, to have it promised"
        )
    if not through and expected.served is not None:
        return "promised through a server, and this ran in one process"
    return None


def _differs(expected: Expectations, run: Run, price: float | None) -> tuple[str, ...]:
    """Return in what a run's configuration differs from the one promised, as far as it is told."""
    differences = []
    promised, asked = expected.workload, run.workload
    if promised is not None and asked is None:
        differences.append("the recording does not say which problems were asked")
    other = promised is not None and asked is not None and promised.hash != asked.hash
    if other and _other_problems(expected, run) is None:
        differences.append(
            "the problems have the names of the imported outcomes. Whether their prompts and "
            "answers are the same is not known"
        )
    before, after = expected.engine.to_json(), run.engine.to_json()
    servers, ranks = expected.engine.by_server()  # a server does not tell of others
    several = servers > 1 and run.engine.data_parallel_size in (1, ranks)
    unseen = ("tensor_parallel_size", *(("data_parallel_size",) if several else ()))
    for name, value in before.items():
        comparable = after[name] is not None and name not in _SETTINGS
        untold = run.engine.mode == "server" and name in unseen
        if comparable and not untold and after[name] != value:
            differences.append(f"engine.{name} {_said(value)} -> {_said(after[name])}")
    differences += _lost(None, run)
    was = expected.budget.price_of(expected.engine.gpu)
    if None not in (was, price) and was != price:
        differences.append(f"USD per device-hour {was:g} -> {price:g}")
    seqs, (_, limit) = expected.engine.max_num_seqs, ran_at_once(run)
    if seqs is not None and run.engine.max_num_seqs is None and exceeds(seqs, limit):
        differences.append(
            f"engine.max_num_seqs {seqs} -> {limit}: so many ran while others waited"
        )
    return (*differences, *policy_changes(expected.policy, run.policy))


def policy_changes(promised: Policy, policy: Policy | None) -> list[str]:
    """Return in what a run's policy differs from the one promised, as far as it is told."""
    if policy is None:
        return []
    changes, one, two = [], plain_policy(promised), plain_policy(policy)
    for name in one | two:
        untold = name == "temperature" and None in (one[name], two[name])
        if one.get(name) != two.get(name) and not untold:
            changes.append(f"policy.{name} {_said(one.get(name))} -> {_said(two.get(name))}")
    return changes


def _said(value: Any) -> Any:
    return ABSENT if value is None else value


# Problems without a decision.


def unfinished(run: Run) -> str | None:
    """Return why the problems that a run has answers to say too little of all, None where not so.

    A served recording has no fixed set of problems. It must have ended by itself.
    """
    if run.rows is None or run.curve is not None:
        return None
    ended = run.rows.filter(pl.col("state") != "in_flight")["problem_id"].n_unique()
    # A replay leaves out what failed in the recording.
    workload = run.workload if run.replay_of is None else None
    posed = None if workload is None else workload.problems
    progress = f"{ended:,} problems" if posed is None else f"{ended:,} of {posed:,} problems"
    if not run.complete:
        return f"{run.recording} is not complete: {progress} ended. Record it again"
    if posed is not None and ended < posed:
        return f"{run.recording} does not have all of its workload: {progress} ended. Record all"
    if (cut := _cut_off(run)) > MOST_UNTOLD * run.rows.height:
        return (
            f"{run.recording}: of {run.rows.height:,} questions {cut:,} were cut off, as their "
            "clients went away or the server ended. The others may be unlike them"
        )
    return None


def _cut_off(run: Run) -> int:
    """Return how many questions ended because their client or the server did."""
    return 0 if run.rows is None else run.rows.filter(_WAS_CUT_OFF).height


def all_cut_off(run: Run) -> bool:
    """Whether a run holds questions that were cut off, and no others."""
    return run.rows is not None and _cut_off(run) == run.rows.height


def _ended(run: Run) -> pl.DataFrame:
    """Return problem_id and whether it failed (0 or 1), of the problems that were not cut off."""
    if run.rows is None:
        return pl.DataFrame(schema={"problem_id": pl.Utf8, "failed": pl.Float64})
    ended = run.rows.filter(pl.col("state") != "in_flight", ~_WAS_CUT_OFF)
    return ended.select("problem_id", failed=(pl.col("state") == "failed").cast(pl.Float64))


_WAS_CUT_OFF = (pl.col("state") == "failed") & pl.col("error").is_in(CUT_OFF).fill_null(False)


def _lost(before: Run | None, run: Run) -> list[str]:
    """Return how many problems have no decision, where any has none."""
    runs = [each for each in (before, run) if each is not None]
    ended = [_ended(each) for each in runs]
    failed = [int(each["failed"].sum()) for each in ended]
    cut, losses = [_cut_off(each) for each in runs], []
    if any(failed):
        of = [f"{count:,} of {each.height:,}" for count, each in zip(failed, ended, strict=True)]
        losses.append(f"{FAILED} {' -> '.join(of)}")
    if any(cut):
        losses.append(f"questions that were cut off {' -> '.join(f'{count:,}' for count in cut)}")
    return losses


def _share_failed(run: Run) -> list[Check]:
    """Hold the share of problems that failed against the most that may, where any did."""
    ended = _ended(run)
    share = proportion(ended["failed"].to_numpy())
    if share is None or not share.value:
        return []
    wanted = f"at most {written(MOST_FAILED, '1')}"
    return [_judged(FAILED, "limit", share, MOST_FAILED, wanted, above=True)]


def more_failed(compared: Difference, baseline: Run, run: Run) -> list[Check]:
    """Hold the problems that failed against those of an earlier run, paired, where any did."""
    if compared.reason is not None and not of_one_workload(baseline, run):
        return []
    one, two = (_ended(each).group_by("problem_id").mean() for each in (baseline, run))
    both = one.join(two, on="problem_id", suffix="_after").sort("problem_id")
    before, after = (both[name].to_numpy() for name in ("failed", "failed_after"))
    if not before.any() and not after.any():
        return []
    measured = difference(drawn(before), drawn(after), "1")
    wanted = f"at most {number(MOST_FAILED, '1', sign=True)}"
    return [_judged(FAILED, "change", measured, MOST_FAILED, wanted, above=True)]


def _unless(undone: str | None, checks: Sequence[Check]) -> tuple[Check, ...]:
    """Return the checks, none of them judged where a run is unfinished."""
    if undone is None:
        return tuple(checks)
    return tuple(replace(each, verdict="absent", why=undone, by_noise=None) for each in checks)


# What the promises rest on.


def observed(run: Run) -> dict[str, Estimate | None]:
    """Return what a run says of the traffic that promises rest on, under the names of `ASSUMED`.

    A sample's length is not told where rules cancel the long ones.
    """
    estimates: dict[str, Estimate | None] = dict.fromkeys(ASSUMED)
    if run.acceptance is not None:
        estimates["acceptance_length"] = run.acceptance.length
    if run.rows is None or run.sample_rows is None or run.policy is None:
        return estimates
    samples = voting_samples(run.sample_rows)
    ended = samples.filter(pl.col("end").is_not_null(), pl.col("error").is_null())
    uncancelled = ended.filter(pl.col("cancelled_by").is_null())
    estimates["prompt_tokens"] = _mean_by_problem(ended, "prompt_tokens")
    if ended.height == uncancelled.height:
        estimates["output_tokens"] = _mean_by_problem(uncancelled, "output_tokens")
    if run.policy.n > 1:
        estimates["agreement"] = _agreement(uncancelled)
    return estimates


def _mean_by_problem(samples: pl.DataFrame, column: str) -> Estimate | None:
    by_problem = samples.drop_nulls(column).group_by("problem", maintain_order=True)
    return mean(by_problem.agg(pl.col(column).mean())[column].cast(pl.Float64).to_numpy(), "tokens")


def _agreement(samples: pl.DataFrame) -> Estimate | None:
    """Return the mean share of a problem's answers that are the one most gave."""
    counts = (
        samples.drop_nulls("answer").group_by("problem", "answer").len("votes").group_by("problem")
    )
    shares = counts.agg(share=pl.col("votes").max() / pl.col("votes").sum()).sort("problem")
    found = mean(shares["share"].to_numpy(), "1")
    if found is None or found.low is None or found.high is None:
        return found
    return replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0))


def observed_live(
    numbers: Numbers, engine: EngineConfig, policy: Policy
) -> dict[str, Estimate | None]:
    """Return what a server's metrics say of the traffic that promises rest on: means of a window.

    A sample's length is not told where a rule cancels samples, which makes them shorter.
    """
    samples = numbers.samples_per_s
    estimates: dict[str, Estimate | None] = dict.fromkeys(ASSUMED)
    rates = {"prompt_tokens": numbers.prompt_tokens_per_s}
    if policy.all_samples_end:
        rates["output_tokens"] = numbers.generated_tokens_per_s
    for name, rate in rates.items():
        if samples and rate is not None:
            # SGLang counts the tokens of decode steps, and the first is of a prompt's.
            first = name == "output_tokens" and software_of(engine) == SGLANG
            estimates[name] = Estimate(value=rate / samples + first, unit="tokens")
    if numbers.acceptance_length is not None:
        estimates["acceptance_length"] = Estimate(
            value=numbers.acceptance_length, unit="tokens/step"
        )
    return estimates


def assumptions(expected: Expectations, found: Mapping[str, Estimate | None]) -> list[Check]:
    """Hold traffic against what was assumed: all of it more than a tenth beyond breaks it."""
    checks = []
    for name, assumed in expected.assumed.items():
        measured = found.get(name)
        if assumed is None or name not in ASSUMED:
            continue
        low = assumed.value if assumed.low is None else assumed.low
        high = assumed.value if assumed.high is None else assumed.high
        ends = (low * (1 - ROOM), high * (1 + ROOM))
        if name in ("acceptance_length", "agreement"):
            ends = (ends[0], float("inf"))  # more of it is no harm
        wanted = with_interval(assumed)
        check = _moved(ASSUMED[name], wanted, measured, ends, assumed.value)
        checks.append(replace(check, promised=assumed))
    return checks


def _moved(
    name: str,
    wanted: str,
    measured: Estimate | None,
    ends: tuple[float, float],
    assumed: float,
    *,
    what: str = "what was assumed",
    absent: str = "not measured in this recording",
) -> Check:
    verdict: Verdict = "absent"
    why = absent
    if measured is not None:
        low = measured.value if measured.low is None else measured.low
        high = measured.value if measured.high is None else measured.high
        beyond = high < ends[0] or low > ends[1]
        inside = low >= ends[0] and high <= ends[1]
        verdict = "broken" if beyond else "ok" if inside else "unsure"
        why = "none was assumed"
        if assumed:
            why = _against(measured.value / assumed - 1, what)
    return Check(
        name=name,
        kind="assumption",
        verdict=verdict,
        wanted=wanted,
        measured=measured,
        why=why,
    )


def _against(share: float, what: str) -> str:
    """Return by what share something is above another: `+12.0 % against ..`, or `5.00 times ..`."""
    text = percent_change(share)
    return f"{text} {what}" if text.endswith("times") else f"{text} against {what}"


def drift(
    expected: Expectations, servers: Sequence[tuple[EngineConfig, Numbers]], runs: Sequence[Run]
) -> list[Check]:
    """Hold a deployment that was watched against what promises rest on.

    Its servers are one each, but that the load of servers which a promise has together is theirs
    together. What runs that were recorded with it tell counts before what their metrics say.
    """
    checks = []
    of_runs = [observed(run) for run in runs]
    together = len(servers) > 1 and expected.engine.by_server()[0] > 1
    if together:
        checks.append(load_check(expected, *(each for _, each in servers)))
    for engine, each in servers:
        estimates = observed_live(each, engine, expected.policy)
        for of_run in of_runs:
            estimates |= {name: value for name, value in of_run.items() if value is not None}
        load = [] if together else [load_check(expected, each)]
        held = [*load, *assumptions(expected, estimates)]
        where = f"{each.engine}: " if len(servers) > 1 else ""
        checks += [replace(check, name=where + check.name) for check in held]
    if not servers:
        for of_run in of_runs:
            checks += assumptions(expected, of_run)
    return checks


def load_check(expected: Expectations, *servers: Numbers) -> Check:
    """Hold the load of servers against the most requests that was assumed of so many."""
    policy = expected.policy
    share = len(servers) / max(expected.engine.by_server()[0], len(servers))
    if expected.rate_per_s is not None:
        name, unit = "samples a second", "samples/s"
        loads = [each.samples_per_s for each in servers]
        most = expected.rate_per_s * most_requests(policy) * share
    else:
        name, unit = "samples that run or wait", "samples"
        loads = [
            None if each.running is None else each.running + (each.waiting or 0.0)
            for each in servers
        ]
        most = (expected.concurrency or 1) * most_at_once(policy) * share
    total = sum(load for load in loads if load is not None)
    return _moved(
        name,
        f"at most {number(most, unit)}",
        None if None in loads else Estimate(value=total, unit=unit),
        (0.0, most * (1 + ROOM)),
        most,
        what="the most that was assumed",
        absent="the server does not report it",
    )


# Against an earlier run.


def against_baseline(limits: Sequence[str], compared: Difference, baseline: Run, run: Run) -> Gate:
    """Hold a run against an earlier one of the same problems.

    Without limits those of `DEFAULT_LIMITS` count that both runs have a number for. Times under
    another load, by a tenth or more, are not judged. Raises TtscopeError where a limit that was
    given cannot be judged.
    """
    there = {each.metric.tag for each in compared.changes if each.difference.low is not None}
    chosen = [parse_limit(text) for text in limits or DEFAULT_LIMITS]
    chosen = chosen if limits else [replace(each, regression=True) for each in chosen]
    undone = unfinished(baseline) or unfinished(run)
    failed = more_failed(compared, baseline, run)
    if compared.reason is not None and any(each.verdict == "broken" for each in failed):
        chosen = []  # no problem was decided in both
    elif not limits:
        if compared.reason is not None:
            raise TtscopeError(
                f"cannot be compared: {compared.reason}. Send both the same workload (ttscope "
                "record --endpoint URL), or name limits with --fail-on"
            )
        chosen = [each for each in chosen if each.tag in there]
    other_load = load_differs(compared)
    judged = judge(chosen, compared) if chosen else ()
    timed = [each.limit.text for each in judged if each.timed and limits and other_load]
    checks = [_change_of(each, other_load) for each in judged]
    drafts = _acceptance(baseline, run)
    checks += [] if drafts is None or limits else [drafts]
    if not checks and not failed:
        raise UsageError("nothing was measured in both recordings that a gate could judge")
    differs = [f"{name} {_said(a)} -> {_said(b)}" for name, (a, b) in compared.config.items()]
    differs += _lost(baseline, run)
    if (ran := ran_apart(baseline, run)) is not None:
        differs.append(f"requests that ran at once, with others waiting, {ran[0]} -> {ran[1]}")
    return Gate(
        against=compared.first,
        recording=compared.second,
        checks=_unless(undone, _at_one_level([*checks, *failed])),
        differs=tuple(differs),
        unjudged=undone or (f"{timed[0]} cannot be judged: {other_load}" if timed else None),
        run_to_run=compared.run_to_run
        if any(each.timed for each in judged) and undone is None
        else None,
    )


def load_differs(compared: Difference) -> str | None:
    """Return how the load is another one, by a tenth or more, so that times cannot be judged."""
    loads = [
        f"{name} {_said(a)} -> {_said(b)}"
        for name, (a, b) in compared.config.items()
        if name in LOAD and not (a and b and abs(b / a - 1) < ROOM)
    ]
    return f"the load is another one ({', '.join(loads)})" if loads else None


def _change_of(judged: JudgedLimit, other_load: str | None) -> Check:
    limit, measured = judged.limit, judged.difference
    verdict: Verdict = "broken" if judged.broken else "ok" if judged.sure else "unsure"
    why = {
        "broken": "the whole interval is beyond the limit",
        "ok": "the whole interval is within the limit",
        "unsure": "the interval reaches to both sides of the limit",
    }[verdict]
    if limit.regression:
        fall = "rise" if limit.above else "fall"
        why = {
            "broken": f"a {fall} is shown, and is beyond the limit",
            "ok": f"no part of the interval is a {fall} beyond the limit",
            "unsure": f"a {fall} is not shown, and one beyond the limit may be there",
        }[verdict]
        if judged.shown and verdict == "unsure":
            why = f"a {fall} is shown, and may be beyond the limit"
    if judged.timed and other_load is not None:
        verdict, why = "absent", other_load
    elif judged.problems_to_settle is not None:
        why += f". Some {judged.problems_to_settle:,} problems would settle it"
    elif verdict == "unsure" and judged.timed:
        why += ". More problems would not settle it, as runs differ by as much"
    side = 1 if limit.above else -1
    step = FALL if limit.tag == "accuracy" else RISE
    half = half_width(measured, above=limit.above)
    reach = None
    if half is not None and side * limit.amount >= 0 and (limit.relative or step == FALL):
        # Of a share that lower by `step` at least so many problems lost, or a time that is longer.
        worse_by = step + abs(limit.shown_from)
        least = Z95 * sqrt(step * (1 - step) / judged.problems) if step == FALL else 0.0
        reach = Reach(
            check=limit.text,
            kind="change",
            metric=limit.tag,
            unit="share" if limit.relative else "1",
            half=max(half * (1 + worse_by * limit.relative), least),
            worse_by=worse_by,
            shown_from=abs(limit.shown_from),
            beyond=abs(limit.amount),
            problems=judged.problems,
            of_problems=judged.of_problems,
        )
    return Check(
        name=limit.text,
        kind="change",
        verdict=verdict,
        wanted=limit.text,
        measured=measured,
        why=why,
        by_noise=by_noise(measured, limit.shown_from, above=limit.above),
        reach=reach,
    )


def _acceptance(baseline: Run, run: Run) -> Check | None:
    """Return how the tokens of a drafted step changed, None where not both runs drafted."""
    if baseline.acceptance is None or run.acceptance is None:
        return None
    one, two = baseline.acceptance.length, run.acceptance.length
    if one is None or two is None or None in (one.low, one.high, two.low, two.high):
        return None
    share = two.value / one.value - 1
    half = hypot(*(_half(each) / each.value for each in (one, two))) * (1 + share)
    measured = Estimate(value=share, low=share - half, high=share + half, unit="share", of="all")
    return _change_of(hold(ACCEPTANCE, measured, problems=run.problems), None)


def _half(estimate: Estimate) -> float:
    assert estimate.low is not None and estimate.high is not None
    return (estimate.high - estimate.low) / 2
