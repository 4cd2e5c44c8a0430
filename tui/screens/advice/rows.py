"""The candidates of an answer as rows of the screen, and what each of them is."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from advisor.advice.command import command_note
from traces.schema.advice import Budget, Pick, Recommendation
from traces.schema.formats import chance, value_of
from traces.schema.quantities import Quantity, latency, limited, objective, quantity, statistic
from traces.summary.run import Run
from tui.text.fronts import FLOPS, FRONT, MISS, PICK, PRESENT, RIVAL, CandidateRow, names_of
from tui.text.layout import model_name, without_middle
from tui.text.recordings.show import policy_text

COLOURS = {  # of the theme
    "A": "success",
    "B": "accent",
    "◆": "secondary",
    "◉": "primary",
    "●": "primary",
    "○": "accent",
    "×": "error",
}


def present_candidate(run: Run, answer: Recommendation, price: float | None) -> CandidateRow:
    """Return a recorded run as a candidate beside an answer: its numbers are measured.

    Its cost is at a price, in USD per device-hour.
    """
    from advisor.evidence.measured import measured_beside

    assert run.policy is not None
    measured = measured_beside(run, answer.load, price)
    return CandidateRow(
        roles=frozenset({PRESENT}),
        pick=Pick(
            engine=run.engine,
            policy=run.policy,
            estimates=measured.estimates,
            probability_within_budget=float("nan"),
            measured=measured,
        ),
    )


def words_of(row: CandidateRow, budget: Budget) -> str:
    """Return all that a row is, in words."""
    names = names_of(budget)
    parts = []
    if {PICK, RIVAL} <= row.roles:
        parts = ["system- and compute-optimal"]
    elif row.roles & {PICK, RIVAL, PRESENT}:
        parts = [names[row.symbol]]
    if {FRONT, FLOPS} <= row.roles:
        parts.append(names["◉"])
    else:
        on = [sign for role, sign in ((FRONT, "●"), (FLOPS, "○")) if role in row.roles]
        parts += [f"on the {names[sign]}" for sign in on]
    parts += [names["×"]] if MISS in row.roles else []
    return ", ".join(parts)


# The table.


def shown_quantities(
    budget: Budget, rows: Sequence[CandidateRow], axis: Quantity | None = None
) -> list[Quantity]:
    """Return the quantities that have a column, the most wanted first.

    Beside accuracy that is what it is drawn against, then what is limited.
    """
    goal = objective(budget.goal, budget.latency_percentile)
    wanted = latency(budget.latency_percentile)
    limits = [limited(field, budget.latency_percentile) for field in budget.limits()]
    names = ["accuracy", (axis or wanted).name, *(each.name for each in limits)]
    names += [wanted.name, goal.name, "device_s", "tokens"]
    names += ["flops", "latency_s", "latency_p95_s", "cost_usd", "energy_j"]
    return [
        quantity(name)
        for name in dict.fromkeys(names)
        if any(row.pick.estimates.get(name) is not None for row in rows)
    ]


CUT = "…"  # in place of what is left out
SHORT = 60  # columns below which heads are shortened
SHORT_HEADS = {latency(each).noun: statistic(each) for each in (None, 50, 95, 99)}


def table_of(
    rows: Sequence[CandidateRow], budget: Budget, width: int, axis: Quantity | None = None
) -> tuple[list[str], list[list[str]]]:
    """Return the headers and cells of the table of rows in a width.

    Numbers stay whole: columns are left out where there is no room for them. Configurations go
    without their engine where that leaves them apart, and else are cut in their middle.
    """
    common = _common([row.pick.engine.label().split() for row in rows])
    names = [pick_title(row.pick, without=common) for row in rows]
    shorten = width < SHORT
    titles = [
        (
            SHORT_HEADS.get(each.noun, each.noun) if shorten else each.noun,
            [value_of(row.pick.estimates.get(each.name)) for row in rows],
        )
        for each in shown_quantities(budget, rows, axis)
    ]
    titles.insert(2, ("sure", [chance(row.pick.probability_within_budget) for row in rows]))
    wanted = min(max(map(len, names), default=0), max(width // 2, 26))
    room = width - 3 - 2  # the symbol, and the room around the configuration
    columns: list[tuple[str, list[str]]] = []
    for place, (title, cells) in enumerate(titles):
        wide = max(map(len, [title, *cells])) + 2
        if place > 2 and room - wide < wanted:
            break
        columns.append((title, cells))
        room -= wide
    if columns[2:3]:  # how sure it is ends the row
        columns.append(columns.pop(2))
    heads = ["", "configuration" if room >= 13 else "config", *(title for title, _ in columns)]
    short = [pick_title(row.pick, without=row.pick.engine.label().split()) for row in rows]
    names = [
        brief if len(name) > room >= len(brief) and short.count(brief) == 1 else name
        for name, brief in zip(names, short, strict=True)
    ]
    table = [
        [row.symbol, without_middle(name, max(room, 6)), *(column[place] for _, column in columns)]
        for place, (row, name) in enumerate(zip(rows, names, strict=True))
    ]
    return heads, table


def pick_title(pick: Pick, *, without: Collection[str] = ()) -> str:
    """Return model, engine, device where it is not a recorded one, and policy in short.

    `without` are words of the engine that go without saying.
    """
    engine = " ".join(word for word in pick.engine.label().split() if word not in without)
    words = (model_name(pick.engine.model), engine, pick.prior or "", pick.policy.label())
    return " ".join(filter(None, words))


def _common(labels: Sequence[Sequence[str]]) -> frozenset[str]:
    """Return the words that all of several labels have."""
    if len(labels) < 2:
        return frozenset()
    return frozenset.intersection(*map(frozenset, labels))


def paste_text(pick: Pick) -> str:
    """Return what `c` copies: the command, how often it runs and the policy as comments."""
    note = f"# {note}\n" if (note := command_note(pick)) else ""
    return f"{pick.command or '# no command'}\n{note}# policy: {policy_text(pick.policy)}\n"


def gone_lines(paths: Sequence[Path], width: int) -> list[str]:
    """Return a line that names the recordings whose folders are gone, none where none is."""
    if not paths:
        return []
    names = ", ".join(path.name for path in paths)
    text = f"no longer there, so left out: {names}"
    return [text if len(text) <= width else f"{text[: width - 1]}…"]
