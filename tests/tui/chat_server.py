"""A server that answers chats after a while, with the /metrics page of a vLLM server."""

import json
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

from benchmarks.servers.metrics_server import Metrics
from tests.loopback import serving

TOKENS = ("so", "</think>", "12")


@contextmanager
def chat_server(*, token_s=0.002, hold=lambda: None):
    """Serve on loopback, a token every `token_s` once `hold` has returned; gives the URL."""
    metrics = Metrics()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            pages = {
                "/metrics": metrics.page(),
                "/v1/models": '{"data": [{"id": "demo-s", "max_model_len": 1024}]}',
                "/version": '{"version": "0.32.0"}',
            }
            text = pages.get(self.path)
            self._begin(404 if text is None else 200)
            self._send(text or "{}")

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            if self.path != "/v1/chat/completions":
                self._begin(404)
                return
            hold()
            self._begin(200)
            for count, token in enumerate(TOKENS, 1):
                time.sleep(token_s)
                last = count == len(TOKENS)
                choice = {"delta": {"content": token}, "finish_reason": "stop" if last else None}
                usage = {"prompt_tokens": 9, "completion_tokens": count}
                self._send(f"data: {json.dumps({'choices': [choice], 'usage': usage})}\n\n")
            self._send("data: [DONE]\n\n")

        def _begin(self, status):
            self.send_response(status)
            self.end_headers()

        def _send(self, text):
            try:
                self.wfile.write(text.encode())
                self.wfile.flush()
            except OSError:  # the client has left
                self.close_connection = True

    with serving(Handler) as url:
        yield url
