"""A recorded run under another configuration: what the replay says of it, with intervals.

The samples are those recorded, so lengths and answers are real; what is predicted is when they
would have come. A fresh run differs by how fast the machine happens to be that day (the spread of
the step-time law) and, where fewer samples are drawn than were recorded, by which.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from advisor.draft_law import draft_law
from advisor.evidence import Evidence, Run, gather
from advisor.models.step_time import StepTimeModel
from advisor.power_windows import power_law
from advisor.redrafting import Redrafted, redraft
from advisor.replay import Replicas
from advisor.replayed_tables import write_recording
from advisor.replays import Question, Replays
from advisor.space import decoder_of, sampling_of
from advisor.waiting import Waited
from traces.errors import UsageError
from traces.manifest import Manifest
from traces.recording import Recording
from traces.summary import Run as Summary


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A run as recorded, as replayed, and as predicted under the question's configuration.

    `waits` are the predicted run's problems that queued longest. `tables` and `manifest` are the
    predicted run as a recording.
    """

    recorded: Summary
    replayed: Summary
    predicted: Summary
    waits: tuple[Waited, ...]
    notes: tuple[str, ...]
    tables: Mapping[str, pl.DataFrame]
    manifest: Manifest

    def write(self, folder: Path) -> None:
        """Write the predicted run as a recording. Raises RecordingError where one exists."""
        write_recording(folder, self.manifest, self.tables)


def predict(
    base: Recording, recorded: Summary, question: Question, others: Sequence[Recording] = ()
) -> Prediction:
    """Replay a recorded run as it was and as asked.

    `recorded` is one of the base's runs; `others` are recordings that teach step times, and
    samples where the question is of another model. Raises UsageError for what the recordings
    cannot answer, and RecordingError when they hold nothing to replay.
    """
    recordings = [base, *others]
    evidence = gather(recordings, judged=False)
    model = StepTimeModel().fit(evidence.steps)
    own = _own_run(evidence, base, recorded)
    redrafted = None
    if question.engine.speculative != own.engine.speculative:
        redrafted = _redrafted(evidence, recordings, question)
    sources = (_source(evidence, own, question),) if redrafted is None else redrafted.runs
    law, told = None, None
    if redrafted is not None and question.operators is None:
        law, told = draft_law(model, recordings, question.engine)
    same = replace(question, engine=own.engine, policy=own.policy)
    same = replace(same, rate_per_s=None, concurrency=None, replicas=Replicas(), operators=None)
    power = power_law(recordings, own.engine)
    before = Replays(base, evidence, model, own, (own,), same, power=power)
    after = before
    if same != question:
        longer = redrafted is not None and redrafted.extrapolated
        if question.engine != own.engine:
            power = power_law(recordings, question.engine)
        after = Replays(
            base,
            evidence,
            model,
            own,
            sources,
            question,
            law=law,
            extrapolated=longer,
            power=power if question.operators is None else None,
        )
    runs = after.times.runs
    if runs is None:
        notes = ["step times are of operator tables; no run of yours has checked them: no interval"]
        if after.engine.num_gpu_blocks is None:
            notes.append("KV blocks without limit; set engine.num_gpu_blocks to the engine's own")
    else:
        notes = [f"step times were learned from {runs} recorded run{'s' if runs > 1 else ''}"]
    if own.engine.mode == "in_process":
        notes.append(
            "TTFT was recorded from when a sample was handed to the engine in this process; the "
            "replay counts from its draw, so that the work between (tokenising, vLLM's input "
            "processing) is in it"
        )
    notes += [] if redrafted is None else [redrafted.note]
    notes += [] if told is None else [told]
    if redrafted is not None and redrafted.extrapolated:
        notes.append("outside what was recorded: drafts are longer; marked *")
    elif after.outside:
        notes.append("outside what was recorded: batches or contexts are larger; marked *")
    if after.drawn < after.recorded:
        notes.append(f"{after.drawn} of the recorded samples drawn, {len(after.runs)} times")
    return Prediction(
        recorded=recorded,
        replayed=before.summary(),
        predicted=after.summary(),
        waits=tuple(after.waits()),
        notes=tuple(notes),
        tables=after.tables,
        manifest=after.manifest,
    )


def _own_run(evidence: Evidence, base: Recording, recorded: Summary) -> Run:
    for run in evidence.runs:
        same = run.engine == recorded.engine and run.policy == recorded.policy
        if run.recording == base.name and same:
            return run
    method = None if recorded.policy is None else recorded.policy.label()
    raise UsageError(
        f"{base.name}: the samples of {method or 'a run without a policy'} cannot be replayed; "
        "they must all have run to their end, as with majority, best_of_n or greedy"
    )


def _redrafted(
    evidence: Evidence, recordings: Sequence[Recording], question: Question
) -> Redrafted | None:
    """Return samples with the asked drafts where none were recorded with them."""
    wanted = (decoder_of(question.engine), sampling_of(question.policy))
    if any((decoder_of(run.engine), sampling_of(run.policy)) == wanted for run in evidence.runs):
        return None
    found = redraft(evidence, recordings, question.engine, question.policy)
    if found is None or found.runs[0].policy.n < question.policy.n:
        return None
    return found


def _source(evidence: Evidence, own: Run, question: Question) -> Run:
    """Return the run whose samples answer the question: the own one if it can."""
    wanted = (decoder_of(question.engine), sampling_of(question.policy))
    fitting = [
        run
        for run in [own, *evidence.runs]
        if (decoder_of(run.engine), sampling_of(run.policy)) == wanted
    ]
    if not fitting:
        raise UsageError(_unanswered(evidence, own, question))
    enough = own in fitting and own.policy.n >= question.policy.n
    source = own if enough else max(fitting, key=lambda run: run.policy.n)
    if source.policy.n < question.policy.n:
        raise UsageError(
            f"policy.n={question.policy.n}: {source.policy.n} samples per problem were recorded; "
            "record more, or ask for fewer"
        )
    common = set(own.problems) & set(source.problems)
    if not common:
        raise UsageError(f"{source.recording}: has no problem in common with {own.recording}")
    return source


def _unanswered(evidence: Evidence, own: Run, question: Question) -> str:
    engine, policy = question.engine, question.policy
    models = {run.engine.model for run in evidence.runs}
    if engine.model not in models:
        return f"no samples of {engine.model} were recorded; add a recording of it with --with"
    if decoder_of(engine) not in {decoder_of(run.engine) for run in evidence.runs}:
        return (
            f"no samples of {engine.model} with {engine.label()} were recorded (speculation, "
            "precision and quantisation change answers or drafts); add such a recording with --with"
        )
    changed = [
        field.name
        for field in dataclasses.fields(policy)
        if field.name not in ("method", "n", "rule")
        and getattr(policy, field.name) != getattr(own.policy, field.name)
    ]
    what = ", ".join(f"policy.{name}={getattr(policy, name)}" for name in changed)
    return f"no samples with {what} were recorded; lengths and answers would differ, record them"
