"""Operator times of GPUs that others measured: the tables in the package aiconfigurator-core.

One folder per system (`h100_sxm`), in it one per family, framework and version. Only vLLM's are
read, with polars; the package itself is not imported. Latencies there are milliseconds, sizes of
messages are elements of bfloat16.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import polars as pl
import yaml

from traces.errors import (
    MissingDependencyError,
    TablesError,
    TtscopeError,
    UsageError,
    install_command,
)
from traces.foreign.packages import PRIOR, package_folder
from traces.plain_yaml import plain_yaml
from traces.statistics import Z95, Floats

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
# From its version 0.11 on vLLM reduces large messages in PyTorch's symmetric memory
# (vllm-project/vllm pull request 24111): on Hopper those among eight GPUs from 256 KiB on, and all
# that are larger than what its own kernels take. The all-reduces of Hopper that were measured with
# 0.14 are without it, those from 0.18 on with it.
SYMMETRIC_MEMORY: Final = (0, 11, 0)
MEASURED_WITH_IT: Final = {90: (0, 18, 0)}
_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, five times as fast
_AGAIN: Final = "Install aiconfigurator-core again (pip install --force-reinstall)"


def tables_folder() -> Path:
    """Return where the tables lie. Raises MissingDependencyError where they are not installed."""
    if (folder := package_folder(PRIOR, "systems")) is not None:
        return folder
    raise MissingDependencyError(
        f"--gpu needs the operator tables of aiconfigurator-core: {install_command('prior')}"
    )


def named_tables(tables: Path | None, systems: Sequence[str]) -> list[str]:
    """Return names of systems for `read_prior`, of a folder of the package's layout if given.

    The folder is that with `data` and a YAML file for each system, or the package that holds it.
    Raises UsageError for another.
    """
    if tables is None:
        return list(systems)
    for folder in (tables, tables / "systems", tables / PRIOR / "systems"):
        if (folder / "data").is_dir():
            return [str(folder / system) for system in systems]
    raise UsageError(
        f"--tables {tables}: has no folder data of systems, as the folder systems of "
        "aiconfigurator-core has. Give that folder"
    )


def collectives_of(name: str, vllm: str | None) -> list[Path]:
    """Return the files of a system's all-reduces, that nearest to a version first.

    `name` may be `FOLDER/NAME`, as in `read_prior`. Empty where there is no such system.
    """
    try:
        tables = read_prior(name).of_version(vllm)
    except TtscopeError:
        return []
    if "comm" not in tables.versions:
        return []
    return [each.path("comm") for each in (tables, *tables.other_collectives)]


def known_systems(folder: Path) -> list[str]:
    """Return the systems that have vLLM's times of matrix products and of attention."""
    return sorted(path.name for path in (folder / "data").iterdir() if _known(folder, path.name))


def _known(folder: Path, system: str) -> bool:
    return (folder / f"{system}.yaml").is_file() and all(
        _versions(folder / "data" / system, family) for family in ("gemm", "attention")
    )


def _versions(system: Path, family: str) -> tuple[str, ...]:
    """Return the versions of vLLM that have the family's table, ascending."""
    paths = (system / family / FRAMEWORK).glob(f"*/{FILES[family]}")
    return tuple(sorted((path.parent.name for path in paths), key=_numbers))


def _numbers(version: str) -> tuple[int, ...]:
    """Return the first three numbers of a version: (0, 24, 0)."""
    numbers = [int(part) for part in re.findall(r"\d+", version)[:3]]
    return (*numbers, *(0 for _ in range(3 - len(numbers))))


def _nearest(versions: Sequence[str], vllm: str | None) -> str:
    """Return the newest version that is not newer than an engine's, else the oldest.

    An engine whose version is not known has the newest.
    """
    if vllm is None or not re.match(r"v?\d", vllm):
        return versions[-1]
    until = [each for each in versions if _numbers(each) <= _numbers(vllm)]
    return until[-1] if until else versions[0]


def _maker(tables: PriorTables) -> str:
    return tables.device.split()[0]


