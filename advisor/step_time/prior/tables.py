"""Operator times of GPUs that others measured: the tables in the package aiconfigurator-core.

One folder per system (`h100_sxm`), in it one per family, framework and version. Only vLLM's are
read, with polars; the package itself is not imported. Latencies there are milliseconds, sizes of
messages are elements of bfloat16.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import yaml

from advisor.step_time.operators.grids import fill_beyond, to_grid
from traces.errors import MissingDependencyError, TablesError, UsageError, install_command

Floats = npt.NDArray[np.float64]

PACKAGE: Final = "aiconfigurator_core"
FRAMEWORK: Final = "vllm"
FILES: Final = {
    "gemm": "gemm_perf.parquet",
    "attention": "generation_attention_perf.parquet",
    "comm": "custom_allreduce_perf.parquet",
}
COLUMNS: Final = {
    "gemm": ("gemm_dtype", "m", "n", "k"),
    "attention": (
        "num_heads", "num_key_value_heads", "head_dim", "batch_size", "isl", "step",
        "attn_dtype", "kv_cache_dtype", "device",
    ),
    "comm": ("allreduce_dtype", "num_gpus", "message_size", "kernel_source"),
}  # fmt: skip
BYTES_PER_ELEMENT: Final = 2
MOST_KV_HEADS: Final = 8  # of decode attention that was measured
_AGAIN: Final = "Install aiconfigurator-core again (pip install --force-reinstall)"


def tables_folder() -> Path:
    """Return where the tables lie. Raises MissingDependencyError where they are not installed."""
    spec = find_spec(PACKAGE)
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    for place in places:
        if (Path(place) / "systems").is_dir():
            return Path(place) / "systems"
    raise MissingDependencyError(
        f"--gpu needs the operator tables of aiconfigurator-core: {install_command('prior')}"
    )


def known_systems(folder: Path) -> list[str]:
    """Return the systems that have vLLM's times of matrix products and of attention."""
    return sorted(
        path.name
        for path in (folder / "data").iterdir()
        if (folder / f"{path.name}.yaml").is_file()
        and all(_newest(path, family) is not None for family in ("gemm", "attention"))
    )


def _newest(system: Path, family: str) -> Path | None:
    """Return the folder of the newest version that has the family's table."""
    found = (system / family / FRAMEWORK).glob(f"*/{FILES[family]}")
    return max((path.parent for path in found), key=_version, default=None)


