"""The page's first section: what to run, what is expected of it, and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from traces.schema.advice import Pick, Recommendation
from traces.schema.formats import number, percent, percent_change
from traces.schema.quantities import latency, quantity
from traces.schema.tts.policy import AS_SENT
from tui.report.markup import (
    Content,
    Html,
    empty,
    estimated,
    figure,
    join,
    probability,
    table,
    tag,
    term,
)
from tui.report.material import Material
from tui.report.words import (
    REGRET,
    SURE,
    budget_words,
    configuration,
    engine_words,
    limit_words,
    model_words,
    policy_words,
)
from tui.text.advice import OPTIONAL, SET_ONE, goal_words, request_words, same
from tui.text.commands import command_lines, split_command

OBJECTIVES = {  # what is optimised -> the regrets that tell of it, the first known one counts
    "accuracy": ("latency_s",),
    "latency": ("latency_s",),
    "cost": ("cost_usd", "device_s"),
    "energy": ("energy_j",),
    "throughput": ("device_s",),
}
COMMAND_WIDTH = 80


def verdict(material: Material) -> Html:
    """Return the verdict, or why there is none."""
    answer = material.advice
    if answer is None:
        why = material.no_advice or ""
        return join([tag("p", "No advice can be given.", class_="lead"), empty(f"Why: {why}.")])
    parts = [*_answer(answer), _lists(answer, material.left_out)]
    return join(parts)


def _answer(answer: Recommendation) -> Iterable[Content]:
    pick, budget = answer.system_optimal, answer.budget
    limits = budget_words(budget)
    if not budget.required:
        yield from _choices(answer)
        return
    if pick is None:
        yield tag("p", tag("strong", "Nothing fits the budget"), f": {limits}.", class_="lead")
        yield from _misses(answer)
        return
    yield tag(
        "p",
        "Run ",
        tag("strong", f"{model_words(pick.engine.model)} with {policy_words(pick.policy)}"),
        ".",
        class_="lead",
    )
    where = "system_optimal.probability_within_budget"
    sure = probability(pick.probability_within_budget, SURE, key=where)
    goal = goal_words(budget)
    if limits:
        parts: list[Content] = [f"It has the {goal} of all configurations that meet the budget: "]
        parts += [f"{limits}. The probability that it does so is ", sure, "."]
    else:
        parts = [f"It has the {goal}. No limit was given."]
    parts += [" ", _against(answer)]
    if pick.prior is not None:
        parts.append(
            f" The pick was not measured on its GPU: its times are of the prior of {pick.prior} "
            "(operator tables of others), marked *."
        )
    elif any(each is not None and each.extrapolated for each in pick.estimates.values()):
        parts.append(" Its numbers marked * lie outside what was measured.")
    yield tag("p", *parts)
    yield _numbers(answer)
    if pick.command:
        yield tag("h3", "Start it with")
        yield _command(pick.command)
    yield tag("p", _requests(pick))


def _choices(answer: Recommendation) -> Iterable[Content]:
    """Yield that nothing is recommended without a limit, and between what one chooses."""
    nothing = ", so that no configuration is recommended."
    yield tag("p", tag("strong", "No limit was given"), nothing, class_="lead")
    shown = (quantity("accuracy"), latency(answer.budget.latency_percentile))
    last = len(answer.pareto) - 1
    for words, place in (("fastest", 0), ("most accurate", last))[: last + 1]:
        pick = answer.pareto[place]
        parts: list[Content] = [
            f"The {words} is {model_words(pick.engine.model)} with {policy_words(pick.policy)}"
        ]
        for each in shown:
            key = f"pareto.{place}.estimates.{each.name}"
            parts += [
                f", {each.noun} ",
                estimated(pick.estimates.get(each.name), each.meaning, key=key),
            ]
        yield tag("p", *parts, ".")
    yield tag("p", f"The fronts below show what lies between. {SET_ONE}")


def _against(answer: Recommendation) -> Html:
    """Return in a sentence how the compute-optimal configuration compares."""
    other = answer.compute_optimal
    if other is None:
        return join(["No configuration is known to be as accurate with fewer FLOPs."])
    if same(other, answer.system_optimal):
        return join(["It also needs the fewest FLOPs, so that compute-optimal is the same here."])
    regrets = {name: each for name, each in answer.regret.items() if each is not None}
    wanted = [*OBJECTIVES[answer.budget.optimise], *regrets]
    if answer.budget.optimise == "latency" and answer.budget.latency_percentile is not None:
        wanted.insert(0, latency(answer.budget.latency_percentile).name)
    name = next((each for each in wanted if each in regrets), None)
    regret = None if name is None else regrets[name]
    words = f"{model_words(other.engine.model)} with {policy_words(other.policy)}"
    head = [f"Counting arithmetic (FLOPs) alone, one would choose {words} instead"]
    pick = answer.system_optimal
    assert pick is not None
    flops, least = pick.estimates.get("flops"), other.estimates.get("flops")
    if flops is not None and least is not None and least.value > 0:
        head.append(f": it needs {percent(least.value / flops.value)} of the arithmetic")
    if regret is None or name is None:
        return join([*head, "."])
    noun = quantity(name).noun
    if regret.holds(0.0):
        return join([*head, f". In {noun} the two cannot be told apart."])
    ours = pick.estimates.get(name)
    share = f" ({percent_change(regret.value / ours.value)})" if ours and ours.value else ""
    size = f"{number(abs(regret.value), regret.unit)}{share}"
    if regret.unit == "1":  # a difference of shares, in points
        size = number(abs(regret.value), "1", sign=True).removeprefix("+")
    size_of = figure(abs(regret.value), regret.unit, REGRET, text=size)
    if regret.value > 0:
        return join([*head, ", but has ", size_of, f" more {noun}."])
    enough = other.probability_within_budget >= answer.budget.confidence
    kept = "" if enough else ", yet it does not meet the budget surely enough"
    return join([*head, ", and has ", size_of, f" less {noun}{kept}."])


def _numbers(answer: Recommendation) -> Html:
    pick, other = answer.system_optimal, answer.compute_optimal
    assert pick is not None
    apart = other is not None and not same(pick, other)
    columns = [("system_optimal", pick)]
    if apart and other is not None:
        columns.append(("compute_optimal", other))
    both = "Also compute-optimal: fewest FLOPs." if other is not None and not apart else ""
    heads: list[Content] = ["expected per problem", _head("A", "system-optimal", pick, both)]
    if apart and other is not None:
        heads += [
            _head("B", "compute-optimal", other, ""),
            term("B minus A (regret)", REGRET),
        ]
    run = pick.measured if pick.measured is not None and pick.measured.at_load else None
    if run is not None:
        note = f"measured in {run.recording}, {run.problems} problems"
        heads.insert(2, join(["as it was run", tag("span", note, class_="how")]))
    rows = []
    for name in pick.estimates:
        estimates = [each.estimates.get(name) for _, each in columns]
        if name in OPTIONAL and not any(estimates):
            continue
        meaning = quantity(name).meaning
        row: list[Content] = [term(quantity(name).noun, meaning)]
        for (who, _), estimate in zip(columns, estimates, strict=True):
            row.append(estimated(estimate, meaning, key=f"{who}.estimates.{name}"))
            if run is not None and who == "system_optimal":
                key = f"{who}.measured.estimates.{name}"
                measured = name in run.estimates
                row.append(estimated(run.estimates[name], meaning, key=key) if measured else "-")
        if apart:
            if name in answer.regret:
                regret = answer.regret[name]
                row.append(estimated(regret, REGRET, key=f"regret.{name}", sign=True))
            else:
                row.append("")
        rows.append(row)
    return table(heads, rows, caption="What to expect, with 90 % intervals", class_="verdict")


def _head(letter: str, name: str, pick: Pick, note: str) -> Html:
    return join(
        [
            tag("span", f"{letter} ", class_="letter"),
            name,
            tag("span", configuration(pick.engine, pick.policy, prior=pick.prior), class_="config"),
            tag("span", note, class_="how") if note else None,
        ]
    )


def _requests(pick: Pick) -> Html:
    if pick.policy == AS_SENT:
        return join(["for traffic as it was sent."])
    many, body, wins = request_words(pick.policy)
    return join(["and send ", many, " a problem, each with ", tag("code", body), f"{wins}."])


def _command(command: str) -> Html:
    lines = command_lines(command, width=COMMAND_WIDTH)
    return tag("pre", tag("code", "\n".join(lines)), class_="command", tabindex="0")


def _misses(answer: Recommendation) -> Iterable[Content]:
    if not answer.near_misses:
        yield empty("Why: no candidate could be judged.")
        return
    rows: list[list[Content]] = []
    for miss in answer.missed:
        index = answer.near_misses.index(miss)
        rows.append(
            [
                limit_words(miss.limit, miss.wanted, answer.budget.latency_percentile),
                estimated(
                    miss.nearest,
                    "What comes nearest to this limit, keeping the others where that is possible.",
                    key=f"near_misses.{index}.nearest",
                ),
                configuration(miss.pick.engine, miss.pick.policy, prior=miss.pick.prior),
                probability(
                    miss.sure,
                    "The probability that this limit is met, whatever the others.",
                    key=f"near_misses.{index}.sure",
                ),
                probability(
                    miss.pick.probability_within_budget,
                    SURE,
                    key=f"near_misses.{index}.pick.probability_within_budget",
                ),
            ]
        )
    heads = ("wanted", "nearest", "with", "sure of this limit", term("sure of all limits", SURE))
    yield table(heads, rows, caption="What comes nearest to each limit that is missed")
    best = answer.compute_optimal
    if best is not None:
        words = f"{model_words(best.engine.model)} with {policy_words(best.policy)}"
        how = engine_words(best.engine, prior=best.prior)
        yield tag("p", f"Compute-optimal, limits aside: {words}, {how}.")


def _item(text: str) -> Html:
    """Return a sentence, and the command that it ends with as lines to be pasted."""
    said, command = split_command(text)
    return join([said, None if command is None else _command(command)])


def _lists(answer: Recommendation, left_out: Sequence[str]) -> Html:
    out = sum(answer.infeasible.values())
    fits = [f"{answer.candidates - out:,} of {answer.candidates:,} candidates fit"]
    fits += [f"{count:,} do not: {why}" for why, count in answer.infeasible.items()]
    if left_out:
        names = ", ".join(left_out)
        fits.append(f"not used, being incomplete, predicted or without problems: {names}")
    listed = (
        ("Why", answer.reasons),
        ("What was considered", fits),
        ("What to measure next", answer.measure_next),
    )
    why, *rest = [
        join([tag("h3", title), tag("ul", *(tag("li", _item(item)) for item in items))])
        if items
        else None
        for title, items in listed
    ]
    return tag("div", tag("div", why), tag("div", *rest), class_="lists")
