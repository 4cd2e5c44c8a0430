"""What every importer of outcomes and of requests must do, whatever its format."""

import gzip
import json
import os
import random
from pathlib import Path

import polars as pl
import pytest

from benchmarks.made.foreign_files import CASES, REQUEST_CASES, RequestCase
from tests.traces.foreign.evaluations.test_evaluations import SAMPLES
from tests.traces.foreign.requests.test_requests import SENT
from tests.traces.kineto.test_kineto_damage import mutate
from traces.errors import OutcomesError, TtscopeError, UsageError
from traces.foreign import source
from traces.foreign.evaluations import importer as outcome_import
from traces.foreign.evaluations.reader import Choices
from traces.foreign.requests import importer as request_import
from traces.foreign.requests.reader import RequestChoices
from traces.recording.reader import Recording
from traces.summary.run import summarise
from tui.text.recordings.show import show_json

DATA = Path(__file__).parents[2] / "data" / "foreign"
ROUNDS = int(os.environ.get("TTSCOPE_FUZZ", "60"))


@pytest.fixture(params=[*CASES, *REQUEST_CASES], ids=lambda case: case.file)
def case(request):
    return request.param


def rows_of(case):
    return SENT if isinstance(case, RequestCase) else SAMPLES


def read(case, path, folder, *, record_text=False, **choices):
    if isinstance(case, RequestCase):
        asked = RequestChoices(**choices)
        found = request_import.import_requests(path, folder, choices=asked)
    else:
        asked = Choices(**choices)
        found = outcome_import.import_outcomes(
            [path], folder, choices=asked, record_text=record_text
        )
    return found, Recording.open(folder)


def refused(case, path, folder):
    with pytest.raises(OutcomesError) as error:
        read(case, path, folder)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert not folder.exists() or not list(folder.iterdir())
    return str(error.value)


def test_the_same_file_gives_the_same(case, tmp_path):
    path = case.write(tmp_path / case.file, rows_of(case))
    (_, first), (_, second) = (read(case, path, tmp_path / name) for name in "ab")
    for table in ("problems", "samples", "events"):
        assert first.frame(table).equals(second.frame(table)), table
    assert first.manifest.workload == second.manifest.workload
    others = [("other" + p, *rest) for p, *rest in SAMPLES]
    if isinstance(case, RequestCase):
        others = [(arrival, prompt + 1, *rest) for arrival, prompt, *rest in SENT]
    _, other = read(case, case.write(tmp_path / case.file, others), tmp_path / "c")
    assert other.manifest.workload.hash != first.manifest.workload.hash


def test_a_folder_that_holds_a_recording_is_kept(case, tmp_path):
    path = case.write(tmp_path / case.file, rows_of(case))
    read(case, path, tmp_path / "r")
    with pytest.raises(UsageError, match="already holds a recording"):
        read(case, path, tmp_path / "r")


def test_empty_files_are_refused(case, tmp_path):
    path = tmp_path / case.file
    path.write_bytes(b"")
    assert "the file is empty" in refused(case, path, tmp_path / "r")
    case.write(path, [])
    refused(case, path, tmp_path / "r")


@pytest.mark.parametrize(
    "content", [b"hello", b"{}", b"\0" * 1000, b"[]", b'{"a": 1}\n{"a": 2}\n', b"a,b,c\n1,2,3\n"]
)
@pytest.mark.parametrize("kind", [CASES[0], REQUEST_CASES[0]], ids=["outcomes", "requests"])
def test_files_that_are_nothing(kind, content, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(content)
    message = refused(kind, path, tmp_path / "r")
    assert f"holds no {'requests' if kind in REQUEST_CASES else 'outcomes'} that" in message


def test_limits_stop_bombs(case, tmp_path):
    many = SENT * 50
    if not isinstance(case, RequestCase):
        many = [(f"{p}{copy}", *rest) for copy in range(50) for p, *rest in SAMPLES]
    path = case.write(tmp_path / case.file, many)
    with pytest.raises(OutcomesError, match=r"holds more than 2,000 bytes of text. Raise --limit"):
        read(case, path, tmp_path / "r", limit_bytes=2000)
    assert not (tmp_path / "r").exists() or not list((tmp_path / "r").iterdir())


def test_formats_do_not_claim_each_other(tmp_path):
    def claims(path):
        head = path.read_bytes()[: source.HEAD_BYTES]
        every = [*outcome_import.FORMATS, *request_import.FORMATS]
        return [each.name for each in every if each.recognises(head)]

    for case in (*CASES, *REQUEST_CASES):
        assert claims(case.write(tmp_path / case.file, rows_of(case))) == [case.name]
    bailian = {"chat_id": 1, "timestamp": 61.1, "input_length": 5, "output_length": 2}
    (tmp_path / "b.jsonl").write_text(json.dumps(bailian))
    assert claims(tmp_path / "b.jsonl") == []  # seconds, and blocks of 16: not read as Mooncake's


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cases", "real"),
    [(CASES, ("*.jsonl", "inspect_sums.eval")), (REQUEST_CASES, ("requests_*",))],
    ids=["outcomes", "requests"],
)
def test_fuzz(cases, real, tmp_path):
    """By hand 20,000 mutations: TTSCOPE_FUZZ=20000 pytest -k fuzz and this file"""
    rng = random.Random(11)
    bases = [case.write(tmp_path / case.file, rows_of(case)).read_bytes() for case in cases]
    bases += [path.read_bytes() for name in real for path in sorted(DATA.glob(name))]
    outcomes = dict.fromkeys(("refused", "told", "read"), 0)
    for number in range(ROUNDS):
        raw = mutate(rng.choice(bases), rng)
        if rng.random() < 0.2:
            raw = mutate(gzip.compress(raw, 1, mtime=0), rng)
        path = tmp_path / "mutated"
        path.write_bytes(raw)
        options = {"limit_bytes": 1 << 22}
        if cases is CASES:
            options |= {"record_text": number % 3 == 0}
        if cases is CASES and number % 4 == 0:
            options |= {"judge": lambda text, expected, _: (text[-2:], text[-2:] == expected)}
        try:
            found, recording = read(cases[0], path, tmp_path / f"r{number}", **options)
        except TtscopeError as error:
            assert "\n" not in str(error) and not isinstance(error, RecursionError)
            outcomes["refused"] += 1
            continue
        except Exception:
            kept = tmp_path / "failing"
            kept.write_bytes(raw)
            print(f"the file that failed is {kept}")
            raise
        skipped = [each.skipped for each in found.files] if cases is CASES else [found.skipped]
        outcomes["told" if any(each.counts for each in skipped) else "read"] += 1
        count = found.facts["samples"] if cases is CASES else found.facts["requests"]
        assert recording.samples.height == count > 0
        unique = pl.struct("problem_id", "sample_index").is_unique().all()
        assert recording.samples.select(unique).item() or cases is REQUEST_CASES
        if number % 10 == 0:
            json.dumps(show_json(summarise(recording)), allow_nan=False)
    print(outcomes)
    assert min(outcomes.values()) > ROUNDS // 30
