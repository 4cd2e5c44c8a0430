import json
from dataclasses import replace

import numpy as np
import pytest

from advisor.accuracy import counterfactual
from advisor.accuracy.counterfactual import (
    MARGIN,
    Counterfactuals,
    cheapest_as_good,
    compare_policies,
    evaluate,
)
from advisor.accuracy.finish_order import decide
from advisor.accuracy.samples import PolicyColumn, read_samples
from tests.traces.synthetic import START, write_recording
from traces.errors import RecordingError, UsageError
from traces.foreign.evaluations.importer import import_outcomes
from traces.recording.reader import Recording
from traces.schema.tts.policy import Policy
from traces.schema.tts.stop_rules import FIRST, SAFE, Stop
from traces.summary.run import summarise
from traces.summary.votes import PolicyOutcome

N = 8
VOTE = Policy(method="majority", n=N, temperature=0.8)


def make_rows(problems=40, n=N, seed=0):
    """Return problems and samples: right ones are short and likely, some thought is cut."""
    rng = np.random.default_rng(seed)
    rows = {"problems": [], "samples": []}
    for number, chance in enumerate(rng.beta(1.2, 0.8, problems)):
        name, arrival = f"p{number}", START + number * 10**9
        for index in range(n):
            right = bool(rng.random() < chance)
            tokens = int(rng.integers(20, 60) if right else rng.integers(30, 120))
            rows["samples"].append(
                {
                    "problem_id": name,
                    "sample_index": index,
                    "role": "sample",
                    "prompt_tokens": 10,
                    "cached_tokens": 0,
                    "output_tokens": tokens,
                    "think_tokens": tokens - 5,
                    "arrival": arrival,
                    "first_token": arrival + 10**6,
                    "end": arrival + tokens * 10**6,
                    "answer": "0" if right else str(int(rng.integers(1, 4))),
                    "correct": right,
                    "logprob_mean": float(-0.2 * rng.random() - 0.2 * (not right)),
                }
            )
        end = max(row["end"] for row in rows["samples"][-n:])
        rows["problems"].append(
            {
                "problem_id": name, "prompt_tokens": 10, "arrival": arrival, "start": arrival,
                "end": end, "decided_at": end, "correct": True,
            }
        )  # fmt: skip
    return rows


@pytest.mark.slow
def test_a_timeout_is_named_and_few_are_left_out(tmp_path):
    def cut(number):
        rows = make_rows(problems=40)
        for row in rows["problems"][:number]:
            row["timed_out"] = True
        late = {row["problem_id"] for row in rows["problems"][:number]}
        for row in rows["samples"]:
            if row["problem_id"] in late and row["sample_index"]:
                row["cancelled_by"] = "timeout"
        return judge(tmp_path / str(number), rows)

    assert cut(2).problems == 38
    with pytest.raises(RecordingError, match="3 cut off by the timeout, .* Record without --timeo"):
        cut(3)


def judge(folder, rows, *, policy=VOTE, **options):
    recording = write_recording(folder, rows, policy=policy)
    (run,) = summarise(recording)
    return evaluate(run, recording.frame("answers"), **options)


@pytest.fixture(scope="module")
def rows():
    return make_rows(problems=20)


@pytest.fixture(scope="module")
def found(rows, tmp_path_factory):
    return judge(tmp_path_factory.mktemp("c") / "r", rows)


def by_key(found):
    return {(o.method, o.n, o.budget_tokens, *sorted(o.rule.items())): o for o in found.outcomes}


@pytest.mark.slow
def test_every_kind_of_policy_is_there(found):
    kinds = {(o.method, o.basis) for o in found.outcomes}
    assert kinds >= {
        ("majority", "subsets"), ("pass_at_k", "subsets"), ("best_of_n", "subsets"),
        ("weighted", "subsets"), ("confidence", "subsets"),
        ("early_stopping", "monte_carlo"), ("adaptive", "finish_order"),
        ("first_finish", "finish_order"), ("majority", "model"), ("pass_at_k", "model"),
    }  # fmt: skip
    assert (found.n, found.problems) == (N, 20)


