"""A recording of watched servers on the Live screen, panels at each size, and a silent server."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from profiler.attach.scraper import Silence
from tests.tui.live_recordings import BEGIN, write_watched
from tests.tui.pilot import opened, press, screen_text, text_of
from traces.live.numbers import Reading, Times, numbers_of
from traces.live.verdict import Finding, Verdict, change_for
from traces.recording.reader import Recording
from traces.schema.estimate import Estimate
from traces.schema.formats import number
from traces.summary.run import summarise
from tui.app.app import TtscopeApp
from tui.screens.entries import matches
from tui.screens.live.panels import live_panels, read_recorded
from tui.screens.live.views import (
    History,
    action_lines,
    is_held_up,
    now_text,
    status,
    verdict_text,
)
from tui.screens.live.watch import Snapshot
from tui.text.recordings.live import gauge_in, live_line, next_lines, rate_in, silence_told
from tui.widgets.panel import PanelView

S = 10**9


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("live")
    write_watched(folder / "metrics", spans=False)
    write_watched(folder / "spans", spans=True, steps=True)
    return folder


def panels(app):
    shown = [each for each in app.screen.query(PanelView) if each.display]
    return {str(each.border_title): str(each.render()) for each in shown}


@pytest.mark.slow
@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
@pytest.mark.parametrize("name", ["metrics", "spans"])
async def test_a_live_recording_opens_where_it_was_seen(folder, name, size):
    async with opened(TtscopeApp([folder / name]), size) as (app, pilot):
        await press(pilot, "enter")
        assert app.current_mode == "live"
        bar = app.screen.query_one("NavBar")
        assert bar.status.startswith(f"recorded: {name}  0:19")
        assert "VERDICT   NOTHING STANDS OUT" in text_of(app, "#verdict")
        assert "NEXT" in text_of(app, "#next")
        found = panels(app)
        if size == (80, 24):
            assert not found
            found = {"Throughput": text_of(app, "#gauges"), "Latency": text_of(app, "#spreads")}
        assert "tok/s         100│" in found["Throughput"]
        assert {"TTFT", "ITL", "queue"} <= {
            line.split()[0] for line in found["Latency"].splitlines()[1:]
        }
        assert ("Engine steps" in found) == (name == "spans" and size != (80, 24))
        told = text_of(app, "#text")
        assert ("No problems captured" in told) == (name == "metrics")
        assert ("19 problems" in told) == (name == "spans")
        await press(pilot, "2")
        assert app.current_mode == "run"
        assert app.screen.model.entry.path.name == name


async def test_the_only_recording_is_shown_at_the_start(folder):
    app = TtscopeApp([folder / "metrics"], screen="live")
    async with opened(app, (80, 24)):
        assert matches(app.entries[0], "watched") and not matches(app.entries[0], "watched greedy")
        assert app.screen.query_one("NavBar").status.startswith("recorded: metrics  0:19")


@pytest.mark.slow
async def test_what_to_try_next_is_wrapped_anew_at_another_width():
    app = TtscopeApp([], screen="live")
    why = "no replay of it " * 12
    async with app.run_test(size=(120, 40)) as pilot:
        app.screen._next = partial(next_lines, "runs/live", why)
        app.screen._draw()
        await pilot.pause()
        wide = text_of(app, "#next").splitlines()
        await pilot.resize_terminal(80, 24)
        await pilot.pause()
        lines = text_of(app, "#next").splitlines()
        assert len(wide) < len(lines) and max(map(len, lines)) <= 78
        assert all(line.startswith("          ") for line in lines[1:])


@pytest.mark.slow
async def test_a_watched_server_is_not_left_for_a_recording(folder):
    async with opened(TtscopeApp([folder / "metrics"])) as (app, pilot):
        app.watching = True
        await press(pilot, "enter")
        assert app.current_mode == "run"


def test_counters_and_gauges_over_the_whole(folder):
    recording = Recording.open(folder / "metrics")
    (run,) = summarise(recording)
    recorded = read_recorded(recording, run)
    window = recorded.servers[0].window
    edges = np.linspace(*recorded.span, 20)
    assert np.allclose(rate_in(window, "vllm:generation_tokens_total", edges), 100.0)
    running = gauge_in(window, "vllm:num_requests_running", edges)
    assert set(running[:-1]) == {1.0, 2.0, 3.0}
    fine = np.linspace(*recorded.span, 191)  # ten bins a poll: the reading before holds
    assert set(gauge_in(window, "vllm:num_requests_running", fine)) == {1.0, 2.0, 3.0}
    lanes = {lane.name: lane for lane in recorded.lanes(30)}
    assert lanes["KV cache"].top == 100.0
    assert np.allclose(lanes["KV cache"].values, 10.0)


@pytest.fixture(scope="module")
def numbers(folder):
    recording = Recording.open(folder / "metrics")
    (key,) = recording.manifest.engines
    return recording.manifest.engines[key], numbers_of(recording.frame("scrapes"), key)


def test_a_silent_server_is_said(numbers):
    _, known = numbers
    late, there = Silence(7.2, 3.6, False), Silence(0.0, 0.5, False)
    assert silence_told({"a": there}) is None
    assert silence_told({"a": late}) == "no answer for 7 s, asked again in 4 s"
    asked = late._replace(seconds=9.0, again_s=0.0)
    assert silence_told({"a": there, "b": asked}) == "no answer of 1 of 2 engines for 9 s"
    other = late._replace(another=True)
    assert silence_told({"a": other}) == "no answer for 7 s (another server answers)"
    line = live_line(90.0, {"a": known}, {"a": late})
    assert line.startswith("0:01:30  no answer for 7 s, asked again in 4 s, before:  tok/s")
    assert len(line) <= 80
    assert "no answer" not in live_line(90.0, {"a": known}, {"a": there})


def test_no_banner_is_green_while_requests_wait_now(numbers):
    _, known = numbers
    told = {"running": 5.0, "waiting": 11.0, "kv_share": 0.1, "still_s": 0.0}
    snapshot = Snapshot(
        now_ns=0, seconds=60.0, numbers={"e": known}, names={}, verdicts=(Verdict(engine="e"),),
        readings={"e": Reading(**told)}, limit=8,
    )  # fmt: skip

    def now(**reading):
        shown = replace(snapshot, readings={"e": Reading(**told | reading)})
        quiet = verdict_text(shown.verdicts, {}, width=78, unseen=False, held_up=is_held_up(shown))
        assert any("success" in str(span.style) for span in quiet.spans) != is_held_up(shown)
        return now_text(shown, width=78).plain

    times = {"ttft_s": 0.337, "queue_s": 0.3}  # of those that began, and of those that ended
    means = {name: Times(mean=Estimate(value=s, unit="s")) for name, s in times.items()}
    snapshot = replace(snapshot, numbers={"e": replace(known, **means)})
    assert now() == "NOW       QUEUEING  11 wait, 5 of 8 run, TTFT 337 ms, queue 300 ms"
    assert now(kv_share=0.99).startswith("NOW       KV-BOUND")
    assert now(still_s=31.0).startswith("NOW       STALLED  11 wait, 5 of 8 run, no token for 31 s")
    assert now(waiting=0.0).startswith("NOW       RUNNING")
    assert now(waiting=0.0, running=0.0).startswith("NOW       IDLE")
    between = now(waiting=0.0, running=0.0, tokens=446.0)
    assert between.startswith("NOW       RUNNING  0 wait, 0 of 8 run, 446 tokens since the last")
    held = replace(snapshot, profiled=True)
    assert "a kernel window is open" in now_text(held, width=78).plain.lower()


def test_a_stalled_engine_is_answered_by_its_log(numbers):
    engine, known = numbers
    found = Finding(kind="stalled", evidence="")
    change = change_for(Verdict(engine="e", found=(found,)), known, engine, 2.0)
    assert change.arguments == () and "log" in change.told
    snapshot = Snapshot(
        now_ns=0, seconds=9.0, numbers={}, names={}, changes=(change,),
        verdicts=(Verdict(engine="e", found=(found,)),),
    )  # fmt: skip
    assert "replay" not in " ".join(action_lines(snapshot, 78))


def test_a_page_that_is_asked_for_seldom_is_said(numbers):
    _, known = numbers
    late = Snapshot(
        now_ns=known.end_ns + 6 * 10**9, seconds=60.0, numbers={"e": known}, names={}, verdicts=(),
        silences={"e": Silence(0.0, 7.0, False)},
    )  # fmt: skip
    assert status(late, "http://h:1") == "h:1  1:00.0  answered 6 s ago, asked again in 7 s"


def test_the_change_that_a_verdict_asks_for(numbers):
    engine, known = numbers
    busy = replace(known, running_max=16.0, capped_share=1.0, kv_share_max=0.4)
    queue = Verdict(engine="a", found=(Finding(kind="queueing", evidence="they wait"),))
    seqs = engine.max_num_seqs
    change = change_for(queue, busy, engine, 2.0)
    assert change.arguments == ("--set", f"engine.max_num_seqs={2 * seqs}")
    full = replace(busy, kv_share_max=0.9)
    change_of_full = change_for(queue, full, replace(engine, num_gpu_blocks=100), 2.0)
    assert change_of_full.told == "add a replica"
    assert change_of_full.why.endswith(f"was up to 90 % full: no room for {2 * seqs}")
    unknown = replace(busy, kv_share_max=None)
    assert change_for(queue, unknown, engine, 2.0).told == "add a replica"
    quiet = change_for(Verdict(engine="a"), busy, engine, 2.0)
    assert quiet.arguments == ("--rate", "3/s")
    snapshot = Snapshot(
        now_ns=BEGIN, seconds=1.0, numbers={"a": known}, names={}, verdicts=(queue,),
        changes=(change,),
    )  # fmt: skip
    (line,) = action_lines(snapshot, width=200)
    assert line.startswith(f"NEXT      Set max_num_seqs to {2 * seqs}, as requests wait while")
    text = verdict_text((queue,), {}, width=78, unseen=True)
    assert text.plain == "VERDICT   QUEUEING  they wait"
    history = History()
    history.add(snapshot)
    assert [panel.title for panel in live_panels(history)][:4] == [
        "Throughput", "Requests", "KV cache", f"Latency, means and last {known.seconds:.0f} s",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("size", [(100, 30), (116, 38), (120, 40), (200, 60)])
async def test_no_number_is_cut_at_any_size(folder, size):
    recording = Recording.open(folder / "spans")
    recorded = read_recorded(recording, summarise(recording)[0])
    async with opened(TtscopeApp([folder / "spans"]), size) as (app, pilot):
        await press(pilot, "enter")
        found = screen_text(app)
        assert len(recorded.spreads()) == 5
        assert all(line in found for line in recorded.spreads())
        assert (
            size == (100, 30)
            or f"steps {number(recorded.engines[0].steps_per_s, 'tokens')} /s" in found
        )
