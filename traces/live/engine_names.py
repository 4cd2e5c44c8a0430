"""What other engines and wrappers call on /metrics what vLLM's page says, as tables of names.

A page is read under vLLM's names, which stand in numbers.py, so that all that is computed of it has
one set of names. A new engine gets a table, a line in `NAMES`, and its prefix in `PREFIXES`. Where
two engines do not mean the same, the name is not in a table, and the line is kept as it is or left
out. Sources: SGLang 0.5.23 (`sglang/srt/observability/metrics_collector.py`), Ray Serve LLM (vLLM
0.32's `vllm/v1/metrics/ray_wrappers.py`: no colons, a label ReplicaId), Dynamo (its engines' own
names, with labels of its own), NIM for LLMs (NVIDIA's "Observability" page: no prefix),
TensorRT-LLM ("TensorRT-LLM Prometheus Metrics" of Dynamo's documents, 1.1.0rc5; 1.3's
`tensorrt_llm/metrics/collector.py`), TGI ("Metrics" of its documents, 3.3: no `_total`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from traces.live.numbers import (
    ASKED_TOKENS,
    DECODE,
    DRAFTS,
    E2E,
    FINISHED,
    FLOPS,
    GAUGES,
    GENERATED,
    ITL,
    KV,
    OUTPUT_LENGTH,
    PREEMPTED,
    PREFILL,
    PROMPT,
    PROMPT_LENGTH,
    QUEUE,
    READ_BYTES,
    RUNNING,
    STEP_TOKENS,
    TTFT,
    USED,
    WAITING,
)
from traces.schema.engine import EngineConfig
from traces.summary.prefix_hits import CACHED, HIT_TOKENS

VLLM, SGLANG, NIM, TENSORRT_LLM, TGI = "vLLM", "SGLang", "NIM", "TensorRT-LLM", "TGI"
ROUTER = "a router"  # of production-stack's, whose lines of each server are under vLLM's names
ON_RAY, UNDER_DYNAMO = " on Ray Serve", " under Dynamo"  # behind the name of an engine
# Ray's page has what its processes report: metrics_report_interval_ms of its ray_config_def.h.
RAY_REPORTS_S = 10.0
_PART = re.compile(r"_(?:bucket|count|sum)\Z")
_RAY = re.compile(r"ray_(vllm|sglang)_(?=[a-z])")


@dataclass(frozen=True)
class Name:
    """A name of vLLM's, and of which values of a label it counts, None for all."""

    name: str
    label: str | None = None
    values: frozenset[str] = frozenset()


def _of(name: str, label: str, *values: str) -> Name:
    return Name(name, label, frozenset(values))


