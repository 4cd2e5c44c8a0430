"""A replay as the tables of a recording, so that whatever reads recordings reads it too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from advisor.compiled import compiled
from advisor.evidence.features import Work
from advisor.evidence.runs import RecordedProblem
from advisor.replay.result import Replayed
from advisor.step_time.cost import StepCost, steps_seconds, work_at
from traces.errors import RecordingError
from traces.recording.manifest import Manifest
from traces.recording.parts import write_part
from traces.recording.tables import TABLES, in_table
from traces.statistics import Floats

MOST_STEPS: Final = 2_000_000  # rows of the steps table; a leap of the replay holds many


def replayed_tables(
    replayed: Replayed,
    loads: Sequence[RecordedProblem],
    problem_ids: Sequence[str],
    cost: StepCost,
    *,
    keys: tuple[str, str],
    start_ns: int,
    speculative: bool,
    judged: bool = True,
    replicas: int = 1,
) -> dict[str, pl.DataFrame]:
    """Return the problems, samples and steps of a replay with a log, from `start_ns` on.

    `keys` are those of engine and policy. What a replay does not know is null: which answers are
    right unless `judged`. Steps of several replicas have engines of their own (`replica_keys`). Of
    more steps than MOST_STEPS none is kept.
    """
    engine, policy = keys
    counts = [len(load.samples) for load in loads]
    ids = [name for name, count in zip(problem_ids, counts, strict=True) for _ in range(count)]
    flat = [sample for load in loads for sample in load.samples]
    cancelled = replayed.cancelled.tolist()
    kept = [None if gone else each for each, gone in zip(flat, cancelled, strict=True)]
    arrival = replayed.queued_s - replayed.front_end_s  # of each as it was drawn
    ended = np.isfinite(replayed.end_s)
    samples = pl.DataFrame(
        {
            "problem_id": ids,
            "sample_index": [i for count in counts for i in range(count)],
            "engine": engine,
            "policy": policy,
            "role": "sample",
            "prompt_tokens": [load.prompt_tokens for load in loads for _ in load.samples],
            "cached_tokens": replayed.cached_tokens,
            "output_tokens": replayed.generated_tokens,
            "arrival": _ns(np.where(ended, arrival, np.nan), start_ns),
            "queued": _ns(replayed.queued_s, start_ns),
            "scheduled": _ns(replayed.scheduled_s, start_ns),
            "first_token": _ns(replayed.first_token_s, start_ns),
            "end": _ns(replayed.end_s, start_ns),
            "preemptions": replayed.preempted,
            "finish_reason": [each and ("length" if each.by_length else "stop") for each in kept],
            "cancelled_by": ["decision" if gone else None for gone in cancelled],
            "answer": [each and each.answer for each in kept],
            "correct": [each and each.correct for each in kept],
        },
        strict=False,
    ).filter(pl.Series(ended))
    decided = _ns(replayed.arrival_s + replayed.latency_s, start_ns)
    problems = pl.DataFrame(
        {
            "problem_id": list(problem_ids),
            "engine": engine,
            "policy": policy,
            "prompt_tokens": [load.prompt_tokens for load in loads],
            "arrival": _ns(replayed.arrival_s, start_ns),
            "start": _ns(replayed.arrival_s, start_ns),
            "end": decided,
            "decided_at": decided,
            "decided_by_sample": replayed.decided_by,
            "correct": _right(replayed, loads) if judged else [None] * len(loads),
            "timed_out": False,
        },
        strict=False,
    )
    steps = pl.DataFrame(schema=TABLES["steps"])
    if replayed.steps <= MOST_STEPS:
        names = [engine] if replicas == 1 else replica_keys(engine, replicas)
        steps = _steps(replayed, cost, names, start_ns, speculative=speculative)
    return {
        name: in_table(name, frame)
        for name, frame in (("problems", problems), ("samples", samples), ("steps", steps))
    }


def _right(replayed: Replayed, loads: Sequence[RecordedProblem]) -> list[bool]:
    """Return whether each answer is right: of a tie that of the first sample, as a run has it.

    Without any answer the sample that decided says it, as some imports mark samples alone.
    """
    ended = np.isfinite(replayed.end_s) & ~replayed.cancelled
    verdicts, place = [], 0
    shares, deciding = replayed.right.tolist(), replayed.decided_by.tolist()
    for share, by, load in zip(shares, deciding, loads, strict=True):
        right = share == 1
        if share < 1:
            pairs = zip(load.samples, ended[place : place + len(load.samples)], strict=True)
            votes = [sample for sample, known in pairs if known and sample.answer is not None]
            if not votes:
                right = load.samples[by].correct is True
            elif share > 0:
                (answer, _), *_ = Counter(vote.answer for vote in votes).most_common(1)
                right = next(vote.correct is True for vote in votes if vote.answer == answer)
        verdicts.append(right)
        place += len(load.samples)
    return verdicts


def replica_keys(engine: str, count: int) -> list[str]:
    """Return the keys of an engine's replicas: its own, `#` and a number from 1 on."""
    return [f"{engine}#{number}" for number in range(1, count + 1)]


