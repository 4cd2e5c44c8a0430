"""A server that speaks as vLLM does at its edges: a recorded /metrics page that can be moved."""

import json
import re
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

RECORDED = Path(__file__).parents[2] / "tests" / "data" / "live" / "metrics.txt"
SGLANG = RECORDED.parent / "metrics_sglang_0.5.23.txt"
CUMULATIVE = re.compile(
    r"^((?:(?:vllm|sglang|ray_vllm)[:_])?\w+_(?:total|count|sum|bucket)(?:{.*})?) (\S+)$"
)


class Metrics:
    """What the stub answers with: counters are `scale` times the recorded ones.

    `gauges` replaces values by the beginning of their lines; `status` and `hang_s` break it.
    `answers` has other bodies by path, None for one that is not there; `metrics` is the page's.
    """

    def __init__(self):
        self.answers, self.metrics, self.software = {}, "/metrics", "uvicorn"
        self.scale, self.gauges, self.started = 1.0, {}, "1.7e+09"
        self.turns = iter(())  # of servers behind one URL: `started` and `scale` of each page
        self.status, self.hang_s, self.body = 200, 0.0, None
        self.gone = False  # connections are closed without an answer
        self.engines, self.model, self.key = ("0",), "demo-s", None
        self.asked = []
        self.profiler = None  # with `routes`, `start` and `stop`, as of vLLM's profiler
        self.lines = RECORDED.read_text().splitlines()

    def as_sglang(self, info=None):
        """Answer as SGLang 0.5.23 does."""
        card = {"id": self.model, "owned_by": "sglang", "root": self.model, "max_model_len": 1024}
        self.answers |= {
            "/version": None,
            "/v1/models": json.dumps({"data": [card]}),
            "/server_info": json.dumps({"version": "0.5.23", "frontend": "python"} | (info or {})),
        }
        self.lines = SGLANG.read_text().splitlines()
        return self

    def page(self):
        if self.body is not None:
            return self.body
        self.started, self.scale = next(self.turns, (self.started, self.scale))
        lines = [f"process_start_time_seconds {self.started}"]
        for line in self.lines:
            if line.startswith(("process_", "#")):
                continue
            head, _, value = line.rpartition(" ")
            if CUMULATIVE.match(line):
                value = float(value) * self.scale
            for gauge, reading in self.gauges.items():
                value = reading if head.startswith(gauge) else value
            told = f"{head} {value}"
            lines += [told.replace('engine="0"', f'engine="{name}"') for name in self.engines]
        return "\n".join(lines) + "\n"


@contextmanager
def metrics_server(tls=None, at=("127.0.0.1", 0)):
    """Serve a `Metrics`, over https with an ssl context; gives it with its `url`."""
    state = Metrics()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def version_string(self):
            return state.software

        def do_GET(self):
            if state.gone:
                self.close_connection = True
                return
            state.asked.append((self.path, dict(self.headers), time.monotonic()))
            if self.path == state.metrics and state.hang_s:
                time.sleep(state.hang_s)
            status, text = 200, "{}"
            if self.path in state.answers:
                text = state.answers[self.path]
                status, text = (404, "") if text is None else (200, text)
            elif self.path == state.metrics:
                status, text = state.status, state.page()
            elif self.path == "/v1/models":
                text = f'{{"data": [{{"id": "{state.model}", "max_model_len": 1024}}]}}'
                if state.key and self.headers.get("Authorization") != f"Bearer {state.key}":
                    status, text = 401, '{"error": "the key is wrong"}'
            elif self.path == "/version":
                text = '{"version": "0.32.0"}'
            elif self.path == "/openapi.json" and state.profiler is not None:
                text = json.dumps(state.profiler.routes())
            else:
                status = 404
            self.answer(status, text)

        def do_POST(self):
            told = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/start_profile":
                self.answer(state.profiler.start(json.loads(told)), "")
            else:
                self.answer(state.profiler.stop(), "")

        def answer(self, status, text):
            body = text.encode()
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except OSError:
                pass

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(at, Handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    scheme = "http" if tls is None else "https"
    state.url = f"{scheme}://{at[0]}:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
