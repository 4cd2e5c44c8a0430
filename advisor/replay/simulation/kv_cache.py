"""The KV cache of replayed engines, as vLLM V1 keeps it: whole blocks, shared, freed oldest first.

Blocks are given out from the head of a list of free ones and come back to its tail, the last of a
sequence first. A free block keeps what it holds until it is given out again, so that a later
request with the same prefix still finds it. Blocks that come and go together are one node. What a
recorded request found of others that are not replayed, it finds here too: such a node takes blocks
when it is first used, and has content then.
"""

from __future__ import annotations

from advisor.compiled import inner, wide
from advisor.replay.simulation.queues import append, unlink
from advisor.replay.simulation.state import DECODE, NONE, Rules, World


@inner
def segment_node(world: World, e: int, place: int) -> int:
    """Return the node of the segment at a place of `path` on an engine."""
    return e * world.engines[e].segments + world.path[place]


@inner
def own_node(world: World, s: int) -> int:
    """Return the node of the blocks that a sample has to itself."""
    return len(world.engines) * world.engines[0].segments + s


@inner
def path_blocks(world: World, s: int) -> int:
    """Return the blocks of a sample's prompt that may be shared."""
    problem = world.problems[world.samples[s].problem]
    total = 0
    for place in range(problem.path, problem.path + problem.segments):
        total += world.nodes[world.path[place]].whole
    return total


@inner
def _append(world: World, e: int, n: int) -> None:
    node = world.nodes[n]
    if node.blocks:
        append(world.nodes, world.engines[e].free, n)
        node.queued = True


@inner
def take(world: World, e: int, blocks: int) -> None:
    """Give out so many blocks; what they held is forgotten."""
    engine = world.engines[e]
    engine.used += blocks
    fresh = min(blocks, engine.virgin)
    engine.virgin -= fresh
    blocks -= fresh
    while blocks > 0 and engine.free.first != NONE:
        n = engine.free.first
        node = world.nodes[n]
        taken = min(blocks, node.blocks)
        node.blocks -= taken
        node.cached = min(node.cached, node.blocks)
        blocks -= taken
        if node.blocks == 0:
            unlink(world.nodes, engine.free, n)
            node.queued = False


@inner
def _reclaim(world: World, e: int, n: int, kept: int) -> None:
    """Take a node out of the free ones, `kept` of its blocks with what they hold."""
    engine, node = world.engines[e], world.nodes[n]
    unlink(world.nodes, engine.free, n)
    node.queued = False
    engine.virgin += node.blocks - kept
    engine.used += kept
    node.blocks = kept
    node.cached = min(node.cached, kept)