_PASSES = ("prefill_none", "prefill_cuda_graph", "decode_none", "decode_cuda_graph")
SGLANG_NAMES: Mapping[str, tuple[Name, ...]] = {
    "sglang:num_running_reqs": (Name(RUNNING),),
    "sglang:num_queue_reqs": (Name(WAITING),),
    "sglang:token_usage": (Name(KV),),
    "sglang:time_to_first_token_seconds": (Name(TTFT),),
    "sglang:inter_token_latency_seconds": (Name(ITL),),
    "sglang:queue_time_seconds": (Name(QUEUE),),
    "sglang:e2e_request_latency_seconds": (Name(E2E),),
    "sglang:prompt_tokens_total": (Name(PROMPT), Name(ASKED_TOKENS)),
    "sglang:cached_tokens_total": (Name(HIT_TOKENS),),
    "sglang:prompt_tokens_histogram": (Name(PROMPT_LENGTH),),  # --collect-tokens-histogram
    "sglang:generation_tokens_histogram": (Name(OUTPUT_LENGTH),),
    # Its generation_tokens_total counts a request when it ends, this one a step.
    "sglang:realtime_tokens_total": (
        _of(GENERATED, "mode", "decode"),
        _of(f"{STEP_TOKENS}_sum", "mode", "decode", "prefill_compute"),
    ),
    "sglang:cuda_graph_passes_total": (_of(f"{STEP_TOKENS}_count", "mode", *_PASSES),),
    "sglang:num_requests_total": (Name(FINISHED),),
    "sglang:num_retracted_requests_total": (Name(PREEMPTED),),
    "sglang:spec_verify_calls_total": (Name(DRAFTS),),
    "sglang:estimated_flops_per_gpu_total": (Name(FLOPS),),
    "sglang:estimated_read_bytes_per_gpu_total": (Name(READ_BYTES),),
}
NIM_NAMES: Mapping[str, tuple[Name, ...]] = {
    "num_requests_running": (Name(RUNNING),),
    "num_requests_waiting": (Name(WAITING),),
    "gpu_cache_usage_perc": (Name(KV),),
    "prompt_tokens_total": (Name(PROMPT),),
    "generation_tokens_total": (Name(GENERATED),),
    "time_to_first_token_seconds": (Name(TTFT),),
    "time_per_output_token_seconds": (Name(ITL),),
    "e2e_request_latency_seconds": (Name(E2E),),
    "request_finish_total": (Name(FINISHED),),
    "request_prompt_tokens": (Name(PROMPT_LENGTH),),
    "request_generation_tokens": (Name(OUTPUT_LENGTH),),
}
TENSORRT_LLM_NAMES: Mapping[str, tuple[Name, ...]] = {
    "trtllm_time_to_first_token_seconds": (Name(TTFT),),
    "trtllm_e2e_request_latency_seconds": (Name(E2E),),
    "trtllm_request_queue_time_seconds": (Name(QUEUE),),
    "trtllm_request_success_total": (Name(FINISHED),),
    "trtllm_num_requests_running": (Name(RUNNING),),
    "trtllm_num_requests_waiting": (Name(WAITING),),
    "trtllm_kv_cache_utilization": (Name(KV),),
    # Tokens count when a request ends. Its time_per_output_token is a request's mean.
    "trtllm_prompt_tokens_total": (Name(PROMPT),),
    "trtllm_generation_tokens_total": (Name(GENERATED),),
    "trtllm_prompt_cached_tokens_total": (Name(CACHED),),
    "trtllm_request_prefill_time_seconds": (Name(PREFILL),),
    "trtllm_request_decode_time_seconds": (Name(DECODE),),
}
TENSORRT_LLM_LIMITS = {  # gauges, by the field of EngineConfig that means the same
    "max_num_seqs": "trtllm_max_batch_size_runtime",
    "max_num_batched_tokens": "trtllm_max_num_tokens_runtime",
    "block_size": "trtllm_kv_cache_tokens_per_block",
    "num_gpu_blocks": "trtllm_kv_cache_max_blocks",
}
TENSORRT_LLM_HOST = "trtllm_kv_cache_host_utilization"  # its blocks are then the host's too
TGI_NAMES: Mapping[str, tuple[Name, ...]] = {
    "tgi_batch_current_size": (Name(RUNNING),),
    "tgi_queue_size": (Name(WAITING),),
    "tgi_request_success": (Name(FINISHED),),
    "tgi_request_duration": (Name(E2E),),
    "tgi_request_queue_duration": (Name(QUEUE),),
    "tgi_request_input_length": (Name(PROMPT_LENGTH),),
    "tgi_request_input_length_sum": (Name(f"{PROMPT_LENGTH}_sum"), Name(PROMPT)),
    "tgi_request_generated_tokens": (Name(OUTPUT_LENGTH),),
    "tgi_request_generated_tokens_sum": (Name(f"{OUTPUT_LENGTH}_sum"), Name(GENERATED)),
}
# What older versions of vLLM called their own. Versions between have both names, so that these are
# read where a page has not the new one.
OLDER: Final = "older "
COPY: Final = "copied "  # of a line that a page has twice (`is_copy`)
OLDER_NAMES: Mapping[str, tuple[Name, ...]] = {
    "vllm:gpu_cache_usage_perc": (Name(OLDER + KV),),
    "vllm:time_per_output_token_seconds": (Name(OLDER + ITL),),
    "vllm:gpu_prefix_cache_hits_total": (Name(OLDER + HIT_TOKENS),),
    "vllm:gpu_prefix_cache_queries_total": (Name(OLDER + ASKED_TOKENS),),
}
NAMES: Mapping[str, tuple[Name, ...]] = {
    **OLDER_NAMES,
    **SGLANG_NAMES,
    **NIM_NAMES,
    **TENSORRT_LLM_NAMES,
    **TGI_NAMES,
}
_COUNTERS = frozenset(name for name in (*USED, *OLDER_NAMES) if name.endswith("_total"))
PREFIXES: Mapping[str, str] = {  # of lines that are kept, and whose they are; NIM's have none
    "vllm:": VLLM,
    "sglang:": SGLANG,
    "trtllm_": TENSORRT_LLM,
    "trtllm:": TENSORRT_LLM,
    "tgi_": TGI,
}
_PREFIXES = tuple(PREFIXES)
# Labels that tell apart what is added up or is one; those that remain name parts of a number.
SHARED = frozenset(
    {
        *("model_name", "model", "engine_type", "is_streaming", "cache_source", "priority"),
        *("tp_rank", "pp_rank", "moe_ep_rank", "ReplicaId", "WorkerId", "Component", "NodeAddress"),
        *("SessionName", "Version", "application", "deployment", "replica", "worker_id"),
        *("dynamo_namespace", "dynamo_component", "dynamo_endpoint", "version", "pid"),
    }
)
RANKS = ("pp_rank", "tp_rank", "moe_ep_rank")  # whose lines repeat one another
REQUEST_LIMITS = {  # what others call max_num_seqs
    SGLANG: "--max-running-requests",
    TENSORRT_LLM: "--max_batch_size",
    TGI: "--max-batch-size",
    NIM: "the engine's limit of requests at once",
}
ENDED = 'finished_reason="ended"'  # of engines that tell no reason


