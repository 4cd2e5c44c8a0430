"""What a gate says, for other programs: JUnit XML, and Markdown for a pull request."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from traces.deployment.checks import Check, Gate
from traces.deployment.level import GATE_LEVEL, OFTEN, Power
from traces.plain_text import clean
from traces.schema.formats import ABSENT, intervals_of, percent, relative_change, with_interval
from traces.schema.quantities import quantity

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


def intervals_text(checks: Sequence[Check]) -> str:
    """Return what the intervals of checks are of, for their head; empty where none has any."""
    measured = [each.measured for each in checks]
    return intervals_of([each.promised for each in checks], beside={"measured": measured})


def level_text(gate: Gate) -> str | None:
    """Return how often a gate fails without any change, None where it judged nothing."""
    if not gate.judged:
        return None
    level = f"Without any change at most {percent(GATE_LEVEL)} of runs fail this gate"
    return level if gate.judged == 1 else f"{level}, its {gate.judged} checks together"


def summary_texts(gate: Gate) -> list[str]:
    """Return what a gate's checks tell together: its level and its power, a sentence each."""
    level = level_text(gate)
    return [] if level is None else [level, *power_texts(gate)]


def power_texts(gate: Gate) -> list[str]:
    """Return how often a gate fails where accuracy falls or problems take longer, a sentence each.

    Of a number with a promise and a limit it is that of the promise.
    """
    told = sorted(gate.power, key=lambda each: each.kind == "limit")
    by_metric = {each.metric: each for each in reversed(told)}
    return [
        power_text(each)
        for each in told
        if each is by_metric[each.metric] and each.metric.startswith(("accuracy", "latency_s"))
    ]


def power_text(power: Power) -> str:
    """Return how often a gate fails by one of its checks, and with how many problems more often."""
    of = quantity(power.metric)
    noun, side = of.noun, "lower" if of.higher_is_better else "longer"
    by = f"{power.worse_by * 100:.3g} points" if power.unit == "1" else percent(power.worse_by)
    if power.kind == "limit":
        side = "below its limit" if of.higher_is_better else "above its limit"
    text = f"It fails {_of_100(power.share)} of 100 runs whose {noun} is {by} {side}"
    if power.share >= OFTEN:
        return text
    if power.more_problems is None:
        return f"{text}, and with any number of problems at most {_of_100(power.share_of_more)}"
    return f"{text}, and {_of_100(power.share_of_more)} with {power.more_problems:,} problems"


def _of_100(share: float) -> int:
    return min(round(100 * share), 99)


def junit(gate: Gate) -> bytes:
    """Return JUnit XML, a case for each check; only a gate that passes has no failure or error.

    Properties tell the level that the checks share, and the chance of noise in each of them.
    """
    why = None if gate.broken else gate.not_judged
    suite = ElementTree.Element(
        "testsuite",
        name="ttscope gate",
        tests=str(len(gate.checks) + (why is not None)),
        failures=str(len(gate.broken)),
        errors=str(int(why is not None)),
        skipped=str(sum(each.verdict == "absent" for each in gate.checks)),
    )
    told = [("level", GATE_LEVEL), ("checks that share the level", gate.judged)]
    told += [
        (f"by noise: {each.name} ({each.kind})", each.by_noise)
        for each in gate.checks
        if each.judged and each.by_noise is not None
    ]
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in told:
        ElementTree.SubElement(properties, "property", name=_plain(name), value=f"{value:.3g}")
    for check in gate.checks:
        case = ElementTree.SubElement(
            suite, "testcase", classname=f"ttscope.{check.kind}", name=_plain(check.name)
        )
        message = _plain(f"wanted {check.wanted}, measured {measured_text(check)}: {check.why}")
        if check.verdict == "absent":
            ElementTree.SubElement(case, "skipped", message=message)
        elif check.verdict == "broken" and check.judged:
            failure = ElementTree.SubElement(case, "failure", message=message)
            failure.text = _plain("\n".join(gate.differs)) or None
        else:
            ElementTree.SubElement(case, "system-out").text = message
    if why is not None:
        case = ElementTree.SubElement(suite, "testcase", classname="ttscope.gate", name="verdict")
        ElementTree.SubElement(case, "error", message=_plain(why))
    ElementTree.SubElement(suite, "system-out").text = "\n".join(summary_texts(gate)) or None
    root = ElementTree.Element("testsuites")
    root.append(suite)
    document: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def markdown(gate: Gate) -> str:
    """Return a summary for a pull request."""
    of = intervals_text(gate.checks)
    lines = [
        f"### ttscope gate {gate.verdict}: {_code(gate.recording)} against {_code(gate.against)}",
        "",
        *([f"{of}.", ""] if of else []),
        "| | check | wanted | measured | |",
        "|---|---|---|---|---|",
    ]
    for each in sorted(gate.checks, key=lambda check: check.kind == "assumption"):
        name = f"assumed: {each.name}" if each.kind == "assumption" else each.name
        cells = (word_of(each), name, each.wanted, measured_text(each))
        why = _code(each.why).replace("|", "¦")  # it may hold names
        lines.append("| " + " | ".join((*map(_cell, cells), why)) + " |")
    if told := summary_texts(gate):
        lines += ["", f"{'. '.join(told)}."]
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
    """Return lines without what XML or a terminal does not take."""
    return "\n".join(map(clean, text.split("\n")))
