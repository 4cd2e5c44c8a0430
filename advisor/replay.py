"""A replay of continuous batching, as vLLM V1 schedules it, in simulated time.

What is replayed: requests are taken first come, first served; running requests go first; prompts
are cut into chunks of `max_num_batched_tokens`; at most `max_num_seqs` run; whole blocks of a
prompt are shared with the samples of the same problem that come later or in the same step; a
prompt is admitted only when all its blocks are free; when decoding runs out of blocks the last
request is preempted and computes everything again. The samples of a problem arrive together, and
it is decided when the last has ended.

Steps in which only decoding happens are leapt over until the next end or arrival, because the
time of a step is linear in the context read; with speculation the replay goes step by step.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Sequence
from operator import add, mul

import numpy as np
import numpy.typing as npt

from advisor.cache import Cache
from advisor.composition import FEATURES
from advisor.evidence import Sample
from advisor.load import Limits, Load, Replayed

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
NO_LIMIT = 10**9


def replay(
    loads: Sequence[Load],
    seconds: Floats,
    limits: Limits,
    *,
    concurrency: int | None = None,
    arrivals: Sequence[float] | None = None,
) -> Replayed:
    """Replay `loads` on an engine whose step takes `seconds` [FEATURES] times its composition.

    With `concurrency`, so many problems are in flight and the next arrives when one is decided;
    with `arrivals`, they come at those times in seconds, ascending. Raises ValueError when a
    sample cannot fit in the cache.
    """
    if (concurrency is None) == (arrivals is None):
        raise ValueError("give either concurrency or arrivals")
    times = None if arrivals is None else [float(time) for time in arrivals]
    return _Replay(loads, seconds, limits, concurrency, times).run()


class _Request:
    """A sample on its way. `tokens` are known when it is admitted: prompt, and what it had."""

    __slots__ = (
        "computed", "done", "entry", "grid", "held", "number", "problem", "sample", "since", "step",
        "tokens", "version",
    )  # fmt: skip

    def __init__(self, problem: int, number: int, sample: Sample, tokens: int) -> None:
        self.problem, self.number, self.sample, self.tokens = problem, number, sample, tokens
        self.done = self.computed = self.held = self.step = self.since = self.version = 0
        self.entry = 0.0  # seconds per token of all steps when it began to decode
        self.grid: Ints | None = None  # [tokens, context] per verify step to come


class _Replay:
    def __init__(
        self,
        loads: Sequence[Load],
        seconds: Floats,
        limits: Limits,
        concurrency: int | None,
        arrivals: list[float] | None,
    ) -> None:
        self.loads, self.limits = loads, limits
        self.cost = [float(value) for value in seconds]
        self.arrivals, self.in_flight = arrivals, concurrency
        self.next_problem = 0
        self.arrival, self.latency = np.zeros(len(loads)), np.zeros(len(loads))
        self.left = [len(load.samples) for load in loads]
        self.share = [0.0] * len(loads)
        self.first_number = [0, *np.cumsum(self.left).tolist()]
        self.ttft = np.zeros(self.first_number[-1])
        self.waiting: deque[_Request] = deque()
        self.running: dict[int, _Request] = {}  # in the order of admission
        self.partial: _Request | None = None  # its prompt is not whole yet; always the last
        self.ends: list[tuple[int, int, int]] = []  # decode step, request, version
        self.now = self.busy = self.per_token = 0.0
        self.clock = 0  # decode steps so far
        self.decoding = self.context = 0  # requests; their context in the next decode step
        self.ratios: list[float] = []  # seconds per token of each decode step, if speculative
        self.grid = np.zeros((2, 256), dtype=np.int64)  # sums over requests, by decode step
        self.totals = [0.0] * len(FEATURES)
        self.peak = [0.0, 0.0, 0.0]
        self.steps = self.preemptions = 0
        self.max_seqs = limits.max_num_seqs or NO_LIMIT
        self.max_tokens = limits.max_num_batched_tokens or NO_LIMIT
        most = max(self.left, default=0) * (concurrency or NO_LIMIT)
        self.cache = Cache(
            [load.prompt() for load in loads],
            block_size=limits.block_size,
            total=limits.num_blocks,
            prefix_caching=limits.prefix_caching,
            together=min(self.max_seqs, most),
        )

    def run(self) -> Replayed:
        if self.in_flight is not None:
            for _ in range(min(self.in_flight, len(self.loads))):
                self._arrive(0.0)
        while True:
            while self.arrivals is not None and self._next_arrival() <= self.now:
                self._arrive(self._next_arrival())
            if self.running or self.waiting:
                self._advance()
            elif self.next_problem < len(self.loads):
                self.now = self._next_arrival()
            else:
                break
        return Replayed(
            latency_s=self.latency,
            busy_share_s=np.array(self.share),
            ttft_s=self.ttft,
            makespan_s=self.now,
            busy_s=self.busy,
            steps=self.steps,
            preemptions=self.preemptions,
            totals=np.array(self.totals),
            peak=dict(zip(("requests", "tokens", "kv_tokens"), self.peak, strict=True)),
        )

    def _arrive(self, time: float) -> None:
        problem, self.next_problem = self.next_problem, self.next_problem + 1
        self.arrival[problem] = time
        load = self.loads[problem]
        self.waiting.extend(
            _Request(problem, self.first_number[problem] + index, sample, load.prompt_tokens)
            for index, sample in enumerate(load.samples)
        )

    def _next_arrival(self) -> float:
        if self.arrivals is None or self.next_problem >= len(self.loads):
            return math.inf
        return self.arrivals[self.next_problem]

    # -- one step, or many ---------------------------------------------------------------------

    def _advance(self) -> None:
        preempted = self._make_room() if self.cache.tight else False
        tokens, context = self.decoding, self.context
        if self.limits.speculative:
            tokens, context = int(self.grid[0, self.clock]), int(self.grid[1, self.clock])
        prompts = [] if preempted else self._admit(self.max_tokens - tokens)
        if prompts:
            self._mixed_step(tokens, context, prompts)
        else:
            self._decode_steps(tokens, context)
        while self.ends and self.ends[0][0] <= self.clock:
            _, number, version = heapq.heappop(self.ends)
            request = self.running.get(number)
            if request is not None and request.version == version:
                self._stop_decoding(request)
                self._finish(request)

    def _admit(self, budget: int) -> list[tuple[_Request, int]]:
        """Return the prompts that this step computes, with how many of their tokens."""
        prompts: list[tuple[_Request, int]] = []
        while budget > 0:
            if self.partial is not None:
                request, self.partial = self.partial, None
            elif self.waiting and len(self.running) < self.max_seqs:
                request = self.waiting[0]
                request.computed = self.cache.hit(request.problem, request.tokens)
                if not self.cache.admit(request.problem, request.tokens):
                    break
                self.waiting.popleft()
                request.held = self.cache.blocks(request.tokens)
                self.running[request.number] = request
            else:
                break
            take = min(request.tokens - request.computed, budget)
            budget -= take
            prompts.append((request, take))
            prompt = self.loads[request.problem].prompt_tokens
            self.cache.reach(request.problem, min(request.computed + take, prompt))
        return prompts

    def _mixed_step(self, tokens: int, context: int, prompts: list[tuple[_Request, int]]) -> None:
        decoding, count = self.decoding, len(prompts)
        drafting = decoding if self.limits.speculative else 0
        total, read, query = tokens, context, context * (tokens / decoding) if decoding else 0.0
        for request, take in prompts:
            total += take
            read += request.computed + take
            query += take * request.computed + take * (take + 1) // 2
        ratio = self._pass(
            1,
            (1, 1, float(drafting > 0), count + decoding, count, drafting, total, read, query),
            peak_context=read,
        )
        if decoding:
            self._count_decode_steps(1, ratio)
        for request, take in prompts:
            self.share[request.problem] += take * ratio
            request.computed += take
            if request.computed < request.tokens:
                self.partial = request
            else:
                self._end_prompt(request)

    def _decode_steps(self, tokens: int, context: int) -> None:
        """Pass decode steps until the next end, or until an arrival can be admitted."""
        decoding = self.decoding
        steps = 1 if self.limits.speculative else self._steps_to_end()
        if self.cache.tight:  # a request takes at most one block in block_size steps
            free = self.cache.total - self.cache.used
            steps = max(1, min(steps, free // decoding * self.cache.size))
        pace = tokens / decoding
        if steps > 1 and len(self.running) < self.max_seqs:
            step, _, _, request, _, _, token, kv, query = self.cost
            read = kv + query * pace
            base = step + request * decoding + token * tokens + read * context
            wait = self._next_arrival() - self.now
            steps = _steps_until(wait, base, read * decoding, steps)
        read = steps * context + decoding * (steps * (steps - 1) // 2)
        draft = steps if self.limits.speculative else 0
        requests = steps * decoding
        if self.cache.tight and steps > 1:
            self._grow(steps)
        ratio = self._pass(
            steps,
            (steps, 0, draft, requests, 0, draft * decoding, steps * tokens, read, read * pace),
            peak_context=context + decoding * (steps - 1),
        )
        self._count_decode_steps(steps, ratio * steps)

    def _pass(self, steps: int, amounts: tuple[float, ...], *, peak_context: float) -> float:
        """Let the time of steps pass; return seconds per token of one."""
        time: float = sum(map(mul, self.cost, amounts))
        self.totals = list(map(add, self.totals, amounts))
        self.now += time
        self.busy += time
        self.steps += steps
        peak = self.peak
        if amounts[3] > peak[0] * steps:
            peak[0] = amounts[3] / steps
        if amounts[6] > peak[1] * steps:
            peak[1] = amounts[6] / steps
        peak[2] = max(peak[2], peak_context)
        return time / amounts[6]

    def _count_decode_steps(self, steps: int, per_token: float) -> None:
        """Count decode steps in which a request with one token has `per_token` seconds."""
        self.clock += steps
        self.per_token += per_token
        if self.limits.speculative:
            self.ratios.append(per_token)
            if self.clock >= self.grid.shape[1]:
                self.grid = np.concatenate([self.grid, np.zeros_like(self.grid)], axis=1)
        else:
            self.context += steps * self.decoding

    def _steps_to_end(self) -> int:
        while True:
            last, number, version = self.ends[0]
            request = self.running.get(number)
            if request is not None and request.version == version:
                return last - self.clock
            heapq.heappop(self.ends)

    # -- the life of a request -----------------------------------------------------------------

    def _end_prompt(self, request: _Request) -> None:
        """Take the token that a whole prompt gave; decoding begins with the next."""
        advance = request.sample.advance
        if request.done == 0:
            self.ttft[request.number] = self.now - self.arrival[request.problem]
            request.done = 1
        elif advance is None:
            request.done += 1
        else:  # it stands for the verify step that the preemption cost
            request.done += int(advance[request.step])
            request.step += 1
        if request.done >= request.sample.output_tokens:
            self._finish(request)
            return
        request.since, request.entry = self.clock, self.per_token
        self.decoding += 1
        if self.limits.speculative:
            steps = self._enter_grid(request)
        else:
            self.context += request.tokens + 1
            steps = request.sample.output_tokens - request.done
        heapq.heappush(self.ends, (self.clock + steps, request.number, request.version))

    def _enter_grid(self, request: _Request) -> int:
        kept, forwarded = request.sample.advance, request.sample.scheduled
        if kept is None or forwarded is None:
            raise ValueError("a sample does not say how speculation went")
        kept, forwarded = kept[request.step :], forwarded[request.step :]
        context = request.tokens + np.cumsum(kept) - kept + forwarded
        request.grid = np.stack([forwarded, context])
        end = self.clock + len(kept)
        while end >= self.grid.shape[1]:
            self.grid = np.concatenate([self.grid, np.zeros_like(self.grid)], axis=1)
        self.grid[:, self.clock : end] += request.grid
        return len(kept)

    def _stop_decoding(self, request: _Request) -> None:
        """Take a request out of the decoding ones and charge its problem for its steps."""
        done = self.clock - request.since
        self.decoding -= 1
        request.version += 1
        if request.grid is None:
            self.share[request.problem] += self.per_token - request.entry
            self.context -= request.tokens + 1 + done
            request.done += done
            return
        ratios = np.array(self.ratios[request.since : self.clock])
        self.share[request.problem] += float(ratios @ request.grid[0, :done])
        if done < request.grid.shape[1]:
            end = request.since + request.grid.shape[1]
            self.grid[:, self.clock : end] -= request.grid[:, done:]
        if request.sample.advance is not None:
            request.done += int(request.sample.advance[request.step : request.step + done].sum())
        request.step += done

    def _finish(self, request: _Request) -> None:
        problem = request.problem
        del self.running[request.number]
        self.cache.release(problem, request.held)
        self.left[problem] -= 1
        if self.left[problem]:
            return
        self.latency[problem] = self.now - self.arrival[problem]
        if self.in_flight is not None and self.next_problem < len(self.loads):
            self._arrive(self.now)

    # -- when the cache may fill ---------------------------------------------------------------

    def _make_room(self) -> bool:
        """Preempt the last requests until the others can take a step; whether any was."""
        preempted = False
        while not self._grow(1):
            self._preempt()
            preempted = True
        return preempted

    def _grow(self, steps: int) -> bool:
        """Take the blocks that the decoding requests need for so many steps, if they are free."""
        needs = []
        for request in self.running.values():
            if request is not self.partial:
                ahead = self.clock - request.since + steps
                if request.grid is None:
                    tokens = request.tokens + ahead
                else:
                    tokens = int(request.grid[1, ahead - 1])
                needs.append((request, max(request.held, self.cache.blocks(tokens))))
        fresh = sum(need - request.held for request, need in needs)
        if self.cache.used + fresh > self.cache.total and len(self.running) > 1:
            return False
        self.cache.used += fresh
        for request, need in needs:
            request.held = need
        return True

    def _preempt(self) -> None:
        _, request = self.running.popitem()
        self.preemptions += 1
        self.cache.release(request.problem, request.held)
        if request is self.partial:
            self.partial = None
        else:
            self._stop_decoding(request)
            request.tokens = self.loads[request.problem].prompt_tokens + request.done
        self.waiting.appendleft(request)


def _steps_until(wait: float, base: float, slope: float, most: int) -> int:
    """Return how many steps, the i-th of base + i * slope seconds, reach `wait`: 1 to `most`."""
    if most * base + slope * (most * (most - 1) / 2) <= wait:
        return most
    half = base - slope / 2
    root = math.sqrt(half * half + 2 * slope * wait) if wait > 0 else half
    # wait = half * steps + slope / 2 * steps^2; this form holds for slope = 0 too.
    steps = max(int(2 * wait / (half + root)) - 1, 1) if half + root > 0 else 1
    while steps < most and steps * base + slope * (steps * (steps - 1) / 2) < wait:
        steps += 1
    return steps
