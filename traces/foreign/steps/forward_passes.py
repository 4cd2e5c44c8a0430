"""From files of forward-pass metrics to a recording of steps.

Dynamo writes `dynamo-fpm.<producer>.<index>.jsonl.gz` of the schema dynamo.fpm.trace.v1 for vLLM,
SGLang and TensorRT-LLM (docs: "Forward Pass Metrics Trace Reference", ai-dynamo/dynamo, read in
November 2026). A line may also be that record without its envelope, or one of FPM alone. Each
worker and rank is an engine. The recording has neither problems nor samples. The records name no
model, which who imports them may.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

from traces.errors import OutcomesError
from traces.foreign.source import head_of, objects
from traces.foreign.values import (
    LIMIT_BYTES,
    UNKNOWN_MODEL,
    Skipped,
    models_named,
    whole_number,
)
from traces.foreign.written import Imported, Written, written_into
from traces.forward_pass.record import (
    LONGEST_NAME,
    VERSION,
    ForwardPass,
    OtherVersionError,
    read_object,
)
from traces.forward_pass.rows import FORMAT, KEPT, SCOPES, ForwardPassRows, tokens_kept
from traces.recording.tables import LATEST_NS, TABLES
from traces.schema.engine import EngineConfig, ModelFacts
from traces.schema.formats import counted, listed, number

SCHEMA = "dynamo.fpm.trace.v1"
MOST_ENGINES = 256  # workers and ranks
_FAMILY = re.compile(rb'"schema"\s*:\s*"dynamo\.fpm\.trace\.')
_ALONE = re.compile(rb'"wall_time"\s*:')
_REQUESTS = re.compile(rb'"scheduled_requests"\s*:')
_PART_ROWS = 50_000
_LATEST_MS = LATEST_NS // 1_000_000
_LOOKED_AT = 2_000  # records that tell whether an engine speculates

Key = tuple[str, ...]  # namespace, component, producer, worker, rank


def recognises(head: bytes) -> bool:
    """Whether a file begins with such records, of whatever version."""
    alone = _ALONE.search(head) is not None and _REQUESTS.search(head) is not None
    return _FAMILY.search(head) is not None or alone


def import_passes(
    paths: Sequence[Path],
    folder: Path,
    *,
    model: str | None = None,
    facts: ModelFacts | None = None,
    limit_bytes: int = LIMIT_BYTES,
    on_file: Callable[[Path], None] | None = None,
) -> Imported:
    """Read files of forward passes into the recording `folder`; return what was taken.

    `model` is the name of what all of them served, else that of `facts`, which say what it costs.
    `limit_bytes` holds for each file, `on_file` is told each before it is read. Raises
    OutcomesError where no record can be read, UsageError where the folder holds a recording,
    RecordingError where it cannot be written.
    """
    reader = _Reader(limit_bytes)
    named = model or (None if facts is None else facts.name)
    with written_into(folder) as tables:
        written = _Passes(tables, model=named, facts=facts)
        for path in reader.in_order(paths):
            if on_file is not None:
                on_file(path)
            for line in reader.lines(path):
                written.take(line)
        written.end()
        if not written.engines:
            raise OutcomesError(f"{paths[0]}: {_why_nothing(reader, written)}")
        notes = _notes(paths, reader, written)
        written.finish(paths, reader, notes)
    engines = list(written.engines.values())
    steps = sum(each.rows.steps for each in engines)
    return Imported(
        head=f"{FORMAT}: {counted(steps, 'step')} of {counted(len(engines), 'engine')}",
        rows=[("engine", "steps", "lost", "heartbeats", "span"), *(e.cells() for e in engines)],
        facts={
            "format": FORMAT,
            "files": [path.name for path in paths],
            "steps": steps,
            "engines": [each.to_json() for each in engines],
            "skipped": reader.skipped.counts,
        },
        skipped=reader.skipped,
        notes=(*notes, *dict.fromkeys(note for each in engines for note in _notes_of(each))),
    )


@dataclass(frozen=True, slots=True)
class _Line:
    """A record, whose it is, and when it was written, unix ns."""

    key: Key
    record: ForwardPass
    end: int | None
    sampled: bool

    @property
    def time(self) -> int | None:
        """When the step ended; of a choice of steps None, since those between are no idle time."""
        return None if self.sampled else self.end


@dataclass
class _Reader:
    limit_bytes: int
    skipped: Skipped = field(default_factory=lambda: Skipped(unit="line"))
    notes: list[str] = field(default_factory=list)
    versions: Counter[str] = field(default_factory=Counter)  # that are not read here

    def in_order(self, paths: Sequence[Path]) -> list[Path]:
        """Return the files by the time of their first record, each once.

        A counter that falls in a file is a restart, so that a producer's files go one by one.
        """
        firsts = []
        for place, path in enumerate(dict.fromkeys(paths)):
            if not recognises(head_of(path)):
                raise OutcomesError(
                    f"{path}: holds no forward passes, as the other files do. Import each kind "
                    "by itself"
                )
            other = _Reader(self.limit_bytes)
            line = next(other.lines(path), None)
            firsts.append(((line.end or 0) if line is not None else 0, place, path))
        return [path for *_, path in sorted(firsts)]

    def lines(self, path: Path) -> Iterator[_Line]:
        notes: list[str] = []
        for place, row in objects(path, self.limit_bytes, self.skipped, notes):
            try:
                yield self._line(row)
            except ValueError as error:
                if isinstance(error, OtherVersionError):
                    self.versions[error.version] += 1
                    self.skipped.add("records of another schema version", place)
                else:
                    self.skipped.add(str(error), place)
        self.notes += [f"{path.name}: {each}" for each in notes]

    def _line(self, told: Mapping[str, Any]) -> _Line:
        """Return the record of a line. Raises ValueError in the words of what is skipped."""
        event = told.get("event", told)
        if not isinstance(event, dict):
            raise ValueError("records that are no object")
        schema = event.get("schema", SCHEMA)
        if schema != SCHEMA:
            printable = isinstance(schema, str) and schema.isprintable() and len(schema) <= 40
            raise OtherVersionError(schema if printable else "unknown")
        record = read_object(event.get("fpm", event))
        source = event.get("source")
        names = source if isinstance(source, dict) else {}
        parts = [names.get(name, "") for name in ("namespace", "component", "producer_id")]
        if not all(map(_plain, parts)):
            raise ValueError("records with an odd name")
        told_ms = event.get("observed_at_unix_ms")
        written = whole_number(told_ms)
        if told_ms is not None and not 0 < (written or 0) < _LATEST_MS:
            raise ValueError("records with a time that is none")
        return _Line(
            (*parts, record.worker_id, str(record.dp_rank)),
            record,
            None if written is None else written * 1_000_000,
            event.get("capture_mode") == "sampled",
        )


def _plain(name: Any) -> bool:
    return isinstance(name, str) and len(name) <= LONGEST_NAME and name.isprintable()


@dataclass
class _Engine:
    """The rows of one worker's rank; the first records wait until they tell of speculation."""

    name: str
    config: EngineConfig
    rows: ForwardPassRows
    waiting: list[_Line] | None = field(default_factory=list)
    kept: float | None = None  # tokens a request and step
    sampled: bool = False
    first: int | None = None
    last: int | None = None

    def take(self, line: _Line) -> Iterator[dict[str, Any]]:
        self.sampled = self.sampled or line.sampled
        if line.end is not None:
            self.first = line.end if self.first is None else self.first
            self.last = line.end
        if self.waiting is None:
            yield from self.rows.rows(line.record, line.time)
            return
        self.waiting.append(line)
        if len(self.waiting) >= _LOOKED_AT:
            yield from self.decide()

    def decide(self) -> Iterator[dict[str, Any]]:
        lines, self.waiting = self.waiting or [], None
        self.kept = tokens_kept([line.record for line in lines])
        self.rows.speculates = None if self.kept is None else self.kept > KEPT
        for line in lines:
            yield from self.rows.rows(line.record, line.time)

    @property
    def limited(self) -> EngineConfig:
        """The engine with the limits that its steps run into, which its key is without."""
        limits = self.rows.limits
        return replace(
            self.config,
            max_num_seqs=limits.max_num_seqs,
            max_num_batched_tokens=limits.max_num_batched_tokens,
        )

    @property
    def span_s(self) -> float | None:
        """From the first record's time to the last's, None where they have none."""
        dated = self.first is not None and self.last is not None
        return (self.last - self.first) / 1e9 if dated else None  # type: ignore[operator]

    def to_json(self) -> dict[str, Any]:
        """Return its counts; `lost` are records that its counter has and the files do not."""
        return {
            "name": self.name,
            "steps": self.rows.steps,
            "sampled": self.sampled,
            "lost": self.rows.lost,
            "heartbeats": self.rows.idle,
            "span_s": self.span_s,
        }

    def cells(self) -> tuple[str, ...]:
        name = self.name if len(self.name) <= 40 else f"...{self.name[-37:]}"
        lost = "sampled" if self.sampled else f"{self.rows.lost:,}"
        span = number(self.span_s, "s")
        return name, f"{self.rows.steps:,}", lost, f"{self.rows.idle:,}", span


