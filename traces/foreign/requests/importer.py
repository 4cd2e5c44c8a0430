"""From requests that others traced or measured to a recording of problems, one sample each.

A recording of requests has no steps. Where a client measured them it has their real times, else
arrivals and lengths alone; the rest is null. Rows are written as they are read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from traces.foreign.requests.aiperf import AiperfRecords
from traces.foreign.requests.azure import AzureTrace
from traces.foreign.requests.files import RequestFiles
from traces.foreign.requests.guidellm import GuidellmReport
from traces.foreign.requests.mooncake import MooncakeTrace
from traces.foreign.requests.reader import (
    RequestChoices,
    RequestFacts,
    RequestReader,
)
from traces.foreign.requests.sessions.agents import AgentSession
from traces.foreign.requests.sessions.bailian import BailianTrace
from traces.foreign.requests.vllm_bench import SglangBench, VllmBench
from traces.foreign.source import own_name
from traces.foreign.values import UNKNOWN_MODEL
from traces.foreign.written import Imported, Written, written_into
from traces.recording.manifest import WorkloadFacts, check_free
from traces.schema.engine import EngineConfig
from traces.schema.formats import counted, number
from traces.schema.tts.policy import Policy

FORMATS: tuple[type[RequestReader], ...] = (
    AzureTrace,
    MooncakeTrace,
    BailianTrace,
    VllmBench,
    SglangBench,
    AiperfRecords,
    GuidellmReport,
    AgentSession,
)
_PART_ROWS = 500_000
_PART_BLOCKS = 8_000_000


def import_requests(
    paths: Path | Sequence[Path],
    folder: Path,
    *,
    choices: RequestChoices | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> Imported:
    """Read a file of requests, or the files of agents' sessions, into the recording `folder`.

    Returns what was found. `on_rows` is called with the number of requests read so far. Raises
    OutcomesError where nothing can be read, UsageError for a choice that a file does not have and
    for files that are no one load, RecordingError when the folder cannot be written.
    """
    check_free(folder)
    choices = choices or RequestChoices()
    files = RequestFiles([paths] if isinstance(paths, Path) else paths, choices, FORMATS)
    policy = Policy(method="majority", n=1, temperature=choices.temperature, top_p=choices.top_p)
    with written_into(folder) as tables:
        written = _Requests(tables, policy)
        for frame in _parts(files):
            written.add(frame, files.facts)
            if on_rows is not None:
                on_rows(written.requests)
        notes = _notes(files, written)
        _finish(files, written, notes)
    span_s = (written.last - written.first) / 1e9
    read = "" if files.alone else f"{counted(len(files.read), 'file')}, "
    requests = f"{counted(written.requests, 'request')} in {number(span_s, 's')}"
    sessions = len(written.sessions) or None
    return Imported(
        head=f"{files.format.name}: {read}{requests}",
        rows=[
            *([] if sessions is None else [("sessions", f"{sessions:,}")]),
            ("tokens of prompt", f"{written.prompt_tokens:,}"),
            ("tokens of output", f"{written.output_tokens:,}"),
            ("with measured times", f"{written.measured:,}"),
            ("failed or cut off", f"{written.failed:,}"),
        ],
        facts={
            "format": files.format.name,
            "file": files.read[0]["name"],
            "files": [{"file": each.pop("name"), **each} for each in map(dict, files.each())],
            "requests": written.requests,
            "sessions": sessions,
            "measured": written.measured,
            "failed": written.failed,
            "span_s": span_s,
            "prompt_tokens": written.prompt_tokens,
            "output_tokens": written.output_tokens,
            "skipped": files.skipped.counts,
        },
        skipped=files.skipped,
        notes=tuple(notes),
    )


def _parts(files: RequestFiles) -> Iterator[pl.DataFrame]:
    """Yield the files' frames, joined until a part is worth a file."""
    waiting: list[pl.DataFrame] = []
    rows = blocks = 0
    for frame in files:
        waiting.append(frame)
        rows += frame.height
        blocks += int(frame["prompt_blocks"].list.len().sum())
        if rows >= _PART_ROWS or blocks >= _PART_BLOCKS:
            yield pl.concat(waiting)
            waiting, rows, blocks = [], 0, 0
    if waiting:
        yield pl.concat(waiting)


