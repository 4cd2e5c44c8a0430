"""Files that are small and ask for much: imported, or refused in a line, in bounded memory."""

import gzip
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import zstandard

from benchmarks.made.foreign_files import (
    CASES,
    HEADER,
    REQUEST_CASES,
    guidellm_report,
    inspect_samples,
)

MB = 1 << 20
pytestmark = pytest.mark.slow

MOST_MB = 500  # in all, of which Python and its libraries take some 130
CODE = """
import resource, sys
from pathlib import Path
from traces.errors import TtscopeError
from tui.screens.library import import_into
resource.setrlimit(resource.RLIMIT_CPU, (300, 300))  # s, of which all these files take some 20
for path in map(str.strip, sys.stdin):
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    try:
        print(import_into(path, Path(path).parent / "runs").told)
    except TtscopeError as error:
        print(error)
    status = Path("/proc/self/status").read_text()
    print(int(status.partition("VmHWM:")[2].split()[0]) // 1024, flush=True)
"""


@pytest.fixture(scope="module")
def imported():
    """Import a file in a process beside this one; what it says and the peak of MB."""
    command = [sys.executable, "-u", "-c", CODE]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    ) as child:

        def of(path):
            child.stdin.write(f"{path}\n")
            child.stdin.flush()
            told = child.stdout.readline()
            peak = child.stdout.readline().strip()
            assert peak.isdigit(), f"{told}{peak}"  # one line, and it lives
            return told.strip(), int(peak)

        yield of
        child.stdin.close()


def log_of(path, entry, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("header.json", json.dumps(HEADER))
        file.writestr(
            "samples/one_epoch_1.json", json.dumps(inspect_samples([("p", 0, "1", True)])[0])
        )
        with file.open("samples/two_epoch_1.json", "w") as stream:
            for piece in entry:
                stream.write(piece)
    return path


def many(value, megabytes, name=b"scores"):
    """A sample of one field with many small values."""
    yield b'{"id":"q","epoch":1,"%b":[' % name
    piece = (value + b",") * (MB // (len(value) + 1))
    for _ in range(megabytes):
        yield piece
    yield b"0]}"


@pytest.mark.parametrize("value", [b'{"":{}}', b"[]"])
def test_an_inspect_log_that_swells_is_refused(imported, tmp_path, value):
    path = log_of(tmp_path / "log.eval", many(value, 80))
    assert path.stat().st_size < 2 * MB
    told, peak = imported(path)
    assert "inflates more than 200-fold" in told
    assert peak < MOST_MB


@pytest.mark.parametrize("field", [b"scores", b"id"])
def test_a_sample_of_many_values_is_skipped_and_the_others_read(imported, tmp_path, field):
    path = log_of(tmp_path / "log.eval", many(b"[]", 40, field), zipfile.ZIP_STORED)
    told, peak = imported(path)
    assert told.startswith("inspect_ai log: 1 sample")
    assert peak < MOST_MB


def test_what_is_not_read_of_a_sample_may_be_of_any_size(imported, tmp_path):
    sample = inspect_samples([("p", 0, "1", True)])[0] | {"events": [[]] * 2_500_000}
    path = tmp_path / "log.eval"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("header.json", json.dumps(HEADER))
        file.writestr("samples/p_epoch_1.json", json.dumps(sample))
    assert imported(path)[0].startswith("inspect_ai log: 1 sample")


def test_a_zstandard_entry_that_swells_is_refused(imported, tmp_path):
    """Its size in the directory is false too."""
    body = zstandard.ZstdCompressor().compress(b"".join(many(b"[]", 80)))
    path = tmp_path / "log.eval"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("header.json", json.dumps(HEADER))
        file.writestr("samples/p_epoch_1.json", body)
    raw = path.read_bytes()
    at = raw.rfind(b"PK\x01\x02")
    path.write_bytes(raw[: at + 10] + (93).to_bytes(2, "little") + raw[at + 12 :])
    told, peak = imported(path)
    assert "inflates more than 200-fold" in told
    assert peak < MOST_MB


@pytest.mark.parametrize("case", [*CASES, *REQUEST_CASES], ids=lambda case: case.file)
def test_a_gzip_bomb_of_every_kind_is_refused(imported, tmp_path, case):
    if case.file.endswith(".eval"):
        return
    one = [("p", 0, "1", True)] if case in CASES else [(0.0, 5, 5, 0.1, 0.2)]
    text = case.write(tmp_path / case.file, one).read_bytes()
    path = tmp_path / f"{case.file}.gz"
    document = case.file.endswith(".json")
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(text.rstrip()[:-1] if document else text)
        for _ in range(80):
            file.write(b"00," * (MB // 3) if document else b"[]," * (MB // 3))
    told, peak = imported(path)
    assert "200-fold" in told or "more than" in told
    assert peak < MOST_MB


def test_a_trace_whose_metadata_or_event_has_many_values(imported, tmp_path):
    path = tmp_path / "trace.json"
    path.write_bytes(
        b'{"x": ['
        + b"[]," * (9 * MB)
        + b'0], "traceEvents": [{"ph": "X", "name": "aten::mm", "cat":'
        b' "cpu_op", "ts": 1, "dur": 1, "pid": 1, "tid": 1, "args": {"bytes": ['
        + b"[]," * (9 * MB)
        + b"0]}}]}"
    )
    _, peak = imported(path)
    assert peak < MOST_MB


@pytest.mark.parametrize("kind", ["guidellm", "vllm", "aiperf"])
def test_requests_of_many_values(imported, tmp_path, kind):
    path = tmp_path / "requests.json"
    if kind == "guidellm":
        text = json.dumps(guidellm_report([([(0.0, 5, 5, 0.1, 0.2)], None, None)]))
        text = text.replace('"successful": [', '"successful": [' + "{}," * (12 * MB))
    else:
        case = next(each for each in REQUEST_CASES if each.name.startswith(kind))
        text = case.write(path, [(0.0, 5, 5, 0.1, 0.2)]).read_text()
        where = '"ttfts": [' if kind == "vllm" else '"metrics": {'
        assert where in text
        more = "[]," * (12 * MB) if kind == "vllm" else '"x": [' + "[]," * (8 * MB) + "0],"
        text = text.replace(where, where + more)
    path.write_text(text)
    told, peak = imported(path)
    assert "values" in told
    assert peak < MOST_MB


@pytest.mark.parametrize("deep", ["[", '{"a":'])
@pytest.mark.parametrize("case", [*CASES, *REQUEST_CASES], ids=lambda case: case.file)
def test_nesting_without_end_is_one_line(imported, tmp_path, case, deep):
    if case.file.endswith((".eval", ".csv")):
        return
    one = [("p", 0, "1", True)] if case in CASES else [(0.0, 5, 5, 0.1, 0.2)]
    path = case.write(tmp_path / case.file, one)
    text = path.read_text().rstrip()
    name = next(each for each in ("answer", "resps", "hash_ids", "metadata", "samples", "errors",
                                  "benchmarks") if f'"{each}":' in text)  # fmt: skip
    path.write_text(text.replace(f'"{name}":', f'"{name}": {deep * 200_000}', 1))
    imported(path)


@pytest.mark.parametrize("begin", ["", '{"problem_id": '])
def test_a_line_of_brackets_takes_no_longer_than_its_length(imported, tmp_path, begin):
    """Read once for every bracket it would take an hour."""
    path = tmp_path / "outcomes.jsonl"
    path.write_text(begin + "[" * (4 * MB))
    assert "outcomes.jsonl: " in imported(path)[0]
