"""What one streamed completion of an OpenAI-compatible server has brought so far."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from profiler.engines.confidence import finite, lowest_group, token_confidences
from profiler.engines.interface import (
    THINK_END,
    THINK_START,
    SampleResult,
    find_tokens,
    leaves_open,
)
from profiler.engines.server.served import count
from traces.clock import now_ns
from traces.recording.tables import MOST_TOKENS

MOST_TEXT = 16 << 20  # characters of one answer
MOST_KEPT = 4 << 20  # token ids and log-probabilities of one answer
_LONGEST_REASON = 64  # characters


class BadAnswer(Exception):
    """What a server answered is no answer; says why, and repeats nothing of it.

    `said` is an error that it sent for one, for who asked alone.
    """

    def __init__(self, why: str, said: bytes = b"") -> None:
        super().__init__(why)
        self.said = said


def whole_characters(text: str) -> str:
    """Return a text whose halves of characters are joined, or replaced where they are alone.

    JSON may hold halves, and a server may cut between them. UTF-8 cannot.
    """
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@dataclass
class Stream:
    """Takes the events of one response; `result` says what they amount to.

    A server's reasoning parser takes the marks of a thought out and sends thought and answer in
    fields of their own, often both in one delta. The marks are put back here, so that a text reads
    the same wherever it was parsed.

    `top` and `window` are the log-probabilities and the confidence that were asked for.
    `think_start_ids` and `think_end_ids` are the marks' tokens, None where they are not known;
    `want_ids` says that the result needs the token ids; `most_tokens` were asked for. A step of
    thought pauses at one of `pauses`; one of `cuts` ends the answer and is no part of it.
    """

    top: int | None = None
    window: int | None = None
    think_start_ids: Sequence[int] | None = None
    think_end_ids: Sequence[int] | None = None
    want_ids: bool = True
    most_tokens: int | None = None
    pauses: Sequence[str] = ()
    cuts: Sequence[str] = ()
    text: list[str] = field(default_factory=list)
    chunks: int = 0
    first_token: int | None = None
    think_end: int | None = None
    think_tokens: int | None = None
    opened: bool = False  # by a thought that came without its mark
    parsed: bool = False  # by the server: a delta had a thought of its own
    in_reasoning: bool = False
    usage: dict[str, Any] = field(default_factory=dict)
    finish_reason: str | None = None
    finished: int | None = None  # when that came
    impossible: bool = False  # whether the server reported such a number of tokens
    done: bool = False  # the server said that this is all
    ended_by: str | None = None  # the stop string
    prompt_token_ids: tuple[int, ...] | None = None
    token_ids: list[int] | None = None
    logprobs: list[float] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    _length: int = 0  # of the text
    _searched: int = 0  # tokens in which the end of a thought was looked for

    def take(self, event: Mapping[str, Any], now: int) -> None:
        before = self._tokens() or 0
        if isinstance(event.get("usage"), dict):
            self.usage = event["usage"]
        self._take_prompt_ids(event)
        self._take_all_ids(event.get("sglext"))
        for choice in event.get("choices") or ():
            if choice.get("index") not in (0, None):  # its tokens would count for ours
                raise BadAnswer("a choice that was not asked for")
            reason = choice.get("finish_reason")
            if isinstance(reason, str) and reason:
                self.finish_reason, self.finished = reason[:_LONGEST_REASON], now
            ended_by = choice.get("stop_reason", choice.get("matched_stop"))  # vLLM's, SGLang's
            if isinstance(ended_by, str):
                self.ended_by = ended_by
            self._take_prompt_ids(choice)
            if self.top is not None:
                self._take_logprobs(choice.get("logprobs") or {})
            self._take_choice(choice, now)
            if self.think_end == now and self.think_tokens is None and not self.parsed:
                # exact where the mark came alone; a chunk may carry more tokens than one
                after = self._tokens()
                self.think_tokens = before if after == before + 1 else None

    def _take_choice(self, choice: Mapping[str, Any], now: int) -> None:
        """Add a choice's text, the marks of its thought put back."""
        delta = choice.get("delta") or {}
        reasoning = delta.get("reasoning_content") or delta.get("reasoning") or ""
        content = choice.get("text") or delta.get("content") or ""
        self._length += len(reasoning) + len(content)
        kept = len(self.token_ids or ()) + len(self.logprobs) + len(self.confidences)
        if self._length > MOST_TEXT or kept > MOST_KEPT:
            raise BadAnswer("an answer that is too long")
        called = bool(delta.get("tool_calls") or delta.get("function_call"))
        ids = choice.get("token_ids")
        if ids is not None:
            self.token_ids = self.token_ids or []
            self.token_ids += ids
        if not (reasoning or content or called or ids):
            return
        self.chunks += 1
        self.first_token = self.first_token or now
        if reasoning:
            self._think(reasoning)
        marked = self._mark_came()
        if self.in_reasoning:
            if content or called or marked:
                self._close_thought(now)
        elif marked and THINK_END not in "".join([*self.text[-8:], content]):
            self._close_thought(now)  # a thought without a token, or a mark that is not sent
        if content:
            if self.think_end is None and THINK_END in self._newest() + content:
                self.think_end = now
            self.text.append(content)

    def _newest(self) -> str:
        """Return the newest characters, in which the end of a thought may have begun."""
        newest = ""
        for piece in reversed(self.text):
            newest = piece[-len(THINK_END) :] + newest
            if len(newest) >= len(THINK_END):
                break
        return newest

    def _think(self, reasoning: str) -> None:
        self.parsed = True
        if not self.in_reasoning:
            self.in_reasoning = True
            if "".join(self.text):
                self.text.append(THINK_START)  # it thinks again
            else:
                self.opened = True
        self.text.append(reasoning)

    def _close_thought(self, now: int) -> None:
        self.in_reasoning = False
        self.text.append(THINK_END)
        self.think_end = self.think_end or now

    def _mark_came(self) -> bool:
        """Tell whether the tokens that came since the last call complete the end of a thought."""
        if self.token_ids is None or not self.think_end_ids:
            return False
        place = find_tokens(self.token_ids, self.think_end_ids, self._searched)
        width = len(self.think_end_ids)
        last = len(self.token_ids) - width + 1 if place is None else place + width
        self._searched = max(self._searched, last)
        return place is not None

    def _take_prompt_ids(self, part: Mapping[str, Any]) -> None:
        if part.get("prompt_token_ids") is not None:
            self.prompt_token_ids = tuple(part["prompt_token_ids"])

    def _take_all_ids(self, told: Any) -> None:
        """Take the token ids of prompt and answer, which SGLang sends behind a chat's text."""
        if not isinstance(told, dict):
            return
        prompt, answers = told.get("input_ids"), told.get("output_ids")
        answer = answers[0] if isinstance(answers, list) and answers else None
        for ids in (prompt, answer):
            if isinstance(ids, list) and not all(type(each) is int for each in ids):
                raise BadAnswer("token ids that are none")
            if isinstance(ids, list) and len(ids) > MOST_KEPT:
                raise BadAnswer("an answer that is too long")
        if isinstance(prompt, list):
            self.prompt_token_ids = tuple(prompt)
        if isinstance(answer, list):
            self.token_ids = answer

    def _take_logprobs(self, told: Mapping[str, Any]) -> None:
        for logprob, others in _places(told):
            self.logprobs.append(logprob)
            if self.window is not None:
                self.confidences += token_confidences([others], self.top or 0)

    def result(self, request_id: str, error: str | None) -> SampleResult:
        asked, cached, made = self._counts()
        prompt, ids = self.prompt_token_ids, self.token_ids
        text = whole_characters("".join(self.text))
        if self.ended_by in self.cuts:
            text = text.removesuffix(self.ended_by or "")
        mean = sum(self.logprobs) / len(self.logprobs) if self.logprobs else None
        lowest = None if self.window is None else lowest_group(self.confidences, self.window)
        return SampleResult(
            request_id=request_id,
            text=text,
            finish_reason=self.finish_reason,
            end=now_ns() if self.done or self.finished is None else self.finished,
            prompt_tokens=asked,
            cached_tokens=cached,
            output_tokens=made,
            think_tokens=self._thought(),
            first_token=self.first_token,
            think_end=self.think_end,
            logprob_mean=finite(mean),
            confidence_min_window=finite(lowest),
            stopped=self.ended_by in self.pauses,
            opened=self.opened or leaves_open(prompt, self.think_start_ids, self.think_end_ids),
            prompt_token_ids=prompt if self.want_ids else None,
            token_ids=tuple(ids) if self.want_ids and ids is not None else None,
            error=error,
        )

    def _counts(self) -> tuple[int | None, int | None, int | None]:
        """Return the tokens of the prompt, of it from the cache, and those that were generated.

        One that cannot be is None, and `impossible` says so: what is no number of tokens, more from
        the cache than the prompt has, none for a text, fewer than came, more than were asked for.
        """
        details = self.usage.get("prompt_tokens_details")
        told = [
            self.usage.get("prompt_tokens"),
            details.get("cached_tokens") if isinstance(details, dict) else None,
            self.usage.get("completion_tokens"),
        ]
        asked, cached, made = [count(each) for each in told]
        if asked is not None and cached is not None and cached > asked:
            cached = None
        least = max(len(self.token_ids or ()), min(self.chunks, 1))
        most = MOST_TOKENS if self.most_tokens is None else self.most_tokens
        if made is not None and not least <= made <= most:
            made = None
        kept = (asked, cached, made)
        self.impossible = any(
            each is not None and known is None for each, known in zip(told, kept, strict=True)
        )
        return kept

    def _tokens(self) -> int | None:
        return count(self.usage.get("completion_tokens"))

    def _thought(self) -> int | None:
        """Return the tokens before the end of the thought, None where they cannot be told."""
        if self.token_ids is not None and self.think_end_ids:
            place = find_tokens(self.token_ids, self.think_end_ids)
            if place is not None or not self.parsed:
                return place
        if self.parsed and self.think_end is not None:  # another mark: the server may count them
            details = self.usage.get("completion_tokens_details")
            return (
                count(details.get("reasoning_tokens")) if isinstance(details, dict) else None
            ) or None
        return self.think_tokens


def _places(told: Mapping[str, Any]) -> Iterator[tuple[float, Sequence[float]]]:
    """Return each token's log-probability and those of the most probable ones at its place.

    Chat answers have a list of tokens under `content`, completions parallel lists.
    """
    for token in told.get("content") or ():
        yield token["logprob"], [other["logprob"] for other in token.get("top_logprobs") or ()]
    logprobs = told.get("token_logprobs") or ()
    tops = told.get("top_logprobs") or [None] * len(logprobs)
    for logprob, top in zip(logprobs, tops, strict=False):
        if logprob is not None:
            yield logprob, list((top or {}).values())
