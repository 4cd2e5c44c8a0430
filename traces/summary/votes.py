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
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import polars as pl
from numpy.typing import NDArray

from traces.schema.estimate import Estimate
from traces.schema.record import Record
from traces.schema.tts.published import PublishedCurve
from traces.statistics import Floats, binomial, column_means, mean, of_others


@dataclass(frozen=True, kw_only=True)
class PolicyOutcome(Record):
    """What a policy would have given, from the samples that this recording contains.

    `method` is a `Policy`'s, or `pass_at_k`; `rule` its parameters. `bound` is None where the
    accuracy is what it would have been, `lower` where it would have been at least that, and
    `interpolated` between two budgets at which it is known. `basis` says what it rests on:
    `subsets` (exact), `monte_carlo` (random subsets, `error` being the standard error that this
    adds), `finish_order` (as recorded), `replayed_order`, `checkpoints`, `published` (a point of
    a curve) or `model`.
    `max_tokens` is a limit below the recorded one, whose cut samples have no vote.
    `tokens_estimated` says that the tokens of cancelled samples were taken from their pace.
    `fresh_run` has the interval in which the accuracy of a fresh run on the same problems falls,
    `other_problems` that of a run on as many others like them.
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


@lru_cache(maxsize=256)
def pass_curve(n: int, right: int) -> Floats:
    """Return the chance that any of k of n samples is right, for k = 1 .. n.

    1 - C(n - right, k) / C(n, k), which is without bias (Chen et al. 2021).
    """
    drawn = np.arange(n)
    found = np.asarray(1.0 - np.cumprod(np.maximum(n - right - drawn, 0) / (n - drawn)))
    found.setflags(write=False)
    return found


def majority_curve(
    answers: Sequence[Hashable],
    correct: Sequence[bool | None],
    counts: Sequence[int] | None = None,
) -> Floats:
    """Return the chance that a vote of k of the samples is right, for k = 1 .. n, or of `counts`.

    An answer that was judged both ways counts by its share of right ones. Raises ValueError when
    the two differ in length.
    """
    votes = Counter(answers)
    right = Counter([a for a, flag in zip(answers, correct, strict=True) if flag])
    unparsed = votes.pop(None, 0)
    places = None if counts is None else tuple(counts)
    curve = np.zeros(len(answers) if places is None else len(places))
    sizes = sorted(votes.values())
    for answer, own in votes.items():
        if right[answer]:
            others = sizes.copy()
            others.remove(own)
            curve += right[answer] / own * win_probability(own, tuple(others), unparsed, places)
    return curve


COUNTED = 1_000  # samples up to which the ways to draw some of them are numbers that a float holds
FEW = 300  # samples up to which it takes less to count them for all k than to ask for some


@lru_cache(maxsize=4096)
def win_probability(
    own: int, others: tuple[int, ...], unparsed: int, counts: tuple[int, ...] | None = None
) -> Floats:
    """Return the share of wins of an answer in votes over k of all samples, for k = 1 .. all.

    Or for `counts`, which takes less where there are many samples: of more than `COUNTED` all k are
    read off a line through some.

    The answer has `own` of the samples, the other answers have `others`, and `unparsed` have no
    vote. A tie among t answers counts 1 / t.
    """
    samples = own + sum(others) + unparsed
    wanted = np.arange(1, samples + 1) if counts is None else np.array(counts, dtype=int)
    if samples <= (COUNTED if counts is None else FEW):
        found = _counted_wins(own, others, unparsed, int(wanted.max(initial=0)))[wanted - 1]
    else:
        known = wanted
        if counts is None:
            steps = np.geomspace(16, samples, 2 * int(np.log2(samples / 16)) + 2)
            known = np.unique([*range(1, 16), *steps.round().astype(int)])
        shares = [_share_of_wins(own, others, unparsed, int(k)) for k in known]
        found = np.interp(np.log(wanted), np.log(known), shares) if counts is None else shares
    found = np.asarray(found, dtype=float)
    found.setflags(write=False)
    return found


def _counted_wins(own: int, others: tuple[int, ...], unparsed: int, total: int) -> Floats:
    """Return the share of wins in votes over k of the samples, k = 1 .. total.

    With v votes for the answer the other answers' votes are counted by a multivariate
    hypergeometric recursion, together with how many of them also have v.
    """
    samples = own + sum(others) + unparsed
    wins = np.zeros(total + 1)
    own_ways = _binomials(own)
    for votes in range(1, min(own, total) + 1):
        ways = _ways_not_above(votes, others, unparsed, total)
        shared = ways @ (1.0 / np.arange(1, ways.shape[1] + 1))
        wins[votes:] += own_ways[votes] * shared[: total + 1 - votes]
    return np.asarray(np.minimum(wins[1:] / _binomials(samples)[1 : total + 1], 1.0))


@lru_cache(maxsize=1024)
def _binomials(n: int) -> Floats:
    """Return C(n, 0 .. n) as floats, exact to rounding up to n = COUNTED."""
    row = np.ones(n + 1)
    for k in range(1, n + 1):
        row[k] = row[k - 1] * (n - k + 1) / k
    return row


def _ways_not_above(votes: int, others: tuple[int, ...], unparsed: int, total: int) -> Floats:
    """Return [samples, ties]: ways to draw so many samples with no other answer above `votes`.

    At most `total` samples are drawn. `ties` is how many of the other answers have exactly `votes`.
    """
    able = sum(size >= votes for size in others)
    ways = np.zeros((total + 1, able + 1))
    reach = min(unparsed, total)
    ways[: reach + 1, 0] = _binomials(unparsed)[: reach + 1]
    for size in others:
        choose = _binomials(size)
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


_TINY = 1e-18  # a probability that adds nothing
_MOST_NODES = 16  # of a quadrature over ties, which is exact up to twice as many tied answers


def _share_of_wins(own: int, others: tuple[int, ...], unparsed: int, k: int) -> float:
    """Return the share of wins in votes over k of many samples.

    Drawn with probability k / samples each, the answers' votes are independent and binomial, and
    given that k were drawn in all they are those of a subset of k. So the chance that no other
    answer has more than v votes, and all have k - v, is read off the product of the
    characteristic functions of their votes, cut at v. An answer with v votes counts z there: of t
    of them z^t has the mean 1 / (t + 1) over z from 0 to 1, which Gauss and Legendre's nodes give.
    """
    samples = own + sum(others) + unparsed
    if k == samples:
        return 0.0 if max(others, default=0) > own else 1.0 / (1 + others.count(own))
    chance = k / samples
    mine = binomial(own, chance)
    able = np.flatnonzero(mine > _TINY)
    least, most = max(int(able[0]), 1), int(able[-1])
    rivals = [(size, count, binomial(size, chance)) for size, count in Counter(others).items()]
    tops = [int(np.flatnonzero(votes > _TINY)[-1]) for _, _, votes in rivals]
    below = [np.cumsum(votes) for _, _, votes in rivals]
    if able[0] > max(tops, default=0):
        return 1.0
    width = int(20 * np.sqrt(samples * chance * (1 - chance))) + 101  # of all that has a chance
    width = min(width, samples + 1) | 1
    turn = np.exp(-2j * np.pi * np.arange(width) / width)
    half = np.arange(width // 2 + 1)
    twice = np.where(half == 0, 1.0, 2.0) / width
    free = np.log(1 - chance + chance * turn[half])
    cut = [_transform(votes[:least], width) for _, _, votes in rivals]
    total = 0.0
    for v in range(least, most + 1):
        held = [at for at, top in enumerate(tops) if v <= top]
        turned = turn[half * v % width]
        if all(below[at][v] > _TINY for at in held):
            loose = unparsed + sum(
                size * count for at, (size, count, _) in enumerate(rivals) if v > tops[at]
            )
            rest = np.exp(loose * free) * turn[-half * (k - v) % width] * twice
            tied = sum(rivals[at][1] for at in held)
            for node, weight in _nodes(min(tied // 2 + 1, _MOST_NODES)):
                product = rest
                for at in held:
                    _, count, votes = rivals[at]
                    product = product * (cut[at] + node * votes[v] * turned) ** count
                total += float(mine[v] * weight * product.real.sum())
        for at in held:
            cut[at] = cut[at] + rivals[at][2][v] * turned
    return min(max(total / float(binomial(samples, chance)[k]), 0.0), 1.0)


@lru_cache(maxsize=_MOST_NODES)
def _nodes(count: int) -> tuple[tuple[float, float], ...]:
    """Return the nodes between 0 and 1 of Gauss and Legendre's quadrature, with their weights."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return tuple(zip(((nodes + 1) / 2).tolist(), (weights / 2).tolist(), strict=True))


