"""Policies: what they draw, when they decide, how ties and failures count."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.engines.confidence import lowest_group, token_confidences
from profiler.policies.choices import best_scored, most_confident, plurality, weighted
from profiler.policies.interface import Vote
from profiler.policies.registry import start
from traces.errors import UsageError
from traces.schema.tts.parameters import make_policy
from traces.schema.tts.policy import Policy
from traces.schema.tts.stop_rules import lead_is_safe

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
        {"n": 0}, {"method": "greedy", "n": 2}, {"method": "nonsense"}, {"temperature": -1},
        {"top_p": 0}, {"max_tokens": 0}, {"thinking_token_budget": 0},
    ],
)  # fmt: skip
def test_impossible_policies_are_refused(fields):
    with pytest.raises(UsageError):
        Policy(**fields)


def finish(policy, answers, order, **votes):
    """Run a policy whose samples end in a random order; returns votes by index and the answer."""
    run, seen = start(policy), {}
    move = run.begin()
    running = list(move.draw)
    while move.decision is None:
        draw = running.pop(order.randrange(len(running)))
        seen[draw.index] = answers[draw.index]
        more = {name: values[draw.index] for name, values in votes.items()}
        move = run.on_sample(Vote(sample_index=draw.index, answer=answers[draw.index], **more))
        running += move.draw
    return seen, move.decision.answer


@given(
    answers=st.lists(st.sampled_from(["a", "b", None]), min_size=12, max_size=12),
    window=st.integers(2, 6),
    order=st.randoms(),
)
def test_early_stopping_is_the_windows_one_after_the_other(answers, window, order):
    needed = 0
    while needed < 12:
        part = answers[needed : needed + window]
        needed = min(needed + window, 12)
        if len(set(part)) == 1 and part[0] is not None:
            break
    policy = make_policy({"method": "early_stopping", "n": 12, "window": window})
    seen, answer = finish(policy, answers, order)
    assert sorted(seen) == list(range(needed))
    assert answer == plurality(dict(enumerate(answers[:needed])))


@given(answers=st.lists(st.sampled_from("ab"), min_size=10, max_size=10), order=st.randoms())
def test_adaptive_stops_as_soon_as_the_lead_is_safe(answers, order):
    policy = make_policy({"method": "adaptive", "n": 10, "in_flight": 3})
    seen, answer = finish(policy, answers, order)
    (_, first), *rest = Counter(seen.values()).most_common()
    second = rest[0][1] if rest else 0
    assert len(seen) == 10 or lead_is_safe(first, second) >= 0.95
    assert answer == plurality(seen)
    # One vote earlier it was not safe: the last vote went to the leader.
    assert lead_is_safe(first - 1, second) < 0.95


@given(answers=st.lists(st.sampled_from(["a", None]), min_size=6, max_size=6), order=st.randoms())
def test_first_finish_counts_answers_alone(answers, order):
    policy = make_policy({"method": "first_finish", "n": 6, "first": 2})
    seen, answer = finish(policy, answers, order)
    parsed = sum(each is not None for each in seen.values())
    assert parsed == 2 or (len(seen) == 6 and parsed < 2)
    assert answer == ("a" if parsed else None)


@given(
    answers=st.lists(st.sampled_from(["a", "b", None]), min_size=9, max_size=9),
    agree=st.integers(1, 9),
    in_flight=st.integers(1, 9),
    order=st.randoms(),
)
def test_agreement_stops_at_so_many_equal_answers(answers, agree, in_flight, order):
    policy = make_policy({"method": "agreement", "n": 9, "agree": agree, "in_flight": in_flight})
    seen, answer = finish(policy, answers, order)
    counts = Counter(each for each in seen.values() if each is not None)
    if max(counts.values(), default=0) >= agree:
        assert [name for name, count in counts.items() if count == agree] == [answer]
        assert max(counts.values()) == agree
    else:
        assert len(seen) == 9
        assert answer == plurality(seen)
    if agree == 5 and answer is not None and counts[answer] >= 5:
        assert answer == plurality(dict(enumerate(answers)))  # as the vote of all


def votes(*pairs, **names):
    return {
        i: Vote(sample_index=i, answer=answer, **dict.fromkeys(names, value))
        for i, (answer, value) in enumerate(pairs)
    }


def scored(*pairs):
    return votes(*pairs, score=None)


def test_best_of_n_takes_the_first_of_equal_scores_and_ignores_what_is_no_score():
    nan = float("nan")
    assert best_scored(scored(("a", 1.0), ("b", 3.0), ("c", 3.0), (None, 9.0), ("d", nan))) == "b"
    assert best_scored(scored(("a", None), ("b", nan), ("b", None))) == "b"
    assert best_scored({}) is None


def test_weights_add_up():
    by_score = weighted(log_probabilities=False)
    assert by_score(scored(("a", 0.5), ("b", 0.3), ("b", 0.3), ("a", -9.0))) == "b"
    assert by_score(scored(("a", 0.5), ("b", 0.5))) == "a"
    # exp(-0.1) < exp(-1) + exp(-0.6)
    by_probability = weighted(log_probabilities=True)
    assert by_probability(scored(("a", -0.1), ("b", -1.0), ("b", -0.6))) == "b"
    assert by_probability(scored(("a", -0.1), ("b", -3.0), ("b", -3.0))) == "a"
    # However large the numbers, what counts is how they compare.
    for shift in (-5000.0, 5000.0):
        assert by_probability(scored(*((a, shift + s) for a, s in (("a", 0), ("b", 1))))) == "b"


def test_the_least_confident_samples_lose_their_vote():
    pairs = (("a", 1.0), ("a", 2.0), ("b", 9.0), (None, 99.0), ("a", 1.5))
    assert most_confident(0.25)(votes(*pairs, confidence=None)) == "b"
    assert most_confident(1.0)(votes(*pairs[:3], confidence=None)) == "b"
    assert most_confident(1.0)(votes(("a", 1.0), ("b", 1.0), confidence=None)) == "a"


def test_the_confidence_of_a_sample_is_that_of_its_weakest_window():
    # k = 2 of three: the sampled token may be among the most probable or behind them
    places = [[-1.0, -3.0, -9.0], [-0.0, -8.0], [-2.0, -2.0]]
    assert token_confidences(places, 2) == [2.0, 4.0, 2.0]
    assert lowest_group([2.0, 4.0, 2.0, 1.0], 2) == 1.5
    assert lowest_group([2.0, 4.0], 2048) == 3.0
    assert lowest_group([], 4) is None


def test_beam_keeps_the_best_and_weighs_whole_thoughts():
    policy = make_policy({"method": "beam", "n": 4, "width": 2, "depth": 2})
    run = start(policy)
    draws = run.begin().draw
    assert [draw.depth for draw in draws] == [0] * 4
    for index, mean in enumerate([-3.0, -1.0, -2.0, -9.0]):
        vote = Vote(sample_index=index, answer=None, paused=True, tokens=10, logprob_mean=mean)
        move = run.on_sample(vote)
    assert [draw.parent for draw in move.draw] == [1, 2, 1, 2]
    assert all(draw.stop == () and draw.max_tokens is None for draw in move.draw)
    # index 4 goes on from 1: (-10 - 40) / 20; index 5 from 2: (-20 - 1) / 20, the best
    for index, (answer, mean) in enumerate(
        [("one", -4.0), ("two", -0.1), (None, 0.0), ("four", -5.0)], start=4
    ):
        vote = Vote(sample_index=index, answer=answer, tokens=10, logprob_mean=mean)
        move = run.on_sample(vote)
    assert move.decision.answer == "two"


def test_budget_forcing_reopens_until_it_has_waited_enough_or_there_is_no_room():
    policy = make_policy({"method": "budget_forcing", "extend": 2, "word": "Wait"})
    run = start(policy)
    run.begin()
    (draw,) = run.on_sample(Vote(sample_index=0, answer="a")).draw
    assert (draw.index, draw.parent, draw.how.append, draw.how.reopen) == (1, 0, "Wait", True)
    (draw,) = run.on_sample(Vote(sample_index=1, answer="b", room=8)).draw
    move = run.on_sample(Vote(sample_index=2, answer=None, thought_ended=False))
    assert move.decision.answer == "b"
    for ended in ({"room": 7}, {"thought_ended": False}, {"failed": True}):
        run = start(policy)
        run.begin()
        assert run.on_sample(Vote(sample_index=0, answer="a", **ended)).decision.answer == "a"


def test_revision_stops_when_the_answer_stands():
    policy = make_policy({"method": "sequential", "n": 5})
    run = start(policy)
    run.begin()
    for index, answer in enumerate(["a", None, "b"]):
        move = run.on_sample(Vote(sample_index=index, answer=answer))
        assert move.draw[0].parent == index
    assert run.on_sample(Vote(sample_index=3, answer="b")).decision.answer == "b"
