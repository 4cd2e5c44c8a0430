"""Importers of requests: the battery for all, then what is particular to each format."""

import gzip
import json
import zlib
from pathlib import Path

import pytest

from benchmarks.made.foreign_files import (
    REQUEST_CASES,
    aiperf,
    azure,
    guidellm,
    guidellm_report,
    mooncake,
    vllm_bench,
)
from traces.errors import OutcomesError, UsageError
from traces.foreign.requests.importer import import_requests
from traces.foreign.requests.reader import RequestChoices
from traces.recording.reader import Recording
from traces.summary.run import summarise
from tui.text.recordings.show import show_json, show_lines

DATA = Path(__file__).parents[3] / "data" / "foreign"
WORKLOADS = Path(__file__).parents[5] / "shared" / "data" / "workloads"
SENT = [  # arrival, tokens of prompt and output, ttft, latency
    (0.0, 700, 44, 0.05, 0.5),
    (0.25, 1024, 9, 0.06, 0.2),
    (0.25, 700, 1, 0.07, 0.07),
    (3.5, 91, 300, 0.05, 4.0),
]
NAN = float("nan")


@pytest.fixture(params=REQUEST_CASES, ids=lambda case: case.file)
def case(request):
    return request.param


def read(path, folder, **choices):
    found = import_requests(path, folder, choices=RequestChoices(**choices))
    return found, Recording.open(folder)


def refused(path, folder, **choices):
    with pytest.raises(OutcomesError) as error:
        import_requests(path, folder, choices=RequestChoices(**choices))
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert not folder.exists() or not list(folder.iterdir())
    return str(error.value)


def since_first(column):
    return [None if value is None else value - column[0] for value in column]


def test_requests_go_round(case, tmp_path):
    found, recording = read(case.write(tmp_path / case.file, SENT), tmp_path / "r")
    assert (found.facts["format"], found.facts["requests"], found.facts["failed"]) == (
        case.name,
        4,
        0,
    )
    assert (found.facts["prompt_tokens"], found.facts["output_tokens"], found.facts["span_s"]) == (
        2515,
        354,
        3.5,
    )
    assert found.skipped.counts == {}
    assert recording.complete and recording.steps.height == 0
    samples, problems = recording.samples, recording.problems
    assert samples["prompt_tokens"].to_list() == problems["prompt_tokens"].to_list()
    assert samples["prompt_tokens"].to_list() == [700, 1024, 700, 91]
    assert samples["output_tokens"].to_list() == [44, 9, 1, 300]
    arrival = samples["arrival"].to_list()
    close = {"abs": 300}  # nanoseconds: clients have unix seconds in floating point
    assert since_first(arrival) == pytest.approx([each[0] * 1e9 for each in SENT], **close)
    assert problems["arrival"].to_list() == arrival
    assert problems["problem_id"].to_list() == [str(case.first + i) for i in range(4)]
    if not case.measured:
        assert found.facts["measured"] == 0
        for column in ("first_token", "end", "latency_ns"):
            assert samples[column].null_count() == 4
        assert problems["end"].null_count() == problems["decided_at"].null_count() == 4
        return
    assert found.facts["measured"] == 4
    for column, place in (("first_token", 3), ("end", 4)):
        real = [value - at for value, at in zip(samples[column], arrival, strict=True)]
        assert real == pytest.approx([round(each[place] * 1e9) for each in SENT], **close)
    assert problems["decided_at"].to_list() == problems["end"].to_list()
    assert problems["end"].to_list() == samples["end"].to_list()


