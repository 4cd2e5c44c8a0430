"""What the recording process did between two steps: samples and problems that began or ended.

An engine in the recorder's own process waits while the recorder opens the spans of a problem,
tokenises its prompt, hands its samples to vLLM, and takes those that ended. So the time to the next
step's end is longer by that, which is counted in that step: begun or ended since the step before.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Final

import numpy as np
import polars as pl

from advisor.evidence.features import HOST_WORK
from traces.recording.reader import Recording
from traces.recording.tables import STEP_INTERVAL
from traces.schema.engine import EngineConfig
from traces.statistics import Ints


def with_host_work(
    steps: pl.DataFrame, recording: Recording, key: str, engine: EngineConfig
) -> pl.DataFrame:
    """Return an engine's steps with columns of HOST_WORK and `seconds`.

    Seconds are those since the end of the step before, or the step's own where the engine had been
    idle. With problems in flight up to a number, in one run, nothing else keeps an engine of this
    process waiting than that work and the profiler, so there all seconds are those since the step
    before. Without columns where steps cannot be joined to samples: another process's engine, no
    `first_step`, lost steps.
    """
    steps = steps.sort("step")
    own_seconds = (STEP_INTERVAL / 1e9).alias("seconds")
    samples = recording.samples.filter(pl.col("engine") == key)
    joined = samples["first_step"].is_not_null().any() and engine.mode == "in_process"
    complete = steps["end"].null_count() == 0 and not recording.manifest.dropped.get("steps")
    if not (joined and complete and steps.height):
        return steps.with_columns(own_seconds)
    ends = steps["end"].to_numpy()
    requests = samples.filter(pl.col("role").fill_null("sample") != "scorer")
    problems = recording.problems.filter(pl.col("engine") == key)
    counts = (
        _before(ends, problems["arrival"]),
        _before(ends, requests["arrival"]),
        _before(ends, requests["end"]),
    )
    columns = [pl.Series(name, each) for name, each in zip(HOST_WORK, counts, strict=True)]
    since = pl.col("end").diff() / 1e9
    busy = pl.col("interval_ns").is_not_null()
    manifest = recording.manifest
    alone = len(manifest.policies) == 1 and requests.height == samples.height
    if manifest.concurrency is not None and alone:
        busy = (pl.int_range(pl.len()) > 0) & ~pl.col("profiled").shift(1).fill_null(False)
    return steps.with_columns(
        pl.when(busy).then(since).otherwise(own_seconds).alias("seconds"),
        *(pl.when(busy).then(column).otherwise(0).alias(column.name) for column in columns),
    )


def _before(ends: Ints, times: pl.Series) -> Ints:
    """Return how many of the times lie between each step's end and that of the step before."""
    place = np.searchsorted(ends, times.drop_nulls().to_numpy(), side="right")
    return np.bincount(place, minlength=len(ends) + 1)[: len(ends)].astype(np.int64)


# Steps that stand for all, so that the laws of a thousand long recordings fit in memory.
#
# One step is taken of each stretch of neighbouring ones, at random within it: what changes over a
# run is there in proportion, and no period of the workload is met in time with it. Recordings that
# together hold no more than `MOST_STEPS` steps keep every one.


MOST_STEPS: Final = 200_000  # steps of all recordings together


def most_of_each(counts: Sequence[int], most: int) -> int | None:
    """Return how many steps a recording keeps at most, None where all of them keep all.

    `counts` are the steps of each. Those with fewer keep theirs, the others share what is left, at
    least one each.
    """
    if sum(counts) <= most:
        return None
    left, rest = most, len(counts)
    for count in sorted(counts):
        if count * rest > left:
            break
        left, rest = left - count, rest - 1
    return max(left // rest, 1)


def places(rows: int, kept: int, name: str) -> Ints:
    """Return which of so many rows are kept, ascending, the same for the same `name`."""
    kept = min(max(kept, 1), rows)
    edges = np.linspace(0, rows, kept + 1).astype(np.int64)
    rng = np.random.default_rng([zlib.crc32(name.encode()), rows, kept])
    return np.asarray(rng.integers(edges[:-1], edges[1:]), dtype=np.int64)
