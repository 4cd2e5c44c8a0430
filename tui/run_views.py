"""The Run screen's view models: timeline, one step, one problem's samples and its vote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from traces.series import Series
from traces.summary import Run
from tui.formats import ABSENT, clock, compact, number, percent, sparkline, value_of, wrap

LEFT = 14  # columns before a chart's bars
RIGHT = 8


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A sample's bar: times in seconds since the problem's arrival, None where not known."""

    index: int
    role: str
    answer: str | None
    correct: bool | None
    tokens: int | None
    arrival: float
    scheduled: float | None
    first_token: float | None
    think_end: float | None
    end: float | None
    cancelled: bool
    error: str | None


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A problem with its samples in the order in which they ended."""

    number: int
    count: int
    row: dict[str, Any]
    samples: tuple[Sample, ...]
    span_s: float


def chart_lines(found: Series, cursor: int) -> list[str]:
    """Return batch, KV and tokens per second as bars, the cursor's values at their right."""
    bins = (
        ("batch", found.batch, 1.0),
        ("waiting", found.waiting, 1.0),
        ("KV %", found.kv_share, 100.0),
        ("tok/s", found.tokens_per_s, 1.0),
    )
    lines = []
    for name, values, factor in bins:
        scaled = values * factor
        known = scaled[np.isfinite(scaled)]
        top = compact(float(known.max())) if known.size else ABSENT
        here = compact(float(scaled[cursor]))
        head = f"{name:<8}{top:>{LEFT - 9}}|"
        lines.append(f"{head}{sparkline(scaled.tolist())}|{here:>{RIGHT - 1}}")
    return lines


def axis_line(found: Series, cursor: int) -> str:
    """Return the axis with a mark under the cursor and its time."""
    total = (found.edges_ns[-1] - found.edges_ns[0]) / 1e9
    here = (found.edges_ns[cursor] - found.edges_ns[0]) / 1e9
    line = ["-"] * found.bins
    text = f"^ {clock(here)} "
    start = min(cursor, max(found.bins - len(text), 0))
    line[start : start + len(text)] = text
    if start != cursor:
        line[start] = " "
        line[cursor] = "^"
    return f"{'0:00':>{LEFT - 1}} {''.join(line[: found.bins])} {clock(total)}"


def extent_line(found: Series, start_ns: int, end_ns: int | None) -> str:
    """Return a line under the charts that shows when the problem ran."""
    edges = found.edges_ns
    last = int(edges[-1]) if end_ns is None else end_ns
    begin = int(np.clip(np.searchsorted(edges, start_ns, side="right") - 1, 0, found.bins - 1))
    until = int(np.clip(np.searchsorted(edges, last, side="left"), begin + 1, found.bins))
    return f"{'problem':<{LEFT}}{' ' * begin}{'=' * (until - begin)}"


def step_lines(run: Run, position: int, *, width: int) -> list[str]:
    """Return the composition of the step at a position of the run's steps."""
    if run.step_rows is None or not 0 <= position < run.step_rows.height:
        return ["no step here: the engine was idle"]
    row = run.step_rows.row(position, named=True)
    wall = None if row["wall_ns"] is None else row["wall_ns"] / 1e9
    parts = [f"step {row['step']:,}", number(wall, "s")]
    if row["profiled"]:
        parts.append("slowed by the profiler")
    if row["prefill_tokens"]:
        requests, tokens = (_count(row[f"prefill_{name}"]) for name in ("requests", "tokens"))
        parts.append(f"prefill {requests} req, {tokens} tok")
    if row["decode_tokens"]:
        requests, tokens = (_count(row[f"decode_{name}"]) for name in ("requests", "tokens"))
        parts.append(f"decode {requests} req, {tokens} tok")
    context = _total(row["prefill_kv_tokens"], row["decode_kv_tokens"])
    more = [
        f"reads {_count(context)} KV tok",
        f"{_count(row['kv_blocks'])} KV blocks",
        f"waiting {_count(row['waiting'])}",
    ]
    if row["gap_ns"] is not None:
        more.append(f"gap {number(row['gap_ns'] / 1e9, 's')}")
    if row["preempted"]:
        more.append(f"preempted {row['preempted']:,}")
    if row["drafted"]:
        more.append(f"drafted {sum(row['drafted']):,}, kept {sum(row['accepted'] or ()):,}")
    return wrap("", " | ".join([*parts, *more]), width=width, indent=2)