def test_it_can_be_shown(case, tmp_path):
    _, recording = read(case.write(tmp_path / case.file, SENT), tmp_path / "r")
    (run,) = summarise(recording)
    assert (run.problems, run.problems_in_flight, run.problems_failed) == (4, 0, 0)
    assert run.tokens_per_problem.value == 354 / 4
    assert run.accuracy is run.steps is run.flops_per_problem is None
    text = show_lines([run])
    assert all(len(line) <= 80 for line in text)
    unknown = ["accuracy", "device-s/problem", "energy/problem", "dev x latency/token"]
    if case.measured:
        assert run.latency_s["mean"].value == pytest.approx(4.77 / 4)
        assert run.ttft_s["p50"].value == pytest.approx(0.055)
        assert run.throughput_tokens_per_s.value == pytest.approx(354 / 7.5)
    else:
        unknown += ["latency mean", "TTFT p50", "TPOT p95", "throughput"]
    for name in unknown:
        assert any(line.split() == [*name.split(), "-"] for line in text), name
    assert any(line.endswith(", settings not known") for line in text)
    assert not any("in flight" in line or "never ended" in line for line in text)
    json.dumps(show_json([run]), allow_nan=False)


def test_no_text_is_kept(case, tmp_path):
    read(case.write(tmp_path / case.file, SENT), tmp_path / "r")
    for file in (tmp_path / "r").iterdir():
        assert b"secret" not in file.read_bytes()


BAD = [
    {"prompt": -5}, {"prompt": 0}, {"prompt": 10**30}, {"prompt": "many"}, {"output": -1},
    {"output": 200_000_000}, {"output": 1.5}, {"output": NAN}, {"arrival": NAN},
    {"arrival": "noon"}, {"arrival": -3}, {"arrival": 1e300}, {"arrival": ...},
]  # fmt: skip


@pytest.mark.parametrize("change", BAD, ids=str)
def test_a_bad_request_is_left_out_and_told(case, tmp_path, change):
    path = case.write(tmp_path / case.file, SENT, {1: change})
    found, recording = read(path, tmp_path / "r")
    assert recording.samples["prompt_tokens"].to_list() == [700, 700, 91]
    ((reason, count),) = found.skipped.counts.items()
    assert count == 1 and found.skipped.unit == case.unit
    assert found.skipped.first[reason] == case.first + 1
    (note,) = [note for note in found.notes if "skipped" in note]
    assert note.startswith(f"{case.file}: skipped: 1 ")
    assert f"(first: {case.unit} {case.first + 1})" in note


def test_what_was_left_out_is_in_the_summary(case, tmp_path):
    found, recording = read(case.write(tmp_path / case.file, SENT, {1: BAD[0]}), tmp_path / "r")
    (note,) = [note for note in found.notes if "skipped" in note]
    assert note in summarise(recording)[0].notes


def test_nothing_but_bad_requests(case, tmp_path):
    path = case.write(tmp_path / case.file, SENT, {i: {"prompt": -1} for i in range(4)})
    message = refused(path, tmp_path / "r")
    assert f"no request in it can be read as {case.name} (4 " in message
    assert f"(first: {case.unit} {case.first})" in message


def test_a_file_that_is_cut_off(case, tmp_path):
    whole = case.write(tmp_path / case.file, SENT).read_bytes()
    path = tmp_path / case.file
    path.write_bytes(whole[: int(len(whole) * 0.8)])
    if not case.rows:
        refused(path, tmp_path / "r")
    else:
        found, _ = read(path, tmp_path / "r")
        assert 0 < found.facts["requests"] < 4
    path.write_bytes(gzip.compress(whole * 1)[:-30])
    if not case.rows:
        refused(path, tmp_path / "g")
    else:
        found, _ = read(path, tmp_path / "g")
        assert any("the file is cut off (its gzip data end early)" in each for each in found.notes)


def test_the_order_of_arrivals_need_not_be_that_of_the_file(case, tmp_path):
    found, recording = read(case.write(tmp_path / case.file, SENT[::-1]), tmp_path / "r")
    assert found.facts["span_s"] == 3.5
    told = [note for note in found.notes if "arrive before the one above them" in note]
    if case.measured:  # clients write requests as they end
        assert not told
    else:
        assert (
            len(told) == 1
            and f"before the one above them: 2 (first: line {case.first + 1})" in told[0]
        )
    (run,) = summarise(recording)
    assert run.rows["tokens"].to_list()[-1] == 300


