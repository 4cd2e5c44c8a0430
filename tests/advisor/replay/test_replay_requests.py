"""Requests that others traced or measured, imported and replayed on operator tables."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from advisor.what_if.predict import predict
from advisor.what_if.question import Question
from benchmarks.made.foreign_files import REQUEST_CASES, azure, mooncake, vllm_bench
from tests.advisor.step_time.operators.operator_tables import write_tables
from traces.errors import RecordingError
from traces.foreign.requests.importer import import_requests
from traces.recording.reader import Recording
from traces.summary.run import summarise
from tui.text.replay import replay_json, replay_lines

SENT = [(i * 0.01, 20 + i, 3 + i % 4, 0.004, 0.01 + i * 0.001) for i in range(12)]
ENGINE = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "block_size": 16, "enforce_eager": True}
LAYERS = 4
FOREIGN = Path(__file__).parents[2] / "data" / "foreign"
DATA = Path(__file__).parents[4] / "shared" / "data"


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    return write_tables(tmp_path_factory.mktemp("tables") / "gpu")


def question_of(recording, tables, **changes):
    (run,) = summarise(recording)
    engine = dataclasses.replace(run.engine, **ENGINE)
    question = Question(
        engine=engine, policy=run.policy, operators=tables, num_hidden_layers=LAYERS, **changes
    )
    return run, question


def replayed(path, folder, tables, **changes):
    import_requests(path, folder)
    recording = Recording.open(folder)
    run, question = question_of(recording, tables, **changes)
    return predict(recording, run, question), question


@pytest.mark.slow
@pytest.mark.parametrize("case", REQUEST_CASES, ids=lambda case: case.file)
def test_imported_requests_are_replayed_at_their_arrivals(case, tmp_path, tables):
    path = case.write(tmp_path / case.file, SENT)
    found, question = replayed(path, tmp_path / "r", tables)
    assert found.replayed is None
    samples = found.tables["samples"].sort("arrival")
    arrivals = (samples["arrival"] - samples["arrival"][0]).to_numpy() / 1e9
    np.testing.assert_allclose(arrivals, [each[0] for each in SENT], atol=3e-7)
    assert samples["output_tokens"].to_list() == [each[2] for each in SENT]
    assert samples["prompt_tokens"].to_list() == [each[1] for each in SENT]
    assert (found.recorded.latency_s["mean"] is not None) == case.measured
    predicted = found.predicted.latency_s["mean"]
    assert predicted.value > 0 and predicted.low is None
    assert found.predicted.accuracy is None
    text = list(replay_lines(found, question))
    assert all(len(line) <= 80 for line in text)
    assert (
        "recorded  m, settings not known" in text
        or "recorded  imported, settings not known" in text
    )
    assert not any("change:" in line for line in text)
    document = replay_json(found)
    json.dumps(document, allow_nan=False)
    assert document["replayed"] is None
    assert document["changes"]["latency_s.mean"]["relative"] is None
    told = " ".join(found.notes)
    assert "no step was recorded, so that the run cannot be replayed as it was" in told
    assert "the engine in this process" not in told


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vllm_bench.json", "aiperf.jsonl", "guidellm.json"])
def test_what_load_generators_wrote_is_replayed(name, tmp_path, tables):
    found, _ = replayed(FOREIGN / f"requests_{name}", tmp_path / "r", tables)
    assert found.predicted.problems == found.recorded.problems == 20
    tokens = (found.predicted.tokens_per_problem, found.recorded.tokens_per_problem)
    assert tokens[0].value == pytest.approx(tokens[1].value)
    in_flight = {"guidellm.json": 2}.get(name)
    assert found.manifest.concurrency == in_flight


def test_without_tables_there_is_nothing_to_learn_from(tmp_path, tables):
    import_requests(azure(tmp_path / "t.csv", SENT), tmp_path / "r")
    recording = Recording.open(tmp_path / "r")
    run, question = question_of(recording, tables)
    with pytest.raises(RecordingError, match=r"r: no engine step to learn from. .*--operators"):
        predict(recording, run, dataclasses.replace(question, operators=None))


@pytest.mark.slow
def test_prompts_that_begin_alike_are_shared(tmp_path, tables):
    sent = [(float(i), 600, 2, 0, 0) for i in range(4)]
    found, _ = replayed(mooncake(tmp_path / "t.jsonl", sent), tmp_path / "r", tables)
    samples = found.tables["samples"].sort("arrival")
    assert samples["cached_tokens"].to_list() == [0, 592, 592, 592]  # 37 blocks of 16 of 599 tokens
    assert any("their blocks of 512 tokens" in note for note in found.notes)
    plain, _ = replayed(azure(tmp_path / "t.csv", sent), tmp_path / "s", tables)
    assert plain.tables["samples"]["cached_tokens"].to_list() == [0] * 4
    assert any("no prefix is shared" in note for note in plain.notes)
    first = (found.predicted.ttft_s["mean"].value, plain.predicted.ttft_s["mean"].value)
    assert first[0] < first[1]


@pytest.mark.slow
def test_the_mooncake_trace_shares_what_its_ids_say(tmp_path):
    path, tables = DATA / "workloads" / "mooncake_conversation_3000.jsonl", DATA / "ops"
    if not path.exists() or not tables.exists():
        pytest.skip("../shared/data has no Mooncake trace or no operator tables")
    import_requests(path, tmp_path / "r")
    recording = Recording.open(tmp_path / "r")
    run, question = question_of(recording, tables / "RTXPRO6000_Llama-3.1-8B_tp1")
    engine = dataclasses.replace(question.engine, max_num_seqs=256, max_num_batched_tokens=8192)
    found = predict(recording, run, dataclasses.replace(question, engine=engine))
    seen, counted = set(), 0
    for line in path.read_text().splitlines():  # with a cache without limit
        row = json.loads(line)
        shared, whole = 0, True
        for place in range(len(row["hash_ids"])):
            end = min((place + 1) * 512, row["input_length"])
            prefix = (*row["hash_ids"][: place + 1], end)
            whole = whole and prefix in seen
            shared = end if whole else shared
            seen.add(prefix)
        counted += min(shared, row["input_length"] - 1) // 16 * 16
    cached = found.tables["samples"]["cached_tokens"].sum()
    assert cached == pytest.approx(counted, rel=1e-4) and counted > 12_000_000


def test_a_closed_loop_stays_one(tmp_path, tables):
    path = vllm_bench(tmp_path / "b.json", SENT, max_concurrency=1)
    found, _ = replayed(path, tmp_path / "r", tables)
    samples = found.tables["samples"].sort("arrival")
    ends = samples["end"].to_list()
    assert samples["arrival"].to_list()[1:] == ends[:-1]  # the next is sent when one has ended


def test_failed_requests_are_not_replayed(tmp_path, tables):
    failed = {"ttft": 0.0, "latency": 0.0, "output": 0, "error": "secret"}
    path = vllm_bench(tmp_path / "b.json", SENT, {3: failed})
    found, _ = replayed(path, tmp_path / "r", tables)
    assert found.tables["samples"].height == len(SENT) - 1


@pytest.mark.slow
def test_the_prediction_is_exported_as_a_trace(tmp_path, tables):
    from traces.foreign.mooncake import export_requests

    found, _ = replayed(azure(tmp_path / "t.csv", SENT), tmp_path / "r", tables)
    found.write(tmp_path / "p")
    export_requests(Recording.open(tmp_path / "p"), tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in Path(tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["timestamp"] for row in rows] == pytest.approx([each[0] * 1e3 for each in SENT])
    assert [row["input_length"] for row in rows] == [each[1] for each in SENT]
