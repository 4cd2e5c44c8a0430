"""The law of a problem's chance to be answered right, over problems."""

from __future__ import annotations

import numpy as np

from traces.statistics import Bools, Floats, Ints

NEVER, ALWAYS, GUESSED, FIRST, SECOND = range(5)  # the kinds of problems
KINDS = 5
PARTICLES = 1000
MOVES = 6  # of every particle at every temperature
_KEEP = 0.5  # the effective share of particles to which a temperature may thin them
# Normal prior of the parameters: the log-odds of never, of always among the others, of the second
# beta among the rest and of guessed ones before that, with which every share is about as likely as
# any other; then per beta the log-odds of its mean and the logarithm of a + b; and the logarithm of
# how many options there are where one is guessed.
_CENTRE = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.4])
_SPREAD = np.array([1.6, 1.6, 1.6, 1.6, 1.5, 1.5, 1.5, 1.5, 0.5])
PARTS = 4  # never, always, the second beta and guessed ones: each may be absent
_BETAS = slice(PARTS, PARTS + 4)
_OPTIONS = (2, 20)  # at least and at most
_TINY = 1e-300


class SuccessLaw:
    """Laws of the chance to be right, averaged by how well they foretell the counts.

    A law is a beta, with or without a second one, problems never solved, problems always solved,
    problems whose answer is guessed among so many options: sixteen models of equal prior chance,
    weighed by their marginal likelihood, which is fair between models of different size. The
    likelihood of a problem is a beta-binomial with point masses at 0, 1 and one in the options.
    Larger votes gain nothing where all options are as likely, but do by a beta about that. Models
    and parameters are drawn together by tempered sequential Monte Carlo (Del Moral, Doucet and
    Jasra 2006), from the prior to the posterior.

    At most PARTICLES `draws` are kept: `weights_` [draws, KINDS], the share of problems of each
    kind, 0 where the draw has none such, `ends_` [draws, 2, 2], a and b of both betas, and `guess_`
    [draws], the chance of a guess.
    """

    def __init__(self, *, draws: int = 200, seed: int = 0) -> None:
        self.draws, self.seed = draws, seed

    def fit(self, right: Ints, missed: Ints) -> SuccessLaw:
        rng = np.random.default_rng([self.seed, 2])
        cells, counts = np.unique(np.stack([right, missed]), axis=1, return_counts=True)

        def score(parameters: Floats, parts: Bools) -> Floats:
            chances = _chances(*_unpack(parameters, parts), cells[0], cells[1]).sum(axis=1)
            return np.asarray(np.log(chances + _TINY) @ counts)

        parameters = _CENTRE + _SPREAD * rng.normal(size=(PARTICLES, len(_CENTRE)))
        parts = rng.random((PARTICLES, PARTS)) < 0.5
        fits = score(parameters, parts)
        heat = 0.0
        while heat < 1:
            heat, weights = _next_heat(fits, heat)
            chosen = _resample(weights, rng)
            parameters, parts, fits = parameters[chosen], parts[chosen], fits[chosen]
            for move in range(MOVES):
                propose = _steps if move % 2 else _switch
                wanted, shown, odds = propose(parameters, parts, rng)
                proposed_fits = score(wanted, shown)
                taken = np.log(rng.random(PARTICLES)) < odds + heat * (proposed_fits - fits)
                parameters[taken], parts[taken] = wanted[taken], shown[taken]
                fits[taken] = proposed_fits[taken]
        kept = rng.permutation(PARTICLES)[: self.draws]
        self.weights_, self.ends_, self.guess_ = _unpack(parameters[kept], parts[kept])
        return self

    def chances(
        self,
        right: Ints,
        missed: Ints,
        rng: np.random.Generator,
        *,
        draw: int | None = None,
        tries: int = 1,
    ) -> Floats:
        """Return [draws, problems], a chance to be right for each, as its counts make it likely.

        By each draw of the law, or [tries, problems] by one `draw` of it.
        """
        chosen = np.arange(self.draws) if draw is None else np.array([draw])
        weights, betas, guess = self.weights_[chosen], self.ends_[chosen], self.guess_[chosen]
        ends = np.cumsum(_chances(weights, betas, guess, right, missed), axis=1)
        rows = np.arange(len(chosen)) if draw is None else np.zeros(tries, dtype=np.int64)
        aim = rng.random((len(rows), len(right))) * ends[:, -1]
        kinds = np.zeros(aim.shape, dtype=np.int64)
        for kind in range(KINDS - 1):
            kinds += ends[:, kind] <= aim
        law = betas[rows[:, None], np.maximum(kinds - FIRST, 0)]
        drawn = rng.beta(law[..., 0] + right, law[..., 1] + missed)
        drawn = np.where(kinds == GUESSED, guess[rows][:, None], drawn)
        return np.where(kinds == NEVER, 0.0, np.where(kinds == ALWAYS, 1.0, drawn))


