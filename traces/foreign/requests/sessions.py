"""Sessions of coding agents, as kv-cache-tester keeps them: one document a session.

    {"id": "trace_0012", "block_size": 64, "requests": [
      {"t": 12.0, "in": 20225, "out": 227, "hash_ids": [1, 2], "api_time": 5.6, "model": "..."},
      {"t": 14.1, "type": "subagent", "requests": [...]}]}

`t` is in seconds since the session began, that of sub-agents too, and `api_time` is what the answer
took. `hash_ids` name the full blocks of the prompt, from its start. The rest of a prompt, less than
a block, has no name and is nobody else's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from traces.errors import OutcomesError
from traces.files import DOCUMENT_VALUES
from traces.foreign.requests.reader import (
    Request,
    RowReader,
    hashes,
    nanoseconds,
    token_count,
)
from traces.foreign.source import ArrayStream, decode, head_of, own_name
from traces.foreign.values import Field, finite
from traces.recording.tables import MOST_TOKENS

_S: Final = 1_000_000_000
_BLOCK: Final = re.compile(rb'"block_size"\s*:\s*(\d{1,7})\b')
_UNNAMED: Final = 1 << 61  # added to a request's place, the name of what has none
_HASHES: Final = hashes(0, _UNNAMED)
_BEGAN: Final = Field(lambda value: nanoseconds(value, _S), "no time in seconds")
_DEEPEST: Final = 16  # sub-agents of sub-agents


class AgentSession(RowReader):
    """Reads a session."""

    name = "coding-agent session"
    unit = "request"
    marks = (b'"requests"', b'"block_size"', b'"hash_ids"', b'"in"', b'"out"')

    def requests(self) -> Iterator[Request]:
        found = _BLOCK.search(head_of(self._path))
        size = token_count(int(found[1])) if found is not None else None
        if size is None:
            raise OutcomesError(f"{self._path}: block_size is no number of tokens")
        self.facts.block_tokens = size
        self._session = own_name(self._path)
        self._models: dict[str, int] = {}
        yield from self.skipped.kept(self._rows(), self._request, "requests")
        if len(self._models) > 1:
            told = ", ".join(f"{name} {count:,}" for name, count in self._models.items())
            self.facts.notes.append(
                f"requests of several models: {told}. They are taken for those of one"
            )

    def _rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the requests of the session and of its sub-agents, numbered as they stand."""
        stream, place = ArrayStream(self._path, self._choices.limit_bytes, b"requests"), 0
        for raw in stream:
            try:
                entries = [*_leaves(decode(raw or b"null", dict[str, Any], DOCUMENT_VALUES), 0)]
            except ValueError:
                entries = [{}]
            for entry in entries:
                place += 1
                yield place, entry
        if stream.cut is not None:
            self.facts.notes.append(f"the file is cut off ({stream.cut})")

    def _request(self, place: int, row: dict[str, Any]) -> Request:
        """Return a request. Raises ValueError with why it is none."""
        prompt, output = token_count(row.get("in")), token_count(row.get("out"))
        if prompt is None or output is None:
            raise ValueError(f"without in and out from 1 to {MOST_TOKENS:,}")
        arrival = _BEGAN.sound(row, "t")
        took, end = finite(row.get("api_time")), None
        if took is not None and took > 0:
            end = nanoseconds(arrival / _S + took, _S)
        elif row.get("api_time") not in (None, 0):
            self.skipped.add("values of api_time that are no time", place)
        blocks = self._blocks(row, prompt, place)
        model = row.get("model")
        if isinstance(model, str):
            self._models[model] = self._models.get(model, 0) + 1
            self.facts.model = self.facts.model or model
        return Request(
            place, prompt, output, arrival, end=end, prompt_blocks=blocks, session=self._session
        )

    def _blocks(self, row: dict[str, Any], prompt_tokens: int, place: int) -> list[int] | None:
        """Return the names of the prompt's blocks with one for its rest, None where not told."""
        size = self.facts.block_tokens or 1
        ids: list[int] | None = _HASHES.optional(row, "hash_ids", self.skipped, place)
        if ids is None:
            return None
        full, whole = prompt_tokens // size, -(-prompt_tokens // size)
        if len(ids) not in (full, whole):
            self.skipped.add(f"values of hash_ids that are not one per {size} tokens of in", place)
            return None
        return ids if len(ids) == whole else [*ids, _UNNAMED + place]


def _leaves(entry: dict[str, Any], depth: int) -> Iterator[dict[str, Any]]:
    """Yield a request, or those of a sub-agent. Raises ValueError where these nest too deep."""
    inner = entry.get("requests")
    if not isinstance(inner, list):
        yield entry
    elif depth == _DEEPEST:
        raise ValueError("sub-agents within sub-agents")
    else:
        for each in inner:
            yield from _leaves(each if isinstance(each, dict) else {}, depth + 1)
