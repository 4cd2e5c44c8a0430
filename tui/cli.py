"""The command line: one small function per verb.

Heavy libraries are imported inside the verbs, so that `ttscope --help` answers at once. Every
verb exits 0 on success, 1 on a failure and 2 on wrong usage, either told in one line on stderr.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from tui import budget_options as budget
from tui.attach_options import attach
from tui.record_options import record
from tui.terminal_text import say
from tui.tui_options import tui
from tui.workload_options import Json

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Which configuration should serve your reasoning model? Profile, replay and choose.",
)

Paths = Annotated[list[Path], typer.Argument(help="Recordings, or folders of recordings.")]


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


app.command()(record)
app.command()(attach)
app.command()(tui)


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
        fail("a pipe to another process broke; is that process still running?", 1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):  # else Python complains when it flushes them at its end
        os.dup2(nowhere, number)
    sys.exit(code if isinstance(code, int) else 0)


@app.command()
def sweep(
    plan: Annotated[Path, typer.Argument(help="A YAML plan; see docs/sweep.md.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of recordings.")] = Path(
        "runs"
    ),
    power_hz: Annotated[
        float | None, typer.Option(help="Readings of power a second, 10 to 50, for all runs.")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Run engines on this Ray cluster; auto or host:port."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure a list or grid of configurations; what is finished is skipped."""
    from tui.run_verbs import run_sweep

    run_sweep(plan, output, power_hz=power_hz, ray=ray, as_json=as_json)


@app.command()
def show(
    recording: Annotated[Path, typer.Argument(help="A recording.")],
    other: Annotated[Path | None, typer.Argument(help="Another, to compare with.")] = None,
    policies: Annotated[
        bool, typer.Option("--policies", help="Accuracy and tokens of policies never run.")
    ] = False,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(metavar="LIMIT", help="Exit 3 when OTHER is beyond it: p95>+5%."),
    ] = None,
    price: Annotated[float | None, typer.Option(help="USD per device-hour.")] = None,
    as_json: Json = False,
) -> int:
    """Tell what happened in a recording, or what differs between two."""
    from tui.read_verbs import run_show

    return run_show(
        recording, other, price=price, policies=policies, fail_on=fail_on or (), as_json=as_json
    )


