"""The per-step probe of an engine in this process.

It wraps the scheduler's `schedule` and `update_from_output` and, on the engine's thread, only
reads clocks and appends one tuple per step to a bounded ring; the rest is worked out by the
writer thread when it drains the ring (`step_rows`). When something in the probe raises, it
switches itself off and says so: the engine goes on.

What the ring holds must be light: whatever is kept until it is drained outlives the step, makes
the garbage collector run on the engine's thread, which cost more than the probe itself when vLLM's
SchedulerOutput was kept, and takes the memory that vLLM would use again. So the contexts of the
requests are kept of one step (its `Base`), and the steps after it, as long as the same requests
decode one token each, leave a few numbers and refer to it.
"""

from __future__ import annotations

import logging
import time
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from profiler.engines.vllm.probes.step_rows import (
    NOTHING,
    Base,
    Kept,
    RawStep,
    Seen,
    StepRows,
    Work,
)

log = logging.getLogger("ttscope.steps")

RING_CAPACITY = 100_000
ENDS_KEPT = 1_000_000  # ends of steps, from which the times of running samples are read
CPU_EVERY = 16  # steps: reading the thread's CPU clock is a system call
COST_EVERY = 64  # steps: the probe times itself, in a step that reads no CPU clock


@dataclass(slots=True)
class StepInFlight:
    """The step that is in flight: vLLM's SchedulerOutput and what was seen of it.

    Where two are, the older one waits in the probe's `_pending`.
    """

    output: Any = None
    cpu: int | None = None  # the thread's clock when it was scheduled
    seen: Seen = (0, 0, 0, 0, 0, NOTHING)
    cost_at: int = CPU_EVERY // 2  # the tick of the next step in which the probe times itself