@inner
def admit(world: World, rules: Rules, e: int, s: int, free: int) -> int:
    """Take the blocks of a sample's known tokens; return how many tokens are computed already.

    Returns NONE when its blocks are not free, all of them (`scheduler_reserve_full_isl`).
    """
    sample = world.samples[s]
    problem = world.problems[sample.problem]
    size = rules.block_size
    most = (sample.known - 1) // size if rules.caching else 0
    hit = touched = shared = fresh = 0
    unbroken = True
    for place in range(problem.path, problem.path + problem.segments):
        n = segment_node(world, e, place)
        node = world.nodes[n]
        blocks = node.whole
        shared += blocks
        cached = min(node.cached, most - hit) if unbroken else 0
        hit += cached
        unbroken = unbroken and cached == blocks
        if node.holders == 0:
            fresh += blocks - cached
            touched += cached
    private_node, mine = own_node(world, s), 0
    if unbroken and rules.caching and world.nodes[private_node].queued:
        mine = min(world.nodes[private_node].cached, most - hit)
    private = max((sample.known + size - 1) // size - shared, 0)
    if fresh + touched + private > free:
        return NONE
    if world.nodes[private_node].queued:
        _reclaim(world, e, private_node, mine)
    left = hit
    for place in range(problem.path, problem.path + problem.segments):
        n = segment_node(world, e, place)
        node = world.nodes[n]
        blocks = node.whole
        cached = min(node.cached, left)
        left -= cached
        if node.holders == 0:
            kept = cached if node.queued else 0
            if node.queued:
                _reclaim(world, e, n, cached)
            take(world, e, blocks - kept)
            node.blocks = blocks
        node.holders += 1
    take(world, e, private - mine)
    node = world.nodes[own_node(world, s)]
    node.blocks = private
    return (hit + mine) * size


@inner
def reach(world: World, rules: Rules, e: int, s: int, tokens: int) -> None:
    """Note that so many of a sample's tokens will have been computed by the step's end."""
    if not rules.caching:
        return
    problem = world.problems[world.samples[s].problem]
    left = tokens // rules.block_size
    for place in range(problem.path, problem.path + problem.segments):
        node = world.nodes[segment_node(world, e, place)]
        node.cached = max(node.cached, min(left, node.blocks))
        left = max(left - node.blocks, 0)


@inner
def release(world: World, rules: Rules, e: int, s: int, slots: int, computed: int) -> None:
    """Give back the blocks of a sample that has `slots` tokens' worth, `computed` of them."""
    engine = world.engines[e]
    sample = world.samples[s]
    problem = world.problems[sample.problem]
    size, shared = rules.block_size, path_blocks(world, s)
    blocks = max(sample.held, (slots + size - 1) // size) - shared
    n = own_node(world, s)
    node = world.nodes[n]
    node.blocks = max(blocks, 0)
    node.cached = min(max(computed // size - shared, 0), node.blocks) if rules.caching else 0
    engine.used -= node.blocks
    _append(world, e, n)
    for back in range(problem.segments):
        n = segment_node(world, e, problem.path + problem.segments - 1 - back)
        node = world.nodes[n]
        node.holders -= 1
        if node.holders == 0:
            engine.used -= node.blocks
            _append(world, e, n)


@inner
def growth_of(world: World, rules: Rules, e: int, steps: int, skip: int) -> int:
    """Return the blocks that decoding takes in `steps` steps that come after `skip` steps."""
    engine = world.engines[e]
    size = rules.block_size
    cycles = steps // size
    total = cycles * engine.decode_requests
    phase = size - 1 - (engine.clock + skip - 1) % size
    for _ in range(steps - cycles * size):
        total += world.phases[e, phase]
        phase = phase - 1 if phase else size - 1
    return total


@inner
def draft_growth(world: World, rules: Rules, e: int, back: int, hold: int) -> int:
    """Return the blocks that a verify step takes: the next one, or the last if `back` is 1.

    With `hold` 1 the samples hold them from now on.
    """
    engine = world.engines[e]
    total, s = 0, engine.runners.first
    while s != NONE:
        sample = world.samples[s]
        ahead = engine.clock - sample.since - back
        if sample.state == DECODE and ahead >= 0:
            kept = ahead * (sample.output - 1) // max(sample.verify, 1)
            slots = sample.known + kept + int(sample.forward + 0.999999)
            more = (slots + rules.block_size - 1) // rules.block_size - sample.held
            if more > 0:
                total += more
                if hold:
                    sample.held += more
        s = wide(sample.after)
    return total


@inner
def most_steps(world: World, rules: Rules, e: int, steps: int, free: int) -> int:
    """Return how many of `steps` steps fit in `free` blocks, the first of them taken already."""
    engine = world.engines[e]
    size, decodes = rules.block_size, engine.decode_requests
    if (steps // size + 1) * decodes <= free:
        return steps
    fitting = 1 + free // decodes * size
    free %= decodes
    phase = size - 1 - (engine.clock + fitting - 1) % size
    while fitting < steps:
        free -= world.phases[e, phase]
        if free < 0:
            break
        fitting += 1
        phase = phase - 1 if phase else size - 1
    return min(fitting, steps)
