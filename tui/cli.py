"""The command line: which verb is meant, and what its errors become.

A verb is a file of tui/verbs with a dataclass of its options. It is imported when it is called, so
that `ttscope --help` answers at once. Every verb exits 0 on success, 1 on a failure and 2 on wrong
usage, either told in one line on stderr.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import select
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from tui.terminal import say

VERBS = {  # name: its function, and what `ttscope --help` says of it
    "record": ("record.record", "Run a test-time-scaling workload on vLLM and keep a recording."),
    "attach": (
        "attach.attach", "Profile a live deployment: its own traffic, or with a workload of yours.",
    ),
    "tui": ("terminal.tui", "Open the terminal app."),
    "sweep": (
        "sweep.sweep", "Measure a list or grid of configurations, but none twice.",
    ),
    "show": (
        "show.show", "Tell what happened in a recording, or what differs between two.",
    ),
    "replay": (
        "replay.replay", "Predict a recorded run under a configuration that was never run.",
    ),
    "import": (
        "import_export.import_",
        "Make a recording of others' profiler traces, samples, requests or forward passes.",
    ),
    "export": (
        "import_export.export",
        "Write a recording for Perfetto and chrome://tracing, or as a trace of requests.",
    ),
    "advise": ("advise.advise", "Recommend the system-optimal configuration for a budget."),
    "serve": (
        "serve.serve", "Answer an OpenAI client's questions with a policy, in front of an engine.",
    ),
    "gate": (
        "gate.gate",
        "Hold a recording or a server against what was promised, or an earlier recording: for CI.",
    ),
    "report": (
        "report.report",
        "Write one HTML page that tells what was measured and what to run for a budget.",
    ),
    "demo": (
        "demo.demo", "Run the whole loop on the bundled reasoners with real vLLM on this machine.",
    ),
    "doctor": (
        "doctor.doctor",
        "Say what can be captured, here or of a server, or what can be predicted of a model.",
    ),
}  # fmt: skip


class Verbs(TyperGroup):
    """The verbs by name; only the one that is called is imported."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the order of `ttscope --help`."""
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a stand-in that has a verb's help, None where there is no such verb."""
        place = VERBS.get(cmd_name)
        return None if place is None else TyperCommand(cmd_name, help=place[1])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, command and loaded(str(name)), rest


def loaded(name: str) -> Any:
    """Return a verb as a command, its module imported."""
    if name == "import":  # numpy's OpenBLAS would start threads, each of which spins for 50 ms
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    module, _, function = VERBS[name][0].partition(".")
    verb = getattr(importlib.import_module(f"tui.verbs.{module}"), function)
    own = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    own.command(name)(verb)
    return typer.main.get_command(own)


app = typer.Typer(
    cls=Verbs,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Which configuration should serve your reasoning model? Profile, replay and choose.",
)


def main() -> NoReturn:
    """Run the command line; the one place where errors become exit codes."""
    from traces.errors import TtscopeError

    os.environ["PYTHONSAFEPATH"] = "1"  # no child imports from the folder that the user stands in
    code: Any = None
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
    except TtscopeError as error:
        fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        fail("interrupted", 130)
    except (typer.Abort, EOFError):
        fail("aborted", 1)
    except (BrokenPipeError, SystemExit) as error:
        cause = error.__context__ if isinstance(error, SystemExit) else error  # Typer exits
        if not isinstance(cause, BrokenPipeError):
            raise
        _leave_pipe(code)
    except Exception as error:
        show = getattr(error, "format_message", None)  # click's usage errors
        if show is None:
            raise
        fail(show(), 2)
    if code == 130:  # Typer's answer to Ctrl-C
        fail("interrupted", code)
    sys.exit(code if isinstance(code, int) else 0)


def fail(message: str, code: int) -> NoReturn:
    """Say one line on stderr and leave."""
    with contextlib.suppress(OSError):  # stderr may be a pipe that closed
        say(f"ttscope: {message}", file=sys.stderr)
    sys.exit(code)


def _leave_pipe(code: Any) -> NoReturn:
    """Leave without a word when the reader of stdout or stderr has gone, as `head` does.

    Another pipe that broke is a failure.
    """
    streams = select.poll()
    for number in (1, 2):
        streams.register(number, 0)
    closed = any(events & select.POLLERR for _, events in streams.poll(0))
    rich_has_left = os.path.samestat(os.fstat(1), Path(os.devnull).stat())  # as below
    if not closed and not rich_has_left:
        fail("a pipe to another process broke. Is that process still running?", 1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):  # else Python complains when it flushes them at its end
        os.dup2(nowhere, number)
    sys.exit(code if isinstance(code, int) else 0)


def _version(wanted: bool) -> None:
    if wanted:
        import importlib.metadata

        say(f"ttscope {importlib.metadata.version('ttscope')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
    ] = False,
) -> Any:
    """Hold the options that belong to no verb."""