@dataclass
class _Requests:
    """What the parts written so far hold."""

    tables: Written
    policy: Policy
    requests: int = 0
    measured: int = 0
    failed: int = 0
    blocks: int = 0  # requests whose prompt's blocks are told
    cached: int = 0  # requests of which is told what the cache held
    earlier: int = 0  # requests that arrive before the one above them
    earlier_place: int | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    first: int = 1 << 62
    last: int = 0
    keys: dict[str, Any] = field(default_factory=dict)
    sessions: set[str] = field(default_factory=set)
    _before: int = 0
    _digest: Any = field(default_factory=hashlib.sha256)

    def add(self, frame: pl.DataFrame, facts: RequestFacts) -> None:
        """Write a part of each table. Raises OSError where the folder cannot be written."""
        if not self.keys:
            engine = EngineConfig(model=facts.model or UNKNOWN_MODEL, mode="server")
            self.keys = {"engine": engine, "policy": self.policy}
        self._count(frame)
        same = {name: value.key() for name, value in self.keys.items()}
        ended = pl.when(pl.col("end").is_not_null())
        problems = frame.with_columns(
            cached_prompt_tokens="cached_tokens",
            start="arrival",
            decided_at="end",
            decided_by_sample=ended.then(0),
        )
        samples = frame.with_columns(sample_index=pl.lit(0))
        self.tables.add("problems", problems, **same)
        self.tables.add("samples", samples, role="sample", **same)

    @property
    def identity(self) -> str:
        """The same for the same prompts in the same order."""
        return str(self._digest.hexdigest()[:16])

    def _count(self, frame: pl.DataFrame) -> None:
        arrivals = frame["arrival"]
        before = arrivals.shift(1, fill_value=self._before)
        earlier = frame.filter(arrivals < before)["place"]
        if earlier.len() and self.earlier_place is None:
            self.earlier_place = int(earlier[0])
        self.earlier += earlier.len()
        self._before = int(arrivals[-1])
        self.first = min(self.first, int(arrivals.min()))  # type: ignore[arg-type]
        self.last = max(self.last, int(arrivals.max()))  # type: ignore[arg-type]
        self.requests += frame.height
        self.measured += frame["end"].count()
        self.failed += frame["error"].count()
        self.blocks += frame["prompt_blocks"].count()
        self.cached += frame["cached_tokens"].count()
        self.sessions.update(frame["session"].drop_nulls().unique())
        self.prompt_tokens += int(frame["prompt_tokens"].sum())
        self.output_tokens += int(frame["output_tokens"].sum())
        lengths = frame.select(pl.col("prompt_tokens").fill_null(0))
        self._digest.update(lengths.to_series().to_numpy().tobytes())
        names = frame["prompt_blocks"].explode().drop_nulls()
        self._digest.update(names.to_numpy().tobytes())


def _notes(files: RequestFiles, written: _Requests) -> list[str]:
    measured = files.format.measured
    caveat = (
        "times are the client's, the engine is not known"
        if measured
        else "arrivals and lengths alone, the engine and the other times are not known"
    )
    notes = [f"imported from {files.format.name}: {files.name}. {caveat}", *files.notes()]
    if written.earlier and not measured:
        notes.append(
            f"requests that arrive before the one above them: {written.earlier:,} (first: line "
            f"{written.earlier_place:,}). They are taken in the order of their arrivals"
        )
    if written.failed:
        notes.append(f"requests that failed or were cut off: {written.failed:,}")
    if not written.blocks and not written.cached:
        notes.append("which prompts begin alike is not known, so that a replay shares none of them")
    elif 0 < written.blocks < written.requests:
        notes.append(
            f"requests whose prompts share nothing: {written.requests - written.blocks:,}, as "
            "their blocks are not known"
        )
    return notes


def _finish(files: RequestFiles, written: _Requests, notes: Sequence[str]) -> None:
    facts, first = files.facts, own_name(files.paths[0])
    written.tables.finish_one(
        {
            "format": files.format.name,
            **({} if facts.itl_s is None else {"itl_s": facts.itl_s}),
            "files": files.each(),
        },
        notes,
        **written.keys,
        workload=WorkloadFacts(
            name=first if files.alone else f"{first} and {len(files.paths) - 1:,} more",
            hash=written.identity,
            problems=written.requests,
            prompt_block_tokens=facts.block_tokens if written.blocks else None,
        ),
        concurrency=facts.concurrency,
        rate_per_s=facts.rate_per_s,
    )
