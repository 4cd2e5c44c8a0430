"""The per-step probe of an engine in this process.

It wraps the scheduler's `schedule` and `update_from_output`, keeps a reference to what they
passed each other, and appends one tuple per step to a bounded ring; sums over requests are made
by the writer thread when it drains the ring. When something in the probe raises, it switches
itself off and says so: the engine goes on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

log = logging.getLogger("ttscope.steps")

RING_CAPACITY = 100_000
Row = dict[str, Any]


@dataclass
class StepProbe:
    """Watches one vLLM scheduler; `drain` gives rows of the `steps` table.

    `step` numbers the steps since `reset`; `ends[i]` is the end of step i in unix nanoseconds and
    `first_step[request]` the step in which a request (vLLM's internal id) was first scheduled.
    """

    scheduler: Any
    engine_key: str
    unix_offset_ns: int
    step: int = 0
    ends: list[int] = field(default_factory=list)
    first_step: dict[str, int] = field(default_factory=dict)
    dropped: int = 0
    failure: str | None = None
    _ring: list[tuple[Any, ...]] = field(default_factory=list)
    _starts: dict[int, tuple[int, int, int, int, int]] = field(default_factory=dict)
    _busy_since: int | None = None
    _last_finished: int = 0
    _cost_ns: list[int] = field(default_factory=list)

    def install(self) -> None:
        """Wrap the scheduler of this one engine; `remove` undoes it."""
        self._schedule = self.scheduler.schedule
        self._update = self.scheduler.update_from_output
        self.scheduler.schedule = self._on_schedule
        self.scheduler.update_from_output = self._on_update

    def remove(self) -> None:
        """Give the scheduler its own methods back."""
        self.scheduler.schedule = self._schedule
        self.scheduler.update_from_output = self._update

    def reset(self, engine_key: str) -> None:
        """Number the steps from 0 again, for a new recording; call while the engine is idle."""
        self.engine_key = engine_key
        self.step, self.dropped = 0, 0
        self._last_finished = len(self.scheduler.finished_req_ids)
        self._busy_since = None
        for store in (self.ends, self.first_step, self._ring, self._starts, self._cost_ns):
            store.clear()

    @property
    def cost_us(self) -> float | None:
        """Median time that the probe itself took per step, in microseconds."""
        costs = sorted(self._cost_ns)
        return costs[len(costs) // 2] / 1000 if costs else None

    def _on_schedule(self, *args: Any, **kwargs: Any) -> Any:
        start, cpu = time.monotonic_ns(), time.thread_time_ns()
        output = self._schedule(*args, **kwargs)
        begun = time.monotonic_ns()
        try:
            if output.total_num_scheduled_tokens:
                for request in output.scheduled_new_reqs:
                    self.first_step[request.req_id] = self.step + len(self._starts)
                scheduler = self.scheduler
                pool = scheduler.kv_cache_manager.block_pool
                blocks = pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()
                counts = (len(scheduler.running), len(scheduler.waiting), blocks)
                self._starts[id(output)] = (start, cpu, *counts)
                self._cost_ns.append(time.monotonic_ns() - begun)
        except Exception as error:
            self._give_up(error)
        return output

    def _on_update(self, scheduled: Any, computed: Any, *args: Any, **kwargs: Any) -> Any:
        result = self._update(scheduled, computed, *args, **kwargs)
        end = time.monotonic_ns()
        try:
            begun = self._starts.pop(id(scheduled), None)
            if begun is not None:
                self._record(begun, end, scheduled, computed)
                if self._cost_ns and len(self._cost_ns) < RING_CAPACITY:
                    self._cost_ns[-1] += time.monotonic_ns() - end
        except Exception as error:
            self._give_up(error)
        return result

    def _record(self, begun: tuple[int, ...], end: int, scheduled: Any, computed: Any) -> None:
        finished = len(self.scheduler.finished_req_ids)
        self.ends.append(end + self.unix_offset_ns)
        if len(self._ring) < RING_CAPACITY:
            cpu = time.thread_time_ns() - begun[1]
            accepted = computed.sampled_token_ids if scheduled.scheduled_spec_decode_tokens else ()
            order = computed.req_id_to_index if accepted else None
            self._ring.append(
                (self.step, begun, end, cpu, self._busy_since, finished, scheduled, accepted, order)
            )
        else:
            self.dropped += 1
        self.step += 1
        busy = self.scheduler.running or self.scheduler.waiting
        self._busy_since = end if busy else None

    def _give_up(self, error: Exception) -> None:
        self.failure = f"{type(error).__name__}: {error}"
        log.warning("the step probe switched itself off (%s); steps are missing", self.failure)
        self.remove()

    def drain(self) -> list[Row]:
        """Take the steps seen since the last call, as rows."""
        ring, count = self._ring, len(self._ring)
        taken = ring[:count]
        del ring[:count]
        return [self._row(*entry) for entry in taken]

    def _row(
        self,
        step: int,
        begun: tuple[int, ...],
        end: int,
        cpu: int,
        busy_since: int | None,
        finished: int,
        scheduled: Any,
        sampled: Any,
        order: Any,
    ) -> Row:
        start, _, running, waiting, blocks = begun
        aborted = len(scheduled.finished_req_ids) - self._last_finished
        self._last_finished = finished
        return {
            "engine": self.engine_key,
            "step": step,
            "end": end + self.unix_offset_ns,
            "interval_ns": None if busy_since is None else end - busy_since,
            "wall_ns": end - start,
            "cpu_ns": cpu,
            "gap_ns": None if busy_since is None else start - busy_since,
            "running": running,
            "waiting": waiting,
            "kv_blocks": blocks,
            "finished": finished,
            "aborted": max(aborted, 0),
            "preempted": len(scheduled.preempted_req_ids or ()),
            "source": "measured",
            **composition(scheduled),
            **speculation(scheduled.scheduled_spec_decode_tokens, sampled, order),
        }


def composition(scheduled: Any) -> Row:
    """Return what a step computes, summed over the requests of a vLLM SchedulerOutput."""
    tokens: dict[str, int] = scheduled.num_scheduled_tokens
    prefills = [(r.num_computed_tokens, tokens[r.req_id]) for r in scheduled.scheduled_new_reqs]
    cached = sum(context for context, _ in prefills)
    decode_requests = decode_tokens = decode_kv = longest = 0
    old = scheduled.scheduled_cached_reqs
    for name, context, produced in zip(
        old.req_ids, old.num_computed_tokens, old.num_output_tokens, strict=True
    ):
        count = tokens[name]
        if produced == 0 or name in old.resumed_req_ids:
            prefills.append((context, count))
            continue
        decode_requests += 1
        decode_tokens += count
        decode_kv += context + count
        longest = max(longest, context + count)
    return {
        "prefill_requests": len(prefills),
        "prefill_tokens": sum(count for _, count in prefills),
        "decode_requests": decode_requests,
        "decode_tokens": decode_tokens,
        "prefill_kv_tokens": sum(context + count for context, count in prefills),
        "decode_kv_tokens": decode_kv,
        "prefill_query_context": sum(
            count * context + count * (count + 1) // 2 for context, count in prefills
        ),
        "max_context_tokens": max([longest, *(context + count for context, count in prefills)]),
        "cached_prompt_tokens": cached,
    }


def speculation(drafts: dict[str, list[int]], sampled: Any, order: dict[str, int] | None) -> Row:
    """Return tokens drafted and accepted per position of one step, null when none was drafted."""
    if not drafts or not order:
        return {"drafted": None, "accepted": None}
    width = max(map(len, drafts.values()))
    drafted, accepted = [0] * width, [0] * width
    for name, draft in drafts.items():
        kept = len(sampled[order[name]]) - 1
        for position in range(len(draft)):
            drafted[position] += 1
            accepted[position] += position < kept
    return {"drafted": drafted, "accepted": accepted}


def unix_offset_ns(clock: Callable[[], int] = time.monotonic_ns) -> int:
    """Return what must be added to the monotonic clock to give unix time, in nanoseconds."""
    before = clock()
    unix = time.time_ns()
    return unix - (before + clock()) // 2
