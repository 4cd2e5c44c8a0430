"""Runs foretold from the other recordings: by whom, and why not."""

import shutil
from types import SimpleNamespace

import pytest

from advisor.what_if import left_out
from advisor.what_if.left_out import foretell
from tests.advisor.synthetic import GREEDY, engine_of, record
from traces.errors import UsageError
from traces.recording.reader import Recording
from traces.schema.tts.policy import AS_SENT
from traces.summary.run import summarise
from tui.verbs.demo import SHIPPED


def opened(pattern):
    return [Recording.open(path) for path in sorted(SHIPPED.glob(pattern))]


@pytest.mark.slow
def test_each_run_is_foretold_from_the_others_alone():
    told = []
    recordings = opened("demo-s-*")
    found = foretell(recordings, on_run=lambda done, whole: told.append((done, whole)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    for recording, each in zip(recordings, found, strict=True):
        (measured,) = summarise(recording)
        assert (each.recording, each.engine) == (recording.name, measured.engine)
        assert each.predicted.steps == measured.steps  # the same scheduling, step by step
        mean = each.predicted.latency_s["mean"]
        assert mean.low < mean.value < mean.high
        assert mean.runs == 2
        if not mean.extrapolated:
            assert mean.value == pytest.approx(measured.latency_s["mean"].value, rel=0.15)
    # 32 samples at once lie outside what two of the others ever ran.
    assert [each.predicted.latency_s["mean"].extrapolated for each in found] == [False, False, True]


@pytest.mark.slow
def test_repeats_teach_where_nothing_else_does(tmp_path):
    (own,) = opened("demo-m-*-greedy-t0-*")
    again = tmp_path / "again"
    shutil.copytree(own.path, again)
    found = foretell([own, Recording.open(again)])
    assert [each.why_not for each in found] == [None, None]
    assert [each.predicted.latency_s["mean"].runs for each in found] == [1, 1]


def test_who_has_no_other_is_refused_with_the_reason():
    found = foretell([*opened("demo-s-*-greedy-t0-*"), *opened("demo-m-*-greedy-t0-*")])
    assert [each.predicted for each in found] == [None, None]
    assert {each.why_not for each in found} == {
        "no other recording has steps of this engine to learn from"
    }


def test_none_at_all_is_a_usage_error():
    with pytest.raises(UsageError):
        foretell([])


def test_two_servers_are_foretold_as_two(tmp_path):
    """A deployment of two replicas has half of what is in flight on each."""
    means = {}
    for count in (1, 2):
        engine = engine_of(data_parallel_size=count)
        recordings = [
            record(tmp_path / str(count) / name, engine, GREEDY, problems=8, concurrency=8)
            for name in ("one", "other")
        ]
        means[count] = foretell(recordings)[0].predicted.latency_s["mean"].value
    assert means[2] < 0.97 * means[1]


def test_traffic_that_is_drawn_eight_times_is_foretold_once(monkeypatch):
    drawn = [
        SimpleNamespace(recording="live", engine=engine_of(), policy=AS_SENT) for _ in range(8)
    ]
    monkeypatch.setattr(left_out, "gather", lambda *_, **__: SimpleNamespace(runs=drawn, steps=()))
    monkeypatch.setattr(left_out, "told_apart", lambda given: given)
    monkeypatch.setattr(left_out, "_foretold", lambda *_: None)
    assert len(foretell([SimpleNamespace(name="live")])) == 1
