"""The accuracy and tokens of policies that were never run, from the samples of one run that was.

- Fixed votes are exact expectations over subsets, of very many samples means over random orders.
- So are weights and filters where a vote has few subsets, else means over random orders, as windows
  and votes one by one are.
- Other rules that stop early follow the recorded ends, for fewer samples those of a replay, and
  without times the order of the samples' tokens.
- Smaller limits of tokens are exact, as what they cut has no answer.
- Budgets of thought rest on forced answers or are bounds.
- More samples than were recorded are extrapolated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import gcd
from typing import Any

import numpy as np
import polars as pl

from advisor.accuracy.extrapolation import FARTHEST, extrapolate, fresh_runs
from advisor.accuracy.finish_order import Decided, ReplayedOrder, decide
from advisor.accuracy.models.answers import AnswerCounts, count_answers, fitted
from advisor.accuracy.models.published import CurveAccuracy, learned
from advisor.accuracy.samples import (
    FEWEST,
    PolicyColumn,
    ProblemSamples,
    SampledRun,
    limited,
    read_samples,
)
from advisor.accuracy.subsets import (
    Expectation,
    RandomOrders,
    best_of_curve,
    by_launch,
    decides_as_vote,
    has_few_subsets,
    order_count,
)
from advisor.accuracy.thinking import at_checkpoints, between, lower_bounds
from advisor.evidence.runs import limits_that_cut
from traces.errors import RecordingError, UsageError
from traces.schema.estimate import Estimate
from traces.schema.tts.methods import METHODS
from traces.schema.tts.policy import Policy
from traces.schema.tts.stop_rules import SETTLED, Stop
from traces.statistics import (
    ROUNDING,
    Floats,
    apart,
    column_means,
    others_of,
    paired,
    problems_to_tell,
    ratio,
)
from traces.summary.run import Run
from traces.summary.votes import (
    PolicyOutcome,
    in_orders,
    majority_curve,
    pass_curve,
    policies_within,
    sample_counts,
)

MOST = 4_000  # problems that are judged one by one; of more, so many at random
MOST_BLOCKS = 16  # of a problem's samples, for rules that go by the order of ends


@dataclass(frozen=True, kw_only=True)
class Counterfactuals:
    """The policies that a run can judge, and `notes` on what it cannot.

    `columns` are judged on the same problems, for paired comparisons: all, or some at random. Where
    all is under a limit of tokens, that is `max_tokens`, and each outcome has it.
    """

    n: int
    problems: int
    max_tokens: int | None = None
    outcomes: tuple[PolicyOutcome, ...]
    columns: tuple[PolicyColumn, ...]
    notes: tuple[str, ...]


def evaluate(
    run: Run,
    answers: pl.DataFrame | None = None,
    *,
    order: ReplayedOrder | None = None,
    counts: Sequence[int] | None = None,
    max_tokens: int | None = None,
) -> Counterfactuals:
    """Return what other policies would have given on a run's problems.

    `answers` is the recording's table of forced answers. `order` says when fewer samples would have
    ended, else the recorded ends are taken. `counts` are numbers of samples, else 1, 2, 4, ... to
    those recorded, and twice and four times as many. With `max_tokens` all is under that limit.
    Raises RecordingError when the run cannot say (samples.py), UsageError for counts below 1 or
    above four times those recorded, and for limits beyond one that cut samples.
    """
    samples = read_samples(run, MOST)
    if not samples.problems:
        raise RecordingError(
            f"{samples.name}: no problem has {samples.n:,} judged samples that ended. Record again"
        )
    recorded = None if run.policy is None else run.policy.max_tokens
    if max_tokens is not None:
        samples, answers, order = limited(samples, max_tokens, recorded), None, None
    inside, beyond = _split(samples, counts)
    notes = list(samples.notes)
    columns = list(_fixed(samples, inside))
    if samples.n == 1:
        notes.append("one sample per problem: votes need more. Record with --n 8 or so")
    elif samples.answers_told:
        scored = [*_scored(samples, inside, notes)]
        columns += [*scored, *_finishing(samples, inside, order, notes, scored)]
    else:
        notes.append(
            "right samples come without their answers, so no vote of several samples is known. "
            "Maj@1 is the share of right samples"
        )
    if max_tokens is None and samples.answers_told:
        columns += _limits(samples)
    outcomes, of = _estimates(columns), len(samples.problems)
    if samples.of > of:
        outcomes, of = _of_all(samples, inside, outcomes), samples.of
    if samples.n > 1:
        has_answers = samples.answers_told
        model = fitted(
            tuple(
                count_answers(p.answers, p.correct)
                if has_answers
                else AnswerCounts(right=(sum(p.correct),), unparsed=samples.n - sum(p.correct))
                for p in samples.problems
            )
        )
        outcomes = [*fresh_runs(model, outcomes, methods=("majority", "pass_at_k"), of=of)]
        tokens = np.array([float(p.tokens.mean()) for p in samples.problems])
        reached = float(np.mean([any(p.correct) for p in samples.problems]))
        outcomes += [
            each
            for each in extrapolate(model, beyond, tokens, reached=reached, of=of)
            if has_answers or each.method == "pass_at_k"
        ]
    if samples.answers_told:
        outcomes += _budgets(samples, answers, notes)
    if max_tokens is not None:
        outcomes = [replace(each, max_tokens=max_tokens) for each in outcomes]
        columns = [
            replace(each, outcome=replace(each.outcome, max_tokens=max_tokens)) for each in columns
        ]
    return Counterfactuals(
        n=samples.n,
        problems=samples.of,
        max_tokens=max_tokens,
        outcomes=tuple(outcomes),
        columns=tuple(columns),
        notes=tuple(notes),
    )


def evaluate_curve(
    run: Run,
    *,
    counts: Sequence[int] | None = None,
    max_tokens: int | None = None,
) -> Counterfactuals:
    """Return votes of a run that is a published curve: at its points, between and beyond them.

    Raises UsageError for counts below 1 or above four times the largest published, and for limits
    of tokens, which a curve cannot tell.
    """
    curve = run.curve
    assert curve is not None
    if max_tokens is not None:
        raise UsageError(
            f"--max-tokens {max_tokens:,}: {run.recording} is a published curve, which "
            "has no lengths of samples. Import outcomes of samples"
        )
    most = FARTHEST * curve.most
    for count in counts or ():
        if not 1 <= count <= most:
            raise UsageError(
                f"k = {count:,}: {run.recording} was published for up to {curve.most:,} samples, "
                f"which can say something of 1 to {most:,}"
            )
    points = {point.n: point for point in curve.points}
    usual = {*learned(list(points)), *sample_counts(curve.most), 2 * curve.most, most}
    wanted = sorted(usual if counts is None else {*counts})
    model = CurveAccuracy(curve, wanted)
    outcomes = []
    for n in wanted:
        share = model.estimate(n)
        tokens = points[n].tokens if n in points else n * curve.tokens_per_sample
        outcomes.append(
            replace(
                _outcome("majority", n, basis="published" if n in points else "model"),
                accuracy=share,
                tokens_per_problem=Estimate(
                    value=tokens, unit="tokens", extrapolated=n not in points
                ),
                other_problems=model.other_problems(n),
            )
        )
    return Counterfactuals(
        n=curve.most,
        problems=curve.problems,
        outcomes=tuple(outcomes),
        columns=(),
        notes=(
            "assumed: problems are alike but for chance, answers follow some law (a beta with "
            "problems never or always solved, and mistakes that gather or scatter), and votes "
            "of more samples hold those of fewer. Intervals weigh 1,500 such laws by the points",
            "a curve knows no problem by itself, so that pass@k, rules that stop early, limits of "
            "tokens and pairs are not judged. Import outcomes of samples for these",
        ),
    )


def _split(samples: SampledRun, counts: Sequence[int] | None) -> tuple[list[int], list[int]]:
    most = FARTHEST * samples.n
    if counts is None:
        return sample_counts(samples.n), [2 * samples.n, most]
    for count in counts:
        if not 1 <= count <= most:
            raise UsageError(
                f"k = {count:,}: {samples.name} has {samples.n:,} samples per problem, which can "
                f"say something of 1 to {most:,}. Record more"
            )
    wanted = sorted(set(counts))
    return [k for k in wanted if k <= samples.n], [k for k in wanted if k > samples.n]


def _fixed(samples: SampledRun, counts: Sequence[int]) -> Iterator[PolicyColumn]:
    """Return maj@k and pass@k, exactly; without the answers a vote of one sample alone."""
    places = [k - 1 for k in counts]
    problems = samples.problems
    voted = np.array([majority_curve(p.answers, p.correct)[places] for p in problems])
    passed = np.array([pass_curve(samples.n, sum(p.correct))[places] for p in problems])
    each = np.array([float(p.tokens.mean()) for p in problems])
    for method, table in (("majority", voted), ("pass_at_k", passed)):
        for place, k in enumerate(counts):
            if method == "majority" and not samples.answers_told:
                if k == 1:
                    yield PolicyColumn(_outcome(method, k), passed[:, place], each)
                continue
            right = table[:, place]
            basis = in_orders(method, k, samples.n, float(right.mean()))
            yield PolicyColumn(_outcome(method, k, **basis), right, each * k)


def _of_all(
    samples: SampledRun, counts: Sequence[int], outcomes: Sequence[PolicyOutcome]
) -> list[PolicyOutcome]:
    """Return the outcomes with fixed votes of all problems instead of those at random.

    A rule that decides as the vote of all its samples has the accuracy of that vote.
    """
    ended = samples.rows.with_columns(pl.col("correct").fill_null(False), end=pl.lit(0))
    fixed_votes = {
        (each.method, each.n): each for each in policies_within(ended, samples.n, counts=counts)
    }

    def known(each: PolicyOutcome) -> PolicyOutcome:
        if each.max_tokens is not None:
            return each
        if not each.rule:
            return fixed_votes.get((each.method, each.n), each)
        vote, spec = fixed_votes.get(("majority", each.n)), METHODS[each.method]
        stop = _policy(each.method, each.n, each.rule).stop
        if vote is None or not spec.plurality or not decides_as_vote(stop, each.n):
            return each
        return replace(each, accuracy=vote.accuracy, other_problems=vote.other_problems)

    return [known(each) for each in outcomes]


def _limits(samples: SampledRun) -> Iterator[PolicyColumn]:
    """Return votes of one and of all under smaller max_tokens, exactly: what is cut has no vote."""
    if samples.rows["output_tokens"].null_count():
        return
    lengths = np.concatenate([problem.tokens for problem in samples.problems])
    for most in limits_that_cut(lengths.astype(int).tolist()):
        for each in _fixed(limited(samples, most, most), sorted({1, samples.n})):
            if each.outcome.method == "majority":
                yield replace(each, outcome=replace(each.outcome, max_tokens=most))


def _outcome(method: str, n: int, **fields: Any) -> PolicyOutcome:
    return PolicyOutcome(
        method=method, n=n, budget_tokens=None, accuracy=None, tokens_per_problem=None, **fields
    )


def _scored(samples: SampledRun, counts: Sequence[int], notes: list[str]) -> Iterator[PolicyColumn]:
    """Return best-of-k, weighted and filtered votes, windows and adaptive votes one by one."""
    problems = samples.problems
    likely = [p.logprob_mean for p in problems]
    confidence = [p.confidence for p in problems]
    scores, weights, has_scores = _scores(problems, notes)
    has_confidence = _known(confidence, "confidence_min_window", "", [])
    # A mean log-probability ranks as a confidence does, and weighs as its exponential.
    ranks = confidence if has_confidence else likely
    logs = [_log(each) for each in confidence] if has_confidence else likely
    has_ranks = has_confidence or _known(likely, "logprob_mean", "", [])
    several = [k for k in counts if k > 1]
    if has_scores:
        curves = np.array([best_of_curve(p, s) for p, s in zip(problems, scores, strict=True)])
        each = np.array([float(p.tokens.mean()) for p in problems])
        for k in several:
            yield PolicyColumn(_outcome("best_of_n", k), curves[:, k - 1], each * k)
    rng = np.random.default_rng([0, 4])
    each_gets = order_count(len(problems))
    orders = [RandomOrders(problem, rng, each_gets) for problem in problems]
    for k in several:
        rows: list[tuple[str, Mapping[str, float], list[Expectation]]] = []
        if has_scores:
            votes = [o.weighted(k, logs_) for o, logs_ in zip(orders, weights, strict=True)]
            rows.append(("weighted", {}, votes))
        if has_ranks:
            for rule in METHODS["confidence"].judged(k):
                votes = [
                    o.confident(k, rank, log, rule["keep"])
                    for o, rank, log in zip(orders, ranks, logs, strict=True)
                ]
                rows.append(("confidence", rule, votes))
        for method, rule, stop in _stopping(k):
            if by_launch(stop):
                votes = [o.until(k, stop) for o in orders]
                if decides_as_vote(stop, k):
                    votes = [
                        Expectation(float(right), each.tokens)
                        for right, each in zip(_vote(problems, k), votes, strict=True)
                    ]
                rows.append((method, rule, votes))
        for method, rule, votes in rows:
            spread = float(np.sqrt(sum(vote.variance for vote in votes))) / len(votes)
            exact = METHODS[method].all_samples_end and has_few_subsets(samples.n, k)
            error = None if exact else spread if spread > ROUNDING else 0.0
            basis = "subsets" if exact else "monte_carlo"
            yield PolicyColumn(
                _outcome(method, k, rule=rule, basis=basis, error=error),
                np.array([vote.right for vote in votes]),
                np.array([vote.tokens for vote in votes]),
            )


def _vote(problems: Sequence[ProblemSamples], n: int) -> Floats:
    """Return how often the vote of n of each problem's samples is right, exactly."""
    return np.array([majority_curve(p.answers, p.correct)[n - 1] for p in problems])


