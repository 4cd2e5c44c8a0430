"""From options to an engine that runs: each kind of engine is a folder with a module `start`."""

from __future__ import annotations

from importlib import import_module
from typing import Final, cast

from profiler.engines.interface import Capability, Engine, EngineKind
from profiler.engines.options import EngineOptions

ENGINES: Final = (  # the first that takes the options starts
    "server",
    "vllm",
)


def _kinds() -> list[EngineKind]:
    return [cast(EngineKind, import_module(f"profiler.engines.{name}.start")) for name in ENGINES]


def start_engine(
    options: EngineOptions, *, thinking_budget: bool, kernels: str | None = None
) -> Engine:
    """Start an engine in this process, or connect to the server that `options.endpoint` names.

    `kernels` is M/N: profile M steps every N. Raises UsageError where that cannot be, EngineError
    or MissingDependencyError in one line when the engine cannot be had.
    """
    kind = next(kind for kind in _kinds() if kind.takes(options))
    return kind.start(options, thinking_budget=thinking_budget, kernels=kernels)


def examine_engines() -> list[Capability]:
    """Return what can be captured of the engines on this machine."""
    return [finding for kind in _kinds() for finding in kind.examine()]
