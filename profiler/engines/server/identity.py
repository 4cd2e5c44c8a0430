"""Which engine a server is, in which version, and how it was started, as it says itself.

Read by names in tables: SGLang 0.5.23's /server_info (its server arguments and what its scheduler
made of them), vLLM's /version, NIM's /v1/version, and `owned_by` of a model's card.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from profiler.engines.server.served import LONGEST_NAME, ask_version, asked
from traces.errors import UsageError
from traces.live.engine_names import NIM, SGLANG, TENSORRT_LLM, VLLM, unwrapped
from traces.schema.engine import Speculative
from traces.schema.record import MOST

_OWNERS = {"vllm": VLLM, "sglang": SGLANG, "tensorrt_llm": TENSORRT_LLM}  # of a model's card
_FIELDS = {  # of /server_info, by the field of EngineConfig that means the same
    "tensor_parallel_size": ("tp_size", int),
    "pipeline_parallel_size": ("pp_size", int),
    "data_parallel_size": ("dp_size", int),
    "max_num_seqs": ("max_running_requests", int),
    "block_size": ("page_size", int),
    "dtype": ("dtype", str),
    "quantization": ("quantization", str),
    "kv_cache_dtype": ("kv_cache_dtype", str),
    "enforce_eager": ("disable_cuda_graph", bool),
}
_NEGATED = {
    "enable_prefix_caching": "disable_radix_cache",
    "async_scheduling": "disable_overlap_schedule",
}
_OTHER = {  # what vLLM has no setting for that means the same
    "chunked_prefill_size": int,
    "max_prefill_tokens": int,
    "mem_fraction_static": float,
    "enable_mixed_chunk": bool,
    "schedule_policy": str,
}
_METHODS = {  # of `speculative_algorithm`, as vLLM's speculative config calls them
    "EAGLE": "eagle",
    "EAGLE3": "eagle3",
    "NEXTN": "mtp",
    "NGRAM": "ngram",
    "STANDALONE": "draft_model",
}


@dataclass(frozen=True, kw_only=True)
class Identity:
    """An engine's name and version, None where it does not say; `front_end` where it is told.

    `settings` are in the names of EngineConfig, as far as both engines mean the same by them;
    `unlike` are those that mean something else.
    """

    engine: str | None = None
    version: str | None = None
    front_end: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    unlike: tuple[tuple[str, str], ...] = ()

    @property
    def other(self) -> tuple[tuple[str, str], ...]:
        """What `EngineConfig.other` has of it: vLLM is the engine that is not named there."""
        named = () if self.engine in (None, VLLM) else (("engine_name", self.text),)
        return tuple(sorted((*named, *self.unlike)))

    def with_page(self, kinds: Collection[str]) -> Identity:
        """Return the engine whose lines its metrics page has, where these are of one kind.

        Another front end may answer for it. vLLM's names are NIM's too, but not on pages of Ray
        and Dynamo.
        """
        engines = unwrapped(kinds)
        if len(engines) != 1 or engines <= {VLLM if VLLM in kinds else None, self.engine}:
            return self
        return Identity(engine=engines.pop(), front_end=self.front_end)

    @property
    def text(self) -> str:
        """The engine in words, such as `SGLang 0.5.23`."""
        name = self.engine or "an engine that does not say what it is"
        return name if self.version is None else f"{name} {self.version}"

    @property
    def vllm_version(self) -> str | None:
        """The version where it is vLLM's."""
        return self.version if self.engine == VLLM else None


def identify(client: httpx.Client, card: Mapping[str, Any]) -> Identity:
    """Ask a server what it is; `card` is that of a model it serves. Starts nothing."""
    owner = card.get("owned_by")
    named = _OWNERS.get(owner) if isinstance(owner, str) else None
    version = None if named == SGLANG else ask_version(client)
    if version is not None:
        front_end = "rust" if named == VLLM and _without_python(client) else None
        return Identity(engine=named or VLLM, version=version, front_end=front_end)
    server_info = _document(client, "/server_info")
    if named == SGLANG or "tp_size" in server_info:
        return _sglang(server_info)
    release = _document(client, "/v1/version").get("release")
    if _is_name(release):
        return Identity(engine=NIM, version=str(release))
    return Identity(engine=named)


