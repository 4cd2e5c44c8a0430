"""The flags of `vllm serve` commands, read by the installed vLLM's own argument parser."""

import dataclasses
import json
import shlex

import pytest

from advisor.command import serve_command
from tests.advisor.synthetic import NGRAM, engine_of
from traces.schema import EngineConfig, Policy, Speculative

ENGINE = engine_of(
    "large",
    quantization="fp8",
    kv_cache_dtype="fp8",
    tensor_parallel_size=2,
    pipeline_parallel_size=2,
    data_parallel_size=4,
    gpu_memory_utilization=0.8,
    enforce_eager=True,
    async_scheduling=False,
)
DRAFT = Speculative(method="draft_model", num_speculative_tokens=3, model="it's small")
CASES = [
    ENGINE,
    dataclasses.replace(ENGINE, speculative=NGRAM, enable_prefix_caching=False),
    dataclasses.replace(ENGINE, speculative=DRAFT, async_scheduling=True, enforce_eager=None),
    EngineConfig(model="m"),
]
NAMES = (
    "quantization", "kv_cache_dtype", "max_model_len", "tensor_parallel_size",
    "pipeline_parallel_size", "data_parallel_size", "max_num_seqs", "max_num_batched_tokens",
    "block_size", "gpu_memory_utilization", "enable_prefix_caching", "enforce_eager",
    "async_scheduling",
)  # fmt: skip


@pytest.fixture(scope="module")
def parser():
    pytest.importorskip("vllm")
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    return make_arg_parser(FlexibleArgumentParser())


@pytest.mark.vllm
@pytest.mark.parametrize("engine", CASES)
def test_vllm_reads_every_flag_as_it_is_meant(parser, engine):
    policy = Policy(method="greedy", thinking_token_budget=64)
    words = shlex.split(serve_command(engine, model_path="/models/mine", policy=policy))
    assert words[:3] == ["vllm", "serve", "/models/mine"]
    read = parser.parse_args(words[2:])
    for name in NAMES:
        wanted = getattr(engine, name)
        if wanted is not None:
            assert getattr(read, name) == wanted, name
    if engine.speculative is not None:
        given = {k: v for k, v in engine.speculative.to_json().items() if v is not None}
        found = read.speculative_config
        assert (json.loads(found) if isinstance(found, str) else found) == given
    assert read.reasoning_config is not None
