"""View models of the terminal app: recordings and advice as rows and lines, without Textual."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path

import msgspec

from traces.errors import TtscopeError
from traces.live.watched import only_watched
from traces.recording.manifest import Manifest, read_manifest
from traces.recording.reader import Recording, find_recordings
from traces.schema.estimate import Estimate
from traces.schema.formats import ABSENT, compact, half_width, value_of
from traces.summary.metrics import estimate_of
from traces.summary.run import Run, summarise
from tui.screens.index import Indexes, Listed
from tui.text.layout import labels, model_name, without_middle

FRAME_BYTES = 128 * 2**20  # of samples and steps of recordings that are not looked at


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row of the Recordings screen: a run, or a path that cannot be read and why.

    `frame_bytes` are those of the run's samples and steps, 0 where they were let go (`fit_frames`):
    `load` brings them back. `listed` is what is known of one that is still to be read, whose
    `recording` is there where advice may learn of it before (`foreseen`).
    """

    key: str
    path: Path
    recording: Recording | None = None
    run: Run | None = None
    listed: Listed | None = None
    error: str | None = None
    frame_bytes: int = 0

    @property
    def comparable(self) -> bool:
        """Whether the run ended by itself and decided something."""
        return self.run is not None and self.run.complete and self.run.problems > 0

    @property
    def teaches(self) -> bool:
        """Whether advice can learn of it: of problems, or of a server that was only watched."""
        if self.listed is not None:
            return self.recording is not None
        ended = self.run is not None and self.run.complete
        return self.comparable or (self._is_of_others and ended)

    @cached_property
    def is_watched(self) -> bool:
        """Whether it holds nothing but the traffic of others on servers whose pages were read."""
        polled = self.recording is not None and bool(self.recording.rows("scrapes"))
        return polled and self._is_of_others

    @property
    def _is_of_others(self) -> bool:
        recording, run = self.recording, self.run
        if recording is None or run is None:
            return False
        return run.engine.mode == "server" and only_watched(recording)

    @cached_property
    def row(self) -> Listed | None:
        """What the table shows of the run, None where there is none."""
        run = self.run
        if run is None:
            return self.listed
        return Listed(
            title="  ".join((model_name(run.engine.model), *labels(run))),
            cells={column.header: column.cell(run) for column in COLUMNS},
            values={column.header: column.sort(run) for column in COLUMNS},
            problems=run.problems,
            complete=run.complete,
        )

    @property
    def title(self) -> str:
        """Return model, policy and engine in short."""
        return self.path.name if self.row is None else self.row.title

    @property
    def cells(self) -> dict[str, str]:
        """Return the cells of the table by header."""
        return {} if self.row is None else self.row.cells

    @property
    def values(self) -> Mapping[str, float | str | None]:
        """Return what the rows sort by, by header."""
        return {} if self.row is None else self.row.values

    @cached_property
    def told(self) -> frozenset[str]:
        """Return the headers under which there is something known."""
        return frozenset(header for header, value in self.values.items() if value is not None)


def recording_paths(paths: Sequence[Path]) -> list[Path]:
    """Return the recordings in the paths; a path that holds none stands for itself."""
    recordings: list[Path] = []
    for path in paths:
        recordings += find_recordings(path) or [path]
    return list(dict.fromkeys(recordings))


def load(path: Path, price_usd_per_device_hour: float | None = None) -> list[Entry]:
    """Open and summarise one recording; a failure is an entry that says why."""
    try:
        recording = Recording.open(path)
        runs = summarise(recording.afresh(), price_usd_per_device_hour)  # which keep their rows
    except TtscopeError as error:
        return [Entry(key=str(path), path=path, error=str(error))]
    except Exception as error:  # one bad recording must not end the app
        text = f"{path}: cannot be summarised ({type(error).__name__}: {error})"
        return [Entry(key=str(path), path=path, error=text)]
    return [
        Entry(
            key=f"{path}#{index}",
            path=path,
            recording=recording,
            run=run,
            frame_bytes=sum(
                int(frame.estimated_size())
                for frame in (run.sample_rows, run.step_rows)
                if frame is not None
            ),
        )
        for index, run in enumerate(runs)
    ] or [Entry(key=str(path), path=path, recording=recording, error=f"{path}: holds no run")]


def listed(path: Path, indexes: Indexes) -> list[Entry]:
    """Return a recording's rows by the index of its folder, else by its manifest alone.

    One that cannot be read has none: `load` says why.
    """
    try:
        rows = indexes.rows(path)
        if rows is None:
            rows = _by_manifest(path.name, read_manifest(path))
    except (TtscopeError, OSError):
        return []
    return [Entry(key=f"{path}#{at}", path=path, listed=each) for at, each in enumerate(rows)]


