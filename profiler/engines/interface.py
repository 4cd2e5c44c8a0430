"""What a run asks of an engine, and what it gets back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import polars as pl

from profiler.engines.options import EngineOptions
from traces.schema.engine import EngineConfig, ModelFacts
from traces.schema.record import Record

THINK_START, THINK_END = "<think>", "</think>"
_PROMPT_TAIL = 8  # tokens of a prompt among which a template opens a thought
Prompt = str | tuple[Mapping[str, str], ...]  # a text, or a chat of {role, content}


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """What a request goes on from: the whole context so far, and text to put behind it.

    `token_ids` are those of the prompt and of what is kept of the output; where an engine does
    not tell them, `text` is, the output's without the prompt's.
    """

    token_ids: tuple[int, ...] | None
    text: str
    append: str = ""


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """One sample to draw: a request of n = 1. Times are unix nanoseconds everywhere.

    `top_logprobs` asks for log-probabilities: 0 for the mean of the sampled tokens', k for a
    confidence over windows of `confidence_window` tokens too. `want_token_ids` says that the ids
    are needed, since the sample may be continued. Generation ends behind a `stop` string; with
    `fixed_length` at `max_tokens` and nowhere else.
    """

    request_id: str
    prompt: Prompt
    chat: bool
    temperature: float | None  # None only in policies of imported recordings, which never run
    top_p: float | None
    max_tokens: int | None
    thinking_token_budget: int | None = None
    reasoning_effort: str | None = None
    traceparent: str | None = None
    continues: Continuation | None = None
    top_logprobs: int | None = None
    confidence_window: int | None = None
    want_token_ids: bool = False
    stop: tuple[str, ...] = ()
    fixed_length: bool = False

    def messages(self) -> list[dict[str, str]]:
        """Return the prompt as a chat; a text is what the user says."""
        if isinstance(self.prompt, str):
            return [{"role": "user", "content": self.prompt}]
        return [dict(message) for message in self.prompt]


@dataclass(frozen=True, kw_only=True)
class SampleResult:
    """A sample that ended: what came back and when; what was not seen is None.

    Token ids never leave the process unless text is recorded, those of prompts never. The drafts
    have one entry per decode step where it is known which steps drafted nothing. `first_step` and
    `last_step` are the engine's step numbers. A sample that failed has `error`. One that was
    cancelled has finish_reason "abort" and the tokens it had by then. `stopped` says that a stop
    string ended it, `opened` that its text begins inside a thought, which the prompt opened or the
    server's reasoning parser took the mark from.
    """

    request_id: str
    text: str
    finish_reason: str | None
    end: int
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    think_tokens: int | None = None
    queued: int | None = None
    scheduled: int | None = None
    first_token: int | None = None
    think_end: int | None = None
    first_step: int | None = None
    last_step: int | None = None
    preemptions: int | None = None
    logprob_mean: float | None = None
    confidence_min_window: float | None = None
    stopped: bool = False
    opened: bool = False
    drafted_per_step: tuple[int, ...] | None = None
    accepted_per_step: tuple[int, ...] | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    token_ids: tuple[int, ...] | None = None
    error: str | None = None


NO_ROOM = "no room"  # the error of a request that was not sent


def refusal(request_id: str, end: int, prompt_tokens: int | None = None) -> SampleResult:
    """Return what became of a request to which max_tokens or the model's length leave nothing."""
    return SampleResult(
        request_id=request_id,
        text="",
        finish_reason=None,
        end=end,
        prompt_tokens=prompt_tokens,
        output_tokens=0,
        error=NO_ROOM,
    )


class StepSource(Protocol):
    """The steps of an engine: `dropped` were lost, `failure` says why none are watched any more."""

    dropped: int
    failure: str | None

    @property
    def step(self) -> int:
        """The number of the next step."""

    @property
    def cost_us(self) -> float | None:
        """Median microseconds that watching a step takes."""

    def reset(self, engine_key: str) -> None:
        """Number the steps from 0 again, for a new recording."""

    def drain(self) -> pl.DataFrame:
        """Return the rows of the `steps` table since the last call."""


