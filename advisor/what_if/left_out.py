"""Each recorded run foretold from the other recordings alone, to hold against what was measured.

The samples are the run's own, so lengths and answers are real; the time of a step is learned from
recordings of other configurations, and where none of them has this engine, from repeats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from advisor.evidence.gather import Evidence, StepTable, gather
from advisor.evidence.keys import law_key
from advisor.evidence.runs import RecordedRun
from advisor.step_time.fit import StepTimeModel, learned, of_steps
from advisor.what_if.question import Question, by_replica
from advisor.what_if.replayed import Replays
from traces.errors import TtscopeError, UsageError
from traces.recording.reader import Recording, told_apart
from traces.schema.engine import EngineConfig
from traces.schema.tts.policy import Policy
from traces.summary.run import Run


@dataclass(frozen=True, kw_only=True)
class Foretold:
    """A recorded run and what the other recordings say of it; None, and why, where they cannot."""

    recording: str
    engine: EngineConfig
    policy: Policy
    predicted: Run | None = None
    why_not: str | None = None


def foretell(
    recordings: Sequence[Recording], on_run: Callable[[int, int], None] | None = None
) -> list[Foretold]:
    """Foretell every run whose samples all ran to their end, each from the other recordings.

    `on_run` is told how many runs are done, and of how many. Raises RecordingError when the
    recordings hold nothing to learn from, and UsageError when they answer different workloads.
    """
    recordings = told_apart(recordings)
    evidence = gather(recordings, judged=False)
    model = learned(evidence.steps)
    by_name = {recording.name: recording for recording in recordings}
    outcomes = []
    runs: dict[object, RecordedRun] = {}  # of traffic that is drawn again the first draw
    for run in evidence.runs:
        runs.setdefault((run.recording, run.engine, run.policy), run)
    for number, run in enumerate(runs.values()):
        blank = Foretold(recording=run.recording, engine=run.engine, policy=run.policy)
        try:
            predicted = _foretold(by_name[run.recording], evidence, model, run)
            outcomes.append(replace(blank, predicted=predicted))
        except TtscopeError as error:
            outcomes.append(replace(blank, why_not=str(error)))
        if on_run is not None:
            on_run(number + 1, len(runs))
    return outcomes


def _foretold(base: Recording, evidence: Evidence, model: StepTimeModel, run: RecordedRun) -> Run:
    key = law_key(run.engine)
    others = _others(evidence.steps, run)
    own_tables = [table for table in others if law_key(table.engine) == key]
    left = StepTimeModel()
    ends = left.fit_shapes(others, of=(key,))[key]
    left.laws_ = {key: replace(model.law(run.engine), **of_steps(own_tables, ends))}
    question = by_replica(Question(engine=run.engine, policy=run.policy))
    return Replays(base, evidence, left, run, (run,), question).summary


def _others(tables: Sequence[StepTable], run: RecordedRun) -> list[StepTable]:
    """Return the steps to learn from: of other configurations, or else of repeats.

    Raises UsageError when no other recording has steps of the run's engine.
    """
    same = {table.configuration for table in tables if table.recording == run.recording}

    def teaches(found: Iterable[StepTable]) -> bool:
        return any(law_key(table.engine) == law_key(run.engine) for table in found)

    others = [table for table in tables if table.configuration not in same]
    if not teaches(others):
        others = [table for table in tables if table.recording != run.recording]
    if not teaches(others):
        raise UsageError("no other recording has steps of this engine to learn from")
    return others
