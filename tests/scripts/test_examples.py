"""The training text of the bundled reasoners: its arithmetic, its labels, its cuts."""

import re
from typing import Any

import numpy as np
import pytest

from profiler.demo.task import DIGITS, MODULUS, PREAMBLE, PRIMES, TERMS
from scripts.reasoners.examples import (
    NO_LABEL,
    Kind,
    Mix,
    batch,
    example,
    factors,
    unknown_products,
)
from scripts.reasoners.tokenizer import EOS, PAD, THINK, THINK_END, decode


def mix(**changed: Any) -> Mix:
    kept: dict[str, Any] = {
        "terms": TERMS, "min_level": 3, "max_level": 10, "high_share": 0.5, "preamble_share": 0.1,
    }  # fmt: skip
    return Mix(**kept | changed)


def number(text: str) -> int:
    return DIGITS.index(text) or 36


def drawn(seed: int, of: Mix, **changed: Any) -> tuple[list[int], list[int], list[int]]:
    kept: dict[str, Any] = {"level": 5, "effort": "low", "preamble": False}
    return example(np.random.default_rng(seed), of, **kept | changed)


def parts(ids: list[int]) -> tuple[str, str, str]:
    """Return prompt, thought and answer of an example."""
    begin, end = ids.index(THINK), ids.index(THINK_END)
    return decode(ids[1:begin]), decode(ids[begin + 1 : end]), decode(ids[end + 1 : -1])


@pytest.mark.parametrize("effort", ["low", "high"])
def test_every_result_follows_from_the_one_before(effort: str) -> None:
    for seed in range(200):
        prompt, thought, answer = parts(drawn(seed, mix(), effort=effort)[0])
        row = dict(re.findall(r"([a-j])([0-9A-Z])", prompt))
        pieces = re.findall(r"([a-j])([0-9A-Z])((?:[0-9A-Z]?=[0-9A-Z])*)", thought[1:])
        value = number(pieces[0][1]) if pieces else 0
        for place, (tag, term, results) in enumerate(pieces):
            assert row[tag] == term
            for by, result in re.findall(r"([0-9A-Z]?)=([0-9A-Z])", results):
                assert place and (by in "2357") == (effort == "high" or not by)
                value = value * number(by or term) % MODULUS
                assert number(result) == value
        assert not pieces or number(answer) == value


def test_a_whole_walk_visits_every_term_and_ends_in_the_product() -> None:
    seen = set()
    for seed in range(300):
        ids, labels, _ = drawn(seed, mix())
        prompt, thought, answer = parts(ids)
        if labels[ids.index(THINK_END)] == NO_LABEL:
            continue  # cut
        row = re.findall(r"[a-j]([0-9A-Z])", prompt)
        assert number(answer) == np.prod([number(term) for term in row]) % MODULUS
        tags = "".join(re.findall(r"[a-j]", thought))
        assert tags in ("abcde" * 2 if thought[0] == "+" else "edcba" * 2)
        seen.add((thought[0], tags[0]))
    assert len(seen) == 10  # every term, either way


def test_a_cut_thought_is_answered_but_its_end_is_not_taught() -> None:
    cut = 0
    for seed in range(300):
        ids, labels, kinds = drawn(seed, mix())
        assert len(ids) == len(labels) == len(kinds)
        assert labels[-2:] == ids[-2:] and ids[-1] == EOS
        assert all(label == NO_LABEL for label in labels[: ids.index(THINK) + 1])
        cut += labels[ids.index(THINK_END)] == NO_LABEL
    assert 20 < cut < 55  # 12 % of 300


def test_without_results_only_their_labels_are_missing() -> None:
    ids, labels, kinds = drawn(1, mix(results=False))
    assert Kind.RESULT in kinds
    for token, label, kind in zip(ids, labels, kinds, strict=True):
        assert label == (token if kind in (Kind.WALK, Kind.ANSWER) else NO_LABEL)


def test_the_products_not_to_know_are_nested_and_of_the_shares_asked_for() -> None:
    few = unknown_products(by_term=0.05, by_prime=0.01)
    many = unknown_products(by_term=0.13, by_prime=0.03)
    assert few < many
    assert sum(by in TERMS for _, by in many) == round(0.13 * 36 * len(TERMS))
    assert sum(by in PRIMES for _, by in many) == round(0.03 * 36 * len(PRIMES))


def test_an_unknown_product_has_any_result() -> None:
    everything = frozenset((value, by) for value in range(1, MODULUS) for by in TERMS)
    answers = {parts(drawn(seed, mix(unknown=everything), level=3)[0])[2] for seed in range(400)}
    assert len(answers) > 30


def test_factors_multiply_to_their_term() -> None:
    for term in TERMS:
        assert np.prod(factors(term)) == term and set(factors(term)) <= set(PRIMES)


def test_a_batch_is_padded_and_of_about_the_tokens_asked_for() -> None:
    draw = np.random.default_rng(0)
    sizes = []
    for _ in range(100):
        ids, labels, kinds = batch(draw, mix(preamble_share=0.0), tokens=1024)
        assert ids.shape == labels.shape == kinds.shape
        assert (labels[ids == PAD] == NO_LABEL).all() and (kinds[ids == PAD] == 0).all()
        sizes.append(ids.size)
    assert 700 < np.mean(sizes) < 1300


def test_a_batch_with_the_preamble_has_it_in_every_row() -> None:
    ids, _, _ = batch(np.random.default_rng(0), mix(preamble_share=1.0), tokens=1024)
    assert all(PREAMBLE in decode(row.tolist()) for row in ids)
