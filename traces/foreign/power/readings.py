"""Power readings in files of other tools, a reading of one GPU at a time.

`nvidia-smi --query-gpu=timestamp,index,power.draw[,uuid] --format=csv -l 1`, with or without units
and header: local times without a zone, watts. aiperf's `gpu_telemetry_export.jsonl`: the JSON
of its `TelemetryRecord` (ai-dynamo/aiperf, `common/models/telemetry_models.py`, read in November
2026), with unix nanoseconds, watts, and the counter of energy in MJ, under the field names of
before and after AMD's were added.
"""

from __future__ import annotations

import re
import zoneinfo
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from pathlib import Path
from typing import Any, Literal

from traces.errors import OutcomesError, UsageError
from traces.foreign.source import head_of, objects, text_lines
from traces.foreign.values import LIMIT_BYTES, Skipped, finite, whole_number
from traces.recording.tables import LATEST_NS

MOST_WATTS = 10_000  # of one GPU
_LINE = 4_096
_TIME = re.compile(r"(\d{4})/(\d\d)/(\d\d) (\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?")
_UUID = re.compile(r"(?:GPU|MIG)-[0-9A-Za-z/-]{8,80}")
_WATTS = re.compile(r"(\d{1,9}(?:\.\d+)?)(?: W)?")
_OFFSET = re.compile(r"([+-])(\d\d):?(\d\d)")
_POWER = ("power.draw.instant", "power.draw", "power.draw.average")  # the first that is there
_ORDER = ("timestamp", "index", "power.draw", "uuid")  # where no header says another
_NVIDIA = (  # watts, then MJ
    ("nvidia_power_usage", "gpu_power_usage"),
    ("nvidia_energy_consumption", "energy_consumption"),
)

