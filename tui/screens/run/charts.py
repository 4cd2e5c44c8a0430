"""The Run screen's view models: the timeline, and one step with what it computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from traces.schema.formats import ABSENT, integer, number, percent, value_of
from traces.statistics import Floats
from traces.summary.kernels import Collective, FamilyTime
from traces.summary.run import Run
from tui.screens.run.data import taken_ns
from tui.text.layout import clock, clock_decimals, wrap
from tui.text.recordings.series import BinnedSteps
from tui.widgets.lanes import LEFT, RIGHT, Lane


def run_lanes(series: BinnedSteps, power_w: Floats | None = None, *, tall: bool) -> list[Lane]:
    """Return batch, KV and tokens per second, and what else there is where there is room."""
    waits = Lane(name="waiting", values=series.waiting, unit="seqs", style="$warning")
    some = bool((np.nan_to_num(series.waiting) > 0).any())
    lanes = [Lane(name="batch", values=series.batch, unit="seqs")]
    lanes += [waits] if some or tall else []
    kv, rate = series.kv_share * 100, series.tokens_per_s
    lanes += [
        Lane(name="KV cache", values=kv, unit="%", style="$secondary"),
        Lane(name="tok/s", values=rate, style="$success"),
    ]
    if series.uneven:
        lanes.append(Lane(name="pace", values=series.pace, unit="x", style="$accent"))
    if power_w is not None:
        lanes.append(Lane(name="power", values=power_w, unit="W", style="$accent"))
    return lanes


def beside_lanes(series: BinnedSteps, other: BinnedSteps, word: str) -> list[Lane]:
    """Return a run's batch and tokens per second with another's below them on the same scale."""
    lanes = []
    for name, title, unit in (("batch", "batch", "seqs"), ("tokens_per_s", "tok/s", "")):
        both = [getattr(series, name), getattr(other, name)]
        finite = np.concatenate([each[np.isfinite(each)] for each in both])
        top = float(finite.max()) if finite.size else None
        second = "$secondary"
        lanes += [
            Lane(name=title, values=both[0], unit=unit, top=top),
            Lane(
                name=f" {word[:8]}", values=both[1], unit=unit, top=top, style=second, beside=True
            ),
        ]
    return lanes


def axis_line(
    start_ns: int,
    edges_ns: np.ndarray,
    cursor: int,
    now_ns: int,
    extent: tuple[int, int | None] | None = None,
) -> str:
    """Return the axis: a mark under the cursor with its time, `=` where the problem ran.

    Times have the decimals in which they differ. An end that needs more columns than there are
    behind the bins takes those of the last bins, and is left out where the cursor is in them.
    """
    bins = len(edges_ns) - 1
    begin, total, now = ((int(each) - start_ns) / 1e9 for each in (*edges_ns[[0, -1]], now_ns))
    decimals = clock_decimals(int(edges_ns[-1] - edges_ns[0]) / 1e9)
    line = ["-"] * bins
    if extent is not None:
        since, until = columns_of(edges_ns, *extent)
        line[since:until] = "=" * (until - since)
    last = f" {clock(total, decimals)}"
    room = min(bins + RIGHT - len(last), bins)
    if cursor >= room:
        last, room = "", bins
    time = clock(now, decimals)
    text, start = f"^ {time} ", cursor
    if start + len(text) > room:  # there is more room before the mark
        text, start = f" {time} ^", max(cursor - len(time) - 2, 0)
    line[start : start + len(text)] = text
    return f"{clock(begin, decimals):>{LEFT - 1}} {''.join(line[:room])}{last}"


def columns_of(edges_ns: np.ndarray, start_ns: int, end_ns: int | None) -> tuple[int, int]:
    """Return the columns in which something ran; none where it is outside what is shown."""
    bins = len(edges_ns) - 1
    last = int(edges_ns[-1]) if end_ns is None else end_ns
    if last < edges_ns[0] or start_ns > edges_ns[-1]:
        return 0, 0
    begin = int(np.clip(np.searchsorted(edges_ns, start_ns, side="right") - 1, 0, bins - 1))
    return begin, int(np.clip(np.searchsorted(edges_ns, last, side="left"), begin + 1, bins))


def step_lines(row: Mapping[str, Any] | None, *, width: int, joules: float | None) -> list[str]:
    """Return the composition of a step; a column that is not there has not been read yet."""
    if row is None:
        return ["no step here: the engine was idle"]
    wall = None if row.get("wall_ns") is None else row["wall_ns"] / 1e9
    parts = [f"step {row['step']:,}", number(wall, "s")]
    if row.get("profiled"):
        parts.append("slowed by the profiler")
    if row.get("source") not in (None, "measured"):
        parts.append(row["source"])
    for kind in ("prefill", "decode"):
        if row.get(f"{kind}_tokens"):
            requests, tokens = (
                integer(row.get(f"{kind}_{name}")) for name in ("requests", "tokens")
            )
            parts.append(f"{kind} {requests} req, {tokens} tok")
    if "prefill_kv_tokens" in row:
        context = _total(row["prefill_kv_tokens"], row["decode_kv_tokens"])
        parts.append(f"reads {integer(context)} KV tok")
    parts.append(f"{integer(row.get('kv_blocks'))} KV blocks")
    if row.get("waiting"):
        parts.append(f"{row['waiting']:,} wait")
    if row.get("gap_ns") is not None:
        parts.append(f"gap {number(row['gap_ns'] / 1e9, 's')}")
    if row.get("preempted"):
        parts.append(f"preempted {row['preempted']:,}")
    if joules is not None:
        took_ns = taken_ns(row)
        watts = f", {number(joules / took_ns * 1e9, 'W')}" if took_ns else ""
        parts.append(f"{number(joules, 'J')}{watts}")
    return wrap("", " | ".join(parts), width=width, indent=2)


def draft_line(row: Mapping[str, Any] | None, run: Run) -> str | None:
    """Return what became of a step's drafts by position, and of all of the run's; None without."""
    acceptance = run.acceptance
    drafted, accepted = (None if row is None else row.get(name) for name in ("drafted", "accepted"))
    if acceptance is None and not drafted:
        return None
    parts = []
    if drafted:
        kept = [*(accepted or ()), *[0] * len(drafted)][: len(drafted)]
        shares = " ".join(f"{a}/{d}" for a, d in zip(kept, drafted, strict=True))
        parts.append(f"drafts kept by position {shares}")
    elif row is not None:
        parts.append("nothing drafted")
    if acceptance is not None:
        each = " ".join(
            ABSENT if e is None else f"{e.value:.2f}"[-3:] for e in acceptance.accepted_per_position
        )
        parts.append(f"whole run {each}, length {value_of(acceptance.length)}")
    return "  ".join(parts)


def family_line(families: Sequence[FamilyTime] | None, width: int) -> str | None:
    """Return the kernels by family as shares with bars; None where none were captured."""
    if not families:
        return None
    line = "kernels"
    for each in families:
        share = f" {each.family} {'#' * round(12 * each.share)} {percent(each.share)}"
        if len(line) + len(share) > width:
            break
        line += share
    return line


def collective_line(collectives: Sequence[Collective] | None, width: int) -> str | None:
    """Return the collectives in short; None where there are none."""
    if not collectives:
        return None
    parts = [
        f"{each.name} x{integer(each.calls)} {number(each.s, 's')}"
        + ("" if each.exposed_s is None else f" ({number(each.exposed_s, 's')} exposed)")
        for each in collectives
    ]
    return f"collectives {', '.join(parts)}"[:width]


def _total(*values: int | None) -> int | None:
    return None if any(value is None for value in values) else sum(v for v in values if v)


def run_title(run: Run) -> str:
    """Return the accuracy, latency and tokens of a run in one line."""
    return (
        f"accuracy {value_of(run.accuracy)}  p50 {value_of(run.latency_s['p50'])}  "
        f"p95 {value_of(run.latency_s['p95'])}  {value_of(run.tokens_per_problem)} tok/pb"
    )
