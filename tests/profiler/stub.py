"""An engine without a model: samples end after so many steps, and it keeps its own account."""

import itertools
import os
import random
import time
from dataclasses import dataclass, field

import polars as pl

from profiler.engines.protocol import SampleResult
from traces.schema import EngineConfig, ModelFacts
from traces.tables import TABLES

MODEL = ModelFacts(
    name="stub",
    num_hidden_layers=2,
    hidden_size=8,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
    intermediate_size=16,
    vocab_size=32,
    total_parameters=1000,
    active_parameters=1000,
    weight_bytes=2000,
    kv_bytes_per_token=32,
)


@dataclass
class StubProbe:
    """Stands in for the step probe: rows that the stub engine made."""

    rows: list = field(default_factory=list)
    cost_us: float | None = 0.5
    dropped: int = 0
    failure: str | None = None
    engine: str = ""

    def reset(self, engine):
        self.engine = engine
        self.rows.clear()

    def drain(self):
        count = len(self.rows)
        taken, self.rows[:count] = self.rows[:count], []
        return pl.from_dicts(taken, schema=dict(TABLES["steps"]))


class StubEngine:
    """See `profiler.engines.protocol.Engine`.

    `answers(request_id)` gives a sample's completion text. With `ledger`, a file descriptor, each
    step is written there at once: step number and time.
    """

    def __init__(self, *, step_s=0.0, lengths=(3, 9), answers=None, ledger=None, fail=()):
        self.config = EngineConfig(model="stub", max_num_seqs=64, num_gpu_blocks=100)
        self.model = MODEL
        self.chat_template = None
        self.probe = StubProbe()
        self.step_s, self.ledger, self.fail = step_s, ledger, set(fail)
        self.answers = answers or (lambda request_id: "thought</think>12")
        self.lengths = lengths
        self.live = {}
        self.cancelled = []
        self.submitted = []
        self.steps = itertools.count()
        self.random = random.Random(0)
        self.closed = False

    def submit(self, request):
        self.submitted.append(request)
        self.live[request.request_id] = [self.random.randint(*self.lengths), 0, time.time_ns()]

    def cancel(self, request_ids):
        results = []
        for name in request_ids:
            if self.live.pop(name, None):
                self.cancelled.append(name)
                results.append(self._result(name, 1, "abort"))
        return results

    def poll(self):
        begun = time.monotonic_ns()
        if self.step_s:
            time.sleep(self.step_s)
        step, batch = next(self.steps), len(self.live)
        wall = time.monotonic_ns() - begun
        row = {
            "engine": self.probe.engine,
            "step": step,
            "end": time.time_ns(),
            "wall_ns": wall,
            "interval_ns": wall if step else None,
            "decode_requests": batch,
            "decode_tokens": batch,
            "prefill_requests": 0,
            "prefill_tokens": 0,
            "running": batch,
            "waiting": 0,
            "kv_blocks": batch,
            "accepted": None,
            "source": "measured",
        }
        self.probe.rows.append(row)
        if self.ledger is not None:
            os.write(self.ledger, f"{step} {time.time_ns()}\n".encode())
        ended = []
        for name, state in list(self.live.items()):
            state[1] += 1
            if state[1] >= state[0]:
                del self.live[name]
                ended.append(self._result(name, state[1], "stop"))
        return ended

    def _result(self, name, tokens, reason):
        error = "HTTP 500" if name.split(".", 1)[1] in self.fail else None
        return SampleResult(
            request_id=name,
            text=self.answers(name),
            finish_reason=None if error else reason,
            end=time.time_ns(),
            prompt_tokens=5,
            output_tokens=tokens,
            think_tokens=max(tokens - 2, 0),
            first_token=time.time_ns(),
            token_ids=tuple(range(tokens)),
            error=error,
        )

    def close(self):
        self.closed = True
