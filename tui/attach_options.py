"""The options of `ttscope attach`: which deployment, what is posed to it, and for how long."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tui import workload_options as options


def attach(
    urls: Annotated[
        list[str], typer.Argument(help="vLLM servers: http://HOST:PORT, replicas too.")
    ],
    workload: Annotated[
        str | None,
        typer.Option(help="Pose this, URLs in turn: demo, demo:preamble, or a JSONL file."),
    ] = None,
    passive: Annotated[
        bool, typer.Option("--passive", help="Only watch its own traffic (the default).")
    ] = False,
    duration: Annotated[
        str | None, typer.Option(help="End after 90s, 10m or 2h; else at Ctrl-C.")
    ] = None,
    period: Annotated[str, typer.Option(help="Between polls of /metrics.")] = "1s",
    on_loss: Annotated[
        str, typer.Option(help="When a server is gone: wait for it, or end.")
    ] = "wait",
    listen: Annotated[
        str | None,
        typer.Option(metavar="[HOST:]PORT", help="Receive spans and the plugin's steps: 4318."),
    ] = None,
    listen_grpc: Annotated[
        str | None,
        typer.Option(
            metavar="[HOST:]PORT", help="Receive spans over gRPC: 4317; needs the extra grpc."
        ),
    ] = None,
    spans_without_token: Annotated[
        bool,
        typer.Option(
            "--spans-without-token",
            help="Opens the recording to every user of this machine: spans need no token.",
        ),
    ] = False,
    kernels: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Open profiler windows; the servers' traces lie here."),
    ] = None,
    kernel_windows: Annotated[
        str, typer.Option(metavar="N/Ts", help="N steps each, every T seconds or less often.")
    ] = "4/60s",
    yes: Annotated[bool, typer.Option("--yes", help="Open windows without asking.")] = False,
    gpus: Annotated[
        str,
        typer.Option(metavar="auto|none|N", help="Read the power of the servers' GPUs, if here."),
    ] = "auto",
    model: Annotated[str | None, typer.Option(help="Which of the served models.")] = None,
    problems: options.Problems = None,
    seed: options.Seed = 0,
    concurrency: options.Concurrency = 8,
    method: options.Method = None,
    n: options.NumSamples = 1,
    rule: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Parameters of the method: window=4."),
    ] = None,
    thinking_budget: options.ThinkingBudget = None,
    reasoning_effort: options.ReasoningEffort = None,
    max_tokens: options.MaxTokens = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = 1.0,
    timeout: options.Timeout = None,
    budget_checkpoints: options.BudgetCheckpoints = None,
    checkpoint_samples: options.CheckpointSamples = 8,
    logprobs: options.Logprobs = False,
    raw_prompts: options.RawPrompts = False,
    chat_template: Annotated[
        str | None, typer.Option(metavar="FILE", help="A Jinja template instead of the servers'.")
    ] = None,
    system_prompt: options.SystemPrompt = None,
    verifier: options.Verifier = None,
    record_text: options.RecordText = False,
    tensor_parallel_size: Annotated[
        int | None, typer.Option(help="As the servers', which do not tell it.")
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option(help="Environment variable that holds the servers' key.")
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="File that holds it.")] = None,
    header: Annotated[
        list[str] | None,
        typer.Option(metavar="'NAME: VALUE'", help="Goes with every request; $VAR is read."),
    ] = None,
    price: options.Price = None,
    output: options.Output = None,
    as_json: options.Json = False,
) -> None:
    """Profile a live deployment: its own traffic, or with a workload of yours."""
    given = dict(locals())
    from traces.errors import UsageError
    from tui.attach_verb import Posed, run_attach
    from tui.attachment import attachment_of
    from tui.run_verbs import parse_budgets

    if workload is not None and passive:
        raise UsageError("--workload and --passive exclude each other")
    posed = None
    if workload is not None:
        posed = Posed(
            source={
                "source": workload,
                "problems": problems,
                "seed": seed,
                "chat": not raw_prompts,
                "verifier": verifier,
                "system_prompt": system_prompt,
            },
            policy={
                "method": method,
                "n": n,
                "thinking_token_budget": thinking_budget,
                "reasoning_effort": reasoning_effort,
                "max_tokens": max_tokens,
                "temperature": temperature,
                "top_p": top_p,
            },
            rule=tuple(rule or ()),
            concurrency=concurrency,
            timeout_s=timeout,
            checkpoints=(parse_budgets(budget_checkpoints), checkpoint_samples),
            logprobs=logprobs,
            chat_template=chat_template,
            record_text=record_text,
        )
    run_attach(attachment_of(given), posed, output=output, as_json=as_json)
