"""A recording over time: batch, KV cache, queue and tokens per second, in as many bins as fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from traces.recording.tables import STEP_TOOK
from traces.statistics import Floats
from traces.summary.comparison import usual_times

UNEVEN = 1.25  # the slowest over the fastest of nine in ten bins, from which pace is shown
OUTPUT_TOKENS = pl.col("decode_requests") + pl.col("accepted").list.sum().fill_null(0)


@dataclass(frozen=True, kw_only=True)
class BinnedSteps:
    """Equal bins of time; nan where no step ran.

    `edges_ns` has one entry more than the bins (unix nanoseconds). `batch` (requests in the step),
    `waiting` and `kv_share` (of the allocated blocks) are the highest of the steps that ran in a
    bin; `tokens_per_s` what decoding gave in it over its length, a step's spread evenly over its
    time. `pace` is how many times as long its steps took as others of their size in the run.
    `first_step` is the row of the first step that ended in each bin, -1 where none did.
    """

    edges_ns: NDArray[np.int64]
    batch: Floats
    waiting: Floats
    kv_share: Floats
    tokens_per_s: Floats
    pace: Floats
    first_step: NDArray[np.int64]

    @property
    def uneven(self) -> bool:
        """Whether the pace of nine bins in ten differs by more than `UNEVEN`."""
        pace = self.pace[np.isfinite(self.pace)]
        low, high = np.quantile(pace, (0.05, 0.95)) if pace.size else (1.0, 1.0)
        return bool(high > UNEVEN * low)


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """The steps of one engine as arrays, from which any stretch is binned without a copy.

    `ends_ns` ascend; `positions` are those in the table of steps. A step runs from its entry in
    `begins_ns`: its end less its wall time, but not before the end of the step before, with which
    asynchronous scheduling has it overlap; its end where the wall time is not known.
    `tokens_before` has one entry more: the tokens that decoding gave before each step. `times`
    [2, steps] are what steps took and usually take (`usual_times`), 0 where that is not known. The
    gauges are nan where not recorded.
    """

    begins_ns: NDArray[np.int64]
    ends_ns: NDArray[np.int64]
    positions: NDArray[np.int32]
    batch: NDArray[np.float32]
    waiting: NDArray[np.float32]
    kv_blocks: NDArray[np.float32]
    usable_blocks: int | None
    tokens_before: Floats
    tokens_known: bool
    times: NDArray[np.float32]

    @property
    def start_ns(self) -> int:
        return int(self.begins_ns[0])

    @property
    def end_ns(self) -> int:
        return int(self.ends_ns[-1])

    @classmethod
    def of(cls, steps: pl.DataFrame, num_gpu_blocks: int | None) -> Timeline | None:
        """Return the steps of one engine, None when there are none.

        vLLM keeps one block for itself, so the share is of `num_gpu_blocks` - 1.
        """
        ends = steps["end"]
        positions = np.flatnonzero(ends.is_not_null().to_numpy()).astype(np.int32)
        if not positions.size:
            return None
        if positions.size < steps.height:
            steps = steps.filter(ends.is_not_null())
        ends = steps["end"]
        times = ends.to_numpy()
        if not ends.is_sorted():
            times = np.maximum.accumulate(times)
        took = steps.select(STEP_TOOK.fill_null(0)).to_series()
        begins = times - took.to_numpy()
        np.maximum(begins[1:], times[:-1], out=begins[1:])
        batch = pl.coalesce(pl.col("prefill_requests") + pl.col("decode_requests"), "running")
        tokens = steps.select(OUTPUT_TOKENS.cast(pl.Float64)).to_series()
        # A forward pass does not tell how many tokens an engine that drafts decoded in it.
        decoded = steps.get_column("decode_tokens", default=steps["decode_requests"])
        untold = decoded.is_null() & (steps["decode_requests"] > 0)
        before = np.zeros(steps.height + 1)
        np.cumsum(tokens.fill_null(0.0).to_numpy(), out=before[1:])
        known = usual_times(steps)
        known = np.zeros((2, steps.height)) if known is None else np.nan_to_num(known)
        return cls(
            begins_ns=begins,
            ends_ns=times,
            positions=positions,
            batch=_gauge(steps, batch),
            waiting=_gauge(steps, pl.col("waiting")),
            kv_blocks=_gauge(steps, pl.col("kv_blocks")),
            usable_blocks=None if num_gpu_blocks is None else num_gpu_blocks - 1,
            tokens_before=before,
            tokens_known=tokens.null_count() < steps.height and not untold.any(),
            times=known.astype(np.float32),
        )

    def bins(
        self, bins: int, start_ns: int | None = None, end_ns: int | None = None
    ) -> BinnedSteps:
        """Return a stretch of time, the whole if not given, in equal bins; at least one."""
        start = self.start_ns if start_ns is None else start_ns
        end = max(self.end_ns if end_ns is None else end_ns, start + 1)
        edges = start + np.linspace(0, end - start, max(bins, 1) + 1).astype(np.int64)
        place = np.searchsorted(self.ends_ns, edges, side="right")
        if start <= self.start_ns:
            place[0] = 0
        begin, until = place[:-1], place[1:]
        some = until > begin
        running = self._begun(until, edges[1:])  # when a bin ends, in it or since before it
        seconds = np.diff(edges) / 1e9
        made = np.diff(self._tokens(place, edges))
        rate = np.divide(made, seconds, out=np.zeros_like(made), where=seconds > 0)
        took, usual = np.zeros((2, some.size))
        if some.any():
            stretch = self.times[:, : until[some][-1]]
            took[some], usual[some] = np.add.reduceat(stretch, begin[some], axis=1)
        pace = np.divide(took, usual, out=np.full_like(took, np.nan), where=usual > 0)
        first = np.full(some.size, -1, dtype=np.int64)
        first[some] = self.positions[begin[some]]
        batch, waiting, kv_blocks = (
            _highest(values, begin, until, some, running)
            for values in (self.batch, self.waiting, self.kv_blocks)
        )
        return BinnedSteps(
            edges_ns=edges,
            batch=batch,
            waiting=waiting,
            kv_share=kv_blocks / (self.usable_blocks or np.nan),
            tokens_per_s=np.where((some | running) & self.tokens_known, rate, np.nan),
            pace=pace,
            first_step=first,
        )

    def _begun(self, place: NDArray[np.intp], times: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether the steps that end next after the times, at `place`, run by then."""
        there: NDArray[np.bool_] = place < self.ends_ns.size
        there[there] = self.begins_ns[place[there]] < times[there]
        return there

    def _tokens(self, place: NDArray[np.intp], times: NDArray[np.int64]) -> Floats:
        """Return the tokens given by each time, the share of the step that runs with them."""
        tokens = self.tokens_before[place]
        running = np.flatnonzero(self._begun(place, times))
        step = place[running]
        begins = self.begins_ns[step]
        share = (times[running] - begins) / (self.ends_ns[step] - begins)
        tokens[running] += share * (self.tokens_before[step + 1] - tokens[running])
        return tokens

    def step_at(self, time_ns: int) -> int:
        """Return the position of the step that runs at a time, or ends next after it."""
        place = int(np.searchsorted(self.ends_ns, time_ns, side="left"))
        return int(self.positions[min(place, self.positions.size - 1)])


def series(steps: pl.DataFrame, num_gpu_blocks: int | None, bins: int) -> BinnedSteps | None:
    """Return the steps of one engine over time, None when there are none."""
    timeline = Timeline.of(steps, num_gpu_blocks)
    return None if timeline is None or bins < 1 else timeline.bins(bins)


def _gauge(steps: pl.DataFrame, values: pl.Expr) -> NDArray[np.float32]:
    return steps.select(values.cast(pl.Float32)).to_series().to_numpy()


def _highest(
    values: NDArray[np.float32],
    begin: NDArray[np.intp],
    until: NDArray[np.intp],
    some: NDArray[np.bool_],
    running: NDArray[np.bool_],
) -> Floats:
    """Return the highest number of each stretch, of its end too where `running`; nan where none."""
    highest = np.full(some.size, np.nan)
    if some.any():
        # Stretches that are not empty follow one another, so each ends where the next begins.
        last = until[some][-1]
        highest[some] = np.fmax.reduceat(values[:last], begin[some])
    highest[running] = np.fmax(highest[running], values[until[running]])
    return highest
