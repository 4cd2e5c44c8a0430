"""`vllm bench forward` both ways: shapes of steps for it, its results as kernels of the prior."""

import dataclasses
import json
import re

import numpy as np
import polars as pl
import pytest

from advisor.advice.advisor import _check_used
from advisor.advice.measure_next.forward_shapes import commands, forward_shapes, shapes_paths
from advisor.evidence.features import FEATURES
from advisor.evidence.gather import gather
from advisor.step_time.host.law import HostPart
from advisor.step_time.prior import recalibration
from advisor.step_time.prior import tables as prior_tables
from advisor.step_time.prior.offers import Offers
from advisor.step_time.prior.prior import prior_of
from advisor.step_time.prior.recalibration import PriorTimes, _Cases, recalibrate
from advisor.step_time.prior.tables import read_prior
from tests.advisor.step_time.prior.prior_files import DEVICE, TINY, write_prior
from tests.advisor.synthetic import VOTE16, engine_of, record
from tests.tui.model_config import llama_config
from traces.errors import UsageError
from traces.foreign.steps.bench_forward import import_forwards
from traces.recording.reader import Recording
from traces.schema.engine import EXPERTS, EngineConfig, Speculative

WIDE = dataclasses.replace(TINY, name="small", hidden_size=4096, intermediate_size=16384)
GIVEN = ("--gpu", "test_gpu", "--gpus", "8", "--price", "Test=2.5", "--price", "cpu=0.05")


@pytest.fixture
def recording(tmp_path, monkeypatch):
    folder = write_prior(tmp_path / "systems")
    monkeypatch.setattr(prior_tables, "tables_folder", lambda: folder)
    nothing = HostPart(seconds=np.zeros(len(FEATURES)), hidden=0.0)  # kernels are microseconds
    monkeypatch.setattr(recalibration, "host_part", lambda engine: nothing)
    made = record(tmp_path / "runs" / "one", engine_of(), VOTE16, problems=12, concurrency=1)
    dataclasses.replace(made.manifest, models={"small": WIDE}).write(made.path)
    return made.path


def expanded(case):
    """The requests of a case as vLLM reads them (vllm/benchmarks/forward/shapes.py)."""
    found = []
    for told in case["requests"]:
        request = {"num_draft_tokens": 0, "chunked": False} | told
        count = request.pop("count", 1)
        assert 1 <= request["query_len"] <= request["kv_len"]
        found += [request] * count
    return found


def results(shapes, ranks, seconds):
    """What vLLM 0.33 writes with --output-json, of cases that take `seconds`."""
    latency = {
        "timer": "graph_events", "sample_spread_pct": 0.1, "mean": 1.0, "std": 0.1, "min": 1.0,
        "p90": 1.0, "count": 100, "samples_us": [1.0] * 100,
    }  # fmt: skip
    rank = {
        "num_tokens": 1, "kv_blocks": 9, "routing": "real", "num_local_tokens": 1,
        "batch_order": ["bench-0"], "timing_scope": "target_only", "finite": True,
        "eager_repeat": {"max_abs": 0.0, "relative_rms": 0.0},
    }  # fmt: skip
    return [
        {
            "case": case["name"],
            "requests": expanded(case),
            "median_us": 1e6 * each,
            "ranks": [rank | {"latency_us": latency | {"median": 1e6 * each}}] * ranks,
        }
        for case, each in zip(shapes["cases"], seconds, strict=True)
    ]


