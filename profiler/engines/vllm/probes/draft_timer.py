"""How long each engine step of a vLLM in this process spent on drafting."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any


@dataclass
class DraftTimer:
    """`last_ns` is what drafting took in the step that ran last, None when nothing was drafted.

    A step drafts for the next one, after it has sampled; a step that only holds prompts drafts
    too.
    """

    last_ns: int | None = None


def install_draft_timer(engine: Any) -> DraftTimer | None:
    """Time the drafting of a vLLM `LLMEngine`'s model runner, whatever the method.

    None when the engine does not speculate, when its worker is another process, or when its
    device works asynchronously (any but a CPU): the time that a host call takes is not the time
    of the draft there. Costs two clock readings and two calls per step.
    """
    try:
        core = engine.engine_core.engine_core
        runner = core.model_executor.driver_worker.worker.model_runner
        propose, execute = runner.propose_draft_token_ids, runner.execute_model
        if not hasattr(runner, "drafter") or runner.device.type != "cpu":
            return None
    except AttributeError:
        return None
    timer = DraftTimer()

    def timed_propose(*args: Any, **kwargs: Any) -> Any:
        begun = time.monotonic_ns()
        drafts = propose(*args, **kwargs)
        timer.last_ns = time.monotonic_ns() - begun
        return drafts

    def execute_model(*args: Any, **kwargs: Any) -> Any:
        timer.last_ns = None
        return execute(*args, **kwargs)

    runner.propose_draft_token_ids, runner.execute_model = timed_propose, execute_model
    return timer
