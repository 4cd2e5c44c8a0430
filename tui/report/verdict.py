"""The page's first section: what to run, what is expected of it, and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from advisor.advice.command import command_note
from traces.live.watched import Watched
from traces.plain_text import name_word, quoted
from traces.schema.advice import Pick, Recommendation
from traces.schema.quantities import latency, quantity
from traces.schema.tts.policy import AS_SENT
from tui.report.markup import BREAK, Content, Html, empty, join, tag
from tui.report.material import Material
from tui.report.words import REGRET, SURE, configuration
from tui.text.advice import (
    MAPPED,
    OF_A_RUN,
    OPTIONAL,
    SET_ONE,
    against,
    capital,
    cost_words,
    costs_table,
    fits,
    in_words,
    marks,
    picks_of,
    telling_regret,
)
from tui.text.blocks import Cell, Table, Term, Value, probability
from tui.text.commands import command_lines, split_command
from tui.text.recordings.live import effect_text, server_name
from tui.text.words import (
    budget_words,
    engine_words,
    given_words,
    goal_within,
    limit_words,
    policy_words,
    request_words,
)

if TYPE_CHECKING:
    from advisor.advice.accounts.costs import Accounts
    from advisor.advice.accounts.efforts import EffortMap

COMMAND_WIDTH = 80
LISTED_WIDTH = 52  # of a command in one of two columns


def verdict(material: Material) -> Html:
    """Return the verdict, or why there is none."""
    answer, head = material.advice, verdict_alone(material)
    if answer is None or material.of_live:
        return head
    return join([head, reasons(answer, material.left_out)])


def verdict_alone(material: Material) -> Html:
    """Return the verdict without the reasons and what to measure next."""
    answer = material.advice
    live = [part for each in material.watched for part in _live(each)]
    if live:
        live += _suggestions(material)
    if answer is None:
        head = None if live else tag("p", "No advice can be given.", class_="lead")
        why = f"{'No advice on a configuration' if live else 'Why'}: {material.no_advice or ''}."
        return join([*live, head, empty(why)])
    if material.of_live:
        return join([*live, tag("p", f"For advice, name a budget. {SET_ONE}", class_="note")])
    costs = [] if material.accounts is None else [_costs(answer, material.accounts)]
    efforts = [] if material.efforts is None else [_efforts(material.efforts)]
    return join([*live, *_answer(answer), *costs, *efforts])


def _live(watched: Watched) -> Iterable[Content]:
    """Yield what limits a server that was watched, and why."""
    bottlenecks, where = watched.verdict.found, server_name(watched)
    if watched.verdict.reason is not None:
        yield tag("p", f"{where}: ", tag("strong", "no verdict"), ".", class_="lead")
        yield tag("p", f"{capital(watched.verdict.reason)}.")
        return
    kind = bottlenecks[0].kind if bottlenecks else "nothing stands out"
    yield tag("p", f"{where}: ", tag("strong", kind), ".", class_="lead")
    others = [f"{each.kind}: {each.evidence}" for each in bottlenecks[1:]]
    if bottlenecks:
        yield tag("p", f"{capital(bottlenecks[0].evidence)}.")
    if others:
        yield tag("ul", *(tag("li", f"Also {each}") for each in others))
    unseen = ", ".join(each.kind for each in watched.verdict.unseen)
    if unseen:
        yield tag("p", f"Not checked: {unseen}. What each needs stands below.", class_="note")


def _suggestions(material: Material) -> Iterable[Content]:
    """Yield the change to try on each recording's servers, and what a replay predicts of it."""
    for recording, change in material.suggested.items():
        if isinstance(change, str):
            if change != material.no_advice:
                yield tag("p", f"No change was replayed: {change}.", class_="note")
            continue
        yield tag("h3", "Try next")
        changes = " ".join(map(quoted, change.arguments))
        yield _command(f"ttscope replay {name_word(recording)} {changes}")
        yield tag("p", f"{capital(effect_text(change))}.")


