"""A live deployment as text: one line per second, and what is told at the end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from traces.live.engine_names import software_of
from traces.live.numbers import (
    GENERATED,
    KV,
    QUANTILES,
    RUNNING,
    WAITING,
    Bounds,
    Numbers,
    Times,
    Window,
    cancelled_words,
)
from traces.live.verdict import Verdict
from traces.live.watched import Requests, Watched
from traces.plain_text import name_word, quoted
from traces.schema.engine import model_words
from traces.schema.estimate import Estimate
from traces.schema.formats import (
    ABSENT,
    compact,
    counted,
    integer,
    interval,
    intervals_of,
    number,
    percent,
    value_of,
)
from traces.statistics import Floats
from traces.summary.metrics import estimate_of
from tui.text.layout import align, chart_line, labelled, wrap

if TYPE_CHECKING:
    from advisor.what_if.suggest import Suggestion
    from profiler.attach.scraper import Silence

INDENT = 10
BINS = 54
_FINISHED = ("stop", "length", "abort", "error", "repetition", "ended")


STALE_S = 3.0  # that an answer is due, from which it is said


def silence_told(silences: Mapping[str, Silence]) -> str | None:
    """Return `no answer for 7 s` where an engine owes one for that long, else None.

    With why that is, and when it is asked again, where these are known.
    """
    late = [each for each in silences.values() if each.seconds >= STALE_S]
    if not late:
        return None
    longest = max(late)
    of = "" if len(late) == len(silences) else f" of {len(late)} of {len(silences)} engines"
    silence = f"no answer{of} for {longest.seconds:.0f} s"
    if longest.another:
        return f"{silence} (another server answers)"
    again = round(longest.again_s)
    return f"{silence}, asked again in {again} s" if again else silence


def live_line(
    seconds: float, numbers: Mapping[str, Numbers | None], silences: Mapping[str, Silence]
) -> str:
    """Return one line of at most 80 columns: all engines together over the last seconds.

    Where an answer is due for some seconds, that stands before what the last one said.
    """
    hours, rest = divmod(int(seconds), 3600)
    head = f"{hours}:{rest // 60:02}:{rest % 60:02}"
    engines = [each for each in numbers.values() if each is not None]
    if not engines:
        return f"{head}  no answer yet"
    parts = [
        f"tok/s {compact(total(engines, 'generated_tokens_per_s'))}",
        f"run {compact(total(engines, 'running'))}",
        f"wait {compact(total(engines, 'waiting'))}",
        f"KV {percent(highest(engines, 'kv_share'))}",
        f"ITL {_short(slowest(engines, 'itl_s').mean)}",
        f"TTFT {_short(slowest(engines, 'ttft_s').mean)}",
    ]
    preempted = total(engines, "preemptions")
    if preempted > 0:
        parts.append(f"preempted {preempted:.0f}")
    lengths = [each.acceptance_length for each in engines if each.acceptance_length is not None]
    if lengths:
        parts.append(f"accept {min(lengths):.2f}")
    if len(numbers) > 1:
        parts.append(f"{len(engines)}/{len(numbers)} engines")
    silent = silence_told(silences)
    line = head if silent is None else f"{head}  {silent}, before:"
    for part in parts:
        if len(line) + 2 + len(part) <= 80:
            line += f"  {part}"
    return line


def total(engines: Sequence[Numbers], name: str) -> float:
    """Return a number summed over the engines that have it; nan where none has."""
    values = [value for each in engines if (value := getattr(each, name)) is not None]
    return sum(values) if values else math.nan


def highest(engines: Sequence[Numbers], name: str) -> float:
    """Return a number of the engine where it is highest; nan where none has it."""
    return max((v for each in engines if (v := getattr(each, name)) is not None), default=math.nan)


def slowest(engines: Sequence[Numbers], name: str) -> Times:
    """Return the times of the engine with the highest mean."""
    times = [getattr(each, name) for each in engines]
    return max(times, key=lambda each: each.mean.value if each.mean else -1.0, default=Times())


def _short(estimate: Estimate | None) -> str:
    return value_of(estimate).replace(" ", "")


def watched_lines(watched: Watched, *, width: int = 80) -> list[str]:
    """Return an engine's numbers and the verdict on it."""
    numbers = watched.numbers
    lines = wrap("", f"{watched.recording}: {watched.engine.model}, watched", width=width, indent=0)
    if where := watched.engine.place:
        lines += wrap("engine", where, width=width, indent=INDENT)
    lines += warning_lines(watched, width=width)
    if numbers is not None:
        lines += ["", *_number_lines(watched, numbers, width), "", *_charts(watched, width)]
    if watched.columns:
        lines += ["", *_column_lines(watched.columns, width)]
    return [*lines, "", *verdict_lines(watched.verdict, width=width)]


