"""What the profiled windows say: time by family, collectives, idle devices, the dearest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from traces.schema.estimate import Estimate
from traces.schema.formats import (
    counted,
    integer,
    intervals_of,
    number,
    percent,
    value_of,
    with_interval,
)
from traces.summary.kernels import Collective, WindowSteps
from traces.summary.run import Run
from traces.summary.speculation.acceptance import Acceptance
from traces.summary.speculation.lookup import NgramWhatIf
from tui.text.layout import align, labelled, without_middle, wrap

NAME = 22


def kernel_lines(run: Run, width: int = 80) -> list[str]:
    """Return families, collectives and idle time; empty when no kernels were captured."""
    if not run.time_by_family:
        return []
    rows = [
        (f"  {each.family}", number(each.s, "s"), percent(each.share), "#" * round(30 * each.share))
        for each in run.time_by_family
    ]
    lines = ["kernel time in the profiled steps, per rank", *align(rows, right=(1, 2))]
    if run.device_time is not None:
        device = run.device_time
        spans = f"busy {number(device.busy_s, 's')}, idle {number(device.idle_s, 's')}"
        windows = counted(device.windows, "window")
        of_steps = f", {counted(device.steps, 'step')}" if device.steps else ""
        ranks = f" over {device.ranks} ranks" if device.ranks > 1 else ""
        where = f"in {windows}{of_steps}: {spans} ({percent(device.idle_share)}){ranks}"
        lines += wrap("", where, width=width, indent=0)
        cost = []
        if device.slowdown:
            cost.append(f"steps took {device.slowdown:.2f} times as long")
        if device.cost_share:
            cost.append(f"windows cost {percent(device.cost_share, 1)} of the run")
        texts = [f"profiled, {', '.join(cost)}"] if cost else []
        texts += held_texts(device.held)
        lines += labelled((("", text) for text in texts), width=width, indent=2)
    tops = [
        (
            f"  {without_middle(each.name, min(44, width - 24))}",
            integer(each.calls),
            number(each.s, "s"),
        )
        for each in run.top_kernels or ()
    ]
    header = ("most expensive", "calls", "time")
    lines += collective_lines(run.collectives or (), width)
    return [*lines, *align([header, *tops], right=(1, 2), width=width)]


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
    for reason, count in Counter(each.unknown for each in held if each.unknown).most_common(3):
        texts.append(f"{counted(count, 'window')}, which steps is not known: {reason}")
    return texts


def collective_lines(collectives: tuple[Collective, ...], width: int) -> list[str]:
    """Return the table of collectives; `exposed` is what no other stream hid."""
    if not collectives:
        return []
    rows = [("collective", "ranks", "calls", "bytes", "time", "exposed", "bus")]
    for each in collectives:
        rows.append(
            (
                f"  {each.name}"[:NAME],
                integer(each.group_size),
                integer(each.calls),
                number(each.bytes, "B"),
                number(each.s, "s"),
                number(each.exposed_s, "s"),
                number(each.busbw_bytes_per_s, "B/s"),
            )
        )
    return align(rows, right=(1, 2, 3, 4, 5, 6), width=width)


# Speculative decoding in plain lines of at most 80 columns: what was kept, and what would be.


_RANGES = 4  # of steps, that are named
_SHARE, _WIDE = 20, 7  # width of a bar; positions that fit side by side


def acceptance_lines(acceptance: Acceptance | None, width: int = 80) -> list[str]:
    """Return what was accepted: by position, phase and batch size."""
    if acceptance is None:
        return []
    length = with_interval(acceptance.length)
    of = intervals_of([acceptance.length, *acceptance.accepted_per_position])
    head = f"{acceptance.method}: length {length} tokens, kept by position{f', {of}' * bool(of)}"
    lines = wrap("", head, width=width, indent=0)
    rows = [
        (f"  {place}", with_interval(share), "#" * round(_SHARE * share.value))
        for place, share in enumerate(acceptance.accepted_per_position, 1)
        if share is not None
    ]
    lines += align(rows, width=width)
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


def what_if_lines(settings: Sequence[NgramWhatIf] | None, width: int = 80) -> list[str]:
    """Return what prompt lookup would have kept, a line per setting."""
    if not settings:
        return []
    rows = [("  k  window", "tokens per decode step", "with a draft", "kept by position")]
    for each in settings:
        window = f"{each.prompt_lookup_min}-{each.prompt_lookup_max}"
        rows.append(
            (
                f"  {each.num_speculative_tokens}  {window}",
                with_interval(each.tokens_per_step),
                value_of(each.drafted_steps),
                _positions(each.accepted_per_position, 5),
            )
        )
    of = intervals_of(each.tokens_per_step for each in settings)
    head = f"n-gram prompt lookup, counted without running it{f', {of}' * bool(of)}"
    return [*wrap("", head, width=width, indent=0), *align(rows, width=width)]


def _row(length: Estimate | None, shares: Sequence[Estimate | None]) -> tuple[str, str, str]:
    value, _, interval = with_interval(length).partition(" ")
    return value, interval, _positions(shares)


def _positions(shares: Sequence[Estimate | None], most: int = _WIDE) -> str:
    shown = [value_of(share).removeprefix("0") for share in shares[:most]]
    return " ".join(shown) + (" ..." if len(shares) > most else "")
