"""What a request of a problem has led to: everything after the problem's prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from profiler.engines.protocol import THINK_END, Continuation, SampleResult, find_tokens


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A prompt and what was generated for it, through all requests that went on from each other.

    `prompt` and `tokens` are ids, None where the engine does not tell them. `spent` counts the
    tokens generated, those that were cut again included. `opened` says that the text begins inside
    a thought (`SampleResult`).
    """

    prompt: tuple[int, ...] | None = None
    tokens: tuple[int, ...] | None = None
    text: str = ""
    spent: int = 0
    answer: str | None = None
    opened: bool = False

    @property
    def thought_ended(self) -> bool:
        """Whether its thought is closed."""
        return THINK_END in self.text

    @property
    def thought(self) -> str:
        """The text of its thought."""
        return self.text.partition(THINK_END)[0]

    @property
    def thought_tokens(self) -> int:
        """Tokens of a thought that is open."""
        return self.spent if self.tokens is None else len(self.tokens)

    def reopened(self, think_end_ids: Sequence[int] | None) -> Chain:
        """Return it cut where the thought ends."""
        tokens = self.tokens
        place = None if tokens is None else find_tokens(tokens, think_end_ids)
        if tokens is not None and place is not None:
            tokens = tokens[:place]
        elif self.thought_ended:
            tokens = None  # the end is in the text alone
        return replace(self, tokens=tokens, text=self.thought, answer=None)

    def continuation(self, append: str) -> Continuation:
        """Return what a request that goes on from it sends."""
        known = self.prompt is not None and self.tokens is not None
        ids = (*self.prompt, *self.tokens) if known else None  # type: ignore[misc]
        return Continuation(token_ids=ids, text=self.text, append=append)

    def after(self, result: SampleResult, append: str, answer: str | None) -> Chain:
        """Return it with a request that went on from it."""
        ids, made = result.prompt_token_ids, result.token_ids
        prompt = self.prompt if self.prompt is not None else ids
        tokens = None
        if ids is not None and made is not None and prompt is not None:
            tokens = (*ids[len(prompt) :], *made)
        return Chain(
            prompt=prompt,
            tokens=tokens,
            text=self.text + append + result.text,
            spent=self.spent + (result.output_tokens or 0),
            answer=answer,
            opened=self.opened or result.opened,
        )
