"""A live deployment as text: one line per second, and what is told at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from traces.live.engine_names import software_of
from traces.live.numbers import KV, QUANTILES, RUNNING, WAITING, Bounds, Floats, Numbers, Times
from traces.live.verdict import Verdict
from traces.live.watched import Requests, Watched
from traces.schema.estimate import Estimate
from tui.text.formats import (
    ABSENT,
    align,
    compact,
    counted,
    digits,
    number,
    percent,
    scale,
    sparkline,
    value_of,
    wrap,
)

INDENT = 10
BINS = 54
_FINISHED = ("stop", "length", "abort", "error", "repetition", "ended")


def live_line(seconds: float, numbers: Mapping[str, Numbers | None]) -> str:
    """Return one line of at most 80 columns: all engines together over the last seconds."""
    hours, rest = divmod(int(seconds), 3600)
    head = f"{hours}:{rest // 60:02}:{rest % 60:02}"
    known = [each for each in numbers.values() if each is not None]
    if not known:
        return f"{head}  no answer yet"
    parts = [
        f"tok/s {compact(_sum(known, 'generated_tokens_per_s'))}",
        f"run {compact(_sum(known, 'running'))}",
        f"wait {compact(_sum(known, 'waiting'))}",
        f"KV {percent(_most(known, 'kv_share'))}",
        f"ITL {_short(_worst(known, 'itl_s'))}",
        f"TTFT {_short(_worst(known, 'ttft_s'))}",
    ]
    preempted = _sum(known, "preemptions")
    if preempted:
        parts.append(f"preempted {preempted:.0f}")
    lengths = [each.acceptance_length for each in known if each.acceptance_length is not None]
    if lengths:
        parts.append(f"accept {min(lengths):.2f}")
    if len(numbers) > 1:
        parts.append(f"{len(known)}/{len(numbers)} engines")
    line = head
    for part in parts:
        if len(line) + 2 + len(part) <= 80:
            line += f"  {part}"
    return line


def _sum(known: Sequence[Numbers], name: str) -> float | None:
    values = [value for each in known if (value := getattr(each, name)) is not None]
    return sum(values) if values else None


def _most(known: Sequence[Numbers], name: str) -> float | None:
    return max((v for each in known if (v := getattr(each, name)) is not None), default=None)


def _worst(known: Sequence[Numbers], name: str) -> Estimate | None:
    means = [mean for each in known if (mean := getattr(each, name).mean) is not None]
    return max(means, key=lambda mean: mean.value, default=None)


def _short(estimate: Estimate | None) -> str:
    return value_of(estimate).replace(" ", "")


def watched_lines(found: Watched, *, width: int = 80) -> list[str]:
    """Return an engine's numbers and the verdict on it."""
    numbers = found.numbers
    lines = [f"{found.recording}: {found.engine.model}, watched"[:width]]
    where = dict(found.engine.other)
    if where:
        lines += wrap("engine", " ".join(where.values()), width=width, indent=INDENT)
    if not found.complete:
        lines += wrap("!", "incomplete: cut off, or still going", width=width, indent=2)
    for loss in found.losses:
        lines += wrap("!", loss, width=width, indent=2)
    if found.events:
        told = ", ".join(f"{kind.replace('_', ' ')} {n:,}" for kind, n in found.events.items())
        lines += wrap("!", told, width=width, indent=2)
    if numbers is not None:
        lines += ["", *_number_lines(found, numbers, width), "", *_charts(found, width)]
    if found.columns:
        lines += ["", *_column_lines(found.columns, width)]
    return [*lines, "", *verdict_lines(found.verdict, width=width)]


def _number_lines(found: Watched, numbers: Numbers, width: int) -> list[str]:
    finished = [f"{n} {numbers.finished[n]:,}" for n in _FINISHED if n in numbers.finished]
    lines = wrap(
        "polls",
        f"{numbers.polls:,} over {numbers.seconds:,.0f} s; requests finished: "
        f"{', '.join(finished) or 'none'}",
        width=width,
        indent=INDENT,
    )
    rates = (
        f"generated {_rate(numbers.generated_tokens_per_s)} tok/s, prompts "
        f"{_rate(numbers.prompt_tokens_per_s)} tok/s (from the prefix cache "
        f"{percent(numbers.prefix_hit_share)}), requests {_rate(numbers.requests_per_s)}/s, steps "
        f"{_rate(numbers.steps_per_s)}/s of {_rate(numbers.tokens_per_step)} tokens"
    )
    lines += wrap("rates", rates, width=width, indent=INDENT)
    load = (
        f"running {_rate(numbers.running)} (highest {_rate(numbers.running_max)}), waiting "
        f"{_rate(numbers.waiting)} (highest {_rate(numbers.waiting_max)}), KV cache "
        f"{percent(numbers.kv_share)} (highest {percent(numbers.kv_share_max)}), "
        f"preemptions {ABSENT if numbers.preemptions is None else numbers.preemptions}"
    )
    lines += wrap("load", load, width=width, indent=INDENT)
    if numbers.acceptance_length is not None:
        shares = " ".join(f"{share:.2f}" for share in numbers.accepted_per_position or ())
        drafts = (
            f"{ABSENT if numbers.drafts is None else f'{numbers.drafts:,}'} drafts, "
            f"{f'accepted by position {shares}, ' if shares else ''}"
            f"length {numbers.acceptance_length:.2f}"
        )
        lines += wrap("drafts", drafts, width=width, indent=INDENT)
    return [*lines, "", *_time_lines(numbers, found.requests, software_of(found.engine), width)]


