"""Attach to a server that speaks as vLLM does, see it, stop, and open what was kept."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from dataclasses import replace

import polars as pl
import pytest
from textual.widgets import Input, Static

from benchmarks.servers.metrics_server import metrics_server
from tests.profiler.attach.test_kernel_windows import Profiler
from tests.profiler.conftest import library, nvml  # noqa: F401
from tests.tui.pilot import settle, text_of
from traces.errors import UsageError
from traces.recording.reader import Recording
from tui.app.app import TtscopeApp
from tui.screens.live.screen import LiveScreen
from tui.screens.live.views import History, problem_lines, sees_line, spread_lines, unread_lines
from tui.screens.live.watch import LiveWatch, Snapshot, parse_target


@pytest.fixture
def server():
    with metrics_server() as state:
        yield state


@asynccontextmanager
async def on_live(folder, size=(120, 40)):
    """The app on its Live screen, its pilot, and the messages that it saw."""
    app, seen = TtscopeApp([folder]), []
    async with app.run_test(size=size, message_hook=seen.append) as pilot:
        await pilot.press("3")
        await pilot.pause()
        yield app, pilot, seen


async def wait_for(pilot, seen, kind, count=1):
    for _ in range(1200):
        if len({id(each) for each in seen if isinstance(each, kind)}) >= count:
            await pilot.pause()
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"no {kind.__name__} came")


async def attach_to(pilot, text):
    await pilot.press("u")
    pilot.app.screen.query_one("#url", Input).value = text
    await pilot.press("enter")


async def test_the_app_that_is_given_a_url_watches_it(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    app, seen = TtscopeApp([tmp_path], screen="live", watch=server.url), []
    async with app.run_test(message_hook=seen.append) as pilot:
        await wait_for(pilot, seen, LiveScreen.Ticked)
        assert app.screen.query_one("NavBar").status.startswith("127.0.0.1:")
        await pilot.press("s")
        await wait_for(pilot, seen, LiveScreen.Ended)
        await pilot.press("1", "3")
        await settle(pilot)
        assert app.screen.query_one("NavBar").status == "not connected"  # it is watched once


@pytest.mark.slow
async def test_attach_watch_stop_and_open(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    async with on_live(tmp_path, (80, 24)) as (app, pilot, seen):
        assert "Press u and enter a server's URL" in text_of(app, "#text")
        server.gauges = {"vllm:num_requests_running": 7}
        await attach_to(pilot, server.url)
        await wait_for(pilot, seen, LiveScreen.Ticked)
        server.scale = 1.5
        await wait_for(pilot, seen, LiveScreen.Ticked, 3)
        assert any(isinstance(each, LiveScreen.Examined) for each in seen)
        assert "tok/s" in text_of(app, "#gauges")
        gauges = text_of(app, "#gauges").splitlines()
        (running,) = (line for line in gauges if line.startswith("running"))
        assert running.split()[1] == running.split()[-1] == "7", gauges
        now, *verdict = text_of(app, "#verdict").splitlines()
        assert now.startswith("NOW       RUNNING  0 wait, 7")
        assert verdict[0].startswith("VERDICT   NONE YET")
        assert "highest│" in gauges[0] and gauges[0].endswith("now│    now")
        assert "metrics yes" in text_of(app, "#sees")
        assert "--listen 4318" in text_of(app, "#text")
        await pilot.press("d")
        assert "needs:" in text_of(app, "#text")
        assert "--otlp-traces-endpoint" in text_of(app, "#text")
        await pilot.press("s")
        await wait_for(pilot, seen, LiveScreen.Ended)
        assert "It is on screen 1 now" in text_of(app, "#message")
        assert app.screen.query_one("NavBar").status == "not connected"
        await settle(pilot)
        assert "NEXT      no replay:" in text_of(app, "#next")
        assert "NOW" not in text_of(app, "#verdict")  # the whole is judged
        assert "polls" in text_of(app, "#text") and "demo-s, watched" in text_of(app, "#text")
        (entry,) = (each for each in app.entries if each.path != tmp_path)
        assert entry.path.name.startswith("live-127.0.0.1")
        assert Recording.open(entry.path).complete
        assert Recording.open(entry.path).frame("scrapes").height
        await pilot.press("1")
        app.open_run(entry)
        await settle(pilot)
        status = app.screen.query_one("NavBar").status
        assert status.startswith(f"recorded: {entry.path.name}")
        (tmp_path / "again").mkdir()  # the same second gives the same name
        monkeypatch.chdir(tmp_path / "again")
        await attach_to(pilot, server.url)
        await wait_for(pilot, seen, LiveScreen.Ticked, 4)
        await pilot.press("s")
        await wait_for(pilot, seen, LiveScreen.Ended, 2)
        await settle(pilot)
        assert "It is on screen 1 now" in text_of(app, "#message")
        assert app.screen.query_one("NavBar").status == "not connected"


@pytest.mark.slow
async def test_what_cannot_be_attached_to_is_told_in_place(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    async with on_live(tmp_path) as (app, pilot, seen):
        await attach_to(pilot, "--listen 4318")
        assert "name a server" in text_of(app, "#message")
        server.status = 500
        await attach_to(pilot, server.url)
        await wait_for(pilot, seen, LiveScreen.Ended)
        assert "/metrics cannot be read" in text_of(app, "#message")
        message, bar = app.screen.query_one("#message"), app.screen.query_one("NavBar")
        assert message.has_class("bad")
        assert bar.status == "not connected"
        await pilot.press("escape")
        assert not message.display
        await attach_to(pilot, "--what")
        assert message.display
        assert bar.status == "not connected"
        await pilot.press("escape")
        assert not message.display
        assert not list(tmp_path.iterdir())


def test_targets(monkeypatch):
    target = parse_target("gpu7:8000 https://gpu8 --listen 0.0.0.0:4318")
    assert [each.url for each in target.accesses] == ["http://gpu7:8000", "https://gpu8"]
    assert target.listen == ("0.0.0.0", 4318)
    assert target.listens
    assert target.gpus == -1  # auto, as attach
    target = parse_target("gpu7 --listen-grpc 4317 --gpus none --kernels /t --kernel-windows 2/9s")
    assert target.listen_grpc == ("127.0.0.1", 4317)
    assert target.listens
    assert (target.gpus, str(target.kernels), target.plan.every_s) == (None, "/t", 9.0)
    assert not parse_target("gpu7").listens
    monkeypatch.setitem(os.environ, "KEY", "secret")
    (access,) = parse_target("gpu7:8000 --api-key-env KEY").accesses
    assert access.headers["Authorization"].endswith("secret")
    for text, told in (
        ("", "name a server"),
        ("a --listen", "requires an argument"),
        ("a --listen-grpc x", "--listen-grpc x: write a port"),
        ("a --gpus all", "--gpus all"),
        ("a --kernel-windows 4", "4/60s"),
        ("a --what", "--what: not here"),
        ("a --n 8", "--n: not here"),
        ("a -o b", "-o: not here"),
        ("a --help", "here are .*--listen, --listen-grpc, --spans-without-token"),
        ("'a", "quotation"),
    ):
        with pytest.raises(UsageError, match=told):
            parse_target(text)


@pytest.mark.slow
def test_a_listener_sees_spans_and_steps(server, tmp_path):
    """The recording that grows is looked into, and what it holds is told."""
    found = []
    target = parse_target(f"{server.url} --listen 127.0.0.1:0")

    def take(snapshot):
        found.append(snapshot)
        watch.stop()

    watch = LiveWatch(target, tmp_path / "live", on_snapshot=take)
    watch.run()
    assert found[0].steps == 0
    assert found[0].problems_seen == 0
    assert "spans none yet" in sees_line(found[0], [])
    assert "No problem yet" in problem_lines(found[0], now_ns=0, listening=True)[0]


def snapshots(target, folder, enough):
    """Watch until a snapshot is enough; returns it."""
    found = []

    def take(snapshot):
        found.append(snapshot)
        if enough(snapshot) or snapshot.seconds > 20:
            watch.stop()

    watch = LiveWatch(target, folder, take)
    watch.run()
    return found[-1]


@pytest.mark.slow
def test_spans_over_grpc(server, tmp_path):
    pytest.importorskip("grpc")
    target = parse_target(f"{server.url} --listen-grpc 127.0.0.1:0")
    last = snapshots(target, tmp_path / "live", lambda each: True)
    assert (last.steps, last.problems_seen) == (0, 0)


@pytest.mark.slow
def test_power_is_read_or_it_is_said_why_not(server, nvml, tmp_path):  # noqa: F811
    target = parse_target(f"{server.url} --gpus 2")
    last = snapshots(target, tmp_path / "a", lambda each: each.watts is not None)
    each = (
        pl.read_parquet(tmp_path / "a" / "power-*.parquet").group_by("device").agg(pl.mean("watts"))
    )
    assert last.watts == pytest.approx(each["watts"].sum(), rel=0.05)
    assert f"power {last.watts:,.0f} W" in sees_line(last, [])
    history = History()
    history.add(last)
    assert "power" in {lane.name for lane in history.lanes(20)}

    last = snapshots(parse_target(server.url), tmp_path / "b", lambda each: True)
    assert "power no" in sees_line(last, [])
    told = "\n".join(unread_lines(last, width=78))
    assert "the servers do not run on this machine" in told
    assert "--gpus N" in told
    assert "needs: --kernels FOLDER" in told
    history = History()
    history.add(last)
    assert "power" not in {lane.name for lane in history.lanes(20)}


@pytest.mark.slow
async def test_profiler_windows_are_confirmed_and_shown(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("profiler.attach.kernel_windows.FIRST_S", 0.1)
    monkeypatch.setattr("profiler.attach.kernel_windows.BUDGET", 1.0)
    (tmp_path / "traces").mkdir()
    server.profiler = Profiler(tmp_path / "traces")
    server.gauges = {"vllm:num_requests_running": 3}
    async with on_live(tmp_path) as (app, pilot, seen):
        asked = f"{server.url} --kernels traces --kernel-windows 4/1s"
        await attach_to(pilot, asked)
        await pilot.pause()
        question = str(app.screen.query_one(Static).render())
        assert f"profiler windows of 4 steps on {server.url}, at most one in 1 s" in question
        await pilot.press("n")
        await pilot.pause()
        assert "--kernels: not opened" in text_of(app, "#message")
        assert not server.profiler.starts
        await attach_to(pilot, asked)
        await pilot.pause()
        await pilot.press("y")
        for _ in range(1200):
            if "kernels gemm" in (seen_of := text_of(app, "#sees")) and "which steps" in seen_of:
                break
            await asyncio.sleep(0.05)
        assert "windows" in text_of(app, "#sees")
        kernels, held = text_of(app, "#sees").splitlines()[-2:]
        assert kernels.startswith("kernels gemm")
        assert held.endswith("which steps is not known: no steps of this engine were received")
        await pilot.press("s")
        await wait_for(pilot, seen, LiveScreen.Ended)
    assert server.profiler.open == 0


def test_the_time_of_a_step_needs_no_wall_time():
    rows = pl.DataFrame({"end": [0, 2 * 10**7], "interval_ns": [None, 2 * 10**7]})
    rows = rows.with_columns(
        wall_ns=pl.lit(None, pl.Int64), engine=pl.lit("e"), profiled=pl.lit(False)
    )
    snapshot = Snapshot(now_ns=0, seconds=3.0, numbers={}, names={}, verdicts=(), step_rows=rows)
    assert spread_lines(snapshot)[-1].split() == ["step", "20.0", "ms", "20.0", "ms", "20.0", "ms"]
    held = rows.with_columns(interval_ns=pl.lit(17_600_000_000), profiled=pl.lit(True))
    snapshot = replace(snapshot, step_rows=pl.concat([rows, held.select(rows.columns)]))
    assert spread_lines(snapshot)[-1].split()[1:3] == ["20.0", "ms"]  # of the server's own steps


def test_problems_and_history():
    problems = pl.DataFrame(
        {
            "problem_id": ["abc"], "arrival": [0], "end": [2 * 10**9],
            "samples": [4], "tokens": [400], "longest": [250], "errors": [0],
        }
    )  # fmt: skip
    history = History()
    snapshot = Snapshot(
        now_ns=0, seconds=3.0, numbers={}, names={}, verdicts=(), steps=9, problems_seen=1,
        problems=problems,
        events={"silent": 1, "note": 2, "window": 3, "gap": 1, "counter_reset": 2},
    )  # fmt: skip
    assert sees_line(snapshot, ()).endswith("speculation no | 2 counter resets | 1 gap")
    history.add(snapshot)
    assert {lane.values.size for lane in history.lanes(20)} == {20}
    assert history.step_lanes(20) == []
    title, _, row = problem_lines(snapshot, now_ns=5 * 10**9, listening=True)
    assert title.startswith("1 problems")
    assert row.split() == ["abc", "4", "2.00", "s", "400", "250", "3.00", "s"]


@pytest.mark.slow
async def test_rates_are_whole_where_there_are_no_panels(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    async with on_live(tmp_path, (100, 30)) as (app, pilot, seen):
        await attach_to(pilot, server.url)
        await wait_for(pilot, seen, LiveScreen.Ticked, 3)
        assert not app.screen.query_one("#panels").display
        line = text_of(app, "#spreads").splitlines()[-1]
        assert line.startswith("prompts") and line.count("/s") == 3
        await pilot.press("s")
        await wait_for(pilot, seen, LiveScreen.Ended)
