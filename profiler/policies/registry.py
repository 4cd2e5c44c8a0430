"""From a policy's name to its state for one problem."""

from __future__ import annotations

from collections.abc import Callable

from profiler.policies.beam import BeamSearch
from profiler.policies.choices import Choice, best_scored, most_confident, most_votes, weighted
from profiler.policies.interface import PolicyRun
from profiler.policies.parallel import ParallelVote
from profiler.policies.sequential import BudgetForcing, Revision
from traces.errors import UsageError
from traces.schema.parameters import complete, number, text
from traces.schema.policy import Policy


def _built_in(policy: Policy) -> bool:
    return text(policy, "scorer") is None


def _real(policy: Policy, name: str) -> float:
    return float(dict(policy.rule)[name])


def _whole(policy: Policy, name: str) -> int:
    return number(policy, name) or 0


def _text(policy: Policy, name: str) -> str:
    return text(policy, name) or ""


_CHOICES: dict[str, Callable[[Policy], Choice]] = {
    "best_of_n": lambda p: best_scored,
    "weighted": lambda p: weighted(log_probabilities=_built_in(p)),
    "confidence": lambda p: most_confident(_real(p, "keep")),
}
_CONTINUED: dict[str, Callable[[Policy], PolicyRun]] = {
    "budget_forcing": lambda p: BudgetForcing(p.n, _whole(p, "extend"), _text(p, "word")),
    "sequential": lambda p: Revision(p.n, _whole(p, "stable"), _text(p, "revise_prompt")),
    "beam": lambda p: BeamSearch(
        p.n,
        _whole(p, "width"),
        _whole(p, "depth"),
        _text(p, "step_stop"),
        _whole(p, "step_tokens"),
        _built_in(p),
    ),
}


def start(policy: Policy) -> PolicyRun:
    """Return the policy's state for one problem. Raises UsageError for impossible parameters."""
    whole = complete(policy)
    if whole.spec.of_others:
        raise UsageError(f"policy: {whole.method} is what others sent; choose another method")
    if whole.stop is None:
        return _CONTINUED[whole.method](whole)
    choose = _CHOICES[whole.method](whole) if whole.method in _CHOICES else most_votes
    return ParallelVote(whole.n, whole.stop, choose)
