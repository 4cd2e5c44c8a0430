"""Accuracy at budgets of thought, from answers that were forced at them, or bounds without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from advisor.accuracy.models.answers import AnswerCounts, count_answers
from advisor.accuracy.samples import ProblemSamples, SampledRun
from traces.statistics import Floats
from traces.summary.votes import majority_curve, sample_counts


@dataclass(frozen=True, kw_only=True)
class BudgetOutcome:
    """A vote of n samples at a budget of thought: right [problems], tokens [problems].

    `bound` is None at a checkpoint, `interpolated` between two, `lower` where only what finished
    is known. `estimated` says that the tokens of answers never forced are those of the others.
    At a checkpoint `counts` has what each problem's samples answered there, all of them.
    """

    budget_tokens: int
    n: int
    right: Floats
    tokens: Floats
    bound: str | None = None
    estimated: bool = False
    counts: tuple[AnswerCounts, ...] = ()


def at_checkpoints(run: SampledRun, answers: pl.DataFrame) -> list[BudgetOutcome]:
    """Return the votes at every recorded budget, for 1, 2, 4, ... of the samples cut there.

    Every problem counts with as many samples as most problems have at all budgets, or not at all.
    """
    table = _by_problem(run, answers)
    if not table:
        return []
    budgets = sorted({budget for cuts in table.values() for budget in cuts})
    held = {
        problem_id: min(len(cuts.get(budget, ())) for budget in budgets)
        for problem_id, cuts in table.items()
    }
    sizes = np.bincount(list(held.values()))
    size = int(np.argmax(sizes[1:]) + 1) if sizes[1:].any() else 0
    chosen = [table[problem_id] for problem_id, count in held.items() if count >= size > 0]
    found = []
    for budget in budgets if chosen else ():
        rows = [tuple(zip(*cuts[budget][:size], strict=True)) for cuts in chosen]
        curves = np.array([majority_curve(answers, right) for answers, right, _ in rows])
        tokens = np.array([np.mean(lengths) for *_, lengths in rows])
        counts = tuple(count_answers(answers, right) for answers, right, _ in rows)
        found += [
            BudgetOutcome(
                budget_tokens=budget,
                n=n,
                right=curves[:, n - 1],
                tokens=tokens * n,
                counts=counts,
            )
            for n in sample_counts(size)
        ]
    return found


_Cuts = Mapping[int, Sequence[tuple[str | None, bool, float]]]


def _by_problem(run: SampledRun, answers: pl.DataFrame) -> dict[str, _Cuts]:
    """Return by problem and budget the answers, whether right, and tokens, in order of samples."""
    whole = {  # of a problem that was posed several times the last
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


def between(low: BudgetOutcome, high: BudgetOutcome) -> BudgetOutcome:
    """Return the same vote at the budget in the middle of two, linear per problem, marked so."""
    budget_tokens = (low.budget_tokens + high.budget_tokens) // 2
    part = (budget_tokens - low.budget_tokens) / (high.budget_tokens - low.budget_tokens)
    return BudgetOutcome(
        budget_tokens=budget_tokens,
        n=low.n,
        right=(1 - part) * low.right + part * high.right,
        tokens=(1 - part) * low.tokens + part * high.tokens,
        bound="interpolated",
    )


def lower_bounds(run: SampledRun) -> list[BudgetOutcome]:
    """Return what one sample gets right at least at 1, 2, 4, ... tokens of thought.

    Those that had thought no longer and are right. Nothing where no length of thought is recorded.
    """
    thought = np.concatenate([np.zeros(0), *(p.think_tokens for p in run.problems)])
    known = thought[np.isfinite(thought)]
    if not known.size:
        return []
    budgets = [2**power for power in range(1, 31) if known.min() <= 2**power < known.max()]
    return [
        BudgetOutcome(
            budget_tokens=budget,
            n=1,
            # A sample cut while it thought has nan: it did not finish.
            right=np.array([np.mean((p.think_tokens <= budget) & p.correct) for p in run.problems]),
            tokens=np.array([_cut_tokens(problem, budget) for problem in run.problems]),
            bound="lower",
            estimated=True,
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
