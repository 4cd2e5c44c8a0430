"""What a model costs: counted in its files, and in its config where they do not tell."""

import dataclasses
import json
import os
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from profiler.demo import task
from profiler.engines.models import model_facts
from profiler.engines.models.model_facts import (
    facts_from_config,
    facts_from_file,
    facts_from_folder,
    given_facts,
)
from profiler.engines.models.stored_weights import stored_weights
from traces.errors import TtscopeError, UsageError
from traces.schema.engine import ModelFacts
from traces.schema.window import in_window, read_until, window_context

QWEN3_30B_A3B = SimpleNamespace(
    architectures=["Qwen3MoeForCausalLM"], hidden_size=2048, num_hidden_layers=48,
    num_attention_heads=32, num_key_value_heads=4, head_dim=128, intermediate_size=6144,
    moe_intermediate_size=768, num_experts=128, num_experts_per_tok=8, vocab_size=151936,
    tie_word_embeddings=False, dtype="bfloat16",
)  # fmt: skip
LLAMA_3_1_8B = SimpleNamespace(
    architectures=["LlamaForCausalLM"], hidden_size=4096, num_hidden_layers=32,
    num_attention_heads=32, num_key_value_heads=8, intermediate_size=14336, vocab_size=128256,
    torch_dtype="bfloat16",
)  # fmt: skip


@pytest.mark.parametrize("size", sorted(task.MODELS))
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_bundled_models(size, dtype):
    facts = facts_from_folder(task.model_path(size), name=size, dtype=dtype)
    parameters = task.MODELS[size]["parameters"]
    assert facts.total_parameters == facts.active_parameters == parameters
    assert facts.weight_bytes == parameters * {"bfloat16": 2, "float32": 4}[dtype]


def test_config_alone_comes_near_the_files():
    counted = facts_from_folder(task.model_path("l"), name="l")
    config = json.loads((task.model_path("l") / "config.json").read_text())
    estimated = facts_from_config(SimpleNamespace(**config), name="l")
    assert estimated.total_parameters == pytest.approx(counted.total_parameters, rel=0.01)
    assert estimated.kv_bytes_per_token == counted.kv_bytes_per_token


def test_published_models():
    dense = facts_from_config(LLAMA_3_1_8B, name="llama")
    assert dense.total_parameters == pytest.approx(8.03e9, rel=0.01)
    assert dense.active_parameters == pytest.approx(7.50e9, rel=0.01)
    assert dense.kv_bytes_per_token == 131072
    # vLLM loads what is published in float32 in 16 bits, unless it is told another dtype.
    wide = facts_from_config(vars(LLAMA_3_1_8B) | {"torch_dtype": "float32"}, name="llama")
    assert wide == dense
    sparse = facts_from_config(QWEN3_30B_A3B, name="qwen")
    assert sparse.total_parameters == pytest.approx(30.5e9, rel=0.01)
    assert sparse.active_parameters == pytest.approx(3.0e9, rel=0.05)


LATENT = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
INDEX = {"index_topk": 2048, "index_n_heads": 64, "index_head_dim": 128}


