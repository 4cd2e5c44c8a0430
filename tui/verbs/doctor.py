"""`ttscope doctor`: what can be captured here, or of a server, and what each missing part needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from traces.errors import UsageError
from tui.options import Json, takes
from tui.text.layout import wrap
from tui.text.terminal import say, say_json


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Which server, and its key; without one, this machine."""

    url: Annotated[str | None, typer.Argument(help="A running server, looked at from outside.")] = (
        None
    )
    metrics_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Where the server's metrics are.")
    ] = None
    api_key_env: Annotated[
        str | None, typer.Option(help="Environment variable that holds the server's key.")
    ] = None
    api_key_file: Annotated[Path | None, typer.Option(help="File that holds it.")] = None
    header: Annotated[
        list[str] | None,
        typer.Option(metavar="'NAME: VALUE'", help="Goes with every request; $VAR is read."),
    ] = None
    as_json: Json = False


@takes(Doctor)
def doctor(asked: Doctor) -> None:
    """Say what can be captured, here or of a server, and what each missing part needs."""
    from tui.verbs.progress import progress_bar

    if asked.url is None:
        from profiler.doctor import examine

        if asked.api_key_env or asked.api_key_file or asked.header or asked.metrics_url:
            raise UsageError("a key, a header or metrics are of a server; name its URL")
        with progress_bar() as bar:
            bar.add_task("looking at this machine, and whether vLLM starts", total=None)
            findings = examine()
    else:
        from profiler.doctor import examine_server
        from profiler.engines.server.access import Access, read_headers, read_key

        given = read_headers(read_key(asked.api_key_env, asked.api_key_file), asked.header or ())
        access = Access.of(asked.url, given)
        if asked.metrics_url is not None:
            access = access.with_metrics(asked.metrics_url)
        with progress_bar() as bar:
            bar.add_task(f"looking at {access.url}", total=None)
            findings = examine_server(access)
    if asked.as_json:
        say_json({"findings": [finding.to_json() for finding in findings]})
        return
    for finding in findings:
        mark = {True: "yes", False: "no", None: "-"}[finding.present]
        lines = wrap(f"{mark:<4}{finding.what}", finding.detail, width=80, indent=26)
        if finding.needs:
            lines += wrap("", f"needs: {finding.needs}", width=80, indent=26)
        for line in lines:
            say(line)
