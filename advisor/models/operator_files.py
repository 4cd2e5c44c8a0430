"""A folder of operator times, as the profiler of LLMServingSim writes one per tensor-parallel size.

`dense.csv` (layer, tokens, time_us), `per_sequence.csv` (layer, sequences, time_us),
`attention.csv` (prefill_chunk, kv_prefill, n_decode, kv_decode, time_us), `skew.csv` where it was
measured, and `meta.yaml`. Times are microseconds of one call of one layer; context is what a
request had before the step.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from advisor.models.csv_rows import CsvRows
from traces.errors import TablesError

Floats = npt.NDArray[np.float64]

ATTENTION = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
SKEW = ("n", "pc", "kp", "kv_big", "t_mean_us", "t_max_us", "t_skew_us")


@dataclass(frozen=True, kw_only=True)
class Operators:
    """What a folder holds, in seconds.

    `dense` and `per_sequence`: by layer, [rows, (count, seconds)], ascending. `attention` [rows,
    ATTENTION and seconds]. `skew` [rows, (batch, chunk, before it, longest context; seconds with
    all contexts at their mean, with all at the longest, as they were)], None where it was not
    measured or meta.yaml turns it off.
    """

    folder: Path
    dense: dict[str, Floats]
    per_sequence: dict[str, Floats]
    attention: Floats
    skew: Floats | None
    gpu: str | None
    model: str | None
    vllm_version: str | None
    tensor_parallel_sizes: tuple[int, ...]


def read_operators(folder: Path) -> Operators:
    """Read a folder of operator times. Raises TablesError with the file, the line and the mend."""
    if not folder.is_dir():
        raise TablesError(f"{folder}: no folder of operator times; give the one with dense.csv")
    for name in ("moe.csv", "linear_attention.csv"):
        if (folder / name).exists():
            raise TablesError(
                f"{folder / name}: such layers are not modelled, as there is no run to check them"
                " against; give tables of a dense model"
            )
    meta = _meta(folder / "meta.yaml")
    skewed = _enabled(meta, "skew_profile")
    return Operators(
        folder=folder,
        dense=_by_layer(folder / "dense.csv", "tokens"),
        per_sequence=_by_layer(folder / "per_sequence.csv", "sequences"),
        attention=_attention(folder / "attention.csv"),
        skew=_skew(folder / "skew.csv") if skewed else None,
        gpu=_text(meta.get("gpu")),
        model=_text(meta.get("model")),
        vllm_version=_text(meta.get("vllm_version")),
        tensor_parallel_sizes=_sizes(folder / "meta.yaml", meta.get("tp_degrees")),
    )


def _by_layer(path: Path, count: str) -> dict[str, Floats]:
    table = CsvRows(path, ("layer", count, "time_us"))
    rows: dict[str, dict[int, float]] = {}
    for line in table:
        layer = table.cell(line, "layer").strip()
        at = table.count(line, count, least=1)
        if at in rows.setdefault(layer, {}):
            raise table.error(line, f"{layer} at {at} {count} a second time; keep one row")
        rows[layer][at] = table.seconds(line, "time_us")
    return {layer: np.array(sorted(found.items()), dtype=float) for layer, found in rows.items()}


def _attention(path: Path) -> Floats:
    table = CsvRows(path, (*ATTENTION, "time_us"))
    if "layer" in table.columns:
        raise TablesError(
            f"{path}: has a column layer: attention of several kinds is not modelled; give tables"
            " of a model with one kind of attention"
        )
    rows: dict[tuple[int, ...], float] = {}
    for line in table:
        key = tuple(table.count(line, name) for name in ATTENTION)
        if key[0] + key[2] == 0:
            raise table.error(line, "neither a chunk nor a decoding request; remove the row")
        key = (key[0], key[1] if key[0] else 0, key[2], key[3] if key[2] else 0)
        if key in rows:
            raise table.error(line, f"{key} a second time; keep one row")
        rows[key] = table.seconds(line, "time_us", positive=True)
    return np.array([(*key, seconds) for key, seconds in sorted(rows.items())], dtype=float)


def _skew(path: Path) -> Floats:
    if not path.exists():
        raise TablesError(
            f"{path}: not there, and meta.yaml says that skew was measured; add it, or set"
            " skew_profile.enabled: false"
        )
    table = CsvRows(path, SKEW)
    rows = []
    for line in table:
        counts = [float(table.count(line, name)) for name in SKEW[:4]]
        rows.append([*counts, *(table.seconds(line, name, positive=True) for name in SKEW[4:])])
    return np.array(rows, dtype=float)


def _meta(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TablesError(f"{path}: not there; copy it from beside the tables") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as cause:
        raise TablesError(f"{path}: cannot be read as YAML; copy it again") from cause
    if not isinstance(found, dict):
        raise TablesError(f"{path}: holds no mapping; copy it again")
    return found


def _enabled(meta: dict[str, Any], name: str) -> bool:
    part = meta.get(name)
    return isinstance(part, dict) and part.get("enabled") is True


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _sizes(path: Path, value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(n, int) and n > 0 for n in value):
        raise TablesError(f"{path}: tp_degrees is {value!r:.40}, not a list of sizes")
    return tuple(value)
