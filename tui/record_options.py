"""The options of `ttscope record`: workload, policy, engine, and what is kept."""

from __future__ import annotations

from typing import Annotated

import typer

from tui import workload_options as options


def record(
    model: Annotated[
        str | None, typer.Option(help="Hugging Face folder or name, or demo/s, demo/m, demo/l.")
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="A running OpenAI-compatible server instead.")
    ] = None,
    workload: Annotated[str, typer.Option(help="demo, demo:preamble, or a JSONL file.")] = "demo",
    problems: options.Problems = None,
    seed: options.Seed = 0,
    concurrency: options.Concurrency = 8,
    method: options.Method = None,
    n: options.NumSamples = 1,
    thinking_budget: options.ThinkingBudget = None,
    reasoning_effort: options.ReasoningEffort = None,
    max_tokens: options.MaxTokens = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = 1.0,
    window: Annotated[
        int | None, typer.Option(help="early_stopping: samples of a window (4).")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="adaptive: how sure the majority must be (0.95).")
    ] = None,
    in_flight: Annotated[
        int | None, typer.Option(help="adaptive, agreement: samples of a problem at a time (n).")
    ] = None,
    agree: Annotated[
        int | None, typer.Option(help="agreement: equal answers that decide (over half of n).")
    ] = None,
    first: Annotated[
        int | None, typer.Option(help="first_finish: how many answers decide (half of n).")
    ] = None,
    keep: Annotated[
        float | None, typer.Option(help="confidence: share of the samples that votes (0.9).")
    ] = None,
    confidence_window: Annotated[
        int | None, typer.Option(help="confidence: tokens of the sliding window (2048).")
    ] = None,
    scorer: Annotated[
        str | None,
        typer.Option(help="best_of_n, weighted, beam: URL of a reward model (log-probability)."),
    ] = None,
    extend: Annotated[
        int | None, typer.Option(help="budget_forcing: how often thought is reopened (1).")
    ] = None,
    word: Annotated[
        str | None, typer.Option(help="budget_forcing: what reopens a thought (Wait).")
    ] = None,
    stable: Annotated[
        int | None, typer.Option(help="sequential: equal answers that end it, 0: never (2).")
    ] = None,
    revise_prompt: Annotated[
        str | None, typer.Option(help="sequential: with {prompt}, {answer} and {thought}.")
    ] = None,
    width: Annotated[
        int | None, typer.Option(help="beam: thoughts kept at each step (root of n).")
    ] = None,
    depth: Annotated[int | None, typer.Option(help="beam: steps at most (8).")] = None,
    step_stop: Annotated[
        str | None, typer.Option(help="beam: text that ends a step (an empty line).")
    ] = None,
    step_tokens: Annotated[
        int | None, typer.Option(help="beam: tokens of a step at most (256).")
    ] = None,
    timeout: options.Timeout = None,
    budget_checkpoints: options.BudgetCheckpoints = None,
    checkpoint_samples: options.CheckpointSamples = 8,
    logprobs: options.Logprobs = False,
    tensor_parallel_size: Annotated[int | None, typer.Option(help="As vLLM's.")] = None,
    max_num_seqs: Annotated[int | None, typer.Option(help="As vLLM's.")] = None,
    max_num_batched_tokens: Annotated[int | None, typer.Option(help="As vLLM's.")] = None,
    max_model_len: Annotated[int | None, typer.Option(help="As vLLM's.")] = None,
    dtype: Annotated[str | None, typer.Option(help="As vLLM's.")] = None,
    speculative: Annotated[
        str | None, typer.Option(help="vLLM's --speculative-config, as JSON.")
    ] = None,
    raw_prompts: options.RawPrompts = False,
    chat_template: Annotated[
        str | None, typer.Option(metavar="FILE", help="A Jinja template instead of the model's.")
    ] = None,
    system_prompt: options.SystemPrompt = None,
    verifier: options.Verifier = None,
    record_text: options.RecordText = False,
    kernels: Annotated[
        str | None,
        typer.Option(metavar="M/N", help="Profile the kernels of M steps every N."),
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option(help="Environment variable that holds the server's key.")
    ] = None,
    otlp: Annotated[
        str | None, typer.Option(help="Also send spans and metrics to this OTLP/HTTP URL.")
    ] = None,
    power_hz: Annotated[
        float, typer.Option(help="Readings of the devices' power a second, 10 to 50.")
    ] = 20.0,
    price: options.Price = None,
    output: options.Output = None,
    as_json: options.Json = False,
) -> None:
    """Run a test-time-scaling workload on vLLM and keep a recording."""
    from profiler.launch import EngineOptions
    from profiler.policies.rules import make_policy
    from tui.run_verbs import parse_budgets, parse_speculative, run_record

    several = n > 1 or method not in {None, "greedy"}
    policy = make_policy(
        {
            "method": method or ("majority" if several else "greedy"),
            "n": n,
            "thinking_token_budget": thinking_budget,
            "reasoning_effort": reasoning_effort,
            "max_tokens": max_tokens,
            "temperature": temperature if temperature is not None else 0.8 if several else 0.0,
            "top_p": top_p,
            "window": window,
            "threshold": threshold,
            "in_flight": in_flight,
            "agree": agree,
            "first": first,
            "keep": keep,
            "confidence_window": confidence_window,
            "scorer": scorer,
            "extend": extend,
            "word": word,
            "stable": stable,
            "revise_prompt": revise_prompt,
            "width": width,
            "depth": depth,
            "step_stop": step_stop,
            "step_tokens": step_tokens,
        }
    )
    engine = EngineOptions(
        model=model,
        endpoint=endpoint,
        api_key_env=api_key_env,
        dtype=dtype,
        max_model_len=max_model_len,
        tensor_parallel_size=tensor_parallel_size,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        speculative=parse_speculative(speculative),
        chat_template=chat_template,
    )
    source = {
        "source": workload,
        "problems": problems,
        "seed": seed,
        "chat": not raw_prompts,
        "verifier": verifier,
        "system_prompt": system_prompt,
    }
    run_record(
        engine,
        policy,
        workload=source,
        concurrency=concurrency,
        timeout_s=timeout,
        checkpoints=(parse_budgets(budget_checkpoints), checkpoint_samples),
        logprobs=logprobs,
        record_text=record_text,
        kernels=kernels,
        otlp=otlp,
        power_hz=power_hz,
        price=price,
        output=output,
        as_json=as_json,
    )
