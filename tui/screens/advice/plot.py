"""The Advice screen's plot: axes, fronts, the present configuration and error bars as numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from traces.schema.advice import Budget, Pick
from traces.schema.estimate import Estimate
from traces.summary.run import Run
from tui.screens.advice.rows import Candidate, pick_title
from tui.text.formats import ABSENT, OUTSIDE, compact, percent, value_of


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What the plot's x axis shows: an estimate's name, its title, and the budget's limit on it."""

    name: str
    title: str
    limit: str | None = None


AXES = (
    Axis(name="latency_s", title="latency mean s", limit="max_latency_s"),
    Axis(name="latency_p95_s", title="latency p95 s", limit="max_latency_s"),
    Axis(name="cost_usd", title="cost $ per problem", limit="max_cost_usd"),
    Axis(name="device_s", title="device-s per problem", limit="max_device_s"),
    Axis(name="energy_j", title="J per problem", limit="max_energy_j"),
    Axis(name="tokens", title="tokens per problem"),
    Axis(name="flops", title="FLOPs per problem"),
)


def next_axis(rows: Sequence[Candidate], current: int) -> int:
    """Return the next axis that any candidate has a number on."""
    for step in range(1, len(AXES) + 1):
        place = (current + step) % len(AXES)
        if any(row.pick.estimates.get(AXES[place].name) is not None for row in rows):
            return place
    return current


def with_fronts(rows: Sequence[Candidate]) -> list[Candidate]:
    """Mark with `f` which of the candidates need the fewest FLOPs for their accuracy."""
    known = {
        row.key: (flops.value, accuracy.value)
        for row in rows
        if (flops := row.pick.estimates.get("flops")) is not None
        and (accuracy := row.pick.estimates.get("accuracy")) is not None
    }
    found = []
    for row in rows:
        own = known.get(row.key)
        best = own is not None and not any(
            (flops < own[0] and accuracy >= own[1]) or (flops <= own[0] and accuracy > own[1])
            for flops, accuracy in known.values()
        )
        mark = "f" if best and row.marks != "!" else ""
        found.append(Candidate(marks=row.marks + mark, pick=row.pick))
    return found


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


def points(rows: Sequence[Candidate], axis: Axis) -> Mapping[str, tuple[list[float], list[float]]]:
    """Return an axis' number and the accuracy of the rows by their first mark."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        x, y = row.pick.estimates.get(axis.name), row.pick.estimates.get("accuracy")
        if x is not None and y is not None:
            xs, ys = found.setdefault(row.marks[0], ([], []))
            xs.append(x.value)
            ys.append(y.value)
    return found


def error_bar(row: Candidate, axis: Axis) -> Bar | None:
    """Return a candidate's error bar, None where an end of it is not known."""
    x, y = row.pick.estimates.get(axis.name), row.pick.estimates.get("accuracy")
    if x is None or y is None or x.low is None or x.high is None:
        return None
    if y.low is None or y.high is None:
        return None
    return Bar(x=x.value, y=y.value, x_half=(x.high - x.low) / 2, y_half=(y.high - y.low) / 2)


def limit_on(budget: Budget, axis: Axis) -> float | None:
    """Return the budget's limit where it is on what the axis shows."""
    if axis.limit is None:
        return None
    if axis.limit == "max_latency_s":
        wanted = {"latency_s": None, "latency_p95_s": 95}[axis.name]
        return budget.max_latency_s if budget.latency_percentile == wanted else None
    value = getattr(budget, axis.limit)
    return None if value is None else float(value)


def gone_lines(paths: Sequence[Path], width: int) -> list[str]:
    """Return a line that names the recordings whose folders are gone, none where none is."""
    if not paths:
        return []
    names = ", ".join(path.name for path in paths)
    told = f"no longer there, so left out: {names}"
    return [told if len(told) <= width else f"{told[: width - 1]}…"]


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
            percent(row.pick.probability_within_budget),
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