def steps_of(shapes):
    rows = []
    for case in shapes["cases"]:
        prompts = [r for r in expanded(case) if r["query_len"] == r["kv_len"] or r["query_len"] > 1]
        decodes = [r for r in expanded(case) if r not in prompts]
        rows.append({
            "prefill_requests": len(prompts),
            "prefill_tokens": sum(r["query_len"] for r in prompts),
            "decode_requests": len(decodes),
            "decode_tokens": len(decodes),
            "prefill_kv_tokens": sum(r["kv_len"] for r in prompts),
            "decode_kv_tokens": sum(r["kv_len"] for r in decodes),
            "prefill_query_context": sum(r["kv_len"] * (r["kv_len"] + 1) // 2 for r in prompts),
        })  # fmt: skip
    none = [
        pl.lit(None, pl.Int64).alias(n) for n in ("decode_window_tokens", "prefill_window_context")
    ]
    return pl.DataFrame(rows).with_columns(none)


def kernels_s(shapes, scales, **changes):
    """The seconds of the cases by the prior's kernels, some of their families longer."""
    size = shapes["ttscope"]["tensor_parallel_size"]
    engine = EngineConfig(model="small", tensor_parallel_size=size, **changes)
    prior = prior_of(read_prior("test_gpu"), WIDE, engine)
    cases = _Cases(recording="", prior=prior, steps=steps_of(shapes))
    return cases.seconds(scales)


def planned(run, recording, folder):
    out = run.ok(
        "advise", recording, *GIVEN, "--optimise", "latency", "--plan", folder / "next.yaml"
    )
    (file,) = folder.glob("*-small-tp4.forward.json")
    return out, file, json.loads(file.read_text())


@pytest.mark.slow
def test_a_plan_has_the_shapes_of_the_recorded_steps(run, recording, tmp_path):
    out, file, shapes = planned(run, recording, tmp_path)
    told = " ".join(out.split())
    assert "torchrun --nproc-per-node=4 -m vllm.entrypoints.cli.main bench forward" in told
    assert f"--shapes {file}" in told
    assert "# torchrun" in (tmp_path / "next.yaml").read_text()
    assert shapes["ttscope"] == {"model": "small", "gpu": DEVICE, "tensor_parallel_size": 4}
    names = [case["name"] for case in shapes["cases"]]
    assert len(set(names)) == len(names) <= 24
    ran = Recording.open(recording).steps
    for case in shapes["cases"]:
        requests = expanded(case)
        decodes = [r for r in requests if r["query_len"] == 1 and r["kv_len"] > 1]
        like = ran.filter(
            pl.col("decode_requests") == len(decodes),
            pl.col("decode_kv_tokens") == sum(r["kv_len"] for r in decodes),
            pl.col("prefill_tokens") == sum(r["query_len"] for r in requests) - len(decodes),
        )
        assert len(like), case


@pytest.mark.slow
def test_what_vllm_measured_of_them_corrects_the_kernels(run, recording, tmp_path):
    _, file, shapes = planned(run, recording, tmp_path)
    took = kernels_s(shapes, {"gemm": 2.0})
    result = tmp_path / "result.json"
    result.write_text(json.dumps(results(shapes, 4, took)))
    out = run.ok("import", result, "--shapes", file, "-o", tmp_path / "runs" / "cases")
    assert f"vllm bench forward: {len(took)} cases on 4 GPUs" in out
    asked = ("replay", recording, "--gpu", "test_gpu", "--set", "engine.tensor_parallel_size=4")
    out = run.ok(*asked, "--explain", "--with", tmp_path / "runs" / "cases")
    told = " ".join(out.split())
    scale = re.search(r"cases of vllm bench forward \(cases\): gemm x([\d.]+)", told)
    assert 1.8 < float(scale[1]) < 2.1
    assert "so the interval stays that of the prior" in told
    _, out, _ = run(*asked, "--json")
    before = json.loads(out)["predicted"]["latency_s"]["mean"]["value"]
    _, out, _ = run(*asked, "--with", tmp_path / "runs" / "cases", "--json")
    after = json.loads(out)["predicted"]["latency_s"]["mean"]["value"]
    assert after > 1.2 * before
    out = run.ok(
        "advise", recording, *GIVEN, "--optimise", "latency", "--explain", "--with",
        tmp_path / "runs" / "cases",
    )  # fmt: skip
    assert "its kernels recalibrated by cases. No run of this GPU" in " ".join(out.split())


@pytest.mark.slow
def test_steps_are_not_learned_from_cases_without_logits_and_host(run, recording, tmp_path):
    _, _, shapes = planned(run, recording, tmp_path)
    result, cases = tmp_path / "result.json", tmp_path / "runs" / "cases"
    result.write_text(json.dumps(results(shapes, 1, np.full(len(shapes["cases"]), 0.1))))
    run.ok("import", result, "--model", "small", "-o", cases)
    out = run.ok("replay", recording, "--with", cases)
    told = " ".join(out.split())
    assert "cases teaches no step times: its cases are of the forward alone" in told
    assert "times what the tables of test_gpu give small at tensor_parallel_size 1" in run.refused(
        "replay", recording, "--gpu", "test_gpu", "--with", cases, code=2
    )


def shapes_of(*requests, **told):
    cases = [
        {"name": f"case{at}", "requests": [{"query_len": 1, "kv_len": 64} | each]}
        for at, each in enumerate(requests)
    ]
    head = {"model": "small", "gpu": DEVICE, "tensor_parallel_size": 2}
    return {"ttscope": head | told, "cases": cases}


BATCHES = [{"count": count, "kv_len": 64 * count} for count in (1, 4, 16, 32)]


def imported(folder, shapes, seconds, change=lambda found: None, facts=WIDE, **given):
    """The recording of results that take `seconds`, as `change` leaves them; and its notes."""
    found = results(shapes, 2, seconds)
    change(found)
    for name, each in (("shapes.json", shapes), ("result.json", found)):
        (folder / name).write_text(json.dumps(each))
    given = {"shapes": folder / "shapes.json", "facts": facts} | given
    made = import_forwards(folder / "result.json", folder / "cases", **given)
    return Recording.open(folder / "cases"), made.notes


@pytest.fixture
def tables(tmp_path, monkeypatch):
    folder = write_prior(tmp_path / "systems")
    monkeypatch.setattr(prior_tables, "tables_folder", lambda: folder)
    return read_prior("test_gpu")


@pytest.mark.slow
def test_kernels_of_fp8_are_compared_with_those_of_fp8(tables, tmp_path):
    shapes = shapes_of(*BATCHES, quantization="fp8", enable_expert_parallel=True)
    took = kernels_s(shapes, {"gemm": 1.3}, quantization="fp8")
    cases, _ = imported(tmp_path, shapes, took)
    (engine,) = cases.manifest.engines.values()
    assert (engine.quantization, engine.expert_parallel, engine.gpu) == ("fp8", True, DEVICE)
    assert kernels_s(shapes, {}).sum() > 1.1 * kernels_s(shapes, {}, quantization="fp8").sum()
    assert recalibrate(tables, [cases]).families["gemm"] == pytest.approx(1.3, abs=0.04)


def test_engines_whose_kernels_differ_have_shapes_of_their_own(tmp_path):
    one = EngineConfig(model="a/M", gpu="G 1", tensor_parallel_size=2, max_num_seqs=8)
    moe = dataclasses.replace(one, other=((EXPERTS, "true"),), quantization="fp8")
    engines = [
        one,
        dataclasses.replace(one, max_num_seqs=16),
        dataclasses.replace(one, gpu="G 2"),
        dataclasses.replace(one, model="b/M"),
        moe,
        dataclasses.replace(one, kv_cache_dtype="fp8"),
    ]
    paths = shapes_paths(tmp_path / "next.yaml", engines)
    assert [path.name.removesuffix(".forward.json") for path in paths] == [
        "next-a-m-g-1-tp2", "next-a-m-g-2-tp2", "next-b-m-g-1-tp2", "next-m-tp2-fp8-ep",
        "next-m-tp2-kv-fp8",
    ]  # fmt: skip
    assert [*paths.values()] == [engines[0], *engines[2:]]
    told, _ = commands(moe, tmp_path / "a b-m.forward.json")
    assert "--quantization fp8 " in told and told.endswith("--enable-expert-parallel")
    _, read = commands(moe, tmp_path / "a b-m.forward.json")
    assert read.endswith(" -o 'runs/a b-m'")


def test_shapes_of_an_engine_that_drafts_are_of_steps_without_drafts(tmp_path):
    made = record(tmp_path / "run", engine_of(), VOTE16, problems=3)
    (ran,) = made.manifest.engines.values()
    drafts = Speculative(method="ngram", num_speculative_tokens=3)
    engine = dataclasses.replace(ran, speculative=drafts, gpu=DEVICE)
    shapes = forward_shapes(engine, gather([made]), [])
    counts = [sum(r["kv_len"] > r["query_len"] for r in expanded(c)) for c in shapes["cases"]]
    assert {1, engine.max_num_seqs} <= set(counts)


@pytest.mark.slow
def test_cases_larger_than_the_tables_are_left_out_and_counted(tables, tmp_path):
    shapes = shapes_of(*BATCHES)
    took = [*kernels_s(shapes, {}), 9.0]
    large = {"query_len": 1 << 24, "kv_len": 1 << 24}
    cases, _ = imported(tmp_path, shapes_of(*BATCHES, large), took)
    found = recalibrate(tables, [cases])
    assert found.cases == len(BATCHES)
    assert found.untaught == {"cases": "is used without 1 case, larger than what the tables hold"}
    assert found.families["gemm"] == pytest.approx(1.0, abs=0.02)


def test_cases_that_cannot_be_priced_end_no_advice(tables, tmp_path):
    cases, _ = imported(tmp_path, shapes_of(*BATCHES, quantization="gguf"), [1e-3] * 4)
    found = recalibrate(tables, [cases])
    assert "engine.quantization=gguf" in found.untaught["cases"]
    assert PriorTimes(tables=tables, facts=WIDE, found=found).ran is None
    _check_used(Offers(engines={}, laws={}, refused=(), untaught=found.untaught), [cases])


@pytest.mark.parametrize(("gpu", "why"), [(None, "name no GPU"), ("Other", "are of Other")])
def test_cases_of_no_gpu_that_is_asked_for_say_why(tables, tmp_path, gpu, why):
    cases, _ = imported(tmp_path, shapes_of(*BATCHES, gpu=gpu), [1e-3] * 4)
    assert recalibrate(tables, [cases], unnamed=False) is None
    with pytest.raises(UsageError) as error:
        _check_used(Offers(engines={}, laws={}, refused=()), [cases])
    assert why in str(error.value)


def test_cases_beside_whole_steps_are_said_not_to_be_used(tables, tmp_path):
    shapes = shapes_of(*BATCHES)
    cases, _ = imported(tmp_path, shapes, kernels_s(shapes, {}))
    there = engine_of(gpu=DEVICE, model="small", tensor_parallel_size=2)
    made = record(tmp_path / "whole", there, VOTE16, problems=3)
    dataclasses.replace(made.manifest, models={"small": WIDE}).write(made.path)
    found = recalibrate(tables, [Recording.open(made.path), cases])
    assert found.recordings == ("whole",)
    assert found.untaught["cases"].endswith("Recordings of whole steps say more")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            lambda case: [each.update(routing="balanced") for each in case["ranks"]],
            "left out: 1 case whose experts were visited evenly (--routing balanced). Real "
            "prompts visit them unevenly",
        ),
        (lambda case: case["requests"][0].update(query_len=65),
         "left out: 1 case with contexts shorter than their new tokens"),
        (lambda case: case["ranks"][0].update(timing_scope="target_and_drafter"),
         "left out: 1 case with the drafter in their time (run with --exclude-drafter)"),
    ],
)  # fmt: skip
def test_what_tells_nothing_of_the_kernels_is_left_out_and_counted(tmp_path, change, why):
    shapes = shapes_of(*BATCHES)
    cases, notes = imported(tmp_path, shapes, [1e-3] * 4, lambda found: change(found[0]))
    assert len(cases.steps) == 3
    assert notes[1:] == (why,)