def _next_heat(fits: Floats, heat: float) -> tuple[float, Floats]:
    """Return the next temperature's inverse, at most 1, and the weights of the particles there."""

    def weigh(by: float) -> Floats:
        weights = np.exp(by * (fits - fits.max()))
        return np.asarray(weights / weights.sum())

    low, high = 0.0, 1 - heat
    if 1 / (weigh(high) ** 2).sum() < _KEEP * len(fits):
        for _ in range(40):
            middle = (low + high) / 2
            enough = 1 / (weigh(middle) ** 2).sum() >= _KEEP * len(fits)
            low, high = (middle, high) if enough else (low, middle)
        return heat + low, weigh(low)
    return 1.0, weigh(high)


def _resample(weights: Floats, rng: np.random.Generator) -> Ints:
    """Return indices of particles as often as their weights say, by even steps."""
    places = (np.arange(len(weights)) + rng.random()) / len(weights)
    indices = np.searchsorted(np.cumsum(weights), places)
    return np.asarray(np.minimum(indices, len(weights) - 1), dtype=np.int64)


def _prior(parameters: Floats) -> Floats:
    return np.asarray(-0.5 * (((parameters - _CENTRE) / _SPREAD) ** 2).sum(axis=1))


def _steps(
    parameters: Floats, parts: Bools, rng: np.random.Generator
) -> tuple[Floats, Bools, Floats]:
    """Propose a step along the difference of two particles (ter Braak 2006), the same parts."""
    one, two = rng.integers(0, len(parameters), (2, len(parameters)))
    usual = 2.38 / np.sqrt(2 * parameters.shape[1]) * rng.uniform(0.3, 1.2, len(parameters))
    noise = rng.normal(scale=0.01, size=parameters.shape)
    wanted = parameters + usual[:, None] * (parameters[one] - parameters[two]) + noise
    return wanted, parts.copy(), _prior(wanted) - _prior(parameters)


def _switch(
    parameters: Floats, parts: Bools, rng: np.random.Generator
) -> tuple[Floats, Bools, Floats]:
    """Propose a part that comes or goes; its parameters are drawn anew, so that priors cancel."""
    rows = np.arange(len(parameters))
    part = rng.integers(0, PARTS, len(parameters))
    wanted, shown = parameters.copy(), parts.copy()
    shown[rows, part] ^= True
    drawn = _CENTRE + _SPREAD * rng.normal(size=parameters.shape)
    redrawn = np.zeros(parameters.shape, dtype=bool)
    redrawn[rows, part] = True
    redrawn[:, PARTS + 2 : PARTS + 4] = (part == 2)[:, None]
    redrawn[:, PARTS + 4] = part == 3
    return np.where(redrawn, drawn, wanted), shown, np.zeros(len(parameters))


def _unpack(parameters: Floats, parts: Bools) -> tuple[Floats, Floats, Floats]:
    """Return the weights of the kinds, the ends of the betas, and the chance of a guess."""
    never, always, second, guessed = (parts / (1 + np.exp(-parameters[:, :PARTS]))).T
    others = (1 - never) * (1 - always)
    rest = others * (1 - guessed)
    weights = np.stack(
        [never, (1 - never) * always, others * guessed, rest * (1 - second), rest * second], axis=1
    )
    betas = parameters[:, _BETAS]
    mean = 1 / (1 + np.exp(-betas[:, ::2]))
    total = np.exp(np.clip(betas[:, 1::2], -5, 8))
    ends = np.maximum(np.stack([mean * total, (1 - mean) * total], axis=2), 1e-6)
    return weights, ends, 1 / np.clip(np.round(np.exp(parameters[:, PARTS + 4])), *_OPTIONS)


def _chances(weights: Floats, ends: Floats, guess: Floats, right: Ints, missed: Ints) -> Floats:
    """Return [draws, KINDS, problems], the share of a kind times the chance of the counts in it."""
    a, b = ends[..., 0], ends[..., 1]
    top = int((right + missed).max(initial=0))
    logs = _log_rising(a, top)[:, :, right] + _log_rising(b, top)[:, :, missed]
    logs -= _log_rising(a + b, top)[:, :, right + missed]
    parts = np.empty((len(weights), KINDS, len(right)))
    parts[:, NEVER], parts[:, ALWAYS] = right == 0, missed == 0
    parts[:, GUESSED] = guess[:, None] ** right * (1 - guess[:, None]) ** missed
    parts[:, FIRST:] = np.exp(logs)
    return parts * weights[:, :, None]


def _log_rising(start: Floats, top: int) -> Floats:
    """Return [..., top + 1], the logarithm of start (start + 1) ... (start + count - 1)."""
    sums = np.zeros((*start.shape, top + 1))
    np.cumsum(np.log(start[..., None] + np.arange(top)), axis=-1, out=sums[..., 1:])
    return sums
