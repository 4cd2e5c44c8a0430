"""What the profiled windows say: time by family, collectives, idle devices, the dearest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from traces.schema.estimate import Estimate
from traces.schema.formats import (
    counted,
    integer,
    number,
    percent,
    value_of,
    with_interval,
)
from traces.summary.kernels import Collective, DeviceTime, WindowSteps
from traces.summary.run import Run
from traces.summary.speculation.acceptance import Acceptance
from traces.summary.speculation.lookup import NgramWhatIf
from tui.text.blocks import Bar, Cell, Table, Term, Value, count, table_lines
from tui.text.layout import align, labelled, without_middle, wrap

NAME = 22
_BUS = "What a link carries a second, as nccl-tests counts it."


def kernel_lines(run: Run, width: int = 80) -> list[str]:
    """Return families, collectives and idle time; empty when no kernels were captured."""
    if not run.time_by_family:
        return []
    lines = table_lines(families_table(run), width)
    if run.device_time is not None:
        device = run.device_time
        lines += wrap("", "".join(map(str, idle_parts(device))), width=width, indent=0)
        cost = []
        if device.slowdown:
            cost.append(f"steps took {device.slowdown:.2f} times as long")
        if device.cost_share:
            cost.append(f"windows cost {percent(device.cost_share, 1)} of the run")
        texts = [f"profiled, {', '.join(cost)}"] if cost else []
        texts += held_texts(device.held)
        lines += labelled((("", text) for text in texts), width=width, indent=2)
    tops = [
        (without_middle(each.name, min(44, width - 24)), integer(each.calls), number(each.s, "s"))
        for each in run.top_kernels or ()
    ]
    heads = ("most expensive", "calls", "time")
    lines += table_lines(collectives_table(run.collectives), width) if run.collectives else []
    return lines + table_lines(Table(heads=heads, rows=tops, right=(1, 2), indent=2), width)


def families_table(run: Run, where: str = "") -> Table:
    """Return the time of kernels by family; `where` is the run's place in a JSON document."""
    meaning = "Own time of the kernels of this family in the profiled steps, per rank."
    rows: list[list[Cell]] = []
    for place, each in enumerate(run.time_by_family or ()):
        key = f"{where}time_by_family.{place}"
        time, share = (
            Value(each.s, unit="s", key=f"{key}.s"),
            _share(each.share, key=f"{key}.share"),
        )
        rows.append([each.family, time, share, Bar(each.share, each.family, 30)])
    heads = ("family", Term("time", meaning), Term("share", meaning), "")
    title = "kernel time in the profiled steps, per rank"
    return Table(
        title=title, heads=heads, rows=rows, bare=True, right=(1, 2), indent=2, style="bars"
    )


def idle_parts(device: DeviceTime) -> list[str | Value]:
    """Return in a sentence how long the devices were busy and idle in the profiled windows."""
    busy, idle = (
        f"Device time in the profiled windows in which {what} ran, over all ranks."
        for what in ("something", "nothing")
    )
    of_steps = f", {counted(device.steps, 'step')}" if device.steps else ""
    return [
        f"in {counted(device.windows, 'window')}{of_steps}: busy ",
        Value(device.busy_s, busy, unit="s"),
        ", idle ",
        Value(device.idle_s, idle, unit="s"),
        " (",
        _share(device.idle_share, idle),
        f"){f' over {device.ranks} ranks' if device.ranks > 1 else ''}",
    ]


def _share(share: float | None, meaning: str = "", *, key: str | None = None) -> Value:
    return Value(share, meaning, unit="1", key=key, text=percent(share))


def held_texts(held: Sequence[WindowSteps]) -> list[str]:
    """Return which recorded steps windows hold, and why it is not known of the others."""
    ranges = [
        f"{each.first:,}" + ("" if each.first == each.last else f"-{each.last:,}")
        for each in held
        if each.first is not None
    ]
    texts = []
    if ranges:
        more = f" and of {len(ranges) - _RANGES:,} windows more" if len(ranges) > _RANGES else ""
        subject = "it holds" if len(held) == 1 else "they hold"
        texts.append(f"{subject} steps {', '.join(ranges[:_RANGES])}{more}")
    for reason, many in Counter(each.unknown for each in held if each.unknown).most_common(3):
        texts.append(f"{counted(many, 'window')}, which steps is not known: {reason}")
    return texts


