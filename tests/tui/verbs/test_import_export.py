"""`ttscope import` and `ttscope export`: what they print, and one line for what they refuse."""

import json
from pathlib import Path

import pytest

from benchmarks.made.foreign_files import azure, mooncake, vllm_bench
from benchmarks.made.kineto_files import cpu_events, device_events, document, kernel, write
from tests.tui.model_config import llama_config
from traces.recording.reader import Recording

FOREIGN = Path(__file__).parents[2] / "data" / "foreign"
SUMS, LOG = FOREIGN / "samples_toy_sums_self.jsonl", FOREIGN / "inspect_sums.eval"
SENT = [(0.0, 700, 4, 0.05, 0.5), (0.25, 1024, 9, 0.06, 0.2), (2.0, 91, 1, 0.07, 0.07)]


@pytest.fixture
def trace(tmp_path):
    return write(tmp_path / "trace.json.gz", document(device_events()))


def test_import_show_and_export(run, trace, tmp_path):
    out = run.clean("import", trace, "-o", "r")
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
    out = run.clean("show", "r")
    assert max(map(len, out.splitlines())) <= 80
    for wanted in ("imported from profiler traces: trace.json.gz", "gemm", "all_reduce", "idle"):
        assert wanted in out, wanted
    assert "accuracy" not in out
    _, out, _ = run("show", "r", "--json")
    (shown,) = json.loads(out)["runs"]
    assert shown["config"]["policy"] is None
    assert shown["device_time"]["idle_s"] == pytest.approx(60e-6)
    out = run.ok("export", "r", "-o", "out.json.gz")
    assert "2 steps" in out
    assert (tmp_path / "out.json.gz").stat().st_size
    _, out, _ = run("export", "r", "-o", "out.json", "--json")
    assert json.loads(out)["events"]["steps"] == 2
    assert json.loads((tmp_path / "out.json").read_text())["traceEvents"]


def test_import_json(run, trace):
    out = run.clean("import", trace, "-o", "r", "--json")
    document_ = json.loads(out)
    (file,) = document_["files"]
    assert (file["rank"], file["world_size"], file["steps"], file["kernels"]) == (0, 2, 2, 7)
    assert document_["collectives"][0]["name"] == "all_reduce"


def test_two_imported_recordings_are_shown_one_after_the_other(run, trace, tmp_path):
    cpu = write(tmp_path / "cpu.json", document(cpu_events()))
    run("import", trace, "-o", "a")
    run("import", cpu, "-o", "b")
    out = run.ok("show", "a", "b")
    assert "trace.json.gz" in out
    assert "cpu.json" in out


def test_what_was_skipped_is_one_line(run, tmp_path):
    bad = [{**kernel("gemm", 1, 2, 1), "dur": -1}] * 3
    path = write(tmp_path / "t.json", document([*device_events(), *bad]))
    out = run.clean("import", path, "-o", "r")
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
        (["import", "trace.json.gz", "-o", "r", "--score", "f1"], 2, "--score is for samples"),
        (["import", "trace.json.gz", "-o", "r", "--verifier", "x"], 2, "--verifier is for samples"),
        (["import", "t.csv", "t.csv", "-o", "r"], 2, "one file of requests at a time"),
        (["import", "t.csv", "-o", "r", "--score", "f1"], 2, "--score is for samples"),
        (["import", "trace.json.gz", "-o", "r", "--run", "1"], 2, "--run is for requests"),
        (["import", "trace.json.gz", "-o", "r", "--block-tokens", "16"], 2, "is for requests"),
        (["import", "t.csv", "-o", "r", "--block-tokens", "0"], 2, "must be at least 1, not 0"),
        (["import", "b.json", "-o", "r", "--run", "3"], 2, "--run 3: b.json holds 1 results"),
        (["import", "head.csv", "-o", "r"], 1, "no request in it can be read"),
        (["import", "own.csv", "-o", "r"], 1, "the columns when, n_in, n_out. Requests have TIME"),
        (["import", SUMS, "-o", "r"], 2, "Give --verifier numeric"),
        (["import", SUMS, "-o", "r", "--verifier", "guess"], 2, "no verifier 'guess'"),
        (["import", LOG, "-o", "r", "--score", "f1"], 2, "no such scorer. Choose one of match"),
        (["import", LOG, "-o", "r", "--limit", "1e-6"], 1, "Raise --limit"),
        (["import", LOG, SUMS, "-o", "r"], 2, "different formats"),
        (["import", FOREIGN / "README.md", "-o", "r"], 1, "not a PyTorch profiler trace (it "
         "has no traceEvents), nor samples or requests in a format that ttscope knows"),
        (["import", FOREIGN / "README.md", "--model", "m", "-o", "r"], 1, "it has no traceEvents"),
        (["import", "trace.json.gz", "--model", "m", "-o", "r"], 2, "--model is for samples"),
        (["import", "t.csv", "--max-tokens", "9", "-o", "r"], 2, "--max-tokens is for samples"),
        (["import", "t.csv", "--top-p", "1.5", "-o", "r"], 2, "--top-p 1.5: wants a number"),
        (["import", "trace.json.gz", "--top-p", ".9", "-o", "r"], 2, "for samples or requests"),
        (["export", "r", "-o", "t.jsonl", "--format", "csv"], 2, "one of perfetto, mooncake"),
        (["export", "r", "-o", "t.json", "--format", "mooncake"], 2, "name a .jsonl file"),
    ],
)  # fmt: skip
def test_refusals(run, trace, tmp_path, arguments, code, message):
    azure(tmp_path / "t.csv", SENT)
    azure(tmp_path / "head.csv", [])
    (tmp_path / "own.csv").write_text("when,n_in,n_out\n2026-11-20T09:00:00,660,550\n")
    vllm_bench(tmp_path / "b.json", SENT)
    assert message in run.refused(*arguments, code=code)
    assert not Path("r", "recording.json").exists()


