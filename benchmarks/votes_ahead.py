"""Votes of 64 foretold from 8: ours against two rivals, ``python benchmarks/votes_ahead.py``.

The rivals carry what 8 samples gave forward, or fit a beta-binomial alone (the majority is right
where more than half of the samples are). Scored on problems made up by laws of several shapes:
mean log score per problem, and how often the 90 % interval of the mean holds what 64 gave.
``benchmarks/counterfactual.py`` scores the same on recordings.
"""

import argparse
import platform
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from advisor.accuracy.models.answers import AnswerModel, count_answers

Floats = npt.NDArray[np.float64]
Answers = Sequence[str | None]
RIGHT = "right"
LOW, HIGH = 0.05, 0.95


@dataclass(frozen=True)
class Forecast:
    """The chance per problem [problems], and draws of the mean over problems."""

    chances: Floats
    means: Floats

    def log_scores(self, outcome: Floats) -> Floats:
        """Return y log p + (1 - y) log(1 - p) per problem; higher is better."""
        chance = np.clip(self.chances, 1e-6, 1 - 1e-6)
        return np.asarray(outcome * np.log(chance) + (1 - outcome) * np.log1p(-chance))

    def holds(self, outcome: Floats) -> bool:
        """Whether the 90 % interval of the mean holds the mean outcome."""
        low, high = np.quantile(self.means, (LOW, HIGH))
        return bool(low <= outcome.mean() <= high)


@dataclass(frozen=True)
class Scored:
    """The log score per problem [problems], and whether the interval of the mean held."""

    logs: Floats
    held: bool


Scores = dict[tuple[str, str], Scored]  # by forecaster and vote


@dataclass(frozen=True)
class Task:
    """Problems whose first samples are seen, and what votes over all of them gave."""

    seen: list[Answers]
    rights: list[list[bool]]
    majority: Floats
    any_right: Floats
    total: int

    @property
    def hits(self) -> npt.NDArray[np.int64]:
        return np.array([sum(flags) for flags in self.rights])


def voted(answers: Answers, correct: Sequence[bool]) -> float:
    """Return how right the vote of all samples is: the end of `majority_curve` without the way."""
    votes = Counter(each for each in answers if each is not None)
    most = max(votes.values(), default=0)
    flags = [flag for each, flag in zip(answers, correct, strict=True) if votes[each] == most]
    return sum(flags) / len(flags) if votes else 0.0


def make_task(answers: Sequence[Answers], correct: Sequence[Sequence[bool]], seen: int) -> Task:
    """Return the task of foretelling votes over all samples from the first `seen` of them."""
    return Task(
        seen=[row[:seen] for row in answers],
        rights=[list(row[:seen]) for row in correct],
        majority=np.array([voted(a, c) for a, c in zip(answers, correct, strict=True)]),
        any_right=np.array([float(any(flags)) for flags in correct]),
        total=len(answers[0]),
    )


def ours(task: Task, seed: int = 0) -> dict[str, Forecast]:
    """Return what the shared laws of answers say."""
    counts = [count_answers(a, c) for a, c in zip(task.seen, task.rights, strict=True)]
    votes = AnswerModel(draws=400, seed=seed).fit(counts).simulate([task.total], keep=True)
    found = votes[task.total]
    runs = {"majority": found.majority[0], "pass": found.any_right[0]}
    return {
        name: Forecast((run.sum(axis=0) + 0.5) / (len(run) + 1), run.mean(axis=1))
        for name, run in runs.items()
    } | {"pass": _certain(task, runs["pass"])}


def _certain(task: Task, run: Floats) -> Forecast:
    chance = (run.sum(axis=0) + 0.5) / (len(run) + 1)
    return Forecast(np.where(task.hits > 0, 1.0, chance), run.mean(axis=1))


def carried(task: Task, seed: int = 0) -> dict[str, Forecast]:
    """Return what the seen samples gave, with the error rate that scores best in hindsight."""
    rng = np.random.default_rng(seed)
    votes = np.array([voted(a, c) for a, c in zip(task.seen, task.rights, strict=True)])
    passed = (task.hits > 0).astype(float)
    size = len(votes)
    weights = rng.multinomial(size, np.full(size, 1 / size), size=2000) / size
    rates = np.arange(0.0025, 0.3, 0.0025)

    def best(of: Callable[[float], Floats], outcome: Floats, values: Floats) -> Forecast:
        tried = [Forecast(of(rate), weights @ values) for rate in rates]
        return max(tried, key=lambda each: float(each.log_scores(outcome).mean()))

    return {
        "majority": best(lambda e: e + (1 - 2 * e) * votes, task.majority, votes),
        "pass": best(lambda e: np.where(passed > 0, 1.0, e), task.any_right, passed),
    }


def beta_binomial(task: Task, seed: int = 0) -> dict[str, Forecast]:
    """Return what a beta-binomial of the right answers says, fitted by maximum likelihood."""
    rng = np.random.default_rng(seed)
    hits, seen = task.hits, len(task.seen[0])
    a, b = fit_beta_binomial(hits, seen)
    chance = rng.beta(a + hits, b + seen - hits, size=(2000, len(hits)))
    total = hits + rng.binomial(task.total - seen, chance)
    won = (2 * total > task.total) + 0.5 * (2 * total == task.total)
    return {
        "majority": Forecast((won.sum(axis=0) + 0.5) / 2001, won.mean(axis=1)),
        "pass": _certain(task, (total > 0).astype(float)),
    }


