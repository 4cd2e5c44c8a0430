"""Watching a deployment for the Live screen: attach, and a snapshot a second. No Textual here."""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from profiler.access import Access, read_headers, read_key
from traces.deployment import Numbers
from traces.errors import TtscopeError, UsageError
from traces.recording import Recording
from traces.verdict import Evidence, Verdict, judge

VERDICT_S = 60.0  # that a verdict rests on
SHOWN_S = 60.0  # of engine steps
READ_S = 2.0  # between looks into the recording
MOST_PROBLEMS = 200


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is watched: servers, and where spans and the plugin's steps are received."""

    accesses: tuple[Access, ...]
    listen: tuple[str, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A deployment at one second.

    `numbers` are of the last seconds by engine, `verdicts` of the last minute. `steps` counts
    those that plugins sent, None where nobody listens; `step_rows` are the newest of one engine,
    `problems` the newest that spans tell of: problem_id, samples, arrival, end (ns), tokens,
    longest (tokens of one sample), errors.
    """

    seconds: float
    numbers: Mapping[str, Numbers | None]
    names: Mapping[str, str]
    verdicts: tuple[Verdict, ...]
    steps: int | None = None
    problems_seen: int | None = None
    problems: pl.DataFrame | None = None
    step_rows: pl.DataFrame | None = None
    blocks: int | None = None
    events: Mapping[str, int] = field(default_factory=dict)


def parse_target(text: str) -> Target:
    """Return what was typed: URLs, `--listen [HOST:]PORT`, `--api-key-env NAME`.

    Raises UsageError for what cannot be read.
    """
    from profiler.receiver import parse_listen

    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"{text}: {error}") from None
    given: dict[str, str] = {}
    urls: list[str] = []
    while words:
        word = words.pop(0)
        if word in ("--listen", "--api-key-env"):
            if not words:
                raise UsageError(f"{word}: wants a value")
            given[word] = words.pop(0)
        elif word.startswith("-"):
            raise UsageError(f"{word}: here are --listen and --api-key-env; others: ttscope attach")
        else:
            urls.append(word if "://" in word else f"http://{word}")
    if not urls:
        raise UsageError("name a server: http://HOST:8000")
    headers = read_headers(read_key(given.get("--api-key-env"), None), ())
    listen = given.get("--listen")
    return Target(
        accesses=tuple(Access.of(url, headers) for url in urls),
        listen=None if listen is None else parse_listen(listen),
    )


class LiveWatch:
    """Watches a target into a recording until `stop`; `run` blocks, in a thread of its own."""

    def __init__(
        self, target: Target, folder: Path, on_snapshot: Callable[[Snapshot], None]
    ) -> None:
        self.folder, self._target, self._on_snapshot = folder, target, on_snapshot
        self._stop = threading.Event()
        self._read = 0.0
        self._inside: dict[str, object] = {}
        self.lost = False

    def stop(self) -> None:
        """End it; the recording is then complete."""
        self._stop.set()

    def run(self) -> None:
        """Attach and watch. Raises TtscopeError for a server that does not answer."""
        from profiler.attach import watch
        from profiler.deployment import Deployment
        from profiler.incoming import Incoming
        from profiler.receiver import Receiver

        deployment = Deployment(self._target.accesses)
        with ExitStack() as stack:
            stack.callback(deployment.close)
            receiver = None
            if self._target.listen is not None:
                receiver = Receiver(*self._target.listen)
                stack.callback(receiver.close)
                receiver.start()
            deployment.connect()
            incoming = None
            if receiver is not None:
                incoming = Incoming(receiver, deployment)
                incoming.adopt()

            def tick(seconds: float, numbers: Mapping[str, Numbers | None]) -> None:
                whole = deployment.numbers(VERDICT_S)
                steps = None if incoming is None else incoming.steps
                self._tick(seconds, numbers, whole, dict(deployment.shown), steps)

            watch(
                deployment,
                self.folder,
                stop=self._stop,
                probes=[] if incoming is None else [incoming.watched],
                on_tick=tick,
            )
            self.lost = deployment.lost

    def _tick(
        self,
        seconds: float,
        numbers: Mapping[str, Numbers | None],
        minute: Mapping[str, Numbers | None],
        names: Mapping[str, str],
        steps: int | None,
    ) -> None:
        if time.monotonic() - self._read > READ_S:
            self._read = time.monotonic()
            self._inside = self._look_inside(steps)
        rows = self._inside.get("step_rows")
        known = rows if isinstance(rows, pl.DataFrame) else None
        verdicts = [
            judge(key, Evidence(numbers=each, steps=_of_engine(known, key)))
            for key, each in minute.items()
        ]
        inside = {name: value for name, value in self._inside.items() if value is not None}
        self._on_snapshot(
            Snapshot(
                seconds=seconds,
                numbers=numbers,
                names=names,
                verdicts=tuple(verdicts),
                steps=steps,
                **inside,  # type: ignore[arg-type]
            )
        )

    def _look_inside(self, steps: int | None) -> dict[str, object]:
        """Return what the recording holds so far of problems, steps and events."""
        try:
            recording = Recording.open(self.folder)
            events = recording.frame("events").group_by("kind").len()
            found: dict[str, object] = {"events": dict(events.iter_rows())}
            if steps is None:
                return found
            found |= _problems(recording)
            if steps:
                since = time.time_ns() - round(SHOWN_S * 1e9)
                rows = recording.table("steps").filter(pl.col("end") > since).collect()
                found["step_rows"] = rows if rows.height else None
                engine = recording.manifest.engines.get(rows["engine"][0]) if rows.height else None
                found["blocks"] = None if engine is None else engine.num_gpu_blocks
            return found
        except TtscopeError:  # it is being written: the next look will do
            return dict(self._inside)


def _problems(recording: Recording) -> dict[str, object]:
    problems = recording.table("problems").select("problem_id", "arrival", "end").collect()
    newest = problems.sort("arrival", descending=True).head(MOST_PROBLEMS)
    samples = (
        recording.table("samples")
        .filter(pl.col("problem_id").is_in(newest["problem_id"].implode()))
        .group_by("problem_id")
        .agg(
            samples=pl.len(),
            tokens=pl.col("output_tokens").sum(),
            longest=pl.col("output_tokens").max(),
            errors=pl.col("error").is_not_null().sum(),
        )
        .collect()
    )
    return {
        "problems_seen": problems.height,
        "problems": newest.join(samples, on="problem_id", how="left", maintain_order="left"),
    }


def _of_engine(rows: pl.DataFrame | None, key: str) -> pl.DataFrame | None:
    mine = None if rows is None else rows.filter(pl.col("engine") == key)
    return mine if mine is not None and mine.height else None
