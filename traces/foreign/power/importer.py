"""A recording with power readings that another tool took while it was made.

The recording is copied and the readings of its run become its table `power`, as if a probe had
read them. They meet by the clock alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl

from traces.errors import OutcomesError, RecordingError, UsageError
from traces.foreign.power.readings import PowerFile, Reading, zone_named
from traces.foreign.values import LIMIT_BYTES
from traces.foreign.written import Imported, written_into
from traces.recording.manifest import Manifest, check_free
from traces.recording.reader import Recording
from traces.recording.tables import TABLES
from traces.schema.engine import EngineConfig
from traces.schema.formats import counted, listed, number
from traces.summary.energy import Window, energy_curve, run_window

KIND = "nvml"  # the counters that nvidia-smi, DCGM and aiperf read are NVML's
MOST_DEVICES = 4_096
_MARGIN_NS = 10_000_000_000  # readings before and after the run that are kept
_DATED_NS = 315_532_800_000_000_000  # 1980: times before it count from no date
_HOURS = 14  # that a zone lies from UTC at most


def import_power(
    recording: Recording,
    path: Path,
    folder: Path,
    *,
    gpus: Sequence[str] = (),
    zone: str | None = None,
    limit_bytes: int = LIMIT_BYTES,
) -> Imported:
    """Write `recording` with the power readings of `path` into `folder`; return what was joined.

    `gpus` names those that the engine used, by index or by the beginning of a UUID; () for all.
    `zone` is that of times without one (nvidia-smi's), None for this machine's. Raises UsageError
    where GPUs and engine do not fit, OutcomesError for a file without readings of the run,
    RecordingError for a recording that can have none, or where the folder cannot be written.
    """
    check_free(folder)
    key, window = _run_of(recording)
    source = PowerFile(path, zone_named(zone), limit_bytes)
    found = _in_window(source, window)
    chosen = _chosen(found, gpus)
    had = recording.manifest.engines[key]
    engine = _engine_with(had, len(chosen), found, named=bool(gpus))
    rows = [row for row in found.rows if (row.host, row.device) in chosen]
    frame = _frame(rows)
    notes = _notes(found, zone, len(chosen))
    if engine is not had:
        notes.append(f"the engine is taken to have {counted(len(chosen), 'GPU')}")
    notes += _notes_of(source, frame)
    curve, reason, joules = energy_curve(frame, window), None, None
    run_s = (window[1] - window[0]) / 1e9
    if isinstance(curve, str):
        reason = curve
        notes.append(f"these readings give no energy: {reason}")
    else:
        joules = float(curve.joules[-1] - curve.joules[0])
    mean_w = None if joules is None else joules / run_s
    with written_into(folder, private=recording.manifest.text_recorded) as tables:
        for table in TABLES:
            tables.copy(table, recording.paths(table))
        tables.add("power", frame)
        tables.add("events", pl.DataFrame({"detail": notes}), engine=key, kind="note")
        _joined(recording.manifest, source, {key: engine}).write(folder)
    readings = dict(Counter(_shown(row) for row in rows))
    return Imported(
        head=f"{source.format}: {counted(len(rows), 'reading')} of "
        f"{counted(len(readings), 'GPU')} in a run of {number(run_s, 's')}",
        rows=[
            *((name, f"{count:,}") for name, count in readings.items()),
            ("energy", number(joules, "J")),
            ("mean power", number(mean_w, "W")),
        ],
        facts={
            "of": str(recording.path),
            "format": source.format,
            "gpus": readings,
            "outside": found.outside,
            "run_s": run_s,
            "energy_j": joules,
            "mean_w": mean_w,
            "reason": reason,
            "skipped": source.skipped.counts,
        },
        skipped=source.skipped,
        notes=tuple(notes),
    )


@dataclass
class _Found:
    """The readings of a file that are of the run and a little around it.

    `gpus` were read while it went on, by host and device. `first` and `last` are the times of all
    readings, `outside` counts those that are not in `rows`.
    """

    source: PowerFile
    window: Window
    rows: list[Reading] = field(default_factory=list)
    gpus: dict[tuple[str | None, str], int | None] = field(default_factory=dict)
    first: int = 1 << 62
    last: int = -1
    outside: int = 0


def _run_of(recording: Recording) -> tuple[str, Window]:
    """Return the key of the recording's engine and when its run was."""
    name = recording.name
    if recording.replay_of is not None:
        raise RecordingError(f"{name}: is a prediction. No power was drawn for it")
    if len(recording.manifest.engines) != 1:
        raise RecordingError(
            f"{name}: has {counted(len(recording.manifest.engines), 'engine')}. Power joins a "
            "recording with one"
        )
    if recording.rows("power"):
        raise RecordingError(f"{name}: has power readings already")
    window = run_window(recording.problems, recording.samples)
    if window is None or window[1] <= window[0]:
        raise RecordingError(f"{name}: none of its problems ended, so it has no run to read")
    if window[0] < _DATED_NS:
        raise RecordingError(
            f"{name}: its times have no date, as the file that it is from had none. No power can "
            "be joined by the clock"
        )
    return next(iter(recording.manifest.engines)), window


def _in_window(source: PowerFile, window: Window) -> _Found:
    """Return the readings of the run. Raises OutcomesError where there are none."""
    found = _Found(source, window)
    for reading in source:
        found.first = min(found.first, reading.time)
        found.last = max(found.last, reading.time)
        if not window[0] - _MARGIN_NS <= reading.time <= window[1] + _MARGIN_NS:
            found.outside += 1
            continue
        found.rows.append(reading)
        if window[0] <= reading.time <= window[1]:
            found.gpus.setdefault((reading.host, reading.device), reading.index)
            if len(found.gpus) > MOST_DEVICES:
                raise OutcomesError(f"{source.path}: has more than {MOST_DEVICES:,} GPUs")
    if found.last < 0:
        why = source.skipped.text() or "it has none"
        raise OutcomesError(f"{source.path}: no power reading in it can be read ({why})")
    if not found.gpus:
        raise OutcomesError(f"{source.path}: {_apart(found)}")
    return found


def _apart(found: _Found) -> str:
    """Return how far readings and run lie apart, and which zone would join them."""
    window, offset = found.window, found.source.offset
    if found.last < window[0]:
        where = f"end {number((window[0] - found.last) / 1e9, 's')} before it begins"
    elif found.first > window[1]:
        where = f"begin {number((found.first - window[1]) / 1e9, 's')} after it ends"
    else:
        where = ""
    reason = (
        f"no reading is of the run, from {_utc(window[0])} to {_utc(window[1])} UTC. The file's "
        f"{where or 'pause while it goes on'}"
    )
    if not where:
        return reason
    if offset is None:
        return f"{reason}. Both must be of one clock"
    fitting = _zones(offset, found)
    name = fitting[0] if len(fitting) == 1 else "+02:00"
    return (
        f"{reason}. Its times were taken at {_offset(offset)}. Name their zone, such as "
        f"--power-zone {name}"
    )


def _zones(offset: timedelta, found: _Found) -> list[str]:
    """Return the other zones, in whole hours, in which the readings would span the run."""
    hour, window = timedelta(hours=1), found.window
    fitting = []
    for shift in (each * hour for each in range(-2 * _HOURS, 2 * _HOURS + 1) if each):
        moved = round(shift.total_seconds()) * 1_000_000_000
        spans = found.first + moved <= window[0] and found.last + moved >= window[1]
        if spans and abs(offset - shift) <= _HOURS * hour:
            fitting.append(_offset(offset - shift))
    return fitting


def _chosen(found: _Found, asked: Sequence[str]) -> set[tuple[str | None, str]]:
    """Return the GPUs asked for. Raises UsageError where a name is of none or of several."""
    chosen = set()
    for name in asked:
        fits = [
            each
            for each, index in found.gpus.items()
            if (str(index) == name if name.isdecimal() else bool(name) and each[1].startswith(name))
        ]
        if len(fits) != 1:
            are = "no GPU is" if not fits else f"{len(fits)} GPUs are"
            raise UsageError(
                f"--power-gpus {name[:90]}: {are} of that name among those read while the run "
                f"went on: {_names(found)}. Name indices, or beginnings of UUIDs"
            )
        chosen.add(fits[0])
    return chosen or set(found.gpus)


def _engine_with(engine: EngineConfig, count: int, found: _Found, *, named: bool) -> EngineConfig:
    """Return the engine with so many GPUs. Raises UsageError where it is known to have others.

    What an import or a server does not tell of its GPUs is one, and is taken from the readings.
    """
    if engine.num_devices == count:
        return engine
    is_known = engine.num_gpus is not None or engine.num_devices > 1 or engine.mode != "server"
    if named and not is_known:
        return replace(engine, num_gpus=count)
    has = f"the engine has {engine.num_devices}{'' if is_known else ', as far as is known'}"
    if named:
        raise UsageError(f"--power-gpus names {counted(count, 'GPU')}, and {has}")
    raise UsageError(
        f"{found.source.path}: {counted(count, 'GPU')} read while the run went on "
        f"({_names(found)}), and {has}. Name those that it used, such as --power-gpus 0,1"
    )


def _names(found: _Found) -> str:
    names = sorted(
        device if index is None or device == f"GPU {index}" else f"{index} {device[:12]}"
        for (_, device), index in found.gpus.items()
    )
    return listed(names, 8)


def _shown(row: Reading) -> str:
    return row.device if row.host is None else f"{row.host} {row.device}"


def _frame(rows: Sequence[Reading]) -> pl.DataFrame:
    columns = ("host", "device", "time", "watts", "energy_j")
    frame = pl.DataFrame(
        {name: [getattr(row, name) for row in rows] for name in columns},
        schema={name: TABLES["power"][name] for name in columns},
    )
    return frame.with_columns(kind=pl.lit(KIND)).sort("time", maintain_order=True)


def _notes(found: _Found, zone: str | None, count: int) -> list[str]:
    source = found.source
    notes = [f"power of {counted(count, 'GPU')} imported from {source.format}"]
    if source.offset is not None:
        whose = "this machine's zone" if zone is None else "as given"
        note = f"its times are taken as {_offset(source.offset)}, {whose}"
        if _zones(source.offset, found):
            note += (
                ". The log is so long that another zone would fit the run too, and give another "
                "energy. --power-zone names it"
            )
        notes.append(note)
    return notes


def _notes_of(source: PowerFile, frame: pl.DataFrame) -> list[str]:
    devices, notes = frame.group_by("host", "device"), []
    falls = devices.agg((pl.col("energy_j").drop_nulls().diff() < 0).sum().alias("falls"))
    if again := int(falls["falls"].sum()):
        notes.append(f"energy counters that began again: {again:,}. The power readings bridge them")
    if source.skipped.counts:
        notes.append(f"{source.path.name}: skipped: {source.skipped.text()}")
    return notes + [f"{source.path.name}: {each}" for each in source.notes]


def _joined(manifest: Manifest, source: PowerFile, engine: dict[str, EngineConfig]) -> Manifest:
    imported = {"format": source.format, "file": source.path.name, "skipped": source.skipped.counts}
    return replace(
        manifest,
        engines={**manifest.engines, **engine},
        provenance={**manifest.provenance, "power": imported},
    )


def _offset(offset: timedelta) -> str:
    minutes = round(offset.total_seconds() / 60)
    return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}"


def _utc(time_ns: int) -> str:
    return f"{datetime.fromtimestamp(time_ns // 1_000_000_000, UTC):%Y-%m-%d %H:%M:%S}"
