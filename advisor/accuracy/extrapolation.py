"""Accuracy of more samples than were recorded, and of a fresh run on the same problems."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from advisor.accuracy.models.answers import AnswerModel
from traces.schema.estimate import Estimate
from traces.statistics import Floats, column_means, fresh, share
from traces.summary.votes import PolicyOutcome

FARTHEST = 4  # times the recorded samples
REPEATS = 4  # runs per draw whose mean stands for the expectation


def extrapolate(
    model: AnswerModel,
    counts: Sequence[int],
    tokens_per_sample: Floats,
    *,
    reached: float = 0.0,
    of: int | None = None,
) -> list[PolicyOutcome]:
    """Return maj@k and pass@k for more samples than the model was fitted on, marked so.

    The interval holds the choice of problems and what the samples leave open. `tokens_per_sample`
    are [problems], nan where not told. `reached` is the pass@n of the recorded samples, below which
    more cannot fall. A fresh run has all `of` problems. The model's are a random sample of these.
    """
    if not counts:
        return []
    runs = model.simulate(counts, repeats=REPEATS)
    outcomes = []
    for method, name in (("majority", "majority"), ("pass_at_k", "any_right")):
        for k in counts:
            votes: Floats = getattr(runs[k], name)
            shares = votes.mean(axis=0)
            value = float(shares.mean())
            value = max(value, reached) if method == "pass_at_k" else value
            others, size = (model.importance_ * shares).sum(axis=1), shares.shape[1]
            tokens = column_means(k * tokens_per_sample[:, None], "tokens")[0]
            outcomes.append(
                PolicyOutcome(
                    method=method,
                    n=k,
                    budget_tokens=None,
                    accuracy=share(value, size * float(others.var()), size, extrapolated=True),
                    tokens_per_problem=tokens if np.isfinite(tokens.value) else None,
                    basis="model",
                    fresh_run=fresh_interval(value, votes, of=of, extrapolated=True),
                )
            )
    return outcomes


def fresh_runs(
    model: AnswerModel,
    outcomes: Sequence[PolicyOutcome],
    *,
    methods: Sequence[str],
    of: int | None = None,
) -> Iterator[PolicyOutcome]:
    """Yield the outcomes with the interval in which a fresh run on the same problems falls.

    Only of fixed votes of samples like those that the model was fitted on: not under a limit of
    tokens. The outcomes are of all `of` problems. The model was fitted on a random sample of these.
    """
    alike = [each.method in methods and each.max_tokens is None for each in outcomes]
    counts = sorted({each.n for each, own in zip(outcomes, alike, strict=True) if own})
    votes = model.simulate(counts) if counts else {}
    for each, is_alike in zip(outcomes, alike, strict=True):
        if not is_alike or each.accuracy is None:
            yield each
            continue
        vote = votes[each.n]
        runs = vote.majority if each.method == "majority" else vote.any_right
        yield replace(each, fresh_run=fresh_interval(each.accuracy.value, runs, of=of))


def fresh_interval(
    value: float, runs: Floats, *, of: int | None = None, extrapolated: bool = False
) -> Estimate:
    """Return the interval of a fresh run's accuracy; `runs` [repeats, draws, problems] are drawn.

    Each problem is right with the posterior chance m that such a vote is. m (1 - m) is the variance
    of the fresh answer plus that of the chance as the samples leave it, so that both runs are in
    it (`fresh`). What the draws of the laws have in common may add to that.

    Both runs are of `of` problems. Those drawn are a random sample of these. A value that is
    extrapolated rests on these alone, so that their choice is in its interval too.
    """
    drawn = runs.shape[-1]
    size = of or drawn
    chance = runs.mean(axis=(0, 1))
    variance, joint = float((chance * (1 - chance)).mean()), float(runs.mean(axis=2).var())
    if extrapolated:
        variance += size * max(joint - variance / drawn, 0.0)
        variance += float(chance.var()) * (size / drawn - 1)
    else:
        variance = max(variance, drawn * joint)
    return fresh(value, variance, size).interval(extrapolated=extrapolated)