@app.command()
def replay(
    recording: Annotated[Path, typer.Argument(help="A recording.")],
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="engine.FIELD or policy.FIELD; repeat."),
    ] = None,
    learn: Annotated[
        list[Path] | None,
        typer.Option("--with", help="Recordings that teach other engines' steps; repeat."),
    ] = None,
    rate: Annotated[str | None, typer.Option(help="Problems arriving: 2/s, 30/min.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Problems in flight.")] = None,
    replicas: Annotated[int, typer.Option(help="Engines that share the load.")] = 1,
    routing: Annotated[str, typer.Option(help="round-robin or least-outstanding.")] = "round-robin",
    together: Annotated[bool, typer.Option(help="A problem's samples to one engine.")] = False,
    run: Annotated[int, typer.Option(help="Which of the recording's runs, from 1.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of what is drawn.")] = 0,
    operators: Annotated[
        Path | None, typer.Option(help="Operator tables of a GPU to take step times from.")
    ] = None,
    num_hidden_layers: Annotated[
        int | None, typer.Option(help="Of the model whose tables these are.")
    ] = None,
    collectives: Annotated[
        Path | None, typer.Option(help="--operators: all-reduce times; a CSV or a recording.")
    ] = None,
    gpu: Annotated[
        list[str] | None, typer.Option(help="Step times of a GPU from the prior: h100_sxm, ..")
    ] = None,
    model_config: Annotated[
        Path | None, typer.Option(help="config.json of the model on that GPU, if not the recorded.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="URL", help="Send the run to a server, for real.")
    ] = None,
    workload: Annotated[
        str | None, typer.Option(help="--against: the file that the prompts came from.")
    ] = None,
    raw_prompts: Annotated[
        bool, typer.Option(help="--against: without a chat template, if recorded so.")
    ] = False,
    api_key_env: Annotated[
        str | None, typer.Option(help="--against: variable that holds the server's key.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Keep the predicted run; with --against the measured."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Predict a recorded run under a configuration that was never run."""
    from tui.replay_verb import run_replay

    run_replay(
        recording,
        changes=change or (),
        learn=learn or (),
        run=run,
        rate=rate,
        concurrency=concurrency,
        replicas=replicas,
        routing=routing,
        together=together,
        seed=seed,
        operators=operators,
        num_hidden_layers=num_hidden_layers,
        collectives=collectives,
        gpus=gpu or (),
        model_config=model_config,
        against=against,
        workload=workload,
        raw_prompts=raw_prompts,
        api_key_env=api_key_env,
        output=output,
        as_json=as_json,
    )


@app.command("import")
def import_(
    files: Annotated[
        list[Path],
        typer.Argument(help="Profiler traces, one per rank; samples of evaluations; or requests."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The recording's folder.")],
    limit: Annotated[
        float, typer.Option(help="GB of JSON per file, inflated, before it is refused.")
    ] = 16.0,
    score: Annotated[
        str | None, typer.Option(help="Metric, metric,filter or scorer that says what is right.")
    ] = None,
    verifier: Annotated[
        str | None,
        typer.Option(help="Judge completions anew: exact, numeric, choice or math."),
    ] = None,
    record_text: Annotated[bool, typer.Option(help="Keep the answers' texts.")] = False,
    run: Annotated[
        int | None, typer.Option(help="Which of a file's benchmarks, from 1; of requests.")
    ] = None,
    block_tokens: Annotated[
        int | None, typer.Option(help="Tokens per hash id of a Mooncake trace (512).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a recording of profiler traces, of samples that others evaluated, or of requests."""
    # Before numpy is imported: else OpenBLAS starts threads, and each spins for 50 ms for nothing.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from tui.import_verb import run_import

    run_import(
        files,
        output,
        limit_gb=limit,
        score=score,
        verifier=verifier,
        record_text=record_text,
        run=run,
        block_tokens=block_tokens,
        as_json=as_json,
    )


@app.command()
def export(
    recording: Annotated[Path, typer.Argument(help="A recording.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="trace.json or trace.json.gz; trace.jsonl.")
    ],
    form: Annotated[
        str, typer.Option("--format", help="perfetto, or mooncake: a line per request.")
    ] = "perfetto",
    as_json: Json = False,
) -> None:
    """Write a recording for Perfetto and chrome://tracing, or as a trace of requests."""
    from tui.import_verb import run_export

    run_export(recording, output, form=form, as_json=as_json)


@app.command()
def advise(
    recordings: Paths,
    max_latency: budget.MaxLatency = None,
    percentile: budget.Percentile = None,
    max_cost: budget.MaxCost = None,
    max_energy: budget.MaxEnergy = None,
    gpus: budget.Gpus = None,
    gpu: budget.Systems = None,
    min_accuracy: budget.MinAccuracy = None,
    rate: budget.Rate = None,
    price: budget.Price = None,
    optimise: budget.Optimise = None,
    confidence: budget.Confidence = 0.9,
    present: Annotated[
        Path | None, typer.Option(help="A recording of what runs today, to compare with.")
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="Write what to measure next, for ttscope sweep.")
    ] = None,
    models: Annotated[
        Path | None, typer.Option(help="Keep what was learned here, for the same recordings.")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Run both picks for real.")] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder of --verify's recordings.")
    ] = None,
    seed: budget.Seed = 0,
    as_json: Json = False,
) -> None:
    """Recommend the system-optimal configuration for a budget."""
    given = budget.given(locals())
    from tui.advise_verb import run_advise

    run_advise(
        recordings,
        given,
        seed=seed,
        present=present,
        plan=plan,
        models=models,
        verify=verify,
        output=output,
        systems=gpu or (),
        as_json=as_json,
    )


@app.command()
def report(
    recordings: Paths,
    output: Annotated[Path, typer.Option("-o", "--output", help="The page: report.html.")],
    max_latency: budget.MaxLatency = None,
    percentile: budget.Percentile = None,
    max_cost: budget.MaxCost = None,
    max_energy: budget.MaxEnergy = None,
    gpus: budget.Gpus = None,
    gpu: budget.Systems = None,
    min_accuracy: budget.MinAccuracy = None,
    rate: budget.Rate = None,
    price: budget.Price = None,
    optimise: budget.Optimise = None,
    confidence: budget.Confidence = 0.9,
    seed: budget.Seed = 0,
    as_json: Json = False,
) -> None:
    """Write one HTML page that tells what was measured and what to run for a budget."""
    given = budget.given(locals())
    from tui.report.verb import run_report

    run_report(recordings, output, given, seed=seed, systems=gpu or (), as_json=as_json)


@app.command()
def demo(
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where to keep the recordings.")
    ] = None,
    once: Annotated[bool, typer.Option(help="Do not open the terminal app at the end.")] = False,
    shipped: Annotated[
        bool, typer.Option(help="Use the shipped recordings, as where vLLM is absent.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run the whole loop on the bundled reasoners with real vLLM on this machine."""
    from tui.demo_verb import run_demo

    run_demo(output, once=once or as_json, shipped=shipped, as_json=as_json)


@app.command()
def doctor(
    url: Annotated[
        str | None, typer.Argument(help="A running server, looked at from outside.")
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option(help="Environment variable that holds the server's key.")
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="File that holds it.")] = None,
    header: Annotated[
        list[str] | None,
        typer.Option(metavar="'NAME: VALUE'", help="Goes with every request; $VAR is read."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what can be captured, here or of a server, and what each missing part needs."""
    from tui.read_verbs import run_doctor

    run_doctor(
        url,
        api_key_env=api_key_env,
        api_key_file=api_key_file,
        headers=header or (),
        as_json=as_json,
    )


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
