"""`ttscope doctor --model-config`: what is known of a model, and what can be predicted of it."""

import json
import os
import subprocess
import sys

import pytest

from tests.advisor.step_time.prior.prior_files import DEVICE
from tests.tui.model_config import llama_config

DENSE = llama_config() | {
    "model_type": "llama", "hidden_act": "silu", "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}  # fmt: skip
MIXTURE = DENSE | {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 128}
LATENT = MIXTURE | {
    "kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32,
    "q_lora_rank": 128,
}  # fmt: skip
FP8 = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
WINDOWS = {"layer_types": ["full_attention", "sliding_attention"] * 2, "sliding_window": 64}


@pytest.fixture
def asked(run, tmp_path, prior):
    """What doctor says of a config, as JSON."""

    def call(config, *more):
        (tmp_path / "m_config.json").write_text(json.dumps(config))
        code, out, err = run("doctor", "--model-config", "m_config.json", "--json", *more)
        assert (code, err) == (0, ""), err
        return json.loads(out)

    return call


def test_what_is_known_and_what_can_be_predicted(asked):
    found = asked(DENSE, "--gpu", "test_gpu")
    assert list(found) == ["name", "facts", "replay", "prior"]
    assert [list(found[name]) for name in ("replay", "prior")] == [["ok", "why"]] * 2
    assert found["name"] == found["facts"]["name"] == "m"
    layer = 2 * 512 * 512 + 2 * 512 * 256 + 3 * 512 * 1024
    assert found["facts"]["total_parameters"] == 4 * layer + 2 * 512 * 1000
    assert found["replay"]["ok"] and found["prior"]["ok"]
    why = found["prior"]["why"]
    assert (
        why
        == f"The tables of {DEVICE} (vLLM 0.9.0) have its shapes at tensor_parallel_size 1, 2, 4"
    )


@pytest.mark.parametrize(
    ("config", "replay", "tables"),
    [
        (DENSE | FP8, None, None),
        (DENSE | WINDOWS, None, None),
        (MIXTURE, None, "no table of experts (moe/moe_perf.parquet)"),
        (LATENT | FP8, None, "no table mla/mla_generation_module_perf.parquet"),
        (LATENT | {"index_topk": 8, "index_n_heads": 2, "index_head_dim": 32},
         None, "no table sparse_attention/dsa_generation_module_perf.parquet"),
        (DENSE | {"layer_types": ["warp_attention"] * 4}, "layers of the kind warp_attention",
         "layers of the kind warp_attention"),
        (DENSE | {"quantization_config": {"quant_method": "hqq"}},
         "has weights quantised as hqq, in a form that is not known", "quantised as hqq"),
    ],
)  # fmt: skip
def test_what_is_refused_says_what_is_missing(asked, config, replay, tables):
    found = asked(config, "--gpu", "test_gpu")
    for name, missing in (("replay", replay), ("prior", tables)):
        assert found[name]["ok"] == (missing is None), found[name]
        assert (missing or "") in found[name]["why"]
        assert "\n" not in found[name]["why"]
    unlike_dense = found["replay"]["ok"] and config != DENSE | FP8
    assert ("checked the replay" in found["replay"]["why"]) == unlike_dense


def test_without_a_gpu_the_prior_says_so(asked):
    assert asked(DENSE)["prior"]["why"] == "No GPU is named. Name one, such as --gpu h100_sxm"


def test_a_gpu_that_is_not_known_is_refused(run, tmp_path, prior):
    (tmp_path / "m_config.json").write_text(json.dumps(DENSE))
    call = ("doctor", "--model-config", tmp_path / "m_config.json", "--gpu", "test_gpuu")
    assert "Did you mean test_gpu?" in run.refused(*call, code=2)


def test_in_lines(run, tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps(LATENT | FP8 | {"num_nextn_predict_layers": 1})
    )
    out = run.ok("doctor", "--model-config", tmp_path)
    assert max(map(len, out.splitlines())) <= 80
    told = " ".join(out.split())
    assert (
        "4 of 4 (0-3): latent attention, 8 heads, latent of 64 + 16, 2 of 8 experts of 128" in told
    )
    assert "1 layer more that only draft (MTP), which no total counts" in told
    assert "replay yes. A recording of it is enough" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model-config", "nowhere.json"), "nowhere.json cannot be read (No such file"),
        (("--gpu", "h100_sxm"), "--gpu goes with --model-config"),
        (("http://localhost:1", "--model-config", "x"), "neither with a URL"),
        (("--api-key-env", "X", "--model-config", "x"), "are of a server"),
    ],
)
def test_bad_requests_are_one_line(run, arguments, message):
    assert message in run.refused("doctor", *arguments, code=2)


@pytest.mark.slow
def test_no_engine_is_imported(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(DENSE))
    code = (
        "import sys\nfrom tui import cli\n"
        f"sys.argv = ['ttscope', 'doctor', '--model-config', {str(tmp_path)!r}, '--json']\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "print({'vllm', 'torch'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env=dict(os.environ),
    )  # fmt: skip
    assert done.stderr.strip() == "set()"