def known_name(name: str) -> str | None:
    """Return a line's name without Ray's prefix, None where no engine's lines have it."""
    plain = _RAY.sub(r"\1:", name, count=1)
    if plain != name and plain.startswith("vllm:") and f"{plain}_total" in _COUNTERS:
        plain = f"{plain}_total"
    recognised = plain.startswith(_PREFIXES) or _PART.sub("", plain) in NIM_NAMES
    return plain if recognised and not plain.endswith("_created") else None


def is_made_up(name: str) -> bool:
    """Whether a line is a histogram's sum on Ray's page: its agent adds up middles of buckets.

    `record_histogram_aggregated_batch` of Ray 2.60's `open_telemetry_metric_recorder.py`
    (ray#64852). So a queue in which nobody waits takes 0.15 s on average, half of its first bucket.
    """
    return _RAY.match(name) is not None and name.endswith("_sum")


def is_copy(name: str) -> bool:
    """Whether a line is one that Ray has beside each counter, a gauge whose name lacks `_total`.

    RAY_EXPORT_COUNTER_AS_GAUGE of its metrics agent, on by default.
    """
    return not name.endswith("_total") and (known_name(name) or "").endswith("_total")


def vllm_names(name: str, labels: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return a line's names and labels as vLLM has them; `name` is as `known_name` returns it."""
    part = _PART.search(name)
    base = name if part is None or name in NAMES else name[: part.start()]
    wanted = NAMES.get(base.replace("trtllm:", "trtllm_", 1))
    kept = {key: value for key, value in labels.items() if key not in SHARED}
    if wanted is None:
        return ((name, _text(kept)),)
    names = []
    for each in wanted:
        if each.name in GAUGES and labels.get("priority"):  # part of what has none
            continue
        if each.label is not None and labels.get(each.label) not in each.values:
            continue
        rest = {key: value for key, value in kept.items() if key != each.label}
        text = _text(rest)
        if each.name == FINISHED and "finished_reason" not in rest:
            text = ENDED
        names.append((each.name + (name[len(base) :] if base != name else ""), text))
    return tuple(names)


def _text(labels: Mapping[str, str]) -> str:
    return ",".join(f'{key}="{labels[key]}"' for key in sorted(labels))


def engine_of(labels: Mapping[str, str]) -> str:
    """Return whose line it is: a rank's, a replica's (Ray's page has all of a node), or ""."""
    rank = labels.get("engine") or labels.get("dp_rank") or ""
    replica = labels.get("ReplicaId") or labels.get("replica") or labels.get("WorkerId") or ""
    return " ".join(part for part in (rank, replica[:24]) if part)


def engine_named(name: str, labels: Mapping[str, str]) -> str | None:
    """Return whose line it is, by its prefix, NIM's without one; None for others.

    A worker of Dynamo has the names of its engine, and labels of its own. The router of vLLM's
    production-stack names the `server` of each line (`services/metrics_service/__init__.py`).
    """
    plain = known_name(name)
    if plain is None:
        return None
    if plain.startswith("vllm:") and "server" in labels:
        return ROUTER
    for prefix, engine in PREFIXES.items():
        if plain.startswith(prefix):
            dynamo = UNDER_DYNAMO if "dynamo_component" in labels else ""
            return engine + (ON_RAY if name.startswith("ray_") else dynamo)
    return NIM


def is_on_ray(kinds: Iterable[str]) -> bool:
    """Whether one of the engines of a page (`engine_named`) is on Ray Serve."""
    return any(kind.endswith(ON_RAY) for kind in kinds)


def is_under_dynamo(kinds: Iterable[str]) -> bool:
    """Whether one of the engines of a page (`engine_named`) is a worker of Dynamo."""
    return any(kind.endswith(UNDER_DYNAMO) for kind in kinds)


def unwrapped(kinds: Iterable[str]) -> set[str]:
    """Return the engines of a page without what they run on."""
    return {kind.removesuffix(ON_RAY).removesuffix(UNDER_DYNAMO) for kind in kinds}


def software_of(config: EngineConfig) -> str:
    """Return the name of an engine's software without its version; vLLM where nothing else is."""
    return dict(config.other).get("engine_name", VLLM).partition(" ")[0]
