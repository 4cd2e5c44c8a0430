"""Workloads: the demo, JSONL files, and how answers are read."""

import json

import pytest

from profiler.workload import final_answer, is_correct, load_workload
from traces.errors import UsageError


def test_demo_is_deterministic_and_generated():
    first, second = (
        load_workload("demo", problems=5, seed=3),
        load_workload("demo", problems=5, seed=3),
    )
    assert first.problems == second.problems
    assert first.generated
    assert first.facts(None) == second.facts(None)
    assert first.facts(None).hash != load_workload("demo", problems=5, seed=4).facts(None).hash


def test_demo_options():
    plain = load_workload("demo", problems=2)
    preamble = load_workload("demo:preamble", problems=2)
    assert preamble.problems[0].prompt.endswith(plain.problems[0].prompt)
    assert len(preamble.problems[0].prompt) - len(plain.problems[0].prompt) == 256
    with pytest.raises(UsageError, match="no option 'nonsense'"):
        load_workload("demo:nonsense")


def test_jsonl(tmp_path):
    path = tmp_path / "w.jsonl"
    rows = [{"id": 1, "prompt": "a", "answer": 5}, {"id": "b", "prompt": "c", "group": "easy"}]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    workload = load_workload(str(path))
    assert not workload.generated
    assert [p.problem_id for p in workload.problems] == ["1", "b"]
    assert workload.problems[0].expected == "5"
    assert workload.problems[1].expected is None
    assert len(load_workload(str(path), problems=1).problems) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no problems"),
        ('{"id": 1, "prompt": "a"}\nnot json', "line 2: not JSON"),
        ('{"prompt": "a"}', "line 1: needs"),
        ('{"id": 1}', "line 1: needs"),
        ('{"id": 1, "prompt": 5}', "line 1: needs"),
        ("[1]", "line 1: needs"),
        ('{"id": 1, "prompt": "a"}\n{"id": "1", "prompt": "b"}', "line 2: id '1' is also on"),
    ],
)
def test_bad_jsonl_names_the_line(tmp_path, text, message):
    path = tmp_path / "w.jsonl"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        load_workload(str(path))


def test_absent_file():
    with pytest.raises(UsageError, match="cannot be read"):
        load_workload("absent.jsonl")
    with pytest.raises(UsageError, match="at least 1"):
        load_workload("demo", problems=0)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>x</think>42", "42"),
        ("x</think> so \\boxed{7} and \\boxed{\\frac{1}{2}} ", "\\frac{1}{2}"),
        ("<think>never closed \\boxed{3}", None),
        ("just 9\n", "just 9"),
        ("x</think>", None),
        ("", None),
    ],
)
def test_final_answer(text, answer):
    assert final_answer(text) == answer


def test_is_correct():
    assert is_correct("a", "a") is True
    assert is_correct(None, "a") is False
    assert is_correct("a", None) is None