@pytest.mark.slow
def test_estimates_hang_together(found):
    table = by_key(found)
    one = table["majority", 1, None].accuracy
    assert one.value == pytest.approx(table["pass_at_k", 1, None].accuracy.value)
    passed = [table["pass_at_k", k, None].accuracy.value for k in (1, 2, 4, 8, 16, 32)]
    assert passed == sorted(passed)
    for outcome in found.outcomes:
        estimate = outcome.accuracy
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1, outcome
        assert estimate.extrapolated == (outcome.basis == "model")
        assert outcome.tokens_per_problem.value > 0
        if outcome.fresh_run is not None:
            assert outcome.fresh_run.low <= estimate.value <= outcome.fresh_run.high
    # As fewer tokens are spent, the sooner a rule stops.
    whole = table["majority", 8, None].tokens_per_problem.value
    early = table["early_stopping", 8, None, ("window", 4)].tokens_per_problem.value
    first = table["first_finish", 8, None, ("first", 4)].tokens_per_problem.value
    assert early < whole
    assert first < whole
    assert table["majority", 2 * N, None].tokens_per_problem.value == pytest.approx(2 * whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop", "key", "least"),
    [
        (Stop(rule=SAFE, value=0.95), ("adaptive", ("in_flight", 8), ("threshold", 0.95)), 3),
        (Stop(rule=FIRST, value=4), ("first_finish", ("first", 4)), 1.5),
    ],
)
def test_the_luck_of_two_blocks_is_not_a_rules_gain(stop, key, least, tmp_path):
    """Against the mean over random subsets, the halves of 16 samples alone are much farther off."""
    rng, halves, said = np.random.default_rng(7), [], []
    for seed in range(8):
        rows, folder = make_rows(30, 16, seed), tmp_path / str(seed)
        (run,) = summarise(write_recording(folder, rows, policy=replace(VOTE, n=16)))
        found = by_key(evaluate(run, counts=[8]))[key[0], 8, None, *key[1:]].accuracy.value
        problems = read_samples(run).problems

        def right(places, problems=problems):
            return np.mean([decide(each.take(places), stop).right for each in problems])

        truth = np.mean([right(rng.permutation(16)[:8]) for _ in range(200)])
        halves.append(np.mean([right(range(8)), right(range(8, 16))]) - truth)
        said.append(found - truth)
    assert np.std(said) < np.std(halves) / least


@pytest.mark.slow
def test_the_order_of_rows_changes_nothing(rows, found, tmp_path):
    order = np.random.default_rng(3).permutation(len(rows["samples"]))
    shuffled = rows | {"samples": [rows["samples"][i] for i in order]}
    again = judge(tmp_path / "r", shuffled)
    assert again.outcomes == found.outcomes


@pytest.mark.slow
def test_other_roles_have_no_vote(rows, found, tmp_path):
    more = [
        row | {"role": role, "sample_index": row["sample_index"] + 100, "correct": True}
        for row in rows["samples"]
        for role in ("scorer", "draft", "checkpoint", "revision")[:1]
    ]
    assert judge(tmp_path / "r", rows | {"samples": [*rows["samples"], *more]}).outcomes == (
        found.outcomes
    )


