"""Compilation of the functions that a replay spends its time in, kept on disk between runs.

numba looks only at the file of a cached function itself, not at those of the functions it calls:
code of an older version could be run. So the folder of the cache is named after the text of all
files that hold compiled code.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar, cast

import numba
import numpy as np
from numba import njit

Function = TypeVar("Function", bound=Callable[..., object])

if TYPE_CHECKING:

    def wide(value: int) -> int:
        """Return a number of a record as 64 bits, so that functions are compiled for them alone."""

else:
    wide = np.int64

UNUSED_S: Final = 30 * 86400  # after which the code of another version is deleted


def compiled(function: Function) -> Function:
    """Compile a function by numba at its first call; the machine code is cached on disk."""
    return cast(Function, njit(cache=True, error_model="numpy")(function))


def leaf(function: Function) -> Function:
    """Compile a function that allocates nothing, like `inner`, but that Python may call too."""
    return cast(Function, njit(error_model="numpy", _nrt=False)(function))


def inner(function: Function) -> Function:
    """Compile a function that only compiled ones call and that allocates nothing.

    Without numba's run time (`_nrt`) arrays are not counted as references, which is atomic and
    done for every array of a tuple at every call: it took half of a replay's time.
    """
    options = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, "_nrt": False}
    return cast(Function, njit(error_model="numpy", **options)(function))


def inlined(function: Function) -> Function:
    """Compile a small function into those that call it."""
    return cast(Function, njit(error_model="numpy", inline="always", _nrt=False)(function))


def _cache_folder() -> Path:
    """Return where this version's machine code lies, and delete what is long unused."""
    digest = hashlib.sha256(numba.__version__.encode())
    for source in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(source.read_bytes())
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    base = Path(home) / "ttscope" / "compiled"
    folder = base / digest.hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        for other in base.iterdir():
            if other != folder and time.time() - other.stat().st_mtime > UNUSED_S:
                shutil.rmtree(other, ignore_errors=True)
    except OSError:  # a read-only home: compiled anew in every process, as numba would
        return Path(tempfile.mkdtemp(prefix="ttscope-"))
    return folder


if not numba.config.CACHE_DIR:
    numba.config.CACHE_DIR = str(_cache_folder())
