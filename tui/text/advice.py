"""A recommendation as plain text and as the JSON document of `ttscope advise --json`."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from advisor.advice.command import policy_request
from advisor.advice.reasons import noun
from traces.schema import quantities
from traces.schema.advice import Budget, Measured, Pick, Present, Recommendation, Turning
from traces.schema.estimate import Estimate
from tui.text.commands import command_lines, split_command
from tui.text.formats import interval, number

ROWS = {  # estimate -> how it is called, and how its unit is shown
    "accuracy": ("accuracy", ""),
    "latency_s": ("mean latency", "s"),
    "latency_p95_s": ("p95 latency", "s"),
    "cost_usd": ("cost a problem", "$"),
    "device_s": ("device time", "s"),
    "energy_j": ("energy", "J"),
    "tokens": ("tokens", ""),
    "flops": ("FLOPs", ""),
    "throughput_problems_per_s": ("throughput", "/s"),
}
COMPARED = ("accuracy", "latency_s", "latency_p95_s", "device_s", "energy_j", "tokens")
OPTIONAL = ("cost_usd", "energy_j")  # not shown when neither pick has it
SET_ONE = (
    "Give a limit, such as --min-accuracy 0.75 or --max-latency 5s, or say what to --optimise."
)
LIMITS = {
    "max_latency_s": ("latency", "s"),
    "max_device_s": ("device time", "s"),
    "max_cost_usd": ("cost", "$"),
    "max_energy_j": ("energy", "J"),
    "max_gpus": ("devices", ""),
    "min_accuracy": ("accuracy", ""),
    "rate": ("rate", "/s"),
}


def advice_lines(recommendation: Recommendation, *, width: int = 80) -> list[str]:
    """Return the answer as lines of at most `width` columns, the verdict first."""
    answer, pick = recommendation, recommendation.system_optimal
    lines = verdict_lines(answer, width)
    if pick is not None:
        lines += ["", *command_lines(pick.command or "", width=width), *_policy(pick, width)]
        lines += ["", *_estimates(answer, width), *_as_run(answer, width)]
    elif not answer.budget.required:
        lines += ["", *_choices(answer, width)]
    else:
        lines += ["", *near_miss_lines(answer, width)]
        if answer.compute_optimal is not None:
            best = answer.compute_optimal
            lines += ["", *_wrap(f"compute-optimal, limits aside: {_name(best)}", width)]
    if answer.present is not None:
        required = answer.budget.required
        lines += ["", *present_lines(answer.present, width, required=required)]
    return [*lines, "", *closing_lines(answer, width)]


def verdict_lines(answer: Recommendation, width: int) -> list[str]:
    """Return what to run and how sure that is, or that nothing fits."""
    return _wrap(_verdict(answer), width)


def closing_lines(answer: Recommendation, width: int) -> list[str]:
    """Return why, the values at which the answer changes, and what to measure next."""
    lines = _listed("why", answer.reasons, width)
    percentile = answer.budget.latency_percentile
    changes = [*_turnings(answer.sensitivity, percentile), *_fits(answer)]
    lines += _listed("changes", changes, width)
    return lines + _listed("next", answer.measure_next, width)


def _name(pick: Pick) -> str:
    where = "" if pick.prior is None else f" on {pick.prior} (prior)"
    policy = pick.policy.label_with_temperature()
    return f"{pick.engine.model} {pick.engine.label()}{where}, {policy}"


def _verdict(answer: Recommendation) -> str:
    budget, pick = answer.budget, answer.system_optimal
    limits = _limits(budget)
    if not budget.required:
        return f"NO LIMIT IS SET, so nothing is recommended. {SET_ONE}"
    if pick is None:
        return f"NOTHING FITS {limits}."
    share = _share(pick.probability_within_budget)
    sure = f"{share} sure of {limits}" if limits else "no limits set"
    goal = goal_words(budget)
    extrapolated = any(e is not None and e.extrapolated for e in pick.estimates.values())
    mark = "  Extrapolated." if extrapolated else ""
    if pick.prior is not None:
        mark = "  By the prior, not measured."
    return f"RUN {_name(pick)}: {goal}, {sure}.{mark}"


def _choices(answer: Recommendation, width: int) -> Iterable[str]:
    """Yield what there is to choose from: the front, the least accurate first."""
    wanted = quantities.latency(answer.budget.latency_percentile).name
    names = ("accuracy", "latency_s" if answer.budget.optimise == "accuracy" else wanted)
    if not answer.pareto:
        yield "no candidate keeps up with the load"
        return
    yield f"the best {noun(names[1])} for each accuracy:"
    for pick in answer.pareto:
        told = [
            f"{noun(name)} {estimate_cell(pick.estimates.get(name), ROWS[name][1])}"
            for name in names
            if name in ROWS
        ]
        yield from _wrap(f"{_name(pick)}: {', '.join(told)}", width, indent="  ")


def goal_words(budget: Budget) -> str:
    """Return what is optimised, such as `lowest p95 latency` or `lowest mean latency`."""
    if budget.optimise == "latency":
        return f"lowest {quantities.latency(budget.latency_percentile).noun}"
    most = budget.optimise in ("accuracy", "throughput")
    return f"{'highest' if most else 'lowest'} {budget.optimise}"


def _share(chance: float) -> str:
    return "over 99%" if chance > 0.99 else f"{chance:.0%}"


def _limits(budget: Budget) -> str:
    given = dict(budget.limits())
    if budget.rate_per_s is not None:
        given["rate"] = budget.rate_per_s
    words = []
    for limit, value in given.items():
        name, unit = _limit_noun(limit, budget), LIMITS[limit][1]
        sign = ">=" if limit in ("min_accuracy", "rate") else "<="
        words.append(f"{name} {sign} {_with_unit(f'{value:g}', unit)}")
    return ", ".join(words)


def _limit_noun(limit: str, budget: Budget) -> str:
    if limit == "max_latency_s":
        return quantities.latency(budget.latency_percentile).noun
    return LIMITS[limit][0]


def _with_unit(text: str, unit: str) -> str:
    if unit == "$":
        sign = text[0] if text[0] in "+-" else ""
        return f"{sign}${text.removeprefix(sign)}"
    return f"{text} {unit}" if unit and not unit.startswith("/") else f"{text}{unit}"


def _policy(pick: Pick, width: int) -> Iterable[str]:
    request = policy_request(pick.policy)
    body = ", ".join(f"{name} {value}" for name, value in request["body"].items())
    count = request["requests"]
    many = "1 request" if count == 1 else f"{count} requests"
    if request["at_a_time"] < count:
        many += f", {request['at_a_time']} at a time,"
    text = f"policy: {many} a problem, each {body}; {request['answer']} wins"
    if request["cancel_the_rest"]:
        text += "; cancel the rest then"
    return _wrap(text if count > 1 else text.removesuffix("; the only answer wins"), width)


def _estimates(answer: Recommendation, width: int) -> Iterable[str]:
    """Return the table: system-optimal, compute-optimal, and the regret between them."""
    ours, theirs = answer.system_optimal, answer.compute_optimal
    assert ours is not None
    same = theirs is not None and _same(ours, theirs)
    names = dict(ROWS)
    percentile = answer.budget.latency_percentile
    if percentile is not None and percentile != 95:
        names[f"latency_p{percentile}_s"] = (f"p{percentile} latency", "s")
    columns = [ours] if same or theirs is None else [ours, theirs]
    heads = ["", "system- and compute-optimal" if same else "system-optimal", "compute-optimal"]
    rows = [heads[: len(columns) + 1]]
    for name, (label, unit) in names.items():
        estimates = [pick.estimates.get(name) for pick in columns]
        if name not in OPTIONAL or any(estimates):
            rows.append([label, *(estimate_cell(estimate, unit) for estimate in estimates)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [text.ljust(size) for text, size in zip(row, widths, strict=True)]
        yield "  ".join(cells).rstrip()[:width]
    if theirs is not None and not same:
        yield ""
        told = [
            f"{names[name][0]} {estimate_cell(estimate, names[name][1], signed=True)}"
            for name, estimate in answer.regret.items()
            if estimate is not None and name in names
        ]
        yield from _wrap(f"compute-optimal is {_name(theirs)}; its regret:", width)
        for text in told:
            yield from _wrap(text, width, indent="  ")
    yield "intervals of 90 %; - not measured; ? outside what was measured"


def _as_run(answer: Recommendation, width: int) -> Iterable[str]:
    """Yield what was measured of the picks that were run, beside what is predicted."""
    ours, theirs = answer.system_optimal, answer.compute_optimal
    named = {"system-optimal": ours, "compute-optimal": theirs}
    if ours is not None and theirs is not None and _same(ours, theirs):
        del named["compute-optimal"]
    for name, pick in named.items():
        run = None if pick is None else pick.measured
        if pick is not None and run is not None and run.at_load:
            yield from comparison_lines(name, pick, run.estimates, within=False)
            yield from _wrap(f"measured in {run.recording}, {run.problems} problems", width)


def _same(one: Pick, other: Pick) -> bool:
    return (one.engine, one.policy) == (other.engine, other.policy)


def comparison_lines(
    name: str, pick: Pick, measured: Mapping[str, Estimate | None], *, within: bool = True
) -> list[str]:
    """Return a pick's numbers as predicted and as measured; `within`: do these lie inside."""
    lines = ["", f"{name:<16}{'predicted':<28}{'measured':<26}{'within' * within}".rstrip()]
    for metric in COMPARED:
        label, unit = ROWS[metric]
        predicted, found = pick.estimates.get(metric), measured[metric]
        if predicted is None and found is None:
            continue
        inside = "-"
        if predicted is not None and found is not None and predicted.low is not None:
            inside = "yes" if predicted.low <= found.value <= (predicted.high or 0.0) else "no"
        cells = [estimate_cell(predicted, unit), estimate_cell(found, unit)]
        lines.append(f"{label:<16}{cells[0]:<28}{cells[1]:<26}{inside * within}".rstrip())
    return lines


