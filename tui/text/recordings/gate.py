"""A gate as lines of text: each check with its verdict, then what may explain it."""

from __future__ import annotations

from collections.abc import Sequence

from traces.deployment.checks import Check, Gate
from traces.deployment.reports import intervals_text, measured_text, summary_texts, word_of
from tui.text.layout import wrap
from tui.text.recordings.show import spread_lines


def gate_lines(gate: Gate, *, width: int = 80) -> list[str]:
    """Return what a gate found, at most `width` columns wide."""
    verdict = "FAILED" if gate.broken else gate.verdict
    lines = wrap("", f"{verdict}: {gate.recording} against {gate.against}", width=width, indent=0)
    lines.append("")
    lines += checks_lines(gate, width=width)
    assumed = [each for each in gate.checks if each.kind == "assumption"]
    if assumed:
        lines += ["", *headed_lines("what the promises rest on", assumed, width=width)]
    if gate.differs:
        lines += ["", "the configuration differs"]
        for text in gate.differs:
            lines += wrap("", text, width=width, indent=6)
    if gate.run_to_run is not None:
        lines += ["", *spread_lines(gate.run_to_run, width)]
    return lines


def checks_lines(gate: Gate, *, width: int = 80) -> list[str]:
    """Return the checks that may break a gate, and what they tell together."""
    lines = headed_lines(
        "", [each for each in gate.checks if each.kind != "assumption"], width=width
    )
    if told := summary_texts(gate):
        lines += ["", *wrap("", f"{'. '.join(told)}.", width=width, indent=0)]
    return lines


def headed_lines(title: str, checks: Sequence[Check], *, width: int = 80) -> list[str]:
    """Return checks below a line that says what their intervals are of."""
    head = ", ".join(filter(None, (title, intervals_text(checks))))
    lines = wrap("", head, width=width, indent=0) if head else []
    return [*lines, *(line for each in checks for line in check_lines(each, width=width))]


def check_lines(check: Check, *, width: int = 80) -> list[str]:
    """Return a check: its verdict, what was wanted and what was measured."""
    label = "?" if check.verdict == "unsure" else word_of(check)
    wanted = "" if check.kind == "change" else f"{check.wanted} "
    word = {"limit": "limit ", "promise": "promised ", "assumption": "assumed "}.get(check.kind, "")
    said = "" if check.measured is None else f", measured {measured_text(check)}"
    if check.kind == "change":
        said = f"{measured_text(check)}"
    text = f"{check.name}: {word}{wanted.strip()}{said}, {check.why}"
    return wrap(label, text, width=width, indent=6)
