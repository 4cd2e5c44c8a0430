"""Watching a deployment for the Live screen: attach, and a snapshot a second. No Textual here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from profiler.attach.attachment import Attached, Attachment, attach_to, attachment_of
from traces.clock import now_ns
from traces.errors import TtscopeError, UsageError
from traces.live.numbers import LIVE_S, Numbers, Reading
from traces.live.verdict import (
    FEWEST_POLLS,
    LiveEvidence,
    Remedy,
    Verdict,
    change_for,
    judge,
)
from traces.recording.reader import Recording
from traces.summary.kernels import (
    Collective,
    DeviceTime,
    FamilyTime,
    WindowSteps,
    collectives,
    device_time,
    time_by_family,
)
from tui.options import Watch, option_names, read_words
from tui.screens.library import size_bytes, words_of

if TYPE_CHECKING:
    from profiler.attach.scraper import Silence

VERDICT_S = 60.0  # that a verdict rests on
SHOWN_S = 60.0  # of engine steps
READ_S = 2.0  # between looks into the recording
MOST_PROBLEMS = 200


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A deployment at one second.

    `numbers` are of the last seconds by engine, `verdicts` of the last minute, `readings` of the
    last poll. `limit` is how many requests an engine runs at most, `profiled` whether a kernel
    window is open. `steps` counts
    those that plugins sent, None where nobody listens; `step_rows` are the newest of one engine,
    `problems` the newest that spans tell of: problem_id, samples, arrival, end (ns), tokens,
    longest (tokens of one sample), errors. `watts` is the mean of the last seconds of all GPUs
    together, `unpowered` why they are not read; `families` are the kernels of the newest profiler
    window, `held` the recorded steps that it holds, `windows` counts these, None where none are
    opened. `lost` says what the recording lacks, `kept_bytes` is its size. `changes` answer the
    verdicts, in their order, None of an engine that is not known. `now_ns` is when it was taken.
    """

    now_ns: int
    seconds: float
    numbers: Mapping[str, Numbers | None]
    names: Mapping[str, str]
    verdicts: tuple[Verdict, ...]
    readings: Mapping[str, Reading] = field(default_factory=dict)
    limit: int | None = None
    profiled: bool = False
    silences: Mapping[str, Silence] = field(default_factory=dict)
    changes: tuple[Remedy | None, ...] = ()
    steps: int | None = None
    problems_seen: int | None = None
    problems: pl.DataFrame | None = None
    step_rows: pl.DataFrame | None = None
    blocks: int | None = None
    watts: float | None = None
    unpowered: str | None = None
    windows: int | None = None
    families: tuple[FamilyTime, ...] | None = None
    held: tuple[WindowSteps, ...] = ()
    events: Mapping[str, int] = field(default_factory=dict)
    lost: tuple[str, ...] = ()
    kept_bytes: int | None = None


def parse_target(text: str) -> Attachment:
    """Return what was typed: URLs, and the options of `ttscope attach` that watch.

    Raises UsageError for what cannot be read.
    """
    words = words_of(text)
    if "--help" in words:
        raise UsageError(f"here are {option_names(Watch)}")
    watch = read_words(Watch, words)
    urls = [url if "://" in url else f"http://{url}" for url in watch.urls]
    return attachment_of(vars(watch) | {"urls": urls})


