"""OTLP over gRPC, which OpenTelemetry exporters speak by default; an extra.

One method of one service, taken as bytes, so that the same reader and the same token hold as for
HTTP. Who has no token is refused before its message is read. Calls beyond what is allowed at a time
are refused by gRPC itself, which also ends connections that grow old: senders open new ones.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from profiler.attach.receiver.http_listener import NO_TOKEN
from profiler.attach.receiver.receiver import Receiver, check_open
from profiler.doors.guard import connections_of
from traces.errors import EngineError, MissingDependencyError, install_command
from traces.live.otlp import protobuf_answer, read_protobuf

SERVICE, METHOD = "opentelemetry.proto.collector.trace.v1.TraceService", "Export"
PORT = 4317
MOST_BYTES = 4 << 20  # of a message, inflated or not, as gRPC has it by default
MOST_CALLS = 8  # at a time
_WORKERS = 4
_MOST_CONNECTIONS = 256
_OLD_MS, _GRACE_MS = 60_000, 10_000  # of a connection, and for the calls that are open then


class GrpcListener:
    """Gives spans to `receiver` from `start` to `close`.

    What cannot be read is answered INVALID_ARGUMENT, what does not fit now UNAVAILABLE, at which
    exporters send it again. Raises MissingDependencyError without grpcio, EngineError where it
    cannot listen, UsageError where others could send without the token.
    """

    def __init__(self, receiver: Receiver, host: str = "127.0.0.1", port: int = PORT) -> None:
        try:
            import grpc
        except ImportError:
            raise MissingDependencyError(
                f"--listen-grpc needs grpcio: {install_command('grpc')}"
            ) from None
        check_open(host, "--listen-grpc", receiver.spans_without_token)
        self._grpc, self._receiver = grpc, receiver
        self._server = grpc.server(
            ThreadPoolExecutor(_WORKERS, thread_name_prefix="ttscope-grpc"),
            options=[
                ("grpc.max_receive_message_length", MOST_BYTES),
                ("grpc.max_metadata_size", 16 << 10),
                ("grpc.max_concurrent_streams", MOST_CALLS),
                ("grpc.max_connection_age_ms", _OLD_MS),
                ("grpc.max_connection_age_grace_ms", _GRACE_MS),
                ("grpc.so_reuseport", 0),
                # Further ones are ended at once. A gRPC of before 1.66 does not know it.
                ("grpc.max_allowed_incoming_connections", connections_of(_MOST_CONNECTIONS)),
            ],
            maximum_concurrent_rpcs=MOST_CALLS,
        )
        self._server.add_generic_rpc_handlers((_handlers(grpc, receiver, self._export),))
        self.host = host
        where = f"[{host}]" if ":" in host else host
        try:
            self.port = int(self._server.add_insecure_port(f"{where}:{port}"))
        except RuntimeError:
            self.port = 0
        if not self.port:
            raise EngineError(
                f"--listen-grpc {host}:{port}: cannot listen there. Name another port"
            )

    def start(self) -> None:
        self._server.start()

    def close(self) -> None:
        """Stop; what has come can still be taken from the receiver."""
        self._server.stop(grace=0.5).wait(5.0)

    def _export(self, body: bytes, context: Any) -> bytes:
        codes = self._grpc.StatusCode
        with self._receiver.decoding:
            try:
                sent = read_protobuf(body)
            except (ValueError, OverflowError):
                self._receiver.refuse()
                context.abort(codes.INVALID_ARGUMENT, "not an OTLP trace request")
                raise  # abort has raised
        if not self._receiver.put_spans(sent):
            context.abort(codes.UNAVAILABLE, "no room now. Send it again")
        if sent.bad and not sent.spans:
            self._receiver.refuse()
            context.abort(codes.INVALID_ARGUMENT, "spans with numbers out of range or odd names")
        return protobuf_answer(sent)


def _handlers(grpc: Any, receiver: Receiver, export: Any) -> Any:
    """Return what answers calls: those without the token before their message is read."""

    def refuse(_: Any, context: Any) -> None:
        context.abort(grpc.StatusCode.UNAUTHENTICATED, NO_TOKEN)

    # Of a stream no message is read until somebody asks for one.
    stranger = grpc.stream_unary_rpc_method_handler(refuse)
    handler = grpc.unary_unary_rpc_method_handler(export)  # bytes in, bytes out

    class Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, call: Any) -> Any:
            if call.method != f"/{SERVICE}/{METHOD}":
                return None
            metadata = dict(call.invocation_metadata)
            if "origin" not in metadata and receiver.knows(
                metadata.get("authorization"), spans=True
            ):
                return handler
            receiver.refuse()
            return stranger

    return Handlers()
