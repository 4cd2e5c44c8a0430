"""A replay of continuous batching, as vLLM V1 schedules it, in simulated time.

It leaps from event to event: while only decoding happens, the time of many steps is a closed form.
A leap ends at a sample's end, at an arrival that may get in, when blocks run short, and when a stop
rule decides. The work per step does not depend on how many requests run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from advisor.evidence.features import FEATURES, ZERO, Reads
from advisor.replay.limits import Limits
from advisor.replay.result import Replayed
from advisor.replay.simulation.loop import AS_PLACED, LEAST_OUTSTANDING, ROUND_ROBIN, run
from advisor.replay.simulation.room import UNLIMITED
from advisor.replay.simulation.state import (
    ANSWER,
    CANCELLED,
    ENGINE,
    LEAP,
    NODE,
    NONE,
    PEAKS,
    PROBLEM,
    SAMPLE,
    SLOT,
    Rules,
    World,
)
from advisor.replay.workload import ReplayWorkload
from advisor.step_time.cost import StepCost, linear_cost, needs_longest
from advisor.step_time.pace import Pace
from traces.errors import UsageError
from traces.schema.engine import EngineConfig
from traces.schema.tts.policy import Policy
from traces.schema.tts.stop_rules import Stop
from traces.statistics import Floats

ROUTINGS: Final = {"round-robin": ROUND_ROBIN, "least-outstanding": LEAST_OUTSTANDING}
PLACED: Final = "as-placed"  # each problem to its own engine (`Workload.server`)
MOST_SLOTS: Final = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Replicas:
    """How many engines serve, and which of them a request goes to.

    With `together` the samples of a problem go to the same engine, and by `PLACED` to its own.
    """

    count: int = 1
    routing: str = "round-robin"
    together: bool = False

    @classmethod
    def of(cls, engine: EngineConfig) -> Replicas:
        """Return an engine's data-parallel ranks as replicas.

        vLLM hands a request to the rank with the fewest, `ttscope attach` whole problems to its
        servers in turn.
        """
        in_turn = "urls" in dict(engine.other)
        routing = "round-robin" if in_turn else "least-outstanding"
        if engine.data_parallel_size == 1:
            return cls()
        return cls(count=engine.data_parallel_size, routing=routing, together=in_turn)


def replay(
    workload: ReplayWorkload,
    cost: StepCost,
    limits: Limits,
    *,
    concurrency: int | None = None,
    reserve: int | None = None,
    at_once: int | None = None,
    stop: Stop | None = None,
    replicas: Replicas | None = None,
    log: bool = False,
    pace: Pace | None = None,
) -> Replayed:
    """Replay a workload on engines whose steps take what `cost` says.

    With `concurrency`, so many problems are in flight and the next arrives when one is decided.
    Where the workload has `turns`, so many sessions are.
    With a `reserve`, the next arrives when fewer samples than that wait for an engine, and it ends
    when none is left: problems that were not decided by then have no latency. Without both, they
    come at their arrivals, or later, as `at_once` samples are in flight at most: clients wait for
    answers. What a front end takes is in the times of a problem, and
    delays it on its way to the engine; in a closed loop it delays nobody. With a `pace` all of it
    takes as long as it did on that machine at that time. Raises ValueError when a
    sample cannot fit in the cache.
    """
    if pace is not None:
        workload = workload.in_machine_time(pace)
    stop, replicas = stop or Stop(), replicas or Replicas()
    if any(each is not None and each < 1 for each in (concurrency, reserve)):
        raise ValueError("concurrency and reserve must be at least 1")
    if replicas.routing == PLACED and (
        workload.server is None or workload.server.max(initial=0) >= replicas.count
    ):
        raise ValueError("not every problem has an engine to go to")
    if sum(each is not None for each in (concurrency, reserve, workload.arrivals)) != 1:
        raise ValueError("give either concurrency, a reserve or a workload with arrivals")
    if reserve is not None and workload.turns is not None:
        raise ValueError("turns of sessions come after one another, not by a reserve")
    count = len(workload.prompt_tokens)
    size = limits.block_size
    blocks = UNLIMITED if limits.num_blocks is None else limits.num_blocks
    needs = -(-workload.longest // size)
    if needs > blocks:
        raise ValueError(f"a sample needs {needs:,} blocks of the cache's {blocks:,}")
    slots = max(min(limits.max_num_seqs or count, count), 1)
    rules = Rules(
        max_seqs=limits.max_num_seqs or MOST_SLOTS,
        max_tokens=limits.max_num_batched_tokens or MOST_SLOTS,
        block_size=size,
        caching=limits.prefix_caching,
        asynchronous=limits.async_scheduling,
        speculative=limits.speculative,
        stop=stop.rule,
        stop_value=float(stop.value),  # a whole number would be compiled for by itself
        drawn_first=stop.drawn_first,
        routing=AS_PLACED if replicas.routing == PLACED else ROUTINGS[replicas.routing],
        together=replicas.together,
        reserve=reserve or 0,
        at_once=at_once or 0,
        roots=len(workload.first) - 1 if workload.turns is None else workload.turns.sessions,
        keep_longest=needs_longest(cost),
        window=cost.reads.window,
        chunked=cost.reads.chunked,
    )
    world = _world(workload, limits, replicas.count, slots, blocks)
    noted = np.zeros(0, LEAP)
    makespan, leaps = run(world, rules, cost, blocks, concurrency or 0, noted)
    if log:  # now that its length is known
        world = _world(workload, limits, replicas.count, slots, blocks)
        noted = np.zeros(leaps, LEAP)
        run(world, rules, cost, blocks, concurrency or 0, noted)
    if reserve is None and np.isnan(world.problems["decided"]).any():
        raise ValueError("a problem was never decided: a fault of the replay, please report it")
    front = workload.front_end_s
    if workload.arrivals is not None:
        begun = len(workload.arrivals)
        came = np.sort(workload.arrivals + front[:begun]) - workload.arrivals
        front = np.concatenate([came, front[begun:]])
    found = _replayed(world, makespan, noted if log else None, front)
    return found if pace is None else found.by_clock(pace)


def replay_alone(workload: ReplayWorkload, limits: Limits, stop: Stop, reads: Reads) -> Replayed:
    """Replay one problem at a time on an engine whose steps take a second, without a front end."""
    workload = replace(
        workload, front_end_s=np.zeros(len(workload.first) - 1), arrivals=None, server=None
    )
    cost = linear_cost(np.array(ZERO._replace(step=1.0)), reads)
    return replay(workload, cost, limits, concurrency=1, stop=stop)


def _world(
    workload: ReplayWorkload, limits: Limits, engines: int, slots: int, blocks: int
) -> World:
    samples, problems = np.zeros(len(workload.prompt_tokens), SAMPLE), _problems(workload)
    samples["problem"] = np.repeat(np.arange(len(problems)), problems["samples"])
    samples["prompt"], samples["output"] = workload.prompt_tokens, workload.output_tokens
    samples["verify"], samples["by_length"] = workload.verify_steps, workload.by_length
    samples["forward"], samples["answer"] = workload.forwarded, workload.answer
    if workload.server is not None:
        samples["engine"] = workload.server[samples["problem"]]
    for name in ("place", "rank", "before", "after", "doomed"):
        samples[name] = NONE
    for name in ("queued", "scheduled", "first", "end"):
        samples[name] = np.nan
    if not limits.prefix_caching:
        problems["segments"] = 0
    segments, found = workload.segment_blocks(limits.block_size)
    nodes = np.zeros(engines * len(segments) + len(samples), NODE)
    nodes["whole"][: engines * len(segments)] = np.tile(segments, engines)
    nodes["cached"][: engines * len(segments)] = np.tile(found, engines)
    answers = np.zeros(len(workload.right), ANSWER)
    answers["right"] = workload.right
    states = np.zeros(engines, ENGINE)
    states["partial"] = states["doomed"] = NONE
    for name in ("queue", "runners", "free"):
        states[name]["first"] = states[name]["last"] = NONE
    states["idle"], states["empty"], states["due"], states["virgin"] = 1, 1, np.inf, blocks
    states["segments"] = len(segments)
    return World(
        samples=samples,
        problems=problems,
        engines=states,
        nodes=nodes,
        path=workload.path,
        answers=answers,
        slots=np.zeros((engines, slots), SLOT),
        phases=np.zeros((engines, limits.block_size), np.int32),
        totals=np.zeros(len(FEATURES)),
    )


def _problems(workload: ReplayWorkload) -> npt.NDArray[np.void]:
    problems = np.zeros(len(workload.first) - 1, PROBLEM)
    problems["sample"], problems["samples"] = workload.first[:-1], np.diff(workload.first)
    problems["path"] = workload.first_segment[:-1]
    problems["segments"] = np.diff(workload.first_segment)
    problems["answer"] = workload.first_answer[:-1]
    problems["answers"] = np.diff(workload.first_answer)
    problems["decided"], problems["decided_by"], problems["route"] = np.nan, NONE, workload.route
    for name in ("follower", "companion", "sibling"):
        problems[name] = NONE
    problems["root"], problems["left"] = np.arange(len(problems)), 1
    if workload.turns is not None:
        workload.turns.put_into(problems)
    if workload.arrivals is not None:  # who would overtake others takes their place
        begun = len(workload.arrivals)
        came = np.sort(workload.arrivals + workload.front_end_s[:begun])
        problems["arrival"][:begun] = came
    return problems


def _replayed(
    world: World, makespan: float, log: npt.NDArray[np.void] | None, front_end_s: Floats
) -> Replayed:
    samples, problems = world.samples, world.problems
    arrival = problems["arrival"] - front_end_s
    return Replayed(
        latency_s=problems["decided"] - arrival,
        busy_share_s=problems["busy"],
        ttft_s=samples["first"] - arrival[samples["problem"]],
        front_end_s=front_end_s[samples["problem"]],
        makespan_s=makespan,
        busy_s=float(world.engines["busy"].sum()),
        beyond_s=float(world.engines["beyond"].sum()),
        steps=int(world.engines["all_steps"].sum()),
        preemptions=int(world.engines["preemptions"].sum()),
        totals=world.totals,
        peak={name: float(world.engines[f"peak_{name}"].max()) for name in PEAKS},
        arrival_s=arrival,
        right=problems["right"],
        decided_by=problems["decided_by"],
        engine=samples["engine"],
        queued_s=samples["queued"],
        scheduled_s=samples["scheduled"],
        first_token_s=samples["first"],
        end_s=samples["end"],
        cached_tokens=samples["cached"],
        prompt_tokens=samples["prompt"],
        generated_tokens=samples["generated"],
        preempted=samples["preemptions"],
        cancelled=samples["state"] == CANCELLED,
        log=log,
    )


def stop_of(policy: Policy) -> Stop:
    """Return when a policy decides. Raises UsageError for one that cannot be replayed."""
    if policy.stop is not None:
        return policy.stop
    raise UsageError(
        f"{policy.label()}: what its requests say depends on the answers before them, so it "
        "cannot be replayed from other samples. Record it"
    )
