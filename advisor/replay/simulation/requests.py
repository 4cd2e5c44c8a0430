"""The life of a request on a replayed engine: it begins to decode, stops, ends, frees its slot."""

from __future__ import annotations

from advisor.compiled import inner, wide
from advisor.replay.simulation.kv_cache import release
from advisor.replay.simulation.queues import push, remove, sink, unlink
from advisor.replay.simulation.state import CANCELLED, DECODE, DRAINING, ENDED, NONE, Rules, World
from advisor.step_time.cost import tokens_in_window


@inner
def begin_decoding(world: World, rules: Rules, e: int, s: int) -> None:
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
    sample.ends = sample.turns = engine.clock + max(left, 0)
    if left > 0:
        engine.decode_requests += 1
        engine.decode_tokens += sample.forward
        engine.decode_kv_tokens += sample.known + sample.forward
        engine.growth += (sample.output - 1) / sample.verify
        if rules.window:
            _enter_window(world, rules, e, s)
        if not rules.speculative:
            sample.held = 0
            world.phases[e, (sample.known - engine.clock) % rules.block_size] += 1
    push(world, e, s, rules.keep_longest)


@inner
def _enter_window(world: World, rules: Rules, e: int, s: int) -> None:
    """Count what a sample reads in layers with a window, from now until its turn."""
    engine, sample = world.engines[e], world.samples[s]
    rate = (sample.output - 1) / sample.verify
    context = sample.known + sample.forward + (engine.clock - sample.since) * rate
    read = tokens_in_window(context, rules.window, rules.chunked)
    engine.decode_window_tokens += read
    sample.unread = context - read
    sample.turns = sample.ends
    if sample.unread > 0.0 and not rules.chunked:
        sample.unread = NONE
        return
    engine.window_growth += rate
    steps = int((rules.window - read) / rate) + 1
    sample.turns = min(sample.ends, engine.clock + steps)


@inner
def leave_window(world: World, rules: Rules, e: int, s: int) -> None:
    """Let a sample go on beyond its window, or in its next chunk."""
    _forget_window(world, rules, e, s)
    _enter_window(world, rules, e, s)
    sink(world, e, s)


@inner
def _forget_window(world: World, rules: Rules, e: int, s: int) -> None:
    """Take what a sample reads in layers with a window out of the engine's sums."""
    engine, sample = world.engines[e], world.samples[s]
    if sample.unread < 0.0:
        engine.decode_window_tokens -= rules.window
        return
    rate = (sample.output - 1) / sample.verify
    context = sample.known + sample.forward + (engine.clock - sample.since) * rate
    engine.decode_window_tokens -= context - sample.unread
    engine.window_growth -= rate


@inner
def stop_decoding(world: World, rules: Rules, e: int, s: int) -> int:
    """Take a sample out of the decoding ones; return the tokens it has slots for."""
    engine, sample = world.engines[e], world.samples[s]
    remove(world, e, s, rules.keep_longest)
    done = engine.clock - sample.since
    if sample.verify > sample.passed:  # else the prompt's own token was its last
        rate = (sample.output - 1) / sample.verify
        engine.decode_requests -= 1
        engine.decode_tokens -= sample.forward
        engine.growth -= rate
        engine.decode_kv_tokens -= sample.known + sample.forward + done * rate
        if rules.window:
            _forget_window(world, rules, e, s)
        if engine.decode_requests == 0:
            engine.decode_tokens = engine.decode_kv_tokens = engine.growth = 0.0
            engine.decode_window_tokens = engine.window_growth = 0.0
        if not rules.speculative:
            world.phases[e, (sample.known - sample.since) % rules.block_size] -= 1
        world.problems[sample.problem].busy += (engine.per_token - sample.entry) * sample.forward
    sample.passed += done
    return sample.known + done * (sample.output - 1) // max(sample.verify, 1)


@inner
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
            engine.drain_decode_requests += 1
            engine.drain_decode_tokens += sample.forward
            context += slots - sample.known if decoded else 0
            engine.drain_decode_kv_tokens += context
            engine.drain_decode_window_tokens += tokens_in_window(
                context, rules.window, rules.chunked
            )
    else:
        sample.generated = generated(world, s)
        sample.by_length = True
        if engine.partial == s:
            engine.partial = NONE
    unlink(world.samples, engine.runners, s)
    engine.outstanding -= 1
    if engine.outstanding == 0:
        engine.empty = 1
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
def drain(world: World, rules: Rules, e: int) -> None:
    """Free the slots and blocks of samples that ended a step ago."""
    engine = world.engines[e]
    for i in range(engine.draining):
        s = world.slots[e, i].drain
        sample = world.samples[s]
        release(world, rules, e, s, wide(sample.known), wide(sample.known))
        if sample.state == DRAINING:
            sample.state = ENDED
    engine.running -= engine.draining
    engine.draining = engine.drain_decode_requests = 0
    engine.drain_decode_tokens = engine.drain_decode_kv_tokens = 0.0
    engine.drain_decode_window_tokens = 0.0
