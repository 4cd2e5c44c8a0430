"""Which engine a server is, by what it answers, and never by what it may not say."""

import json

import httpx
import pytest

from profiler.engines.server.identity import identify
from traces.schema.engine import Speculative

INFO = {  # names and types of SGLang 0.5.23's /server_info
    "tp_size": 4,
    "pp_size": 1,
    "dp_size": 2,
    "enable_dp_attention": True,
    "max_running_requests": 512,
    "page_size": 16,
    "max_total_num_tokens": 65_536,
    "dtype": "auto",
    "kv_cache_dtype": "fp8_e5m2",
    "disable_radix_cache": False,
    "disable_cuda_graph": True,
    "disable_overlap_schedule": False,
    "chunked_prefill_size": 8192,
    "mem_fraction_static": 0.88,
    "schedule_policy": "fcfs",
    "speculative_algorithm": "EAGLE3",
    "speculative_num_steps": 3,
    "speculative_num_draft_tokens": 4,
    "speculative_draft_model_path": "a/draft",
    "api_key": "sk-never",
    "internal_states": [{"effective_max_running_requests_per_dp": 256}],
}


def identity(state):
    with httpx.Client(base_url=state.url) as client:
        card = json.loads(client.get("/v1/models").text)["data"][0]
        return identify(client, card)


def test_sglang_says_how_it_was_started(server):
    found = identity(server.as_sglang(INFO))
    assert (found.text, found.front_end, found.vllm_version) == ("SGLang 0.5.23", "python", None)
    assert found.settings == {
        "tensor_parallel_size": 4,
        "pipeline_parallel_size": 1,
        "data_parallel_size": 2,
        "num_gpus": 4,  # the ranks of attention share them
        "max_num_seqs": 256,
        "block_size": 16,
        "num_gpu_blocks": 4097,
        "kv_cache_dtype": "fp8_e5m2",
        "enable_prefix_caching": True,
        "enforce_eager": True,
        "async_scheduling": True,
        "speculative": Speculative(method="eagle3", num_speculative_tokens=3, model="a/draft"),
    }
    assert dict(found.other)["chunked_prefill_size"] == "8192"
    assert "sk-never" not in repr(found)


@pytest.mark.parametrize(
    "odd",
    [
        {"tp_size": -1, "max_running_requests": "many", "page_size": True, "dtype": 7},
        {"tp_size": 1e99, "max_total_num_tokens": float("nan"), "version": "\x1b[2J"},
        {"internal_states": [], "speculative_algorithm": "EAGLE", "dtype": "x" * 1000},
        {"internal_states": "none", "speculative_num_steps": 0, "disable_radix_cache": "yes"},
    ],
)
def test_what_sglang_says_is_checked(server, odd):
    found = identity(server.as_sglang(odd))
    assert found.engine == "SGLang"
    assert not found.settings


def test_other_servers_by_what_they_say(server):
    found = identity(server)
    assert (found.text, found.other) == ("vLLM 0.32.0", ())
    card = {"id": "m", "owned_by": "tensorrt_llm"}
    server.answers["/v1/models"] = json.dumps({"data": [card]})
    found = identity(server)
    assert found.text == "TensorRT-LLM 0.32.0"
    assert found.other == (("engine_name", "TensorRT-LLM 0.32.0"),)
    server.answers |= {"/version": None, "/v1/version": '{"release": "1.8.0", "api": "1.0"}'}
    server.answers["/v1/models"] = '{"data": [{"id": "m", "owned_by": "system"}]}'
    found = identity(server)
    assert (found.text, found.other) == ("NIM 1.8.0", (("engine_name", "NIM 1.8.0"),))
    server.answers["/v1/version"] = None
    assert identity(server).engine is None


def test_vllms_rust_front_end_is_not_uvicorn(server):
    server.answers["/v1/models"] = '{"data": [{"id": "m", "owned_by": "vllm"}]}'
    assert identity(server).front_end is None
    server.software = ""
    found = identity(server)
    assert (found.text, found.front_end) == ("vLLM 0.32.0", "rust")
