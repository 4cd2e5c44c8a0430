"""The law of wrong answers: how they fall into classes, from one popular mistake to all apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from traces.statistics import Floats, Ints

# (discount, strength, share): Pitman-Yor laws; with discount -a and strength m a there are m
# possible mistakes, with discount 0 it is a Dirichlet process. With a large a the m mistakes are
# equally likely, as the wrong options of a question are where the model guesses: of the others none
# says so, and a mistake that leads by chance is then taken for a popular one, which holds back
# larger votes. Where the share is not 0 one popular
# mistake has about that share of all (a beta law with a + b = _FIRMNESS) and the law is of the
# others: in a Pitman-Yor law alone the share of the first mistake varies widely from problem to
# problem, and problems in which it nearly always leads could not be told from others.
LAWS: Floats = np.array(
    [(0.0, s, 0.0) for s in (0.1, 0.3, 1.0, 3.0, 10.0, 40.0)]
    + [(0.5, 0.5, 0.0), (0.5, 5.0, 0.0)]
    + [(-a, a * m, 0.0) for m in (2, 4, 9, 30) for a in (0.3, 1.0, 4.0)]
    + [(-1000.0, 1000.0 * m, 0.0) for m in (2, 3, 4, 9)]
    + [(0.0, s, share) for s in (3.0, 40.0) for share in (0.3, 0.5, 0.7, 0.9)],
    dtype=float,
)
_FIRMNESS = 20.0
STICKS = 11  # the popular mistake not seen yet, and ten others that are held one by one
# Problems whose chance to be right lies between two of these share a mixture of laws.
HARDNESS: Floats = np.array([0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8])
_WARM_UP = 20  # draws that are not kept
_SWEEPS = 2  # from one draw to the next
_ALIKE = 20.0  # prior mean of how many problems the shares of all groups count as in one


def draw_laws(
    sizes: Sequence[tuple[int, ...]],
    propose: Callable[[int], Floats],
    draws: int,
    rng: np.random.Generator,
) -> tuple[Floats, Ints]:
    """Return the chance to be right and one of LAWS for each problem: [draws, problems] both.

    `sizes` are each problem's mistakes by class; `propose` gives for a draw [tries, problems], the
    chances to be right that the right answers make likely. The shares of the laws differ with that
    chance, as hard problems may have popular mistakes and easy ones scattered slips. By how much is
    learnt too.

    Gibbs sampling of a hierarchical Dirichlet law (Teh et al. 2006, appendix A). Of the chances
    proposed one is taken by how likely it makes the mistakes, whatever their law.
    """
    unique = {each: partition_likelihood(each) for each in sizes}
    likely = np.array([unique[each] for each in sizes])
    size, count, problems = len(LAWS), len(HARDNESS) + 1, len(sizes)
    base, alike = np.full(size, 1 / size), _ALIKE
    shares = np.tile(base, (count, 1))
    hit, law_draws = np.empty((draws, problems)), np.empty((draws, problems), dtype=np.int64)
    every = np.arange(problems)
    for turn in range(-_WARM_UP, draws):
        draw = turn % draws
        proposed = propose(draw)
        groups = np.searchsorted(HARDNESS, proposed)
        for _ in range(_SWEEPS):
            chosen = _pick((likely @ shares.T)[every, groups].T, rng)
            group = groups[chosen, every]
            laws = _pick(likely * shares[group], rng)
            drawn = np.bincount(group * size + laws, minlength=count * size).reshape(count, size)
            tables = _tables(drawn, alike * base, rng)
            # 1 / size each: laws that are not needed empty (Rousseau and Mengersen 2011).
            base = rng.dirichlet(tables.sum(axis=0) + 1 / size) + 1e-12
            alike = _draw_alike(alike, drawn.sum(axis=1), int(tables.sum()), rng)
            shares = rng.gamma(drawn + alike * base) + 1e-300
            shares /= shares.sum(axis=1, keepdims=True)
        hit[draw], law_draws[draw] = proposed[chosen, every], laws
    return hit, law_draws


def _pick(weights: Floats, rng: np.random.Generator) -> Ints:
    """Return [rows], a column of [rows, columns] by its weight in the row."""
    ends = np.cumsum(weights, axis=1)
    aim = rng.random(len(ends)) * ends[:, -1]
    passed = (ends <= aim[:, None]).sum(axis=1)
    return np.asarray(np.minimum(passed, ends.shape[1] - 1), dtype=np.int64)


def _tables(taken: Ints, prior: Floats, rng: np.random.Generator) -> Ints:
    """Return [groups, laws], how many of the problems drew their law from the shares of all.

    Of a law's problems in a group the i-th did so with chance prior / (prior + i).
    """
    before = np.arange(int(taken.max(initial=0)))
    fresh = rng.random((*taken.shape, len(before))) * (prior[:, None] + before) < prior[:, None]
    return np.asarray((fresh & (before < taken[..., None])).sum(axis=2), dtype=np.int64)


def _draw_alike(alike: float, sizes: Ints, tables: int, rng: np.random.Generator) -> float:
    """Return a draw of how alike the groups are, of exponential prior (Teh et al. 2006, A.5)."""
    held = sizes[sizes > 0]
    rate = 1 / _ALIKE - np.log(rng.beta(alike + 1, held)).sum()
    extra = int((rng.random(len(held)) * (held + alike) < held).sum())
    return float(max(rng.gamma(max(1 + tables - extra, 1)) / rate, 1e-3))


def partition_likelihood(sizes: Sequence[int]) -> Floats:
    """Return [LAWS], the chance that mistakes fall into classes of these sizes, the best being 1.

    The exchangeable partition law of Pitman and Yor (Pitman 2006, eq. 3.6); with a popular mistake
    the sum over which of the classes it is, or none yet.
    """
    rows = np.tile(np.array(sizes, dtype=np.int64), (len(LAWS), 1))
    logs = np.logaddexp.reduce(_log_joint(rows, np.arange(len(LAWS))), axis=1)
    return np.asarray(np.exp(logs - logs.max()))


@lru_cache(maxsize=8)
def _sums(top: int) -> dict[str, Floats]:
    """Return [LAWS, top + 1] each: the logarithms of the products that a partition's chance has."""
    discount, strength, share = LAWS.T[:, :, None]
    steps = np.arange(1, top)

    def add(factors: Floats, start: int) -> Floats:
        sums = np.zeros((len(LAWS), top + 1))
        np.cumsum(np.log(factors), axis=1, out=sums[:, start:])
        return sums

    with np.errstate(divide="ignore"):  # more classes than a law has, or no popular mistake
        return {
            "classes": add(np.maximum(strength + steps * discount, 0.0), 2),
            "samples": add(strength + steps, 2),
            "within": add(steps - discount, 2),
            "popular": add(_FIRMNESS * share + np.arange(top), 1),
            "others": add(_FIRMNESS * (1 - share) + np.arange(top), 1),
            "both": add(_FIRMNESS + np.arange(top) + 0 * share, 1),
        }


