"""Mathematical equality through math-verify, in a process that can be killed.

math-verify bounds its time by SIGALRM, which works on a main thread only and not while C code
runs (a large power, a regular expression). The engine's loop must not wait for either, so a
child does the mathematics (`profiler.workload.math_worker`) and is killed where it does not answer.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import select
import subprocess
import sys
import threading
import time
import weakref
from functools import lru_cache
from typing import Any

from profiler.workload.answers import final_answer
from traces.errors import MissingDependencyError, TtscopeError, install_command

LIMIT_S = 3.0
_GRACE_S = 1.0  # what the child's own alarm may be late
_START_S = 120.0
_MOST_CHARACTERS = 4000


class MathVerifier:
    r"""Mathematical equality of the final answer (see `profiler.workload.verifiers.Verifier`).

    Numbers are one class as by the numeric verifier (0.5, 1/2, \frac{1}{2}, x = 0.5), sets and
    tuples of numbers likewise; other expressions by their simplified form, or as written where
    that cannot be had. What takes longer than `limit_s` is a class of its own text and wrong;
    `too_long` counts such answers, and `seconds` is what all checks took. One child per verifier,
    started at once.

    Raises MissingDependencyError without math-verify.
    """

    name = "math"

    def __init__(self, *, limit_s: float = LIMIT_S) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise MissingDependencyError(
                f"--verifier math needs math-verify: {install_command('math')}"
            )
        self.limit_s = limit_s
        self.too_long = 0
        self.seconds = 0.0
        self._given_up: set[str] = set()
        self._worker = _Worker(limit_s)
        self.canonical = lru_cache(maxsize=100_000)(self._canonical)
        self.matches = lru_cache(maxsize=100_000)(self._matches)

    def answer_of(self, text: str) -> str | None:
        """Return the final answer, of a long text its end."""
        answer = final_answer(text)
        return None if answer is None else answer[-_MOST_CHARACTERS:]

    def _canonical(self, answer: str) -> str | None:
        reply = self._ask({"canonical": answer})
        if reply is not None:
            name: str | None = reply[0]
            return name
        written = " ".join(answer.split())
        self._given_up.add(written)
        return written or None

    def gave_up(self, canonical: str) -> bool:
        return canonical in self._given_up

    def _matches(self, canonical: str, expected: str) -> bool:
        if canonical == self.canonical(expected):
            return True
        if canonical in self._given_up:
            return False
        reply = self._ask({"equal": [canonical, expected]})
        return bool(reply and reply[0])

    def _ask(self, question: dict[str, Any]) -> Any:
        begun = time.monotonic()
        reply = self._worker.ask(question)
        self.seconds += time.monotonic() - begun
        self.too_long += reply is None
        return reply


class _Worker:
    """A child that answers one question at a time; a new one is started where it was killed."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._lock = threading.Lock()
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "profiler.workload.math_worker", str(self._limit_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # an interrupt from the keyboard is the parent's
        )
        self._rest = b""
        self._ready = False
        self._end = weakref.finalize(self, _stop, self._process)

    def ask(self, question: dict[str, Any]) -> Any:
        """Return the reply, None when there is none in time."""
        with self._lock:
            if not self._ready:
                self._wait_for_start()
            try:
                pipe = self._process.stdin
                assert pipe is not None
                pipe.write(json.dumps(question).encode() + b"\n")
                pipe.flush()
                return json.loads(self._read_line(self._limit_s + _GRACE_S))
            except (OSError, TimeoutError, ValueError):
                self._end()
                self._start()
                return None

    def _wait_for_start(self) -> None:
        try:
            self._read_line(_START_S)
        except (OSError, TimeoutError):
            raise TtscopeError(
                "math-verify cannot be started. Try: python -c 'import math_verify, sympy', or "
                "another --verifier"
            ) from None
        self._ready = True

    def _read_line(self, seconds: float) -> bytes:
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        until = time.monotonic() + seconds
        while b"\n" not in self._rest:
            left = until - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                raise TimeoutError
            piece = os.read(pipe, 1 << 16)
            if not piece:
                raise BrokenPipeError
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return line


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # what was not sent to a child that is gone
                pipe.close()
