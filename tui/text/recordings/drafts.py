"""How many tokens to draft at which batch, as a terminal shows it and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from advisor.advice.command import servers_note
from advisor.what_if.drafts.by_batch import DraftRange, DraftsByBatch
from traces.schema.estimate import Estimate
from traces.schema.formats import counted, digits, with_interval
from traces.summary.run import to_plain
from tui.text.blocks import Table, table_lines
from tui.text.layout import labelled, wrap


def drafts_lines(
    found: Sequence[DraftsByBatch],
    without: Sequence[str],
    commands: Sequence[str],
    *,
    width: int = 80,
) -> Iterator[str]:
    """Yield the best drafts of each engine by batch, and who has none."""
    for number, (each, command) in enumerate(zip(found, commands, strict=True)):
        if number:
            yield ""
        yield from _one(each, command, width)
    yield from labelled((("left out", text) for text in without), width=width, indent=10)


def _one(drafts: DraftsByBatch, command: str, width: int) -> Iterator[str]:
    by = drafts.speculative
    drafter = f"{by.method} ({by.model})" if by.model else by.method
    where = f" on {drafts.engine.gpu}" if drafts.engine.gpu else ""
    head = (
        f"{drafts.engine.model}{where}, drafts by {drafter}, at contexts of "
        f"{counted(round(drafts.context_tokens), 'token')}. Speed is over that without drafts, at "
        "the first and at the last batch, with its 90 % interval."
    )
    yield from wrap("", head, width=width, indent=0)
    yield ""
    heads = ("requests", "draft", "tokens a step", "speed", "to")
    yield from table_lines(Table(heads=heads, rows=[_row(each) for each in drafts.ranges]), width)
    yield ""
    yield from wrap("", _until(drafts), width=width, indent=0)
    yield f'"num_speculative_tokens_per_batch_size": {json.dumps(drafts.schedule)}'
    yield ""
    rows = [("serve", command), *(("note", note) for note in drafts.notes)]
    if note := servers_note(drafts.served):
        rows.append(("note", note))
    yield from labelled(rows, width=width, indent=10)


def _row(each: DraftRange) -> tuple[str, ...]:
    k, (first, last) = each.num_speculative_tokens, each.gain
    batch = f"{each.low:,}" if each.low == each.high else f"{each.low:,} to {each.high:,}"
    if not k:
        return batch, "none", "1", "1", ""
    tokens = with_interval(each.tokens_per_step)
    return batch, f"{k:,}", tokens, _times(first), "" if each.low == each.high else _times(last)


def _times(speed: Estimate) -> str:
    """Return how many times as fast, with its interval."""
    low, high = (digits(end) for end in (speed.low or 0.0, speed.high or 0.0))
    return f"{digits(speed.value)}{'*' if speed.extrapolated else ''} [{low}, {high}]"


def _until(drafts: DraftsByBatch) -> str:
    last = drafts.ranges[-1].high
    if drafts.stops_paying_at is None:
        return f"drafts pay at all batches up to {counted(last, 'request')}"
    if drafts.stops_paying_at == 1:
        return f"drafts do not pay at any batch up to {counted(last, 'request')}"
    return f"drafts stop paying at {counted(drafts.stops_paying_at, 'request')} in a step"


def drafts_json(
    found: Sequence[DraftsByBatch], without: Sequence[str], commands: Sequence[str]
) -> Mapping[str, Any]:
    """Return the document of `advise --drafts --json`."""
    drafts = [
        to_plain(each)
        | {"num_speculative_tokens_per_batch_size": each.schedule, "command": command}
        for each, command in zip(found, commands, strict=True)
    ]
    return {"drafts": drafts, "left_out": [*without]}
