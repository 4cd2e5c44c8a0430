"""What was measured: the runs, where their time went, kernels, and accepted draft tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

from traces.live.watched import Watched
from traces.schema.estimate import Estimate
from traces.schema.formats import number, percent, percent_change
from traces.schema.quantities import quantity
from traces.schema.tts.policy import AS_SENT
from traces.summary.metrics import estimate_of
from traces.summary.run import Run
from tui.report.markup import BREAK, Content, Html, empty, join, tag
from tui.report.material import MOST_FORETOLD, Material
from tui.report.words import KINDS, OF_RUN, configuration
from tui.text.advice import capital
from tui.text.blocks import Cell, Table, Term, Value, count
from tui.text.recordings.kernels import (
    collectives_table,
    families_table,
    held_texts,
    idle_parts,
    kept_table,
)
from tui.text.recordings.show import warnings_of

MOST_RUNS = 100  # rows of a table; the page stays small
OF_IMPORTS = "sample_latency_s.p50"
NO_COLLECTIVES = (
    "No collectives: the run used one device, or its ranks did not talk in the windows."
)


def name_of(run: Run, index: int, lead: str | None = None) -> Html:
    """Return what a run is called, its number in the table of runs, and its configuration."""
    imported, lead = run.imported is not None, lead or f"{index + 1}"
    return configuration(run.engine, run.policy, lead=lead, imported=imported)


def _cut(runs: Sequence[Run]) -> Html | None:
    left = len(runs) - MOST_RUNS
    if left <= 0:
        return None
    return tag("p", f"{left:,} more runs are left out here. ttscope show has each.",
               class_="note")  # fmt: skip


def recorded_runs(runs: Sequence[Run], names: Sequence[str] | None = None) -> Html:
    """Return what a reader must know of runs, and the table of them with their numbers.

    With `names` they are what one run was, and is under other configurations.
    """
    if not runs:
        return empty("No run: the recordings hold no problem.")
    tags = [t for t in OF_RUN if t != "cost_usd_per_problem" or _any(runs, t)]
    tags += [OF_IMPORTS] if _any(runs, OF_IMPORTS) else []
    columns = [quantity(name) for name in tags]
    decided = "Problems that got an answer. Every mean rests on these."
    heads: list[Cell] = ["run", Term("problems", decided)]
    heads += [Term(each.noun, each.meaning) for each in columns]
    rows = []
    for index, run in enumerate(runs[:MOST_RUNS]):
        where = f"runs.{index}"
        cells: list[Cell] = [
            join(
                [
                    name_of(run, index, None if names is None else names[index]),
                    tag("span", run.recording, class_="recording") if names is None else None,
                ],
                BREAK,
            ),
            count(run.problems, key=f"{where}.problems"),
        ]
        for each in columns:
            estimate = estimate_of(run, each.tag)
            cells.append(Value(estimate, key=f"{where}.{each.tag}"))
        rows.append(cells)
    what = "Recorded runs" if names is None else runs[0].recording
    numbers = Table(heads=heads, rows=rows, caption=f"{what}, per problem", style="runs")
    return join([_warnings(runs) if names is None else None, numbers, _cut(runs)])


def _any(runs: Sequence[Run], name: str) -> bool:
    return any(estimate_of(run, name) is not None for run in runs)


def _warnings(runs: Sequence[Run]) -> Html | None:
    recordings: dict[str, list[str]] = {}
    for run in runs:
        for warning in warnings_of(run):
            recordings.setdefault(warning, []).append(run.recording)
    if not recordings:
        return None
    items = [
        tag("li", note, " ", tag("span", f"({', '.join(dict.fromkeys(names))})", class_="how"))
        for note, names in recordings.items()
    ]
    return join([tag("h3", "To know before the numbers"), tag("ul", *items)])


def time_breakdown(runs: Sequence[Run], watched: Sequence[Watched] = ()) -> Html:
    """Return how much of each run's time each kind of step took, and how much was idle."""
    timed = [(i, run) for i, run in enumerate(runs) if sum(run.seconds.values()) > 0]
    if not timed and any(each.columns for each in watched):
        return empty(
            "No shares of time: no run of problems was recorded with steps. What the steps of the "
            "servers say stands under Servers that were watched."
        )
    if not timed:
        return empty(
            "No steps: these recordings do not hold what the engine did step by step. ttscope "
            "record holds it. Imported outcomes and servers watched from outside do not."
        )
    some = {kind for _, run in timed for kind, spent in run.seconds.items() if spent > 0}
    kinds = {kind: told for kind, told in KINDS.items() if kind != "other" or kind in some}
    length = "Mean seconds of one step of this kind."
    heads: list[Cell] = ["run", "share of the time"]
    heads += [Term(kind, told) for kind, told in kinds.items()]
    heads += [
        Term("whole", "From the first step to the last."),
        *(Term(f"a {kind} step", length) for kind in ("prefill", "decode", "mixed")),
    ]
    rows = []
    for index, run in timed[:MOST_RUNS]:
        total = sum(run.seconds.values())
        shares = {kind: run.seconds.get(kind, 0.0) / total for kind in kinds}
        cells: list[Cell] = [name_of(run, index), _stack(shares)]
        for kind, words in kinds.items():
            spent = run.seconds.get(kind, 0.0)
            meaning = f"{words} {number(spent, 's')} of {number(total, 's')}."
            cells.append(Value(shares[kind], meaning, text=percent(shares[kind])))
        cells.append(Value(total, unit="s"))
        for kind in ("prefill", "decode", "mixed"):
            where = f"runs.{index}.step_time.{kind}_s"
            cells.append(Value(run.step_time.get(f"{kind}_s"), key=where))
        rows.append(cells)
    keys = [tag("span", tag("i", class_=f"swatch {kind}"), kind, class_="key") for kind in kinds]
    none = len(runs) - len(timed)
    note = f"Without recorded steps, and so not shown: {none:,} of {len(runs):,} runs."
    return join(
        [
            tag("p", join(keys, " "), class_="legend"),
            Table(heads=heads, rows=rows, caption="Share of each run's time by kind of step"),
            tag("p", note, class_="note") if none else None,
        ]
    )


