"""From a policy's name to its state for one problem."""

from __future__ import annotations

from collections.abc import Callable

from profiler.policies.beam import BeamSearch
from profiler.policies.choices import best_scored, most_confident, weighted
from profiler.policies.interface import PolicyRun
from profiler.policies.parallel import Adaptive, Agreement, EarlyStopping, FirstFinish, FixedVote
from profiler.policies.sequential import BudgetForcing, Revision
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


_RUNS: dict[str, Callable[[Policy], PolicyRun]] = {
    "greedy": lambda p: FixedVote(p.n),
    "majority": lambda p: FixedVote(p.n),
    "best_of_n": lambda p: FixedVote(p.n, best_scored),
    "weighted": lambda p: FixedVote(p.n, weighted(log_probabilities=_built_in(p))),
    "confidence": lambda p: FixedVote(p.n, most_confident(_real(p, "keep"))),
    "early_stopping": lambda p: EarlyStopping(p.n, _whole(p, "window")),
    "adaptive": lambda p: Adaptive(p.n, _real(p, "threshold"), _whole(p, "in_flight")),
    "agreement": lambda p: Agreement(p.n, _whole(p, "agree"), _whole(p, "in_flight")),
    "first_finish": lambda p: FirstFinish(p.n, _whole(p, "first")),
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
    return _RUNS[whole.method](whole)
