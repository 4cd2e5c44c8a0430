"""Plain outcomes: what is read of a usual line at once is what is read of it value by value."""

import json
import random

import pytest

from traces.errors import OutcomesError
from traces.foreign.evaluations.plain import PlainOutcomes
from traces.foreign.evaluations.reader import Choices

VALUES = {
    "problem_id": ["p1", "ä", "", 7, 7.0, None, True, []],
    "sample_index": [0, 3, 2**53, 2**60, -1, 1.0, 1.5, "1", True, None],
    "correct": [True, False, None, 1, 0, "yes", 2],
    "answer": ["42", "", None, 42, 2.0, 1e300, True, ["a"]],
    "expected": ["42", None, 3],
    "output_tokens": [10, 0, None, -5, 10.0, "10", 2**70, True],
    "think_tokens": [4, 10, 11, None, 0],
    "latency_s": [0.5, 1, None, -1, "x", 1e17, True],
    "logprob_mean": [-0.5, None, 0, "x", 1e308],
    "group": ["a", None, 3, {}],
    "model": ["m", None, ["m"]],
    "other": [1, None, {"a": [1, 2]}],
}


def test_both_ways_read_the_same(tmp_path):
    rng = random.Random(5)
    lines = [b"", b"not", b"[]", b'{"problem_id": "p", "sample_index": 0, "correct": NaN}', b"\xff"]
    for _ in range(3000):
        row = {
            name: rng.choice(values if rng.random() < 0.2 else values[:1])
            for name, values in VALUES.items()
            if rng.random() < (0.3 if name == "other" else 0.97)
        }
        lines.append(json.dumps(row).encode())
    path = tmp_path / "o.jsonl"
    path.write_bytes(b"\n".join(lines))
    fast, slow = (PlainOutcomes(path, Choices(model="m")) for _ in range(2))
    numbered = [(at, line) for at, line in enumerate(lines, 1)]
    ours, theirs = list(fast._of_lines(numbered)), list(slow._of_rows(numbered))
    assert ours == theirs and len(ours) > 1000
    assert (fast.skipped.counts, fast.skipped.first) == (slow.skipped.counts, slow.skipped.first)
    assert len(fast.skipped.counts) > 8


ROW = {"problem_id": "p", "sample_index": 0, "correct": True}


def read(path, *rows, **choices):
    """Read numbered samples that have these fields; return them, the notes and what was skipped."""
    lines = [json.dumps(ROW | {"sample_index": at} | row) for at, row in enumerate(rows)]
    path.write_text("\n".join(lines))
    reader = PlainOutcomes(path, Choices(**choices))
    return list(reader), reader.facts, reader.skipped.counts


def test_a_line_with_an_error_is_of_a_sample_that_failed(tmp_path):
    """Whatever it says of the answer, it is no draw; null, false and an empty text are no error."""
    path = tmp_path / "o.jsonl"
    said = ["timed out", {"code": 500}, True, None, "", False]
    found, facts, skipped = read(path, *({"answer": "1", "error": each} for each in said))
    assert [each.error is not None for each in found] == [True] * 3 + [False] * 3
    assert [(each.answer, each.correct) for each in found] == [(None, None)] * 3 + [("1", True)] * 3
    assert not facts.notes and not skipped
    assert "timed out" not in str(found)
    path.write_text('{"problem_id": "p", "sample_index": 0, "error": "timed out"}')
    (alone,) = PlainOutcomes(path, Choices())
    assert alone.error is not None and alone.correct is None


def test_names_that_are_not_read_are_named(tmp_path):
    path = tmp_path / "o.jsonl"
    found, facts, _ = read(path, {"answr": "1"}, {"tokens": 9, "seed": 1}, {"tokens": 8})
    (note,) = facts.notes
    assert len(found) == 3 and note.startswith(
        "names that are not read: tokens (in 2 lines, first: line 2, is output_tokens meant?), "
    )
    assert "answr (in 1 line, first: line 1, is answer meant?)" in note
    assert "seed (in 1 line, first: line 2)" in note
    assert read(path, {"output_tokens": 9, "group": "a"})[1].notes == []
    assert read(path, {"length": 9}, prompt_column="length")[1].notes == []


def test_of_many_names_some_are_named(tmp_path):
    rows = [{f"name {at} {'x' * 90}": 1} for at in range(300)]
    (note,) = read(tmp_path / "o.jsonl", *rows)[1].notes
    assert len(note) < 700 and " and 94 more" in note


def test_a_needed_name_that_is_misspelt_is_named(tmp_path):
    path = tmp_path / "o.jsonl"
    path.write_text(json.dumps({"problem_id": "p", "sample_index": 0, "corect": True}))
    reader = PlainOutcomes(path, Choices())
    assert list(reader) == []
    assert reader.skipped.counts == {"lines without correct, but with corect": 1}


@pytest.mark.parametrize("more", [{}, {"seed": 1}])  # lines of both ways to read them
def test_a_file_of_two_models_is_refused_unless_one_is_chosen(tmp_path, more):
    path = tmp_path / "o.jsonl"
    rows = [{"model": name, **more} for name in ("org/a", "org/b", "org/a", "org/b")]
    with pytest.raises(OutcomesError, match="line 2 is of the model org/b.*: --model org/a takes"):
        read(path, *rows)
    for model, indices in (("org/a", [0, 2]), ("org/b", [1, 3])):
        found, facts, skipped = read(path, *rows, {**more}, model=model)
        assert [each.sample_index for each in found] == indices
        assert facts.model == model
        assert skipped == {"lines of other models": 2, "lines without model": 1}
    with pytest.raises(OutcomesError, match="line 2 is of the model org/b"):
        read(path, *rows, model="org/c")


@pytest.mark.parametrize("model", [None, "other"])
def test_a_file_of_one_model_says_which(tmp_path, model):
    found, facts, skipped = read(tmp_path / "o.jsonl", {}, {"model": "org/a"}, model=model)
    assert (len(found), facts.model, skipped) == (2, "org/a", {})