def _stack(shares: dict[str, float]) -> Html:
    words = ", ".join(f"{kind} {percent(share)}" for kind, share in shares.items())
    parts = [
        tag("i", class_=kind, style=f"width:{share * 100:.2f}%")
        for kind, share in shares.items()
        if share > 0
    ]
    return tag(
        "span", *parts, class_="bar stack", role="img", tabindex="0", aria_label=words,
        data_tip=words,
    )  # fmt: skip


def kernels(runs: Sequence[Run]) -> Html:
    """Return families of kernels, collectives and idle devices of the runs that were profiled."""
    profiled = [(i, run) for i, run in enumerate(runs) if run.time_by_family]
    if not profiled:
        return empty(
            "No kernels: no run was profiled. ttscope record --kernels 4/400 profiles 4 steps in "
            "400, and ttscope import takes traces of the PyTorch profiler."
        )
    parts: list[Content] = []
    for index, run in profiled[:MOST_RUNS]:
        parts += [
            tag("h3", name_of(run, index)),
            families_table(run, f"runs.{index}."),
            _idle(run),
            collectives_table(run.collectives)
            if run.collectives
            else tag("p", NO_COLLECTIVES, class_="note"),
        ]
    return join(parts)


def _collectives(run: Run) -> Content:
    why = "No collectives: the run used one device, or its ranks did not talk in the windows."
    return collectives_table(run.collectives) if run.collectives else tag("p", why, class_="note")


def _idle(run: Run) -> Html:
    if run.device_time is None:
        return tag("p", "How long the devices were idle was not recorded.", class_="note")
    first, *parts = idle_parts(run.device_time)
    held = (f"{capital(text)}. " for text in held_texts(run.device_time.held))
    return tag("p", capital(str(first)), *parts, ". ", *held)


def speculation(material: Material) -> Html:
    """Return which drafted tokens were accepted, by position, of the runs that speculated."""
    speculated = [(i, run) for i, run in enumerate(material.runs) if run.acceptance is not None]
    numbers = [each.numbers for each in material.watched if each.numbers is not None]
    if not speculated and any(each.acceptance_length is not None for each in numbers):
        return empty(
            "No acceptance by run: no recorded run of problems drafted. What the servers kept of "
            "their drafts stands under Servers that were watched."
        )
    if not speculated:
        return empty(
            "No acceptance: no run used speculative decoding. ttscope record --speculative "
            "records one that does."
        )
    reading = (
        "A draft guesses the next tokens and the model keeps the leading ones that it would "
        "have written itself. The higher the bars and the slower they fall, the more "
        "speculation pays. The line on a bar is its 90 % interval."
    )
    drawn = [_accepted(run, index) for index, run in speculated[:MOST_RUNS]]
    return join([tag("p", reading), tag("div", *drawn, class_="charts")])


def _accepted(run: Run, index: int) -> Html:
    assert run.acceptance is not None
    length = "Tokens gained by a step with a draft: the kept ones and the model's own."
    where = f"runs.{index}.acceptance."
    gained: list[Content] = [
        "In a step with a draft a sample gains ",
        Value(run.acceptance.length, length, key=f"{where}length"),
        " tokens. Without a draft it gains 1.",
    ]
    return tag(
        "figure",
        tag("figcaption", name_of(run, index)),
        tag("p", *gained),
        kept_table(run.acceptance, where),
    )


