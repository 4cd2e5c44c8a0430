"""The replay's clock: arrivals, engines' steps, ends of samples, decisions, in order of time."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from advisor.compiled import compiled, inner, wide
from advisor.replay.simulation.instants import later
from advisor.replay.simulation.queues import append, longest, unlink
from advisor.replay.simulation.requests import end, generated, leave_window
from advisor.replay.simulation.scheduling import cut_short, owed, pass_steps, plan
from advisor.replay.simulation.state import (
    CANCELLED,
    DECODE,
    DRAWN_LATER,
    NONE,
    WAITING,
    Rules,
    World,
)
from advisor.step_time.cost import StepCost, planned_work
from traces.schema.tts.stop_rules import ALL, DECIDE, DRAW, GO_ON, begin, take

ROUND_ROBIN: Final = 0
LEAST_OUTSTANDING: Final = 1
AS_PLACED: Final = 2  # to the engine that a sample begins with


@compiled
def run(  # noqa: PLR0912, PLR0915 - one loop, compiled once
    world: World,
    rules: Rules,
    cost: StepCost,
    blocks: int,
    in_flight: int,
    log: npt.NDArray[np.void],
) -> tuple[float, int]:
    """Replay all problems; return when the last was decided, and the number of leaps.

    Problems arrive at their `arrival`, ascending (later where `at_once` leaves no room), or so many
    `in_flight`, or, with a `reserve`, while fewer samples wait for an engine, until there is no
    other. A problem with later turns is in flight until the last of them is decided. One thread
    does what is to do between steps, in order: a problem is decided, and the next one arrives, when
    what was before them is done. The first leaps are written into `log`, as many as it has room
    for.

    Engines often end steps at the same time, but for the order in which their seconds were added.
    No order of events depends on that: what is not `later` happens at the same time.
    """
    leaps = 0
    now = 0.0
    arrived = turn = at = wide(0)  # problems; the engine in turn; the one whose step ended last
    due_in = min(in_flight, rules.roots)  # problems that arrive now
    coming, turned = wide(0), wide(NONE)  # later turns that have their time; the one that it is for
    first_draw, last_draw = 0, 0  # in the ring of problems that have samples to be drawn
    timed = in_flight == 0 and rules.reserve == 0
    while True:
        while True:
            if due_in == 0 and world.engines[at].steps == 0 and _is_short(world, rules):
                if arrived == rules.roots:
                    return now, leaps
                due_in = 1
            if due_in == 0 and first_draw == last_draw:
                break
            if first_draw == last_draw:
                beginning = wide(arrived) if turned == NONE else turned
                arrived += turned == NONE
                p = world.problems[beginning]
                p.arrival = now if timed or turned != NONE else now + owed(world, cost, at)
                turned = wide(NONE)
                coming = _send_after(world, p.companion, p.arrival, coming)
                begin(p, rules.drawn_first)
                world.problems[last_draw % len(world.problems)].draw = beginning
                last_draw += 1
                due_in -= 1
            drawing = wide(world.problems[first_draw % len(world.problems)].draw)
            turn = _draw(world, rules, cost, drawing, now, turn)
            first_draw += 1
        e = _next_engine(world)
        due = world.engines[e].due
        upcoming = np.inf
        if timed and arrived < rules.roots and _has_room(world, rules, arrived):
            upcoming = world.problems[arrived].arrival
        if coming:
            following = wide(world.problems[0].coming)
            if world.problems[following].arrival < upcoming:
                upcoming, turned = world.problems[following].arrival, following
        if upcoming <= due and upcoming < np.inf:
            now = max(now, upcoming)
            due_in = 1
            if turned != NONE:
                coming = _take_next(world, coming)
            continue
        turned = wide(NONE)
        if due == np.inf:
            break
        now, at = due if later(due, now) else now, e
        engine = world.engines[e]
        if engine.steps:
            if leaps < len(log):
                _note(world, rules, e, log[leaps])
            leaps += 1
            pass_steps(world, rules, cost, e)
            engine.steps = 0
            while True:
                cancelled = False
                if engine.heap and world.samples[world.slots[e, 0].heap].turns <= engine.clock:
                    s = world.slots[e, 0].heap
                    if world.samples[s].turns < world.samples[s].ends:
                        leave_window(world, rules, e, s)
                        continue
                elif engine.doomed != NONE:
                    s = engine.doomed
                    engine.doomed = world.samples[s].doomed
                    if world.samples[s].state == WAITING:  # preempted meanwhile
                        _cancel_waiting(world, e, s, now)
                        continue
                    if world.samples[s].state > DECODE:  # it ended in the same step
                        continue
                    cancelled = True
                else:
                    break
                end(world, rules, e, s, now, cancelled)
                if not cancelled:
                    drawing = wide(world.samples[s].problem)
                    stands = world.problems[drawing].wanted > world.problems[drawing].drawn
                    answer = _count_ended(world, rules, cost, s, now, e)
                    if answer == DRAW and not stands:  # once: the ring has a place a problem
                        world.problems[last_draw % len(world.problems)].draw = drawing
                        last_draw += 1
                    elif answer == DECIDE:
                        p = world.problems[drawing]
                        coming = _send_after(world, p.follower, p.decided, coming)
                        world.problems[p.root].left -= 1
                        if world.problems[p.root].left == 0 and in_flight:
                            due_in += arrived + due_in < rules.roots
            if due_in or first_draw < last_draw or _is_short(world, rules):
                engine.due = now  # they come before the next step is planned
                continue
        plan(world, rules, cost, blocks, e, now)
    return now, leaps


@inner
def _has_room(world: World, rules: Rules, p: int) -> bool:
    """Whether a problem's samples may come, or its client waits for answers."""
    in_flight = 0
    if rules.at_once:
        for e in range(len(world.engines)):
            in_flight += world.engines[e].outstanding
    return in_flight == 0 or in_flight + world.problems[p].samples <= rules.at_once


