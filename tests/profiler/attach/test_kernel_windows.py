"""Profiler windows on a stub of a server: when they open, and that each one ends."""

import gzip
import json
import os
import pty
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import polars as pl
import pytest

from benchmarks.servers.clients import until
from benchmarks.servers.metrics_server import metrics_server
from profiler.attach.deployment import Deployment
from profiler.attach.kernel_windows import BUDGET, ServerPlan, ServerWindows
from profiler.engines.server.access import Access
from tests.profiler.command import ttscope
from tests.profiler.watching import watch_while
from traces.errors import EngineError, UsageError


class Profiler:
    """What vLLM's routes do: a start with a prefix and bounds, a stop that writes traces."""

    def __init__(self, folder, *, bounded=True, front_end=False, stall_s=0.0):
        self.folder, self.bounded, self.front_end = folder, bounded, front_end
        self.stall_s, self.elsewhere = stall_s, False
        self.open, self.most_open = 0, 0
        self.starts, self.status = [], 200
        self.fault = None  # called instead where a window with steps is asked for

    def routes(self):
        known = {"max_iterations": {}} if self.bounded else {}
        schemas = {"StartProfileRequest": {"properties": known}}
        return {"paths": {"/start_profile": {}}, "components": {"schemas": schemas}}

    def start(self, body):
        if self.status != 200:
            return self.status
        if self.fault is not None and body["max_iterations"] > 1:
            return self.fault()
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        self.starts.append((time.monotonic(), body))
        if body["max_iterations"] > 1:  # steps go on; the bound ends it
            self.write(body["profile_prefix"], body["max_iterations"])
        return 200

    def stop(self):
        time.sleep(self.stall_s)
        body = self.starts[-1][1]
        if body["max_iterations"] == 1:
            self.write(body["profile_prefix"], 1)
        self.open -= 1
        return 200

    def write(self, prefix, steps):
        if self.elsewhere:
            return
        events = []
        for step in range(steps):
            mark = {"cat": "user_annotation", "name": "execute_context_0(0)_generation_4(4)"}
            mm = {"cat": "cpu_op", "name": "aten::mm"}
            place = {"ph": "X", "pid": 1, "tid": 1, "args": {}}
            events += [place | mark | {"ts": 1000 * step, "dur": 900}]
            events += [place | mm | {"ts": 1000 * step + 10, "dur": 300}]
        name = f"{prefix}_rank0.1.pt.trace.json"
        (self.folder / name).write_text(json.dumps({"traceEvents": events}))
        (self.folder / f"{prefix}_rank0.profiler_out.txt").write_text("totals")
        if self.front_end:
            (self.folder / f"{prefix}_host_1.async_llm.1.pt.trace.json").write_text("{}")


@pytest.fixture
def server(tmp_path):
    (tmp_path / "traces").mkdir()
    with metrics_server() as state:
        state.profiler = Profiler(tmp_path / "traces")
        state.gauges = {"vllm:num_requests_running": 3}
        yield state


@contextmanager
def connected(*servers):
    deployment = Deployment([Access.of(each.url) for each in servers], period_s=0.1)
    deployment.connect()
    try:
        yield deployment
    finally:
        deployment.close()


def run(tmp_path, *servers, seconds, plan, monkeypatch, budget=1.0, enough=lambda: True):
    """Watch for so many seconds, and on until `enough`."""

    def long_enough():
        time.sleep(seconds)
        until(enough)

    monkeypatch.setattr("profiler.attach.kernel_windows.BUDGET", budget)
    monkeypatch.setattr("profiler.attach.kernel_windows.FIRST_S", 0.2)
    with connected(*servers) as deployment:
        windows = ServerWindows(deployment, tmp_path / "traces", plan)
        windows.look()
        windows.rehearse()
        made = watch_while(long_enough, deployment, tmp_path / "r", probes=[windows.watched])
    return made, windows


