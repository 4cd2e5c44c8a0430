"""The accuracy of one more run of a policy, of the same problems and of as many others."""

from __future__ import annotations

from collections.abc import Sequence

from advisor.accuracy.models.answers import count_answers, fitted
from advisor.evidence.runs import Sample
from advisor.kept import kept
from traces.schema.estimate import Estimate, Interval
from traces.schema.tts.policy import Policy
from traces.schema.tts.stop_rules import FIRST
from traces.statistics import Floats, Ints, fresh, of_single_samples, others_of


class OneMoreRun:
    """What the recorded samples [problems] of a way of sampling tell of one more run.

    How certain a vote is, its recorded samples do not say by themselves: of 16 samples one vote of
    16 is known. The laws of their answers do (`AnswerModel`). What they say is kept.
    """

    def __init__(self, samples: Sequence[Sequence[Sample]], *, draws: int = 200) -> None:
        self.samples, self.draws = samples, draws
        self._variances: dict[int, float] = {}

    def among(self, members: Ints) -> OneMoreRun:
        """Return the same of some of the problems, by their places."""
        return OneMoreRun([self.samples[place] for place in members], draws=self.draws)

    def accuracy(
        self, right: Floats, policy: Policy, *, runs: int | None = None, extrapolated: bool = False
    ) -> Estimate:
        """Return a policy's accuracy with both intervals of one more run.

        `right` [problems] is how often the recorded samples decide rightly. A rule that stops early
        varies as the vote of as many samples as it takes at most.
        """
        value, size = float(right.mean()), right.size
        variance = 0.0 if policy.temperature == 0 else self._variance(_votes(policy), right)
        same = fresh(value, variance, size).interval()
        other = others_of(right).interval()
        return Estimate.predicted(
            value,
            "1",
            fresh=Interval(low=same.low, high=same.high),
            others=Interval(low=other.low, high=other.high),
            of="others",
            runs=runs,
            extrapolated=extrapolated,
        )

    def _variance(self, votes: int, right: Floats) -> float:
        """Return the variance of a problem's new answer about its recorded share, on average."""
        fewest = min(map(len, self.samples))
        if votes == 1 and fewest > 1:
            return of_single_samples(right, fewest)
        if votes not in self._variances:
            counts = tuple(
                count_answers([s.answer for s in own], [s.correct for s in own])
                for own in self.samples
            )

            def variance() -> float:
                runs = fitted(counts, draws=self.draws).simulate([votes])[votes].majority
                chance = runs.mean(axis=(0, 1))
                joint = float(runs.mean(axis=2).var()) * chance.size
                return float(max((chance * (1 - chance)).mean(), joint))

            learned_from = ("variance of one more run", counts, self.draws, votes)
            self._variances[votes] = kept(learned_from, variance, float, float)
        return self._variances[votes]


def _votes(policy: Policy) -> int:
    stop = policy.stop
    first = stop is not None and stop.rule == FIRST
    return int(stop.value) if first and stop is not None else policy.n
