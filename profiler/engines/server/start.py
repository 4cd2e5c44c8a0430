"""From options to a server's engine."""

from __future__ import annotations

from profiler.engines.interface import Capability, Engine
from profiler.engines.options import EngineOptions, read_template
from profiler.engines.server.access import read_headers, read_key
from traces.errors import UsageError


def takes(options: EngineOptions) -> bool:
    """Whether the options name a server."""
    return options.endpoint is not None


def start(options: EngineOptions, *, thinking_budget: bool, kernels: str | None) -> Engine:
    """Connect to the server (see `start_engine`)."""
    from profiler.engines.server.server import ServerEngine

    if kernels is not None:
        raise UsageError("--kernels needs the engine in this process. Leave out --endpoint")
    return ServerEngine(
        options.endpoint or "",
        model=options.model,
        name=options.model,
        headers=read_headers(read_key(options.api_key_env, None), ()),
        declared={
            "tensor_parallel_size": options.tensor_parallel_size,
            "max_num_seqs": options.max_num_seqs,
            "max_num_batched_tokens": options.max_num_batched_tokens,
            "dtype": options.dtype,
            "speculative": options.speculative,
        },
        chat_template=read_template(options.chat_template),
    )


def examine() -> list[Capability]:
    """Return nothing: a server is looked at from outside (profiler/doctor.py)."""
    return []
