"""Speculative decoding in plain lines of at most 80 columns: what was kept, and what would be."""

from __future__ import annotations

from collections.abc import Sequence

from traces.acceptance import Acceptance
from traces.schema import Estimate
from traces.what_if import NgramWhatIf
from tui.formats import align, value_of, whole

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
