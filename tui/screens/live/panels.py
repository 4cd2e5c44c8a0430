"""The panels of the Live screen, of a server that is watched and of a recording of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from traces.live.numbers import (
    GENERATED,
    KV,
    RUNNING,
    WAITING,
    Bounds,
    Numbers,
    cancelled_words,
)
from traces.live.watched import Watched, watched_engines
from traces.recording.reader import Recording
from traces.schema.formats import ABSENT, number, percent
from traces.statistics import Floats
from traces.summary.run import Run
from tui.screens.live.views import (
    TIMES,
    History,
    gauge_lanes,
    looked_back,
    problem_table,
    recorded_spreads,
    server_spreads,
    spread_lines,
)
from tui.screens.live.watch import newest_problems
from tui.screens.run.charts import run_lanes
from tui.screens.run.data import read_run
from tui.text.layout import clock
from tui.text.recordings.live import gauge_in, rate_in, total, watched_lines
from tui.text.recordings.series import Timeline
from tui.widgets.lanes import Lane, heading
from tui.widgets.panel import Panel

MAY_LACK = {"accept": "Speculation", "power": "Power"}


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A recording of watched servers as the screen draws it.

    `problems` are those of `newest_problems`, `timeline` the engine steps of the first engine.
    """

    name: str
    servers: tuple[Watched, ...]
    timeline: Timeline | None
    problems: Mapping[str, Any]
    span: tuple[int, int] | None

    @property
    def engines(self) -> list[Numbers]:
        """The numbers of the engines that told any."""
        return [each.numbers for each in self.servers if each.numbers is not None]

    @property
    def names(self) -> dict[str, str]:
        """The engines' URLs by key, empty where there is one."""
        if len(self.servers) < 2:
            return {}
        urls = (dict(each.engine.other).get("url", "") for each in self.servers)
        return {each.verdict.engine: url for each, url in zip(self.servers, urls, strict=True)}

    def lanes(self, bins: int) -> list[Lane]:
        """Return the gauges over the whole recording; nothing where nothing was polled."""
        windows = [each.window for each in self.servers if each.window is not None]
        if self.span is None or not windows:
            return []
        edges = np.linspace(*self.span, bins + 1)
        running, waiting = (
            _summed([gauge_in(window, name, edges) for window in windows])
            for name in (RUNNING, WAITING)
        )
        kv = np.array([gauge_in(window, KV, edges) for window in windows]) * 100
        return gauge_lanes(
            {
                "tok/s": _summed([rate_in(window, GENERATED, edges) for window in windows]),
                "running": running,
                "waiting": waiting,
                "KV cache": np.fmax.reduce(kv),
            }
        )

    def heading(self, bins: int) -> str:
        """Return what stands above lanes: the time of the whole recording."""
        span = self.span or (0, 0)
        return heading("0:00", clock((span[1] - span[0]) / 1e9), "last", bins)

    def spreads(self, most: int | None = None) -> list[str]:
        """Return the times of requests, a table of several servers with `most` rows."""
        servers = [
            (self.names.get(each.verdict.engine, ""), each.numbers, each.requests)
            for each in self.servers
            if each.numbers is not None
        ]
        if len(self.servers) > 1:
            return server_spreads(servers, most)
        return [
            line for _, numbers, requests in servers for line in recorded_spreads(numbers, requests)
        ]

    def step_lanes(self, bins: int) -> list[Lane]:
        return [] if self.timeline is None else run_lanes(self.timeline.bins(bins), tall=False)


def read_recorded(recording: Recording, run: Run) -> Recorded:
    """Read what the screen draws of a recording of watched servers."""
    servers = tuple(watched_engines(recording, [run]))
    times = [each.window.times for each in servers if each.window is not None]
    span = None
    if times:
        first, last = min(int(each[0]) for each in times), max(int(each[-1]) for each in times)
        span = (first, last) if last > first else None
    return Recorded(
        name=recording.name,
        servers=servers,
        timeline=read_run(recording, run).timeline,
        problems=newest_problems(recording),
        span=span,
    )


def _summed(each: Sequence[Floats]) -> Floats:
    """Return the sum over engines, nan where none is known."""
    table = np.array(each)
    sums: Floats = np.where(np.isnan(table).all(axis=0), np.nan, np.nansum(table, axis=0))
    return sums