class KernelSource(Protocol):
    """Windows of a profiler on an engine's steps."""

    failure: str | None

    @property
    def cost_share(self) -> float | None:
        """The share of the run's time that the windows took."""

    def reset(self) -> None:
        """Begin a new recording."""

    def drain(self) -> pl.DataFrame:
        """Return the rows of the `kernels` table since the last call."""

    def events(self) -> list[dict[str, Any]]:
        """Return the rows of the `events` table since the last call."""

    def finish(self) -> None:
        """Open no more windows; what is closed can still be drained."""


class Engine(ABC):
    """All that a run takes of an engine, in this process or behind a server.

    An engine sets `config` and gives the four methods without a default. The rest it overrides
    where it has something to give. `think_end_ids` are the tokens that close a thought, and `notes`
    go into the recording. `refusal` is what it said when it first refused a request.
    """

    config: EngineConfig
    provider: str = "unknown"  # as OpenTelemetry's `gen_ai.provider.name` has it
    model: ModelFacts | None = None
    draft_model: ModelFacts | None = None
    chat_template: str | None = None
    think_end_ids: tuple[int, ...] | None = None
    notes: tuple[str, ...] = ()
    refusal: str | None = None
    steps: StepSource | None = None
    kernels: KernelSource | None = None

    @property
    def thinking_budget(self) -> bool:
        """Whether it keeps a `thinking_token_budget` by itself."""
        return False

    def prepare(self, *, top_logprobs: int | None, thinking_budget: bool) -> None:  # noqa: B027
        """Get ready for such requests, so that no problem pays for it."""

    def foresee(self, prompts: Iterable[str]) -> None:  # noqa: B027
        """Get ready for raw prompts that will come without max_tokens, so that none pays for it."""

    @abstractmethod
    def submit(self, request: SampleRequest) -> None:
        """Queue a sample; returns at once. Its result comes from `poll`."""

    @abstractmethod
    def cancel(self, request_ids: Sequence[str]) -> list[SampleResult]:
        """Stop samples that are still running; returns what they had by then."""

    @abstractmethod
    def poll(self, wait_s: float | None = None) -> list[SampleResult]:
        """Advance the engine, or wait a moment for it; returns the samples that ended.

        `wait_s` is the longest to wait for a server. A step in this process takes what it takes.
        """

    @abstractmethod
    def close(self) -> None:
        """Free the engine. May be called twice."""


@dataclass(frozen=True, kw_only=True)
class Capability(Record):
    """Something that can be captured: `present` is None where it makes no sense here.

    `run` are shell commands that give what it `needs`, to be pasted one after the other. `attach`
    are options of `ttscope attach` that record it, where the server sends it already.
    """

    what: str
    present: bool | None
    detail: str
    needs: str | None = None
    run: tuple[str, ...] = ()
    attach: tuple[str, ...] = ()


class EngineKind(Protocol):
    """The module `start` of an engine's folder."""

    def takes(self, options: EngineOptions) -> bool:
        """Whether these options are for engines of this kind."""

    def start(
        self, options: EngineOptions, *, thinking_budget: bool, kernels: str | None
    ) -> Engine:
        """Start an engine, or connect to one (see `start_engine`)."""

    def examine(self) -> list[Capability]:
        """Return what of this kind can be captured on this machine."""


def find_tokens(tokens: Sequence[int], wanted: Sequence[int] | None, start: int = 0) -> int | None:
    """Return the first place from `start` on where the wanted tokens stand, None without one."""
    if not wanted:
        return None
    width = len(wanted)
    for place in range(start, len(tokens)):
        if tokens[place] == wanted[0] and tuple(tokens[place : place + width]) == tuple(wanted):
            return place
    return None


def leaves_open(
    prompt: Sequence[int] | None, begin: Sequence[int] | None, close: Sequence[int] | None
) -> bool:
    """Tell whether a prompt ends inside a thought, as many chat templates have it."""
    tail = (prompt or ())[-_PROMPT_TAIL:]
    begun = find_tokens(tail, begin)
    return begun is not None and find_tokens(tail, close, begun) is None
