"""How often tables by difficulty are offered that gain nothing, and how often ones that do.

    python -m benchmarks.routing [SETS] [PROBLEMS]

Sets of made-up problems of 8 samples. Of `shuffled` the classes are dealt at random among problems
that are not alike. Of `alike` all problems have the same chance. Both try tables by class alone.
Of `coin` two answers are as likely as each other, so that no number of samples gains. Of `mixed`
some problems are easy, some hard and some hopeless, and `classes` has these as classes. An offer is
false where, on FRESH other problems of the same law, the table gains nothing over the single policy
that is truly the best one at that price. The last lines are of the bundled recordings.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from advisor.accuracy.subsets import RandomOrders, samples_of
from advisor.evidence.gather import gather
from advisor.evidence.pools import Pool, find_pools
from advisor.evidence.runs import ProblemRun, Run, Sample
from advisor.search import routing
from traces.recording.reader import Recording
from traces.schema.engine import EngineConfig
from traces.schema.tts.policy import Policy
from traces.statistics import wilson

SAMPLES, FRESH = 8, 1_500
RECORDINGS = Path(__file__).parent.parent / "profiler" / "demo" / "recordings"
ALL = routing.FIRST
LAWS = {"shuffled": (), "alike": (), "coin": ALL, "mixed": ALL, "classes": ()}


def problems_of(law: str, count: int, rng: np.random.Generator) -> dict[str, ProblemRun]:
    """Return made-up problems by id."""
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
        right = rng.random(SAMPLES) < chance
        wrong = rng.integers(mistakes, size=SAMPLES)
        lengths = rng.geometric(1 / length, SAMPLES)
        samples = tuple(
            Sample(output_tokens=int(t), answer="right" if r else f"wrong {w}", correct=bool(r))
            for t, r, w in zip(lengths, right, wrong, strict=True)
        )
        found[f"p{number}"] = ProblemRun(
            problem_id=f"p{number}",
            arrival_ns=0,
            prompt_tokens=20,
            cached_tokens=0,
            latency_s=1.0,
            samples=samples,
            indices=tuple(range(SAMPLES)),
            group=group,
        )
    return found


def pools_of(problems: dict[str, ProblemRun]) -> list[Pool]:
    """Return the samples as advise pools them."""
    run = Run(
        recording="made",
        engine=EngineConfig(model="made"),
        policy=Policy(method="majority", n=SAMPLES, temperature=0.8),
        problems=problems,
        concurrency=1,
        rate_per_s=None,
    )
    evidence: Any = SimpleNamespace(runs=[run], cut=[])
    return find_pools(evidence)


class Truth:
    """What tables and single policies give on many problems of a law."""

    def __init__(self, law: str) -> None:
        problems = problems_of(law, FRESH, np.random.default_rng([9, len(law)]))
        (pool,) = pools_of(problems)
        loads = pool.loads(list(problems))
        assert loads is not None
        rng = np.random.default_rng(8)
        orders = [RandomOrders(samples_of(each.samples), rng, 32) for each in loads]
        groups = [each.group for each in problems.values()]
        self.singles = {each.policy: each for each in routing._singles(pool, loads, orders)}
        self.options = {each.first: each for each in routing._options(pool, orders, groups)}

    def gain(self, tried: routing.Tried) -> float:
        """Return what a table gains at its price over the policy that is truly best there."""
        option, price = self.options[tried.option.first], tried.price
        if option.classes != tried.option.classes:
            return 0.0
        own = option.of(option.gain(price), tried.chosen).mean()
        singles = [(each.right - price * each.tokens).mean() for each in self.singles.values()]
        return float(own - max(singles))


def made(law: str, sets: int, count: int) -> None:
    """Print how often tables were offered, and how often falsely."""
    routing.FIRST = LAWS[law]
    truth = Truth(law)
    offered = false = 0
    begun = time.process_time()
    for number in range(sets):
        problems = problems_of(law, count, np.random.default_rng([number, len(law), 1]))
        names, pools = list(problems), pools_of(problems)
        groups = [each.group for each in problems.values()]
        tried = routing.offers(routing.try_tables(pools, names, groups, number))
        gains = [truth.gain(each) for each, is_offered in tried if is_offered]
        offered += bool(gains)
        false += any(gain <= 0 for gain in gains)
    low, high = wilson(false, sets)
    spent = (time.process_time() - begun) / sets
    print(
        f"{law:10} offered in {offered:4} of {sets}, falsely in {false} "
        f"[{low:.3f}, {high:.3f}], {spent:.2f} s of a core each",
        flush=True,
    )


def bundled() -> None:
    """Print what is offered of the recordings that are shipped."""
    routing.FIRST = ALL
    evidence = gather([Recording.open(path) for path in sorted(RECORDINGS.iterdir())])
    pools = find_pools(evidence)
    names = sorted(frozenset.intersection(*(pool.problem_ids for pool in pools)))
    for model in sorted({pool.key[0][0] for pool in pools}):
        own = [pool for pool in pools if pool.key[0][0] == model and pool.key[0][-1] is None]
        for each in routing.with_routings(own, names)[1]:
            share, accuracy = each.tokens, each.accuracy
            print(
                f"{model} {each.policy.label()} {dict(each.policy.rule)['route']} against "
                f"{each.against.label()}: {'offered' if each.offered else 'not offered'}, accuracy "
                f"{accuracy.value:+.3f} [{accuracy.low:+.3f}, {accuracy.high:+.3f}], tokens "
                f"{share.value:+.1%} [{share.low:+.1%}, {share.high:+.1%}]"
            )


if __name__ == "__main__":
    given = [int(text) for text in sys.argv[1:]]
    sets, count = (given + [200, 60][len(given) :])[:2]
    for law in LAWS:
        made(law, sets, count)
    bundled()