def _version(path: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", path.name))


@dataclass(frozen=True, kw_only=True, eq=False)
class PriorTables:
    """The tables of one system; times in seconds. Made by `read_prior`."""

    system: str
    folder: Path
    bandwidth_bytes_per_s: float
    kernel_s: float
    versions: dict[str, str]
    device: str
    memory_bytes: float | None = None
    reserved: dict[str, Any] = field(default_factory=dict)

    def reserved_bytes(self, group_size: int) -> float:
        """Return the memory of a GPU that weights and KV cache do not get, as the authors have it.

        NCCL's for so many GPUs, and the rest (activations, graphs, the context).
        """
        nccl = self.reserved.get("nccl_mem") or {}
        return float(self.reserved.get("other_mem") or 0) + float(nccl.get(group_size) or 0)

    @cached_property
    def _gemm(self) -> tuple[list[Floats], Floats]:
        rows = self.read("gemm").filter(gemm_dtype="bfloat16")
        rows = rows.group_by("n", "k", "m").agg(pl.col("seconds").mean())
        knots, grid = to_grid(
            rows.select("n", "k", "m").to_numpy().astype(float), rows["seconds"].to_numpy()
        )
        fill_beyond(grid, knots, (0, 1), hold=False)
        return knots, grid

    def gemm(self, n: int, k: int) -> Floats:
        """Return [rows, (tokens, seconds)] of tokens x k times k x n in bfloat16.

        Linear in n and in k between measured ones, which is exact for a launch and a price per
        byte or FLOP; beyond the largest in proportion, below the smallest held.
        """
        (ns, ks, tokens), grid = self._gemm
        beyond = max(n / ns[-1], 1.0) * max(k / ks[-1], 1.0)
        seconds = np.zeros(len(tokens))
        for i, a in _between(ns, float(n)):
            for j, b in _between(ks, float(k)):
                seconds += a * b * grid[i, j]
        return np.column_stack([tokens, beyond * seconds])

    def decode(self, heads: int, kv_heads: int, head_dim: int, *, kv_fp8: bool) -> Floats:
        """Return [rows, (batch, context before the step, seconds)] of decode attention.

        Of more KV heads than were measured, twice as many do the work of twice the requests.
        """
        if kv_heads > MOST_KV_HEADS and not (kv_heads % 2 or heads % 2):
            rows = self.decode(heads // 2, kv_heads // 2, head_dim, kv_fp8=kv_fp8)
            rows = rows[(rows[:, 0] % 2 == 0)]
            return np.column_stack([rows[:, 0] / 2, rows[:, 1:]])
        return self._attention("generation", heads, kv_heads, head_dim, kv_fp8, "step")

    def prompts(self, heads: int, kv_heads: int, head_dim: int, *, kv_fp8: bool) -> Floats:
        """Return [rows, (tokens, seconds)] of the attention of one whole prompt."""
        rows = self._attention("context", heads, kv_heads, head_dim, kv_fp8, "isl")
        return np.asarray(rows[rows[:, 0] == 1, 1:], dtype=float)

    def _attention(
        self, kind: str, heads: int, kv_heads: int, head_dim: int, kv_fp8: bool, length: str
    ) -> Floats:
        """Return [rows, (batch, length, seconds)], linear in heads between those there are."""
        table = self.read("attention", f"{kind}_attention_perf.parquet")
        if "window_size" in table.columns:
            table = table.filter(window_size=0)
        if kind == "context":
            table = table.filter(step=0)
        kept = table.filter(
            num_key_value_heads=kv_heads, head_dim=head_dim, attn_dtype="bfloat16",
            kv_cache_dtype="fp8" if kv_fp8 else "bfloat16",
        )  # fmt: skip
        known = np.array(sorted(kept["num_heads"].unique()), dtype=float)
        shape = f"{kv_heads} KV heads of {head_dim}{' in fp8' if kv_fp8 else ''}"
        if not len(known):
            raise TablesError(
                f"{self.system}: no {kind} attention with {shape} was measured. Ask about another"
                " model (--model-config), tensor_parallel_size or GPU"
            )
        if not known[0] <= heads <= known[-1]:
            counts = ", ".join(f"{count:g}" for count in known)
            raise TablesError(
                f"{self.system}: {kind} attention with {shape} was measured for {counts} heads, not"
                f" for {heads}. Ask about another tensor_parallel_size or GPU"
            )
        kept = kept.group_by("num_heads", "batch_size", length).agg(pl.col("seconds").mean())
        parts = [
            kept.filter(num_heads=int(known[at])).select(
                "batch_size", length, (pl.col("seconds") * share).alias(f"part{at}")
            )
            for at, share in _between(known, float(heads))
        ]
        found = parts[0] if len(parts) == 1 else parts[0].join(parts[1], on=["batch_size", length])
        total = found.select(
            "batch_size", length, pl.sum_horizontal(pl.col("^part.*$")).alias("seconds")
        )
        return np.asarray(total.sort("batch_size", length).to_numpy(), dtype=float)

    def all_reduces(self, group_size: int) -> dict[bool, Floats]:
        """Return [rows, (bytes, seconds)] of all-reduces, those in CUDA graphs under True.

        Raises TablesError, naming what there is, where the group was not measured.
        """
        if "comm" not in self.versions:
            raise TablesError(f"{self.system}: no all-reduces were measured. Use one GPU")
        table = self.read("comm").filter(allreduce_dtype="bfloat16")
        rows = table.filter(num_gpus=group_size)
        if rows.is_empty():
            sizes = ", ".join(str(size) for size in sorted(table["num_gpus"].unique()))
            raise TablesError(
                f"{self.system}: no all-reduce of {group_size} GPUs was measured. There are {sizes}"
            )
        rows = rows.with_columns(pl.col("message_size") * BYTES_PER_ELEMENT).sort("message_size")
        parts = {
            graph: rows.filter(pl.col("kernel_source").str.ends_with("graph") == graph)
            for graph in (True, False)
        }
        return {
            graph: part.select("message_size", "seconds").to_numpy().astype(float)
            for graph, part in parts.items()
            if len(part)
        }

    def read(self, family: str, name: str | None = None) -> pl.DataFrame:
        """Return a table with its latency in `seconds`. Raises TablesError for a damaged one."""
        path = self.folder / family / FRAMEWORK / self.versions[family] / (name or FILES[family])
        try:
            table = pl.read_parquet(path, glob=False)
        except (OSError, pl.exceptions.PolarsError) as cause:
            raise TablesError(
                f"{path}: cannot be read ({type(cause).__name__}). {_AGAIN}"
            ) from None
        if missing := {*COLUMNS[family], "latency"} - set(table.columns):
            raise TablesError(
                f"{path}: no column {sorted(missing)[0]}, which other versions have: "
                f"{install_command('prior')}"
            )
        return table.with_columns(seconds=pl.col("latency") / 1e3).filter(pl.col("seconds") > 0)

    @property
    def label(self) -> str:
        """What the tables are: `h100_sxm, vLLM 0.24.0`."""
        return f"{self.system}, vLLM {self.versions['gemm']}"


def read_prior(
    system: str, folder: Path | None = None, choices: Sequence[str] | None = None
) -> PriorTables:
    """Open the tables of a system, in the installed package or in `folder`.

    Raises UsageError, naming `choices`, for a system without tables; MissingDependencyError
    where the package is not installed; TablesError for damage.
    """
    folder = folder or tables_folder()
    known = known_systems(folder)
    if system not in known:
        raise UsageError(
            f"--gpu {system}: no operator tables. Choose one of {', '.join(choices or known)}"
        )
    data = folder / "data" / system
    newest = {family: _newest(data, family) for family in FILES}
    versions = {family: path.name for family, path in newest.items() if path is not None}
    gpu, misc = _gpu(folder / f"{system}.yaml")
    try:
        bandwidth = float(gpu["mem_bw"]) * float(gpu["mem_bw_empirical_scaling_factor"])
        kernel_s = float(gpu["mem_empirical_constant_latency"])
    except (KeyError, TypeError, ValueError) as cause:
        raise TablesError(
            f"{folder / system}.yaml: no memory bandwidth ({cause}). {_AGAIN}"
        ) from None
    made = PriorTables(
        system=system,
        folder=data,
        bandwidth_bytes_per_s=bandwidth,
        kernel_s=kernel_s,
        versions=versions,
        device="",
        memory_bytes=None if gpu.get("mem_capacity") is None else float(gpu["mem_capacity"]),
        reserved=misc,
    )
    device = str(made.read("attention")["device"][0])
    return PriorTables(**{**made.__dict__, "device": device})


def gpu_facts(folder: Path, system: str) -> dict[str, Any]:
    """Return what a system's file says of its GPU. Raises TablesError where it cannot be read."""
    return _gpu(folder / f"{system}.yaml")[0]


def _gpu(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a system's file says of its GPU, and of the rest."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        gpu, misc = found["gpu"], found.get("misc")
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
        raise TablesError(f"{path}: cannot be read. {_AGAIN}") from None
    return gpu if isinstance(gpu, dict) else {}, misc if isinstance(misc, dict) else {}


def _between(known: Floats, value: float) -> list[tuple[int, float]]:
    """Return the places of the knots around a value with their shares; held beyond the ends."""
    inside = float(np.clip(value, known[0], known[-1]))
    low = int(np.searchsorted(known, inside, side="right")) - 1
    if known[low] == inside:
        return [(low, 1.0)]
    share = (inside - known[low]) / (known[low + 1] - known[low])
    return [(low, 1.0 - float(share)), (low + 1, float(share))]