@dataclass
class _Passes:
    """The engines whose steps were written so far."""

    tables: Written
    model: str | None = None
    facts: ModelFacts | None = None
    engines: dict[Key, _Engine] = field(default_factory=dict)
    left_out: int = 0  # records of engines beyond `MOST_ENGINES`
    heartbeats: int = 0
    _rows: list[dict[str, Any]] = field(default_factory=list)

    def take(self, line: _Line) -> None:
        engine = self.engines.get(line.key)
        if engine is None:
            if len(self.engines) >= MOST_ENGINES:
                self.left_out += 1
                return
            config = _config(line.key, self.model)
            engine = _Engine(_shown(line.key), config, ForwardPassRows(engine=config.key()))
            self.engines[line.key] = engine
        self._rows.extend(engine.take(line))
        if len(self._rows) >= _PART_ROWS:
            self._write()

    def end(self) -> None:
        """Take what waits, and leave out engines without a step. Raises OSError."""
        for engine in self.engines.values():
            if engine.waiting is not None:
                self._rows.extend(engine.decide())
            self._rows.extend(engine.rows.flush())
            self.heartbeats += engine.rows.idle
        self.engines = {key: each for key, each in self.engines.items() if each.rows.steps}
        if self._rows:
            self._write()

    def _write(self) -> None:
        self.tables.add("steps", pl.DataFrame(self._rows, schema=TABLES["steps"]))
        self._rows.clear()

    def finish(self, paths: Sequence[Path], reader: _Reader, notes: Sequence[str]) -> None:
        """Write the notes, those of all with the first engine, and the manifest. Raises OSError."""
        engines = list(self.engines.values())
        first = engines[0].config
        lost = sum(each.rows.lost for each in engines if not each.sampled)
        told = [(each.rows.engine, note) for each in engines for note in _notes_of(each)]
        self.tables.finish(
            {
                "format": FORMAT,
                "files": [{"name": path.name} for path in paths],
                "skipped": reader.skipped.counts,
            },
            [*((first.key(), note) for note in notes), *told],
            engines={each.rows.engine: each.limited for each in engines},
            models=models_named(self.facts, first),
            dropped={"steps": lost} if lost else {},
        )


