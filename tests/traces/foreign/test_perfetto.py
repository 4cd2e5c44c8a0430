"""The exported trace: Chrome's format, tracks whose slices nest, and Perfetto's own reader."""

import gzip
import json
from collections import Counter, defaultdict
from dataclasses import replace

import pytest

from benchmarks.made.kineto_files import device_events, document, kernel, write
from tests.traces.synthetic import engine_config, simulate, write_recording
from traces.errors import RecordingError
from traces.foreign.perfetto import LAID_OUT, _Lanes, _Tracks, export_trace
from traces.foreign.profiler_traces import import_traces
from traces.recording.reader import Recording


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    rows = simulate(problems=6, n=3)
    rows["kernels"] = [
        {"rank": rank, "step": step, "stream": stream, "family": family, "name": family,
         "count": 2, "time": 300_000, "self_time": 300_000}
        for step in (0, 1, None)
        for rank in (0, 1)
        for stream in (7, 9)
        for family in ("gemm", "norm")
    ]  # fmt: skip
    rows["samples"][-1] |= {"end": None, "finish_reason": None}
    rows["events"] = [{"time": rows["steps"][0]["end"], "kind": "preempted", "detail": "x"}]
    return write_recording(tmp_path_factory.mktemp("export") / "r", rows)


@pytest.fixture(scope="module")
def exported(recording, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "t.json.gz"
    return path, export_trace(recording, path)


def test_steps_without_wall_times_begin_where_the_one_before_ended(recording, tmp_path):
    rows = {table: recording.frame(table).to_dicts() for table in ("steps", "kernels")}
    for row in rows["steps"]:
        row["wall_ns"] = None
    untold = write_recording(tmp_path / "r", rows)
    counts = export_trace(untold, tmp_path / "t.json")
    assert counts["steps"] == len(rows["steps"]) - 1  # the first has neither time
    data = load(tmp_path / "t.json")
    check_format(data)
    steps = [each for each in data["traceEvents"] if each["name"] == "step"]
    ends = [round((each["ts"] + each["dur"]) * 1e3) for each in steps]
    assert [round(each["ts"] * 1e3) for each in steps[1:]] == ends[:-1]
    placed = [each for each in data["traceEvents"] if each.get("args", {}).get("step") == 1]
    assert min(each["ts"] for each in placed if each["name"] != "step") == steps[0]["ts"]


def load(path):
    raw = path.read_bytes()
    return json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)


def check_format(data):
    """Check the trace against the Trace Event Format, and that slices of a track nest."""
    assert set(data) <= {"traceEvents", "displayTimeUnit", "baseTimeNanoseconds"}
    assert data["displayTimeUnit"] in ("ms", "ns")
    named, used = set(), set()
    slices = defaultdict(list)
    for e in data["traceEvents"]:
        assert isinstance(e["name"], str)
        assert isinstance(e["pid"], int)
        assert isinstance(e["tid"], int)
        assert e["ph"] in "XBiM"
        if e["ph"] == "M":
            assert e["name"] in ("process_name", "thread_name")
            assert isinstance(e["args"]["name"], str)
            named.add((e["pid"], e["tid"]))
            continue
        assert e["ts"] >= 0
        for time in (e["ts"], e.get("dur", 0)):  # whole nanoseconds, as the importer rounds them
            assert round(time, 3) == time and time < 2**53 / 1e3
        assert all(isinstance(value, str | int | float | bool) for value in e["args"].values())
        used.add((e["pid"], e["tid"]))
        if e["ph"] == "X":
            assert e["dur"] >= 0
            slices[e["pid"], e["tid"]].append((round(e["ts"] * 1e3), round(e["dur"] * 1e3)))
        if e["ph"] == "i":
            assert e["s"] in "gpt"
    assert used <= named
    assert len({tid for _, tid in named}) == len(named), "a track's number is in two processes"
    assert not {pid for pid, _ in named} & {tid for _, tid in named}
    for spans in slices.values():
        stack = []
        for start, length in sorted(spans, key=lambda span: (span[0], -span[1])):
            while stack and stack[-1] <= start:
                stack.pop()
            assert not stack or start + length <= stack[-1], "slices overlap without nesting"
            stack.append(start + length)
    return slices