def _count(value: float | None) -> str:
    return ABSENT if value is None else f"{value:,.0f}"


def _total(*values: int | None) -> int | None:
    return None if any(value is None for value in values) else sum(v for v in values if v)


def problem_at(run: Run, number: int) -> Problem | None:
    """Return the problem in a row of the run, None when there is none."""
    if run.rows is None or run.sample_rows is None or not 0 <= number < run.rows.height:
        return None
    row = run.rows.row(number, named=True)
    own = run.sample_rows.filter(pl.col("problem") == row["problem"])
    start = row["arrival"]
    if start is None:
        return Problem(number=number, count=run.rows.height, row=row, samples=(), span_s=0.0)
    samples = [_sample(each, start) for each in own.iter_rows(named=True)]
    samples.sort(key=lambda each: (each.end is None, each.end or 0.0, each.index))
    ends = [each.end for each in samples if each.end is not None]
    stop = row["end"] or row["decided_at"]
    span = max([*ends, 0.0 if stop is None else (stop - start) / 1e9])
    if any(each.end is None for each in samples) and run.step_rows is not None:
        last = run.step_rows["end"].drop_nulls()
        span = max(span, (int(last[-1]) - start) / 1e9) if last.len() else span
    return Problem(
        number=number, count=run.rows.height, row=row, samples=tuple(samples), span_s=span
    )


def _sample(row: dict[str, Any], start: int) -> Sample:
    def since(name: str) -> float | None:
        return None if row[name] is None else (row[name] - start) / 1e9

    return Sample(
        index=row["sample_index"] if row["sample_index"] is not None else -1,
        role=row["role"] or "sample",
        answer=row["answer"],
        correct=row["correct"],
        tokens=row["output_tokens"],
        arrival=since("arrival") or 0.0,
        scheduled=since("scheduled"),
        first_token=since("first_token"),
        think_end=since("think_end"),
        end=since("end"),
        cancelled=row["cancelled_by"] is not None,
        error=row["error"],
    )


def bar(sample: Sample, span_s: float, width: int) -> str:
    """Return a sample in time: `.` queued, `p` prefill, `=` think, `A` answer, `x` cancelled."""
    if span_s <= 0 or width < 1:
        return ""
    end = span_s if sample.end is None else sample.end

    def place(seconds: float) -> int:
        return min(int(seconds / span_s * width), width)

    marks = (
        (".", sample.arrival),
        ("p", sample.scheduled),
        ("=", sample.first_token),
        ("A", sample.think_end),
    )
    line = [" "] * width
    for mark, begin in marks:
        if begin is not None:
            start = min(place(begin), width - 1)
            stop = max(place(end), start + 1)
            line[start:stop] = mark * (stop - start)
    if sample.cancelled or sample.error:
        line[min(max(place(end) - 1, 0), width - 1)] = "x"
    return "".join(line).rstrip() + (">" if sample.end is None else "")


def problem_title(problem: Problem) -> str:
    """Return one line: which problem, its answer, its time, tokens and cost."""
    row = problem.row
    verdict = {1.0: "right", 0.0: "wrong", None: "not judged"}[row["correct"]]
    answer = f"answer {row['answer'] if row['answer'] is not None else ABSENT}, {verdict}"
    if row["state"] != "decided":
        answer = "in flight at the end" if row["state"] == "in_flight" else "ended undecided"
    parts = [
        f"problem {problem.number + 1:,} of {problem.count:,}",
        row["group"] or "",
        answer,
        number(row["latency_s"], "s"),
        f"{number(row['tokens'], 'tokens')} tok",
        number(row["device_s"], "device-s"),
    ]
    return "  ".join(part for part in parts if part)


