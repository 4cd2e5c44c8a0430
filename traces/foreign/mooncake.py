"""A recording's samples as a trace of requests in Mooncake's form, which load generators replay.

A line per sample, in the order of their arrivals: `timestamp` in milliseconds from the first,
`input_length`, `output_length`, and `hash_ids`, one per block of 512 tokens of the prompt. Samples
of a problem have the same ids, as they have the same prompt. What an import named in blocks of
another size gets other names.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from traces.errors import RecordingError
from traces.files import whole_file
from traces.foreign.values import BLOCK_TOKENS
from traces.recording.reader import Recording


@dataclass(frozen=True, kw_only=True)
class Exported:
    """How many requests were written, with how many different blocks, and what was left out."""

    requests: int
    blocks: int
    notes: tuple[str, ...]


def export_requests(recording: Recording, path: Path) -> Exported:
    """Write the samples of a recording, in every role, as a trace.

    Raises RecordingError where there are none with an arrival and lengths, or the file cannot be
    written.
    """
    samples = _samples(recording)
    ready = samples.filter(
        pl.all_horizontal(pl.col(name) > 0 for name in ("prompt_tokens", "output_tokens")),
        pl.col("arrival").is_not_null(),
    ).sort("arrival", "order")
    if not ready.height:
        raise RecordingError(
            f"{recording.path}: no sample in it has an arrival, a prompt and an output"
        )
    names: dict[Any, int] = {}
    with whole_file(path) as partial, partial.open("w") as file:
        for line in _lines(ready, names, _block_tokens(recording)):
            file.write(json.dumps(line) + "\n")
    return Exported(
        requests=ready.height,
        blocks=len(names),
        notes=tuple(_notes(recording, samples, ready)),
    )


def _samples(recording: Recording) -> pl.DataFrame:
    """Return the samples with what their problems say of prompts; scorers have no engine."""
    problems = recording.problems.select(
        "engine",
        "policy",
        "problem_id",
        "prompt_blocks",
        whole="prompt_tokens",
        posed="arrival",
    ).unique(["engine", "policy", "problem_id"], keep="last", maintain_order=True)
    keys = ["engine", "policy", "problem_id"]
    return (
        recording.samples.filter(pl.col("engine").is_not_null())
        .join(problems, on=keys, how="left", maintain_order="left", nulls_equal=True)
        .select(
            *keys,
            "prompt_blocks",
            "cancelled_by",
            "cached_tokens",
            "output_tokens",
            role=pl.col("role").fill_null("sample"),
            prompt_tokens=pl.coalesce("prompt_tokens", "whole"),
            arrival=pl.coalesce("arrival", "posed"),
        )
        .with_row_index("order")
    )


def _block_tokens(recording: Recording) -> int:
    """Return how many tokens each name in `prompt_blocks` stands for."""
    workload = recording.manifest.workload
    return (None if workload is None else workload.prompt_block_tokens) or BLOCK_TOKENS


def _lines(
    samples: pl.DataFrame, names: dict[Any, int], block_tokens: int
) -> Iterator[dict[str, Any]]:
    """Yield the lines; `names` numbers the blocks in the order in which they are met."""
    begun = samples["arrival"][0]
    own = pl.when(pl.col("role") != "sample").then("order")  # goes on from a sample: its own prompt
    wanted = samples.select(
        *("engine", "policy", "problem_id", own),
        *("prompt_blocks", "prompt_tokens", "output_tokens", "arrival"),
    )
    for *problem, blocks, prompt, output, arrival in wanted.iter_rows():
        count = -(-prompt // BLOCK_TOKENS)
        if blocks is None or len(blocks) != -(-prompt // block_tokens):
            keys = [(*problem, prompt, place) for place in range(count)]
        else:
            keys = (
                blocks if block_tokens == BLOCK_TOKENS else _regrouped(blocks, count, block_tokens)
            )
        yield {
            "timestamp": _milliseconds(arrival - begun),
            "input_length": prompt,
            "output_length": output,
            "hash_ids": [names.setdefault(key, len(names)) for key in keys],
        }


def _regrouped(blocks: Sequence[int], count: int, block_tokens: int) -> list[Any]:
    """Return keys of a prompt's blocks, equal where all that is named up to their ends is."""
    keys: list[Any] = []
    named = hashlib.sha256()
    done = 0
    for place in range(1, count + 1):
        ends = min(-(-place * BLOCK_TOKENS // block_tokens), len(blocks))
        named.update(struct.pack(f"<{ends - done}q", *blocks[done:ends]))
        done = ends
        keys.append((place, named.digest()))
    return keys


def _milliseconds(nanoseconds: int) -> int | float:
    """Return milliseconds to the microsecond, a whole number where it is one."""
    rounded = round(nanoseconds / 1e6, 3)
    return int(rounded) if rounded == int(rounded) else rounded


def _notes(recording: Recording, samples: pl.DataFrame, ready: pl.DataFrame) -> list[str]:
    notes = []
    left = samples.height - ready.height
    if left:
        notes.append(f"samples without an arrival or a length, left out: {left:,}")
    cancelled = ready["cancelled_by"].count()
    if cancelled:
        notes.append(f"samples that were cancelled have the length they had then: {cancelled:,}")
    going_on = ready.filter(pl.col("role") != "sample").height
    if going_on:
        notes.append(
            "revisions, forced answers and scores go on from samples, which their ids do not show: "
            f"{going_on:,}"
        )
    if recording.manifest.concurrency is not None:
        notes.append(
            f"recorded with {recording.manifest.concurrency:,} problems in flight: the arrivals "
            "are those of this engine, a faster one would have asked sooner"
        )
    shared = ready.group_by("engine", "policy", "problem_id").agg(pl.min("cached_tokens"))
    first = int(shared["cached_tokens"].max() or 0)  # type: ignore[arg-type]
    if first and not ready["prompt_blocks"].count():
        notes.append(
            "what problems have in common with one another (a system prompt) is not known: ids are "
            "shared within a problem only"
        )
    return notes
