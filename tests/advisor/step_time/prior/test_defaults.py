"""What vLLM does on a GPU where nothing was said: limits by memory, and blocks that fit."""

import dataclasses
import json

import pytest

from advisor.step_time.prior.defaults import (
    GIB,
    Device,
    as_on,
    assumed_note,
    memory_of,
    with_blocks,
)
from tests.advisor.step_time.prior.prior_files import TINY
from tests.advisor.synthetic import engine_of
from tests.profiler.command import warm_ttscope
from traces.errors import UsageError
from traces.schema.engine import EngineConfig

H100 = Device.named("NVIDIA H100 80GB HBM3")
IMPORT = EngineConfig(model="x", mode="server")
LLAMA_70B = dataclasses.replace(
    TINY, name="70B", num_hidden_layers=80, hidden_size=8192, num_attention_heads=64,
    num_key_value_heads=8, head_dim=128, total_parameters=70_600_000_000,
)  # fmt: skip


# EngineArgs.get_batch_defaults of vLLM 0.32.
@pytest.mark.parametrize(
    ("name", "gib", "server", "offline"),
    [
        ("NVIDIA H100 80GB HBM3", 79.6, (1024, 8192), (1024, 16384)),
        ("NVIDIA H200", 140.4, (1024, 8192), (1024, 16384)),
        ("NVIDIA A100-SXM4-80GB", 80, (256, 2048), (256, 8192)),
        ("NVIDIA A100-PCIE-40GB", 40, (256, 2048), (256, 8192)),
        ("NVIDIA B200", 179.1, (1024, 16384), (1024, 16384)),
        ("NVIDIA GB200", 185.0, (1024, 16384), (1024, 16384)),
        ("NVIDIA B300 SXM6 AC", 268.6, (1024, 16384), (1024, 16384)),
        ("NVIDIA GB300", 277.5, (1024, 16384), (1024, 16384)),
        ("NVIDIA H20", 95.6, (1024, 8192), (1024, 16384)),
        ("NVIDIA H20-3e", 140.4, (1024, 8192), (1024, 16384)),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 95.6, (1024, 8192), (1024, 16384)),
        ("NVIDIA GeForce RTX 4090", 24, (256, 2048), (256, 8192)),
        ("NVIDIA L4", 22.5, (256, 2048), (256, 8192)),
        ("NVIDIA L40S", 45, (256, 2048), (256, 8192)),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None, (256, 2048), (256, 8192)),
        ("Another", None, (256, 2048), (256, 8192)),
    ],
)
def test_limits_are_those_of_vllm_by_memory_and_caller(name, gib, server, offline):
    device = Device.named(name)
    assert device.memory_bytes == (None if gib is None else gib * GIB)
    assert device.limits("server") == server
    assert device.limits("in_process") == offline
    before = device.limits("server", (0, 27))  # GPUs of 160 GiB had those of 70 GiB
    assert before == ((1024, 8192) if server == (1024, 16384) else server)


@pytest.mark.vllm
@pytest.mark.slow
def test_limits_are_those_of_the_installed_vllm():
    names = ("NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB", "NVIDIA L4", "NVIDIA B200")
    devices = {name: Device.named(name) for name in names}
    asked = json.dumps({name: each.memory_bytes for name, each in devices.items()})
    done = warm_ttscope(asked, module="tests.advisor.step_time.prior.limits_read")
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = [each for each in done.stdout.splitlines() if each.startswith("READ ")]
    for name, read in json.loads(line.removeprefix("READ ")).items():
        ours = [devices[name].limits(mode) for mode in ("server", "in_process")]
        assert [tuple(each) for each in read] == ours, name


def test_what_an_import_does_not_tell_is_the_targets_default():
    engine, assumed = as_on(H100, IMPORT)
    assert (engine.max_num_seqs, engine.max_num_batched_tokens) == (1024, 8192)
    assert engine.enable_prefix_caching and engine.async_scheduling and not engine.enforce_eager
    assert set(assumed) == {
        "block_size", "async_scheduling", "enforce_eager", "enable_prefix_caching",
        "max_num_seqs", "max_num_batched_tokens",
    }  # fmt: skip
    note = assumed_note(H100, engine, assumed)
    assert "of a server on NVIDIA H100 80GB HBM3 with 80 GiB" in note
    assert "max_num_seqs 1,024, max_num_batched_tokens 8,192" in note
    small, _ = as_on(Device.named("NVIDIA L4"), IMPORT)
    assert (small.max_num_seqs, small.max_num_batched_tokens) == (256, 2048)


ON_H100 = {"gpu": H100.name, "vllm_version": "0.32.0"}