def _read_rows(path: Path) -> pl.DataFrame:
    """Return a table with its latency in `seconds`."""
    try:
        table = pl.read_parquet(path, glob=False)
    except (OSError, pl.exceptions.PolarsError) as cause:
        raise TablesError(f"{path}: cannot be read ({type(cause).__name__}). {_AGAIN}") from None
    if "latency" not in table.columns:
        raise TablesError(
            f"{path}: no column latency, which other versions have: {install_command('prior')}"
        )
    return table.with_columns(seconds=pl.col("latency") / 1e3).filter(pl.col("seconds") > 0)


# By how much the peak in bfloat16 is above that of the float32 cores, by the chip's generation:
# data sheets of A100 (312 and 19.5 TFLOP/s), L40S (362, 91.6), H100 (989, 67), B200 (2,250, 75),
# B300 (2,500, 77) and RTX PRO 6000 (504, 126).
FLOAT32: Final = {80: 16.0, 89: 4.0, 90: 14.8, 100: 30.0, 103: 32.0, 120: 4.0}


# GPUs without tables, whose names are near those of others. A published GH200 took 0.96 of the time
# of an H100.
SAME_CHIP: Final = {"gh200": "h100_sxm", "h800": "h100_sxm", "a800": "a100_sxm"}
LEAST_OF_PAIR: Final = 0.5  # of the bytes a second of two GPUs, that more of them move by PCIe
SMALL_BYTES: Final = 65_536  # of a message that takes as long without peer-to-peer transfers


class SlowHost(NamedTuple):
    """A host whose GPUs reached one another through its memory: bytes a second on the bus."""

    group_size: int
    measured: float
    pair: float

    def by_link(self, rows: Floats) -> Floats:
        """Return all-reduces [rows, (bytes, seconds)], large ones at the rate of two GPUs."""
        sizes, seconds = rows.T
        small = float(np.interp(SMALL_BYTES, sizes, seconds))
        more = np.maximum(sizes - SMALL_BYTES, 0.0) * _on_bus(self.group_size) / self.pair
        return np.column_stack(
            [sizes, np.where(sizes > SMALL_BYTES, np.minimum(seconds, small + more), seconds)]
        )

    @property
    def rule(self) -> str:
        """What is by rule, in words."""
        return (
            f"all-reduces of {self.group_size} GPUs beyond 64 KiB: at {self.pair / 1e9:.3g} GB/s, "
            f"as two of these GPUs have. The tables' host moved {self.measured / 1e9:.3g} GB/s "
            "among so many, without peer-to-peer transfers"
        )

    @property
    def spread(self) -> float:
        """How far they lie off (sd of the log): the tables' host is at an end of nine in ten."""
        return float(np.log(self.pair / self.measured)) / Z95


def _on_bus(group_size: int) -> float:
    """Return how often each byte of an all-reduce crosses the bus (a ring, Patarasuk 2009)."""
    return 2 * (group_size - 1) / group_size


def _bus_rate(rows: pl.DataFrame, group_size: int) -> float:
    """Return the bytes a second that all-reduces of the largest size move on the bus."""
    largest = rows.filter(pl.col("message_size") == pl.col("message_size").max())
    per_s = (largest["message_size"] / largest["seconds"]).to_numpy()
    return float(per_s.max()) * _on_bus(group_size)