def collectives_table(collectives: Sequence[Collective]) -> Table:
    """Return the table of collectives; `exposed` is what no other stream hid."""
    columns = (
        ("ranks", "group_size", "", "Devices that take part."),
        ("calls", "calls", "", "Calls per rank in the profiled steps."),
        ("bytes", "bytes", "B", "Bytes handed to the collective, per rank."),
        ("time", "s", "s", "Time per rank. Waiting for a late rank counts."),
        ("exposed", "exposed_s", "s", "Time that no computation hid."),
        ("bus", "busbw_bytes_per_s", "B/s", _BUS),
    )
    rows: list[list[Cell]] = []
    for each in collectives:
        row: list[Cell] = [each.name[: NAME - 2]]
        for _, name, unit, _ in columns:
            of = getattr(each, name)
            row.append(Value(of, unit=unit) if unit else count(of))
        rows.append(row)
    heads: list[Cell] = ["collective", *(Term(title, meaning) for title, _, _, meaning in columns)]
    caption = "Collectives: the devices talking to one another"
    return Table(heads=heads, rows=rows, caption=caption, right=range(1, 7), indent=2)


# Speculative decoding in plain lines of at most 80 columns: what was kept, and what would be.


_RANGES = 4  # of steps, that are named
_WIDE = 7  # positions that fit side by side


def acceptance_lines(acceptance: Acceptance | None, width: int = 80) -> list[str]:
    """Return what was accepted: by position, phase and batch size."""
    if acceptance is None:
        return []
    lines = table_lines(kept_table(acceptance), width)
    if acceptance.tokens_per_step is not None:
        lines.append(f"  {with_interval(acceptance.tokens_per_step)} tokens per decode step")
    if acceptance.draft_s is not None:
        lines.append(f"  {with_interval(acceptance.draft_s)} of a step is drafting")
    table: list[tuple[str, ...]] = [("  phase", "length", "", "kept by position")]
    for phase in acceptance.by_phase:
        table.append((f"  {phase.phase}", *_row(phase.length, phase.accepted_per_position)))
    lines += align(table, right=(1,), width=width) if acceptance.by_phase else []
    table = [("  batch", "steps", "length", "", "kept by position")]
    for batch in acceptance.by_batch:
        low, high = batch.batch_low, batch.batch_high
        size = f"  {low}" if low == high else f"  {low}-{high}"
        table.append((size, f"{batch.steps:,}", *_row(batch.length, batch.accepted_per_position)))
    return lines + (align(table, right=(1, 2), width=width) if acceptance.by_batch[1:] else [])


def kept_table(acceptance: Acceptance, where: str = "") -> Table:
    """Return the share of drafts kept by position; `where` is its place in a JSON document."""
    meaning = "Share of the drafts whose token at this position the model kept."
    rows = [
        (
            f"{place + 1}",
            Value(share, key=f"{where}accepted_per_position.{place}"),
            Bar(share, f"position {place + 1}", 20),
        )
        for place, share in enumerate(acceptance.accepted_per_position)
        if share is not None
    ]
    length = with_interval(acceptance.length)
    return Table(
        title=f"{acceptance.method}: length {length} tokens, kept by position",
        caption="Kept by position of the draft",
        heads=("position", Term("share kept", meaning), ""),
        rows=rows,
        bare=True,
        indent=2,
        style="bars",
    )


def what_if_lines(settings: Sequence[NgramWhatIf] | None, width: int = 80) -> list[str]:
    """Return what prompt lookup would have kept, a line per setting."""
    if not settings:
        return []
    rows = [
        (
            f"{each.num_speculative_tokens}  {each.prompt_lookup_min}-{each.prompt_lookup_max}",
            Value(each.tokens_per_step),
            value_of(each.drafted_steps),
            _positions(each.accepted_per_position, 5),
        )
        for each in settings
    ]
    heads = ("  k  window", "tokens per decode step", "with a draft", "kept by position")
    title = "n-gram prompt lookup, counted without running it"
    return table_lines(Table(title=title, heads=heads, rows=rows, indent=2), width)


def _row(length: Estimate | None, shares: Sequence[Estimate | None]) -> tuple[str, str, str]:
    value, _, interval = with_interval(length).partition(" ")
    return value, interval, _positions(shares)


def _positions(shares: Sequence[Estimate | None], most: int = _WIDE) -> str:
    shown = [value_of(share).removeprefix("0") for share in shares[:most]]
    return " ".join(shown) + (" ..." if len(shares) > most else "")
