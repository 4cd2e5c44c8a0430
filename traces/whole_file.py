"""Files of ours that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from traces.errors import RecordingError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a path to write to, which becomes `path` when the block ends without an error.

    Raises RecordingError when it cannot be written.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        _forget(partial)
        raise RecordingError(f"{path}: cannot be written ({error.strerror or error})") from None
    except BaseException:
        _forget(partial)
        raise


def _forget(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
