"""`recording.json`: what a recording is, beside its tables."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from traces.errors import NewerSchemaError, RecordingError
from traces.schema import SCHEMA_VERSION, EngineConfig, ModelFacts, Policy, Record

NAME = "recording.json"


@dataclass(frozen=True, kw_only=True)
class WorkloadFacts(Record):
    """Which problems were posed: enough to tell whether two recordings share them.

    `verifier` names how answers were judged (several joined by "+"), None where not told.
    `prompt_block_tokens` is how much of a prompt each of its `prompt_blocks` names.
    """

    name: str
    hash: str
    problems: int
    seed: int | None = None
    template_hash: str | None = None
    verifier: str | None = None
    prompt_block_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class ClockReading(Record):
    """The monotonic and the unix clock, read together."""

    monotonic_ns: int
    unix_ns: int


@dataclass(frozen=True, kw_only=True)
class CheckpointCost(Record):
    """What it took to force answers at budgets, after the timed run and in none of its numbers.

    `samples` of each problem were cut at `budgets`; `prompt_tokens` were forwarded, those from the
    prefix cache apart. Tokens are None where the engine does not tell them.
    """

    budgets: tuple[int, ...]
    samples: int
    requests: int
    failed: int
    seconds: float
    prompt_tokens: int | None
    output_tokens: int | None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The contents of `recording.json`.

    `engines`, `policies` and `models` map a key to what it stands for (the key of a model is
    its name, as in `EngineConfig.model`). `probe_cost_us` is the median time that the step probe
    took per step, `kernel_windows_cost` the share of the run's time that profiler windows took,
    `dropped` counts rows per table that did not fit the writer's buffer.
    `checkpoints` says what forced answers cost.
    `complete` is False until the run has ended by itself.
    """

    schema_version: int = SCHEMA_VERSION
    provenance: dict[str, Any] = field(default_factory=dict)
    clock_start: ClockReading
    clock_end: ClockReading | None = None
    engines: dict[str, EngineConfig] = field(default_factory=dict)
    policies: dict[str, Policy] = field(default_factory=dict)
    models: dict[str, ModelFacts] = field(default_factory=dict)
    workload: WorkloadFacts | None = None
    concurrency: int | None = None
    rate_per_s: float | None = None
    text_recorded: bool = False
    price_usd_per_device_hour: float | None = None
    probe_cost_us: float | None = None
    kernel_windows_cost: float | None = None
    checkpoints: CheckpointCost | None = None
    dropped: dict[str, int] = field(default_factory=dict)
    complete: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the document as plain dicts."""
        plain: dict[str, Any] = dict(vars(self))
        for name in ("engines", "policies", "models"):
            plain[name] = {key: value.to_json() for key, value in plain[name].items()}
        for name in ("clock_start", "clock_end", "workload", "checkpoints"):
            plain[name] = None if plain[name] is None else plain[name].to_json()
        return plain

    def write(self, folder: Path) -> None:
        """Write `recording.json` so that it is replaced whole or not at all."""
        partial = folder / f"{NAME}.partial"
        with partial.open("w") as file:
            json.dump(self.to_json(), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(folder / NAME)


def read_manifest(folder: Path) -> Manifest:
    """Read `recording.json`.

    Raises RecordingError (NewerSchemaError for one from the future) naming the path and the mend.
    """
    path = folder / NAME
    if not folder.exists():
        raise RecordingError(f"{folder}: no such recording")
    if not folder.is_dir():
        raise RecordingError(f"{folder}: not a recording (a recording is a folder with {NAME})")
    try:
        data = json.loads(path.read_bytes())
        version = data["schema_version"]
    except FileNotFoundError:
        raise RecordingError(
            f"{folder}: not a recording, it has no {NAME}; "
            "if it was one, restore the file from a copy"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordingError(
            f"{path}: cannot be read ({type(error).__name__}); restore it from a copy"
        ) from None
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise NewerSchemaError(
            f"{path}: schema version {version} is newer than this ttscope reads "
            f"({SCHEMA_VERSION}); upgrade ttscope"
        )
    try:
        return _parse(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordingError(
            f"{path}: malformed ({type(error).__name__}: {error}); restore it from a copy"
        ) from None


def _parse(data: dict[str, Any]) -> Manifest:
    def one(kind: type[Record], value: Any) -> Any:
        return None if value is None else kind.from_json(value)

    known = {name: data[name] for name in Manifest.__dataclass_fields__ if name in data}
    for name, kind in (("engines", EngineConfig), ("policies", Policy), ("models", ModelFacts)):
        known[name] = {key: kind.from_json(value) for key, value in data.get(name, {}).items()}
    known["clock_start"] = ClockReading.from_json(data["clock_start"])
    known["clock_end"] = one(ClockReading, data.get("clock_end"))
    known["workload"] = one(WorkloadFacts, data.get("workload"))
    known["checkpoints"] = one(CheckpointCost, data.get("checkpoints"))
    return Manifest(**known)
