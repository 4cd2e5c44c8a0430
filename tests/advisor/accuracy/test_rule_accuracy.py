"""Rules that stop early: right as often as all orders of the samples say, whatever the seed."""

import heapq
from itertools import permutations

import numpy as np
import pytest

from advisor.accuracy.subsets import decides_as_vote, expected_right
from advisor.evidence.runs import Sample
from advisor.search.policy_work import PolicyWork
from traces.schema.tts.policy import Policy
from traces.schema.tts.stop_rules import lead_is_safe
from traces.summary.votes import majority_curve


def sample(answer, correct, tokens):
    return Sample(output_tokens=tokens, answer=answer, correct=correct)


def policy(method, n, **rule):
    return Policy(method=method, n=n, temperature=0.8, rule=tuple(sorted(rule.items())))


def right_in_orders(samples, asked, seed):
    ((found,), (one,)) = expected_right([samples], [asked], [seed])[asked]
    return found, one


def by_hand(order, rule, method, in_flight):
    """The right share of the leading answers at the stop; ties of time go by launch."""
    running, waiting, seen = [], list(enumerate(order)), []
    now, votes = 0.0, {}

    def launch():
        place, one = waiting.pop(0)
        heapq.heappush(running, (now + one.output_tokens, place, one))

    while waiting and len(running) < in_flight:
        launch()
    while running:
        now, _, one = heapq.heappop(running)
        seen.append(one)
        if one.answer is not None:
            votes[one.answer] = votes.get(one.answer, 0) + 1
        first, second = sorted([0, 0, *votes.values()])[:-3:-1]
        if method == "agreement" and first >= rule["agree"]:
            break
        if method == "first_finish" and sum(votes.values()) >= rule["first"]:
            break
        if method == "adaptive" and lead_is_safe(first, second) >= rule["threshold"]:
            break
        if waiting:
            launch()
    leads = [a for a, count in votes.items() if count == max(votes.values())]
    right = {s.answer: s.correct for s in order}
    return float(np.mean([right[a] for a in leads])) if leads else 0.0


MIXED = [
    sample("a", True, 9), sample("b", False, 3), sample("a", True, 14), sample(None, False, 2),
    sample("b", False, 5), sample("c", False, 4),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "n", "rule"),
    [
        ("agreement", 4, {"agree": 2, "in_flight": 4}),
        ("agreement", 5, {"agree": 2, "in_flight": 2}),
        ("first_finish", 4, {"first": 2, "in_flight": 4}),
        ("first_finish", 6, {"first": 3, "in_flight": 6}),
        ("adaptive", 6, {"threshold": 0.8, "in_flight": 4}),
        ("adaptive", 4, {"threshold": 0.7, "in_flight": 1}),
    ],
)
def test_it_is_the_mean_over_all_orders(method, n, rule, monkeypatch):
    monkeypatch.setattr("advisor.accuracy.subsets.ORDERS", 20_000)
    asked = policy(method, n, **rule)
    found, one = right_in_orders(MIXED, asked, 1)
    orders = list(permutations(MIXED, n))
    for value, flight in ((found, rule["in_flight"]), (one, 1)):
        truth = np.mean([by_hand(order, rule, method, flight) for order in orders])
        assert value == pytest.approx(truth, abs=0.015)


def test_windows_go_by_the_order_of_launch(monkeypatch):
    monkeypatch.setattr("advisor.accuracy.subsets.ORDERS", 20_000)
    found, one = right_in_orders(MIXED, policy("early_stopping", 4, window=2), 1)

    def truth(order):
        votes = {}
        for start in (0, 2):
            pair = order[start : start + 2]
            for each in pair:
                if each.answer is not None:
                    votes[each.answer] = votes.get(each.answer, 0) + 1
            if pair[0].answer == pair[1].answer and pair[0].answer is not None:
                break
        leads = [a for a, count in votes.items() if count == max(votes.values())]
        return float(np.mean([a == "a" for a in leads]))

    expected = np.mean([truth(order) for order in permutations(MIXED, 4)])
    assert found == one == pytest.approx(expected, abs=0.015)


def test_more_than_half_decide_as_the_vote():
    assert decides_as_vote(policy("agreement", 4, agree=3, in_flight=4).stop, 4)
    assert not decides_as_vote(policy("agreement", 4, agree=2, in_flight=4).stop, 4)
    assert not decides_as_vote(policy("first_finish", 4, first=3).stop, 4)
    rng = np.random.default_rng(3)
    for _ in range(20):
        answers = [str(rng.integers(3)) for _ in range(6)]
        samples = [sample(a, a == "0", int(rng.integers(1, 30))) for a in answers]
        asked = policy("agreement", 6, agree=4, in_flight=6)
        vote = majority_curve(answers, [a == "0" for a in answers])[-1]
        assert right_in_orders(samples, asked, 3) == pytest.approx((vote, vote))


def test_a_majority_that_is_sure_of_most_samples_alone_decides_as_the_vote():
    """Three of four, four of six: fewer are not sure enough to end it."""
    for n, threshold, told in [
        (4, 0.88, True),
        (6, 0.95, True),
        (6, 0.88, False),
        (8, 0.95, False),
    ]:
        for in_flight in (1, n):
            asked = policy("adaptive", n, threshold=threshold, in_flight=in_flight)
            assert decides_as_vote(asked.stop, n) == told
    rng = np.random.default_rng(4)
    for _ in range(20):
        answers = [str(rng.integers(3)) for _ in range(6)]
        samples = [sample(a, a == "0", int(rng.integers(1, 30))) for a in answers]
        asked = policy("adaptive", 6, threshold=0.95, in_flight=6)
        vote = majority_curve(answers, [a == "0" for a in answers])[-1]
        assert right_in_orders(samples, asked, 3) == pytest.approx((vote, vote))


def test_nothing_that_parsed_is_never_right():
    samples = [sample(None, False, 3)] * 4
    asked = policy("adaptive", 4, threshold=0.9, in_flight=4)
    assert right_in_orders(samples, asked, 0) == (0.0, 0.0)


@pytest.mark.slow
def test_advice_takes_the_expectation_whatever_the_load_and_the_seed(advisor):
    """A rule that decides as the vote has the vote's accuracy, and no luck of its draws."""
    drawn, space = advisor.policy_work, advisor.space
    told = [k for k in space.kinds if decides_as_vote(k.policy.stop, k.policy.n)]
    assert told
    for kind in told:
        vote = drawn.correctness(kind.pool, kind.policy)
        assert drawn.work(kind).right == pytest.approx(vote)
    rows = [row for row in range(len(space.kind)) if space.kinds[space.kind[row]] in told]
    for row in rows[:: max(len(rows) // 4, 1)]:
        kind = space.kinds[space.kind[row]]
        vote = drawn.correctness(kind.pool, kind.policy)
        for load in (
            {"concurrency": 3, "rate_per_s": None},
            {"concurrency": None, "rate_per_s": 0.2},
        ):
            assert advisor.replays.of(row, **load).accuracy == pytest.approx(vote)
    others = {
        (k.pool.key, k.policy.n, k.policy.rule): k
        for k in space.kinds
        if not decides_as_vote(k.policy.stop, k.policy.n)
    }
    assert others
    for kind in others.values():
        again = PolicyWork(advisor.evidence, space, drawn.seed + 1).work(kind).right
        assert drawn.work(kind).right == pytest.approx(again, abs=0.25)
        assert np.mean(drawn.work(kind).right) == pytest.approx(np.mean(again), abs=0.03)
