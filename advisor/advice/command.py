"""What to paste: the command that serves an engine, and the requests of a policy."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from advisor.evidence.keys import DEFAULT_BLOCK
from traces.plain_text import flag_word, name_word, quoted
from traces.schema.advice import Pick
from traces.schema.engine import BLOCKS, EngineConfig, ModelFacts
from traces.schema.formats import counted
from traces.schema.tts.policy import Policy
from traces.schema.tts.stop_rules import ROUTED, WINDOWS

REASONING = {"reasoning_start_str": "<think>", "reasoning_end_str": "</think>"}
SERVED_AT = "http://localhost:8000"  # where vLLM listens unless told otherwise
CPU_BLOCK = 128  # tokens, vLLM's default of its CPU build
_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class CpuBuild:
    """vLLM's CPU build where a command is to be run: its Python, and OpenMP's threads there."""

    python: str = "python"
    omp_threads: str = "1"


def serve_command(
    engine: EngineConfig,
    *,
    model_path: str,
    draft_path: str | None = None,
    policy: Policy | None = None,
    cpu_build: CpuBuild | None = None,
    kv_bytes_per_token: int | None = None,
) -> str:
    """Return the command that serves `engine`; `model_path` is the model's folder or name.

    Of several servers it is that of one (`servers_note`). `draft_path` is that of the model that
    drafts. What is None is left to vLLM. An engine that ran on a processor, or that may have and
    `cpu_build` is here, is started as vLLM's CPU build must be: its `vllm` does not start, and only
    a variable gives the size of its KV cache, from `kv_bytes_per_token`.
    """
    flags: list[str | None] = [
        _flag("served-model-name", engine.model, default=model_path),
        _flag("dtype", engine.dtype, default="auto"),
        _flag("quantization", engine.quantization),
        _flag("kv-cache-dtype", engine.kv_cache_dtype, default="auto"),
        _flag("max-model-len", engine.max_model_len),
        _flag("tensor-parallel-size", engine.tensor_parallel_size, default=1),
        _flag("pipeline-parallel-size", engine.pipeline_parallel_size, default=1),
        _flag("data-parallel-size", engine.by_server()[1], default=1),
        "--enable-expert-parallel" if engine.expert_parallel else None,
        _flag("max-num-seqs", engine.max_num_seqs),
        _flag("max-num-batched-tokens", engine.max_num_batched_tokens),
        _flag("block-size", engine.block_size),
        _flag("gpu-memory-utilization", engine.gpu_memory_utilization),
        _flag("num-gpu-blocks-override", _blocks(engine)),
        _switch("enable-prefix-caching", engine.enable_prefix_caching),
        "--enforce-eager" if engine.enforce_eager else None,
        _switch("async-scheduling", engine.async_scheduling),
    ]
    flags.append(_flag("speculative-config", _drafts(engine, draft_path)))
    if policy is not None and policy.thinking_token_budget is not None:
        flags.append(_flag("reasoning-config", json.dumps(REASONING)))
    words = ["vllm serve", name_word(model_path)]
    if engine.gpu is None and (engine.mode == "in_process" or cpu_build is not None):
        words = [
            *_cpu_variables(engine, cpu_build or CpuBuild(), kv_bytes_per_token),
            quoted((cpu_build or CpuBuild()).python),
            "-m vllm.entrypoints.openai.api_server",
            _flag("model", model_path) or "",
        ]
    return " ".join([*words, *(flag for flag in flags if flag)])


def servers_note(engine: EngineConfig) -> str:
    """Say how an engine that stands for several servers is started; empty where it is one."""
    servers, _ = engine.by_server()
    if servers < 2:
        return ""
    devices = counted(engine.num_devices // servers, "GPU" if engine.gpu else "device")
    return (
        f"The command starts one server. {servers} of them run, each on {devices} of its own, "
        "behind a router that sends a request to the server with the fewest."
    )


_UNPUBLISHED = ("dtype", "quantization", "kv_cache_dtype")  # None and none are one but for a dtype
_MAY_BE_UNTOLD = ("max_model_len", "max_num_seqs", "max_num_batched_tokens")


def untold_note(pick: Pick) -> str:
    """Name the settings of a watched server that its pages do not tell. Empty if they tell all.

    A pick whose times are a prior's was no server: what it leaves out is vLLM's to choose.
    """
    engine = pick.engine
    if engine.mode != "server" or pick.prior is not None:
        return ""
    names = [*(_UNPUBLISHED if engine.dtype is None else ())]
    names += [name for name in _MAY_BE_UNTOLD if getattr(engine, name) is None]
    if not names:
        return ""
    flags = [f"--{name.replace('_', '-')}" for name in names]
    *most, last = flags
    subject = f"{', '.join(most)} and {last} are" if most else f"{last} is"
    return (
        f"{subject} not known of this server, so that the command leaves "
        f"{'them' if most else 'it'} to vLLM. Give what it was started with."
    )


def command_note(pick: Pick) -> str:
    """Return what to know of the command of a pick; empty where it says all."""
    return " ".join(filter(None, (servers_note(pick.engine), untold_note(pick))))


def attach_command(engine: EngineConfig) -> str:
    """Return how to attach to the servers of an engine, whose plugins tell their settings."""
    servers, _ = engine.by_server()
    urls = (f"URL{number}" for number in range(1, servers + 1))
    return " ".join(["ttscope attach", *urls, "--listen 4318"])


def _cpu_variables(engine: EngineConfig, build: CpuBuild, kv_bytes: int | None) -> list[str]:
    """Return what the environment must say: vLLM's CPU build has no flags for it."""
    variables = {"OMP_NUM_THREADS": build.omp_threads}
    space_gib = 1 if engine.mode == "in_process" else None  # as `ttscope record` has it
    if kv_bytes and engine.num_gpu_blocks and engine.block_size:
        cache = engine.num_gpu_blocks * engine.block_size * kv_bytes
        space_gib = math.ceil(cache / engine.tensor_parallel_size / _GIB)
    if space_gib is not None:
        variables["VLLM_CPU_KVCACHE_SPACE"] = str(space_gib)
    if engine.tensor_parallel_size > 1:
        cores = range(engine.tensor_parallel_size)
        variables["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(map(str, cores))
    return [f"{name}={quoted(value)}" for name, value in variables.items()]


def _blocks(engine: EngineConfig) -> int | None:
    """Return the KV blocks to start an engine with: where it was so, those that it has."""
    return engine.num_gpu_blocks if BLOCKS in dict(engine.other) else None


def _drafts(engine: EngineConfig, model: str | None = None) -> str | None:
    """Return how an engine speculates as JSON, with `model` for the one that drafts."""
    if engine.speculative is None:
        return None
    settings = engine.speculative.to_json() | ({} if model is None else {"model": model})
    return json.dumps({name: value for name, value in settings.items() if value is not None})


def _plain(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _flag(name: str, value: object, *, default: object = None) -> str | None:
    if value is None or value == default:
        return None
    return flag_word(name, value)


def _switch(name: str, value: bool | None) -> str | None:
    if value is None:
        return None
    return f"--{name}" if value else f"--no-{name}"


def in_flight_at(rate_per_s: float, latency_s: float) -> int:
    """Return how many problems are in flight at a rate, at least one (Little's law)."""
    return max(round(rate_per_s * latency_s), 1)


def policy_request(policy: Policy) -> dict[str, Any]:
    """Return how to ask for one problem: `requests` requests with the fields of `body` each.

    N samples are N requests of n = 1, each cancelled and traced by itself, at most `at_a_time` in
    flight. There is a rest to cancel where an answer may win before all that were sent have ended.
    """
    body = {
        "n": 1,
        "temperature": policy.temperature,
        "top_p": policy.top_p,
        "max_tokens": policy.max_tokens,
        "thinking_token_budget": policy.thinking_token_budget,
        "reasoning_effort": policy.reasoning_effort,
    }
    answer = policy.spec.describe(policy.spec.answer, policy.n, dict(policy.rule))
    stop = policy.stop
    at_a_time = 0 if stop is None or not policy.spec.at_a_time else stop.drawn_first
    return {
        "requests": policy.n,
        "at_a_time": at_a_time or policy.n,
        "body": {name: value for name, value in body.items() if value is not None},
        "answer": answer if policy.n > 1 else "the only answer",
        "cancel_the_rest": policy.stops_early and policy.spec.rule not in (WINDOWS, ROUTED),
    }


def record_command(
    engine: EngineConfig,
    policy: Policy,
    *,
    workload: str | None,
    problems: int | None,
    concurrency: int | None,
    seed: int | None = None,
    verifier: str | None = None,
) -> str:
    """Return the `ttscope record` command that would measure a configuration.

    What was a server, or has replicas, is recorded at its endpoint. Of several servers it is the
    `ttscope attach` command that poses the workload to all of them, which tells how many they are.
    """
    servers, _ = engine.by_server()
    served = engine.mode == "server" or engine.data_parallel_size > 1
    own_method = "greedy" if policy.n == 1 else "majority"
    flags = [
        _flag("endpoint", SERVED_AT if served and servers == 1 else None),
        _flag("model", engine.model),
        _flag("workload", workload or "demo", default="demo" if servers == 1 else None),
        _flag("verifier", None if verifier is None or "+" in verifier else verifier),
        _flag("problems", problems),
        _flag("seed", seed, default=0),
        _flag("concurrency", concurrency),
        _flag("method", policy.method, default=own_method),
        _flag("n", policy.n, default=1),
        *(
            _flag(name.replace("_", "-"), _plain(value))
            if servers == 1
            else _flag("rule", f"{name}={_plain(value)}")
            for name, value in policy.rule
        ),
        _flag("thinking-budget", policy.thinking_token_budget),
        _flag("reasoning-effort", policy.reasoning_effort),
        _flag("max-tokens", policy.max_tokens),
        _flag("temperature", None if policy.temperature is None else f"{policy.temperature:g}"),
        _flag("top-p", policy.top_p, default=1.0),
        _flag("tensor-parallel-size", engine.tensor_parallel_size, default=1),
    ]
    if servers > 1:  # which tell the rest
        return " ".join([attach_command(engine), *(flag for flag in flags if flag)])
    flags += [
        _flag("dtype", engine.dtype, default="auto"),
        _flag("max-num-seqs", engine.max_num_seqs),
        _flag("max-num-batched-tokens", engine.max_num_batched_tokens),
        _flag("max-model-len", engine.max_model_len),
    ]
    flags.append(_flag("speculative", _drafts(engine)))
    return " ".join(["ttscope record", *(flag for flag in flags if flag)])


def planned(engine: EngineConfig, facts: ModelFacts | None) -> dict[str, Any]:
    """Return the settings that a plan can give and `record` cannot, which it would have otherwise.

    Empty for servers. vLLM takes larger blocks for models whose layers are not all full attention.
    """
    if engine.mode == "server" or engine.data_parallel_size > 1:
        return {}
    on_gpu = engine.gpu is not None
    usual: dict[str, Any] = {"enforce_eager": not on_gpu}
    if facts is None or facts.reads_all(engine.max_model_len):
        usual["block_size"] = DEFAULT_BLOCK if on_gpu else CPU_BLOCK
    given = {name: getattr(engine, name) for name in usual}
    return {name: each for name, each in given.items() if each not in (None, usual[name])}