def test_windows_become_kernels_of_their_engine(server, tmp_path, monkeypatch):
    (tmp_path / "traces" / "somebody.pt.trace.json").write_text("{}")
    plan = ServerPlan(steps=4, every_s=0.4)
    made = {"plan": plan, "enough": lambda: len(server.profiler.starts) > 2}
    recording, windows = run(tmp_path, server, seconds=1.0, monkeypatch=monkeypatch, **made)
    (engine,) = recording.manifest.engines
    kernels = recording.frame("kernels")
    assert set(kernels["engine"]) == {engine}
    assert kernels["step"].null_count() == kernels.height
    opened = [body["max_iterations"] for _, body in server.profiler.starts]
    assert opened[:3] == [1, 4, 4]  # the rehearsal, then windows
    assert kernels.filter(name="aten::mm")["count"].sum() == 4 * (len(opened) - 1)
    told = recording.frame("events").filter(kind="window")["detail"]
    assert [json.loads(each)["steps"] for each in told] == [4] * (len(opened) - 1)
    assert (server.profiler.open, server.profiler.most_open) == (0, 1)
    assert [each.name for each in (tmp_path / "traces").iterdir()] == ["somebody.pt.trace.json"]
    reasons = {json.loads(each)["steps_unknown"] for each in told}
    assert reasons == {"no steps of this engine were received"}
    span = windows._deployment.replicas[0].windows[-1]
    saw = lambda key, begun, end: windows.saw(  # noqa: E731
        {"engine": key, "end": end, "interval_ns": end - begun}, 0
    )
    assert saw(engine, span.begun + 1, span.begun + 2)
    assert saw(engine, span.ended - 1, span.ended + 9)  # its end stalled it
    assert not saw(engine, span.ended + 1, span.ended + 9)
    assert not saw("another", span.begun + 1, span.begun + 2)


@pytest.mark.slow
def test_two_servers_never_have_one_at_the_same_time(server, tmp_path, monkeypatch):
    with metrics_server() as other:
        other.profiler, other.gauges = server.profiler, server.gauges
        made = {"plan": ServerPlan(steps=2, every_s=0.4), "monkeypatch": monkeypatch}
        made["enough"] = lambda: len(server.profiler.starts) > 6  # two are rehearsals
        recording, _ = run(tmp_path, server, other, seconds=0, **made)
    assert recording.frame("kernels")["engine"].n_unique() == 2
    assert server.profiler.most_open == 1


def test_what_a_window_takes_puts_the_next_one_off(server, tmp_path, monkeypatch):
    server.profiler.stall_s = 0.3  # of which 3 % is ten seconds
    plan = ServerPlan(steps=2, every_s=0.4)
    made = {"plan": plan, "enough": lambda: len(server.profiler.starts) > 1, "budget": BUDGET}
    run(tmp_path, server, seconds=1.2, monkeypatch=monkeypatch, **made)
    assert len(server.profiler.starts) == 2


def test_an_idle_server_is_left_alone(server, tmp_path, monkeypatch):
    server.gauges = {"vllm:num_requests_running": 0}
    plan = ServerPlan(steps=2, every_s=0.4)
    recording, _ = run(tmp_path, server, seconds=0.8, plan=plan, monkeypatch=monkeypatch)
    assert len(server.profiler.starts) == 1
    assert recording.frame("kernels").height == 0


def test_a_server_that_refuses_a_window_gets_no_more(server, tmp_path, monkeypatch):
    asked = []
    server.profiler.fault = lambda: asked.append(409) or 409
    made = {"plan": ServerPlan(steps=2, every_s=0.4), "enough": lambda: asked}
    recording, _ = run(tmp_path, server, seconds=1.0, monkeypatch=monkeypatch, **made)
    (told,) = recording.frame("events").filter(pl.col("kind") == "drop")["detail"]
    assert "somebody's profile is open" in told
    assert recording.complete


def test_a_server_that_dies_in_a_window_gets_no_more(server, tmp_path, monkeypatch):
    def dies():
        server.gone = True
        raise OSError("the connection is closed without an answer")

    server.profiler.fault = dies
    monkeypatch.setattr("socketserver.BaseServer.handle_error", lambda *_: None)
    made = {"plan": ServerPlan(steps=2, every_s=0.4), "enough": lambda: server.gone}
    recording, windows = run(tmp_path, server, seconds=1.2, monkeypatch=monkeypatch, **made)
    details = recording.frame("events").filter(pl.col("kind") == "drop")["detail"].to_list()
    assert any("no more kernel windows" in each for each in details)
    (replica,) = windows._deployment.replicas
    assert replica.windows and all(span.ended is not None for span in replica.windows)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"bounded": False}, "knows no max_iterations"),
        ({"front_end": True}, "ignore_frontend"),
        ({"elsewhere": True}, "did not come there"),
        ({"status": 409}, "somebody's profile is open"),
        ({"status": 500}, "answers HTTP 500"),
        (None, "has no profiler"),
    ],
)
def test_what_is_refused_before_the_first_window(server, tmp_path, change, told):
    for name, value in (change or {}).items():
        setattr(server.profiler, name, value)
    if change is None:
        server.profiler = None
    with connected(server) as deployment, pytest.raises(EngineError, match=told) as error:
        windows = ServerWindows(deployment, tmp_path / "traces", ServerPlan())
        windows.look()
        windows.rehearse()
    assert "\n" not in str(error.value)


def test_a_folder_that_is_none(server, tmp_path):
    with connected(server) as deployment, pytest.raises(UsageError, match="no folder"):
        ServerWindows(deployment, tmp_path / "absent", ServerPlan()).look()


