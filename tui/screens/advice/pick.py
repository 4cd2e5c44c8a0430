"""What the Answer panel says, in the words of `ttscope advise`, by the row that is looked at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from textual.content import Content

from traces.schema.advice import Recommendation
from traces.schema.formats import chance, counted, percent
from tui.screens.advice.rows import words_of
from tui.text.advice import (
    LABEL,
    as_run_lines,
    beside_lines,
    closing_lines,
    cost_lines,
    effort_lines,
    estimate_lines,
    in_words,
    near_miss_lines,
    policy_lines,
    present_lines,
    verdict,
)
from tui.text.commands import command_lines
from tui.text.fronts import PICK, PRESENT, CandidateRow
from tui.text.layout import fold

if TYPE_CHECKING:
    from advisor.advice.accounts.costs import Accounts
    from advisor.advice.accounts.efforts import EffortMap

Kind = Literal["head", "text", "table", "command", "lists"]
NO_LIMIT = (
    "No limit is set, so nothing is recommended. Set a limit, for example accuracy 0.75. Press b."
)
NO_CANDIDATE = (
    "It is none of the candidates, so that no difference is known. Mark its recording as well."
)
ANOTHER_LOAD = (
    "It was measured under another load ({}). Times, costs and energy depend on that, so they are "
    "left out."
)
EMPTY = """\
No complete recording to learn from.

  ttscope demo      measures the bundled models
  ttscope record    measures a model and problems of yours

Or press
  1 and then o      to open recordings that are elsewhere
  3 and then u      to watch a server that runs"""

MIXED = """\
These recordings are not all of one workload.

To advise on one, press
  1                 for the list of recordings
  space             on each that is of this workload
  a                 to come back here"""


@dataclass(frozen=True, kw_only=True)
class Section:
    """Lines of one kind, which decides how they look."""

    kind: Kind
    lines: Sequence[str]


def is_outline(answer: Recommendation) -> bool:
    """Whether an answer is the closed form's, with nothing replayed yet."""
    return answer.stages is not None and not answer.stages.replayed


def first_estimate(answer: Recommendation) -> str:
    """Return what a first estimate is, and how far off it may be."""
    spread = None if answer.stages is None else answer.stages.spread
    within = "" if spread is None else f", nine times in ten within {percent(spread)} of the replay"
    return f"First estimate, by a formula{within}."


def answer_sections(
    answer: Recommendation,
    row: CandidateRow | None,
    *,
    width: int,
    accounts: Accounts | None = None,
    efforts: EffortMap | None = None,
) -> tuple[list[Section], list[Section]]:
    """Return what to run or what the row is, and apart from it why, what changes it and what next.

    The second part is there for the pick alone, or where nothing fits or is required. It begins
    with what the picks cost, and with which effort to use, as far as they are known.
    """
    main: list[Section] = []
    if is_outline(answer):
        main.append(_text("text", first_estimate(answer), width))
    pick = answer.system_optimal
    if row is not None and PICK in row.roles and pick is not None:
        costs = [] if accounts is None else cost_lines(answer, accounts, width)[1:]
        mapped = [] if efforts is None else effort_lines(efforts, width)
        tables = [Section(kind="table", lines=each) for each in (costs, mapped) if each]
        return [*main, *_picked(answer, row, width)], [*tables, *_closing(answer, width)]
    rest: list[Section] = []
    if not answer.budget.required:
        main.append(_text("head", NO_LIMIT, width))
    elif pick is None:
        head = verdict(answer)[0]
        if is_outline(answer):
            head = "By this estimate nothing fits the budget."
        main.append(_text("head", head, width))
        if answer.near_misses:
            main.append(Section(kind="text", lines=[*near_miss_lines(answer, width)]))
        rest = _closing(answer, width)
    return [*main, *([] if row is None else _other(answer, row, width))], rest


def _picked(answer: Recommendation, row: CandidateRow, width: int) -> Iterable[Section]:
    head, *paragraphs = verdict(answer)
    yield _text("head", head, width)
    for each in paragraphs:
        yield _text("text", each, width)
    yield Section(kind="table", lines=[*estimate_lines(answer, width, letters=True)])
    yield from _command(row, width)
    if answer.present is not None:
        yield Section(kind="text", lines=[*present_lines(answer.present, width)])
    as_run = [*as_run_lines(answer, width)]
    if as_run:
        yield Section(kind="table", lines=as_run[1:])


def _command(row: CandidateRow, width: int) -> Iterable[Section]:
    policy = policy_lines(row.pick, width)
    if row.pick.command:
        yield Section(kind="command", lines=command_lines(row.pick.command, width=width))
    yield Section(kind="text", lines=policy)


def _other(answer: Recommendation, row: CandidateRow, width: int) -> Iterable[Section]:
    """Say of a row that is not the pick what it is, beside the pick."""
    pick, what = answer.system_optimal, words_of(row, answer.budget)
    yield _text("head", in_words(row.pick, device=True), width)
    sentence = f"{what[:1].upper()}{what[1:]}."
    limited = answer.budget.limits() or answer.budget.rate_per_s is not None
    if PRESENT not in row.roles and limited:
        sentence += f" It is {chance(row.pick.probability_within_budget)} sure of every limit."
    yield _text("text", sentence, width)
    picks = [row.pick] if pick is None else [row.pick, pick]
    heads = (f"{row.symbol} this one", "A system-optimal")
    lines = beside_lines(answer.budget, picks, width, heads=heads)
    yield Section(kind="table", lines=lines)
    run = row.pick.measured
    if run is not None and run.at_load:
        problems = counted(run.problems, "problem")
        yield _text("text", f"It was run: {run.recording}, {problems}.", width)
    elif run is not None and PRESENT in row.roles:
        yield _text("text", ANOTHER_LOAD.format(run.load.words()), width)
    yield from _command(row, width)
    if row.roles == {PRESENT}:
        if answer.present is None:
            yield _text("text", NO_CANDIDATE, width)
        else:
            required = answer.budget.required
            said = present_lines(answer.present, width, required=required)
            yield Section(kind="text", lines=[*said])


def _closing(answer: Recommendation, width: int) -> list[Section]:
    return [Section(kind="lists", lines=closing_lines(answer, width, notes=True))]


def _text(kind: Kind, text: str, width: int) -> Section:
    return Section(kind=kind, lines=fold(text, width))


def styled(sections: Sequence[Section]) -> Content:
    """Return sections in the colours of the theme."""
    parts: list[Content] = []
    for section in sections:
        if parts and section.kind != "text":
            parts.append(Content(""))
        parts += [_styled(section.kind, place, line) for place, line in enumerate(section.lines)]
    return Content("\n").join(parts)


def _styled(kind: Kind, place: int, line: str) -> Content:
    if kind == "head":
        return Content.styled(line, "bold $text")
    if kind == "table" and place == 0:
        return Content.styled(line, "bold $text-muted")
    if kind == "command":
        return Content.styled(line, "$text-success")
    if kind == "lists" and line[:1].strip():
        title, rest = line[:LABEL], line[LABEL:]
        return Content.assemble((title, "bold $text-accent"), rest)
    return Content(line)
