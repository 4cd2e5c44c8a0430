"""When the KV cache may fill: who is preempted, and how many steps surely fit."""

from __future__ import annotations

from advisor.compiled import inner, wide
from advisor.replay.simulation.kv_cache import draft_growth, growth_of, release, take
from advisor.replay.simulation.queues import unlink, wait_first
from advisor.replay.simulation.requests import drain, generated, stop_decoding
from advisor.replay.simulation.state import DECODE, NONE, WAITING, Rules, World

UNLIMITED = 1 << 40


@inner
def blocks_are_kept(world: World, e: int) -> bool:
    """Whether the engine's cache has a bound."""
    return world.engines[e].virgin + world.engines[e].used < UNLIMITED // 2


@inner
def make_room(world: World, rules: Rules, blocks: int, e: int) -> bool:
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
        if engine.runners.first == engine.runners.last:
            if not engine.draining:
                break
            drain(world, rules, e)
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
    s = engine.runners.last
    sample = world.samples[s]
    slots, computed = wide(sample.known), wide(sample.computed)
    if sample.state == DECODE:
        slots = computed = stop_decoding(world, rules, e, s)
    else:
        engine.partial = NONE
    unlink(world.samples, engine.runners, s)
    engine.running -= 1
    release(world, rules, e, s, slots, computed)
    sample.held = 0
    sample.preemptions += 1
    engine.preemptions += 1
    sample.known = sample.prompt + generated(world, s)
    sample.computed = 0
    sample.state = WAITING
    wait_first(world, e, s)


@inner
def drafted_steps(world: World, rules: Rules, blocks: int, e: int, steps: int) -> int:
    """Return how many verify steps surely fit in the free blocks."""
    engine = world.engines[e]
    if not blocks_are_kept(world, e):
        return steps
    spare = (blocks - engine.used) // engine.decode_requests - 1
    if spare < 1:
        return 1
    fastest = 1.0
    s = engine.runners.first
    while s != NONE:
        sample = world.samples[s]
        if sample.state == DECODE:
            fastest = max(fastest, (sample.output - 1) / sample.verify)
        s = wide(sample.after)
    return max(1, min(steps, int(spare * rules.block_size / fastest)))
