"""Which family a kernel or an operator belongs to, by its name.

The table is data: patterns in order, the first that matches decides. It knows the names of CUDA
(cutlass, cuBLAS, cuDNN, FlashAttention, FlashInfer, NCCL), ROCm (Tensile's `Cijk_`, Composable
Kernel, MIOpen, RCCL), Triton and Inductor, vLLM's own kernels, and PyTorch's operators.

What the families hold beyond their names:

    gemm         matrix products and convolutions, with their split-k and offset kernels
    norm         layer, batch and RMS norms, also fused with a residual or a quantisation
    activation   element-wise arithmetic, reductions and quantisation
    embedding    look-ups by token, and rotary positions
    sampling     softmax over logits, sorts, scans, top-k, arg-max, random numbers
    speculative  what only speculative decoding runs; the draft model's layers look as any other's
    kv-cache     writing, copying and addressing the cache
    memory copy  copies, fills, layouts, gathers, and on a CPU also views and allocations
    other        what no pattern knows
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from traces.kineto.stream import Arguments

# Copies, views and allocations of PyTorch; the rest of ATen is arithmetic.
_MOVES = (
    "alias|arange|as_strided|broadcast_tensors|cat|chunk|clone|contiguous|copy|detach|diag"
    "|empty|empty_like|empty_strided|eye|expand|expand_as|fill|flatten|flatten_dense_tensors"
    "|flip|full|full_like|gather|index|index_copy|index_fill|index_put|is_pinned|item"
    "|lift_fresh|local_scalar_dense|masked_fill|masked_scatter|masked_select|meshgrid|movedim"
    "|narrow|new_empty|new_full|new_ones|new_zeros|nonzero|ones|ones_like|pad|permute"
    "|pin_memory|ravel|record_stream|repeat|repeat_interleave|reshape|reshape_alias|resize"
    "|resolve_conj|resolve_neg|result_type|roll|scalar_tensor|scatter|select|set|slice|split"
    "|split_with_sizes|squeeze|stack|t|take|tensor_split|tile|to|to_copy|transpose|tril|triu"
    "|type_as|unbind|unflatten|unflatten_dense_tensors|unfold|unsafe_view|unsqueeze|view"
    "|view_as|where|zero|zeros|zeros_like"
)

# (family, pattern), searched anywhere in the name, both in lower case.
PATTERNS: tuple[tuple[str, str], ...] = (
    # Messages between ranks. Before all else: their names tell the operation and the type.
    (
        "communication",
        r"nccl|rccl|^c10d::|^gloo:|^mpi:|^ucc:|record_param_comms|cross_device_reduce"
        r"|multimem|(one|two)_?shot|all_?reduce|all_?gather|reduce_?scatter|all_?to_?all"
        r"|all2all|\bshm_|shm_(send|recv)|symm_mem|nvshmem|deep_ep::|mscclpp|quick_?reduce"
        r"|trtllm_.*allreduce|send_tensor|recv_tensor|lamport",
    ),
    # Copies that the driver makes.
    (
        "memory copy",
        r"^(hip|cuda)?_?mem(cpy|set|ory copy)|^__amd_rocclr_|^(Copy|Fill)(Host|Device|Buffer)",
    ),
    # What only a speculating engine runs.
    (
        "speculative",
        r"eagle|rejection_|sample_recovered|^_C::expand_kernel|\bexpand_kernel|spec_?decode"
        r"|speculat|medusa|ngram|draft|tree_mask|verify_tree|build_tree",
    ),
    # The cache of keys and values.
    (
        "kv-cache",
        r"reshape_and_cache|concat_and_cache|kv_cache_update|copy_blocks|swap_blocks"
        r"|(gather|convert|indexer_k_quant_and|cp_gather)\w*_cache|slot_mapping|append_?paged_?kv"
        r"|block_table|kv_?cache.*(copy|scatter|store|write)|(store|write|set)_kv",
    ),
    # Experts. Before gemm: grouped products are theirs.
    (
        "moe",
        r"moe|topk_?gating|grouped_topk|group(ed)?_?gemm|grouped_mm|m_grouped|expert"
        r"|GroupProblemShape|silu_mul_fp8_quant_deep|ep_scatter|ep_gather",
    ),
    # Before gemm: FlashAttention is built from cutlass.
    (
        "attention",
        r"flash(_|::|attn|attention|mla)|FlashAttn|fmha|attention|attn|paged|BatchPrefill|BatchDecode|SinglePrefill|SingleDecode"
        r"|mla_|_mla|scaled_dot_product|kernel_unified|get_scheduler_metadata|prepare_varlen"
        r"|^_fwd_(kernel|grouped_kernel)|reduce_segments|merge_state|selective_scan|causal_conv1d"
        r"|chunk_gated_delta|mamba|ssd_",
    ),
    (
        "norm",
        r"rms_?norm|layer_?norm|batch_?norm|group_?norm|native_norm|l2_?norm|_norm_|norm_kernel"
        r"|\bbn_[fb]w|BatchNorm|LayerNorm|RowwiseMoments|GammaBeta|NormTwoOps|vector_norm"
        r"|linalg_norm|norm2d|(triton|cpp)_\w*(rsqrt|_norm)|aten::rsqrt|rsqrt_kernel|NormBackward",
    ),
    (
        "embedding",
        r"rotary|\brope|_rope|embedding|_embs|indexSelect|vectorized_gather|aten::index_select"
        r"|fbgemm_gpu::(permute|_offsets)|fbgemm::(permute|asynchronous)|bounds_check_indices"
        r"|linearize_index|lengths_range|(triton|cpp)_\w*(_cos_|_sin_)",
    ),
    (
        "sampling",
        r"top_?[kp]\w*|softmax|arg_?max|ArgM(ax|in)|gumbel|multinomial|exponential|distribution"
        r"|bernoulli|aten::(rand|randint|randn|random|uniform|normal|sort|cumsum|bincount"
        r"|searchsorted)\w*|sort|DeviceScan|DeviceReduceByKey|DeviceCompact|DeviceSelect|cumsum"
        r"|penalt|sampl|logits|log_?probs|min_p|cross_entropy|nll_loss|bitmask|philox",
    ),
    # Layouts that cuDNN and friends change, before gemm takes everything of cuDNN's.
    ("memory copy", r"nchwToNhwc|nhwcToNchw|transpose_?(kernel|readWrite)|batched_transpose"),
    (
        "gemm",
        r"(?<!fb)gemm|gemv|cutlass|cublas|cudnn|nvjet|\bxmma|_xmma|cijk|tensile|rocblas|hipblas|miopen"
        r"|\bck::|ck_tile|\bmatmul|::(mm|bmm|addmm|addmv|baddbmm|linear|matmul|mv|dot|einsum"
        r"|tensordot|outer)\b|(Mm|Bmm|Addmm|Linear)Backward|mkldnn|onednn|conv(olution|\d?d)"
        r"|Convolution|winograd|(w|d)grad|fprop|split_?k|marlin|machete|\bawq|gptq|exllama"
        r"|bitsandbytes|wvsplit|LLGemm|w\da\d|scaled_mm|dot_kernel|scal_kernel"
        r"|epilogue::|triton_tem_|triton_b?mm|quantized_mm"
        r"|implicit_con|naive_conv|igemm|scudnn|computeOffsets|lora_(shrink|expand)|bgmv|sgmv",
    ),
    (
        "memory copy",
        r"copy_kernel|CatArray|FillFunctor|fill_kernel|index_elementwise|index_put|index_kernel"
        r"|scatter|gather|masked_fill|where_kernel|repeat_interleave|compute_cuda_kernel"
        r"|arange|aten::copy|copy_bucket|AccumulateGrad|pad_kernel|\bconcat|flip_kernel|roll_cuda"
        r"|triton_poi_fused_(_?(to_copy|clone|cat|copy|slice|view|transpose|constant_pad_nd"
        r"|zeros|full|index|select|stack|unsqueeze|permute|split)_*)+\d+$"
        rf"|aten::_?({_MOVES})_?$|^detach_?$|(View|T|Split\w*|Slice|Gather|Expand|Cat|Select"
        r"|Copy|Transpose|Unsqueeze|Squeeze|Index\w*|Clone|ToCopy)Backward\d",
    ),
    (
        "activation",
        r"silu|gelu|relu|swiglu|sigmoid|tanh|act_and_mul|_and_mul|elementwise|reduce_kernel"
        r"|max_?pool|avg_?pool|multi_tensor_apply|foreach|quant|fp8|int8|scalePackedTensor"
        r"|triton_|cpp_fused|^aten::|at::native|at_cuda_detail|^fb(gemm)?::"
        r"|Functor|(Add|Mul|Div|Sub|Pow|Sum|Mean|Max|Min|Neg|Exp|Log|Sqrt|Clamp|Threshold|Logit"
        r"|MseLoss|Sigmoid|Tanh|Relu|BinaryCrossEntropy\w*)Backward\d|loss|_kernel_impl|reducer::mul",
    ),
)

_COMPILED = tuple((family, re.compile(text.lower())) for family, text in PATTERNS)
_LONGEST = 300  # a mangled template may have a hundred times as many letters as it needs


@lru_cache(maxsize=65_536)
def family_of(name: str) -> str:
    """Return the family of a kernel or operator, `other` when unknown."""
    text = name[:_LONGEST].lower()
    return next((family for family, pattern in _COMPILED if pattern.search(text)), "other")


# What a collective was: its kind, algorithm, message size, type and group.
#
# Kineto writes the facts of NCCL kernels into their arguments; older traces leave only the name.
# vLLM's own all-reduce tells its type and group in its template; shared-memory collectives on a CPU
# their tensors' shapes. What is told nowhere is None.


class CollectiveMessage(NamedTuple):
    """One message: `bytes` is the larger of what a rank puts in and what it gets out."""

    collective: str | None
    algorithm: str | None
    bytes: int | None
    dtype: str | None
    group_size: int | None


_DTYPES = {  # as c10 and NCCL name them: our name, bytes per element
    "float": ("float32", 4),
    "float32": ("float32", 4),
    "f32": ("float32", 4),
    "double": ("float64", 8),
    "f64": ("float64", 8),
    "half": ("float16", 2),
    "f16": ("float16", 2),
    "bfloat16": ("bfloat16", 2),
    "bf16": ("bfloat16", 2),
    "nv_bfloat16": ("bfloat16", 2),
    "float8_e4m3fn": ("float8_e4m3fn", 1),
    "float8_e5m2": ("float8_e5m2", 1),
    "f8e4m3": ("float8_e4m3fn", 1),
    "f8e5m2": ("float8_e5m2", 1),
    "byte": ("uint8", 1),
    "uint8_t": ("uint8", 1),
    "u8": ("uint8", 1),
    "char": ("int8", 1),
    "signed char": ("int8", 1),
    "unsigned char": ("uint8", 1),
    "int8_t": ("int8", 1),
    "bool": ("bool", 1),
    "short": ("int16", 2),
    "int": ("int32", 4),
    "int32_t": ("int32", 4),
    "i32": ("int32", 4),
    "long": ("int64", 8),
    "long int": ("int64", 8),
    "int64_t": ("int64", 8),
    "u32": ("uint32", 4),
    "u64": ("uint64", 8),
}
# In order: "all_to_all" holds no "gather", but "reduce_scatter" holds "scatter" and "reduce".
_KINDS = (
    ("all_reduce", r"all_?reduce|cross_device_reduce|quick_?reduce|(one|two)_?shot"),
    ("all_gather", r"all_?gather"),
    ("reduce_scatter", r"reduce_?scatter"),
    ("all_to_all", r"all_?to_?all|all2all|deep_ep::\w*::(dispatch|combine)"),
    ("broadcast", r"broadcast"),
    ("barrier", r"barrier"),
    ("reduce", r"reduce"),
    ("gather", r"gather"),
    ("scatter", r"scatter"),
    ("send_recv", r"send|recv"),
)
_REGEXES = tuple((kind, re.compile(text, re.IGNORECASE)) for kind, text in _KINDS)
_NCCL = re.compile(r"(nccl|rccl)", re.IGNORECASE)
_NCCL_WAY = re.compile(
    r"_(RING|TREE|COLLNET_DIRECT|COLLNET_CHAIN|NVLS_TREE|NVLS|PAT)_(LL128|LL|SIMPLE)(?=_|\b)"
)
_NCCL_TYPE = re.compile(
    r"_(?:Sum|Prod|Max|Min|MinMax|PreMulSum|SumPostDiv)_(\w+?)(?:_RING|_TREE"
    r"|_COLLNET|_NVLS|_PAT|\(|$)"
)
_CUSTOM = re.compile(r"cross_device_reduce_(\d)stage<([\w: ]+),\s*(\d+)")
_STAGE = re.compile(r"cross_device_reduce_(\d)stage")


def read_message(name: str, args: Arguments) -> CollectiveMessage:
    """Return what a communication kernel or operator did, by its name and arguments."""
    kind = _kind(args.collective) or _kind(name)
    told = args.dtype if isinstance(args.dtype, str) else None
    dtype, size = _type_of(told) if told else _type_in_name(name)
    group = args.group_size if _count(args.group_size) else _group_in_name(name)
    counts = [n for n in (args.elements_in, args.elements_out) if _count(n)]
    message = max(counts) * size if counts and size else None
    if message is None and bytes(args.shapes):
        message, dtype = _largest_tensor(_list(args.shapes), _list(args.types))
    return CollectiveMessage(kind, _algorithm(name), message, dtype, group)


def _count(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < 1 << 48


def _list(raw: msgspec.Raw) -> list[Any]:
    try:
        found = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []
    return found if isinstance(found, list) else []


def _kind(text: Any) -> str | None:
    if not isinstance(text, str):
        return None
    return next((kind for kind, pattern in _REGEXES if pattern.search(text)), None)


def _algorithm(name: str) -> str | None:
    if stage := _STAGE.search(name):
        return f"custom {stage[1]}-stage"
    lower = name.lower()
    if "multimem" in lower or "symm" in lower or re.search(r"(one|two)_?shot", lower):
        return "symmetric memory"
    if _NCCL.search(name):
        way = _NCCL_WAY.search(name)
        return "nccl" if way is None else " ".join(["nccl", *way.groups()]).lower()
    if "shm_" in lower:
        return "shared memory"
    prefix = re.match(r"(gloo|mpi|ucc):", lower)
    return prefix[1] if prefix else None


def _type_of(text: str) -> tuple[str | None, int | None]:
    """Return our name of a type and its bytes per element; None for what is not known."""
    bare = text.removeprefix("c10::").removeprefix("__").strip().lower()
    return _DTYPES.get(bare, (text.lower() or None, None))


def _type_in_name(name: str) -> tuple[str | None, int | None]:
    """Read the type of a reduction from its kernel's name.

    Kernels that only move data are built for bytes and say int8 whatever they move.
    """
    if custom := _CUSTOM.search(name):
        return _type_of(custom[2])
    found = _NCCL_TYPE.search(name)
    if found is None or not re.search(r"reduce", name, re.IGNORECASE):
        return None, None
    return _type_of(found[1])


def _group_in_name(name: str) -> int | None:
    custom = _CUSTOM.search(name)
    return int(custom[3]) if custom else None


def _largest_tensor(shapes: Sequence[Any], types: Sequence[Any]) -> tuple[int | None, str | None]:
    """Return the bytes and type of the largest tensor among an operator's inputs."""
    best: tuple[int | None, str | None] = (None, None)
    for shape, kind in zip(shapes, types, strict=False):
        if not isinstance(kind, str) or not isinstance(shape, list) or not shape:
            continue
        dtype, size = _type_of(kind)
        if size is None or not all(isinstance(n, int) and n >= 0 for n in shape):
            continue
        total = math.prod(shape) * size
        if best[0] is None or total > best[0]:
            best = (total, dtype)
    return best
