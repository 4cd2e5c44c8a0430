"""Spans of requests become problems and samples: which requests belong to one question.

Children of one request have the same request id; the N requests of one question have the same
parent span. A client's own span of a request, between that parent and the engine's span, is the
request seen from outside: it is no sample of its own where the engine's span is there. It may name
the conversation, a session that the question is a turn of. Requests with one parent and different
prompts are the rounds of a problem. Spans come in any order, a few
seconds apart, so a group is written when nothing has been added to it for a while.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from traces.live.otlp import GenSpan

SETTLE_S = 8.0  # exporters send every 5 s
MOST_GROUPS = 20_000  # that are open or remembered
MOST_HELD = 40_000  # spans of them; the oldest groups are given up first
MOST_CLIENTS = 20_000  # client spans, requests and parents that are remembered
MOST_KNOWN = 50_000  # spans that are known if an exporter sends them again
CONVERSATION = "gen_ai.conversation.id"  # OpenTelemetry's name of a session
MOST_CHILDREN = 4_096  # of one parent; a parent of more is no question
Row = dict[str, Any]


@dataclass
class Group:
    """Requests of one question. `written` counts those whose rows are out."""

    key: str
    parent: str
    session: str | None = None
    spans: list[GenSpan] = field(default_factory=list)
    written: int = 0
    touched: float = 0.0


class SpanGroups:
    """Takes spans, gives rows of `problems` and `samples`.

    `engine_of` gives an engine's key for what a span's process says of itself. `dropped` counts
    spans of parents with more than `MOST_CHILDREN` requests. Problems that ended at `since`, unix
    ns, or before are not written; `before` counts their spans.
    """

    def __init__(
        self,
        engine_of: Callable[[GenSpan], str],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine_of, self._clock = engine_of, clock
        self._groups: OrderedDict[str, Group] = OrderedDict()
        self._by_request: OrderedDict[tuple[Any, ...], str] = OrderedDict()
        self._clients: OrderedDict[str, GenSpan] = OrderedDict()  # by span id
        self._served: OrderedDict[str, None] = OrderedDict()  # parents of engine spans
        self._known: OrderedDict[str, None] = OrderedDict()
        self.taken = self.dropped = 0
        self.since: int | None = None
        self._forgotten = 0  # spans from before `since` that were given up for want of room

    def add(self, span: GenSpan) -> None:
        """Take one span, once: an exporter whose answer came too late sends it again."""
        key = _key(span.trace_id, span.span_id)
        if key in self._known:
            return
        _put(self._known, key, None, MOST_KNOWN)
        self.taken += 1
        if not span.from_engine:
            _put(self._clients, span.span_id, span, MOST_CLIENTS)
            early = self._groups.pop(key, None)
            if early is not None and early.written == 0:  # engine spans came before
                for child in early.spans:
                    self._place(child)
                return
            if early is not None:
                self._groups[early.key] = early
            if span.span_id in self._served:
                return
        else:
            _put(self._served, span.parent_id, None, MOST_CLIENTS)
        self._place(span)

    def _place(self, span: GenSpan) -> None:
        parent = span.parent_id
        client = self._clients.get(parent) if span.from_engine else None
        if client is not None:
            self._forget(client)
            parent = client.parent_id or client.span_id
        request = span.values.get("gen_ai.request.id")
        request_key = (span.resource, request) if request and span.from_engine else None
        key = _key(span.trace_id, parent) if parent else None
        if key is None and request_key is not None:
            key = self._by_request.get(request_key)
        if key is None:
            key = _key(span.trace_id, span.span_id)
        if request_key is not None:
            _put(self._by_request, request_key, key, MOST_CLIENTS)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(key, parent or span.span_id)
        if len(group.spans) >= MOST_CHILDREN:
            self.dropped += 1
            return
        told = (each.values.get(CONVERSATION) for each in (span, client) if each is not None)
        group.session = next(filter(None, map(_session, told)), group.session)
        group.spans.append(span)
        group.touched = self._clock()
        self._groups.move_to_end(key)

    def _forget(self, client: GenSpan) -> None:
        """Take a client's span out of its group: the engine's stands for it."""
        group = self._groups.get(_key(client.trace_id, client.parent_id or client.span_id))
        if group is not None and group.written == 0 and client in group.spans:
            group.spans.remove(client)
            if not group.spans:
                del self._groups[group.key]

    def drain(self, *, everything: bool = False) -> tuple[list[Row], list[Row]]:
        """Return rows of problems and samples of the groups that have settled."""
        problems: list[Row] = []
        samples: list[Row] = []
        settled = self._clock() - SETTLE_S
        surplus = len(self._groups) - MOST_GROUPS
        held = sum(len(group.spans) for group in self._groups.values())
        for index, group in enumerate(list(self._groups.values())):
            old = index < surplus or held > MOST_HELD
            if not (everything or old or group.touched <= settled):
                break  # the others were touched later
            before = self._is_before(group)
            if len(group.spans) > group.written and not before:
                self._write(group, problems, samples)
            if old:
                held -= len(group.spans)
                self._forgotten += len(group.spans) if before else 0
                del self._groups[group.key]
        return problems, samples

    @property
    def before(self) -> int:
        """How many spans are of problems that ended before `since`."""
        waiting = (group for group in self._groups.values() if self._is_before(group))
        return self._forgotten + sum(len(group.spans) for group in waiting)

    def _is_before(self, group: Group) -> bool:
        """Whether all of a problem that is known ended before; a later span takes it in whole."""
        if self.since is None or group.written:
            return False
        return max(_end(span) for span in group.spans) <= self.since

    def _write(self, group: Group, problems: list[Row], samples: list[Row]) -> None:
        new = sorted(group.spans[group.written :], key=lambda span: span.start)
        group.spans[group.written :] = new
        prompts: dict[Any, int] = {}
        for span in group.spans:
            prompts.setdefault(_number(span, "prompt", "input"), len(prompts))
        rows = []
        for index, span in enumerate(new, group.written):
            row = sample_row(span)
            row |= {
                "problem_id": group.key,
                "sample_index": index,
                "engine": self._engine_of(span),
                "policy": "",
                "role": "sample",
                "round": prompts[_number(span, "prompt", "input")],
            }
            rows.append(row)
        samples += rows
        group.written = len(group.spans)
        first = group.spans[0]
        end = max(_end(span) for span in group.spans)
        failed = all(span.failed for span in group.spans)
        problems.append(
            {
                "problem_id": group.key,
                "engine": self._engine_of(first),
                "policy": "",
                "prompt_tokens": _number(first, "prompt", "input"),
                "arrival": min(span.start for span in group.spans),
                "end": end,
                "decided_at": None if failed else end,
                "session": group.session,
                "trace_id": first.trace_id,
                "span_id": group.parent,
                "error": "error" if failed else None,
            }
        )


def sample_row(span: GenSpan) -> Row:
    """Return what one span tells of its request, as columns of `samples`.

    vLLM's span tells durations: the first token came at arrival + time_to_first_token, the
    request was scheduled time_in_model_prefill before it, and queued time_in_queue before that.
    What lies between arrival and queue is then all that the front end took, on either way.
    """
    values = span.values
    ttft = values.get("gen_ai.latency.time_to_first_token")
    prefill = values.get("gen_ai.latency.time_in_model_prefill")
    first = None if ttft is None else span.start + round(float(ttft) * 1e9)
    waited = values.get("gen_ai.latency.time_in_queue")
    scheduled = queued = None
    if first is not None and prefill is not None:
        scheduled = max(first - round(float(prefill) * 1e9), span.start)
        if waited is not None:
            queued = max(scheduled - round(float(waited) * 1e9), span.start)
    cached = values.get(
        "gen_ai.usage.cache_read.input_tokens", values.get("gen_ai.usage.cached_tokens")
    )
    request = values.get("gen_ai.request.id") or values.get("gen_ai.response.id")
    error = values.get("error.type")
    return {
        "request_id": request,
        "span_id": span.span_id,
        "prompt_tokens": _number(span, "prompt", "input"),
        "output_tokens": _number(span, "completion", "output"),
        "cached_tokens": None if cached is None else int(cached),
        "arrival": span.start,
        "queued": queued,
        "scheduled": scheduled,
        "first_token": first,
        "end": _end(span),
        "error": error or ("error" if span.failed else None),
    }


def _session(conversation: float | str | None) -> str | None:
    """Return a name for a conversation that tells nobody its id; None without one."""
    if not conversation:
        return None
    return hashlib.sha256(str(conversation).encode()).hexdigest()[:16]


def _end(span: GenSpan) -> int:
    took = span.values.get("gen_ai.latency.e2e")
    return span.end if took is None else span.start + round(float(took) * 1e9)


def _number(span: GenSpan, *names: str) -> int | None:
    for name in names:
        value = span.values.get(f"gen_ai.usage.{name}_tokens")
        if value is not None:
            return int(value)
    return None


def _key(trace_id: str, span_id: str) -> str:
    return f"{trace_id}.{span_id}"


def _put(store: OrderedDict[Any, Any], key: Any, value: Any, most: int) -> None:
    store[key] = value
    while len(store) > most:
        store.popitem(last=False)
