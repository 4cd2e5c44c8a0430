"""The command line: which verb is meant, and what its errors become.

A verb is a file of tui/verbs with a dataclass of its options. It is imported when it is called, so
that `ttscope --help` answers at once. What ends with another code than 0 says why in one line on
stderr (`EXIT_CODES`).
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import gc
import importlib
import os
import select
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args

import typer
from typer.core import TyperCommand, TyperGroup

from traces.endings import leaving_at_ctrl_c
from tui.terminal import say, tell

MEASURE, LOOK, DECIDE, BEGIN = "Measure", "Look", "Decide and serve", "Begin here"
VERBS = {  # name: its function, what `ttscope --help` says of it, its group there, examples
    "demo": (
        "demo.demo",
        "Run the whole loop on the bundled reasoners with real vLLM on this machine.",
        BEGIN,
        ("ttscope demo --shipped --once",),
    ),
    "doctor": (
        "doctor.doctor",
        "Check what can be captured here or on a server, or predicted of a model.",
        BEGIN,
        ("ttscope doctor", "ttscope doctor http://localhost:8000"),
    ),
    "record": (
        "record.record",
        "Run a test-time-scaling workload on vLLM and keep a recording.",
        MEASURE,
        (
            "ttscope record --model demo/s --problems 24 --n 8 -o runs/votes",
            "ttscope record --endpoint http://localhost:8000 --workload my.jsonl --n 8",
        ),
    ),
    "sweep": (
        "sweep.sweep",
        "Measure a list or grid of configurations, each once.",
        MEASURE,
        ("ttscope sweep plan.yaml -o runs",),
    ),
    "attach": (
        "attach.attach",
        "Profile a live deployment: its own traffic, or with a workload of yours.",
        MEASURE,
        (
            "ttscope attach http://localhost:8000 --duration 10m -o runs/live",
            "ttscope attach http://localhost:8000 --workload demo --n 4 --listen 4318",
        ),
    ),
    "import": (
        "import_export.import_",
        "Make a recording of others' profiler traces, samples, requests or forward passes.",
        MEASURE,
        (
            "ttscope import samples_gsm8k.jsonl -o runs/outcomes",
            "ttscope import conversations.csv -o runs/requests",
        ),
    ),
    "show": (
        "show.show",
        "Summarise a recording, or compare two.",
        LOOK,
        ("ttscope show runs/votes", "ttscope show runs/before runs/after --fail-on 'p95>+5%'"),
    ),
    "tui": ("terminal.tui", "Open the terminal app.", LOOK, ("ttscope tui runs",)),
    "report": (
        "report.report",
        "Write one HTML page: what was measured, and what to run for a budget.",
        LOOK,
        ("ttscope report runs --min-accuracy 0.75 -o report.html",),
    ),
    "export": (
        "import_export.export",
        "Write a recording for Perfetto and chrome://tracing, or as a trace of requests.",
        LOOK,
        (
            "ttscope export runs/votes -o trace.json.gz",
            "ttscope export runs/votes -o trace.jsonl --format mooncake",
        ),
    ),
    "replay": (
        "replay.replay",
        "Predict a recorded run under a configuration that was never run.",
        DECIDE,
        ("ttscope replay runs/votes --set engine.max_num_seqs=32 --set policy.n=4",),
    ),
    "advise": (
        "advise.advise",
        "Recommend the system-optimal configuration for a budget.",
        DECIDE,
        (
            "ttscope advise runs --min-accuracy 0.75",
            "ttscope advise runs --max-latency 20s --min-accuracy 0.9 -o deploy",
        ),
    ),
    "serve": (
        "serve.serve",
        "Answer an OpenAI client's questions with a policy, in front of an engine.",
        DECIDE,
        ("ttscope serve deploy/policy.json --upstream http://localhost:8000",),
    ),
    "gate": (
        "gate.gate",
        "Check a recording or a server against a promise or an earlier recording, for CI.",
        DECIDE,
        (
            "ttscope gate deploy/expect.json runs/after",
            "ttscope gate runs/before runs/after --fail-on 'p95>+5%'",
        ),
    ),
}


EXIT_CODES = {
    0: "It is done.",
    1: "It failed, or nothing fits the budget, or a limit cannot be judged.",
    2: "An argument, a budget or a plan is wrong.",
    3: "A limit is broken (show --fail-on, gate, attach --expect).",
    130: "Ctrl-C ended it. What was recorded is kept.",
}


def examples(lines: Sequence[str]) -> str:
    """Return what a help ends with."""
    return "\n".join([f"Example{'s' if len(lines) > 1 else ''}:", *lines])


TYPES = {  # what Typer calls a value, and what a help calls it
    "<bool>": "", "<str>": "TEXT", "<int>": "NUMBER", "<float>": "NUMBER", "<path>": "PATH",
    "<int range>": "NUMBER", "<list[str]>": "TEXT ..", "<list[Path]>": "PATH ..",
}  # fmt: skip


class Verb(TyperCommand):
    """A verb, whose help names values as people do, not as Python does.

    An option of one value that is given twice is refused: the second would replace the first.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:  # of a shell's completion
            given: list[Any] = self.make_parser(ctx).parse_args(list(args))[-1]
            for each in given:
                one = each.opts[-1].startswith("-") and not each.multiple and each.nargs == 1
                if one and not each.is_flag and given.count(each) > 1:
                    from traces.errors import UsageError

                    raise UsageError(f"{each.opts[-1]} is given more than once. Give one")
        return super().parse_args(ctx, args)

    def get_params(self, ctx: Any) -> Any:
        return _typed(super().get_params(ctx))


