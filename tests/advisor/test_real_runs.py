"""Runs of vLLM on GPUs, replayed from the operator times of the same GPU, nothing fitted."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from advisor.replay.replay import replay
from advisor.step_time.operators.files import read_operators

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).parent.parent.parent / "benchmarks" / "real_runs.py"


@pytest.fixture(scope="module")
def real_runs():
    spec = importlib.util.spec_from_file_location("real_runs", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.parametrize("gpu", ["RTX4090", "RTXPRO6000"])
def test_a_real_run_comes_back_from_operator_times(shared, real_runs, gpu):
    operators = read_operators(shared / "data" / "ops" / f"{gpu}_Llama-3.1-8B_tp1")
    run = real_runs.read_run(shared / "data" / "vllm_runs" / f"{gpu}_Llama-3.1-8B")
    done = replay(run.workload, real_runs.cost_of(operators, run, 32), run.limits)
    found = {
        "TTFT": done.ttft_s,
        "TPOT": (done.end_s - done.first_token_s) / (run.workload.output_tokens - 1),
        "end to end": done.latency_s,
    }
    for name, limit in (("TTFT", 0.05), ("TPOT", 0.02), ("end to end", 0.025)):
        assert abs(found[name].mean() / run.seconds[name].mean() - 1) < limit, name
    for share in (0.5, 0.95):
        ours, real = (np.quantile(at["TTFT"], share) for at in (found, run.seconds))
        assert abs(ours / real - 1) < 0.08