def test_a_folder_that_holds_a_recording_is_kept(run, trace):
    assert run("import", trace, "-o", "r")[0] == 0
    code, _, err = run("import", trace, "-o", "r")
    assert (code, "already holds a recording" in err) == (2, True)


def test_outcomes_are_imported_and_shown(run, tmp_path):
    good = {"problem_id": "p", "sample_index": 0, "correct": True, "answer": "secret"}
    rows = [json.dumps(good), "{broken", json.dumps(good | {"sample_index": 1, "correct": False})]
    path = tmp_path / "o.jsonl"
    path.write_text("\n".join(rows))
    out = run.clean("import", path, "-o", "r")
    assert max(map(len, out.splitlines())) <= 80
    assert out.startswith("outcomes JSONL: 2 samples of 1 problem\n")
    assert "! o.jsonl: skipped: 1 line that is not JSON (first: line 2)" in out
    out = run.clean("show", "r")
    assert max(map(len, out.splitlines())) <= 80
    assert "temperature -" in out and "engine    imported, settings not known" in out
    code, out, _ = run("show", "r", "--json")
    assert code == 0 and json.loads(out)["runs"][0]["latency_s"]["mean"] is None
    code, out, _ = run("import", path, "-o", "s", "--json", "--record-text")
    document_ = json.loads(out)
    assert document_["files"][0]["skipped"] == {"lines that are not JSON": 1}
    counts = [document_[name] for name in ("problems", "samples", "answered", "judged")]
    assert counts == [1, 2, 2, 2]


def test_completions_are_judged_anew(run):
    out = run.clean("import", SUMS, "-o", "r", "--verifier", "numeric")
    assert "20 samples of 5 problems" in out
    assert "judged by the verifier numeric" in out
    code, out, _ = run("import", LOG, "-o", "s", "--score", "includes")
    assert code == 0 and "judged by includes" in " ".join(out.split())


def test_requests_are_imported_shown_and_exported(run, tmp_path):
    path = mooncake(tmp_path / "t.jsonl", SENT, {1: {"output": -1}})
    out = run.clean("import", path, "-o", "r")
    assert max(map(len, out.splitlines())) <= 80
    assert out.startswith("Mooncake trace: 2 requests in 2.00 s\n  tokens of prompt     791\n")
    assert "! t.jsonl: skipped: 1 line whose output_length is no whole number from 1" in out
    assert out.endswith("kept in r\n\nnext      ttscope show r\n")
    out = run.clean("show", "r")
    assert max(map(len, out.splitlines())) <= 80
    assert "engine    imported, settings not known" in out and "problems  2 completed of 2" in out
    code, out, _ = run("export", "r", "-o", "out.jsonl", "--format", "mooncake")
    assert (code, out.splitlines()[0][:24]) == (0, "wrote 2 requests, whose ")
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2
    code, out, _ = run("export", "r", "-o", "out.jsonl", "--format", "mooncake", "--json")
    assert json.loads(out) == {"trace": "out.jsonl", "requests": 2, "blocks": 3, "notes": []}
    code, out, _ = run("export", "r", "-o", "out.json")
    assert (code, out) == (
        0, "wrote 2 problems, 2 samples to out.json. Open it in https://ui.perfetto.dev\n"
    )  # fmt: skip


