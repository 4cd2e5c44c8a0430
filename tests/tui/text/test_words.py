"""Policies in words: what is sent, which answer wins, and what to know of the recordings."""

from dataclasses import replace

import pytest

from advisor.search.budget import parse_budget
from tests.tui.fake_advisor import FakeAdvisor
from traces.schema.tts.policy import Policy
from tui.report.verdict import reasons
from tui.text.advice import advice_json, closing_lines
from tui.text.words import request_words

KNOWN = {"temperature": 0.8, "max_tokens": 96, "top_p": 1.0}
UNKNOWN = {"temperature": None, "max_tokens": None, "top_p": None}


def rule(**values):
    return tuple(sorted(values.items()))


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (
            Policy(method="majority", n=8, **UNKNOWN),
            "send 8 requests a problem with the temperature and max_tokens of the samples, which "
            "are not known, and the most frequent answer wins.",
        ),
        (
            Policy(method="greedy", n=1, **UNKNOWN),
            "send 1 request a problem with the temperature and max_tokens of the samples, which "
            "are not known.",
        ),
        (
            Policy(method="greedy", n=1, **KNOWN),
            "send 1 request a problem with temperature 0.8, max_tokens 96.",
        ),
        (
            Policy(method="majority", n=8, temperature=None, top_p=0.95, max_tokens=96),
            "send 8 requests a problem, each with top_p 0.95, max_tokens 96 and the temperature of "
            "the samples, which is not known, and the most frequent answer wins.",
        ),
        (
            Policy(method="routed", n=4, rule=rule(route="4,4,2"), **KNOWN),
            "send 2 requests a problem, and when they have ended as many more as the table gives "
            "(2 samples, 4 if no two agree), each with temperature 0.8, max_tokens 96, and the "
            "most frequent answer wins.",
        ),
        (
            Policy(method="routed", n=8, rule=rule(route="easy=1 | *=8,8,4,4,4"), **KNOWN),
            "send 1 request or 4 requests a problem, and when they have ended as many more as the "
            "table gives (easy: 1 sample, others: 4 samples, 8 if no two agree), each "
            "with temperature 0.8, max_tokens 96, and the most frequent answer wins.",
        ),
        (
            Policy(method="routed", n=8, rule=rule(route="easy=1@low | *=8@high"), **KNOWN),
            "send as many requests a problem as its class has (easy: 1 sample at low effort, "
            "others: 8 samples at high effort), each with temperature 0.8, max_tokens 96, and the "
            "most frequent answer wins.",
        ),
        (
            Policy(method="early_stopping", n=8, rule=rule(window=4), **KNOWN),
            "send 8 requests a problem, 4 at a time, each with temperature 0.8, max_tokens 96, "
            "and the most frequent answer as soon as 4 in a row agree wins.",
        ),
        (
            Policy(method="agreement", n=8, rule=rule(agree=3.0, in_flight=8.0), **KNOWN),
            "send 8 requests a problem, each with temperature 0.8, max_tokens 96, and the answer "
            "that 3 give first, or else the most frequent, wins. Cancel the rest then.",
        ),
    ],
    ids=[
        "vote, unknown",
        "one, unknown",
        "one",
        "temperature unknown",
        "table",
        "tables",
        "efforts",
        "windows",
        "agreement",
    ],
)
def test_what_is_sent_is_said_and_only_what_is_still_to_come_is_cancelled(policy, said):
    assert "".join(request_words(policy)) == said


def test_notes_on_the_recordings_stand_behind_the_answer_in_the_app_and_the_report():
    answer = FakeAdvisor(()).recommend(parse_budget({"optimise": "latency"}))
    noted = replace(answer, notes=("small: 1 problem is left out",))
    assert closing_lines(noted, 80) == closing_lines(answer, 80)
    assert closing_lines(noted, 80, notes=True)[-1].split() == [
        "Data", "small:", "1", "problem", "is", "left", "out",
    ]  # fmt: skip
    assert "<li>small: 1 problem is left out</li>" in str(reasons(noted))
    assert advice_json(noted)["notes"] == ["small: 1 problem is left out"]