def write_recording(folder: Path, manifest: Manifest, tables: Mapping[str, pl.DataFrame]) -> None:
    """Write tables as a complete recording. Raises RecordingError where one exists."""
    if (folder / "recording.json").exists():
        raise RecordingError(f"{folder}: already holds a recording. Name another folder with -o")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, frame in tables.items():
            if frame.height:
                write_part(folder, name, frame, 0, 0)
        manifest.write(folder)
    except OSError as error:
        raise RecordingError(f"{folder}: cannot be written ({error.strerror})") from None


def _ns(seconds: Floats, start_ns: int) -> pl.Series:
    return pl.Series(np.rint(seconds * 1e9), nan_to_null=True).cast(pl.Int64) + start_ns


def _steps(
    replayed: Replayed,
    cost: StepCost,
    names: Sequence[str],
    start_ns: int,
    *,
    speculative: bool,
) -> pl.DataFrame:
    assert replayed.log is not None
    log, count = replayed.log, replayed.log["steps"]
    ends, starts = _step_ends(cost, log, speculative), log["begun"]
    if replayed.pace is not None:
        ends, starts = replayed.pace.by_clock(ends), replayed.pace.by_clock(starts)
    row = np.repeat(np.arange(len(log)), count)
    place = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)

    def column(name: str) -> Floats:
        return np.asarray(log[name][row])

    order = np.lexsort((ends, column("engine")))
    end = np.rint(ends * 1e9).astype(np.int64) + start_ns
    begun = np.rint(starts[row] * 1e9).astype(np.int64) + start_ns
    before = np.where(place > 0, np.roll(end, 1), begun)
    interval = end - before
    first = np.cumsum(count) - count
    for number in range(len(names)):
        leaps = np.flatnonzero(log["engine"] == number)
        ended = np.concatenate([[-1], end[first[leaps] + count[leaps] - 1][:-1]])
        idle = np.abs(before[first[leaps]] - ended) > 1  # before the leap
        interval[first[leaps[idle]]] = -1
    work = Work(*log["work"].T)
    alike = {name: np.rint(values)[row] for name, values in work._asdict().items()}
    grown = {
        "decode_kv_tokens": work.decode_kv_tokens[row] + place * column("growth"),
        "decode_window_tokens": work.decode_window_tokens[row] + place * column("window_growth"),
    }
    frame: dict[str, Any] = {
        "engine": pl.Series(names).gather(log["engine"][row]),
        "step": np.arange(len(row)),
        "end": end,
        "interval_ns": interval,
        "wall_ns": end - before,
        **alike,
        **{name: np.rint(values) for name, values in grown.items()},
        "running": column("running"),
        "waiting": column("waiting"),
        "kv_blocks": column("kv_blocks"),
        "preempted": column("preemptions"),
        "profiled": False,
        "source": "replayed",
    }
    steps = pl.DataFrame(frame, strict=False)
    if not (np.diff(order) == 1).all():
        steps = steps[order]
    known_interval = pl.when(pl.col("interval_ns") >= 0).then("interval_ns")
    return steps.with_columns(
        pl.col("preempted").diff().over("engine").fill_null(pl.col("preempted")),
        step=pl.int_range(pl.len()),
        interval_ns=known_interval,
    )


@compiled
def _step_ends(cost: StepCost, log: npt.NDArray[np.void], speculative: bool) -> Floats:
    """Return when each step ended, in seconds; a leap's steps end where its time says."""
    ends = np.empty(log["steps"].sum())
    place = 0
    for number in range(len(log)):
        leap = log[number]
        work = work_at(leap.work)
        for steps in range(1, leap.steps + 1):
            ends[place] = leap.begun + leap.seconds
            if steps < leap.steps:
                ends[place] = leap.begun + leap.host + steps_seconds(
                    cost, work, steps, leap.growth, leap.window_growth, leap.longest, 1.0, 0.0,
                    speculative,
                )  # fmt: skip
            place += 1
    return ends
