"""The receiver: what it takes, what it refuses, and that nothing sent to it makes it grow."""

import contextlib
import gzip
import http.client
import json
import os
import random
import socket
import time
import zlib
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from benchmarks.made.spans import as_protobuf, request, span
from profiler.attach.receiver import http_listener
from profiler.attach.receiver import receiver as module
from profiler.attach.receiver.receiver import Receiver, parse_listen
from profiler.doors import guard
from profiler.plugin.batches import COLUMNS, STEPS_PATH, Batch, PluginRows
from profiler.plugin.shared_token import shared_token
from traces.errors import EngineError, UsageError
from traces.live.otlp import Received, protobuf_answer

TOKEN = f"Bearer {shared_token()}"
JSON, PROTOBUF = "application/json", "application/x-protobuf"


def post(receiver, body, kind=JSON, path="/v1/traces", connection=None, **headers):
    own = connection or http.client.HTTPConnection("127.0.0.1", receiver.port, timeout=10)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        own.request("POST", path, body, {"Content-Type": kind, "Authorization": TOKEN} | named)
        answer = own.getresponse()
        return answer.status, answer.read()
    finally:
        if connection is None:
            own.close()


def test_spans_in_each_form_are_taken_and_answered_in_kind(receiver):
    document = request(span(1), span(2))
    body = json.dumps(document).encode()
    assert post(receiver, body) == (200, b"{}")
    assert post(receiver, as_protobuf(document), PROTOBUF) == (200, b"")
    assert post(receiver, gzip.compress(body), Content_Encoding="gzip")[0] == 200
    assert len(receiver.take_spans()) == receiver.received == 6
    assert receiver.take_spans() == []


