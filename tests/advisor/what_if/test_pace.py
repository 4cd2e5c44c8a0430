"""A prediction at the pace of a recorded machine is that of a machine as slow as it was."""

import dataclasses

import numpy as np
import pytest

from advisor.what_if.predict import predict
from advisor.what_if.question import Question
from tests.advisor.synthetic import GREEDY, VOTE16, engine_of, record
from traces.errors import UsageError
from traces.summary.run import summarise

SLOWER = 1.4
BASE = engine_of(max_num_seqs=16)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return record(tmp_path_factory.mktemp("pace") / "before", BASE, VOTE16, problems=30)


def asked(before, after, **limits):
    (run,) = summarise(before)
    engine = dataclasses.replace(run.engine, **limits)
    return predict(before, run, Question(engine=engine, policy=run.policy, pace_of=after))


@pytest.mark.parametrize("limits", [{}, {"max_num_seqs": 4}])
def test_what_is_predicted_at_the_pace_of_a_slower_machine_comes_there(recorded, tmp_path, limits):
    changed = dataclasses.replace(BASE, **limits)
    after = record(tmp_path / "before", changed, VOTE16, problems=30, drift=np.log(SLOWER))
    found, (took,) = asked(recorded, after, **limits), summarise(after)
    for name in ("mean", "p50", "p95"):
        predicted, came = found.predicted.latency_s[name], took.latency_s[name]
        assert predicted.value == pytest.approx(came.value, rel=0.02), name
        assert predicted.low <= came.value <= predicted.high
    (kind, *_) = (name for name, each in took.step_time.items() if each is not None)
    of_kind = (run.step_time[kind].value for run in (found.predicted, took))
    assert next(of_kind) == pytest.approx(next(of_kind), rel=0.02)
    assert (
        found.predicted.accuracy.value == asked(recorded, None, **limits).predicted.accuracy.value
    )
    assert any("1.40 times as long" in note for note in found.notes)


def test_the_run_as_it_was_keeps_its_own_pace(recorded, tmp_path):
    after = record(tmp_path / "before", BASE, VOTE16, problems=30, drift=np.log(SLOWER))
    paced, plain = asked(recorded, after), asked(recorded, None)
    assert paced.replayed.latency_s["mean"] == plain.replayed.latency_s["mean"]
    assert paced.predicted.latency_s["mean"].value == pytest.approx(
        SLOWER * plain.predicted.latency_s["mean"].value, rel=0.01
    )


def test_a_recording_of_another_engine_has_no_pace_of_this_one(recorded, tmp_path):
    other = record(tmp_path / "other", engine_of("large", max_num_seqs=16), GREEDY, problems=20)
    with pytest.raises(UsageError, match="has no step of small as it is asked about"):
        asked(recorded, other)
