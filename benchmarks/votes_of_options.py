"""Votes beyond the record, of multiple choice and open answers.

    python -m benchmarks.votes_of_options [--seeds 16] [--problems 300]

Made-up reasoners answer questions of 3, 4, 5 and 10 options. 8 samples of each problem are seen,
and 16 and 32 are predicted as `show --policies` has it. Counted is how often the interval holds
the mean over all problems of that law, and how often the one of a fresh run holds a fresh run.

- equal: wrong options are equally likely.
- logits: options have normal logits, the right one a higher mean.
- open: wrong answers have a Dirichlet law, so that some are popular.
- guess: a question is known, or all options are equally likely, the right one too.
"""

from __future__ import annotations

import argparse

import numpy as np

from advisor.accuracy.extrapolation import extrapolate
from advisor.accuracy.models.answers import AnswerModel, count_answers
from traces.statistics import Floats

KINDS = ("equal", "logits", "open", "guess")
SEEN, AHEAD, OPTIONS = 8, (16, 32), (3, 4, 5, 10)
POPULATION, REPEATS = 6000, 8  # problems that stand for all, and votes of each


def problem(kind: str, options: int, rng: np.random.Generator) -> Floats:
    """Return the chance of each answer, the right one first."""
    wrong = options - 1
    mistakes = np.full(wrong, 1 / wrong)
    if kind == "equal":
        hit = rng.beta(2, 1.5)
    elif kind == "guess":
        hit = rng.beta(8, 2) if rng.random() < 0.6 else 1 / options
    elif kind == "open":
        hit, mistakes = rng.beta(1.5, 1.5), rng.dirichlet(np.full(wrong, 0.5))
    else:
        logits = 1.2 * rng.normal(size=options)
        logits[0] += 1.0
        chances = np.exp(logits - logits.max())
        return np.asarray(chances / chances.sum())
    return np.array([hit, *(1 - hit) * mistakes])


def voted(laws: list[Floats], count: int, rng: np.random.Generator, repeats: int) -> float:
    """Return how right votes of so many samples are, ties shared, the mean over problems."""
    shares = []
    for law in laws:
        tally = rng.multinomial(count, law, size=repeats)
        leads = tally == tally.max(axis=1, keepdims=True)
        shares.append((leads[:, 0] / leads.sum(axis=1)).mean())
    return float(np.mean(shares))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seeds", type=int, default=16)
    options.add_argument("--problems", type=int, default=300)
    given = options.parse_args()
    print("| reasoner | samples | too high by, points | interval held | fresh run held |")
    print("|---|---|---|---|---|")
    for kind in KINDS:
        off: dict[int, list[tuple[float, bool, bool]]] = {count: [] for count in AHEAD}
        for number in OPTIONS:
            rng = np.random.default_rng([7, number, KINDS.index(kind)])
            every = [problem(kind, number, rng) for _ in range(POPULATION)]
            means = {count: voted(every, count, rng, REPEATS) for count in AHEAD}
            for seed in range(given.seeds):
                rng = np.random.default_rng([seed, number, KINDS.index(kind)])
                laws = [problem(kind, number, rng) for _ in range(given.problems)]
                drawn = [rng.choice(number, SEEN, p=law).tolist() for law in laws]
                counts = [count_answers(each, [a == 0 for a in each]) for each in drawn]
                model, tokens = AnswerModel().fit(counts), np.ones(given.problems)
                for each in extrapolate(model, AHEAD, tokens):
                    if each.method == "majority":
                        found, fresh = each.accuracy, each.fresh_run
                        assert found is not None and found.low is not None
                        assert fresh is not None and fresh.low is not None
                        assert found.high is not None and fresh.high is not None
                        again = voted(laws, each.n, rng, 1)
                        off[each.n].append((
                            found.value - means[each.n],
                            found.low <= means[each.n] <= found.high,
                            fresh.low <= again <= fresh.high,
                        ))  # fmt: skip
        for count, rows in off.items():
            bias, held, again = (sum(column) for column in zip(*rows, strict=True))
            cells = (
                f"{100 * bias / len(rows):+.1f} | {held} of {len(rows)} | {again} of {len(rows)}"
            )
            print(f"| {kind} | {count} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