@pytest.mark.slow
def test_all_right_and_all_wrong(rows, tmp_path):
    for right in (True, False):
        same = [row | {"answer": "7", "correct": right} for row in rows["samples"]]
        found = judge(tmp_path / str(right), rows | {"samples": same})
        exact = [o for o in found.outcomes if o.basis != "model" and o.budget_tokens is None]
        assert [o.accuracy.value for o in exact] == pytest.approx([float(right)] * len(exact))
        # 20 problems that agree do not say that all do.
        assert all(o.accuracy.high - o.accuracy.low > 0.02 for o in exact)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: [*s, s[3] | {"span_id": "z"}], "sample 3 of problem p0 is there more than once"),
        (lambda s: [], "its 20 problems have no samples"),
        (lambda s: [r | {"answer": None, "correct": False} for r in s], "could be parsed"),
        (lambda s: [r | {"correct": None} for r in s], "marked right or wrong"),
        (lambda s: [s[0] | {"cancelled_by": "first_finish"}, *s[1:]], "1 samples were cancelled"),
    ],
)
def test_samples_that_cannot_say(rows, tmp_path, change, message):
    with pytest.raises(RecordingError, match=message) as caught:
        judge(tmp_path / "r", rows | {"samples": change(rows["samples"])})
    assert len(str(caught.value).splitlines()) == 1


def test_a_rule_that_stops_is_refused(rows, tmp_path):
    stopped = Policy(method="early_stopping", n=N, temperature=0.8, rule=(("window", 4.0),))
    with pytest.raises(RecordingError, match="no fair draw"):
        judge(tmp_path / "r", rows, policy=stopped)


@pytest.mark.slow
def test_problems_without_all_their_samples_are_left_out_and_told(rows, tmp_path):
    kept = [r for r in rows["samples"] if r["problem_id"] != "p1"]
    kept = [r for r in kept if (r["problem_id"], r["sample_index"]) != ("p2", 0)]
    found = judge(tmp_path / "r", rows | {"samples": kept})
    assert found.problems == 18
    assert "problems without samples, left out: 1 of 20" in found.notes
    assert "problems without 8 judged samples, left out: 1 of 20" in found.notes
    untold = [r | {"output_tokens": None} if i == 20 else r for i, r in enumerate(rows["samples"])]
    found = judge(tmp_path / "s", rows | {"samples": untold})
    assert found.problems == 19 and all(o.tokens_per_problem for o in found.outcomes)
    assert "problems with samples of unknown length, left out: 1" in found.notes


@pytest.mark.slow
def test_scores_that_are_not_numbers_are_told(rows, tmp_path):
    some = [r | {"logprob_mean": float("nan")} for r in rows["samples"][:5]]
    found = judge(tmp_path / "some", rows | {"samples": [*some, *rows["samples"][5:]]})
    assert any("not a number: 5 of 160" in note for note in found.notes)
    none = [r | {"logprob_mean": None} for r in rows["samples"]]
    found = judge(tmp_path / "none", rows | {"samples": none})
    assert any("no logprob_mean is known" in note for note in found.notes)
    assert not {"best_of_n", "weighted"} & {o.method for o in found.outcomes}


@pytest.mark.slow
@pytest.mark.parametrize("shift", [-5000.0, 750.0])
def test_weights_of_any_size_decide_as_they_compare(rows, tmp_path, shift):
    """Weights that vanish or overflow as numbers still compare."""
    moved = [r | {"logprob_mean": r["logprob_mean"] + shift} for r in rows["samples"]]
    plain, found = (
        judge(tmp_path / name, rows | {"samples": samples})
        for name, samples in (("plain", rows["samples"]), ("moved", moved))
    )
    for one, other in zip(plain.outcomes, found.outcomes, strict=True):
        assert (one.method, one.n, one.rule) == (other.method, other.n, other.rule)
        if one.method in ("weighted", "confidence", "best_of_n") and "settled" not in one.rule:
            assert other.accuracy.value == pytest.approx(one.accuracy.value)


@pytest.mark.slow
def test_weights_that_nobody_has_leave_the_plurality(rows, tmp_path):
    """A problem without any log-probability is decided by its votes, not wrong."""
    names = {f"p{number}" for number in range(10)}
    some = [
        r | {"logprob_mean": None if r["problem_id"] in names else -0.5} for r in rows["samples"]
    ]
    found = judge(tmp_path / "r", rows | {"samples": some})
    vote = {o.n: o.accuracy.value for o in found.outcomes if o.method == "majority"}
    settled = [o for o in found.outcomes if "settled" in o.rule and o.n == N]
    assert settled[0].accuracy.value == pytest.approx(vote[N])


