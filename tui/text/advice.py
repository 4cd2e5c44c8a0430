"""A recommendation as plain text and as the JSON document of `ttscope advise --json`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from advisor.advice.command import command_note
from traces.schema import engine
from traces.schema.advice import ESTIMATES, Budget, NearMiss, Pick, Present, Recommendation, Turning
from traces.schema.estimate import OF, Estimate
from traces.schema.formats import (
    ABSENT,
    OUTSIDE,
    TIMES,
    chance,
    counted,
    intervals_of,
    number,
    percent,
    percent_change,
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
from traces.schema.tts.policy import AS_SENT
from traces.summary.run import to_plain
from tui.text.blocks import Cell, Table, Value, probability, table_lines
from tui.text.commands import command_lines, split_command
from tui.text.layout import fold
from tui.text.words import (
    budget_words,
    given_words,
    goal_within,
    request_words,
)

if TYPE_CHECKING:
    from advisor.advice.accounts.costs import Accounts
    from advisor.advice.accounts.efforts import Effort, EffortMap

COMPARED = ("accuracy", "latency_s", "latency_p95_s", "device_s", "energy_j", "tokens")
OPTIONAL = ("cost_usd", "energy_j")  # not shown when neither pick has it
IN_SHORT = ("accuracy", "cost_usd", "device_s", "energy_j", "tokens", "flops")
SHORT_LINES = 25
SET_ONE = (
    "Give a limit, such as --min-accuracy 0.75 or --max-latency 5s, or say what to --optimise."
)
OBJECTIVES = {  # what is optimised -> the regrets that tell of it, the first known one counts
    "accuracy": ("latency_s",),
    "latency": ("latency_s",),
    "cost": ("cost_usd", "device_s"),
    "energy": ("energy_j",),
    "throughput": ("device_s",),
}
WORTH = 0.05  # of accuracy, from which more of it is worth a sentence
LABEL = 9  # columns that the titles of the lists take


def advice_lines(
    recommendation: Recommendation, *, width: int = 80, explain: bool = False
) -> list[str]:
    """Return the answer as lines of at most `width` columns, the headline first.

    Without `explain` a recommendation takes at most `SHORT_LINES` lines before the last and beside
    its alternatives, or as many as its command, its numbers and what to do next need.
    """
    answer, pick = recommendation, recommendation.system_optimal
    lines = verdict_lines(answer, width)
    if pick is not None:
        lines += ["", *estimate_lines(answer, width, explain=explain)]
        lines += ["", *command_lines(pick.command or "", width=width), *policy_lines(pick, width)]
        if explain:
            lines += as_run_lines(answer, width)
    elif not answer.budget.required:
        lines += ["", *_choices(answer, width)]
    else:
        lines += ["", *near_miss_lines(answer, width)]
        best = answer.compute_optimal
        if best is not None:
            lines += ["", *_wrap(f"Compute-optimal, limits aside: {in_words(best)}.", width)]
    if answer.present is not None:
        required = answer.budget.required
        lines += ["", *present_lines(answer.present, width, required=required)]
    if explain or pick is None:
        return [*lines, "", *closing_lines(answer, width)]
    alone = verdict_lines(replace(answer, alternatives=()), width)
    room = SHORT_LINES - len(lines) - 1 + len(verdict_lines(answer, width)) - len(alone)
    return [*lines, "", *_in_short(answer, width, room)]


def _in_short(answer: Recommendation, width: int, room: int) -> list[str]:
    """Return what to do next, other first sentences as far as there is room, and how to see all."""
    lists = {title: items for title, items in _lists(answer).items() if items}
    shown: dict[str, list[str]] = {}
    for title in ("Next", "Changes", "Why"):  # the most useful first
        first = lists.get(title, [])[:1]
        if title == "Next":
            first = [_without_middle(item) for item in first]
        lines = _listed(title, first, width, commands=False)
        if title == "Next" or len(lines) <= room:
            shown[title], room = lines, room - len(lines)
    rest = sum(map(len, lists.values())) - len([each for each in shown.values() if each])
    more = f"{'More':<{LABEL}}--explain gives the rest ({counted(rest, 'sentence')}) and commands"
    return [*(line for title in lists for line in shown.get(title, [])), more]


def _without_middle(text: str) -> str:
    """Return the first and the last sentence, between which stands what a run would save."""
    first, *others = text.split(". ")
    return ". ".join([first, *others[-1:]])


def verdict_lines(answer: Recommendation, width: int) -> list[str]:
    """Return what to run, and how sure that is, or that nothing fits."""
    return [line for part in verdict(answer) for line in _wrap(part, width)]


def closing_lines(answer: Recommendation, width: int, *, notes: bool = False) -> list[str]:
    """Return why, the values at which the answer changes, and what to measure next.

    With `notes` also what to know of the recordings, which `advise` says before its answer.
    """
    lists = _lists(answer) | ({"Data": [*answer.notes]} if notes else {})
    return [line for title, items in lists.items() for line in _listed(title, items, width)]


def _lists(answer: Recommendation) -> dict[str, list[str]]:
    changes = [*_turnings(answer.sensitivity, answer.budget), *fits(answer)]
    return {"Why": [*answer.reasons], "Changes": changes, "Next": [*answer.measure_next]}


def _name(pick: Pick) -> str:
    return engine.in_words(pick.engine, pick.policy, prior=pick.prior)


def in_words(pick: Pick, *, device: bool = False) -> str:
    """Return a configuration as `demo/s with 8 samples, majority vote`, and what it runs on."""
    if device:
        return engine.in_words(pick.engine, pick.policy, limits=False)
    return f"{engine.model_words(pick.engine.model)} with {pick.policy.words()}"


OF_A_RUN: Final = f"in {OF['others']}"  # what a chance is of


def verdict(answer: Recommendation) -> list[str]:
    """Return the headline and the paragraph below it: the goal, and what FLOPs alone would say."""
    budget, pick = answer.budget, answer.system_optimal
    if not budget.required:
        return [f"No limit was given, so that no configuration is recommended. {SET_ONE}"]
    given = given_words(answer)
    if pick is None:
        return [f"Nothing fits the budget: {given}."]
    said = f"It has the {goal_within(answer)}"
    sure = chance(pick.probability_within_budget)
    sentences = [
        f"{said}, {sure} sure {OF_A_RUN}."
        if budget_words(budget)
        else f"{said}. No limit was given."
    ]
    sentences.append("".join(against(answer)))
    sentences += [f"{each}." for each in answer.alternatives]  # which begin with a name
    sentences += [*unasked(answer), *marks(pick)]
    warned = [] if answer.warning is None else [f"Warning: {answer.warning}."]
    return [f"Run {in_words(pick, device=True)}.", *warned, " ".join(sentences)]


def unasked(answer: Recommendation) -> list[str]:
    """Say what accuracy the same limits allow, where nothing was asked of it."""
    budget, pick = answer.budget, answer.system_optimal
    if budget.min_accuracy is not None or budget.goal == "accuracy" or pick is None:
        return []
    fitting = [
        each.estimates["accuracy"].value
        for each in answer.pareto
        if each.probability_within_budget >= budget.confidence
        and each.estimates["accuracy"] is not None
    ]
    ours = pick.estimates["accuracy"]
    if ours is None or max(fitting, default=0.0) < ours.value + WORTH:
        return []
    return [
        f"Nothing was asked of accuracy, which is {number(ours.value, '1')}. Within the same "
        f"limits {number(max(fitting), '1')} can be had: --optimise accuracy."
    ]


def marks(pick: Pick) -> list[str]:
    """Return the sentence that says which of a pick's numbers were not measured."""
    sentences = []
    if pick.prior is not None:
        sentences += [
            "Its times come from operator tables of this GPU (the prior), not from a run."
        ]
        if pick.estimates.get("energy_j") is not None:
            sentences += ["Its energy is by published watts of other GPUs."]
    accuracy = pick.estimates.get("accuracy")
    if accuracy is not None and accuracy.extrapolated:
        sentences += [
            "Its accuracy and lengths are those of a published curve, by laws of answers."
        ]
    if any(each is not None and each.extrapolated for each in pick.estimates.values()):
        share = f": larger steps take {percent(pick.beyond)} of its time" if pick.beyond else ""
        sentences += [f"Its numbers marked {OUTSIDE} lie outside what was measured{share}."]
    sentences += _off_its_run(pick)
    return [" ".join(sentences)] if sentences else []


