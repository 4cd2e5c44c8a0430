"""A naive replay: every step, every request, every block, nothing leapt over or summed up.

Blocks are single things (`twin_blocks.py`); policies are the profiler's own; asynchronous
scheduling is a list of what each step was planned with. What the process does between steps is a
list of chores, done one after the other before an engine's next step.
"""

import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from advisor.evidence.features import ALL, FEATURES, HOST_WORK, Features
from advisor.replay.limits import Limits
from advisor.step_time.cost import ANY
from benchmarks.twin.twin_blocks import Blocks, keys_of_loads
from profiler.policies.interface import Vote


@dataclass(eq=False)
class Slot:
    problem: int
    number: int
    sample: object
    prompt: int
    known: int
    queued: float
    engine: int
    computed: int = 0
    generated: int = 0
    verify: int = 0
    blocks: list = field(default_factory=list)
    decoding: bool = False
    cancel: bool = False
    preemptions: int = 0


class Engine:
    def __init__(self, number, blocks, before):
        self.number, self.pool = number, Blocks(blocks, before)
        self.waiting, self.running, self.draining = [], [], []
        self.due, self.begun, self.last_begun, self.busy_before = math.inf, 0.0, None, False
        self.step = None
        self.chores, self.empty = [], True

    def owed(self):
        return sum(self.chores, np.zeros(3))

    def outstanding(self):
        return len(self.waiting) + len(self.running)


