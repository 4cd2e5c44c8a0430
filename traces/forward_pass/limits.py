"""The limits of an engine that does not tell them, as its forward passes run into them."""

from __future__ import annotations

from dataclasses import dataclass

FEWEST = 10  # steps at a limit
CAPPED = 0.8  # of the steps with a queue, that hold as many requests as any


@dataclass
class SeenLimits:
    """How many requests and tokens the steps of a rank hold at most while others wait."""

    _requests: int = 0
    _queued: int = 0
    _at_most: int = 0
    _tokens: int = 0
    _filled: int = 0

    def take(self, requests: int, tokens: int, waiting: int) -> None:
        """Take a step that decodes: its requests and tokens, and how many requests wait."""
        if requests > self._requests:
            self._requests, self._at_most = requests, 0
        if tokens > self._tokens:
            self._tokens, self._filled = tokens, 0
        if waiting:
            self._queued += 1
            self._at_most += requests == self._requests
            self._filled += tokens == self._tokens and requests < self._requests

    @property
    def max_num_seqs(self) -> int | None:
        """The most requests of a step, where nearly all steps with a queue hold so many."""
        often = self._at_most >= max(FEWEST, CAPPED * self._queued)
        return self._requests if often and self._requests > 1 else None

    @property
    def max_num_batched_tokens(self) -> int | None:
        """The most tokens of a step, where others with room for requests had as many."""
        return self._tokens if self._filled >= FEWEST else None
