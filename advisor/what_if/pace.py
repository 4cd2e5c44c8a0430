"""The pace at which a question's replays run: that of the recorded hours, or of other ones."""

from __future__ import annotations

from advisor.evidence.gather import gather
from advisor.step_time.law import StepLaw
from advisor.step_time.pace import Pace, pace_of
from traces.errors import UsageError
from traces.recording.reader import Recording
from traces.schema.engine import EngineConfig


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