def _off_its_run(pick: Pick) -> list[str]:
    """Say that a pick that was run took another time than predicted, where that is so."""
    from traces.summary.comparison import lies_off

    run = pick.measured
    for name in ("latency_s", "latency_p95_s"):
        predicted = pick.estimates.get(name)
        was = None if run is None or not run.at_load else run.estimates.get(name)
        if was is None or was.value <= 0 or predicted is None or predicted.value <= 0:
            continue
        if lies_off(predicted, was.value, was.value):
            assert run is not None
            return [
                f"Its run {run.recording} had a {quantity(name).noun} of "
                f"{number(was.value, was.unit)}, predicted {number(predicted.value, was.unit)}. "
                "Do not rely on a prediction that is so far off."
            ]
    return []


def against(answer: Recommendation) -> tuple[str, str, str]:
    """Return how the compute-optimal configuration compares, the difference in the middle."""
    other, pick = answer.compute_optimal, answer.system_optimal
    if other is None:
        return "No configuration is known to be as accurate with fewer FLOPs.", "", ""
    if same(other, pick):
        return "It also needs the fewest FLOPs, so that compute-optimal is the same here.", "", ""
    assert pick is not None
    instead = engine.in_words(other.engine, other.policy, limits=False, beside=pick.engine)
    if in_words(other, device=True) == in_words(pick, device=True):  # but for the engine's limits
        instead = f"the same on {replace(other.engine, gpu=None).words()}"
    head = f"Counting arithmetic (FLOPs) alone, one would choose {instead} instead"
    flops, least = pick.estimates.get("flops"), other.estimates.get("flops")
    if flops is not None and least is not None and least.value > 0:
        head += f". It needs {percent(least.value / flops.value)} of the arithmetic"
    name = telling_regret(answer)
    regret = None if name is None else answer.regret[name]
    unsure = _unsure(answer, pick, other)
    if regret is None or name is None:
        return f"{head}{_values_alone(answer, pick, other)}.{unsure}", "", ""
    noun = quantity(name).noun
    if regret.holds(0.0):
        return f"{head}. In {noun} the two cannot be told apart.{unsure}", "", ""
    ours = pick.estimates.get(name)
    share = regret.value / ours.value if ours and ours.value else None
    size, more = number(abs(regret.value), regret.unit), "more"
    if regret.unit == "1":  # a difference of shares, in points
        size = number(abs(regret.value), "1", sign=True).removeprefix("+")
    elif share is not None and share >= TIMES:
        size, more = percent_change(share), "the"
    elif share is not None:
        size += f" ({percent_change(share) if share > 0 else percent(-share, 1)})"
    if regret.value > 0:
        return f"{head}, but has ", size, f" {more} {noun}.{unsure}"
    return f"{head}, and has ", size, f" less {noun}.{unsure}"


