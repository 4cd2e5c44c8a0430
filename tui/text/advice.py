"""A recommendation as plain text and as the JSON document of `ttscope advise --json`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from advisor.advice.command import policy_request
from traces.schema.advice import ESTIMATES, Budget, Pick, Present, Recommendation, Turning
from traces.schema.estimate import Estimate
from traces.schema.formats import (
    ABSENT,
    OUTSIDE,
    chance,
    counted,
    number,
    percent,
    with_interval,
    written,
)
from traces.schema.quantities import (
    LIMITS,
    Quantity,
    latency,
    limited,
    objective,
    quantity,
    which_latency,
)
from traces.schema.tts.policy import AS_SENT, Policy
from traces.summary.run import to_plain
from tui.text.commands import command_lines, split_command
from tui.text.layout import align

COMPARED = ("accuracy", "latency_s", "latency_p95_s", "device_s", "energy_j", "tokens")
OPTIONAL = ("cost_usd", "energy_j")  # not shown when neither pick has it
SET_ONE = (
    "Give a limit, such as --min-accuracy 0.75 or --max-latency 5s, or say what to --optimise."
)


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
    share = chance(pick.probability_within_budget)
    sure = f"{share} sure of {limits}" if limits else "no limits set"
    goal = goal_words(budget)
    extrapolated = any(e is not None and e.extrapolated for e in pick.estimates.values())
    mark = "  Extrapolated." if extrapolated else ""
    if pick.prior is not None:
        mark = "  By the prior, not measured."
    return f"RUN {_name(pick)}: {goal}, {sure}.{mark}"


def _choices(answer: Recommendation, width: int) -> Iterable[str]:
    shown = (quantity("accuracy"), latency(answer.budget.latency_percentile))
    if not answer.pareto:
        yield "no candidate keeps up with the load"
        return
    yield f"the best {shown[1].noun} for each accuracy:"
    for pick in answer.pareto:
        values = [f"{each.noun} {with_interval(pick.estimates.get(each.name))}" for each in shown]
        yield from _wrap(f"{_name(pick)}: {', '.join(values)}", width, indent="  ")


def goal_words(budget: Budget) -> str:
    """Return what is optimised, such as `lowest p95 latency` or `highest accuracy`."""
    goal = objective(budget.optimise, budget.latency_percentile)
    return f"{'highest' if goal.higher_is_better else 'lowest'} {goal.noun}"


def given_limits(budget: Budget) -> dict[str, float]:
    """Return what is limited, by field; the rate that must be kept up with is a limit too."""
    rate = {} if budget.rate_per_s is None else {"rate": budget.rate_per_s}
    return budget.limits() | rate


def limit_on(budget: Budget, shown: Quantity) -> float | None:
    """Return the budget's limit on a quantity, None without one."""
    for field, value in budget.limits().items():
        if limited(field, budget.latency_percentile) == shown:
            return value
    return None


def _limits(budget: Budget) -> str:
    words = []
    for field, value in given_limits(budget).items():
        subject = limited(field, budget.latency_percentile)
        sign = ">=" if LIMITS[field].at_least else "<="
        words.append(f"{subject.noun} {sign} {written(value, subject.unit)}")
    return ", ".join(words)


def request_words(policy: Policy) -> tuple[str, str, str]:
    """Return how many requests a policy sends a problem, what each holds, and which answer wins."""
    request = policy_request(policy)
    count, at_a_time = request["requests"], request["at_a_time"]
    many = counted(count, "request") + (f", {at_a_time} at a time," if at_a_time < count else "")
    body = ", ".join(f"{name} {value}" for name, value in request["body"].items())
    wins = "" if request["answer"] == "the only answer" else f", and {request['answer']} wins"
    cancel = ". Cancel the rest then" if request["cancel_the_rest"] else ""
    return many, body, wins + cancel


def _policy(pick: Pick, width: int) -> Iterable[str]:
    if pick.policy == AS_SENT:
        return ["policy: as sent"]
    many, body, wins = request_words(pick.policy)
    return _wrap(f"policy: {many} a problem, each {body}{wins}", width)


def _estimates(answer: Recommendation, width: int) -> Iterable[str]:
    """Return the table: system-optimal, compute-optimal, and the regret between them."""
    ours, theirs = answer.system_optimal, answer.compute_optimal
    assert ours is not None
    agree = same(ours, theirs)
    wanted = latency(answer.budget.latency_percentile).name
    names = [*ESTIMATES, *([] if wanted in ESTIMATES else [wanted])]
    columns = [ours] if agree or theirs is None else [ours, theirs]
    heads = ["", "system- and compute-optimal" if agree else "system-optimal", "compute-optimal"]
    rows = [heads[: len(columns) + 1]]
    for name in names:
        estimates = [pick.estimates.get(name) for pick in columns]
        if name not in OPTIONAL or any(estimates):
            rows.append([quantity(name).noun, *map(with_interval, estimates)])
    yield from (line[:width] for line in align(rows))
    if theirs is not None and not agree:
        yield ""
        yield from _wrap(f"compute-optimal is {_name(theirs)}, with the regret:", width)
        yield from _differences(answer.regret, width)
    of_prior = [pick.prior is not None for pick in columns]
    marked = "by the prior, not measured" if all(of_prior) else "outside what was measured"
    marked += ", or by the prior" if any(of_prior) and not all(of_prior) else ""
    yield f"intervals of 90 %, {ABSENT} not measured, {OUTSIDE} {marked}"


