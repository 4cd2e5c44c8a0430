"""Servers on loopback for tests: of HTTP, and of OTLP over gRPC."""

import gzip
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # samples connect at once

    def handle_error(self, *_):
        pass


@contextmanager
def serving(handler):
    """Serve by a handler of requests; gives the URL."""
    handler.log_message = lambda *_: None
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def taking(path, accept):
    """A collector over OTLP/HTTP; gives the URL. `accept` takes bodies for a path, and headers."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            if self.path == path:
                accept(body, self.headers)
            self.send_response(200)
            self.end_headers()

    with serving(Handler) as url:
        yield url


@contextmanager
def collecting(signal, export, request, response):
    """A collector over gRPC, of "trace" or "metrics"; gives the URL. Skips where there is no gRPC.

    `export` takes each message, a `request`, and its metadata, and a `response` is the answer.
    """
    grpc = pytest.importorskip("grpc")
    pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc")

    def answer(message, context):
        export(message, context.invocation_metadata())
        return response()

    name = f"opentelemetry.proto.collector.{signal}.v1.{signal.title()}Service"
    handler = grpc.unary_unary_rpc_method_handler(
        answer,
        request_deserializer=request.FromString,
        response_serializer=response.SerializeToString,
    )
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(name, {"Export": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop(None)