def test_one_sample_says_so(rows, tmp_path):
    single = [r for r in rows["samples"] if r["sample_index"] == 0]
    found = judge(tmp_path / "r", rows | {"samples": single}, policy=Policy(method="greedy", n=1))
    assert any("one sample per problem" in note for note in found.notes)
    assert {o.n for o in found.outcomes} == {1}


@pytest.mark.slow
def test_more_than_four_times_the_samples_is_refused(rows, tmp_path):
    with pytest.raises(UsageError, match="k = 64: r has 8 samples per problem.* 1 to 32"):
        judge(tmp_path / "r", rows, counts=[4, 64])
    found = judge(tmp_path / "s", rows, counts=[3, 20])
    assert {(o.n, o.basis) for o in found.outcomes if o.method == "pass_at_k"} == {
        (3, "subsets"),
        (20, "model"),
    }


@pytest.mark.slow
def test_without_times_samples_end_in_the_order_of_their_tokens(rows, tmp_path):
    """Imported outcomes have no times. Equal steps would end them as their lengths say."""
    times = ("arrival", "first_token", "end")
    bare = [{k: v for k, v in r.items() if k not in times} for r in rows["samples"]]
    even = [r | {"arrival": 0, "end": r["output_tokens"] * 1_000_000} for r in bare]
    untold = [{k: v for k, v in r.items() if k != "output_tokens"} for r in bare]
    by_tokens, by_ends, neither = (
        judge(tmp_path / name, rows | {"samples": samples})
        for name, samples in (("bare", bare), ("even", even), ("untold", untold))
    )
    stopping = [
        {
            (o.method, o.n, *o.rule.items(), part.unit): part.value
            for o in found.outcomes
            if o.basis == basis
            for part in (o.accuracy, o.tokens_per_problem)
        }
        for found, basis in ((by_tokens, "token_order"), (by_ends, "finish_order"))
    ]
    assert stopping[0] == pytest.approx(stopping[1])
    assert "first_finish" in {method for method, *_ in stopping[0]}
    assert any("in the order of their tokens" in note for note in by_tokens.notes)
    assert not {"token_order", "finish_order"} & {o.basis for o in neither.outcomes}
    assert any("such as first_finish, are not judged" in note for note in neither.notes)


# -- budgets of thought ------------------------------------------------------------------------


def forced(rows, budgets, samples):
    """Answers forced at budgets: right where the sample is and has thought half the budget."""
    return [
        {
            "problem_id": row["problem_id"],
            "sample_index": row["sample_index"],
            "budget_tokens": budget,
            "forced": row["think_tokens"] > budget,
            "answer": row["answer"] if row["think_tokens"] < 2 * budget else "9",
            "correct": row["correct"] and row["think_tokens"] < 2 * budget,
            "answer_tokens": 5,
        }
        for row in rows["samples"]
        if row["sample_index"] < samples
        for budget in budgets
    ]


@pytest.mark.slow
def test_checkpoints_are_exact_and_between_them_is_said_to_be(rows, tmp_path):
    answers = forced(rows, (16, 64), 4)
    table = by_key(judge(tmp_path / "r", rows | {"answers": answers}))
    for budget in (16, 64):
        exact = np.mean([row["correct"] for row in answers if row["budget_tokens"] == budget])
        outcome = table["majority", 1, budget]
        assert outcome.accuracy.value == pytest.approx(exact)
        assert (outcome.bound, outcome.basis) == (None, "checkpoints")
    assert table["majority", 4, 64].accuracy.value > table["majority", 1, 64].accuracy.value
    low, half, high = (table["majority", 1, budget] for budget in (16, 40, 64))
    assert half.bound == "interpolated"
    assert half.accuracy.value == pytest.approx((low.accuracy.value + high.accuracy.value) / 2)
    assert low.tokens_per_problem.value < half.tokens_per_problem.value


