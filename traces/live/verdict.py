"""Where a live deployment's time goes: the bottleneck in words, with the numbers it follows from.

Each check says what it found, that it found nothing, or that this depth of watching cannot see
it. The verdict is the first finding in the order of `CHECKS`: what keeps requests out comes before
what makes steps slow, because no faster step helps a request that is not in one. A stalled engine
is judged no further. Shares are of the time under load, in which requests ran or waited: what was
idle says nothing of what limits the rest. The thresholds are stated here and in docs/attach.md;
none of them was fitted to anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from traces.live.numbers import KV_FULL, Numbers
from traces.recording.tables import STEP_TOOK
from traces.schema.engine import EngineConfig
from traces.schema.formats import digits, number, percent
from traces.schema.record import Record
from traces.summary.kernels import Collective, DeviceTime

FEWEST_POLLS = 10
MORE = 1.5  # times the load that a server without a bottleneck is asked to bear
FEWEST_LOADED = 5  # polls' time under load, below which there is nothing to judge
STALLS = 0.1  # share of the time under load in which requests run and no token comes
FULL = 0.2  # share of the time under load in which the KV cache is full
WAITS = 0.2  # share of the time under load in which requests wait
QUEUED = 0.5  # of the time to first token, spent in the queue
CAPPED = 0.8  # share of the time with a queue in which as many ran as ever did
NEARLY = 0.75  # of the most that ran: what ended in the last step is not replaced yet
FEWEST_CAPPED = 3  # polls with a queue at which the most ran, below which it may be chance
EXPOSED = 0.2  # of the profiled time, in collectives that nothing hides
IDLE = 0.4  # of the profiled time, without work on the devices
ALWAYS_BUSY = 0.9  # of the time: else a device idles for want of requests
HARDLY = 1.1  # tokens that a drafted step gives: a draft gives at most a tenth
GROWS = 0.6  # of a step's time that follows its tokens
FIXED = 0.8  # of a step's time that does not
FEWEST_STEPS = 200
FEWEST_PAIRED = 20  # steps of one batch size, with and without a draft
TAKEN = "max_num_seqs, which the server does not say, is taken as"  # how a note of it begins
EXPLAINED = 0.5  # of the variance of step times, for a fit to count


@dataclass(frozen=True, kw_only=True)
class LiveEvidence:
    """What is known of one engine over the time that it was watched.

    `steps` are rows of the table, `collectives` and `device_time` of profiler windows
    (traces/summary/kernels.py); None where that depth was not there. `told` says that spans or
    steps of that time came.
    """

    numbers: Numbers | None
    steps: pl.DataFrame | None = None
    collectives: tuple[Collective, ...] | None = None
    device_time: DeviceTime | None = None
    request_limit: str = "max_num_seqs"  # as its engine calls it
    told: bool = False

    @cached_property
    def fixed_share(self) -> tuple[float | None, str]:
        """The share of a step's time that does not follow what is in it, or what it needs."""
        return fixed_share(self.steps)


@dataclass(frozen=True, kw_only=True)
class Finding(Record):
    """A bottleneck: its kind, and the measured numbers that say so."""

    kind: str
    evidence: str


@dataclass(frozen=True, kw_only=True)
class Unseen(Record):
    """A bottleneck that this depth of watching cannot see, and what would show it."""

    kind: str
    needs: str


@dataclass(frozen=True, kw_only=True)
class Verdict(Record):
    """`found` in order, the first being the verdict; empty is "nothing stands out".

    `reason` says why there is no verdict at all (too short, no load), None where there is one.
    """

    engine: str
    found: tuple[Finding, ...] = ()
    unseen: tuple[Unseen, ...] = ()
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """What answers a verdict: words behind `ttscope replay RECORDING`, what they do, and why.

    No replay answers a verdict without such `arguments`.
    """

    arguments: tuple[str, ...]
    told: str
    why: str


Outcome = Finding | Unseen | None

