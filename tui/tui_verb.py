"""`ttscope tui`: the app in this terminal, as a picture, or in browsers."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from traces.errors import MissingDependencyError, UsageError
from traces.extras import install_command


def prepare() -> None:
    """Set what holds for a process with a screen; call it before numpy is imported.

    OpenBLAS' threads spin while they wait, so that small products take twice the processor time,
    of cores on which the screen is to be drawn. polars' take their share of them too: on two cores
    a million steps are read sooner by one.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    os.environ.setdefault("POLARS_MAX_THREADS", str(max((cores or 1) // 2, 1)))


def run_tui(
    paths: Sequence[Path],
    *,
    screenshot: Path | None,
    screen: str,
    size: str,
    min_accuracy: str | None,
    present: Path | None = None,
    systems: Sequence[str] = (),
    keys: Path | None = None,
) -> None:
    """Open the terminal app, or write one of its screens as SVG; `systems` of the prior."""
    prepare()
    from tui.app import TtscopeApp, check_screen
    from tui.app import screenshot as take

    _check(present, systems)
    check_screen(screen)
    limits = {} if min_accuracy is None else {"min_accuracy": min_accuracy}
    start = partial(TtscopeApp, limits=limits, present=present, systems=systems)
    if screenshot is None:
        gc.freeze()  # what is imported stays: looking through it takes 30 ms of a frame
        app = start(paths, keys=_keys(keys), screen=screen)
        app.run()
        if app.return_code:  # it broke, and has said how
            raise SystemExit(app.return_code)
        return
    columns, mark, rows = size.partition("x")
    if not (mark and columns.isdigit() and rows.isdigit()):
        raise UsageError(f"--size {size}: give columns x rows, such as 120x40")
    take(start(paths, keys=keys), screen, (int(columns), int(rows)), screenshot)


def run_web(
    paths: Sequence[Path],
    *,
    web: bool,
    listen: str | None,
    min_accuracy: str | None,
    present: Path | None,
    systems: Sequence[str] = (),
    keys: Path | None,
    screenshot: Path | None,
    screen: str = "recordings",
) -> None:
    """Serve the app to browsers until Ctrl-C.

    Raises UsageError for options that do not go together, MissingDependencyError without
    textual-serve, EngineError where it cannot listen.
    """
    from profiler.receiver import parse_listen

    if not web:
        raise UsageError("--listen: says where --web serves; give both")
    if screenshot is not None:
        raise UsageError("--web and --screenshot exclude each other")
    try:
        from tui.web import PORT, serve
    except ImportError:
        raise MissingDependencyError(
            f"--web needs textual-serve: {install_command('web')}"
        ) from None
    _check(present, systems)
    host, port = ("127.0.0.1", PORT) if listen is None else parse_listen(listen)
    if keys is not None:
        from tui.app import key_ids
        from tui.keys import read_keys

        read_keys(keys, key_ids())  # said here, for a page could not say it
    from tui.app import check_screen

    check_screen(screen)
    named = (("--min-accuracy", min_accuracy), ("--present", present), ("--keys", keys))
    options = [] if screen == "recordings" else [f"--screen={screen}"]
    options += [f"{name}={value}" for name, value in named if value is not None]
    options += [f"--gpu={name}" for name in systems]
    serve([*options, "--", *(str(path) for path in paths)], host, port)


def _check(present: Path | None, systems: Sequence[str]) -> None:
    """Raise UsageError now for what the advice screen would tell only when it is asked."""
    if present is not None:
        from tui.advise_verb import configuration_of

        configuration_of(present)
    if systems:
        from advisor.models.prior_tables import read_prior

        for system in systems:
            read_prior(system)


def _keys(given: Path | None) -> Path | None:
    from tui.keys import default_file

    return default_file() if given is None and default_file().exists() else given