def _time_lines(
    numbers: Numbers, requests: Requests | None, software: str, width: int
) -> list[str]:
    """Return the times of requests: one by one where they are known, else by histograms."""
    rows = [("", "mean", *QUANTILES, "from")]
    for title, name in (
        ("TTFT", "ttft_s"),
        ("ITL", "itl_s"),
        ("queue", "queue_s"),
        ("prefill", "prefill_s"),
        ("decode", "decode_s"),
        ("request", "e2e_s"),
    ):
        each = getattr(requests, name, None)
        if requests is not None and each is not None and each["mean"] is not None:
            cells = [value_of(each[q]) for q in ("mean", *QUANTILES)]
            rows.append((title, *cells, requests.source))
            continue
        times: Times = getattr(numbers, name)
        cells = [bounds_text(getattr(times, q)) for q in QUANTILES]
        rows.append((title, value_of(times.mean), *cells, "/metrics"))
    lines = align(rows, right=(1, 2, 3, 4))
    used = {row[-1] for row in rows}
    if requests is not None and requests.source in used:
        how = "as their spans tell" if requests.source == "spans" else "as the client saw them"
        text = f"{counted(requests.count, 'request')}, {how}"
        lines += wrap(requests.source, text, width=width, indent=INDENT)
    if "/metrics" in used:
        text = f"{software}'s histograms: a mean is exact, a quantile lies between two bounds"
        lines += wrap("/metrics", text, width=width, indent=INDENT)
    return lines


def bounds_text(bounds: Bounds | None) -> str:
    """Return `5.00 to 10.0 s`, `up to 10.0 ms`, `over 60.0 s`, or one number where they agree."""
    if bounds is None:
        return ABSENT
    if bounds.high is None:
        return f"over {number(bounds.low, bounds.unit)}"
    high = number(bounds.high, bounds.unit)
    factor, unit = scale(bounds.high, bounds.unit)
    low = digits(bounds.low / factor)
    if f"{low} {unit}" == high:
        return high
    return f"up to {high}" if bounds.low <= 0 else f"{low} to {high}"


def _rate(value: float | None) -> str:
    return number(value, "tokens")


def _charts(found: Watched, width: int) -> list[str]:
    """Return load over time; a bin of a gauge holds its highest reading."""
    window = found.window
    if window is None:
        return []
    times = window.times
    span = max(int(times.max() - times.min()), 1)
    bins = min(BINS, width - 26, max(times.size - 1, 1))
    place = (times - times.min()) * bins // (span + 1)
    lines = []
    for title, name, factor, unit in (
        ("running", RUNNING, 1.0, ""),
        ("waiting", WAITING, 1.0, ""),
        ("KV cache", KV, 100.0, " %"),
    ):
        highest = np.full(bins, np.nan)
        np.fmax.at(highest, place, window.gauges[name] * factor)
        lines += _chart(title, highest, unit)
    seconds, tokens = np.diff(times) / 1e9, window.generated[1:]
    known = np.isfinite(tokens) & (seconds > 0)
    sums = (
        np.bincount(place[1:][known], weights=each[known], minlength=bins)
        for each in (tokens, seconds)
    )
    with np.errstate(invalid="ignore"):  # of bins without a poll
        lines += _chart("tok/s", np.divide(*sums), "")
    return lines


def _chart(title: str, values: Floats, unit: str) -> list[str]:
    known = values[np.isfinite(values)]
    if not known.size:
        return []
    top = f"{compact(float(known.max()))}{unit}"
    return [f"{title:<{INDENT}}{top:>8} |{sparkline(values.tolist())}|"]


def _column_lines(columns: Mapping[str, str], width: int) -> list[str]:
    lines = ["engine steps"]
    for kind in ("measured", "inferred", "null"):
        names = ", ".join(name for name, told in columns.items() if told == kind)
        lines += wrap(f"  {kind}", names or "none", width=width, indent=12)
    return lines


def verdict_lines(verdict: Verdict, *, width: int = 80) -> list[str]:
    """Return the bottleneck in words with its evidence, and what could not be seen."""
    if verdict.reason is not None:
        return wrap("VERDICT", f"none: {verdict.reason}", width=width, indent=INDENT)
    if not verdict.found:
        lines = wrap("VERDICT", "nothing stands out", width=width, indent=INDENT)
    else:
        first, *others = verdict.found
        lines = wrap("VERDICT", f"{first.kind}: {first.evidence}", width=width, indent=INDENT)
        for each in others:
            lines += wrap("also", f"{each.kind}: {each.evidence}", width=width, indent=INDENT)
    for missing in verdict.unseen:
        lines += wrap(
            "unseen", f"{missing.kind}: needs {missing.needs}", width=width, indent=INDENT
        )
    return lines
