"""The token that a receiver shares with the plugin and with exporters, so that others cannot send.

It is what TTSCOPE_TOKEN holds, else what the file has that TTSCOPE_TOKEN_FILE names, else what the
user's own file has. That one is made by whichever of attach, doctor and the plugin needs it first.
The token never gets into a recording, a log or an error.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shlex
import stat
from pathlib import Path

from traces.errors import UsageError

VARIABLE, FILE_VARIABLE = "TTSCOPE_TOKEN", "TTSCOPE_TOKEN_FILE"
_MOST_BYTES = 512
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{16,256}", re.ASCII)
_WANTED = "16 to 256 letters, digits or any of ._~+/=-"


def shared_token() -> str:
    """Return the token, and make the user's file where there is none.

    Raises UsageError where it cannot be read or made, or where others could have written it.
    """
    if os.environ.get(VARIABLE):
        return _checked(os.environ[VARIABLE], VARIABLE)
    named = os.environ.get(FILE_VARIABLE)
    if named:
        if Path(named).exists() and not Path(named).is_file():  # a pipe would be waited for
            raise UsageError(f"{FILE_VARIABLE}: {named} is no file. Name a file with the token")
        try:
            with Path(named).open("rb") as file:
                return _checked(_text(file.read(_MOST_BYTES + 1)), f"{FILE_VARIABLE}: {named}")
        except OSError as error:
            raise UsageError(
                f"{FILE_VARIABLE}: {named} cannot be read ({error.strerror}). Name another file"
            ) from None
    try:
        path = token_path()
    except RuntimeError:
        raise UsageError(f"no home folder to keep the token in. Set {VARIABLE}") from None
    try:
        _make(path)
        return _checked(_own(path), str(path))
    except OSError as error:
        raise UsageError(
            f"{path}: the token cannot be kept there ({error.strerror}). Set {VARIABLE} instead"
        ) from None


def token_path() -> Path:
    """Return where the user's own token lies."""
    state = os.environ.get("XDG_STATE_HOME", "")
    base = Path(state) if Path(state).is_absolute() else Path.home() / ".local" / "state"
    return base / "ttscope" / "token"


def in_a_shell() -> str:
    """Return what a shell on this machine puts in the token's place: `$(cat FILE)`."""
    if os.environ.get(VARIABLE):
        return f"${VARIABLE}"
    named = os.environ.get(FILE_VARIABLE)
    path = Path(named).absolute() if named else token_path()
    return f"$(cat {shlex.quote(str(path))})"


def _make(path: Path) -> None:
    """Make the file whole, or leave the one that is there, whoever of several comes first."""
    if path.exists() or path.is_symlink():
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_owner(path.parent, path.parent.lstat())
    made = path.with_name(f".token-{os.getpid()}-{secrets.token_hex(8)}")
    descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(f"{secrets.token_urlsafe(32)}\n".encode())
        with contextlib.suppress(FileExistsError):
            os.link(made, path)  # fails where another was first
    finally:
        made.unlink()


def _own(path: Path) -> str:
    """Read the user's own file, which nobody else may read or write."""
    _check_owner(path.parent, path.parent.lstat())
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{path}: is no file. Delete it, and ttscope makes another")
        _check_owner(path, status)
        return _text(file.read(_MOST_BYTES + 1))


def _check_owner(path: Path, found: os.stat_result) -> None:
    if found.st_uid != os.geteuid():
        raise UsageError(f"{path}: belongs to another user. Move it away, or set {VARIABLE}")
    if stat.S_ISLNK(found.st_mode):
        raise UsageError(f"{path}: is a link. Put a folder there, or set {VARIABLE}")
    if found.st_mode & 0o077:
        mode = "700" if stat.S_ISDIR(found.st_mode) else "600"
        raise UsageError(f"{path}: others can open it. Run chmod {mode} {shlex.quote(str(path))}")


def _text(data: bytes) -> str:
    return data.decode("ascii", errors="replace")


def _checked(text: str, where: str) -> str:
    token = text.strip()
    if not _TOKEN.fullmatch(token):
        raise UsageError(f"{where}: holds no token. Write {_WANTED}")
    return token
