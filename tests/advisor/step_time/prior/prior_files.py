"""Operator tables of a made-up GPU, in the form of aiconfigurator-core's, whose laws are known."""

from importlib.util import find_spec
from itertools import product

import polars as pl
import pytest
import yaml

from traces.schema.engine import ModelFacts

installed = pytest.mark.skipif(
    find_spec("aiconfigurator_core") is None,
    reason="aiconfigurator-core is not installed (ttscope[prior])",
)
DEVICE = "NVIDIA Test 1"
BANDWIDTH, KERNEL_S, PEAK = 8e12, 2e-6, 1e14
LIMIT_W = 500
TOKENS = (1, 8, 64, 512, 4096)
WIDTHS = (64, 256, 1024, 4096)
HEADS = (1, 2, 4, 8)
KV_HEADS = (1, 2, 4)
BATCHES = (1, 4, 16, 64)
CONTEXTS = (1, 15, 255, 4095)
LENGTHS = (1, 16, 64, 512, 1024, 4096)
SIZES = (128, 1024, 65536, 1 << 24)

TINY = ModelFacts(
    name="tiny", architecture="LlamaForCausalLM", num_hidden_layers=4, hidden_size=512,
    num_attention_heads=8, num_key_value_heads=4, head_dim=64, intermediate_size=1024,
    vocab_size=1000, total_parameters=10_000_000, active_parameters=9_000_000,
    weight_bytes=20_000_000, kv_bytes_per_token=2 * 4 * 4 * 64 * 2,
)  # fmt: skip


def gemm_s(tokens, n, k):
    return 3e-6 + n * k * (2e-12 + 1e-14 * tokens)


def decode_s(batch, context, heads, kv_heads):
    return 5e-6 + batch * (1e-7 + 1e-10 * kv_heads * context) + 1e-8 * heads


def prompt_s(tokens, heads):
    return 6e-6 + 1e-11 * heads * tokens**2


def all_reduce_s(size_bytes, graph):
    return (4e-6 if graph else 20e-6) + 1e-11 * size_bytes


def write_prior(folder, *, system="test_gpu", group_sizes=(2, 4), version="0.9.0"):
    """Write a folder of systems; return it."""
    data = folder / "data" / system
    data.mkdir(parents=True)
    gpu = {
        "mem_bw": BANDWIDTH / 0.8,
        "mem_bw_empirical_scaling_factor": 0.8,
        "mem_empirical_constant_latency": KERNEL_S,
        "bfloat16_tc_flops": PEAK,
        "power": LIMIT_W,
    }
    (folder / f"{system}.yaml").write_text(yaml.safe_dump({"gpu": gpu}))
    common = {"framework": "VLLM", "device": DEVICE}
    write(data / "gemm/vllm" / version / "gemm_perf.parquet", [
        {**common, "gemm_dtype": dtype, "m": m, "n": n, "k": k, "kernel_source": "linear",
         "latency": 1e3 * gemm_s(m, n, k) * (1.0 if dtype == "bfloat16" else 0.5)}
        for dtype, m, n, k in product(("bfloat16", "fp8"), TOKENS, WIDTHS, WIDTHS)
    ])  # fmt: skip
    shapes = [(h, kv) for h, kv in product(HEADS, KV_HEADS) if h >= kv]
    kinds = {
        "generation": [
            (h, kv, b, 1, c, decode_s(b, c, h, kv))
            for (h, kv), b, c in product(shapes, BATCHES, CONTEXTS)
        ],
        "context": [
            (h, kv, b, n, 0, b * prompt_s(n, h))
            for (h, kv), b, n in product(shapes, (1, 2), LENGTHS)
        ],
    }
    for kind, rows in kinds.items():
        write(data / "attention/vllm" / version / f"{kind}_attention_perf.parquet", [
            {**common, "num_heads": h, "num_key_value_heads": kv, "head_dim": 64, "batch_size": b,
             "isl": isl, "step": step, "attn_dtype": "bfloat16", "kv_cache_dtype": "bfloat16",
             "window_size": window, "latency": 1e3 * s * (0.1 if window else 1.0)}
            for (h, kv, b, isl, step, s), window in product(rows, (0, 128))
        ])  # fmt: skip
    if group_sizes:
        write(data / "comm/vllm" / version / "custom_allreduce_perf.parquet", [
            {**common, "allreduce_dtype": "bfloat16", "num_gpus": count, "message_size": size,
             "kernel_source": f"custom_{'graph' if graph else 'eager'}",
             "latency": 1e3 * all_reduce_s(2 * size, graph)}
            for count, size, graph in product(group_sizes, SIZES, (True, False))
        ])  # fmt: skip
    return folder


def edited(folder, table, change):
    """Change a table in a folder of systems, by what its file's name begins with; return both."""
    path = next(folder.rglob(f"{table}_perf.parquet"))
    change(pl.read_parquet(path)).write_parquet(path)
    return folder


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(rows).write_parquet(path)