class Verbs(TyperGroup):
    """The verbs by name; only the one that is called is imported."""

    def get_params(self, ctx: Any) -> Any:
        return _typed(super().get_params(ctx))

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the order of `ttscope --help`."""
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a stand-in that has a verb's help, None where there is no such verb."""
        if cmd_name not in VERBS:
            return None
        _, summary, group, _ = VERBS[cmd_name]
        return TyperCommand(cmd_name, help=summary, rich_help_panel=group)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in VERBS and not ctx.resilient_parsing:  # of a shell's completion
            from traces.errors import UsageError
            from traces.schema.tts.parameters import meant

            raise UsageError(f"No such command {args[0]}: {meant(args[0], list(VERBS))}")
        name, command, rest = super().resolve_command(ctx, args)
        return name, command and loaded(str(name)), rest


def _typed(parameters: Any) -> Any:
    for each in parameters:
        each.display_type_rich = partial(_value_of, each, each.display_type)
        if read := getattr(type(each), "get_runtime_param", None):  # it reads by pydantic
            each.get_runtime_param = partial(_Plain, partial(read, each))
    return parameters


def _value_of(param: Any, typed: Callable[[Any], str], ctx: Any) -> str:
    """Return what a help calls a value: as its parameter says, else by its type."""
    kind = TYPES.get(typed(ctx), typed(ctx))
    if not param.metavar or not kind:
        return kind
    return f"{param.metavar} .." if kind.endswith("..") else str(param.metavar)


class _Plain:
    """Takes texts, paths and defaults as they are, and other values as Typer does.

    Typer reads all of them by pydantic, which takes a thirteenth of the processor time of a replay.
    """

    def __init__(self, others: Callable[[], Any]) -> None:
        self._others = others

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the value in the type of its parameter. Raises click's BadParameter."""
        kind, several = param.type_descriptor.annotation, param.multiple or param.nargs == -1
        if value is None:
            return () if several else None
        if type(value) is kind and kind in (int, float):  # a default
            return value
        one: Any = next(iter(get_args(kind)), None) if several else kind
        given = value if several else [value]
        if isinstance(given, list | tuple) and all(_is_plain(each, one) for each in given):
            return [one(each) for each in given] if several else one(value)
        return self._others().coerce(value, param=param, ctx=ctx)