@pytest.mark.slow
def test_without_checkpoints_what_finished_is_a_lower_bound(rows, found, tmp_path):
    table = by_key(found)
    bound = table["majority", 1, 32]
    wanted = np.mean([r["correct"] and r["think_tokens"] <= 32 for r in rows["samples"]])
    assert (bound.bound, bound.accuracy.value) == ("lower", pytest.approx(wanted))
    assert bound.tokens_estimated
    exact = by_key(judge(tmp_path / "r", rows | {"answers": forced(rows, (32,), N)}))
    assert bound.accuracy.value <= exact["majority", 1, 32].accuracy.value


@pytest.mark.slow
def test_samples_cut_by_max_tokens_are_told(rows, tmp_path):
    cut = [
        r | {"censored": True, "think_tokens": None, "answer": None, "correct": False}
        for r in rows["samples"][:3]
    ]
    found = judge(tmp_path / "r", rows | {"samples": [*cut, *rows["samples"][3:]]})
    assert any("samples cut by max_tokens: 3" in note for note in found.notes)


@pytest.mark.slow
def test_samples_that_were_given_their_length_are_not_cut(rows, tmp_path):
    given = [r | {"censored": False, "finish_reason": "length"} for r in rows["samples"]]
    found = judge(tmp_path / "r", rows | {"samples": given})
    assert not any("cut by max_tokens" in note for note in found.notes)
    imported = [r | {"censored": None} for r in given]
    found = judge(tmp_path / "i", rows | {"samples": imported})
    assert any(f"cut by max_tokens: {len(given):,}" in note for note in found.notes)


# -- choosing ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_cheapest_is_stated_on_problems_that_did_not_choose_it(tmp_path):
    found = judge(tmp_path / "r", make_rows(problems=200))
    best = cheapest_as_good(found)
    assert best.problems == 100
    assert best.tokens_share.value < 1
    assert best.difference.value > -2 * MARGIN
    assert best.policy.method != "pass_at_k"


def test_what_the_other_problems_do_not_show_is_not_called_as_good():
    """A policy that loses nothing on the problems that choose it, and 15 points on the others."""

    def column(right, tokens):
        outcome = PolicyOutcome(
            method="majority", n=tokens // 10, budget_tokens=None, accuracy=None,
            tokens_per_problem=None,
        )  # fmt: skip
        return PolicyColumn(outcome, right, np.full(40, float(tokens)))

    shuffled = np.random.default_rng([0, 5]).permutation(40)
    some = np.ones(40)
    some[shuffled[1::2][:3]] = 0.0
    found = Counterfactuals(
        n=8, problems=40, outcomes=(), notes=(), columns=(column(some, 10), column(np.ones(40), 80))
    )
    assert cheapest_as_good(found) is None
    equal = replace(found, columns=(column(np.ones(40), 10), found.columns[1]))
    assert cheapest_as_good(equal).policy.n == 1


@pytest.mark.slow
def test_rules_that_end_early_look_at_every_sample(tmp_path):
    """Of 8 samples 5 and 6 are not the first alone: here these are wrong, and the others right."""
    rows = make_rows(problems=20)
    for row in rows["samples"]:
        late = row["sample_index"] > 4
        row |= {"answer": "0" if late else "1", "correct": late, "output_tokens": 30}
        row |= {"think_tokens": 25, "end": row["arrival"] + 30 * 10**6 + row["sample_index"]}
    found = judge(tmp_path / "r", rows, counts=[5, 6])
    for n in (5, 6):
        rules = {"threshold": 0.95, "in_flight": n}.items()
        (one,) = [e for e in found.outcomes if e.n == n and e.rule.items() == rules]
        assert 0.1 < one.accuracy.value < 0.5, n


