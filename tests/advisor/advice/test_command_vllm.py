"""The flags of `vllm serve` commands, read by the installed vLLM's own argument parser."""

import ast
import dataclasses
import json
import shlex

import pytest

from advisor.advice.command import serve_command
from tests.advisor.synthetic import NGRAM, engine_of
from tests.profiler.command import warm_ttscope
from traces.schema.engine import EngineConfig, Speculative
from traces.schema.tts.policy import Policy

ENGINE = engine_of(
    "large", quantization="fp8", kv_cache_dtype="fp8", tensor_parallel_size=2,
    pipeline_parallel_size=2, data_parallel_size=4, gpu_memory_utilization=0.8, enforce_eager=True,
    async_scheduling=False, gpu="H100",
)  # fmt: skip
DRAFT = Speculative(method="draft_model", num_speculative_tokens=3, model="it's small")
CASES = [
    ENGINE,
    dataclasses.replace(ENGINE, speculative=NGRAM, enable_prefix_caching=False),
    dataclasses.replace(ENGINE, speculative=DRAFT, async_scheduling=True, enforce_eager=None),
    EngineConfig(model="m", gpu="H100"),
]
NAMES = (
    "quantization", "kv_cache_dtype", "max_model_len", "tensor_parallel_size",
    "pipeline_parallel_size", "data_parallel_size", "max_num_seqs", "max_num_batched_tokens",
    "block_size", "gpu_memory_utilization", "enable_prefix_caching", "enforce_eager",
    "async_scheduling", "served_model_name",
)  # fmt: skip


@pytest.mark.vllm
def test_vllm_reads_every_flag_as_it_is_meant():
    """In a process of its own, as vLLM's imports warn."""
    pytest.importorskip("vllm")
    policy = Policy(method="greedy", thinking_token_budget=64)
    commands = [
        shlex.split(serve_command(engine, model_path="/models/mine", policy=policy))
        for engine in CASES
    ]
    assert all(words[:3] == ["vllm", "serve", "/models/mine"] for words in commands)
    names = [*NAMES, "speculative_config", "reasoning_config"]
    asked = json.dumps({"commands": [words[2:] for words in commands], "names": names})
    done = warm_ttscope(asked, module="tests.advisor.advice.flags_read")
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = [each for each in done.stdout.splitlines() if each.startswith("READ ")]
    for engine, read in zip(CASES, json.loads(line.removeprefix("READ ")), strict=True):
        for name in NAMES:
            wanted = [engine.model] if name == "served_model_name" else getattr(engine, name)
            if wanted is not None:
                assert read[name] == str(wanted), name
        if engine.speculative is not None:
            given = {k: v for k, v in engine.speculative.to_json().items() if v is not None}
            assert ast.literal_eval(read["speculative_config"]) == given
        assert "</think>" in read["reasoning_config"]