class LiveWatch:
    """Watches a target into a recording until `stop`; `run` blocks, in a thread of its own."""

    def __init__(
        self, target: Attachment, folder: Path, on_snapshot: Callable[[Snapshot], None]
    ) -> None:
        self.folder, self._target, self._on_snapshot = folder, target, on_snapshot
        self.said: list[str] = []  # what a user must see
        self._stop = threading.Event()
        self._read = 0.0
        self._inside: dict[str, Any] = {}
        self._came = -1  # rows of windows that were read
        self._profiled: dict[str, tuple[tuple[Collective, ...] | None, DeviceTime | None]] = {}
        self.lost = False

    def stop(self) -> None:
        """End it; the recording is then complete."""
        self._stop.set()

    def run(self) -> None:
        """Attach and watch; profiler windows are opened only where `target.yes` says so.

        Raises TtscopeError for a server that does not answer, and for what cannot be had of it.
        """
        from profiler.attach.watch import watch

        with ExitStack() as stack:
            attached = attach_to(
                stack, self._target, may_open=lambda told: False, say=self.said.append
            )
            watch(
                attached.deployment,
                self.folder,
                stop=self._stop,
                duration_s=self._target.duration_s,
                probes=attached.probes,
                on_tick=partial(self._tick, attached),
                price_usd_per_device_hour=self._target.price,
            )
            self.lost = attached.deployment.lost

    def _tick(
        self,
        attached: Attached,
        seconds: float,
        numbers: Mapping[str, Numbers | None],
        silences: Mapping[str, Silence],
    ) -> None:
        deployment, steps = attached.deployment, attached.steps
        minute = deployment.numbers(VERDICT_S, fewest=FEWEST_POLLS)
        if time.monotonic() - self._read > READ_S:
            self._read = time.monotonic()
            self._inside = self._look_inside(steps)
        step_rows = self._inside.get("step_rows")
        verdicts: list[Verdict] = []
        changes: list[Remedy | None] = []
        for key, each in minute.items():
            moved, device = self._profiled.get(key, (None, None))
            steps_of = _of_engine(step_rows, key)
            seen = LiveEvidence(numbers=each, steps=steps_of, collectives=moved, device_time=device)
            verdicts.append(judge(key, seen))
            engine = deployment.engines.get(key)
            if each is None or engine is None or verdicts[-1].reason is not None:
                changes.append(None)
            else:
                changes.append(change_for(verdicts[-1], each, engine, each.samples_per_s or 0.0))
        limits = {engine.max_num_seqs for engine in deployment.engines.values()}
        inside = {name: value for name, value in self._inside.items() if value is not None}
        self._on_snapshot(
            Snapshot(
                now_ns=now_ns(),
                changes=tuple(changes),
                seconds=seconds,
                numbers=numbers,
                silences=silences,
                names=dict(deployment.shown),
                verdicts=tuple(verdicts),
                readings={
                    key: each.last
                    for key, each in minute.items()
                    if each is not None and each.last is not None
                },
                limit=limits.pop() if len(limits) == 1 else None,
                profiled=any(each.is_profiled for each in deployment.replicas),
                steps=steps,
                unpowered=attached.unpowered,
                **inside,
            )
        )

    def _look_inside(self, steps: int | None) -> dict[str, Any]:
        """Return what the recording holds so far of problems, steps and events."""
        try:
            recording = Recording.open(self.folder)
            events = recording.frame("events")
            kinds = dict(events.group_by("kind").len().iter_rows())
            seen: dict[str, Any] = {
                "events": kinds,
                "lost": tuple(events.filter(kind="drop")["detail"].unique(maintain_order=True)),
                "watts": _watts(recording),
                "kept_bytes": size_bytes(self.folder),
            }
            if self._target.kernels is not None:
                seen |= self._look_at_windows(recording, events)
            if steps is None:
                return seen
            seen |= newest_problems(recording)
            if steps:
                since = now_ns() - round(SHOWN_S * 1e9)
                rows = recording.table("steps").filter(pl.col("end") > since).collect()
                seen["step_rows"] = rows if rows.height else None
                engine = recording.manifest.engines.get(rows["engine"][0]) if rows.height else None
                seen["blocks"] = None if engine is None else engine.num_gpu_blocks
            return seen
        except TtscopeError:  # it is being written: the next look will do
            return dict(self._inside)

    def _look_at_windows(self, recording: Recording, events: pl.DataFrame) -> dict[str, Any]:
        """Return how many windows there were and the newest one's kernels; read when one came."""
        came = events.filter(pl.col("kind") == "window").height
        if came == self._came:
            return {name: self._inside.get(name) for name in ("windows", "families", "held")}
        rows = recording.frame("kernels")
        keys = rows["engine"].drop_nulls().unique()
        by_engine = {key: rows.filter(pl.col("engine") == key) for key in keys}
        self._profiled = {
            key: (collectives(each), device_time(events, key, kernels=each))
            for key, each in by_engine.items()
        }
        self._came = came
        newest = rows.filter(pl.col("window_id") == pl.col("window_id").max())
        number = None if newest.is_empty() else newest["window_id"][0]
        times = [device for _, device in self._profiled.values() if device is not None]
        return {
            "windows": rows["window_id"].n_unique(),
            "families": time_by_family(newest),
            "held": tuple(e for device in times for e in device.held if e.window == number),
        }


def newest_problems(recording: Recording) -> dict[str, Any]:
    """Return how many problems a recording holds, and the newest with what their samples took."""
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


def _watts(recording: Recording) -> float | None:
    """Return the mean power of the last seconds, None where a device was not read."""
    since = now_ns() - round(LIVE_S * 1e9)
    rows = recording.table("power").filter(pl.col("time") > since).collect()
    each = rows.group_by("host", "device").agg(pl.mean("watts"))["watts"]
    return None if not each.len() or each.null_count() else float(each.sum())


def _of_engine(rows: pl.DataFrame | None, key: str) -> pl.DataFrame | None:
    mine = None if rows is None else rows.filter(pl.col("engine") == key)
    return mine if mine is not None and mine.height else None