@pytest.mark.parametrize("text", ["", "4", "4/60", "0/60s", "4/0s", "101/60s", "4/60m", "-1/60s"])
def test_plans_that_are_none(text):
    with pytest.raises(UsageError, match="STEPS/SECONDS"):
        ServerPlan.parse(text)


def test_a_plan():
    assert ServerPlan.parse("8/2.5s") == ServerPlan(steps=8, every_s=2.5)


def test_nothing_is_asked_of_the_server_before_it_is_allowed(server, tmp_path):
    with connected(server) as deployment:
        ServerWindows(deployment, tmp_path / "traces", ServerPlan()).look()
    assert server.profiler.starts == []
    assert httpx.get(f"{server.url}/openapi.json").status_code == 200


def verb(server, tmp_path, *more, answer=None):
    """Run the verb; `answer` is typed at a terminal."""
    command = ["attach", server.url, "--duration", "1s", "--kernels", tmp_path / "traces"]
    if answer is None:
        return ttscope(*command, "-o", tmp_path / "r", *more)
    ours, theirs = pty.openpty()
    os.write(ours, answer.encode())
    done = ttscope(*command, "-o", tmp_path / "r", *more, stdin=os.ttyname(theirs))
    os.close(ours)
    os.close(theirs)
    return done


@pytest.mark.slow
def test_it_asks_before_the_first_window(server, tmp_path):
    for answer in (None, "\n", "n\n"):
        done = verb(server, tmp_path, answer=answer)
        assert done.returncode == 2
        assert "--kernels" in done.stderr.splitlines()[-1]
        assert server.profiler.starts == []
    assert "Open them? [y/N]" in done.stderr
    assert not (tmp_path / "r").exists()
    assert verb(server, tmp_path, answer="y\n").returncode == 0
    assert len(server.profiler.starts) == 1  # the rehearsal; the first window comes later


@pytest.mark.slow
def test_yes_is_enough_without_a_terminal(server, tmp_path):
    assert verb(server, tmp_path, "--yes").returncode == 0
    assert len(server.profiler.starts) == 1


@pytest.mark.slow
def test_another_fault_is_one_line(server, tmp_path):
    server.profiler.front_end = True
    done = verb(server, tmp_path, "--yes")
    assert done.returncode == 1
    assert "ignore_frontend" in done.stderr
    assert done.stderr.count("\n") == 1
    done = verb(server, tmp_path, "--yes", "--kernel-windows", "4")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


class SGLangProfiler(Profiler):
    """What SGLang 0.5.23's routes do: a window of `num_steps`, and 500 to a stop behind its end."""

    def routes(self):
        return {"paths": {"/start_profile": {}}}

    def start(self, body):
        assert self.folder == Path(body["output_dir"])
        self.starts.append((time.monotonic(), body))
        self.open = 1
        if body["num_steps"] > 1:
            self.end()
        return 200

    def stop(self):
        if not self.open:
            return 500
        self.end()
        return 200

    def end(self):
        body, self.open = self.starts[-1][1], 0
        mark = {"ph": "X", "pid": 1, "tid": 1, "args": {}, "cat": "user_annotation"}
        name = "step[DECODE bs=4 g_sq=4 g_sqsq=4 g_sqsk=800 g_sk=800]"
        marks = [
            mark | {"name": name, "ts": 1000 * n, "dur": 900} for n in range(body["num_steps"])
        ]
        mm = {"ph": "X", "pid": 1, "tid": 1, "cat": "cpu_op", "name": "aten::mm", "args": {}}
        events = [*marks, mm | {"ts": 10, "dur": 300}]
        name = f"{body['profile_prefix']}-1795.5-TP-0.trace.json.gz"
        with gzip.open(self.folder / name, "wt") as file:
            json.dump({"traceEvents": events}, file)


def test_sglangs_windows_end_by_themselves(server, tmp_path, monkeypatch):
    server.as_sglang()
    server.profiler = SGLangProfiler(tmp_path / "traces")
    made = {"plan": ServerPlan(steps=4, every_s=0.4), "monkeypatch": monkeypatch}
    made["enough"] = lambda: len(server.profiler.starts) > 2
    recording, _ = run(tmp_path, server, seconds=0, **made)
    steps = [body["num_steps"] for _, body in server.profiler.starts]
    assert steps[:2] == [1, 4]
    assert not {body["with_stack"] for _, body in server.profiler.starts} - {False}
    kernels = recording.frame("kernels")
    assert kernels.filter(name="aten::mm")["count"].sum() == len(steps) - 1
    assert not list((tmp_path / "traces").iterdir())
    assert "drop" not in recording.frame("events")["kind"].to_list()
