"""How often the intervals of accuracy hold: of the mean, and of as many or more other problems.

Made-up problems whose chance to be right follows a beta law, and wrong answers of which one is
popular. Each trial records `problems` of them with 8 samples, and looks whether the interval holds
the true mean, and the accuracy of one run of `others`: fresh problems of the same law, one vote
each.

    python -m benchmarks.other_problems [TRIALS]
"""

import sys

import numpy as np

from traces.statistics import column_means
from traces.statistics import others as law_of_others
from traces.summary.votes import majority_curve

SHAPES = {"even": (1.2, 0.8), "bimodal": (0.4, 0.3), "easy": (5.0, 0.6)}
SAMPLES = 8
PLACES = (0, 3, 7)  # maj@1, maj@4, maj@8


def run(rng: np.random.Generator, problems: int, law: tuple[float, float]) -> np.ndarray:
    """Return [problems, votes] of a run of made-up problems."""
    chances = rng.beta(*law, problems)
    found = []
    for chance in chances:
        right = rng.random(SAMPLES) < chance
        wrong = rng.geometric(rng.uniform(0.2, 0.8), SAMPLES)
        answers = [0 if ok else int(each) for ok, each in zip(right, wrong, strict=True)]
        found.append(majority_curve(answers, right.tolist())[list(PLACES)])
    return np.array(found)


def main() -> None:
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    print(f"{trials} trials each; share of them in which the 90 % interval holds")
    print("law      problems  others  vote   of the mean: mean  others   of others: others  width")
    total = []
    for name, law in SHAPES.items():
        truth = run(np.random.default_rng(1), 20_000, law).mean(axis=0)
        for problems, others in ((30, 30), (30, 300), (100, 100), (300, 100)):
            rng = np.random.default_rng([problems, others, *map(ord, name)])
            held = np.zeros((3, len(PLACES)))
            width = np.zeros(len(PLACES))
            for _ in range(trials):
                shares, chances = run(rng, problems, law), run(rng, others, law)
                fresh = (rng.random(chances.shape) < chances).mean(axis=0)
                for place, each in enumerate(column_means(shares, "1")):
                    variance = float(shares[:, place].var())
                    wide = law_of_others(each.value, variance, problems, of=others).interval()
                    held[0, place] += bool(each.holds(truth[place]))
                    held[1, place] += bool(each.holds(fresh[place]))
                    held[2, place] += wide.low - 1e-9 <= fresh[place] <= wide.high + 1e-9
                    width[place] += wide.high - wide.low
            for place, k in enumerate(PLACES):
                mean, narrow, right = held[:, place] / trials
                total.append((mean, narrow, right))
                size = f"{name:<8} {problems:>8} {others:>7}  maj@{k + 1}"
                shares = f"{mean:>17.1%} {narrow:>7.1%} {right:>19.1%}"
                print(f"{size}  {shares} {width[place] / trials:>6.3f}")
    print("mean of all: {:.1%}, {:.1%}, {:.1%}".format(*np.mean(total, axis=0)))


if __name__ == "__main__":
    main()