def test_how_requests_were_sampled_can_be_said(run, tmp_path):
    azure(tmp_path / "t.csv", SENT)
    run.clean("import", "t.csv", "-o", "r", "--top-p", "0.95", "--temperature", "0.6")
    (policy,) = Recording.open(tmp_path / "r").manifest.policies.values()
    assert (policy.temperature, policy.top_p) == (0.6, 0.95)
    assert "temperature 0.6, top_p 0.95" in run.clean("show", "r")


def test_requests_as_json(run, tmp_path):
    path = vllm_bench(tmp_path / "b.json", SENT)
    out = run.clean("import", path, "-o", "r", "--json")
    document_ = json.loads(out)
    assert document_["format"] == "vllm bench serve result"
    counts = [document_[name] for name in ("requests", "measured", "failed", "span_s")]
    assert counts == [3, 3, 0, 2.0]
    assert (document_["prompt_tokens"], document_["output_tokens"]) == (1815, 14)


@pytest.mark.slow
def test_a_trace_is_replayed_with_the_defaults_of_a_server(run, tmp_path):
    from tests.advisor.step_time.operators.operator_tables import write_tables

    write_tables(tmp_path / "gpu")
    run("import", azure(tmp_path / "t.csv", [(i, 20, 5, 0, 0) for i in range(5)]), "-o", "r")
    code, out, err = run("replay", "r")
    assert (code, err.count("\n")) == (1, 1)
    assert "no engine step to learn from" in err and "--operators" in err
    options = ("--operators", "gpu", "--num-hidden-layers", 4)
    code, out, err = run("replay", "r", *options, "--set", "engine.num_gpu_blocks=abc")
    assert (code, out) == (2, "") and "num_gpu_blocks=abc: give a whole number" in err
    out = run.clean("replay", "r", *options, "--set", "engine.max_num_seqs=8", "--explain")
    assert max(map(len, out.splitlines())) <= 80
    told = " ".join(out.split())
    for wanted in (
        "engine.max_num_seqs - -> 8",
        "engine.max_num_batched_tokens - -> 2048",
        "not set, so the defaults of vLLM 0.32 hold, of a server on NVIDIA Test with a memory that "
        "is not known, taken as under 70 GiB:",
        "engine.enable_prefix_caching - -> true",
        "no step was recorded, so that the run cannot be replayed as it was",
    ):
        assert wanted in told, wanted
    assert "tokens/problem 5.00 - 5.00" in told
    out = run.clean("replay", "r", *options, "--explain", "-o", "p")
    assert run("show", "p")[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 3])