def naive_replay(
    loads,
    seconds,
    limits: Limits,
    *,
    concurrency=None,
    arrivals=None,
    noise=None,
    log=None,
    policy=None,
    keys=None,
    replicas=1,
    routing="round-robin",
    together=False,
    reads=ALL,
    recorded=ANY,
    turns=None,
):
    size, k = limits.block_size, int(limits.speculative)
    host_seconds = seconds[[FEATURES.index(name) for name in HOST_WORK]]
    keys, before = keys_of_loads(loads, size) if keys is None else (keys, ())
    max_seqs = limits.max_num_seqs or math.inf
    max_tokens = limits.max_num_batched_tokens or math.inf
    engines = [Engine(i, limits.num_blocks, before) for i in range(replicas)]
    first = [0, *np.cumsum([len(load.samples) for load in loads]).tolist()]
    arrival, latency, share = {}, {}, [0.0] * len(loads)
    ttft, ends, generated, answers, cached = {}, {}, {}, {}, {}
    policies, slots = {}, {}
    count = {"steps": 0, "preempted": 0, "busy": 0.0, "beyond": 0.0, "next": 0, "turn": 0}
    doomed, coming = [], []
    roots = len(loads) if turns is None else turns.sessions
    session = range(len(loads)) if turns is None else turns.session.tolist()
    left = Counter(session)

    def send_after(p, since, *, beside):
        """Put what comes after a turn among those that come, with their times."""
        for turn in range(roots, len(loads)):
            if turns.after[turn] == p and turns.beside[turn] == beside:
                coming.append((since + turns.after_s[turn], turn))

    def key(slot, block):
        shared = keys[slot.problem]
        return shared[block] if block < len(shared) else ("own", slot.number, block)

    def within(context):
        if not reads.window:
            return 0
        chunk = (context - 1) % reads.window + 1
        return chunk if reads.chunked else min(context, reads.window)

    def width(slot):
        return 1 if slot.sample.scheduled is None else int(slot.sample.scheduled[slot.verify])

    def choose(p, now, indices):
        for index in indices:
            if routing == "as-placed":
                at = engines[loads[p].server]
            elif together and first[p] in slots:
                at = engines[slots[first[p]].engine]
            else:
                at = engines[count["turn"]]
                if routing == "least-outstanding":
                    for other in engines:
                        at = other if other.outstanding() < at.outstanding() else at
                count["turn"] = (count["turn"] + 1) % replicas
            prompt, number = loads[p].prompt_tokens, first[p] + index
            at.chores.append(np.array([float(number == first[p]), 1.0, 0.0]))
            queued = now + float(at.owed() @ host_seconds)
            slot = Slot(p, number, loads[p].samples[index], prompt, prompt, queued, at.number)
            slots[number] = slot
            at.waiting.append(slot)

    def arrive(now, owing=None, turn=None):
        p = count["next"] if turn is None else turn
        count["next"] += turn is None
        arrival[p] = now if owing is None else now + float(owing.owed() @ host_seconds)
        send_after(p, arrival[p], beside=True)
        if policy is None:
            choose(p, now, range(len(loads[p].samples)))
        else:
            policies[p] = policy(len(loads[p].samples))
            choose(p, now, [draw.index for draw in policies[p].begin().draw])

    def free(engine, slot):
        full = slot.computed // size if limits.prefix_caching else 0
        for b in range(min(full, len(slot.blocks))):
            engine.pool.hold(slot.blocks[b], key(slot, b))
        engine.pool.give_back(slot.blocks)
        slot.blocks = []

    def plan(engine, now):
        engine.step = None
        host = float(engine.owed() @ host_seconds)
        while True:
            ahead = limits.async_scheduling and engine.busy_before
            step = compose(engine, now, engine.last_begun if ahead else now + host, host)
            if step is not None:
                engine.begun = now + host if engine.empty else now
                engine.step, engine.due = step, engine.begun + step["seconds"]
                engine.chores, engine.empty = [], False
                return
            if engine.draining:
                drain(engine)
            elif engine.waiting and engine.busy_before:
                engine.busy_before = False
            else:
                engine.due, engine.busy_before = math.inf, False
                return

    def drain(engine):
        for slot, _ in engine.draining:
            free(engine, slot)
        engine.draining = []

    def compose(engine, now, seen, host):
        pool, running = engine.pool, engine.running
        preempted = False
        while True:
            decoding = [slot for slot in running if slot.decoding]
            wanted = {s: max(-(-(s.computed + width(s)) // size), len(s.blocks)) for s in decoding}
            extra = sum(need - len(slot.blocks) for slot, need in wanted.items())
            if extra <= pool.available():
                break
            if len(running) == 1:
                if not engine.draining:
                    raise AssertionError("one request does not fit")
                drain(engine)
                continue
            victim = running.pop()
            free(engine, victim)
            victim.known, victim.computed = victim.prompt + victim.generated, 0
            victim.decoding = False
            victim.preemptions += 1
            engine.waiting.insert(0, victim)
            preempted = True
            count["preempted"] += 1
        for slot in decoding:
            while len(slot.blocks) < wanted[slot]:
                slot.blocks.append(pool.take())
        zombies = [(slot, c) for slot, c in engine.draining if c]
        work = [(slot, width(slot)) for slot in decoding]
        budget = max_tokens - sum(c for _, c in work) - sum(c for _, c in zombies)
        prompts = []
        for slot in running:
            if not slot.decoding and budget > 0 and not preempted:
                prompts.append((slot, min(slot.known - slot.computed, budget)))
                budget -= prompts[-1][1]
        for slot, chunk in prompts:
            hold(engine, slot, slot.computed + chunk)
        while engine.waiting and budget > 0 and not preempted:
            slot = engine.waiting[0]
            if len(running) + len(engine.draining) >= max_seqs or slot.queued > seen:
                break
            most = (slot.known - 1) // size if limits.prefix_caching else 0
            hits = pool.hits([key(slot, b) for b in range(most)])
            there = [block for block in hits if block is not None]
            idle = sum(not pool.users.get(block) for block in there)
            fresh = -(-slot.known // size) - len(there)
            if idle + fresh > pool.available():
                break
            for block in there:
                pool.use(block)
            slot.blocks = [pool.take() if b is None else b for b in hits]
            slot.blocks += [pool.take() for _ in range(-(-slot.known // size) - len(hits))]
            slot.computed = len(hits) * size
            for b in range(len(keys[slot.problem]) if limits.prefix_caching else 0):
                if key(slot, b) in pool.before:
                    pool.before.remove(key(slot, b))
                    pool.hold(slot.blocks[b], key(slot, b))
            engine.waiting.pop(0)
            running.append(slot)
            if slot.preemptions == 0:
                cached[slot.number] = slot.computed
            chunk = min(slot.known - slot.computed, budget)
            prompts.append((slot, chunk))
            hold(engine, slot, slot.computed + chunk)
            budget -= chunk
        if not work and not prompts and not zombies:
            return None
        lost = [(slot, c) for slot, c in zombies]
        n, tokens = len(work) + len(lost), sum(c for _, c in [*work, *lost])
        context = sum(slot.computed + c for slot, c in [*work, *lost])
        near = sum(within(slot.computed + c) for slot, c in [*work, *lost])
        query = context * tokens / n if n else 0.0
        near_query = near * tokens / n if n else 0.0
        for slot, chunk in prompts:
            query += sum(slot.computed + j for j in range(1, chunk + 1))
            near_query += sum(within(slot.computed + j) for j in range(1, chunk + 1))
        whole = tokens + sum(chunk for _, chunk in prompts)
        features = Features(
            step=1.0,
            prefill_step=float(bool(prompts)),
            draft_step=float(bool(k and n)),
            requests=n + len(prompts),
            prefill_requests=len(prompts),
            draft_requests=k * n,
            tokens=whole,
            experts=1 - (1 - reads.experts) ** whole,
            kv_tokens=context + sum(slot.computed + chunk for slot, chunk in prompts),
            query_context=query,
            window_tokens=near,
            window_context=near_query,
            **dict(zip(HOST_WORK, np.zeros(3) if engine.empty else engine.owed(), strict=True)),
        )
        time = float(np.array(features) @ seconds) * (1.0 if noise is None else noise())
        if log is not None:
            note(
                engine, prompts, n, tokens, context, near, time, now + host if engine.empty else now
            )
        return {
            "work": work,
            "prompts": prompts,
            "lost": lost,
            "tokens": features.tokens,
            "seconds": time,
            "beyond": any(
                getattr(features, name) > high for name, high in recorded._asdict().items()
            ),
        }

    def hold(engine, slot, tokens):
        for b in range(tokens // size if limits.prefix_caching else 0):
            engine.pool.hold(slot.blocks[b], key(slot, b))

    def note(engine, prompts, n, tokens, context, near, time, now):
        for slot, _ in prompts:
            if slot.generated == 0:
                log["cached"].setdefault(slot.number, slot.computed)
                log["first"].setdefault(slot.number, len(log["steps"]))
        query = sum(sum(s.computed + j for j in range(1, c + 1)) for s, c in prompts)
        log["steps"].append(
            {
                "seconds": time,
                "end": now + time,
                "idle": engine.empty,
                "prefill_requests": len(prompts),
                "prefill_tokens": sum(chunk for _, chunk in prompts),
                "decode_requests": n,
                "decode_tokens": tokens,
                "prefill_kv_tokens": sum(slot.computed + chunk for slot, chunk in prompts),
                "decode_kv_tokens": context,
                "prefill_query_context": int(query),
                "decode_window_tokens": int(near),
                "prefill_window_context": int(
                    sum(sum(within(s.computed + j) for j in range(1, c + 1)) for s, c in prompts)
                ),
            }
        )

    def finish(engine, slot, now, by_length):
        engine.running.remove(slot)
        ends[slot.number], generated[slot.number] = now, slot.generated
        engine.empty = not engine.running and not engine.waiting
        lost = 0 if by_length or not slot.decoding else width_after(slot)
        if limits.async_scheduling:
            engine.draining.append((slot, lost))
        else:
            free(engine, slot)

    def width_after(slot):
        scheduled = slot.sample.scheduled
        return 1 if scheduled is None or not len(scheduled) else int(scheduled[-1])

    def count_vote(engine, slot, now):
        p = slot.problem
        if p in latency:
            return
        engine.chores.append(np.array([0.0, 0.0, 1.0]))
        if policy is None:
            answers.setdefault(p, []).append(slot.sample.answer)
            if len(answers[p]) == len(loads[p].samples):
                decided(engine, p, now)
            return
        index = slot.number - first[p]
        move = policies[p].on_sample(Vote(sample_index=index, answer=slot.sample.answer))
        if move.decision is not None:
            for number in range(first[p], first[p + 1]):
                other = slots.get(number)
                if other is None or number in ends:
                    continue
                engine.chores.append(np.array([0.0, 0.0, 1.0]))
                home = engines[other.engine]
                if other in home.waiting:
                    home.waiting.remove(other)
                    home.empty = not home.running and not home.waiting
                    ends[number], generated[number] = now, other.generated
                else:
                    doomed.append(other)
            waiting_draws[:] = [each for each in waiting_draws if each[0] != p]
            decided(engine, p, now)
        elif move.draw:
            waiting_draws.append((p, [draw.index for draw in move.draw]))

    def decided(engine, p, now):
        latency[p] = now + float(engine.owed() @ host_seconds) - arrival[p]
        send_after(p, arrival[p] + latency[p], beside=False)
        left[session[p]] -= 1
        more = count["next"] + len(new_problems) < roots
        if concurrency is not None and left[session[p]] == 0 and more:
            new_problems.append(now)

    new_problems, waiting_draws = [], []
    for _ in range(min(concurrency or 0, roots)):
        arrive(0.0, engines[0])
    now = 0.0
    while True:
        upcoming = math.inf
        if arrivals is not None and count["next"] < roots:
            upcoming = arrivals[count["next"]]
        following = min(coming, default=(math.inf, None))
        turned = following[0] < upcoming
        upcoming = min(upcoming, following[0])
        for engine in engines:
            if engine.due == math.inf and engine.waiting and upcoming > now:
                plan(engine, now)
        engine = min(engines, key=lambda e: e.due)
        if upcoming <= engine.due:
            if upcoming == math.inf:
                break
            now = max(now, upcoming)
            if turned:
                coming.remove(following)
            arrive(now, turn=following[1] if turned else None)
            continue
        now, step = engine.due, engine.step
        count["steps"] += 1
        count["busy"] += step["seconds"]
        count["beyond"] += step["seconds"] if step["beyond"] else 0.0
        each = step["seconds"] / step["tokens"]
        for slot, c in [*step["work"], *step["prompts"], *step["lost"]]:
            share[slot.problem] += each * c
        engine.last_begun, engine.busy_before = engine.begun, True
        drain(engine)
        over = []
        for slot, _ in step["work"]:
            kept = 1 if slot.sample.advance is None else int(slot.sample.advance[slot.verify])
            slot.computed += kept
            slot.generated += kept
            slot.verify += 1
            over += [slot] if slot.generated >= slot.sample.output_tokens else []
        for slot, chunk in step["prompts"]:
            slot.computed += chunk
            if slot.computed < slot.known:
                continue
            slot.decoding = True
            if slot.generated == 0:
                ttft[slot.number] = now - arrival[slot.problem]
                slot.generated = 1
            elif slot.sample.advance is None:
                slot.generated += 1
            else:  # the recomputed step stands for the verify step that was lost
                slot.generated += int(slot.sample.advance[slot.verify])
                slot.verify += 1
            over += [slot] if slot.generated >= slot.sample.output_tokens else []
        for slot in sorted(over, key=lambda slot: slot.number):
            finish(engine, slot, now, slot.sample.by_length)
            count_vote(engine, slot, now)
        while any(slot.engine == engine.number for slot in doomed):
            slot = [slot for slot in doomed if slot.engine == engine.number][-1]
            doomed.remove(slot)
            if slot.number in ends:
                continue
            if slot in engine.waiting:
                engine.waiting.remove(slot)
                engine.empty = not engine.running and not engine.waiting
                ends[slot.number], generated[slot.number] = now, slot.generated
            else:
                finish(engine, slot, now, not slot.decoding)
        while new_problems or waiting_draws:
            if waiting_draws:
                choose(waiting_draws[0][0], now, waiting_draws[0][1])
                waiting_draws.pop(0)
            else:
                new_problems.pop()
                arrive(now, engine)
        plan(engine, now)
    order, total = range(len(loads)), first[-1]
    return {
        "latency": np.array([latency[p] for p in order]),
        "arrival": np.array([arrival[p] for p in order]),
        "ends": np.array([ends.get(i, np.nan) for i in range(total)]),
        "generated": np.array([generated.get(i, 0) for i in range(total)]),
        "cached": np.array([cached.get(i, 0) for i in range(total)]),
        "share": np.array(share),
        "ttft": np.array([ttft.get(i, np.nan) for i in range(total)]),
        "makespan": now,
        "busy": count["busy"],
        "beyond": count["beyond"],
        "steps": count["steps"],
        "preemptions": count["preempted"],
    }
