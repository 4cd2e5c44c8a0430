"""`ttscope replay --against URL`: a recorded run sent to a server, beside its prediction."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traces.errors import RecordingError, TablesError, UsageError
from traces.recording.manifest import check_free
from traces.recording.reader import Recording
from traces.schema.engine import EngineConfig
from traces.schema.estimate import Estimate
from traces.schema.formats import interval, intervals_of, percent_change, value_of
from traces.schema.quantities import quantity
from traces.summary.metrics import estimate_of
from traces.summary.run import Run, summarise, to_plain
from tui.options import AgainstOptions
from tui.terminal import say_all
from tui.text.commands import next_lines
from tui.text.layout import align, labelled
from tui.text.recordings.show import engine_text
from tui.text.replay import TAGS as REPLAYED
from tui.text.replay import relative

if TYPE_CHECKING:
    from advisor.what_if.question import Question
    from profiler.engines.server.server import ServerEngine
    from profiler.workload.resend import Resent

_UNKNOWN = ("accuracy", "device_s_per_problem", "cost_usd_per_problem", "energy_j.per_problem")
TAGS = tuple(tag for tag in REPLAYED if tag not in _UNKNOWN)
_LIMITS = ("max_num_seqs", "max_num_batched_tokens")  # a server does not tell them
_TOLD = ("max_model_len", "num_gpu_blocks", "enable_prefix_caching")


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A run as recorded, as predicted for the server (None where it cannot be) and as measured."""

    recorded: Run
    predicted: Run | None
    measured: Run
    folder: Path
    load: str
    notes: tuple[str, ...]


def run_against(
    base: Recording,
    recorded: Run,
    question: Question,
    others: Sequence[Recording],
    answer: AgainstOptions,
    given: frozenset[str],
) -> None:
    """Predict the run on the server, send it, and print both; keep what was measured.

    `given` are the names in `--set`.
    """
    from profiler.workload.resend import pose_again
    from tui.terminal import say_json

    folder = answer.output or Path("runs") / f"{base.name}-against-{time.strftime('%Y%m%d-%H%M%S')}"
    check_free(folder)
    assert recorded.policy is not None
    resent = pose_again(
        base,
        recorded.engine,
        recorded.policy,
        question.policy,
        source=answer.workload,
        chat=not answer.raw_prompts,
    )
    url = answer.against or ""
    engine = _connect(question.engine, url, answer.api_key_env)
    try:
        question = dataclasses.replace(
            question, engine=_as_served(question.engine, engine.config, given)
        )
        predicted, notes = _predicted(base, recorded, question, others)
        load = _send(base, resent, question, engine, folder)
    finally:
        engine.close()
    answered = Answered(
        recorded=recorded,
        predicted=predicted,
        measured=summarise(Recording.open(folder))[0],
        folder=folder,
        load=load,
        notes=(*notes, *_notes(base, folder, resent, given)),
    )
    if answer.as_json:
        say_json(against_json(answered))
        return
    lines = against_lines(answered, url)
    say_all([*lines, *next_lines("show", base.path, folder)])


def _connect(asked: EngineConfig, url: str, api_key_env: str | None) -> ServerEngine:
    from profiler.engines.server.access import read_headers, read_key
    from profiler.engines.server.server import ServerEngine

    return ServerEngine(
        url,
        model=asked.model,
        name=asked.model,
        headers=read_headers(read_key(api_key_env, None), ()),
        declared={
            "tensor_parallel_size": asked.tensor_parallel_size,
            "dtype": asked.dtype,
            "speculative": asked.speculative,
            **{name: getattr(asked, name) for name in _LIMITS},
        },
    )


def _as_served(asked: EngineConfig, served: EngineConfig, given: frozenset[str]) -> EngineConfig:
    """Return the engine that is predicted, with what the server tells of its own limits."""
    limits = {
        name: getattr(served, name)
        for name in _TOLD
        if getattr(served, name) is not None and f"engine.{name}" not in given
    }
    return dataclasses.replace(asked, **limits)


def _predicted(
    base: Recording, recorded: Run, question: Question, others: Sequence[Recording]
) -> tuple[Run | None, list[str]]:
    from advisor.what_if.predict import predict

    question = dataclasses.replace(question, arrivals_sent=True)  # by `_send`
    models = {name for each in (base, *others) for name in each.manifest.models}
    if question.engine.model not in models:  # the server's own name of it
        engine = dataclasses.replace(question.engine, model=recorded.engine.model)
        question = dataclasses.replace(question, engine=engine)
    try:
        prediction = predict(base, recorded, question, others)
    except (UsageError, RecordingError, TablesError) as error:
        return None, [f"not predicted: {error}"]
    notes = list(prediction.notes)
    if recorded.engine.mode == "in_process" and question.gpu is None and question.operators is None:
        notes.append(
            "steps were recorded in one process. A server's HTTP and front end come on top, and "
            "weigh where steps are short"
        )
    return prediction.predicted, notes


