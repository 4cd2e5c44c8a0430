"""Files of forward passes become a recording of steps, or are refused in one line."""

import gzip
import json
from pathlib import Path

import polars as pl
import pytest

from tests.traces.forward_pass.passes import enveloped, passed
from traces.errors import OutcomesError, UsageError
from traces.foreign.kinds import files_in, kind_of
from traces.foreign.steps.forward_passes import import_passes
from traces.recording.reader import Recording
from traces.summary.run import summarise
from tui.text.recordings.series import Timeline

DATA = Path(__file__).parents[2] / "data" / "foreign"
FULL = [DATA / f"fpm_dynamo.4192.00000{n}.jsonl.gz" for n in (0, 1)]
SAMPLED = DATA / "fpm_dynamo_sampled.77.000000.jsonl.gz"


def written(path, lines):
    text = "".join(each if isinstance(each, str) else json.dumps(each) + "\n" for each in lines)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt") as file:
        file.write(text)
    return path


def decoding(counters, **changes):
    return [enveloped(passed(n, decodes=2, context=100 + 2 * n), **changes) for n in counters]


def test_a_workers_files_are_one_engine_in_the_order_of_their_records(tmp_path):
    found = import_passes(FULL[::-1], tmp_path / "rec")
    (engine,) = found.facts["engines"]
    assert (engine["steps"], engine["lost"], engine["heartbeats"]) == (400, 0, 0)
    steps = Recording.open(tmp_path / "rec").steps
    assert steps["step"].to_list() == list(range(400))
    assert steps["end"].is_sorted()
    assert steps["wall_ns"].null_count() == 0
    assert steps["interval_ns"].null_count() < 10
    assert (steps["decode_tokens"] == steps["decode_requests"]).all()
    kinds = summarise(Recording.open(tmp_path / "rec"))[0].step_time
    assert kinds["decode_s"].value == pytest.approx(0.00949, rel=0.01)


def test_a_folder_holds_all_its_workers(tmp_path):
    files = files_in([DATA])
    assert kind_of(files) == "passes"
    found = import_passes(files, tmp_path / "rec")
    recording = Recording.open(tmp_path / "rec")
    assert [engine["steps"] for engine in found.facts["engines"]] == [400, 29]
    assert len(recording.manifest.engines) == 2
    assert [run.steps for run in summarise(recording)] == [400, 29]
    assert not recording.manifest.dropped  # what was sampled is not lost


def test_of_sampled_steps_the_time_between_them_is_not_idle(tmp_path):
    found = import_passes([SAMPLED], tmp_path / "rec")
    (run,) = summarise(Recording.open(tmp_path / "rec"))
    assert run.seconds == {}
    assert run.step_time["decode_s"] is not None
    assert any("29 of 1,450" in note for note in found.notes)


def test_records_without_an_envelope_or_a_time_are_read(tmp_path):
    plain = written(tmp_path / "a.jsonl", [passed(n, decodes=1) for n in range(3)])
    bare = written(tmp_path / "b.jsonl", [each["event"] for each in decoding(range(3))])
    for path in (plain, bare):
        found = import_passes([path], tmp_path / f"rec-{path.stem}")
        assert found.facts["steps"] == 3
    assert Recording.open(tmp_path / "rec-a").steps["end"].null_count() == 3


def test_lost_records_are_counted_and_those_given_twice_are_not(tmp_path):
    one = written(tmp_path / "x.jsonl", decoding([*range(10), *range(15, 20)]))
    found = import_passes([one, one], tmp_path / "rec")
    assert found.facts["engines"][0]["lost"] == 5
    assert Recording.open(tmp_path / "rec").manifest.dropped == {"steps": 5}
    assert Recording.open(tmp_path / "rec").losses


def test_an_engine_that_speculates_has_no_decode_tokens(tmp_path):
    lines = [enveloped(passed(n, decodes=4, context=2_000 + 11 * n)) for n in range(50)]
    found = import_passes([written(tmp_path / "x.jsonl.gz", lines)], tmp_path / "rec")
    assert Recording.open(tmp_path / "rec").steps["decode_tokens"].null_count() == 50
    assert any("so the engine speculates" in note for note in found.notes)
    (run,) = summarise(Recording.open(tmp_path / "rec"))
    assert run.step_time["decode_s"].value == pytest.approx(0.01)
    assert not Timeline.of(run.step_rows, None).tokens_known