def _config(key: Key, model: str | None) -> EngineConfig:
    names = ("namespace", "component", "producer", "worker", "dp_rank")
    other = tuple(sorted((name, part) for name, part in zip(names, key, strict=True) if part))
    return EngineConfig(model=model or UNKNOWN_MODEL, mode="server", other=other)


def _shown(key: Key) -> str:
    """Return what a person calls an engine: its component, worker and rank."""
    _, component, producer, worker, rank = key
    parts = (component, worker or producer, f"rank {rank}")
    return " ".join(part for part in parts if part)


def _why_nothing(reader: _Reader, written: _Passes) -> str:
    if reader.versions:
        version = reader.versions.most_common(1)[0][0]
        return (
            f"its records have the schema version {version}. This ttscope reads {SCHEMA} and FPM "
            f"version {VERSION}. Upgrade ttscope"
        )
    why = reader.skipped.text()
    if not why and written.heartbeats:
        why = "heartbeats alone. Record while requests run"
    return f"no forward pass in it can be read ({why or 'it has none'}). See docs/import.md"


def _notes(paths: Sequence[Path], reader: _Reader, written: _Passes) -> list[str]:
    """Return what holds for the files, the first line naming them."""
    names = listed([path.name for path in paths], 3)
    lack = "no model and " if written.model is None else ""
    notes = [f"imported from {FORMAT}: {names}. They name {lack}no request"]
    notes += reader.notes
    engines = list(written.engines.values())
    restarts, again = sum(e.rows.restarts for e in engines), sum(e.rows.again for e in engines)
    if restarts:
        notes.append(f"counters that began again: {restarts:,}. A worker was restarted")
    if again:
        notes.append(f"records that were there before, left out: {again:,}")
    if written.left_out:
        notes.append(f"records of more than {MOST_ENGINES} engines, left out: {written.left_out:,}")
    if reader.skipped.counts:
        notes.append(f"skipped: {reader.skipped.text()}")
    return notes


def _notes_of(engine: _Engine) -> list[str]:
    rows, notes = engine.rows, []
    for scope in rows.scopes:
        meant = SCOPES.get(scope, f"what the engine calls {scope}")
        notes.append(f"the time of a step is {meant}")
    if engine.sampled:
        notes.append(
            f"sampled (DYN_FPM_MODE): {rows.steps:,} of {rows.steps + rows.lost:,} passes that its "
            "counter has, by the clock, so that those before a long step or a pause come more "
            "often. Their times are left out. DYN_FPM_MODE=full keeps all"
        )
    limits = rows.limits
    for name in ("max_num_seqs", "max_num_batched_tokens"):
        if (most := getattr(limits, name)) is not None:
            notes.append(f"{name} is taken as {most:,}. So many ran while others waited")
    if rows.speculates is None:
        notes.append(
            "so few neighbouring steps do not say whether the engine speculates, so the tokens "
            "that it decodes in a step are not known"
        )
    elif rows.speculates:
        notes.append(
            f"a request gains {engine.kept or 0.0:.1f} tokens a step, so the engine speculates: "
            "how many tokens it decodes in a step is not in the records"
        )
    else:
        notes.append("a decoding request counts as one token a step, as without speculation")
    return notes
