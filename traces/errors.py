"""Errors that a user can act on. Anything else that escapes is a defect of ttscope."""

from __future__ import annotations

import functools


class TtscopeError(Exception):
    """A failure told in one line: what happened, where, and what mends it."""

    exit_code = 1

    def __str__(self) -> str:
        return " ".join(super().__str__().split())

    def _render_traceback_(self) -> list[str]:
        """Return what IPython shows in a cell: the line, without a traceback."""
        return [f"{type(self).__name__}: {self}"]


class UsageError(TtscopeError):
    """The arguments, the budget or the plan are wrong."""

    exit_code = 2


class WorkloadsError(UsageError):
    """Recordings that should be of one workload answer different problems."""


class Interrupted(TtscopeError):
    """The user ended what ran; says what of it is kept."""

    exit_code = 130


class RecordingError(TtscopeError):
    """A path is no recording, or a part of one cannot be read."""


class NewerSchemaError(RecordingError):
    """The recording was written by a newer ttscope."""


class TraceError(TtscopeError):
    """A file is no profiler trace, is too large, or nothing in it can be read."""


class TablesError(TtscopeError):
    """A folder holds no tables of operator times, or one of them is damaged."""


class OutcomesError(TtscopeError):
    """A file holds no outcomes of samples, is too large, or nothing in it can be read."""


class EngineError(TtscopeError):
    """An engine cannot be started, reached or used."""


class MissingDependencyError(TtscopeError):
    """An optional package is not installed."""


@functools.cache
def installed(package: str) -> str | None:
    """Return the installed version of a package, None where it is absent."""
    import importlib.metadata

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def install_command(extra: str) -> str:
    """Return the command that installs an extra's packages, as ttscope is on no package index."""
    import importlib.metadata
    import re
    import shlex
    import sys

    asked = re.compile(rf"""extra == ["']{extra}["']""")
    try:
        listed = importlib.metadata.requires("ttscope") or []
    except importlib.metadata.PackageNotFoundError:  # run from its sources
        listed = []
    packages = [each.partition(";")[0].strip() for each in listed if asked.search(each)]
    if not packages:
        return f"pip install -e '.[{extra}]' in a checkout of ttscope"
    return shlex.join([sys.executable, "-m", "pip", "install", *packages])