def test_too_few_neighbours_do_not_tell_whether_an_engine_speculates(tmp_path):
    found = import_passes([written(tmp_path / "x.jsonl", decoding(range(9)))], tmp_path / "rec")
    assert any("do not say whether" in note for note in found.notes)
    assert Recording.open(tmp_path / "rec").steps["decode_tokens"].null_count() == 9


def test_bad_lines_are_skipped_and_named(tmp_path):
    lines = [
        *decoding(range(5)),
        "{not json}\n",
        '{"event": 3}\n',
        enveloped(passed(5, decodes=1), source={"producer_id": "\x1b[31m"}),
        enveloped(passed(5, decodes=1), observed_at_unix_ms=-4),
        enveloped(passed(5, decodes=1), observed_at_unix_ms="now"),
        enveloped(passed(5, wall_time=None)),
        enveloped(passed(5, version=2)),
        json.dumps(enveloped(passed(5, decodes=1))).replace("0.01", "NaN") + "\n",
        json.dumps(enveloped(passed(5, decodes=1))).replace("0.01", "1e999") + "\n",
        *decoding(range(5, 7)),
    ]
    found = import_passes([written(tmp_path / "x.jsonl", lines)], tmp_path / "rec")
    assert found.facts["steps"] == 7
    assert sum(found.skipped.counts.values()) == 9
    assert any("another schema version" in reason for reason in found.skipped.counts)
    assert not any("\x1b" in note for note in found.notes)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (decoding(range(3), schema="dynamo.fpm.trace.v2"), "dynamo.fpm.trace.v2.*Upgrade ttscope"),
        ([enveloped(passed(n, version=3)) for n in range(3)], "version 3.*Upgrade ttscope"),
        ([enveloped(passed(n, wall=0.0)) for n in range(3)], "heartbeats alone"),
        ([enveloped(passed(1, wall_time=-1))], "out of range"),
    ],
)
def test_files_of_which_nothing_can_be_read(tmp_path, lines, says):
    path = written(tmp_path / "x.jsonl.gz", lines)
    with pytest.raises(OutcomesError, match=says) as failure:
        import_passes([path], tmp_path / "rec")
    assert str(path) in str(failure.value)
    assert "\n" not in str(failure.value)
    assert not (tmp_path / "rec" / "recording.json").exists()


def test_a_file_that_was_cut_gives_what_came_before(tmp_path):
    cut = tmp_path / "x.jsonl.gz"
    cut.write_bytes(FULL[0].read_bytes()[:3_000])
    found = import_passes([cut], tmp_path / "rec")
    assert 50 < found.facts["steps"] < 250
    assert any("cut off" in note for note in found.notes)


@pytest.mark.slow
def test_bombs_and_other_kinds_are_refused(tmp_path):
    bomb = tmp_path / "bomb.jsonl.gz"
    with gzip.open(bomb, "wb") as file:
        file.write((json.dumps(decoding([0])[0]) + "\n").encode())
        for _ in range(80):
            file.write(b" " * (1 << 20))
    with pytest.raises(OutcomesError, match="200-fold"):
        import_passes([bomb], tmp_path / "rec")
    other = written(tmp_path / "other.jsonl", [{"sample_index": 0}])
    with pytest.raises(OutcomesError, match="holds no forward passes"):
        import_passes([FULL[0], other], tmp_path / "rec")
    with pytest.raises(OutcomesError, match="more than 10,000 bytes"):
        import_passes(FULL, tmp_path / "rec", limit_bytes=10_000)
    with pytest.raises(UsageError, match="holds no files"):
        files_in([Path(__file__).parent])
    assert not list(tmp_path.glob("rec/*.parquet"))


@pytest.mark.slow
def test_as_many_workers_as_a_recording_holds(tmp_path):
    lines = [enveloped(passed(n, decodes=1, worker_id=f"w{n}")) for n in range(300)]
    found = import_passes([written(tmp_path / "x.jsonl", lines)], tmp_path / "rec")
    assert len(found.facts["engines"]) == 256
    assert any("left out: 44" in note for note in found.notes)
    assert Recording.open(tmp_path / "rec").steps["engine"].n_unique() == 256
    assert Recording.open(tmp_path / "rec").steps.filter(pl.col("step") > 0).is_empty()