def _log_joint(counts: Ints, laws: Ints) -> Floats:
    """Return [rows, classes + 1], the joint chance of the counts and of each class as the popular.

    The last column is that it was not seen yet. `counts` [rows, classes] are 0 where a row has no
    such class, `laws` are one for each row.
    """
    law = laws[:, None]
    total = counts.sum(axis=1, keepdims=True)
    sums = _sums(int(total.max(initial=0)) + 1)
    popular = np.concatenate([counts, np.zeros_like(total)], axis=1)
    rest = total - popular
    classes = (counts > 0).sum(axis=1, keepdims=True) - (popular > 0)
    within = sums["within"][law, popular]
    logs = sums["popular"][law, popular] + sums["others"][law, rest] - sums["both"][law, total]
    logs += sums["classes"][law, classes] - sums["samples"][law, rest]
    logs += within.sum(axis=1, keepdims=True) - within
    logs[:, :-1][counts == 0] = -np.inf
    return np.asarray(logs)


def draw_mistakes(counts: Ints, laws: Ints, rng: np.random.Generator) -> Floats:
    """Return [problems, classes + STICKS + 1], each problem's distribution of wrong answers.

    `counts` [problems, classes] are those seen. The next columns are mistakes not seen yet, the
    popular one first, and the last is the mass of all others, each of which is rare.
    """
    rows, classes = np.arange(len(counts)), counts.shape[1]
    popular, share = np.full(len(counts), classes), np.zeros(len(counts))
    rest = np.concatenate([counts, np.zeros((len(counts), 1), dtype=np.int64)], axis=1)
    some = np.flatnonzero(LAWS[laws, 2] > 0)
    logs = _log_joint(counts[some], laws[some])
    popular[some] = _pick(np.exp(logs - logs.max(axis=1, keepdims=True)), rng)
    hits = rest[some, popular[some]]
    rest[some, popular[some]] = 0
    about = _FIRMNESS * LAWS[laws[some], 2]
    share[some] = rng.beta(about + hits, _FIRMNESS - about + counts[some].sum(axis=1) - hits)
    others = _draw_sticks(rest[:, :-1], laws, rng)
    gap = np.zeros((len(counts), 1))
    mistakes = np.concatenate([others[:, :classes], gap, others[:, classes:]], axis=1)
    mistakes *= (1 - share)[:, None]
    mistakes[rows, popular] += share
    return np.asarray(mistakes)


def _draw_sticks(counts: Ints, laws: Ints, rng: np.random.Generator) -> Floats:
    """Return [problems, classes + STICKS], draws of Pitman-Yor laws given the counts seen."""
    discount, strength = LAWS[laws, 0], LAWS[laws, 1]
    seen = counts > 0
    classes = seen.sum(axis=1)
    old = rng.gamma(np.where(seen, counts - discount[:, None], 0.0))
    after = np.maximum(strength + discount * classes, 0.0)
    fresh = rng.gamma(after)
    total = old.sum(axis=1) + fresh
    total[total == 0] = 1.0
    parts = [old / total[:, None]]
    rest = fresh / total
    for stick in range(1, STICKS):
        against = np.maximum(after + stick * discount, 0.0)
        share = rng.beta(1 - discount, np.where(against > 0, against, 1.0))
        taken = rest * np.where(against > 0, share, 1.0)
        parts.append(taken[:, None])
        rest = rest - taken
    return np.concatenate([*parts, np.maximum(rest, 0.0)[:, None]], axis=1)
