"""A folder of operator times, as the profiler of LLMServingSim writes one per tensor-parallel size.

`dense.csv` (layer, tokens, time_us), `per_sequence.csv` (layer, sequences, time_us),
`attention.csv` (prefill_chunk, kv_prefill, n_decode, kv_decode, time_us), `skew.csv` where it was
measured, and `meta.yaml`, which may lie one level above. Times are microseconds of one call of one
layer; context is what a request had before the step.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from advisor.step_time.operators.csv_rows import CsvRows
from traces.errors import TablesError, UsageError
from traces.plain_yaml import plain_yaml
from traces.schema.engine import EngineConfig, ModelFacts
from traces.statistics import Floats

ATTENTION = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
SKEW = ("n", "pc", "kp", "kv_big", "t_mean_us", "t_max_us", "t_skew_us")
# What LLMServingSim's profiler divides among the GPUs of its last size, in vLLM's names.
DIVIDED = ("num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size")
MOST_META_BYTES = 1 << 20
_SIXTEEN_BITS = ("bf16", "fp16", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class Operators:
    """What a folder holds, in seconds.

    `dense` and `per_sequence`: by layer, [rows, (count, seconds)], ascending. `attention` [rows,
    ATTENTION and seconds]. `skew` [rows, (batch, chunk, before it, longest context; seconds with
    all contexts at their mean, with all at the longest, as they were)], None where it was not
    measured or meta.yaml turns it off. `tensor_parallel_size` is that of the tables. `degrees` are
    the sizes that meta.yaml has, and `divided` the model's DIVIDED at one of them; `variant` is the
    precision that it names.
    """

    folder: Path
    dense: dict[str, Floats]
    per_sequence: dict[str, Floats]
    attention: Floats
    skew: Floats | None
    gpu: str | None
    model: str | None
    vllm_version: str | None
    tensor_parallel_size: int
    meta: Path | None = None
    degrees: tuple[int, ...] = ()
    divided: Mapping[str, int] = field(default_factory=dict)
    variant: str | None = None

    @property
    def source(self) -> str:
        model = " ".join(filter(None, (self.model, self.variant)))
        origin = " on ".join(filter(None, (model, self.gpu)))
        vllm = "" if self.vllm_version is None else f", vLLM {self.vllm_version}"
        return f"the tables are of {origin or 'a model that is not named'}{vllm}"

    def check_model(self, facts: ModelFacts, engine: EngineConfig) -> None:
        """Raise UsageError where a model or its precision is not that of the tables.

        The name is not asked: a model that was trained further has another and the same shape.
        """
        quantised = facts.quantization or engine.quantization
        if quantised is not None and self.variant in _SIXTEEN_BITS:
            raise UsageError(
                f"{self.meta}: the tables are of {self.variant} weights (variant), and those of "
                f"{facts.name} are quantised ({quantised}). Give tables of that precision"
            )
        for size in self.degrees or (self.tensor_parallel_size,):
            shares = {name: _share(facts, name, size) for name in self.divided}
            if all(shares[n] in (None, value) for n, value in self.divided.items()):
                return
        there = {name: getattr(facts, name) for name in self.divided}
        most = max(self.degrees or (self.tensor_parallel_size,))
        name, value = next(
            (n, v) for n, v in self.divided.items() if _share(facts, n, most) not in (None, v)
        )
        raise UsageError(
            f"{self.meta}: the tables are of {self.model or 'a model'}, whose {name} is "
            f"{value * most:,} ({value:,} for each of {most}), and {facts.name} has "
            f"{there[name]:,}. Give the tables' model with --model-config, or tables of "
            f"{facts.name}"
        )


def _share(facts: ModelFacts, name: str, size: int) -> int | None:
    """Return what of a model's shape one of `size` GPUs has, None where it is not known."""
    total: int | None = getattr(facts, name)
    return None if total is None else max(-(-total // size), 1)


def gpu_of(folder: Path) -> str | None:
    """Return the GPU that a folder's tables are of, as its driver names it."""
    return _text(_meta(folder)[1].get("gpu"))


def read_operators(folder: Path) -> Operators:
    """Read a folder of operator times. Raises TablesError with the file, the line and the mend."""
    path, meta = _meta(folder)
    for name in ("moe.csv", "linear_attention.csv"):
        if (folder / name).exists():
            raise TablesError(
                f"{folder / name}: such layers are not modelled, as there is no run to check them"
                " against. Give tables of a dense model"
            )
    degrees = _sizes(path, meta.get("tp_degrees"))
    skew = meta.get("skew_profile")
    skewed = isinstance(skew, dict) and skew.get("enabled") is True
    return Operators(
        folder=folder,
        dense=_by_layer(folder / "dense.csv", "tokens"),
        per_sequence=_by_layer(folder / "per_sequence.csv", "sequences"),
        attention=_attention(folder / "attention.csv"),
        skew=_skew(folder / "skew.csv") if skewed else None,
        gpu=_text(meta.get("gpu")),
        model=_text(meta.get("model")),
        vllm_version=_text(meta.get("vllm_version")),
        tensor_parallel_size=_size(folder, path, degrees),
        meta=path,
        degrees=degrees,
        divided=_divided(meta),
        variant=_text(meta.get("variant")),
    )


def _by_layer(path: Path, count: str) -> dict[str, Floats]:
    table = CsvRows(path, ("layer", count, "time_us"))
    rows: dict[str, dict[int, float]] = {}
    for line in table:
        layer = table.cell(line, "layer").strip()
        at = table.count(line, count, least=1)
        if at in rows.setdefault(layer, {}):
            raise table.error(line, f"{layer} at {at} {count} a second time. Keep one row")
        rows[layer][at] = table.seconds(line, "time_us")
    return {layer: np.array(sorted(found.items()), dtype=float) for layer, found in rows.items()}


def _attention(path: Path) -> Floats:
    table = CsvRows(path, (*ATTENTION, "time_us"))
    if "layer" in table.columns:
        raise TablesError(
            f"{path}: has a column layer: attention of several kinds is not modelled. Give tables"
            " of a model with one kind of attention"
        )
    rows: dict[tuple[int, ...], float] = {}
    for line in table:
        key = tuple(table.count(line, name) for name in ATTENTION)
        if key[2] and not key[3]:
            raise table.error(line, "decoding requests without a context (kv_decode). Remove it")
        if key[0] + key[2] == 0:
            raise table.error(line, "neither a chunk nor a decoding request. Remove the row")
        key = (key[0], key[1] if key[0] else 0, key[2], key[3] if key[2] else 0)
        if key in rows:
            raise table.error(line, f"{key} a second time. Keep one row")
        rows[key] = table.seconds(line, "time_us", positive=True)
    return np.array([(*key, seconds) for key, seconds in sorted(rows.items())], dtype=float)


def _skew(path: Path) -> Floats:
    if not path.exists():
        raise TablesError(
            f"{path}: not there, and meta.yaml says that skew was measured. Add it, or set"
            " skew_profile.enabled: false"
        )
    table = CsvRows(path, SKEW)
    rows = []
    for line in table:
        counts = [float(table.count(line, name)) for name in SKEW[:4]]
        rows.append([*counts, *(table.seconds(line, name, positive=True) for name in SKEW[4:])])
    return np.array(rows, dtype=float)


def _meta(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the file that says where tables come from, and what it says.

    It lies beside them or, as LLMServingSim writes it, once above the folders of all sizes.
    """
    if not folder.is_dir():
        raise TablesError(f"{folder}: no folder of operator times. Give the one with dense.csv")
    beside, above = folder / "meta.yaml", folder.resolve().parent / "meta.yaml"
    path = above if not beside.exists() and _named(folder) and above.exists() else beside
    try:
        if path.exists() and not (path.is_file() and path.stat().st_size <= MOST_META_BYTES):
            raise TablesError(f"{path}: is no file of at most {MOST_META_BYTES >> 20} MiB")
        meta = plain_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TablesError(
            f"{path}: not there, nor above a folder named tp1, tp2, ... Copy it from the tables"
        ) from None
    except (OSError, ValueError) as cause:
        raise TablesError(f"{path}: cannot be read as YAML. Copy it again") from cause
    if not isinstance(meta, dict):
        raise TablesError(f"{path}: holds no mapping. Copy it again")
    return path, meta


def _named(folder: Path) -> int | None:
    """Return the tensor-parallel size that a folder's name says, None where it says none or two."""
    for name in dict.fromkeys((folder.resolve().name, folder.name)):
        sizes = {int(size) for size in re.findall(r"(?i)(?<![a-z])tp[-_=]?(\d{1,4})", name)}
        if len(sizes) == 1:
            return sizes.pop()
    return None


def _size(folder: Path, meta: Path, degrees: tuple[int, ...]) -> int:
    """Return the tensor-parallel size of a folder's tables, by its name and meta.yaml.

    Raises TablesError where they contradict one another, or neither says it.
    """
    named, listed = _named(folder), ", ".join(map(str, degrees))
    if named is not None:
        if degrees and named not in degrees:
            raise TablesError(
                f"{folder}: the folder's name says tensor-parallel size {named}, and tp_degrees in "
                f"{meta} says {listed}. Correct the one that is wrong"
            )
        return named
    if len(degrees) == 1:
        return degrees[0]
    said = f"tp_degrees in {meta} has {listed}" if degrees else f"{meta} has no tp_degrees"
    raise TablesError(
        f"{folder}: {said}, and the folder's name does not say which tensor-parallel size its "
        "tables have. End it with tp1, tp2, .. or leave that size alone in tp_degrees"
    )


def _divided(meta: dict[str, Any]) -> dict[str, int]:
    """Return what meta.yaml says of the shape that was profiled: a GPU's part of the model's."""
    engine = meta.get("engine_effective")
    overrides = engine.get("hf_overrides") if isinstance(engine, dict) else None
    shape = overrides if isinstance(overrides, dict) else {}
    return {
        name: value
        for name in DIVIDED
        if isinstance(value := shape.get(name), int) and not isinstance(value, bool) and value > 0
    }


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _sizes(path: Path, value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(type(n) is int and n > 0 for n in value):
        raise TablesError(f"{path}: tp_degrees is {value!r:.40}, not a list of sizes")
    return tuple(sorted(set(value)))
