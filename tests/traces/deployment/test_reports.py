"""What other programs show of a gate: names that a server or a recording chose are no markup."""

import dataclasses
from xml.etree import ElementTree

import pytest

from traces.deployment.checks import Check, Gate
from traces.deployment.level import Power
from traces.deployment.reports import junit, markdown, power_text
from tui.text.recordings.gate import gate_lines

NAME = "a\n# b\n![c](http://d/e.png)|f `g` <h> \x1b[31m"


def test_names_that_are_markup_are_shown_as_text():
    check = Check(name=NAME, kind="limit", verdict="ok", wanted=NAME, measured=None, why=NAME)
    gate = Gate(against=NAME, recording=NAME, checks=(check,), differs=(NAME,))
    lines = markdown(gate).splitlines()
    code = "`a # b ![c](http://d/e.png)|f 'g' <h> \\x1b[31m`"
    shown = r"a # b \!\[c\](http://d/e.png)\|f \`g\` &lt;h> \\x1b\[31m"
    assert lines[0] == f"### ttscope gate passed: {code} against {code}"
    assert lines[4] == f"| ok | {shown} | {shown} | - | {code.replace('|', '¦')} |"
    assert lines[-1] == f"- {code}"
    assert len(lines) == 11
    (case,) = ElementTree.fromstring(junit(gate)).iter("testcase")
    assert case.get("name") == NAME.replace("\x1b", "\\x1b")


def test_a_gate_says_the_level_that_its_checks_share():
    check = Check(name="a", kind="limit", verdict="ok", wanted="b", measured=None, why="c")
    others = [
        dataclasses.replace(check, verdict="absent"),
        dataclasses.replace(check, kind="assumption"),
    ]
    for count, told in ((0, None), (1, "fail this gate."), (4, "its 4 checks together.")):
        gate = Gate(against="a", recording="b", checks=(*[check] * count, *others))
        lines = " ".join(" ".join(gate_lines(gate)).split()), markdown(gate)
        assert all(("Without any change" in each) == (told is not None) for each in lines)
        assert told is None or all(told in each for each in lines)


@pytest.mark.parametrize(
    ("share", "more", "of_more", "told"),
    [
        (0.25, 500, 0.914, "25 of 100 runs whose accuracy is 5 points lower, and 91 with "
         "500 problems"),
        (0.95, None, 1.0, "95 of 100 runs whose accuracy is 5 points lower"),
        (0.3, None, 0.4, "lower, and with any number of problems at most 40"),
    ],
)  # fmt: skip
def test_the_power_is_a_sentence(share, more, of_more, told):
    power = Power(check="accuracy", kind="promise", metric="accuracy", worse_by=0.05, unit="1",
                  problems=100, share=share, more_problems=more, share_of_more=of_more)  # fmt: skip
    assert power_text(power).endswith(told)
    longer = dataclasses.replace(power, metric="latency_s.p95", unit="share", worse_by=0.2)
    assert "runs whose p95 latency is 20 % longer" in power_text(longer)
    lower = dataclasses.replace(power, unit="share", kind="limit")
    assert "runs whose accuracy is 5 % below its limit" in power_text(lower)
