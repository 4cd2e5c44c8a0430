"""The per-step probe of an engine in this process.

It wraps the scheduler's `schedule` and `update_from_output` and, on the engine's thread, only
reads clocks and appends one tuple per step to a bounded ring; the rest is worked out by the
writer thread when it drains the ring (`step_rows`). When something in the probe raises, it
switches itself off and says so: the engine goes on.

What the ring holds must be light: whatever is kept until it is drained outlives the step, and
makes the garbage collector run on the engine's thread, which cost more than the probe itself when
vLLM's SchedulerOutput was kept. So a step that only decodes leaves numbers and two lists.
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

from profiler.step_rows import Begun, Kept, RawStep, StepRows, Work

log = logging.getLogger("ttscope.steps")

RING_CAPACITY = 100_000
ENDS_KEPT = 1_000_000  # ends of steps, from which the times of running samples are read
CPU_EVERY = 16  # steps: reading the thread's CPU clock is a system call


@dataclass
class StepProbe:
    """Watches one vLLM scheduler; `drain` gives rows of the `steps` table.

    `step` numbers the steps since `reset`; `first_step[request]` is the step in which a request
    (vLLM's internal id) was first scheduled. `draft_timer.last_ns`, where there is one, is what
    the drafting of the step just done took; `profiled` says whether a profiler is on.
    """

    scheduler: Any
    engine_key: str
    unix_offset_ns: int
    draft_timer: Any = None
    profiled: bool = False
    first_step: dict[str, int] = field(default_factory=dict)
    dropped: int = 0
    failure: str | None = None
    _ring: deque[RawStep] = field(default_factory=deque)
    _ends: array[int] = field(default_factory=lambda: array("q"))
    _forgotten: int = 0  # ends that are no longer kept
    _costs_ns: deque[int] = field(default_factory=lambda: deque(maxlen=10_000))
    _pending: deque[Begun] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.reset(self.engine_key)

    def install(self) -> None:
        """Wrap the scheduler of this one engine; `remove` undoes it."""
        scheduler = self.scheduler
        self._schedule, self._update = scheduler.schedule, scheduler.update_from_output
        wrapped = self._wrapped(self._schedule, self._update)
        scheduler.schedule, scheduler.update_from_output = wrapped

    def remove(self) -> None:
        """Give the scheduler its own methods back."""
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
        )
        del self._ends[:]
        for store in (self.first_step, self._ring, self._pending, self._costs_ns):
            store.clear()

    @property
    def step(self) -> int:
        """How many steps have ended, which is the number of the next."""
        return self._forgotten + len(self._ends)

    @property
    def cost_us(self) -> float | None:
        """Median time that the probe itself took in a step, of one step in `CPU_EVERY`, in us."""
        costs = sorted(self._costs_ns)
        return costs[len(costs) // 2] / 1000 if costs else None

    def end_of(self, step: int) -> int | None:
        """Return the end of a step in unix nanoseconds, None when it is not known any more."""
        place = step - self._forgotten
        return self._ends[place] + self.unix_offset_ns if 0 <= place < len(self._ends) else None

    def step_at(self, unix_ns: int) -> int:
        """Return the first step that ended after a time; the last one when none did."""
        place = bisect_right(self._ends, unix_ns - self.unix_offset_ns)
        return self._forgotten + min(place, len(self._ends) - 1)

    def _wrapped(
        self, schedule: Callable[..., Any], update: Callable[..., Any]
    ) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """Return both methods, watched.

        They are closures because a cell is read in a third of the time of an attribute, and call
        without `*` where they can, which takes as long as all that they read.
        """
        now, thread_time = time.monotonic_ns, time.thread_time_ns
        scheduler, pending, ring, costs = self.scheduler, self._pending, self._ring, self._costs_ns
        ends, timer = self._ends, self.draft_timer
        free = scheduler.kv_cache_manager.block_pool.free_block_queue
        # vLLM's queue is a deque whose len() goes through two Python calls.
        count = deque.__len__ if isinstance(scheduler.waiting, deque) else len
        countdown = 0  # steps until the CPU clock is read again; 1 times the probe itself
        idle = True

        def watched_schedule(*args: Any, **kwargs: Any) -> Any:
            cpu = None if countdown else thread_time()
            start = now()
            output = schedule(*args, **kwargs) if kwargs else schedule(*args)
            begun = now() if countdown == 1 else 0
            try:
                if total := output.total_num_scheduled_tokens:
                    cached = output.scheduled_cached_reqs
                    contexts, preempted = cached.num_computed_tokens, output.preempted_req_ids
                    plain = (
                        total == len(contexts)
                        and not output.scheduled_new_reqs
                        and not cached.resumed_req_ids
                    )
                    pending.append(
                        (
                            output,
                            start,
                            cpu,
                            len(scheduler.running),
                            count(scheduler.waiting),
                            free.num_free_blocks,
                            len(output.finished_req_ids),
                            len(preempted) if preempted else 0,
                            contexts,
                            cached.num_output_tokens,
                            None if plain else self._work(output),
                        )
                    )
                    if begun:
                        costs.append(now() - begun)
            except Exception as error:
                self._give_up(error)
            return output

        def watched_update(scheduled: Any, computed: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal countdown, idle
            kept = None
            # Before the update, which cuts what a request that ends in this step got too much.
            try:
                drafts = scheduled.scheduled_spec_decode_tokens
                kept = _kept(drafts, computed) if drafts else None
            except Exception as error:
                self._give_up(error)
            result = (
                update(scheduled, computed, *args, **kwargs)
                if args or kwargs
                else update(scheduled, computed)
            )
            end = now()
            try:
                # A step that scheduled nothing is not pending; batches are taken in their order.
                if pending and pending[0][0] is scheduled:
                    # One by one: to join two tuples with `*` takes thrice as long.
                    (
                        _,
                        start,
                        cpu,
                        running,
                        waiting,
                        blocks,
                        ended,
                        preempted,
                        contexts,
                        put_out,
                        work,
                    ) = pending.popleft()
                    if len(ring) < RING_CAPACITY:
                        ring.append(
                            (
                                start,
                                running,
                                waiting,
                                blocks,
                                ended,
                                preempted,
                                contexts,
                                put_out,
                                work,
                                self._forgotten + len(ends),
                                end,
                                None if cpu is None else thread_time() - cpu,
                                idle,
                                len(scheduler.finished_req_ids),
                                kept,
                                None if timer is None else timer.last_ns,
                                self.profiled,
                            )
                        )
                    else:
                        self.dropped += 1
                    ends.append(end)
                    idle = not (scheduler.running or scheduler.waiting)
                    if countdown == 1:
                        self._forget_ends()
                        if costs:
                            costs[-1] += now() - end
                    countdown = countdown - 1 if countdown else CPU_EVERY - 1
            except Exception as error:
                self._give_up(error)
            return result

        return watched_schedule, watched_update

    def _work(self, output: Any) -> Work:
        """Keep what a step computes that is not one token for each of its running requests."""
        new, cached = output.scheduled_new_reqs, output.scheduled_cached_reqs
        tokens, step = output.num_scheduled_tokens, self.step + len(self._pending)
        for request in new:
            self.first_step[request.req_id] = step
        return (
            tokens,
            cached.req_ids,
            cached.resumed_req_ids,
            [(request.num_computed_tokens, tokens[request.req_id]) for request in new],
        )

    def _forget_ends(self) -> None:
        if len(self._ends) > ENDS_KEPT:
            self._forgotten += ENDS_KEPT // 2
            del self._ends[: ENDS_KEPT // 2]  # in place: the watched methods hold the array

    def _give_up(self, error: Exception) -> None:
        self.failure = f"{type(error).__name__}: {error}"
        log.warning("the step probe switched itself off (%s); steps are missing", self.failure)
        self.remove()

    def drain(self) -> pl.DataFrame:
        """Take the steps seen since the last call, as columns of the `steps` table."""
        ring = self._ring
        return self._rows.frame([ring.popleft() for _ in range(len(ring))])


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


def unix_offset_ns(clock: Callable[[], int] = time.monotonic_ns) -> int:
    """Return what must be added to the monotonic clock to give unix time, in nanoseconds."""
    before = clock()
    unix = time.time_ns()
    return unix - (before + clock()) // 2