@pytest.mark.slow
def test_what_decides_as_a_vote_has_its_accuracy(tmp_path):
    """Of four samples three that agree make the majority .88 sure, and all four .95."""
    rng = np.random.default_rng(7)
    lines = [
        each | {"answer": str(rng.integers(3)), "output_tokens": int(rng.integers(20, 90))}
        for each in lines_of(30, 8)
    ]
    (run,) = summarise(import_lines(tmp_path / "f", lines))
    found = {(each.method, each.n, *each.rule.values()): each for each in evaluate(run).outcomes}
    vote = found["majority", 4].accuracy.value
    for rule in [(0.88, 1), (0.88, 4), (0.95, 1), (0.95, 4)]:
        assert found["adaptive", 4, *rule].accuracy.value == pytest.approx(vote, abs=1e-12)


def test_compared_in_pairs(found):
    columns = {(c.outcome.method, c.outcome.n): c for c in found.columns}
    whole, single = columns["majority", 8], columns["majority", 1]
    lost = compare_policies(single, whole)
    assert lost.difference.value == pytest.approx(np.mean(single.right - whole.right))
    assert lost.told_apart == (not lost.difference.low <= 0 <= lost.difference.high)
    same = compare_policies(whole, whole)
    assert not same.told_apart
    assert same.problems_to_tell is None


def of_many(monkeypatch, recording, **options):
    """What a run says of all its problems, and of 25 of them at random."""
    (run,) = summarise(recording)
    whole = evaluate(run, **options)
    monkeypatch.setattr(counterfactual, "MOST", 25)
    return run, whole, evaluate(run, **options)


@pytest.mark.slow
def test_of_many_problems_fixed_votes_are_of_all_and_the_others_of_some(tmp_path, monkeypatch):
    rng = np.random.default_rng(5)
    lines = [
        each | {"answer": str(rng.integers(3)), "output_tokens": 40 + each["sample_index"]}
        for each in lines_of(60, 4)
    ]
    _, whole, some = of_many(monkeypatch, import_lines(tmp_path / "f", lines))
    assert some.problems == 60 and {len(each.right) for each in some.columns} == {25}
    assert any("of 25 of the 60 problems, drawn at random" in note for note in some.notes)
    by_rule = {(each.method, each.n, *each.rule.items()): each for each in some.outcomes}
    agreed = by_rule["agreement", 4, ("agree", 3), ("in_flight", 4)]
    assert agreed.accuracy == by_rule["majority", 4].accuracy  # it decides as that vote
    for one, other in zip(whole.outcomes, some.outcomes, strict=False):
        fixed = one.method in ("majority", "pass_at_k")
        if fixed and one.basis == "subsets" and one.n <= 4:
            assert other.accuracy.value == pytest.approx(one.accuracy.value)
            assert other.tokens_per_problem.value == pytest.approx(one.tokens_per_problem.value)


@pytest.mark.slow
def test_of_many_problems_those_cut_off_by_a_timeout_are_left_out(tmp_path, monkeypatch):
    rows = make_rows(problems=60)
    late = {"p0", "p1", "p2"}
    for row in rows["problems"]:
        row["timed_out"] = row["problem_id"] in late
    for row in rows["samples"]:
        if row["problem_id"] in late and row["sample_index"]:
            row |= {"cancelled_by": "timeout", "answer": None, "correct": None}
    recording = write_recording(tmp_path / "r", rows, policy=VOTE)
    run, whole, some = of_many(monkeypatch, recording)
    assert (whole.problems, some.problems) == (57, 57)
    shown = {(each.method, each.n): each.accuracy.value for each in run.policies}
    for found in (whole, some):
        for each in found.outcomes:
            fixed = each.basis == "subsets" and each.budget_tokens is None and not each.rule
            if fixed and (each.method, each.n) in shown:
                assert each.accuracy.value == pytest.approx(shown[each.method, each.n])


