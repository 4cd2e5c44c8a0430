"""Problems that are posed again and again, as of their recorded problems."""

import dataclasses

import numpy as np

from advisor.evidence.runs import RecordedProblem, Sample
from advisor.replay.workload import Workload


def problems_of(count: int) -> list[RecordedProblem]:
    rng = np.random.default_rng(4)
    found = []
    for number in range(count):
        samples = [
            Sample(
                output_tokens=int(rng.integers(1, 40)),
                answer=None if rng.random() < 0.3 else str(rng.integers(3)),
                correct=bool(rng.random() < 0.5),
            )
            for _ in range(rng.integers(1, 5))
        ]
        taken = rng.integers(1, 4, int(rng.integers(3, 9)))
        samples[0] = dataclasses.replace(
            samples[0], output_tokens=int(taken.sum()) + 1, scheduled=taken + 1, advance=taken
        )
        problem = RecordedProblem(
            prompt_tokens=int(rng.integers(70, 90)), cached_tokens=int(rng.choice([0, 16, 48])),
            samples=tuple(samples), route=float(number % 3), front_end_s=number / 100,
        )  # fmt: skip
        found.append(problem)
    return found


def test_problems_posed_again_are_those_of_their_records():
    problems, rng = problems_of(9), np.random.default_rng(5)
    places = np.concatenate([rng.permutation(9) for _ in range(4)])
    posed = Workload.from_loads(problems).posed(places)
    same = Workload.from_loads([problems[place] for place in places])
    for field in dataclasses.fields(Workload):
        one, other = getattr(posed, field.name), getattr(same, field.name)
        assert (one is None) == (other is None), field.name
        if one is not None:
            assert one.dtype == other.dtype and one.tolist() == other.tolist(), field.name
    assert posed.longest == same.longest


def test_draws_in_turn_are_posed_as_those_of_their_records():
    problems, rng = problems_of(6), np.random.default_rng(6)
    draws = [problems, [dataclasses.replace(p, samples=p.samples[::-1]) for p in problems]]
    orders = [rng.permutation(6) for _ in range(3)]
    every = Workload.from_loads([load for draw in draws for load in draw])
    posed = every.posed(np.concatenate([n % 2 * 6 + order for n, order in enumerate(orders)]))
    same = Workload.from_loads([draws[n % 2][p] for n, order in enumerate(orders) for p in order])
    for name in ("path", "first_segment", "segment_start", "segment_end", "answer", "right"):
        assert getattr(posed, name).tolist() == getattr(same, name).tolist(), name
