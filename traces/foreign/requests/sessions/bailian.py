"""Traces of Qwen on Alibaba's Bailian: a line of JSON per request, a turn of a chat.

    {"chat_id": 159, "parent_chat_id": 55, "timestamp": 61.114, "input_length": 521,
     "output_length": 132, "type": "text", "turn": 2, "hash_ids": [1089, 1090, 13148]}

`timestamp` is in seconds from the start of the trace. Each request has its own `chat_id`, and that
of the turn before it as its parent, -1 for none. `hash_ids` name blocks of 16 tokens (Wang et al.,
"KVCache Cache in the Wild", USENIX ATC 2025).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from traces.errors import OutcomesError
from traces.foreign.requests.reader import Request, RowReader, nanoseconds, tokens
from traces.foreign.values import Field, needed, whole_number

_S: Final = 1_000_000_000
_BLOCK_TOKENS: Final = 16
_NO_PARENT: Final = -1
_MOST_CHATS: Final = 10_000_000  # whose parents are held
_NEEDED: Final = {
    "timestamp": Field(lambda value: nanoseconds(value, _S), "no time in seconds"),
    "input_length": tokens,
    "output_length": tokens,
}


class _Link(msgspec.Struct):
    chat_id: Any = None
    parent_chat_id: Any = None


class BailianTrace(RowReader):
    """Reads a trace."""

    name = "Bailian trace"
    measured = False
    marks = (b'"chat_id"', b'"parent_chat_id"', b'"input_length"', b'"output_length"')

    def requests(self) -> Iterator[Request]:
        self.facts.block_tokens = _BLOCK_TOKENS
        self._parents, self._again = self._links()
        self._roots, self._circles = roots(self._parents)
        return self.skipped.kept(self._lines(), self._request, "lines")

    def _links(self) -> tuple[dict[int, int], set[int]]:
        """Return the parent of each chat, and the lines whose chat an earlier line has.

        Raises OutcomesError for more than 10 million.
        """
        parents: dict[int, int] = {}
        again = set()
        for number, link in self._ahead(_Link):
            chat, parent = whole_number(link.chat_id), whole_number(link.parent_chat_id)
            if chat in parents:
                again.add(number)
            elif chat is not None:
                parents[chat] = _NO_PARENT if parent is None else parent
            if len(parents) > _MOST_CHATS:
                raise OutcomesError(
                    f"{self._path}: more than {_MOST_CHATS:,} chats. Import a part of the file"
                )
        return parents, again

    def _request(self, number: int, row: dict[str, Any]) -> Request:
        """Return a line's request. Raises ValueError with why it is none."""
        arrival, prompt, output = needed(row, _NEEDED)
        blocks = self._full_blocks(row, "input_length", prompt, number)
        session = self._session(number, row)
        return Request(number, prompt, output, arrival, prompt_blocks=blocks, session=session)

    def _session(self, number: int, row: dict[str, Any]) -> str:
        """Return the first chat of a line's chain, else a session of the line alone."""
        chat, parent = whole_number(row.get("chat_id")), row.get("parent_chat_id")
        if chat is None or number in self._again:
            why = "are no whole number" if chat is None else "an earlier line has"
            self.skipped.add(f"values of chat_id that {why}", number)
            return f"line {number}"
        if chat in self._circles:
            self.skipped.add("values of parent_chat_id that lead back to their chat", number)
        elif parent not in (None, _NO_PARENT) and whole_number(parent) not in self._parents:
            self.skipped.add("values of parent_chat_id that are no chat of the file", number)
        return str(self._roots[chat])


def roots(parents: Mapping[int, int]) -> tuple[dict[int, int], set[int]]:
    """Return the first of each chain of parents, and those that are their own ancestors.

    One of these, and one whose parent is not there, is the first of its chain.
    """
    first: dict[int, int] = {}
    circles: set[int] = set()
    for chat in parents:
        path: dict[int, None] = {}
        at = chat
        while at in parents and at not in first and at not in path:
            path[at] = None
            at = parents[at]
        if at in path:
            chain = [*path]
            circle = chain[chain.index(at) :]
            circles.update(circle)
            first.update(zip(circle, circle, strict=True))
        elif at not in first:
            at = next(reversed(path))
            first[at] = at
        for each in path:
            first.setdefault(each, first[at])
    return first, circles