# Azure


def test_the_whole_azure_trace(tmp_path):
    path = WORKLOADS / "azure_2023_conv.csv"
    if not path.exists():
        pytest.skip(f"{path.name} is not in ../shared/data/workloads")
    found, recording = read(path, tmp_path / "r")
    assert (found.facts["requests"], found.skipped.counts) == (19_366, {})
    assert (found.facts["prompt_tokens"], found.facts["output_tokens"]) == (22_361_870, 4_088_665)
    first = recording.samples.row(0, named=True)
    assert first["arrival"] == 1_700_158_546_680_590_000  # 2023-11-16 18:15:46.6805900 UTC
    assert (first["prompt_tokens"], first["output_tokens"]) == (374, 44)
    assert found.facts["span_s"] == pytest.approx(3501.721937)


@pytest.mark.parametrize(
    ("time", "nanoseconds"),
    [
        ("2023-11-16 18:15:46.6805901", 1_700_158_546_680_590_100),
        ("2023-11-16 18:15:46", 1_700_158_546_000_000_000),
        ("2024-05-10 00:00:00.009930+00:00", 1_715_299_200_009_930_000),
        ("2024-05-10 02:00:00.009930+02:00", 1_715_299_200_009_930_000),
        ("2024-05-10T00:00:00.00993", 1_715_299_200_009_930_000),
        ("2024-05-10T00:00:00Z", 1_715_299_200_000_000_000),
        ("9999-01-01 00:00:00", None),
        ("1969-01-01 00:00:00", None),
        ("1700158546", None),
        ("", None),
    ],
)
def test_azure_times(tmp_path, time, nanoseconds):
    path = azure(tmp_path / "t.csv", SENT, {0: {"arrival": time}})
    found, recording = read(path, tmp_path / "r")
    arrivals = recording.samples["arrival"].to_list()
    if nanoseconds is None:
        (reason,) = found.skipped.counts
        assert "TIMESTAMP" in reason and len(arrivals) == 3
    else:
        assert arrivals[0] == nanoseconds