# Predicted against measured: each run as the other recordings foretell it.


REACH = 1.6  # the plot goes from 1 / REACH to REACH times what was measured
OFF = "Predicted over measured, less one."
HOLDS = "Whether what was measured lies in the predicted 90 % interval: nine in ten should."
PREDICTED = (
    "Mean latency that the replay predicts, its step times learned from the other recordings alone."
)
MEASURED = "Mean latency as it was measured in this run."


def predicted_against_measured(material: Material) -> Html:
    """Return a row per run: measured, predicted, how far off, and whether the interval holds it."""
    runs: dict[object, list[tuple[int, Run]]] = {}  # folders of one name stand in their order
    for place, run_measured in enumerate(material.runs):
        key = (run_measured.recording, run_measured.engine, run_measured.policy or AS_SENT)
        runs.setdefault(key, []).append((place, run_measured))
    rows: list[list[Cell]] = []
    ratios: list[tuple[float, bool | None]] = []
    refused: dict[str, list[str]] = {}
    for each in material.foretold:
        waiting = runs.get((each.recording, each.engine, each.policy))
        index, run = waiting.pop(0) if waiting else (-1, None)
        measured = None if run is None else run.latency_s["mean"]
        predicted = None if each.predicted is None else each.predicted.latency_s["mean"]
        if run is None or measured is None or predicted is None:
            why = each.why_not or "its latency was not measured"
            refused.setdefault(why, []).append(each.recording)
            continue
        ratio, holds = predicted.value / measured.value, predicted.holds(measured.value)
        ratios.append((ratio, holds))
        rows.append(
            [
                name_of(run, index),
                Value(measured, key=f"runs.{index}.latency_s.mean"),
                Value(predicted),
                _plot(predicted, measured),
                Value(ratio - 1, text=percent_change(ratio - 1)),
                "-" if holds is None else ("yes" if holds else "no"),
            ]
        )
    notes = [
        tag("p", f"Not predicted: {', '.join(names)}: {why}.", class_="note")
        for why, names in refused.items()
    ]
    recordings = len({run.recording for run in material.runs})
    if recordings > MOST_FORETOLD:
        few = f"The first {MOST_FORETOLD} of {recordings} recordings were predicted."
        notes.append(tag("p", few, class_="note"))
    if not rows:
        why = material.not_foretold or "no run can be predicted from the others"
        nothing = empty(f"Nothing to hold against one another. Why: {why}.")
        return join([nothing, *notes]) if notes else nothing
    heads = (
        "run",
        Term("measured", MEASURED),
        Term("predicted", PREDICTED),
        Term("predicted / measured", "The line is the predicted 90 % interval, the dot the value."),
        Term("off by", OFF),
        Term("interval holds it", HOLDS),
    )
    return join(
        [
            tag("p", _summary(ratios)),
            Table(
                heads=heads,
                rows=rows,
                caption="Mean latency of a problem",
                apart={"measured": 1},
            ),
            *notes,
        ]
    )


def _summary(ratios: Sequence[tuple[float, bool | None]]) -> Html:
    errors = [abs(ratio - 1) for ratio, _ in ratios]
    error = sum(errors) / len(errors)
    judged = [holds for _, holds in ratios if holds is not None]
    parts: list[Content] = [
        "How far to trust the advice: each run was predicted as if it had never been made, from "
        "the other recordings alone, and is held against what was measured. The mean error is ",
        Value(error, "Mean of the absolute errors of the rows below.", text=percent(error, 1)),
    ]
    if judged:
        parts.append(f", and {sum(judged)} of {len(judged)} intervals hold what was measured")
    return join([*parts, ". A * marks runs with larger batches or contexts than the others had."])


def _plot(predicted: Estimate, measured: Estimate) -> Html:
    ends = [predicted.low, predicted.value, predicted.high]
    places = [None if end is None else _place(end / measured.value) for end in ends]
    low, value, high = places
    parts = [tag("u")]
    if low is not None and high is not None:
        parts.append(tag("s", class_="span", style=f"left:{low:.2f}%;width:{high - low:.2f}%"))
    parts.append(tag("i", class_="dot", style=f"left:{value:.2f}%"))
    words = f"predicted {number(predicted.value, 's')}, measured {number(measured.value, 's')}"
    return tag("span", *parts, class_="bar ratio", role="img", aria_label=words)


def _place(ratio: float) -> float:
    """Return per cent of the plot's width, the middle being 1."""
    share = 0.5 + math.log(max(ratio, 1e-9)) / (2 * math.log(REACH))
    return min(max(share, 0.0), 1.0) * 100
