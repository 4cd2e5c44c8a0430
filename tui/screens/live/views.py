"""The Live screen's view models: lanes over the last minutes, what is seen, verdict, problems."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import polars as pl
from textual.content import Content

from profiler.engines.interface import Capability
from traces.live.numbers import KV_FULL, LIVE_S, QUANTILES, Numbers, Reading
from traces.live.verdict import Verdict
from traces.live.watched import Requests
from traces.recording.tables import STEP_TOOK
from traces.schema.formats import counted, integer, number, value_of
from traces.statistics import Floats
from tui.screens.live.watch import Snapshot
from tui.screens.run.charts import run_lanes
from tui.text.commands import findings_text
from tui.text.layout import align, clock, wrap
from tui.text.recordings.live import (
    INDENT,
    STALE_S,
    bounds_text,
    events_told,
    highest,
    silence_told,
    slowest,
    time_cells,
    total,
    verdict_lines,
)
from tui.text.recordings.series import Timeline
from tui.widgets.lanes import Lane, heading

KEPT = 600  # seconds
SHOWN = ("p50", "p95")  # a p99 of some seconds would be of few requests
_SPREADS = (("TTFT", "ttft_s"), ("ITL", "itl_s"), ("queue", "queue_s"), ("request", "e2e_s"))


class History:
    """The last minutes of a deployment, a number per second and gauge."""

    def __init__(self) -> None:
        self.last: Snapshot | None = None
        self._rows: deque[tuple[float, ...]] = deque(maxlen=KEPT)

    def add(self, snapshot: Snapshot) -> None:
        engines = [each for each in snapshot.numbers.values() if each is not None]
        self.last = snapshot
        watts = np.nan if snapshot.watts is None else snapshot.watts
        self._rows.append((*(float(get(engines)) for get in _GETS.values()), watts))

    def lanes(self, bins: int) -> list[Lane]:
        """Return the gauges over the last seconds, one bin each, the newest at the right."""
        rows = list(self._rows)[-bins:]
        empty = np.full(bins - len(rows), np.nan)
        table = np.array(rows).reshape(len(rows), len(GAUGES))
        return gauge_lanes(
            {
                name: np.concatenate([empty, table[:, place]])
                for place, name in enumerate((*_GETS, "power"))
            }
        )

    @staticmethod
    def heading(bins: int) -> str:
        return heading(f"{bins} s ago", "now", "now", bins)

    def step_lanes(self, bins: int) -> list[Lane]:
        """Return the engine steps of the last minute, as of a recording; empty without any."""
        last = self.last
        if last is None or last.step_rows is None:
            return []
        engine = last.step_rows["engine"][0]
        mine = last.step_rows.filter(pl.col("engine") == engine).sort("step")
        timeline = Timeline.of(mine, last.blocks)
        return [] if timeline is None else run_lanes(timeline.bins(bins), tall=False)


_GETS: dict[str, Callable[[Sequence[Numbers]], float]] = {
    "tok/s": lambda known: total(known, "generated_tokens_per_s"),
    "running": lambda known: total(known, "running"),
    "waiting": lambda known: total(known, "waiting"),
    "KV cache": lambda known: highest(known, "kv_share") * 100,
    "preempt": lambda known: total(known, "preemptions") or np.nan,
    "accept": lambda known: highest(known, "acceptance_length"),
    "TTFT": lambda known: _mean_ms(known, "ttft_s"),
    "ITL": lambda known: _mean_ms(known, "itl_s"),
}
GAUGES = {  # unit, colour, and whether it is left out where nothing is known
    "tok/s": ("", "$success", False),
    "running": ("req", "$primary", False),
    "waiting": ("req", "$warning", False),
    "KV cache": ("%", "$secondary", False),
    "preempt": ("", "$error", True),
    "accept": ("tok", "$accent", True),
    "TTFT": ("ms", "$primary", True),
    "ITL": ("ms", "$success", True),
    "power": ("W", "$accent", True),
}
TIMES = ("TTFT", "ITL")


def _mean_ms(engines: Sequence[Numbers], name: str) -> float:
    mean = slowest(engines, name).mean
    return np.nan if mean is None else mean.value * 1e3


def gauge_lanes(values: Mapping[str, Floats]) -> list[Lane]:
    """Return the lanes of gauges by name, in the order of `GAUGES`."""
    lanes = []
    for name, (unit, style, may_lack) in GAUGES.items():
        if name in values:
            top = 100.0 if unit == "%" else None
            lane = Lane(name=name, values=values[name], unit=unit, style=style, top=top)
            lanes += [lane] if lane.known or not may_lack else []
    return lanes


def looked_back(engines: Sequence[Numbers]) -> str:
    """Return over which last seconds the numbers are: longer on pages that are seldom written."""
    return f"last {max((each.seconds for each in engines), default=LIVE_S):.0f} s"


def spread_lines(snapshot: Snapshot) -> list[str]:
    """Return the times of requests, and of steps that are seen: those of the slowest engine."""
    engines = [each for each in snapshot.numbers.values() if each is not None]
    many = len(snapshot.numbers) > 1
    head = f"slowest of {len(snapshot.numbers)}" if many else looked_back(engines)
    rows: list[Sequence[str]] = [(head, "mean", *SHOWN)]
    for title, name in _SPREADS:
        worst = slowest(engines, name)
        cells = (bounds_text(getattr(worst, q)) for q in SHOWN)
        rows.append((title, value_of(worst.mean), *cells))
    steps = _slowest_steps(snapshot.step_rows)
    if steps is not None:
        rows.append(("step", *(number(each, "s") for each in steps)))
    return align(rows, right=(1, 2, 3))


def recorded_spreads(numbers: Numbers, requests: Requests | None) -> list[str]:
    """Return the times of requests of a recording, one by one where they are known."""
    rows: list[Sequence[str]] = [("", "mean", *SHOWN)]
    for title, name in _SPREADS:
        mean, cells, _ = time_cells(numbers, requests, name, SHOWN)
        rows.append((title, value_of(mean), *cells))
    return align(rows, right=(1, 2, 3))


def server_spreads(
    servers: Sequence[tuple[str, Numbers, Requests | None]], most: int | None = None
) -> list[str]:
    """Return the mean times of requests of each server by name, the slowest first.

    With `most` only so many are rows, and a line counts the others.
    """
    table = [
        (name, [time_cells(numbers, requests, time)[0] for _, time in _SPREADS])
        for name, numbers, requests in servers
    ]
    table.sort(key=lambda row: [-each.value if each else 0.0 for each in row[1][::-1]])
    rows: list[Sequence[str]] = [("means", *(title for title, _ in _SPREADS))]
    rows += [(name, *map(value_of, cells)) for name, cells in table[:most]]
    lines = align(rows, right=(1, 2, 3, 4))
    left = len(table) - len(rows) + 1
    return [*lines, f"{counted(left, 'other server')} below"] if left else lines


def _slowest_steps(rows: pl.DataFrame | None) -> tuple[float, ...] | None:
    """Return mean, p50 and p95 of an engine's steps in the last seconds that were sent, in s."""
    if rows is None:
        return None
    own = rows.filter(~pl.col("profiled").fill_null(False))
    timed = own.with_columns(took=STEP_TOOK).drop_nulls("took")
    last = timed["end"].max()
    if not isinstance(last, int):
        return None
    walls = pl.col("took") / 1e9
    quantiles = [walls.quantile(QUANTILES[name]).alias(name) for name in SHOWN]
    each = (
        timed.filter(pl.col("end") > last - round(LIVE_S * 1e9))
        .group_by("engine")
        .agg(walls.mean().alias("mean"), *quantiles)
    )
    return each.sort("mean").row(-1)[1:]