def _unsure(answer: Recommendation, pick: Pick, other: Pick) -> str:
    """Say that the compute-optimal one is not sure enough of the limits, where that is so."""
    sure, wanted = other.probability_within_budget, answer.budget.confidence
    if sure >= wanted:
        return ""
    ours, theirs = pick.estimates.get("accuracy"), other.estimates.get("accuracy")
    higher = ours is not None and theirs is not None and theirs.value > ours.value
    opening = "Its accuracy is higher, but it is" if higher else "It is"
    return f" {opening} {chance(sure)} sure of the limits, and {percent(wanted)} are wanted."


def _values_alone(answer: Recommendation, pick: Pick, other: Pick) -> str:
    """Return how two picks compare in what is optimised where only values are known."""
    for name in _telling(answer):
        ours, theirs = pick.estimates.get(name), other.estimates.get(name)
        if ours is not None and theirs is not None:
            values = f"{number(theirs.value, theirs.unit)} against {number(ours.value, ours.unit)}"
            return f", with a {quantity(name).noun} of {values}"
    return ""


def telling_regret(answer: Recommendation) -> str | None:
    """Return the quantity whose regret tells most about what is optimised, None without one."""
    wanted = [*_telling(answer), *answer.regret]
    return next((each for each in wanted if answer.regret.get(each) is not None), None)