def test_azure_columns_in_another_order(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(
        'region,"GeneratedTokens",ContextTokens,TIMESTAMP\n'
        "\n"
        'eu, 44 ,"374",2023-11-16 18:15:46.68\n'
        "eu,1\n"
        "eu,44.0,374.0,2023-11-16 18:15:46.68\n"  # as pandas writes a column with a gap
        "eu,4.5,374,2023-11-16 18:15:46.68\n"
        'eu,44,"1,374",2023-11-16 18:15:46.68\n'  # read as another number of columns
    )
    found, recording = read(path, tmp_path / "r")
    rows = recording.samples.select("prompt_tokens", "output_tokens", "problem_id").rows()
    assert rows == [(374, 44, "3"), (374, 44, "5")]
    reasons = [
        "lines that have other than 4 columns",
        "lines whose GeneratedTokens is no whole number from 1 to 100,000,000",
    ]
    assert found.skipped.counts == dict(zip(reasons, (2, 1), strict=True))
    assert found.skipped.first == dict(zip(reasons, (4, 6), strict=True))


def test_azure_line_numbers_over_many_stretches(tmp_path, monkeypatch):
    from traces.foreign.requests import azure as reader

    monkeypatch.setattr(reader, "_STRETCH_BYTES", 100)
    monkeypatch.setattr("traces.files.PIECE_BYTES", 64)
    sent = [(float(i), 10 + i, 5, 0, 0) for i in range(40)]
    path = azure(tmp_path / "t.csv", sent, {17: {"prompt": -1}, 38: {"output": "x"}})
    found, recording = read(path, tmp_path / "r")
    assert sorted(found.skipped.first.values()) == [19, 40]
    assert recording.samples["prompt_tokens"].to_list() == [
        10 + i for i in range(40) if i not in (17, 38)
    ]
    assert recording.problems["problem_id"].to_list()[-1] == "41"


def test_the_last_line_of_a_damaged_trace_is_left_out(tmp_path):
    path = azure(tmp_path / "t.csv", [(float(i), 10 + i, 4044, 0, 0) for i in range(3)])
    packed = zlib.compressobj(wbits=31)
    cut = path.read_bytes()[:-3]  # 404 or less of 4,044
    path.write_bytes(packed.compress(cut) + packed.flush(zlib.Z_SYNC_FLUSH))
    found, recording = read(path, tmp_path / "r")
    assert recording.samples["output_tokens"].to_list() == [4044, 4044]
    assert any("the file is cut off" in each for each in found.notes)


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
    from traces.foreign.requests import azure as reader

    monkeypatch.setattr(reader, "LINE_BYTES", 1 << 19)
    path = tmp_path / "t.csv"
    path.write_bytes(b"TIMESTAMP,ContextTokens,GeneratedTokens" + b"," * (1 << 20))
    assert "line 1 has more than 0 MiB" in refused(path, tmp_path / "r")


# Mooncake


def test_the_mooncake_trace(tmp_path):
    path = WORKLOADS / "mooncake_conversation_3000.jsonl"
    if not path.exists():
        pytest.skip(f"{path.name} is not in ../shared/data/workloads")
    found, recording = read(path, tmp_path / "r")
    assert (found.facts["requests"], found.skipped.counts, found.facts["span_s"]) == (
        3000,
        {},
        987.0,
    )
    assert recording.manifest.workload.prompt_block_tokens == 512
    problems = recording.problems
    assert problems["arrival"].to_list()[0] == 0
    assert problems["prompt_blocks"].to_list()[1] == [0, *range(14, 28)]
    assert problems["prompt_blocks"].null_count() == 0


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        ([1, 2, 3], "not one per 512 tokens of prompt"),
        ([1, "2"], "no list of whole numbers"),
        ([1, 2.5], "no list of whole numbers"),
        ([1, 1 << 70], "no list of whole numbers"),
        ("1 2", "no list of whole numbers"),
        ([], None),
        (None, None),
    ],
)
def test_hash_ids_that_cannot_be_read(tmp_path, ids, reason):
    path = mooncake(tmp_path / "t.jsonl", SENT)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["hash_ids"] = ids
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, recording = read(path, tmp_path / "r")
    assert found.facts["requests"] == 4  # what cannot be read are the ids, not the request
    assert recording.problems["prompt_blocks"].null_count() == 1
    assert any("prompts share nothing: 1" in note for note in found.notes)
    told = list(found.skipped.counts)
    assert len(told) == (reason is not None) and all(reason in each for each in told)


@pytest.mark.parametrize(("first", "told"), [(1_795_000_000, 2), (27_482, 0)])
def test_seconds_since_1970_are_told(tmp_path, first, told):
    rows = [{"timestamp": first + i, "input_length": 40, "output_length": 3} for i in range(2)]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, _ = read(path, tmp_path / "r")
    assert any(f"seconds since 1970: {told}" in note for note in found.notes) == bool(told)


def test_blocks_of_another_size(tmp_path):
    path = tmp_path / "t.jsonl"
    row = {"timestamp": 0, "input_length": 40, "output_length": 3, "hash_ids": [1 << 63, 5, 6]}
    path.write_text(json.dumps(row))
    found, recording = read(path, tmp_path / "r")
    assert recording.manifest.workload.prompt_block_tokens is None
    assert any("--block-tokens" in note for note in found.notes)
    found, recording = read(path, tmp_path / "s", block_tokens=16)
    assert recording.manifest.workload.prompt_block_tokens == 16
    assert recording.problems["prompt_blocks"].to_list() == [[-(1 << 63), 5, 6]]


# vllm bench serve


