import dataclasses
import re

import numpy as np
import pytest

from advisor.step_time.operators.files import read_operators
from tests.advisor.step_time.operators.operator_tables import write_tables
from tests.advisor.step_time.prior.prior_files import TINY
from traces.errors import TablesError, UsageError
from traces.schema.engine import EngineConfig


def test_times_are_read_in_seconds_and_sorted(tmp_path):
    folder = write_tables(tmp_path)
    lines = (folder / "dense.csv").read_text().splitlines()
    (folder / "dense.csv").write_text("\n".join([lines[0], *reversed(lines[1:]), "", ""]))
    found = read_operators(folder)
    expected = [[1, 3.5e-6], [2, 4e-6], [4, 5e-6]]
    np.testing.assert_allclose(found.dense["layernorm"][:3], expected, rtol=1e-12)
    assert found.skew is None
    assert (found.gpu, found.model, found.tensor_parallel_size) == (
        "NVIDIA Test", "test/model", 1
    )  # fmt: skip


DAMAGE = [
    ("dense.csv", r"layer,tokens", "layer,count", "line 1: no column tokens (there are layer, cou"),
    ("dense.csv", r"act_fn,4,.*", "act_fn,4", "line 46: ends before time_us. The file is cut"),
    ("dense.csv", r"act_fn,4,.*", "act_fn,4,fast", "line 46: time_us is 'fast', not a number"),
    ("dense.csv", r"act_fn,4,.*", "act_fn,4,nan", "line 46: time_us is 'nan', not a number"),
    ("dense.csv", r"act_fn,4,.*", "act_fn,4,-1", "line 46: time_us is -1: no time"),
    ("dense.csv", r"act_fn,4,", "act_fn,4.5,", "line 46: tokens is 4.5, not a whole number from 1"),
    ("dense.csv", r"act_fn,4,", "act_fn,2,", "line 46: act_fn at 2 tokens a second time"),
    ("dense.csv", r"(?s)\n.*", "\n", "dense.csv: no rows below the header"),
    ("dense.csv", r"(?s).*", "", "line 1: no column layer (there are none)"),
    ("per_sequence.csv", r"lm_head,1,.*", "lm_head,-1,3", "line 2: sequences is -1"),
    ("attention.csv", r"0,0,1,16,.*", "0,0,1,16,0", "line 2: time_us is 0: no time"),
    ("attention.csv", r"0,0,1,16,.*", "0,0,0,16,9", "line 2: neither a chunk nor a decoding"),
    ("attention.csv", r"0,0,1,16,", "0,0,1,0,", "line 2: decoding requests without a context"),
    ("attention.csv", r"0,0,1,32,", "0,0,1,16,", "line 3: (0, 0, 1, 16) a second time"),
    ("attention.csv", r"time_us", "time_us,layer", "attention of several kinds is not modelled"),
    ("skew.csv", r"t_skew_us", "t_uneven_us", "line 1: no column t_skew_us"),
    ("skew.csv", r",30.0,90.0,", ",30.0,x,", "t_max_us is 'x', not a number"),
    ("meta.yaml", r"(?s).*", "a: [", "meta.yaml: cannot be read as YAML"),
    ("meta.yaml", r"(?s).*", "[" * 5_000, "meta.yaml: cannot be read as YAML"),
    ("meta.yaml", r"(?s).*", "measured: 2026-13-01", "meta.yaml: cannot be read as YAML"),
    ("meta.yaml", r"(?s).*", "#" * (2 << 20), "meta.yaml: is no file of at most 1 MiB"),
    ("meta.yaml", r"(?s).*", "- 1", "meta.yaml: holds no mapping"),
    ("meta.yaml", r"\[1\]", "all", "tp_degrees is 'all', not a list"),
]


@pytest.mark.parametrize(("name", "old", "new", "message"), DAMAGE)
def test_damage_is_told_with_its_file_and_line(tmp_path, name, old, new, message):
    folder = write_tables(tmp_path, skew=lambda *_: 0.1)
    text = (folder / name).read_text()
    (folder / name).write_text(re.sub(old, new, text, count=1))
    with pytest.raises(TablesError) as error:
        read_operators(folder)
    assert message in str(error.value)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


SIZES = [  # name of the folder, tp_degrees of meta.yaml, size or what is said
    ("gpu_tp1", "[1]", 1),
    ("tp2", "[1, 2]", 2),
    ("Llama_TP-4", "[2, 4]", 4),
    ("tp2", None, 2),
    ("mine", "[2]", 2),
    ("mine", "[1]", 1),
    ("http2", "[1]", 1),
    ("gpu_tp2", "[1]", "name says tensor-parallel size 2, and tp_degrees in .*meta.yaml says 1"),
    ("gpu_tp4", "[1, 2]", "name says tensor-parallel size 4, and tp_degrees in .* says 1, 2"),
    ("mine", "[1, 2]", "tp_degrees in .*meta.yaml has 1, 2, and the folder's name does not say"),
    ("mine", None, "meta.yaml has no tp_degrees, and the folder's name does not say which"),
    ("tp1_or_tp2", "[1, 2]", "the folder's name does not say which"),
    ("mine", "[true]", "tp_degrees is .True., not a list of sizes"),
]