# Fields as in the models' own config.json (DeepSeek-V3, Gemma 2, Mistral 0.1, Qwen2.5, Jamba).
@pytest.mark.parametrize(
    ("fields", "attention", "window"),
    [
        ({}, ("full_attention",), None),
        (LATENT, ("latent_attention",), None),
        (LATENT | INDEX, ("indexed_attention", "latent_attention"), None),
        ({"sparse_attention_config": {}}, ("full_attention",), None),
        ({"sparse_attention_config": {"use_sparse_attention": True}},
         ("full_attention", "indexed_attention"), None),
        ({"sliding_window": 128, "hybrid_layer_pattern": [0, 1, 1]},
         ("full_attention", "sliding_attention"), 128),
        ({"attn_type_list": [0, 1]}, ("full_attention", "linear_attention"), None),
        ({"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4096},
         ("full_attention", "sliding_attention"), 4096),
        ({"sliding_window": 4096}, ("sliding_attention",), 4096),
        ({"sliding_window": 131072, "use_sliding_window": False}, ("full_attention",), None),
        ({"layers_block_type": ["attention", "mamba"]}, ("full_attention", "mamba"), None),
        ({"mamba_d_state": 16}, ("full_attention", "linear_attention"), None),
        ({"layer_types": ["full_attention", "linear_attention", "moe"]},
         ("full_attention", "linear_attention"), None),
    ],
)  # fmt: skip
def test_kinds_of_attention(fields, attention, window):
    facts = facts_from_config(SimpleNamespace(**vars(LLAMA_3_1_8B), **fields), name="x")
    assert facts.attention == attention
    assert facts.sliding_window == window
    assert ModelFacts.from_json(facts.to_json()) == facts


def test_latent_attention_keeps_one_latent_a_token():
    # DeepSeek-V3: 61 layers x (512 + 64) x 2 bytes = 70,272 bytes a token.
    fields = LATENT | {"num_hidden_layers": 61}
    facts = facts_from_config(SimpleNamespace(**{**vars(LLAMA_3_1_8B), **fields}), name="x")
    assert facts.kv_bytes_per_token == 70272


def test_no_model(tmp_path):
    assert facts_from_folder(tmp_path, name="x") is None
    (tmp_path / "config.json").write_text("{}")
    assert facts_from_folder(tmp_path, name="x") is None


# In billions: all parameters, and those that a token visits. From the models' cards, their names,
# and arXiv 2407.21783 (Llama 3), 2505.09388 (Qwen3), 2412.19437 (DeepSeek V3), 2507.20534
# (Kimi K2), 2508.10925 (gpt-oss), 2504.03624 (Nemotron-H), 2401.04088 (Mixtral). What no card
# tells (marked *) are the parameters of the modules that transformers 5.19 makes of that config.
PUBLISHED = {
    "Qwen3-0.6B": (0.6, None), "Qwen3-1.7B": (1.7, None), "Qwen3-8B": (8.2, None),
    "Qwen3-32B": (32.8, None), "Qwen3-30B-A3B": (30.5, 3.3), "Qwen3-235B-A22B": (235, 22),
    "Qwen3-Coder-480B-A35B": (480, 35), "Qwen3-VL-2B": (2.128, None),  # *
    "Qwen3-VL-4B": (4.44, None), "Qwen3-VL-8B": (8.767, None), "Qwen3-VL-32B": (33.4, None),
    "Qwen3-VL-30B-A3B": (31.1, 3.3), "Qwen3-VL-235B-A22B": (235.7, 22),
    "Qwen3.5-27B": (27, None), "Qwen3.5-35B-A3B": (35, 3), "Qwen3.5-122B-A10B": (122, 10),
    "Qwen3.5-397B-A17B": (397, 17), "Qwen3.6-27B": (27, None), "Qwen3.6-35B-A3B": (35, 3),
    "Meta-Llama-3.1-8B": (8.03, None), "Meta-Llama-3.1-70B": (70.6, None),
    "Llama-3.1-70B": (70.6, None), "Meta-Llama-3.1-405B": (405.9, None),
    "Llama-4-Scout-17B-16E": (109, 17), "Llama-4-Maverick-17B-128E": (400, 17),
    "Mixtral-8x7B": (46.7, 12.9), "Mixtral-8x22B": (141, 39), "MiMo-7B": (7.6, None),
    "MiMo-V2-Flash": (309, 15), "gpt-oss-120b": (116.8, 5.13), "gpt-oss-20b": (20.9, 3.61),
    "DeepSeek-V3": (671, 37), "DeepSeek-R1": (671, 37), "DeepSeek-V3.1": (671, 37),
    "DeepSeek-V3.2": (671, 37), "DeepSeek-V4-Flash": (284.33, None),  # *
    "DeepSeek-V4-Pro": (1573.0, None),  # *
    "Kimi-K2": (1040, 32), "Kimi-K2.5": (1040, 32), "Kimi-K2.6": (1040, 32),
    "Kimi-K2.7": (1040, 32), "GLM-5": (744, 40), "GLM-5.1": (744, 40), "GLM-5.2": (744, 40),
    "MiniMax-M2": (229, 10.4), "MiniMax-M3": (426.2, None),  # *
    "gemma-4-26B-A4B": (25.8, 3.8), "Gemma-4-26B-A4B": (25.8, 3.8), "Gemma-4-31B": (31, None),
    "Nemotron-H-56B": (56, None), "NVIDIA-Nemotron-3-Nano-30B-A3B": (31.6, 3.2),
    "NVIDIA-Nemotron-3.5-Lightning-30B-A3B": (31.6, 3.2),
    "NVIDIA-Nemotron-3-Super-120B-A12B": (120, 12),
    "NVIDIA-Nemotron-3-Ultra-550B-A55B": (550, 55), "Llama-3_3-Nemotron-Super-49B": (49.9, None),
    "Step-3.7-Flash": (195.8, None),  # *
}  # fmt: skip
# GB of the safetensors that are published, without the layers that only draft.
PUBLISHED_GB = {"openai--gpt-oss-120b": 65.2, "openai--gpt-oss-20b": 13.8,
                "moonshotai--Kimi-K2.5": 595}  # fmt: skip


def configs(folder):
    files = sorted((folder / "data/model_configs").glob("*_config.json"))
    return [file for file in files if "hf_quant" not in file.name]


@pytest.mark.slow
def test_every_model_that_people_serve_gives_facts(shared):
    files = configs(shared)
    assert len(files) == 86
    compared = 0
    for file in files:
        facts = facts_from_file(file)
        name = file.name.removesuffix("_config.json").partition("--")[2]
        assert ModelFacts.from_json(json.loads(json.dumps(facts.to_json()))) == facts
        assert facts.architecture is not None
        assert facts.uncounted is None, name
        assert sorted(p for each in facts.layers for p in each.places) == [
            *range(facts.num_hidden_layers)
        ]
        quantised = any(mark in name for mark in ("FP8", "NVFP4"))
        assert not quantised or facts.quantization is not None
        assert facts.weight_bytes < 2.1 * facts.total_parameters
        assert (facts.quantization is None) == (facts.weight_bytes == 2 * facts.total_parameters)
        for number in (facts.kv_bytes_per_token, facts.kv_bytes(1000)):
            assert number > 0
        assert facts.kv_read_bytes(1000) <= facts.kv_bytes(1000)
        assert facts.read_weight_bytes(1) < facts.read_weight_bytes(1000) <= facts.weight_bytes or (
            facts.num_experts is None
        )
        prefix = max((each for each in PUBLISHED if name.startswith(each)), key=len, default=None)
        if prefix is None:
            continue
        compared += 1
        total, active = PUBLISHED[prefix]
        assert facts.total_parameters == pytest.approx(total * 1e9, rel=0.03), name
        if active is not None:  # some count the input embedding, which is looked up
            embedding = facts.vocab_size * facts.hidden_size
            near = [facts.active_parameters, facts.active_parameters + embedding]
            assert min(abs(each / (active * 1e9) - 1) for each in near) < 0.03, name
        published = PUBLISHED_GB.get(file.name.removesuffix("_config.json"))
        if published is not None:
            assert facts.weight_bytes == pytest.approx(published * 1e9, rel=0.01)
    assert compared == 85  # no card of Kimi K3 is known


JAMBA = {
    "model_type": "jamba", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 65536, "num_experts": 16,
    "num_experts_per_tok": 2, "attn_layer_period": 8, "attn_layer_offset": 4,
    "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 16, "mamba_d_conv": 4,
    "mamba_expand": 2, "mamba_dt_rank": 256,
}  # fmt: skip
FALCON_H1 = {
    "model_type": "falcon_h1", "hidden_size": 1024, "num_hidden_layers": 36,
    "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "intermediate_size": 2048,
    "vocab_size": 32784, "mamba_d_ssm": 1536, "mamba_d_state": 128, "mamba_n_groups": 1,
    "mamba_n_heads": 24, "mamba_d_head": 64, "mamba_d_conv": 4,
}  # fmt: skip
LFM2 = {
    "model_type": "lfm2", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 65536, "conv_L_cache": 3, "block_ff_dim": 12288,
    "block_auto_adjust_ff_dim": True, "block_multiple_of": 256, "block_ffn_dim_multiplier": 1.0,
    "tie_word_embeddings": True, "layer_types": [
        "full_attention" if number in {2, 5, 8, 10, 12, 14} else "conv" for number in range(16)],
}  # fmt: skip
MINIMAX_M1 = {
    "model_type": "minimax_m1", "hidden_size": 6144, "num_hidden_layers": 80,
    "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128,
    "intermediate_size": 9216, "num_local_experts": 32, "num_experts_per_tok": 2,
    "vocab_size": 200064, "attn_type_list": [int(number % 8 == 7) for number in range(80)],
}  # fmt: skip
LATENT_64 = {
    "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "v_head_dim": 128, "num_attention_heads": 64,
}  # fmt: skip
LONGCAT = LATENT_64 | {
    "model_type": "longcat_flash", "hidden_size": 6144, "num_layers": 28, "vocab_size": 131072,
    "ffn_hidden_size": 12288, "expert_ffn_hidden_size": 2048, "n_routed_experts": 512,
    "moe_topk": 12, "zero_expert_num": 256,
}  # fmt: skip
RING_2_5 = LATENT_64 | {
    "model_type": "bailing_hybrid", "hidden_size": 8192, "num_hidden_layers": 80, "head_dim": 128,
    "num_key_value_heads": 64, "intermediate_size": 18432, "first_k_dense_replace": 4,
    "moe_intermediate_size": 2048, "num_experts": 256, "num_experts_per_tok": 8,
    "num_shared_experts": 1, "layer_group_size": 8, "group_norm_size": 8, "vocab_size": 157184,
}  # fmt: skip
STEP_3 = {
    "model_type": "step3_text", "hidden_size": 7168, "num_hidden_layers": 61, "head_dim": 256,
    "num_attention_heads": 64, "num_attention_groups": 1, "share_q_dim": 2048,
    "intermediate_size": 18432, "moe_intermediate_size": 5120, "moe_num_experts": 48,
    "moe_top_k": 3, "share_expert_dim": 5120, "vocab_size": 128815,
    "moe_layers_enum": ",".join(map(str, range(4, 60))),
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "total", "active", "states"),
    [
        (JAMBA, 51.6e9, 12e9, 28 * (8192 * 16 + 3 * 8192)),  # arXiv 2403.19887
        (FALCON_H1, 0.52e9, None, 36 * (24 * 64 * 128 + 3 * (1536 + 2 * 128))),  # 2507.22448
        (LFM2, 1.17e9, None, 10 * 2 * 2048),  # 2511.23404
        (
            LFM2 | {"layer_types": None, "full_attn_idxs": [2, 5, 8, 10, 12, 14]},
            1.17e9,
            None,
            10 * 2 * 2048,
        ),
        (MINIMAX_M1, 456e9, 45.9e9, 70 * 64 * 128 * 128),  # 2506.13585
        (LONGCAT, 560e9, 27e9, 0),  # 2509.01322, 12 of 768 experts of which 256 do nothing
        (RING_2_5, 1e12, 63e9, 70 * 64 * 128 * 128),  # github.com/inclusionAI/Ring-V2.5
        (STEP_3, 316e9, 38e9, 0),  # 2507.19427
    ],
)
def test_models_have_the_size_that_their_papers_tell(config, total, active, states):
    """And of a request they keep the state of each layer that is not attention alone."""
    config = config | {"hidden_act": "silu", "torch_dtype": "bfloat16"}
    facts = facts_from_config(config, name="x")
    assert facts.total_parameters == pytest.approx(total, rel=0.015)
    assert facts.active_parameters == pytest.approx(active or facts.active_parameters, rel=0.03)
    assert facts.state_bytes_per_request == 2 * states