def _scores(
    problems: Sequence[ProblemSamples], notes: list[str]
) -> tuple[list[Floats], list[Floats], bool]:
    """Return what ranks samples, the logarithms of what they weigh, and whether any has some.

    As profiler/policies/choices.py has it: a reward model's score weighs as it is and a negative
    one nothing, else the mean log-probability ranks and weighs as its exponential.
    """
    what = "best_of_n and weighted votes"
    scores = [p.score for p in problems]
    if not _known(scores, "score", "", []):
        scores = [p.logprob_mean for p in problems]
        return scores, scores, _known(scores, "logprob_mean", what, notes)
    _known(scores, "score", what, notes)
    notes.append(f"{what} go by the score of each sample. What a reward model takes is not in them")
    negative, total = sum(int((each < 0).sum()) for each in scores), sum(map(len, scores))
    if negative:
        notes.append(
            f"scores below 0: {negative:,} of {total:,}. They weigh nothing in weighted votes. "
            "Give probabilities for these"
        )
    return scores, [_log(each) for each in scores], True


def _stopping(n: int) -> Iterator[tuple[str, Mapping[str, float], Stop]]:
    """Yield the rules that stop a vote of n early: method, parameters and rule."""
    for method in METHODS.values() if n >= FEWEST else ():
        for rule in method.judged(n):
            stop = _policy(method.name, n, rule).stop
            if method.stops_early and stop is not None:
                yield method.name, rule, stop


