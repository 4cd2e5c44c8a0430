"""The Live screen's view models: lanes over the last minutes, what is seen, verdict, problems."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import polars as pl

from profiler.engines.interface import Finding
from traces.live.numbers import LIVE_S, QUANTILES, Numbers
from traces.schema.formats import ABSENT, number, percent, value_of
from traces.summary.series import Timeline
from tui.screens.live.watch import Snapshot
from tui.screens.run.charts import run_lanes
from tui.text.layout import align, clock, wrap
from tui.text.live import bounds_text, highest, slowest, total, verdict_lines
from tui.widgets.lanes import Lane

KEPT = 600  # seconds
POWER = "power W"
MAY_LACK = ("accept", "preempt", POWER)  # gauges that are left out where nothing is known
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
        self._rows.append((*(float(get(engines)) for _, get in _GAUGES), watts))

    def lanes(self, bins: int) -> list[Lane]:
        """Return the gauges over the last seconds, one bin each, the newest at the right."""
        rows = list(self._rows)[-bins:]
        empty = np.full(bins - len(rows), np.nan)
        names = [*(name for name, _ in _GAUGES), POWER]
        table = np.array(rows).reshape(len(rows), len(names))
        lanes = [
            Lane(name=name, values=np.concatenate([empty, table[:, place]]))
            for place, name in enumerate(names)
        ]
        return [lane for lane in lanes if lane.known or lane.name not in MAY_LACK]

    def step_lanes(self, bins: int) -> list[Lane]:
        """Return the engine steps of the last minute, as of a recording; empty without any."""
        last = self.last
        if last is None or last.step_rows is None:
            return []
        engine = last.step_rows["engine"][0]
        mine = last.step_rows.filter(pl.col("engine") == engine).sort("step")
        timeline = Timeline.of(mine, last.blocks)
        return [] if timeline is None else run_lanes(timeline.bins(bins), tall=False)


_GAUGES: tuple[tuple[str, Callable[[Sequence[Numbers]], float]], ...] = (
    ("tok/s", lambda known: total(known, "generated_tokens_per_s")),
    ("running", lambda known: total(known, "running")),
    ("waiting", lambda known: total(known, "waiting")),
    ("KV %", lambda known: highest(known, "kv_share") * 100),
    ("preempt", lambda known: total(known, "preemptions") or np.nan),
    ("accept", lambda known: highest(known, "acceptance_length")),
)


def spread_lines(snapshot: Snapshot) -> list[str]:
    """Return the times of requests, and of steps that are seen: those of the slowest engine."""
    engines = [each for each in snapshot.numbers.values() if each is not None]
    rows: list[Sequence[str]] = [(f"last {LIVE_S:.0f} s", "mean", *SHOWN)]
    for title, name in _SPREADS:
        worst = slowest(engines, name)
        cells = (bounds_text(getattr(worst, q)) for q in SHOWN)
        rows.append((title, value_of(worst.mean), *cells))
    steps = _slowest_steps(snapshot.step_rows)
    if steps is not None:
        rows.append(("step", *(number(each, "s") for each in steps)))
    return align(rows, right=(1, 2, 3))


def _slowest_steps(rows: pl.DataFrame | None) -> tuple[float, ...] | None:
    """Return mean, p50 and p95 of an engine's steps in the last seconds that were sent, in s."""
    if rows is None:
        return None
    timed = rows.drop_nulls("wall_ns")
    last = timed["end"].max()
    if not isinstance(last, int):
        return None
    walls = pl.col("wall_ns") / 1e9
    quantiles = [walls.quantile(QUANTILES[name]).alias(name) for name in SHOWN]
    each = (
        timed.filter(pl.col("end") > last - round(LIVE_S * 1e9))
        .group_by("engine")
        .agg(walls.mean().alias("mean"), *quantiles)
    )
    return each.sort("mean").row(-1)[1:]


def rate_lines(snapshot: Snapshot, *, width: int) -> list[str]:
    """Return what else is counted: requests, prefix cache, energy, and drafts by position."""
    engines = [each for each in snapshot.numbers.values() if each is not None]
    rates = [
        f"{number(total(engines, name), 'tokens')} {what}"
        for name, what in (
            ("requests_per_s", "requests/s"),
            ("prompt_tokens_per_s", "prompt tok/s"),
            ("steps_per_s", "steps/s"),
        )
    ]
    hits = [percent(each.prefix_hit_share) for each in engines]
    rates.append(f"prefix cache {', '.join(hits) or ABSENT}")
    made = total(engines, "generated_tokens_per_s")
    if snapshot.watts is not None and made > 0:
        rates.append(f"{number(snapshot.watts / made, 'J')} a generated token")
    lines = wrap("rates", " | ".join(rates), width=width, indent=6)
    for each in engines:
        if each.accepted_per_position is not None:
            shares = "  ".join(
                f"{share:.2f} {'#' * round(10 * share)}" for share in each.accepted_per_position
            )
            length = f"length {each.acceptance_length:.2f}"
            lines += wrap("drafts", f"kept by position {shares}  {length}", width=width, indent=7)
    return lines