@pytest.mark.parametrize(
    ("recorded", "version", "given", "ahead"),
    [
        ({}, "0.10.0", (), False),
        ({}, "0.14.0", (), True),
        ({"async_scheduling": True}, "0.10.0", ("async_scheduling",), True),
        ({**ON_H100, "async_scheduling": True}, "0.10.0", (), False),
        ({**ON_H100, "async_scheduling": False}, "0.33.0", (), False),
    ],
)  # fmt: skip
def test_scheduling_is_the_default_of_the_version(recorded, version, given, ahead):
    was = EngineConfig(model="x", mode="server", **recorded)
    engine, _ = as_on(H100, dataclasses.replace(was, vllm_version=version), was, given)
    assert engine.async_scheduling is ahead


def test_what_was_set_stays_and_the_rest_follows_from_it():
    given = dataclasses.replace(IMPORT, max_num_seqs=4, max_model_len=1024)
    engine, assumed = as_on(H100, given, IMPORT, {"max_num_seqs", "max_model_len"})
    # min(max_num_seqs x max_model_len, 8192), as vLLM has it.
    assert (engine.max_num_seqs, engine.max_num_batched_tokens) == (4, 4096)
    assert "max_num_seqs" not in assumed
    given = dataclasses.replace(IMPORT, max_num_batched_tokens=512)
    engine, _ = as_on(H100, given, IMPORT, {"max_num_batched_tokens"})
    assert (engine.max_num_seqs, engine.max_num_batched_tokens) == (512, 512)


@pytest.mark.parametrize(
    ("recorded", "limits"),
    [
        # The defaults of the class LLM, and of a server, on a CPU: not what anybody chose.
        ({"max_num_seqs": 256, "max_num_batched_tokens": 4096}, (1024, 16384)),
        ({"max_num_seqs": 128, "max_num_batched_tokens": 2048, "mode": "server"}, (1024, 8192)),
        ({"max_num_seqs": 64, "max_num_batched_tokens": 4096}, (64, 16384)),
        ({"max_num_seqs": 256, "max_num_batched_tokens": 1024}, (1024, 1024)),
        # Those of a smaller GPU.
        (
            {"max_num_seqs": 256, "max_num_batched_tokens": 2048, "mode": "server",
             "gpu": "NVIDIA L4"},
            (1024, 8192),
        ),
        # On the GPU itself whatever was recorded is what ran.
        ({"max_num_seqs": 256, "max_num_batched_tokens": 2048, "gpu": H100.name}, (256, 2048)),
    ],
)  # fmt: skip
def test_defaults_of_another_device_are_not_kept(recorded, limits):
    engine, assumed = as_on(H100, EngineConfig(model="x", num_gpu_blocks=99, **recorded))
    assert (engine.max_num_seqs, engine.max_num_batched_tokens) == limits
    assert (engine.num_gpu_blocks == 99) == (recorded.get("gpu") == H100.name)
    changed = {name for name, value in recorded.items() if getattr(engine, name) != value}
    assert changed <= set(assumed)


def test_what_does_not_fit_says_the_sum():
    engine, _ = as_on(H100, engine_of(dtype="bfloat16"))
    memory = memory_of(H100, engine, LLAMA_70B)
    with pytest.raises(UsageError) as error:
        with_blocks(memory, engine, LLAMA_70B)
    assert "0.92 x 85.5 GB of memory less weights of 141.2 GB and 3.8 GB" in str(error.value)
    old = memory_of(H100, dataclasses.replace(engine, vllm_version="0.12.0"), LLAMA_70B)
    assert old.sum().startswith("0.9 x 85.5 GB")  # without the memory of CUDA graphs
    wide = dataclasses.replace(engine, tensor_parallel_size=4)
    fits = with_blocks(memory_of(H100, wide, LLAMA_70B), wide, LLAMA_70B)
    token = 2 * 80 * 2 * 128 * 2
    room = 0.92 * H100.memory_bytes - 141.2e9 / 4 - 3.5 * GIB
    assert fits.num_gpu_blocks == int(room // (16 * token))
    narrow = dataclasses.replace(wide, kv_cache_dtype="fp8")
    halved = with_blocks(memory_of(H100, narrow, LLAMA_70B), narrow, LLAMA_70B)
    assert halved.num_gpu_blocks == int(room // (8 * token))


@pytest.mark.parametrize(
    "facts",
    [{"total_parameters": None}, {"attention": ("latent_attention",)}, {"quantization": "fp8",
     "weight_bytes": None}],
)  # fmt: skip
def test_what_is_not_counted_has_no_sum(facts):
    assert memory_of(H100, IMPORT, dataclasses.replace(LLAMA_70B, **facts)) is None
    assert memory_of(Device.named("Another"), IMPORT, LLAMA_70B) is None