def action_lines(snapshot: Snapshot, width: int) -> list[str]:
    """Return what the verdicts ask for; its effect is known once it can be replayed."""
    lines = []
    for verdict, change in zip(snapshot.verdicts, snapshot.changes, strict=False):
        if change is not None and verdict.found:
            text = f"{change.told[:1].upper()}{change.told[1:]}, as {change.why}."
            text += " Press s to stop, then its effect is replayed." if change.arguments else ""
            lines += wrap("NEXT", text, width=width, indent=INDENT)
    return list(dict.fromkeys(lines))


def sees_line(snapshot: Snapshot | None, findings: Sequence[Capability]) -> str:
    """Return which depths are seen; `d` tells what the others need."""
    if snapshot is None:
        return ""
    polls = [each.polls for each in snapshot.numbers.values() if each is not None]
    parts = [f"metrics {'yes' if polls else 'not yet'}"]
    if snapshot.steps is None:
        parts += ["spans no", "steps no"]
    else:
        spans = snapshot.problems_seen or 0
        parts.append(f"spans {spans:,} problems" if spans else "spans none yet")
        parts.append(f"steps {snapshot.steps:,}" if snapshot.steps else "steps none yet")
    names = {finding.what: finding.present for finding in findings}
    if snapshot.windows is None:
        parts.append("kernels no")
    else:
        count = snapshot.windows
        parts.append(f"kernels {count:,} windows" if count else "kernels none yet")
    if snapshot.unpowered is not None:
        parts.append("power no")
    else:
        parts.append(
            f"power {'none yet' if snapshot.watts is None else number(snapshot.watts, 'W')}"
        )
    parts.append("speculation yes" if names.get("speculation") else "speculation no")
    return " | ".join([*parts, *events_told(snapshot.events)])