Format = Literal["nvidia-smi CSV", "aiperf GPU telemetry"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """One GPU at one time, unix ns; `index` is its number on its host."""

    time: int
    device: str
    index: int | None
    watts: float | None
    energy_j: float | None = None
    host: str | None = None


def kept_in(head: bytes) -> Format | None:
    """Return which power readings a file with these first bytes holds, None for none."""
    if b'"telemetry_data"' in head and b'"timestamp_ns"' in head:
        return "aiperf GPU telemetry"
    first = head.lstrip(b"\xef\xbb\xbf").lstrip().split(b"\n", 1)[0].decode("utf-8", "replace")
    fields = [part.strip() for part in first.split(",")]
    is_csv = _columns(fields) is not None or _plain(fields)
    return "nvidia-smi CSV" if is_csv else None


def zone_named(name: str | None) -> tzinfo | None:
    """Return the zone of a name such as `UTC`, `+02:00` or `Europe/Berlin`. Raises UsageError."""
    if name is None:
        return None
    offset = _OFFSET.fullmatch(name)
    if offset is not None and int(offset[2]) < 15 and int(offset[3]) < 60:
        length = timedelta(hours=int(offset[2]), minutes=int(offset[3]))
        return timezone(length if offset[1] == "+" else -length)
    if name.upper() in ("UTC", "Z"):
        return UTC
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise UsageError(
            f"--power-zone {name[:60]}: no zone. Give UTC, an offset such as +02:00, or a name "
            "such as Europe/Berlin"
        ) from None


@dataclass
class PowerFile:
    """Iterate once over the readings of a file.

    `zone` is that of nvidia-smi's times, None for this machine's. `skipped` counts lines that hold
    no reading, `offset` is what the zone was at the first one.
    """

    path: Path
    zone: tzinfo | None = None
    limit_bytes: int = LIMIT_BYTES
    skipped: Skipped = field(default_factory=lambda: Skipped(unit="line"))
    notes: list[str] = field(default_factory=list)
    offset: timedelta | None = None

    def __post_init__(self) -> None:
        file_format = kept_in(head_of(self.path))
        if file_format is None:
            raise OutcomesError(
                f"{self.path}: holds no power readings. --power reads the CSV of nvidia-smi "
                "--query-gpu=timestamp,index,power.draw --format=csv and aiperf's "
                "gpu_telemetry_export.jsonl. See docs/energy.md"
            )
        self.format: Format = file_format

    def __iter__(self) -> Iterator[Reading]:
        if self.format == "nvidia-smi CSV":
            return self.skipped.kept(self._cells(), self._row, "lines")
        records = objects(self.path, self.limit_bytes, self.skipped, self.notes)
        return self.skipped.kept(records, _record, "lines")

    def _cells(self) -> Iterator[tuple[int, tuple[list[str], Mapping[str, int]]]]:
        """Yield the lines' cells with the columns that the header above them names."""
        columns = {name: place for place, name in enumerate(_ORDER)}
        for number, raw in text_lines(self.path, self.limit_bytes, self.notes, ended=True):
            if raw is None or len(raw) > _LINE:
                self.skipped.add("lines that are too long", number)
                continue
            line = raw.decode("utf-8", "replace").lstrip("\ufeff").strip()
            if not line:
                continue
            fields = [part.strip() for part in line.split(",")]
            header = _columns(fields)
            if header is not None:  # again where a log was continued
                if not header.keys() & {"index", "uuid"}:
                    raise OutcomesError(
                        f"{self.path}: has no column index or uuid, so that its GPUs cannot be "
                        "told apart. Query timestamp,index,power.draw"
                    )
                columns = header
                continue
            yield number, (fields, columns)

    def _row(self, _: int, row: tuple[list[str], Mapping[str, int]]) -> Reading:
        """Return a line's reading. Raises ValueError with why it is none."""
        fields, columns = row

        def of(name: str) -> str | None:
            place = columns.get(name)
            return fields[place] if place is not None and place < len(fields) else None

        index, uuid, watts = of("index"), of("uuid"), _WATTS.fullmatch(of("power.draw") or "")
        time = self._time(of("timestamp") or "")
        if uuid is not None and not _UUID.fullmatch(uuid):
            raise ValueError("whose uuid is none")
        number = int(index) if index is not None and re.fullmatch(r"\d{1,4}", index) else None
        if number is None and (index is not None or uuid is None):
            raise ValueError("without the GPU's index")
        if watts is None:
            raise ValueError("without a power in W")
        return Reading(
            time=time, device=uuid or f"GPU {number}", index=number, watts=_drawn(float(watts[1]))
        )

    def _time(self, text: str) -> int:
        """Return a local time as unix ns. Raises ValueError with why it is none."""
        match = _TIME.fullmatch(text)
        try:
            if match is None:
                raise ValueError
            parts = [int(match[place]) for place in range(1, 7)]
            local = datetime(*parts)  # type: ignore[arg-type]
            first, second = (
                local.replace(tzinfo=self.zone, fold=fold).timestamp() for fold in (0, 1)
            )
        except (ValueError, OverflowError, OSError):
            raise ValueError("without a time such as 2026/11/26 18:15:46.680") from None
        if first != second:
            raise ValueError("in an hour that the zone's clock has twice or not at all")
        if self.offset is None:
            aware = datetime.fromtimestamp(first, UTC)
            self.offset = local - aware.replace(tzinfo=None)
        if first < 0:
            raise ValueError("without a time such as 2026/11/26 18:15:46.680")
        fraction = (match[7] or "").ljust(9, "0")
        return int(first) * 1_000_000_000 + int(fraction)


def _record(_: int, told: Mapping[str, Any]) -> Reading:
    """Return a record's reading. Raises ValueError with why it is none."""
    time = told.get("timestamp_ns")
    if not isinstance(time, int) or isinstance(time, bool) or not 0 < time < LATEST_NS:
        raise ValueError("without timestamp_ns")
    uuid, host, data = (told.get(name) for name in ("gpu_uuid", "hostname", "telemetry_data"))
    if not (isinstance(uuid, str) and 0 < len(uuid) <= 84 and uuid.isprintable()):
        raise ValueError("without gpu_uuid")
    values = data if isinstance(data, dict) else {}
    watts, energy = (
        next((value for name in names if (value := finite(values.get(name))) is not None), None)
        for names in _NVIDIA
    )
    if watts is None and energy is None:
        raise ValueError("without the power or energy of an NVIDIA GPU")
    has_host = isinstance(host, str) and 0 < len(host) <= 255 and host.isprintable()
    return Reading(
        time=time,
        device=uuid,
        index=whole_number(told.get("gpu_index")),
        watts=None if watts is None else _drawn(watts),
        energy_j=None if energy is None or energy < 0 else energy * 1e6,
        host=host if has_host else None,
    )


def _drawn(watts: float) -> float:
    if not 0 <= watts <= MOST_WATTS:
        raise ValueError(f"whose power is not from 0 to {MOST_WATTS:,} W")
    return watts


def _columns(fields: list[str]) -> dict[str, int] | None:
    """Return where nvidia-smi's header has which column, None for a line that is none."""
    names = [name.partition("[")[0].rstrip() if name[-1:] == "]" else name for name in fields]
    power = next((name for name in _POWER if name in names), None)
    if "timestamp" not in names or power is None:
        return None
    columns: dict[str, int] = {}
    for name in ("timestamp", "index", "uuid"):
        if name in names:
            columns[name] = names.index(name)
    if "uuid" not in columns and "gpu_uuid" in names:
        columns["uuid"] = names.index("gpu_uuid")
    return {**columns, "power.draw": names.index(power)}


def _plain(fields: list[str]) -> bool:
    """Whether a line without a header is of the order that is asked for: time, index, power."""
    return (
        len(fields) in (3, 4)
        and _TIME.fullmatch(fields[0]) is not None
        and fields[1].isdecimal()
        and (fields[2].startswith("[") or re.fullmatch(r"\d+\.\d\d(?: W)?", fields[2]) is not None)
        and (len(fields) == 3 or _UUID.fullmatch(fields[3]) is not None)
    )