def _telling(answer: Recommendation) -> list[str]:
    """Return the quantities that tell of what is optimised, the most telling first."""
    percentile, goal = answer.budget.latency_percentile, answer.budget.goal
    own = [latency(percentile).name] if goal == "latency" and percentile is not None else []
    return [*own, *OBJECTIVES[goal]]


def _choices(answer: Recommendation, width: int) -> Iterable[str]:
    shown = (quantity("accuracy"), latency(answer.budget.latency_percentile))
    if not answer.pareto:
        yield "No candidate keeps up with the load."
        return
    of = intervals_of(each for pick in answer.pareto for each in pick.estimates.values())
    yield from _wrap(f"The best {shown[1].noun} for each accuracy{f', {of}' * bool(of)}:", width)
    for pick in answer.pareto:
        values = [f"{each.noun} {with_interval(pick.estimates.get(each.name))}" for each in shown]
        yield from _wrap(f"{_name(pick)}: {', '.join(values)}", width, indent="  ")


def limit_on(budget: Budget, shown: Quantity) -> float | None:
    """Return the budget's limit on a quantity, None without one."""
    for field, value in budget.limits().items():
        if limited(field, budget.latency_percentile) == shown:
            return value
    return None


def policy_lines(pick: Pick, width: int) -> list[str]:
    """Return how several servers are started, and what to send a problem."""
    note = command_note(pick) if pick.command else ""
    sent = "the traffic as it was sent."
    if pick.policy != AS_SENT:
        sent = "".join(request_words(pick.policy))
    return [*(_wrap(note, width) if note else ()), *_wrap(f"Policy: {sent}", width)]


def estimate_lines(
    answer: Recommendation, width: int, *, explain: bool = False, letters: bool = False
) -> Iterable[str]:
    """Return the table: system-optimal, compute-optimal, and the difference between them.

    With `letters` the picks have those that they have in a plot, A and B.
    """
    named = picks_of(answer)
    picks, other = [*named.values()], named.get("compute-optimal")
    names = _shown(answer.budget, picks, all_names=explain)
    heads = [*named]
    if answer.compute_optimal is not None and other is None:
        heads = ["system- and compute-optimal"]
    if letters:
        heads = [f"{letter} {head}" for letter, head in zip("AB", heads, strict=False)]
    changes = {} if other is None else {name: _change(answer, name) for name in names}
    table = _table_of(picks, heads, names, changes)
    yield from table_lines(table, width)
    if other is not None and explain:
        yield ""
        title = f"Compute-optimal minus system-optimal (regret), {_name(other)}"
        yield from _differences(title, answer.regret, width)
    signs = _signs(table, said=any(OUTSIDE in each for each in marks(picks[0])))
    if signs:
        yield signs


def picks_of(answer: Recommendation) -> dict[str, Pick]:
    """Return the picks by name, the compute-optimal one where it is another configuration."""
    ours, theirs = answer.system_optimal, answer.compute_optimal
    named = {"system-optimal": ours, "compute-optimal": None if same(ours, theirs) else theirs}
    return {name: pick for name, pick in named.items() if pick is not None}


def _table_of(
    picks: Sequence[Pick],
    heads: Sequence[str],
    names: Iterable[str],
    changes: Mapping[str, Value] | None = None,
) -> Table:
    """Return a row for each name, a column for each pick, and one for what changes, if anything."""
    known = [each for pick in picks for each in pick.estimates.values() if each is not None]
    first = "first estimate" if all(each.low is None for each in known) else ""
    differs = any(map(str, (changes or {}).values()))
    rows: list[list[Cell]] = []
    for name in names:
        values = [Value(pick.estimates.get(name)) for pick in picks]
        rows.append(
            [quantity(name).noun, *values, *([changes[name]] if changes and differs else ())]
        )
    columns = [first, *heads[: len(picks)], *["difference"] * differs]
    return Table(heads=columns, rows=rows, apart={"difference": -1} if differs else {})


def _shown(budget: Budget, picks: Sequence[Pick], *, all_names: bool) -> list[str]:
    wanted = latency(budget.latency_percentile).name
    names = [*ESTIMATES, *([] if wanted in ESTIMATES else [wanted])]
    if not all_names:
        goal = objective(budget.goal, budget.latency_percentile).name
        names = [name for name in names if name in (*IN_SHORT, wanted, goal)]
    return [
        name
        for name in names
        if name not in OPTIONAL or any(pick.estimates.get(name) for pick in picks)
    ]