def warning_lines(watched: Watched, *, width: int = 80) -> list[str]:
    """Return what a recording of a server lacks, and what happened to the server."""
    cut = [] if watched.complete else [f"incomplete: {watched.cut}"]
    events = ", ".join(events_told(watched.events))
    warned = [*cut, *watched.losses, *([events] if events else [])]
    return labelled((("!", text) for text in warned), width=width, indent=2)


_EVENT_WORDS = {
    "restart": "restart",
    "counter_reset": "counter reset",
    "gap": "gap",
    "reconnect": "reconnect",
    "clock": "clock jump",
}


def events_told(counts: Mapping[str, int]) -> list[str]:
    """Return events in words, `1 gap`. Those of other kinds are told by their own words."""
    return [
        counted(counts[kind], words) for kind, words in _EVENT_WORDS.items() if counts.get(kind)
    ]


def _number_lines(watched: Watched, numbers: Numbers, width: int) -> list[str]:
    finished = [f"{n} {numbers.finished[n]:,}" for n in _FINISHED if n in numbers.finished]
    polls = (
        f"{numbers.polls:,} over {numbers.seconds:,.0f} s, samples finished: "
        f"{', '.join(finished) or 'none'}, cancelled by clients: "
        f"{ABSENT if numbers.cancelled is None else cancelled_words(numbers.cancelled)}"
    )
    rates = (
        f"generated {_rate(numbers.generated_tokens_per_s)} tok/s, prompts "
        f"{_rate(numbers.prompt_tokens_per_s)} tok/s (from the prefix cache "
        f"{percent(numbers.prefix_hit_share)}), samples {_rate(numbers.samples_per_s)}/s, steps "
        f"{_rate(numbers.steps_per_s)}/s of {_rate(numbers.tokens_per_step)} tokens"
    )
    load = (
        f"running {_rate(numbers.running)} (highest {_rate(numbers.running_max)}), waiting "
        f"{_rate(numbers.waiting)} (highest {_rate(numbers.waiting_max)}), KV cache "
        f"{percent(numbers.kv_share)} (highest {percent(numbers.kv_share_max)}), "
        f"preemptions {ABSENT if numbers.preemptions is None else numbers.preemptions}"
    )
    rows = [("polls", polls), ("rates", rates), ("load", load)]
    if numbers.acceptance_length is not None:
        shares = " ".join(f"{share:.2f}" for share in numbers.accepted_per_position or ())
        drafts = (
            f"{integer(numbers.drafts)} drafts, "
            f"{f'accepted by position {shares}, ' if shares else ''}"
            f"length {numbers.acceptance_length:.2f}"
        )
        rows.append(("drafts", drafts))
    lines = labelled(rows, width=width, indent=INDENT)
    software = software_of(watched.engine)
    return [*lines, "", *latency_lines(numbers, watched.requests, software, width)]


