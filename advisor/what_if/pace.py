"""How fast a machine was while it was recorded, against what a law of step times has."""

from __future__ import annotations

from advisor.evidence.gather import gather
from advisor.evidence.keys import law_key
from advisor.step_time.law import StepLaw
from traces.errors import UsageError
from traces.recording.reader import Recording
from traces.schema.engine import EngineConfig


def pace_in(recording: Recording, law: StepLaw, engine: EngineConfig) -> float:
    """Return how many times as long an engine's recorded steps took as the law has them.

    It is the ratio of their total times, so that the device time of a replay at this pace is that
    recorded. Limits of the engine (`max_num_seqs` and the like) may be others. Raises UsageError
    where the recording has no step of it.
    """
    tables = [
        table
        for table in gather([recording], judged=False, timed=False).steps
        if law_key(table.engine) == law_key(engine)
    ]
    predicted = sum(float(law.predict(table.composition).sum()) for table in tables)
    if predicted <= 0:
        raise UsageError(
            f"--at-pace-of {recording.name}: has no step of {engine.model} as it is asked about. "
            "Give a recording of this engine, with steps"
        )
    return sum(float(table.seconds.sum()) for table in tables) / predicted
