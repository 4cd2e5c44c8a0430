from __future__ import annotations

import numpy as np
import pytest

from advisor.accuracy.finish_order import decide
from advisor.accuracy.samples import read_samples
from advisor.accuracy.stopping import RULES, savings
from tests.traces.synthetic import simulate, write_recording
from traces.errors import RecordingError
from traces.schema.tts.stop_rules import Stop
from traces.summary.run import summarise

ASC = RULES[0]


def run_of(folder, **given):
    return summarise(write_recording(folder, simulate(**given)))[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_of(tmp_path_factory.mktemp("stopping") / "a", problems=30, n=8, skill=0.7)


def test_a_rule_ends_a_problem_when_it_says(run):
    for problem in read_samples(run).problems:
        found = decide(problem, ASC.stop(8))
        assert (problem.finish_s < found.seconds).sum() < found.ended
        assert found.ended <= (problem.finish_s <= found.seconds).sum()
        assert found.votes.first + found.votes.second <= found.ended
        assert found.certainty >= 0.9 or not found.early
        assert found.tokens <= problem.tokens.sum()
        everything = decide(problem, Stop())
        assert everything.seconds == problem.finish_s.max()
        assert everything.tokens == pytest.approx(problem.tokens.sum())
        assert not everything.early


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.label)
def test_savings_are_paired_over_all_problems(run, rule):
    found = savings(run, rule)
    assert found.problems == len(found.stopped) == 30
    assert found.early == sum(each.early for each in found.stopped.values())
    assert found.tokens.low <= found.tokens.value <= found.tokens.high <= 0
    assert -1 < found.latency_p95.value <= 0
    right = np.mean([each.right for each in found.stopped.values()])
    accuracy = np.mean([decide(p, ASC.stop(8)).right for p in read_samples(run).problems])
    if rule is ASC:
        assert right == accuracy


def test_a_surer_rule_saves_less(run):
    found = [savings(run, rule).tokens.value for rule in RULES[:3]]
    assert found == sorted(found)


def test_what_a_run_cannot_say(tmp_path):
    with pytest.raises(RecordingError, match="one sample per problem"):
        savings(run_of(tmp_path / "a", problems=4, n=1), ASC)
    rows = simulate(problems=4, n=4)
    rows["samples"][0]["cancelled_by"] = "decision"
    (cut,) = summarise(write_recording(tmp_path / "b", rows))
    with pytest.raises(RecordingError, match="cancelled"):
        savings(cut, ASC)
