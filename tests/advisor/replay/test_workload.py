"""A workload posed again, or with other samples, equals the one made of its own records."""

import dataclasses

import numpy as np
import pytest

from advisor.evidence.runs import RecordedProblem, Sample
from advisor.replay.workload import ReplayWorkload, SampleArrays


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
    posed = ReplayWorkload.from_loads(problems).posed(places)
    same = ReplayWorkload.from_loads([problems[place] for place in places])
    check_same(posed, same)


def check_same(made: ReplayWorkload, same: ReplayWorkload):
    for field in dataclasses.fields(ReplayWorkload):
        one, other = getattr(made, field.name), getattr(same, field.name)
        assert (one is None) == (other is None), field.name
        if one is not None:
            assert one.dtype == other.dtype and one.tolist() == other.tolist(), field.name
    assert made.longest == same.longest


def test_samples_drawn_again_are_those_of_their_records():
    problems, rng = problems_of(9), np.random.default_rng(7)
    counts = [len(problem.samples) for problem in problems]
    places = rng.integers(0, sum(counts), sum(counts))  # of any problem
    made = ReplayWorkload.from_loads(problems).with_samples(SampleArrays.of(problems).at(places))
    each = [sample for problem in problems for sample in problem.samples]
    drawn = [each[place] for place in places]
    begins = np.cumsum([0, *counts])
    check_same(
        made,
        ReplayWorkload.from_loads(
            [
                dataclasses.replace(problem, samples=tuple(drawn[first:last]))
                for problem, first, last in zip(problems, begins[:-1], begins[1:], strict=True)
            ]
        ),
    )


def test_answers_are_numbered_as_they_are_met_and_the_first_sample_says_which_are_right():
    answers = [["b", None, "a", "b"], [], ["a", "a"], [None], ["a", "c"]]
    right = [[False, True, True, True], [], [True, False], [True], [False, True]]
    problems = [
        RecordedProblem(
            prompt_tokens=9,
            cached_tokens=0,
            samples=[
                Sample(output_tokens=3, answer=answer, correct=correct)
                for answer, correct in zip(*each, strict=True)
            ],
        )
        for each in zip(answers, right, strict=True)
    ]
    made = ReplayWorkload.from_loads(problems)
    assert made.answer.tolist() == [0, -1, 1, 0, 2, 2, -1, 3, 4]
    assert made.first_answer.tolist() == [0, 2, 2, 3, 3, 5]
    assert made.right.tolist() == [False, True, True, False, True]


def test_draws_in_turn_are_posed_as_those_of_their_records():
    problems, rng = problems_of(6), np.random.default_rng(6)
    draws = [problems, [dataclasses.replace(p, samples=p.samples[::-1]) for p in problems]]
    orders = [rng.permutation(6) for _ in range(3)]
    every = ReplayWorkload.from_loads([load for draw in draws for load in draw])
    posed = every.posed(np.concatenate([n % 2 * 6 + order for n, order in enumerate(orders)]))
    same = ReplayWorkload.from_loads(
        [draws[n % 2][p] for n, order in enumerate(orders) for p in order]
    )
    for name in ("path", "first_segment", "segment_start", "segment_end", "answer", "right"):
        assert getattr(posed, name).tolist() == getattr(same, name).tolist(), name


@pytest.mark.parametrize("tokens", [([0], [5]), ([5], [0]), ([5, 0], [5, 5])])
def test_requests_without_a_token_of_prompt_or_output_are_refused(tokens):
    with pytest.raises(ValueError, match="at least one token of prompt and of output"):
        ReplayWorkload.from_requests(*tokens)
