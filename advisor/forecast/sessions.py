"""Sessions of turns, as agents have them, and a load of many agents at once.

A turn comes some time after the answer of an earlier one of its session: that of its tools, or of
a person. So a server that is slower gets it later. Its prompt is as a rule the last one's and more.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Final

import numpy as np

from advisor.evidence.runs import ProblemRun, RecordedProblem
from advisor.replay.result import Replayed
from advisor.replay.simulation.state import NONE
from advisor.replay.workload import ReplayWorkload, Turns
from traces.errors import UsageError
from traces.statistics import Bools, Floats, Ints

ENOUGH: Final = 4_000  # turns of a load at least
OF_EACH: Final = 3  # sessions that an agent has in the mean, and more
MOST: Final = 200_000  # turns of a load


@dataclass(frozen=True, kw_only=True, eq=False)
class Sessions:
    """Recorded sessions, their turns one session after the other, each in the order it came.

    Per turn [turns]: its session, when it came in seconds since its session began, and the place of
    the turn `after` which it came, `after_s` seconds after that one was sent, `beside` it, or after
    its answer. NONE, and 0 s, of a session's first. Turns `first` [sessions + 1] begin a session.
    """

    workload: ReplayWorkload
    names: tuple[str, ...]
    first: Ints
    came_s: Floats
    after: Ints
    beside: Bools
    after_s: Floats

    @classmethod
    def of(
        cls,
        problems: Sequence[ProblemRun],
        loads: Sequence[RecordedProblem],
        *,
        prompt_block_tokens: int | None = None,
    ) -> Sessions:
        """Return the sessions of problems, replayed as their `loads` [problems].

        Raises UsageError where it is not known which belong together, or when answers came.
        """
        by_name: dict[str, list[int]] = {}
        for place, each in enumerate(problems):
            if each.session is not None and each.arrival_ns is not None:
                by_name.setdefault(each.session, []).append(place)
        if not by_name:
            raise UsageError(
                "holds no sessions, so that it is not known which turn waits for which"
            )
        order, begun, after, beside, after_s, first = [], [], [], [], [], [0]
        for places in by_name.values():
            places.sort(key=lambda place: problems[place].arrival_ns or 0)
            came = np.array([problems[place].arrival_ns for place in places], dtype=np.int64)
            since = (came - came[0]) / 1e9
            took = np.array([problems[place].latency_s for place in places])
            if len(places) > 1 and not np.isfinite(took[:-1]).any():
                raise UsageError(
                    "does not say when answers came, so that how long its tools took is not known"
                )
            found = _befores(since, since + np.nan_to_num(took))
            after += [place if place == NONE else place + first[-1] for place in found[0].tolist()]
            beside += found[1].tolist()
            after_s += found[2].tolist()
            begun += since.tolist()
            order += places
            first.append(len(order))
        return cls(
            workload=ReplayWorkload.from_loads(
                [loads[place] for place in order], prompt_block_tokens=prompt_block_tokens
            ),
            names=tuple(by_name),
            first=np.array(first),
            came_s=np.array(begun),
            after=np.array(after),
            beside=np.array(beside, dtype=bool),
            after_s=np.array(after_s),
        )

    @classmethod
    def watched(cls, turns: Sequence[ProblemRun], block_tokens: int) -> Sessions:
        """Return the sessions of watched turns. A turn begins with what it found in the cache.

        Raises UsageError as `of` does.
        """
        named, before, new = list[ProblemRun](), dict[str | None, list[int]](), itertools.count()
        for turn in sorted(turns, key=lambda turn: turn.arrival_ns or 0):
            kept = before.get(turn.session, [])[: turn.cached_tokens // block_tokens]
            blocks = [*kept, *islice(new, -(-turn.prompt_tokens // block_tokens) - len(kept))]
            before[turn.session] = blocks
            named.append(replace(turn, prompt_blocks=tuple(blocks)))
        return cls.of(named, named, prompt_block_tokens=block_tokens)

    @cached_property
    def session(self) -> Ints:
        """The session of each turn."""
        return np.repeat(np.arange(len(self.names)), np.diff(self.first))

    @property
    def turns_of_one(self) -> float:
        """The turns of a mean session."""
        return len(self.after) / len(self.names)

    @cached_property
    def one_at_a_time(self) -> bool:
        """Whether no session ever has two turns in flight."""
        first = self.after == NONE
        alone = len(np.unique(self.after[~first])) == np.count_nonzero(~first)
        return bool(alone and not self.beside[~first].any())

    def at_once(self, agents: int, seed: int, *, more: int = 1) -> AgentLoad:
        """Return so many agents that begin another session whenever one is over.

        The first are met somewhere in their sessions, as those that have been at work for long:
        longer sessions are met more often. `more` times as many turns as are needed come.
        """
        rng = np.random.default_rng([seed, 11, agents])
        count = more * max(math.ceil(ENOUGH / self.turns_of_one), OF_EACH * agents)
        if (agents + count) * self.turns_of_one > MOST:
            raise UsageError(
                f"--agents {agents}: {agents + count:,} sessions of {self.turns_of_one:,.0f} turns "
                "are too many to replay. Import fewer of their turns, or ask for fewer agents"
            )
        whole = [rng.permutation(len(self.names)) for _ in range(count // len(self.names) + 1)]
        begins = self._met(agents, rng)
        begins += [int(self.first[each]) for each in np.concatenate(whole)[:count]]
        lasts = self.first[1:][self.session[begins]]
        counts = lasts - np.array(begins)
        starts = np.concatenate([[0], np.cumsum(counts)])
        copies = np.repeat(np.arange(len(begins)), counts)
        places = np.arange(starts[-1]) + np.repeat(begins - starts[:-1], counts)
        is_first = places == np.repeat(begins, counts)
        # The turn before may be one that was over when the agent was met.
        local = self.after[places] - np.repeat(begins, counts)
        known, root = local >= 0, np.repeat(starts[:-1], counts)
        after = np.where(known, local + root, root)
        since_met = self.came_s[places] - self.came_s[places[root]]
        # Those that begin sessions come first, and the others in their order.
        order = np.argsort(~is_first, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        turns = Turns(
            sessions=len(begins),
            session=copies[order],
            after=np.where(is_first, NONE, rank[after])[order],
            beside=np.where(known, self.beside[places], True)[order],
            after_s=np.where(known, self.after_s[places], since_met)[order],
        )
        posed = self.workload.posed(places[order], groups=self.session, copies=copies[order])
        return AgentLoad(
            agents=agents,
            workload=replace(posed, turns=turns),
            session=self.session[places[order]],
        )

    def _met(self, agents: int, rng: np.random.Generator) -> list[int]:
        """Return the turn at which each of the first agents is met."""
        last = self.first[1:] - 1
        lasting = np.maximum(self.came_s[last], 1e-9)
        which = rng.choice(len(lasting), agents, p=lasting / lasting.sum())
        at = rng.random(agents) * self.came_s[last[which]]
        return [
            int(self.first[each] + np.searchsorted(self._came(each), time))
            for each, time in zip(which.tolist(), at.tolist(), strict=True)
        ]

    def _came(self, session: int) -> Floats:
        return self.came_s[self.first[session] : self.first[session + 1]]


def _befores(came_s: Floats, ended_s: Floats) -> tuple[Ints, Bools, Floats]:
    """Return after which turn of a session each came, whether beside it, and how long after.

    That is the one whose answer came last before it. Where there is none it came beside the first.
    """
    after, beside, since = [NONE], [False], [0.0]
    for turn in range(1, len(came_s)):
        ended = np.where(ended_s[:turn] <= came_s[turn], ended_s[:turn], -np.inf)
        before = int(np.argmax(ended))
        none_ended = not np.isfinite(ended[before])
        after.append(0 if none_ended else before)
        beside.append(none_ended)
        since.append(float(came_s[turn] - (came_s[0] if none_ended else ended[before])))
    return np.array(after), np.array(beside), np.array(since)


@dataclass(frozen=True, kw_only=True, eq=False)
class AgentLoad:
    """A load of agents. `session` [turns] has the recorded session of each turn."""

    agents: int
    workload: ReplayWorkload
    session: Ints

    def steady(self, run: Replayed) -> AgentTurns | None:
        """Return the turns that came while all agents were at work; None where there are few.

        An agent's first turn reads its whole context. So turns count once each agent has its first
        answer, and until the last session begins.
        """
        turns = self.workload.turns
        assert turns is not None
        answered = run.arrival_s + run.latency_s
        begin = float(answered[: self.agents].max())
        end = float(run.arrival_s[: turns.sessions].max())
        inside = np.flatnonzero((run.arrival_s > begin) & (run.arrival_s <= end))
        if not len(inside):
            return None
        first = self.workload.first[:-1]
        asked, made = first[inside], np.add.reduceat(run.generated_tokens, first)
        return AgentTurns(
            agents=self.agents,
            seconds=end - begin,
            session=self.session[inside],
            latency_s=run.latency_s[inside],
            ttft_s=run.ttft_s[asked],
            prompt_tokens=run.prompt_tokens[asked].astype(np.int64),
            cached_tokens=run.cached_tokens[asked].astype(np.int64),
            generated_tokens=made[inside].astype(np.int64),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class AgentTurns:
    """Turns that came in so many `seconds` of as many agents, [turns] each."""

    agents: int
    seconds: float
    session: Ints
    latency_s: Floats
    ttft_s: Floats
    prompt_tokens: Ints
    cached_tokens: Ints
    generated_tokens: Ints