def of(shared, name):
    return facts_from_file(shared / f"data/model_configs/{name}_config.json")


def test_what_a_token_costs_follows_from_the_layers(shared):
    """Formulas of the papers, by hand, at contexts on both sides of windows and choices."""
    r1 = of(shared, "deepseek-ai--DeepSeek-R1")
    assert r1.kv_read_bytes(10_000) == r1.kv_bytes(10_000) == 61 * 576 * 2 * 10_000
    assert r1.attention_flops(1) == 61 * 2 * 128 * (128 + 64 + 128)

    v32 = of(shared, "deepseek-ai--DeepSeek-V3.2")
    for context in (1000, 50_000):
        read = min(context, 2048)
        assert v32.kv_read_bytes(context) == 61 * (576 * 2 * read + 132 * context)
    assert v32.kv_bytes(50_000) == 61 * (576 * 2 + 132) * 50_000

    oss = of(shared, "openai--gpt-oss-120b")
    assert oss.kv_read_bytes(100) == 36 * 2 * 8 * 64 * 2 * 100
    assert oss.kv_read_bytes(1000) == 18 * 2 * 8 * 64 * 2 * (1000 + 128)
    assert oss.kv_bytes_per_token == 36 * 2 * 8 * 64 * 2

    widths = 18 * 4 * 64 * 64 * (sum(range(1, 1001)) + sum(min(c, 128) for c in range(1, 1001)))
    weights = 2 * oss.active_parameters * 1000
    assert oss.forward_flops(0, 1000) == pytest.approx(weights + widths, rel=1e-12)

    scout = of(shared, "meta-llama--Llama-4-Scout-17B-16E-Instruct")
    assert scout.kv_read_bytes(8193) == 4096 * (12 * 8193 + 36 * 1)

    glm = of(shared, "zai-org--GLM-5.2")  # 21 of 78 layers have an index, the others use it
    indexes = sum(each.count for each in glm.layers if each.attention.index_dim)
    assert glm.kv_read_bytes(10_000) == 78 * 576 * 2 * 2048 + indexes * 132 * 10_000
    assert indexes == 21

    mimo = of(shared, "XiaomiMiMo--MiMo-V2-Flash")
    full, narrow = 4 * (192 + 128) * 2, 8 * (192 + 128) * 2
    assert mimo.kv_read_bytes(1000) == 9 * full * 1000 + 39 * narrow * 128

    v4 = of(shared, "deepseek-ai--DeepSeek-V4-Flash")
    window, sparse, dense = 128 * 1024, 1024 * 512 + 132 * 25_000, 1024 * 100_000 / 128
    assert v4.kv_read_bytes(100_000) == 43 * window + 21 * sparse + 20 * dense

    nano = of(shared, "nvidia--NVIDIA-Nemotron-3-Nano-30B-A3B-BF16")
    convolved = 4096 + 2 * 8 * 128
    assert nano.state_bytes_per_request == 23 * (64 * 64 * 128 * 4 + 3 * convolved * 2)
    assert nano.kv_bytes(1000) == 6 * 2 * 2 * 128 * 2 * 1000

    qwen = of(shared, "Qwen--Qwen3.5-35B-A3B")
    convolved = 2 * 16 * 128 + 32 * 128
    assert qwen.state_bytes_per_request == 30 * (32 * 128 * 128 * 4 + 3 * convolved * 2)
    assert qwen.kv_bytes_per_token == 10 * 2 * 2 * 256 * 2


def test_a_batch_reads_the_experts_that_it_visits(shared):
    facts = of(shared, "Qwen--Qwen3-30B-A3B")
    expert = 3 * 2048 * 768 * 2
    rest = facts.weight_bytes - 48 * 128 * expert - facts.vocab_size * 2048 * 2
    for tokens in (1, 16, 256):
        visited = 128 * (1 - (1 - 8 / 128) ** tokens)
        assert facts.read_weight_bytes(tokens) == pytest.approx(rest + 48 * visited * expert)
    assert facts.read_weight_bytes(1) == pytest.approx(2 * facts.active_parameters)