def fit_beta_binomial(hits: npt.NDArray[np.int64], samples: int) -> tuple[float, float]:
    """Return a and b of the highest likelihood, by ever finer grids of their logarithms."""
    counts = np.bincount(hits, minlength=samples + 1)
    steps = np.arange(samples)
    centre, reach = np.zeros(2), 6.0
    for _ in range(12):
        logs = centre[:, None] + np.linspace(-reach, reach, 13)
        a, b = np.exp(np.meshgrid(*logs, indexing="ij"))
        rise = [
            np.concatenate(
                [np.zeros((*x.shape, 1)), np.cumsum(np.log(x[..., None] + steps), -1)], -1
            )
            for x in (a, b, a + b)
        ]
        fit = (rise[0] + rise[1][..., ::-1] - rise[2][..., -1:]) @ counts
        place = np.unravel_index(fit.argmax(), fit.shape)
        centre = np.array([logs[0, place[0]], logs[1, place[1]]])
        reach /= 2
    return float(np.exp(centre[0])), float(np.exp(centre[1]))


RIVALS: dict[str, Callable[[Task, int], dict[str, Forecast]]] = {
    "ours": ours,
    "carried": carried,
    "beta-binomial": beta_binomial,
}


def family(name: str, problems: int, rng: np.random.Generator) -> list[Floats]:
    """Return answer distributions: the right answer first, one that does not parse last."""
    return [_problem(name, rng) for _ in range(problems)]


def _problem(name: str, rng: np.random.Generator) -> Floats:
    mistakes = rng.dirichlet(np.full(9, 0.5))
    if name == "beta":
        hit = rng.beta(0.6, 0.4)
    elif name == "bimodal":
        kind = rng.random()
        hit = 0.0 if kind < 0.2 else 1.0 if kind < 0.5 else rng.beta(2, 3)
    elif name == "popular mistake":
        hit = rng.beta(2, 2)
        popular = rng.random() < 0.5
        mistakes = np.array([0.8, *[0.01] * 20]) if popular else np.full(50, 0.02)
    elif name == "hard":
        hit, mistakes = rng.beta(0.3, 3), rng.dirichlet(np.full(30, 0.3))
    elif name == "easy":
        hit, mistakes = rng.beta(6, 1.5), rng.dirichlet(np.ones(5))
    elif name == "two mistakes":
        hit, mistakes = rng.beta(1, 2), np.array([0.45, 0.35, *[0.04] * 5])
    elif name == "hard misleads":  # what is often missed has a mistake of its own
        hit = rng.beta(1, 1)
        lead = rng.uniform(0.3, 0.9) if hit < 0.4 else 0.05
        mistakes = np.array([lead, *[(1 - lead) / 19] * 19])
    else:  # two humps
        hit = rng.beta(2, 20) if rng.random() < 0.4 else rng.beta(20, 4)
    silent = 0.03 * (1 - hit)
    return np.array([hit * (1 - silent), *((1 - hit) * (1 - silent) * mistakes), silent])


FAMILIES = (
    "beta",
    "bimodal",
    "popular mistake",
    "hard",
    "easy",
    "two humps",
    "two mistakes",
    "hard misleads",
)


def draw(laws: Sequence[Floats], samples: int, rng: np.random.Generator) -> list[Answers]:
    found = []
    for law in laws:
        names = [RIGHT, *(str(i) for i in range(len(law) - 2)), None]
        found.append([names[i] for i in rng.choice(len(law), samples, p=law / law.sum())])
    return found


def score(task: Task, seed: int) -> Scores:
    """Return how good each forecaster is for each vote."""
    found = {}
    for name, foretell in RIVALS.items():
        for vote, forecast in foretell(task, seed).items():
            outcome = task.majority if vote == "majority" else task.any_right
            found[name, vote] = Scored(forecast.log_scores(outcome), forecast.holds(outcome))
    return found


def score_family(name: str, seed: int, problems: int) -> Scores:
    """Return the scores on problems made up by a law of this shape."""
    rng = np.random.default_rng([seed, FAMILIES.index(name)])
    answers = draw(family(name, problems, rng), 64, rng)
    correct = [[answer == RIGHT for answer in row] for row in answers]
    return score(make_task(answers, correct, 8), seed)


def table(rows: Sequence[tuple[str, Sequence[Scores]]]) -> None:
    """Print log scores and coverage, one line per name and vote."""
    print(f"| {'problems':<16} | vote     | " + " | ".join(f"{n:<14}" for n in RIVALS) + " |")
    print("|---|---|" + "---|" * len(RIVALS))
    for name, runs in rows:
        for vote in ("majority", "pass"):
            cells = []
            for rival in RIVALS:
                mine = [run[rival, vote] for run in runs]
                log = np.mean([each.logs.mean() for each in mine])
                held = f"{sum(each.held for each in mine)}/{len(mine)}"
                cells.append(f"{log:.4f}  {held}".ljust(14))
            print(f"| {name:<16} | {vote:<8} | " + " | ".join(cells) + " |")
    for vote in ("majority", "pass"):
        held = [run["ours", vote].held for _, runs in rows for run in runs]
        print(f"{vote}: {sum(held)} of {len(held)} intervals held")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seeds", type=int, default=20)
    options.add_argument("--problems", type=int, default=500)
    given = options.parse_args()
    print(f"Python {platform.python_version()}, numpy {np.__version__}; log score, intervals held")
    table(
        [
            (name, [score_family(name, seed, given.problems) for seed in range(given.seeds)])
            for name in FAMILIES
        ]
    )


if __name__ == "__main__":
    main()
