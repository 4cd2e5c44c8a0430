"""What the step probe saw, as columns of the `steps` table; runs on the writer's thread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from traces.tables import TABLES

# step; what `schedule` left: vLLM's SchedulerOutput, start, CPU clock, running, waiting, free
# blocks; end, idle before, CPU time, finished, tokens that each request got where some were
# drafted, draft time, whether profiled. Clocks are monotonic nanoseconds.
Begun = tuple[Any, int, int | None, int, int, int]
Sampled = dict[str, int] | None
RawStep = tuple[int, Begun, int, bool, int | None, int, Sampled, int | None, bool]

_COLUMNS = (
    "step",
    "end",
    "interval_ns",
    "wall_ns",
    "cpu_ns",
    "gap_ns",
    "running",
    "waiting",
    "kv_blocks",
    "finished",
    "aborted",
    "preempted",
    "drafted",
    "accepted",
    "draft_ns",
    "profiled",
)
_COMPOSITION = (
    "prefill_requests",
    "prefill_tokens",
    "decode_requests",
    "decode_tokens",
    "prefill_kv_tokens",
    "decode_kv_tokens",
    "prefill_query_context",
    "max_context_tokens",
    "cached_prompt_tokens",
)
Composition = tuple[int, int, int, int, int, int, int, int, int]


@dataclass
class StepRows:
    """Turns raw steps into rows, in their order.

    `usable_blocks` is the size of the KV cache in blocks; `left_over` how many requests had
    ended before the first step and are reported to it as finished.
    """

    engine_key: str
    unix_offset_ns: int
    usable_blocks: int
    left_over: int = 0
    _last_end: int = 0

    def frame(self, raw: list[RawStep]) -> pl.DataFrame:
        """Return a frame of the `steps` table, one row a step."""
        rows = [self._row(*entry) for entry in raw]
        names = (*_COLUMNS, *_COMPOSITION)
        values: dict[str, Any] = dict(zip(names, map(list, zip(*rows, strict=True)), strict=False))
        schema = {name: TABLES["steps"][name] for name in names}
        return pl.DataFrame(values or None, schema=schema).with_columns(
            engine=pl.lit(self.engine_key), source=pl.lit("measured")
        )

    def _row(
        self,
        step: int,
        begun: Begun,
        end: int,
        idle: bool,
        cpu: int | None,
        finished: int,
        sampled: Sampled,
        draft_ns: int | None,
        profiled: bool,
    ) -> tuple[Any, ...]:
        scheduled, start, _, running, waiting, free = begun
        busy_since, self._last_end = self._last_end, end
        # What ended since the last update ended without it: it was aborted.
        aborted, self.left_over = len(scheduled.finished_req_ids) - self.left_over, finished
        drafted, accepted = speculation(scheduled.scheduled_spec_decode_tokens, sampled)
        return (
            step,
            end + self.unix_offset_ns,
            None if idle else end - busy_since,
            end - start,
            cpu,
            None if idle else start - busy_since,
            running,
            waiting,
            self.usable_blocks - free,
            finished,
            max(aborted, 0),
            len(scheduled.preempted_req_ids or ()),
            drafted,
            accepted,
            draft_ns,
            profiled,
            *composition(scheduled),
        )


def composition(scheduled: Any) -> Composition:
    """Return what a step computes, summed over the requests of a vLLM SchedulerOutput.

    The order is prefill requests and tokens, decode requests and tokens, context read by
    prefills and by decodes, the sum over prefill tokens of the context each attends to, the
    longest context, and the prompt tokens found in the prefix cache.
    """
    tokens: dict[str, int] = scheduled.num_scheduled_tokens
    old = scheduled.scheduled_cached_reqs
    contexts: list[int] = old.num_computed_tokens
    count, total = len(contexts), scheduled.total_num_scheduled_tokens
    if (
        not scheduled.scheduled_new_reqs
        and count == total
        and not old.resumed_req_ids
        and 0 not in old.num_output_tokens
    ):  # every request decodes one token: nearly all steps, and sums run at C's speed
        return 0, 0, count, count, 0, sum(contexts) + count, 0, max(contexts) + 1, 0
    prefills = [(r.num_computed_tokens, tokens[r.req_id]) for r in scheduled.scheduled_new_reqs]
    cached = sum(context for context, _ in prefills)
    decode_requests = decode_tokens = decode_kv = longest = 0
    for name, context, produced in zip(old.req_ids, contexts, old.num_output_tokens, strict=True):
        scheduled_tokens = tokens[name]
        if produced == 0 or name in old.resumed_req_ids:
            prefills.append((context, scheduled_tokens))
            continue
        decode_requests += 1
        decode_tokens += scheduled_tokens
        decode_kv += context + scheduled_tokens
        longest = max(longest, context + scheduled_tokens)
    return (
        len(prefills),
        sum(count for _, count in prefills),
        decode_requests,
        decode_tokens,
        sum(context + count for context, count in prefills),
        decode_kv,
        sum(count * context + count * (count + 1) // 2 for context, count in prefills),
        max([longest, *(context + count for context, count in prefills)]),
        cached,
    )


def speculation(
    drafts: dict[str, list[int]], sampled: Sampled
) -> tuple[list[int] | None, list[int] | None]:
    """Return tokens drafted and accepted per position of one step, None when none was drafted.

    `sampled` has the tokens that each request got: those accepted and one more. vLLM pads the
    place of a draft that there is none of with ids of -1.
    """
    real = {name: draft for name, draft in drafts.items() if draft and draft[0] != -1}
    if not real or sampled is None:
        return None, None
    width = max(map(len, real.values()))
    drafted, accepted = [0] * width, [0] * width
    for name, draft in real.items():
        kept = sampled[name] - 1
        for position in range(len(draft)):
            drafted[position] += 1
            accepted[position] += position < kept
    return drafted, accepted
