"""Accuracy against what it takes, with both fronts, the picks and the budget."""

from __future__ import annotations

from collections.abc import Sequence

from traces.schema.advice import Budget, Measured, Recommendation
from traces.schema.estimate import Estimate
from traces.schema.formats import with_interval
from traces.schema.quantities import Quantity, latency, quantity
from traces.summary.run import Run
from tui.report.charts import Point, key, limit_key, scatter
from tui.report.markup import Html, empty, join, tag
from tui.report.material import Material
from tui.report.measured import MOST_RUNS
from tui.report.words import SURE, configuration
from tui.text.advice import limit_on
from tui.text.blocks import Cell, Table, Term, Value, probability
from tui.text.fronts import (
    FLOPS,
    FRONT,
    MISS,
    PICK,
    RIVAL,
    CandidateRow,
    accuracy_of,
    candidates,
    joined_on,
)
from tui.text.words import budget_words, front_goal, front_words, own_axes, plain

MOST_ROWS = 60  # of the table; the charts have all
Cross = tuple[Run, Measured]  # a run, and what was measured of it
Rows = Sequence[CandidateRow]

NO_ENERGY = (
    "No energy: none of the recordings holds readings of power. They are read where the machine "
    "gives them (NVML on NVIDIA GPUs, RAPL on processors)."
)


def _rows_of(answer: Recommendation) -> list[CandidateRow]:
    """Return the picks and both fronts, each configuration once, by accuracy."""
    return sorted((row for row in candidates(answer) if row.roles != {MISS}), key=accuracy_of)


def fronts(material: Material) -> Html:
    """Return a chart for each thing that accuracy takes, and the table of what is on them."""
    answer = material.advice
    crosses = _crosses(material)
    if answer is None:
        why = "No fronts: they come with the advice, and there is none (see above)."
        charts = _charts(_drawn_against(Budget(), [], crosses), [], crosses, None)
        if "<svg" not in charts:
            less = " No run holds an accuracy together with a latency, device time or tokens."
            return empty(why + less)
        legend = tag("p", key("measured", "a recorded run, as measured"), class_="legend")
        return join([empty(why), legend, charts])
    rows = _rows_of(answer)
    if not rows:
        return empty("No fronts: no candidate keeps up with the load.")
    names = _drawn_against(answer.budget, rows, crosses)
    unpriced = (
        "No price was given, so cost is shown as device time. --price 2.50 (USD per device-hour) "
        "turns it into dollars."
    )
    charts = _charts(names, rows, crosses, answer.budget)
    reading = [tag("p", _how_to_read(answer)), _legend(answer, rows, names, crosses)]
    return join(
        [
            *(reading if "<svg" in charts else ()),
            charts,
            _under_another_load(answer, crosses),
            None if "cost_usd" in names else tag("p", unpriced, class_="note"),
            _table(rows, limited=bool(budget_words(answer.budget))),
        ]
    )


def own_charts(answer: Recommendation) -> Html | None:
    """Return the charts of what each front is best in alone, None where nothing is on them."""
    rows = _rows_of(answer)
    drawn = _drawn_against(answer.budget, rows, ())
    names = [drawn[0], *(name for name in drawn[1:] if name in own_axes(answer.budget))]
    charts = _charts(names, rows, (), answer.budget)
    return join([_legend(answer, rows, names, ()), charts]) if "<svg" in charts else None


def _drawn_against(budget: Budget, rows: Rows, crosses: Sequence[Cross]) -> list[str]:
    """Return what accuracy is drawn against, first what the system-optimal front is best in."""
    known = {name for row in rows for name, each in row.pick.estimates.items() if each is not None}
    measured = {name for _, run in crosses for name, each in run.estimates.items() if each}
    paid = "cost_usd" if "cost_usd" in known else "device_s"
    names = [front_goal(budget).name, latency(budget.latency_percentile).name, paid]
    names = [name for name in names if name != "throughput_problems_per_s"]
    names += ["energy_j", *(["flops"] if "flops" in known | measured else []), "tokens"]
    return list(dict.fromkeys(names))


def _crosses(material: Material) -> list[Cross]:
    """Return the measured runs that are complete, each as it stands beside the answer."""
    from advisor.evidence.measured import measured_beside
    from advisor.search.budget import Prices

    answer = material.advice
    load, budget = (None, Budget()) if answer is None else (answer.load, answer.budget)
    runs = [run for run in material.runs if run.complete and run.replay_of is None]
    return [
        (run, measured_beside(run, load, Prices(budget, None).of_run(run)))
        for run in runs[:MOST_RUNS]
    ]


def _under_another_load(answer: Recommendation, crosses: Sequence[Cross]) -> Html | None:
    drawn = [
        measured
        for _, measured in crosses
        if None not in (measured.estimates["accuracy"], measured.estimates["tokens"])
    ]
    if answer.load is None or all(measured.at_load for measured in drawn):
        return None
    return tag(
        "p",
        f"The page is for {answer.load.words()}. Runs under another load have a cross only where "
        "load changes nothing: against FLOPs and tokens.",
        class_="note",
    )


def _how_to_read(answer: Recommendation) -> str:
    return (
        "Up is more accurate, left is cheaper. Crosses were measured, all else is predicted. Dots "
        f"are the configurations with the {front_words(answer.budget)} for each accuracy (the "
        "system-optimal front), squares those with the fewest FLOPs (the compute-optimal front). "
        "A line joins a front on the chart of its own measure. The same configurations stand "
        "on every chart: where the fronts part, counting FLOPs or tokens leads to another choice "
        "than counting time or money. Thin lines are 90 % intervals."
    )