STEPS_JUDGED = (  # the columns of steps that `LiveEvidence` needs
    *("wall_ns", "interval_ns", "profiled", "prefill_tokens", "decode_requests"),
    *("decode_tokens", "decode_kv_tokens", "drafted", "accepted"),
)


class SeenLimit:
    """How many requests an engine runs at most while others wait, told poll by poll."""

    def __init__(self) -> None:
        self._most = 0
        self._waited: Counter[int] = Counter()  # polls with a queue, by what ran; -1: little room

    def take(self, running: float, waiting: float, kv_share: float) -> None:
        """Take what a poll says; `kv_share` is that of the cache's blocks in use.

        Where the cache has no room for twice what a request holds, it may be the cache.
        """
        self._most = max(self._most, round(running))
        if waiting > 0:
            room = kv_share + 2 * kv_share / max(running, 1.0) <= 1
            self._waited[round(running) if room else -1] += 1

    @property
    def limit(self) -> int | None:
        """The limit of running requests that the queue was behind, None where nothing says so.

        One request alone may be a prompt that fills each step. A small number comes again by
        chance, so that it has to come more often: 2 at 10 polls, 4 at 5, 7 and more at 3.
        """
        waited, at_most = self._waited.total(), self._waited[self._most]
        near = sum(n for ran, n in self._waited.items() if ran >= NEARLY * self._most)
        often = at_most >= FEWEST_CAPPED and at_most * self._most >= 2 * FEWEST_POLLS
        return self._most if self._most > 1 and often and near >= CAPPED * waited else None


def judge(engine: str, evidence: LiveEvidence) -> Verdict:
    """Return the verdict on one engine."""
    numbers = evidence.numbers
    if numbers is None or numbers.polls < FEWEST_POLLS:
        polls = "fewer than 2" if numbers is None else numbers.polls
        return Verdict(engine=engine, reason=f"too short: {polls} polls, {FEWEST_POLLS} are needed")
    if numbers.load_s is not None and (numbers.busy_share or 0) * numbers.polls < FEWEST_LOADED:
        watched = number(numbers.seconds, "s")
        loaded = f"too little load: requests ran for {number(numbers.load_s, 's')} of {watched}"
        if evidence.told:
            unloaded = f"no load at any poll in {watched}, what ran came between polls"
        else:
            unloaded = f"no load: no request ran in {watched}"
        return Verdict(engine=engine, reason=loaded if numbers.load_s else unloaded)
    if (stalled := _stalled(numbers)) is not None:
        return Verdict(engine=engine, found=(stalled,))
    outcomes = [check(numbers, evidence) for check in CHECKS]
    return Verdict(
        engine=engine,
        found=tuple(each for each in outcomes if isinstance(each, Finding)),
        unseen=tuple(each for each in outcomes if isinstance(each, Unseen)),
    )


def change_for(
    verdict: Verdict, numbers: Numbers | None, engine: EngineConfig, rate_per_s: float
) -> Remedy:
    """Return the change that answers a verdict's first finding; `rate_per_s` is what arrives.

    A queue behind `max_num_seqs` gets twice as many if the cache, as far as it was seen, has room
    for them, a full cache half as many blocks more, another queue a second replica. Where nothing
    keeps requests out the load grows by half.
    """
    kind = verdict.found[0].kind if verdict.found else None
    most = None if numbers is None or numbers.running_max is None else round(numbers.running_max)
    seqs = engine.max_num_seqs or most
    if kind == "stalled":
        advice = "see the engine's log for a hang, a pause or a sleep"
        return Remedy(arguments=(), told=advice, why="requests ran and got no token")
    capped = numbers is not None and (numbers.capped_share or 0) > 0
    if kind == "KV-bound" and engine.num_gpu_blocks is not None:
        more = engine.num_gpu_blocks * 3 // 2
        change = f"give the KV cache {more:,} blocks in place of {engine.num_gpu_blocks:,}"
        return Remedy(
            arguments=_set("num_gpu_blocks", more), told=change, why="the KV cache is full"
        )
    why = "requests wait"
    if kind == "queueing" and capped and seqs:
        why += f" while {seqs} run"
        share = None if numbers is None else numbers.kv_share_max
        if share is not None and (engine.num_gpu_blocks is None or 2 * share <= 1):
            change = f"set max_num_seqs to {2 * seqs}"
            return Remedy(arguments=_set("max_num_seqs", 2 * seqs), told=change, why=why)
        if share is not None:
            why += f", and the KV cache was up to {percent(share)} full: no room for {2 * seqs}"
    if kind in {"queueing", "KV-bound"}:
        return Remedy(arguments=("--replicas", "2"), told="add a replica", why=why)
    rate = float(f"{MORE * rate_per_s:.3g}")
    return Remedy(
        arguments=("--rate", f"{rate:g}/s"),
        told=f"nothing keeps requests out: see what {MORE:g} times the load does",
        why=f"{MORE:g} times the load",
    )