# By module: the form of experts, and of a matrix of attention.
@pytest.mark.parametrize(
    ("name", "experts", "query", "output"),
    [
        ("openai--gpt-oss-120b", "mxfp4", "bfloat16", "bfloat16"),
        ("Qwen--Qwen3-30B-A3B-FP8", "fp8_block", "fp8_block", "bfloat16"),
        ("nvidia--Qwen3-235B-A22B-NVFP4", "nvfp4", "nvfp4", "bfloat16"),
        ("moonshotai--Kimi-K2.5", "int4", "bfloat16", "bfloat16"),
        ("moonshotai--Kimi-K3", "mxfp4", "bfloat16", "bfloat16"),
        ("nvidia--DeepSeek-V3.1-NVFP4", "nvfp4", "bfloat16", "bfloat16"),
        ("deepseek-ai--DeepSeek-V4-Flash", "mxfp4", "fp8_block", "bfloat16"),
        ("sgl-project--DeepSeek-V4-Flash-FP8", "fp8_block", "fp8_block", "bfloat16"),
        ("nvidia--DeepSeek-V4-Flash-NVFP4", "nvfp4", "fp8_block", "bfloat16"),
        ("nvidia--MiniMax-M3-NVFP4", "nvfp4", "mxfp8", "bfloat16"),
        ("nvidia--Qwen3.6-35B-A3B-NVFP4", "nvfp4", "fp8", "nvfp4"),
        ("nvidia--Gemma-4-26B-A4B-NVFP4", "nvfp4", "bfloat16", None),
    ],
)
def test_forms_by_module(shared, name, experts, query, output):
    facts = of(shared, name)
    found = {
        matrix.precision
        for each in facts.layers for matrix in each.matrices if ".experts." in matrix.name
    }  # fmt: skip
    assert found == {experts}
    found = {
        matrix.precision
        for each in facts.layers
        for matrix in each.matrices
        if matrix.name in ("self_attn.q_proj", "self_attn.q_b_proj")
    }
    assert found == {query}
    heads = [matrix.precision for matrix in facts.others if matrix.name == "lm_head"]
    assert heads == ([] if output is None else [output])


# Configs of types that no table here names: what follows from fields is counted, the rest is not.
@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"model_type": "new", "hidden_act": "silu"}, None),
        ({"model_type": "new", "hidden_act": "gelu_new", "architectures": ["NewForCausalLM"]},
         "an MLP with the activation gelu_new"),
        ({"model_type": "new", "laurel_rank": 64}, "parts that laurel_rank speaks of"),
        ({"layer_types": ["full_attention", "warp_attention"] * 16},
         "layers of the kind warp_attention"),
        ({"layer_types": ["full_attention"]}, "kinds for 1 layers of 32"),
        ({"num_experts": 8}, "a part whose num_experts_per_tok is missing"),
        ({"mamba_d_state": 16}, "layers with a state, in places that no field names"),
        ({"index_topk": 4} | LATENT, "a part whose index_n_heads is missing"),
        ({"quantization_config": {"quant_algo": "MIXED_PRECISION", "quantized_layers": {
            "model.layers.0.warp.up_proj": {"quant_algo": "FP8"}}}},
         'quantised weights of "layers.0.warp.up_proj", which no layer has'),
        ({"model_type": "jetmoe", "num_local_experts": 8}, "experts of attention"),
        ({"architectures": ["DFlashDraftModel"]}, "a draft of several tokens at once"),
        ({"model_type": "new", "use_cla": True},
         "layers that share the keys and values of others (use_cla)"),
        ({"model_type": "new", "hidden_act": "silu", "intermediate_size": [64, 128] * 16},
         "parts that intermediate_size lists"),
        ({"num_experts": [64, 64], "num_experts_per_tok": 2}, "parts that num_experts lists"),
        ({"quantization_config": {"quant_method": "hqq"}},
         "weights quantised as hqq, in a form that is not known"),
        ({"quantization_config": {"quant_method": "mxfp4"}},
         "weights quantised as mxfp4, in a form that is not known"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_not_counted(change, why):
    facts = facts_from_config(vars(LLAMA_3_1_8B) | change, name="x")
    assert facts.uncounted == why
    quantised = "quantization_config" in change
    assert (facts.total_parameters is None) == (why is not None and not quantised)
    assert (facts.weight_bytes is None) == (why is not None)


@pytest.mark.parametrize("expression", ["re:(a+)+$", "re:(.*)*x", "*" * 200, "re:" + "(a|b)" * 50])
def test_patterns_of_hostile_configs_end(expression):
    told = {"quant_method": "compressed-tensors", "ignore": [expression], "config_groups": {
        "a": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float"}}}}  # fmt: skip
    facts = facts_from_config(vars(LLAMA_3_1_8B) | {"quantization_config": told}, name="x")
    assert facts.weight_bytes is not None


def compressed(model, targets, ignore=()):
    """Facts of a model with targets in FP8, a byte a parameter less than as it is."""
    weights = {"num_bits": 8, "type": "float"}
    told = {"quant_method": "compressed-tensors", "format": "float-quantized", "ignore": [*ignore],
            "config_groups": {"group_0": {"targets": targets, "weights": weights}}}  # fmt: skip
    return facts_from_config(vars(model) | {"quantization_config": told}, name="x")


@pytest.mark.parametrize(
    ("model", "targets", "ignore", "narrow"),
    [
        (LLAMA_3_1_8B, ["re:.*self_attn.*"], ["lm_head", "re:.*self_attn.o_proj"],
         32 * 4096 * (4096 + 2 * 1024)),
        (LLAMA_3_1_8B, [r"re:^model\.layers\.\d+\.self_attn\..+$"], [],
         32 * 4096 * (2 * 4096 + 2 * 1024)),
        (LLAMA_3_1_8B, [r"re:.*self_attn\.(q|k|v|o)_proj"], [], 32 * 4096 * (2 * 4096 + 2 * 1024)),
        (QWEN3_30B_A3B, ["re:.*mlp.*"], ["re:.*mlp.experts.*"], 48 * 2048 * 128),
        (QWEN3_30B_A3B, ["FusedMoE"], [], 48 * 128 * 3 * 2048 * 768),
        (QWEN3_30B_A3B, ["Linear"], ["lm_head", "re:.*self_attn.*"], 48 * 128 * 3 * 2048 * 768),
    ],
)  # fmt: skip
def test_targets_of_compressed_tensors_are_quantised_but_for_those_to_ignore(
    model, targets, ignore, narrow
):
    plain = facts_from_config(vars(model), name="x").weight_bytes
    assert compressed(model, targets, ignore).weight_bytes == plain - narrow


NO_LAYER = 'quantised weights of "{}", which no layer has'
UNREAD = "weights quantised as compressed-tensors float-quantized, in a form that is not known"


@pytest.mark.parametrize(
    ("targets", "why"),
    [
        (["FooLinear"], NO_LAYER), (["RowParallelLinear"], NO_LAYER), (["re:.*foo.*"], NO_LAYER),
        ([r"re:.*layers\.[0-9]+\.mlp\.(?!gate).*"], UNREAD),
        ([r"re:^(?!.*lm_head).*$"], UNREAD),
        ([r"re:.*self_attn.*", r"re:.*mlp\.(?!gate).*"], UNREAD),
        ([r"re:.*\.\w+_proj"], UNREAD),
        ([r"re:.*experts?\.[0-9]{1,3}.*"], UNREAD),
    ],
)  # fmt: skip
def test_targets_that_no_layer_has_are_told_apart_from_those_that_are_not_read(targets, why):
    facts = compressed(LLAMA_3_1_8B, targets, ["lm_head"])
    assert (facts.uncounted, facts.weight_bytes) == (why.format(*targets), None)


def test_linear_layers_are_read_whatever_stands_beside_them():
    plain, beside = (
        compressed(LLAMA_3_1_8B, ["Linear", *more], ["lm_head"])
        for more in ([], ["re:^(?!.*lm_head).*$"])
    )
    assert plain.weight_bytes is not None
    assert beside.weight_bytes == plain.weight_bytes


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 1, 4, 64, 10**30, "", "bfloat16", "x" * 500, "\x00", [4, 4], {}])
    | st.floats()
    | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
NAMES = sorted(
    {*vars(QWEN3_30B_A3B), *LATENT, "text_config", "llm_config", "quantization_config",
     "layer_types", "layers_block_type", "sliding_window", "use_sliding_window", "block_configs",
     "index_topk", "sparse_attention_config", "vision_config", "model_type", "n_shared_experts",
     *INDEX, "hybrid_override_pattern", "compress_ratios", "moe_layer_freq", "per_layer_config",
     "linear_num_value_heads", "mamba_num_heads", "no_rope_layers", "num_hidden_layers",
     "decoder_sparse_step", "mlp_only_layers", "v_head_dim", "attn_type_list", "linear_attn_config",
     "attention_chunk_size", "is_encoder_decoder", "num_kv_shared_layers", "torch_dtype"}
)  # fmt: skip
CONFIGS = st.tuples(
    st.sampled_from([vars(LLAMA_3_1_8B), vars(QWEN3_30B_A3B), {}]),
    st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4),
    st.sets(st.sampled_from(NAMES), max_size=2),
    st.sampled_from([None, "text_config", "thinker_config"]),
)


