"""Prompt lookup without running it: worked out when a sample ends, kept as counts alone.

Token ids wait here, in memory, for the writer's thread to count what the standard settings of
prompt lookup would have drafted for them; they are forgotten then and never written.
"""

from __future__ import annotations

from array import array
from collections import deque
from typing import Any

from profiler.engines.interface import SampleResult
from traces.schema.engine import EngineConfig
from traces.summary.speculation.ngram import STANDARD, draft_counts, lookup_of

# The work is put off to the end of the run, so that it does not slow what is measured, until so
# many tokens wait.
TOKENS_KEPT = 1_000_000


class NgramRecorder:
    """Gathers ended samples; `drain` gives rows of the `drafts` table.

    `add` costs microseconds on the caller's thread, `drain` a few per token. `finish` says that
    no sample follows, so that the next `drain` works through all that wait.
    """

    def __init__(self, engine: EngineConfig, policy_key: str) -> None:
        self._engine = engine
        self._names = {"engine": engine.key(), "policy": policy_key}
        own = lookup_of(engine.speculative)
        self._lookups = (*STANDARD, *((own,) if own is not None and own not in STANDARD else ()))
        self._waiting: deque[tuple[dict[str, Any], int | None, array[int], array[int]]] = deque()
        self._tokens = 0
        self._finished = False

    def add(self, problem_id: str, sample_index: int, result: SampleResult) -> None:
        """Take a sample that ended; one whose tokens the engine does not tell is left out."""
        prompt, output = result.prompt_token_ids, result.token_ids
        if result.error is not None or not prompt or output is None or len(output) < 2:
            return
        key = {**self._names, "problem_id": problem_id, "sample_index": sample_index}
        self._waiting.append((key, result.think_tokens, array("i", prompt), array("i", output)))
        self._tokens += len(prompt) + len(output)

    def finish(self) -> None:
        """Let the next `drain` take all."""
        self._finished = True

    def drain(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        while self._waiting and (self._finished or self._tokens > TOKENS_KEPT):
            key, think, prompt, output = self._waiting.popleft()
            self._tokens -= len(prompt) + len(output)
            counted = draft_counts(
                self._lookups,
                prompt,
                output,
                think_tokens=think,
                max_model_len=self._engine.max_model_len,
            )
            rows += [{**key, **row} for row in counted]
        return rows
