"""From a policy's name to its state for one problem."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

from profiler.policies.beam import BeamSearch
from profiler.policies.choices import Choice, best_scored, most_confident, most_votes, weighted
from profiler.policies.interface import PolicyRun
from profiler.policies.parallel import ParallelVote
from profiler.policies.sequential import BudgetForcing, Revision
from traces.errors import UsageError
from traces.schema.tts.parameters import complete
from traces.schema.tts.policy import Policy

Rule = dict[str, Any]  # the parameters by name

_CHOICES: dict[str, Callable[[Rule], Choice]] = {
    "best_of_n": lambda p: best_scored,
    "weighted": lambda p: weighted(log_probabilities="scorer" not in p),
    "confidence": lambda p: most_confident(p["keep"]),
}
_CONTINUED: dict[str, Callable[[int, Rule], PolicyRun]] = {
    "budget_forcing": lambda n, p: BudgetForcing(n, int(p["extend"]), p["word"]),
    "sequential": lambda n, p: Revision(n, int(p["stable"]), p["revise_prompt"]),
    "beam": lambda n, p: BeamSearch(
        n, int(p["width"]), int(p["depth"]), p["step_stop"], int(p["step_tokens"]),
        log_probabilities="scorer" not in p,
    ),
}  # fmt: skip


def start(policy: Policy, group: str | None = None) -> PolicyRun:
    """Return the policy's state for one problem, which may be of a class.

    Raises UsageError for impossible parameters.
    """
    return _starter(policy, group)()


@lru_cache(maxsize=1024)
def effort_for(policy: Policy, group: str | None) -> str | None:
    """Return the reasoning effort that samples of a class are drawn at, None where not set."""
    return policy.effort_for(group)


@lru_cache(maxsize=1024)  # an endpoint starts one policy for every question
def _starter(policy: Policy, group: str | None) -> Callable[[], PolicyRun]:
    completed = complete(policy)
    if completed.spec.of_others:
        raise UsageError(f"policy: {completed.method} is what others sent. Choose another method")
    rule = dict(completed.rule)
    stop = completed.stop_for(group)
    if stop is None:
        return partial(_CONTINUED[completed.method], completed.n, rule)
    choose = _CHOICES[completed.method](rule) if completed.method in _CHOICES else most_votes
    return partial(ParallelVote, completed.n, stop, choose)
