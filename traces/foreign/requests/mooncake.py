"""Mooncake's traces: a line of JSON per request.

    {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, 48]}

`timestamp` is in milliseconds. `hash_ids` name the blocks of the prompt, each of 512 tokens but the
last; equal ids are equal prefixes (Qin et al., "Mooncake", FAST 2025).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from traces.foreign.requests.reader import Request, RowReader, hashes, nanoseconds, tokens
from traces.foreign.values import Field, needed

_MS = 1_000_000
_SECONDS = range(1_500_000_000, 2_500_000_000)  # since 1970, of the years 2017 to 2049
_NEEDED = {
    "timestamp": Field(lambda value: nanoseconds(value, _MS), "no time in milliseconds"),
    "input_length": tokens,
    "output_length": tokens,
}
_HASHES = hashes(-(1 << 63), 1 << 64)


class MooncakeTrace(RowReader):
    """Reads a trace."""

    name = "Mooncake trace"
    measured = False
    marks = (b'"input_length"', b'"output_length"')

    @classmethod
    def recognises(cls, head: bytes) -> bool:
        # Bailian's traces look alike, but their times are seconds and their blocks 16 tokens.
        return super().recognises(head) and b'"chat_id"' not in head

    def requests(self) -> Iterator[Request]:
        self.facts.block_tokens = self._choices.block_tokens
        seconds = 0
        for each in self.skipped.kept(self._lines(), self._request, "lines"):
            seconds += each.arrival // _MS in _SECONDS
            yield each
        if seconds > 1:
            self.facts.notes.append(
                f"timestamps that look like seconds since 1970: {seconds:,}. They are read as "
                "milliseconds, as Mooncake has them. If they are seconds, write them 1,000 times"
            )

    def _request(self, number: int, row: dict[str, Any]) -> Request:
        """Return a line's request. Raises ValueError with why it is none."""
        arrival, prompt, output = needed(row, _NEEDED)
        blocks = self._blocks(row, prompt, number)
        return Request(number, prompt, output, arrival, prompt_blocks=blocks)

    def _blocks(self, row: dict[str, Any], prompt_tokens: int, number: int) -> list[int] | None:
        """Return the names of the prompt's blocks, None where they are not told."""
        block = self._choices.block_tokens
        ids: list[int] | None = _HASHES.optional(row, "hash_ids", self.skipped, number)
        if not ids:
            return None
        if len(ids) != -(-prompt_tokens // block):
            self.skipped.add(
                f"values of hash_ids that are not one per {block} tokens of prompt "
                "(--block-tokens says how many)",
                number,
            )
            return None
        return [each - (1 << 64) if each >> 63 > 0 else each for each in ids]
