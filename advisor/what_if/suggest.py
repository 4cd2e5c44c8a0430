"""What to try next on a server that was watched: one change, with its effect by replay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from advisor.evidence.gather import stand_for_all
from advisor.evidence.live.histograms import MOST_DRAWN, arrivals_in
from advisor.evidence.live.servers import replayable, servers_of
from advisor.evidence.runs import rate_under_load, read_runs
from advisor.replay.replay import Replicas
from advisor.what_if.predict import Prediction, predict
from advisor.what_if.question import Question, changed
from traces.errors import TtscopeError
from traces.live.numbers import E2E, FINISHED
from traces.live.verdict import Remedy, change_for
from traces.live.watched import Watched, watched_engines
from traces.recording.reader import Recording
from traces.schema.engine import RANKS, EngineConfig
from traces.schema.formats import counted, number
from traces.summary.comparison import RUN_TO_RUN, paces, varied
from traces.summary.run import Run, summarise

FEW: Final = 30  # requests, whose mean latency is off by chance as much as runs differ


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A replay to run, as words behind `ttscope replay RECORDING`, and what it predicts.

    `why` says what of the verdict asks for it.
    """

    arguments: tuple[str, ...]
    why: str
    prediction: Prediction


def suggest(recording: Recording) -> Suggestion | str:
    """Return what to try next for the busiest engine that was watched, or why nothing is known.

    The change is the verdict's (`change_for`). None is offered by a replay that does not give the
    latency that was measured.
    """
    runs = summarise(recording)
    watched = watched_engines(recording, runs)
    if not watched:
        return "nothing was watched"
    server = max(watched, key=lambda each: 0 if each.numbers is None else each.numbers.running or 0)
    alike: list[Watched] = [server]
    chosen: tuple[str, ...] = ()
    groups = servers_of(recording)
    place = next((i for i, each in enumerate(groups) if each.has(server.engine)), None)
    if place is None:
        run = next((each for each in runs if each.engine == server.engine), None)
    else:
        run = replayable(recording, runs, groups)[place]
        alike = [each for each in watched if groups[place].has(each.engine)]
        chosen = ("--run", str(place + 1)) if len(groups) > 1 else ()
    if run is None:
        return "no request was seen"
    rate = _rate(recording, alike, run)
    change = change_for(server.verdict, server.numbers, server.engine, rate)
    if (none := _no_replay(change, server.engine)) is not None:
        return none
    try:
        arguments = change.arguments
        if len(alike) > 1 and arguments[0] == "--replicas":
            facts = recording.manifest.models.get(run.engine.model)
            servers = RANKS in dict(run.engine.other)
            if servers or facts is None or not facts.num_experts:  # one more than there are
                ranks = (run.engine.ranks or 1) if servers else 1
                more = run.engine.data_parallel_size + ranks
                arguments = ("--set", f"engine.data_parallel_size={more}")
        prediction = _predicted(recording, run, arguments)
        off, worse = prediction.far_off, _worse(prediction)
        but = None
        if off is not None and "latency_s.mean" in off.tags:
            but = f"{off.words}. {_why_off(recording, run)}"
        elif arguments[0] != "--rate" and worse is not None:
            but = f"{' '.join(arguments)} is no help: {worse}"
        if but is not None:
            return f"{change.why}, but {but}"
        return Suggestion(arguments=(*chosen, *arguments), why=change.why, prediction=prediction)
    except TtscopeError as error:
        return str(error)


def _no_replay(change: Remedy, engine: EngineConfig) -> str | None:
    """Return why a change cannot be replayed, None where it can."""
    if not change.arguments:
        return f"{change.why}. {change.told[:1].upper()}{change.told[1:]}"
    if engine.max_num_seqs is None and "max_num_seqs=" in change.arguments[-1]:
        return (
            f"{change.why}, but what max_num_seqs is now is not known. The replay without a limit "
            "is another engine. Watch for longer, or with the plugin (docs/attach.md)"
        )
    return None


def _why_off(recording: Recording, run: Run) -> str:
    """Return what the recording shows of why a replay does not give it, and how to watch again."""
    factors = paces(run.step_rows)
    if varied(factors) > RUN_TO_RUN:
        return (
            f"The server was not always as fast: steps took from {min(factors):.2f} to "
            f"{max(factors):.2f} times their usual time, by eighths of its busy time. A longer "
            "watch does not help. Watch again while nothing else uses the machine"
        )
    sent = {"samples": "spans", "steps": "steps (the plugin)"}
    lacking = [name for table, name in sent.items() if not recording.rows(table)]
    if lacking:
        return f"Watch again with {' and '.join(lacking)}, as ttscope doctor URL prints"
    if run.problems < FEW:
        return f"It holds {counted(run.problems, 'request')}. Watch again for longer"
    return "What was recorded does not show why: its steps and requests are all there"


def _worse(prediction: Prediction) -> str | None:
    """Say that a change makes the replay slower, where that is predicted; None where it is not."""
    replayed = prediction.replayed
    was = None if replayed is None else replayed.latency_s["mean"]
    predicted = prediction.predicted.latency_s["mean"]
    off = () if prediction.far_off is None else prediction.far_off.tags
    if "latency_s.mean" in off or was is None or predicted is None or predicted.value <= was.value:
        return None
    opening = "the replay has a mean latency of"
    return f"{opening} {number(predicted.value, 's')} with it, and {number(was.value, 's')} without"


def _rate(recording: Recording, servers: Sequence[Watched], run: Run) -> float:
    """Return the problems that arrived a second, or the requests where spans tell of too few.

    That is of the time in which they came. As the replay has them (gather.py): requests of a
    problem that came in turn are none of it.
    """
    rate = None
    if run.rows is not None:
        rate = rate_under_load(run.rows["arrival"], run.rows["latency_s"])
    seen = _seen_rate(servers)
    if rate is None or run.sample_rows is None:
        return seen
    ended = sum(each.window.total(FINISHED) or 0.0 for each in servers if each.window is not None)
    kept = told = run.sample_rows.height
    if told > run.sample_rows["problem"].n_unique():
        of_model = [r for r in read_runs(recording).runs if r.engine.model == run.engine.model]
        kept = sum(len(problem.samples) for r in of_model for problem in r.problems.values())
    return rate if stand_for_all(kept, told - kept, ended) else seen or rate


def _seen_rate(servers: Sequence[Watched]) -> float:
    """Return the requests a second of servers while they came, as their /metrics tell it."""
    windows = [each.window for each in servers if each.window is not None]
    each = [np.zeros(0, dtype=np.int64), *map(arrivals_in, windows)]
    arrivals = np.sort(np.concatenate(each))[-MOST_DRAWN:].tolist()
    ended, seconds = (
        sum(window.total(f"{E2E}_{part}") or 0.0 for window in windows) for part in ("count", "sum")
    )
    rate = rate_under_load(arrivals, seconds / ended if ended else 0.0)
    per_s = (each.numbers.samples_per_s or 0.0 for each in servers if each.numbers is not None)
    return sum(per_s) if rate is None else rate


def _predicted(recording: Recording, run: Run, arguments: Sequence[str]) -> Prediction:
    name, value = arguments
    changes = [value] if name == "--set" else []
    engine, policy, _ = changed(run, changes)
    replicas = Replicas()
    if name == "--replicas":
        replicas = Replicas(count=int(value))  # routed as the command routes
    question = Question(
        engine=engine,
        policy=policy,
        rate_per_s=float(value.removesuffix("/s")) if name == "--rate" else None,
        replicas=replicas,
    )
    return predict(recording, run, question)