def _by_manifest(name: str, manifest: Manifest) -> list[Listed]:
    """Return the row of a recording that is not in an index: names without numbers."""
    engine = next(iter(manifest.engines.values()), None)
    policy = next(iter(manifest.policies.values()), None)
    if engine is None:
        return []
    names = {
        "model": model_name(engine.model),
        "policy": ABSENT if policy is None else policy.label(),
        "engine": engine.label(),
        "recording": name,
    }
    cells = {column.header: names.get(column.header, "") for column in COLUMNS}
    values: dict[str, float | str | None] = {c.header: names.get(c.header) for c in COLUMNS}
    title = "  ".join(names[each] for each in ("model", "policy", "engine"))
    return [Listed(title=title, cells=cells, values=values, problems=1, complete=True)]


def foreseen(entries: Sequence[Entry]) -> list[Entry] | None:
    """Return entries that are still to be read with their recordings, as `load` will find them.

    None where some may turn out to be such that advice does not learn of them.
    """
    filled = []
    for entry in entries:
        try:
            recording = Recording.open(entry.path)
            has_problems = recording.complete and recording.rows("problems") > 0
        except TtscopeError:
            return None
        if (
            not has_problems
            or len(recording.manifest.engines) * len(recording.manifest.policies) != 1
        ):
            return None
        filled.append(replace(entry, recording=recording))
    return filled


def to_list(entry: Entry) -> Listed | None:
    """Return what an index notes of a run, None of what is none."""
    if entry.run is None or entry.row is None:
        return None
    values = {
        header: value if not isinstance(value, float) or math.isfinite(value) else None
        for header, value in entry.values.items()
    }
    return msgspec.structs.replace(entry.row, cells=dict(entry.cells), values=values)


def fit_frames(
    entries: Sequence[Entry], keep: Collection[str], most_bytes: int = FRAME_BYTES
) -> list[Entry]:
    """Return the entries with as many samples and steps in memory as fit, the largest let go first.

    Entries whose key is in `keep` stay whole.
    """
    left = sum(entry.frame_bytes for entry in entries)
    gone = set()
    for entry in sorted(entries, key=lambda each: -each.frame_bytes):
        if left <= most_bytes:
            break
        if entry.key not in keep and entry.frame_bytes:
            left -= entry.frame_bytes
            gone.add(entry.key)
    return [_without_frames(entry) if entry.key in gone else entry for entry in entries]


def with_frames(entry: Entry, price_usd_per_device_hour: float | None = None) -> Entry:
    """Return an entry with its samples and steps, read again where they were let go."""
    if entry.run is None or entry.run.sample_rows is not None:
        return entry
    again = load(entry.path, price_usd_per_device_hour)
    return next((each for each in again if each.key == entry.key and each.run), entry)