def test_the_load_of_a_benchmark(tmp_path):
    def load(**head):
        path = vllm_bench(tmp_path / "b.json", SENT, **head)
        (tmp_path / "r" / "recording.json").unlink(missing_ok=True)
        found, recording = read(path, tmp_path / "r")
        manifest = recording.manifest
        late = any("were sent later than the rate says" in note for note in found.notes)
        return manifest.concurrency, manifest.rate_per_s, late

    assert load() == (None, None, False)
    assert load(max_concurrency=3) == (3, None, False)
    assert load(request_rate=2.5) == (None, 2.5, False)
    assert load(request_rate=2.5, max_concurrency=3) == (None, 2.5, True)
    assert load(ramp_up_strategy="linear", max_concurrency=3) == (None, None, True)
    assert load(ramp_up_strategy="linear") == (None, None, False)


def test_failed_requests_are_no_measurement(tmp_path):
    failed = {"ttft": 0.0, "latency": 0.0, "output": 0, "error": "Traceback: secret"}
    found, recording = read(vllm_bench(tmp_path / "b.json", SENT, {2: failed}), tmp_path / "r")
    assert (found.facts["requests"], found.facts["measured"], found.facts["failed"]) == (4, 3, 1)
    assert "requests that failed or were cut off: 1" in found.notes
    (run,) = summarise(recording)
    assert (run.problems, run.problems_failed, run.problems_in_flight) == (3, 1, 0)
    assert run.throughput_tokens_per_s.value == pytest.approx((44 + 9 + 300) / 7.5)
    assert recording.samples["error"].to_list()[2] == "the request failed"
    never = failed | {"arrival": 0.0}
    found, _ = read(vllm_bench(tmp_path / "c.json", SENT, {2: never}), tmp_path / "s")
    assert found.skipped.counts == {"requests without a start time": 1}


def test_a_result_of_an_older_version_has_no_latencies(tmp_path):
    path = vllm_bench(tmp_path / "b.json", SENT)
    document = json.loads(path.read_text())
    del document["latencies"]
    document["itls"] = [[0.25, 0.2], [0.1, 0.04], [], [3.95]]
    path.write_text(json.dumps(document))
    _, recording = read(path, tmp_path / "r")
    ends = [e - a for e, a in recording.samples.select("end", "arrival").iter_rows()]
    assert ends == pytest.approx([each[4] * 1e9 for each in SENT], abs=2)
    document["itls"] = None
    path.write_text(json.dumps(document))
    assert "whose ttft and latency are no ascending times" in refused(path, tmp_path / "s")


def test_times_between_tokens_are_of_requests_that_ended(tmp_path):
    failed = {"error": "Traceback: secret"}, {"output": 0}
    path = vllm_bench(tmp_path / "b.json", SENT, dict(enumerate(failed)))
    gaps = {"itls": [[9.0], [9.0], [], [0.1, 0.3]]}
    path.write_text(json.dumps(json.loads(path.read_text()) | gaps))
    _, recording = read(path, tmp_path / "r")
    assert recording.manifest.provenance["imported"]["itl_s"]["mean"] == pytest.approx(0.2)


def test_results_that_cannot_be_read(tmp_path):
    path = vllm_bench(tmp_path / "b.json", SENT)
    whole = json.loads(path.read_text())
    older = {name: value for name, value in whole.items() if name != "start_times"}
    path.write_text(json.dumps(older | {"request_rate": "inf", "ramp_up_strategy": "linear"}))
    assert "no start_times, and its requests were sent at a rate" in refused(path, tmp_path / "r")
    plain = {name: value for name, value in whole.items() if not isinstance(value, list)}
    path.write_text(json.dumps(plain))
    assert "Run vllm bench serve with --save-result --save-detailed" in refused(
        path, tmp_path / "r"
    )
    path.write_text(json.dumps(whole | {"ttfts": [0.1]}))
    message = "its lists differ in length (4 input_lens, 4 output_lens, 1 ttfts, 4 start_times)"
    assert message in refused(path, tmp_path / "r")
    path.write_text(json.dumps(whole | {"ttfts": 3}))
    assert "not the whole JSON of a result" in refused(path, tmp_path / "r")
    back = {1: {"latency": 0.01}, 2: {"ttft": -1.0}}
    found, _ = read(vllm_bench(path, SENT, back), tmp_path / "t")
    assert found.skipped.counts == {"requests whose ttft and latency are no ascending times": 2}