def live_panels(history: History) -> list[Panel]:
    """Return the panels of a server that is watched, those without any number left out."""
    last = history.last
    if last is None:
        return []
    engines = [each for each in last.numbers.values() if each is not None]
    panels = _gauges(history, engines)
    title = f"Latency, means and {looked_back(engines)}"
    lines = tuple(spread_lines(last))
    times = Panel(title=title, lanes=only(history, *TIMES), lines=lines, heading=history.heading)
    panels.insert(3, times)
    made = total(engines, "generated_tokens_per_s")
    if last.watts is not None and made > 0:
        joules = f"{number(last.watts / made, 'J')} a generated token"
        panels = [
            replace(each, lines=(*each.lines, joules)) if each.title == "Power" else each
            for each in panels
        ]
    if history.step_lanes(10):
        panels.append(Panel(title="Engine steps, last minute", lanes=history.step_lanes))
    return panels


def recorded_panels(recorded: Recorded) -> list[Panel]:
    """Return the panels of a recording."""
    panels = _gauges(recorded, recorded.engines)
    if recorded.engines:
        title = "Latency" if len(recorded.servers) < 2 else "Latency, slowest server first"
        panels.insert(3, Panel(title=title, lines=tuple(recorded.spreads())))
    if recorded.timeline is not None:
        panels.append(Panel(title="Engine steps", lanes=recorded.step_lanes))
    return panels


def _gauges(source: History | Recorded, engines: Sequence[Numbers]) -> list[Panel]:
    there = {lane.name for lane in source.lanes(10)}
    parts = [
        ("Throughput", only(source, "tok/s"), rate_lines(engines)),
        ("Requests", only(source, "running", "waiting"), _finished(engines)),
        ("KV cache", only(source, "KV cache", "preempt"), _cache(engines)),
        ("Speculation", only(source, "accept"), _drafts(engines)),
        ("Power", only(source, "power"), ()),
    ]
    lacking = {title for name, title in MAY_LACK.items() if name not in there}
    return [
        Panel(title=title, lanes=lanes, lines=lines, heading=source.heading)
        for title, lanes, lines in parts
        if title not in lacking or lines
    ]


def only(source: History | Recorded, *names: str) -> Callable[[int], Sequence[Lane]]:
    """Return what makes the lanes of these names."""
    return lambda bins: [lane for lane in source.lanes(bins) if lane.name in names]


def rate_lines(engines: Sequence[Numbers]) -> tuple[str, ...]:
    """Return prompt tokens, samples and steps a second, of all engines."""
    parts = (
        ("prompts", "prompt_tokens_per_s", "tok/s"),
        ("samples", "samples_per_s", "/s"),
        ("steps", "steps_per_s", "/s"),
    )
    rates = (
        f"{what} {number(total(engines, name), 'tokens')} {unit}" for what, name, unit in parts
    )
    return ("   ".join(rates),)


def _finished(engines: Sequence[Numbers]) -> tuple[str, ...]:
    reasons: dict[str, int] = {}
    for each in engines:
        for reason, count in each.finished.items():
            reasons[reason] = reasons.get(reason, 0) + count
    counts = ", ".join(f"{reason} {count:,}" for reason, count in sorted(reasons.items()))
    left = [each.cancelled for each in engines if each.cancelled is not None]
    ends = (sum(each.low for each in left), sum(each.high or each.low for each in left))
    both = Bounds(low=ends[0], high=ends[1], unit="requests")
    cancelled = cancelled_words(both) if left else ABSENT
    return (f"finished: {counts or 'none'}   cancelled by clients: {cancelled}",)


def _cache(engines: Sequence[Numbers]) -> tuple[str, ...]:
    shares = [each.prefix_hit_share for each in engines if each.prefix_hit_share is not None]
    ends = dict.fromkeys(percent(end(shares)) for end in (min, max)) if shares else (ABSENT,)
    hits = " to ".join(ends)
    preempted = total(engines, "preemptions")
    count = ABSENT if np.isnan(preempted) else f"{preempted:,.0f}"
    return (f"prefix cache hits {hits}   preemptions {count}",)


def _drafts(engines: Sequence[Numbers]) -> tuple[str, ...]:
    lines = []
    for each in engines:
        if each.acceptance_length is not None:
            kept = "  ".join(f"{share:.2f}" for share in each.accepted_per_position or ())
            positions = f"   kept by position {kept}" if kept else ""
            lines.append(f"{each.acceptance_length:.2f} tokens a drafted step{positions}")
    return tuple(lines)


def recorded_lines(recorded: Recorded, *, width: int) -> list[str]:
    """Return a recording's newest problems, and the numbers of its servers."""
    problems = recorded.problems
    if problems["problems"].height:
        lines = problem_table(problems["problems"], problems["problems_seen"], width=width)
        lines += ["", "Press 2 for each of them with its samples and steps."]
    else:
        lines = ["No problems captured: no spans were received."]
    for each in recorded.servers:
        lines += ["", *watched_lines(each, width=width)]
    return lines