@pytest.mark.parametrize(
    ("body", "kind", "path", "headers", "status"),
    [
        (b"{", JSON, "/v1/traces", {}, 400),
        (b"\xff" * 9, PROTOBUF, "/v1/traces", {}, 400),
        (b"{}", "text/plain", "/v1/traces", {}, 415),
        (b"{}", "", "/v1/traces", {}, 415),
        (b"{}", JSON, "/v1/logs", {}, 404),
        (b"{}", JSON, "/v1/traces", {"Content_Encoding": "br"}, 415),
        (b"{}", JSON, "/v1/traces", {"Content_Encoding": "gzip"}, 400),
        (gzip.compress(b"{}", mtime=0) * 2, JSON, "/v1/traces", {"Content_Encoding": "gzip"}, 400),
        (gzip.compress(b"{}" * 99, mtime=0)[:-9], JSON, "/v1/traces", {"Content_Encoding": "gzip"},
         400),
        (b"{}", JSON, STEPS_PATH, {}, 400),
        (b"{}", PROTOBUF, STEPS_PATH, {}, 415),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused(receiver, body, kind, path, headers, status):
    assert post(receiver, body, kind, path, **headers)[0] == status
    assert receiver.refused == 1
    assert post(receiver, json.dumps(request(span(1))).encode())[0] == 200


def test_sizes_are_limited_before_and_after_inflation(receiver, monkeypatch):
    monkeypatch.setattr(http_listener, "MOST_BODY_BYTES", 100_000)
    monkeypatch.setattr(http_listener, "MOST_INFLATED_BYTES", 1_000_000)
    bomb = gzip.compress(b" " * 50_000_000)
    assert len(bomb) < 100_000
    assert post(receiver, bomb, Content_Encoding="gzip")[0] == 413
    assert raw(receiver, b"Content-Length: 100001\r\n").startswith(b"HTTP/1.1 413")
    assert raw(receiver, b"").startswith(b"HTTP/1.1 411")
    assert raw(receiver, b"Content-Length: -1\r\n").startswith(b"HTTP/1.1 411")


def raw(receiver, headers):
    with socket.create_connection(("127.0.0.1", receiver.port), timeout=10) as connection:
        start = b"POST /v1/traces HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(start + headers + b"\r\n")
        return connection.recv(1000)


def test_what_does_not_fit_is_sent_again_later(receiver, monkeypatch):
    monkeypatch.setattr(module, "MOST_WAITING", 3)
    body = json.dumps(request(span(1), span(2))).encode()
    assert post(receiver, body)[0] == 200
    assert post(receiver, body)[0] == 503
    receiver.take_spans()
    assert post(receiver, body)[0] == 200
    assert (receiver.overflowed, receiver.refused) == (1, 0)


def test_nothing_is_acknowledged_after_the_last_was_taken(receiver):
    body = json.dumps(request(span(1), span(2))).encode()
    assert post(receiver, body)[0] == 200
    receiver.end_taking()
    assert post(receiver, body)[0] == 503
    assert len(receiver.take_spans()) == 2
    assert receiver.take_spans() == []


def opened(receiver, sent=b""):
    made = socket.create_connection(("127.0.0.1", receiver.port), timeout=10)
    made.sendall(sent)
    return made


def ended(connection):
    """Wait until the other side has ended a connection."""
    connection.settimeout(10)
    try:
        while connection.recv(65536):
            pass
    except ConnectionError:
        pass
    connection.close()


HEAD = b"POST /v1/traces HTTP/1.1\r\nHost: localhost\r\nAuthorization: " + TOKEN.encode() + b"\r\n"
BODY = HEAD + b"Content-Type: application/json\r\nContent-Length: 8000000\r\n\r\n"


@pytest.mark.parametrize("sent", [b"", b"POST /v1/tr", HEAD, BODY, BODY + b"{" * 100_000])
def test_connections_that_keep_it_waiting_give_way(receiver, sent):
    body = json.dumps(request(span(1))).encode()
    held = [opened(receiver, sent) for _ in range(3 * http_listener.MOST_CONNECTIONS)]
    for _ in range(5):
        assert post(receiver, body)[0] == 200
    for each in held[: 2 * http_listener.MOST_CONNECTIONS]:  # the oldest
        ended(each)
    for each in held:
        each.close()


def test_a_connection_that_has_sent_something_good_stays(receiver):
    body = json.dumps(request(span(1))).encode()
    connection = http.client.HTTPConnection("127.0.0.1", receiver.port, timeout=10)
    assert post(receiver, body, connection=connection)[0] == 200
    own = connection.sock
    held = [opened(receiver) for _ in range(2 * http_listener.MOST_CONNECTIONS)]
    ended(held[0])
    assert post(receiver, body, connection=connection)[0] == 200
    assert connection.sock is own
    for each in [connection, *held]:
        each.close()


@pytest.mark.parametrize(
    ("name", "sent"), [("HEAD_S", b""), ("HEAD_S", b"POST /v1/tr"), ("BODY_S", BODY + b"{")]
)
def test_a_head_and_a_body_have_their_time_however_they_drip(receiver, monkeypatch, name, sent):
    monkeypatch.setattr(guard, name, 0.5)
    connection, begun = opened(receiver, sent), time.monotonic()
    with pytest.raises(OSError):
        while time.monotonic() < begun + 20:
            connection.sendall(b"x")
            time.sleep(0.05)
    assert 0.4 < time.monotonic() - begun < 20
    connection.close()


def test_a_head_is_limited(receiver):
    for sent in (
        b"POST /" + b"x" * 20_000,
        HEAD + b"X: " + b"x" * 20_000,
        HEAD + b"X: y\r\n" * 9_000,
    ):
        with opened(receiver) as connection:
            try:
                connection.sendall(sent)
            except ConnectionError:
                continue
            assert connection.recv(100)[:12] in {b"", b"HTTP/1.1 431"}


def sent_until_answered(receiver, body):
    """As exporters do: a connection that gave way to another is tried again."""
    for _ in range(20):
        with contextlib.suppress(ConnectionError, http.client.HTTPException):
            return post(receiver, body)[0]
        time.sleep(0.05)
    raise AssertionError("never answered")


def test_bodies_on_their_way_are_limited_together(receiver, monkeypatch):
    monkeypatch.setattr(receiver._server.guard, "held_bytes", 1_000_000)
    with contextlib.ExitStack() as closing:
        held = [opened(receiver, BODY + b"{" * 300_000) for _ in range(9)]
        for each in held:
            closing.enter_context(each)
        assert sent_until_answered(receiver, b"{}" + b" " * 700_000) == 200
        for each in held[:6]:
            ended(each)
        assert sent_until_answered(receiver, b" " * 1_100_000) == 503


def test_a_request_that_is_being_answered_gives_way_to_no_other(receiver, monkeypatch):
    monkeypatch.setattr(receiver._server.guard, "held_bytes", 1_000_000)
    respond, others = http_listener._Handler.send_response, []

    def slowly(self, *of):
        monkeypatch.setattr(http_listener._Handler, "send_response", respond)
        others.append(opened(receiver, BODY + b"{" * 700_000))
        time.sleep(0.5)
        respond(self, *of)

    monkeypatch.setattr(http_listener._Handler, "send_response", slowly)
    assert post(receiver, b"{}" + b" " * 700_000) == (200, b"{}")
    others[0].close()


def test_it_closes_at_once_whatever_is_open(receiver):
    held = [opened(receiver, sent) for sent in (b"", HEAD, BODY) * 10]
    begun = time.monotonic()
    receiver.close()
    for each in held:
        ended(each)
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize("path", ["/v1/traces", STEPS_PATH, "/elsewhere"])
@pytest.mark.parametrize(
    "told", ["", "Bearer", "Bearer no", "Basic x", TOKEN[:-1], TOKEN + "x", "\xe9"]
)
def test_without_the_token_nothing_is_taken(receiver, path, told):
    status, said = post(receiver, b"{}" * 1_000_000, path=path, Authorization=told)
    assert (status, receiver.strangers, receiver.refused) == (401, 1, 1)
    assert b"TTSCOPE_TOKEN" in said
    assert TOKEN.encode() not in said


def test_spans_but_no_steps_are_taken_without_the_token_where_asked():
    made = Receiver("127.0.0.1", 0, spans_without_token=True)
    made.start()
    try:
        assert post(made, json.dumps(request(span(1))).encode(), Authorization="")[0] == 200
        assert post(made, b"{}", path=STEPS_PATH, Authorization="")[0] == 401
    finally:
        made.close()
    for host in ("0.0.0.0", "::"):
        with pytest.raises(UsageError, match="others on the network reach it"):
            Receiver(host, 0, spans_without_token=True)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example:4318"}, 403),
        ({"Host": "192.168.1.1"}, 403),
        ({"Host": "["}, 403),
        ({"Host": ""}, 403),
        ({"Host": "localhost:99"}, 200),
        ({"Host": "LOCALHOST"}, 200),
        ({"Host": "[::1]:4318"}, 200),
        ({"Host": "127.0.0.2"}, 200),
    ],
)
def test_pages_of_a_browser_and_names_that_were_rebound_are_refused(receiver, headers, status):
    assert post(receiver, b"{}", **headers)[0] == status


