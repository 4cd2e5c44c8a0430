"""How often the cheapest candidate that is sure enough of its accuracy is right enough afterwards.

A limit lies anywhere in the range of the candidates' true accuracies. Few problems are drawn, the
code of `advise` picks the cheapest candidate that is 90 % sure, and another at random that is sure
as well. What was said is held against the chance that one more run of as many other problems meets
the limit. Cost is over that of the oracle, the cheapest that meets it in 90 % of such runs.

Made-up: 24 candidates whose luck has nothing in common, the cheaper the less accurate, and votes
of 1 to 16 samples of three models on the same problems. And thinking budgets of three models, which
chose nothing of the law. Real: votes and tokens of the recordings
of the bundled reasoners, whose truth is that of the problems that were not drawn.

    python -m benchmarks.chosen_picks [SETS [SEED]]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from math import comb
from pathlib import Path

import numpy as np

from advisor.accuracy.models.together import luck_by_name
from advisor.advice.feasible import ReplayedCheck
from advisor.search.budget import Prices
from benchmarks.few_problems import metrics_of, row_of
from traces.recording.reader import Recording
from traces.schema.advice import Budget
from traces.schema.tts.policy import Policy
from traces.statistics import Floats
from traces.summary.run import summarise
from traces.summary.votes import majority_curve

SURE = 0.9
SIZES = (10, 20, 50)
SHIPPED = Path("profiler/demo/recordings")
VOTES = (1, 2, 4, 8, 16)
SAMPLES = 16
World = tuple[Floats, Floats, Floats]  # cost, true accuracy [candidates], shares [them, problems]
Draw = Callable[[np.random.Generator, int], World]


def apart(rng: np.random.Generator, problems: int) -> World:
    """Return candidates whose accuracies have nothing in common but what they cost."""
    cost = np.exp(rng.uniform(-0.7, 0.7, 24))
    skill = np.clip(0.6 + 0.2 * np.log(cost) + rng.normal(0, 0.07, 24), 0.05, 0.97)
    return cost, skill, (rng.random((24, problems)) < skill[:, None]).astype(float)


def in_votes(rng: np.random.Generator, problems: int) -> World:
    """Return votes of three models whose wrong answers are all the same one."""
    skill = rng.uniform(-0.5, 1.2) + rng.uniform(0.2, 1.0) * np.arange(3) + rng.normal(0, 0.2, 3)
    wide, own = rng.uniform(0.6, 2.0), rng.uniform(0.3, 1.0)
    price = np.exp(np.cumsum(rng.uniform(0.3, 1.2, 3)))

    def right(count: int) -> Floats:
        hard = rng.normal(0, wide, count)
        odds = skill[:, None] + hard + rng.normal(0, own, (3, count))
        counts = rng.binomial(SAMPLES, 1 / (1 + np.exp(-odds)))
        return CURVES[counts].transpose(0, 2, 1).reshape(-1, count)

    return (
        np.outer(price, np.array(VOTES) ** 0.9).ravel(),
        right(20_000).mean(axis=1),
        right(problems),
    )


def budgets(rng: np.random.Generator, problems: int) -> World:
    """Return single answers of three models at four thinking budgets: hard problems think long."""
    skill = 0.4 * rng.normal(0, 1, 3).cumsum() + rng.uniform(-0.5, 1.0)
    cuts, wide = np.array([0.3, 0.6, 1.2, 2.5]), rng.uniform(0.5, 2.0)
    price = np.exp(np.cumsum(rng.uniform(0.2, 1.0, 3)))

    def right(count: int) -> Floats:
        hard = rng.normal(0, wide, count)
        need = np.exp(rng.normal(0, 0.6, count) + 0.3 * hard)
        chance = 1 / (1 + np.exp(-(skill[:, None, None] + hard)))
        in_time = need < cuts[:, None]
        return (rng.binomial(4, np.where(in_time, chance, 0.05)) / 4).reshape(12, count)

    return np.outer(price, cuts).ravel(), right(20_000).mean(axis=1), right(problems)


def _curves() -> Floats:
    """Return [right samples, votes], how often votes of so many of 16 samples are right."""
    curves = np.zeros((SAMPLES + 1, len(VOTES)))
    for right in range(SAMPLES + 1):
        for place, n in enumerate(VOTES):
            for hits in range(n + 1):
                ways = comb(right, hits) * comb(SAMPLES - right, n - hits) / comb(SAMPLES, n)
                curves[right, place] += ways * (1.0 if 2 * hits > n else 0.5 * (2 * hits == n))
    return curves


CURVES = _curves()


def recorded() -> tuple[Floats, Floats]:
    """Return the cost of votes of the bundled reasoners, and their shares [them, problems]."""
    costs, shares = [], []
    for model, price in (("s", 1.0), ("m", 2.0), ("l", 4.0)):
        (folder,) = SHIPPED.glob(f"demo-{model}-tp1-seqs64-maj@16-*")
        (run,) = summarise(Recording.open(folder))
        assert run.sample_rows is not None
        rows = run.sample_rows.sort("problem_id")
        curves = [
            majority_curve(each["answer"].to_list(), each["correct"].to_list())
            for _, each in rows.group_by("problem_id", maintain_order=True)
        ]
        tokens = float(rows["output_tokens"].mean())
        for n in VOTES:
            costs.append(price * tokens * n)
            shares.append([curve[n - 1] for curve in curves])
    return np.array(costs), np.array(shares)


def of_recordings() -> Draw:
    costs, shares = recorded()

    def draw(rng: np.random.Generator, problems: int) -> World:
        order = rng.permutation(shares.shape[1])
        left = shares[:, order[problems:]]
        return costs, left.mean(axis=1), shares[:, order[:problems]]

    return draw


def meets(accuracy: Floats, problems: int, limit: float) -> Floats:
    """Return the chance that a run of so many problems is right in a share `limit` of them."""
    hits = np.arange(np.ceil(limit * problems - 1e-9), problems + 1)
    ways = np.array([comb(problems, int(each)) for each in hits], dtype=float)
    terms = ways * accuracy[:, None] ** hits * (1 - accuracy[:, None]) ** (problems - hits)
    return np.asarray(terms.sum(axis=1))


def asked(world: World, problems: int, limit: float) -> Iterator[tuple[str, Floats, Floats]]:
    """Yield ways to judge candidates: name, chances said, and whether each meets the limit."""
    cost, accuracy, shares = world
    times = np.outer(cost, np.ones(problems))
    named = {(place, Policy(method="greedy")): place for place in range(len(cost))}
    luck = luck_by_name(
        {name: shares[place] for name, place in named.items()},
        {name: float(cost[place]) for name, place in named.items()},
    )
    run = meets(accuracy, problems, limit)
    budget = Budget(min_accuracy=limit, optimise="cost")
    alone = metrics_of(times, shares)
    means = alone.chance(alone.draws("accuracy") >= limit)
    yield "the mean over all problems", means, (accuracy >= limit).astype(float)
    yield "the same, of one more run", means, run
    for name, metrics in (
        ("one more run, each alone", alone),
        ("one more run, seen together", metrics_of(times, shares, luck)),
    ):
        yield name, ReplayedCheck(metrics, budget, Prices(budget, None)).chance, run


def main() -> None:
    sets = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    row_of(
        "outcomes", "judged by", "problems", "no pick", "pick: said, met", "not chosen: said, met",
        "cost over the oracle's: median, mean, p90",
    )  # fmt: skip
    row_of(*["---"] * 7)
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 8
    laws: dict[str, Draw] = {
        "apart": apart, "votes": in_votes, "budgets": budgets, "recorded": of_recordings(),
    }  # fmt: skip
    for law, draw in laws.items():
        for problems in SIZES:
            _table(law, draw, problems, sets, seed)


def _table(law: str, draw: Draw, problems: int, sets: int, seed: int) -> None:
    rng = np.random.default_rng([problems, seed])
    found: dict[str, list[tuple[float, ...]]] = {}
    none: dict[str, int] = {}
    for _ in range(sets):
        world = draw(rng, problems)
        cost, accuracy, _ = world
        limit = float(rng.uniform(*np.quantile(accuracy, (0.05, 0.95))))
        other = float(rng.random())
        for name, said, met in asked(world, problems, limit):
            sure = np.flatnonzero(said >= SURE)
            found.setdefault(name, [])
            if not len(sure):
                none[name] = none.get(name, 0) + 1
                continue
            pick = sure[cost[sure].argmin()]
            rest = sure[sure != pick]
            able = cost[met >= SURE]
            one = rest[int(other * len(rest))] if len(rest) else None
            found[name].append((
                said[pick], met[pick],
                *((np.nan, np.nan) if one is None else (said[one], met[one])),
                cost[pick] / able.min() if len(able) else np.nan,
            ))  # fmt: skip
    for name, rows in found.items():
        table = np.array(rows)
        said, met, other_said, other_met = np.nanmean(table[:, :4], axis=0)
        dear = table[np.isfinite(table[:, 4]), 4]
        row_of(
            law, name, problems, f"{none.get(name, 0) / sets:.0%}", f"{said:.0%}, {met:.0%}",
            f"{other_said:.0%}, {other_met:.0%}",
            f"{np.median(dear):.2f}, {dear.mean():.2f}, {np.quantile(dear, 0.9):.2f}",
        )  # fmt: skip


if __name__ == "__main__":
    main()
