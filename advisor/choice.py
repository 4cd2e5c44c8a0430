"""Which policy to prefer among those judged on the same problems."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from advisor.counterfactual import Column, Counterfactuals
from traces.schema import Estimate
from traces.statistics import paired, problems_to_tell, ratio
from traces.votes import PolicyOutcome

MARGIN = 0.02  # of accuracy; a policy that may lose more is not called as good


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A policy against another on the same problems: accuracy lost or won, and tokens as a share.

    `problems_to_tell` is how many problems would tell a true difference of this size from none;
    None where there is no difference or no interval. `all_equal` says that no problem is right more
    or less often under one of them.
    """

    policy: PolicyOutcome
    reference: PolicyOutcome
    problems: int
    difference: Estimate
    tokens_share: Estimate | None
    problems_to_tell: int | None
    all_equal: bool

    @property
    def told_apart(self) -> bool:
        """Whether the 90 % interval of the difference leaves out 0."""
        return self.problems_to_tell == self.problems


def compare_policies(column: Column, reference: Column) -> Comparison:
    """Return the paired comparison of two policies judged on the same problems."""
    found = paired(reference.right, column.right, "1")
    if found is None:
        raise ValueError("compare_policies: needs at least one problem")
    return Comparison(
        policy=column.outcome,
        reference=reference.outcome,
        problems=len(column.right),
        difference=found,
        tokens_share=ratio(column.tokens, reference.tokens, "1"),
        problems_to_tell=problems_to_tell(found, len(column.right)),
        all_equal=bool(np.array_equal(reference.right, column.right)),
    )


def cheapest_as_good(found: Counterfactuals, *, seed: int = 0) -> Comparison | None:
    """Return the policy of fewest tokens that loses at most MARGIN against the vote of all.

    Chosen on one half of the problems and stated on the other, since the best of many by the same
    numbers looks better than it is. None without such a policy, or below 20 problems.
    """
    if found.problems < 20:
        return None
    shuffled = np.random.default_rng([seed, 5]).permutation(found.problems)
    choosing, stating = shuffled[::2], shuffled[1::2]
    by_key = {(each.outcome.method, each.outcome.n): each for each in found.columns}
    whole = by_key.get(("majority", found.n))
    if whole is None:
        return None
    reference = _part(whole, choosing)
    able: list[tuple[float, int, Column]] = []
    for column in found.columns:
        if column.outcome.method == "pass_at_k" or not np.isfinite(column.tokens).all():
            continue
        part = _part(column, choosing)
        difference = paired(reference.right, part.right, "1")
        if difference is not None and (difference.low or 0.0) >= -MARGIN:
            able.append((float(part.tokens.mean()), len(able), column))
    if not able:
        return None
    best = min(able)[2]
    if best is whole:
        return None
    return compare_policies(_part(best, stating), _part(whole, stating))


def _part(column: Column, places: np.ndarray) -> Column:
    return Column(column.outcome, column.right[places], column.tokens[places])