def _set(name: str, value: int) -> tuple[str, ...]:
    return ("--set", f"engine.{name}={value}")


def _stalled(numbers: Numbers) -> Finding | None:
    share = numbers.of_load(numbers.stalled_share)
    if share is None or share < STALLS:
        return None
    ran = f"{numbers.running_max:.0f} requests ran" if numbers.running_max else "requests ran"
    load_s = numbers.load_s or 0.0
    stood = number(min((numbers.stalled_share or 0.0) * numbers.seconds, load_s), "s")
    text = f"{ran} and no token came for {stood} of {number(load_s, 's')} under load"
    return Finding(kind="stalled", evidence=text)


def _kv(numbers: Numbers, _: LiveEvidence) -> Outcome:
    full, waits = (numbers.of_load(each) for each in (numbers.kv_full_share, numbers.waiting_share))
    if full is None or waits is None:
        return Unseen(kind="KV-bound", needs="vllm:kv_cache_usage_perc")
    preempted = numbers.preemptions or 0
    if full < FULL or not (waits >= WAITS or preempted):
        return None
    parts = [f"KV cache above {percent(KV_FULL)} for {percent(full)} of the time under load"]
    if preempted:
        parts.append(f"{preempted:,} preemptions, whose tokens are computed again")
    if waits:
        parts.append(_waiting(numbers, waits))
    return Finding(kind="KV-bound", evidence=", ".join(parts))


def _waiting(numbers: Numbers, share: float) -> str:
    mean, most = numbers.of_load(numbers.waiting), numbers.waiting_max
    return (
        f"requests wait for {percent(share)} of the time under load ({mean:.1f} on average, "
        f"{most:.0f} at most in a poll)"
    )


def _queue(numbers: Numbers, evidence: LiveEvidence) -> Outcome:
    waits = numbers.of_load(numbers.waiting_share)
    ttft, share = numbers.ttft_s.mean, ""
    if waits is None:
        return Unseen(kind="queueing", needs="vllm:num_requests_waiting")
    if waits < WAITS or isinstance(_kv(numbers, evidence), Finding):
        return None
    if ttft is None:  # no request got a token yet
        if waits < QUEUED:
            return None
    elif (queued := _queued(numbers, ttft.value)) is None:
        return None
    else:
        share = f", {queued}, {number(ttft.value, 's')} to the first token (means of /metrics)"
    text = _waiting(numbers, waits) + share
    if numbers.capped_share is not None and numbers.capped_share >= CAPPED:
        text += f". While they wait, {numbers.running_max:.0f} run and never more"
        if numbers.kv_share_max is not None:
            text += (
                f", with the KV cache at most {percent(numbers.kv_share_max)} full in a poll: "
                f"{evidence.request_limit} may be the limit"
            )
    return Finding(kind="queueing", evidence=text)