def test_one_of_several_results_is_chosen(tmp_path):
    path = vllm_bench(tmp_path / "b.json", SENT)
    one = path.read_text()
    two = vllm_bench(path, SENT[:2]).read_text()
    path.write_text(f"{one}\n{two}")
    with pytest.raises(UsageError, match=r"holds 2 results. Choose one with --run N"):
        read(path, tmp_path / "r")
    assert read(path, tmp_path / "r", run=2)[0].facts["requests"] == 2
    with pytest.raises(UsageError, match=r"--run 3: .* holds 2 results"):
        read(path, tmp_path / "s", run=3)
    path.write_text(json.dumps(json.loads(one), indent=2))
    assert read(path, tmp_path / "p")[0].facts["requests"] == 4


# aiperf and guidellm


def test_the_warm_up_and_failures_of_aiperf(tmp_path):
    spoil = {0: {"phase": "warmup"}, 1: {"error": {"message": "secret"}}}
    found, recording = read(aiperf(tmp_path / "a.jsonl", SENT, spoil), tmp_path / "r")
    assert found.skipped.counts == {"requests of the warm-up": 1}
    assert (found.facts["requests"], found.facts["measured"], found.facts["failed"]) == (3, 2, 1)
    assert recording.samples["error"].to_list() == ["the request failed", None, None]


def test_the_load_of_guidellm(tmp_path):
    def load(strategy):
        path = guidellm(tmp_path / "g.json", SENT, strategy=strategy)
        (tmp_path / "r" / "recording.json").unlink(missing_ok=True)
        manifest = read(path, tmp_path / "r")[1].manifest
        return manifest.concurrency, manifest.rate_per_s

    assert load({"type_": "synchronous"}) == (1, None)
    assert load({"type_": "concurrent", "streams": 4}) == (4, None)
    assert load({"type_": "throughput", "max_concurrency": None}) == (None, None)
    assert load({"type_": "poisson", "rate": 2.5}) == (None, 2.5)


def test_the_tokens_of_images_are_prompt(tmp_path):
    """guidellm counts them beside those of text, and its prompt_tokens are the sum."""
    path = guidellm(tmp_path / "g.json", SENT)
    report = json.loads(path.read_text())
    stats = report["benchmarks"][0]["requests"]["successful"]
    for each in stats:
        each["prompt_tokens"] = each["input_metrics"]["text_tokens"] + 576
    path.write_text(json.dumps(report))
    found, _ = read(path, tmp_path / "r")
    assert found.facts["prompt_tokens"] == sum(each[1] + 576 for each in SENT)


def test_one_of_several_benchmarks_is_chosen(tmp_path):
    path = tmp_path / "g.json"
    path.write_text(json.dumps(guidellm_report([(SENT, None, None), (SENT[:1], None, None)])))
    with pytest.raises(UsageError, match=r"holds 2 benchmarks. Choose one with --run N"):
        read(path, tmp_path / "r")
    assert read(path, tmp_path / "r", run=2)[0].facts["requests"] == 1
    with pytest.raises(UsageError, match=r"--run 3: .* holds 2 benchmarks"):
        read(path, tmp_path / "s", run=3)


def test_what_guidellm_cut_off(tmp_path):
    spoil = {1: {"group": "incomplete"}, 2: {"group": "errored"}}
    found, recording = read(guidellm(tmp_path / "g.json", SENT, spoil), tmp_path / "r")
    assert (found.facts["requests"], found.facts["measured"], found.facts["failed"]) == (4, 2, 2)
    errors = recording.samples["error"].to_list()
    assert errors == [None, None, "the request failed", "cut off by the end of the benchmark"]


