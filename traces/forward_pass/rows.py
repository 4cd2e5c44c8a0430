"""Records of one rank's forward passes, in their order, become rows of `steps`.

What a record does not say stays null: a step's own start, its drafts, KV blocks, aborts. Where
requests decode speculatively a record does not say how many tokens each had in the step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any

from traces.forward_pass.limits import SeenLimits
from traces.forward_pass.record import ForwardPass

Row = dict[str, Any]

FORMAT = "forward-pass metrics"  # as an import is called

EARLY = 0.25  # of a step's own time: a record that comes sooner behind the last one was waited for
SCOPES = {  # what `wall_time` covers, by the engine's `timing_scope`
    "execute_model_cuda": "the GPU's time in execute_model, without scheduling and sampling",
    "model_step_cuda": "the GPU's time in the model's step, without scheduling and output",
    None: "as the engine measured it: of SGLang its GPU's time in the forward pass, of vLLM under "
    "Dynamo from the schedule to the output",
}
PAIRS = 20  # neighbouring steps that tell whether an engine speculates
KEPT = 1.05  # tokens a request and step, above which it does


@dataclass
class ForwardPassRows:
    """Turns the records of one rank into rows; `engine` is its key.

    `decode_tokens` is null unless it is known that the engine does not speculate. `lost` counts the
    records between two that came, `again` those that came twice, `restarts` how often the counter
    began again, `idle` heartbeats.
    """

    engine: str
    speculates: bool | None = None
    steps: int = 0
    lost: int = 0
    again: int = 0
    restarts: int = 0
    idle: int = 0
    scopes: Counter[str | None] = field(default_factory=Counter)
    limits: SeenLimits = field(default_factory=SeenLimits)
    _counter: int | None = None
    _end: int | None = None  # of the step before, where this one follows it
    _held: Row | None = None  # its time is known when the next record has come
    _stopped: int | None = None  # requests that wait and decoded before

    def rows(self, record: ForwardPass, end: int | None) -> Iterator[Row]:
        """Yield the rows that are known now; `end` is when the record was written, unix ns."""
        follows = self._follows(record.counter_id)
        if follows is None:
            self.again += 1
            return
        if record.idle:
            self.idle += 1
            yield from self.flush()
            return
        row = self._row(record, end)
        interval = None
        if follows and self._held is not None and end is not None and self._end is not None:
            interval = end - self._end
        if interval is not None and interval < EARLY * (row["wall_ns"] or 0):
            # The record before came late: neither time between two records is a step's.
            interval = None
            if self._held is not None:
                self._held["interval_ns"] = None
        row["interval_ns"] = interval
        yield from self.flush()
        self._held, self._end = row, end

    def flush(self) -> Iterator[Row]:
        """Yield the last row, whose next record is not waited for."""
        if self._held is not None:
            yield self._held
        self._held = self._end = None

    def _follows(self, counter: int | None) -> bool | None:
        """Tell whether a record is the next one of its publisher, None for one that was there."""
        last, self._counter = self._counter, counter
        if counter is None or last is None:
            return False
        if counter == last:
            return None
        if counter < last:
            self.restarts += 1
            return False
        self.lost += counter - last - 1
        return counter == last + 1

    def _row(self, record: ForwardPass, end: int | None) -> Row:
        done, queued = record.scheduled_requests, record.queued_requests
        self.scopes[record.timing_scope] += 1
        new, cached = done.sum_prefill_tokens, done.sum_prefill_kv_tokens
        context = None if new else 0  # of several prefills their sums do not tell it
        if done.num_prefill_requests == 1:
            context = new * cached + new * (new + 1) // 2
        decodes = done.num_decode_requests
        waiting = queued.num_prefill_requests + queued.num_decode_requests
        if decodes:  # steps of prompts alone may keep others waiting (SGLang)
            self.limits.take(done.num_prefill_requests + decodes, new + decodes, waiting)
        stopped, self._stopped = self._stopped, queued.num_decode_requests
        number, self.steps = self.steps, self.steps + 1
        return {
            "engine": self.engine,
            "step": number,
            "end": end,
            "interval_ns": None,
            "wall_ns": round(record.wall_time * 1e9) or None,
            "prefill_requests": done.num_prefill_requests,
            "prefill_tokens": new,
            "decode_requests": decodes,
            "decode_tokens": decodes if self.speculates is False or not decodes else None,
            "waiting": waiting,
            "preempted": None if stopped is None else max(self._stopped - stopped, 0),
            "prefill_kv_tokens": cached + new,
            "decode_kv_tokens": done.sum_decode_kv_tokens,
            "prefill_query_context": context,
            "source": "measured",
        }


def tokens_kept(records: Sequence[ForwardPass]) -> float | None:
    """Return the tokens that a decoding request gains a step, None where too few steps tell.

    Of two neighbouring records of as many requests that only decode, the context grows by what
    each of them kept: 1 without speculation. Requests that come and go are outvoted (median).
    """
    grown = []
    for before, after in pairwise(records):
        one, other = before.scheduled_requests, after.scheduled_requests
        count = one.num_decode_requests
        neighbours = (
            before.counter_id is not None
            and after.counter_id == before.counter_id + 1
            and (before.worker_id, before.dp_rank) == (after.worker_id, after.dp_rank)
        )
        prefills = one.num_prefill_requests or other.num_prefill_requests
        if neighbours and count and count == other.num_decode_requests and not prefills:
            grown.append((other.sum_decode_kv_tokens - one.sum_decode_kv_tokens) / count)
    return median(grown) if len(grown) >= PAIRS else None