def _signs(table: Table, *, said: bool = False) -> str:
    """Return what the marks of a table mean, unless `marks` said what lies outside."""
    cells = [str(cell) for row in table.rows for cell in row]
    outside = not said and any(OUTSIDE in cell for cell in cells)
    signs = [f"{OUTSIDE} outside what was measured"] if outside else []
    signs += [f"{ABSENT} not measured"] if ABSENT in cells else []
    return ", ".join(signs)


def beside_lines(
    budget: Budget, picks: Sequence[Pick], width: int, *, heads: Sequence[str]
) -> list[str]:
    """Return the table of some configurations, each under its head."""
    table = _table_of(picks, heads, _shown(budget, picks, all_names=False))
    signs = _signs(table)
    return [*table_lines(table, width), *([signs] if signs else [])]


COSTS = {  # of `Costs`, in the order in which they are shown
    "usd_per_million_tokens": "$ per million output tokens",
    "usd_per_thousand_problems": "$ per 1,000 problems",
    "electricity_usd_per_thousand_problems": "electricity per 1,000 problems",
    "idle_share": "share of device time idle",
    "api_usd_per_thousand_problems": "API per 1,000 problems",
    "break_even_per_s": "renting costs less from",
    "capacity_per_s": "it serves at most",
}


def cost_lines(answer: Recommendation, accounts: Accounts, width: int = 80) -> list[str]:
    """Return what the picks cost as people count it, nothing where nothing of it is known."""
    table = costs_table(answer, accounts)
    if table is None:
        return []
    return ["", *table_lines(table, width), *_wrap(" ".join(cost_words(accounts)), width)]


def costs_table(answer: Recommendation, accounts: Accounts) -> Table | None:
    """Return the costs that are known, one where both picks are the same."""
    named = {"system-optimal": accounts.system_optimal}
    if not same(answer.system_optimal, answer.compute_optimal):
        named["compute-optimal"] = accounts.compute_optimal
    picks = {name: costs for name, costs in named.items() if costs is not None}
    rows: list[list[Cell]] = []
    for field, noun in COSTS.items():
        values = {name: getattr(costs, field) for name, costs in picks.items()}
        if any(each is not None for each in values.values()):
            keys = {name: f"costs.{name.replace('-', '_')}.{field}" for name in picks}
            cells = (Value(each, f"{noun}.", key=keys[name]) for name, each in values.items())
            rows.append([noun, *cells])
    heads = ("costs", *picks)
    return Table(heads=heads, rows=rows, caption="What it costs", style="verdict") if rows else None


def cost_words(accounts: Accounts) -> list[str]:
    """Return in sentences what the costs hold, by the prices that were given."""
    said, tariff, ours = [], accounts.tariff, accounts.system_optimal
    if tariff.kwh_price is not None:
        said.append(
            f"Electricity at ${tariff.kwh_price:g} per kWh and a PUE of {tariff.pue or 1:g}. The "
            "rent of a device mostly holds it already."
        )
    if tariff.api_price is not None:
        said.append(
            f"The API: ${tariff.api_price:g} per million output tokens, of the same model and as "
            "many tokens, prompts not counted. Devices are rented all the time."
        )
    even, most = (None, None) if ours is None else (ours.break_even_per_s, ours.capacity_per_s)
    if even is not None and most is not None:
        said.append(
            "The pick cannot serve so many that renting costs less."
            if even.value > most.value
            else "Whether the limits hold at that rate, --rate says."
        )
    return said


MAPPED: Final = ("accuracy", "latency_p95_s", "energy_j", "cost_usd")  # of each effort
USED = "<"  # marks the effort to use


