"""What collectives cost: a start and a price per byte, piecewise in the size of the message."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import polars as pl

from advisor.step_time.law import non_negative_least_squares
from advisor.step_time.operators.csv_rows import CsvRows
from advisor.step_time.operators.grids import pieces
from traces.errors import RecordingError, TablesError, UsageError
from traces.recording.reader import Recording
from traces.schema.engine import ModelFacts
from traces.statistics import Floats

Seconds = Callable[[Floats], Floats]  # of so many bytes, or of steps of so many tokens

APART: Final = 2.0  # from one candidate of a break to the next, in size
FEWEST: Final = 2  # measured sizes between two breaks
FOLDS: Final = 5
HUBER: Final = 2.0  # robust standard deviations beyond which relative residuals lose weight
ITERATIONS: Final = 6  # of reweighting


class CollectiveKind(NamedTuple):
    """What has a law of its own: a collective of a group, launched one by one or in a graph."""

    collective: str
    group_size: int
    graph: bool

    def __str__(self) -> str:
        return f"{self.collective} of {self.group_size} ({'graph' if self.graph else 'eager'})"


@dataclass(frozen=True, kw_only=True)
class CollectiveLaw:
    """Seconds of a message: `start_s` and `per_byte_s` [pieces] between `breaks` [bytes].

    `high_bytes` is the largest of the measured sizes, `sizes` of them. `left_out_error` is the
    mean absolute relative error of sizes that were left out of the fit, None with fewer than
    FOLDS sizes.
    """

    start_s: float
    per_byte_s: Floats
    breaks: Floats
    high_bytes: float
    sizes: int
    left_out_error: float | None

    def seconds(self, message_bytes: Floats) -> Floats:
        return np.asarray(
            self.start_s + pieces(message_bytes, self.breaks) @ self.per_byte_s, dtype=float
        )


class Communication:
    """Laws of collectives, by kind.

    Parameters
    ----------
    breaks: whether the price per byte may change with size.

    Attributes
    ----------
    laws_: CollectiveLaw by Kind.

    Notes
    -----
    The alpha-beta model (Hockney 1994), T = alpha + beta s, with a beta for each range of sizes,
    as algorithm and protocol change with it: breaks lie at powers of two that have measured sizes
    on both sides. No price is negative, so a larger message is never cheaper. Least squares of the
    relative error; several times of one size are their median.

    """

    def __init__(self, *, breaks: bool = True) -> None:
        self.breaks = breaks

    def fit(self, messages: Mapping[CollectiveKind, Floats]) -> Communication:
        """Learn from [rows, (bytes, seconds)] by kind; rows without positive seconds are left."""
        self.laws_: dict[CollectiveKind, CollectiveLaw] = {}
        for kind, rows in messages.items():
            used = rows[(rows[:, 1] > 0) & (rows[:, 0] > 0)]
            if len(used):
                self.laws_[kind] = self._law(*_medians(used))
        return self

    def law(self, collective: str, group_size: int, *, graph: bool) -> CollectiveLaw:
        """Return a law; where it was measured only launched the other way, that one.

        Raises UsageError, naming what was measured, when there is none.
        """
        kind = CollectiveKind(collective, group_size, graph)
        for each in (kind, kind._replace(graph=not graph)):
            if each in self.laws_:
                return self.laws_[each]
        known = ", ".join(map(str, sorted(self.laws_))) or "none"
        raise UsageError(f"{collective} of {group_size} was not measured. Measured are: {known}")

    def _law(self, sizes: Floats, seconds: Floats) -> CollectiveLaw:
        start, per_byte, breaks = self._solve(sizes, seconds)
        error = None
        if len(sizes) >= FOLDS:
            fold = np.random.default_rng(0).permutation(len(sizes)) % FOLDS
            errors = np.zeros(len(sizes))
            for number in range(FOLDS):
                left = fold == number
                alpha, beta, at = self._solve(sizes[~left], seconds[~left])
                errors[left] = (alpha + pieces(sizes[left], at) @ beta) / seconds[left] - 1
            error = float(np.mean(np.abs(errors)))
        return CollectiveLaw(
            start_s=start,
            per_byte_s=per_byte,
            breaks=breaks,
            high_bytes=float(sizes[-1]),
            sizes=len(sizes),
            left_out_error=error,
        )

    def _solve(self, sizes: Floats, seconds: Floats) -> tuple[float, Floats, Floats]:
        breaks = _breaks(sizes) if self.breaks else np.zeros(0)
        terms = np.column_stack([np.ones(len(sizes)), pieces(sizes, breaks)])
        if len(sizes) == 1:
            terms[:, 1:] = 0.0  # one size tells no price per byte
        weights = np.ones(len(sizes))
        prices = np.zeros(terms.shape[1])
        for _ in range(ITERATIONS):
            prices = non_negative_least_squares(terms * (weights / seconds)[:, None], weights)
            residual = np.abs(terms @ prices / seconds - 1)
            bound = HUBER * max(1.4826 * float(np.median(residual)), 0.01)
            weights = np.sqrt(np.minimum(1.0, bound / np.maximum(residual, 1e-12)))
        return float(prices[0]), prices[1:], breaks


def all_reduces(
    facts: ModelFacts,
    *,
    eager: Seconds,
    graph: Seconds,
    captured: int,
    value_bytes: int = 2,
    calls: int | None = None,
) -> Seconds:
    """Return the seconds that the all-reduces of a step of so many tokens take.

    Two in each decoder layer, after attention and after the MLP, and one of the embedding
    (Megatron's split, Shoeybi et al. 2019, as vLLM has it); each of tokens x hidden size. `eager`
    and `graph` are the seconds of one of so many bytes; up to `captured` tokens a step runs in a
    CUDA graph. The gathering of the logits is not in it. `calls` are those of a model whose layers
    do not all have both.
    """
    calls = 2 * facts.num_hidden_layers + 1 if calls is None else calls
    token_bytes = facts.hidden_size * value_bytes

    def seconds(tokens: Floats) -> Floats:
        sizes = tokens * token_bytes
        return np.asarray(calls * np.where(tokens <= captured, graph(sizes), eager(sizes)))

    return seconds


def measured_messages(path: Path) -> dict[CollectiveKind, Floats]:
    """Return [rows, (bytes, seconds)] by kind: of a table, or of a recording's profiled windows.

    Tables are a CSV in Vidur's form, or all-reduces of aiconfigurator-core (`.parquet`). Raises
    TablesError for a damaged table, RecordingError for a recording without collectives.
    """
    if path.suffix == ".parquet":
        return read_all_reduces(path)
    if not path.is_dir():
        return read_collectives(path)
    recording = Recording.open(path)
    found: dict[CollectiveKind, Floats] = {}
    for key, engine in recording.manifest.engines.items():
        kernels = recording.frame("kernels").filter(pl.col("engine") == key)
        for kind, rows in recorded_messages(kernels, graph=not engine.enforce_eager).items():
            found[kind] = np.concatenate([found.get(kind, rows[:0]), rows])
    if not found:
        raise RecordingError(
            f"{path}: no collective was profiled. Record with --tensor-parallel-size and --kernels"
        )
    return found


def recorded_messages(kernels: pl.DataFrame, *, graph: bool) -> dict[CollectiveKind, Floats]:
    """Return [rows, (bytes, seconds)] by kind from the kernels table of a recording.

    Where several ranks were recorded, the shortest time of a step counts: the others include the
    wait for the last rank.
    """
    known = kernels.filter(
        pl.col("collective").is_not_null()
        & pl.col("bytes").is_not_null()
        & pl.col("group_size").is_not_null()
        & (pl.col("count") > 0)
    )
    rows = (
        known.with_columns((pl.col("bytes") / pl.col("count")).alias("bytes"))
        .group_by("collective", "group_size", "bytes", "window_id", "step", "rank")
        .agg((pl.col("time").sum() / pl.col("count").sum() * 1e-9).alias("seconds"))
        .group_by("collective", "group_size", "bytes", "window_id", "step")
        .agg(pl.col("seconds").min())
    )
    return {
        CollectiveKind(str(name), int(size), graph): part.select("bytes", "seconds")
        .to_numpy()
        .astype(float)
        for (name, size), part in rows.group_by("collective", "group_size")
    }


def read_collectives(path: Path) -> dict[CollectiveKind, Floats]:
    """Read a table of collectives as Vidur writes them, in the form of `recorded_messages`.

    Columns: collective, num_workers, size (bytes), and time_stats.<collective>.median (ms). Raises
    TablesError with the line and the mend.
    """
    table = CsvRows(path, ("collective", "num_workers", "size"))
    found: dict[CollectiveKind, list[tuple[float, float]]] = {}
    for line in table:
        name = table.cell(line, "collective").strip()
        column = f"time_stats.{name}.median"
        if column not in table.columns:
            raise table.error(line, f"no column {column} for the collective {name:.40}")
        kind = CollectiveKind(name, table.count(line, "num_workers", least=2), graph=False)
        seconds = table.seconds(line, column, positive=True) * 1e3
        found.setdefault(kind, []).append((float(table.count(line, "size", least=1)), seconds))
    return {kind: np.array(rows, dtype=float) for kind, rows in found.items()}


def read_all_reduces(path: Path) -> dict[CollectiveKind, Floats]:
    """Read all-reduces as aiconfigurator-core has them: by GPUs and by whether a graph ran them.

    `message_size` is in elements of bfloat16, `latency` in milliseconds. Raises TablesError.
    """
    needed = ("allreduce_dtype", "num_gpus", "message_size", "kernel_source", "latency")
    try:
        table = pl.read_parquet(path, glob=False)
    except (OSError, pl.exceptions.PolarsError) as cause:
        raise TablesError(
            f"{path}: cannot be read as Parquet ({type(cause).__name__}). Copy it again"
        ) from None
    if missing := sorted(set(needed) - set(table.columns)):
        raise TablesError(f"{path}: no column {missing[0]}. Expected are {', '.join(needed)}")
    try:
        rows = (
            table.filter(allreduce_dtype="bfloat16")
            .select(
                pl.col("num_gpus").cast(pl.Int64),
                graph=pl.col("kernel_source").str.ends_with("graph"),
                bytes=pl.col("message_size").cast(pl.Float64) * 2,
                seconds=pl.col("latency").cast(pl.Float64) / 1e3,
            )
            .drop_nulls()
            .filter(pl.col("seconds") > 0, pl.col("seconds").is_finite(), pl.col("bytes") > 0)
        )
    except pl.exceptions.PolarsError:
        raise TablesError(f"{path}: its columns are not of the kinds expected") from None
    if rows.is_empty():
        raise TablesError(f"{path}: no all-reduce of bfloat16 in it. Give another table")
    return {
        CollectiveKind("all_reduce", int(size), bool(graph)): part.select(
            "bytes", "seconds"
        ).to_numpy()
        for (size, graph), part in rows.group_by("num_gpus", "graph")
    }


def _medians(rows: Floats) -> tuple[Floats, Floats]:
    """Return the sizes, ascending, and the median seconds of each."""
    sizes, place = np.unique(rows[:, 0], return_inverse=True)
    seconds = [float(np.median(rows[place == number, 1])) for number in range(len(sizes))]
    return sizes, np.array(seconds)


def _breaks(sizes: Floats) -> Floats:
    """Return powers of APART with at least FEWEST sizes up to each since the last, and after it."""
    found: list[float] = []
    low, at = 0.0, APART
    while at < sizes[-1]:
        between = np.count_nonzero((sizes > low) & (sizes <= at))
        if between >= FEWEST and np.count_nonzero(sizes > at) >= FEWEST:
            found.append(at)
            low = at
        at *= APART
    return np.array(found)
