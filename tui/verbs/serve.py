"""`ttscope serve`: an OpenAI-compatible endpoint that answers with a policy."""

from __future__ import annotations

import importlib.util
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from traces.errors import MissingDependencyError, UsageError, install_command
from traces.recording.manifest import check_free
from tui.options import Output, Price, Verifier, takes
from tui.terminal import say_all, tell
from tui.text.commands import next_lines


@dataclass(frozen=True, kw_only=True)
class Serve:
    """The policy, the engine behind it, and where to listen."""

    policy: Annotated[Path, typer.Argument(help="The policy.json of ttscope advise -o.")]
    upstream: Annotated[str, typer.Option(metavar="URL", help="The engine that samples answers.")]
    model: Annotated[str | None, typer.Option(help="Which of the engine's models.")] = None
    api_key_env: Annotated[
        str | None,
        typer.Option(
            help="Environment variable with the key for the check of the engine at the start."
        ),
    ] = None
    verifier: Verifier = None
    price: Price = None
    otlp: Annotated[str | None, typer.Option(help="Also send spans to this OTLP/HTTP URL.")] = None
    output: Output = None
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1"
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on. 0 takes a free one.")
    ] = 8100
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Also accept requests to this host name."),
    ] = None
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="Also accept requests of web pages of this origin."),
    ] = None
    in_flight: Annotated[int, typer.Option(min=1, help="Questions worked on at a time.")] = 64
    queue: Annotated[int, typer.Option(min=0, help="Questions that wait. More get 503.")] = 256
    timeout: Annotated[
        float, typer.Option(help="Seconds per question. Then its ended samples decide.")
    ] = 600.0
    drain: Annotated[float, typer.Option(help="Seconds that running questions get at the end.")] = (
        30.0
    )
    max_body: Annotated[int, typer.Option(min=1, help="Largest request, in MiB.")] = 4


@takes(Serve, panels={"host": "Where it listens", "in_flight": "Limits"})
def serve(asked: Serve) -> None:
    """Answer an OpenAI client's questions with a policy, in front of an engine."""
    for needed in ("aiohttp", "uvloop"):
        if importlib.util.find_spec(needed) is None:
            raise MissingDependencyError(f"serve needs {needed}: {install_command('serve')}")
    from profiler.runs.telemetry import check_settings
    from profiler.serve.serve import serve as answer
    from profiler.serve.service import Settings
    from traces.deployment.documents import read_policy
    from tui.verbs.interrupted import says_what_is_kept

    document = read_policy(asked.policy)
    for name in ("timeout", "drain"):
        if not 0 <= getattr(asked, name) < 1e6 or (name == "timeout" and not asked.timeout):
            raise UsageError(f"--{name} must be a number of seconds, not {getattr(asked, name)}")
    if asked.price is not None and not asked.price > 0:
        raise UsageError(f"--price must be above 0, not {asked.price}")
    check_settings(asked.otlp)
    folder = asked.output or Path("runs") / f"served-{time.strftime('%Y%m%d-%H%M%S')}"
    check_free(folder)

    def ready(url: str) -> None:
        tell(f"answers at {url}/v1 by {document.policy.label()}")
        tell(f"is recorded in {folder}. Ctrl-C ends it")

    with says_what_is_kept(folder):
        answer(
            document,
            asked.upstream,
            folder,
            Settings(
                host=asked.host,
                port=asked.port,
                hosts=frozenset(asked.allow_host or ()),
                origins=frozenset(asked.allow_origin or ()),
                in_flight=asked.in_flight,
                waiting=asked.queue,
                timeout_s=asked.timeout,
                drain_s=asked.drain,
                most_body_bytes=asked.max_body << 20,
            ),
            verifier=asked.verifier,
            model=asked.model,
            api_key_env=asked.api_key_env,
            otlp=asked.otlp,
            price_usd_per_device_hour=asked.price,
            ready=ready,
        )
    say_all([f"kept in {folder}", *next_lines("show", folder)])
