"""The checksums of a recording's files: what was changed since it was written is noticed.

`checksums.sha256` has the form of sha256sum (`sha256sum -c checksums.sha256`). A line is appended
before its file appears, so a kill leaves no file without its line. A file without a line is read
as it is: older recordings have none, and a power failure may lose the last lines.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
import threading
from collections.abc import Mapping
from pathlib import Path

from traces.errors import RecordingError
from traces.files import as_private

NAME = "checksums.sha256"
MOST_BYTES = 16 << 20
_LINE = re.compile(r"([0-9a-f]{64})  ([\w.-]+)")
_LOCK = threading.Lock()  # one process writes a recording; its threads take turns
_MOST_CHECKED = 20_000
_checked: dict[tuple[str | int, ...], str] = {}  # digests of files that did not change since

Checksums = Mapping[str, tuple[str, ...]]  # by file: those that it may have, the newest last


def digest(data: bytes | memoryview) -> str:
    """Return the SHA-256 of a file's bytes."""
    return hashlib.sha256(data).hexdigest()


def add(folder: Path, name: str, digest: str) -> None:
    """Append the checksum of a file that is about to appear, whole or not. Raises OSError."""
    line = f"{digest}  {name}\n".encode()
    with _LOCK, open(folder / NAME, "ab", buffering=0, opener=as_private) as file:
        before, written = file.tell(), file.write(line)
        if written < len(line):  # the disk is full: the next line begins where this one did
            file.truncate(before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_checksums(folder: Path) -> Checksums:
    """Return the checksums that each file may have, none if unwritten. Raises RecordingError."""
    path = folder / NAME
    try:
        check_regular(path)
        if path.stat().st_size > MOST_BYTES:
            raise RecordingError(f"{path}: is larger than any of ttscope. Delete it to go on")
        text = path.read_bytes().decode("ascii", "replace")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise RecordingError(f"{path}: cannot be read ({error.strerror})") from None
    sums: dict[str, list[str]] = {}
    for line in text.split("\n"):
        match = _LINE.fullmatch(line)
        if match is not None:
            sums.setdefault(match[2], []).append(match[1])
    return {name: tuple(digests) for name, digests in sums.items()}


def compact(folder: Path) -> None:
    """Keep a line for each file that is there, and the one of its next version. Raises OSError."""
    with _LOCK:
        lines = []
        for name, digests in sorted(read_checksums(folder).items()):
            with contextlib.suppress(FileNotFoundError):
                kept = dict.fromkeys((file_digest(folder / name), digests[-1]))
                lines += [f"{digest}  {name}\n" for digest in kept if digest in digests]
        partial = folder / f"{NAME}.partial"
        with open(partial, "w", opener=as_private) as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(folder / NAME)


def check(path: Path, sums: Checksums) -> bool:
    """Whether a file has a checksum. Raises RecordingError where it does not match."""
    wanted = sums.get(path.name)
    if wanted is not None and file_digest(path) not in wanted:
        raise changed(path)
    return wanted is not None


def changed(path: Path) -> RecordingError:
    """Return the error for a file that is not as it was written."""
    return RecordingError(
        f"{path}: was changed or damaged since it was written (its checksum in {NAME} differs). "
        "Restore it from a copy"
    )


def state(facts: os.stat_result) -> tuple[int, ...]:
    """Return what changes whenever a file is written. Nobody can set its `st_ctime_ns` back."""
    return facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, computed once while it stays as it is. Raises OSError."""
    key: tuple[str | int, ...] = (str(path), *state(path.stat()))
    sha256 = _checked.get(key)
    if sha256 is None:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if len(_checked) >= _MOST_CHECKED:
            _checked.clear()
        _checked[key] = sha256
    return sha256


def check_regular(path: Path) -> None:
    """Raise RecordingError for a link or special file, FileNotFoundError for none."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise RecordingError(
            f"{path}: is a link or a special file, which a recording never has. "
            "Put the file itself there"
        )