def effort_lines(efforts: EffortMap, width: int) -> list[str]:
    """Return which effort to use on the pick's engine, for all problems and by class of them.

    Nothing where one effort alone was recorded, and no class of problems.
    """
    lines: list[str] = []
    every = efforts.efforts
    if len(every) > 1:
        heads = [f"{effort_name(each)}{f' {USED}' * each.use}" for each in every]
        rows: list[list[Cell]] = []
        for name in MAPPED:
            values = [each.estimates.get(name) for each in every]
            if any(each is not None for each in values):
                rows.append([quantity(name).noun, *map(Value, values)])
        if any(each.cut_share is not None for each in every):
            rows.append(["samples cut off", *(Value(each.cut_share) for each in every)])
        sure = (probability(each.probability_within_budget) for each in every)
        rows.append(["sure of the limits", *sure])
        lines = table_lines(Table(heads=["effort", *heads], rows=rows), width)
    groups = {name: each.efforts for name, each in efforts.classes.items()}
    if len(every) < 2 and not groups:
        return []
    for name, of_group in [("all problems", every), *groups.items()]:
        best = next((each for each in of_group if each.use), None)
        choice = "none fits the budget"
        if best is not None:
            choice = f"{effort_name(best)}, {best.policy.words()}" * (len(every) > 1)
            choice = choice or best.policy.words()
            choice += f", {chance(best.probability_within_budget)} sure of the limits"
        mark = f"{USED} for" if len(every) > 1 else "for"
        lines += _wrap(f"{mark} {name}: {choice}", width)
    return lines


def effort_name(effort: Effort) -> str:
    """Return a reasoning effort or a thinking budget in a word or two."""
    if effort.thinking_token_budget is not None:
        named = f"{effort.thinking_token_budget:,} tokens of thought"
        return named if effort.reasoning_effort is None else f"{effort.reasoning_effort}, {named}"
    return effort.reasoning_effort or "effort not set"


def _change(answer: Recommendation, name: str) -> Value:
    """Return by how much the compute-optimal pick has more than ours, nothing where not known."""
    regret, pick = answer.regret.get(name), answer.system_optimal
    ours = None if pick is None else pick.estimates.get(name)
    if regret is None or ours is None or not ours.value:
        return Value(regret, text="")
    text = percent_change(regret.value / ours.value)
    if regret.unit == "1":
        text = number(regret.value, "1", sign=True)
    return Value(regret, text="tied" if regret.holds(0.0) else text)


def _differences(
    title: str, differences: Mapping[str, Estimate | None], width: int
) -> Iterable[str]:
    of = intervals_of(differences.values())
    yield from _wrap(f"{title}{f', {of}' * bool(of)}:", width)
    for name, estimate in differences.items():
        if estimate is not None:
            text = f"{quantity(name).noun} {with_interval(estimate, sign=True)}"
            yield from _wrap(text, width, indent="  ")


def as_run_lines(answer: Recommendation, width: int) -> Iterable[str]:
    """Yield what was measured of the picks that were run, beside what is predicted."""
    for name, pick in picks_of(answer).items():
        run = pick.measured
        if run is not None and run.at_load:
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
    rows: list[list[Cell]] = []
    for metric in COMPARED:
        predicted, run = pick.estimates.get(metric), measured[metric]
        if predicted is None and run is None:
            continue
        holds = None if predicted is None or run is None else predicted.holds(run.value)
        inside = {True: "yes", False: "no", None: ABSENT}[holds]
        rows.append([quantity(metric).noun, Value(predicted), Value(run), inside * within])
    heads = (name, "predicted", "measured", "within" * within)
    return ["", *table_lines(Table(heads=heads, rows=rows, apart={"measured": 2}))]


def near_miss_lines(answer: Recommendation, width: int) -> Iterable[str]:
    """Yield what comes nearest to each limit where nothing meets all."""
    confidence = answer.budget.confidence
    of = intervals_of(miss.nearest for miss in answer.missed)
    of = f" ({of})" if of else ""
    if all(miss.sure >= confidence for miss in answer.missed):
        head = f"Each limit is met by itself, but not all at once with {percent(confidence)}"
    elif all(_value_meets(miss) for miss in answer.missed):
        head = (
            f"Some candidate meets each limit, but none is {percent(confidence)} sure. The nearest"
        )
    else:
        head = "Nearest to each limit that is missed, keeping the others where possible"
    yield from _wrap(f"{head}{of}:", width)
    for miss in answer.missed:
        subject = limited(miss.limit, answer.budget.latency_percentile)
        short = ", which meets it, but not surely enough," if _value_meets(miss) else ""
        short = short if miss.sure < confidence else ""
        text = (
            f"{subject.noun}: wanted {written(miss.wanted, subject.unit)}, nearest "
            f"{with_interval(miss.nearest)}{short} by {_name(miss.pick)} "
            f"({chance(miss.sure)} sure of it, "
            f"{chance(miss.pick.probability_within_budget)} sure of all)"
        )
        yield from _wrap(text, width, indent="  ")


