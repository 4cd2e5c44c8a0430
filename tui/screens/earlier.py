"""Answers of earlier sessions: screen 4 shows one at once, and works it out again behind it.

They are kept by the question, the code, and what the recordings' files hold, in a folder into which
only this user can write, for an answer holds a command to copy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from traces.errors import RecordingError
from traces.files import code_version, own_cache, private, read_small, whole_file
from traces.recording.reader import Recording, content_of
from traces.schema.advice import Budget, Recommendation

MOST_BYTES = 4 << 20  # of an answer
MOST_KEPT = 64


class EarlierAnswers:
    """Answers to budgets, of recordings and the `systems` of the prior that were offered."""

    def __init__(self, systems: Sequence[str] = (), folder: Path | None = None) -> None:
        self._systems, self._folder = [*systems], folder

    def find(self, budget: Budget, recordings: Sequence[Recording]) -> Recommendation | None:
        """Return the answer given before to the same question, None where none is kept."""
        with suppress(OSError, ValueError, RecursionError, RecordingError):
            data = read_small(self._file(budget, recordings), MOST_BYTES)
            return msgspec.json.decode(data, type=Recommendation)
        return None

    def keep(self, budget: Budget, recordings: Sequence[Recording], answer: Recommendation) -> None:
        """Keep an answer for later sessions, where that can be done."""
        with suppress(OSError, ValueError, RecordingError):
            file = self._file(budget, recordings)
            data = msgspec.json.encode(answer)
            if len(data) > MOST_BYTES or msgspec.json.decode(data, type=Recommendation) != answer:
                return  # JSON has no infinity
            with whole_file(file) as partial:
                partial.write_bytes(data)
            oldest = sorted(file.parent.iterdir(), key=lambda each: each.stat().st_mtime)
            for each in oldest[:-MOST_KEPT]:
                each.unlink()

    def _file(self, budget: Budget, recordings: Sequence[Recording]) -> Path:
        """Return where an answer lies. Raises OSError where nothing can or is to be kept."""
        if self._folder is None:
            self._folder = own_cache() / "answers"
        self._folder.mkdir(mode=0o700, exist_ok=True)
        if not private(self._folder):
            raise OSError(f"{self._folder}: others can write to it")
        files = sorted((str(each.path.resolve()), content_of(each.path)) for each in recordings)
        question = (code_version(), self._systems, budget.to_json(), files)
        name = hashlib.blake2b(repr(question).encode(), digest_size=16).hexdigest()
        return self._folder / f"{name}.json"
