"""`ttscope replay`: recorded, replayed and predicted beside each other, in at most 80 columns."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traces.schema.estimate import Estimate
from traces.schema.formats import (
    ABSENT,
    counted,
    interval,
    intervals_of,
    number,
    percent,
    percent_change,
    value_of,
)
from traces.schema.quantities import quantity
from traces.schema.tts.policy import AS_SENT
from traces.statistics import apart
from traces.summary.comparison import config_changes
from traces.summary.metrics import estimate_of
from traces.summary.run import Run, to_plain
from tui.text.layout import align, labelled, wrap
from tui.text.recordings.show import changed_fields, engine_text, imported_text, policy_text

if TYPE_CHECKING:
    from advisor.advice.accounts.costs import Tariff
    from advisor.forecast.agents import Agents, AgentsRun, MostAgents
    from advisor.what_if.predict import Prediction
    from advisor.what_if.question import Question
    from advisor.what_if.rollouts.batch import BatchRun

DONE = ("p50", "p90", "p99")  # shares of a batch
TAGS = (
    "accuracy",
    "tokens_per_problem",
    "latency_s.mean",
    "latency_s.p50",
    "latency_s.p95",
    "ttft_s.p50",
    "ttft_s.p95",
    "tpot_s.p50",
    "throughput_tokens_per_s",
    "device_s_per_problem",
    "cost_usd_per_problem",
    "energy_j.per_problem",
)


def replay_json(prediction: Prediction, tariff: Tariff | None = None) -> dict[str, Any]:
    """Return the document of `ttscope replay --json`, with what energy costs at a price."""
    usd = electricity(prediction, tariff)
    costs = {} if usd is None else {"electricity_usd_per_thousand_problems": to_plain(usd)}
    return costs | {
        "recorded": prediction.recorded.to_json(),
        "replayed": None if prediction.replayed is None else prediction.replayed.to_json(),
        "predicted": prediction.predicted.to_json(),
        "changes": {tag: _change_json(prediction, tag) for tag in TAGS},
        "compared": [{**vars(each), "relative": each.relative} for each in prediction.compared],
        "pace": None if prediction.pace is None else to_plain(prediction.pace),
        "batch": None
        if prediction.batch is None
        else dict(zip(("before", "after"), map(to_plain, prediction.batch), strict=True)),
        "agents": None if prediction.agents is None else to_plain(prediction.agents),
        "waits": [to_plain(each) for each in prediction.waits],
        "notes": list(prediction.notes),
    }


def _change_json(prediction: Prediction, tag: str) -> dict[str, Any]:
    recorded, replayed, predicted = _three(prediction, tag)
    return {
        "recorded": to_plain(recorded),
        "replayed": to_plain(replayed),
        "predicted": to_plain(predicted),
        "relative": relative(replayed, predicted),
    }


def _three(prediction: Prediction, tag: str) -> list[Estimate | None]:
    runs = (prediction.recorded, prediction.replayed, prediction.predicted)
    return [estimate_of(run, tag) for run in runs]


MOST_NOTES = 3  # that are printed without --explain


def replay_lines(
    prediction: Prediction,
    question: Question,
    *,
    width: int = 80,
    explain: bool = True,
    tariff: Tariff | None = None,
) -> Iterator[str]:
    """Return the lines of a prediction; without `explain` with the weightiest notes alone.

    With a price per kWh in the `tariff` also what the energy costs.
    """
    recorded, predicted = prediction.recorded, prediction.predicted
    yield recorded.recording
    engine = engine_text(recorded.engine) if recorded.imported is None else imported_text(recorded)
    asked = ", ".join(_changes(recorded, question, predicted)) or "as recorded"
    warned = None if prediction.far_off is None else prediction.far_off.text
    head = [("recorded", engine), ("", policy_text(recorded.policy or AS_SENT)), ("asked", asked)]
    head += [] if warned is None else [("warning", warned)]
    yield from labelled(head, width=width, indent=10)
    yield ""
    estimates = {tag: _three(prediction, tag) for tag in TAGS}
    shown = {tag: each for tag, each in estimates.items() if each[0] or each[2]}
    three = (recorded, prediction.replayed, predicted)
    steps = [ABSENT if run is None or not run.steps else f"{run.steps:,}" for run in three]
    gap = 1 if width <= 80 else 2
    wide = max(map(len, ["predicted", steps[2], *(value_of(each[2]) for each in shown.values())]))
    between = " " * gap
    if of := intervals_of(each[2] for each in shown.values()):
        yield from wrap("", of, width=width, indent=0)
        yield ""
    rows = [["", "recorded", "replayed", f"{'predicted':>{wide}}{between}interval", "change"]]
    for tag, (before, replayed, after) in shown.items():
        with_ends = f"{value_of(after):>{wide}}{between}{interval(after)}"
        change = change_words(tag, replayed, after)
        rows.append([quantity(tag).title, value_of(before), value_of(replayed), with_ends, change])
    rows.append(["steps", *steps[:2], f"{steps[2]:>{wide}}", ""])
    yield from align(rows, right=(1, 2, 4), gap=gap, width=width)
    yield ""
    if prediction.replayed is not None:
        yield from wrap("", "change: predicted against replayed, so that the replay's own error "
                        "drops out", width=width, indent=0)  # fmt: skip
        yield ""
    if prediction.predicted.energy_j.per_token is not None:
        yield from wrap("", _energy(prediction, tariff), width=width, indent=0)
        yield ""
    if prediction.batch is not None:
        yield from _batch(*prediction.batch, width)
    if prediction.agents is not None:
        yield from agents_lines(prediction.agents, width)
    if prediction.compared:
        yield from _compared(prediction, width)
    if prediction.waits:
        yield from _waits(prediction, width)
    notes = [note for note in prediction.notes if note != warned]
    left = 0 if explain else max(len(notes) - MOST_NOTES, 0)
    listed = [("note", note) for note in notes[: len(notes) - left]]
    if left:
        listed.append(("more", f"--explain gives the rest ({counted(left, 'note')})"))
    yield from labelled(listed, width=width, indent=10)


def electricity(prediction: Prediction, tariff: Tariff | None) -> Estimate | None:
    """Return the USD that the energy of 1,000 problems costs, None without it or a price."""
    each = prediction.predicted.energy_j.per_problem
    per_joule = None if tariff is None else tariff.usd_per_joule
    return None if each is None or per_joule is None else each.scaled(1e3 * per_joule, "USD")


def _energy(prediction: Prediction, tariff: Tariff | None) -> str:
    """Say what energy a token is predicted to take, and what that of problems costs."""
    by_token, usd = prediction.predicted.energy_j.per_token, electricity(prediction, tariff)
    said = f"energy a token: {value_of(by_token)} {interval(by_token)}".rstrip()
    if usd is None or tariff is None:
        return said
    return (
        f"{said}. Electricity of 1,000 problems: {value_of(usd)} {interval(usd)} at "
        f"${tariff.kwh_price:g} per kWh and a PUE of {tariff.pue or 1:g}"
    )


def _batch(was: BatchRun | None, batch: BatchRun, width: int) -> Iterator[str]:
    """Yield how long a batch takes as the engine was and as predicted, and what stands idle."""
    each = f"{counted(batch.problems, 'problem')} of {counted(batch.samples, 'sample')}"
    flying = "all sent at once" if batch.concurrency is None else f"{batch.concurrency:,} at a time"
    yield from wrap("", f"batch of {each}, {flying}", width=width, indent=0)
    rows = [["", "replayed", "predicted  interval", "change"]]
    for name, after in _parts(batch).items():
        before = None if was is None else _parts(was)[name]
        if after is None:
            continue
        change = change_words("accuracy" if after.unit == "1" else name, before, after)
        told = f"{value_of(after)}  {interval(after)}".rstrip()
        rows.append([name, value_of(before), told, change])
    yield from align(rows, right=(1, 3), width=width)
    yield ""


def _parts(batch: BatchRun) -> dict[str, Estimate | None]:
    """Return the lines of a batch by their names."""
    return {
        **{f"{tag.removeprefix('p')} % answered": batch.done_s[tag] for tag in DONE},
        "end": batch.end_s,
        "after 90 %": batch.tail_share,
        "idle devices": batch.idle_share,
        "empty slots": batch.idle_slots_share,
    }


def agents_lines(agents: Agents, width: int) -> Iterator[str]:
    """Yield what so many agents at once are served, a row a number of them."""
    sessions = f"{counted(agents.sessions, 'recorded session')} of {counted(agents.turns, 'turn')}"
    yield from wrap("", f"agents at work on {sessions}", width=width, indent=0)
    rows = [
        ["agents", "turn p50", "turn p95  interval", "TTFT p95", "session", "tokens/s", "cached"]
    ]
    for run in _worth_a_row(agents):
        p95, cached = run.turn_s["p95"], run.cached_share
        rows.append(
            [
                f"{run.agents:,}",
                value_of(run.turn_s["p50"]),
                f"{value_of(p95)}  {interval(p95)}".rstrip(),
                value_of(run.ttft_s["p95"]),
                value_of(run.session_s),
                number(run.tokens_per_s.value, "tokens/s").split()[0],
                ABSENT if cached is None else _share_of(cached.value, run.cached_share_kept),
            ]
        )
    yield from align(rows, right=(0, 1, 3, 4, 5, 6), gap=1 if width <= 80 else 2, width=width)
    told = []
    if agents.most is not None:
        told.append(_most_agents(agents.most))
    if any(run.cached_share_kept is not None for run in agents.by_agents):
        told.append("cached: prompt tokens from the prefix cache, and if it never dropped any")
    tools = agents.by_agents[0].tools_share if agents.by_agents else None
    if tools is not None:
        with_them = counted(agents.by_agents[0].agents, "agent")
        told.append(f"With {with_them} tools and people take {percent(tools.value)} of a session")
    yield from wrap("", ". ".join(told), width=width, indent=0)
    yield ""


def _worth_a_row(agents: Agents) -> list[AgentsRun]:
    """Return the runs of the asked numbers, and those up to the first beyond the limit."""
    most = None if agents.most is None else agents.most.agents
    beyond = [run.agents for run in agents.by_agents if most is not None and run.agents > most]
    upto = min(beyond, default=math.inf) if agents.most is not None else 0
    return [run for run in agents.by_agents if run.agents in agents.asked or run.agents <= upto]


def _share_of(share: float, kept: float | None) -> str:
    return percent(share) if kept is None else f"{percent(share)} of {percent(kept)}"


def _most_agents(most: MostAgents) -> str:
    """Say how many agents have p95 turns within a limit, and the ends of that."""
    from advisor.forecast.agents import LIMIT

    limit = number(most.limit_s, "s")
    if most.agents == 0:
        return f"Not even one agent has p95 turns within {limit}"
    each = [f"{LIMIT:,} or more" if n is None else f"{n:,}" for n in (most.low, most.high)]
    many = f"{LIMIT:,} or more" if most.agents is None else f"{most.agents:,}"
    return f"Up to {many} agents at once have p95 turns within {limit} ({each[0]} to {each[1]})"


def _compared(prediction: Prediction, width: int) -> Iterator[str]:
    """Yield what a client measured beside what is predicted of the same requests."""
    if all(each.measured_s is None for each in prediction.compared):
        numbers = ", ".join(
            f"{each.part} {number(each.predicted_s, 's')}" for each in prediction.compared
        )
        yield from wrap(
            "", f"{prediction.compared[0].name} predicted: {numbers}", width=width, indent=0
        )
        yield ""
        return
    rows = [["client", "measured", "predicted"]]
    for each in prediction.compared:
        values = (number(v, "s") for v in (each.measured_s, each.predicted_s))
        rows.append([f"{each.name} {each.part}", *values])
    yield from align(rows, right=(1, 2), width=width)
    numbers = (
        "measured: on the engine that the client had, which the file does not name. predicted: on "
        "the engine asked about"
    )
    yield from wrap("", numbers, width=width, indent=0)
    yield ""


def _waits(prediction: Prediction, width: int) -> Iterator[str]:
    rows = [["who waited", "latency", "queued", "prefill", "decoded", "most behind (slot-s)"]]
    for each in prediction.waits:
        behind = ", ".join(f"{_short(name)} {number(sec, 's')}" for name, sec in each.behind[:1])
        rows.append(
            [
                _short(each.problem_id),
                *(number(v, "s") for v in (each.latency_s, each.queued_s, each.prefill_s)),
                number(each.decode_s, "s"),
                behind or ABSENT,
            ]
        )
    yield from align(rows, right=(1, 2, 3, 4), width=width)


def _short(problem_id: str) -> str:
    """Return a name in 12 columns; the ends of long ones tell them apart."""
    return problem_id if len(problem_id) <= 12 else f"…{problem_id[-11:]}"


def _changes(recorded: Run, question: Question, predicted: Run) -> list[str]:
    # The KV cache has as many blocks as the GPU has room for.
    engine = replace(question.engine, num_gpu_blocks=predicted.engine.num_gpu_blocks)
    sent = replace(recorded, policy=recorded.policy or AS_SENT)
    asked = replace(sent, engine=engine, policy=question.policy, imported=None)
    parts = changed_fields(config_changes(sent, asked))
    if question.rate_per_s is not None:
        parts.append(f"arrivals at {question.rate_per_s:g}/s")
    if question.concurrency is not None:
        parts.append(f"{question.concurrency} problems in flight")
    if question.operators is not None:
        layers, together = question.num_hidden_layers, question.collectives
        parts.append(
            f"steps of the tables in {question.operators.name}"
            + ("" if layers is None else f", {layers} layers")
            + ("" if together is None else f", all-reduces of {together.name}")
        )
    if question.gpu is not None:
        facts = question.model_facts
        parts.append(
            f"steps of the prior of {Path(question.gpu).name}"
            + ("" if facts is None else f", {facts.name}")
        )
    if question.power_cap_w is not None:
        parts.append(f"boards capped at {question.power_cap_w:g} W")
    if question.replicas.count > 1:
        how = ", samples together" if question.replicas.together else ""
        parts.append(f"{question.replicas.count} replicas, {question.replicas.routing}{how}")
    return parts


def change_words(tag: str, replayed: Estimate | None, predicted: Estimate | None) -> str:
    """Return predicted against replayed: a share of it, of accuracy a difference in points."""
    if tag != "accuracy" or replayed is None or predicted is None:
        return percent_change(relative(replayed, predicted))
    return number(predicted.value - replayed.value, "1", sign=True).replace("points", "pts")


def relative(before: Estimate | None, after: Estimate | None) -> float | None:
    """Return by what share one number is above another, None where either is not known."""
    if before is None or after is None or not before.value:
        return None
    return float(apart(1.0, after.value / before.value))
