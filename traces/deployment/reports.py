"""What a gate says, for other programs: JUnit XML, and Markdown for a pull request."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from traces.deployment.checks import Check, Gate
from traces.schema.formats import ABSENT, percent, relative_change, with_interval
from traces.statistics import LEVEL

WORDS = {"ok": "ok", "broken": "FAIL", "unsure": "not sure", "absent": ABSENT}


def word_of(check: Check) -> str:
    """Return the verdict on a check in a word. An assumption that does not hold fails nothing."""
    moved = check.kind == "assumption" and check.verdict == "broken"
    return "moved" if moved else WORDS[check.verdict]


def measured_text(check: Check) -> str:
    """Return what was measured: a change as a share or a difference, anything else as it is."""
    measured = check.measured
    if check.kind != "change" or measured is None:
        return with_interval(measured)
    share = measured.unit == "share" or check.name.endswith("%")
    return relative_change(measured) if share else with_interval(measured, sign=True)


def noise_text(gate: Gate) -> str | None:
    """Return how often noise alone breaks a gate of several checks, None of one or none."""
    share, one = gate.by_noise, 0.5 - LEVEL / 2
    if share is None or share < 1.5 * one:
        return None
    return (
        f"Without any change noise breaks a check in up to {percent(one)} of runs, and one of "
        f"these in up to {percent(share)}"
    )


def junit(gate: Gate) -> bytes:
    """Return JUnit XML, a case for each check; only a gate that passes has no failure or error."""
    judged = [each for each in gate.checks if each.kind != "assumption"]
    why = None if gate.broken else gate.not_judged
    suite = ElementTree.Element(
        "testsuite",
        name="ttscope gate",
        tests=str(len(gate.checks) + (why is not None)),
        failures=str(len(gate.broken)),
        errors=str(int(why is not None)),
        skipped=str(sum(each.verdict == "absent" for each in gate.checks)),
    )
    for check in gate.checks:
        case = ElementTree.SubElement(
            suite, "testcase", classname=f"ttscope.{check.kind}", name=_plain(check.name)
        )
        message = _plain(f"wanted {check.wanted}, measured {measured_text(check)}: {check.why}")
        if check.verdict == "absent":
            ElementTree.SubElement(case, "skipped", message=message)
        elif check.verdict == "broken" and check in judged:
            failure = ElementTree.SubElement(case, "failure", message=message)
            failure.text = _plain("\n".join(gate.differs)) or None
        else:
            ElementTree.SubElement(case, "system-out").text = message
    if why is not None:
        case = ElementTree.SubElement(suite, "testcase", classname="ttscope.gate", name="verdict")
        ElementTree.SubElement(case, "error", message=_plain(why))
    root = ElementTree.Element("testsuites")
    root.append(suite)
    document: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def markdown(gate: Gate) -> str:
    """Return a summary for a pull request."""
    lines = [
        f"### ttscope gate {gate.verdict}: {_code(gate.recording)} against {_code(gate.against)}",
        "",
        "| | check | wanted | measured | |",
        "|---|---|---|---|---|",
    ]
    for each in sorted(gate.checks, key=lambda check: check.kind == "assumption"):
        name = f"assumed: {each.name}" if each.kind == "assumption" else each.name
        cells = (word_of(each), name, each.wanted, measured_text(each))
        why = _code(each.why).replace("|", "¦")  # it may hold names
        lines.append("| " + " | ".join((*map(_cell, cells), why)) + " |")
    if (noise := noise_text(gate)) is not None:
        lines += ["", f"{noise}."]
    if gate.differs:
        lines += ["", "The configuration differs:", ""]
        lines += [f"- {_code(each)}" for each in gate.differs]
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    """Return a text as Markdown's code, in which nothing is a link, a mention or markup."""
    line = _line(text).replace("`", "'")
    return f"`{line}`" if line else ""


def _cell(text: str) -> str:
    """Return a text as Markdown that shows it, in one line: no link, no image, no tag."""
    return _MARKS.sub(r"\\\g<0>", _line(text).replace("&", "&amp;").replace("<", "&lt;"))


_MARKS = re.compile(r"[\\`*\[\]|!]")


def _line(text: str) -> str:
    return " ".join(_plain(text).split())


def _plain(text: str) -> str:
    """Return a text without what XML or a terminal does not take."""
    return "".join(each for each in text if each.isprintable() or each == "\n")