def test_whoever_reaches_us_by_the_network_needs_the_token_by_whatever_name():
    made = Receiver("0.0.0.0", 0)
    made.start()
    try:
        assert post(made, b"{}", Host="gpu7:4318")[0] == 200
        assert post(made, b"{}", Host="gpu7:4318", Authorization="Bearer no")[0] == 401
    finally:
        made.close()


def test_lengths_that_are_told_twice_or_in_pieces_are_refused(receiver):
    for more in (
        b"Content-Length: 2\r\nContent-Length: 9\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n",
        b"Content-Length: " + b"9" * 5_000 + b"\r\n",
        b"Content-Length: +2\r\n",
    ):
        assert raw(receiver, more).startswith(b"HTTP/1.1 411")


def test_good_spans_are_kept_beside_bad_ones_which_are_counted(receiver):
    bad = span(2, gen_ai__usage__prompt_tokens=-1)
    partial = {"partialSuccess": {"rejectedSpans": "1"}}
    document = request(span(1), bad)
    status, said = post(receiver, json.dumps(document).encode())
    assert (status, json.loads(said)) == (200, partial)
    status, said = post(receiver, as_protobuf(document), PROTOBUF)
    answer = ExportTraceServiceResponse.FromString(said)
    assert (status, answer.partial_success.rejected_spans) == (200, 1)
    assert post(receiver, json.dumps(request(bad)).encode())[0] == 400
    assert (receiver.received, receiver.bad, receiver.refused) == (2, 3, 1)
    assert (
        protobuf_answer(Received(bad=70_000))
        == ExportTraceServiceResponse(
            partial_success={"rejected_spans": 70_000}
        ).SerializeToString()
    )