@pytest.mark.slow
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CONFIGS)
def test_any_object_gives_facts_or_one_line_with_the_file(tmp_path, drawn):
    base, changes, without, inside = drawn
    config = {key: value for key, value in (base | changes).items() if key not in without}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config if inside is None else {inside: config}))
    try:
        facts = facts_from_file(file)
    except TtscopeError as error:
        assert str(error).startswith(str(file))
        assert "\n" not in str(error)
        assert len(str(error)) < len(str(file)) + 200
        return
    counts = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
    assert all(getattr(facts, name) > 0 for name in counts)
    for name in ("total_parameters", "active_parameters", "weight_bytes", "kv_bytes_per_token"):
        value = getattr(facts, name)
        assert value is None or (isinstance(value, int) and value > 0)
    facts.reads_all(4096)
    assert facts_from_folder(tmp_path, name="x") is not None


@pytest.mark.slow
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(VALUES | st.binary(max_size=30))
def test_any_document_gives_facts_or_one_line_with_the_file(tmp_path, document):
    file = tmp_path / "other.json"
    plain = document if isinstance(document, bytes) else json.dumps(document).encode()
    file.write_bytes(plain)
    with pytest.raises(UsageError, match="other.json"):
        facts_from_file(file)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "9" * 5000, '{"hidden_size": ' + "9" * 5000 + "}", "NaN", ""]
)
def test_what_python_cannot_read_is_one_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UsageError, match=r"config\.json: (is no JSON|holds no JSON object)"):
        facts_from_file(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "config.json: no field hidden_size"),
        ({"hidden_size": "4096"}, 'config.json: hidden_size is "4096", not a whole number from 1'),
        ({"num_key_value_heads": [8, 4]}, "config.json: num_key_value_heads is a list, not a"),
        ({"num_hidden_layers": -1}, "config.json: num_hidden_layers is -1, not a whole number"),
        ({"vocab_size": 10**40}, "vocab_size is a number with too many digits, not"),
        ({"vocab_size": True}, "vocab_size is true, not a whole number"),
        ({"vocab_size": 1.5}, "vocab_size is 1.5, not a whole number"),
        ({"text_config": [1]}, "text_config is a list, not an object"),
        ({"quantization_config": "fp8"}, 'quantization_config is "fp8", not an object'),
        ({"tie_word_embeddings": "false"}, 'tie_word_embeddings is "false", not true or false'),
        ({"torch_dtype": 16}, "torch_dtype is 16, not the name of a dtype"),
        ({"layer_types": "full"}, 'layer_types is "full", not a list of words'),
        ({"num_key_value_heads": 5}, "is no multiple of num_key_value_heads 5"),
        ({"num_experts": 2, "num_experts_per_tok": 4}, "4 experts are visited of the 2"),
        ({"num_experts": 6, "num_experts_per_tok": 2, "n_group": 4},
         "6 experts are no multiple of n_group 4"),
        ({"num_hidden_layers": 10_000}, "num_hidden_layers is 10,000, more than the 2,048"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(tmp_path, change, message):
    (tmp_path / "config.json").write_text(json.dumps(vars(LLAMA_3_1_8B) | change))
    with pytest.raises(UsageError) as error:
        facts_from_file(tmp_path)
    assert message in str(error.value)


# The bytes of a parameter with its scales: a float32 for each tensor or block of 128 x 128, a byte
# for 16 (NVFP4) or 32 (MXFP8), a float16 for each group of 128.
@pytest.mark.parametrize(
    ("config", "kind", "size"),
    [
        ({}, None, 2),
        ({"quant_method": "fp8"}, "fp8", 1),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8_block", 1 + 4 / 128**2),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"},
         "compressed-tensors float-quantized", None),
        ({"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float"}}}},
         "compressed-tensors float-quantized", 1),
        ({"quant_algo": "NVFP4", "quant_method": "modelopt"}, "nvfp4", 0.5 + 1 / 16),
        ({"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}, "fp8", 1),
        ({"quant_algo": "MXFP8"}, "mxfp8", 1 + 1 / 32),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "awq", 0.5 + 2 / 128),
        ({"quant_method": "gptq", "bits": 4, "group_size": 32}, "gptq", 0.5 + 2 / 32),
        ({"quant_method": "fbgemm_fp8"}, "fbgemm_fp8", 1),
        ({"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp4",
            "group_size": 32}}}, "quark", 0.5 + 1 / 32),
        ({"quant_method": "torchao", "quant_type": {"default": {
            "_type": "Int4WeightOnlyConfig", "_data": {"group_size": 64}}}},
         "torchao", 0.5 + 2 / 64),
        ({"load_in_4bit": True}, "bitsandbytes", None),
        ({"quant_method": None, "bits": 3}, "an unknown form", None),
    ],
)  # fmt: skip
def test_forms_of_quantisation(config, kind, size):
    plain = vars(LLAMA_3_1_8B)
    facts = facts_from_config(plain | {"quantization_config": config}, name="x")
    assert facts.quantization == kind
    embedding = 2 * 128256 * 4096
    if size is None:
        assert facts.weight_bytes is None
        assert kind in facts.uncounted
    else:
        layers = facts.total_parameters - embedding
        assert facts.weight_bytes == round(layers * size + 2 * embedding)
    assert facts_from_config(plain | {"compression_config": config}, name="x") == facts


