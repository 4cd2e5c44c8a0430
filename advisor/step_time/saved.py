"""Step-time laws as JSON, to be used again on the same recordings."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from advisor.evidence.features import FEATURES, Reads
from advisor.step_time.fit import StepTimeModel
from advisor.step_time.law import StepLaw
from traces.errors import RecordingError
from traces.files import whole_file
from traces.recording.reader import Recording
from traces.schema.engine import EngineConfig

VERSION = 3


def fingerprint(recordings: Sequence[Recording]) -> str:
    """Return what changes when a recording does: its manifest, and its parts by name and size."""
    digest = hashlib.sha256()
    for recording in recordings:
        for path in sorted(each for each in recording.path.rglob("*") if each.is_file()):
            name = path.relative_to(recording.path).as_posix()
            digest.update(f"{name} {path.stat().st_size}\n".encode())
            if name == "recording.json":
                digest.update(path.read_bytes())
    return digest.hexdigest()


def save_laws(path: Path, model: StepTimeModel, recordings: Sequence[Recording]) -> None:
    """Write the laws of a model that was fitted to recordings.

    Raises RecordingError where the file cannot be written.
    """
    document = {
        "version": VERSION,
        "features": list(FEATURES),
        "recordings": fingerprint(recordings),
        "laws": [
            {"engine": engine.to_json(), "law": _plain(law), "reads": law.reads}
            for engine, law in model.laws_.items()
            if law.prior is None
        ],
    }
    with whole_file(path) as partial:
        partial.write_text(json.dumps(document))


def load_laws(path: Path, recordings: Sequence[Recording]) -> StepTimeModel | None:
    """Return the model that was saved of these recordings.

    None where it is of others, or of another version of the features. Raises RecordingError for a
    file that holds no laws.
    """
    try:
        document = json.loads(path.read_text())
        same = (document["version"], document["features"]) == (VERSION, list(FEATURES))
        if not same or document["recordings"] != fingerprint(recordings):
            return None
        model = StepTimeModel()
        model.laws_ = {
            EngineConfig.from_json(each["engine"]): StepLaw(
                **_arrays(each["law"]), reads=Reads(*each["reads"])
            )
            for each in document["laws"]
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordingError(f"{path}: holds no saved models ({type(error).__name__})") from None
    return model


def _plain(law: StepLaw) -> dict[str, Any]:
    values = {
        field.name: getattr(law, field.name)
        for field in dataclasses.fields(law)
        if field.name not in ("prior", "reads")
    }
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in values.items()}


def _arrays(law: dict[str, Any]) -> dict[str, Any]:
    return {k: np.array(v, dtype=float) if isinstance(v, list) else v for k, v in law.items()}