def test_plugins_and_their_rows_are_limited(receiver, monkeypatch):
    monkeypatch.setattr(module, "MOST_PLUGINS", 2)
    monkeypatch.setattr(module, "MOST_HELD", 3)

    def put(instance, rows):
        told = raw_steps(*[{"end": 1, "running": 1}] * rows)
        return receiver.put_batch(Batch(v=1, instance=instance, engine=0, columns=[], rows=told))

    assert [put("a", 2), put("b", 1), put("b", 1)] == [True, True, False]
    receiver.take_batches()
    assert [put("c", 1), put("a", 3)] == [False, True]


def memory_mb():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.slow
def test_thousands_of_malformed_bodies(receiver):
    good = json.dumps(request(*[span(n) for n in range(1, 21)])).encode()
    proto, draw = as_protobuf(request(*[span(n) for n in range(1, 21)])), random.Random(1)
    statuses, before = set(), None
    connection = http.client.HTTPConnection("127.0.0.1", receiver.port, timeout=10)
    for number in range(4_000):
        kind = (JSON, PROTOBUF)[number % 2]
        body = bytearray((good, proto)[number % 2])
        headers = {}
        if number % 4 < 2:
            body = body[: draw.randrange(1, len(body))]  # cut
            body[draw.randrange(len(body))] = 0xFF
        elif number % 4 == 2:
            body = bytearray(zlib.compress(bytes(body)))
            headers = {"Content_Encoding": "gzip"}
        else:
            body = bytearray(draw.randbytes(200)) + b"\xff\xff"
        statuses.add(post(receiver, bytes(body), kind, connection=connection, **headers)[0])
        receiver.take_spans()
        if number == 1_000:
            before = memory_mb()
    connection.close()
    assert statuses <= {400, 200}  # a cut protobuf can be a whole shorter one
    assert receiver.refused > 2_800
    assert memory_mb() - before < 10
    assert post(receiver, good)[0] == 200


def test_where_it_listens():
    assert parse_listen("4318") == ("127.0.0.1", 4318)
    assert parse_listen("0.0.0.0:4318") == ("0.0.0.0", 4318)
    assert parse_listen("[::1]:4318") == ("::1", 4318)
    for wrong in ("", "x", ":4318", "99999", "host:", "-1"):
        with pytest.raises(UsageError, match="--listen"):
            parse_listen(wrong)


def test_a_port_that_is_taken(receiver):
    with pytest.raises(EngineError, match="cannot listen there"):
        Receiver("127.0.0.1", receiver.port)


EMPTY = dict.fromkeys(COLUMNS[1:13], 0) | dict.fromkeys(COLUMNS[13:])


def raw_steps(*told):
    return [tuple((EMPTY | {"kv_usage": 0.0} | each)[name] for name in COLUMNS) for each in told]


def test_batches_of_steps_are_checked(receiver):
    batch = {"v": 1, "instance": "i", "engine": 0, "columns": COLUMNS}
    rows = raw_steps({"end": 5, "running": 1, "generated": 1})
    good = batch | {"rows": rows}
    assert post(receiver, json.dumps(good).encode(), path=STEPS_PATH)[0] == 200
    (taken,) = receiver.take_batches()
    assert taken.rows == rows
    for bad in (
        good | {"v": 2},
        good | {"columns": ["end"]},
        good | {"rows": [[1]]},
        good | {"rows": [["text", *rows[0][1:]]]},
        good | {"engine": None},
    ):
        assert post(receiver, json.dumps(bad).encode(), path=STEPS_PATH)[0] == 400


def test_rows_that_come_again_are_left_out_whatever_comes_first(receiver):
    rows = raw_steps(*({"end": end, "running": 1} for end in range(9)))

    def put(begin, end, **more):
        batch = Batch(v=1, engine=0, columns=[], rows=rows[begin:end], **{"instance": "i"} | more)
        assert receiver.put_batch(batch)
        return [row[0] for each in receiver.take_batches() for row in each.rows]

    assert put(0, 3, first=0) == [0, 1, 2]
    assert put(0, 5, first=0) == [3, 4]  # sent again, and more with it
    assert put(0, 3, first=0) == []  # the first try, of a thread that was slow
    assert put(7, 9, first=7) == [7, 8]
    assert put(0, 2, first=0, instance="j") == [0, 1]
    assert put(0, 2) == put(0, 2) == [0, 1]  # an older plugin does not count


