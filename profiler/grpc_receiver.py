"""OTLP over gRPC, which exporters of vLLM speak unless told otherwise; an extra.

One method of one service, taken as bytes, so that the same reader and the same limits hold as for
HTTP. Calls beyond what is allowed at a time are refused by gRPC itself.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from profiler.receiver import MOST_BODY_BYTES, MOST_CONNECTIONS, Receiver
from traces.errors import EngineError, MissingDependencyError
from traces.extras import install_command
from traces.otlp import read_protobuf

SERVICE, METHOD = "opentelemetry.proto.collector.trace.v1.TraceService", "Export"
PORT = 4317
_WORKERS = 4


class GrpcListener:
    """Gives spans to `receiver` from `start` to `close`.

    What cannot be read is answered INVALID_ARGUMENT, what does not fit now UNAVAILABLE, at which
    exporters send it again. Raises MissingDependencyError without grpcio, EngineError where it
    cannot listen.
    """

    def __init__(self, receiver: Receiver, host: str = "127.0.0.1", port: int = PORT) -> None:
        try:
            import grpc
        except ImportError:
            raise MissingDependencyError(
                f"--listen-grpc needs grpcio: {install_command('grpc')}"
            ) from None
        self._grpc, self._receiver = grpc, receiver
        self._server = grpc.server(
            ThreadPoolExecutor(_WORKERS, thread_name_prefix="ttscope-grpc"),
            options=[
                ("grpc.max_receive_message_length", MOST_BODY_BYTES),
                ("grpc.so_reuseport", 0),
            ],
            maximum_concurrent_rpcs=MOST_CONNECTIONS,
        )
        export = grpc.unary_unary_rpc_method_handler(self._export)  # bytes in, bytes out
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {METHOD: export}),)
        )
        self.host = host
        where = f"[{host}]" if ":" in host else host
        try:
            self.port = int(self._server.add_insecure_port(f"{where}:{port}"))
        except RuntimeError:
            self.port = 0
        if not self.port:
            raise EngineError(
                f"--listen-grpc {host}:{port}: cannot listen there; name another port"
            )

    def start(self) -> None:
        """Start serving."""
        self._server.start()

    def close(self) -> None:
        """Stop; what has come can still be taken from the receiver."""
        self._server.stop(grace=0.5).wait(5.0)

    def _export(self, body: bytes, context: Any) -> bytes:
        codes = self._grpc.StatusCode
        try:
            found = read_protobuf(body)
        except (ValueError, OverflowError):
            self._receiver.refuse()
            context.abort(codes.INVALID_ARGUMENT, "not an OTLP trace request")
            raise  # abort has raised
        if not self._receiver.put_spans(found):
            context.abort(codes.UNAVAILABLE, "no room now; send it again")
        return b""
