"""What scores completions: any callable, or a reward model behind HTTP.

A scorer runs on a thread beside the engine. `Scorer` takes a prompt and completions and gives a
score each, higher is better, with the tokens that it forwarded and generated where it knows them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from math import isfinite
from typing import Any

import httpx

from profiler.doors.clients import Client
from profiler.engines.interface import Prompt
from traces.errors import UsageError
from traces.schema.tts.parameters import check_url, text
from traces.schema.tts.policy import Policy

_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class Scores:
    """A score per completion, and what they cost; None where it is not told."""

    values: Sequence[float]
    prompt_tokens: int | None = None
    output_tokens: int | None = None


Scorer = Callable[[Prompt, Sequence[str]], Scores]


class HttpScorer:
    """POSTs {"prompt", "completions"} to `url`, which answers {"scores": [...], "usage"?}.

    The prompt is a text, or a list of {role, content} where the workload has chats.
    `usage` is as in OpenAI's answers: prompt_tokens and completion_tokens. Errors never repeat
    what the server said, which may hold a prompt. Raises UsageError for a URL that is none.
    """

    def __init__(self, url: str, *, timeout_s: float = 60.0) -> None:
        check_url(url)
        self.url = url
        self._client = Client(seconds=timeout_s)

    def __call__(self, prompt: Prompt, completions: Sequence[str]) -> Scores:
        """Return the scores. Raises httpx.HTTPError or ValueError."""
        body = {"prompt": prompt, "completions": list(completions)}
        answer = self._client.post(self.url, json=body)
        answer.raise_for_status()
        answered = answer.json()
        if not isinstance(answered, dict):
            raise ValueError("no object")
        usage = answered.get("usage") or {}
        return Scores(
            values=answered.get("scores") or (),
            prompt_tokens=usage.get("prompt_tokens"),
            output_tokens=usage.get("completion_tokens"),
        )

    def close(self) -> None:
        self._client.close()


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What became of one completion: its score, or why there is none."""

    score: float | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    error: str | None = None


class ScoringThreads:
    """Runs a scorer beside the engine: `submit` a completion, `ended` gives what is done.

    `close` waits for nothing.
    """

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="ttscope-scorer")
        self._running: dict[Future[Scored], Any] = {}

    def submit(self, prompt: Prompt, completion: str, key: Any) -> None:
        """Have a completion scored; `key` comes back with the score."""
        self._running[self._pool.submit(self._score, prompt, completion)] = key

    def ended(self, *, wait_s: float) -> list[tuple[Any, Scored]]:
        """Return keys with what became of them, waiting so long for the first."""
        if not self._running:
            return []
        done = wait(self._running, timeout=wait_s, return_when="FIRST_COMPLETED").done
        return [(self._running.pop(future), future.result()) for future in done]

    def _score(self, prompt: Prompt, completion: str) -> Scored:
        try:
            scores = self._scorer(prompt, [completion])
            (value,) = scores.values
            score = float(value)
        except httpx.HTTPStatusError as failure:
            return Scored(error=f"HTTP {failure.response.status_code}")
        except Exception as failure:
            return Scored(error=type(failure).__name__)
        is_number = isfinite(score)
        return Scored(
            score=score if is_number else None,
            prompt_tokens=scores.prompt_tokens,
            output_tokens=scores.output_tokens,
            error=None if is_number else "score is not finite",
        )

    def close(self) -> None:
        """Give up what is still being scored."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        close = getattr(self._scorer, "close", None)
        if close is not None:
            close()


def scorer_of(policy: Policy, given: Scorer | None) -> Scorer | None:
    """Return what scores for a policy; None where log-probabilities do, or nothing is scored.

    A parameter `scorer` that is no URL names the callable that is given. Raises UsageError when
    the policy and what is given do not fit.
    """
    named = text(policy, "scorer")
    if named is None:
        if given is not None:
            raise UsageError("a scorer was given. Name it in the policy's rule as scorer")
        return None
    if given is not None:
        return given
    if "://" not in named:
        raise UsageError(f"--scorer {named}: give a URL such as http://localhost:9000/score")
    return HttpScorer(named)
