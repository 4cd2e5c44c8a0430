"""`attach --fpm`: the messages of an engine's ZMQ stream become steps, whatever comes there."""

import json
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import pytest
import zmq

from benchmarks.servers.clients import until
from benchmarks.servers.metrics_server import metrics_server
from profiler.attach.attachment import attach_to, attachment_of
from profiler.attach.forward_passes import PassReceiver, check_endpoint
from tests.profiler.watching import watch_while
from tests.traces.forward_pass.passes import passed
from traces.errors import MissingDependencyError, RecordingError, UsageError
from traces.live.watched import watched_engines
from traces.recording.reader import Recording
from tui.options import Watch

SGLANG = Path(__file__).parents[2] / "data" / "live" / "fpm_sglang_0.5.23.msgpack"
MESSAGES = msgspec.msgpack.decode(SGLANG.read_bytes())
BUSY = [m for m in map(msgspec.msgpack.decode, MESSAGES) if m["wall_time"]]


@contextmanager
def publisher():
    """Give `send(messages, first)` of a publisher, and where it publishes."""
    context = zmq.Context()
    socket = context.socket(zmq.XPUB)  # a PUB that tells when somebody has subscribed
    socket.setsockopt(zmq.LINGER, 0)
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    subscribed = False

    def send(messages, first=0):
        nonlocal subscribed
        if not subscribed:
            assert socket.poll(10_000)
            socket.recv()
            subscribed = True
        for number, payload in enumerate(messages, first):
            frames = (
                payload if isinstance(payload, list) else [b"", number.to_bytes(8, "big"), payload]
            )
            socket.send_multipart(frames)

    try:
        yield send, f"tcp://127.0.0.1:{port}"
    finally:
        socket.close()
        context.term()


def encoded(records):
    return [msgspec.msgpack.encode(each) for each in records]


def kept(folder, table, count):
    """Whether a recording that is being made has so many rows."""
    try:
        return Recording.open(folder).rows(table) >= count
    except RecordingError:  # it is begun
        return False


def attached(folder, server, endpoints, act, *, steps=0, **options):
    """Attach until `act` has returned and so many steps are kept."""
    given = vars(Watch(urls=[server.url])) | {"fpm": endpoints, "period": "0.1s", **options}

    def until_kept():
        act()
        until(lambda: kept(folder, "steps", steps) and kept(folder, "scrapes", 1))

    with ExitStack() as stack:
        found = attach_to(stack, attachment_of(given), may_open=lambda _: True, say=print)
        return watch_while(until_kept, found.deployment, folder, probes=found.probes)


def test_sglangs_messages_become_steps(tmp_path, server):
    with publisher() as (send, endpoint):
        made = {"act": lambda: send(MESSAGES), "steps": len(BUSY) - 1}
        recording = attached(tmp_path / "rec", server, [endpoint], **made)
    steps = recording.steps
    assert steps.height == len(BUSY)
    assert steps["wall_ns"].to_list() == [round(m["wall_time"] * 1e9) for m in BUSY]
    assert set(steps["engine"]) <= set(recording.manifest.engines)
    assert steps["end"].is_sorted()
    assert not recording.manifest.dropped
    details = recording.frame("events").filter(kind="note")["detail"].to_list()
    assert any("time of a step" in each for each in details)


def test_what_has_come_when_the_watch_ends_is_taken(monkeypatch):
    """A thread that takes so many a second is behind, and takes the rest at the end."""
    monkeypatch.setattr("profiler.attach.forward_passes._AT_ONCE", 1)
    monkeypatch.setattr("profiler.attach.forward_passes._PAUSE_S", 3.0)
    with publisher() as (send, endpoint):
        receiver = PassReceiver([endpoint])
        receiver.start()
        send(MESSAGES)
        until(lambda: receiver.waiting)
        time.sleep(0.2)  # until the others are here too
        assert len(receiver.waiting) < len(MESSAGES)
        receiver.close()
    assert len(receiver.take()) == len(MESSAGES)


