"""One problem's samples as bars in time, its vote as it converged, and where a rule would stop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any

import polars as pl

from traces.schema.formats import (
    ABSENT,
    integer,
    intervals_of,
    number,
    percent,
    relative_change,
    value_of,
    with_interval,
)
from traces.summary.run import Run
from tui.text.layout import wrap
from tui.widgets.sample_bars import SampleRow, Scale

if TYPE_CHECKING:
    from advisor.accuracy.finish_order import Decided
    from advisor.accuracy.stopping import Savings


NOTE = 12  # columns right of the bars
STRAGGLER = 1.5  # times the median end: the last sample is then a straggler
_LATER = str.maketrans({"=": "~", "A": "a", "p": "~", ".": " "})  # after a rule's stop


@dataclass(frozen=True, kw_only=True)
class SampleBar:
    """A sample's bar: times in seconds since the problem's arrival, None where not known.

    Where the problem's arrival is not known, no time is.
    """

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
class ShownProblem:
    """A problem with its samples in the order in which they ended."""

    number: int
    count: int
    row: dict[str, Any]
    samples: tuple[SampleBar, ...]
    span_s: float


def problem_at(run: Run, number: int) -> ShownProblem | None:
    """Return the problem in a row of the run, None when there is none."""
    if run.rows is None or run.sample_rows is None or not 0 <= number < run.rows.height:
        return None
    row = run.rows.row(number, named=True)
    of_problem = run.sample_rows.filter(pl.col("problem") == row["problem"])
    start = row["arrival"]
    samples = [_sample(each, start) for each in of_problem.iter_rows(named=True)]
    samples.sort(key=lambda each: (each.end is None, each.end or 0.0, each.index))
    ends = [each.end for each in samples if each.end is not None]
    stop = row["end"] or row["decided_at"]
    span = max([*ends, 0.0 if stop is None or start is None else (stop - start) / 1e9])
    if (
        start is not None
        and any(each.end is None for each in samples)
        and run.step_rows is not None
    ):
        last = run.step_rows["end"].drop_nulls()
        span = max(span, (int(last[-1]) - start) / 1e9) if last.len() else span
    return ShownProblem(
        number=number, count=run.rows.height, row=row, samples=tuple(samples), span_s=span
    )


def same_problem(problem: ShownProblem, other: Run) -> ShownProblem | None:
    """Return the problem of the same id in another run, None when it has none."""
    if other.rows is None:
        return None
    rows = other.rows.with_row_index("at").filter(pl.col("problem_id") == problem.row["problem_id"])
    return None if not rows.height else problem_at(other, int(rows["at"][0]))


def problem_in_flight(run: Run, time_ns: int) -> int | None:
    """Return the row of the problem that arrived last of those in flight at a time."""
    if run.rows is None:
        return None
    begun = pl.col("arrival") <= time_ns
    going = pl.coalesce("decided_at", "end", pl.lit(2**62)) > time_ns
    in_flight = run.rows.with_row_index("at").filter(begun & going)
    return None if not in_flight.height else int(in_flight.sort("arrival")["at"][-1])


def _sample(row: dict[str, Any], start: int | None) -> SampleBar:
    def since(name: str) -> float | None:
        return None if row[name] is None or start is None else (row[name] - start) / 1e9

    return SampleBar(
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


def cut_at(problem: ShownProblem, seconds: float) -> ShownProblem:
    """Return the problem as it stood so many seconds after its arrival."""

    def known(sample: SampleBar) -> SampleBar:
        if sample.end is not None and sample.end <= seconds:
            return sample
        times = {
            name: value
            for name in ("scheduled", "first_token", "think_end")
            if (value := getattr(sample, name)) is not None and value > seconds
        }
        unknown: dict[str, Any] = dict.fromkeys([*times, "end", "answer", "correct", "tokens"])
        return replace(sample, **unknown, cancelled=False, error=None)

    return replace(problem, samples=tuple(known(each) for each in problem.samples))


def bar(sample: SampleBar, span_s: float, width: int, until: float | None = None) -> str:
    """Return a sample in time, a letter of tui/widgets/sample_bars.py for the state in a column.

    A sample that has not ended runs to `until`, the span's end by default.
    """
    if span_s <= 0 or width < 1:
        return ""
    end = sample.end
    if end is None:
        end = span_s if until is None else min(until, span_s)
    if end < sample.arrival:
        return ""

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


def columns(problem: ShownProblem, width: int) -> tuple[int, int]:
    """Return how wide the answers and the bars are in lines of a width."""
    longest = max([6, *(len(each.answer or ABSENT) for each in problem.samples)])
    size = min(longest, 14)
    return size, max(width - size - 17 - NOTE, 8)


def sample_rows(
    problem: ShownProblem,
    width: int,
    *,
    stop: Decided | None = None,
    span_s: float | None = None,
    until: float | None = None,
) -> list[SampleRow]:
    """Return the samples' lines, at most `width` columns each, first to last ended.

    `span_s` is the time that the bars' width stands for (the problem's own), `until` the time
    that it is in a run that is played, in seconds since the arrival.
    """
    size, space = columns(problem, width)
    span = problem.span_s if span_s is None else span_s
    saved = None
    if stop is not None and stop.early and span > 0:
        saved = min(int(stop.seconds / span * space) + 1, space)
    rows = []
    for order, each in enumerate(problem.samples, 1):
        answer = ABSENT if each.answer is None else each.answer
        mark = {True: "+", False: "-", None: " "}[each.correct]
        line = bar(each, span, space, until)
        if saved is not None:
            line = line[:saved] + line[saved:].translate(_LATER)
        rows.append(
            SampleRow(
                left=f"{each.index:>4} {mark} {answer[:size]:<{size}} {integer(each.tokens):>6} ",
                correct=each.correct,
                bar=line,
                note=_note(problem, each, order),
            )
        )
    return rows


def _note(problem: ShownProblem, sample: SampleBar, order: int) -> str:
    if sample.error or sample.cancelled:
        return sample.error or "cancelled"
    if sample.end is None:
        return ""
    final = problem.row["answer"]
    ends = [each.end for each in problem.samples if each.end is not None]
    last = order == len(ends) == len(problem.samples)
    if last and len(ends) > 2 and sample.end > STRAGGLER * median(ends):
        return "straggler"
    if sample.role != "sample":
        return sample.role
    if sample.answer is None:  # it did not parse, unless nobody looked at answers
        return "" if final is None and problem.row["correct"] is None else "no answer"
    return "differs" if final is not None and sample.answer != final else ""


def scale_of(problem: ShownProblem, width: int, span_s: float) -> Scale:
    """Return the header of the samples: the columns, and the span at the end of the bars."""
    size, space = columns(problem, width)
    end = number(span_s, "s") if span_s > 0 else ""  # no time is known
    left = f"{'#':>4}   {'answer':<{size}} {'tokens':>6} "
    return Scale(left=left, columns=space, end=end, width=width)


def problem_title(problem: ShownProblem) -> str:
    """Return one line: which problem, its answer, its time, tokens, energy and cost."""
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
    for name, unit in (("energy_j", "J"), ("cost_usd", "USD")):
        if row.get(name) is not None:
            parts.append(number(row[name], unit))
    return "  ".join(part for part in parts if part)


def vote_lines(problem: ShownProblem, *, width: int) -> list[str]:
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
    others_told = " ".join(f"{name} x{n}" for name, n in counts.most_common(4) if name != final)
    room = max(width - 12 - len(final) - len(others_told), 20)
    lines = [f"vote  {final}: {_middle(steps, room)}  {others_told}".rstrip()[:width]]
    if settled >= len(ended):
        return [*lines, "      a tie to the last sample, settled by the order of samples"]
    at = ended[settled].end or 0.0
    latency = problem.row["latency_s"]
    after = sum(_tokens_after(each, at) for each in ended)
    total = sum(each.tokens or 0 for each in ended)
    if latency and total and latency - at > 0.01 * latency:
        text = (
            f"settled at {number(at, 's')}: the last {percent((latency - at) / latency)} of "
            f"time, {percent(after / total)} of tokens changed nothing"
        )
        lines.append(f"      {text}"[:width])
    return lines


def stop_lines(
    problem: ShownProblem, judged: Savings | str | None, rule: str, *, width: int
) -> list[str]:
    """Return where a rule ends this problem, and what it saves over all.

    `judged` is why it cannot be said where it is a text, and None while it is worked out.
    """
    if judged is None:
        return [f"rule  {rule}: judging it on all problems ..."]
    if isinstance(judged, str):
        return wrap("rule", judged, width=width, indent=6)
    stop = judged.stopped.get(problem.row["problem_id"])
    if stop is None:
        here = "this problem lacks samples"
    elif not stop.early:
        here = _without_saving(problem, stop)
    else:
        tokens = problem.row["tokens"]
        spared = "" if not tokens else f", {percent(1 - stop.tokens / tokens)} of tokens"
        here = (
            f"stops at {number(stop.seconds, 's')}, {stop.ended} ended, "
            f"{percent(stop.certainty)} sure: saves "
            f"{number(max(problem.span_s - stop.seconds, 0.0), 's')}{spared}"
        )
    lines = wrap("rule", f"{judged.rule} {here}", width=width, indent=6)
    of = intervals_of((judged.latency_p50, judged.latency_p95, judged.tokens, judged.accuracy))
    changes = (
        f"all {judged.problems:,}: {judged.early:,} stop early",
        *([f"({of})"] if of else []),
        f"p50 {relative_change(judged.latency_p50)}",
        f"p95 {relative_change(judged.latency_p95)}",
        f"tokens {relative_change(judged.tokens)}",
        f"accuracy {_accuracy(judged)}",
    )
    for part in changes:
        joined = f"{lines[-1]}  {part}"
        if part is changes[0] or len(joined) > width:
            lines.append(f"      {part}")
        else:
            lines[-1] = joined
    return lines


def _without_saving(problem: ShownProblem, stop: Decided) -> str:
    """Return what to say of a rule that spares nothing: it was met as the last ended, or not."""
    sure = f"({percent(stop.certainty)} sure)"
    ends = [
        each.end
        for each in problem.samples
        if each.role == "sample" and each.end is not None and each.error is None
    ]
    if stop.ended < len(ends) and ends[stop.ended - 1] == ends[-1]:
        return (
            f"is met here by {stop.ended} of {len(ends)} samples {sure}, but nothing is saved: "
            "the others ended at the same time"
        )
    return f"waits for the last sample here {sure}"


def _accuracy(judged: Savings) -> str:
    """Return the difference of accuracy, and whether any problem is judged otherwise."""
    if judged.same_answers:
        return f"{value_of(judged.accuracy, sign=True)} (no problem's result changes)"
    return with_interval(judged.accuracy, sign=True)


def _middle(steps: Sequence[str], width: int) -> str:
    """Return the steps, the middle ones left out when they do not fit."""
    if len(" ".join(steps)) <= width:
        return " ".join(steps)
    head = list(steps)
    while head and len(" ".join(head)) + len(steps[-1]) + 4 > width:
        head.pop()
    return " ".join([*head, "..", steps[-1]])


def _tokens_after(sample: SampleBar, seconds: float) -> float:
    if sample.end is None or sample.tokens is None or sample.end <= seconds:
        return 0.0
    begin = sample.first_token if sample.first_token is not None else sample.arrival
    length = sample.end - begin
    return sample.tokens * min((sample.end - seconds) / length, 1.0) if length > 0 else 0.0