def estimate_cell(estimate: Estimate | None, unit: str, *, signed: bool = False) -> str:
    """Return a value with its interval as it stands in a table."""
    if estimate is None:
        return "-"
    mark = "?" if estimate.extrapolated else ""
    if signed and estimate.unit == "1":  # a difference of shares, in points
        ends = "" if estimate.low == estimate.high else f" {interval(estimate, sign=True)}"
        return f"{number(estimate.value, '1', sign=True)}{mark}{ends}".rstrip()
    digits = 3
    value = _number(estimate.value, digits, signed=signed)
    text = _with_unit(value, unit) + mark
    if estimate.low is None or estimate.high is None or estimate.low == estimate.high:
        return text
    low = _number(estimate.low, digits, signed=signed)
    high = _number(estimate.high, digits, signed=signed)
    return f"{text} [{low}, {high}]"


def _number(value: float, digits: int, *, signed: bool = False) -> str:
    sign = "+" if signed and value > 0 else ""
    size = abs(value)
    for factor, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if size >= factor:
            return f"{sign}{value / factor:.{digits}g}{letter}"
    if size >= 1000:
        return f"{sign}{value:.0f}"
    return f"{sign}{value:.{digits}g}"


def near_miss_lines(answer: Recommendation, width: int) -> Iterable[str]:
    """Yield what comes nearest to each limit where nothing meets all."""
    confidence = answer.budget.confidence
    if all(miss.sure >= confidence for miss in answer.missed):
        head = f"each limit is met by itself, but not all at once with {confidence:.0%}:"
    else:
        head = "nearest to each limit that is missed, keeping the others where possible:"
    yield from _wrap(head, width)
    for miss in answer.missed:
        unit = LIMITS[miss.limit][1]
        text = (
            f"{_limit_noun(miss.limit, answer.budget)}: wanted "
            f"{_with_unit(f'{miss.wanted:g}', unit)}, nearest "
            f"{estimate_cell(miss.nearest, unit)} with {_name(miss.pick)} "
            f"({_at_least(miss.sure)} sure of it, "
            f"{_at_least(miss.pick.probability_within_budget)} sure of all)"
        )
        yield from _wrap(text, width, indent="  ")


