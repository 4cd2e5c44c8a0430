"""Which problems of imported outcomes an advice rests on, and when they are too few."""

import json

import pytest

from advisor.evidence.runs import read_runs
from traces.errors import RecordingError
from traces.foreign.evaluations.importer import import_outcomes
from traces.foreign.evaluations.reader import Given
from traces.recording.reader import Recording


def imported(tmp_path, lacking, tokens=None, problems=30):
    """Return outcomes. Some problems have a sample without its number of tokens."""
    path = tmp_path / "o.jsonl"
    rows = [
        {"problem_id": f"p{p}", "sample_index": i, "answer": "1", "correct": p >= lacking,
         "output_tokens": tokens if p < lacking and i == 3 else 50 + p}
        for p in range(problems)
        for i in range(8)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    import_outcomes([path], tmp_path / "r", given=Given(prompt_tokens=5))
    return Recording.open(tmp_path / "r")


@pytest.mark.parametrize("tokens", [None, 0])
def test_easy_problems_do_not_stand_for_all(tmp_path, tokens):
    with pytest.raises(RecordingError) as error:
        read_runs(imported(tmp_path, 15, tokens))
    assert "15 of 30 problems are left out" in str(error.value)
    assert "output_tokens" in str(error.value) and "\n" not in str(error.value)


def test_a_problem_in_twenty_is_left_out_and_told(tmp_path):
    read = read_runs(imported(tmp_path, 1))
    (run,) = read.runs
    assert len(run.problems) == 29
    assert any("1 problem with samples whose output_tokens" in note for note in read.notes)