def _answer(answer: Recommendation) -> Iterable[Content]:
    pick, budget = answer.system_optimal, answer.budget
    given = given_words(answer)
    if not budget.required:
        yield from _choices(answer)
        return
    if pick is None:
        yield tag("p", tag("strong", "Nothing fits the budget"), f": {given}.", class_="lead")
        yield from _misses(answer)
        return
    yield tag("p", "Run ", tag("strong", in_words(pick, device=True)), ".", class_="lead")
    where = "system_optimal.probability_within_budget"
    sure = probability(pick.probability_within_budget, SURE, key=where)
    said = f"It has the {goal_within(answer)}"
    parts: list[Content] = [f"{said}. No limit was given."]
    if budget_words(budget):
        parts = [f"{said}, ", sure, f" sure {OF_A_RUN}."]
    parts += [" ", _against(answer), *(f" {each}" for each in marks(pick))]
    yield tag("p", *parts)
    yield _numbers(answer)
    if pick.command:
        yield tag("h3", "Start it with")
        yield _command(pick.command)
    yield tag("p", _requests(pick))
    if pick.command and (note := command_note(pick)):
        yield tag("p", note)


def _choices(answer: Recommendation) -> Iterable[Content]:
    """Yield that nothing is recommended without a limit, and between what one chooses."""
    nothing = ", so that no configuration is recommended."
    yield tag("p", tag("strong", "No limit was given"), nothing, class_="lead")
    shown = (quantity("accuracy"), latency(answer.budget.latency_percentile))
    last = len(answer.pareto) - 1
    for words, place in (("fastest", 0), ("most accurate", last))[: last + 1]:
        pick = answer.pareto[place]
        parts: list[Content] = [f"The {words} is {in_words(pick)}"]
        for each in shown:
            key = f"pareto.{place}.estimates.{each.name}"
            parts += [
                f", {each.noun} ",
                Value(pick.estimates.get(each.name), each.meaning, key=key),
            ]
        yield tag("p", *parts, ".")
    yield tag("p", f"The fronts below show what lies between. {SET_ONE}")


def _against(answer: Recommendation) -> Html:
    """Return in a sentence how the compute-optimal configuration compares."""
    head, size, tail = against(answer)
    name = telling_regret(answer)
    regret = None if name is None else answer.regret[name]
    if not size or regret is None or size.endswith(" times"):  # no number of the regret
        return join([head, size, tail])
    return join([head, Value(abs(regret.value), REGRET, text=size), tail])


def _numbers(answer: Recommendation) -> Table:
    columns = [*picks_of(answer).items()]
    (_, pick), apart = columns[0], len(columns) > 1
    heads: list[Cell] = ["expected per problem"]
    for letter, (name, each) in zip("AB", columns, strict=False):
        both = answer.compute_optimal is not None and not apart
        note = "Also compute-optimal: fewest FLOPs." if both else ""
        heads.append(_head(letter, name, each, note))
    heads += [Term("B minus A (regret)", REGRET)] if apart else []
    run = pick.measured if pick.measured is not None and pick.measured.at_load else None
    if run is not None:
        note = f"measured in {run.recording}, {run.problems} problems"
        heads.insert(2, join(["as it was run", tag("span", note, class_="how")], BREAK))
    rows = []
    for name in pick.estimates:
        estimates = [each.estimates.get(name) for _, each in columns]
        if name in OPTIONAL and not any(estimates):
            continue
        meaning = quantity(name).meaning
        row: list[Cell] = [Term(quantity(name).noun, meaning)]
        for (title, _), estimate in zip(columns, estimates, strict=True):
            who = title.replace("-", "_")
            row.append(Value(estimate, meaning, key=f"{who}.estimates.{name}"))
            if run is not None and who == "system_optimal":
                key = f"{who}.measured.estimates.{name}"
                measured = name in run.estimates
                row.append(Value(run.estimates[name], meaning, key=key) if measured else "-")
        if apart:
            has_regret, key = name in answer.regret, f"regret.{name}"
            row.append(Value(answer.regret[name], REGRET, key=key, sign=True) if has_regret else "")
        rows.append(row)
    apart_columns = {} if run is None else {"as it was run": 2}
    apart_columns |= {"regret": len(heads) - 1} if apart else {}
    return Table(
        heads=heads, rows=rows, caption="What to expect", apart=apart_columns, style="verdict"
    )