@dataclass(frozen=True, kw_only=True, eq=False)
class PriorTables:
    """The tables of one system; times in seconds. Made by `read_prior`.

    `versions` of vLLM are those in use by family, of those that were `measured`.
    """

    system: str
    folder: Path
    bandwidth_bytes_per_s: float
    kernel_s: float
    versions: dict[str, str]
    device: str
    measured: dict[str, tuple[str, ...]] = field(default_factory=dict)
    memory_bytes: float | None = None
    reserved: dict[str, Any] = field(default_factory=dict)
    gpu: dict[str, Any] = field(default_factory=dict)
    node: dict[str, Any] = field(default_factory=dict)

    def peak(self, kind: str) -> float:
        """Return the FLOP/s of a kind of tensor cores: `bfloat16`, `fp8`, `fp4`.

        A GPU without cores for narrow values multiplies them in bfloat16. `float32` is that of the
        cores that are no tensor cores. Raises TablesError where the tables do not say it.
        """
        if kind == "float32":
            return self.peak("bfloat16") / FLOAT32.get(self.gpu.get("sm_version") or 0, 1.0)
        for name in (kind, "bfloat16"):
            if value := self.gpu.get(f"{name}_tc_flops"):
                return float(value)
        raise TablesError(f"{self.system}.yaml: no bfloat16_tc_flops. {_AGAIN}")

    @property
    def peak_bandwidth(self) -> float:
        """Bytes a second that the memory has at the most; kernels reach less of it."""
        return float(self.gpu.get("mem_bw") or self.bandwidth_bytes_per_s)

    @cached_property
    def others(self) -> tuple[PriorTables, ...]:
        """The other systems of the same maker, the one with the nearest bandwidth first."""
        root = self.folder.parent.parent
        names = [name for name in known_systems(root) if name != self.system]
        same_maker = [
            each for name in names if _maker(each := read_prior(name, root)) == _maker(self)
        ]

        def apart(each: PriorTables) -> float:
            return abs(float(np.log(each.bandwidth_bytes_per_s / self.bandwidth_bytes_per_s)))

        return tuple(sorted(same_maker, key=apart))

    def rows(self, family: str, name: str, version: str | None = None) -> pl.DataFrame | None:
        """Return a table of any family with its latency in `seconds`; None where there is none.

        That of the newest version, if none is given. Raises TablesError for damage.
        """
        versions = [each for each in self.versions_of(family, name) if version in (None, each)]
        return (
            None
            if not versions
            else _read_rows(self.folder / family / FRAMEWORK / versions[0] / name)
        )

    def versions_of(self, family: str, name: str) -> list[str]:
        """Return the versions of vLLM that a table is there for, the newest one first.

        Their authors take older ones only for what the newest lacks (query_versions.yaml).
        """
        paths = (self.folder / family / FRAMEWORK).glob(f"*/{name}")
        return sorted((path.parent.name for path in paths), key=_numbers, reverse=True)

    @cached_property
    def nccl(self) -> pl.DataFrame | None:
        """NCCL's collectives of the newest version; None where there is no such table."""
        paths = sorted(
            (self.folder / "comm/nccl").glob("*/nccl_perf.parquet"),
            key=lambda path: _numbers(path.parent.name),
        )
        return _read_rows(paths[-1]) if paths else None

    def of_version(self, vllm: str | None) -> PriorTables:
        """Return the tables nearest to an engine's version of vLLM (None: the newest)."""
        return self if vllm is None else _of_version(self, vllm)

    def reserved_bytes(self, group_size: int) -> float:
        """Return the memory of a GPU that weights and KV cache do not get, as the authors have it.

        NCCL's for so many GPUs, and the rest (activations, graphs, the context).
        """
        nccl = self.reserved.get("nccl_mem") or {}
        return float(self.reserved.get("other_mem") or 0) + float(nccl.get(group_size) or 0)

    def all_reduces(self, group_size: int) -> dict[bool, Floats]:
        """Return [rows, (bytes, seconds)] of all-reduces, those in CUDA graphs under True.

        A message takes no longer than a larger one: between the sizes of two kernels the tables
        have a third and slow one, where engines have others (fused with the norm behind it). Where
        the host had no peer-to-peer transfers, large ones go by the link (`slow_host`). Raises
        TablesError, naming what there is, where the group was not measured.
        """
        rows, slow = self._all_reduce_rows(group_size), self.slow_host(group_size)
        parts = {
            graph: rows.filter(pl.col("kernel_source").str.ends_with("graph") == graph)
            for graph in (True, False)
        }
        least = pl.col("seconds").cum_min(reverse=True)
        found = {
            graph: part.select("message_size", least).to_numpy().astype(float)
            for graph, part in parts.items()
            if len(part)
        }
        if slow is None:
            return found
        return {graph: slow.by_link(part) for graph, part in found.items()}

    def slow_host(self, group_size: int) -> SlowHost | None:
        """Return what tells that the host of a group had no peer-to-peer transfers, or None.

        That is a group over PCIe that moves less than half as many bytes a second as two of its
        GPUs do.
        """
        link = float(self.node.get("intra_node_bw") or np.inf)
        if group_size <= 2 or link > float(self.node.get("pcie_bw") or 0.0):
            return None
        try:
            pair, own = (_bus_rate(self._all_reduce_rows(n), n) for n in (2, group_size))
        except TablesError:
            return None
        return SlowHost(group_size, own, pair) if own < LEAST_OF_PAIR * pair else None

    def _all_reduce_rows(self, group_size: int) -> pl.DataFrame:
        """Return the all-reduces of a group, by bytes. Raises TablesError as `all_reduces` does."""
        if "comm" not in self.versions:
            raise TablesError(f"{self.system}: no all-reduces were measured. Use one GPU")
        table = self.read("comm").filter(allreduce_dtype="bfloat16")
        rows = table.filter(num_gpus=group_size)
        if rows.is_empty():
            sizes = ", ".join(str(size) for size in sorted(table["num_gpus"].unique()))
            raise TablesError(
                f"{self.system}: no all-reduce of {group_size} GPUs was measured. There are {sizes}"
            )
        return rows.with_columns(pl.col("message_size") * BYTES_PER_ELEMENT).sort("message_size")

    def path(self, family: str, name: str | None = None) -> Path:
        """Return the file of a table."""
        return self.folder / family / FRAMEWORK / self.versions[family] / (name or FILES[family])

    def read(self, family: str, name: str | None = None) -> pl.DataFrame:
        """Return a table with its latency in `seconds`. Raises TablesError for a damaged one."""
        path = self.path(family, name)
        table = _read_rows(path)
        if missing := set(COLUMNS[family]) - set(table.columns):
            raise TablesError(
                f"{path}: no column {sorted(missing)[0]}, which other versions have: "
                f"{install_command('prior')}"
            )
        return table

    @property
    def label(self) -> str:
        """What the tables are: `h100_sxm, vLLM 0.24.0`."""
        return f"{self.system}, vLLM {self.versions['gemm']}"

    def described(self, collectives: bool) -> str:
        """Return the label, with the version of the all-reduces where it is another one."""
        gemm, comm = self.versions["gemm"], self.versions.get("comm")
        others = [f"attention of {self.versions['attention']}"]
        others = [] if self.versions["attention"] == gemm else others
        if collectives and comm not in (None, gemm):
            others.append(f"all-reduces of {comm}")
        return ", ".join([self.label, *others])

    @property
    def other_collectives(self) -> tuple[PriorTables, ...]:
        """The same tables with the all-reduces of the other versions that were measured."""
        comm = self.versions.get("comm")
        return tuple(
            replace(self, versions={**self.versions, "comm": each})
            for each in self.measured.get("comm", ())
            if each != comm
        )