def test_it_is_chrome_json_with_every_row(recording, exported):
    path, counts = exported
    data = load(path)
    check_format(data)
    assert counts == {
        "problems": recording.problems.height, "samples": recording.samples.height,
        "steps": recording.steps.height, "kernels": 24, "events": 1,
    }  # fmt: skip
    names = Counter(e["name"] for e in data["traceEvents"] if e["ph"] != "M")
    assert names["step"] == counts["steps"]
    assert names["gemm"] == names["norm"] == 12
    assert names["prefill"] == counts["samples"]
    assert sum(e["ph"] == "B" for e in data["traceEvents"]) == 1  # the sample in flight


def test_times_are_the_recordings(recording, exported):
    data = load(exported[0])
    base = data["baseTimeNanoseconds"]
    steps = [e for e in data["traceEvents"] if e["name"] == "step"]
    ends = sorted(base + round((e["ts"] + e["dur"]) * 1e3) for e in steps)
    assert ends == sorted(recording.steps["end"].to_list())


def test_families_lie_end_to_end_in_their_step_and_say_so(exported):
    events = load(exported[0])["traceEvents"]
    first = min((e for e in events if e["name"] == "step"), key=lambda e: e["ts"])
    placed = [e for e in events if e["name"] in ("gemm", "norm") and e["args"].get("step") == 0]
    assert {e["args"]["placed"] for e in placed} == {LAID_OUT}
    by_track = defaultdict(list)
    for e in placed:
        by_track[e["pid"], e["tid"]].append(e)
    assert len(by_track) == 4  # two ranks of two streams
    for one, two in (sorted(track, key=lambda e: e["ts"]) for track in by_track.values()):
        assert one["ts"] == pytest.approx(first["ts"])
        assert two["ts"] == pytest.approx(one["ts"] + one["dur"])


@pytest.mark.parametrize("metadata", [{}, {"baseTimeNanoseconds": None}])
def test_an_imported_trace_exports(tmp_path, metadata):
    data = document([*device_events(), kernel("gemm", 300, 9_000, 6)], **metadata)
    import_traces([write(tmp_path / "t.json", data)], tmp_path / "r")
    counts = export_trace(Recording.open(tmp_path / "r"), tmp_path / "out.json")
    check_format(load(tmp_path / "out.json"))
    assert (counts["steps"], counts["kernels"]) == (2, 7)


def test_tracks_of_many_samples_at_a_time_are_not_those_of_the_steps():
    tracks = _Tracks()
    lanes = _Lanes(tracks, "samples", "sample")
    places = [lanes.take(0, None) for _ in range(3000)]
    places += [tracks.of("engine e", "steps"), tracks.of("engine f", "steps")]
    assert len({tid for _, tid in places}) == len(places)


def test_a_file_that_cannot_be_written(recording, tmp_path):
    with pytest.raises(RecordingError, match="cannot be written"):
        export_trace(recording, tmp_path / "absent" / "t.json")


def test_perfetto_opens_it(exported):
    processor = pytest.importorskip("perfetto.trace_processor", reason="perfetto is dev-only")
    config = processor.TraceProcessorConfig(load_timeout=10)
    try:
        opened = processor.TraceProcessor(trace=str(exported[0]), config=config)
    except Exception as error:  # its binary is not in the wheel but downloaded at first use
        pytest.skip(f"Perfetto's trace processor cannot be had here ({type(error).__name__})")
    with opened as trace:
        found = {row.name: row.n for row in trace.query(
            "select name, count(*) as n from slice group by name"
        )}  # fmt: skip
        assert found["step"] == exported[1]["steps"]
        assert found["gemm"] == found["norm"] == 12
        errors = trace.query(
            "select sum(value) as n from stats where severity = 'error' and value > 0"
        )
        assert next(iter(errors)).n in (None, 0)


def test_steps_without_dates_begin_with_those_that_have_one(tmp_path):
    """A trace of sampled windows beside a whole one: only the second tells when."""
    rows = simulate(problems=4, n=2)
    undated = [row | {"end": None, "engine": "other"} for row in rows["steps"][:3]]
    made = write_recording(tmp_path / "r", {**rows, "steps": [*rows["steps"], *undated]})
    engines = {**made.manifest.engines, "other": engine_config(model="other")}
    replace(made.manifest, engines=engines).write(made.path)
    export_trace(Recording.open(made.path), tmp_path / "t.json")
    check_format(load(tmp_path / "t.json"))
