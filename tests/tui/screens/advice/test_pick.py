"""The Advice screen's text: the words of `ttscope advise`, by the row that is looked at."""

from __future__ import annotations

import dataclasses

import pytest

from tests.tui.fake_advisor import LARGE, SMALL, FakeAdvisor
from traces.schema.advice import Budget, Stages
from tui.screens.advice.pick import answer_sections, styled
from tui.text.advice import advice_lines, estimate_lines
from tui.text.fronts import PRESENT, CandidateRow, candidates


def text_of(answer, row, width=78):
    main, rest = answer_sections(answer, row, width=width)
    lines = styled([*main, *rest]).plain.splitlines()
    assert max(map(len, lines)) <= width
    return "\n".join(lines)


@pytest.mark.parametrize("width", range(56, 100, 4))
def test_the_difference_is_said_at_every_width(width):
    answer = FakeAdvisor([]).recommend(Budget(min_accuracy=0.8))
    lines = [*estimate_lines(answer, width)]
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    assert "difference" in text and "-75.0 %" in text


@pytest.mark.parametrize("present", [None, (SMALL.engine, SMALL.policy)])
def test_the_pick_is_told_in_the_words_of_advise(present):
    answer = FakeAdvisor([]).recommend(Budget(min_accuracy=0.8), present)
    pick, other = candidates(answer)
    text = text_of(answer, pick)
    shared = advice_lines(answer, width=78, explain=True)
    for head in ("Run large", "Why ", "Changes ", "Next "):
        (line,) = (each for each in shared if each.startswith(head))
        assert line in text.splitlines()
    assert (
        "With --min-accuracy below 0.900, or sooner, another is better: small greedy"
        in " ".join(text.split())
    )
    assert "9 of 12 candidates (each a model, a policy" in text and "3 (does not fit" in text
    assert "90 % intervals of one more run of as many other problems" in text
    assert "              A system-optimal         B compute-optimal         differ" in text
    assert "mean latency  1.60 s [1.44, 1.76]      400 ms [360, 440]         -75.0 %" in text
    assert "vllm serve large" in text
    assert ("Your present configuration is small" in text) == (present is not None)
    assert "Why" not in text_of(answer, other)
    text = text_of(answer, other)
    assert text.startswith(
        "small with one sample, greedy\nCompute-optimal, on both fronts. It is 93"
    )
    assert "              B this one                A system-optimal" in text


def test_what_runs_today_is_the_best_or_what_it_has_more():
    today = CandidateRow(roles=frozenset({PRESENT}), pick=SMALL)
    worse = FakeAdvisor([]).recommend(Budget(), (SMALL.engine, SMALL.policy))
    text = text_of(worse, today)
    told = " ".join(text.split())
    assert "is 93 % sure of the limits. Compared with the recommendation, 90 % intervals of" in told
    assert "p95 latency +12.5 s [+11.2, +13.8]" in text
    best = FakeAdvisor([]).recommend(Budget(), (LARGE.engine, LARGE.policy))
    assert "already best" in text_of(best, candidates(best)[0])
    unknown = FakeAdvisor([]).recommend(Budget())
    assert "none of the candidates" in text_of(unknown, today)


@pytest.mark.parametrize("budget", [Budget(required=False), Budget(rate_per_s=2.0, required=False)])
def test_an_empty_budget_asks_for_a_limit_and_recommends_nothing(budget):
    answer = dataclasses.replace(
        FakeAdvisor([]).recommend(budget), system_optimal=None, compute_optimal=None, regret={}
    )
    for row in candidates(answer):
        assert text_of(answer, row).startswith("No limit is set, so nothing is recommended.")
        assert not any(line.startswith("Run ") for line in text_of(answer, row).splitlines())


def test_a_first_estimate_says_so_and_has_no_intervals():
    def alone(pick):
        values = {
            name: None if each is None else dataclasses.replace(each, low=None, high=None)
            for name, each in pick.estimates.items()
        }
        return dataclasses.replace(pick, estimates=values, command=None)

    answer = dataclasses.replace(
        FakeAdvisor([]).recommend(Budget(min_accuracy=0.8)),
        system_optimal=alone(LARGE), compute_optimal=alone(SMALL), regret={}, reasons=(),
        stages=Stages(screened=12, replayed=0, spread=0.0998, first=None),
    )  # fmt: skip
    text = text_of(answer, candidates(answer)[0])
    told = "First estimate, by a formula, nine times in ten within 10 % of the replay."
    assert text.startswith(f"{told}\n\nRun large with 4 samples")
    assert "first estimate  A system-optimal" in text
    assert "1.60 s" in text and "[" not in text and "vllm serve" not in text


def test_nothing_fits_names_the_nearest():
    answer = FakeAdvisor([]).recommend(Budget(max_latency_s=0.1))
    (miss,) = candidates(answer)
    assert miss.symbol == "×"
    text = text_of(answer, miss)
    assert text.startswith("Nothing fits the budget: mean latency of at most 100 ms.")
    assert "mean latency: wanted 100 ms, nearest 600 ms [540, 660] by" in text
    assert "Misses a limit. It is 93 % sure of every limit." in text