def _transform(amounts: Floats, width: int) -> NDArray[np.complex128]:
    """Return half the discrete Fourier transform, over `width` places, of amounts at 0, 1, .."""
    folded = np.bincount(np.arange(amounts.size) % width, weights=amounts, minlength=width)
    return np.asarray(np.fft.rfft(folded))


def _majority_curves(samples: pl.DataFrame, n: int, counts: tuple[int, ...]) -> Floats:
    """Return [problems, counts]: `majority_curve` of each problem, in the order of their numbers.

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
        sizes = sorted(size for size, _ in voted)
        curve = np.zeros(len(counts))
        for size, right in voted:
            if right:
                others = sizes.copy()
                others.remove(size)
                curve += right / size * win_probability(size, tuple(others), unparsed, counts)
        curves[name] = curve
    names = list(curves)
    places = signed.select(pl.col("code").replace_strict(names, range(len(names))))["code"]
    taken: Floats = np.array([curves[name] for name in names])[places.to_numpy()]
    return taken


def policies_within(
    samples: pl.DataFrame,
    n: int,
    *,
    most: int | None = None,
    counts: Sequence[int] | None = None,
) -> tuple[PolicyOutcome, ...]:
    """Return maj@k and pass@k of samples with `problem` numbers, k = 1, 2, 4, .. and `most` or n.

    Or of `counts` of samples.

    Only problems with n ended samples whose answers were judged count. The tokens are k/n of
    the problem's, which is what a random subset takes on average.
    """
    counted = (
        samples.select("problem", "answer", "correct", "end", "output_tokens")
        .group_by("problem")
        .agg(
            rows=pl.len(),
            ended=pl.col("end").is_not_null().all(),
            judged=pl.col("correct").is_not_null().any(),
            right=pl.col("correct").sum(),
            tokens=pl.col("output_tokens").sum(),
        )
    )
    whole = counted.filter(pl.col("rows") == n, "ended", "judged").sort("problem")
    if not whole.height:
        return ()
    counts = tuple(sample_counts(most or n) if counts is None else counts)
    places = [k - 1 for k in counts]
    own = samples.select("problem", "answer", "correct")
    voted = _majority_curves(own.join(whole.select("problem"), on="problem", how="semi"), n, counts)
    numbers, place = np.unique(whole["right"].to_numpy(), return_inverse=True)
    passed = np.array([pass_curve(n, int(right))[places] for right in numbers])[place]
    tokens = whole["tokens"].to_numpy().astype(float) / n
    taken = {k: mean(tokens * k, "tokens") for k in counts}
    policies = [(method, k) for method in ("majority", "pass_at_k") for k in counts]
    return tuple(
        PolicyOutcome(
            method=method,
            n=k,
            budget_tokens=None,
            accuracy=accuracy,
            tokens_per_problem=taken[k],
            other_problems=of_others(accuracy, whole.height, whole.height),
        )
        for (method, k), accuracy in zip(
            policies, column_means(np.hstack([voted, passed]), "1"), strict=True
        )
    )