def finding_lines(
    findings: Sequence[Capability], snapshot: Snapshot | None, *, width: int
) -> list[str]:
    """Return what is there of each depth, and the flag or command that brings what is not.

    Spans and steps cannot be told from outside; they are there once one has come.
    """
    came = [_as_came(each, snapshot) for each in findings]
    return findings_text(came, width=width, indent=20)


def _as_came(finding: Capability, snapshot: Snapshot | None) -> Capability:
    if snapshot is None:
        return finding
    count, what = {
        "spans": (snapshot.problems_seen, "problems"),
        "steps (plugin)": (snapshot.steps, "steps"),
    }.get(finding.what, (None, ""))
    if not count:
        return finding
    return replace(finding, present=True, detail=f"{count:,} {what} so far", needs=None, run=())


def unread_lines(snapshot: Snapshot, *, width: int) -> list[str]:
    """Return why power is not read and no kernels are seen, and what brings them."""
    lacking = []
    if snapshot.unpowered is not None:
        needs = "ttscope where the servers run, or --gpus N: they use N GPUs of this machine"
        why = snapshot.unpowered
        lacking.append(Capability(what="power", present=False, detail=why, needs=needs))
    elif snapshot.watts is None:
        why = "no reading in the last seconds: is there an NVIDIA driver on this machine?"
        lacking.append(Capability(what="power", present=False, detail=why))
    if snapshot.windows is None:
        needs = "--kernels FOLDER, the servers' torch_profiler_dir (see profiler)"
        why = "no windows are opened"
        lacking.append(Capability(what="kernels", present=False, detail=why, needs=needs))
    return findings_text(lacking, width=width, indent=20)


_STATES = {  # of a server now, the worst first, and the colour of its badge
    "profiled": "bold $background on $text-accent",
    "stalled": "bold $background on $text-accent",
    "KV-bound": "bold $background on $text-accent",
    "queueing": "bold $background on $text-accent",
    "running": "bold $background on $text-success",
    "idle": "bold $text on $panel",
}


def now_text(snapshot: Snapshot, *, width: int) -> Content:
    """Return what the last poll says of all engines together, empty before there is one."""
    readings = list(snapshot.readings.values())
    engines = [each for each in snapshot.numbers.values() if each is not None]
    if not readings:
        return Content("")
    state = _state_of(snapshot)
    waiting, running = (
        sum(getattr(e, name) or 0 for e in readings) for name in ("waiting", "running")
    )
    limit = f" of {snapshot.limit}" if snapshot.limit and len(readings) == 1 else ""
    parts = [f"{waiting:.0f} wait, {running:.0f}{limit} run"]
    if state == "running" and not running:
        parts.append(
            f"{sum(each.tokens or 0 for each in readings):,.0f} tokens since the last poll"
        )
    if state == "profiled":
        parts.append("a kernel window is open, for which the server stands still")
    if state == "stalled":
        parts.append(f"no token for {max(each.still_s for each in readings):.0f} s")
    ttft, queue = slowest(engines, "ttft_s").mean, slowest(engines, "queue_s").mean
    if ttft is not None and state not in {"stalled", "profiled"}:
        queued = "" if queue is None else f", queue {value_of(queue)}"
        parts.append(f"TTFT {value_of(ttft)}{queued}")
    first, more = _badge("NOW", state, _STATES[state], ", ".join(parts), width)
    rest = " ".join(line.strip() for line in more)
    lines = wrap("", rest, width=width, indent=INDENT) if rest else []
    return Content("\n").join([first, *map(Content, lines)])


