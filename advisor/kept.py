"""What a fit has learned, kept by what it learned from, so that it is learned once.

The files are JSON in ttscope's own cache, named by a hash of the arrays and of the code. Anything
else is learned again, as is all where others could write there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from traces.files import code_version, own_cache, private, whole_file

T = TypeVar("T")
MOST: Final = 1024  # files that are kept


def kept(
    learned_from: object, make: Callable[[], T], plain: Callable[[T], Any], read: Callable[[Any], T]
) -> T:
    """Return what `make` does, or what was kept of it.

    `learned_from` is of plain values, arrays, sequences and dataclasses. `plain` gives what JSON
    can hold, and `read` takes it. Where `read` raises ValueError, KeyError or TypeError it is made.
    """
    folder = _folder()
    if folder is None:
        return make()
    digest = hashlib.sha256(f"{code_version()} {np.__version__}".encode())
    _add(digest, learned_from)
    path = folder / f"{digest.hexdigest()[:40]}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        return read(json.loads(path.read_text()))
    made = make()
    with suppress(OSError):
        with whole_file(path) as partial:
            partial.write_text(json.dumps(plain(made)))
        files = sorted(folder.glob("*.json"), key=lambda each: each.stat().st_mtime_ns)
        for old in files[:-MOST]:
            old.unlink(missing_ok=True)
    return made


def plain_fields(value: Any, *without: str) -> dict[str, Any]:
    """Return the fields of a dataclass, its arrays as lists."""
    fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return {
        name: each.tolist() if isinstance(each, np.ndarray) else each
        for name, each in fields.items()
        if name not in without
    }


def with_arrays(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `plain_fields`, their lists as arrays."""
    return {n: np.array(each) if isinstance(each, list) else each for n, each in fields.items()}


def _folder() -> Path | None:
    try:
        folder = own_cache() / "laws"
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError:
        return None
    return folder if private(folder) else None


def _add(digest: Any, value: object) -> None:
    if isinstance(value, np.ndarray):
        digest.update(f"{value.dtype} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, list | tuple):
        digest.update(f"{len(value)} of".encode())
        for each in value:
            _add(digest, each)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            digest.update(field.name.encode())
            _add(digest, getattr(value, field.name))
    else:
        digest.update(repr(value).encode())