def test_votes_of_answers_that_are_not_told_are_not_known(run, tmp_path, n):
    rows = [
        {"problem_id": name, "sample_index": i, "correct": i < 2, "output_tokens": 10}
        for name in "ab"
        for i in range(n)
    ]
    (tmp_path / "o.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("import", "o.jsonl", "-o", "r")[0] == 0
    right = pytest.approx(1 if n == 1 else 2 / 3)
    for options in ((), ("--policies",)) if n > 1 else (("--policies",),):
        out = run.ok("show", "r", *options, "--json")
        (shown,) = json.loads(out)["runs"]
        known = {(p["method"], p["n"]): p["accuracy"]["value"] for p in shown["policies"]}
        assert {k for method, k in known if method == "majority"} == {1}
        assert known["majority", 1] == known["pass_at_k", 1] == right
        assert {method for method, _ in known} == {"majority", "pass_at_k"}
    assert (shown["accuracy"] is None) == (n > 1)
    _, out, _ = run("show", "r", "--policies")
    assert ("right samples come without their answers" in out) == (n > 1)
    assert "0.000 " not in out.replace("[0.000", "")


def test_numbers_that_are_none_are_null_and_counted(run, tmp_path):
    values = ("1e400", "NaN", "-Infinity", "9" * 400, "-0.5")
    rows = [
        f'{{"problem_id": "a", "sample_index": {i}, "correct": true, "answer": "1", '
        f'"logprob_mean": {value}}}'
        for i, value in enumerate(values)
    ]
    (tmp_path / "o.jsonl").write_text("\n".join(rows))
    out = run.ok("import", "o.jsonl", "-o", "r", "--json")
    document_ = json.loads(out)
    assert document_["samples"] == 5
    (file,) = document_["files"]
    assert file["skipped"] == {
        "values that are NaN or infinite": 3,
        "values of logprob_mean that are no number": 1,
    }
    found = Recording.open(tmp_path / "r").samples["logprob_mean"].to_list()
    assert found == [None, None, None, None, -0.5]


def test_an_answer_marked_both_ways_is_warned_of(run, tmp_path):
    rows = [
        {"problem_id": name, "sample_index": i, "correct": right, "answer": "7"}
        for name, marks in (("a", (True, False, None)), ("b", (True, True, None)))
        for i, right in enumerate(marks)
    ]
    (tmp_path / "o.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, out, _ = run("import", "o.jsonl", "-o", "r")
    assert "both right and wrong within one problem: 1." in " ".join(out.split())


@pytest.mark.slow
def test_a_folder_of_forward_passes(run, tmp_path):
    code, out, _ = run("import", FOREIGN, "-o", tmp_path / "rec", "--json")
    told = json.loads(out)
    assert code == 0 and told["steps"] == 429
    assert [each["sampled"] for each in told["engines"]] == [False, True]
    code, out, _ = run("show", tmp_path / "rec")
    assert code == 0 and out.count("step time") == 2 and "sampled (DYN_FPM_MODE)" in out
    replay = ["replay", tmp_path / "rec", "--set", "engine.max_num_seqs=4"]
    assert "choose one with --run: 1 " in run.refused(*replay, code=2)
    told = run.refused(*replay, "--run", 2, code=2)
    assert "names no requests, and none can be inferred: its steps" in told
    assert "ttscope attach URL --fpm" in told
    assert "holds no files *fpm*.jsonl.gz" in run.refused(
        "import", tmp_path, "-o", tmp_path / "none", code=2
    )


@pytest.mark.slow
def test_forward_passes_alone_are_replayed_and_advised_on(run, tmp_path):
    passes = sorted(FOREIGN.glob("fpm_dynamo.4192.*"))
    run.ok("import", *passes, "--model", "demo", "-o", tmp_path / "rec")
    told = json.loads(
        run.ok("replay", tmp_path / "rec", "--set", "engine.max_num_seqs=4", "--json")
    )
    recorded, replayed, predicted = (
        told[name]["latency_s"]["mean"] for name in ("recorded", "replayed", "predicted")
    )
    assert replayed["value"] == pytest.approx(recorded["value"], rel=0.1)
    assert predicted["low"] > replayed["value"]
    assert any("inferred from the sums of forward passes" in note for note in told["notes"])
    assert not any("no prefix is shared" in note for note in told["notes"])
    answer = json.loads(run("advise", tmp_path / "rec", "--max-latency", "2s", "--json")[1])
    assert answer["system_optimal"]["estimates"]["latency_s"]["value"] < 2
    assert any("inferred from the sums" in note for note in answer["notes"])


@pytest.mark.slow
def test_forward_passes_teach_the_steps_of_the_model_that_is_named(run, tmp_path):
    """Requests of a load generator are replayed by a law of their engine's own steps."""
    (tmp_path / "config.json").write_text(json.dumps(llama_config()))
    passes = sorted(FOREIGN.glob("fpm_dynamo.4192.*"))
    named = ["--model", "demo/s", "--model-config", tmp_path / "config.json"]
    assert run("import", *passes, *named, "-o", tmp_path / "passes")[0] == 0
    recording = Recording.open(tmp_path / "passes")
    assert {each.model for each in recording.manifest.engines.values()} == {"demo/s"}
    assert recording.manifest.models["demo/s"].num_hidden_layers == 4
    requests = FOREIGN / "requests_vllm_bench.json"
    assert run("import", requests, "-o", tmp_path / "requests")[0] == 0
    limits = ["--set", "engine.max_num_seqs=16", "--set", "engine.max_num_batched_tokens=2048"]
    replay = ["replay", tmp_path / "requests", *limits, "--json"]
    out = run.ok(*replay, "--with", tmp_path / "passes")
    predicted = json.loads(out)["predicted"]
    # Batches of 20 requests: a token takes about the 9 ms of the recorded decode steps.
    assert 0.004 < predicted["tpot_s"]["p50"]["value"] < 0.02
    assert run("import", *passes, "--model", "other", "-o", tmp_path / "other")[0] == 0
    assert "other" in run.refused(*replay, "--with", tmp_path / "other", code=2)
