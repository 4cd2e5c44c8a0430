"""What the Advice screen says of the answer and of a row, in the words of `ttscope advise`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping

from traces.schema.advice import Recommendation
from traces.schema.estimate import Estimate
from traces.schema.formats import chance, with_interval
from traces.schema.quantities import quantity
from tui.screens.advice.rows import Candidate
from tui.text.advice import closing_lines, near_miss_lines, present_lines, verdict_lines
from tui.text.commands import command_lines
from tui.text.layout import wrap
from tui.text.show import policy_text

ESTIMATES = (
    "accuracy",
    "latency_s",
    "latency_p95_s",
    "device_s",
    "cost_usd",
    "energy_j",
    "tokens",
    "flops",
)
KINDS = {
    "@": "system-optimal",
    "+": "compute-optimal",
    "f": "fewest FLOPs for its accuracy",
    "o": "on the front",
    "!": "near miss",
    "P": "present, as it was recorded",
}
INDENT = 9
NO_LIMIT = (
    "No limit is set, so nothing is recommended. Set a limit, for example accuracy 0.75. Press b."
)
NO_CANDIDATE = (
    "it is none of the candidates, so that no difference is known. Mark its recording as well"
)


def answer_lines(answer: Recommendation, row: Candidate | None, *, width: int) -> list[str]:
    """Return the verdict where nothing fits or is required, and what there is to say of the row."""
    lines: list[str] = []
    if not answer.budget.required:
        lines += [*textwrap.wrap(NO_LIMIT, width), ""]
    elif answer.system_optimal is None:
        lines += [*verdict_lines(answer, width), *near_miss_lines(answer, width)]
        lines += ["", *closing_lines(answer, width), ""]
    return lines if row is None else [*lines, *row_lines(answer, row, width=width)]


def row_lines(answer: Recommendation, row: Candidate, *, width: int) -> list[str]:
    """Return what is expected of a row, its command and policy, and for the pick all the rest."""
    picked = "@" in row.marks
    lines = verdict_lines(answer, width) if picked else [_kind(answer, row)]
    lines += wrap("expect", _numbers(row.pick.estimates), width=width, indent=INDENT)
    run = row.pick.measured
    if run is not None and run.at_load:
        text = f"{_numbers(run.estimates)} (in {run.recording}, {run.problems} problems)"
        lines += wrap("measured", text, width=width, indent=INDENT)
    if row.pick.command:
        first, *rest = command_lines(row.pick.command, width=width, indent=INDENT)
        lines += ["command".ljust(INDENT) + first.lstrip(), *rest]
    lines += wrap("policy", policy_text(row.pick.policy), width=width, indent=INDENT)
    if picked != ("+" in row.marks):
        lines += _regret(answer, width)
    if (picked or row.marks == "P") and answer.present is not None:
        lines += present_lines(answer.present, width, required=answer.budget.required)
    elif row.marks == "P":
        lines += wrap("present", NO_CANDIDATE, width=width, indent=INDENT)
    return [*lines, *closing_lines(answer, width)] if picked else lines


def _numbers(estimates: Mapping[str, Estimate | None]) -> str:
    return " | ".join(
        f"{quantity(name).noun} {with_interval(value)}"
        for name in ESTIMATES
        if (value := estimates.get(name)) is not None
    )


def _kind(answer: Recommendation, row: Candidate) -> str:
    kinds = ", ".join(KINDS[mark] for mark in row.marks if mark in KINDS)
    if row.marks == "P":
        return kinds
    if not answer.budget.limits() and answer.budget.rate_per_s is None:
        return f"{kinds}: no limit is given"
    return f"{kinds}: {chance(row.pick.probability_within_budget)} sure of every limit"


def _regret(answer: Recommendation, width: int) -> Iterator[str]:
    differences = [
        f"{quantity(name).noun} {with_interval(value, sign=True)}"
        for name, value in answer.regret.items()
        if value is not None
    ]
    if differences:
        text = f"of compute-optimal (+): {' | '.join(differences)}"
        yield from wrap("regret", text, width=width, indent=INDENT)
