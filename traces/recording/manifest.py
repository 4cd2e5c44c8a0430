"""`recording.json`: what a recording is, beside its tables."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from traces.errors import NewerSchemaError, RecordingError, TtscopeError, UsageError
from traces.files import as_private, sync_folder
from traces.recording import checksums
from traces.recording.tables import Time
from traces.schema.engine import SCHEMA_VERSION, EngineConfig, ModelFacts
from traces.schema.record import Amount, Count, Rate, Record, Some
from traces.schema.tts.policy import Policy

NAME = "recording.json"
PARTIAL = f"{NAME}.partial"  # the room of the next one, while a recording is written
SPARE = f"{NAME}.spare"
LEAST_RESERVED = 1 << 16
MOST_BYTES = 16 << 20
MOST_ENGINES = 4_096  # and policies, and models
IDENTITY_BYTES = 4  # of a hash that tells a problem from another of the same name
_MALFORMED = (TtscopeError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError)
_MOST_IDENTITIES = 500_000  # are kept: 2.7 MB of text


@dataclass(frozen=True, kw_only=True)
class WorkloadFacts(Record):
    """Which problems were posed: enough to tell whether two recordings share them.

    `verifier` names how answers were judged (several joined by "+"), None where not told.
    `prompt_block_tokens` is how much of a prompt each of its `prompt_blocks` names.
    """

    name: str
    hash: str
    problems: Count
    seed: int | None = None
    template_hash: str | None = None
    verifier: str | None = None
    prompt_block_tokens: Some | None = None


def identities_text(identities: bytes) -> str | None:
    """Return hashes of problems in the order of their names as text, None for too many."""
    if len(identities) > _MOST_IDENTITIES * IDENTITY_BYTES:
        return None
    return base64.b64encode(identities).decode()


def identities_of(text: object, names: Sequence[str]) -> dict[str, bytes] | None:
    """Return the hash of each of the names, which are all there are; None where not told."""
    try:
        hashes = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except ValueError:
        return None
    if len(hashes) != IDENTITY_BYTES * len(names):
        return None
    parts = (hashes[at : at + IDENTITY_BYTES] for at in range(0, len(hashes), IDENTITY_BYTES))
    return dict(zip(sorted(names), parts, strict=True))


@dataclass(frozen=True, kw_only=True)
class ClockReading(Record):
    """The monotonic and the unix clock, read together."""

    monotonic_ns: int
    unix_ns: Time


@dataclass(frozen=True, kw_only=True)
class CheckpointCost(Record):
    """What it took to force answers at budgets, after the timed run and in none of its numbers.

    `samples` of each problem were cut at `budgets`; `prompt_tokens` were forwarded, those from the
    prefix cache apart. Tokens are None where the engine does not tell them.
    """

    budgets: tuple[Count, ...]
    samples: Count
    requests: Count
    failed: Count
    seconds: Amount
    prompt_tokens: Count | None
    output_tokens: Count | None


class _Imported(msgspec.Struct):
    format: str | None = None
    files: list[dict[str, Any] | str] = []
    unlike: list[str] = []
    identities: str | None = None
    failed_problems: Count | None = None


class _Replayed(msgspec.Struct):
    recording: str | None = None
    seed: int | None = None


class Provenance(msgspec.Struct):
    """The parts of `provenance` that are read. A recording may hold others."""

    imported: _Imported | msgspec.UnsetType = msgspec.UNSET
    replayed: _Replayed | msgspec.UnsetType = msgspec.UNSET
    cpu: str | None = None
    cpus: Count | None = None
    gpu: str | None = None


@dataclass(frozen=True, kw_only=True)
class Manifest(Record):
    """The contents of `recording.json`.

    `engines`, `policies` and `models` map a key to what it stands for (the key of a model is its
    name). `probe_cost_us` is the median time that the step probe took per step,
    `kernel_windows_cost` the share of the run's time that profiler windows took, `dropped` counts
    rows per table that were measured but not kept, and `failure` says why writing failed, if that
    is why. `complete` is False until the run has ended by itself.
    """

    schema_version: int = SCHEMA_VERSION
    provenance: dict[str, Any] = field(default_factory=dict)
    clock_start: ClockReading
    clock_end: ClockReading | None = None
    engines: dict[str, EngineConfig] = field(default_factory=dict)
    policies: dict[str, Policy] = field(default_factory=dict)
    models: dict[str, ModelFacts] = field(default_factory=dict)
    workload: WorkloadFacts | None = None
    concurrency: Count | None = None
    rate_per_s: Rate | None = None
    text_recorded: bool = False
    price_usd_per_device_hour: Amount | None = None
    probe_cost_us: Amount | None = None
    kernel_windows_cost: float | None = None
    checkpoints: CheckpointCost | None = None
    dropped: dict[str, Count] = field(default_factory=dict)
    failure: str | None = None
    complete: bool = False

    @property
    def losses(self) -> list[str]:
        """What is missing from the tables, one line a table."""
        counts = sorted(self.dropped.items())
        return [f"rows of {table} lost while recording: {n:,}" for table, n in counts if n]

    def encoded(self) -> bytes:
        """Return the contents of the file."""
        return json.dumps(self.to_json(), indent=1).encode()

    def check(self) -> None:
        """Raise UsageError for what `read_manifest` would refuse."""
        try:
            _manifest_of(json.loads(self.encoded()))
        except _MALFORMED as error:
            raise UsageError(f"no recording can hold this: {error}") from None

    def write(self, folder: Path) -> None:
        """Replace `recording.json` whole, to survive a power failure. Raises OSError."""
        data = self.encoded()
        partial = folder / PARTIAL
        with open(partial, "ab", opener=as_private):
            pass
        with partial.open("r+b") as file:  # in the room that is reserved
            file.write(data)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        checksums.add(folder, NAME, checksums.digest(data))
        partial.replace(folder / NAME)
        sync_folder(folder)
        if self.complete:
            checksums.compact(folder)


def reserve(folder: Path, manifest: Manifest) -> Path:
    """Return a file with room for a `recording.json` twice as large. Raises OSError.

    It becomes `PARTIAL` when the one before is used: a full disk takes the room of neither.
    """
    size, spare = max(2 * len(manifest.encoded()), LEAST_RESERVED), folder / SPARE
    try:
        with open(spare, "wb", opener=as_private) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.write(bytes(size))
    except OSError:
        spare.unlink(missing_ok=True)
        raise
    return spare


def check_free(folder: Path) -> None:
    """Raise UsageError where the folder that `-o` names holds a recording, or can be none."""
    there = next((each for each in (folder, *folder.parents) if each.exists()), folder)
    if there.exists() and not there.is_dir():
        raise UsageError(f"-o {folder}: {there} is a file. Name another folder")
    if (folder / NAME).exists():
        raise UsageError(f"-o {folder}: already holds a recording. Name another folder")


def make_folder(folder: Path, *, private: bool) -> None:
    """Make a recording's folder, a `private` one for this user alone. Raises OSError."""
    folder.mkdir(mode=0o700 if private else 0o777, parents=True, exist_ok=True)
    if private:
        folder.chmod(0o700)


