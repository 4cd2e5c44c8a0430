"""Names to families: the well-known ones, and every name that was ever seen."""

import gzip
import json
import re
from pathlib import Path

import polars as pl
import pytest

from traces.kineto.names import PATTERNS, family_of
from traces.kineto.read import read_trace
from traces.recording.reader import Recording, find_recordings

KNOWN = {
    "attention": (
        "void flash::flash_fwd_splitkv_kernel<Flash_fwd_kernel_traits<128, 64>>",
        "void flash_fwd_kernel<Flash_fwd_kernel_traits<128>>",
        "void cutlass::device_kernel<flash::FlashAttnFwdSm90<flash::CollectiveMainloopFwdSm90>>",
        "void vllm::paged_attention_v1_kernel<__nv_bfloat16, 128>",
        "void vllm::paged_attention_v2_reduce_kernel<>",
        "kernel_unified_attention_2d",
        "kernel_unified_attention_3d",
        "_fwd_kernel",
        "void flashinfer::BatchDecodeWithPagedKVCacheKernel<>",
        "fmhaSm100fKernel_QkvBfloat16",
        "void vllm::merge_attn_states_kernel<>",
        "vllm::unified_attention_with_output",
        "_C::cpu_attention_with_kv_cache",
    ),
    "kv-cache": (
        "void vllm::reshape_and_cache_flash_kernel<__nv_bfloat16>",
        "void vllm::concat_and_cache_mla_kernel<>",
        "_compute_slot_mapping_kernel",
        "_C::cpu_attn_reshape_and_cache",
        "vllm::unified_kv_cache_update",
    ),
    "norm": (
        "void vllm::rms_norm_kernel<c10::BFloat16>",
        "void vllm::fused_add_rms_norm_kernel<c10::BFloat16, 8>",
        "void vllm::rms_norm_static_fp8_quant_kernel<>",
        "triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_0",
    ),
    "activation": (
        "void vllm::act_and_mul_kernel<c10::BFloat16, silu_kernel>",
        "triton_poi_fused_mul_silu_slice_1",
        "void vllm::scaled_fp8_quant_kernel_strided<>",
        "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>",
        "aten::silu",
    ),
    "embedding": (
        "void vllm::rotary_embedding_kernel<c10::BFloat16, true>",
        "triton_poi_fused_embedding_0",
        "void at::native::(anonymous namespace)::indexSelectSmallIndex<>",
    ),
    "sampling": (
        "_topk_topp_kernel",
        "void flashinfer::sampling::TopPSamplingFromProbKernel<>",
        "_gumbel_sample_kernel",
        "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, ArgMaxOps<float>>>",
        "apply_repetition_penalties_kernel",
        "void at::native::(anonymous namespace)::cunn_SoftMaxForward<4, float>",
        "aten::exponential_",
    ),
    "speculative": ("rejection_greedy_sample_kernel", "eagle_prepare_inputs_padded_kernel"),
    "moe": (
        "fused_moe_kernel",
        "void vllm::moe::moe_align_block_size_kernel<int>",
        "void vllm::moe::topkGatingSoftmax<>",
    ),
    "communication": (
        "void vllm::cross_device_reduce_1stage<__nv_bfloat16, 2>(vllm::RankData*)",
        "void vllm::cross_device_reduce_2stage<half, 8>",
        "multimem_all_reduce_kernel<c10::BFloat16>",
        "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)",
        "ncclDevKernel_SendRecv",
        "_C::shm_allreduce",
        "gloo:all_reduce",
    ),
    "gemm": (
        "nvjet_tst_128x64_64x10_2x1_v_bz_TNT",
        "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm>",
        "void marlin::Marlin<>",
        "void gemv2T_kernel_val<>",
        "Cijk_Alik_Bljk_BBS_BH",
        "_C::onednn_mm",
        "aten::addmm",
        "triton_tem_fused_mm_0",
        "miopenSp3AsmConv_v30_3_1",
    ),
    "memory copy": (
        "Memcpy HtoD (Pinned -> Device)",
        "Memset (Device)",
        "CopyHostToDevice",
        "__amd_rocclr_copyBuffer.kd",
        "void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda>",
        "aten::_to_copy",
        "triton_poi_fused__to_copy_view_3",
    ),
    "other": ("a_kernel_of_mine",),
}

# Python's and TorchScript's frames around operators; only traces with devices have them.
FRAMES = re.compile(
    r"^forward$|^<(for|back)ward op>$|Torch-Compiled Region|TorchDynamo|DifferentiableGraph"
    r"|CppNode<SplitLookup|^_grad_sum_to_size$"
)


def test_the_table_names_known_families_only():
    assert {family for family, _ in PATTERNS} == set(KNOWN) - {"other"}


@pytest.mark.parametrize(
    ("family", "name"), [(family, name) for family, names in KNOWN.items() for name in names]
)
def test_well_known_names(family, name):
    assert family_of(name) == family


def test_a_name_of_any_length_is_answered():
    assert family_of("") == "other"
    assert family_of("x" * 1_000_000) == "other"


@pytest.mark.slow
def test_every_name_in_the_traces_of_others(shared):
    for path in sorted((shared / "data" / "kineto").glob("*.json.gz")):
        kernels = read_trace(path).kernels
        unknown = kernels.filter(pl.col("family") == "other")
        assert unknown["name"].to_list() == [], path.name
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        operators = {e["name"] for e in events if e.get("cat") in ("cpu_op", "Operator")}
        unassigned = {name for name in operators if family_of(name) == "other"}
        assert {name for name in unassigned if not FRAMES.search(name)} == set(), path.name


def test_every_name_in_our_own_recordings():
    root = Path(__file__).parents[3]
    folders = [root / "profiler" / "demo" / "recordings", root / "tests" / "data", root / "runs"]
    for folder in folders:
        for path in find_recordings(folder):
            kernels = Recording.open(path).frame("kernels")
            time = kernels.select("name", time=pl.coalesce("self_time", "time").fill_null(0))
            other = sum(t for name, t in time.iter_rows() if family_of(name or "") == "other")
            assert other <= 0.03 * time["time"].sum(), path.name
