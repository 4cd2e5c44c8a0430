"""The pace at which a question's replays run: that of the recorded hours, or of other ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from advisor.evidence.gather import gather
from advisor.step_time.law import StepLaw
from advisor.step_time.pace import Pace, pace_of
from traces.errors import UsageError
from traces.recording.reader import Recording
from traces.schema.engine import EngineConfig
from traces.schema.estimate import Estimate
from traces.schema.record import Record


@dataclass(frozen=True, kw_only=True)
class AtPace(Record):
    """What is predicted at the machine's pace, where requests came by the clock.

    Steps took `mean` times as long as by the law, and from `low` to `high` times in nine tenths of
    the time. `latency_s` has the mean and the p95 at this pace, whose intervals hold the error of
    the law alone. Those of the prediction also hold a run in which steps take from `run_low` to
    `run_high` times as long as meanwhile (90 %). `arriving_per_s` problems came in the time in
    which any came, None where clients wait for answers, and `capacity_per_s` can be served at the
    mean pace.
    """

    mean: float
    low: float
    high: float
    run_low: float
    run_high: float
    latency_s: Mapping[str, Estimate]
    arriving_per_s: float | None
    capacity_per_s: float

    @property
    def share(self) -> float | None:
        """How much of what can be served came."""
        return None if self.arriving_per_s is None else self.arriving_per_s / self.capacity_per_s


def pace_in(recording: Recording, law: StepLaw, engine: EngineConfig) -> Pace:
    """Return the pace of an engine's steps in a recording.

    Limits of the engine (`max_num_seqs` and the like) may be others. Raises UsageError where the
    recording has no step of it.
    """
    first = recording.problems["arrival"].min()  # where the time of a replay begins, too
    since_ns = first if isinstance(first, int) else None
    tables = gather([recording], judged=False, timed=False).steps
    pace = pace_of(tables, law, engine, since_ns)
    if pace is None:
        raise UsageError(
            f"--at-pace-of {recording.name}: has no step of {engine.model} as it is asked about. "
            "Give a recording of this engine, with steps"
        )
    return pace
