"""What the profiled windows say: time by family, collectives, idle devices, the dearest."""

from __future__ import annotations

from collections.abc import Sequence

from traces.schema.estimate import Estimate
from traces.speculation.acceptance import Acceptance
from traces.speculation.lookup import NgramWhatIf
from traces.summary.kernels import Collective
from traces.summary.run import Run
from tui.text.formats import ABSENT, align, compact, number, percent, value_of, whole

NAME = 22


def kernel_lines(run: Run) -> list[str]:
    """Return families, collectives and idle time; empty when no kernels were captured."""
    if not run.time_by_family:
        return []
    rows = [
        (f"  {each.family}", number(each.s, "s"), percent(each.share), "#" * round(30 * each.share))
        for each in run.time_by_family
    ]
    lines = ["kernel time in the profiled steps, per rank", *align(rows, right=(1, 2))]
    if run.device_time is not None:
        found = run.device_time
        spans = f"busy {number(found.busy_s, 's')}, idle {number(found.idle_s, 's')}"
        windows = f"{found.windows} window{'s' if found.windows > 1 else ''}"
        of_steps = f", {found.steps:,} steps" if found.steps else ""
        lines.append(f"in {windows}{of_steps}: {spans} ({percent(found.idle_share)})")
        if found.ranks > 1:
            lines[-1] += f" over {found.ranks} ranks"
        cost = [
            *([f"steps took {found.slowdown:.2f} times as long"] if found.slowdown else ()),
            *([f"windows cost {found.cost_share:.1%} of the run"] if found.cost_share else ()),
        ]
        lines += [f"  profiled, {'; '.join(cost)}"] if cost else []
    tops = [
        (f"  {shortened(each.name, 44)}", f"{each.calls:,.6g}", number(each.s, "s"))
        for each in run.top_kernels or ()
    ]
    header = ("most expensive", "calls", "time")
    return [*lines, *collective_lines(run.collectives or ()), *align([header, *tops], right=(1, 2))]


def shortened(name: str, width: int) -> str:
    """Cut a kernel's name in the middle: its end tells the shape or type apart."""
    half = (width - 1) // 2
    return name if len(name) <= width else f"{name[:half]}…{name[-half:]}"


def collective_lines(found: tuple[Collective, ...]) -> list[str]:
    """Return the table of collectives; `exposed` is what no other stream hid."""
    if not found:
        return []
    rows = [("collective", "ranks", "calls", "bytes", "time", "exposed", "bus")]
    for each in found:
        rows.append(
            (
                f"  {each.name}"[:NAME],
                ABSENT if each.group_size is None else str(each.group_size),
                f"{each.calls:,.6g}",
                ABSENT if each.bytes is None else f"{compact(each.bytes)}B",
                number(each.s, "s"),
                ABSENT if each.exposed_s is None else number(each.exposed_s, "s"),
                _bandwidth(each.busbw_bytes_per_s),
            )
        )
    return align(rows, right=(1, 2, 3, 4, 5, 6))


def _bandwidth(bytes_per_s: float | None) -> str:
    return ABSENT if bytes_per_s is None else f"{compact(bytes_per_s)}B/s"


# Speculative decoding in plain lines of at most 80 columns: what was kept, and what would be.


_SHARE, _WIDE = 20, 7  # width of a bar; positions that fit side by side


def acceptance_lines(found: Acceptance | None) -> list[str]:
    """Return what was accepted: by position, phase and batch size."""
    if found is None:
        return []
    lines = [f"{found.method}: length {whole(found.length)} tokens, kept by position"]
    rows = [
        (f"  {place}", whole(share), "#" * round(_SHARE * share.value))
        for place, share in enumerate(found.accepted_per_position, 1)
        if share is not None
    ]
    lines += align(rows)
    if found.tokens_per_step is not None:
        lines.append(f"  {whole(found.tokens_per_step)} tokens per decode step")
    if found.draft_s is not None:
        lines.append(f"  {whole(found.draft_s)} of a step is drafting")
    table: list[tuple[str, ...]] = [("  phase", "length", "", "kept by position")]
    for phase in found.by_phase:
        table.append((f"  {phase.phase}", *_row(phase.length, phase.accepted_per_position)))
    lines += align(table, right=(1,)) if found.by_phase else []
    table = [("  batch", "steps", "length", "", "kept by position")]
    for batch in found.by_batch:
        low, high = batch.batch_low, batch.batch_high
        size = f"  {low}" if low == high else f"  {low}-{high}"
        table.append((size, f"{batch.steps:,}", *_row(batch.length, batch.accepted_per_position)))
    return lines + (align(table, right=(1, 2)) if len(found.by_batch) > 1 else [])


def what_if_lines(found: Sequence[NgramWhatIf] | None) -> list[str]:
    """Return what prompt lookup would have kept, a line per setting."""
    if not found:
        return []
    rows = [("  k  window", "tokens per decode step", "with a draft", "kept by position")]
    for each in found:
        window = f"{each.prompt_lookup_min}-{each.prompt_lookup_max}"
        rows.append(
            (
                f"  {each.num_speculative_tokens}  {window}",
                whole(each.tokens_per_step),
                value_of(each.drafted_steps),
                _positions(each.accepted_per_position),
            )
        )
    return ["n-gram prompt lookup, had it been on (not run)", *align(rows)]


def _row(length: Estimate | None, shares: Sequence[Estimate | None]) -> tuple[str, str, str]:
    value, _, interval = whole(length).partition(" ")
    return value, interval, _positions(shares)


def _positions(shares: Sequence[Estimate | None]) -> str:
    shown = [value_of(share).removeprefix("0") for share in shares[:_WIDE]]
    return " ".join(shown) + (" ..." if len(shares) > _WIDE else "")