def _policy(method: str, n: int, rule: Mapping[str, float]) -> Policy:
    return Policy(method=method, n=n, rule=tuple(rule.items()))


def _log(weights: Floats) -> Floats:
    """Return logarithms, -inf of what has no weight; what is not known stays so."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.isnan(weights), np.nan, np.log(np.maximum(weights, 0.0)))


def _known(numbers: Sequence[Floats], name: str, what: str, notes: list[str]) -> bool:
    """Return whether any sample has the number; tell how many lack it."""
    missing = sum(int((~np.isfinite(each)).sum()) for each in numbers)
    total = sum(map(len, numbers))
    if missing == total:
        if what:
            notes.append(f"no {name} is known, so {what} are not judged")
        return False
    if missing and what:
        notes.append(
            f"samples whose {name} is missing or not a number: {missing:,} of {total:,}. They "
            f"cannot win or weigh in {what}"
        )
    return True


def _finishing(
    samples: SampledRun,
    counts: Sequence[int],
    order: ReplayedOrder | None,
    notes: list[str],
    scored: Sequence[PolicyColumn],
) -> Iterator[PolicyColumn]:
    """Return the rules that go by the order of ends: as recorded, replayed, or of the tokens.

    One that decides as the vote of all its samples in every order is as right as that vote, which
    `scored` has where samples weigh.
    """
    problems = samples.problems
    weighted = {each.outcome.n: each for each in scored if each.outcome.method == "weighted"}
    # One to come may weigh 1 at most, but for scores that are no probabilities.
    by_score = any(np.isfinite(p.score).any() for p in problems)
    bounded = not any((p.score > 1).any() for p in problems)
    unknown = sum(int((~np.isfinite(p.finish_s)).sum()) for p in problems)
    total = sum(len(p.finish_s) for p in problems)
    if 0 < unknown < total:
        notes.append(
            f"samples whose end or latency is not known: {unknown:,} of {total:,}, so rules that "
            "stop early are not judged"
        )
        return
    untimed = unknown > 0 or max(p.finish_s.max() for p in problems) <= 0
    if untimed and not all((p.tokens > 0).all() for p in problems):
        notes.append(
            "neither finish times nor the tokens of every sample are recorded, so rules that stop "
            "early while all samples run, such as first_finish, are not judged"
        )
        return
    if untimed:
        notes.append(
            "finish times are not recorded, so samples are taken to end in the order of their "
            "tokens, as if all of a problem began together and none waited"
        )
        problems = tuple(
            replace(p, finish_s=p.tokens, first_token_s=np.full(len(p.tokens), np.nan))
            for p in problems
        )
    for n in (k for k in counts if k >= FEWEST):
        blocks, basis = _blocks(problems, n, None if n == samples.n or untimed else order)
        basis = "token_order" if untimed else basis
        rules = [(*each, False) for each in _stopping(n) if not by_launch(each[2])]
        if n in weighted and bounded:
            rules.append(("weighted", {"settled": 1}, Stop(rule=SETTLED, value=1), True))
        vote = _vote(problems, n)
        votes = np.array([[_whole_vote(block) for block in own] for own in blocks])
        for method, rule, stop, weigh in rules:
            decided = [[_decide(block, stop, weigh, by_score) for block in own] for own in blocks]
            tokens = np.array([[each.tokens for each in own] for own in decided]).mean(axis=1)
            error = None
            if weigh:
                right, error = weighted[n].right, weighted[n].outcome.error
            elif decides_as_vote(stop, n):
                right = vote
            else:
                ended = np.array([[each.right for each in own] for own in decided])
                right = _without_luck(ended, votes, vote)
            yield PolicyColumn(
                _outcome(method, n, rule=rule, basis=basis, error=error, tokens_estimated=True),
                right,
                tokens,
            )


def _whole_vote(problem: ProblemSamples) -> float:
    """Return how often the vote of all samples is right."""
    return float(majority_curve(problem.answers, problem.correct)[-1])


def _without_luck(right: Floats, votes: Floats, vote: Floats) -> Floats:
    """Return how often a rule is right [problems], by blocks [problems, blocks] of samples.

    `votes` are how often the vote of all is right in the same blocks, and `vote` that over all
    subsets. As far as the rule goes with the vote of a block, what its blocks have more or less
    than all subsets is taken off (a control variate, with one slope for all problems). Of one
    problem the result may lie beyond 0 and 1. It is right in the mean.
    """
    luck = votes - votes.mean(axis=1, keepdims=True)
    spread = float((luck**2).sum())
    slope = float((luck * right).sum()) / spread if spread else 0.0
    own = right.mean(axis=1)
    found = own - slope * (votes.mean(axis=1) - vote)
    return np.asarray(found if 0 <= found.mean() <= 1 else own)


def _blocks(
    problems: Sequence[ProblemSamples], n: int, order: ReplayedOrder | None
) -> tuple[list[list[ProblemSamples]], str]:
    """Return each problem's blocks of n samples by index, and whose ends they have.

    Which samples are launched says nothing of their length; which of them end first does. Blocks
    follow each other in the recorded order, then in random ones, so that each sample is in as many,
    but where one order alone has more than MOST_BLOCKS.
    """
    count = len(problems[0].answers)
    in_order = count // gcd(count, n)
    rng, blocks, sequence = np.random.default_rng(count), [], np.arange(count)
    for _ in range(max(MOST_BLOCKS // in_order, 1) if n < count else 1):
        for block in range(min(in_order, MOST_BLOCKS)):
            places = sequence[(block * n + np.arange(n)) % count]
            blocks.append(sorted(places.tolist()))
        sequence = rng.permutation(count)
    recorded = [[each.take(places) for places in blocks] for each in problems]
    if order is None:
        return recorded, "finish_order"
    replayed: list[list[ProblemSamples]] = []
    for each in problems:
        parts = [part for places in blocks if (part := order.of(each, places)) is not None]
        if len(parts) < len(blocks):
            return recorded, "finish_order"
        replayed.append(parts)
    return replayed, "replayed_order"


def _decide(block: ProblemSamples, stop: Stop, weigh: bool, by_score: bool) -> Decided:
    """Return the decision of samples that are launched together."""
    if not weigh:
        return decide(block, stop)
    return _weighed(block, _log(block.score) if by_score else block.logprob_mean)


def _weighed(problem: ProblemSamples, weights: Floats) -> Decided:
    """Run the weighted vote that stops when its leader cannot be caught, by logarithms of weights.

    Weights are relative to the largest, and so is 1, the most that one to come may weigh. Where no
    sample with an answer has a weight, the plurality decides.
    """
    parsed = np.array([answer is not None for answer in problem.answers])
    able = np.isfinite(weights) & parsed
    if not able.any():
        return decide(problem, Stop(rule=SETTLED, value=1))
    logs = np.where(able, weights, -np.inf)
    most = float(logs.max())
    with np.errstate(over="ignore"):
        bound = float(np.exp(-most))
    return decide(problem, Stop(rule=SETTLED, value=bound), np.exp(logs - most))


def _budgets(
    samples: SampledRun, answers: pl.DataFrame | None, notes: list[str]
) -> list[PolicyOutcome]:
    """Return votes at budgets of thought; those at checkpoints with the interval of a fresh run."""
    cut = {} if answers is None else at_checkpoints(samples, answers)
    if not cut:
        bounds = lower_bounds(samples)
        if bounds:
            notes.append(
                "thinking budgets are lower bounds (finished in time and right). Record with "
                "--budget-checkpoints to know them"
            )
        return _estimates(bounds)
    outcomes: list[PolicyOutcome] = []
    for columns, counts in cut.values():
        votes = _estimates(columns)
        if len(votes) > 1:
            model = fitted(tuple(counts))
            votes = [*fresh_runs(model, votes, methods=("majority",), of=len(counts))]
        outcomes += votes
    for (one, (low, _)), (two, (high, _)) in pairwise(cut.items()):
        if two - one > 1:
            outcomes += _estimates(list(map(between, low, high)))
    return sorted(outcomes, key=lambda each: (each.n, each.budget_tokens or 0))


def _estimates(columns: Sequence[PolicyColumn]) -> list[PolicyOutcome]:
    """Return the outcomes with their estimates; intervals are of the mean over problems."""
    if not columns:
        return []
    accuracy = column_means(np.stack([each.right for each in columns], axis=1), "1")
    tokens = column_means(np.stack([each.tokens for each in columns], axis=1), "tokens")
    return [
        replace(
            each.outcome,
            accuracy=share,
            tokens_per_problem=count if np.isfinite(count.value) else None,
            other_problems=others_of(each.right).interval(),
        )
        for each, share, count in zip(columns, accuracy, tokens, strict=True)
    ]


# Which policy to prefer among those judged on the same problems.


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


def compare_policies(column: PolicyColumn, reference: PolicyColumn) -> Comparison:
    """Return the paired comparison of two policies judged on the same problems."""
    difference = paired(reference.right, column.right, "1")
    assert difference is not None  # of no problem there is no column
    return Comparison(
        policy=column.outcome,
        reference=reference.outcome,
        problems=len(column.right),
        difference=difference,
        tokens_share=ratio(column.tokens, reference.tokens, "1"),
        problems_to_tell=problems_to_tell(difference, len(column.right)),
        all_equal=not apart(reference.right, column.right).any(),
    )


def cheapest_as_good(found: Counterfactuals) -> Comparison | None:
    """Return the policy of fewest tokens that loses at most MARGIN against the vote of all.

    Chosen on one half of the problems and stated on the other, since the best of many by the same
    numbers looks better than it is. None without such a policy, where the other half does not show
    it, or below 20 problems.
    """
    if found.problems < 20 or not found.columns:
        return None
    shuffled = np.random.default_rng([0, 5]).permutation(len(found.columns[0].right))
    choosing, stating = shuffled[::2], shuffled[1::2]
    whole_ones = [each for each in found.columns if each.outcome.max_tokens == found.max_tokens]
    by_key = {(each.outcome.method, each.outcome.n): each for each in whole_ones}
    vote_of_all = by_key.get(("majority", found.n))
    if vote_of_all is None:
        return None
    reference = _part(vote_of_all, choosing)
    able: list[tuple[float, int, PolicyColumn]] = []
    for column in found.columns:
        if column.outcome.method == "pass_at_k" or not np.isfinite(column.tokens).all():
            continue
        part = _part(column, choosing)
        difference = paired(reference.right, part.right, "1")
        if difference is not None and _as_good(difference):
            able.append((float(part.tokens.mean()), len(able), column))
    if not able:
        return None
    best = min(able)[2]
    if best is vote_of_all:
        return None
    stated = compare_policies(_part(best, stating), _part(vote_of_all, stating))
    return stated if _as_good(stated.difference) else None


def _as_good(difference: Estimate) -> bool:
    """Whether an interval of a difference leaves out a loss above MARGIN."""
    return difference.low is not None and difference.low >= -MARGIN


def _part(column: PolicyColumn, places: np.ndarray) -> PolicyColumn:
    return PolicyColumn(column.outcome, column.right[places], column.tokens[places])
