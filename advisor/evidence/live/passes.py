"""Requests that forward passes do not name, inferred from who comes and goes between two of them.

A record tells sums over the requests of a step: how many decode, and how many tokens of context
they have together. Each decoding request gains a token a step. Where the next record's sum is short
of that, requests ended, and what is missing is their context. If one ended alone, that is its
length. A prompt that is alone in a step has its length in the sums. Requests that wait come and go
by one, so that the queue tells when each came, to a step.

What the sums leave open is drawn: how prompts that began in one step share their tokens, which of
several requests ended where the sums fit some alike, and when within a step a request came.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import polars as pl

from advisor.evidence.live.front_end import are_siblings
from advisor.evidence.live.histograms import DRAWS, MOST_SPREAD
from advisor.evidence.runs import (
    ProblemRun,
    RecordedRun,
    Sample,
    arrival_rate,
    with_beginnings,
)
from traces.recording.tables import COMPOSITION
from traces.schema.engine import EngineConfig
from traces.schema.estimate import Estimate
from traces.schema.tts.policy import AS_SENT
from traces.statistics import Floats, Ints, mean, spread
from traces.summary.run import Run

NEEDED = (  # columns of steps
    *("engine", "step", "end", "interval_ns", "wall_ns", "preempted", "waiting"),
    *COMPOSITION,
)
MOST = 5_000  # requests that are inferred
FEWEST = 20  # requests that ended, below which nothing is inferred
MOST_WRONG = 0.1  # of the requests, whose sums may not add up
MOST_LOST = 0.01  # of the steps, that may be missing
SLACK = 2  # tokens by which a context may be off: engines count the newest one or do not
AHEAD = 2  # steps that an engine schedules ahead of the one that it tells of
PAUSE = 0.25  # of a step's own time, by which it began later than the one before ended
TRIES, SWAPS = 8, 50  # in the search for those that ended together


_CONTENT = ("prefill_requests", "prefill_tokens", "decode_requests", "decode_kv_tokens")


@dataclass(frozen=True, kw_only=True)
class _Steps:
    """The steps of one rank, in order, all [steps]; `begin` and `end` are unix ns.

    `read` is what prompts find in the cache. `clock` counts the steps that decode, up to each, and
    `decoded` is the last of these before it. `mixed` says that steps hold prompts and decodes,
    `begun_only` that only prompts that begin count as such.
    """

    begin: Ints
    end: Ints
    prompts: Ints
    computed: Ints
    read: Ints
    decodes: Ints
    context: Ints
    waiting: Ints
    clock: Ints
    decoded: Ints
    budget: int | None
    mixed: bool
    begun_only: bool

    @classmethod
    def of(cls, steps: pl.DataFrame, budget: int | None) -> _Steps:
        end, prompts, computed, decodes, context, waiting, read = (
            steps[name].to_numpy().astype(np.int64)
            for name in ("end", *_CONTENT, "waiting", "prefill_kv_tokens")
        )
        took = steps.select(pl.coalesce("wall_ns", "interval_ns").fill_null(0)).to_series()
        runs = decodes > 0
        places = np.where(runs, np.arange(len(runs)), -1)
        last = np.concatenate(([-1], np.maximum.accumulate(places)[:-1]))
        filled = computed + decodes
        if budget is None and np.count_nonzero(filled == filled.max()) > 1:
            budget = int(filled.max())
        return cls(
            begin=end - took.to_numpy().astype(np.int64),
            end=end,
            prompts=prompts,
            computed=computed,
            read=read - computed,
            decodes=decodes,
            context=context,
            waiting=waiting,
            clock=np.cumsum(runs),
            decoded=last,
            budget=budget,
            mixed=bool(((computed > 0) & runs).any()),
            begun_only=bool(((computed > 0) & (prompts == 0)).any()),
        )

    def __len__(self) -> int:
        return len(self.end)

    @property
    def eventful(self) -> Ints:
        """The steps at which something comes or goes, all else being one token a request."""
        grown = self.context[:-1] + self.decodes[:-1]
        same = (
            (self.decodes[1:] == self.decodes[:-1])
            & (self.context[1:] == grown)
            & (self.waiting[1:] == self.waiting[:-1])
            & (self.computed[1:] == 0)
            & (self.computed[:-1] == 0)
        )
        return np.concatenate(([0], 1 + np.flatnonzero(~same)))

    def goes_on(self, step: int, own: int) -> bool:
        """Whether the last of a step's `own` prompts goes on in the next step.

        The step is then as full as steps get, and the next one reads what this one computed.
        """
        full = self.budget is not None and self.computed[step] + self.decodes[step] >= self.budget
        if not full or step + 1 == len(self) or not self.computed[step + 1]:
            return False
        before = self.read[step] + self.computed[step] if own == 1 else 1
        room = not self.mixed or self.decodes[step + 1] < self.decodes[step] + own
        return bool(self.read[step + 1] >= before and room)


@dataclass
class _Request:
    """A request; its context is `prompt` and the steps that decode since `joined` on the clock.

    `group` are those whose prompts' sum alone is known, None of one whose prompt is. A `stranger`
    ran before the first record.
    """

    prompt: int
    cached: int = 0
    came: int = 0
    joined: int = 0
    at: int = 0  # the step of its first token
    group: list[_Request] | None = None
    stranger: bool = False
    end: int | None = None
    output: int = 0


@dataclass
class _Followed:
    """The requests of one draw, as far as the steps were gone through."""

    steps: _Steps
    rng: np.random.Generator
    spread: float
    newest: int = 0  # tokens of a request's first context beyond its prompt
    requests: list[_Request] = field(default_factory=list)
    running: list[_Request] = field(default_factory=list)
    queue: deque[int] = field(default_factory=deque)
    opened: _Request | None = None
    firsts: Counter[int] = field(default_factory=Counter)  # that a lone new request adds
    ahead: int = 0  # that wait no longer, and begin in one of the next steps
    ahead_at: int = 0
    latest: int = 0  # when the last one came
    wrong: int = 0

    def go(self) -> _Followed:
        for step in self.steps.eventful.tolist():
            if step == 0:
                self._strangers(step, int(self.steps.decodes[0]), int(self.steps.context[0]))
            else:
                self._end(step)
            self._begin(step)
        return self

    def _clock(self, step: int) -> int:
        """Return how many steps decode before a step."""
        return int(self.steps.clock[step - 1]) if step else 0

    def _context(self, of: Sequence[_Request], step: int) -> Ints:
        clock = self._clock(step)
        return np.array([r.prompt + self.newest + clock - r.joined for r in of], dtype=np.int64)

    def _strangers(self, step: int, count: int, total: int) -> None:
        """Add requests that run at a step already, of whose contexts only the sum is known."""
        clock = self._clock(step)
        group: list[_Request] = []
        for each in _shares(total - count * self.newest, np.ones(count)):
            group.append(_Request(max(each, 1), joined=clock, group=group, stranger=True))
        self.running += group

    def _end(self, step: int) -> None:
        """End those that a step lacks of all that ran before it."""
        decodes = int(self.steps.decodes[step])
        if not decodes and not self.steps.mixed:
            return  # it computes prompts alone, and the others wait
        context = self._context(self.running, step)
        gone = len(self.running) - decodes
        lacking = int(context.sum()) - int(self.steps.context[step])
        fresh = [r for r in self.running if r.at == step - 1 and not r.stranger]
        if gone == 0 and len(fresh) == 1:
            self.firsts[-lacking] += 1
        if gone < 0:
            self.wrong -= gone
            self._strangers(step, -gone, max(-lacking, -gone))
        elif gone:
            places = self._chosen(context, gone, lacking)
            ended = [self.running[place] for place in places]
            loose = [each for each in ended if each.group] or ended
            rest = lacking - int(context[places].sum())
            if abs(rest) > SLACK * gone:
                self.wrong += sum(each.group is None for each in ended)
                _move(loose, rest)
            for each in ended:
                self._ended(each, step)
            left = set(places)
            self.running = [r for place, r in enumerate(self.running) if place not in left]
        off = int(self.steps.context[step]) - int(self._context(self.running, step).sum())
        if loose := [r for r in self.running if r.group]:
            _move(loose, off)
        elif abs(off) > SLACK * decodes:  # another ended than was taken to have
            self.wrong += 1
            for each in self.running:
                each.group = self.running
            _move(self.running, off)

    def _chosen(self, context: Ints, gone: int, lacking: int) -> list[int]:
        """Return the places of as many as are gone, whose contexts sum to what is lacking."""
        if gone == len(context):
            return list(range(gone))
        if gone == 1:
            away = np.abs(context - lacking)
            ungrouped = np.array([r.group is None for r in self.running])
            if (
                away[ungrouped].all() and not ungrouped.all()
            ):  # equal contexts are as good as each other
                away = np.where(ungrouped, away.max() + 1, away)
            return [int(self.rng.choice(np.flatnonzero(away == away.min())))]
        best, least = np.zeros(0, dtype=np.int64), -1
        for _ in range(TRIES):
            inside = np.zeros(len(context), dtype=bool)
            inside[self.rng.choice(len(context), gone, replace=False)] = True
            for _ in range(SWAPS):
                off = lacking - int(context[inside].sum())
                ins, outs = np.flatnonzero(~inside), np.flatnonzero(inside)
                change = context[ins][:, None] - context[outs][None, :]
                place = int(np.argmin(np.abs(off - change)))
                if abs(off - change.flat[place]) >= abs(off):
                    break
                inside[ins[place // len(outs)]] = True
                inside[outs[place % len(outs)]] = False
            if abs(off) < least or least < 0:
                best, least = np.flatnonzero(inside), abs(off)
            if not least:
                break
        return [int(place) for place in best]

    def _ended(self, request: _Request, step: int) -> None:
        steps = self.steps
        last = max(int(steps.decoded[step]), request.at)
        request.end = int(steps.end[last])
        request.output = 1 + self._clock(step) - request.joined

    def _begin(self, step: int) -> None:
        """Begin the prompts of a step, and note when those came that wait."""
        steps, going = self.steps, self.opened is not None
        computed, read = int(steps.computed[step]), int(steps.read[step])
        prompts = 0
        if computed:
            prompts = max(int(steps.prompts[step]) + (going and steps.begun_only), 1)
        new = max(prompts - going, 0) if computed else 0
        self._came(step, new)
        if not computed:
            return
        begun = [_Request(0, came=self._next(step)) for _ in range(new)]
        self.requests += begun
        before = self.opened.prompt if self.opened is not None else 0
        members = ([] if self.opened is None else [self.opened]) + begun
        self.opened = None
        alike = bool(are_siblings(np.array([computed]), np.array([prompts]), np.array([read]))[0])
        alike = alike and not going
        total = computed + read
        if steps.goes_on(step, prompts):
            self.opened = members.pop()
            if not members:
                self.opened.cached = self.opened.cached if going else read
                self.opened.prompt = total
                return
            self.opened.prompt = min(int(steps.read[step + 1]), computed)
            total = max(total - self.opened.prompt, len(members))
        weights = np.exp(self.rng.normal(0.0, 0.0 if alike else self.spread, len(members)))
        lengths = [max(n, 1) for n in _shares(max(total - before, len(members)), weights)]
        lengths[0] += before
        fresh_read = max(read - before, 0)
        for place, (one, length) in enumerate(zip(members, lengths, strict=True)):
            one.prompt, one.at, one.joined = length, step, int(steps.clock[step])
            one.group = members if len(members) > 1 else None
            if alike:
                one.cached = read // (prompts - 1) if place else 0
            elif not (going and place == 0):
                one.cached = fresh_read * length // max(sum(lengths), 1)
        if len(members) == 1 and not going:
            members[0].cached = read
        self.running += members

    def _came(self, step: int, new: int) -> None:
        """Note the requests that came since the step before: those that begin and wait more."""
        steps = self.steps
        count = new + int(steps.waiting[step]) - (int(steps.waiting[step - 1]) if step else 0)
        if self.ahead and step - self.ahead_at > AHEAD:
            for _ in range(min(self.ahead, len(self.queue))):
                self.queue.pop()  # they were given up
            self.ahead = 0
        count -= self.ahead
        if count < 0 and count != -self.ahead:
            self.ahead_at = step
        self.ahead = max(-count, 0)
        if count <= 0:
            return
        begin = int(steps.begin[step])
        since = until = begin
        if step:
            step_ns = int(steps.end[step] - begin)
            if begin - int(steps.end[step - 1]) <= PAUSE * step_ns:
                since, until = int(steps.begin[step - 1]), int(steps.end[step - 1])
        drawn = np.sort(self.rng.uniform(0.0, 1.0, count))
        offsets = np.rint(drawn * max(until - since, 0)).astype(np.int64)
        times = np.maximum.accumulate(np.maximum(since + offsets, self.latest))
        self.latest = int(times[-1])
        self.queue.extend(times.tolist())

    def _next(self, step: int) -> int:
        if not self.queue:
            self.latest = max(self.latest, int(self.steps.begin[step]))
            return self.latest
        return self.queue.popleft()


def inferred_traffic(
    steps: pl.DataFrame, engine: EngineConfig, recording: str, key: str, lost: int = 0
) -> list[RecordedRun] | str:
    """Return the requests of one rank's forward passes, drawn `DRAWS` times, or why there are none.

    `steps` are in order, and `lost` more are missing. Each request is a problem of one sample,
    without an answer. Its latency is from when it came to the end of its last step. Requests that
    ran before the first step or after the last are left out, and all but the last `MOST`.
    """
    if why := _untold(steps, lost):
        return why
    later = steps["prefill_requests"].reverse().cum_sum().reverse()
    last_steps = _Steps.of(steps.filter(later <= MOST), engine.max_num_batched_tokens)
    rng = np.random.default_rng(len(last_steps))
    probe = _Followed(last_steps, rng, 0.0).go()
    newest = max(probe.firsts, key=lambda each: probe.firsts[each], default=0)
    newest = newest if abs(newest) <= SLACK else 0
    prompts = [r.prompt for r in probe.requests if r.group is None and r.end is not None]
    measured = float(np.std(np.log(prompts))) if len(prompts) >= FEWEST else None
    draws = []
    for draw in range(DRAWS):
        spread = MOST_SPREAD * draw / (DRAWS - 1) if measured is None else measured
        rng = np.random.default_rng([draw, len(last_steps)])
        draws.append(_Followed(last_steps, rng, spread, newest).go())
    if why := _unsound(draws[0]):
        return why
    kept = [place for place, each in enumerate(zip(*(d.requests for d in draws), strict=False))
            if all(r.end is not None for r in each)]  # fmt: skip
    if len(kept) < FEWEST:
        return f"only {len(kept)} requests began and ended while it was recorded"
    return [
        _run(engine, recording, {f"{recording}.{key}.{place}": each.requests[place]
                                 for place in kept})
        for each in draws
    ]  # fmt: skip


def _run(engine: EngineConfig, recording: str, requests: dict[str, _Request]) -> RecordedRun:
    problems = {
        name: ProblemRun(
            problem_id=name,
            arrival_ns=one.came,
            prompt_tokens=one.prompt,
            cached_tokens=min(one.cached, one.prompt - 1),
            latency_s=max((one.end or 0) - one.came, 0) / 1e9,
            samples=(Sample(output_tokens=one.output, answer=None, correct=None),),
            indices=(0,),
        )
        for name, one in requests.items()
    }
    return RecordedRun(
        recording=recording,
        engine=engine,
        policy=AS_SENT,
        problems=with_beginnings(problems, engine),
        concurrency=None,
        rate_per_s=arrival_rate(each.arrival_ns for each in problems.values()),
        drawn=True,
        inferred=True,
    )


def ran_at_ends(steps: pl.DataFrame) -> int:
    """Return how many requests ran or waited at the first step or the last, which are no run's."""
    last = ("decode_requests", "prefill_requests", "waiting")
    return int(steps["decode_requests"][0]) + sum(int(steps[name][-1]) for name in last)