@pytest.mark.slow
def test_of_many_problems_votes_under_a_limit_are_of_all(tmp_path, monkeypatch):
    recording = write_recording(tmp_path / "r", make_rows(problems=60), policy=VOTE)
    _, whole, some = of_many(monkeypatch, recording, max_tokens=50)
    fixed = [
        {(o.method, o.n): (o.accuracy.value, o.tokens_per_problem.value) for o in found.outcomes
         if o.method in ("majority", "pass_at_k") and o.n <= N and o.budget_tokens is None}
        for found in (whole, some)
    ]  # fmt: skip
    assert fixed[0].keys() == fixed[1].keys()
    for key, numbers in fixed[0].items():
        assert fixed[1][key] == pytest.approx(numbers), key
    told = [note for note in some.notes if note.startswith("max_tokens 50: ")]
    assert told == [note for note in whole.notes if note.startswith("max_tokens 50: ")]


def import_lines(folder, lines):
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    import_outcomes([folder / "a.jsonl"], folder / "a")
    return Recording.open(folder / "a")


def lines_of(problems, n, **changes):
    rng = np.random.default_rng(3)
    return [
        {"problem_id": f"p{i}", "sample_index": k, "correct": bool(rng.random() < 0.6)} | changes
        for i in range(problems)
        for k in range(n)
    ]


@pytest.mark.slow
def test_of_many_problems_without_answers_and_tokens_nothing_is_made_up(tmp_path, monkeypatch):
    lines = lines_of(60, 4)
    _, whole, some = of_many(monkeypatch, import_lines(tmp_path / "f", lines))
    right = np.mean([line["correct"] for line in lines])
    for found in (whole, some):
        (one,) = [each for each in found.outcomes if each.method == "majority"]
        assert one.accuracy.value == pytest.approx(right)
        assert one.tokens_per_problem is None


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["A", None])
def test_a_problem_with_a_sample_that_nobody_judged_is_left_out(tmp_path, answer):
    told = {"answer": "A"} if answer else {}
    lines = lines_of(30, 4, **told)
    for line in lines[:4]:
        line["correct"] = True if line["sample_index"] == 0 else None
    recording = import_lines(tmp_path / "f", lines)
    right = np.mean([line["correct"] for line in lines[4:]])
    (run,) = summarise(recording)
    found = evaluate(run)
    assert found.problems == 29
    for outcomes in (run.policies, found.outcomes):
        one = next(each for each in outcomes if (each.method, each.n) == ("pass_at_k", 1))
        assert one.accuracy.value == pytest.approx(right)


@pytest.mark.slow
def test_a_sample_that_gave_no_answer_is_wrong_whether_or_not_it_was_judged(tmp_path):
    lines = lines_of(30, 4, answer="A")
    lines[0] |= {"answer": None, "correct": None}
    lines[1] |= {"correct": True}
    (run,) = summarise(import_lines(tmp_path / "f", lines))
    assert evaluate(run).problems == 30


@pytest.mark.slow
def test_a_sample_that_failed_is_no_wrong_answer(tmp_path):
    """A recording whose `show` and `show --policies` leave out the same problems."""
    rows = make_rows(problems=40, n=4)
    rows["samples"][0] |= {"error": "lost", "answer": None, "correct": None}
    policy = Policy(method="majority", n=4, temperature=0.8)
    (run,) = summarise(write_recording(tmp_path / "r", rows, policy=policy))
    found = evaluate(run)
    assert found.problems == 39
    shown = next(each for each in run.policies if (each.method, each.n) == ("majority", 4))
    whole = next(each for each in found.outcomes if (each.method, each.n) == ("majority", 4))
    assert shown.accuracy.value == pytest.approx(whole.accuracy.value)