def test_quantisation_is_read_beside_the_config_and_in_the_files(tmp_path):
    plain = json.dumps(vars(LLAMA_3_1_8B))
    (tmp_path / "a_config.json").write_text(plain)
    assert facts_from_file(tmp_path / "a_config.json").quantization is None
    told = {"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}
    (tmp_path / "a_hf_quant_config.json").write_text(json.dumps(told))
    facts = facts_from_file(tmp_path / "a_config.json")
    assert facts.quantization == "fp8"
    assert facts.kv_bytes_per_token == 131072 / 2
    (tmp_path / "config.json").write_text(plain)
    write_weights(tmp_path, {"model.layers.0.mlp.up_proj.weight": ("F8_E4M3", (4, 8), 1)})
    facts = facts_from_folder(tmp_path, name="x")
    assert facts.quantization == "weights in F8_E4M3"
    assert facts.weight_bytes == 32


def test_files_tell_what_a_config_does_not(tmp_path):
    """A mixture beside which one expert is shared, with images and a layer that only drafts."""
    mixture = vars(LLAMA_3_1_8B) | {
        "architectures": ["NewForConditionalGeneration"], "num_hidden_layers": 1, "hidden_size": 8,
        "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 16, "num_experts": 4,
        "num_experts_per_tok": 1, "n_shared_experts": 1,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(mixture))
    facts = facts_from_folder(tmp_path, name="x")
    assert (facts.total_parameters, facts.active_parameters) == (None, None)
    weights = {
        "model.embed_tokens.weight": (16, 8),
        "model.layers.0.self_attn.q_proj.weight": (8, 8),
        "model.layers.0.mlp.experts.0.up_proj.weight": (40, 8),
        "model.layers.0.mlp.shared_experts.up_proj.weight": (10, 8),
        "model.visual.blocks.0.attn.weight": (5, 8),
        "model.layers.1.mlp.up_proj.weight": (100, 8),
        "lm_head.weight": (16, 8),
    }
    write_weights(tmp_path, {key: ("BF16", shape, 2) for key, shape in weights.items()})
    facts = facts_from_folder(tmp_path, name="x")
    assert facts.total_parameters == 128 + 64 + 320 + 80 + 40 + 128
    assert facts.active_parameters == 64 + 80 + 80 + 128
    assert facts.weight_bytes == 2 * facts.total_parameters


def test_experts_of_layers_that_a_hybrid_has_not_are_none(tmp_path):
    config = {
        "architectures": ["NemotronHForCausalLM"], "model_type": "nemotron_h", "hidden_size": 64,
        "layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp"],
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "intermediate_size": 128, "vocab_size": 64, "mamba_num_heads": 8, "mamba_head_dim": 16,
        "ssm_state_size": 16, "n_groups": 1, "conv_kernel": 4, "n_routed_experts": 8,
        "num_experts_per_tok": 2, "moe_intermediate_size": 7688, "dtype": "bfloat16",
    }  # fmt: skip  # the experts are the defaults that transformers writes
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_weights(tmp_path, {"backbone.embeddings.weight": ("BF16", [64, 64], 2),
                             "lm_head.weight": ("BF16", [64, 64], 2)})  # fmt: skip
    facts = facts_from_folder(tmp_path, name="hybrid")
    assert facts.num_experts is facts.experts_per_token is None
    assert facts.active_parameters is not None


def test_weights_that_are_quantised_on_loading_are_not_two_bytes():
    facts = facts_from_config(LLAMA_3_1_8B, name="x", quantization="fp8")
    embedding = 128256 * 4096
    assert facts.weight_bytes == facts.total_parameters + 2 * embedding
    facts = facts_from_config(LLAMA_3_1_8B, name="x", quantization="bitsandbytes")
    assert facts.weight_bytes is None


def write_weights(folder, entries, name="model.safetensors"):
    """Write the header of a safetensors file: by name dtype, shape and bytes of an element."""
    header, at = {}, 0
    for key, (dtype, shape, size) in entries.items():
        end = at + shape[0] * shape[1] * size
        header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    (folder / name).write_bytes(struct.pack("<Q", len(text)) + text)


def test_a_header_of_more_values_than_a_model_has_is_not_read(tmp_path):
    header = {"w": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}}
    for name, most in (("within", 1_000), ("beyond", 2_000_000)):
        (tmp_path / name).mkdir()
        text = json.dumps(header | {"__metadata__": [0] * most}).encode()
        data = struct.pack("<Q", len(text)) + text
        (tmp_path / name / "model.safetensors").write_bytes(data)
    assert stored_weights(tmp_path / "within", 1).parameters == 4
    assert stored_weights(tmp_path / "beyond", 1) is None


def test_a_pipe_among_the_files_of_a_model_is_not_read(tmp_path):
    half = {"model.layers.0.mlp.weight": ("BF16", (10, 10), 2)}
    write_weights(tmp_path, half, "model-1.safetensors")
    written = (tmp_path / "model-1.safetensors").read_bytes()
    os.mkfifo(tmp_path / "model-2.safetensors")
    pipe = os.open(tmp_path / "model-2.safetensors", os.O_RDWR)  # who reads would get the same
    os.write(pipe, written)
    assert stored_weights(tmp_path, 1) is None
    os.close(pipe)


def test_only_the_files_that_are_the_model_are_counted(tmp_path):
    half = {"model.layers.0.mlp.weight": ("BF16", (10, 10), 2)}
    other = {"lm_head.weight": ("BF16", (10, 5), 2)}
    write_weights(tmp_path, half, "model-1.safetensors")
    write_weights(tmp_path, half | other, "consolidated.safetensors")
    write_weights(tmp_path, other, "model-2.safetensors")
    assert stored_weights(tmp_path, 1).parameters == 150  # without an index, not the same twice
    index = {"weight_map": dict.fromkeys(half, "model-1.safetensors")}
    index["weight_map"] |= dict.fromkeys(other, "model-2.safetensors")
    write_weights(tmp_path, half, "adapter.safetensors")  # in no index
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert stored_weights(tmp_path, 1).parameters == 150
    (tmp_path / "model-2.safetensors").unlink()
    assert stored_weights(tmp_path, 1).parameters == 150  # of the other form, which is whole
    (tmp_path / "consolidated.safetensors").unlink()
    assert stored_weights(tmp_path, 1) is None