def test_the_config_of_the_served_model_goes_with_them(tmp_path, server):
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32_000}
    config |= {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4}
    config |= {"num_attention_heads": 8, "num_key_value_heads": 4, "torch_dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with publisher() as (send, endpoint):
        made = {"act": lambda: send(MESSAGES), "steps": len(BUSY) - 1}
        made["model_config"] = tmp_path / "config.json"
        recording = attached(tmp_path / "rec", server, [endpoint], **made)
    ((name, facts),) = recording.manifest.models.items()
    assert {each.model for each in recording.manifest.engines.values()} == {name}
    assert (facts.name, facts.num_hidden_layers) == (name, 4)


def test_gaps_count_as_lost_and_what_is_no_record_is_refused(tmp_path, server):
    bad = [
        [b"only one frame"],
        [b"", b"short", MESSAGES[0]],
        [b"", (3).to_bytes(8, "big"), b"\xc1"],
        *encoded([passed(1, version=2), passed(1, wall_time=float("nan"))]),
        [b"", b"\xff" * 8, encoded([passed(5, decodes=1)])[0]],
    ]

    def act():
        send(encoded([passed(n, decodes=1) for n in range(10)]))
        send(bad, first=10)
        send(encoded([passed(n, decodes=1) for n in range(20, 30)]), first=20)

    with publisher() as (send, endpoint):
        recording = attached(tmp_path / "rec", server, [endpoint], act, steps=20)
    assert recording.steps.height >= 20
    assert recording.manifest.dropped["steps"] >= 4
    told = "\n".join(recording.frame("events").filter(kind="drop")["detail"])
    assert "schema version 2" in told and "not msgpack" in told and "topic, sequence" in told


def test_ranks_are_engines_and_a_silent_endpoint_is_named(tmp_path, server):
    ranks = encoded([passed(n, decodes=1, dp_rank=rank) for n in range(5) for rank in (0, 1)])
    with publisher() as (send, endpoint), publisher() as (_, silent):

        def act():
            send(ranks[::2])
            send(ranks[1::2])

        recording = attached(tmp_path / "rec", server, [endpoint, silent], act, steps=8)
    assert recording.steps["engine"].n_unique() == 2
    assert set(recording.steps["engine"]) <= set(recording.manifest.engines)
    told = watched_engines(recording)[0].losses
    assert any(silent in each and "nothing came" in each for each in told)


def test_a_flood_is_bounded_and_counted(tmp_path):
    payload = encoded([passed(0, decodes=1)])[0]
    with publisher() as (send, endpoint):
        receiver = PassReceiver([endpoint])
        receiver.start()
        try:
            send([payload] * 30_000)
            until(lambda: len(receiver.waiting) > 1_000)
            assert len(receiver.waiting) <= 20_000
            send([b"x" * 100_000], first=30_000)  # ends the connection, not the receiver
        finally:
            receiver.close()
    numbers = [each.record.counter_id for each in receiver.take()]
    assert numbers == sorted(numbers)


def test_a_publisher_that_is_not_there_holds_up_nothing(tmp_path, server):
    recording = attached(tmp_path / "rec", server, ["tcp://127.0.0.1:9"], lambda: None)
    assert recording.complete
    assert recording.rows("scrapes") > 0


@pytest.mark.parametrize(
    "text", ["tcp://*:20380", "tcp://host", "tcp://h:99999", "http://h:1", "ipc://x", "20380", ""]
)
def test_endpoints_that_are_none(text):
    with pytest.raises(UsageError, match="tcp://HOST:PORT"):
        check_endpoint(text)


def test_endpoints_that_are_some():
    for text in ("tcp://10.0.0.3:20380", "tcp://[::1]:1", "ipc:///tmp/tmpab12.0"):
        assert check_endpoint(text) == text


def test_without_pyzmq_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "zmq", None)
    with pytest.raises(MissingDependencyError, match="--fpm needs pyzmq.*pip install"):
        PassReceiver(["tcp://127.0.0.1:9"])


def test_which_server_an_endpoint_is_of_must_be_clear(tmp_path, server):
    with metrics_server() as other, publisher() as (_, endpoint):
        given = vars(Watch(urls=[server.url, other.url])) | {"fpm": [endpoint]}
        with ExitStack() as stack, pytest.raises(UsageError, match="one for each URL"):
            attach_to(stack, attachment_of(given), may_open=lambda _: True, say=print)
