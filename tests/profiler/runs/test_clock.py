"""The wall clock jumps in the middle: nothing that was measured follows it."""

import threading
import time

import pytest

from benchmarks.made.stub import StubEngine
from profiler.attach.deployment import Deployment
from profiler.attach.watch import watch
from profiler.engines.server.access import Access
from profiler.runs.record import record
from tests.profiler.runs.test_record import private_workload, voting
from traces.clock import ClockWatch, now_ns
from traces.live.watched import watched_engines
from traces.recording.reader import Recording
from traces.schema.tts.policy import Policy
from traces.summary.run import summarise

S = 10**9
JUMPS = pytest.mark.parametrize(
    ("seconds", "told"), [(-3600, "3,600.0 s back"), (60, "60.0 s ahead")]
)


@pytest.fixture
def wall(monkeypatch):
    """Gives a function that sets the wall clock forward by some seconds, for this process."""
    ahead, read = [0], time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: read() + ahead[0])
    monkeypatch.setattr(time, "time", lambda: (read() + ahead[0]) / 1e9)

    def jump(seconds):
        ahead[0] += round(seconds * S)

    return jump


def jumps(recording):
    return recording.frame("events").filter(kind="clock")["detail"].to_list()


@pytest.mark.slow
@JUMPS
def test_a_jump_changes_no_latency_and_no_timeout_of_a_run(tmp_path, wall, seconds, told):
    engine = StubEngine(answers=voting("a", "b"))
    policy = Policy(method="majority", n=2, temperature=0.8, max_tokens=50)
    done = []

    def progress(count, total):
        done.append(count)
        if count == 30 and done.count(30) == 1:
            wall(seconds)

    begun = time.monotonic()
    path = record(
        private_workload(60), policy, engine, tmp_path / "r", concurrency=8, timeout_s=30,
        progress=progress,
    )  # fmt: skip
    took_s = time.monotonic() - begun
    recording = Recording.open(path)
    problems, samples = recording.problems, recording.samples
    assert problems["decided_at"].null_count() == 0
    assert not problems["timed_out"].fill_null(False).any()
    for rows in (problems, samples):
        lasted = (rows["end"] - rows["arrival"]) / 1e9
        assert lasted.min() >= 0
        assert lasted.max() <= took_s
    assert (problems["end"].max() - problems["arrival"].min()) / 1e9 <= took_s
    (detail,) = jumps(recording)
    assert told in detail
    (run,) = summarise(recording)
    assert detail in run.notes
    assert 0 <= run.latency_s["mean"].value <= took_s


@JUMPS
def test_a_jump_changes_no_rate_of_an_attach(server, tmp_path, wall, seconds, told):
    deployment = Deployment([Access.of(server.url, None)], period_s=0.1)
    deployment.connect()
    stop, polls = threading.Event(), []
    take = deployment.replicas[0].scraper._on_page

    def on_page(rows):
        take(rows)
        polls.append(rows["time"][0])
        server.scale += 0.1
        if len(polls) == 5:
            wall(seconds)
        if len(polls) == 15:
            stop.set()

    deployment.replicas[0].scraper._on_page = on_page
    begun = time.monotonic()
    path = watch(deployment, tmp_path / "r", stop=stop)
    took_s = time.monotonic() - begun
    recording = Recording.open(path)
    (watched,) = watched_engines(recording)
    assert 1.0 <= watched.numbers.seconds <= took_s
    assert (watched.window.times[1:] > watched.window.times[:-1]).all()
    assert watched.numbers.resets == 0
    assert watched.events["clock"] == 1
    (detail,) = jumps(recording)
    assert told in detail


def test_each_jump_is_noted_once_and_a_clock_that_is_steered_never(wall):
    watch = ClockWatch()
    assert watch.drain() == []
    for _ in range(20):
        wall(0.1)  # 2 s in all, as a time server steers
        assert watch.drain() == []
    wall(5)
    (row,) = watch.drain()
    assert row["kind"] == "clock"
    assert abs(row["time"] - now_ns()) < S
    assert watch.drain() == []
    wall(-5)
    assert "5.0 s back" in watch.drain()[0]["detail"]


def test_the_clock_is_the_walls_and_goes_on_without_it(wall):
    before = time.time_ns()
    assert before - S < now_ns() <= time.time_ns()
    wall(3600)
    assert now_ns() < before + 60 * S
