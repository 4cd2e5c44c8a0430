"""Spans over gRPC: taken as over HTTP, and refused where they are none."""

import gzip
import random
import socket
from contextlib import ExitStack, suppress
from functools import partial
from urllib.parse import quote

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from benchmarks.made.spans import as_protobuf, request, span
from profiler.attach.receiver import grpc_listener as grpc_receiver
from profiler.attach.receiver import receiver as module
from profiler.attach.receiver.grpc_listener import METHOD, SERVICE, GrpcListener
from profiler.attach.receiver.receiver import Receiver
from tests.profiler.attach.receiver.test_receiver import TOKEN, memory_mb
from traces.errors import EngineError, MissingDependencyError, UsageError

grpc = pytest.importorskip("grpc")
ORIGIN = ("origin", "https://evil.example")


@pytest.fixture
def listening():
    receiver = Receiver("127.0.0.1", 0)
    listener = GrpcListener(receiver, "127.0.0.1", 0)
    listener.start()
    with grpc.insecure_channel(f"127.0.0.1:{listener.port}") as channel:
        call = channel.unary_unary(f"/{SERVICE}/{METHOD}")
        yield receiver, partial(call, metadata=(("authorization", TOKEN),)), listener
    listener.close()
    receiver.close()


def refusal(export, body, **more):
    with pytest.raises(grpc.RpcError) as told:
        export(body, timeout=20, **more)
    return told.value.code().name


def test_spans_are_taken(listening):
    receiver, export, _ = listening
    body = as_protobuf(request(span(1), span(2)))
    assert export(body, timeout=20) == b""
    assert export(body, timeout=20, compression=grpc.Compression.Gzip) == b""
    assert len(receiver.take_spans()) == receiver.received == 4


def test_as_an_exporter_of_opentelemetry_sends_them(listening, monkeypatch):
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    exporters = pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc.trace_exporter")
    receiver, _, listener = listening
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"authorization={quote(TOKEN)}")
    exporter = exporters.OTLPSpanExporter(f"http://127.0.0.1:{listener.port}", insecure=True)
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.get_tracer("x").start_as_current_span("llm_request") as one:
        one.set_attribute("gen_ai.usage.prompt_tokens", 12)
    provider.shutdown()
    (taken,) = receiver.take_spans()
    assert taken.values["gen_ai.usage.prompt_tokens"] == 12


def test_what_is_none_is_refused_and_what_does_not_fit_sent_again(listening, monkeypatch):
    receiver, export, _ = listening
    assert refusal(export, b"\xff" * 9) == "INVALID_ARGUMENT"
    assert receiver.refused == 1
    monkeypatch.setattr(module, "MOST_WAITING", 1)
    assert refusal(export, as_protobuf(request(span(1), span(2)))) == "UNAVAILABLE"
    assert receiver.overflowed == 1


def test_a_body_too_large_is_refused_before_and_after_inflation(listening):
    _, export, _ = listening
    bomb = b"\x00" * (grpc_receiver.MOST_BYTES + 1)
    assert len(gzip.compress(bomb)) < 10_000
    assert refusal(export, bomb) == "RESOURCE_EXHAUSTED"
    assert refusal(export, bomb, compression=grpc.Compression.Gzip) == "RESOURCE_EXHAUSTED"
    assert export(as_protobuf(request(span(1))), timeout=20) == b""


@pytest.mark.slow
def test_malformed_bodies_leave_it_serving_in_flat_memory(listening):
    receiver, export, _ = listening
    good, draw = as_protobuf(request(*[span(n) for n in range(1, 21)])), random.Random(1)
    before = None
    for number in range(2_000):
        body = bytearray(good[: draw.randrange(1, len(good))])
        body[draw.randrange(len(body))] = 0xFF
        try:
            export(bytes(body), timeout=20)
        except grpc.RpcError as error:
            assert error.code().name == "INVALID_ARGUMENT"
        receiver.take_spans()
        if number == 500:
            before = memory_mb()
    assert receiver.refused > 1_000
    assert memory_mb() - before < 20
    assert export(good, timeout=20) == b""


def test_without_the_token_a_message_is_not_even_read(listening):
    receiver, export, _ = listening
    body = as_protobuf(request(span(1)))
    for told in ((), (("authorization", "Bearer no"),), (*export.keywords["metadata"], ORIGIN)):
        assert refusal(export, body, metadata=told) == "UNAUTHENTICATED"
        with pytest.raises(grpc.RpcError):
            export(b"x" * 3_000_000, timeout=20, metadata=told)
    assert (receiver.received, receiver.refused, receiver.strangers) == (0, 6, 4)


def test_connections_are_limited(monkeypatch):
    monkeypatch.setattr(grpc_receiver, "_MOST_CONNECTIONS", 4)
    receiver = Receiver("127.0.0.1", 0)
    listener = GrpcListener(receiver, "127.0.0.1", 0)
    listener.start()
    with ExitStack() as stack:
        stack.callback(receiver.close)
        stack.callback(listener.close)
        held = [
            stack.enter_context(socket.create_connection(("127.0.0.1", listener.port), timeout=20))
            for _ in range(12)
        ]
        ended = 0
        for each in held[4:]:
            with suppress(ConnectionError):
                each.settimeout(20)
                while each.recv(100):
                    pass
            ended += 1
        assert ended == 8


def test_a_bad_span_is_counted_and_the_good_beside_it_kept(listening):
    receiver, export, _ = listening
    bad = span(2, gen_ai__usage__prompt_tokens=-1)
    answer = export(as_protobuf(request(span(1), bad)), timeout=20)
    assert ExportTraceServiceResponse.FromString(answer).partial_success.rejected_spans == 1
    assert refusal(export, as_protobuf(request(bad))) == "INVALID_ARGUMENT"
    assert (receiver.received, receiver.bad, receiver.refused) == (1, 2, 1)


def test_where_others_could_send_without_the_token():
    receiver = Receiver("127.0.0.1", 0, spans_without_token=True)
    try:
        with pytest.raises(UsageError, match="--listen-grpc 0.0.0.0: others on the network"):
            GrpcListener(receiver, "0.0.0.0", 0)
        listener = GrpcListener(receiver, "127.0.0.1", 0)
        listener.start()
        with grpc.insecure_channel(f"127.0.0.1:{listener.port}") as channel:
            export = channel.unary_unary(f"/{SERVICE}/{METHOD}")
            assert export(as_protobuf(request(span(1))), timeout=20) == b""
        listener.close()
    finally:
        receiver.close()


def test_a_port_that_is_taken(listening):
    with pytest.raises(EngineError, match="cannot listen there"):
        GrpcListener(listening[0], "127.0.0.1", listening[2].port)


def test_without_grpcio(listening, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "grpc", None)
    with pytest.raises(MissingDependencyError, match="needs grpcio: .* -m pip install"):
        GrpcListener(listening[0], "127.0.0.1", 0)
