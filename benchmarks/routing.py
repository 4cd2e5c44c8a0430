"""How often tables by difficulty are offered that gain nothing, and how often ones that do.

    python -m benchmarks.routing [SETS] [PROBLEMS] [LAW ..]

Sets of made-up problems of 8 samples. Of `shuffled` the classes are dealt at random among problems
that are not alike. Of `alike` all problems have the same chance. Both try tables by class alone.
Of `coin` two answers are as likely as each other, so that no number of samples gains. Of `mixed`
some problems are easy, some hard and some hopeless, and `classes` has these as classes. The last
laws have samples of two reasoning efforts. With `efforts` a class tells which of them pays. With
`efforts shuffled` classes are dealt at random, and with `efforts alike` all problems have the same
chances. These try tables by class alone, and `efforts first` is `efforts` with those by agreement.
An offer is false where, on FRESH other problems of the same law, the table gains nothing over the
single policy that is truly the best one at that price.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from advisor.evidence.pools import Pool, find_pools
from advisor.evidence.runs import ProblemRun, RecordedRun, Sample
from advisor.search import routing
from traces.schema.engine import EngineConfig
from traces.schema.tts.policy import Policy
from traces.statistics import jeffreys

SAMPLES, FRESH = 8, 1_500
ALL = routing.FIRST
LAWS = {"shuffled": (), "alike": (), "coin": ALL, "mixed": ALL, "classes": ()}
KINDS = {  # chance to be right, number of wrong answers, tokens, by effort: easy, hard, hopeless
    "low": [(0.93, 6, 60), (0.45, 4, 100), (0.05, 8, 150)],
    "high": [(0.95, 6, 240), (0.85, 4, 400), (0.08, 8, 700)],
}
EFFORT_LAWS = {"efforts": (), "efforts shuffled": (), "efforts alike": (), "efforts first": ALL}


def problems_of(law: str, count: int, rng: np.random.Generator) -> dict[str, ProblemRun]:
    found = {}
    for number in range(count):
        kind = int(rng.integers(3))
        chance, mistakes, length = [(0.95, 6, 60), (0.55, 3, 150), (0.05, 8, 300)][kind]
        group = f"class {kind}"
        if law == "shuffled":
            group = f"class {int(rng.integers(3))}"
        elif law == "alike":
            chance, mistakes, length = 0.6, 3, 150
        elif law == "coin":
            chance, mistakes, length = 0.5, 1, 150
        found[f"p{number}"] = _problem(f"p{number}", group, (chance, mistakes, length), rng)
    return found


def _problem(
    name: str,
    group: str,
    law: tuple[float, int, int],
    rng: np.random.Generator,
    count: int = SAMPLES,
) -> ProblemRun:
    chance, mistakes, length = law
    right = rng.random(count) < chance
    wrong = rng.integers(mistakes, size=count)
    lengths = rng.geometric(1 / length, count)
    samples = tuple(
        Sample(output_tokens=int(t), answer="right" if r else f"wrong {w}", correct=bool(r))
        for t, r, w in zip(lengths, right, wrong, strict=True)
    )
    return ProblemRun(
        problem_id=name,
        arrival_ns=0,
        prompt_tokens=20,
        cached_tokens=0,
        latency_s=1.0,
        samples=samples,
        indices=tuple(range(count)),
        group=group,
    )


def efforts_of(
    law: str, count: int, rng: np.random.Generator, samples: int = SAMPLES
) -> dict[str, dict[str, ProblemRun]]:
    """Return made-up problems by effort and id: the same ones under each effort."""
    found: dict[str, dict[str, ProblemRun]] = {effort: {} for effort in KINDS}
    for number in range(count):
        kind = int(rng.integers(3))
        told = law in ("efforts", "efforts first")
        group = f"class {kind if told else int(rng.integers(3))}"
        if law == "efforts alike":
            kind = 1
        for effort, kinds in KINDS.items():
            problem = _problem(f"p{number}", group, kinds[kind], rng, samples)
            found[effort][problem.problem_id] = problem
    return found


def pools_of(problems: dict[str, ProblemRun]) -> list[Pool]:
    return pools_of_efforts({None: problems})


def pools_of_efforts(by_effort: Mapping[Any, dict[str, ProblemRun]]) -> list[Pool]:
    """Return the samples of several efforts as advise pools them."""
    runs = [
        RecordedRun(
            recording=f"made {effort}",
            engine=EngineConfig(model="made"),
            policy=Policy(
                method="majority",
                n=len(next(iter(problems.values())).samples),
                temperature=0.8,
                reasoning_effort=effort,
            ),
            problems=problems,
            concurrency=1,
            rate_per_s=None,
        )
        for effort, problems in by_effort.items()
    ]
    evidence: Any = SimpleNamespace(runs=runs, cut=[])
    return find_pools(evidence)


def made_pools(law: str, count: int, rng: np.random.Generator) -> tuple[list[Pool], list[Any]]:
    """Return the pools of a law, and the class of each of their problems."""
    if law in EFFORT_LAWS:
        by_effort = efforts_of(law, count, rng)
        problems = by_effort["low"]
        pools = pools_of_efforts(by_effort)
    else:
        problems = problems_of(law, count, rng)
        pools = pools_of(problems)
    return pools, [each.group for each in problems.values()]


class Truth:
    """What tables and single policies give on many problems of a law."""

    def __init__(self, law: str) -> None:
        pools, groups = made_pools(law, FRESH, np.random.default_rng([9, len(law)]))
        names = [f"p{number}" for number in range(FRESH)]
        self.singles, options = routing.measured(pools, names, groups, [8])
        self.options = {self._shape(each): each for each in options}

    @staticmethod
    def _shape(option: routing.Option) -> tuple[Any, ...]:
        return option.first, *(pool.key[1].reasoning_effort for pool in option.pools)

    def gain(self, tried: routing.Tried) -> float:
        """Return what a table gains at its price over the policy that is truly best there."""
        option, price = self.options[self._shape(tried.option)], tried.price
        if option.classes != tried.option.classes:
            return 0.0
        own = option.of(option.gain(price), tried.chosen).mean()
        singles = [(each.right - price * each.tokens).mean() for each in self.singles]
        return float(own - max(singles))


def made(law: str, sets: int, count: int) -> None:
    """Print how often tables were offered, and how often falsely."""
    routing.FIRST = (LAWS | EFFORT_LAWS)[law]
    truth = Truth(law)
    offered = false = spanning = 0
    begun = time.process_time()
    for number in range(sets):
        pools, groups = made_pools(law, count, np.random.default_rng([number, len(law), 1]))
        names = [f"p{place}" for place in range(count)]
        tried = routing.offers(routing.try_tables(pools, names, groups, number))
        gains = [truth.gain(each) for each, is_offered in tried if is_offered]
        offered += bool(gains)
        spanning += any(each.option.spans for each, is_offered in tried if is_offered)
        false += any(gain <= 0 for gain in gains)
    low, high = jeffreys(false, sets)
    spent = (time.process_time() - begun) / sets
    print(
        f"{law:16} offered in {offered:4} of {sets}, over efforts in {spanning}, falsely in "
        f"{false} [{low:.3f}, {high:.3f}], {spent:.2f} s of a core each",
        flush=True,
    )


if __name__ == "__main__":
    given = [int(text) for text in sys.argv[1:] if text.isdigit()]
    only = [text for text in sys.argv[1:] if not text.isdigit()]
    sets, count = (given + [200, 60][len(given) :])[:2]
    for law in [each for each in (*LAWS, *EFFORT_LAWS) if each in only or not only]:
        made(law, sets, count)