def test_what_guidellm_does_not_count(tmp_path):
    window = {"measure_start_time": 1.7e9 + 0.48, "measure_end_time": 1.7e9 + 3.0}
    path = guidellm(tmp_path / "g.json", SENT, scheduler_metrics=window)
    found, recording = read(path, tmp_path / "r")
    # the second and third end at 0.45 and 0.32 s, the last begins at 3.5 s
    assert found.skipped.counts == {"requests of the warm-up or the cool-down": 3}
    assert recording.samples["output_tokens"].to_list() == [44]


def test_a_report_of_drawn_requests_is_refused(tmp_path):
    spoil = {3: {"group": "errored"}}
    whole = {"successful_requests": 3, "errored_requests": 1}
    assert read(guidellm(tmp_path / "g", SENT, spoil, scheduler_state=whole), tmp_path / "r")
    for name, kept in whole.items():
        path = guidellm(tmp_path / "g", SENT, spoil, scheduler_state=whole | {name: 1000})
        assert f"keeps {kept} of 1,000 requests, drawn at random" in refused(path, tmp_path / "s")


# What the load generators themselves wrote (tests/data/foreign/README.md).


def test_a_real_report_of_guidellm(tmp_path):
    path = DATA / "requests_guidellm.json"
    found, recording = read(path, tmp_path / "r")
    assert (found.facts["requests"], found.facts["measured"], found.skipped.counts) == (20, 20, {})
    assert recording.manifest.concurrency == 2
    (run,) = summarise(recording)
    assert run.engine.model == "demo/s"
    (benchmark,) = json.loads(path.read_text())["benchmarks"]
    stats = benchmark["requests"]["successful"]
    latency = sum(each["request_latency"] for each in stats) / 20
    assert run.latency_s["mean"].value == pytest.approx(latency, abs=1e-6)
    ttft = sorted(each["time_to_first_token_ms"] / 1e3 for each in stats)
    assert run.ttft_s["p50"].value == pytest.approx((ttft[9] + ttft[10]) / 2, abs=1e-6)
    tokens = sum(each["output_metrics"]["text_tokens"] for each in stats)
    assert found.facts["output_tokens"] == tokens
    assert recording.samples["cached_tokens"].to_list() == [0] * 20


def test_a_real_result_of_vllm(tmp_path):
    path = DATA / "requests_vllm_bench.json"
    told = json.loads(path.read_text())
    found, recording = read(path, tmp_path / "r")
    assert (found.facts["requests"], found.facts["measured"], found.skipped.counts) == (20, 20, {})
    assert found.facts["prompt_tokens"] == told["total_input_tokens"]
    assert found.facts["output_tokens"] == told["total_output_tokens"]
    assert (recording.manifest.concurrency, recording.manifest.rate_per_s) == (None, 8.0)
    (run,) = summarise(recording)
    for spread, name in ((run.ttft_s, "ttft"), (run.tpot_s, "tpot")):
        assert spread["mean"].value == pytest.approx(told[f"mean_{name}_ms"] / 1e3, rel=1e-6)
        assert spread["p50"].value == pytest.approx(told[f"median_{name}_ms"] / 1e3, rel=1e-6)


def test_real_records_of_aiperf(tmp_path):
    found, recording = read(DATA / "requests_aiperf.jsonl", tmp_path / "r")
    assert (found.facts["requests"], found.facts["measured"]) == (20, 20)
    assert found.skipped.counts == {"requests of the warm-up": 2}
    assert (found.facts["prompt_tokens"], found.facts["output_tokens"]) == (244, 600)
    (run,) = summarise(recording)
    # what aiperf's own summary of the run says (profile_export_aiperf.json)
    assert run.latency_s["mean"].value == pytest.approx(1.7088481095, abs=1e-6)
    assert run.ttft_s["mean"].value == pytest.approx(0.24441026905, abs=1e-6)
    assert run.ttft_s["p50"].value == pytest.approx(0.226030561, abs=1e-6)