def _without_frames(entry: Entry) -> Entry:
    run = None if entry.run is None else replace(entry.run, sample_rows=None, step_rows=None)
    return replace(entry, run=run, frame_bytes=0)


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of the Recordings table: header, cell, what it sorts by, flushed right or not.

    `about` says what it holds. `from_width` is the terminal's width from which it is shown.
    """

    header: str
    about: str
    cell: Callable[[Run], str]
    sort: Callable[[Run], float | str | None]
    right: bool = True
    from_width: int = 0


def _value(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.value


def _share(estimate: Estimate | None) -> str:
    if estimate is None:
        return ABSENT
    return f"{value_of(estimate)} {half_width(estimate)}".removeprefix("0")


def _numeric(
    header: str, tag: str, about: str, *, factor: float = 1.0, from_width: int = 0
) -> Column:
    def value(run: Run) -> float | None:
        number = _value(estimate_of(run, tag))
        return None if number is None else number * factor

    return Column(
        header=header,
        about=about,
        cell=lambda run: compact(value(run)),
        sort=value,
        from_width=from_width,
    )


def _text(header: str, get: Callable[[Run], str], about: str, *, from_width: int = 0) -> Column:
    return Column(
        header=header, about=about, cell=get, sort=get, right=False, from_width=from_width
    )


COLUMNS: tuple[Column, ...] = (
    _text("model", lambda run: model_name(run.engine.model), "Model that was served."),
    _text("policy", lambda run: labels(run)[0], "Samples of a problem and how they are judged."),
    _text(
        "engine",
        lambda run: labels(run)[1],
        "tp: tensor parallel size, seqs: max_num_seqs, then speculation.",
    ),
    Column(
        header="acc +-90%",
        about="Share answered right, and half its 90 % interval.",
        cell=lambda run: _share(run.accuracy),
        sort=lambda run: _value(run.accuracy),
    ),
    _numeric("p50 s", "latency_s.p50", "Median time of a problem, in seconds."),
    _numeric("p95 s", "latency_s.p95", "Time that 95 % of the problems stay below, in seconds."),
    _numeric("tok/pb", "tokens_per_problem", "Generated tokens a problem, of all its samples."),
    _numeric("dev-s", "device_s_per_problem", "Device-seconds a problem."),
    _numeric("J/pb", "energy_j.per_problem", "Energy a problem, in joules."),
    _numeric("$/pb", "cost_usd_per_problem", "Cost a problem, in USD.", from_width=100),
    _numeric(
        "TTFT ms", "ttft_s.p50", "Median time to the first token, in ms.", factor=1e3,
        from_width=120,
    ),
    _numeric(
        "TPOT ms", "tpot_s.p50", "Median time of an output token after the first, in ms.",
        factor=1e3, from_width=120,
    ),
    _numeric(
        "tok/s", "throughput_tokens_per_s", "Generated tokens a second of the run.", from_width=120
    ),
    _numeric("FLOP/pb", "flops_per_problem", "FLOPs a problem.", from_width=120),
    _text("recording", lambda run: run.recording, "Folder of the recording.", from_width=165),
)  # fmt: skip


NARROW, ENGINE = 110, 13
NAME = 18  # columns of a recording's name beside others
NAMES, ENGINE_AT = COLUMNS[-1].header, 2
NO_PROBLEMS = "no problems captured"


def fitting_columns(entries: Sequence[Entry], width: int) -> list[tuple[Column, int]]:
    """Return the columns that fit into a terminal's width, and how wide they are.

    Those without any number come last. A header has room for the arrow of the order.
    """
    runs = [entry for entry in entries if entry.values]
    engines = engine_cells(entries, width)

    def size(column: Column) -> int:
        cells = (len(cell_text(column, entry, engines, width)) for entry in entries)
        return max([len(column.header) + 1, *cells])

    titles = [entry.title for entry in runs]
    twins = len(set(titles)) < len(titles)
    able = [column for column in COLUMNS if column.from_width <= width]
    if twins and able[-1].header != NAMES:  # nothing else tells them apart
        able.insert(ENGINE_AT + 1, COLUMNS[-1])
    some = frozenset[str]().union(*(entry.told for entry in runs))
    filled = [column for column in able if not runs or column.header in some]
    chosen: dict[str, int] = {}
    left = width - 5  # the marks, and a scroll bar
    for column in [*filled, *(column for column in able if column not in filled)]:
        wide = size(column)
        left -= wide + 2
        if left >= 0 or len(chosen) < 4:
            chosen[column.header] = wide
    return [(column, chosen[column.header]) for column in COLUMNS if column.header in chosen]


def engine_cells(entries: Iterable[Entry], width: int) -> dict[str, str]:
    """Return how each engine is shown in a terminal's width.

    A narrow one leaves out the words that all have, and the middle of what is long, while cells of
    different engines differ.
    """
    engines = list(dict.fromkeys(entry.cells["engine"] for entry in entries if entry.cells))
    whole = {engine: engine for engine in engines}
    if width >= NARROW or all(len(engine) <= ENGINE for engine in engines):
        return whole
    shared = set.intersection(*(set(engine.split()) for engine in engines))
    short = {}
    for engine in engines:
        words = [word for word in engine.split() if word not in shared or len(engines) == 1]
        short[engine] = " ".join(words) or engine
    cut = {engine: without_middle(text, ENGINE) for engine, text in short.items()}
    return next(each for each in (cut, short, whole) if len(set(each.values())) == len(engines))


def cell_text(column: Column, entry: Entry, engines: Mapping[str, str], width: int) -> str:
    """Return a cell, in place of numbers why there are none; `engines` are of `engine_cells`."""
    run = entry.row
    if run is None:
        texts = {"model": entry.path.name, "policy": "cannot be read"}
        return texts.get(column.header, "")
    if not run.problems:
        if column.right:
            is_told = column.header.startswith("acc") and not run.complete
            return "incomplete" if is_told else ""
        if column.header == "policy" and run.complete:
            if entry.is_watched:
                return "watched"
            return NO_PROBLEMS if width >= NARROW else "0 problems"
    text = entry.cells[column.header]
    if column.header == NAMES and width < column.from_width:
        return without_middle(text, NAME)
    return engines.get(text, text) if column.header == "engine" else text


def matches(entry: Entry, words: str) -> bool:
    """Return whether every word is found in the entry; `a|b` means either.

    A single character is one that a model, a policy or a recording begins with: it would be found
    nearly everywhere.
    """
    text = f"{entry.title} {entry.path}{' watched' if entry.is_watched else ''}".lower()
    names = (entry.path.name, *(entry.cells.get(each, "") for each in ("model", "policy")))
    begins = {name[:1].lower() for name in names}

    def found(part: str) -> bool:
        return part in begins if len(part) == 1 and part.isalnum() else part in text

    return all(any(map(found, word.split("|"))) for word in words.lower().split())


def near_words(entries: Iterable[Entry], words: str) -> str:
    """Return which words of the entries a filter without a match may mean, in words."""
    words_shown = {word for entry in entries for word in f"{entry.title} {entry.path.name}".split()}
    near = [found for word in words.split() for found in get_close_matches(word, words_shown, n=1)]
    return f". Did you mean {' '.join(near)}?" if near else ""


def sort_key(entry: Entry, column: Column) -> tuple[int, float, str]:
    """Return a key that puts numbers before text and what is absent last."""
    if not entry.values:
        return (3, 0.0, entry.path.name)
    value = entry.values.get(column.header)
    if value is None:
        return (2, 0.0, "")
    return (1, 0.0, value) if isinstance(value, str) else (0, float(value), "")
