"""Problems that come at random at a rate, without end: a stream of passes over the recorded ones.

A server that is asked about has been running for long, so that who comes meets others. Such a load
has a steady state, and each pass in the middle of it is a run of the recorded problems.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np

from advisor.evidence.runs import RecordedProblem
from advisor.replay.draws import MOST
from advisor.replay.result import Replayed
from advisor.replay.workload import ReplayWorkload
from traces.statistics import Floats, Ints

PASSES: Final = 2  # over the problems, each with its own draw, at the least
FEWEST: Final = 100  # problems of all passes, so that few of them queue as many do
ENOUGH: Final = 800  # problems of all passes, which tell a mean well. `MOST` passes are replayed
LEAD, TAIL = 0.5, 0.25  # of a pass, before and after, so that the load is steady in between
MOST_MORE: Final = 20_000  # samples before and after these, where few problems last for long
STEADY: Final = 0.9  # of the capacity, up to which a load has a steady state that is reached soon
OVERLOAD: Final = 1.25  # beyond this much of its capacity no engine is replayed in a stream


class RepeatedProblems:
    """Draws of the same problems [draws][problems], which come again and again in any order.

    A problem that comes again has a prompt of its own, but for what it shares with others.
    """

    def __init__(
        self, draws: Sequence[Sequence[RecordedProblem]], *, prompt_block_tokens: int | None = None
    ) -> None:
        self.draws, self.count = draws, len(draws[0])  # of problems
        self.samples = float(np.mean([len(load.samples) for load in draws[0]]))  # of a problem
        self.block_tokens = prompt_block_tokens
        uses = Counter(name for load in draws[0] for name in set(load.prompt_blocks))
        self._shared = {name for name, count in uses.items() if count > 1}
        self._names = max(uses, default=0) + 1

    @cached_property
    def _every(self) -> ReplayWorkload:
        loads = [load for draw in self.draws for load in draw]
        return ReplayWorkload.from_loads(loads, prompt_block_tokens=self.block_tokens)

    def at(self, turns: Ints, places: Ints) -> ReplayWorkload:
        """Return the problems at these places of these draws, in this order."""
        groups = (
            None if self.block_tokens is None else np.tile(np.arange(self.count), len(self.draws))
        )
        return self._every.posed(turns % len(self.draws) * self.count + places, groups=groups)

    def again(self, load: RecordedProblem, number: int) -> RecordedProblem:
        """Return a problem that came so many times before."""
        if not number or not load.prompt_blocks:
            return load
        names = (
            name if name in self._shared else name + number * self._names
            for name in load.prompt_blocks
        )
        return replace(load, prompt_blocks=tuple(names))

    def passes(self, number: int, seed: int) -> ReplayWorkload:
        """Return so many passes over the problems, in one random order, the draws in turn."""
        order = np.random.default_rng([seed, 5]).permutation(self.count)
        return self.at(np.repeat(np.arange(number), self.count), np.tile(order, number))


@dataclass(frozen=True, kw_only=True)
class Stream:
    """A load of `rate_per_s` problems on engines that can serve `capacity_per_s`.

    Problems come in a random order. Those of traffic come `in_order`, as they were recorded, since
    a prompt may begin with the one before.
    """

    rate_per_s: float
    capacity_per_s: float
    seed: int
    in_order: bool = False

    @property
    def keeps_up(self) -> bool:
        """Whether it is replayed at all."""
        return self.below(OVERLOAD)

    def below(self, share: float, *, speed: float = 1.0) -> bool:
        """Whether it is no more than that share of what steps `speed` times as long can serve."""
        return speed * self.rate_per_s <= share * self.capacity_per_s

    def settles(self, speed: float) -> bool:
        """Whether waits stop growing where steps take `speed` times as long."""
        return self.below(1.0, speed=speed)

    @property
    def has_slack(self) -> bool:
        """Whether a machine that is slow for a day keeps up well too. Many passes are replayed."""
        return self.below(STEADY, speed=OVERLOAD)

    def runs(
        self,
        problems: RepeatedProblems,
        run: Callable[[ReplayWorkload], Replayed],
        *,
        speed: float = 1.0,
        fresh: bool = False,
    ) -> list[Replayed]:
        """Replay passes over the problems among others, each a run of them in their order.

        `run` replays a workload. Equal questions get equal arrivals, at exactly the rate: those of
        so few may be a fifth off. `fresh` runs get others. Where there is a steady state, so many
        problems come before and after the passes that the longest stay is over. Else waits grow,
        and few passes are replayed, or each for itself.
        """
        count = problems.count
        rng = np.random.default_rng([self.seed, 3, 1] if fresh else [self.seed, 3])
        number = self._number(count, fresh=fresh)
        passes = [(turn, self._order(count, rng)) for turn in range(number)]
        came = np.cumsum(rng.exponential(1 / self.rate_per_s, number * count))
        came *= number * count / self.rate_per_s / came[-1]
        settles = self.settles(speed)
        if settles or not self.has_slack:
            return self._among_others(problems, run, passes, came, until_steady=settles)
        each = zip(passes, np.split(came - came[0], number), strict=True)
        return [
            alone
            for own, times in each
            for alone in self._among_others(
                problems, run, [own], times - times[0], until_steady=False
            )
        ]

    def _among_others(
        self,
        problems: RepeatedProblems,
        run: Callable[[ReplayWorkload], Replayed],
        passes: Sequence[tuple[int, Ints]],
        came: Floats,
        *,
        until_steady: bool,
    ) -> list[Replayed]:
        """Replay passes, each the turn of a draw and an order, one after the other among others."""
        count = problems.count
        lead, tail = int(np.ceil(LEAD * count)), int(np.ceil(TAIL * count))
        most = int(MOST_MORE / max(problems.samples, 1.0))
        while True:
            workload = self._workload(problems, passes, came, lead, tail)
            replayed = run(workload)
            staying = min(int(np.ceil(self.rate_per_s * replayed.latency_s.max())), most)
            if not until_steady or staying <= min(lead, tail):
                break
            lead = tail = min(max(staying, 2 * tail), most)  # it ends soon
        starts = lead + count * np.arange(len(passes))
        return [
            replayed.of_problems(start + np.argsort(places), workload.first)
            for start, (_, places) in zip(starts.tolist(), passes, strict=True)
        ]

    def _number(self, count: int, *, fresh: bool) -> int:
        """Return how many passes over so many problems are replayed."""
        least, enough = max(PASSES, -(-FEWEST // count)), -(-ENOUGH // count)
        if fresh:  # more runs tell how far they lie apart
            return max(MOST, min(2 * MOST, 2 * enough))
        return max(least, min(MOST, enough)) if self.has_slack else least

    def _order(self, count: int, rng: np.random.Generator) -> Ints:
        return np.arange(count) if self.in_order else rng.permutation(count)

    def _workload(
        self,
        problems: RepeatedProblems,
        passes: Sequence[tuple[int, Ints]],
        came: Floats,
        lead: int,
        tail: int,
    ) -> ReplayWorkload:
        """Return the passes with so many problems before and after them, at their arrivals."""
        count = problems.count
        before, early_s = self._others(count, lead, 9)
        after, late_s = self._others(count, tail, 10)
        if self.in_order:
            before = count - 1 - before  # the last of a pass is the nearest
        places = np.concatenate([before[::-1], *(own for _, own in passes), after])
        turns = np.zeros(len(places), dtype=np.int64)
        turns[lead : lead + len(passes) * count] = np.repeat([turn for turn, _ in passes], count)
        arrivals = np.concatenate([-early_s[::-1], came, came[-1] + late_s])
        return replace(problems.at(turns, places), arrivals=arrivals - arrivals[0])

    def _others(self, count: int, number: int, salt: int) -> tuple[Ints, Floats]:
        """Return who comes beside the passes, and how far from them, the nearest first."""
        rng = np.random.default_rng([self.seed, salt])
        gaps = np.cumsum(rng.exponential(1 / self.rate_per_s, number))
        rng = np.random.default_rng([self.seed, salt, 1])
        whole = [self._order(count, rng) for _ in range(-(-number // count))]
        return np.concatenate([np.zeros(0, dtype=np.int64), *whole])[:number], gaps