@pytest.mark.parametrize("above", [False, True])
@pytest.mark.parametrize(("name", "degrees", "size"), SIZES)
def test_the_size_is_what_name_and_meta_agree_on(tmp_path, name, degrees, size, above):
    meta = "gpu: NVIDIA Test\n" if degrees is None else f"tp_degrees: {degrees}\n"
    folder = write_tables(tmp_path / name, meta=meta)
    if above:  # as LLMServingSim's profiler lays them out
        (folder / "meta.yaml").rename(tmp_path / "meta.yaml")
        if name in ("mine", "http2", "tp1_or_tp2"):
            size = "meta.yaml: not there, nor above a folder named tp1"
    if isinstance(size, int):
        assert read_operators(folder).tensor_parallel_size == size
        return
    with pytest.raises(TablesError, match=size) as error:
        read_operators(folder)
    assert "\n" not in str(error.value)


SHAPE = """tp_degrees: [1, 2]
model: meta-llama/Llama-3.1-8B
variant: bf16
engine_effective:
  hf_overrides: {num_hidden_layers: 1, intermediate_size: 7168, num_attention_heads: 16,
    num_key_value_heads: 4, vocab_size: 64128}
"""
LLAMA_8B = dataclasses.replace(
    TINY, name="l8", num_hidden_layers=32, hidden_size=4096, num_attention_heads=32,
    num_key_value_heads=8, intermediate_size=14336, vocab_size=128256,
)  # fmt: skip


@pytest.mark.parametrize(
    ("facts", "engine", "message"),
    [
        ({}, {}, None),
        ({"intermediate_size": None}, {}, None),
        ({"num_attention_heads": 64}, {}, r"meta.yaml: the tables are of meta-llama/Llama-3.1-8B, "
         r"whose num_attention_heads is 32 \(16 for each of 2\), and l8 has 64"),
        ({"vocab_size": 151936}, {}, "whose vocab_size is 128,256 .* and l8 has 151,936"),
        ({"num_key_value_heads": 4}, {}, "whose num_key_value_heads is 8"),
        ({"quantization": "fp8"}, {}, r"of bf16 weights \(variant\), .* quantised \(fp8\)"),
        ({}, {"quantization": "awq"}, r"of bf16 weights \(variant\), .* quantised \(awq\)"),
    ],
)  # fmt: skip
def test_a_model_that_is_not_the_tables_is_refused_by_name(tmp_path, facts, engine, message):
    found = read_operators(write_tables(tmp_path / "gpu_tp1", meta=SHAPE))
    model, asked = dataclasses.replace(LLAMA_8B, **facts), EngineConfig(model="l8", **engine)
    if message is None:
        found.check_model(model, asked)
        return
    with pytest.raises(UsageError, match=message):
        found.check_model(model, asked)


@pytest.mark.parametrize("name", ["dense.csv", "attention.csv", "skew.csv", "meta.yaml"])
def test_a_missing_file_is_told(tmp_path, name):
    folder = write_tables(tmp_path, skew=lambda *_: 0.1)
    (folder / name).unlink()
    with pytest.raises(TablesError, match=rf"{name}: not there"):
        read_operators(folder)


def test_what_is_no_folder_no_text_or_no_dense_model_is_refused(tmp_path):
    with pytest.raises(TablesError, match="no folder of operator times"):
        read_operators(tmp_path / "nowhere")
    folder = write_tables(tmp_path)
    (folder / "moe.csv").write_text("tokens,activated_experts,time_us\n1,2,3\n")
    with pytest.raises(TablesError, match=r"moe\.csv: such layers are not modelled"):
        read_operators(folder)
    (folder / "moe.csv").unlink()
    (folder / "dense.csv").write_bytes(np.arange(256, dtype=np.uint8).tobytes())
    with pytest.raises(TablesError, match="cannot be read as CSV"):
        read_operators(folder)


@pytest.mark.parametrize("name", ["dense.csv", "attention.csv", "meta.yaml"])
def test_a_device_is_no_file(tmp_path, name):
    folder = write_tables(tmp_path)
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/null")  # /dev/zero would have no end
    with pytest.raises(TablesError, match=rf"{name}: is no file"):
        read_operators(folder)