def is_held_up(snapshot: Snapshot) -> bool:
    """Whether requests wait or get no token now."""
    return _state_of(snapshot) not in {"running", "idle"}


def _state_of(snapshot: Snapshot) -> str:
    """Return the worst state of the engines, idle before the first poll."""
    if snapshot.profiled:
        return "profiled"
    return min(map(_state, snapshot.readings.values()), key=list(_STATES).index, default="idle")


def _state(reading: Reading) -> str:
    waits = (reading.waiting or 0) > 0
    if reading.still_s:
        return "stalled"
    if waits:
        return "KV-bound" if (reading.kv_share or 0) > KV_FULL else "queueing"
    # A busy front end answers in the pauses of a load.
    return "running" if (reading.running or 0) > 0 or (reading.tokens or 0) > 0 else "idle"


def _badge(label: str, badge: str, style: str, text: str, width: int) -> tuple[Content, list[str]]:
    """Return a line of a coloured word and the text behind it, and what of that is left."""
    head = f"{label:<{INDENT}}{badge.upper()} "
    first, *more = wrap(head, text, width=width, indent=len(head) + 1)
    return Content(first).stylize(style, INDENT - 1, len(head)), more


def verdict_text(
    verdicts: Sequence[Verdict],
    names: Mapping[str, str],
    *,
    width: int,
    unseen: bool,
    most: int = 4,
    held_up: bool = False,
) -> Content:
    """Return the bottlenecks as coloured headlines with their evidence, each with its engines.

    Engines of one verdict share a headline. Bottlenecks go first, and of more than `most`
    headlines a line counts the engines. With `unseen` also what was not checked, of which a key
    tells more. None is green where requests are `held_up` now.
    """
    headlines: dict[str, tuple[list[Content], list[str]]] = {}
    for each in sorted(verdicts, key=lambda each: not each.found):
        lines = _headline(each if unseen else replace(each, unseen=()), width, held_up=held_up)
        key = "\n".join(line.plain for line in lines)
        headlines.setdefault(key, (lines, []))[1].append(names.get(each.engine) or "")
    shown: list[Content] = []
    for lines, engines in list(headlines.values())[:most]:
        shown += [Content.styled(line, "$text-muted") for line in _named(engines, names, width)]
        shown += lines
    left = sum(len(engines) for _, engines in list(headlines.values())[most:])
    if left:
        where = "press d" if unseen else "below"
        text = f"{counted(left, 'engine')} with other verdicts: {where}"
        shown.append(Content.styled(text, "$text-muted"))
    return Content("\n").join(shown)


def _named(engines: Sequence[str], names: Mapping[str, str], width: int) -> list[str]:
    """Return a line that names engines, and counts those for which there is no room."""
    if not any(engines):
        return []
    if len(engines) == len(names) > 1:
        return [f"all {len(engines)} engines"]
    head = "engine" if len(engines) == 1 else "engines"
    shown = len(engines)
    while shown > 1 and len(_few(head, engines, shown)) > width:
        shown -= 1
    return [_few(head, engines, shown)[:width]]


def _few(head: str, engines: Sequence[str], shown: int) -> str:
    more = "" if shown == len(engines) else f" and {len(engines) - shown} more"
    return f"{head} {', '.join(engines[:shown])}{more}"


