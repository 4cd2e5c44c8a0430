"""Continuous batching as vLLM V1 does it: what an engine's next step computes, and what it leaves.

Running requests go first; prompts are cut into chunks of `max_num_batched_tokens`; at most
`max_num_seqs` run; who waits is served first come, first served. When blocks run out the last
request is preempted and computes everything again. With asynchronous scheduling a step is planned
while the one before it runs: who arrives during a step is in the next but one, and a slot falls
free one step after its request ended.

What the process does between two steps for samples and problems that begin or end there delays the
next step. It is part of that step's time, unless the engine had no request meanwhile: then it was
idle.
"""

from __future__ import annotations

import numpy as np

from advisor.compiled import inner, wide
from advisor.evidence.features import Work
from advisor.replay.simulation.instants import later
from advisor.replay.simulation.kv_cache import (
    admit,
    draft_growth,
    growth_of,
    most_steps,
    reach,
    take,
)
from advisor.replay.simulation.queues import append, longest, unlink
from advisor.replay.simulation.requests import begin_decoding, drain
from advisor.replay.simulation.room import blocks_are_kept, drafted_steps, make_room
from advisor.replay.simulation.state import NONE, PREFILL, Rules, World
from advisor.step_time.cost import (
    PROBLEM_STARTS,
    SAMPLE_ENDS,
    SAMPLE_STARTS,
    StepCost,
    chunk_seconds,
    host_seconds,
    mean_work,
    planned_work,
    prompt_in_window,
    step_features,
    steps_seconds,
)


@inner
def plan(world: World, rules: Rules, cost: StepCost, blocks: int, e: int, now: float) -> None:
    """Decide what the engine does from `now` on and when that ends; `due` is infinite if idle."""
    engine = world.engines[e]
    engine.prefill_requests = 0
    engine.prefill_tokens = 0
    engine.prefill_kv_tokens = engine.prefill_query_context = engine.chunks = 0.0
    engine.prefill_window_context = 0.0
    host = owed(world, cost, e)
    while True:
        seen = now + host if engine.idle or not rules.asynchronous else engine.last_begun
        preempted = make_room(world, rules, blocks, e)
        if not preempted:
            _admit(world, rules, cost, blocks, e, now + host, seen)
        decodes = engine.decode_requests + engine.drain_decode_requests
        if engine.prefill_requests or decodes:
            break
        if engine.draining:  # nothing to compute: their slots are free at once
            drain(world, rules, e)
        elif engine.waiting and not engine.idle:  # nothing runs, so nothing was planned ahead
            engine.idle = 1
        else:
            engine.idle, engine.due, engine.steps = 1, np.inf, 0
            return
    engine.idle = 0
    engine.begun, engine.host = (now + host, 0.0) if engine.empty else (now, host)
    _begin_host_work(world, e)
    engine.steps = 1
    if (
        engine.prefill_requests == 0
        and engine.draining == 0
        and engine.decode_requests
        and not preempted
    ):
        unseen = engine.waiting > 0 and later(world.samples[engine.queue.first].queued, seen)
        if not unseen or engine.running >= rules.max_seqs:
            steps = world.samples[world.slots[e, 0].heap].turns - engine.clock
            if steps > 1 and rules.speculative:
                steps = drafted_steps(world, rules, blocks, e, steps)
            elif steps > 1:
                steps = most_steps(world, rules, e, steps, blocks - engine.used)
            engine.steps = steps
    engine.due = engine.begun + seconds_of(world, rules, cost, e, engine.steps)


@inner
def owed(world: World, cost: StepCost, e: int) -> float:
    """Return the seconds of what has to be done before the engine's next step."""
    engine = world.engines[e]
    return host_seconds(cost, engine.problem_starts, engine.sample_starts, engine.sample_ends)


@inner
def _begin_host_work(world: World, e: int) -> None:
    """Count the work before a step, if it is part of its time; none is left to do."""
    engine, totals = world.engines[e], world.totals
    if not engine.empty:
        totals[PROBLEM_STARTS] += engine.problem_starts
        totals[SAMPLE_STARTS] += engine.sample_starts
        totals[SAMPLE_ENDS] += engine.sample_ends
    engine.problem_starts = engine.sample_starts = engine.sample_ends = engine.empty = 0


@inner
def seconds_of(world: World, rules: Rules, cost: StepCost, e: int, steps: int) -> float:
    """Return the time of the planned step, or of that many steps in which only decoding happens.

    The work before the first of them is in it.
    """
    engine = world.engines[e]
    most = longest(world, e, rules.keep_longest)
    return engine.host + steps_seconds(
        cost, planned_work(engine), steps, engine.growth, engine.window_growth, most, 1.0,
        engine.chunks, rules.speculative,
    )  # fmt: skip


