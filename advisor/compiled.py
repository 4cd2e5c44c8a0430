"""Compilation of the functions that a replay spends its time in, kept on disk between runs.

numba looks only at the file of a cached function itself, not at those of the functions it calls:
code of an older version could be run. So the folder of the cache is named after the text of
`SOURCES`: all files that hold compiled code, and what these take from.

Parts and kept code rest on numba's inside, which its next version may change. So each version is
tried once on a small function, and where the trial fails all is compiled and loaded as numba does.

To load a cache is to run what it holds. So it is used only where nobody else can write to it, and
numba's settings do not come from a file in the working folder. Else functions are compiled in
memory, in every process.
"""

from __future__ import annotations

import fcntl
import gc
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import numba
import numpy as np
from numba import njit
from numba.core import config
from numba.core.caching import CompileResultCacheImpl, FunctionCache
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.runtime import rtsys
from numba.extending import register_jitable

from traces.errors import RecordingError
from traces.files import own_cache, private, whole_file
from traces.schema import window
from traces.schema.tts import stop_rules

Function = TypeVar("Function", bound=Callable[..., object])

if TYPE_CHECKING:

    def wide(value: int) -> int:
        """Return a number of a record as 64 bits, so that functions are compiled for them alone."""

else:
    wide = np.int64

SOURCES: Final = ("accuracy/orders.py", "compiled.py", "evidence", "replay", "step_time")
LONGEST_WAIT_S: Final = 120.0  # for another process that compiles the same
_TOLD: Final = "as-taken"  # the file of a cache that keeps what the trial found
UNUSED_S: Final = 30 * 86400  # after which the code of another version is deleted


def sources() -> list[Path]:
    """Return the files whose text names a cache, in their order."""
    paths = [Path(__file__).parent / name for name in SOURCES]
    inside = {file for each in paths for file in ([each] if each.is_file() else each.rglob("*.py"))}
    return [*sorted(inside), *(Path(str(each.__file__)) for each in (stop_rules, window))]


def _own_folder() -> Path:
    """Return where this version's machine code lies; what is long unused there is deleted."""
    digest = hashlib.sha256(numba.__version__.encode())
    for source in sources():
        digest.update(source.read_bytes())
    base = own_cache() / "compiled"
    folder = base / digest.hexdigest()[:16]
    for each in (base, folder):
        each.mkdir(mode=0o700, exist_ok=True)
    os.utime(folder)
    for other in base.iterdir():
        if other != folder and time.time() - other.stat().st_mtime > UNUSED_S:
            shutil.rmtree(other, ignore_errors=True)
    return folder


def cache_folder() -> Path | None:
    """Return the folder of the cache, None where none can be written or others can write to it."""
    given = os.environ.get("NUMBA_CACHE_DIR")
    try:
        folder = Path(given) if given else _own_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if private(folder) else None


config._config_fname = ""  # a file in the working folder, which could name another cache
config.reload_config()
CACHE: Final = cache_folder()
if CACHE is not None:
    config.CACHE_DIR = str(CACHE)


class _Part(JITCodeLibrary):  # type: ignore[misc]
    """The code of a function that only compiled ones call; it is optimised as a part of theirs.

    numba optimises and assembles each function with all that it calls, and again with every caller
    further up. Of these only the outermost one is run. It rests on numba's inside.
    """

    def add_llvm_module(self, module: Any) -> None:
        module.data_layout = self._codegen._data_layout
        self._final_module.link_in(module)
        for function in self._final_module.functions:
            if not function.is_declaration:
                function.linkage = "linkonce_odr"  # the same in several parts

    def finalize(self) -> None:
        for library in dict.fromkeys(self._linking_libraries):
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """Return none: no machine code is made."""
        self._ensure_finalized()
        return 0

    @property
    def codegen(self) -> _Part:
        return self

    def set_env(self, name: str, environment: object) -> None:
        """Leave out what only Python's objects would need."""


class _WholeCompiler(Compiler):  # type: ignore[misc]
    """numba's compiler, whose many objects Python does not search for garbage meanwhile."""

    def compile_extra(self, function: Callable[..., object]) -> object:
        searched = gc.isenabled()
        gc.disable()
        try:
            return super().compile_extra(function)
        finally:
            if searched:
                gc.enable()


class _PartCompiler(Compiler):  # type: ignore[misc]
    """numba's compiler, which puts a function into a `_Part` where it can."""

    def __init__(self, typing: Any, target: Any, library: None, *others: Any) -> None:
        part = _Part(target.codegen(), "part") if is_as_taken() else None
        super().__init__(typing, target, part, *others)