@inner
def _send_after(world: World, turn: int, since: float, coming: int) -> int:
    """Put a turn and its siblings on the heap of those that come; return its new size."""
    while turn != NONE:
        world.problems[turn].arrival = since + world.problems[turn].after_s
        place, above = wide(coming), wide((coming - 1) // 2)
        coming += 1
        while place and _comes_before(world, turn, world.problems[above].coming):
            world.problems[place].coming = world.problems[above].coming
            place, above = above, wide((above - 1) // 2)
        world.problems[place].coming = turn
        turn = wide(world.problems[turn].sibling)
    return coming


@inner
def _take_next(world: World, coming: int) -> int:
    """Take the next turn from the heap of those that come; return its new size."""
    coming -= 1
    last, place = wide(world.problems[coming].coming), wide(0)
    while 2 * place + 1 < coming:
        below = wide(2 * place + 1)
        if below + 1 < coming and _comes_before(
            world, world.problems[below + 1].coming, world.problems[below].coming
        ):
            below += 1
        if not _comes_before(world, world.problems[below].coming, last):
            break
        world.problems[place].coming = world.problems[below].coming
        place = below
    world.problems[place].coming = last
    return coming


@inner
def _comes_before(world: World, one: int, other: int) -> bool:
    first, second = world.problems[one].arrival, world.problems[other].arrival
    return first < second or (first == second and one < other)


@inner
def _is_short(world: World, rules: Rules) -> bool:
    """Whether fewer samples than the reserve wait for an engine."""
    least = rules.reserve
    for e in range(len(world.engines)):
        least = min(least, world.engines[e].waiting)
    return least < rules.reserve


@inner
def _next_engine(world: World) -> int:
    """Return the engine whose planned steps end first; of several, one that has none planned."""
    soonest, e = np.inf, wide(NONE)
    for each in range(len(world.engines)):
        soonest = min(soonest, world.engines[each].due)
    for other in range(len(world.engines)):
        tied = not later(world.engines[other].due, soonest)
        if tied and (e == NONE or world.engines[other].steps == 0 < world.engines[e].steps):
            e = other
    return e


@inner
def _note(world: World, rules: Rules, e: int, leap: Any) -> None:
    engine = world.engines[e]
    leap.engine, leap.begun, leap.steps = e, engine.begun, engine.steps
    leap.seconds, leap.host = engine.due - engine.begun, engine.host
    for place, value in enumerate(planned_work(engine)):
        leap.work[place] = value
    leap.growth, leap.window_growth = engine.growth, engine.window_growth
    leap.longest = longest(world, e, rules.keep_longest)
    leap.running, leap.waiting, leap.kv_blocks = engine.running, engine.waiting, engine.used
    leap.preemptions = engine.preemptions


@inner
def _draw(world: World, rules: Rules, cost: StepCost, p: int, now: float, turn: int) -> int:
    """Send a problem's wanted samples to engines; return whose turn is next."""
    problem = world.problems[p]
    while problem.drawn < problem.wanted:
        s = problem.sample + problem.drawn
        problem.drawn += 1
        if rules.routing == AS_PLACED:
            e = wide(world.samples[s].engine)
        elif rules.together and s > problem.sample:
            e = wide(world.samples[problem.sample].engine)
        else:
            e = wide(turn)
            if rules.routing == LEAST_OUTSTANDING:
                for other in range(len(world.engines)):
                    if world.engines[other].outstanding < world.engines[e].outstanding:
                        e = other
            turn = (turn + 1) % len(world.engines)
        engine, sample = world.engines[e], world.samples[s]
        engine.problem_starts += s == problem.sample
        engine.sample_starts += 1
        if engine.idle and engine.due > now:
            engine.due = now  # to be planned
        elif engine.steps > 1 and owed(world, cost, e) > 0.0:  # the next step is the later for it
            cut_short(world, rules, cost, e, now, wide(0))
        elif engine.waiting == 0 and engine.running < rules.max_seqs and engine.steps > 1:
            # The step after the one under way is planned already, if scheduling is asynchronous.
            cut_short(world, rules, cost, e, now, wide(rules.asynchronous))
        sample.engine, sample.state, sample.known = e, WAITING, sample.prompt
        sample.queued = now + owed(world, cost, e)
        append(world.samples, engine.queue, s)
        engine.waiting += 1
        engine.outstanding += 1
    return turn


@inner
def _count_ended(world: World, rules: Rules, cost: StepCost, s: int, now: float, at: int) -> int:
    """Count an ended sample's vote; return what the rule says."""
    p = wide(world.samples[s].problem)
    problem = world.problems[p]
    if problem.decided == problem.decided:  # it ended in the step in which it was cancelled
        return GO_ON
    world.engines[at].sample_ends += 1
    answer, tally = world.samples[s].answer, 0
    if answer != NONE:
        world.answers[answer].tally += 1
        tally = world.answers[answer].tally
    verdict = take(problem, rules.stop, rules.stop_value, s - problem.sample, answer, tally)
    if verdict == DECIDE:
        problem.decided_by, problem.right = s - problem.sample, _right_share(world, p)
        problem.wanted = problem.drawn  # what this step's ends asked for is not sent
        if rules.stop != ALL:
            _cancel_rest(world, rules, cost, p, now, at)
        problem.decided = now + owed(world, cost, at)
    return verdict


@inner
def _right_share(world: World, p: int) -> float:
    """Return the share of right answers among those that lead; 0 without any answer."""
    problem = world.problems[p]
    leaders = right = 0
    for place in range(problem.answer, problem.answer + problem.answers):
        if world.answers[place].tally == problem.first > 0:
            leaders += 1
            right += world.answers[place].right
    return right / leaders if leaders else 0.0


@inner
def _cancel_rest(world: World, rules: Rules, cost: StepCost, p: int, now: float, at: int) -> None:
    """Cancel the samples of a decided problem: at once, or at the end of the step they are in."""
    problem = world.problems[p]
    for s in range(problem.sample, problem.sample + problem.samples):
        sample = world.samples[s]
        e = wide(sample.engine)
        if sample.state == DRAWN_LATER:
            sample.state = CANCELLED
        elif sample.state == WAITING:
            world.engines[at].sample_ends += 1
            _cancel_waiting(world, e, s, now)
        elif sample.state <= DECODE:  # it runs
            if e != at:
                cut_short(world, rules, cost, e, now, wide(0))
            world.engines[at].sample_ends += 1
            sample.doomed = world.engines[e].doomed
            world.engines[e].doomed = s


@inner
def _cancel_waiting(world: World, e: int, s: int, now: float) -> None:
    engine, sample = world.engines[e], world.samples[s]
    unlink(world.samples, engine.queue, s)
    engine.waiting -= 1
    engine.outstanding -= 1
    if engine.outstanding == 0:
        engine.empty = 1
    sample.state, sample.end, sample.generated = CANCELLED, now, generated(world, s)
