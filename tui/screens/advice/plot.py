"""The Advice screen's plot: axes, fronts, the present configuration and error bars as numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from traces.schema.advice import Pick
from traces.schema.estimate import Estimate
from traces.schema.formats import ABSENT, OUTSIDE, chance, compact, value_of
from traces.schema.quantities import Quantity, quantity
from traces.summary.run import Run
from tui.screens.advice.rows import Candidate, pick_title

AXES = tuple(
    map(
        quantity,
        ("latency_s", "latency_p95_s", "cost_usd", "device_s", "energy_j", "tokens", "flops"),
    )
)


def axis_title(axis: Quantity) -> str:
    """Return what stands at the axis: what it shows, and in which unit."""
    return axis.noun if axis.name in ("tokens", "flops") else f"{axis.noun} ({axis.unit})"


def next_axis(rows: Sequence[Candidate], current: int) -> int:
    """Return the next axis that any candidate has a number on."""
    for step in range(1, len(AXES) + 1):
        place = (current + step) % len(AXES)
        if any(row.pick.estimates.get(AXES[place].name) is not None for row in rows):
            return place
    return current


def with_fronts(rows: Sequence[Candidate]) -> list[Candidate]:
    """Mark with `f` which of the candidates need the fewest FLOPs for their accuracy."""
    places = {
        row.key: (flops.value, accuracy.value)
        for row in rows
        if (flops := row.pick.estimates.get("flops")) is not None
        and (accuracy := row.pick.estimates.get("accuracy")) is not None
    }
    marked = []
    for row in rows:
        place = places.get(row.key)
        best = place is not None and not any(
            (flops < place[0] and accuracy >= place[1])
            or (flops <= place[0] and accuracy > place[1])
            for flops, accuracy in places.values()
        )
        mark = "f" if best and row.marks != "!" else ""
        marked.append(Candidate(marks=row.marks + mark, pick=row.pick))
    return marked


def present_candidate(run: Run, price_usd_per_device_hour: float | None = None) -> Candidate:
    """Return a recorded run as a candidate with the mark P: its numbers are measured."""
    from advisor.evidence.measured import measured_estimates

    cost = run.cost_usd_per_problem
    device = run.device_s_per_problem
    if price_usd_per_device_hour is not None and device is not None:
        cost = device.scaled(price_usd_per_device_hour / 3600, "USD")
    assert run.policy is not None
    return Candidate(
        marks="P",
        pick=Pick(
            engine=run.engine,
            policy=run.policy,
            estimates={**measured_estimates(run), "cost_usd": cost},
            probability_within_budget=float("nan"),
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A point with half the widths of its intervals."""

    x: float
    y: float
    x_half: float
    y_half: float


def points(
    rows: Sequence[Candidate], axis: Quantity
) -> Mapping[str, tuple[list[float], list[float]]]:
    """Return an axis' number and the accuracy of the rows by their first mark."""
    by_mark: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        x, y = row.pick.estimates.get(axis.name), row.pick.estimates.get("accuracy")
        if x is not None and y is not None:
            xs, ys = by_mark.setdefault(row.marks[0], ([], []))
            xs.append(x.value)
            ys.append(y.value)
    return by_mark


def error_bar(row: Candidate, axis: Quantity) -> Bar | None:
    """Return a candidate's error bar, None where an end of it is not known."""
    x, y = row.pick.estimates.get(axis.name), row.pick.estimates.get("accuracy")
    if x is None or y is None or x.low is None or x.high is None:
        return None
    if y.low is None or y.high is None:
        return None
    return Bar(x=x.value, y=y.value, x_half=(x.high - x.low) / 2, y_half=(y.high - y.low) / 2)


def gone_lines(paths: Sequence[Path], width: int) -> list[str]:
    """Return a line that names the recordings whose folders are gone, none where none is."""
    if not paths:
        return []
    names = ", ".join(path.name for path in paths)
    text = f"no longer there, so left out: {names}"
    return [text if len(text) <= width else f"{text[: width - 1]}…"]


def pick_rows(
    rows: Sequence[Candidate], numbers: Sequence[tuple[str, str]], width: int
) -> tuple[list[str], list[list[str]]]:
    """Return the headers and cells of the table of picks in a width.

    `numbers` are headers with estimates' names. They stay whole: where there is no room, it is the
    configurations that are cut.
    """
    headers = ["", "configuration", *(header for header, _ in numbers), "sure"]
    cells = [
        [
            row.marks,
            pick_title(row.pick),
            *(cell(row.pick.estimates.get(name)) for _, name in numbers),
            chance(row.pick.probability_within_budget),
        ]
        for row in rows
    ]
    wide = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    room = max(width - sum(wide) + wide[1] - 2 * len(wide), len("config"))
    if room < len(headers[1]):
        headers[1] = "config"
    return headers, [[marks, _cut(title, room), *rest] for marks, title, *rest in cells]


def _cut(text: str, width: int) -> str:
    """Return a text without its middle where it is too long: it ends with the policy."""
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"


def cell(estimate: Estimate | None) -> str:
    """Return a number of the table, marked where it lies outside what was measured."""
    if estimate is None:
        return ABSENT
    if estimate.unit == "1":
        return value_of(estimate)
    return compact(estimate.value) + (OUTSIDE if estimate.extrapolated else "")
