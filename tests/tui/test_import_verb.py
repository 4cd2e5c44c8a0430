"""`ttscope import` and `ttscope export`: what they print, and one line for what they refuse."""

import json

import pytest

from tests.traces.made_traces import cpu_events, device_events, document, kernel, write


@pytest.fixture
def trace(tmp_path):
    return write(tmp_path / "trace.json.gz", document(device_events()))


def test_import_show_and_export(run, trace, tmp_path):
    code, out, err = run("import", trace, "-o", "r")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    for wanted in (
        "trace.json.gz",
        "attention",
        "all_reduce",
        "15.0 us",
        "idle 60.0 us",
        "kept in r",
    ):
        assert wanted in out, wanted
    code, out, err = run("show", "r")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    for wanted in ("imported from profiler traces: trace.json.gz", "gemm", "all_reduce", "idle"):
        assert wanted in out, wanted
    assert "accuracy" not in out
    code, out, _ = run("show", "r", "--json")
    (shown,) = json.loads(out)["runs"]
    assert shown["config"]["policy"] is None
    assert shown["device_time"]["idle_s"] == pytest.approx(60e-6)
    code, out, _ = run("export", "r", "-o", "out.json.gz")
    assert code == 0
    assert "2 steps" in out
    assert (tmp_path / "out.json.gz").stat().st_size
    code, out, _ = run("export", "r", "-o", "out.json", "--json")
    assert json.loads(out)["events"]["steps"] == 2
    assert json.loads((tmp_path / "out.json").read_text())["traceEvents"]


def test_import_json(run, trace):
    code, out, err = run("import", trace, "-o", "r", "--json")
    assert (code, err) == (0, "")
    document_ = json.loads(out)
    (file,) = document_["files"]
    assert (file["rank"], file["world_size"], file["steps"], file["kernels"]) == (0, 2, 2, 7)
    assert document_["collectives"][0]["name"] == "all_reduce"


def test_two_imported_recordings_are_shown_one_after_the_other(run, trace, tmp_path):
    cpu = write(tmp_path / "cpu.json", document(cpu_events()))
    run("import", trace, "-o", "a")
    run("import", cpu, "-o", "b")
    code, out, _ = run("show", "a", "b")
    assert code == 0
    assert "trace.json.gz" in out
    assert "cpu.json" in out


def test_what_was_skipped_is_one_line(run, tmp_path):
    bad = [{**kernel("gemm", 1, 2, 1), "dur": -1}] * 3
    path = write(tmp_path / "t.json", document([*device_events(), *bad]))
    code, out, err = run("import", path, "-o", "r")
    assert (code, err) == (0, "")
    assert "! t.json: skipped: 3 events of negative duration" in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["import", "absent.json", "-o", "r"], 1, "absent.json: cannot be read (No such file"),
        (["import", "trace.json.gz"], 2, "'-o'"),
        (["import", "trace.json.gz", "-o", "r", "--limit", "0"], 2, "--limit must be above 0"),
        (["import", "trace.json.gz", "-o", "r", "--limit", "1e-7"], 1, "holds more than 100 bytes"),
        (["import", "trace.json.gz", "trace.json.gz", "-o", "r"], 2, "both say rank 0"),
        (["export", "absent", "-o", "t.json"], 1, "absent: no such recording"),
        (["export", "absent", "-o", "t.txt"], 2, "name a .json or .json.gz file"),
    ],
)
def test_refusals(run, trace, arguments, code, message):
    got, out, err = run(*arguments)
    assert (got, out) == (code, "")
    assert err.count("\n") == 1
    assert message in err


def test_a_folder_that_holds_a_recording_is_kept(run, trace):
    assert run("import", trace, "-o", "r")[0] == 0
    code, _, err = run("import", trace, "-o", "r")
    assert (code, "already holds a recording" in err) == (2, True)