def _legend(
    answer: Recommendation,
    rows: Rows,
    names: Sequence[str],
    crosses: Sequence[Cross],
) -> Html:
    symbols = {row.symbol for row in rows}
    system, compute = (name in names for name in own_axes(answer.budget))
    entries = [
        key("pick", "system-optimal, the pick") if "A" in symbols else None,
        key("rival", "compute-optimal") if "B" in symbols else None,
        key("system", f"front by {front_goal(answer.budget).noun}", joined=system),
        key("compute", "front by FLOPs", joined=compute),
        key("both", "on both fronts") if any(row.roles >= {FRONT, FLOPS} for row in rows) else None,
        key("measured", "a recorded run, as measured") if crosses else None,
        limit_key() if answer.budget.limits() else None,
    ]
    return tag("p", join(entries, " "), class_="legend")


def _charts(
    names: Sequence[str],
    rows: Rows,
    crosses: Sequence[Cross],
    budget: Budget | None,
) -> Html:
    """Return the charts, and below them why a quantity has none."""
    estimates = [each.estimates for _, each in crosses] + [row.pick.estimates for row in rows]
    if not any(each.get("accuracy") for each in estimates):
        return empty("No charts: accuracy was not measured in these recordings.")
    parts = [_chart(quantity(name), rows, crosses, budget) for name in names]
    drawn = [part for part in parts if "<svg" in part]
    class_ = "charts three" if len(drawn) == 3 else "charts"
    reasons = [part for part in parts if "<svg" not in part]
    return join([tag("div", *drawn, class_=class_) if drawn else None, *reasons])


def _chart(across: Quantity, rows: Rows, crosses: Sequence[Cross], budget: Budget | None) -> Html:
    noun = across.noun
    points: list[Point] = []
    for run, measured in crosses:
        x, y = (measured.estimates.get(name) for name in (across.name, "accuracy"))
        if x is not None and y is not None:
            name = plain(run.engine, run.policy, imported=run.imported is not None)
            tip = f"Measured: {name}. {_numbers(noun, x, y)}"
            points.append(Point(x=x, y=y, shape="measured", tip=tip))
    for row in rows:
        x, y = (row.pick.estimates.get(name) for name in (across.name, "accuracy"))
        if x is None or y is None:
            continue
        name = plain(row.pick.engine, row.pick.policy, prior=row.pick.prior)
        tip = f"{name}. {_numbers(noun, x, y)}"
        if on := row.roles & {FRONT, FLOPS}:
            points.append(Point(x=x, y=y, shape="both" if len(on) > 1 else min(on), tip=tip))
        for role in [each for each in (PICK, RIVAL) if each in row.roles][:1]:
            who = "System-optimal" if role == PICK else "Compute-optimal"
            points.append(Point(x=x, y=y, shape=role, tip=f"{who}: {tip}"))
    if not points:
        why = f"No {noun}: it was not measured in these recordings."
        return empty(NO_ENERGY if across.name == "energy_j" else why)
    title = tag("figcaption", Term(f"Accuracy against {noun}", across.meaning))
    chart = scatter(
        points,
        label=f"{noun} of a problem",
        unit=points[-1].x.unit,
        x_limit=None if budget is None else limit_on(budget, across),
        y_limit=None if budget is None else budget.min_accuracy,
        joined=() if budget is None else sorted(joined_on(budget, across), reverse=True),
    )
    return tag("figure", title, chart)


def _numbers(noun: str, x: Estimate, y: Estimate) -> str:
    mark = " (* outside what was measured)" if x.extrapolated or y.extrapolated else ""
    return f"{noun} {with_interval(x)}, accuracy {with_interval(y)}{mark}"


def _table(rows: Rows, *, limited: bool) -> Html:
    names = [name for name in rows[0].pick.estimates if name != "throughput_problems_per_s"]
    names = [n for n in names if any(row.pick.estimates.get(n) is not None for row in rows)]
    heads: list[Cell] = ["configuration", "front"]
    heads += [Term(each.noun, each.meaning) for each in map(quantity, names)]
    heads += [Term("within budget", SURE)] if limited else []
    body = []
    for row in rows[:MOST_ROWS]:
        on = [front for front in (FRONT, FLOPS) if front in row.roles]
        letter = row.symbol if row.roles & {PICK, RIVAL} else ""
        cells: list[Cell] = [
            configuration(row.pick.engine, row.pick.policy, lead=letter, prior=row.pick.prior),
            " + ".join(on) or "-",
        ]
        for name in names:
            where = f"{row.where}.estimates.{name}"
            estimate = row.pick.estimates.get(name)
            cells.append(Value(estimate, key=where))
        sure = row.pick.probability_within_budget
        where = f"{row.where}.probability_within_budget"
        cells += [probability(sure, key=where)] if limited else []
        body.append(cells)
    caption = "The configurations on the fronts, as predicted, per problem"
    left = len(rows) - MOST_ROWS
    cut = f"{left:,} more, the most accurate, are left out of the table."
    return join(
        [
            Table(heads=heads, rows=body, caption=caption, style="runs"),
            tag("p", cut, class_="note") if left > 0 else None,
        ]
    )