def _queued(numbers: Numbers, ttft_s: float) -> str | None:
    """Say for how long requests are queued, None where that is less than half of `ttft_s`.

    Engines tell it of requests that ended, which may be those that came before the queue. By
    Little's law (Little 1961) it is also how many wait over how many get a first token a second.
    """
    told, rate = numbers.queue_s.mean, numbers.first_tokens_per_s
    if told is not None and told.value >= QUEUED * ttft_s:
        return f"{number(told.value, 's')} in the queue"
    law_s = numbers.waiting / rate if rate and numbers.waiting is not None else 0.0
    if rate and law_s >= QUEUED * ttft_s:
        return f"which takes {number(law_s, 's')} at {digits(rate)} first tokens a second"
    return None


def _communication(_: Numbers, evidence: LiveEvidence) -> Outcome:
    collectives, device = evidence.collectives, evidence.device_time
    if collectives is None or device is None:
        return Unseen(kind="communication-bound", needs="kernel windows")
    exposed = [each.exposed_s for each in collectives]
    known = [seconds for seconds in exposed if seconds is not None]
    if len(known) < len(exposed):
        return Unseen(kind="communication-bound", needs="exposed times of the collectives")
    profiled_s = (device.busy_s + device.idle_s) / max(device.ranks, 1)
    share = sum(known) / profiled_s
    if share < EXPOSED:
        return None
    return Finding(
        kind="communication-bound",
        evidence=f"collectives that nothing hides take {percent(share)} of the profiled time, "
        f"{collectives[0].name} the most",
    )


def _launch(numbers: Numbers, evidence: LiveEvidence) -> Outcome:
    device = evidence.device_time
    if device is None:
        return Unseen(kind="launch-bound", needs="kernel windows")
    if (numbers.busy_share or 0) < ALWAYS_BUSY or device.idle_share < IDLE:
        return None
    return Finding(
        kind="launch-bound",
        evidence=f"the devices had no work for {percent(device.idle_share)} of the profiled time "
        f"({device.steps} steps), while requests ran for {percent(numbers.busy_share)} "
        "of the time",
    )


def _draft(numbers: Numbers, evidence: LiveEvidence) -> Outcome:
    length = numbers.acceptance_length
    if length is None:
        return None
    gain = draft_gain(evidence.steps)
    if gain is not None:
        times, ratio = gain
        if times >= 1:
            return None
        return Finding(
            kind="draft not paying",
            evidence=f"a step with a draft takes {digits(ratio)} times as long as one without "
            f"at the same batch, and gives {digits(times * ratio)} times the tokens",
        )
    if length <= HARDLY:
        drafts, drafted = numbers.drafts, numbers.drafted_tokens
        per = f" of {digits(drafted / drafts)} drafted" if drafts and drafted else ""
        return Finding(
            kind="draft not paying",
            evidence=f"{digits(length - 1)} tokens{per} are accepted per draft: it pays only where "
            f"drafting and checking lengthen a step by less than {percent(length - 1)}",
        )
    return Unseen(
        kind="draft not paying",
        needs=f"steps with and without a draft ({digits(length)} tokens a drafted step)",
    )


def _compute(_: Numbers, evidence: LiveEvidence) -> Outcome:
    fixed, needs = evidence.fixed_share
    if fixed is None:
        return Unseen(kind="compute-bound", needs=needs)
    if 1 - fixed >= GROWS:
        return Finding(
            kind="compute-bound",
            evidence=f"{percent(1 - fixed)} of a step's time follows the tokens and context in it",
        )
    return None


def _fixed(numbers: Numbers, evidence: LiveEvidence) -> Outcome:
    fixed, _ = evidence.fixed_share
    if fixed is None or fixed < FIXED or isinstance(_launch(numbers, evidence), Finding):
        return None
    return Finding(
        kind="fixed cost of steps",
        evidence=f"{percent(fixed)} of a step's time does not depend on what is in it (launches, "
        "reading the weights: kernel windows show which), so larger batches are nearly free",
    )


CHECKS: tuple[Callable[[Numbers, LiveEvidence], Outcome], ...] = (
    _kv,
    _queue,
    _communication,
    _launch,
    _draft,
    _compute,
    _fixed,
)


