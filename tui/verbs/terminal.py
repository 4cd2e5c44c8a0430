"""`ttscope tui`: the app in this terminal, as a picture, or in browsers."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from traces.errors import MissingDependencyError, RecordingError, UsageError, install_command
from tui.options import argument, option, takes


def prepare() -> None:
    """Set what holds for a process with a screen; call it before numpy is imported.

    OpenBLAS' threads spin while they wait, so that small products take twice the processor time,
    of cores on which the screen is to be drawn. polars' take their share of them too: on two cores
    a million steps are read sooner by one.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    os.environ.setdefault("POLARS_MAX_THREADS", str(max((cores or 1) // 2, 1)))


@dataclass(frozen=True, kw_only=True)
class Terminal:
    """What the app opens with, or what it writes."""

    recordings: list[str] | None = argument(
        "Recordings, or folders, ./runs by default, or a server's URL to watch.",
        default=None,
    )
    screen: str = option("recordings", "Shown first: recordings, run, live or advice.")
    keys: Path | None = option(None, "TOML of keys instead of ~/.config/ttscope/keys.toml.")
    min_accuracy: str | None = option(None, "Limit that the advice screen starts with.")
    present: Path | None = option(None, "A recording of what runs today, for the advice screen.")
    gpu: list[str] | None = option(
        None, "Offer this GPU of the prior on the advice screen: h100_sxm."
    )
    screenshot: Path | None = option(None, "Write one screen as SVG and leave.")
    size: str = option("120x40", "Columns x rows of the screenshot.")
    web: bool = option(False, "Serve the app to browsers (extra web).")
    listen: str | None = option(None, "Where --web serves (127.0.0.1:8080).", metavar="[HOST:]PORT")


@takes(
    Terminal, panels={"min_accuracy": "Advice", "screenshot": "A picture", "web": "In a browser"}
)
def tui(asked: Terminal) -> None:
    """Open the terminal app."""
    urls = [each for each in asked.recordings or () if "://" in each]
    named = [Path(each) for each in asked.recordings or () if "://" not in each]
    paths, systems = named or [Path("runs")], asked.gpu or ()
    for path in named:
        if not path.exists():
            raise RecordingError(f"{path}: no such recording or folder")
    if urls and (asked.web or asked.screenshot is not None):
        raise UsageError(f"{urls[0]}: --web and --screenshot watch no server. Leave it out")
    if asked.web or asked.listen is not None:
        _serve(asked, paths, systems)
        return
    prepare()
    from tui.app.app import TtscopeApp, check_screen
    from tui.app.app import screenshot as take
    from tui.app.keys import default_file
    from tui.screens.earlier import EarlierAnswers

    _check(asked.present, paths, systems)
    check_screen(asked.screen)
    limits = {} if asked.min_accuracy is None else {"min_accuracy": asked.min_accuracy}
    start = partial(TtscopeApp, limits=limits, present=asked.present, systems=systems)
    if asked.screenshot is None:
        gc.freeze()  # what is imported stays: looking through it takes 30 ms of a frame
        keys = default_file() if default_file().exists() else None
        screen = "live" if urls else asked.screen
        app = start(paths, keys=asked.keys or keys, screen=screen, watch=" ".join(urls))
        app.learns_ahead, app.answers = True, EarlierAnswers(systems)
        app.run()
        if app.return_code:  # it broke, and has said how
            raise SystemExit(app.return_code)
        return
    columns, mark, rows = asked.size.partition("x")
    if not (mark and columns.isdigit() and rows.isdigit()):
        raise UsageError(f"--size {asked.size}: give columns x rows, such as 120x40")
    take(start(paths, keys=asked.keys), asked.screen, (int(columns), int(rows)), asked.screenshot)


def _serve(asked: Terminal, paths: Sequence[Path], systems: Sequence[str]) -> None:
    """Serve the app to browsers until Ctrl-C.

    Raises UsageError for options that do not go together, MissingDependencyError without
    textual-serve, EngineError where it cannot listen.
    """
    from profiler.attach.receiver.receiver import parse_listen

    if not asked.web:
        raise UsageError("--listen: says where --web serves. Give both")
    if asked.screenshot is not None:
        raise UsageError("--web and --screenshot exclude each other")
    try:
        from tui.app.web import PORT, serve
    except ImportError:
        raise MissingDependencyError(
            f"--web needs textual-serve: {install_command('web')}"
        ) from None
    _check(asked.present, paths, systems)
    host, port = ("127.0.0.1", PORT) if asked.listen is None else parse_listen(asked.listen)
    if asked.keys is not None:
        from tui.app.app import key_ids
        from tui.app.keys import read_keys

        read_keys(asked.keys, key_ids())  # said here, for a page could not say it
    from tui.app.app import check_screen

    check_screen(asked.screen)
    named = (
        ("--min-accuracy", asked.min_accuracy),
        ("--present", asked.present),
        ("--keys", asked.keys),
    )
    options = [] if asked.screen == "recordings" else [f"--screen={asked.screen}"]
    options += [f"{name}={value}" for name, value in named if value is not None]
    options += [f"--gpu={name}" for name in systems]
    serve([*options, "--", *(str(path) for path in paths)], host, port)


def _check(present: Path | None, paths: Sequence[Path], systems: Sequence[str]) -> None:
    """Raise UsageError now for what the advice screen would tell only when it is asked."""
    if present is not None:
        from tui.verbs.advise import configuration_of

        configuration_of(present, paths)
    if systems:
        from advisor.step_time.prior.relatives import read_gpu

        for system in systems:
            read_gpu(system)