def test_steps_from_a_front_end_without_details():
    ms = 1_000_000
    sent = raw_steps(
        {
            "end": 10 * ms, "running": 2, "first_tokens": 2, "computed": 30, "cached": 2,
            "prompts": 32, "generated": 2, "kv_usage": 0.5,
        },
        {"end": 14 * ms, "running": 2, "continued": 2, "generated": 2, "kv_usage": 0.5},
        {
            "end": 20 * ms, "running": 1, "continued": 2, "generated": 5, "drafted": [2, 2],
            "accepted": [2, 1], "finished": 1, "finished_context": 20,
        },
        {
            "end": 26 * ms, "running": 0, "continued": 1, "generated": 1, "finished": 1,
            "finished_context": 22,
        },
        {"end": 90 * ms, "running": 0},
        {
            "end": 99 * ms, "running": 1, "first_tokens": 1, "computed": 8, "prompts": 8,
            "generated": 1,
        },
    )  # fmt: skip
    rows = PluginRows(engine="e", usable_blocks=10, asynchronous=False).rows(sent[::-1])
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["interval_ns"] for row in rows] == [None, 4 * ms, 6 * ms, 6 * ms, None]
    assert {row["wall_ns"] for row in rows} == {None}
    assert {row["source"] for row in rows} == {"inferred"}
    assert rows[0]["prefill_tokens"] == 30
    assert rows[0]["kv_blocks"] == 5
    # 32 prompt tokens lie before the second step, which computes the 2 that were generated.
    assert [row["decode_kv_tokens"] for row in rows] == [0, 34, 40, 21, 0]
    assert rows[2]["decode_tokens"] == 6  # two requests and four drafts


def test_steps_with_details_are_measured_unless_scheduled_ahead():
    told = {
        "end": 5, "running": 3, "ctx_requests": 1, "ctx_tokens": 100, "gen_requests": 2,
        "gen_tokens": 2, "elapsed_ms": 1.5, "dummy": False, "generated": 2,
    }  # fmt: skip
    for asynchronous, wall in ((False, 1_500_000), (True, None), (None, None)):
        probe = PluginRows(engine="e", usable_blocks=None, asynchronous=asynchronous)
        (row,) = probe.rows(raw_steps(told))
        assert (row["wall_ns"], row["source"]) == (wall, "measured")
        assert (row["prefill_tokens"], row["decode_requests"]) == (100, 2)
        assert row["kv_blocks"] is None


def test_steps_of_several_front_ends_are_one_sequence():
    ms = 1_000_000
    scheduler = {"running": 4, "waiting": 1, "kv_usage": 0.5}
    alone = {"running": None, "waiting": None, "kv_usage": None}
    steps = [{"end": n * 10 * ms, "generated": 2, "continued": 2, **scheduler} for n in range(1, 6)]
    parts = [
        {"end": n * 10 * ms + late * ms, "generated": 1, "continued": 1, "finished": 1, **alone}
        for n, late in ((1, 1), (2, -2), (3, 3), (5, 1))
    ]
    probe = PluginRows(engine="e", usable_blocks=10, asynchronous=False)
    # One front end sends steps 1, 2, 4, the other 3 and 5; the last ones come later.
    early = probe.rows(raw_steps(steps[0], steps[3], *parts[:2]), until=25 * ms)
    assert [row["end"] for row in early] == [10 * ms]
    late = probe.rows(raw_steps(steps[1], steps[2], parts[2]), until=35 * ms)
    last = probe.rows(raw_steps(steps[4], parts[3]))
    rows = early + late + last
    assert [row["end"] for row in rows] == [each["end"] for each in steps]
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["interval_ns"] for row in rows[1:]] == [10 * ms] * 4
    assert sum(row["decode_tokens"] for row in rows) == 5 * 2 + 4
    assert sum(row["finished"] for row in rows) == 4
    assert {row["running"] for row in rows} == {4}
