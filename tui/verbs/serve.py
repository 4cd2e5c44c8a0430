"""`ttscope serve`: an OpenAI-compatible endpoint that answers with a policy."""

from __future__ import annotations

import importlib.util
import time
from dataclasses import MISSING, dataclass
from pathlib import Path

from traces.errors import MissingDependencyError, UsageError, install_command
from traces.recording.manifest import check_free
from tui.options import Output, Price, Verifier, argument, check_price, option, takes
from tui.terminal import say_all, tell
from tui.text.commands import next_lines


@dataclass(frozen=True, kw_only=True)
class Serve:
    """The policy, the engine behind it, and where to listen."""

    policy: Path = argument("The policy.json of ttscope advise -o.")
    upstream: str = option(MISSING, "The engine that samples answers.", metavar="URL")
    model: str | None = option(None, "Which of the engine's models.")
    api_key_env: str | None = option(
        None,
        "Environment variable with the engine's key: for a first look, and for samples if clients "
        "give a key of yours.",
    )
    verifier: Verifier = None
    price: Price = None
    otlp: str | None = option(None, "Also send spans to this OTLP/HTTP URL.")
    output: Output = None
    host: str = option("127.0.0.1", "Address to listen on.")
    port: int = option(8100, "Port to listen on. 0 takes a free one.", min=0, max=65535)
    allow_host: list[str] | None = option(
        None, "Also accept requests to this host name.", metavar="NAME"
    )
    allow_origin: list[str] | None = option(
        None, "Also accept requests of web pages of this origin.", metavar="ORIGIN"
    )
    client_key_env: str | None = option(
        None, "Environment variable with the key that clients have to give."
    )
    client_key_file: Path | None = option(None, "File that holds it.")
    in_flight: int = option(64, "Questions worked on at a time.", min=1)
    queue: int = option(256, "Questions that wait. More get 503.", min=0)
    timeout: float = option(600.0, "Seconds per question. Then its ended samples decide.")
    drain: float = option(30.0, "Seconds that running questions get at the end.")
    max_body: int = option(4, "Largest request, in MiB.", min=1)


@takes(Serve, panels={"host": "Where it listens", "in_flight": "Limits"})
def serve(asked: Serve) -> None:
    """Answer an OpenAI client's questions with a policy, in front of an engine."""
    for needed in ("aiohttp", "uvloop"):
        if importlib.util.find_spec(needed) is None:
            raise MissingDependencyError(f"serve needs {needed}: {install_command('serve')}")
    from profiler.engines.server.access import read_key
    from profiler.runs.telemetry import check_settings
    from profiler.serve.serve import serve as answer
    from profiler.serve.service import Settings
    from traces.deployment.documents import read_policy
    from tui.verbs.interrupted import says_what_is_kept

    document = read_policy(asked.policy)
    for name in ("timeout", "drain"):
        if not 0 <= getattr(asked, name) < 1e6 or (name == "timeout" and not asked.timeout):
            raise UsageError(f"--{name} must be a number of seconds, not {getattr(asked, name)}")
    key = read_key(asked.client_key_env, asked.client_key_file, "--client-key")
    check_price(asked.price)
    check_settings(asked.otlp)
    folder = asked.output or Path("runs") / f"served-{time.strftime('%Y%m%d-%H%M%S')}"
    check_free(folder)

    def ready(url: str) -> None:
        tell(f"answers at {url}/v1 by {document.policy.label()}")
        tell(f"records into {folder}. Ctrl-C ends it")

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
                key=key,
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
