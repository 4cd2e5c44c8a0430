"""Samples that are not draws of one kind are noticed, and alike ones as good as never."""

import json

import numpy as np
import polars as pl
import pytest

from traces.foreign.evaluations.alike import RARE, chance_of, cochran, friedman, unlike
from traces.foreign.evaluations.importer import import_outcomes
from traces.recording.reader import Recording


def frame(right, tokens):
    problems, count = right.shape
    return pl.DataFrame({
        "problem_id": np.repeat([f"p{i}" for i in range(problems)], count),
        "sample_index": np.tile(np.arange(count), problems),
        "correct": right.ravel().astype(bool),
        "output_tokens": tokens.ravel(),
    })  # fmt: skip


def drawn(rng, problems=30, count=8):
    """Alike samples of problems of different difficulty and length."""
    right = rng.random((problems, count)) < rng.random((problems, 1))
    return right, rng.integers(1, 40, (problems, count)) * rng.integers(10, 99, (problems, 1))


def test_of_two_samples_they_are_mcnemars_test_and_the_sign_test():
    rng = np.random.default_rng(0)
    right = (rng.random((40, 2)) < (0.4, 0.7)).astype(float)
    b, c = (right[:, 0] > right[:, 1]).sum(), (right[:, 0] < right[:, 1]).sum()
    assert cochran(right) == pytest.approx((b - c) ** 2 / (b + c))
    values = rng.normal(size=(40, 2))
    more, less = (values[:, 0] > values[:, 1]).sum(), (values[:, 0] < values[:, 1]).sum()
    assert friedman(values) == pytest.approx((more - less) ** 2 / 40)


def test_of_no_use_where_nothing_varies():
    assert cochran(np.ones((9, 4))) == 0 and friedman(np.ones((9, 4))) == 0
    assert list(unlike(frame(np.ones((9, 4)), np.ones((9, 4), dtype=int)), 4)) == []
    assert list(unlike(frame(np.ones((9, 1)), np.ones((9, 1), dtype=int)), 1)) == []


def test_problems_of_other_sample_numbers_do_not_hide_the_others():
    right, tokens = drawn(np.random.default_rng(2))
    right[:, 0] = True
    rows = frame(right, tokens)
    last = pl.col("problem_id") == "p29"
    rows = rows.with_columns(
        pl.when(last).then(pl.col("sample_index") + 8).otherwise("sample_index")
    )
    (told,) = unlike(rows, 8)
    assert "number 0 is right in 100.0% of the problems" in told


@pytest.mark.parametrize(("q", "freedom", "chance"), [
    (14.067, 7, 0.05), (20.278, 7, 0.005), (7.879, 1, 0.005), (43.773, 30, 0.05),
])  # fmt: skip
def test_the_chances_are_those_of_the_tables(q, freedom, chance):
    assert chance_of(q, freedom) == pytest.approx(chance, rel=0.06)


@pytest.mark.slow
def test_alike_samples_are_taken_for_others_as_rarely_as_said():
    rng, sets = np.random.default_rng(1), 600
    alarms = [len(list(unlike(frame(*drawn(rng)), 8))) for _ in range(sets)]
    assert sum(alarms) <= 2 * RARE * sets + 9  # three standard deviations and more


def test_a_greedy_first_sample_is_named_before_any_number(tmp_path):
    rng = np.random.default_rng(2)
    right, tokens = drawn(rng)
    right[:, 0], tokens[:, 5] = True, tokens[:, 5] * 3
    path = tmp_path / "o.jsonl"
    path.write_text("".join(
        json.dumps({
            "problem_id": f"p{i}", "sample_index": j, "correct": bool(right[i, j]),
            "answer": str(bool(right[i, j])), "output_tokens": int(tokens[i, j]),
        }) + "\n"
        for i in range(30) for j in range(8)
    ))  # fmt: skip
    notes = import_outcomes([path], tmp_path / "r").notes
    assert "number 0 is right in 100.0% of the problems" in notes[1] and "Cochran's Q" in notes[1]
    assert "number 5 has" in notes[2] and "Friedman's test" in notes[2]
    assert len(Recording.open(tmp_path / "r").manifest.provenance["imported"]["unlike"]) == 2
