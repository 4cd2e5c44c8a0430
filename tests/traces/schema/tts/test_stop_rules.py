"""Stopping rules: the posterior of a lead, and the table of methods that use them."""

from fractions import Fraction
from math import comb

import pytest

from traces.schema.tts.methods import METHODS, PARAMETER
from traces.schema.tts.parameters import make_policy
from traces.schema.tts.stop_rules import lead_is_safe


@pytest.mark.parametrize(("first", "second"), [(1, 0), (4, 0), (5, 1), (9, 7), (3, 3)])
def test_the_posterior_is_the_integral_of_the_beta_density(first, second):
    places = 200_000
    grid = [(i + 0.5) / places for i in range(places)]
    density = [p**first * (1 - p) ** second for p in grid]
    wanted = sum(d for p, d in zip(grid, density, strict=True) if p > 0.5) / sum(density)
    assert lead_is_safe(first, second) == pytest.approx(wanted, abs=1e-6)


def exactly(first: int, second: int) -> Fraction:
    trials = first + second + 1
    return Fraction(sum(comb(trials, j) for j in range(first + 1)), 2**trials)


def test_the_posterior_is_the_binomial_tail_to_the_last_bit():
    for first in range(21):
        for second in range(first + 1):
            assert lead_is_safe(first, second) == float(exactly(first, second))


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [(40, 30), (700, 690), (3000, 2900), (2900, 3000)])
def test_thousands_of_votes_do_not_overflow(first, second):
    assert lead_is_safe(first, second) == pytest.approx(float(exactly(first, second)), rel=1e-9)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_row_of_the_table_is_whole(method):
    n = 1 if method.name == "greedy" else 8
    policy = make_policy({"method": method.name, "n": n})
    assert PARAMETER.keys() >= {*method.parameters}
    assert {method.decisive, method.at_a_time} <= {"", *method.parameters}
    assert (policy.stop is None) == (method.rule is None)
    assert not (policy.stops_early and not policy.stop.value)
    assert policy.label().startswith(method.short)
    for template in (method.words, method.answer):
        words = method.describe(template, n, dict(policy.rule))
        assert "{" not in words
        assert "enough" not in words
    for rule in (*method.judged(n), *(method.proposed(n) if method.proposed_from else ())):
        assert make_policy({"method": method.name, "n": n, **rule}).rule


def test_votes_of_the_first_to_end_are_of_all_sensible_numbers():
    method = METHODS["first_finish"]

    def firsts(rules):
        return [rule["first"] for rule in rules]

    assert firsts(method.judged(5)) == [1, 2, 3, 4]
    assert firsts(method.judged(16)) == [1, 2, 3, 4, 6, 8, 12]
    # Below a third of n most of the work is cancelled, which the closed form cannot price.
    assert firsts(method.proposed(5)) == [2, 3, 4]
    assert firsts(method.proposed(14)) == [6, 7, 8, 12]