def nearest_line(answer: Recommendation) -> str:
    """Return in one line what comes nearest to a limit that is missed, in the options' names."""
    if not answer.near_misses:
        return "no candidate could be judged"
    budget = answer.budget
    missed = [each for each in answer.near_misses if each.sure < budget.confidence]
    if not missed:
        return f"each limit is met by itself, all together are not with {budget.confidence:.0%}"
    miss = missed[0]
    unit = LIMITS[miss.limit][1]
    value, wanted = miss.nearest.value, miss.wanted
    within = value >= wanted if miss.limit in ("min_accuracy", "rate") else value <= wanted
    which = quantities.which_latency(miss.limit, budget.latency_percentile)
    option = quantities.LIMITS[miss.limit].option
    told = (
        f"nearest to {option} {_with_unit(f'{wanted:g}', unit)}{which} is "
        f"{_with_unit(_number(value, 3), unit)} with {_name(miss.pick)}"
    )
    if not within:
        return told
    return f"{told}, but that is only {_at_least(miss.sure)} sure, not {budget.confidence:.0%}"


def _at_least(chance: float) -> str:
    """Return a probability in whole percent that it does reach, so that 89.9 % is not 90 %."""
    return f"{math.floor(chance * 100 + 1e-9)}%"


def present_lines(present: Present, width: int, *, required: bool = True) -> Iterable[str]:
    """Yield what today's configuration has more than the pick, or that it is the best already."""
    name = f"present is {_name(present.pick)}"
    sure = f"{_share(present.pick.probability_within_budget)} sure of the limits"
    if present.best:
        yield from _wrap(f"{name}: already best, {sure}", width)
        return
    if not present.difference:  # there is no pick
        yield from _wrap(f"{name}, {sure}" if required else name, width)
        return
    yield from _wrap(f"{name}, {sure}; against the pick it has:", width)
    for metric, estimate in present.difference.items():
        if estimate is not None and metric in ROWS:
            label, unit = ROWS[metric]
            yield f"  {label} {estimate_cell(estimate, unit, signed=True)}"