@lru_cache(maxsize=64)
def _of_version(tables: PriorTables, vllm: str) -> PriorTables:
    measured = dict(tables.measured)
    if _numbers(vllm) >= SYMMETRIC_MEMORY and "comm" in measured:
        least = MEASURED_WITH_IT.get(tables.gpu.get("sm_version") or 0, (0, 0, 0))
        alike = tuple(each for each in measured["comm"] if _numbers(each) >= least)
        measured["comm"] = alike or measured["comm"]
    versions = {family: _nearest(found, vllm) for family, found in measured.items()}
    return replace(tables, versions=versions, measured=measured)


def read_prior(system: str, folder: Path | None = None, more: Sequence[str] = ()) -> PriorTables:
    """Open the tables of a system, in the installed package or in `folder`.

    Asked again, the same ones with all that was read of them, while none of their files changes.
    A system may be `FOLDER/NAME` (`named_tables`). Raises UsageError, naming those there are and
    `more`, for a system without tables; MissingDependencyError where the package is not installed;
    TablesError for damage.
    """
    if folder is None and len(Path(system).parts) > 1:
        folder, system = Path(system).parent, Path(system).name
    folder = folder or tables_folder()
    if not _known(folder, system):
        names = [*known_systems(folder), *more]
        near = [each for each in names if system.lower() in each.lower()]
        near = near or difflib.get_close_matches(system.lower(), names, n=1)
        hint = f"Did you mean {' or '.join(near)}? " if near and system else ""
        if (alike := SAME_CHIP.get(system.lower().partition("_")[0])) in names:
            hint = f"It has the chip of {alike}. "
        raise UsageError(
            f"--gpu {system}: no operator tables. {hint}Choose one of {', '.join(names)}"
        )
    return _opened(system, folder, _files(folder, system))


