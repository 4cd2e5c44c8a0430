"""The seam between a policy and whatever computes its samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from traces.schema.engine import EngineConfig, ModelFacts

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
    `fixed_length` at `max_tokens` and nowhere else (vLLM's min_tokens and ignore_eos).
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
    have one entry per decode step where it is known which steps drafted nothing
    (vllm/draft_steps.py). `first_step` and `last_step` are the engine's step numbers. A sample
    that failed has `error`, one that was cancelled has finish_reason "abort" and the tokens it had
    by then. `stopped` says that a stop string ended it, `opened` that its text begins inside a
    thought, which the prompt opened or the server's reasoning parser took the mark from.
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


class Engine(Protocol):
    """What a policy needs of an engine; the same for one in this process and for a server.

    `think_end_ids` are the tokens that close a thought, None where they are not known.
    """

    config: EngineConfig
    model: ModelFacts | None
    chat_template: str | None
    think_end_ids: tuple[int, ...] | None

    @property
    def thinking_budget(self) -> bool:
        """Whether it keeps a `thinking_token_budget` by itself."""

    def submit(self, request: SampleRequest) -> None:
        """Queue a sample; returns at once. Its result comes from `poll`."""

    def cancel(self, request_ids: Sequence[str]) -> list[SampleResult]:
        """Stop samples that are still running; returns what they had by then."""

    def poll(self) -> list[SampleResult]:
        """Advance the engine, or wait a moment for it; returns the samples that ended."""

    def close(self) -> None:
        """Free the engine. May be called twice."""


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