def _value_meets(miss: NearMiss) -> bool:
    """Whether the value itself meets the limit, so that certainty alone is missed."""
    value = miss.nearest.value
    return value >= miss.wanted if LIMITS[miss.limit].at_least else value <= miss.wanted


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
    which = which_latency(miss.limit, budget.latency_percentile)
    text = (
        f"nearest to {limit.option} {written(wanted, unit)}{which} is "
        f"{number(value, unit)} by {in_words(miss.pick, device=True)}"
    )
    if not _value_meets(miss):
        return text
    return f"{text}, but that is only {chance(miss.sure)} sure, not {percent(budget.confidence)}"


def present_lines(present: Present, width: int, *, required: bool = True) -> Iterable[str]:
    """Yield what today's configuration has more than the pick, or that it is the best already."""
    name = f"Your present configuration is {_name(present.pick)}."
    sure = f"{chance(present.pick.probability_within_budget)} sure of the limits"
    if present.best:
        yield from _wrap(f"{name} It is already best, {sure}.", width)
        return
    if not present.difference:  # there is no pick
        yield from _wrap(f"{name} It is {sure}." if required else name, width)
        return
    title = f"{name} It is {sure}. Compared with the recommendation"
    yield from _differences(title, present.difference, width)


def _turnings(turnings: Iterable[Turning], budget: Budget) -> list[str]:
    """Say at which values of the limits another pick comes up."""
    lines = []
    for each in turnings:
        limit = LIMITS.get(each.name)
        name = each.name if limit is None else limit.option
        unit = each.unit if limit is None else limit.quantity.unit
        value = number(each.value, unit) + which_latency(each.name, budget.latency_percentile)
        where = f"{each.direction} {value}"
        if not each.replayed:
            pick = "nothing fits" if each.pick is None else f"the pick is {each.pick}"
            lines.append(f"with {name} {each.direction} about {value} {pick}, by the closed form")
        elif each.exact:
            other = "nothing else that was replayed fits"
            if each.pick is not None:
                other = f"the next best is {each.pick}"
            lines.append(
                f"with {name} {where} the pick is less than {percent(budget.confidence)} sure. "
                f"{capital(other)}"
            )
        else:
            lines.append(f"with {name} {where}, or sooner, another is better: {each.pick}")
    return lines


def fits(answer: Recommendation) -> list[str]:
    """Return the sentence that says how many candidates fit, and what each limit rules out."""
    out = sum(answer.infeasible.values())
    of = f"{answer.candidates:,} candidates (each a model, a policy and an engine's settings)"
    able = "meet the budget" if answer.budget.required else "can be judged"
    line = f"{answer.candidates - out:,} of {of} {able}"
    reasons = ", ".join(f"{count:,} ({why})" for why, count in answer.infeasible.items())
    return [f"{line}. Ruled out: {reasons}"] if reasons else [line]


def _listed(title: str, items: Sequence[str], width: int, *, commands: bool = True) -> list[str]:
    lines: list[str] = []
    for place, item in enumerate(items):
        head = f"{title:<{LABEL}}" if place == 0 else " " * LABEL
        said, command = split_command(item)
        said = capital(said)
        if command is not None and not commands:
            said = said.removesuffix(":") + " (--explain has the command)"
        lines += fold(said, width, head, " " * (LABEL + 2))
        if command is not None and commands:
            lines += command_lines(command, width=width, indent=LABEL + 2)
    return lines


def capital(text: str) -> str:
    """Return a sentence with a capital letter, unless it begins with a name or an option."""
    plain = text.split(maxsplit=1)[:1] and text.split(maxsplit=1)[0].rstrip(",").isalpha()
    return text[:1].upper() + text[1:] if plain and text[:1].islower() else text


def _wrap(text: str, width: int, *, indent: str = "") -> list[str]:
    return fold(text, width, indent, indent + "  ")


def advice_json(recommendation: Recommendation) -> dict[str, Any]:
    """Return the document of `advise --json`: see the contract in docs."""
    document: dict[str, Any] = to_plain(recommendation)
    return document
