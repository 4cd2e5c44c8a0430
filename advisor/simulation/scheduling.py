"""Continuous batching as vLLM V1 does it: what an engine's next step computes, and what it leaves.

Running requests go first; prompts are cut into chunks of `max_num_batched_tokens`; at most
`max_num_seqs` run; who waits is served first come, first served. When blocks run out the last
request is preempted and computes everything again. With asynchronous scheduling a step is planned
while the one before it runs: who arrives during a step is in the next but one, and a slot falls
free one step after its request ended.
"""

from __future__ import annotations

import numpy as np

from advisor.compiled import inlined, inner, wide
from advisor.models.step_cost import StepCost, chunk_seconds, leap_seconds, step_seconds
from advisor.simulation.kv_cache import (
    admit,
    draft_growth,
    growth_of,
    most_steps,
    reach,
    release,
    take,
)
from advisor.simulation.queues import leave, longest, push, remove, start, stop_waiting, wait
from advisor.simulation.state import (
    CANCELLED,
    DECODE,
    DRAINING,
    ENDED,
    NONE,
    PREFILL,
    WAITING,
    Rules,
    World,
)

UNLIMITED = 1 << 40


@inner
def plan(world: World, rules: Rules, cost: StepCost, blocks: int, e: int, now: float) -> None:
    """Decide what the engine does from `now` on and when that ends; `due` is infinite if idle."""
    engine = world.engines[e]
    engine.prompts = 0
    engine.prompt_tokens = 0
    engine.prompt_read = engine.prompt_query = engine.chunks = 0.0
    while True:
        seen = now if engine.idle or not rules.asynchronous else engine.last_begun
        preempted = _make_room(world, rules, blocks, e)
        if not preempted:
            _admit(world, rules, cost, blocks, e, now, seen)
        decodes = engine.decodes + engine.drain_decodes
        if engine.prompts or decodes:
            break
        if engine.draining:  # nothing to compute: their slots are free at once
            _drain(world, rules, e)
        elif engine.waiting and not engine.idle:  # nothing runs, so nothing was planned ahead
            engine.idle = 1
        else:
            engine.idle, engine.due, engine.steps = 1, np.inf, 0
            return
    engine.idle = 0
    engine.begun = now
    engine.steps = 1
    if engine.prompts == 0 and engine.draining == 0 and engine.decodes and not preempted:
        unseen = engine.waiting > 0 and world.samples[engine.waiting_first].queued > seen
        if not unseen or engine.running >= rules.max_seqs:
            steps = world.samples[world.slots[e, 0].heap].ends - engine.clock
            if steps > 1 and rules.speculative:
                steps = _drafted_steps(world, rules, blocks, e, steps)
            elif steps > 1:
                steps = most_steps(world, rules, e, steps, blocks - engine.used)
            engine.steps = steps
    engine.due = now + seconds_of(world, rules, cost, e, engine.steps)


@inner
def seconds_of(world: World, rules: Rules, cost: StepCost, e: int, steps: int) -> float:
    """Return the time of the planned step, or of that many steps in which only decoding happens."""
    engine = world.engines[e]
    decodes = engine.decodes + engine.drain_decodes
    tokens = engine.tokens + engine.drain_tokens
    context = engine.context + engine.drain_context
    most = longest(world, e, rules.keep_longest)
    if engine.prompts == 0:
        return leap_seconds(
            cost, steps, decodes, tokens, context, engine.growth, most, 1.0, rules.speculative
        )
    return step_seconds(
        cost,
        engine.prompts,
        engine.prompt_tokens,
        engine.prompt_read,
        engine.prompt_query,
        engine.chunks,
        decodes,
        tokens,
        context,
        most,
        rules.speculative,
    )


@inner
def cut_short(world: World, rules: Rules, cost: StepCost, e: int, time: float, more: int) -> None:
    """End the steps under way `more` steps after the one in which `time` lies."""
    engine = world.engines[e]
    if engine.steps == 1:
        return
    low, high = 1, engine.steps  # the first step that ends at `time` or later
    wanted = time - engine.begun
    while low < high:
        middle = (low + high) // 2
        if seconds_of(world, rules, cost, e, middle) >= wanted:
            high = middle
        else:
            low = middle + 1
    low += more
    if low < engine.steps:
        engine.steps = low
        engine.due = engine.begun + seconds_of(world, rules, cost, e, low)


