"""What other programs show of a gate: names that a server or a recording chose are no markup."""

import dataclasses
from xml.etree import ElementTree

from traces.deployment.checks import Check, Gate
from traces.deployment.reports import junit, markdown
from tui.text.gate import gate_lines

NAME = "a\n# b\n![c](http://d/e.png)|f `g` <h> \x1b[31m"


def test_names_that_are_markup_are_shown_as_text():
    check = Check(name=NAME, kind="limit", verdict="ok", wanted=NAME, measured=None, why=NAME)
    gate = Gate(against=NAME, recording=NAME, checks=(check,), differs=(NAME,))
    lines = markdown(gate).splitlines()
    code = "`a # b ![c](http://d/e.png)|f 'g' <h> [31m`"
    shown = r"a # b \!\[c\](http://d/e.png)\|f \`g\` &lt;h> [31m".replace(" [31m", r" \[31m")
    assert lines[0] == f"### ttscope gate passed: {code} against {code}"
    assert lines[4] == f"| ok | {shown} | {shown} | - | {code.replace('|', '¦')} |"
    assert lines[-1] == f"- {code}"
    assert len(lines) == 9
    (case,) = ElementTree.fromstring(junit(gate)).iter("testcase")
    assert case.get("name") == NAME.replace("\x1b", "")


def test_a_gate_of_several_checks_says_how_often_noise_breaks_one():
    check = Check(name="a", kind="limit", verdict="ok", wanted="b", measured=None, why="c")
    others = [
        dataclasses.replace(check, verdict="absent"),
        dataclasses.replace(check, kind="assumption"),
    ]
    for count, told in ((0, None), (1, None), (4, "19 %")):
        gate = Gate(against="a", recording="b", checks=(*[check] * count, *others))
        lines = " ".join(" ".join(gate_lines(gate)).split()), markdown(gate)
        assert all(("noise" in each) == (told is not None) for each in lines)
        if told is not None:
            assert all(f"one of these in up to {told}" in each for each in lines)