def take_folder(folder: Path, *, private: bool = False) -> None:
    """Make or take an empty folder: of two that try one gets it. Raises RecordingError."""
    try:
        make_folder(folder, private=private)
        os.close(as_private(str(folder / NAME), os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        raise RecordingError(
            f"{folder}: already holds a recording. Name another folder with -o, or delete it"
        ) from None
    except OSError as error:
        raise RecordingError(f"{folder}: cannot be written ({error.strerror})") from None


def read_manifest(folder: Path) -> Manifest:
    """Read `recording.json`, each field of its type. Raises RecordingError, or NewerSchemaError."""
    path = folder / NAME
    if not folder.exists():
        raise RecordingError(f"{folder}: no such recording")
    if not folder.is_dir():
        raise RecordingError(f"{folder}: not a recording (a recording is a folder with {NAME})")
    try:
        raw = _read(path)
        data = msgspec.json.decode(raw)
        version = data["schema_version"]
    except FileNotFoundError:
        inside: list[Path] = []
        with contextlib.suppress(OSError):
            inside = recordings_in(folder)
        if inside:
            raise RecordingError(
                f"{folder}: not a recording, but a folder of {len(inside)}. Name one, such as "
                f"{inside[0]}"
            ) from None
        raise RecordingError(
            f"{folder}: not a recording, it has no {NAME}. "
            "If it was one, restore the file from a copy"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RecordingError(
            f"{path}: cannot be read ({type(error).__name__}). Restore it from a copy"
        ) from None
    if type(version) is not int or version > SCHEMA_VERSION:
        raise NewerSchemaError(
            f"{path}: schema version {str(version)[:20]} is newer than this ttscope reads "
            f"({SCHEMA_VERSION}). Upgrade ttscope"
        )
    try:
        return _manifest_of(data)
    except _MALFORMED as error:
        raise RecordingError(
            f"{path}: malformed ({type(error).__name__}: {error}). Restore it from a copy"
        ) from None


def _manifest_of(data: Mapping[str, Any]) -> Manifest:
    """Build a manifest from its JSON. Raises one of _MALFORMED for what none can be."""
    _check_numbers(data)
    msgspec.convert(data, Manifest)
    msgspec.convert(data.get("provenance", {}), Provenance)
    if data["schema_version"] < 1 or any(
        len(data.get(name, ())) > MOST_ENGINES for name in ("engines", "policies", "models")
    ):
        raise ValueError(f"its version is below 1, or it has over {MOST_ENGINES:,} engines")
    manifest = Manifest.from_json(data)
    for policy in manifest.policies.values():
        policy.check()
    return manifest


def recordings_in(folder: Path) -> list[Path]:
    """Return the recordings that lie in a folder, by name. Raises OSError for what is none."""
    return sorted(child for child in folder.iterdir() if (child / NAME).exists())


def _read(path: Path) -> bytes:
    """Return `recording.json`, read again where a writer at work replaces it meanwhile."""
    for _ in range(3):
        checksums.check_regular(path)
        if path.stat().st_size > MOST_BYTES:
            raise RecordingError(f"{path}: is larger than {MOST_BYTES:,} bytes, so not of ttscope")
        raw = path.read_bytes()
        if not raw and not any(path.parent.glob("*.parquet")):
            raise RecordingError(
                f"{path.parent}: a recording begins there, or was cut off as it began. Try again, "
                "or delete the folder if nothing records into it"
            )
        wanted = checksums.read_checksums(path.parent).get(NAME)
        if wanted is None or checksums.digest(raw) in wanted:
            return raw
        time.sleep(0.01)
    raise checksums.changed(path)


def _check_numbers(value: Any) -> None:
    """Raise ValueError where a number does not fit the 64 bits of what is computed with it."""
    if isinstance(value, dict):
        for each in value.values():
            _check_numbers(each)
    elif isinstance(value, list):
        for each in value:
            _check_numbers(each)
    elif isinstance(value, int) and abs(value) >= 1 << 63:
        raise ValueError("a number that is out of range")
