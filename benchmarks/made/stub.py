"""An engine without a model: samples end after so many steps, and it keeps its own account."""

import itertools
import os
import random
import time
from dataclasses import dataclass, field

import polars as pl

from profiler.engines.interface import Engine, SampleResult
from traces.clock import now_ns
from traces.recording.tables import TABLES
from traces.schema.engine import EngineConfig, ModelFacts

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

    step: int = 0

    def reset(self, engine):
        self.engine = engine
        self.rows.clear()

    def drain(self):
        count = len(self.rows)
        taken, self.rows[:count] = self.rows[:count], []
        return pl.from_dicts(taken, schema=dict(TABLES["steps"]))


THINK_END = 4  # its token id


class StubEngine(Engine):
    """See `profiler.engines.interface.Engine`.

    `answers(request_id)` gives a sample's completion text, thought and answer; a request that
    goes on from a closed thought gives the answer alone. A token of thought is an id from 100 on,
    then come `</think>` and one token of answer. `tokens_made` is the engine's own count. With
    `ledger`, a file descriptor, each step is written there at once: step number and time. Unless
    it `keeps_lengths`, a fixed length is ignored, as by a server that does not know ignore_eos.
    """

    provider = "stub"

    def __init__(
        self,
        *,
        step_s=0.0,
        lengths=(3, 9),
        answers=None,
        ledger=None,
        fail=(),
        native=True,
        keeps_lengths=True,
    ):
        self.config = EngineConfig(model="stub", max_num_seqs=64, num_gpu_blocks=100)
        self.model = MODEL
        self.chat_template = None
        self.think_end_ids = (THINK_END,)
        self.native = native
        self.steps = self.probe = StubProbe()
        self.step_s, self.ledger, self.fail = step_s, ledger, fail
        self.answers = answers or (lambda request_id: "thought</think>12")
        self.lengths, self.keeps_lengths = lengths, keeps_lengths
        self.live = {}
        self.cancelled = []
        self.submitted = []
        self.tokens_made = 0
        self.numbers = itertools.count()
        self.random = random.Random(0)
        self.closed = False

    @property
    def thinking_budget(self):
        return self.native

    def submit(self, request):
        assert request.request_id not in self.live
        self.submitted.append(request)
        length = self.random.randint(*self.lengths)
        if request.fixed_length and self.keeps_lengths:
            length = request.max_tokens + 1  # it would have gone on
        self.live[request.request_id] = Made(request, length, self.probe.step)

    def cancel(self, request_ids):
        results = []
        for name in request_ids:
            if made := self.live.pop(name, None):
                self.cancelled.append(name)
                results.append(self._result(made, "abort"))
        return results

    def poll(self, wait_s=None):
        begun = time.monotonic_ns()
        if self.step_s:
            time.sleep(self.step_s)
        step, batch = next(self.numbers), len(self.live)
        wall = time.monotonic_ns() - begun
        row = {
            "engine": self.probe.engine,
            "step": step,
            "end": now_ns(),
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
        self.probe.step = step + 1
        if self.ledger is not None:
            os.write(self.ledger, f"{step} {now_ns()}\n".encode())
        ended = []
        for name, made in list(self.live.items()):
            made.tokens += 1
            self.tokens_made += 1
            if reason := made.reason():
                del self.live[name]
                ended.append(self._result(made, reason))
        return ended

    def _failing(self, name):
        return self.fail == "all" or name.split(".", 1)[1] in self.fail

    def _result(self, made, reason):
        request = made.request
        error = "HTTP 500" if self._failing(request.request_id) else None
        thought, _, answer = self.answers(request.request_id).rpartition("</think>")
        tokens = made.ids()
        closed = made.closed or THINK_END in tokens
        parts = ["" if made.closed else thought, "</think>" if THINK_END in tokens else ""]
        whole = reason == "stop" and closed
        prompt = made.context()
        return SampleResult(
            request_id=request.request_id,
            text="" if error else "".join([*parts, answer if whole else ""]),
            finish_reason=None if error else "stop" if reason == "pause" else reason,
            end=now_ns(),
            prompt_tokens=len(prompt),
            cached_tokens=0,
            output_tokens=len(tokens),
            think_tokens=tokens.index(THINK_END) if THINK_END in tokens else None,
            first_token=now_ns(),
            first_step=made.first_step if tokens else None,
            last_step=self.probe.step - 1 if tokens else None,
            logprob_mean=None if request.top_logprobs is None else -0.1 * made.length,
            confidence_min_window=None if request.confidence_window is None else made.length,
            stopped=reason == "pause",
            prompt_token_ids=prompt,
            token_ids=tokens,
            error=error,
        )

    def close(self):
        self.closed = True


@dataclass
class Made:
    """What the stub makes for a request: `length` tokens, of which the last two end the thought."""

    request: object
    length: int
    first_step: int
    tokens: int = 0

    def context(self):
        earlier = self.request.continues
        if earlier is None:
            return (1, 2, 3, 5, 6)
        appended = {"": (), "</think>": (THINK_END,)}.get(earlier.append, (7,))
        return (*earlier.token_ids, *appended)

    @property
    def closed(self):
        return THINK_END in self.context()

    def ids(self):
        if self.closed:
            return (50,) * self.tokens
        thought = min(self.tokens, self.length - 2)
        ids = [*range(100, 100 + thought), THINK_END, 50]
        return tuple(ids[: self.tokens])

    def reason(self):
        whole = 1 if self.closed else self.length
        budget = self.request.thinking_token_budget
        if budget is not None and not self.closed:
            self.length = min(self.length, budget + 2)
        if self.tokens >= whole:
            return "stop"
        if self.request.stop and self.tokens >= 2:
            return "pause"
        if self.tokens >= (self.request.max_tokens or 1000):
            return "length"
        return None
