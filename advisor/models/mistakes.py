"""The law of wrong answers: how they fall into classes, from one popular mistake to all apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# (discount, strength) of Pitman-Yor laws: with discount -a and strength m a there are m possible
# mistakes, with discount 0 it is a Dirichlet process.
LAWS: Floats = np.array(
    [(0.0, s) for s in (0.1, 0.3, 1.0, 3.0, 10.0, 40.0)]
    + [(0.5, 0.5), (0.5, 5.0)]
    + [(-a, a * m) for m in (2, 4, 9, 30) for a in (0.3, 1.0, 4.0)],
    dtype=float,
)
STICKS = 10  # mistakes not seen yet that are held one by one; all others stand alone
_PRIOR = 4.0  # problems that the shares of all problems count as within a kind
_FIT_ROUNDS, _DRAW_ROUNDS = 50, 6


def draw_laws(
    sizes: Sequence[tuple[int, ...]], kinds: Ints, count: int, rng: np.random.Generator
) -> Ints:
    """Return [draws, problems], one of LAWS for each problem.

    `sizes` are each problem's mistakes by class and `kinds` [draws, problems] its kind of `count`:
    the shares of the laws differ between kinds, as hard problems may have popular mistakes and
    easy ones scattered slips. The shares are drawn around those of all problems.
    """
    unique = {each: partition_likelihood(each) for each in sizes}
    likely = np.array([unique[each] for each in sizes])
    base = np.full(len(LAWS), 1 / len(LAWS))
    for _ in range(_FIT_ROUNDS):
        base = (likely * base / (likely @ base)[:, None]).mean(axis=0)
    base = 0.9 * base + 0.1 / len(LAWS)
    found = np.empty(kinds.shape, dtype=np.int64)
    for draw, kind in enumerate(kinds):
        shares = np.tile(base, (count, 1))
        for _ in range(_DRAW_ROUNDS):
            ends = np.cumsum(likely * shares[kind], axis=1)
            aim = rng.random(len(ends)) * ends[:, -1]
            found[draw] = np.minimum((ends <= aim[:, None]).sum(axis=1), len(LAWS) - 1)
            taken = np.bincount(kind * len(LAWS) + found[draw], minlength=count * len(LAWS))
            shares = rng.gamma(taken.reshape(count, -1) + _PRIOR * base)
            shares /= shares.sum(axis=1, keepdims=True)
    return found


def partition_likelihood(sizes: Sequence[int]) -> Floats:
    """Return [LAWS], the chance that mistakes fall into classes of these sizes, the best being 1.

    The exchangeable partition law of Pitman and Yor (Pitman 2006, eq. 3.6).
    """
    discount, strength = LAWS[:, 0], LAWS[:, 1]
    logs = np.zeros(len(LAWS))
    with np.errstate(divide="ignore"):  # more classes than a law has
        for index in range(1, len(sizes)):
            logs += np.log(np.maximum(strength + index * discount, 0.0))
    logs -= np.log(strength[:, None] + np.arange(1, sum(sizes))).sum(axis=1)
    for size in sizes:
        logs += np.log(np.arange(1, size) - discount[:, None]).sum(axis=1)
    return np.asarray(np.exp(logs - logs.max()))


def draw_mistakes(counts: Ints, laws: Ints, rng: np.random.Generator) -> Floats:
    """Return [problems, classes + STICKS + 1], each problem's distribution of wrong answers.

    `counts` [problems, classes] are those seen. The next columns are mistakes not seen yet, and
    the last is the mass of all others, each of which is rare.
    """
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
    for stick in range(1, STICKS + 1):
        against = np.maximum(after + stick * discount, 0.0)
        share = rng.beta(1 - discount, np.where(against > 0, against, 1.0))
        taken = rest * np.where(against > 0, share, 1.0)
        parts.append(taken[:, None])
        rest = rest - taken
    return np.concatenate([*parts, np.maximum(rest, 0.0)[:, None]], axis=1)