@inner
def pass_steps(world: World, rules: Rules, cost: StepCost, e: int) -> None:
    """Let the planned steps pass: time, tokens, blocks. Ends of samples are left to the caller."""
    engine = world.engines[e]
    steps, decodes = engine.steps, engine.decodes + engine.drain_decodes
    tokens, context = engine.tokens + engine.drain_tokens, engine.context + engine.drain_context
    seconds = engine.due - engine.begun
    engine.last_begun = engine.begun
    if rules.asynchronous and steps > 1:
        engine.last_begun += seconds_of(world, rules, cost, e, steps - 1)
    if steps > 1 and not rules.speculative:
        take(world, e, growth_of(world, rules, e, steps - 1, wide(1)))
    _count(world, rules, e, steps, decodes, tokens, context)
    each = seconds / (steps * tokens + engine.prompt_tokens)
    engine.busy += seconds
    engine.all_steps += steps
    if decodes:
        engine.clock += steps
        engine.per_token += each * steps
        engine.context += engine.growth * steps
    if steps > 1 and rules.speculative and blocks_are_kept(world, e):
        take(world, e, draft_growth(world, rules, e, wide(1), wide(1)))
    drained = engine.draining
    for i in range(engine.draining):
        sample = world.samples[world.slots[e, i].drain]
        if not sample.by_length:
            world.problems[sample.problem].busy += each * sample.forward
    if drained:
        _drain(world, rules, e)
    for i in range(engine.prompts):
        s, chunk = world.slots[e, i].prompt, world.slots[e, i].chunk
        sample = world.samples[s]
        world.problems[sample.problem].busy += each * chunk
        sample.computed += chunk
        if sample.computed < sample.known:
            engine.partial = s
        else:
            _begin_decoding(world, rules, e, s)


@inlined
def blocks_are_kept(world: World, e: int) -> bool:
    """Whether the engine's cache has a bound."""
    return world.engines[e].virgin + world.engines[e].used < UNLIMITED // 2


@inner
def _count(
    world: World, rules: Rules, e: int, steps: int, decodes: int, tokens: float, context: float
) -> None:
    """Add the steps to the totals of what all steps consisted of, and to the peaks."""
    engine, totals = world.engines[e], world.totals
    read = steps * context + engine.growth * (steps * (steps - 1) / 2)
    totals[0] += steps
    if engine.prompts:
        totals[1] += 1
        totals[4] += engine.prompts
    if rules.speculative and decodes:
        totals[2] += steps
        totals[5] += steps * decodes
    totals[3] += engine.prompts + steps * decodes
    totals[6] += engine.prompt_tokens + steps * tokens
    totals[7] += engine.prompt_read + read
    totals[8] += engine.prompt_query + (read * tokens / decodes if decodes else 0.0)
    totals[9] = max(totals[9], engine.prompts + decodes)
    totals[10] = max(totals[10], engine.prompt_tokens + tokens)
    last = context + engine.growth * (steps - 1)
    totals[11] = max(totals[11], engine.prompt_read + last)


# -- the life of a request -------------------------------------------------------------------------


@inner
def _admit(
    world: World, rules: Rules, cost: StepCost, blocks: int, e: int, now: float, seen: float
) -> None:
    """Choose the prompts that the step computes, in chunks."""
    engine = world.engines[e]
    budget = rules.max_tokens - int(engine.tokens + engine.drain_tokens)
    while budget > 0:
        s = engine.partial
        if s != NONE:
            engine.partial = NONE
        else:
            s = engine.waiting_first
            if s == NONE or engine.running >= rules.max_seqs or world.samples[s].queued > seen:
                break
            computed = admit(world, rules, e, s, blocks - engine.used)
            if computed == NONE:
                break
            stop_waiting(world, e, s)
            start(world, e, s)
            sample = world.samples[s]
            sample.state, sample.computed = PREFILL, computed
            if sample.preemptions == 0:
                sample.scheduled, sample.cached = now, computed
        sample = world.samples[s]
        chunk = min(sample.known - sample.computed, budget)
        budget -= chunk
        slot = world.slots[e, engine.prompts]
        slot.prompt, slot.chunk = s, chunk
        engine.prompts += 1
        engine.prompt_tokens += chunk
        engine.prompt_read += sample.computed + chunk
        engine.prompt_query += chunk * sample.computed + chunk * (chunk + 1) / 2
        engine.chunks += chunk_seconds(cost, chunk, sample.computed)
        reach(world, rules, e, s, sample.computed + chunk)


@inner
def _begin_decoding(world: World, rules: Rules, e: int, s: int) -> None:
    """Take the token that a whole prompt gave; decoding begins with the next, if any."""
    engine, sample = world.engines[e], world.samples[s]
    sample.state = DECODE
    if sample.preemptions == 0 or sample.first != sample.first:
        sample.first = engine.due
    else:
        sample.passed += 1  # it stands for the decode step that the preemption cost
    sample.since, sample.entry = engine.clock, engine.per_token
    sample.held = (sample.known + rules.block_size - 1) // rules.block_size
    left = sample.verify - sample.passed
    sample.ends = engine.clock + max(left, 0)
    if left > 0:
        engine.decodes += 1
        engine.tokens += sample.forward
        engine.context += sample.known + sample.forward
        engine.growth += (sample.output - 1) / sample.verify
        if not rules.speculative:
            sample.held = 0
            world.phases[e, (sample.known - engine.clock) % rules.block_size] += 1
    push(world, e, s, rules.keep_longest)


