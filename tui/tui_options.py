"""The options of `ttscope tui`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def tui(
    recordings: Annotated[
        list[Path] | None, typer.Argument(help="Recordings, or folders; ./runs by default.")
    ] = None,
    screenshot: Annotated[
        Path | None, typer.Option(help="Write one screen as SVG and leave.")
    ] = None,
    screen: Annotated[
        str, typer.Option(help="Shown first: recordings, run, live or advice.")
    ] = "recordings",
    size: Annotated[str, typer.Option(help="Columns x rows of the screenshot.")] = "120x40",
    min_accuracy: Annotated[
        str | None, typer.Option(help="Limit that the advice screen starts with.")
    ] = None,
    present: Annotated[
        Path | None, typer.Option(help="A recording of what runs today, for the advice screen.")
    ] = None,
    gpu: Annotated[
        list[str] | None,
        typer.Option(help="Offer this GPU of the prior on the advice screen: h100_sxm."),
    ] = None,
    keys: Annotated[
        Path | None, typer.Option(help="TOML of keys elsewhere; ~/.config/ttscope/keys.toml.")
    ] = None,
    web: Annotated[
        bool, typer.Option("--web", help="Serve the app to browsers; needs the extra web.")
    ] = False,
    listen: Annotated[
        str | None,
        typer.Option(metavar="[HOST:]PORT", help="Where --web serves (127.0.0.1:8080)."),
    ] = None,
) -> None:
    """Open the terminal app."""
    from tui.tui_verb import run_tui, run_web

    paths = recordings or [Path("runs")]
    if web or listen is not None:
        run_web(
            paths,
            web=web,
            listen=listen,
            min_accuracy=min_accuracy,
            present=present,
            systems=gpu or (),
            keys=keys,
            screenshot=screenshot,
            screen=screen,
        )
        return
    run_tui(
        paths,
        screenshot=screenshot,
        screen=screen,
        size=size,
        min_accuracy=min_accuracy,
        present=present,
        systems=gpu or (),
        keys=keys,
    )
