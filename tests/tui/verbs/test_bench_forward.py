"""`vllm bench forward` both ways: shapes of steps for it, its results as kernels of the prior."""

import dataclasses
import json
import re

import numpy as np
import polars as pl
import pytest

from advisor.evidence.features import FEATURES
from advisor.step_time.host.law import HostPart
from advisor.step_time.prior import recalibration
from advisor.step_time.prior import tables as prior_tables
from advisor.step_time.prior.prior import prior_of
from advisor.step_time.prior.recalibration import _Cases
from advisor.step_time.prior.tables import read_prior
from tests.advisor.step_time.prior.prior_files import DEVICE, TINY, write_prior
from tests.advisor.synthetic import VOTE16, engine_of, record
from traces.recording.reader import Recording
from traces.schema.engine import EngineConfig

WIDE = dataclasses.replace(TINY, name="small", hidden_size=4096, intermediate_size=16384)
GIVEN = ("--gpu", "test_gpu", "--gpus", "8", "--price", "Test=2.5", "--price", "cpu=0.05")


@pytest.fixture
def recording(tmp_path, monkeypatch):
    folder = write_prior(tmp_path / "systems")
    monkeypatch.setattr(prior_tables, "tables_folder", lambda: folder)
    nothing = HostPart(seconds=np.zeros(len(FEATURES)), hidden=False)  # kernels are microseconds
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


def kernels_s(shapes, scales):
    """The seconds of the cases by the prior's kernels, some of their families longer."""
    engine = EngineConfig(
        model="small", tensor_parallel_size=shapes["ttscope"]["tensor_parallel_size"]
    )
    prior = prior_of(read_prior("test_gpu"), WIDE, engine)
    cases = _Cases(recording="", engine=engine, prior=prior, steps=steps_of(shapes))
    return cases.seconds(scales)


def planned(run, recording, folder):
    code, out, err = run(
        "advise", recording, *GIVEN, "--optimise", "latency", "--plan", folder / "next.yaml"
    )
    assert code == 0, err
    (file,) = folder.glob("*-small-tp4.forward.json")
    return out, file, json.loads(file.read_text())


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


def test_what_vllm_measured_of_them_corrects_the_kernels(run, recording, tmp_path):
    _, file, shapes = planned(run, recording, tmp_path)
    took = kernels_s(shapes, {"gemm": 2.0})
    result = tmp_path / "result.json"
    result.write_text(json.dumps(results(shapes, 4, took)))
    code, out, err = run("import", result, "--shapes", file, "-o", tmp_path / "runs" / "cases")
    assert code == 0, err
    assert f"vllm bench forward: {len(took)} cases on 4 GPUs" in out
    asked = ("replay", recording, "--gpu", "test_gpu", "--set", "engine.tensor_parallel_size=4")
    code, out, err = run(*asked, "--with", tmp_path / "runs" / "cases")
    assert code == 0, err
    told = " ".join(out.split())
    scale = re.search(r"cases of vllm bench forward \(cases\): gemm x([\d.]+)", told)
    assert 1.8 < float(scale[1]) < 2.1
    assert "so the interval stays that of the prior" in told
    code, out, err = run(*asked, "--json")
    before = json.loads(out)["predicted"]["latency_s"]["mean"]["value"]
    code, out, err = run(*asked, "--with", tmp_path / "runs" / "cases", "--json")
    after = json.loads(out)["predicted"]["latency_s"]["mean"]["value"]
    assert after > 1.2 * before
    code, out, err = run(
        "advise", recording, *GIVEN, "--optimise", "latency", "--explain", "--with",
        tmp_path / "runs" / "cases",
    )  # fmt: skip
    assert code == 0, err
    assert "its kernels recalibrated by cases. No run of this GPU" in " ".join(out.split())


def test_steps_are_not_learned_from_cases_without_logits_and_host(run, recording, tmp_path):
    _, _, shapes = planned(run, recording, tmp_path)
    result, cases = tmp_path / "result.json", tmp_path / "runs" / "cases"
    result.write_text(json.dumps(results(shapes, 1, np.full(len(shapes["cases"]), 0.1))))
    code, _, err = run("import", result, "--model", "small", "-o", cases)
    assert code == 0, err
    code, out, err = run("replay", recording, "--with", cases)
    assert code == 0, err
    told = " ".join(out.split())
    assert "cases teaches no step times: its cases are of the forward alone" in told
    code, _, err = run("replay", recording, "--gpu", "test_gpu", "--with", cases)
    assert code == 2
    assert "times what the tables of test_gpu give small at tensor_parallel_size 1" in err


@pytest.mark.parametrize(
    ("change", "code", "why"),
    [
        (lambda r: r[0].update(median_us=-1), 1, "no results of vllm bench forward"),
        (lambda r: r[0].update(requests=[]), 1, "no results of vllm bench forward"),
        (lambda r: r[0]["ranks"].pop(), 1, "cases of different numbers of GPUs"),
        (lambda r: r[0].update(case="other"), 2, "has no case other"),
        (lambda r: r.clear(), 1, "no case of vllm bench forward can be used"),
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
    text = json.dumps(found) if found else '[{"case": 0, "median_us": 1}]'.replace("0", '"x"')
    (tmp_path / "shapes.json").write_text(json.dumps(shapes))
    (tmp_path / "result.json").write_text(text)
    given = ("import", tmp_path / "result.json", "--shapes", tmp_path / "shapes.json")
    found_code, _, err = run(*given, "-o", tmp_path / "rec")
    assert found_code == code, err
    assert why in err or (not found and "no results of vllm bench forward" in err)
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "rec").exists() or not list((tmp_path / "rec").iterdir())