def _is_plain(value: Any, kind: Any) -> bool:
    """Return whether a value needs no check: Typer refuses files that this user may not read."""
    if kind not in (str, Path) or not isinstance(value, str):
        return False
    return kind is str or os.access(value, os.R_OK) or not os.path.lexists(value)


def loaded(name: str) -> Any:
    """Return a verb as a command, its module imported."""
    if name == "import":  # numpy's OpenBLAS would start threads, each of which spins for 50 ms
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    module, _, function = VERBS[name][0].partition(".")
    with leaving_at_ctrl_c():
        verb = getattr(importlib.import_module(f"tui.verbs.{module}"), function)
    commands = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    commands.command(name, cls=Verb, epilog=examples(VERBS[name][3]))(verb)
    return typer.main.get_command(commands)


app = typer.Typer(
    cls=Verbs,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Which configuration should serve your reasoning model? Profile, replay and choose.",
    epilog="\n".join(
        [
            examples(["ttscope demo --shipped", "ttscope VERB --help"]),
            "\nExit codes:",
            *(f"{code:3} {meaning}" for code, meaning in EXIT_CODES.items()),
        ]
    ),
)


_UNWRITABLE = errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO
COLLECTED_AT = 50_000, 20, 20  # modules are no garbage: looking for it takes a tenth longer


def main() -> NoReturn:
    """Run the command line; the one place where errors become exit codes."""
    from traces.errors import TtscopeError

    _open_streams()
    os.environ["PYTHONSAFEPATH"] = "1"  # no child imports from the folder that the user stands in
    try:
        Path.home()
    except RuntimeError:  # a user whom the machine does not know, as in some containers
        os.environ["HOME"] = "/"
    with contextlib.suppress(AttributeError):
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # not all know \xb1
    gc.set_threshold(*COLLECTED_AT)
    atexit.register(gc.freeze)  # nor is it looked for at the end, when all goes with the process
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
    except OSError as error:
        if error.filename is not None:
            fail(f"{error.filename}: cannot be read or written ({error.strerror})", 1)
        if error.errno not in _UNWRITABLE:
            raise
        _leave_streams(1)
        fail(f"stdout or a file cannot be written ({error.strerror})", 1)
    except Exception as error:
        show = getattr(error, "format_message", None)  # click's usage errors
        if show is None:
            raise
        fail(_as_set(error) or show(), 2)
    if code == 130:  # Typer's answer to Ctrl-C
        fail("interrupted", code)
    sys.exit(code if isinstance(code, int) else 0)


def _as_set(error: Any) -> str | None:
    """Say how `replay` takes what was given as an option of an engine or of a policy."""
    option, context = getattr(error, "option_name", None), getattr(error, "ctx", None)
    if not isinstance(option, str) or context is None or context.info_name != "replay":
        return None
    from dataclasses import fields

    from traces.schema.engine import EngineConfig
    from traces.schema.tts.methods import PARAMETER
    from traces.schema.tts.policy import Policy

    name = option.lstrip("-").replace("-", "_")
    engine, policy = (
        frozenset(each.name for each in fields(kind)) for kind in (EngineConfig, Policy)
    )
    part = "engine" if name in engine else "policy" if name in {*policy, *PARAMETER} else None
    return part and f"No such option: {option}. Write --set {part}.{name}=VALUE"


def fail(message: str, code: int) -> NoReturn:
    """Say one line on stderr and leave."""
    with contextlib.suppress(OSError):  # stderr may be a pipe that closed
        tell(message)
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
    _leave_streams(1, 2)
    sys.exit(code if isinstance(code, int) else 0)


def _leave_streams(*numbers: int) -> None:
    """Send what is still to be written nowhere, else Python complains as it flushes at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in numbers:
        os.dup2(nowhere, number)


def _open_streams() -> None:
    """Open what is closed of stdin, stdout and stderr, else a file of ours gets its number."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def _version(wanted: bool) -> None:
    if wanted:
        import importlib.metadata

        say(f"ttscope {importlib.metadata.version('ttscope')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> Any:
    """Hold the options that belong to no verb."""
