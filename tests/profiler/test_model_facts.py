"""What a model costs: counted in its files, and in its config where they do not tell."""

import json
from types import SimpleNamespace

import pytest

from profiler.demo import task
from profiler.model_facts import dtype_bytes, facts_from_config, facts_from_folder
from traces.schema import ModelFacts

QWEN3_30B_A3B = SimpleNamespace(
    architectures=["Qwen3MoeForCausalLM"],
    hidden_size=2048,
    num_hidden_layers=48,
    num_attention_heads=32,
    num_key_value_heads=4,
    head_dim=128,
    intermediate_size=6144,
    moe_intermediate_size=768,
    num_experts=128,
    num_experts_per_tok=8,
    vocab_size=151936,
    tie_word_embeddings=False,
    dtype="bfloat16",
)
LLAMA_3_1_8B = SimpleNamespace(
    hidden_size=4096,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    intermediate_size=14336,
    vocab_size=128256,
    torch_dtype="bfloat16",
)


@pytest.mark.parametrize("size", sorted(task.MODELS))
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_bundled_models(size, dtype):
    facts = facts_from_folder(task.model_path(size), name=size, dtype=dtype)
    parameters = task.MODELS[size]["parameters"]
    assert facts.total_parameters == facts.active_parameters == parameters
    assert facts.weight_bytes == parameters * dtype_bytes(dtype)


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
    sparse = facts_from_config(QWEN3_30B_A3B, name="qwen")
    assert sparse.total_parameters == pytest.approx(30.5e9, rel=0.01)
    assert sparse.active_parameters == pytest.approx(3.0e9, rel=0.05)


# Fields as in the models' own config.json (DeepSeek-V3, Gemma 2, Mistral 0.1, Qwen2.5, Jamba).
@pytest.mark.parametrize(
    ("fields", "attention", "window"),
    [
        ({}, ("full_attention",), None),
        ({"kv_lora_rank": 512, "qk_rope_head_dim": 64}, ("latent_attention",), None),
        (
            {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4096},
            ("full_attention", "sliding_attention"),
            4096,
        ),
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
    fields = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "num_hidden_layers": 61}
    facts = facts_from_config(SimpleNamespace(**{**vars(LLAMA_3_1_8B), **fields}), name="x")
    assert facts.kv_bytes_per_token == 70272


def test_no_model(tmp_path):
    assert facts_from_folder(tmp_path, name="x") is None
    (tmp_path / "config.json").write_text("{}")
    assert facts_from_folder(tmp_path, name="x") is None
