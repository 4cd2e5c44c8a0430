"""The law of a problem's chance to be answered right, over problems."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

NEVER, ALWAYS, FIRST, SECOND = range(4)  # the kinds of problems
KINDS = 4
CHAINS = 100
STARTS = 4000
TURNS = 600
# Normal prior of the parameters: the log-odds of never, of always among the others, of the second
# beta among the rest; then per beta the log-odds of its mean and the logarithm of a + b.
_CENTRE = np.array([-5.0, -4.5, -1.2, 0.0, 1.0, 0.0, 1.0])
_SPREAD = np.array([2.5, 2.5, 2.0, 1.5, 1.5, 1.5, 1.5])
_TINY = 1e-300


class SuccessLaw:
    """Problems never solved, always solved, and two beta laws: draws of what fits the counts.

    Parameters
    ----------
    draws: how many draws of the law to keep.
    seed: of the random numbers.

    Attributes
    ----------
    weights_: [draws, KINDS], the share of problems of each kind.
    ends_: [draws, 2, 2], a and b of both betas.

    Notes
    -----
    The likelihood of a problem is a beta-binomial with point masses at 0 and 1. Its posterior is
    drawn by differential evolution over 100 chains (ter Braak 2006): a proposal is a chain's place
    plus a multiple of the difference of two chains of the other half. One beta alone decides too
    much of what the counts leave open: how many of the problems not solved yet can be solved.

    """

    def __init__(self, *, draws: int = 200, seed: int = 0) -> None:
        self.draws, self.seed = draws, seed

    def fit(self, right: Ints, missed: Ints) -> SuccessLaw:
        """Draw the law from how often each problem was answered right and was not."""
        rng = np.random.default_rng([self.seed, 2])
        cells, counts = np.unique(np.stack([right, missed]), axis=1, return_counts=True)

        def score(parameters: Floats) -> Floats:
            prior = -0.5 * (((parameters - _CENTRE) / _SPREAD) ** 2).sum(axis=1)
            chances = _chances(*_unpack(parameters), cells[0], cells[1]).sum(axis=1)
            return np.asarray(prior + np.log(chances + _TINY) @ counts)

        start = _CENTRE + _SPREAD * rng.normal(size=(STARTS, len(_CENTRE)))
        fits = score(start)
        # Tempered, so that the chains do not all start from the best of the starts.
        odds = np.exp((fits - fits.max()) / 5)
        chains = start[rng.choice(STARTS, CHAINS, p=odds / odds.sum())]
        fits = score(chains)
        kept: list[Floats] = []
        rounds = -(-self.draws // CHAINS)
        for turn in range(TURNS):
            move, other = np.arange(turn % 2, CHAINS, 2), np.arange(1 - turn % 2, CHAINS, 2)
            wanted = chains[move] + _steps(chains, other, len(move), rng)
            found = score(wanted)
            taken = np.log(rng.random(len(move))) < found - fits[move]
            chains[move[taken]], fits[move[taken]] = wanted[taken], found[taken]
            left = TURNS - 1 - turn
            if left % 50 == 0 and left // 50 < rounds:
                kept.append(chains.copy())
        self.weights_, self.ends_ = _unpack(np.concatenate(kept)[: self.draws])
        return self

    def kinds(self, right: Ints, missed: Ints, rng: np.random.Generator) -> Ints:
        """Return [draws, problems], a kind for each problem, as its counts make it likely."""
        ends = np.cumsum(_chances(self.weights_, self.ends_, right, missed), axis=1)
        aim = rng.random((len(ends), len(right))) * ends[:, -1]
        passed = (ends <= aim[:, None, :]).sum(axis=1)
        return np.asarray(np.minimum(passed, KINDS - 1), dtype=np.int64)

    def chances(
        self, draws: Ints, kinds: Ints, counts: tuple[Ints, Ints], rng: np.random.Generator
    ) -> Floats:
        """Return chances to be right, given draw, kind and how often right and not: [rows] each."""
        ends = self.ends_[draws, np.maximum(kinds - FIRST, 0)]
        drawn = rng.beta(ends[:, 0] + counts[0], ends[:, 1] + counts[1])
        return np.where(kinds == NEVER, 0.0, np.where(kinds == ALWAYS, 1.0, drawn))


def _steps(chains: Floats, other: Ints, count: int, rng: np.random.Generator) -> Floats:
    """Return [count, parameters], differences of two of the other chains, a tenth of them whole."""
    one, two = rng.choice(other, count), rng.choice(other, count)
    usual = 2.38 / np.sqrt(2 * chains.shape[1]) * rng.uniform(0.5, 1.2, count)
    scale = np.where(rng.random(count) < 0.1, 1.0, usual)
    noise = rng.normal(scale=0.01, size=(count, chains.shape[1]))
    return np.asarray(scale[:, None] * (chains[one] - chains[two]) + noise)


def _unpack(parameters: Floats) -> tuple[Floats, Floats]:
    """Return the weights of the kinds and the ends of the betas."""
    never, always, second = (1 / (1 + np.exp(-parameters[:, :3]))).T
    rest = (1 - never) * (1 - always)
    weights = np.stack([never, (1 - never) * always, rest * (1 - second), rest * second], axis=1)
    mean = 1 / (1 + np.exp(-parameters[:, 3::2]))
    total = np.exp(np.clip(parameters[:, 4::2], -5, 8))
    ends = np.maximum(np.stack([mean * total, (1 - mean) * total], axis=2), 1e-6)
    return weights, ends


def _chances(weights: Floats, ends: Floats, right: Ints, missed: Ints) -> Floats:
    """Return [draws, KINDS, problems], the share of a kind times the chance of the counts in it."""
    a, b = ends[..., 0], ends[..., 1]
    top = int((right + missed).max(initial=0))
    logs = _log_rising(a, top)[:, :, right] + _log_rising(b, top)[:, :, missed]
    logs -= _log_rising(a + b, top)[:, :, right + missed]
    parts = np.empty((len(weights), KINDS, len(right)))
    parts[:, NEVER], parts[:, ALWAYS] = right == 0, missed == 0
    parts[:, FIRST:] = np.exp(logs)
    return parts * weights[:, :, None]


def _log_rising(start: Floats, top: int) -> Floats:
    """Return [..., top + 1], the logarithm of start (start + 1) ... (start + count - 1)."""
    sums = np.zeros((*start.shape, top + 1))
    np.cumsum(np.log(start[..., None] + np.arange(top)), axis=-1, out=sums[..., 1:])
    return sums
