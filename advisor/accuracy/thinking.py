"""Accuracy at budgets of thought, from answers that were forced at them, or bounds without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from advisor.accuracy.models.answers import AnswerCounts, count_answers
from advisor.accuracy.samples import PolicyColumn, ProblemSamples, SampledRun
from traces.statistics import Floats
from traces.summary.votes import PolicyOutcome, majority_curve, sample_counts


def at_checkpoints(
    run: SampledRun, answers: pl.DataFrame
) -> dict[int, tuple[list[PolicyColumn], list[AnswerCounts]]]:
    """Return by budget the votes of 1, 2, 4, ... samples cut there, and each problem's answers.

    `answers` is the recording's table. Every problem counts with as many samples as most problems
    have at all budgets; those that have fewer are left out.
    """
    table = _by_problem(run, answers)
    budgets = sorted({budget for cuts in table.values() for budget in cuts})
    held = {
        problem_id: min(len(cuts.get(budget, ())) for budget in budgets)
        for problem_id, cuts in table.items()
    }
    sizes = np.bincount([0, *held.values()])
    size = int(np.argmax(sizes[1:]) + 1) if sizes[1:].any() else 0
    chosen = [table[problem_id] for problem_id, count in held.items() if count >= size > 0]
    found = {}
    for budget in budgets if chosen else ():
        rows = [tuple(zip(*cuts[budget][:size], strict=True)) for cuts in chosen]
        curves = np.array([majority_curve(answers, right) for answers, right, _ in rows])
        tokens = np.array([np.mean(lengths) for *_, lengths in rows])
        columns = [_column(budget, n, curves[:, n - 1], tokens * n) for n in sample_counts(size)]
        found[budget] = columns, [count_answers(answers, right) for answers, right, _ in rows]
    return found


def _column(
    budget_tokens: int, n: int, right: Floats, tokens: Floats, bound: str | None = None
) -> PolicyColumn:
    """Return a vote at a budget, by a `bound` between two, or where only what finished is known."""
    lower = bound == "lower"
    outcome = PolicyOutcome(
        method="majority",
        n=n,
        budget_tokens=budget_tokens,
        accuracy=None,
        tokens_per_problem=None,
        bound=bound,
        basis="subsets" if lower else "checkpoints",
        tokens_estimated=lower,
    )
    return PolicyColumn(outcome, right, tokens)


_Cuts = Mapping[int, Sequence[tuple[str | None, bool, float]]]


def _by_problem(run: SampledRun, answers: pl.DataFrame) -> dict[str, _Cuts]:
    """Return by problem and budget the answers, whether right, and tokens, in order of samples."""
    whole = {  # the last of a problem that was posed several times
        (problem.problem_id, index): float(tokens)
        for problem in run.problems
        for index, tokens in zip(problem.indices, problem.tokens, strict=True)
    }
    table: dict[str, dict[int, list[tuple[str | None, bool, float]]]] = {}
    rows = answers.drop_nulls(["problem_id", "sample_index", "budget_tokens"])
    rows = rows.unique(["problem_id", "sample_index", "budget_tokens"], keep="last")
    for row in rows.sort("problem_id", "budget_tokens", "sample_index").iter_rows(named=True):
        own = whole.get((row["problem_id"], row["sample_index"]))
        if own is None:
            continue
        if row["forced"]:
            # An answer whose length is not known adds nothing rather than its problem to nothing.
            own = row["budget_tokens"] + float(row["answer_tokens"] or 0)
        cuts = table.setdefault(row["problem_id"], {})
        cuts.setdefault(row["budget_tokens"], []).append((row["answer"], bool(row["correct"]), own))
    return dict(table)


def between(low: PolicyColumn, high: PolicyColumn) -> PolicyColumn:
    """Return the same vote at the budget in the middle of two, linear per problem, marked so."""
    one, two = low.outcome.budget_tokens, high.outcome.budget_tokens
    assert one is not None and two is not None
    middle = (one + two) // 2
    part = (middle - one) / (two - one)
    right = (1 - part) * low.right + part * high.right
    tokens = (1 - part) * low.tokens + part * high.tokens
    return _column(middle, low.outcome.n, right, tokens, "interpolated")


def lower_bounds(run: SampledRun) -> list[PolicyColumn]:
    """Return what one sample gets right at least at 1, 2, 4, ... tokens of thought.

    Those that had thought no longer and are right. Nothing where no length of thought is recorded.
    """
    thought = np.concatenate([np.zeros(0), *(p.think_tokens for p in run.problems)])
    known = thought[np.isfinite(thought)]
    if not known.size:
        return []
    budgets = [2**power for power in range(1, 31) if known.min() <= 2**power < known.max()]
    return [
        _column(
            budget,
            1,
            # A sample cut while it thought has nan: it did not finish.
            np.array([np.mean((p.think_tokens <= budget) & p.correct) for p in run.problems]),
            np.array([_cut_tokens(problem, budget) for problem in run.problems]),
            "lower",
        )
        for budget in budgets
    ]


def _cut_tokens(problem: ProblemSamples, budget: int) -> float:
    """Return tokens per sample; a forced answer is taken to be as long as the others."""
    thought = problem.think_tokens
    after = problem.tokens - thought
    answer = float(np.nanmean(after)) if np.isfinite(after).any() else 0.0
    # One cut by max_tokens while it thought has no length of thought, and thought all its tokens.
    whole = np.where(np.isfinite(thought), thought, problem.tokens) <= budget
    return float(np.where(whole, problem.tokens, budget + answer).mean())
