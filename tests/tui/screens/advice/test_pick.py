"""The Advice screen's text: the words of `ttscope advise`, by the row that is looked at."""

from __future__ import annotations

import pytest

from tests.tui.fake_advisor import LARGE, SMALL, FakeAdvisor
from traces.schema.advice import Budget
from tui.screens.advice.pick import answer_lines
from tui.screens.advice.rows import Candidate, candidates
from tui.text.advice import advice_lines


def text_of(answer, row, width=78):
    lines = answer_lines(answer, row, width=width)
    assert max(map(len, lines)) <= width
    return "\n".join(lines)


@pytest.mark.parametrize("present", [None, (SMALL.engine, SMALL.policy)])
def test_the_pick_is_told_in_the_words_of_advise(present):
    answer = FakeAdvisor([]).recommend(Budget(min_accuracy=0.8), present)
    pick, other = candidates(answer)
    text = text_of(answer, pick)
    shared = advice_lines(answer, width=78, explain=True)
    for head in ("Run large", "Why ", "Changes ", "Next "):
        (line,) = (each for each in shared if each.startswith(head))
        assert line in text.splitlines()
    assert "With --min-accuracy below 0.900, or sooner, small greedy is better" in text
    assert "9 of 12 candidates meet the budget. Ruled out: 3 (does not fit" in text
    assert "latency 3.20 s*" in text
    assert "vllm serve large" in text
    assert "regret" in text
    assert ("Your present configuration, small" in text) == (present is not None)
    assert "Why" not in text_of(answer, other)
    assert text_of(answer, other).startswith("on the front, compute-optimal: 93 % sure of")


def test_what_runs_today_is_the_best_or_what_it_has_more():
    today = Candidate(marks="P", pick=SMALL)
    worse = FakeAdvisor([]).recommend(Budget(), (SMALL.engine, SMALL.policy))
    text = text_of(worse, today)
    assert "93 % sure of the\n  limits. Compared with the recommendation:\n" in text
    assert "p95 latency +12.5 s [+11.2, +13.8]" in text
    best = FakeAdvisor([]).recommend(Budget(), (LARGE.engine, LARGE.policy))
    assert "already best" in text_of(best, candidates(best)[0])
    unknown = FakeAdvisor([]).recommend(Budget())
    assert "none of the candidates" in text_of(unknown, today)


def test_nothing_fits_names_the_nearest():
    answer = FakeAdvisor([]).recommend(Budget(max_latency_s=0.1))
    (miss,) = candidates(answer)
    assert miss.marks == "!"
    text = text_of(answer, miss)
    assert text.startswith("Nothing fits the budget: mean latency of at most 100 ms.")
    assert "mean latency: wanted 100 ms, nearest 600 ms [540, 660] with" in text
    assert "near miss: 93 % sure of every limit" in text
