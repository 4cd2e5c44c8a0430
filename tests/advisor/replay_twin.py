"""A naive replay: every step, every request, every block, nothing leapt over or summed up."""

import math
from dataclasses import dataclass, field

import numpy as np

from advisor.load import Limits


@dataclass
class Slot:
    problem: int
    number: int
    sample: object
    prompt: int
    known: int
    computed: int = 0
    generated: int = 0
    verify: int = 0
    held: int = 0
    decoding: bool = False
    kept: list = field(default_factory=list)


def naive_replay(
    loads, seconds, limits: Limits, *, concurrency=None, arrivals=None, noise=None, log=None
):
    size = limits.block_size
    total = math.inf if limits.num_blocks is None else limits.num_blocks
    caching = limits.prefix_caching
    max_seqs = limits.max_num_seqs or math.inf
    max_tokens = limits.max_num_batched_tokens or math.inf
    shared = [(load.prompt_tokens - 1) // size if caching else 0 for load in loads]
    common = min((load.cached_tokens // size if caching else 0) for load in loads)
    reached = [load.cached_tokens if caching else 0 for load in loads]
    arrival, latency, share = {}, {}, [0.0] * len(loads)
    ttft, ends = {}, {}
    waiting, running = [], []
    state = {
        "now": 0.0,
        "next": 0,
        "number": 0,
        "busy": 0.0,
        "steps": 0,
        "preempted": 0,
        "idle": True,
    }
    left = [len(load.samples) for load in loads]

    def ceil(tokens):
        return -(-tokens // size)

    def used():
        holding = {slot.problem for slot in running}
        own = sum(slot.held - shared[slot.problem] for slot in running)
        return common + own + sum(max(shared[p] - common, 0) for p in holding)

    def arrive(time):
        p = state["next"]
        state["next"] += 1
        arrival[p] = time
        for sample in loads[p].samples:
            prompt = loads[p].prompt_tokens
            waiting.append(Slot(p, state["number"], sample, prompt, prompt))
            state["number"] += 1

    def width(slot):
        return 1 if slot.sample.scheduled is None else int(slot.sample.scheduled[slot.verify])

    def wanted(slot):
        return max(slot.held, ceil(slot.computed + width(slot)))

    def finish(slot):
        running.remove(slot)
        ends[slot.number] = state["now"]
        left[slot.problem] -= 1
        if not left[slot.problem]:
            latency[slot.problem] = state["now"] - arrival[slot.problem]
            if concurrency is not None and state["next"] < len(loads):
                arrive(state["now"])

    if concurrency is not None:
        for _ in range(min(concurrency, len(loads))):
            arrive(0.0)
    while True:
        while arrivals is not None and state["next"] < len(loads):
            if arrivals[state["next"]] > state["now"]:
                break
            arrive(arrivals[state["next"]])
        if not running and not waiting:
            if state["next"] >= len(loads):
                break
            state["now"] = arrivals[state["next"]]
            state["idle"] = True
            continue
        preempted = False
        while True:
            decoding = [slot for slot in running if slot.decoding]
            extra = sum(wanted(slot) - slot.held for slot in decoding)
            if used() + extra <= total or len(running) == 1:
                break
            victim = running.pop()
            victim.known = victim.prompt + victim.generated
            victim.computed, victim.decoding, victim.held = 0, False, 0
            waiting.insert(0, victim)
            preempted = True
            state["preempted"] += 1
        for slot in decoding:
            slot.held = wanted(slot)
        work = [(slot, width(slot)) for slot in decoding]
        budget = max_tokens - sum(count for _, count in work)
        prompts = []
        for slot in running:
            if not slot.decoding and budget > 0 and not preempted:
                take = min(slot.known - slot.computed, budget)
                prompts.append((slot, take))
                budget -= take
        for slot, take in prompts:
            whole = min(slot.computed + take, slot.prompt) // size * size
            reached[slot.problem] = max(reached[slot.problem], whole if caching else 0)
        while waiting and budget > 0 and len(running) < max_seqs and not preempted:
            slot = waiting[0]
            hit = min(reached[slot.problem], (slot.known - 1) // size * size) if caching else 0
            slot.held = ceil(slot.known)
            running.append(slot)
            if used() > total:
                running.pop()
                break
            waiting.pop(0)
            slot.computed = hit
            take = min(slot.known - hit, budget)
            prompts.append((slot, take))
            whole = min(slot.computed + take, slot.prompt) // size * size
            reached[slot.problem] = max(reached[slot.problem], whole if caching else 0)
            budget -= take
        count, tokens = len(work), sum(c for _, c in work)
        context = sum(slot.computed + c for slot, c in work)
        drafting = count if limits.speculative else 0
        query = context * tokens / count if count else 0.0
        for slot, take in prompts:
            query += sum(slot.computed + j for j in range(1, take + 1))
        composition = np.array(
            [
                1.0,
                float(bool(prompts)),
                float(drafting > 0),
                count + len(prompts),
                len(prompts),
                drafting,
                tokens + sum(t for _, t in prompts),
                context + sum(slot.computed + t for slot, t in prompts),
                query,
            ]
        )
        time = float(composition @ seconds) * (1.0 if noise is None else noise())
        if log is not None:
            first = [slot for slot, _ in prompts if slot.generated == 0]
            for slot in first:
                log["cached"].setdefault(slot.number, slot.computed)
            log["steps"].append(
                {
                    "seconds": time,
                    "end": state["now"] + time,
                    "idle": state["idle"],
                    "prefill_requests": len(prompts),
                    "prefill_tokens": sum(take for _, take in prompts),
                    "decode_requests": count,
                    "decode_tokens": tokens,
                    "prefill_kv_tokens": sum(slot.computed + take for slot, take in prompts),
                    "decode_kv_tokens": context,
                    "prefill_query_context": int(
                        sum(sum(s.computed + j for j in range(1, t + 1)) for s, t in prompts)
                    ),
                }
            )
        state["idle"] = False
        state["now"] += time
        state["busy"] += time
        state["steps"] += 1
        for slot, c in [*work, *prompts]:
            share[slot.problem] += time * c / composition[6]
        ended = []
        for slot, _ in work:
            kept = 1 if slot.sample.advance is None else int(slot.sample.advance[slot.verify])
            slot.computed += kept
            slot.generated += kept
            slot.verify += 1
            if slot.generated >= slot.sample.output_tokens:
                ended.append(slot)
        for slot, take in prompts:
            slot.computed += take
            if slot.computed < slot.known:
                continue
            slot.decoding = True
            if slot.generated == 0:
                ttft[slot.number] = state["now"] - arrival[slot.problem]
                slot.generated = 1
            elif slot.sample.advance is None:
                slot.generated += 1
            else:
                # the recomputed step stands for the verify step that was lost
                slot.generated += int(slot.sample.advance[slot.verify])
                slot.verify += 1
            if slot.generated >= slot.sample.output_tokens:
                ended.append(slot)
        for slot in ended:
            finish(slot)
    order = range(len(loads))
    return {
        "latency": np.array([latency[p] for p in order]),
        "arrival": np.array([arrival[p] for p in order]),
        "ends": np.array([ends[i] for i in range(state["number"])]),
        "share": np.array(share),
        "ttft": np.array([ttft[i] for i in range(state["number"])]),
        "makespan": state["now"],
        "busy": state["busy"],
        "steps": state["steps"],
        "preemptions": state["preempted"],
    }
