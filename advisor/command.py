"""What to paste: the `vllm serve` command of an engine and the requests of a policy."""

from __future__ import annotations

import json
import shlex
from typing import Any

from traces.schema import EngineConfig, Policy

REASONING = {"reasoning_start_str": "<think>", "reasoning_end_str": "</think>"}


def serve_command(
    engine: EngineConfig,
    *,
    model_path: str,
    draft_path: str | None = None,
    policy: Policy | None = None,
) -> str:
    """Return the command that serves `engine`; `model_path` is the model's folder or name.

    `draft_path` is that of the model that drafts, where one does. What is None is left to vLLM. A
    policy with a thinking budget needs `--reasoning-config`.
    """
    flags: list[str | None] = [
        _flag("dtype", engine.dtype, default="auto"),
        _flag("quantization", engine.quantization),
        _flag("kv-cache-dtype", engine.kv_cache_dtype, default="auto"),
        _flag("max-model-len", engine.max_model_len),
        _flag("tensor-parallel-size", engine.tensor_parallel_size, default=1),
        _flag("pipeline-parallel-size", engine.pipeline_parallel_size, default=1),
        _flag("data-parallel-size", engine.data_parallel_size, default=1),
        _flag("max-num-seqs", engine.max_num_seqs),
        _flag("max-num-batched-tokens", engine.max_num_batched_tokens),
        _flag("block-size", engine.block_size),
        _flag("gpu-memory-utilization", engine.gpu_memory_utilization),
        _switch("enable-prefix-caching", engine.enable_prefix_caching),
        "--enforce-eager" if engine.enforce_eager else None,
        _switch("async-scheduling", engine.async_scheduling),
    ]
    if engine.speculative is not None:
        settings = {k: v for k, v in engine.speculative.to_json().items() if v is not None}
        if draft_path is not None:
            settings["model"] = draft_path
        flags.append(_flag("speculative-config", json.dumps(settings)))
    if policy is not None and policy.thinking_token_budget is not None:
        flags.append(_flag("reasoning-config", json.dumps(REASONING)))
    words = ["vllm serve", shlex.quote(model_path), *(flag for flag in flags if flag)]
    return " ".join(words)


def _plain(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _flag(name: str, value: object, *, default: object = None) -> str | None:
    if value is None or value == default:
        return None
    return f"--{name} {shlex.quote(str(value))}"


def _switch(name: str, value: bool | None) -> str | None:
    if value is None:
        return None
    return f"--{name}" if value else f"--no-{name}"


def policy_request(policy: Policy) -> dict[str, Any]:
    """Return how to ask for one problem: `requests` requests with the fields of `body` each.

    N samples are N requests of n = 1, so that each can be cancelled and traced by itself. At most
    `at_a_time` are in flight; `answer` says which answer is returned, and when.
    """
    body = {
        "n": 1,
        "temperature": policy.temperature,
        "top_p": policy.top_p,
        "max_tokens": policy.max_tokens,
        "thinking_token_budget": policy.thinking_token_budget,
        "reasoning_effort": policy.reasoning_effort,
    }
    rule = {name: f"{value:g}" for name, value in policy.rule if not isinstance(value, str)}
    frequent = "the most frequent answer"
    answers = {
        "agreement": f"the answer that {rule.get('agree')} give first, or else the most frequent,",
        "first_finish": f"{frequent} of the first {rule.get('first')} that end",
        "adaptive": f"{frequent} as soon as it is {rule.get('threshold')} sure to stay so",
        "early_stopping": f"{frequent} as soon as {rule.get('window')} in a row agree",
    }
    at_a_time = rule.get("in_flight", rule.get("window"))
    return {
        "requests": policy.n,
        "at_a_time": policy.n if at_a_time is None else int(float(at_a_time)),
        "body": {name: value for name, value in body.items() if value is not None},
        "answer": answers.get(policy.method, frequent if policy.n > 1 else "the only answer"),
        "cancel_the_rest": policy.method in answers,
    }


def record_command(
    engine: EngineConfig,
    policy: Policy,
    *,
    workload: str | None,
    problems: int | None,
    concurrency: int | None,
    seed: int | None = None,
) -> str:
    """Return the `ttscope record` command that would measure a configuration."""
    flags = [
        _flag("model", engine.model),
        _flag("workload", workload, default="demo"),
        _flag("problems", problems),
        _flag("seed", seed, default=0),
        _flag("concurrency", concurrency),
        _flag("method", policy.method if policy.rule else None),
        _flag("n", policy.n, default=1),
        *(_flag(name.replace("_", "-"), _plain(value)) for name, value in policy.rule),
        _flag("thinking-budget", policy.thinking_token_budget),
        _flag("reasoning-effort", policy.reasoning_effort),
        _flag("max-tokens", policy.max_tokens),
        _flag("temperature", f"{policy.temperature:g}"),
        _flag("top-p", policy.top_p, default=1.0),
        _flag("tensor-parallel-size", engine.tensor_parallel_size, default=1),
        _flag("max-num-seqs", engine.max_num_seqs),
        _flag("max-num-batched-tokens", engine.max_num_batched_tokens),
        _flag("max-model-len", engine.max_model_len),
        _flag("dtype", engine.dtype, default="auto"),
    ]
    if engine.speculative is not None:
        settings = {k: v for k, v in engine.speculative.to_json().items() if v is not None}
        flags.append(_flag("speculative", json.dumps(settings)))
    return " ".join(["ttscope record", *(flag for flag in flags if flag)])