def latency_lines(
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
        mean, cells, source = time_cells(numbers, requests, name, QUANTILES)
        rows.append((title, value_of(mean), *cells, source))
    lines = align(rows, right=(1, 2, 3, 4))
    used = {row[-1] for row in rows}
    if requests is not None and requests.source in used:
        how = "by their spans" if requests.source == "spans" else "as the client saw them"
        text = f"{counted(requests.count, 'sample')}, {how}"
        lines += wrap(requests.source, text, width=width, indent=INDENT)
    if "/metrics" in used:
        exact = any(row[1] != ABSENT and row[-1] == "/metrics" for row in rows)
        means = "a mean is exact, " if exact else ""
        text = f"{software}'s histograms: {means}a quantile lies between two bounds"
        lines += wrap("/metrics", text, width=width, indent=INDENT)
    return lines


def time_cells(
    numbers: Numbers, requests: Requests | None, name: str, quantiles: Iterable[str] = ()
) -> tuple[Estimate | None, list[str], str]:
    """Return a time of requests: its mean, its quantiles as text, and where these are from."""
    each = getattr(requests, name, None)
    if requests is not None and each is not None and each["mean"] is not None:
        return each["mean"], [value_of(each[q]) for q in quantiles], requests.source
    times: Times = getattr(numbers, name)
    return times.mean, [bounds_text(getattr(times, q)) for q in quantiles], "/metrics"


def bounds_text(bounds: Bounds | None) -> str:
    """Return the bounds in words, and `-` where they are not known."""
    return ABSENT if bounds is None else bounds.words()


def _rate(value: float | None) -> str:
    return number(value, "tokens")


def _charts(watched: Watched, width: int) -> list[str]:
    """Return load over time."""
    window = watched.window
    if window is None:
        return []
    bins = min(BINS, width - 26, max(window.times.size - 1, 1))
    edges = np.linspace(window.times.min(), window.times.max(), bins + 1)
    lines = []
    for title, name, factor, unit in (
        ("running", RUNNING, 1.0, ""),
        ("waiting", WAITING, 1.0, ""),
        ("KV cache", KV, 100.0, " %"),
    ):
        lines += chart_line(title, (gauge_in(window, name, edges) * factor).tolist(), unit)
    return lines + chart_line("tok/s", rate_in(window, GENERATED, edges).tolist())


def gauge_in(window: Window, name: str, edges: Floats) -> Floats:
    """Return a gauge's highest reading in each bin; one without a poll has the reading before."""
    readings, bins = window.gauges[name], len(edges) - 1
    is_read = ~np.isnan(readings)
    times, readings = window.times[is_read], readings[is_read]
    values = np.full(bins, np.nan)
    if not times.size:
        return values
    place = np.clip(np.searchsorted(edges, times, side="right") - 1, 0, bins - 1)
    np.fmax.at(values, place, readings)
    before = np.searchsorted(times, edges[1:], side="right") - 1
    carried = np.where(before >= 0, readings[np.maximum(before, 0)], np.nan)
    return np.where(np.isnan(values), carried, values)


def rate_in(window: Window, name: str, edges: Floats) -> Floats:
    """Return what a counter gained a second in each bin, spread evenly between two polls."""
    gained = window.counted[name][1:]
    seconds = np.diff(window.times) / 1e9
    is_read = np.isfinite(gained) & (seconds > 0)
    sums = (
        np.concatenate([[0.0], np.cumsum(np.where(is_read, each, 0.0))])
        for each in (gained, seconds)
    )
    gains, lasted = (np.diff(np.interp(edges, window.times, each)) for each in sums)
    rates: Floats = np.divide(gains, lasted, out=np.full(gains.size, np.nan), where=lasted > 1e-9)
    return rates


def _column_lines(columns: Mapping[str, str], width: int) -> list[str]:
    lines = ["engine steps"]
    for kind in ("measured", "inferred"):
        names = ", ".join(name for name, source in columns.items() if source == kind)
        lines += wrap(f"  {kind}", names or "none", width=width, indent=12)
    return lines


def verdict_lines(verdict: Verdict, *, width: int = 80) -> list[str]:
    """Return the bottleneck in words with its evidence, and what could not be seen."""
    rows = [
        ("VERDICT", verdict_text(verdict)),
        *(("also", f"{each.kind}: {each.evidence}") for each in verdict.found[1:]),
        *(("unseen", f"{each.kind}: needs {each.needs}") for each in verdict.unseen),
    ]
    return labelled(rows, width=width, indent=INDENT)


def verdict_text(verdict: Verdict) -> str:
    """Return the bottleneck with its evidence, or why there is none."""
    if verdict.reason is not None:
        return f"none: {verdict.reason}"
    bottlenecks = [f"{each.kind}: {each.evidence}" for each in verdict.found]
    return bottlenecks[0] if bottlenecks else "nothing stands out"


_EFFECTS = (("latency_s.mean", "latency mean"), ("latency_s.p95", "latency p95"),
            ("throughput_tokens_per_s", "throughput"))  # fmt: skip


def next_lines(path: str, found: Suggestion | str, width: int = 80) -> list[str]:
    """Return the replay to run next and what it predicts, or why there is none."""
    if isinstance(found, str):
        return wrap("NEXT", f"no replay: {found}", width=width, indent=INDENT)
    changes = " ".join(map(quoted, found.arguments))
    command = f"ttscope replay {name_word(path)} {changes}"
    lines = [f"{'NEXT':<{INDENT}}{command}"]
    return lines + wrap("", effect_text(found), width=width, indent=INDENT)


def effect_text(found: Suggestion) -> str:
    """Return why a replay is suggested, and what it predicts."""
    off, effects = found.prediction.far_off, []
    for tag, name in _EFFECTS:
        after = estimate_of(found.prediction.predicted, tag)
        if after is None or (off is not None and tag in off.tags):
            continue
        before = value_of(estimate_of(found.prediction.replayed, tag))
        recorded = estimate_of(found.prediction.recorded, tag)
        text = "" if recorded is None else f" (recorded {value_of(recorded)})"
        effects.append(f"{name} {before}{text} -> {value_of(after)} {interval(after)}")
    of = intervals_of(estimate_of(found.prediction.predicted, tag) for tag, _ in _EFFECTS)
    text = f"{found.why}. Predicted{f', {of}' * bool(of)}: {', '.join(effects)}"
    if off is None:
        return text
    names = " and ".join(name for tag, name in _EFFECTS if tag in off.tags)
    return f"{text}, but not {names}: {off.words}" if names else f"{text}. But {off.words}"


def server_name(watched: Watched) -> str:
    """Return a model and where it is served."""
    where = watched.engine.place
    name = model_words(watched.engine.model)
    return f"{name} at {where}" if where else name
