"""What more votes would give, from published averages: no answer of any single problem is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from advisor.accuracy.models.mistakes import LAWS, draw_mistakes
from traces.errors import OutcomesError
from traces.schema.estimate import Estimate
from traces.statistics import ENDS, Floats

LAWS_TRIED = 1500
PROBLEMS = 300  # drawn from each law
LEAST = 0.02  # chance to be right, on average, of problems neither never nor always solved
# Where the first average is of several samples: with how many problems and chances a law is tried,
# how far off the votes of these may lie, and the share of laws taken whatever their votes.
FEW, TRIED, OFF, ANY = 75, 9, 0.05, 0.05
PLACES = 96  # of the chances that may be taken


class VoteCurve:
    """Maj@n of problems whose answers follow one of many laws, weighted by published averages.

    A law has problems never and always solved, a beta for the others' chance to be right, and
    shares of Pitman-Yor laws of mistakes. More are drawn where the first average lies, which their
    weights allow for. Where that is of several samples, each law is first tried with a few
    accuracies of one. Under a law the averages of one growing set of samples, over so many
    `problems`, are nearly jointly normal, with the means and covariances of the votes of drawn
    problems. A law's weight is the likelihood of the averages given, and a prediction the mixture
    of the conditional normals.
    """

    def __init__(self, *, problems: int, seed: int = 0) -> None:
        self.problems, self.seed = problems, seed

    def fit(self, accuracy: Mapping[int, float], farthest: Sequence[int]) -> VoteCurve:
        """Learn from accuracy by number of samples, to predict at `farthest` numbers.

        Raises OutcomesError where no law has the first average.
        """
        seen = sorted(accuracy)
        self.counts_ = sorted({*seen, *farthest})
        values = np.array([accuracy[count] for count in seen])
        places = np.searchsorted(self.counts_, seen)
        rng = np.random.default_rng([self.seed, 6])
        logs, means, spreads, drawn, laws = [], [], [], [], []
        for _ in range(LAWS_TRIED):
            law = self._law(seen[0], values[0], rng)
            if law is None:
                continue
            hit, mistakes, log = law
            votes = _votes(hit, mistakes, self.counts_, rng)
            mean = votes.mean(axis=0)
            # Half a problem's worth of noise keeps a law under which all agree from certainty.
            each = np.atleast_2d(np.cov(votes.T))
            cover = each / self.problems + np.eye(len(mean)) * 0.25 / self.problems**2
            seen_cover = cover[np.ix_(places, places)]
            gain = np.linalg.solve(seen_cover, cover[places]).T
            off = values - mean[places]
            # The law's own mean is known from the drawn problems alone.
            unsure = seen_cover + each[np.ix_(places, places)] / PROBLEMS
            fit = -0.5 * (off @ np.linalg.solve(unsure, off) + np.linalg.slogdet(unsure)[1])
            logs.append(fit + log)
            means.append(mean + gain @ off)
            spreads.append(cover - gain @ cover[places])
            drawn.append(votes.astype(np.float32))
            laws.append(mean)
        if not logs:
            raise OutcomesError(
                f"accuracy {values[0]:g} over {self.problems:,} problems: none of the laws that "
                "are tried has it, so the accuracy of other numbers of votes is not known. "
                "Import the curve with the number of problems that it is over"
            )
        weights = np.exp(np.array(logs) - max(logs))
        self.weights_: Floats = weights / weights.sum()
        self.means_, self.covariances_ = np.array(means), np.array(spreads)
        self._drawn, self._law_means = drawn, np.array(laws)
        return self

    def benchmarks(self, count: int, problems: int) -> tuple[Floats, Floats]:
        """Return made-up problems like those of the averages: the right share of their votes.

        [count, problems, counts], sets with the averages that their problems would have, and
        [count, counts], how far each set lies off the average of all problems like these.
        """
        rng = np.random.default_rng([self.seed, 9])
        chosen = rng.choice(len(self.weights_), size=count, p=self.weights_)
        votes = np.empty((count, problems, len(self.counts_)))
        off = np.empty((count, len(self.counts_)))
        for place, law in enumerate(chosen):
            drawn = self._drawn[law][rng.integers(PROBLEMS, size=problems)].astype(float)
            sizes, vectors = np.linalg.eigh(self.covariances_[law])
            # The symmetric root is the only one that does not depend on the vectors' signs.
            root = (vectors * np.sqrt(np.maximum(sizes, 0.0))) @ vectors.T
            noise = root @ rng.normal(size=len(sizes))
            average = np.clip(self.means_[law] + noise, 0.0, 1.0)
            off[place] = drawn.mean(axis=0) - self._law_means[law]
            votes[place] = drawn + (average - drawn.mean(axis=0))
        return votes, off

    def predict(self, count: int) -> Estimate:
        """Return the accuracy of votes of `count` samples of the same problems."""
        rng = np.random.default_rng([self.seed, 7])
        place = self.counts_.index(count)
        chosen = rng.choice(len(self.weights_), size=4000, p=self.weights_)
        centre = self.means_[:, place]
        spread = np.sqrt(np.maximum(self.covariances_[:, place, place], 0.0))
        draws = np.clip(centre[chosen] + spread[chosen] * rng.normal(size=4000), 0, 1)
        ends = np.quantile(draws, ENDS)
        return Estimate(
            value=float(np.clip(self.weights_ @ centre, 0, 1)),
            low=float(ends[0]),
            high=float(ends[1]),
            unit="1",
            extrapolated=True,
        )

    def _law(
        self, first: int, aim: float, rng: np.random.Generator
    ) -> tuple[Floats, Floats, float] | None:
        """Return each problem's chance to be right and its mistakes, by a law, and its log weight.

        [PROBLEMS] and [PROBLEMS, answers]. The weight stands for the laws that are drawn less,
        their accuracy being further from `aim` in votes of `first` samples. None where the law
        cannot have it.
        """
        width = 2 * np.sqrt(0.25 / self.problems)
        single = rng.normal(aim, width) if first == 1 else None
        kinds, total = rng.dirichlet((0.5, 0.5, 2.0)), float(np.exp(rng.normal(1.0, 1.2)))
        if single is not None:
            mean = float((single - kinds[1]) / kinds[2])
            if not LEAST < mean < 1 - LEAST:
                return None
            hit = _chances(mean, total, kinds, rng)
            return hit, _mistakes(rng), float(0.5 * ((single - aim) / width) ** 2)
        mistakes = _mistakes(rng)
        means = np.linspace(LEAST, 1 - LEAST, TRIED)
        hits = [_chances(mean, total, kinds, rng, FEW) for mean in means]
        tried = _votes(np.concatenate(hits), np.tile(mistakes[:FEW], (TRIED, 1)), [first], rng)
        places = LEAST + (1 - 2 * LEAST) * (np.arange(PLACES) + 0.5) / PLACES
        off = np.interp(places, means, tried.reshape(TRIED, FEW).mean(axis=1)) - aim
        log = -0.5 * np.square(off / np.hypot(width, OFF))
        near = np.exp(log - log.max())
        share = ANY / PLACES + (1 - ANY) * near / near.sum()
        taken = int(rng.choice(PLACES, p=share / share.sum()))
        mean = float(places[taken] + (1 - 2 * LEAST) * (rng.random() - 0.5) / PLACES)
        # A place is as wide, in accuracy of one sample, as the law has problems of that chance.
        return _chances(mean, total, kinds, rng), mistakes, float(np.log(kinds[2] / share[taken]))


def _chances(
    mean: float, total: float, kinds: Floats, rng: np.random.Generator, count: int = PROBLEMS
) -> Floats:
    """Return chances to be right: never, always, or a beta of this mean, by the shares `kinds`."""
    never, always, _ = kinds
    hit = rng.beta(mean * total, (1 - mean) * total, count)
    kind = rng.random(count)
    return np.where(kind < never, 0.0, np.where(kind < never + always, 1.0, hit))


def _mistakes(rng: np.random.Generator) -> Floats:
    """Return [PROBLEMS, answers], the share of each wrong answer among them, by drawn laws."""
    shares = rng.dirichlet(np.full(len(LAWS), 0.1))
    law = rng.choice(len(LAWS), PROBLEMS, p=shares / shares.sum())
    return draw_mistakes(np.zeros((PROBLEMS, 0), dtype=np.int64), law, rng)


def _votes(
    hit: Floats, mistakes: Floats, counts: Sequence[int], rng: np.random.Generator
) -> Floats:
    """Return [problems, counts], the right share of votes of a growing set of samples.

    The last of the mistakes is the mass of rare ones, which have one vote each.
    """
    chances = np.concatenate([hit[:, None], (1 - hit)[:, None] * mistakes], axis=1)
    chances /= chances.sum(axis=1, keepdims=True)
    tally = np.zeros(chances.shape, dtype=np.int64)
    shares, before = [], 0
    for count in counts:
        tally += rng.multinomial(count - before, chances)
        before = count
        most = np.maximum(tally[:, :-1].max(axis=1), 1)
        leads = tally[:, :-1] == most[:, None]
        shares.append(leads[:, 0] / (leads.sum(axis=1) + np.where(most == 1, tally[:, -1], 0)))
    return np.stack(shares, axis=1)
