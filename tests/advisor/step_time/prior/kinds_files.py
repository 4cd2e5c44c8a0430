"""Made-up tables of other kinds of layers, beside those of `prior_files`, whose laws are known."""

from itertools import product

from tests.advisor.step_time.prior.prior_files import DEVICE, write
from traces.schema.engine import ModelFacts
from traces.schema.layers import Attention, Experts, Layers, Matrix, State

TOKENS = (1, 8, 64, 512, 4096)
BYTES = {"bfloat16": 2.0, "fp8": 1.0}


def experts_s(tokens, form, tensor, expert, skew=1.0):
    return skew * (8e-6 + tokens * 1e-8 / (tensor * expert) + 4e-6 * BYTES[form] / tensor / expert)


def latent_s(batch, context, heads):
    return 140e-6 + 4e-6 * heads + batch * (2e-7 + 1e-11 * heads * context)


def delta_s(batch, heads):
    return 4e-6 + 1e-8 * batch * heads


def nccl_s(size_bytes, group):
    return 10e-6 + size_bytes * 1e-11 * group


def write_kinds(folder, system="test_gpu"):
    """Write tables of experts, latent attention, delta nets and NCCL's collectives."""
    data = folder / "data" / system
    common = {"framework": "VLLM", "device": DEVICE}
    skews = {"balanced": 0.9, "power_law_1.01": 1.0, "power_law_1.2": 1.2}
    write(data / "moe/vllm/0.9.0/moe_perf.parquet", [
        {**common, "moe_dtype": form, "num_tokens": tokens, "hidden_size": 512, "inter_size": 256,
         "topk": 2, "num_experts": 8, "moe_tp_size": tp, "moe_ep_size": ep, "distribution": name,
         "kernel_source": "fused", "latency": 1e3 * experts_s(tokens, form, tp, ep, skew)}
        for form, tokens, (tp, ep), (name, skew) in product(
            BYTES, TOKENS, ((1, 1), (2, 1), (1, 2), (1, 4)), skews.items())
    ])  # fmt: skip
    for kind, name in (("generation", "step"), ("context", "isl")):
        write(data / f"mla/vllm/0.9.0/mla_{kind}_module_perf.parquet", [
            {**common, "model": "m", "num_heads": heads, "gemm_type": "bfloat16",
             "kv_cache_dtype": "bfloat16", "batch_size": batch, "isl": 1, "step": 0, name: length,
             "latency": 1e3 * latent_s(batch, length, heads)}
            for heads, batch, length in product((4, 8), (1, 4, 64), (1, 255, 4095))
        ])  # fmt: skip
    phases = [("generation", "batch_size", b, 1) for b in (1, 8, 64)]
    phases += [("context", "seq_len", 1, n) for n in (1, 64, 4096)]
    write(data / "linear_attention/vllm/0.9.0/gdn_perf.parquet", [
        {**common, "phase": phase, "kernel_source": kernel, "batch_size": batch, "seq_len": length,
         "num_v_heads": heads, "head_k_dim": 64, "head_v_dim": 64,
         "latency": 1e3 * delta_s(batch * length, heads) / 2}
        for (phase, _, batch, length), kernel, heads in product(
            phases, ("causal_conv1d", "delta"), (2, 4, 8))
    ])  # fmt: skip
    write(data / "comm/nccl/2.0/nccl_perf.parquet", [
        {"op_name": name, "nccl_dtype": "half", "num_gpus": group, "message_size": size,
         "latency": 1e3 * nccl_s(2 * size, group)}
        for name, group, size in product(
            ("all_gather", "reduce_scatter"), (2, 4), (256, 1 << 16, 1 << 24))
    ])  # fmt: skip
    return folder


def matrix(name, inputs, outputs, form="bfloat16", copies=1, used=1):
    return Matrix(
        name=name, inputs=inputs, outputs=outputs, precision=form, parameter_bytes=BYTES.get(form),
        copies=copies, used=used,
    )  # fmt: skip


HEADS = Attention(kind="full_attention", heads=8, kv_heads=4, head_dim=64, v_head_dim=64)
PRODUCTS = (
    matrix("self_attn.q_proj", 512, 512), matrix("self_attn.k_proj", 512, 256),
    matrix("self_attn.v_proj", 512, 256), matrix("self_attn.o_proj", 512, 512),
)  # fmt: skip


def experts_of(form="bfloat16"):
    routed = [
        matrix(f"mlp.experts.{name}", inputs, outputs, form, 8, 2)
        for name, inputs, outputs in (
            ("gate_proj", 512, 256), ("up_proj", 512, 256), ("down_proj", 256, 512)
        )
    ]  # fmt: skip
    return (matrix("mlp.gate", 512, 8), *routed)


def layer(count=4, attention=HEADS, state=None, mixing=PRODUCTS, after=None):
    after = experts_of() if after is None else after
    mixture = any("experts" in each.name for each in after)
    return Layers(
        places=tuple(range(count)), attention=attention, state=state,
        experts=Experts(total=8, active=2, width=256) if mixture else None,
        mlp_width=None if mixture or not after else 1024, matrices=(*mixing, *after),
    )  # fmt: skip


def model(*layers, **facts):
    """Return a model of such layers."""
    total = sum(g.count * m.parameters for g in layers for m in g.matrices)
    return ModelFacts(**{
        "name": "kinds", "num_hidden_layers": sum(g.count for g in layers), "hidden_size": 512,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64,
        "intermediate_size": 1024, "vocab_size": 1000, "num_experts": 8, "total_parameters": total,
        "active_parameters": total, "weight_bytes": 2 * total, "kv_bytes_per_token": None,
        "layers": layers, "others": (matrix("lm_head", 512, 1000),), "kv_value_bytes": 2,
    } | facts)  # fmt: skip


LATENT = Attention(
    kind="latent_attention", heads=8, kv_heads=8, head_dim=96, v_head_dim=64, latent=64, rope=32
)
LATENT_PRODUCTS = (
    matrix("self_attn.q_a_proj", 512, 128), matrix("self_attn.q_b_proj", 128, 768),
    matrix("self_attn.kv_a_proj_with_mqa", 512, 96), matrix("self_attn.kv_b_proj", 64, 1024),
    matrix("self_attn.o_proj", 512, 512),
)  # fmt: skip
DELTA = State(
    kind="linear_attention", heads=8, values=8 * 64 * 64, value_bytes=4, convolved_values=512,
    convolved_bytes=2,
)  # fmt: skip
