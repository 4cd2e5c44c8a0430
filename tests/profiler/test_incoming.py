"""What a receiver takes in becomes rows of the right engine, and all of it."""

import json
import threading
import time
from contextlib import ExitStack

import pytest

from profiler.access import Access
from profiler.attach import watch
from profiler.deployment import Deployment
from profiler.incoming import Incoming
from profiler.plugin_steps import Batch
from profiler.receiver import Receiver
from tests.profiler.metrics_server import metrics_server
from tests.profiler.test_receiver import raw_steps
from tests.traces.test_otlp import request, span
from traces.otlp import read_json
from traces.recording import Recording


@pytest.fixture
def receiver():
    made = Receiver("127.0.0.1", 0)
    made.start()
    yield made
    made.close()


def batch(*rows, instance="i", **more):
    return Batch(v=1, instance=instance, engine=0, columns=[], rows=raw_steps(*rows), **more)


def watched(folder, receiver, *starts, during, **options):
    """Watch servers that began at `starts` for a second; `during` gets their URLs."""
    with ExitStack() as stack:
        servers = [stack.enter_context(metrics_server()) for _ in starts]
        for server, start in zip(servers, starts, strict=True):
            server.started = start
        deployment = Deployment([Access.of(each.url) for each in servers], period_s=0.2)
        deployment.connect()
        incoming, stop = Incoming(receiver, deployment, **options), threading.Event()
        threading.Timer(0.5, during, [[each.url for each in servers]]).start()
        threading.Timer(1.0, stop.set).start()
        path = watch(deployment, folder, stop=stop, probes=[incoming.watched])
    recording = Recording.open(path)
    engines = recording.manifest.engines
    return recording, {dict(each.other).get("url"): key for key, each in engines.items()}


def test_a_plugin_belongs_to_the_server_that_began_with_it_or_listens_there(receiver, tmp_path):
    step, now = {"running": 1, "generated": 1}, time.time_ns()

    def send(urls):
        ports = [int(url.rpartition(":")[2]) for url in urls]
        receiver.put_batch(batch(step | {"end": now}, instance="a", process_start_s=1.7e9))
        # Two front ends, which do not tell when they began; the second saw other requests.
        other = step | {"end": now + 1, "finished": 2}
        receiver.put_batch(batch(other, instance="b", ports=[1, ports[1]]))
        part = {"end": now + 2, "generated": 3, "finished": 1}
        part |= {"running": None, "waiting": None, "kv_usage": None}
        receiver.put_batch(batch(part, instance="c", ports=[ports[1]]))
        receiver.put_batch(batch(step | {"end": now + 9}, instance="d"))  # of neither

    recording, by_url = watched(tmp_path / "r", receiver, "1.7e+09", "nan", during=send)
    rows = {row["end"]: row for row in recording.steps.to_dicts()}
    keys = [each for url, each in by_url.items() if url is not None]
    assert rows[now]["engine"] in keys
    assert rows[now + 1]["engine"] in keys
    assert rows[now]["engine"] != rows[now + 1]["engine"]
    assert rows[now + 1]["finished"] == 3
    assert rows[now + 9]["engine"] not in keys
    assert len(rows) == 3


@pytest.mark.parametrize("start", [1.7e9, 1.7e9 + 0.01, None])
def test_a_plugin_of_a_server_that_was_started_at_the_same_moment_is_not_taken_in(
    receiver, tmp_path, start
):
    step, now = {"running": 1, "generated": 1}, time.time_ns()

    def send(urls):
        port = int(urls[0].rpartition(":")[2])
        other = batch(step | {"end": now - 10**9}, instance="b", process_start_s=start, ports=[1])
        own = batch(step | {"end": now}, instance="a", process_start_s=1.7e9, ports=[port])
        receiver.batches.extend([other, own])  # at once, the other's first

    recording, _ = watched(tmp_path / "r", receiver, "1.7e+09", during=send)
    engines = recording.manifest.engines.items()
    (own,) = (key for key, each in engines if "instance" not in dict(each.other))
    assert recording.steps.filter(engine=own)["end"].to_list() == [now]
    assert recording.steps.height == 2


def test_the_last_steps_are_waited_for_where_a_plugin_speaks(receiver, tmp_path):
    step, end = {"running": 1, "generated": 1}, time.time_ns()

    def send(_):
        receiver.put_batch(batch(step | {"end": end}))
        time.sleep(1.2)  # the watch has ended
        receiver.put_batch(batch(step | {"end": end + 1}))

    recording, _ = watched(tmp_path / "r", receiver, "1.7e+09", during=send)
    assert recording.steps.height == 2


def test_spans_of_our_own_requests_are_left_out(receiver, tmp_path):
    bodies = [json.dumps(request(span(n, trace=trace))) for n, trace in ((1, "aa"), (2, "bb"))]

    def send(_):
        for body in bodies:
            receiver.put_spans(read_json(body.encode()))

    recording, _ = watched(tmp_path / "r", receiver, "1.7e+09", during=send, own_traces={"aa" * 16})
    assert recording.problems["trace_id"].to_list() == ["bb" * 16]
    assert recording.samples.height == 1
