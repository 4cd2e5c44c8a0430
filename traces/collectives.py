"""What a collective was: its kind, algorithm, message size, type and group.

Kineto writes the facts of NCCL kernels into their arguments; older traces leave only the name.
vLLM's own all-reduce tells its type and group in its template; shared-memory collectives on a CPU
their tensors' shapes. What is told nowhere is None.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from traces.trace_stream import Arguments


class Collective(NamedTuple):
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
    r"_(RING|TREE|COLLNET_DIRECT|COLLNET_CHAIN|NVLS_TREE|NVLS|PAT)_(LL128|LL|SIMPLE)\b|"
    r"_(RING|TREE|COLLNET_DIRECT|COLLNET_CHAIN|NVLS_TREE|NVLS|PAT)_(LL128|LL|SIMPLE)_"
)
_NCCL_TYPE = re.compile(
    r"_(?:Sum|Prod|Max|Min|MinMax|PreMulSum|SumPostDiv)_(\w+?)(?:_RING|_TREE"
    r"|_COLLNET|_NVLS|_PAT|\(|$)"
)
_CUSTOM = re.compile(r"cross_device_reduce_(\d)stage<([\w: ]+),\s*(\d+)")
_STAGE = re.compile(r"cross_device_reduce_(\d)stage")


def read_message(name: str, args: Arguments) -> Collective:
    """Return what a communication kernel or operator did, by its name and arguments."""
    kind = _kind(args.collective) or _kind(name)
    told = args.dtype if isinstance(args.dtype, str) else None
    dtype, size = _type_of(told) if told else _type_in_name(name)
    group = args.group_size if _count(args.group_size) else _group_in_name(name)
    counts = [n for n in (args.elements_in, args.elements_out) if _count(n)]
    message = max(counts) * size if counts and size else None
    if message is None and bytes(args.shapes):
        message, dtype = _largest_tensor(_list(args.shapes), _list(args.types))
    return Collective(kind, _algorithm(name), message, dtype, group)


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
        return "nccl" if way is None else " ".join(["nccl", *filter(None, way.groups())]).lower()
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