def sample_rows(problem: Problem, width: int) -> list[tuple[Sample, str, str]]:
    """Return each sample with its left cells (number, answer, tokens) and its bar."""
    answers = [each.answer if each.answer is not None else ABSENT for each in problem.samples]
    size = min(max([6, *map(len, answers)]), 14)
    space = max(width - size - 15, 8)
    return [
        (
            each,
            f"{each.index:>4}  {answer[:size]:<{size}} {_count(each.tokens):>6} ",
            bar(each, problem.span_s, space),
        )
        for each, answer in zip(problem.samples, answers, strict=True)
    ]


def scale_line(problem: Problem, width: int) -> str:
    """Return the header of the samples: columns, 0 and the span in seconds, the legend."""
    answers = [len(each.answer or ABSENT) for each in problem.samples]
    size = min(max([6, *answers]), 14)
    space = max(width - size - 15, 8)
    end = number(problem.span_s, "s")
    legend = ".queued p=prefill ==think A=answer x=cut"
    middle = legend if len(legend) + len(end) + 4 <= space else ""
    return f"{'#':>4}  {'answer':<{size}} {'tokens':>6} 0 {middle:^{space - len(end) - 3}} {end}"


def vote_lines(problem: Problem, *, width: int) -> list[str]:
    """Return how the vote converged, in the order in which samples ended, and what came after.

    The share of time and tokens after the final answer took the lead for good is hindsight: a
    rule could not have known it. Tokens in flight are counted evenly over a sample's decoding.
    """
    ended = [each for each in problem.samples if each.end is not None and each.role == "sample"]
    final = problem.row["answer"]
    if len(ended) < 2 or final is None:
        return []
    steps, counts, settled = [], Counter[str](), 0
    for order, each in enumerate(ended, 1):
        if each.answer is not None:
            counts[each.answer] += 1
        others = max((count for name, count in counts.items() if name != final), default=0)
        if counts[final] <= others:
            settled = order
        steps.append(f"{counts[final]}/{order}")
    lines = wrap("vote", f"{final}: {_middle(steps, width - 20)}", width=width, indent=6)
    if settled >= len(ended):
        return [*lines, "      a tie to the last sample, settled by the order of samples"]
    at = ended[settled].end or 0.0
    latency = problem.row["latency_s"]
    after = sum(_tokens_after(each, at) for each in ended)
    total = sum(each.tokens or 0 for each in ended)
    if latency and total and latency - at > 0.01 * latency:
        text = (
            f"in the lead for good from {number(at, 's')}; {number(latency - at, 's')} "
            f"({percent((latency - at) / latency)}) and {after:,.0f} tokens "
            f"({percent(after / total)}) came after (hindsight)"
        )
        lines += wrap("", text, width=width, indent=6)
    return lines


def _middle(steps: Sequence[str], width: int) -> str:
    """Return the steps, the middle ones left out when they do not fit."""
    if len(" ".join(steps)) <= width:
        return " ".join(steps)
    head = list(steps)
    while head and len(" ".join(head)) + len(steps[-1]) + 4 > width:
        head.pop()
    return " ".join([*head, "..", steps[-1]])


def _tokens_after(sample: Sample, seconds: float) -> float:
    if sample.end is None or sample.tokens is None or sample.end <= seconds:
        return 0.0
    begin = sample.first_token if sample.first_token is not None else sample.arrival
    length = sample.end - begin
    return sample.tokens * min((sample.end - seconds) / length, 1.0) if length > 0 else 0.0


def run_title(run: Run) -> str:
    """Return the accuracy, latency and tokens of a run in one line."""
    return (
        f"accuracy {value_of(run.accuracy)}  p50 {value_of(run.latency_s['p50'])}  "
        f"p95 {value_of(run.latency_s['p95'])}  {value_of(run.tokens_per_problem)} tok/pb"
    )