@dataclass
class StepProbe:
    """Watches one vLLM scheduler; `drain` gives rows of the `steps` table.

    `step` numbers the steps since `reset`; `first_step[request]` is the step in which a request
    (vLLM's internal id) was first scheduled. `draft_timer.last_ns`, where there is one, is what
    the drafting of the step just done took; `profiled` says whether a profiler is on. `window` is
    that of the model's layers and whether it is one of chunks (`StepRows`).
    """

    scheduler: Any
    engine_key: str
    unix_offset_ns: int
    draft_timer: Any = None
    window: tuple[int, bool] = (0, False)
    first_step: dict[str, int] = field(default_factory=dict)
    dropped: int = 0
    failure: str | None = None
    _ring: list[RawStep] = field(default_factory=list)
    _ends: array[int] = field(default_factory=lambda: array("q"))
    _recent: list[int] = field(default_factory=list)  # ends that are not yet in the array
    _forgotten: int = 0  # ends that are no longer kept
    _costs_ns: deque[int] = field(default_factory=lambda: deque(maxlen=10_000))
    _pending: deque[tuple[Any, int | None, Seen]] = field(default_factory=deque)
    _toggled: list[int] = field(default_factory=list)  # steps at which a profiler went on, off, on

    def __post_init__(self) -> None:
        self.reset(self.engine_key)

    def install(self) -> None:
        """Wrap the scheduler of this one engine; `remove` undoes it."""
        scheduler = self.scheduler
        self._schedule, self._update = scheduler.schedule, scheduler.update_from_output
        flight = StepInFlight()
        scheduler.schedule = self._watched_schedule(self._schedule, flight)
        scheduler.update_from_output = self._watched_update(self._update, flight)

    def remove(self) -> None:
        self.scheduler.schedule = self._schedule
        self.scheduler.update_from_output = self._update
        self._pending.clear()

    def reset(self, engine_key: str) -> None:
        """Number the steps from 0 again, for a new recording; call while the engine is idle."""
        self.engine_key = engine_key
        self.dropped = self._forgotten = 0
        self._rows = StepRows(
            engine_key=engine_key,
            unix_offset_ns=self.unix_offset_ns,
            usable_blocks=self.scheduler.kv_cache_manager.block_pool.num_gpu_blocks - 1,
            left_over=len(self.scheduler.finished_req_ids),
            window=self.window,
        )
        del self._ends[:]
        for store in (self.first_step, self._pending, self._costs_ns):
            store.clear()
        for kept in (self._ring, self._recent, self._toggled):
            kept.clear()

    @property
    def step(self) -> int:
        """How many steps have ended, which is the number of the next."""
        return self._forgotten + len(self._ends) + len(self._recent)

    @property
    def profiled(self) -> bool:
        """Whether a profiler is on: said of every step that ends while it is."""
        return len(self._toggled) % 2 == 1

    @profiled.setter
    def profiled(self, on: bool) -> None:
        if on != self.profiled:
            self._toggled.append(self.step)

    @property
    def cost_us(self) -> float | None:
        """Median time that the probe itself took in a step, of one step in `COST_EVERY`, in us."""
        costs = sorted(self._costs_ns)
        return costs[len(costs) // 2] / 1000 if costs else None

    def end_of(self, step: int) -> int | None:
        """Return the end of a step in unix nanoseconds, None when it is not known any more."""
        self._store_ends()
        place = step - self._forgotten
        return self._ends[place] + self.unix_offset_ns if 0 <= place < len(self._ends) else None

    def step_at(self, unix_ns: int) -> int:
        """Return the first step that ended after a time; the last one when none did."""
        self._store_ends()
        place = bisect_right(self._ends, unix_ns - self.unix_offset_ns)
        return self._forgotten + min(place, len(self._ends) - 1)

    def _watched_schedule(
        self, schedule: Callable[..., Any], flight: StepInFlight
    ) -> Callable[..., Any]:
        """Return `schedule`, watched.

        Both methods are closures because a cell is read in a third of the time of an attribute,
        and call without `*` where they can. What they seldom do stands in methods: a model leaves
        the caches cold, so that code costs by its length.
        """
        now, thread_time = time.monotonic_ns, time.thread_time_ns
        scheduler, pending, costs = self.scheduler, self._pending, self._costs_ns
        free = scheduler.kv_cache_manager.block_pool.free_block_queue
        # vLLM's queue is a deque whose len() goes through two Python calls.
        queue = scheduler.waiting if isinstance(scheduler.waiting, deque) else None
        count = deque.__len__.__get__(deque() if queue is None else queue)
        tick = clock_at = 0  # steps scheduled, and at which of them the CPU clock is read
        settled = -1  # requests that run, where the last step was one token for each of them,
        checked = False  # and whether none of them had its prompt before it
        base: Base = NOTHING

        def watched(*args: Any, **kwargs: Any) -> Any:
            nonlocal tick, clock_at, settled, checked, base
            cpu = thread_time() if tick == clock_at else None
            start = now()
            output = schedule(*args, **kwargs) if kwargs else schedule(*args)
            begun = now() if tick == flight.cost_at else 0
            try:
                running, waiting = len(scheduler.running), scheduler.waiting
                total, ended = output.total_num_scheduled_tokens, output.finished_req_ids
                preempted = output.preempted_req_ids
                # None ended and as many run: they are those of the step before. Each lacked one
                # token, so that as many tokens are one for each.
                same = (
                    total == running == settled
                    and not ended
                    and not preempted
                    and cpu is None
                    and not output.scheduled_spec_decode_tokens
                )
                if not (same and (checked or all(base[4]))):
                    if not total:
                        settled = -1
                        return output
                    cached = output.scheduled_cached_reqs
                    contexts, work = cached.num_computed_tokens, None
                    if (
                        total != len(contexts)
                        or output.scheduled_new_reqs
                        or cached.resumed_req_ids
                    ):
                        work = self._work(output, len(pending) + (flight.output is not None))
                    base = (
                        tick,
                        len(ended),
                        len(preempted) if preempted else 0,
                        contexts,
                        cached.num_output_tokens,
                        work,
                    )
                    settled = running if work is None and total == running else -1
                    same = False
                checked = same
                if flight.output is not None:
                    pending.append((flight.output, flight.cpu, flight.seen))
                queued = count() if waiting is queue else len(waiting)
                flight.seen = (start, running, queued, free.num_free_blocks, tick, base)
                flight.output, flight.cpu = output, cpu
                if cpu is not None:
                    clock_at = tick + CPU_EVERY
                tick += 1
                if begun:
                    costs.append(now() - begun)
            except Exception as error:
                self._give_up(error)
            return output

        return watched

    def _watched_update(
        self, update: Callable[..., Any], flight: StepInFlight
    ) -> Callable[..., Any]:
        """Return `update_from_output`, watched."""
        now, thread_time = time.monotonic_ns, time.thread_time_ns
        scheduler, pending, ring, costs = self.scheduler, self._pending, self._ring, self._costs_ns
        recent, timer = self._recent, self.draft_timer

        def watched(scheduled: Any, computed: Any, *args: Any, **kwargs: Any) -> Any:
            kept = None
            # Before the update, which cuts what a request that ends in this step got too much.
            try:
                if drafts := scheduled.scheduled_spec_decode_tokens:
                    kept = _kept(drafts, computed)
            except Exception as error:
                self._give_up(error)
            result = (
                update(scheduled, computed, *args, **kwargs)
                if args or kwargs
                else update(scheduled, computed)
            )
            end = now()
            try:
                seen, cpu = flight.seen, flight.cpu
                if flight.output is scheduled:
                    flight.output = None
                    if pending:
                        pending.clear()  # their update never came
                elif (landed := self._landed(scheduled)) is not None:
                    cpu, seen = landed
                else:
                    return result  # it scheduled nothing
                if len(ring) < RING_CAPACITY:
                    more = None
                    if cpu is not None or timer is not None or kept is not None:
                        spent = None if cpu is None else thread_time() - cpu
                        more = (spent, kept, None if timer is None else timer.last_ns)
                    ring.append((seen, end, len(scheduler.finished_req_ids), more))
                else:
                    self.dropped += 1
                recent.append(end)
                if seen[4] == flight.cost_at:
                    costs[-1] += now() - end
                    flight.cost_at += COST_EVERY
                    self._store_ends()
            except Exception as error:
                self._give_up(error)
            return result

        return watched

    def _work(self, output: Any, ahead: int) -> Work:
        """Keep what a step computes that is not one token for each of its running requests.

        `ahead` steps are in flight before it.
        """
        new, cached = output.scheduled_new_reqs, output.scheduled_cached_reqs
        tokens, step = output.num_scheduled_tokens, self.step + ahead
        for request in new:
            self.first_step[request.req_id] = step
        return (
            tokens,
            cached.req_ids,
            cached.resumed_req_ids,
            [(request.num_computed_tokens, tokens[request.req_id]) for request in new],
        )

    def _landed(self, scheduled: Any) -> tuple[int | None, Seen] | None:
        """Take what was seen of a step, where a later one is in flight; those before are lost."""
        while self._pending:
            output, cpu, seen = self._pending.popleft()
            if output is scheduled:
                return cpu, seen
        return None

    def _store_ends(self) -> None:
        """Move ends from the list, to which they are added in no time, to the array."""
        self._ends.extend(self._recent)
        self._recent.clear()
        if len(self._ends) > ENDS_KEPT:
            self._forgotten += ENDS_KEPT // 2
            del self._ends[: ENDS_KEPT // 2]

    def _give_up(self, error: Exception) -> None:
        self.failure = f"{type(error).__name__}: {error}"
        log.warning("the step probe switched itself off (%s). Steps are missing", self.failure)
        self.remove()

    def drain(self) -> pl.DataFrame:
        ring = self._ring
        taken = ring[: len(ring)]
        del ring[: len(taken)]
        # A full ring takes none until now: what was dropped comes after these.
        return self._rows.frame(taken, self.dropped, self._toggled)


def _kept(drafts: Mapping[str, Sequence[int]], computed: Any) -> Kept | None:
    """Return tokens drafted for each request and kept, by vLLM's ModelRunnerOutput of the step.

    A request gets those accepted and one more. vLLM pads the place of a draft that there is none
    of with ids of -1; nothing was drafted for it.
    """
    try:
        got = dict(zip(computed.req_ids, map(len, computed.sampled_token_ids), strict=True))
        real = {name: draft for name, draft in drafts.items() if draft and draft[0] != -1}
        return list(map(len, real.values())), [got[name] - 1 for name in real]
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
