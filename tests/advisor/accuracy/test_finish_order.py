from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advisor.accuracy.finish_order import decide, generated_by
from tests.advisor.sampled import samples
from traces.schema.tts.stop_rules import AGREE, FIRST, SAFE, SETTLED, Stop

LENGTHS = st.lists(
    st.tuples(st.sampled_from([None, "a", "b"]), st.integers(1, 30)), min_size=1, max_size=12
)


def test_first_finished_decide_by_index_when_they_tie():
    problem = samples(["a", "b", "b", "a"], tokens=[20, 10, 10, 30])
    found = decide(problem, Stop(rule=FIRST, value=1))
    assert (found.right, found.seconds) == (0.0, 10.0)
    # The decision falls at 10: both that ended then count whole, the others by their pace.
    assert found.tokens == pytest.approx(10 + 10 + (1 + 19 / 2) + (1 + 29 / 3))


def test_answers_that_do_not_parse_do_not_count():
    problem = samples([None, "a", "b", "b"], tokens=[1, 2, 3, 4])
    assert decide(problem, Stop(rule=FIRST, value=1)).seconds == 2.0
    assert decide(problem, Stop(rule=FIRST, value=9)).seconds == 4.0
    assert decide(samples([None, None]), Stop(rule=FIRST, value=1)).right == 0.0


def test_partial_tokens():
    problem = samples(
        ["a", "a", "a"], tokens=[11, 21, 5], finish=[10.0, 20.0, 40.0], first_token_s=[0.0, 0.0, 30]
    )
    assert generated_by(problem, 10.0).tolist() == [11.0, 11.0, 0.0]
    assert generated_by(problem, 40.0).tolist() == [11.0, 21.0, 5.0]
    unknown = samples(["a"], tokens=[10], finish=[10.0], first_token_s=np.array([np.nan]))
    assert generated_by(unknown, 5.0).tolist() == [5.0]


@settings(max_examples=80)
@given(rows=LENGTHS)
def test_a_vote_that_stops_when_it_is_settled_is_the_whole_vote(rows):
    problem = samples([a for a, _ in rows], tokens=[float(t) for _, t in rows])
    early, late = decide(problem, Stop(rule=SETTLED, value=1)), decide(problem, Stop())
    assert early.right == late.right
    assert early.tokens <= late.tokens == problem.tokens.sum()


@settings(max_examples=60)
@given(rows=LENGTHS, seed=st.integers(0, 99))
def test_shuffling_the_indices_changes_nothing_where_times_differ(rows, seed):
    times = np.arange(1.0, len(rows) + 1) + 0.25
    answers = [a for a, _ in rows]
    order = np.random.default_rng(seed).permutation(len(rows))
    first = samples(answers, tokens=times)
    second = samples([answers[i] for i in order], tokens=times[order])
    for stop in (Stop(rule=FIRST, value=2), Stop(rule=AGREE, value=2), Stop(rule=SAFE, value=0.9)):
        one, two = decide(first, stop), decide(second, stop)
        assert (one.right, one.tokens, one.seconds) == pytest.approx(
            (two.right, two.tokens, two.seconds)
        )


def engine_run(rng, n):
    """A problem whose right samples are short: what an engine that runs all at once would do."""
    right = rng.random(n) < 0.5
    tokens = np.where(right, rng.integers(20, 60, n), rng.integers(40, 200, n)).astype(float)
    return samples(["a" if r else "b" for r in right], tokens=tokens + rng.random(n) / 100)


def on_random_subset(problem, size):
    """The wrong way: the rule fed with samples in random order."""
    found = []
    for subset in list(combinations(range(len(problem.answers)), size))[:400]:
        votes = [problem.answers[i] for i in subset]
        found.append((votes.count("a") > size / 2) + 0.5 * (votes.count("a") == size / 2))
    return np.mean(found)


@pytest.mark.parametrize("stop", [Stop(rule=FIRST, value=3), Stop(rule=SAFE, value=0.9)])
def test_random_subsets_are_biased_where_length_goes_with_correctness(stop):
    """One recording foretells what fresh runs of the rule did; subsets do not."""
    rng = np.random.default_rng(0)
    recorded = [decide(engine_run(rng, 12), stop).right for _ in range(400)]
    fresh = [decide(engine_run(rng, 12), stop).right for _ in range(400)]
    subsets = [on_random_subset(engine_run(rng, 12), 3) for _ in range(40)]
    error = np.sqrt((np.var(recorded) + np.var(fresh)) / 400)
    assert abs(np.mean(recorded) - np.mean(fresh)) < 3 * error
    assert np.mean(fresh) - np.mean(subsets) > 0.15