class _OwnCode(CompileResultCacheImpl):  # type: ignore[misc]
    """What numba keeps of a function, without the globals of its own functions of arrays.

    Only code that takes up Python's objects looks at them. To read them back would import those
    functions, and scipy's linear algebra with them.
    """

    def reduce(self, cres: Any) -> tuple[Any, ...]:
        *kept, environments = super().reduce(cres)
        own = [e for e in environments if not e.globals["__name__"].startswith("numba.")]
        return (*kept, tuple(own))


class _QuickCache(FunctionCache):  # type: ignore[misc]
    """numba's cache, which reads code without loading what only a compiler needs.

    That is a third of the time of a first call, scipy's linear algebra a part of it. A compiler
    loads it when nothing is found. Of several processes that find nothing, one compiles and the
    others wait for it. Where numba's inside is another, `own` does what it did.
    """

    _impl_class = _OwnCode
    _lock: int | None = None

    def __init__(self, function: Callable[..., object], own: FunctionCache) -> None:
        super().__init__(function)
        self._own = own

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        if not is_as_taken():
            return self._own.load_overload(sig, target_context)
        rtsys.initialize(target_context)
        overload = self._load_overload(sig, target_context)
        if overload is None and self._lock is None:
            self._lock = _wait_for_others(f"{self._impl.filename_base}.lock")
            overload = self._load_overload(sig, target_context)
            if overload is not None:
                self._release()
        return overload

    def save_overload(self, sig: Any, data: Any) -> None:
        if is_as_taken():
            super().save_overload(sig, data)
        else:
            self._own.save_overload(sig, data)
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _wait_for_others(name: str) -> int | None:
    """Return a lock of that name, which closing it gives back, None where none can be had."""
    try:
        lock = os.open(Path(config.CACHE_DIR) / name, os.O_CREAT | os.O_RDWR, 0o600)
    except OSError:
        return None
    until = time.monotonic() + LONGEST_WAIT_S
    while time.monotonic() < until:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            time.sleep(0.05)
    return lock


def compiled(function: Function) -> Function:
    """Compile a function by numba at its first call; the code is kept on disk where it may be."""
    made = njit(cache=CACHE is not None, **_WHOLE)(function)
    if CACHE is not None:
        made._cache = _QuickCache(function, made._cache)
    return cast(Function, made)


def inner(function: Function) -> Function:
    """Compile a function that only compiled ones call and that allocates nothing.

    Without numba's run time (`_nrt`) arrays are not counted as references, which is atomic and
    done for every array of a tuple at every call: it took half of a replay's time.
    """
    return cast(Function, njit(**_INNER)(function))


def shared(function: Function) -> None:
    """Let compiled functions call a plain one, which is compiled as part of them."""
    register_jitable(**_INNER)(function)


_WHOLE: Final[dict[str, Any]] = {"pipeline_class": _WholeCompiler, "error_model": "numpy"}
_INNER: Final[dict[str, Any]] = {
    **{"pipeline_class": _PartCompiler, "error_model": "numpy"},
    **{"no_cpython_wrapper": True, "no_cfunc_wrapper": True, "_nrt": False},
}
for _rule in stop_rules.SHARED:
    shared(_rule)


# The trial of the numba that is installed.


@inner
def _one_more(values: Any) -> Any:
    return values[0] + 1.0


def _doubled(values: Any) -> Any:
    return 2.0 * _one_more(values)


class _Trial:
    """Whether numba's inside is as it is taken here; None until that is known."""

    lock: Final = threading.RLock()
    passed: bool | None = None


def is_as_taken() -> bool:
    """Return whether a small function can be compiled of parts, kept and read again.

    The answer is kept beside the code, whose folder is of this version of numba alone.
    """
    with _Trial.lock:
        if _Trial.passed is None and CACHE is not None:
            with suppress(OSError, KeyError):
                _Trial.passed = {"yes": True, "no": False}[(CACHE / _TOLD).read_text()]
        if _Trial.passed is None:
            _Trial.passed = True  # for what is compiled in the trial
            _Trial.passed = _passes()
            if CACHE is not None:
                with suppress(RecordingError), whole_file(CACHE / _TOLD) as file:
                    file.write_text("yes" if _Trial.passed else "no")
        return _Trial.passed


def _passes() -> bool:
    try:
        made = njit(**_WHOLE)(_doubled)
        if made(np.ones(1)) != 4.0:
            return False
        if CACHE is None:
            return True
        (sig,), own = made.signatures, njit(cache=True)(_doubled)._cache
        _QuickCache(_doubled, own).save_overload(sig, made.overloads[sig])
        read = _QuickCache(_doubled, own).load_overload(sig, made.targetctx)
        return read is not None and bool(read.entry_point(np.ones(1)) == 4.0)
    except Exception:  # whatever another inside makes of it
        return False
