"""What a sample would have answered with less thought: forced answers at budgets of tokens.

After the timed run has drained, each kept sample's thought is cut at each budget, closed, and
continued as token ids. The ids wait here in memory and are forgotten then; the rows have the role
"checkpoint" and are in no latency, cost, accuracy or fit.
"""

from __future__ import annotations

import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from profiler.engines.interface import (
    THINK_END,
    Continuation,
    Engine,
    SampleRequest,
    SampleResult,
    find_tokens,
)
from profiler.runs.flight import Flight, Sent
from profiler.workload.problems import Workload
from traces.clock import now_ns
from traces.errors import UsageError
from traces.recording.manifest import CheckpointCost
from traces.schema.tts.policy import Policy

_IN_FLIGHT = 64  # requests, where the engine does not tell how many it takes
Append = Callable[[str, Mapping[str, Any]], None]


def check_budgets(budgets: tuple[int, ...], samples: int, policy: Policy) -> None:
    """Raise UsageError for checkpoints that cannot be made of a policy's samples."""
    limit = policy.thinking_token_budget
    if any(budget < 1 for budget in budgets) or len(set(budgets)) < len(budgets):
        raise UsageError("--budget-checkpoints: give different token counts above 0, as 64,128")
    if samples < 1:
        raise UsageError(f"--checkpoint-samples must be at least 1, not {samples}")
    if limit is not None and max(budgets) >= limit:
        raise UsageError(f"--budget-checkpoints must lie below the thinking budget, {limit}")
    if policy.max_tokens is not None and max(budgets) >= policy.max_tokens:
        raise UsageError(f"--budget-checkpoints must lie below max_tokens, {policy.max_tokens}")
    if policy.spec.in_steps:
        raise UsageError("--budget-checkpoints need whole samples, and beam draws steps of them")


@dataclass(frozen=True)
class _Thought:
    """A sample whose thought will be cut: its ids and its own answer."""

    flight: Flight
    sample_index: int
    prompt: array[int]
    output: array[int]
    think_tokens: int | None
    answer: str | None
    correct: bool | None


