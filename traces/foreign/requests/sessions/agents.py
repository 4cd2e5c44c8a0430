"""Sessions of coding agents, as kv-cache-tester keeps them: one document a session.

    {"id": "trace_0012", "block_size": 64, "hash_id_scope": "local", "requests": [
      {"t": 12.0, "in": 20225, "out": 227, "hash_ids": [1, 2], "api_time": 5.6, "model": "..."},
      {"t": 14.1, "type": "subagent", "requests": [...]}]}

`t` is in seconds since the session began, and `api_time` is what the answer took. In a sub-agent
kv-cache-tester counts `t` from its start, others from that of the session: a turn a second before
the start says which. `hash_ids` name the full blocks of the prompt, from its start. The rest of a
prompt, less than a block, has no name and is nobody else's. Unless the scope of the ids is global,
other sessions have the same ids for other text.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from traces.errors import OutcomesError
from traces.files import DOCUMENT_VALUES
from traces.foreign.requests.reader import (
    Request,
    RowReader,
    nanoseconds,
    token_count,
)
from traces.foreign.source import ArrayStream, decode, own_name
from traces.foreign.values import Field
from traces.recording.tables import MOST_TOKENS

_S: Final = 1_000_000_000
_BEGAN: Final = Field(lambda value: nanoseconds(value, _S), "no time in seconds")
_TOOK: Final = Field(lambda value: nanoseconds(value, _S), "no time")
_DEEPEST: Final = 16  # sub-agents of sub-agents
_LONGEST_ID: Final = 200
_ROUNDED: Final = _S  # by how much two clocks of one time may differ


class _Head(msgspec.Struct):
    """What stands before the requests."""

    id: Any = None
    block_size: Any = None
    hash_id_scope: Any = None


@dataclass
class _Turns:
    """Turns that follow each other, of the session or of a sub-agent; times in nanoseconds."""

    begun: int = 0  # where their `t` count from
    latest: int = 0


class AgentSession(RowReader):
    """Reads a session."""

    name = "coding-agent session"
    unit = "request"
    several = True
    marks = (b'"requests"', b'"block_size"', b'"hash_ids"', b'"in"', b'"out"')

    def requests(self) -> Iterator[Request]:
        return self.skipped.kept(self._rows(), self._request, "requests")

    def _rows(self) -> Iterator[tuple[int, tuple[_Turns, dict[str, Any]]]]:
        """Yield the requests of the session and of its sub-agents, numbered as they stand."""
        stream, place = ArrayStream(self._path, self._choices.limit_bytes, b"requests"), 0
        turns = _Turns()
        for raw in stream:
            if not place:
                self._read_head(bytes(stream.outside) + b"]}")
            try:
                entry = decode(raw or b"null", dict[str, Any], DOCUMENT_VALUES)
                entries = [*_leaves(entry, turns, 0)]
            except ValueError:
                entries = [(turns, {})]
            for each in entries:
                place += 1
                yield place, each
        if stream.cut is not None:
            self.facts.notes.append(f"the file is cut off ({stream.cut})")

    def _read_head(self, text: bytes) -> None:
        """Read how the ids are to be taken. Raises OutcomesError where that is not said."""
        try:
            head = decode(text, _Head)
        except ValueError as error:
            raise OutcomesError(f"{self._path}: not the JSON of a session ({error})") from None
        self.facts.block_tokens = token_count(head.block_size)
        if self.facts.block_tokens is None:
            raise OutcomesError(f"{self._path}: block_size is no number of tokens")
        named = isinstance(head.id, str) and 0 < len(head.id) <= _LONGEST_ID
        self.facts.session = head.id if named else own_name(self._path)
        self.facts.own_names = head.hash_id_scope != "global"
        self._names: defaultdict[int, int] = defaultdict(self._unshared.__next__)

    def _request(self, place: int, entry: tuple[_Turns, dict[str, Any]]) -> Request:
        """Return a request. Raises ValueError with why it is none."""
        turns, row = entry
        prompt, output = token_count(row.get("in")), token_count(row.get("out"))
        if prompt is None or output is None:
            raise ValueError(f"without in and out from 1 to {MOST_TOKENS:,}")
        arrival = turns.begun + _BEGAN.sound(row, "t")
        if arrival < turns.latest:
            raise ValueError("whose t is before that of the turn above")
        turns.latest = arrival
        took = _TOOK.optional(row, "api_time", self.skipped, place)
        _TOOK.optional(row, "think_time", self.skipped, place)
        blocks = self._full_blocks(row, "in", prompt, place)
        if blocks is not None and self.facts.own_names:
            blocks = [self._names[each] for each in blocks]
        model = row.get("model")
        if isinstance(model, str):
            self.facts.models[model] += 1
            self.facts.model = self.facts.model or model
        return Request(
            place,
            prompt,
            output,
            arrival,
            end=arrival + took if took else None,
            prompt_blocks=blocks,
            session=self.facts.session,
        )


def _leaves(
    entry: dict[str, Any], turns: _Turns, depth: int
) -> Iterator[tuple[_Turns, dict[str, Any]]]:
    """Yield a request, or those of a sub-agent. Raises ValueError where these nest too deep."""
    inner = entry.get("requests")
    if not isinstance(inner, list):
        yield turns, entry
    elif depth == _DEEPEST:
        raise ValueError("sub-agents within sub-agents")
    else:
        rows = [each if isinstance(each, dict) else {} for each in inner]
        begun = turns.begun + (nanoseconds(entry.get("t"), _S) or 0)
        times = [nanoseconds(row.get("t"), _S) for row in rows]
        first = min((time for time in times if time is not None), default=begun)
        own = _Turns(begun if first < begun - _ROUNDED else 0)
        for row in rows:
            yield from _leaves(row, own, depth + 1)