def as_inferred(found: Run, run: RecordedRun) -> Run:
    """Return a run's summary with the latencies, tokens and throughput of its inferred requests."""
    problems = run.problems.values()
    latency, came = (
        np.array(each) for each in zip(*((p.latency_s, p.arrival_ns or 0) for p in problems),
                                       strict=True)
    )  # fmt: skip
    tokens = np.array([float(p.samples[0].output_tokens) for p in problems])
    seconds = float((came / 1e9 + latency).max() - came.min() / 1e9)
    return replace(
        found,
        problems=len(problems),
        latency_s=spread(latency, "s"),
        tokens_per_problem=mean(tokens, "tokens"),
        throughput_tokens_per_s=Estimate(value=float(tokens.sum()) / seconds, unit="tokens/s")
        if seconds > 0
        else None,
    )


def _untold(steps: pl.DataFrame, lost: int) -> str | None:
    """Return why steps tell no request, None where they may."""
    total = lost + steps.height
    begun, preempted = (int(steps[name].sum()) for name in ("prefill_requests", "preempted"))
    checks = (
        (
            steps["prefill_kv_tokens"].null_count() or not total,
            "its steps lack what their prompts read",
        ),
        (
            steps["end"].null_count(),
            "its steps have no times, or were sampled. DYN_FPM_MODE=full keeps all",
        ),
        (
            steps["decode_tokens"].null_count(),
            "its engine speculates, or too few steps show whether it does",
        ),
        (steps["waiting"].null_count(), "its steps lack how many requests wait"),
        (
            any(steps[name].null_count() for name in _CONTENT),
            "some of its steps do not say what they computed",
        ),
        (lost > MOST_LOST * total, f"{lost:,} of {total:,} steps are missing"),
        (
            not steps["prefill_tokens"].sum(),
            "its steps compute no prompt, as those of a worker that decodes for others",
        ),
        (
            preempted > MOST_LOST * begun,
            f"{preempted:,} requests were preempted, and come back under no name",
        ),
    )
    return next((why for fault, why in checks if fault), None)


def _unsound(found: _Followed) -> str | None:
    """Return that the sums of the steps do not add up to requests, where that is so."""
    ended = sum(r.end is not None for r in found.requests)
    if found.wrong > MOST_WRONG * max(ended + found.wrong, 1):
        return (
            f"the sums of its steps do not add up to requests: {found.wrong:,} of "
            f"{ended + found.wrong:,} do not fit"
        )
    return None


def _move(requests: Sequence[_Request], tokens: int) -> None:
    """Give requests so many more tokens of prompts, or fewer, alike."""
    for one, more in zip(requests, _shares(tokens, np.ones(len(requests))), strict=True):
        one.prompt = max(one.prompt + more, 1)


def _shares(total: int, weights: Floats) -> list[int]:
    """Return whole numbers in proportion to weights, which sum to the total."""
    if not len(weights):
        return []
    upto = np.rint(np.cumsum(weights) / weights.sum() * total).astype(np.int64)
    return [int(each) for each in np.diff(upto, prepend=0)]
