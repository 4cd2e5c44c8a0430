"""A problem that is being worked on, and the requests that are open for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from opentelemetry.trace import Span

from profiler.chain import Chain
from profiler.engines.protocol import SampleResult
from profiler.policies.seam import Decision, Draw, GoOn, PolicyRun
from profiler.workload import Problem
from traces.clock import now_ns


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

    @property
    def append(self) -> str:
        """What was put behind its base."""
        return self.draw.how.append if isinstance(self.draw.how, GoOn) else ""


@dataclass
class Flight:
    """A problem in flight: its policy's state, its span, what its requests have led to.

    `classes` numbers its answers in order of appearance; `extra` is the index of the next request
    that the run makes by itself. `closed` says that it was decided or timed out.
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
    decision: Decision | None = None
    closed: bool = False
    failures: int = 0
    prompt_tokens: int | None = None
    cached_tokens: int | None = None

    def next_extra(self) -> int:
        """Return a new index for a request that no policy drew."""
        self.extra += 1
        return self.extra - 1

    def shown(self, answer: str | None, *, keep_text: bool) -> str | None:
        """What a recording says of an answer: its text, or its class within the problem."""
        if answer is None or keep_text:
            return answer
        return str(self.classes.setdefault(answer, len(self.classes)))

    def count(self, result: SampleResult) -> None:
        """Add up what a request tells of the problem's prompt, and whether it failed."""
        self.failures += result.error is not None
        self.prompt_tokens = self.prompt_tokens or result.prompt_tokens
        if result.cached_tokens is not None:
            self.cached_tokens = (self.cached_tokens or 0) + result.cached_tokens
