"""Workloads: the demo, JSONL files, and how answers are read."""

import json

import pytest

from profiler.workload.answers import final_answer
from profiler.workload.problems import Problem, Workload, load_workload
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
        ('{"id": [1], "prompt": "a"}', "line 1: needs"),
        ('{"id": 1, "prompt": "a", "messages": []}', "line 1: needs either"),
        ('{"id": 1, "messages": []}', 'line 1: "messages" must be a list'),
        ('{"id": 1, "messages": [{"role": "user"}]}', 'line 1: "messages" must be a list'),
        ('{"id": 1, "messages": [{"role": "x", "content": "a"}]}', "role is one of system"),
        ('{"id": 1, "prompt": "a", "answer": [1]}', '"answer" must be a text or a number'),
        ('{"id": 1, "prompt": "' + "a" * (5 << 20), "line 1: longer than 4 MiB"),
        ("[" * 100_000, "line 1: not JSON"),
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


def test_is_correct(tmp_path):
    path = tmp_path / "w.jsonl"
    path.write_text('{"id": 1, "prompt": "a", "answer": "a"}\n{"id": 2, "prompt": "b"}')
    workload = load_workload(str(path))
    known, unknown = workload.problems
    assert workload.is_correct(known, "a") is True
    assert workload.is_correct(known, None) is False
    assert workload.is_correct(unknown, "a") is None


def lines(path, *rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_verifier_of_the_file_and_of_a_line(tmp_path):
    half = {"prompt": "a", "answer": "1/2"}
    path = lines(
        tmp_path / "w.jsonl",
        {"id": 1, **half},
        {"id": 2, **half, "verifier": "exact"},
        {"id": 3, "prompt": "b", "answer": "(C)", "verifier": "choice"},
    )
    workload = load_workload(path, verifier="numeric")
    numeric, exact, choice = workload.problems
    text = "<think>hm</think>It is \\boxed{0.50}"
    assert workload.answer_to(numeric, text) == workload.answer_to(numeric, "2/4") == "0.5"
    assert workload.is_correct(numeric, "0.5") is True
    assert workload.answer_to(exact, text) == "0.50"
    assert workload.is_correct(exact, "0.50") is False
    assert workload.is_correct(choice, workload.answer_to(choice, "so the answer is C.")) is True
    assert workload.facts(None).verifier == "choice+exact+numeric"
    assert workload.facts(None).hash != load_workload(path).facts(None).hash


def test_the_expected_answer_judges_and_does_not_change_what_is_read(tmp_path):
    listed = "".join(f"\n({letter}) it" for letter in "ABCDEFG")
    rows = [
        {"id": f"{number}{expected}", "answer": expected, **asked}
        for number, asked in enumerate(
            (
                {"prompt": listed},
                {"messages": [{"role": "user", "content": listed}]},
                {"prompt": "?"},
            )
        )
        for expected in ("G", "B", None)
    ]
    workload = load_workload(lines(tmp_path / "w.jsonl", *rows), verifier="choice")
    found = [workload.answer_to(each, "Only (G) remains.") for each in workload.problems]
    assert found == ["G"] * 6 + [None] * 3


def test_messages_and_system_prompt(tmp_path):
    user = {"role": "user", "content": "2+2?"}
    own = {"role": "system", "content": "be exact"}
    path = lines(
        tmp_path / "w.jsonl",
        {"id": 1, "prompt": "2+2?"},
        {"id": 2, "messages": [user]},
        {"id": 3, "messages": [own, user]},
    )
    plain = load_workload(path)
    assert [problem.prompt for problem in plain.problems] == ["2+2?", (user,), (own, user)]
    led = load_workload(path, system_prompt="be brief")
    system = {"role": "system", "content": "be brief"}
    assert [p.prompt for p in led.problems] == [(system, user), (system, user), (own, user)]
    assert led.facts(None).hash != plain.facts(None).hash
    with pytest.raises(UsageError, match='line 2: "messages" need a chat template'):
        load_workload(path, chat=False)
    with pytest.raises(UsageError, match="--system-prompt needs a chat template"):
        load_workload(path, chat=False, system_prompt="x")
    for option in ({"system_prompt": "x"}, {"verifier": "numeric"}):
        with pytest.raises(UsageError, match="for JSONL workloads"):
            load_workload("demo", **option)


def test_a_verifier_that_is_none(tmp_path):
    path = lines(tmp_path / "w.jsonl", {"id": 1, "prompt": "a", "verifier": "guess"})
    with pytest.raises(UsageError, match="no verifier 'guess'. Choose one of exact, numeric"):
        load_workload(path)
    with pytest.raises(UsageError, match="--verifier: no verifier 'guess'"):
        load_workload(path, verifier="guess")


class Slow:
    """Takes too long over one text."""

    name, too_long, seconds = "slow", 2, 0.0

    def answer_of(self, text):
        return text

    def canonical(self, answer):
        return answer

    def gave_up(self, canonical):
        return canonical == "endless"

    def matches(self, canonical, expected):
        return canonical == expected


def test_an_expected_answer_that_took_too_long_judges_nothing():
    slow = Slow()
    problems = [Problem(problem_id=each, prompt="a", expected=each) for each in ("endless", "10")]
    workload = Workload(name="w", problems=problems, verifier=slow)
    endless, ten = problems
    judged = [
        (workload.is_correct(endless, a), workload.is_correct(ten, a))
        for a in ("10", "endless", None)
    ]
    assert judged == [(None, True), (True, False), (None, False)]
    (note,) = workload.notes()
    assert note.startswith("answers that took too long to check: 2. They count as wrong, and where")
