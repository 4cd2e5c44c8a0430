"""The bytes of a file a piece at a time, gunzipped where it is gzip, up to a limit."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from traces.errors import RecordingError, TtscopeError

PIECE_BYTES = 1 << 18
FREE_BYTES = 64 << 20  # inflated, of any file
MOST_FOLD = 200  # beyond them; exports of tools inflate up to some 50-fold


def swells(inflated: int, read: int) -> bool:
    """Return whether so many bytes made of those that were read are those of a bomb."""
    return inflated > max(FREE_BYTES, MOST_FOLD * read)


def swollen(path: Path) -> str:
    """Return what is wrong with such a file, in one line."""
    return (
        f"{path}: inflates more than {MOST_FOLD}-fold, as no export does. Inflate it first if it "
        "is what you want to read"
    )


class Inflated:
    """Iterate once over the pieces of a file.

    Afterwards `bytes_read` counts the bytes given, and `cut` says in a few words why gzip data
    ended early, None when they did not. While iterating `refuse` is raised, with a message that
    names the file, when it cannot be opened, is a pipe or device, is empty, holds more than
    `limit_bytes`, or inflates more than 200-fold to more than 64 MiB; `what` the bytes are, and
    what the reader may do about it (`remedy`), stand there.
    """

    def __init__(
        self,
        path: Path,
        *,
        limit_bytes: int,
        piece_bytes: int = PIECE_BYTES,
        refuse: type[TtscopeError],
        what: str,
        remedy: str,
    ) -> None:
        self.path = path
        self.bytes_read = 0
        self.cut: str | None = None
        self._limit_bytes = limit_bytes
        self._piece_bytes = piece_bytes
        self._refuse, self._what, self._remedy = refuse, what, remedy

    def __iter__(self) -> Iterator[bytes]:
        try:
            kind = self.path.stat().st_mode
            if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):  # it is opened several times
                raise self._refuse(
                    f"{self.path}: is no regular file. Write what it gives to a file, and name that"
                )
            with self.path.open("rb") as file:
                first = file.read(PIECE_BYTES)
                if not first:
                    raise self._refuse(f"{self.path}: the file is empty. Export it again")
                source = iter(lambda: file.read(PIECE_BYTES), b"")
                zipped = first.startswith(b"\x1f\x8b")
                for piece in self._gunzip(first, source) if zipped else self._plain(first, source):
                    self.bytes_read += len(piece)
                    if zipped and swells(self.bytes_read, file.tell()):
                        raise self._refuse(swollen(self.path))
                    if self.bytes_read > self._limit_bytes:
                        raise self._refuse(
                            f"{self.path}: holds more than {self._limit_bytes:,} bytes of "
                            f"{self._what}. {self._remedy}"
                        )
                    yield piece
                if not self.bytes_read and self.cut is None:
                    raise self._refuse(f"{self.path}: the file is empty, inflated. Export it again")
        except OSError as error:
            raise self._refuse(f"{self.path}: cannot be read ({error.strerror or error})") from None

    @staticmethod
    def _plain(first: bytes, source: Iterator[bytes]) -> Iterator[bytes]:
        yield first.removeprefix(b"\xef\xbb\xbf")
        yield from source

    def _gunzip(self, first: bytes, source: Iterator[bytes]) -> Iterator[bytes]:
        inflate = zlib.decompressobj(wbits=31)
        waiting = first
        while True:
            try:
                piece = inflate.decompress(waiting, self._piece_bytes)
            except zlib.error:
                self.cut = "its gzip data are damaged"
                return
            if piece:
                yield piece
            waiting = inflate.unconsumed_tail
            if inflate.eof:
                waiting = inflate.unused_data.lstrip(b"\0")
                if not (waiting := waiting or next(source, b"")):
                    return
                inflate = zlib.decompressobj(wbits=31)  # another member
            elif not waiting and not (waiting := next(source, b"")):
                yield inflate.flush()
                if not inflate.eof:
                    self.cut = "its gzip data end early"
                return


# Files of ours that appear whole or not at all.


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a path that becomes `path` behind the block, or nothing. Raises RecordingError."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        _forget(partial)
        raise RecordingError(f"{path}: cannot be written ({error.strerror or error})") from None
    except BaseException:
        _forget(partial)
        raise


def as_private(path: str, flags: int) -> int:
    """Open a file that nobody can read who cannot look into its folder, for `open(opener=)`."""
    return os.open(path, flags, 0o666 & Path(path).parent.stat().st_mode)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder survive a power failure. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _forget(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


# What ttscope keeps for itself, and trusts.


@functools.cache
def code_version() -> str:
    """Return a hash of ttscope's code: what other code has made and kept is not taken."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    paths = [*(root / "advisor").rglob("*.json")]
    for package in ("traces", "profiler", "advisor", "tui"):
        paths += (root / package).rglob("*.py")
    for path in sorted(paths):
        digest.update(str(path.relative_to(root)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def own_cache() -> Path:
    """Return ttscope's folder for what can be made again, which is made. Raises OSError."""
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:  # a user without a home
        raise OSError(str(error)) from None
    folder = home / "ttscope"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def private(folder: Path) -> bool:
    """Return whether only this user and root can put files into a folder or change where it is.

    A folder above it may be writable by all where its sticky bit keeps what is in it, as in /tmp.
    """
    trusted = {0, os.geteuid()}
    try:
        resolved = folder.resolve(strict=True)
        for each in (resolved, *resolved.parents):
            status = each.stat()
            others = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            kept = each != resolved and status.st_mode & stat.S_ISVTX
            if status.st_uid not in trusted or (others and not kept):
                return False
    except OSError:
        return False
    return True


# How many values JSON may hold before it is decoded: a text of 3 bytes a value grows 60-fold.


LINE_VALUES = 2_000_000  # of a line, a sample or metadata: 0.5 GB at the worst
DOCUMENT_VALUES = 10_000_000
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_MARKS = (b",", b"[", b"{")


def read_small(path: Path, most: int) -> bytes:
    """Return the bytes of a file, or of a pipe that is open already, such as standard input.

    Another pipe would be waited for. Raises OSError, and ValueError that says why it is not read.
    """
    opened = str(path).startswith(("/dev/stdin", "/dev/fd/"))
    if path.exists() and not (path.is_file() or path.is_dir() or opened):
        raise ValueError("is no regular file")
    with path.open("rb") as file:
        raw = file.read(most + 1)
    if len(raw) > most:
        raise ValueError(f"is larger than {most:,} bytes")
    return raw


def check_values(text: bytes, most: int) -> None:
    """Raise ValueError where JSON holds more values than `most`; strings count as one."""
    if len(text) <= most or sum(map(text.count, _MARKS)) <= most:
        return
    if sum(map(_STRING.sub(b"", text).count, _MARKS)) > most:
        raise ValueError(f"more than {most:,} values")
