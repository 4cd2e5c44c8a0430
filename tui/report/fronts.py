"""Accuracy against latency, cost, energy and tokens, with both fronts, the picks and the budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from traces.schema.advice import Budget, Pick, Recommendation
from traces.schema.estimate import Estimate
from traces.summary.run import Run
from tui.report.charts import Point, Shape, key, limit_key, scatter
from tui.report.markup import Content, Html, chance, empty, join, quantity, table, tag, term
from tui.report.material import Material
from tui.report.measured import MOST_RUNS
from tui.report.verdict import meaning_of, same
from tui.report.words import SURE, budget_words, configuration, plain
from tui.text.advice import goal_words
from tui.text.formats import whole

MOST_ROWS = 60  # of the table; the charts have all


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What a chart holds accuracy against: its name in a pick, in a run, and in the budget."""

    name: str
    of_run: Callable[[Run], Estimate | None]
    limit: Callable[[Budget], float | None] = lambda budget: None
    why_not: str = ""


def _latency_limit(budget: Budget) -> float | None:
    return budget.max_latency_s if budget.latency_percentile is None else None


LATENCY = Measure(name="latency_s", of_run=lambda r: r.latency_s["mean"], limit=_latency_limit)
COST = Measure(
    name="cost_usd",
    of_run=lambda run: run.cost_usd_per_problem,
    limit=lambda budget: budget.max_cost_usd,
)
DEVICE = Measure(
    name="device_s",
    of_run=lambda run: run.device_s_per_problem,
    limit=lambda budget: budget.max_device_s,
)
ENERGY = Measure(
    name="energy_j",
    of_run=lambda run: run.energy_j.per_problem,
    limit=lambda budget: budget.max_energy_j,
    why_not="No energy: none of the recordings holds readings of power. They are read where the "
    "machine gives them (NVML on NVIDIA GPUs, RAPL on processors).",
)
TOKENS = Measure(name="tokens", of_run=lambda run: run.tokens_per_problem)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A configuration on a front or picked, and its part."""

    pick: Pick
    where: str
    on_system: bool = False
    on_compute: bool = False
    letter: str = ""

    @property
    def shape(self) -> Shape:
        """Return how it is drawn on a front."""
        if self.on_system and self.on_compute:
            return "both"
        return "system" if self.on_system else "compute"


def rows_of(answer: Recommendation) -> list[Row]:
    """Return the picks and both fronts, each configuration once, by accuracy.

    `where` is its place in the JSON document of `advise`.
    """
    found: list[tuple[Pick, str]] = []
    listed = [
        *((pick, f"pareto.{i}") for i, pick in enumerate(answer.pareto)),
        *((pick, f"compute_pareto.{i}") for i, pick in enumerate(answer.compute_pareto)),
        (answer.system_optimal, "system_optimal"),
        (answer.compute_optimal, "compute_optimal"),
    ]
    for pick, where in listed:
        if pick is not None and not any(same(pick, other) for other, _ in found):
            found.append((pick, where))
    rows = [
        Row(
            pick=pick,
            where=where,
            on_system=any(same(pick, other) for other in answer.pareto),
            on_compute=any(same(pick, other) for other in answer.compute_pareto),
            letter="A"
            if same(pick, answer.system_optimal)
            else ("B" if same(pick, answer.compute_optimal) else ""),
        )
        for pick, where in found
    ]
    return sorted(rows, key=lambda row: _value(row.pick.estimates.get("accuracy")))


def _value(estimate: Estimate | None) -> float:
    return float("-inf") if estimate is None else estimate.value


def fronts(material: Material) -> Html:
    """Return four charts and the table of what is on them."""
    answer = material.advice
    if answer is None:
        runs = [run for run in material.runs if run.accuracy is not None]
        why = "No fronts: they come with the advice, and there is none (see above)."
        charts = _charts((LATENCY, DEVICE, ENERGY, TOKENS), [], runs, None)
        if "<svg" not in charts:
            less = " No run holds an accuracy together with a latency, device time or tokens."
            return empty(why + less)
        legend = tag("p", key("measured", "a recorded run, as measured"), class_="legend")
        return join([empty(why), legend, charts])
    rows = rows_of(answer)
    if not rows:
        return empty("No fronts: no candidate keeps up with the load.")
    priced = any(row.pick.estimates.get("cost_usd") is not None for row in rows)
    measures = (LATENCY, COST if priced else DEVICE, ENERGY, TOKENS)
    unpriced = (
        "No price was given, so cost is shown as device time; --price 2.50 (USD per device-hour) "
        "turns it into dollars."
    )
    return join(
        [
            tag("p", _how_to_read(answer)),
            _legend(answer, rows),
            _charts(measures, rows, material.runs, answer.budget),
            None if priced else tag("p", unpriced, class_="note"),
            _table(rows, limited=bool(budget_words(answer.budget))),
        ]
    )


def _goal(answer: Recommendation) -> str:
    """Return the goal of the system-optimal front; with accuracy as the goal, its cost is another.

    That is the mean latency, whichever latency is limited.
    """
    budget = answer.budget
    if budget.optimise == "accuracy":
        budget = replace(budget, optimise="latency", latency_percentile=None)
    return goal_words(budget)


def _how_to_read(answer: Recommendation) -> str:
    goal = _goal(answer)
    return (
        "Up is more accurate, left is cheaper; crosses were measured, all else is predicted. The "
        f"solid front joins the configurations with the {goal} for each accuracy "
        "(system-optimal), the dashed one those with the fewest FLOPs (compute-optimal). The same "
        "configurations stand on every chart: where the fronts part, counting FLOPs or tokens "
        "leads to another choice than counting time or money. Where a line turns back, what is "
        "best by its own measure pays for it in this one. Thin lines are 90 % intervals."
    )


def _legend(answer: Recommendation, rows: Sequence[Row]) -> Html:
    letters = {row.letter for row in rows}
    entries = [
        key("pick", "system-optimal, the pick") if "A" in letters else None,
        key("rival", "compute-optimal") if "B" in letters else None,
        key("system", f"front by {_goal(answer).partition(' ')[2]}"),
        key("compute", "front by FLOPs"),
        key("both", "on both fronts") if any(row.shape == "both" for row in rows) else None,
        key("measured", "a recorded run, as measured"),
        limit_key("limit of the budget") if answer.budget.limits() else None,
    ]
    return tag("p", *(each for each in entries if each is not None), class_="legend")


def _charts(
    measures: Sequence[Measure], rows: Sequence[Row], runs: Sequence[Run], budget: Budget | None
) -> Html:
    """Return the charts, and below them why a measure has none."""
    drawn = [_chart(measure, rows, runs, budget) for measure in measures]
    whole = [chart for chart in drawn if "<svg" in chart]
    class_ = "charts three" if len(whole) == 3 else "charts"
    rest = [chart for chart in drawn if "<svg" not in chart]
    return join([tag("div", *whole, class_=class_) if whole else None, *rest])


def _chart(
    measure: Measure, rows: Sequence[Row], runs: Sequence[Run], budget: Budget | None
) -> Html:
    label, meaning = meaning_of(measure.name)
    points: list[Point] = []
    for run in runs[:MOST_RUNS]:
        x, y = measure.of_run(run), run.accuracy
        if x is not None and y is not None and run.complete:
            name = plain(run.engine, run.policy, imported=run.imported is not None)
            tip = f"Measured: {name}. {_told(label, x, y)}"
            points.append(Point(x=x, y=y, shape="measured", tip=tip))
    for row in rows:
        x, y = (row.pick.estimates.get(name) for name in (measure.name, "accuracy"))
        if x is None or y is None:
            continue
        tip = (
            f"{plain(row.pick.engine, row.pick.policy, prior=row.pick.prior)}. {_told(label, x, y)}"
        )
        if row.on_system or row.on_compute:
            points.append(Point(x=x, y=y, shape=row.shape, tip=tip))
        if row.letter:
            who = "System-optimal" if row.letter == "A" else "Compute-optimal"
            shape: Shape = "pick" if row.letter == "A" else "rival"
            points.append(Point(x=x, y=y, shape=shape, tip=f"{who}: {tip}"))
    if not points:
        return empty(measure.why_not or f"No {label}: it was not measured in these recordings.")
    title = tag("figcaption", term(f"Accuracy against {label}", meaning))
    chart = scatter(
        points,
        label=f"{label} of a problem",
        unit=points[-1].x.unit,
        x_limit=None if budget is None else measure.limit(budget),
        y_limit=None if budget is None else budget.min_accuracy,
    )
    return tag("figure", title, chart)


def _told(label: str, x: Estimate, y: Estimate) -> str:
    mark = " (* outside what was measured)" if x.extrapolated or y.extrapolated else ""
    return f"{label} {whole(x)}, accuracy {whole(y)}{mark}"


def _table(rows: Sequence[Row], *, limited: bool) -> Html:
    names = [name for name in rows[0].pick.estimates if name != "throughput_problems_per_s"]
    names = [n for n in names if any(row.pick.estimates.get(n) is not None for row in rows)]
    heads: list[Content] = ["configuration", "front"]
    heads += [term(*meaning_of(name)) for name in names]
    heads += [term("within budget", SURE)] if limited else []
    body = []
    for row in rows[:MOST_ROWS]:
        on = [word for word, there in (("system", row.on_system), ("compute", row.on_compute))
              if there]  # fmt: skip
        cells: list[Content] = [
            configuration(row.pick.engine, row.pick.policy, lead=row.letter, prior=row.pick.prior),
            " + ".join(on) or "-",
        ]
        for name in names:
            meaning = meaning_of(name)[1]
            where = f"{row.where}.estimates.{name}"
            cells.append(quantity(row.pick.estimates.get(name), meaning, key=where))
        sure = row.pick.probability_within_budget
        where = f"{row.where}.probability_within_budget"
        cells += [chance(sure, SURE, key=where)] if limited else []
        body.append(cells)
    caption = "The configurations on the fronts, as predicted, per problem"
    left = len(rows) - MOST_ROWS
    cut = f"{left:,} more, the most accurate, are left out of the table."
    return join(
        [
            table(heads, body, caption=caption, class_="runs"),
            tag("p", cut, class_="note") if left > 0 else None,
        ]
    )
