"""Requests of one problem that come one after another are no problem that a replay can send."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from advisor.evidence import gather as evidence
from advisor.evidence.gather import _with_drawn, gather
from advisor.evidence.runs import arrival_rate, read_runs
from advisor.forecast.sessions import Sessions
from benchmarks.made.spans import client, request, span
from tests.advisor.synthetic import START, engine_of
from traces.errors import RecordingError
from traces.live.numbers import FINISHED, GAUGES, GENERATED, Window
from traces.live.otlp import read_json
from traces.live.span_groups import SpanGroups
from traces.recording.manifest import ClockReading, Manifest
from traces.recording.reader import Recording
from traces.recording.writer import RecordingWriter


def watched_spans(folder, spans):
    engine = engine_of(mode="server")
    groups = SpanGroups(lambda _: engine.key())
    for each in read_json(json.dumps(request(*spans)).encode()).spans:
        groups.add(each)
    manifest = Manifest(
        clock_start=ClockReading(monotonic_ns=0, unix_ns=START), engines={engine.key(): engine}
    )
    writer = RecordingWriter(folder, manifest, period_s=60)
    for table, rows in zip(("problems", "samples"), groups.drain(everything=True), strict=True):
        for row in rows:
            writer.append(table, row)
    writer.close(complete=True)
    return Recording.open(folder)


def test_problems_in_rounds_are_left_out_and_counted(tmp_path):
    later = {"gen_ai__usage__prompt_tokens": 5000}
    spans = [
        *(span(1, parent=70), span(2, parent=70, start=30, **later)),  # two prompts
        *(span(3, parent=71), span(4, parent=71, start=30)),  # one, asked again
        *(span(5, parent=72, start=1), span(6, parent=72, start=2)),  # at once
        span(7, parent=73),
    ]
    recording = watched_spans(tmp_path / "live", spans)
    runs, notes, in_turn, turns = read_runs(recording)
    (run,) = runs
    told = [(turn.session, turn.prompt_tokens, turn.latency_s) for turn in turns[run.engine]]
    assert len({session for session, *_ in told}) == 2 and len(told) == 4
    assert sorted(prompt for _, prompt, _ in told)[-1] == 5000
    assert all(took > 0 for *_, took in told)
    assert sorted(len(each.samples) for each in run.problems.values()) == [1, 2]
    assert notes == [] and in_turn == {run.engine: [2, 2]}
    assert run.rate_per_s == pytest.approx(arrival_rate(recording.problems["arrival"]))
    assert _with_drawn(recording, {}, runs, in_turn) == (
        runs,
        [
            "left out of live: 2 problems whose 4 requests came one after another, as the replay "
            "sends those of a problem at once. Its load is lower by these. replay --agents takes "
            "them as sessions"
        ],
    )
    alone = watched_spans(tmp_path / "alone", spans[:2])
    with pytest.raises(RecordingError, match="Left out of alone: 1 problem whose 2 requests"):
        gather([alone], judged=False)


def polled(ended):
    """A window in which so many requests ended."""
    none = np.zeros(2)
    return Window(
        times=np.array([0, 10**9]), seconds=1.0, resets=0,
        increase={(FINISHED, 'finished_reason="stop"'): float(ended)},
        histograms={}, gauges=dict.fromkeys(GAUGES, none), counted={GENERATED: none},
    )  # fmt: skip


@pytest.mark.parametrize(("others", "kept"), [(18, True), (1, False)])
def test_one_agent_leaves_the_spans_of_all_others(tmp_path, monkeypatch, others, kept):
    """An agent's two calls are left out of 20 requests. Of 3 the one that is left is no load."""
    agent = span(1, parent=70), span(2, parent=70, start=30)
    plain = (span(at, parent=70 + at) for at in range(3, 3 + others))
    recording = watched_spans(tmp_path / "live", [*agent, *plain])
    runs, _, in_turn, _ = read_runs(recording)
    drawn = SimpleNamespace(engine=runs[0].engine)
    monkeypatch.setattr(evidence, "drawn_traffic", lambda *_: [drawn])
    windows = {runs[0].engine.key(): polled(2 + others)}
    found, (note,) = _with_drawn(recording, windows, runs, in_turn)
    assert found == (runs if kept else [drawn])
    told = "1 problem whose 2 requests" if kept else "lengths and arrivals are those of /metrics"
    assert told in note


def test_a_conversation_is_a_session_and_its_id_is_told_to_nobody(tmp_path):
    """The client's span names it. Turns have traces of their own."""
    spans = []
    for number in range(3):
        trace, name = f"{number + 1:02x}", {"gen_ai__conversation__id": "secret-chat-7"}
        spans.append(client(10 + number, parent="", trace=trace, start=10 * number, **name))
        spans.append(span(20 + number, parent=10 + number, trace=trace, start=10 * number))
    recording = watched_spans(tmp_path / "live", [*spans, span(30, parent=99, trace="0f")])
    sessions = recording.problems["session"].to_list()
    assert sorted(map(str, sessions))[-1] == "None" and len({*sessions}) == 2
    assert "secret" not in str(recording.problems.rows())
    (run,) = read_runs(recording).runs
    turns = [each for each in run.problems.values() if each.session is not None]
    assert len(turns) == 3
    told = Sessions.watched(turns, 16)
    assert told.after.tolist() == [-1, 0, 1]
    np.testing.assert_allclose(told.after_s, [0, 8, 8], atol=0.1)