def test_layers_that_only_draft_are_left_out_and_those_of_towers_are_not(tmp_path):
    entries = {
        "language_model.model.layers.17.mlp.weight": ("BF16", (10, 10), 2),
        "language_model.model.layers.18.mlp.weight": ("BF16", (10, 10), 2),
        "model.mtp_layers.0.mlp.weight": ("BF16", (10, 10), 2),
        "vision_tower.vision_model.encoder.layers.26.mlp.weight": ("BF16", (10, 7), 2),
    }
    write_weights(tmp_path, entries)
    stored = stored_weights(tmp_path, 18)
    assert (stored.parameters, stored.towers, stored.size_bytes) == (170, 70, 340)


def test_a_config_object_says_what_its_json_says(tmp_path):
    """As transformers makes them: some attributes cannot be read, some only stand in to_dict."""

    class Config(SimpleNamespace):
        @property
        def num_key_value_heads(self):
            raise AttributeError("differs by layer")

        def to_dict(self):
            own = {"05": {"head_dim": 256, "num_key_value_heads": 2}}
            return vars(LLAMA_3_1_8B) | {"per_layer_config": own, "model_type": "gemma4_text"}

    fields = {k: v for k, v in vars(LLAMA_3_1_8B).items() if k != "num_key_value_heads"}
    config = Config(**fields, model_type="gemma4_text", tie_word_embeddings=True)
    facts = facts_from_config(config, name="x", around=[{"tie_word_embeddings": False}])
    assert facts.kv_bytes_per_token == 2 * 2 * (31 * 8 * 128 + 2 * 256)
    assert [each.name for each in facts.others] == ["embed_tokens", "lm_head"]
    (tmp_path / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}')
    assert facts_from_config(config, name="x", folder=tmp_path).quantization == "fp8"


def test_fields_that_published_configs_leave_out_are_those_of_their_type():
    text = {
        "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240,
        "num_hidden_layers": 34, "sliding_window": 1024,
    }  # fmt: skip
    tower = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27}
    facts = facts_from_config(text, name="x", around=[{"vision_config": tower}])
    assert facts.total_parameters == pytest.approx(4.3e9, rel=0.01)  # google/gemma-3-4b-it
    assert [each.count for each in facts.layers] == [29, 5]


@pytest.mark.parametrize(
    "told",
    [
        {"quant_method": "fp8", "ignore": [f"*x{number}*" for number in range(50_000)]},
        {"quant_algo": "MIXED_PRECISION", "quantized_layers": {
            f"layers.{number}.mlp": {"quant_algo": "FP8", "group_size": number}
            for number in range(70)
        }},
    ],
)  # fmt: skip
def test_more_patterns_than_can_be_matched_are_one_line(told):
    with pytest.raises(UsageError, match="more than ttscope matches"):
        facts_from_config(vars(LLAMA_3_1_8B) | {"quantization_config": told}, name="x")


# Of layers of 2 x 64 x 64 (q, o) and 2 x 64 x 32 (k, v) attention and a gated MLP of 64 x 96.
SMALL = {
    "architectures": ["NewForCausalLM"], "model_type": "new", "hidden_act": "silu",
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 4, "vocab_size": 1000, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}  # fmt: skip
MIXED = {"num_experts": 4, "num_experts_per_tok": 2}
LAYER, MLP, EMBEDDING = 2 * 64 * 64 + 2 * 64 * 32, 3 * 64 * 96, 64 * 1000