@inner
def cut_short(world: World, rules: Rules, cost: StepCost, e: int, time: float, more: int) -> None:
    """End the steps under way `more` steps after the one in which `time` lies."""
    engine = world.engines[e]
    if engine.steps == 1:
        return
    low, high = 1, engine.steps  # the first step that ends at `time` or later
    wanted, seconds = time - engine.begun, max(engine.due - engine.begun, 1e-300)
    near = int(high * min(wanted / seconds, 1.0))  # steps take much the same time
    probe = near - 1
    while low < high:
        middle = min(max(probe, low), high - 1)
        if not later(time, engine.begun + seconds_of(world, rules, cost, e, middle)):
            high = middle
        else:
            low = middle + 1
        probe = near + 1 if probe < near else (low + high) // 2
    low += more
    if low < engine.steps:
        engine.steps = low
        engine.due = engine.begun + seconds_of(world, rules, cost, e, low)


@inner
def pass_steps(world: World, rules: Rules, cost: StepCost, e: int) -> None:
    """Let the planned steps pass: time, tokens, blocks. Ends of samples are left to the caller."""
    engine = world.engines[e]
    steps, work = engine.steps, planned_work(engine)
    seconds = engine.due - engine.begun
    engine.last_begun = engine.begun
    if rules.asynchronous and steps > 1:
        engine.last_begun += seconds_of(world, rules, cost, e, steps - 1)
    if steps > 1 and not rules.speculative:
        take(world, e, growth_of(world, rules, e, steps - 1, wide(1)))
    _count(world, rules, cost, e, work, steps, seconds)
    each = seconds / (steps * work.decode_tokens + work.prefill_tokens)
    engine.busy += seconds
    engine.all_steps += steps
    if work.decode_requests:
        engine.clock += steps
        engine.per_token += each * steps
        engine.decode_kv_tokens += engine.growth * steps
        engine.decode_window_tokens += engine.window_growth * steps
    if steps > 1 and rules.speculative and blocks_are_kept(world, e):
        take(world, e, draft_growth(world, rules, e, wide(1), wide(1)))
    for i in range(engine.draining):
        sample = world.samples[world.slots[e, i].drain]
        if not sample.by_length:
            world.problems[sample.problem].busy += each * sample.forward
    if engine.draining:
        drain(world, rules, e)
    for i in range(engine.prefill_requests):
        s, chunk = world.slots[e, i].prompt, world.slots[e, i].chunk
        sample = world.samples[s]
        world.problems[sample.problem].busy += each * chunk
        sample.computed += chunk
        if sample.computed < sample.known:
            engine.partial = s
        else:
            begin_decoding(world, rules, e, s)


@inner
def _count(
    world: World,
    rules: Rules,
    cost: StepCost,
    e: int,
    work: Work[float],
    steps: int,
    seconds: float,
) -> None:
    """Add the planned steps, the first of them with this work, to the totals and the peaks.

    Of their seconds those of steps beyond the cost's `most` are added up.
    """
    engine = world.engines[e]
    mean = mean_work(work, steps, engine.growth, engine.window_growth)
    features = step_features(mean, rules.speculative, cost.reads.experts)
    for place, value in enumerate(features[:PROBLEM_STARTS]):
        world.totals[place] += steps * value
    engine.peak_requests = max(engine.peak_requests, features.requests)
    engine.peak_tokens = max(engine.peak_tokens, features.tokens)
    first = work.prefill_kv_tokens + work.decode_kv_tokens
    last = first + engine.growth * (steps - 1)
    engine.peak_kv_tokens = max(engine.peak_kv_tokens, last)
    most = cost.most
    if features.requests > most.requests or features.tokens > most.tokens or first > most.kv_tokens:
        engine.beyond += seconds
    elif last > most.kv_tokens:
        known = int((most.kv_tokens - first) / engine.growth) + 1
        engine.beyond += seconds - seconds_of(world, rules, cost, e, known)


@inner
def _admit(
    world: World, rules: Rules, cost: StepCost, blocks: int, e: int, now: float, seen: float
) -> None:
    engine = world.engines[e]
    budget = rules.max_tokens - int(engine.decode_tokens + engine.drain_decode_tokens)
    while budget > 0:
        s = engine.partial
        if s != NONE:
            engine.partial = NONE
        else:
            s = engine.queue.first
            if s == NONE or engine.running >= rules.max_seqs:
                break
            if later(world.samples[s].queued, seen):
                break
            computed = admit(world, rules, e, s, blocks - engine.used)
            if computed == NONE:
                break
            unlink(world.samples, engine.queue, s)
            append(world.samples, engine.runners, s)
            engine.waiting -= 1
            engine.running += 1
            sample = world.samples[s]
            sample.state, sample.computed = PREFILL, computed
            if sample.preemptions == 0:
                sample.scheduled, sample.cached = now, computed
        sample = world.samples[s]
        chunk = min(sample.known - sample.computed, budget)
        budget -= chunk
        slot = world.slots[e, engine.prefill_requests]
        slot.prompt, slot.chunk = s, chunk
        engine.prefill_requests += 1
        engine.prefill_tokens += chunk
        engine.prefill_kv_tokens += sample.computed + chunk
        engine.prefill_query_context += chunk * sample.computed + chunk * (chunk + 1) / 2
        engine.prefill_window_context += prompt_in_window(
            float(sample.computed), float(chunk), rules.window, rules.chunked
        )
        engine.chunks += chunk_seconds(cost, chunk, sample.computed)
        reach(world, rules, e, s, sample.computed + chunk)
