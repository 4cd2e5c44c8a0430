"""How far apart two runs of the same configuration lie: the spread from run to run.

The state of a machine is one factor on all times of a run: other work, clocks, placement. More
problems do not average it out, so that it stands beside the spread over problems wherever times
of two runs are compared. It is measured where recordings of the same configuration lie beside
those that are compared, else assumed.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl

from traces.errors import RecordingError
from traces.manifest import WorkloadFacts
from traces.recording import Recording, find_recordings
from traces.schema import EngineConfig, Policy
from traces.summary import Run, conditions, summarise

RUN_TO_RUN = 0.07  # spread (sd) of the same work done again, as measured on shared machines
PRIOR_REPEATS = 4  # how many held-out recordings that figure counts for in a law's error
MOST_BESIDE = 24  # repeats that are read
_STRETCHES = 8  # of neighbouring steps, for the spread within a run
_FEWEST_STEPS = 10 * _STRETCHES


@dataclass(frozen=True, kw_only=True)
class RunSpread:
    """The spread from run to run of each time of two runs, as the sd of its log.

    `recordings` are the repeats that it was measured from, 0 where it is assumed; `measured` maps
    a metric's tag to it. The assumed one of the first and of the second run is `assumed`:
    `RUN_TO_RUN` and how much the speed of each run's own steps varied.
    """

    recordings: int = 0
    measured: Mapping[str, float] = field(default_factory=dict)
    assumed: tuple[float, float] = (RUN_TO_RUN, RUN_TO_RUN)

    def to_json(self) -> dict[str, Any]:
        """Return the document."""
        return {
            "assumed": not self.recordings,
            "recordings": self.recordings,
            "sd": dict(self.measured) if self.recordings else list(self.assumed),
        }


def assumed(runs: Sequence[Run]) -> tuple[float, float]:
    """Return the spread of two runs where no repeat tells it."""
    first, second = (float(np.hypot(RUN_TO_RUN, within(run.step_rows))) for run in runs)
    return first, second


def within(steps: pl.DataFrame | None) -> float:
    """Return how much the speed of a run varies among eight stretches of its steps, as an sd.

    A disturbance that lasts for a stretch may last for a run, so that runs differ by as much as
    stretches do. Steps are held against what as many requests and prompt tokens take in the run.
    """
    if steps is None:
        return 0.0
    timed = steps.filter(~pl.col("profiled").fill_null(False)).select(
        pl.coalesce("interval_ns", "wall_ns").alias("time"),
        pl.col("decode_requests", "prefill_tokens").cast(pl.Float64).fill_null(0.0),
    )
    timed = timed.drop_nulls("time").filter(pl.col("time") > 0)
    if timed.height < _FEWEST_STEPS:
        return 0.0
    time = timed["time"].to_numpy().astype(float)
    design = np.column_stack([np.ones(time.size), *timed.select(pl.exclude("time")).to_numpy().T])
    calm = time <= 10 * np.median(time)  # a stall is no step's own time
    weights, *_ = np.linalg.lstsq(design[calm], time[calm], rcond=None)
    expected = np.maximum(design @ weights, 0.1 * np.median(time))
    stretches = zip(*(np.array_split(each, _STRETCHES) for each in (time, expected)), strict=True)
    return float(np.std([np.log(took.sum() / usual.sum()) for took, usual in stretches], ddof=1))


def configuration(run: Run) -> Hashable:
    """Return what two runs share of which one repeats the other, None where that is not known."""
    return _configuration(run.engine, run.policy, run.workload, run.conditions)


def _configuration(
    engine: EngineConfig,
    policy: Policy | None,
    workload: WorkloadFacts | None,
    conditions: Hashable,
) -> Hashable:
    if policy is None or workload is None:
        return None
    # vLLM gives the cache what memory is left, which differs a little from start to start.
    return replace(engine, num_gpu_blocks=None), policy, workload.hash, conditions


def is_repeat(run: Run) -> bool:
    """Whether a run can tell the spread: it was measured, and not cut off."""
    return run.complete and run.replay_of is None and configuration(run) is not None


def beside(recordings: Sequence[Recording]) -> list[Run]:
    """Return the runs that repeat those of the given recordings and lie in the same folders.

    What cannot be read, was cut off or is a prediction is left out.
    """
    given = {each.path.resolve() for each in recordings}
    wanted = {name for each in recordings for name in _configurations(each)} - {None}
    found: list[Run] = []
    for folder in sorted({path.parent for path in given}):
        for path in find_recordings(folder):
            if path.resolve() in given or len(found) >= MOST_BESIDE:
                continue
            try:
                recording = Recording.open(path)
                if wanted.isdisjoint(_configurations(recording)):
                    continue
                runs = summarise(recording)
            except RecordingError:
                continue
            found += [each for each in runs if is_repeat(each) and configuration(each) in wanted]
    return found


def _configurations(recording: Recording) -> Iterable[Hashable]:
    manifest = recording.manifest
    return [
        _configuration(engine, policy, manifest.workload, conditions(manifest))
        for engine in manifest.engines.values()
        for policy in manifest.policies.values()
    ]
