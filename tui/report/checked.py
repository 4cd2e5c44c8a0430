"""Predicted against measured: each run as the other recordings foretell it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from traces.schema import Estimate
from traces.summary import Run
from tui.formats import number
from tui.report.markup import Content, Html, empty, figure, join, quantity, table, tag, term
from tui.report.material import Material
from tui.report.measured import name_of

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
    for place, own in enumerate(material.runs):
        runs.setdefault((own.recording, own.engine, own.policy), []).append((place, own))
    rows: list[list[Content]] = []
    ratios: list[tuple[float, bool | None]] = []
    refused: dict[str, list[str]] = {}
    for each in material.foretold:
        found = runs.get((each.recording, each.engine, each.policy))
        index, run = found.pop(0) if found else (-1, None)
        measured = None if run is None else run.latency_s["mean"]
        predicted = None if each.predicted is None else each.predicted.latency_s["mean"]
        if run is None or measured is None or predicted is None:
            why = each.why_not or "its latency was not measured"
            refused.setdefault(why, []).append(each.recording)
            continue
        ratio, holds = predicted.value / measured.value, _holds(predicted, measured)
        ratios.append((ratio, holds))
        rows.append(
            [
                name_of(run, index),
                quantity(measured, MEASURED, key=f"runs.{index}.latency_s.mean"),
                quantity(predicted, PREDICTED),
                _plot(predicted, measured),
                figure(ratio - 1, "1", OFF, text=f"{(ratio - 1) * 100:+.1f} %"),
                "-" if holds is None else ("yes" if holds else "no"),
            ]
        )
    notes = [
        tag("p", f"Not foretold: {', '.join(names)}: {why}.", class_="note")
        for why, names in refused.items()
    ]
    if not rows:
        why = material.not_foretold or "no run can be foretold from the others"
        return join([empty(f"Nothing to hold against one another. Why: {why}."), *notes])
    heads = (
        "run",
        term("measured", MEASURED),
        term("predicted", PREDICTED),
        term("predicted / measured", "The line is the predicted 90 % interval, the dot the value."),
        term("off by", OFF),
        term("interval holds it", HOLDS),
    )
    return join(
        [
            tag("p", _summary(ratios)),
            table(heads, rows, caption="Mean latency of a problem"),
            *notes,
        ]
    )


def _holds(predicted: Estimate, measured: Estimate) -> bool | None:
    if predicted.low is None or predicted.high is None:
        return None
    return predicted.low <= measured.value <= predicted.high


def _summary(ratios: Sequence[tuple[float, bool | None]]) -> Html:
    errors = [abs(ratio - 1) for ratio, _ in ratios]
    error = sum(errors) / len(errors)
    judged = [holds for _, holds in ratios if holds is not None]
    told: list[Content] = [
        "How far to trust the advice: each run was predicted as if it had never been made, from "
        "the other recordings alone, and is held against what was measured. The mean error is ",
        figure(
            error,
            "1",
            "Mean of the absolute errors of the rows below.",
            text=f"{error * 100:.1f} %",
        ),
    ]
    if judged:
        told.append(f"; {sum(judged)} of {len(judged)} intervals hold what was measured")
    return join([*told, ". A * marks runs with larger batches or contexts than the others had."])


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
