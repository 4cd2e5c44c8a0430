"""Tables by difficulty: offered where they gain on problems that they were not learned from."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from advisor.accuracy.subsets import expected_right
from advisor.advice.advisor import Advisor
from advisor.search import routing
from advisor.search.routing import offers, try_tables, with_routings
from benchmarks.routing import efforts_of, pools_of, pools_of_efforts, problems_of
from tests.advisor.synthetic import VOTE16, engine_of, record
from traces.schema.advice import Budget
from traces.schema.tts.routes import OTHERS, first_of, packed, table_for
from traces.schema.tts.stop_rules import FIRST

COUNT = 60


def tried(law, seed=0, count=COUNT):
    problems = problems_of(law, count, np.random.default_rng([seed, 3]))
    groups = [each.group for each in problems.values()]
    return problems, try_tables(pools_of(problems), list(problems), groups, seed)


def test_where_problems_differ_a_table_is_offered_and_keeps_its_word():
    problems, found = tried("mixed")
    assert any(offered for _, offered in offers(found))
    pools, routings = with_routings(pools_of(problems), list(problems))
    best = max((each for each in routings if each.offered), key=lambda each: each.accuracy.value)
    (pool,) = pools
    assert best.policy in pool.policies
    assert best.problems == COUNT
    names, samples = list(problems), [problems[name].samples for name in problems]
    by_problem = {best.policy: [pool.tables[best.policy][name] for name in names]}
    right = {
        policy: expected_right(samples, [policy], [5], tables)[policy][0].mean()
        for policy, tables in ((best.policy, by_problem), (best.against, None))
        if not policy.all_samples_end
    }
    if best.against in right:
        said = right[best.policy] - right[best.against]
        assert said == pytest.approx(best.accuracy.value, abs=0.02)


def test_classes_that_tell_difficulty_have_tables_of_their_own(monkeypatch):
    monkeypatch.setattr(routing, "FIRST", ())
    _, found = tried("classes")
    offered = [each for each, is_offered in offers(found) if is_offered]
    assert offered
    tables = offered[0].option.tables(offered[0].chosen)
    assert {"class 0", "class 1", "class 2", OTHERS} == set(tables)
    assert max(tables["class 1"]) > max(tables["class 2"])  # hopeless problems get fewer


def test_classes_that_tell_nothing_are_hardly_ever_offered(monkeypatch):
    monkeypatch.setattr(routing, "FIRST", ())
    found = [any(o for _, o in offers(tried("shuffled", seed)[1])) for seed in range(8)]
    assert sum(found) <= 2  # 1 in 20 is allowed; 3 have a chance of 0.6 %


def test_a_problem_has_no_say_in_the_table_that_it_is_judged_by(monkeypatch):
    """But for the price, which is of all problems and is held here."""
    problems = problems_of("mixed", COUNT, np.random.default_rng([0, 3]))
    names, groups = list(problems), [each.group for each in problems.values()]
    monkeypatch.setattr(routing, "_prices", lambda singles: [1e-4])
    seventh = problems[names[7]]
    right = tuple(
        dataclasses.replace(each, answer="right", correct=True) for each in seventh.samples
    )
    changed = problems | {names[7]: dataclasses.replace(seventh, samples=right)}
    (one,), (two,) = (
        try_tables(pools_of(given), names, groups, 0) for given in (problems, changed)
    )
    assert one.tables[7] == two.tables[7]
    assert one.held_out[0][7] < two.held_out[0][7]


def test_of_many_problems_some_are_learned_from_and_the_others_are_judged_by_these(monkeypatch):
    problems = problems_of("mixed", COUNT, np.random.default_rng([0, 3]))
    monkeypatch.setattr(routing, "LEVEL", 0.999)
    monkeypatch.setattr(routing, "MOST", 45)
    (pool,), routings = with_routings(pools_of(problems), list(problems))
    assert {each.problems for each in routings} == {45}
    assert pool.tables
    for policy, tables in pool.tables.items():
        assert tables.keys() == problems.keys()
        final = table_for(policy.routes, None)
        assert sum(table == final for table in tables.values()) >= COUNT - 45


def test_what_is_learned_is_what_every_order_level_and_count_by_itself_gives():
    """Numbers of the program that replayed each of them by itself."""
    problems = problems_of("mixed", COUNT, np.random.default_rng([1, 5, 1]))
    (pool,) = pools_of(problems)
    pool = dataclasses.replace(
        pool,
        policies=[
            each
            for each in pool.policies
            if each.n in (1, 2, 4, 8, 16)
            and (each.stop.rule != FIRST or 2 * each.stop.value == each.n)
        ],
    )
    one, two = try_tables([pool], list(problems), [None] * COUNT, 0)
    for each in (one, two):
        assert each.option.tables(each.chosen) == {OTHERS: (4, 4, 8, 8, 4)}
    prices, sure = (one.price, two.price), (one.sure, two.sure)
    assert prices == pytest.approx((3.585936591340275e-05, 1.7949266085601896e-05), rel=1e-12)
    assert sure == pytest.approx((-1.0361218277463038, 3.073720260349091), rel=1e-12)
    held_out = np.concatenate([one.held_out.mean(axis=1), two.held_out.mean(axis=1)])
    was = [0.4841362847222222, 1059.41328125, 0.5030707465277777, 1180.6654947916666]
    assert held_out.tolist() == pytest.approx(was, rel=1e-12)
    assert [each.against.label() for each in (one, two)] == ["maj@4", "esc 4/8"]
    assert len({repr(tables) for tables in one.tables}) == 2


def test_few_problems_or_samples_offer_nothing():
    problems, found = tried("mixed", count=routing.FEWEST - 1)
    assert found == []
    assert with_routings(pools_of(problems), list(problems))[1] == ()


@pytest.mark.slow
def test_advice_replays_each_problem_by_the_table_that_was_learned_without_it(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(routing, "LEVEL", 0.999)  # whatever gains at all is offered
    made = record(tmp_path / "one", engine_of(), VOTE16, problems=routing.FEWEST)
    advisor = Advisor.fit([made])
    answer = advisor.recommend(Budget(optimise="cost", min_accuracy=0.3))
    space, work = advisor.space, advisor.policy_work
    kinds = [kind for kind in space.kinds if kind.policy.method == "routed"]
    assert kinds
    assert {each.policy for each in answer.routings if each.offered} == {k.policy for k in kinds}
    for kind in kinds:
        tables = [kind.pool.tables[kind.policy][name] for name in space.problem_ids]
        loads, workload = (of(kind.pool, kind.policy)[0] for of in (work.problems, work.workloads))
        assert [load.route for load in loads] == [packed(table) for table in tables]
        (replayed, *_) = work._run_alone(kind, None)
        drawn = np.add.reduceat(np.isfinite(replayed.queued_s), workload.first[:-1])
        for load, table, count in zip(loads, tables, drawn, strict=True):
            first = [s.answer for s in load.samples[: first_of(table)] if s.answer is not None]
            agree = max(Counter(first).values(), default=0)
            assert count == (table[agree] if len(table) > 1 else table[0])


def test_each_fold_learns_the_table_that_is_offered_and_draws_from_its_pool(monkeypatch):
    """Whatever option was best without the fold's own problems."""
    by_effort = efforts_of("shuffled", COUNT, np.random.default_rng([4, 3]))
    by_effort["high"] = {
        name: dataclasses.replace(each, samples=each.samples[:8], indices=each.indices[:8])
        for name, each in by_effort["high"].items()
    }
    names = list(by_effort["high"])
    whole = range(routing.FOLDS)
    best_option = routing._best_option
    chosen = []

    def another_in_folds(options, sums, folds):
        best = best_option(options, sums, folds)
        if folds == whole:
            chosen.append(options[best])
            return best
        return next(
            i for i in range(len(options)) if options[i].pools[0] is not chosen[-1].pools[0]
        )

    monkeypatch.setattr(routing, "_best_option", another_in_folds)
    for each in try_tables(pools_of_efforts(by_effort), names, [None] * COUNT, 0):
        for tables, pools in zip(each.tables, each.pools, strict=True):
            assert tables.keys() == pools.keys() == {OTHERS}
            assert pools[OTHERS] is each.option.pools[0]
            assert max(tables[OTHERS]) in each.option.counts


def test_a_class_that_was_not_seen_takes_what_is_best_for_all():
    gains = np.zeros((1, 3, 2))
    gains[0, :2] = [[1.0, 5.0], [2.0, 1.0]]
    option = routing.Option((), 0, ("aime", "gsm8k", OTHERS), (1, 8), gains, gains)
    assert option.learn(gains.sum(axis=0)).tolist() == [1, 0, 1]
    by_agreement = dataclasses.replace(option, first=2, classes=())
    assert by_agreement.learn(gains.sum(axis=0)).tolist() == [1, 0, 0]
