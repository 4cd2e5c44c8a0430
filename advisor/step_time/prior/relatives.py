"""GPUs without tables that are relatives of one with tables: the same chip, slower or smaller.

What a time's bytes take at the bandwidth changes with the bandwidth, and what it takes beyond that
with the peak, but for the start of a kernel: so of decode attention, and of products that move for
longer than they compute. Of the others, and of a prompt's attention, all but the start changes with
the peak. `prior_rules.py` of the benchmarks checks it on H100 and H200, which differ by their
memory alone. All-reduces are those of a GPU with the same wires. Bandwidth, peak and memory are
from the file of the system where the tables' authors have one, else from the maker's sheet.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Final

import polars as pl

from advisor.step_time.prior.tables import (
    PriorTables,
    gpu_facts,
    read_prior,
)

_BYTES: Final = {"bfloat16": 2.0, "float16": 2.0, "fp8": 1.0, "fp8_block": 1.0, "nvfp4": 0.5625}


@dataclass(frozen=True, kw_only=True)
class Relative:
    """A GPU: whose tables it takes, whose all-reduces, and what of its own is known.

    None is what the file of the system says.
    """

    of: str
    wires: str
    device: str
    bandwidth: float | None = None
    bf16_flops: float | None = None
    memory_bytes: float | None = None


RELATIVES: Final = {
    "h100_pcie": Relative(of="h100_sxm", wires="rtx_pro_6000_server", device="NVIDIA H100 PCIe"),
    "a100_pcie": Relative(of="a100_sxm", wires="l40s", device="NVIDIA A100-PCIE-80GB"),
    "l4": Relative(of="l40s", wires="l40s", device="NVIDIA L4"),
    "a100_sxm_40gb": Relative(
        of="a100_sxm", wires="a100_sxm", device="NVIDIA A100-SXM4-40GB",
        bandwidth=1.555e12, bf16_flops=312e12, memory_bytes=float(40 << 30),
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class RelativeTables(PriorTables):
    """The tables of a relative as they would be on this GPU.

    A byte takes `byte_s` on the relative and `byte_ratio` times as long here, so for a FLOP.
    """

    relative: str
    wires: PriorTables
    byte_ratio: float
    flop_ratio: float
    byte_s: float
    flop_s: float

    def read(self, family: str, name: str | None = None) -> pl.DataFrame:
        """Return a table of the relative, its seconds as they would be on this GPU."""
        if family == "comm":
            versions = {**self.wires.versions, "comm": self.versions["comm"]}
            return replace(self.wires, versions=versions).read(family, name)
        table = super().read(family, name)
        if family == "gemm":
            return table.with_columns(seconds=self._products())
        if name is not None and name.startswith("context"):
            return table.with_columns(seconds=self._computed(self.flop_ratio))
        return table.with_columns(seconds=self._moved(_cache_bytes(table) * self.byte_s))

    def versions_of(self, family: str, name: str) -> list[str]:
        """Return none: tables of other families are those of `others`, by bandwidth and peak."""
        return []

    @cached_property
    def others(self) -> tuple[PriorTables, ...]:
        """The other systems of the same maker, the same chip first."""
        return tuple(sorted(super().others, key=lambda each: each.system != self.relative))

    @property
    def nccl(self) -> pl.DataFrame | None:
        """NCCL's collectives of the GPU with the same wires."""
        return self.wires.nccl

    def _moved(self, memory: pl.Expr, longer: pl.Expr | float | None = None) -> pl.Expr:
        """Return times whose `memory` seconds are `longer` times as long here."""
        factor = self.byte_ratio if longer is None else longer
        seconds = pl.col("seconds")
        moving = pl.min_horizontal(memory, seconds)
        rest = (seconds - moving - self.kernel_s).clip(lower_bound=0.0)
        return seconds + moving * (factor - 1) + rest * (self.flop_ratio - 1)

    def _computed(self, longer: pl.Expr | float) -> pl.Expr:
        """Return times of which all but the start of a kernel is `longer` times as long here."""
        above = (pl.col("seconds") - self.kernel_s).clip(lower_bound=0.0)
        return pl.col("seconds") - above + above * longer

    def _products(self) -> pl.Expr:
        """Return the times of products, by what is longer of a product's roofline here."""
        m, n, k = (pl.col(each).cast(pl.Float64) for each in ("m", "n", "k"))
        width = pl.col("gemm_dtype").replace_strict(_BYTES, default=2.0)
        moved = (n * k + m * k + m * n) * width * self.byte_s
        worked = 2 * m * n * k * self.flop_s * (width / 2).clip(lower_bound=0.5)
        roofline = pl.max_horizontal(moved * self.byte_ratio, worked * self.flop_ratio)
        longer = roofline / pl.max_horizontal(moved, worked)
        return (
            pl.when(moved >= worked)
            .then(self._moved(moved, longer))
            .otherwise(self._computed(longer))
        )


def _cache_bytes(table: pl.DataFrame) -> pl.Expr:
    """Return the bytes of keys and values that decode attention reads."""
    context = pl.col("step").cast(pl.Float64)
    if "window_size" in table.columns:
        window = pl.col("window_size")
        context = pl.when(window > 0).then(pl.min_horizontal(context, window)).otherwise(context)
    width = pl.col("kv_cache_dtype").replace_strict(_BYTES, default=2.0)
    values = pl.col("num_key_value_heads") * pl.col("head_dim")
    return 2 * context * pl.col("batch_size") * values * width


def read_gpu(system: str, folder: Path | None = None) -> PriorTables:
    """Open the tables of a GPU: its own, or those of a relative (as `read_prior`).

    Raises UsageError, naming those there are, for one without either; MissingDependencyError where
    the package is not installed; TablesError for damage.
    """
    if (relative := RELATIVES.get(Path(system).name)) is None:
        return read_prior(system, folder, more=tuple(RELATIVES))
    if folder is None and len(Path(system).parts) > 1:
        folder = Path(system).parent
    base, wires = read_prior(relative.of, folder), read_prior(relative.wires, folder)
    return _relative(Path(system).name, relative, base, wires)


@lru_cache(maxsize=32)
def _relative(
    system: str, known: Relative, base: PriorTables, wires: PriorTables
) -> RelativeTables:
    folder = base.folder.parent.parent
    theirs = gpu_facts(folder, known.of)
    mine = gpu_facts(folder, system) if known.bandwidth is None else {}
    bandwidth = known.bandwidth or float(mine["mem_bw"])
    peak = known.bf16_flops or float(mine["bfloat16_tc_flops"])
    slower = float(theirs["mem_bw"]) / bandwidth
    given = {each.name: getattr(base, each.name) for each in fields(base)}
    return RelativeTables(
        **given
        | {
            "system": system,
            "device": known.device,
            "memory_bytes": known.memory_bytes or float(mine["mem_capacity"]),
            "bandwidth_bytes_per_s": base.bandwidth_bytes_per_s / slower,
            "versions": {**base.versions, "comm": wires.versions["comm"]},
            "measured": {**base.measured, "comm": wires.measured["comm"]},
            "gpu": mine or {**theirs, "mem_bw": bandwidth, "bfloat16_tc_flops": peak},
        },
        relative=known.of,
        wires=wires,
        byte_ratio=slower,
        flop_ratio=float(theirs["bfloat16_tc_flops"]) / peak,
        byte_s=1 / float(theirs["mem_bw"]),
        flop_s=1 / float(theirs["bfloat16_tc_flops"]),
    )
