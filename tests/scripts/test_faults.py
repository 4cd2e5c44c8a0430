"""Single faults that the tests are tried on (scripts/faults.py)."""

import ast

import pytest

from scripts import faults
from scripts.faults import KINDS, Judge, Source, draw, near_tests

CODE = '''\
"""Ä word before the code: places are counted in characters, the tree counts bytes."""


def share(taken, whole, least=3):
    if whole <= 0:
        return None
    if taken < least and whole > 7 or taken > 9:
        return max(taken, whole)
    return "a" + "b", taken - whole  # no text loses its sign
'''


@pytest.fixture
def made(tmp_path, monkeypatch):
    (tmp_path / "traces").mkdir()
    (tmp_path / "traces" / "code.py").write_text(CODE)
    monkeypatch.setattr(faults, "ROOT", tmp_path)
    return Source(tmp_path / "traces" / "code.py")


def test_each_kind_of_fault_changes_one_place(made):
    changed = {fault.applied(CODE): fault for fault in made.faults()}
    lines = {
        (fault.kind, faulty.splitlines()[fault.line - 1].strip())
        for faulty, fault in changed.items()
    }
    assert {
        ("guard", "if False:"),
        ("bound", "if whole < 0:"),
        ("logic", "if taken < least or whole > 7 or taken > 9:"),
        ("bound", "if taken <= least and whole > 7 or taken > 9:"),
        ("unit", "if taken < least and whole > 14 or taken > 9:"),
        ("argument", "return max(whole, taken)"),
        ("sign", 'return "a" + "b", taken + whole  # no text loses its sign'),
        ("unit", "def share(taken, whole, least=6):"),
    } <= lines
    assert {kind for kind, _ in lines} == set(KINDS)
    for faulty in changed:
        assert faulty != CODE and ast.parse(faulty)
        differ = [a != b for a, b in zip(faulty.splitlines(), CODE.splitlines(), strict=True)]
        assert sum(differ) == 1


def test_a_fault_is_found_again_on_later_code_or_its_lines_are_gone(made):
    (fault,) = [each for each in made.faults() if each.kind == "sign"]
    moved = f'"""Another head."""\n\nMORE = 1\n{CODE}'
    assert "taken + whole" in fault.applied(moved)
    assert fault.applied(CODE.replace("taken - whole", "taken")) is None


def test_faults_are_drawn_of_all_kinds_without_a_second_one_of_a_place(made):
    drawn = draw(6, seed=3)
    assert [each.kind for each in drawn] == list(KINDS)
    assert drawn == draw(6, seed=3)
    assert len({(each.path, each.kind, each.line, each.offset) for each in drawn}) == 6


def test_tests_of_a_files_folder_come_first_then_those_that_import_it(tmp_path):
    for name, text in {
        "tests/traces/test_code.py": "from traces.code import share",
        "tests/traces/test_other.py": "",
        "tests/tui/test_use.py": "from traces import code",
        "tests/tui/test_none.py": "from traces import codes",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert near_tests(tmp_path, "traces/code.py") == [
        "tests/traces/test_code.py", "tests/traces/test_other.py", "tests/tui/test_use.py",
    ]  # fmt: skip


@pytest.fixture
def judge(made, tmp_path, monkeypatch):
    """A project of one file and one test, in the place of this one."""
    test = "from traces.code import share\n\ndef test_share():\n    assert share(5, 2)[1] == 3\n"
    (tmp_path / "traces" / "__init__.py").touch()
    (tmp_path / "tests" / "traces").mkdir(parents=True)
    (tmp_path / "tests" / "traces" / "test_code.py").write_text(test)
    listed = "traces/__init__.py\ntraces/code.py\ntests/traces/test_code.py\n"
    monkeypatch.setattr(faults.subprocess, "check_output", lambda *_, **__: listed)
    judge = Judge(whole=True, near=True, processes=1)
    yield judge
    judge.close()


def test_python_never_takes_a_fault_for_what_it_compiled_before(made, judge, monkeypatch):
    path, seen = judge.tree / "traces" / "code.py", []

    def run(tests, processes):
        seen.append((path.read_text() == CODE, path.stat().st_size, int(path.stat().st_mtime)))
        return ["test::one"] if len(seen) == 1 else []

    monkeypatch.setattr(judge, "run", run)
    assert judge.judge(next(each for each in made.faults() if each.kind == "sign")).caught
    assert [unchanged for unchanged, *_ in seen] == [False, True]
    assert len({size for _, size, _ in seen}) == 1
    assert len({second for *_, second in seen}) == 2


@pytest.mark.slow
def test_a_fault_is_caught_by_the_test_that_fails_with_it_alone(made, judge, tmp_path):
    by_kind = {each.kind: each for each in made.faults()}
    sign, argument = (judge.judge(by_kind[kind]) for kind in ("sign", "argument"))
    assert sign.caught == "tests/traces/test_code.py::test_share"
    assert argument.caught is None
    assert (judge.tree / "traces" / "code.py").read_text() == CODE
    # A test that fails without a fault catches none, and the next ones are run without it.
    broken = judge.tree / "tests" / "traces" / "test_code.py"
    broken.write_text(broken.read_text().replace("== 3", "== 4"))
    assert judge.judge(by_kind["argument"]).caught is None
    assert judge.left_out == ["tests/traces/test_code.py::test_share"]
