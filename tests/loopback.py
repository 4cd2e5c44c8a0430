"""An HTTP server on loopback for tests."""

import threading
from contextlib import contextmanager
from http.server import ThreadingHTTPServer


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
