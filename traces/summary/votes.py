"""What fewer samples would have answered: maj@k and pass@k from the samples of a recording.

Both are exact expectations over the subsets of k of the n recorded samples. A vote is a plurality:
answers that do not parse have no vote, a tie is shared equally among the answers that lead, and
where nothing was answered the problem is wrong.

Only recordings whose samples all ran to their end say this without bias: where a rule cancelled
samples, the ones that remain are the short ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from traces.schema.estimate import Estimate, Interval
from traces.schema.record import Record
from traces.schema.tts.published import PublishedCurve
from traces.statistics import Floats, column_means, mean, others_of
from traces.summary.problems import all_judged, answers_told, mostly_told


@dataclass(frozen=True, kw_only=True)
class PolicyOutcome(Record):
    """What a policy would have given, from the samples that this recording contains.

    `method` is a `Policy`'s, or `pass_at_k`; `rule` its parameters. `bound` is None where the
    accuracy is what it would have been, `lower` where it would have been at least that, and
    `interpolated` between two budgets at which it is known. `basis` says what it rests on:
    `subsets` (exact), `monte_carlo` (random subsets, which add the standard error `error`),
    `finish_order` (as recorded), `replayed_order`, `token_order` (no times are known),
    `checkpoints`, `published` (a point of a curve) or `model`. Samples cut at `max_tokens`, below
    the recorded limit, have no vote. `tokens_estimated`: the tokens of cancelled samples were taken
    from their pace. The accuracy of a fresh run on the same problems falls into the interval of
    `fresh_run`, that of a run on as many others into that of `other_problems`.
    """

    method: str
    n: int
    budget_tokens: int | None
    accuracy: Estimate | None
    tokens_per_problem: Estimate | None
    bound: str | None = None
    rule: Mapping[str, float] = field(default_factory=dict)
    basis: str = "subsets"
    error: float | None = None
    tokens_estimated: bool = False
    fresh_run: Estimate | None = None
    other_problems: Estimate | None = None
    max_tokens: int | None = None


def published_votes(curve: PublishedCurve) -> tuple[PolicyOutcome, ...]:
    """Return the points of a published curve; no interval is known of them by themselves."""
    return tuple(
        PolicyOutcome(
            method="majority",
            n=point.n,
            budget_tokens=None,
            accuracy=Estimate(value=point.accuracy, unit="1"),
            tokens_per_problem=Estimate(value=point.tokens, unit="tokens"),
            basis="published",
        )
        for point in curve.points
    )


def sample_counts(n: int) -> list[int]:
    """Return 1, 2, 4, ... and n itself."""
    counts = [1]
    while counts[-1] * 2 <= n:
        counts.append(counts[-1] * 2)
    return counts if counts[-1] == n else [*counts, n]


@lru_cache(maxsize=4096)
def pass_curve(n: int, right: int) -> Floats:
    """Return the chance that any of k of n samples is right, for k = 1 .. n.

    1 - C(n - right, k) / C(n, k), which is without bias (Chen et al. 2021).
    """
    drawn = np.arange(n)
    curve = np.asarray(1.0 - np.cumprod(np.maximum(n - right - drawn, 0) / (n - drawn)))
    curve.setflags(write=False)
    return curve


def majority_curve(
    answers: Sequence[Hashable], correct: Sequence[bool | None], most: int | None = None
) -> Floats:
    """Return the chance that a vote of k of the samples is right, for k = 1 .. n, or up to `most`.

    An answer that was judged both ways counts by its share of right ones. Of more than MOST_EXACT
    samples it is the mean over random orders of them. Raises ValueError when the two differ in
    length.
    """
    votes = Counter(answers)
    right = Counter([a for a, flag in zip(answers, correct, strict=True) if flag])
    unparsed = votes.pop(None, 0)
    total = len(answers) if most is None else min(most, len(answers))
    return _curve([(size, right[answer]) for answer, size in votes.items()], unparsed, total)


def _curve(voted: Sequence[tuple[int, int]], unparsed: int, total: int) -> Floats:
    """Return the chance for k = 1 .. total; of each answer the samples and the right ones."""
    sizes = sorted(size for size, _ in voted)
    samples = sum(sizes) + unparsed
    exact = total if samples <= MOST_EXACT else min(total, ALWAYS_EXACT)
    curve = np.zeros(exact)
    for size, right in voted:
        if right:
            others = sizes.copy()
            others.remove(size)
            curve += right / size * win_probability(size, tuple(others), unparsed, exact)
    if exact == total:
        return curve
    each, rights = np.array(sorted(voted), dtype=np.int64).reshape(-1, 2).T
    return np.append(curve, _by_orders(each, rights / each, unparsed)[exact:total])


MOST_EXACT = 1000  # samples of a problem; of more there are too many subsets for floats
ALWAYS_EXACT = 8  # samples of a vote, of however many
_ORDERS = 128  # of the samples of a problem with more
_PLACES = 1.1  # from one number of samples at which their votes are counted to the next
_CELLS = 2_000_000  # samples in orders held at once


def in_orders(method: str, k: int, n: int, accuracy: float) -> dict[str, Any]:
    """Return on what votes of k of n samples rest where there are too many subsets to be exact.

    The standard error is at most that of one problem: problems with the same votes have the same
    orders.
    """
    if method != "majority" or n <= MOST_EXACT or k <= ALWAYS_EXACT or k == n:
        return {}
    error = np.sqrt(max(accuracy * (1 - accuracy), 0.0) / _ORDERS)
    return {"basis": "monte_carlo", "error": float(error)}


def _by_orders(sizes: NDArray[np.int64], right: Floats, unparsed: int) -> Floats:
    """Return how often votes of k samples are right, k = 1 .. all, over random orders.

    `sizes` are the samples of each answer, `right` the share of these that is right. The vote of
    all is exact. Numbers between those at which votes are counted lie on a line between these.
    """
    samples, classes = int(sizes.sum()) + unparsed, len(sizes) + 1
    codes = np.repeat(np.arange(classes), np.append(sizes, unparsed))
    steps = range(int(np.log(samples) / np.log(_PLACES)) + 1)
    counts = sorted({round(_PLACES**step) for step in steps} | set(sample_counts(samples)))
    rng = np.random.default_rng([samples, classes])
    shares, at_once = np.zeros(len(counts)), max(_CELLS // samples, 1)
    for first in range(0, _ORDERS, at_once):
        rows = min(at_once, _ORDERS - first)
        orders = rng.permuted(np.broadcast_to(codes, (rows, samples)), axis=1)
        orders += classes * np.arange(rows)[:, None]
        tally, before = np.zeros((rows, classes), dtype=np.int64), 0
        for place, count in enumerate(counts):
            more = np.bincount(orders[:, before:count].ravel(), minlength=tally.size)
            tally, before = tally + more.reshape(tally.shape), count
            shares[place] += _share_right(tally[:, :-1], right).sum()
    shares /= _ORDERS
    shares[-1] = _share_right(sizes[None], right)[0]
    return np.asarray(np.interp(np.arange(1, samples + 1), counts, shares), dtype=float)


def _share_right(tally: NDArray[np.int64], right: Floats) -> Floats:
    """Return the right share of the answers with the most votes, of each row."""
    most = tally.max(axis=1, keepdims=True, initial=0)
    leads = (tally == most) & (most > 0)
    return np.asarray(leads @ right / np.maximum(leads.sum(axis=1), 1))


@lru_cache(maxsize=4096)
def win_probability(
    own: int, others: tuple[int, ...], unparsed: int, most: int | None = None
) -> Floats:
    """Return the share of wins of an answer in votes over k of all samples, for k = 1 .. all.

    Or up to `most`, which takes less where there are many samples.

    The answer has `own` of the samples, the other answers have `others`, and `unparsed` have no
    vote. A tie among t answers counts 1 / t. With v votes for the answer the other answers' votes
    are counted by a multivariate hypergeometric recursion, together with how many of them also
    have v.
    """
    samples = own + sum(others) + unparsed
    total = samples if most is None else most
    wins = np.zeros(total + 1)
    own_ways = _binomials(own, total)
    for votes in range(1, min(own, total) + 1):
        ways = _ways_not_above(votes, others, unparsed, total)
        shared = ways @ (1.0 / np.arange(1, ways.shape[1] + 1))
        wins[votes:] += own_ways[votes] * shared[: total + 1 - votes]
    chances = np.minimum(wins[1:] / _binomials(samples, total)[1:], 1.0)
    chances.setflags(write=False)
    return np.asarray(chances)


@lru_cache(maxsize=1024)
def _binomials(n: int, most: int) -> Floats:
    """Return C(n, 0 .. n), or up to `most`, as floats, exact to rounding up to n = 1000."""
    row = np.ones(min(n, most) + 1)
    for k in range(1, len(row)):
        row[k] = row[k - 1] * (n - k + 1) / k
    return row


def _ways_not_above(votes: int, others: tuple[int, ...], unparsed: int, total: int) -> Floats:
    """Return [samples, ties]: ways to draw so many samples with no other answer above `votes`.

    At most `total` samples are drawn. `ties` is how many of the other answers have exactly `votes`.
    """
    able = sum(size >= votes for size in others)
    ways = np.zeros((total + 1, able + 1))
    reach = min(unparsed, total)
    ways[: reach + 1, 0] = _binomials(unparsed, total)
    for size in others:
        choose = _binomials(size, total)
        grown = np.zeros_like(ways)
        for drawn in range(min(size, votes) + 1):
            rows = min(reach, total - drawn) + 1
            span = slice(drawn, drawn + rows)
            if drawn < votes:
                grown[span] += choose[drawn] * ways[:rows]
            else:
                grown[span, 1:] += choose[drawn] * ways[:rows, :-1]
        reach = min(reach + min(size, votes), total)
        ways = grown
    return ways


def _majority_curves(samples: pl.DataFrame, n: int) -> Floats:
    """Return [problems, n]: `majority_curve` of each problem, in the order of their numbers.

    Problems with the same votes have the same curve, and there are few such.
    """
    classes = samples.group_by("problem", "answer").agg(
        size=pl.len().cast(pl.Int64), right=pl.col("correct").fill_null(False).sum().cast(pl.Int64)
    )
    none = pl.col("answer").is_null()
    code = pl.when(none).then(-pl.col("size")).otherwise(pl.col("size") * (n + 1) + pl.col("right"))
    signed = (
        classes.select("problem", code=code)
        .sort("problem", "code")
        .group_by("problem", maintain_order=True)
        .agg(pl.col("code").cast(pl.Utf8).str.join(" "))
    )
    curves: dict[str, Floats] = {}
    for name in signed["code"].unique():
        codes = [int(part) for part in name.split()]
        unparsed = -sum(each for each in codes if each < 0)
        voted = [divmod(each, n + 1) for each in codes if each > 0]
        curves[name] = _curve(voted, unparsed, n)
    names = list(curves)
    places = signed.select(pl.col("code").replace_strict(names, range(len(names))))["code"]
    taken: Floats = np.array([curves[name] for name in names])[places.to_numpy()]
    return taken


def accuracy(right: Floats) -> Estimate | None:
    """Return the accuracy of a run by its problems' results `right`, nan where not judged.

    Its interval is of all problems like these, and that of `others` one more run. Both have the law
    of maj@n, so that a vote without ties has one interval.
    """
    known = right[np.isfinite(right)]
    if not known.size:
        return None
    (mean,), other = column_means(known[:, None], "1"), others_of(known).interval()
    return replace(mean, others=Interval(low=other.low, high=other.high))


def judged_both_ways(samples: pl.DataFrame) -> bool:
    """Whether samples with one answer to a problem are marked both right and wrong."""
    answers = samples.drop_nulls(["answer", "correct"]).group_by("problem", "answer")
    return bool((answers.agg(pl.col("correct").n_unique())["correct"] > 1).any())


def policies_within(
    samples: pl.DataFrame,
    n: int,
    *,
    most: int | None = None,
    counts: Sequence[int] | None = None,
) -> tuple[PolicyOutcome, ...]:
    """Return maj@k and pass@k of samples with `problem` numbers, k = 1, 2, 4 .. n, or `counts`.

    The last k is `most` where given. Only problems with n ended samples that were judged count.
    Where right samples lack their answers the only vote known is of one sample, pass@1. The tokens
    are k/n of the problem's, as a random subset takes on average, over the problems whose samples
    all have some. They are None where these are not nearly all.
    """
    counted = (
        samples.select("problem", "answer", "correct", "end", "output_tokens")
        .group_by("problem")
        .agg(
            rows=pl.len(),
            ended=pl.col("end").is_not_null().all(),
            judged=all_judged(samples),
            right=pl.col("correct").sum(),
            tokens=pl.when(pl.col("output_tokens").is_not_null().all()).then(
                pl.col("output_tokens").sum()
            ),
        )
    )
    complete = counted.filter(pl.col("rows") == n, "ended", "judged").sort("problem")
    if not complete.height:
        return ()
    counts = sample_counts(most or n) if counts is None else counts
    places = [k - 1 for k in counts]
    rights, place = np.unique(complete["right"].to_numpy(), return_inverse=True)
    passed = np.array([pass_curve(n, int(right))[places] for right in rights])[place]
    has_answers, voted = answers_told(samples), passed  # one sample needs no vote
    if has_answers:
        answers = samples.select("problem", "answer", "correct")
        voted = _majority_curves(
            answers.join(complete.select("problem"), on="problem", how="semi"), n
        )
        voted = voted[:, places]
    tokens = complete["tokens"].cast(pl.Float64).fill_null(np.nan).to_numpy() / n
    has_tokens = tokens[np.isfinite(tokens)] if mostly_told(tokens) else tokens[:0]
    taken = {k: mean(has_tokens * k, "tokens") if has_tokens.size else None for k in counts}
    policies = [(method, k) for method in ("majority", "pass_at_k") for k in counts]
    shares = np.hstack([voted, passed])
    return tuple(
        PolicyOutcome(
            method=method,
            n=k,
            budget_tokens=None,
            accuracy=accuracy,
            tokens_per_problem=taken[k],
            **in_orders(method, k, n, accuracy.value),
            other_problems=others_of(column).interval(),
        )
        for (method, k), accuracy, column in zip(
            policies, column_means(shares, "1"), shares.T, strict=True
        )
        if has_answers or method != "majority" or k == 1
    )