def _turnings(turnings: Iterable[Turning], percentile: int | None) -> list[str]:
    """Say at which values of the limits another pick comes up."""
    lines = []
    for each in turnings:
        limit = quantities.LIMITS.get(each.name)
        name = each.name if limit is None else limit.option
        unit = "" if each.unit == "1" else {"USD": "$", "device s": "s"}.get(each.unit, each.unit)
        value = _with_unit(_number(each.value, 3), unit) + quantities.which_latency(
            each.name, percentile
        )
        if not each.replayed:
            pick = "nothing fits" if each.pick is None else f"the pick is {each.pick}"
            lines.append(f"{name} {each.direction} about {value}: by the closed form {pick}")
        elif each.exact:
            other = "none comes" if each.pick is None else f"{each.pick} comes"
            lines.append(
                f"{name} {each.direction} {value}: the pick is not sure enough any more; "
                f"of those replayed {other} next"
            )
        else:
            lines.append(f"{name} {each.direction} {value} at the latest: {each.pick} is better")
    return lines


def _fits(answer: Recommendation) -> list[str]:
    """Say how many candidates fit, and what each limit rules out."""
    out = sum(answer.infeasible.values())
    told = "; ".join(f"{count:,} {why}" for why, count in answer.infeasible.items())
    lines = [f"{answer.candidates - out:,} of {answer.candidates:,} candidates fit"]
    return [f"{lines[0]}: {told}"] if told else lines


def _listed(title: str, items: Iterable[str], width: int) -> list[str]:
    lines: list[str] = []
    for place, item in enumerate(items):
        head = f"{title:<9}" if place == 0 else " " * 9
        said, command = split_command(item)
        lines += textwrap.wrap(
            said,
            width,
            initial_indent=head,
            subsequent_indent=" " * 11,
            break_on_hyphens=False,
        )
        if command is not None:
            lines += command_lines(command, width=width, indent=11)
    return lines


def _wrap(text: str, width: int, *, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=indent + "  ",
        break_on_hyphens=False,
    )


def advice_json(recommendation: Recommendation) -> dict[str, Any]:
    """Return the document of `advise --json`: see the contract in docs."""
    answer = recommendation
    return {
        "budget": answer.budget.to_json(),
        "system_optimal": _pick_json(answer.system_optimal),
        "compute_optimal": _pick_json(answer.compute_optimal),
        "regret": _estimates_json(answer.regret),
        "pareto": [_pick_json(pick) for pick in answer.pareto],
        "compute_pareto": [_pick_json(pick) for pick in answer.compute_pareto],
        "reasons": list(answer.reasons),
        "near_misses": [
            {
                "limit": miss.limit,
                "wanted": miss.wanted,
                "nearest": _estimate_json(miss.nearest),
                "sure": miss.sure,
                "pick": _pick_json(miss.pick),
            }
            for miss in answer.near_misses
        ],
        "measure_next": list(answer.measure_next),
        "candidates": answer.candidates,
        "infeasible": dict(answer.infeasible),
        "equals": [_pick_json(pick) for pick in answer.equals],
        "sensitivity": [each.to_json() for each in answer.sensitivity],
        "stages": None if answer.stages is None else answer.stages.to_json(),
        "present": _present_json(answer.present),
        "experiments": [each.to_json() for each in answer.experiments],
    }


def _present_json(present: Present | None) -> dict[str, Any] | None:
    if present is None:
        return None
    return {
        "pick": _pick_json(present.pick),
        "best": present.best,
        "difference": _estimates_json(present.difference),
    }


def _pick_json(pick: Pick | None) -> dict[str, Any] | None:
    if pick is None:
        return None
    return {
        "engine": pick.engine.to_json(),
        "policy": pick.policy.to_json(),
        "command": pick.command,
        "estimates": _estimates_json(pick.estimates),
        "probability_within_budget": pick.probability_within_budget,
        "prior": pick.prior,
        "measured": _measured_json(pick.measured),
    }


def _measured_json(measured: Measured | None) -> dict[str, Any] | None:
    if measured is None:
        return None
    return measured.to_json() | {"estimates": _estimates_json(measured.estimates)}


def _estimates_json(
    estimates: Mapping[str, Estimate | None],
) -> dict[str, dict[str, Any] | None]:
    return {name: _estimate_json(estimate) for name, estimate in estimates.items()}


def _estimate_json(estimate: Estimate | None) -> dict[str, Any] | None:
    if estimate is None:
        return None
    names = ("value", "low", "high", "unit", "extrapolated")
    return {name: getattr(estimate, name) for name in names}