@inner
def stop_decoding(world: World, rules: Rules, e: int, s: int) -> int:
    """Take a sample out of the decoding ones; return the tokens it has slots for."""
    engine, sample = world.engines[e], world.samples[s]
    remove(world, e, s, rules.keep_longest)
    done = engine.clock - sample.since
    if sample.verify > sample.passed:  # else the prompt's own token was its last
        rate = (sample.output - 1) / sample.verify
        engine.decodes -= 1
        engine.tokens -= sample.forward
        engine.growth -= rate
        engine.context -= sample.known + sample.forward + done * rate
        if engine.decodes == 0:
            engine.tokens = engine.context = engine.growth = 0.0
        if not rules.speculative:
            world.phases[e, (sample.known - sample.since) % rules.block_size] -= 1
        world.problems[sample.problem].busy += (engine.per_token - sample.entry) * sample.forward
    sample.passed += done
    return sample.known + done * (sample.output - 1) // max(sample.verify, 1)


@inlined
def generated(world: World, s: int) -> int:
    """Return the tokens that a sample has generated, once it has stopped decoding."""
    sample = world.samples[s]
    if sample.first != sample.first:
        return 0
    return 1 + sample.passed * (sample.output - 1) // max(sample.verify, 1)


@inner
def end(world: World, rules: Rules, e: int, s: int, now: float, cancelled: bool) -> None:
    """End a sample that runs on the engine, at a step's end."""
    engine, sample = world.engines[e], world.samples[s]
    slots = wide(sample.known)
    if sample.state == DECODE:
        context = sample.known + sample.forward
        decoded = sample.verify > sample.passed
        slots = stop_decoding(world, rules, e, s)
        sample.generated = generated(world, s)
        if rules.asynchronous and (cancelled or not sample.by_length):
            sample.by_length = False
            engine.drain_decodes += 1
            engine.drain_tokens += sample.forward
            engine.drain_context += context + (slots - sample.known if decoded else 0)
    else:
        sample.generated = generated(world, s)
        sample.by_length = True
        if engine.partial == s:
            engine.partial = NONE
    leave(world, e, s)
    engine.outstanding -= 1
    sample.end = now
    sample.known = slots
    if rules.asynchronous:
        sample.state = DRAINING
        world.slots[e, engine.draining].drain = s
        engine.draining += 1
    else:
        engine.running -= 1
        release(world, rules, e, s, slots, slots)
        sample.state = ENDED
    if cancelled:
        sample.state = CANCELLED


@inner
def _drain(world: World, rules: Rules, e: int) -> None:
    """Free the slots and blocks of samples that ended a step ago."""
    engine = world.engines[e]
    for i in range(engine.draining):
        s = world.slots[e, i].drain
        sample = world.samples[s]
        release(world, rules, e, s, wide(sample.known), wide(sample.known))
        if sample.state == DRAINING:
            sample.state = ENDED
    engine.running -= engine.draining
    engine.draining = engine.drain_decodes = 0
    engine.drain_tokens = engine.drain_context = 0.0


# -- when the cache may fill -----------------------------------------------------------------------


@inner
def _make_room(world: World, rules: Rules, blocks: int, e: int) -> bool:
    """Preempt the last requests until the others can take a step; whether any was."""
    engine = world.engines[e]
    preempted = False
    while True:
        if not rules.speculative:
            need = growth_of(world, rules, e, wide(1), wide(0))
        elif blocks_are_kept(world, e):
            need = draft_growth(world, rules, e, wide(0), wide(0))
        else:
            need = 0
        if engine.used + need <= blocks:
            break
        if engine.running_first == engine.running_last:
            if not engine.draining:
                break
            _drain(world, rules, e)
        else:
            _preempt(world, rules, e)
            preempted = True
    if rules.speculative and need:
        draft_growth(world, rules, e, wide(0), wide(1))
    take(world, e, need)
    return preempted


@inner
def _preempt(world: World, rules: Rules, e: int) -> None:
    engine = world.engines[e]
    s = engine.running_last
    sample = world.samples[s]
    slots, computed = wide(sample.known), wide(sample.computed)
    if sample.state == DECODE:
        slots = computed = stop_decoding(world, rules, e, s)
    else:
        engine.partial = NONE
    leave(world, e, s)
    engine.running -= 1
    release(world, rules, e, s, slots, computed)
    sample.held = 0
    sample.preemptions += 1
    engine.preemptions += 1
    sample.known = sample.prompt + generated(world, s)
    sample.computed = 0
    sample.state = WAITING
    wait(world, e, s, True)


@inner
def _drafted_steps(world: World, rules: Rules, blocks: int, e: int, steps: int) -> int:
    """Return how many verify steps surely fit in the free blocks."""
    engine = world.engines[e]
    if not blocks_are_kept(world, e):
        return steps
    spare = (blocks - engine.used) // engine.decodes - 1
    if spare < 1:
        return 1
    fastest = 1.0
    s = engine.running_first
    while s != NONE:
        sample = world.samples[s]
        if sample.state == DECODE:
            fastest = max(fastest, (sample.output - 1) / sample.verify)
        s = wide(sample.after)
    return max(1, min(steps, int(spare * rules.block_size / fastest)))
