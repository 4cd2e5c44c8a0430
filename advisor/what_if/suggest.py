"""What to try next on a server that was watched: one change, with its effect by replay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from advisor.replay.replay import Replicas
from advisor.what_if.predict import Prediction, predict
from advisor.what_if.question import Question, changed
from traces.errors import TtscopeError
from traces.live.watched import Watched, watched_engines
from traces.recording.reader import Recording
from traces.schema.engine import EngineConfig
from traces.summary.run import Run, summarise

MORE = 1.5  # times the load that a server without a bottleneck is asked to bear


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

    The change answers the verdict's first finding: a queue behind `max_num_seqs` gets twice as
    many, a full cache half as many blocks more, another queue a second replica. Where nothing
    stands out the load grows by half.
    """
    runs = summarise(recording)
    watched = watched_engines(recording, runs)
    if not watched:
        return "nothing was watched"
    server = max(watched, key=lambda each: 0 if each.numbers is None else each.numbers.running or 0)
    run = next((each for each in runs if each.engine == server.engine), None)
    if run is None:
        return "no request was seen"
    arguments, why = _change(server, run)
    try:
        return Suggestion(
            arguments=arguments, why=why, prediction=_predicted(recording, run, arguments)
        )
    except TtscopeError as error:
        return str(error)


def _change(server: Watched, run: Run) -> tuple[tuple[str, ...], str]:
    """Return the arguments of the replay that answers a verdict, and the reason."""
    numbers, engine = server.numbers, server.engine
    kind = server.verdict.found[0].kind if server.verdict.found else None
    most = None if numbers is None or numbers.running_max is None else round(numbers.running_max)
    seqs = engine.max_num_seqs or most
    capped = numbers is not None and (numbers.capped_share or 0) > 0
    if kind == "KV-bound" and engine.num_gpu_blocks is not None:
        more = engine.num_gpu_blocks * 3 // 2
        return _set("num_gpu_blocks", more), "the KV cache is full"
    if kind == "queueing" and capped and seqs and _has_room(engine, server):
        return _set("max_num_seqs", 2 * seqs), f"requests wait while {seqs} run"
    if kind in {"queueing", "KV-bound"}:
        return ("--replicas", "2"), "requests wait"
    rate = _rate(server, run)
    return ("--rate", f"{float(f'{MORE * rate:.3g}'):g}/s"), f"{MORE:g} times the load"


def _set(name: str, value: int) -> tuple[str, ...]:
    return ("--set", f"engine.{name}={value}")


def _has_room(engine: EngineConfig, server: Watched) -> bool:
    """Whether the cache has room for twice as many requests, as far as is known."""
    share = None if server.numbers is None else server.numbers.kv_share_max
    return share is None or engine.num_gpu_blocks is None or 2 * share <= 1


def _rate(server: Watched, run: Run) -> float:
    """Return the problems that arrived a second, or the requests where problems are not known."""
    if run.rows is not None and run.rows.height > 1:
        arrivals = run.rows["arrival"].drop_nulls()
        span = (int(arrivals.max()) - int(arrivals.min())) / 1e9  # type: ignore[arg-type]
        if span > 0:
            return (arrivals.len() - 1) / span
    return 0.0 if server.numbers is None else server.numbers.requests_per_s or 0.0


def _predicted(recording: Recording, run: Run, arguments: Sequence[str]) -> Prediction:
    name, value = arguments
    changes = [value] if name == "--set" else []
    engine, policy, _ = changed(run, changes)
    replicas = Replicas()
    if name == "--replicas":
        replicas = Replicas(count=int(value), routing="least-outstanding")
    question = Question(
        engine=engine,
        policy=policy,
        rate_per_s=float(value.removesuffix("/s")) if name == "--rate" else None,
        replicas=replicas,
    )
    return predict(recording, run, question)
