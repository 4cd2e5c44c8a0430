"""What one streamed completion of an OpenAI-compatible server has brought so far."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from profiler.engines.confidence import finite, lowest_group, token_confidences
from profiler.engines.protocol import THINK_END, SampleResult, find_tokens


@dataclass
class Stream:
    """Takes the events of one response; `result` says what they amount to.

    `top` and `window` are the log-probabilities and the confidence that were asked for.
    """

    top: int | None = None
    window: int | None = None
    text: list[str] = field(default_factory=list)
    chunks: int = 0
    first_token: int | None = None
    think_end: int | None = None
    think_tokens: int | None = None
    in_reasoning: bool = False
    usage: dict[str, Any] = field(default_factory=dict)
    finish_reason: str | None = None
    stopped: bool = False
    prompt_token_ids: tuple[int, ...] | None = None
    token_ids: list[int] | None = None
    logprobs: list[float] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)

    def take(self, event: Mapping[str, Any], now: int) -> None:
        """Add one event, received at `now` (unix nanoseconds)."""
        before = self.usage.get("completion_tokens") or 0
        if event.get("usage"):
            self.usage = event["usage"]
        self._take_prompt_ids(event)
        for choice in event.get("choices") or ():
            delta = choice.get("delta") or {}
            reasoning = delta.get("reasoning_content") or delta.get("reasoning") or ""
            content = choice.get("text") or delta.get("content") or ""
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            self.stopped = self.stopped or isinstance(choice.get("stop_reason"), str)
            self._take_prompt_ids(choice)
            if choice.get("token_ids") is not None:
                self.token_ids = [*(self.token_ids or ()), *choice["token_ids"]]
            if self.top is not None:
                self._take_logprobs(choice.get("logprobs") or {})
            if not reasoning and not content:
                continue
            self.chunks += 1
            self.first_token = self.first_token or now
            if reasoning:
                self.in_reasoning = True
            elif self.in_reasoning:  # the server's reasoning parser took the marks out
                self.in_reasoning = False
                self.text.append(THINK_END)
            self.text.append(reasoning + content)
            if self.think_end is None and THINK_END in "".join(self.text[-8:]):
                self.think_end = now
                # exact where the mark came alone; a chunk may carry more tokens than one
                after = self.usage.get("completion_tokens")
                self.think_tokens = before if after == before + 1 else None

    def _take_prompt_ids(self, part: Mapping[str, Any]) -> None:
        if part.get("prompt_token_ids") is not None:
            self.prompt_token_ids = tuple(part["prompt_token_ids"])

    def _take_logprobs(self, told: Mapping[str, Any]) -> None:
        for own, others in _places(told):
            self.logprobs.append(own)
            if self.window is not None:
                self.confidences += token_confidences([others], self.top or 0)

    def result(
        self, request_id: str, think_end_ids: Sequence[int] | None, error: str | None
    ) -> SampleResult:
        """Return the sample as it is now."""
        details = self.usage.get("prompt_tokens_details") or {}
        think = self.think_tokens
        if self.token_ids is not None and think_end_ids:
            think = find_tokens(self.token_ids, think_end_ids)
        mean = sum(self.logprobs) / len(self.logprobs) if self.logprobs else None
        lowest = None if self.window is None else lowest_group(self.confidences, self.window)
        return SampleResult(
            request_id=request_id,
            text="".join(self.text),
            finish_reason=self.finish_reason,
            end=time.time_ns(),
            prompt_tokens=self.usage.get("prompt_tokens"),
            cached_tokens=details.get("cached_tokens"),
            output_tokens=self.usage.get("completion_tokens"),
            think_tokens=think,
            first_token=self.first_token,
            think_end=self.think_end,
            logprob_mean=finite(mean),
            confidence_min_window=finite(lowest),
            stopped=self.stopped,
            prompt_token_ids=self.prompt_token_ids,
            token_ids=None if self.token_ids is None else tuple(self.token_ids),
            error=error,
        )


def _places(told: Mapping[str, Any]) -> Iterator[tuple[float, Sequence[float]]]:
    """Return each token's log-probability and those of the most probable ones at its place.

    Chat answers have a list of tokens under `content`, completions parallel lists.
    """
    for token in told.get("content") or ():
        yield token["logprob"], [other["logprob"] for other in token.get("top_logprobs") or ()]
    own = told.get("token_logprobs") or ()
    tops = told.get("top_logprobs") or [None] * len(own)
    for logprob, top in zip(own, tops, strict=False):
        if logprob is not None:
            yield logprob, list((top or {}).values())