def _files(folder: Path, system: str) -> tuple[tuple[str, int, int], ...]:
    """Return a system's tables and all YAML files: path, when it changed (ns), bytes."""
    places = os.walk(folder / "data" / system)
    paths = [Path(place, name) for place, _, names in places for name in names]
    files = [(str(path), path.stat()) for path in (*paths, *folder.glob("*.yaml")) if path.exists()]
    return tuple((path, stat.st_mtime_ns, stat.st_size) for path, stat in files)


@lru_cache(maxsize=32)
def _opened(system: str, folder: Path, files: tuple[tuple[str, int, int], ...]) -> PriorTables:
    data = folder / "data" / system
    measured = {family: found for family in FILES if (found := _versions(data, family))}
    gpu, misc, node = _gpu(folder / f"{system}.yaml")
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
        versions={family: found[-1] for family, found in measured.items()},
        device="",
        measured=measured,
        memory_bytes=None if gpu.get("mem_capacity") is None else float(gpu["mem_capacity"]),
        reserved=misc,
        gpu=gpu,
        node=node,
    )
    return replace(made, device=str(made.read("attention")["device"][0]))


def gpu_facts(folder: Path, system: str) -> dict[str, Any]:
    """Return what a system's file says of its GPU. Raises TablesError where it cannot be read."""
    return _gpu(folder / f"{system}.yaml")[0]


def _gpu(path: Path) -> tuple[dict[str, Any], ...]:
    """Return what a system's file says of its GPU, of the rest, and of several GPUs."""
    try:
        document = plain_yaml(path.read_text(encoding="utf-8"), _LOADER)
        parts = (document["gpu"], document.get("misc"), document.get("node"))
    except (OSError, ValueError, KeyError, TypeError):
        raise TablesError(f"{path}: cannot be read. {_AGAIN}") from None
    return tuple(part if isinstance(part, dict) else {} for part in parts)


def between(known: Floats, value: float) -> list[tuple[int, float]]:
    """Return the places of the knots around a value with their shares; held beyond the ends."""
    inside = float(np.clip(value, known[0], known[-1]))
    low = int(np.searchsorted(known, inside, side="right")) - 1
    if known[low] == inside:
        return [(low, 1.0)]
    share = (inside - known[low]) / (known[low + 1] - known[low])
    return [(low, 1.0 - float(share)), (low + 1, float(share))]


def at_heads(table: pl.DataFrame, length: str, heads: float) -> Floats:
    """Return [rows, (batch, length, seconds)] of so many heads, linear between measured ones.

    `table` has num_heads, batch_size, the column `length` and seconds. Repeats are averaged.
    """
    measured_heads = np.array(sorted(table["num_heads"].unique()), dtype=float)
    means = table.group_by("num_heads", "batch_size", length).agg(pl.col("seconds").mean())
    parts = [
        means.filter(num_heads=int(measured_heads[at])).select(
            "batch_size", length, (pl.col("seconds") * share).alias(f"part{at}")
        )
        for at, share in between(measured_heads, float(heads))
    ]
    joined = parts[0] if len(parts) == 1 else parts[0].join(parts[1], on=["batch_size", length])
    total = joined.select(
        "batch_size", length, pl.sum_horizontal(pl.col("^part.*$")).alias("seconds")
    )
    return np.asarray(total.sort("batch_size", length).to_numpy(), dtype=float)
