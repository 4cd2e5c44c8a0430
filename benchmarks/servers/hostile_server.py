"""A server that keeps whoever asks it waiting, in one of several ways, in threads or a process.

It says which model it serves, so that a client begins to ask it, except one that resets.

``python -m benchmarks.servers.hostile_server KIND --port PORT`` serves until it is killed.
"""

import argparse
import socket
import struct
import threading
import time
from contextlib import contextmanager, suppress

PAUSE_S = 0.2  # between two bytes that drip
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
_CARD = b'{"data": [{"id": "hostile", "max_model_len": 4096}]}'


def _flood(connection, first, piece):
    connection.sendall(first)
    while True:
        connection.sendall(piece)
        time.sleep(0.001)  # some 20 MB a second: as fast as one can, it would be short of a core


def _drip(connection, first):
    connection.sendall(first)
    while True:
        connection.sendall(b"x")
        time.sleep(PAUSE_S)


def _reset(connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _slow(connection):
    while True:
        connection.sendall(_CONTINUE)
        time.sleep(PAUSE_S)


KINDS = {
    "continue": lambda made: _flood(made, b"", _CONTINUE * 1_000),
    "slow continue": _slow,
    "drip": lambda made: _drip(made, b"HTTP/1.1 200 OK\r\nX: "),
    "drip of a body": lambda made: _drip(made, _HEAD + b"Content-Length: 1000000\r\n\r\n"),
    "long line": lambda made: _flood(made, b"HTTP/1.1 200 OK\r\nX: ", b"x" * 65_536),
    "long body": lambda made: _flood(made, _HEAD + b"\r\n", b"# x\n" * 16_384),
    "silence": lambda made: made.recv(1) and time.sleep(3600),
    "reset": _reset,
}


def _serve(connection, kind):
    with suppress(OSError), connection:
        asked = b"" if kind == "reset" else connection.recv(65_536)
        if asked.startswith(b"GET /v1/models "):
            connection.sendall(_HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(_CARD), _CARD))
        else:
            KINDS[kind](connection)


def _accept(listening, kind):
    with suppress(OSError):
        while True:
            made, _ = listening.accept()
            threading.Thread(target=_serve, args=(made, kind), daemon=True).start()


@contextmanager
def hostile(kind, port=0):
    """Serve in threads while the block runs; gives the URL."""
    with socket.create_server(("127.0.0.1", port), backlog=128) as listening:
        threading.Thread(target=_accept, args=(listening, kind), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            with suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--port", type=int, required=True)
    asked = parser.parse_args()
    with socket.create_server(("127.0.0.1", asked.port), backlog=128) as listening:
        _accept(listening, asked.kind)


if __name__ == "__main__":
    main()