@pytest.mark.parametrize("mark", ["endpoint_type", "model_id"])
def test_requests_kept_in_flight_start_when_one_before_has_ended(tmp_path, mark):
    path = vllm_bench(tmp_path / "bench.json", SENT, max_concurrency=2)
    document = json.loads(path.read_text())
    del document["start_times"], document["endpoint_type"]
    if mark == "model_id":  # SGLang's, which appends a line
        for name in ("model_id", "tokenizer_id", "num_prompts", "latencies"):
            del document[name]
        names = ("sharegpt_output_len", "random_range_ratio", "total_output_tokens")
        gaps = [[each[4] - each[3]] for each in SENT]
        document = dict.fromkeys(names) | document | {"itls": gaps, "request_rate": float("inf")}
    path.write_text(json.dumps(document) + "\n")
    found, recording = read(path, tmp_path / "r")
    assert found.facts["measured"] == 4
    assert recording.manifest.concurrency == 2
    # Two at once: 0.5 s beside 0.2 and 0.07 s, then the last one after 0.27 s.
    starts = since_first(recording.samples["arrival"].to_list())
    assert starts == pytest.approx([0, 0, 0.2e9, 0.27e9], abs=300)
    assert any("does not say when requests were sent" in note for note in found.notes)


def test_starts_that_a_rate_gave_are_not_made_up(tmp_path):
    path = vllm_bench(tmp_path / "bench.json", SENT, request_rate=4.0)
    document = json.loads(path.read_text())
    del document["start_times"]
    path.write_text(json.dumps(document))
    told = refused(path, tmp_path / "r")
    assert "no start_times, and its requests were sent at a rate" in told and "newer vLLM" in told
    for name in ("model_id", "tokenizer_id", "num_prompts", "endpoint_type"):
        del document[name]
    names = ("sharegpt_output_len", "random_range_ratio", "total_output_tokens")
    path.write_text(json.dumps(dict.fromkeys(names) | document) + "\n")
    told = refused(path, tmp_path / "r")
    assert "at a rate" in told and "--max-concurrency" in told and "vLLM" not in told


def test_a_report_of_an_older_guidellm(tmp_path):
    stats = [
        {
            "prompt_tokens": prompt, "output_tokens": output, "start_time": 1.7e9 + arrival,
            "first_token_time": 1.7e9 + arrival + ttft, "end_time": 1.7e9 + arrival + latency,
        }
        for arrival, prompt, output, ttft, latency in SENT
    ]  # fmt: skip
    benchmark = {
        "type_": "generative_benchmark",
        "args": {"strategy": {"type_": "concurrent", "streams": 3}},
        "worker": {"backend_model": "m"},
        "requests": {"successful": stats, "incomplete": [], "errored": []},
        "total_count": {"successful": 4, "incomplete": 0, "errored": 0, "total": 4},
    }
    path = tmp_path / "benchmarks.json"
    path.write_text(json.dumps({"benchmarks": [benchmark]}))
    found, recording = read(path, tmp_path / "r")
    assert (found.facts["format"], found.facts["measured"], found.skipped.counts) == (
        "guidellm report",
        4,
        {},
    )
    assert recording.manifest.concurrency == 3
    assert [each.model for each in recording.manifest.engines.values()] == ["m"]
    took = (recording.samples["end"] - recording.samples["arrival"]).to_list()
    assert took == pytest.approx([each[4] * 1e9 for each in SENT], abs=300)
    for group in ("successful", "errored"):
        drawn = benchmark | {"total_count": benchmark["total_count"] | {group: 1000}}
        path.write_text(json.dumps({"benchmarks": [drawn]}))
        told = refused(path, tmp_path / "s")
        assert "of 1,000 requests, drawn at random" in told and "--output-sampling" in told
