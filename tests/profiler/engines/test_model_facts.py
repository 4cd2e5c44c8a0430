"""What a model costs: counted in its files, and in its config where they do not tell."""

import json
import struct
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from profiler.demo import task
from profiler.engines.model_facts import facts_from_config, facts_from_file, facts_from_folder
from traces.errors import TtscopeError, UsageError
from traces.schema.engine import ModelFacts

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
    architectures=["LlamaForCausalLM"],
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
    sparse = facts_from_config(QWEN3_30B_A3B, name="qwen")
    assert sparse.total_parameters == pytest.approx(30.5e9, rel=0.01)
    assert sparse.active_parameters == pytest.approx(3.0e9, rel=0.05)


LATENT = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64}


# Fields as in the models' own config.json (DeepSeek-V3, Gemma 2, Mistral 0.1, Qwen2.5, Jamba).
@pytest.mark.parametrize(
    ("fields", "attention", "window"),
    [
        ({}, ("full_attention",), None),
        (LATENT, ("latent_attention",), None),
        (LATENT | {"index_topk": 2048}, ("indexed_attention", "latent_attention"), None),
        ({"sparse_attention_config": {}}, ("full_attention",), None),
        ({"sparse_attention_config": {"use_sparse_attention": True}},
         ("full_attention", "indexed_attention"), None),
        ({"sliding_window": 128, "hybrid_layer_pattern": [0, 1, 1]},
         ("full_attention", "sliding_attention"), 128),
        ({"attn_type_list": [0, 1]}, ("full_attention", "linear_attention"), None),
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
    fields = LATENT | {"num_hidden_layers": 61}
    facts = facts_from_config(SimpleNamespace(**{**vars(LLAMA_3_1_8B), **fields}), name="x")
    assert facts.kv_bytes_per_token == 70272


def test_no_model(tmp_path):
    assert facts_from_folder(tmp_path, name="x") is None
    (tmp_path / "config.json").write_text("{}")
    assert facts_from_folder(tmp_path, name="x") is None


# In billions, from the models' cards and papers (arXiv 2407.21783, 2505.09388, 2508.10925); what
# the facts do not count yet (latent and linear attention, shared experts, ..) is not known.
PUBLISHED = {
    "meta-llama--Meta-Llama-3.1-8B": (8.03, None),
    "meta-llama--Meta-Llama-3.1-70B": (70.6, None),
    "meta-llama--Meta-Llama-3.1-405B": (405.9, None),
    "Qwen--Qwen3-32B": (32.8, None),
    "Qwen--Qwen3-30B-A3B": (30.5, 3.0),
    "Qwen--Qwen3-235B-A22B": (235.1, 21.5),
    "mistralai--Mixtral-8x7B-v0.1": (46.7, 12.9),
    "openai--gpt-oss-120b": (116.8, 5.13),
    "openai--gpt-oss-20b": (20.9, 3.61),
    "MiniMaxAI--MiniMax-M2.5": (229, 10.4),
}
HYBRID = {"linear_attention", "mamba", "indexed_attention", "chunked_attention"}


def test_every_model_that_people_serve_gives_facts_or_one_line(shared):
    files = sorted((shared / "data/model_configs").glob("*_config.json"))
    files = [file for file in files if "hf_quant" not in file.name]
    assert len(files) == 86
    refused = {}
    for file in files:
        try:
            facts = facts_from_file(file)
        except TtscopeError as error:
            refused[file.name] = str(error)
            continue
        name = file.name.removesuffix("_config.json")
        assert ModelFacts.from_json(json.loads(json.dumps(facts.to_json()))) == facts
        assert facts.architecture is not None
        quantised = any(mark in name for mark in ("FP8", "NVFP4"))
        assert not quantised or facts.quantization is not None
        if facts.quantization is not None:  # what they weigh is in no config
            assert facts.weight_bytes is None
        if HYBRID & set(facts.attention or ()):
            counts = (facts.total_parameters, facts.active_parameters, facts.kv_bytes_per_token)
            assert counts == (None, None, None)
        if "latent_attention" in (facts.attention or ()):
            assert facts.active_parameters is None
        if name in PUBLISHED:
            total, active = PUBLISHED[name]
            assert facts.total_parameters == pytest.approx(total * 1e9, rel=0.005)
            if active is not None:
                assert facts.active_parameters == pytest.approx(active * 1e9, rel=0.02)
    (only,) = refused
    assert "Nemotron-Super-49B" in only
    assert "block_configs" in refused[only]


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
     "decoder_sparse_step", "mlp_only_layers", "v_head_dim", "attn_type_list", "linear_attn_config",
     "attention_chunk_size", "is_encoder_decoder", "num_kv_shared_layers", "torch_dtype"}
)  # fmt: skip
CONFIGS = st.tuples(
    st.sampled_from([vars(LLAMA_3_1_8B), vars(QWEN3_30B_A3B), {}]),
    st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4),
    st.sets(st.sampled_from(NAMES), max_size=2),
    st.sampled_from([None, "text_config", "thinker_config"]),
)


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
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


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
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
    ],
)
def test_a_wrong_field_is_named(tmp_path, change, message):
    (tmp_path / "config.json").write_text(json.dumps(vars(LLAMA_3_1_8B) | change))
    with pytest.raises(UsageError) as error:
        facts_from_file(tmp_path)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({}, None),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8_block"),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"},
         "compressed-tensors float-quantized"),
        ({"quant_algo": "NVFP4", "quant_method": "modelopt"}, "nvfp4"),
        ({"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}, "fp8"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "gptq"}, "gptq"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": None, "bits": 3}, "an unknown form"),
    ],
)  # fmt: skip
def test_forms_of_quantisation(config, kind):
    plain = vars(LLAMA_3_1_8B)
    facts = facts_from_config(plain | {"quantization_config": config}, name="x")
    assert facts.quantization == kind
    assert (facts.weight_bytes is None) == (kind is not None)
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


def test_weights_that_are_quantised_on_loading_are_not_two_bytes():
    facts = facts_from_config(LLAMA_3_1_8B, name="x", quantization="fp8")
    embedding = 128256 * 4096
    assert facts.weight_bytes == facts.total_parameters + 2 * embedding
    facts = facts_from_config(LLAMA_3_1_8B, name="x", quantization="bitsandbytes")
    assert facts.weight_bytes is None


def write_weights(folder, entries):
    """Write the header of a safetensors file: by name dtype, shape and bytes of an element."""
    header, at = {}, 0
    for key, (dtype, shape, size) in entries.items():
        end = at + shape[0] * shape[1] * size
        header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