def _headline(verdict: Verdict, width: int, *, held_up: bool) -> list[Content]:
    plain = _STATES["idle"]
    if verdict.reason is not None:
        badge, style, text = "none yet", plain, verdict.reason
    elif not verdict.found:
        badge, style = "nothing stands out", plain if held_up else _STATES["running"]
        text = "no check that can be made here finds a bottleneck"
    else:
        badge, style = verdict.found[0].kind, _STATES["queueing"]
        text = verdict.found[0].evidence
    first, more = _badge("VERDICT", badge, style, text, width)
    lines = [first]
    again = " ".join(line.strip() for line in more)  # below the word VERDICT
    wrapped = wrap("", again, width=width, indent=INDENT) if again else []
    for each in verdict.found[1:]:
        wrapped += wrap("also", f"{each.kind}: {each.evidence}", width=width, indent=INDENT)
    lines += [Content(line) for line in wrapped]
    if verdict.unseen:
        kinds = ", ".join(dict.fromkeys(each.kind for each in verdict.unseen))
        text = f"not checked: {kinds}. Press d to see what each check needs"
        unseen = wrap("unseen", text, width=width, indent=INDENT)
        lines += [Content.styled(line, "$text-muted") for line in unseen]
    return lines


def verdicts_lines(snapshot: Snapshot, *, width: int) -> list[str]:
    """Return the bottleneck of each engine in words, with what the unseen ones need."""
    lines: list[str] = []
    for each in snapshot.verdicts:
        name = snapshot.names.get(each.engine)
        lines += [f"engine {name}"] if name else []
        lines += verdict_lines(each, width=width)
    return lines


def problem_lines(snapshot: Snapshot, *, now_ns: int, listening: bool) -> list[str]:
    """Return the newest problems that spans tell of, or how to see them."""
    if not listening:
        return [
            "Problems are not visible: ttscope is not receiving spans. Reconnect with",
            "--listen 4318 or --listen-grpc 4317. Press d for the flags of vLLM.",
        ]
    problems = snapshot.problems
    if problems is None or not problems.height:
        return ["No problem yet. vLLM reports a request when it has ended."]
    return problem_table(problems, snapshot.problems_seen or 0, now_ns=now_ns)


def problem_table(
    problems: pl.DataFrame, count: int, *, now_ns: int | None = None, width: int = 80
) -> list[str]:
    """Return problems as a table; with the time it is, how long ago each ended."""
    last = "ended" if now_ns is None else "ended ago"
    rows: list[Sequence[str]] = [("problem", "samples", "took", "tokens", "longest", last)]
    for row in problems.iter_rows(named=True):
        took = None if row["end"] is None else (row["end"] - row["arrival"]) / 1e9
        ago = None if row["end"] is None or now_ns is None else (now_ns - row["end"]) / 1e9
        ended = "yes" if now_ns is None else number(max(ago or 0.0, 0.0), "s")
        rows.append(
            (
                row["problem_id"][-16:],
                integer(row["samples"]),
                number(took, "s"),
                *(integer(row[name]) for name in ("tokens", "longest")),
                "in flight" if row["end"] is None else ended,
            )
        )
    title = f"{count:,} problems, grouped by the parent of their spans"
    return [title, *(line[:width] for line in align(rows, right=(1, 2, 3, 4, 5)))]


def status(snapshot: Snapshot | None, url: str) -> str:
    """Return the URL, since when it is watched, the last answer, and the size of its recording."""
    if snapshot is None:
        return url
    kept = "" if snapshot.kept_bytes is None else f"  kept {number(snapshot.kept_bytes, 'B')}"
    ends = [each.end_ns for each in snapshot.numbers.values() if each is not None]
    ago_s = max((snapshot.now_ns - min(ends, default=0)) / 1e9, 0.0)
    answered = f"  answered {ago_s:.0f} s ago" if ends else ""
    waits = max((each.again_s for each in snapshot.silences.values()), default=0.0)
    if ends and ago_s >= STALE_S and waits >= 1 and silence_told(snapshot.silences) is None:
        answered += f", asked again in {waits:.0f} s"  # its page is slow
    return f"{url.partition('://')[2] or url}  {clock(snapshot.seconds)}{answered}{kept}"