@dataclass(kw_only=True)
class Checkpoints:
    """Keeps the first `samples` samples of each problem; `run` answers them at each budget.

    With `logprobs` the mean log-probability of forced answers is measured.
    """

    budgets: tuple[int, ...]
    samples: int
    logprobs: bool = False
    thoughts: list[_Thought] = field(default_factory=list)
    skipped: int = 0  # samples whose token ids were not told

    def keep(self, sent: Sent, *, correct: bool | None) -> None:
        """Take a sample that ended by itself, if its thought is to be cut."""
        draw, result, chain = sent.draw, sent.result, sent.chain
        if draw.role != "sample" or draw.how is not None or draw.index >= self.samples:
            return
        if result is None or result.error is not None or chain is None:
            return
        if chain.prompt is None or chain.tokens is None:
            self.skipped += 1
            return
        self.thoughts.append(
            _Thought(
                sent.flight,
                draw.index,
                array("i", chain.prompt),
                array("i", chain.tokens),
                result.think_tokens,
                chain.answer,
                correct,
            )
        )

    def run(
        self,
        engine: Engine,
        workload: Workload,
        policy: Policy,
        append: Append,
        *,
        keep_text: bool,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> CheckpointCost:
        """Answer all kept samples at all budgets, writing rows; returns what it took.

        A thought that ended within a budget keeps its own answer, and so does one that the
        sample's end cut before it.
        """
        keys = {"engine": engine.config.key(), "policy": policy.key()}
        begun = time.monotonic()
        logprobs = 0 if self.logprobs else None
        asked = _Asked(engine, workload, policy, append, keys, keep_text, logprobs)
        waiting = deque(self._pieces(engine, append, keys, keep_text))
        total, at_most = len(waiting), engine.config.max_num_seqs or _IN_FLIGHT
        while waiting or asked.open:
            while waiting and len(asked.open) < at_most:
                asked.submit(*waiting.popleft())
            for result in engine.poll():
                asked.take(result)
            progress(total - len(waiting) - len(asked.open), total)
        self.thoughts.clear()
        return CheckpointCost(
            budgets=self.budgets,
            samples=self.samples,
            requests=total,
            failed=asked.failed,
            seconds=time.monotonic() - begun,
            prompt_tokens=asked.prompt_tokens,
            output_tokens=asked.output_tokens,
        )

    def _pieces(
        self, engine: Engine, append: Append, keys: Mapping[str, str], keep_text: bool
    ) -> Iterator[tuple[_Thought, int]]:
        """Write the answers that need no forcing; return the thoughts to cut, and where."""
        for thought in self.thoughts:
            ends = thought.think_tokens
            if ends is None:
                ends = find_tokens(thought.output, engine.think_end_ids)
            length = len(thought.output)
            for budget in self.budgets:
                if budget < (length if ends is None else ends):
                    yield thought, budget
                    continue
                shown = thought.flight.shown(thought.answer, keep_text=keep_text)
                row = {
                    "forced": False,
                    "answer": shown,
                    "correct": thought.correct,
                    "answer_tokens": None if ends is None else length - ends,
                }
                append("answers", {**keys, **_named(thought, budget), **row})


def _named(thought: _Thought, budget: int) -> dict[str, Any]:
    return {
        "problem_id": thought.flight.problem.problem_id,
        "sample_index": thought.sample_index,
        "budget_tokens": budget,
    }


@dataclass
class _Asked:
    """The requests that force answers."""

    engine: Engine
    workload: Workload
    policy: Policy
    append: Append
    keys: Mapping[str, str]
    keep_text: bool
    top_logprobs: int | None
    open: dict[str, tuple[_Thought, int, int]] = field(default_factory=dict)
    failed: int = 0
    prompt_tokens: int | None = 0
    output_tokens: int | None = 0

    def submit(self, thought: _Thought, budget: int) -> None:
        flight, most = thought.flight, self.policy.max_tokens
        name = f"checkpoint.{flight.problem.problem_id}.{thought.sample_index}.{budget}"
        self.open[name] = thought, budget, now_ns()
        end = len(self.engine.think_end_ids or (0,))
        self.engine.submit(
            SampleRequest(
                request_id=name,
                prompt=flight.problem.prompt,
                chat=self.workload.chat,
                temperature=self.policy.temperature,
                top_p=self.policy.top_p,
                # The tokens that close the thought count, as they do for an engine's budget.
                max_tokens=None if most is None else max(most - budget - end, 1),
                continues=Continuation(
                    token_ids=(*thought.prompt, *thought.output[:budget]),
                    text="",
                    append=THINK_END,
                ),
                top_logprobs=self.top_logprobs,
            )
        )

    def take(self, result: SampleResult) -> None:
        asked = self.open.pop(result.request_id, None)
        if asked is None:
            return
        thought, budget, sent = asked
        flight = thought.flight
        failed = result.error is not None
        answer = (
            None if failed else self.workload.answer_to(flight.problem, THINK_END + result.text)
        )
        correct = None if failed else self.workload.is_correct(flight.problem, answer)
        fields = {
            "answer": flight.shown(answer, keep_text=self.keep_text),
            "correct": correct,
            "answer_tokens": result.output_tokens,
            "logprob_mean": result.logprob_mean,
        }
        if not failed:
            named = _named(thought, budget)
            self.append("answers", {**self.keys, **named, **fields, "forced": True})
        self.failed += failed
        self.prompt_tokens = _sum(self.prompt_tokens, result.prompt_tokens, result.cached_tokens)
        self.output_tokens = _sum(self.output_tokens, result.output_tokens, 0)
        row = {
            "problem_id": flight.problem.problem_id,
            "sample_index": flight.next_extra(),
            "request_id": result.request_id,
            "role": "checkpoint",
            "parent_sample": thought.sample_index,
            "prompt_tokens": result.prompt_tokens,
            "cached_tokens": result.cached_tokens,
            "output_tokens": result.output_tokens,
            "think_tokens": 0,
            "arrival": sent,
            "first_token": result.first_token,
            "end": result.end,
            "finish_reason": result.finish_reason,
            "censored": result.finish_reason == "length",
            "error": result.error,
        }
        self.append("samples", {**self.keys, **row, **fields})


def _sum(total: int | None, tokens: int | None, cached: int | None) -> int | None:
    """Add the tokens that were not cached; unknown once any of them is."""
    return None if total is None or tokens is None or cached is None else total + tokens - cached