def _costs(answer: Recommendation, accounts: Accounts) -> Html | None:
    """Return what the picks cost as people count it, None where nothing of it is known."""
    costs = costs_table(answer, accounts)
    if costs is None:
        return None
    return join([costs, *(tag("p", text) for text in cost_words(accounts))])


def _efforts(found: EffortMap) -> Table:
    """Return the efforts on the pick's engine, for all problems and for each class of them."""
    shown = [quantity(name) for name in MAPPED]
    classes = [("all problems", "efforts", found.efforts)] + [
        (name, f"efforts.classes.{name}.efforts", each.efforts)
        for name, each in found.classes.items()
    ]
    rows: list[list[Cell]] = []
    for name, where, efforts in classes:
        for place, effort in enumerate(efforts):
            key = f"efforts.{where}.{place}" if where == "efforts" else f"{where}.{place}"
            words = policy_words(effort.policy)
            said: list[Content] = [tag("strong", words) if effort.use else words]
            numbers = [
                Value(effort.estimates.get(q.name), q.meaning, key=f"{key}.estimates.{q.name}")
                for q in shown
            ]
            cut = Value(
                effort.cut_share,
                "The share of samples that end at the limit of tokens.",
                key=f"{key}.cut_share",
            )
            sure = probability(
                effort.probability_within_budget, SURE, key=f"{key}.probability_within_budget"
            )
            rows.append([name, join(said), *numbers, cut, sure])
    heads: list[Cell] = [
        "problems",
        "effort",
        *(each.noun for each in shown),
        "cut off",
        Term("sure", SURE),
    ]
    caption = "Which effort to use on this engine. The best that fits the budget stands out"
    return Table(heads=heads, rows=rows, caption=caption)


def _head(letter: str, name: str, pick: Pick, note: str) -> Html:
    return join(
        [
            join([tag("span", f"{letter} ", class_="letter"), name]),
            tag("span", configuration(pick.engine, pick.policy, prior=pick.prior), class_="config"),
            tag("span", note, class_="how") if note else None,
        ],
        BREAK,
    )


def _requests(pick: Pick) -> Html:
    if pick.policy == AS_SENT:
        return join(["for traffic as it was sent."])
    sent, body, wins = request_words(pick.policy)
    return join([f"and {sent}", tag("code", body) if body else None, wins])


def _command(command: str, width: int = COMMAND_WIDTH) -> Html:
    lines = command_lines(command, width=width)
    return tag("pre", tag("code", join(lines, "\n")), class_="command", tabindex="0")


def _misses(answer: Recommendation) -> Iterable[Content]:
    if not answer.near_misses:
        yield empty("Why: no candidate could be judged.")
        return
    rows: list[list[Cell]] = []
    for miss in answer.missed:
        index = answer.near_misses.index(miss)
        rows.append(
            [
                limit_words(miss.limit, miss.wanted, answer.budget.latency_percentile),
                Value(
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
    heads = ("wanted", "nearest", "with", "sure of this limit", Term("sure of all limits", SURE))
    caption = "What comes nearest to each limit that is missed"
    yield Table(heads=heads, rows=rows, caption=caption)
    best = answer.compute_optimal
    if best is not None:
        how = engine_words(best.engine, prior=best.prior)
        yield tag("p", f"Compute-optimal, limits aside: {in_words(best)}, {how}.")


def _item(text: str) -> Html:
    """Return a sentence, and the command that it ends with as lines to be pasted."""
    said, command = split_command(text)
    return join([capital(said), None if command is None else _command(command, LISTED_WIDTH)])


def reasons(answer: Recommendation, left_out: Sequence[str] = ()) -> Html:
    """Return why, what was considered, and what to measure next."""
    considered = fits(answer)
    if left_out:
        names = ", ".join(left_out)
        considered.append(f"not used, being incomplete, predicted or without problems: {names}")
    listed = (
        ("Why", (*answer.alternatives, *answer.reasons)),
        ("What was considered", considered),
        ("What to measure next", answer.measure_next),
        ("What to know of the recordings", answer.notes),
    )
    why, *rest = [
        join([tag("h3", title), tag("ul", *(tag("li", _item(item)) for item in items))])
        if items
        else None
        for title, items in listed
    ]
    return tag("div", tag("div", why), tag("div", *rest), class_="lists")