def _without_python(client: httpx.Client) -> bool:
    """Whether a vLLM answers without its Python front end, whose answers all say `uvicorn`.

    A proxy before it may name itself instead, such as nginx. The Rust front end names nothing.
    """
    with contextlib.suppress(httpx.HTTPError), client.stream("GET", "/version") as answer:
        return not answer.headers.get("server")
    return False


def _document(client: httpx.Client, path: str) -> dict[str, Any]:
    """Return the JSON object at a path, empty where there is none."""
    with contextlib.suppress(httpx.HTTPError, ValueError, RecursionError):
        document = json.loads(asked(client, path))
        return document if isinstance(document, dict) else {}
    return {}


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LONGEST_NAME and value.isprintable()


def _typed(value: Any, kind: type) -> Any:
    """Return a value of that kind and in range, None for another."""
    if kind is str:
        return value if _is_name(value) and value != "auto" else None
    if kind is bool:
        return value if isinstance(value, bool) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not 0 < value <= MOST or (kind is int and value != int(value)):
        return None
    return kind(value)


def _sglang(told: Mapping[str, Any]) -> Identity:
    """Return what SGLang's /server_info says; its values are what the launcher resolved."""
    settings = {name: _typed(told.get(own), kind) for name, (own, kind) in _FIELDS.items()}
    for name, own in _NEGATED.items():
        negated = _typed(told.get(own), bool)
        settings[name] = None if negated is None else not negated
    states = told.get("internal_states")
    state = states[0] if isinstance(states, list) and states and isinstance(states[0], dict) else {}
    each = _typed(state.get("effective_max_running_requests_per_dp"), int)
    settings["max_num_seqs"] = each or settings["max_num_seqs"]
    tokens = _typed(told.get("max_total_num_tokens"), int)
    if tokens is not None and settings["block_size"] is not None:
        # vLLM keeps one of its blocks for itself, and a share is of the others.
        settings["num_gpu_blocks"] = tokens // settings["block_size"] + 1
    if told.get("enable_dp_attention") is True:  # its ranks share the GPUs of one another
        sizes = [settings[f"{each}_parallel_size"] for each in ("tensor", "pipeline")]
        settings["num_gpus"] = None if None in sizes else sizes[0] * sizes[1]
    settings["speculative"] = _speculation(told)
    version, front_end = told.get("version"), told.get("frontend")
    other = {name: _typed(told.get(name), kind) for name, kind in _OTHER.items()}
    settings_told = tuple(
        sorted((name, str(each)) for name, each in other.items() if each is not None)
    )
    return Identity(
        engine=SGLANG,
        version=str(version) if _is_name(version) else None,
        front_end=str(front_end) if _is_name(front_end) else None,
        settings={key: each for key, each in settings.items() if each is not None},
        unlike=settings_told,
    )


def _speculation(told: Mapping[str, Any]) -> Speculative | None:
    algorithm = told.get("speculative_algorithm")
    if not _is_name(algorithm) or str(algorithm).upper() == "NONE":
        return None
    steps = _typed(told.get("speculative_num_steps"), int)
    drafted = _typed(told.get("speculative_num_draft_tokens"), int)
    # Of a chain it verifies its drafts and the token before them.
    number = steps or (drafted - 1 if drafted is not None else None)
    if number is None or number < 1:
        return None
    with contextlib.suppress(UsageError):
        model = told.get("speculative_draft_model_path")
        return Speculative(
            method=_METHODS.get(str(algorithm), str(algorithm).lower()),
            num_speculative_tokens=number,
            model=str(model) if _is_name(model) else None,
        )
    return None