def sees_line(snapshot: Snapshot | None, findings: Sequence[Finding]) -> str:
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
    events = {kind: n for kind, n in snapshot.events.items() if n and kind != "window"}
    parts += [f"{kind.replace('_', ' ')} {n}" for kind, n in events.items()]
    return " | ".join(parts)


def finding_lines(
    findings: Sequence[Finding], snapshot: Snapshot | None, *, width: int
) -> list[str]:
    """Return what is there of each depth, and the flag or command that brings what is not.

    Spans and steps cannot be told from outside; they are there once one has come.
    """
    lines = []
    for each in map(partial(_as_came, snapshot=snapshot), findings):
        mark = {True: "yes", False: "no", None: "-"}[each.present]
        lines += wrap(f"{mark:<4}{each.what:<16}", each.detail, width=width, indent=20)
        if each.needs:
            lines += wrap("", f"needs: {each.needs}", width=width, indent=20)
    return lines


def _as_came(finding: Finding, snapshot: Snapshot | None) -> Finding:
    if snapshot is None:
        return finding
    count, what = {
        "spans": (snapshot.problems_seen, "problems"),
        "steps (plugin)": (snapshot.steps, "steps"),
    }.get(finding.what, (None, ""))
    if not count:
        return finding
    return replace(finding, present=True, detail=f"{count:,} {what} so far", needs=None)


def unread_lines(snapshot: Snapshot, *, width: int) -> list[str]:
    """Return why power is not read and no kernels are seen, and what brings them."""
    lines = []
    if snapshot.unpowered is not None:
        lines += wrap(f"{'no':<4}{'power':<16}", snapshot.unpowered, width=width, indent=20)
        needs = "needs: ttscope where the servers run, or --gpus N: they use N GPUs of this machine"
        lines += wrap("", needs, width=width, indent=20)
    elif snapshot.watts is None:
        why = "no reading in the last seconds: is there an NVIDIA driver on this machine?"
        lines += wrap(f"{'no':<4}{'power':<16}", why, width=width, indent=20)
    if snapshot.windows is None:
        lines += wrap(f"{'no':<4}{'kernels':<16}", "no windows are opened", width=width, indent=20)
        needs = "needs: --kernels FOLDER, the servers' torch_profiler_dir (see profiler)"
        lines += wrap("", needs, width=width, indent=20)
    return lines


def verdicts_lines(snapshot: Snapshot, *, width: int, whole: bool) -> list[str]:
    """Return the bottleneck of each engine in words; `whole` says what the unseen ones need."""
    lines: list[str] = []
    for each in snapshot.verdicts:
        name = snapshot.names.get(each.engine)
        lines += [f"engine {name}"] if name else []
        lines += verdict_lines(each if whole else replace(each, unseen=()), width=width)
        if each.unseen and not whole:
            kinds = ", ".join(missing.kind for missing in each.unseen)
            lines.append(f"{'unseen':<10}{kinds}: d tells what shows them"[:width])
    return lines


def problem_lines(snapshot: Snapshot, *, now_ns: int, listening: bool) -> list[str]:
    """Return the newest problems that spans tell of, or how to see them."""
    if not listening:
        return [
            "problems: not seen, for nobody listens for spans. Attach with --listen 4318 or",
            "--listen-grpc 4317, and start vLLM as d tells",
        ]
    problems = snapshot.problems
    if problems is None or not problems.height:
        return ["problems: none yet, as vLLM reports a request when it has ended"]
    rows: list[Sequence[str]] = [("problem", "samples", "took", "tokens", "longest", "ended ago")]
    for row in problems.iter_rows(named=True):
        took = None if row["end"] is None else (row["end"] - row["arrival"]) / 1e9
        ago = None if row["end"] is None else (now_ns - row["end"]) / 1e9
        rows.append(
            (
                row["problem_id"][-16:],
                ABSENT if row["samples"] is None else f"{row['samples']:,}",
                number(took, "s"),
                number(row["tokens"], "tokens"),
                number(row["longest"], "tokens"),
                "in flight" if ago is None else number(max(ago, 0.0), "s"),
            )
        )
    title = f"{snapshot.problems_seen or 0:,} problems, grouped by the parent of their spans"
    return [title, *align(rows, right=(1, 2, 3, 4, 5))]


def status(snapshot: Snapshot | None, url: str) -> str:
    """Return the URL, for how long it has been watched, and how large its recording is."""
    if snapshot is None:
        return url
    kept = "" if snapshot.kept_bytes is None else f"  kept {number(snapshot.kept_bytes, 'B')}"
    return f"{url}  {clock(snapshot.seconds)}{kept}"