@pytest.mark.parametrize(
    ("change", "layer"),
    [
        # MLPs beside the experts: as wide as the model's (Grok 2), or as the hidden size (Arctic).
        (MIXED | {"residual_moe": True}, LAYER + 64 * 4 + 5 * MLP),
        (MIXED | {"parallel_attn_mlp_res": True}, LAYER + 64 * 4 + 4 * MLP + 3 * 64 * 64),
        # One number for every layer (Hunyuan), and a width of both halves of a gate (Qwen).
        ({"num_experts": 4, "moe_topk": [2, 2], "moe_intermediate_size": [48, 48],
          "num_shared_expert": [1, 1]}, LAYER + 64 * 4 + 5 * MLP // 2),
        ({"model_type": "qwen", "intermediate_size": 192}, LAYER + MLP),
        ({"num_hidden_layers": None, "num_layers": 2, "hidden_act": None,
          "activation_function": "silu"}, LAYER + MLP),
        # Sizes of a state that no layer of the list keeps (Granite 4 without Mamba), no window.
        ({"layer_types": ["attention"] * 2, "mamba_d_state": 16, "mamba_n_heads": 4}, LAYER + MLP),
        ({"sliding_window_size": -1}, LAYER + MLP),
        ({"model_type": "phimoe", "hidden_act": None}, LAYER + MLP),
        ({"_num_mtp_layers": 1, "mtp_share_layers": True, "scale_depth": 1.4}, LAYER + MLP),
    ],
)  # fmt: skip
def test_parts_by_the_fields_of_their_families(change, layer):
    facts = facts_from_config(SMALL | change, name="x")
    assert facts.uncounted is None
    assert facts.total_parameters == 2 * layer + EMBEDDING
    assert facts.attention == ("full_attention",)


def test_a_tower_of_an_older_form_is_counted_beside_flat_fields():
    tower = {"depth": 2, "embed_dim": 16, "mlp_ratio": 4, "hidden_size": 64}
    facts = facts_from_config(SMALL | {"vision_config": tower}, name="x")
    # Two layers, and what merges 4 patches into one of the model's width.
    seen = 2 * (4 * 16 * 16 + 2 * 16 * 64) + 64 * (64 + 64)
    assert facts.total_parameters == 2 * (LAYER + MLP) + EMBEDDING + seen


@pytest.mark.parametrize(
    ("fields", "of_layer", "merger"),
    [
        ({"hidden_act": "silu", "spatial_merge_size": 2}, 3 * 16 * 32, 64 * (64 + 64)),  # Qwen 2.5
        ({"model_type": "pixtral", "hidden_act": "gelu"}, 3 * 16 * 32, 64 * (64 + 64)),
        ({"model_type": "siglip_vision_model"}, 2 * 16 * 32, 16 * 64),
        ({"model_type": "gemma4_vision"}, 3 * 16 * 32, 16 * 64),
        # Patches are joined by a convolution, and the MLPs of layers are as wide as the model.
        ({"model_type": "glm4v_moe", "hidden_act": "silu"}, 3 * 16 * 64, 64 * (64 + 64 + 3 * 32)),
    ],
)  # fmt: skip
def test_towers_by_their_types(fields, of_layer, merger):
    tower = {"depth": 2, "hidden_size": 16, "intermediate_size": 32} | fields
    facts = facts_from_config(SMALL | {"vision_config": tower}, name="x")
    seen = 2 * (4 * 16 * 16 + of_layer) + merger
    assert facts.total_parameters == 2 * (LAYER + MLP) + EMBEDDING + seen


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_head_that_drafts_has_its_own_vocabulary_and_wide_inputs(tmp_path, wrapped):
    layer = SMALL | {"num_hidden_layers": 1, "tie_word_embeddings": False}
    del layer["architectures"]
    head = {"architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": 100}
    config = head | {"transformer_layer_config": layer} if wrapped else layer | head
    (tmp_path / "draft_config.json").write_text(json.dumps(config))
    facts = facts_from_file(tmp_path / "draft_config.json")
    wide = 64 * (64 + 2 * 32)  # q, k and v read the embedding too
    assert facts.total_parameters == LAYER + wide + MLP + EMBEDDING + 64 * 100 + 3 * 64 * 64
    assert facts.active_parameters == facts.total_parameters - EMBEDDING


@pytest.mark.parametrize(
    "told",
    [
        {"quant_method": "gptq", "dynamic": {"-:.*self_attn.*": {}, "+:.*down_proj": {"bits": 8}}},
        {"quant_method": "auto-round", "extra_config": {
            ".*self_attn.*": {"bits": 16}, ".*down_proj": {"bits": 8}}},
        {"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "int4"}},
         "layer_quant_config": {
            "*self_attn*": {"weight": None}, "*down_proj": {"weight": {"dtype": "int8"}}}},
    ],
)  # fmt: skip
def test_modules_with_a_form_of_their_own_are_not_in_that_of_the_rest(told):
    assert forms_of(told | {"group_size": 64}) == {
        **{f"self_attn.{name}_proj": "bfloat16" for name in "qkvo"},
        "mlp.gate_proj": "int4", "mlp.up_proj": "int4", "mlp.down_proj": "int8",
    }  # fmt: skip


def forms_of(told):
    """The form of each matrix of a small model whose weights are quantised so, in four bits."""
    facts = facts_from_config(SMALL | {"quantization_config": told | {"bits": 4}}, name="x")
    return {each.name: each.precision for each in facts.layers[0].matrices}


@pytest.mark.parametrize("first", ["-:.*mlp.*", "+:.*down_proj"])
def test_the_first_match_of_a_dynamic_config_counts(first):
    """As GPTQModel's `dynamic_get` and vLLM's `get_dynamic_override` read it."""
    rules = {"-:.*mlp.*": {}, "+:.*down_proj": {"bits": 8}}
    forms = forms_of({"quant_method": "gptq", "dynamic": {first: rules[first]} | rules})
    assert forms["mlp.gate_proj"] == "bfloat16" and forms["self_attn.q_proj"] == "int4"
    assert forms["mlp.down_proj"] == ("bfloat16" if first.startswith("-") else "int8")


def test_rules_of_many_layers_in_turn_are_read():
    rules = {}
    for layer in range(80):
        rules[f"-:.*layers.{layer}.self_attn.*"] = {}
        rules[f"+:.*layers.{layer}.mlp.*"] = {"bits": 8}
    forms = forms_of({"quant_method": "gptq", "dynamic": rules})
    assert forms["self_attn.q_proj"] == "bfloat16" and forms["mlp.up_proj"] == "int8"


def test_a_model_of_the_priors_package_is_given_by_its_name(tmp_path, monkeypatch):
    package = tmp_path / "a_package_of_tables"
    (package / "model_configs").mkdir(parents=True)
    (package / "__init__.py").touch()
    config = package / "model_configs" / "Maker--Model-8B_config.json"
    config.write_text(json.dumps(vars(QWEN3_30B_A3B)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(model_facts, "PRIOR", "a_package_of_tables")
    found = given_facts(Path("Maker/Model-8B"))
    assert found == dataclasses.replace(given_facts(config), name="Maker/Model-8B")
    with pytest.raises(UsageError, match="Maker/Model-7B: no such file, nor such a model. Did you"):
        given_facts(Path("Maker/Model-7B"))
    with pytest.raises(UsageError, match=r"--model-config other.json cannot be read"):
        given_facts(Path("other.json"))
    with pytest.raises(UsageError, match=r"--model-config a{80}: cannot be read \(File name too"):
        given_facts(Path("a" * 5000))


@pytest.mark.parametrize(
    ("kind", "every"),  # as the models' own code in transformers has it
    [("gemma2", 2), ("gpt_oss", 2), ("gemma3_text", 6), ("cohere2", 4), ("exaone4", 4),
     ("olmo3", 4), ("vaultgemma", 2), ("afmoe", 4)],
)  # fmt: skip
def test_a_family_reads_all_of_the_context_in_every_so_many_layers(kind, every):
    config = vars(LLAMA_3_1_8B) | {"model_type": kind, "sliding_window": 128}
    facts = facts_from_config(config | {"num_hidden_layers": 24}, name="x")
    full = [each.places for each in facts.layers if each.attention.kind == "full_attention"]
    assert full == [tuple(range(every - 1, 24, every))]


@pytest.mark.parametrize(
    ("fields", "read"),
    [
        ({}, lambda context: 4 * context),
        (
            {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"] * 2},
            lambda context: 2 * context + 2 * min(context, 5),
        ),
    ],
)
def test_what_tokens_take_is_counted_in_windows_too(fields, read):
    """Each token by hand: weights, and each layer's reads of the context up to its own."""
    small = vars(LLAMA_3_1_8B) | {"num_hidden_layers": 4} | fields
    facts = facts_from_config(SimpleNamespace(**small), name="x")
    assert facts.counts_flops(None)
    each = 4 * facts.num_attention_heads * facts.head_dim
    for before, tokens in ((0, 3), (2, 9), (7, 1)):
        by_hand = sum(
            2 * facts.active_parameters + each * read(context)
            for context in range(before + 1, before + tokens + 1)
        )
        assert facts.forward_flops(before, tokens) == pytest.approx(by_hand, rel=1e-12)
    both = facts.forward_flops([0, 2], [3, 9])
    assert both.tolist() == [facts.forward_flops(0, 3), facts.forward_flops(2, 9)]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("end", [1, 5, 16])
def test_reads_of_windows_add_up(end, chunked):
    until = [0.0]
    for context in range(1, 40):
        until.append(until[-1] + in_window(context, end, chunked))
    assert read_until(np.arange(40.0), end, chunked).tolist() == until
    for before, tokens in ((0, 7), (3, 30)):
        assert (
            window_context(before, tokens, end, chunked) == until[before + tokens] - until[before]
        )
