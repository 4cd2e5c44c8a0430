"""Policies: what they draw, when they decide, how ties and failures count."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.policies.choices import plurality
from profiler.policies.methods import start
from profiler.policies.seam import Vote
from traces.errors import UsageError
from traces.schema import Policy

ANSWERS = st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=9)


@given(answers=ANSWERS, order=st.randoms())
def test_majority_does_not_depend_on_the_order_of_arrival(answers, order):
    run = start(Policy(method="majority", n=len(answers), temperature=1.0))
    assert [draw.index for draw in run.begin().draw] == list(range(len(answers)))
    arrivals = list(enumerate(answers))
    order.shuffle(arrivals)
    moves = [run.on_sample(Vote(sample_index=i, answer=a)) for i, a in arrivals]
    assert all(move.decision is None for move in moves[:-1])
    decision = moves[-1].decision
    assert decision.by_sample == arrivals[-1][0]
    assert decision.answer == plurality(dict(enumerate(answers)))


def test_ties_and_unparsed_answers():
    assert plurality({0: "b", 1: "a"}) == "b"
    assert plurality({1: "a", 0: None, 2: "b", 3: "b", 4: "a"}) == "a"
    assert plurality({0: None, 1: None, 2: "c"}) == "c"
    assert plurality({0: None}) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 0},
        {"method": "greedy", "n": 2},
        {"method": "nonsense"},
        {"temperature": -1},
        {"top_p": 0},
        {"max_tokens": 0},
        {"thinking_token_budget": 0},
    ],
)
def test_impossible_policies_are_refused(fields):
    with pytest.raises(UsageError):
        Policy(**fields)