def _differences(differences: Mapping[str, Estimate | None], width: int) -> Iterable[str]:
    for name, estimate in differences.items():
        if estimate is not None:
            text = f"{quantity(name).noun} {with_interval(estimate, sign=True)}"
            yield from _wrap(text, width, indent="  ")


def _as_run(answer: Recommendation, width: int) -> Iterable[str]:
    """Yield what was measured of the picks that were run, beside what is predicted."""
    ours, theirs = answer.system_optimal, answer.compute_optimal
    named = {"system-optimal": ours, "compute-optimal": theirs}
    if same(ours, theirs):
        del named["compute-optimal"]
    for name, pick in named.items():
        run = None if pick is None else pick.measured
        if pick is not None and run is not None and run.at_load:
            yield from comparison_lines(name, pick, run.estimates, within=False)
            yield from _wrap(f"measured in {run.recording}, {run.problems} problems", width)


def same(one: Pick | None, other: Pick | None) -> bool:
    """Whether two picks are one configuration."""
    if one is None or other is None:
        return False
    return (one.engine, one.policy) == (other.engine, other.policy)


def comparison_lines(
    name: str, pick: Pick, measured: Mapping[str, Estimate | None], *, within: bool = True
) -> list[str]:
    """Return a pick's numbers as predicted and as measured; `within`: do these lie inside."""
    rows = [[name, "predicted", "measured", "within" * within]]
    for metric in COMPARED:
        predicted, run = pick.estimates.get(metric), measured[metric]
        if predicted is None and run is None:
            continue
        holds = None if predicted is None or run is None else predicted.holds(run.value)
        inside = {True: "yes", False: "no", None: ABSENT}[holds]
        cells = (with_interval(predicted), with_interval(run), inside * within)
        rows.append([quantity(metric).noun, *cells])
    return ["", *align(rows)]


def near_miss_lines(answer: Recommendation, width: int) -> Iterable[str]:
    """Yield what comes nearest to each limit where nothing meets all."""
    confidence = answer.budget.confidence
    if all(miss.sure >= confidence for miss in answer.missed):
        head = f"each limit is met by itself, but not all at once with {percent(confidence)}:"
    else:
        head = "nearest to each limit that is missed, keeping the others where possible:"
    yield from _wrap(head, width)
    for miss in answer.missed:
        subject = limited(miss.limit, answer.budget.latency_percentile)
        text = (
            f"{subject.noun}: wanted {written(miss.wanted, subject.unit)}, nearest "
            f"{with_interval(miss.nearest)} with {_name(miss.pick)} "
            f"({chance(miss.sure)} sure of it, "
            f"{chance(miss.pick.probability_within_budget)} sure of all)"
        )
        yield from _wrap(text, width, indent="  ")


def nearest_line(answer: Recommendation) -> str:
    """Return in one line what comes nearest to a limit that is missed, in the options' names."""
    if not answer.near_misses:
        return "no candidate could be judged"
    budget = answer.budget
    missed = [each for each in answer.near_misses if each.sure < budget.confidence]
    if not missed:
        return (
            f"each limit is met by itself, all together are not with {percent(budget.confidence)}"
        )
    miss = missed[0]
    limit = LIMITS[miss.limit]
    unit, value, wanted = limit.quantity.unit, miss.nearest.value, miss.wanted
    within = value >= wanted if limit.at_least else value <= wanted
    which = which_latency(miss.limit, budget.latency_percentile)
    text = (
        f"nearest to {limit.option} {written(wanted, unit)}{which} is "
        f"{number(value, unit)} with {_name(miss.pick)}"
    )
    if not within:
        return text
    return f"{text}, but that is only {chance(miss.sure)} sure, not {percent(budget.confidence)}"


def present_lines(present: Present, width: int, *, required: bool = True) -> Iterable[str]:
    """Yield what today's configuration has more than the pick, or that it is the best already."""
    name = f"present is {_name(present.pick)}"
    sure = f"{chance(present.pick.probability_within_budget)} sure of the limits"
    if present.best:
        yield from _wrap(f"{name}: already best, {sure}", width)
        return
    if not present.difference:  # there is no pick
        yield from _wrap(f"{name}, {sure}" if required else name, width)
        return
    yield from _wrap(f"{name}, {sure}. Against the pick it has:", width)
    yield from _differences(present.difference, width)


def _turnings(turnings: Iterable[Turning], percentile: int | None) -> list[str]:
    """Say at which values of the limits another pick comes up."""
    lines = []
    for each in turnings:
        limit = LIMITS.get(each.name)
        name = each.name if limit is None else limit.option
        unit = each.unit if limit is None else limit.quantity.unit
        value = number(each.value, unit) + which_latency(each.name, percentile)
        if not each.replayed:
            pick = "nothing fits" if each.pick is None else f"the pick is {each.pick}"
            lines.append(f"{name} {each.direction} about {value}: by the closed form {pick}")
        elif each.exact:
            other = "none comes" if each.pick is None else f"{each.pick} comes"
            lines.append(
                f"{name} {each.direction} {value}: the pick is not sure enough any more, "
                f"and {other} next among those replayed"
            )
        else:
            lines.append(f"{name} {each.direction} {value} at the latest: {each.pick} is better")
    return lines


def _fits(answer: Recommendation) -> list[str]:
    """Say how many candidates fit, and what each limit rules out."""
    out = sum(answer.infeasible.values())
    reasons = ", ".join(f"{count:,} {why}" for why, count in answer.infeasible.items())
    lines = [f"{answer.candidates - out:,} of {answer.candidates:,} candidates fit"]
    return [f"{lines[0]}: {reasons}"] if reasons else lines


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
    document: dict[str, Any] = to_plain(recommendation)
    return document
