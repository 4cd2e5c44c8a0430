"""What the recording process did between two steps: samples and problems that began or ended.

An engine in the recorder's own process waits while the recorder opens the spans of a problem,
tokenises its prompt, hands its samples to vLLM, and takes those that ended. So the time to the next
step's end is longer by that, which is counted in that step: begun or ended since the step before.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from advisor.composition import HOST_WORK
from traces.recording import Recording
from traces.schema import EngineConfig

Ints = npt.NDArray[np.int64]


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
    own = (pl.coalesce("interval_ns", "wall_ns") / 1e9).alias("seconds")
    samples = recording.samples.filter(pl.col("engine") == key)
    joined = samples["first_step"].is_not_null().any() and engine.mode == "in_process"
    whole = steps["end"].null_count() == 0 and not recording.manifest.dropped.get("steps")
    if not (joined and whole and steps.height):
        return steps.with_columns(own)
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
        pl.when(busy).then(since).otherwise(own).alias("seconds"),
        *(pl.when(busy).then(column).otherwise(0).alias(column.name) for column in columns),
    )


def _before(ends: Ints, times: pl.Series) -> Ints:
    """Return how many of the times lie between each step's end and that of the step before."""
    place = np.searchsorted(ends, times.drop_nulls().to_numpy(), side="right")
    return np.bincount(place, minlength=len(ends) + 1)[: len(ends)].astype(np.int64)
