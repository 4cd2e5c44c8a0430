"""What vLLM loads of ttscope: the step probe of `profiler.plugin.step_logger`, or nothing.

The folder that a server is started in may hold a `profiler` or `traces` of its own, and
`python -m vllm...` looks there first. So this module has a name that is ttscope's alone, imports
nothing unless TTSCOPE_PLUGIN is set, and then ttscope's own packages or none. Where they are hidden
or broken the server goes on without the probe, and its log has one line.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from pathlib import Path
from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase

log = logging.getLogger("vllm.ttscope")


class Nothing(StatLoggerBase):  # type: ignore[misc]
    """A stat logger that is off."""

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        self.on = False

    def record(self, *_: Any, **__: Any) -> None:
        """Keep nothing."""

    def log_engine_initialized(self) -> None:
        """Say nothing."""


def _whole(probe: type[StatLoggerBase]) -> type[StatLoggerBase]:
    """Return a probe that can be made although a newer vLLM asks for further methods.

    Without that such a server would not start. What is not there is then the base's own method.
    """
    probe.__abstractmethods__ = frozenset()
    return probe


def _check_ours(name: str) -> None:
    """Raise ImportError where another package of that name would be imported; runs none."""
    found = importlib.util.find_spec(name)
    place = None if found is None or found.origin is None else Path(found.origin).parent
    if place is None or place.parent.resolve() != Path(__file__).parent.resolve():
        raise ImportError(f"another {name} hides ttscope's. Start the server in another folder")


def _chosen() -> type[StatLoggerBase]:
    if not os.environ.get(
        "TTSCOPE_PLUGIN"
    ):  # `profiler.plugin.step_logger.VARIABLE`, not imported yet
        return _whole(Nothing)
    try:
        for name in ("profiler", "traces"):
            _check_ours(name)
        from profiler.plugin.step_logger import StepLogger as Probe
    except (Exception, SystemExit) as error:  # whatever a file of that name does
        why = " ".join(str(error).split())[:200]
        log.warning("ttscope: the step probe is off (%s: %s)", type(error).__name__, why)
        return _whole(Nothing)
    return _whole(Probe)


StepLogger = _chosen()
