"""A problem that is being worked on, and the requests that are open for it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from opentelemetry.trace import Span

from profiler.engines.interface import (
    THINK_END,
    Continuation,
    Prompt,
    SampleResult,
    find_tokens,
)
from profiler.policies.interface import Decision, Draw, GoOn, PolicyRun
from profiler.workload.problems import Problem
from traces.clock import now_ns


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
        return THINK_END in self.text

    @property
    def thought(self) -> str:
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
        has_tokens = self.prompt is not None and self.tokens is not None
        ids = (*self.prompt, *self.tokens) if has_tokens else None  # type: ignore[misc]
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


@dataclass(eq=False)
class Sent:
    """A request in the engine, or one that ended and waits for its score or its forced answer.

    `base` is what it goes on from. `forced_at` is the length of its thought at which its answer
    is to be forced by cutting and continuing; the request that forces it has `head`, the request
    that it completes. `fixed_tokens` is the length that its workload gives it. `result` and
    `chain` are what it ended with.
    """

    flight: Flight
    draw: Draw
    span: Span
    base: Chain = field(default_factory=Chain)
    forced_at: int | None = None
    head: Sent | None = None
    fixed_tokens: int | None = None
    result: SampleResult | None = None
    chain: Chain | None = None
    score: float | None = None
    counted: bool = False  # in its problem's sums

    @property
    def paused(self) -> bool:
        """Whether the end of a step of thought stopped it, not the model."""
        result, most = self.result, self.draw.max_tokens
        if result is None:
            return False
        full = most is not None and (result.output_tokens or 0) >= most
        return result.stopped or (result.finish_reason == "length" and full)

    @property
    def append(self) -> str:
        """What was put behind its base."""
        return self.draw.how.append if isinstance(self.draw.how, GoOn) else ""


@dataclass
class Flight:
    """A problem in flight: its policy's state, its span, what its requests have led to.

    `classes` numbers its answers in order of appearance; `extra` is the index of the next request
    that the run makes by itself. `closed` says that it was decided or timed out. `effort` is the
    reasoning effort that its class is answered with.
    """

    problem: Problem
    run: PolicyRun
    span: Span
    extra: int
    begun: int = field(default_factory=now_ns)
    open: dict[str, Sent] = field(default_factory=dict)  # by request id, in the engine
    heads: dict[int, Sent] = field(default_factory=dict)  # wait for their forced answers
    scored: dict[int, tuple[Sent, Span]] = field(default_factory=dict)  # wait for their scores
    chains: dict[int, Chain] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)
    effort: str | None = None
    decision: Decision | None = None
    closed: bool = False
    failures: int = 0
    prompt_tokens: int | None = None
    cached_tokens: int | None = None  # of the prompt
    output_tokens: int | None = 0  # of all requests, None where one does not tell
    told_tokens: int = 0  # of the samples that report them, failed ones too
    requests: int = 0
    cancelled: int = 0

    def next_extra(self) -> int:
        self.extra += 1
        return self.extra - 1

    def shown(self, answer: str | None, *, keep_text: bool) -> str | None:
        """What a recording says of an answer: its text, or its class within the problem."""
        if answer is None or keep_text:
            return answer
        return str(self.classes.setdefault(answer, len(self.classes)))

    def count(self, sent: Sent, *, cancelled: bool = False) -> None:
        """Add up what a request tells of the problem's prompt, its tokens, and how it ended, once.

        The problem's prompt is that of requests that go on from no other, and of it is cached what
        each of them found so.
        """
        result = sent.result
        assert result is not None
        if sent.counted:
            return
        sent.counted = True
        self.failures += result.error is not None
        self.requests += 1
        self.cancelled += cancelled
        self.told_tokens += result.output_tokens or 0
        if result.error is None:
            both_known = self.output_tokens is not None and result.output_tokens is not None
            self.output_tokens = (
                (self.output_tokens or 0) + (result.output_tokens or 0) if both_known else None
            )
        if sent.draw.parent is not None:
            return
        self.prompt_tokens = self.prompt_tokens or result.prompt_tokens
        cached = [each for each in (self.cached_tokens, result.cached_tokens) if each is not None]
        self.cached_tokens = min(cached, default=None)


def revised_prompt(template: str, prompt: Prompt, earlier: Chain) -> Prompt:
    """Return the prompt of a revision; of a chat its last message is the one that is filled in."""
    if isinstance(prompt, str):
        return _filled(template, prompt, earlier)
    last = dict(prompt[-1])
    return (*prompt[:-1], last | {"content": _filled(template, last["content"], earlier)})


def _filled(template: str, prompt: str, earlier: Chain) -> str:
    """Return the prompt of a revision; braces in what is filled in stay as they are."""
    texts = {"prompt": prompt, "answer": earlier.answer or "", "thought": earlier.thought}
    return re.sub(r"\{(prompt|answer|thought)\}", lambda name: texts[name[1]], template)
