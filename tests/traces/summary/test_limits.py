from dataclasses import replace

import pytest

from tests.traces.synthetic import engine_config, simulate, write_recording
from traces.errors import TtscopeError, UsageError
from traces.statistics import jeffreys
from traces.summary.comparison import compare, judge, parse_limit
from traces.summary.run import summarise


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """The second run has fewer slots: slower, with the same tokens and answers."""
    folder = tmp_path_factory.mktemp("limits")
    fast = write_recording(folder / "fast", simulate(problems=30, n=4))
    engine = engine_config(max_num_seqs=3)
    slow = write_recording(folder / "slow", simulate(problems=30, n=4, seqs=3), engine=engine)
    return compare(*(summarise(each)[0] for each in (fast, slow)))


@pytest.mark.parametrize(
    ("text", "tag", "above", "amount", "relative"),
    [
        ("p95>+5%", "latency_s.p95", True, 0.05, True),
        ("accuracy<-.02", "accuracy", False, -0.02, False),
        (" cost > +0.001 ", "cost_usd_per_problem", True, 0.001, False),
        ("latency>0%", "latency_s.mean", True, 0.0, True),
        ("energy>+12.5%", "energy_j.per_problem", True, 0.125, True),
    ],
)
def test_what_people_write(text, tag, above, amount, relative):
    limit = parse_limit(text)
    found = (limit.tag, limit.above, limit.amount, limit.relative)
    assert found == (tag, above, pytest.approx(amount), relative)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("p95", "is not understood"),
        ("p95>", "is not understood"),
        ("p95>=+5%", "is not understood"),
        ("p95>+5%; rm", "is not understood"),
        ("speed>+5%", "no metric speed"),
        ("p95>5%", "give its sign, for example p95>\\+5%"),
        ("", "is not understood"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(UsageError, match=message):
        parse_limit(text)


def held(compared, text):
    (found,) = judge([parse_limit(text)], compared)
    return found


def test_the_whole_interval_decides(compared):
    slower = {c.metric.tag: c for c in compared.changes}["latency_s.mean"].relative
    assert slower.low > 0
    sure = held(compared, "latency>+1%")
    assert (sure.broken, sure.sure, sure.problems_to_settle) == (True, True, None)
    kept = held(compared, "latency>+900%")
    assert (kept.broken, kept.sure) == (False, True)
    # As measured it lies beyond the limit, but the interval reaches within.
    beyond = held(compared, f"latency>+{(slower.value + slower.low) / 2 * 100:.4f}%")
    assert beyond.limit.beyond(beyond.difference.value)
    assert (beyond.broken, beyond.sure) == (False, False)
    inside = held(compared, f"latency>+{(slower.value + slower.high) / 2 * 100:.4f}%")
    assert (inside.broken, inside.sure) == (False, False)
    tokens = {c.metric.tag: c for c in compared.changes}["latency_s.p50"]
    assert 0 < tokens.of_problems <= 1


def test_one_problem_has_no_interval_and_cannot_be_judged(tmp_path):
    runs = [
        summarise(write_recording(tmp_path / name, simulate(problems=1, n=2)))[0] for name in "ab"
    ]
    with pytest.raises(TtscopeError, match="too few problems for an interval"):
        judge([parse_limit("p95>+5%")], compare(*runs))


def test_a_difference_that_equals_the_limit_does_not_break_it(compared):
    tokens = held(compared, "tokens>+0")
    assert tokens.difference.value == 0
    assert not tokens.broken
    assert not held(compared, "accuracy<-0").broken


def test_a_gate_without_numbers_does_not_pass(compared):
    with pytest.raises(TtscopeError, match="energy_j.per_problem was not measured in both") as left:
        judge([parse_limit("energy>+5%")], compared)
    assert left.value.exit_code == 1


def test_other_problems_cannot_be_judged(tmp_path):
    runs = [
        summarise(write_recording(tmp_path / w, simulate(problems=4, n=2), workload=w))[0]
        for w in ("one", "two")
    ]
    with pytest.raises(TtscopeError, match="nothing is paired"):
        judge([parse_limit("p95>+5%")], compare(*runs))


def test_a_recording_poses_the_problems_of_itself(tmp_path):
    """Of a watch no workload is known, and two watches may have problems of the same names."""
    rows = simulate(problems=20, n=2)
    runs = [summarise(write_recording(tmp_path / name, rows, workload=name))[0] for name in "ab"]
    (one, two) = (replace(run, workload=None) for run in runs)
    assert compare(one, one).reason is None
    assert "nothing is paired" in compare(one, two).reason


def test_problems_that_agree_do_not_prove_that_all_do(compared):
    (accuracy,) = [each for each in compared.changes if each.metric.tag == "accuracy"]
    assert accuracy.difference.value == 0
    high = accuracy.difference.high
    assert high == -accuracy.difference.low == pytest.approx(jeffreys(0, 30)[1])
    assert accuracy.verdict == "cannot be told apart"
    near, far = judge([parse_limit("accuracy<-.02"), parse_limit("accuracy<-.2")], compared)
    assert (near.broken, near.sure) == (False, False)
    assert (far.broken, far.sure) == (False, True)
    n = near.problems_to_settle  # so many that agree would be beyond doubt, by Jeffreys' interval
    assert jeffreys(0, n)[1] == pytest.approx(0.02, rel=0.1)
