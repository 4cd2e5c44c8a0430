"""A run's times without what the profiler's windows cost, and what a reader must know of that."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from traces.energy import run_window
from traces.power_curve import Window
from traces.schema import Estimate
from traces.statistics import Z95, Floats
from traces.window_cost import WindowCost


def sample_times(rows: pl.DataFrame, samples: pl.DataFrame, windows: WindowCost) -> pl.DataFrame:
    """Return `problem` and the times of `WindowTimes.of_samples` for a run's frames."""
    decided = rows.filter(pl.col("state") == "decided")
    return pl.DataFrame(WindowTimes(rows=decided, windows=windows).of_samples(samples))


@dataclass(frozen=True, kw_only=True)
class WindowTimes:
    """Takes the cost of `windows` out of the times of a run's decided problems, `rows`."""

    rows: pl.DataFrame
    windows: WindowCost

    @property
    def as_measured(self) -> bool:
        """Whether the cost is known of no problem: then all times have it in them."""
        return bool(self.rows["as_measured"].any())

    def estimate(self, found: Estimate | None) -> Estimate | None:
        """Mark a number that has the cost in it."""
        if found is None or not self.as_measured:
            return found
        return dataclasses.replace(found, extrapolated=True)

    def spread(
        self, found: Mapping[str, Estimate | None], sds: Floats
    ) -> dict[str, Estimate | None]:
        """Widen intervals by the standard errors of what was taken out, as if all erred alike."""
        told = sds[np.isfinite(sds)]
        more = Z95 * float(told.mean()) if told.size else 0.0
        return {name: self.estimate(_wider(each, more)) for name, each in found.items()}

    def of_samples(self, samples: pl.DataFrame) -> dict[str, Any]:
        """Return the times of each sample of decided problems, seconds, and their standard errors.

        `ttft` is from arrival to first token, `tpot` = (end - first_token) / (output_tokens - 1)
        of samples with more than one token, `prefill` from the first scheduling to the first
        token, `decode` from there to the end, and `e2e` is all. A time is left out where the cost
        of a step that it met is not known, unless all are as measured.
        """
        timed = self.rows.filter(pl.col("latency_s").is_not_null() | pl.col("cost_unknown"))
        frame = samples.filter(pl.col("role").fill_null("sample") == "sample").join(
            timed.select("problem"), on="problem", how="semi", maintain_order="left"
        )
        more = pl.when(pl.col("output_tokens") > 1).then(pl.col("output_tokens") - 1)
        tokens = _floats(frame, more)
        columns: dict[str, Any] = {"problem": frame["problem"].to_numpy()}
        parts = (
            ("ttft", "arrival", "first_token", 1.0),
            ("tpot", "first_token", "end", tokens),
            ("prefill", "scheduled", "first_token", 1.0),
            ("decode", "first_token", "end", 1.0),
            ("e2e", "arrival", "end", 1.0),
        )
        for name, begin, end, per in parts:
            since, until = (frame[each].fill_null(0).to_numpy() for each in (begin, end))
            took = _floats(frame, (pl.col(end) - pl.col(begin)) / 1e9)
            took -= self.windows.within_s(since, until)
            if not self.as_measured:
                took[self.windows.unknown(since, until)] = np.nan
            columns[f"{name}_s"] = took / per
            columns[f"{name}_sd_s"] = self.windows.sd_within_s(since, until) / per
        return columns

    def throughput(self, tokens: float | None, window: Window | None) -> Estimate | None:
        """Return generated tokens over the time from the first arrival to the last end.

        Marked where windows are in that time whose cost is not known. Unknown while problems are
        in flight (their tokens are).
        """
        if tokens is None or window is None:
            return None
        since, until = (np.array([each]) for each in window)
        seconds = (window[1] - window[0]) / 1e9 - float(self.windows.within_s(since, until)[0])
        marked = bool(self.windows.unknown(since, until)[0])
        if seconds <= 0:
            return None
        return Estimate(value=tokens / seconds, unit="tokens/s", extrapolated=marked)

    def notes(self, opened: int) -> list[str]:
        """Say what became of the time that windows cost; `opened` says how many were read."""
        window = run_window(self.rows, self.rows)
        if window is None:
            return []
        since, until = (np.array([each]) for each in window)
        touched, unknown = (int(self.rows[each].sum()) for each in ("slowed", "cost_unknown"))
        notes = []
        if touched > unknown:
            taken = float(self.windows.within_s(since, until)[0])
            more = Z95 * float(self.windows.sd_within_s(since, until)[0])
            share = taken / ((window[1] - window[0]) / 1e9)
            notes.append(
                f"kernel windows touched {touched:,} of {self.rows.height:,} problems; what they "
                f"cost, {taken:.3g} s [{taken - more:.3g}, {taken + more:.3g}] or {share:.1%} of "
                "the run, is taken out of its times"
            )
        if self.as_measured:
            notes.append(
                "kernel windows touched every problem, and too few steps alike tell what they "
                "cost; times marked * have it in them"
            )
        elif unknown:
            notes.append(f"problems slowed by the profiler, their times left out: {unknown:,}")
        if opened and not self.windows.places.size:
            notes.append(
                "kernel windows were open, and without steps it is not known whom they slowed; "
                "times are as measured"
            )
        return notes


def _floats(frame: pl.DataFrame, column: pl.Expr) -> Floats:
    numbers = frame.select(column.cast(pl.Float64).fill_null(float("nan"))).to_series()
    return numbers.to_numpy(writable=True)


def _wider(found: Estimate | None, more: float) -> Estimate | None:
    if found is None or found.low is None or found.high is None or not more:
        return found
    low, high = (float(np.hypot(found.value - end, more)) for end in (found.low, found.high))
    return dataclasses.replace(found, low=max(found.value - low, 0.0), high=found.value + high)