def test_the_file_of_shapes_names_the_model_whose_config_is_given(run, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(llama_config()))
    shapes = shapes_of(*BATCHES)
    (tmp_path / "shapes.json").write_text(json.dumps(shapes))
    (tmp_path / "result.json").write_text(json.dumps(results(shapes, 2, [1e-3] * 4)))
    given = ("import", tmp_path / "result.json", "--shapes", tmp_path / "shapes.json")
    given += ("--model-config", tmp_path / "config.json")
    run.ok(*given, "-o", tmp_path / "rec")
    assert Recording.open(tmp_path / "rec").manifest.models["small"].num_hidden_layers == 4
    told = run.refused(*given, "--model", "other", "-o", tmp_path / "none", code=2)
    assert "--model other: " in told and "is for small" in told


@pytest.mark.parametrize(
    ("change", "code", "why"),
    [
        (lambda r: r[0].update(median_us=-1), 1, "no results of vllm bench forward"),
        (lambda r: r[0].update(requests=[]), 1, "no results of vllm bench forward"),
        (lambda r: r[0]["ranks"].pop(), 1, "cases of different numbers of GPUs"),
        (lambda r: r[0].update(case="other"), 2, "has no case other"),
        (lambda r: r[0].update(median_us=1e-4), 1, "no results of vllm bench forward"),
        (
            lambda r: [each["ranks"][0].update(timing_scope="target_and_drafter") for each in r],
            1,
            "no case of vllm bench forward can be used (2 cases with the drafter in their time "
            "(run with --exclude-drafter))",
        ),
    ],
)
def test_bad_results_are_one_line(run, tmp_path, change, code, why):
    shapes = {
        "ttscope": {"model": "small", "tensor_parallel_size": 2},
        "cases": [
            {"name": f"decode{n}", "requests": [{"query_len": 1, "kv_len": 64, "count": n}]}
            for n in (1, 2)
        ],
    }
    found = results(shapes, 2, [1e-3, 2e-3])
    change(found)
    (tmp_path / "shapes.json").write_text(json.dumps(shapes))
    (tmp_path / "result.json").write_text(json.dumps(found))
    given = ("import", tmp_path / "result.json", "--shapes", tmp_path / "shapes.json")
    assert why in run.refused(*given, "-o", tmp_path / "rec", code=code)
    assert not (tmp_path / "rec").exists() or not list((tmp_path / "rec").iterdir())