def _send(
    base: Recording, resent: Resent, question: Question, engine: ServerEngine, folder: Path
) -> str:
    """Send the run and keep its recording; return the load in words."""
    from advisor.what_if.replayed import poisson_arrivals
    from profiler.runs.record import record
    from tui.verbs.interrupted import says_what_is_kept
    from tui.verbs.progress import progress_bar

    count = len(resent.workload.problems)
    concurrency, arrivals = question.concurrency or base.manifest.concurrency, None
    load = f"{concurrency} problems in flight"
    if question.rate_per_s is not None:
        arrivals = tuple(poisson_arrivals(question.rate_per_s, count, question.seed).tolist())
        load = f"arrivals at {question.rate_per_s:g}/s"
    elif concurrency is None:
        arrivals, load = resent.arrivals_s, "at the recorded arrivals"
    with says_what_is_kept(folder), progress_bar() as bar:
        task = bar.add_task(f"sending to {engine.url}", total=count)
        record(
            resent.workload,
            resent.policy,
            engine,
            folder,
            concurrency=concurrency or count,
            arrivals_s=arrivals,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    return f"{count:,} problems, {load}, every sample as long as recorded"


def _notes(base: Recording, folder: Path, resent: Resent, given: frozenset[str]) -> Iterator[str]:
    measured = Recording.open(folder)
    unknown = [name for name in _LIMITS if f"engine.{name}" not in given]
    if unknown:
        yield (
            f"the server does not report its {' and '.join(unknown)}, which is taken as recorded. "
            "Set others with --set engine.FIELD=VALUE"
        )
    if resent.left_out:
        yield f"problems without all their samples, left out: {resent.left_out:,}"
    failed = measured.samples["error"].drop_nulls()
    if len(failed):
        yield f"samples that failed: {len(failed):,} of {measured.samples.height:,} ({failed[0]})"
    ids = measured.problems["problem_id"]
    pairs = measured.problems.join(base.problems, on="problem_id").select(
        "prompt_tokens", "prompt_tokens_right"
    )
    other = pairs.drop_nulls().filter(pairs["prompt_tokens"] != pairs["prompt_tokens_right"])
    if len(other):
        yield (
            f"prompts with another number of tokens than recorded: {len(other):,} of {len(ids):,}."
            " The server has another chat template or tokenizer (or try --raw-prompts)"
        )
    yield "answers of samples that are made to have a length are not judged: no accuracy"
    yield "prompts and lengths are as recorded, the tokens are not: no server replays them"


def against_json(answered: Answered) -> dict[str, Any]:
    """Return the document of `ttscope replay --against --json`."""
    return {
        "recorded": answered.recorded.to_json(),
        "predicted": None if answered.predicted is None else answered.predicted.to_json(),
        "measured": answered.measured.to_json(),
        "changes": {tag: _change(answered, tag) for tag in TAGS},
        "recording": str(answered.folder),
        "notes": list(answered.notes),
    }


def _change(answered: Answered, tag: str) -> Mapping[str, Any]:
    predicted, measured = estimate_of(answered.predicted, tag), estimate_of(answered.measured, tag)
    return {
        "recorded": to_plain(estimate_of(answered.recorded, tag)),
        "predicted": to_plain(predicted),
        "measured": to_plain(measured),
        "relative": relative(predicted, measured),
        "inside": _inside(predicted, measured),
    }


def against_lines(answered: Answered, url: str) -> Iterator[str]:
    """Return the lines of a run that was sent."""
    yield answered.recorded.recording
    head = [
        ("recorded", engine_text(answered.recorded.engine)),
        ("sent to", url),
        ("", engine_text(answered.measured.engine)),
        ("sent", answered.load),
    ]
    yield from labelled(head, width=80, indent=10)
    yield ""
    rows = [["", "recorded", "predicted", "interval", "measured", "off by", ""]]
    if of := intervals_of(estimate_of(answered.predicted, tag) for tag in TAGS):
        yield of
        yield ""
    before = answered.recorded if answered.predicted is None else answered.predicted
    for tag in TAGS:
        predicted, measured = (estimate_of(r, tag) for r in (answered.predicted, answered.measured))
        share = relative(estimate_of(before, tag), measured)
        inside = _inside(predicted, measured)
        rows.append(
            [
                quantity(tag).title,
                value_of(estimate_of(answered.recorded, tag)),
                value_of(predicted),
                interval(predicted),
                value_of(measured),
                percent_change(share),
                "" if inside is None else "inside" if inside else "outside",
            ]
        )
    yield from align(rows, right=(1, 2, 4, 5), gap=1)
    yield ""
    yield f"off by: measured against {'recorded' if answered.predicted is None else 'predicted'}"
    yield from labelled((("note", note) for note in answered.notes), width=80, indent=10)
    yield ""
    yield f"kept in {answered.folder}"


def _inside(predicted: Estimate | None, measured: Estimate | None) -> bool | None:
    return None if predicted is None or measured is None else predicted.holds(measured.value)