def _timed(steps: pl.DataFrame | None) -> pl.DataFrame:
    """Return the steps whose time is known and not slowed by the profiler, with `time`."""
    if steps is None:
        return pl.DataFrame({"time": []})
    return (
        steps.filter(~pl.col("profiled").fill_null(False))
        .with_columns(time=STEP_TOOK / 1e9)
        .drop_nulls("time")
    )


_COMPOSITION = (
    "steps with their composition (--fpm, or plugin and --enable-logging-iteration-details)"
)


def fixed_share(  # noqa: PLR0911
    steps: pl.DataFrame | None,
) -> tuple[float | None, str]:
    """Return the share of the mean step time that does not follow what is in the step.

    The intercept of a least-squares fit of the step's time to its prefill tokens, decode tokens
    and context read, over its mean. None, and what is needed, where steps, their composition or its
    variation are too few, or the fit explains less than half of the variance.
    """
    features = ["prefill_tokens", "decode_tokens", "decode_kv_tokens"]
    timed = _timed(steps)
    few = f"{FEWEST_STEPS} or more steps whose time and composition are known, not "
    if steps is None:
        return None, _COMPOSITION
    if timed.height < FEWEST_STEPS:
        return None, f"{few}{timed.height}"
    known = [name for name in features if timed[name].null_count() < timed.height // 2]
    if not {"prefill_tokens", "decode_tokens"} <= set(known):
        return None, _COMPOSITION
    timed = timed.drop_nulls(known)
    # Start-up and stalls are not what a step costs.
    timed = timed.filter(pl.col("time") <= pl.col("time").quantile(0.99))
    columns = [timed[name].to_numpy().astype(float) for name in known]
    columns = [each / each.max() for each in columns if each.std() > 0 and each.max() > 0]
    if timed.height < FEWEST_STEPS:
        return None, f"{few}{timed.height}"
    if not columns:
        return None, f"steps that differ in what is in them. All {timed.height:,} are alike"
    design = np.column_stack([np.ones(timed.height), *columns])
    time = timed["time"].to_numpy()
    weights, *_ = np.linalg.lstsq(design, time, rcond=None)
    left = time - design @ weights
    spread = float(((time - time.mean()) ** 2).sum())
    explained = 1 - float((left**2).sum()) / spread if spread > 0 else 0.0
    if explained < EXPLAINED:
        return None, (
            f"steps whose content explains their times. It explains {percent(explained)} of how "
            f"{timed.height:,} steps differ, and {percent(EXPLAINED)} is the least that shows one"
        )
    return float(np.clip(weights[0] / time.mean(), 0.0, 1.0)), ""


def draft_gain(steps: pl.DataFrame | None) -> tuple[float, float] | None:
    """Return how many times the tokens per second a draft gives, and how much longer a step takes.

    Steps that only decode are compared at the same number of requests, medians of times, weighted
    by the drafted steps. None without enough of both kinds at one size.
    """
    timed = _timed(steps)
    if timed.height < 2 * FEWEST_PAIRED:
        return None
    drafted = pl.col("drafted").list.sum().fill_null(0) > 0
    plain = timed.filter(pl.col("prefill_tokens") == 0, pl.col("decode_requests") > 0)
    sizes = plain.group_by("decode_requests").agg(
        with_draft=pl.col("time").filter(drafted).median(),
        without=pl.col("time").filter(~drafted).median(),
        steps=drafted.sum(),
        others=(~drafted).sum(),
        accepted=pl.col("accepted").list.sum().filter(drafted).mean(),
    )
    both = sizes.filter(pl.col("steps") >= FEWEST_PAIRED, pl.col("others") >= FEWEST_PAIRED)
    if not both.height:
        return None
    weight = both["steps"].to_numpy().astype(float)
    longer = (both["with_draft"] / both["without"]).to_numpy()
    tokens = (1 + both["accepted"].fill_null(0.0) / both["decode_requests"]).to_numpy()
    ratio = float(np.average(longer, weights=weight))
    return float(np.average(tokens / longer, weights=weight)), ratio
