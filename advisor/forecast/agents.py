"""How many agents a server carries: turns, sessions and prefix hits by how many are at work."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from advisor.forecast.one_more_run import of_one_more_run
from advisor.forecast.sessions import AgentLoad, AgentTurns, Sessions
from advisor.replay.result import Replayed
from traces.errors import UsageError
from traces.schema.estimate import Estimate, Interval
from traces.schema.record import Record
from traces.statistics import Z95, Floats, spread

DRAWS: Final = 3  # random loads of as many agents, which are averaged
LONGER: Final = 4  # times as many turns where too few came while all were at work
LIMIT: Final = 4096  # agents, up to which a limit is looked for
REFINED: Final = 4  # halvings of the interval in which the limit is crossed


@dataclass(frozen=True, kw_only=True)
class AgentsRun(Record):
    """So many agents at work. An agent begins another session when one is over.

    `turn_s` is from a request to its answer, `ttft_s` to its first token. `session_s` is a mean
    session with its tools, which take `tools_share` of it (None where turns of a session overlap).
    `cached_share` of the tokens of prompts came from the prefix cache, and `cached_share_kept`
    would if it never dropped any.
    """

    agents: int
    turns: int
    turn_s: Mapping[str, Estimate]
    ttft_s: Mapping[str, Estimate]
    session_s: Estimate
    sessions_per_h: Estimate
    tools_share: Estimate | None
    tokens_per_s: Estimate
    cached_share: Estimate | None
    cached_share_kept: float | None
    device_s_per_session: Estimate


@dataclass(frozen=True, kw_only=True)
class MostAgents(Record):
    """The most agents whose p95 turn takes at most `limit_s`, 0 where that of one takes longer.

    `low` and `high` are those at the slow and the fast end of the prediction. None: not even
    `LIMIT` reach it.
    """

    limit_s: float
    agents: int | None
    low: int | None
    high: int | None


@dataclass(frozen=True, kw_only=True)
class Agents(Record):
    """What is predicted of agents, by how many are at work, ascending.

    `asked` are the numbers that were asked for. The others were looked at to find the most.
    """

    sessions: int
    turns: int
    asked: tuple[int, ...]
    by_agents: tuple[AgentsRun, ...]
    most: MostAgents | None = None


Serve = Callable[..., Replayed]


@dataclass(frozen=True, kw_only=True)
class AgentsAsked:
    """Sessions, and how a load of them is served.

    `serve` replays a workload of so many sessions in flight, with steps `factor` times as long, and
    with `is_endless` a cache that drops nothing. `sigma` is the spread of the steps' law, None
    where it has none. `within` says whether steps of such runs are known.
    """

    sessions: Sessions
    serve: Serve
    seed: int
    sigma: float | None
    devices: int
    within: Callable[[Sequence[Replayed]], bool]

    def run(self, agents: int) -> AgentsRun:
        """Return what is predicted of so many agents. Raises UsageError for too long a replay."""
        loads = [self._load(agents, draw) for draw in range(DRAWS)]
        usual = [turns for _, _, turns in loads]
        first = loads[0][0]
        signs = () if self.sigma is None else (-1, 1)
        ends = [
            turns
            for factor in (math.exp(sign * Z95 * (self.sigma or 0.0)) for sign in signs)
            if (turns := first.steady(self.serve(first.workload, agents, factor=factor)))
        ]
        extrapolated = not self.within([run for _, run, _ in loads])
        own = _Numbers(usual, ends, extrapolated)
        one, per_session = usual[0], self.sessions.turns_of_one
        kept = first.steady(self.serve(first.workload, agents, is_endless=True))
        asked = bool(one.prompt_tokens.sum())

        def session_s(turns: AgentTurns) -> float:  # by Little's law, from how often turns come
            return agents * turns.seconds * per_session / len(turns.latency_s)

        def tools_share(turns: AgentTurns) -> float:
            return max(1 - per_session * float(turns.latency_s.mean()) / session_s(turns), 0.0)

        return AgentsRun(
            agents=agents,
            turns=len(one.latency_s),
            turn_s=own.spread("latency_s"),
            ttft_s=own.spread("ttft_s"),
            session_s=own.of(session_s, "s"),
            sessions_per_h=own.of(lambda turns: 3600 * agents / session_s(turns), "1/h"),
            tools_share=own.of(tools_share, "1") if self.sessions.one_at_a_time else None,
            tokens_per_s=own.of(
                lambda turns: float(turns.generated_tokens.sum()) / turns.seconds, "tokens/s"
            ),
            cached_share=own.of(_cached_share, "1") if asked else None,
            cached_share_kept=None if kept is None or not asked else _cached_share(kept),
            device_s_per_session=own.of(
                lambda turns: self.devices * session_s(turns) / agents, "device-s"
            ),
        )

    def _load(self, agents: int, draw: int) -> tuple[AgentLoad, Replayed, AgentTurns]:
        """Return a load, its replay and the turns that came while all agents were at work."""
        for more in (1, LONGER):
            load = self.sessions.at_once(agents, self.seed + draw, more=more)
            run = self.serve(load.workload, agents)
            turns = load.steady(run)
            if turns is not None:
                return load, run, turns
        raise UsageError(f"--agents {agents}: too few of their turns come while all are at work")

    def most(self, limit_s: float, known: Mapping[int, AgentsRun]) -> dict[int, AgentsRun]:
        """Return runs of so many agents that the limit of a p95 turn lies among them."""
        runs = dict(known)
        agents = 1
        while agents <= LIMIT:
            if agents not in runs:
                runs[agents] = self.run(agents)
            if _ends(runs[agents])[0] > limit_s:
                break
            agents *= 2
        for _ in range(REFINED):
            most = most_within(limit_s, list(runs.values())).agents
            above = [each for each in runs if most is not None and each > most]
            if not above or min(above) - (most or 0) < 2:
                break
            between = ((most or 0) + min(above)) // 2
            runs[between] = self.run(between)
        return runs

    def answer(self, counts: Sequence[int], limit_s: float | None) -> Agents:
        """Return what is predicted of each number of agents, and the most within a limit."""
        runs = {count: self.run(count) for count in counts}
        if limit_s is not None:
            runs = self.most(limit_s, runs)
        each = tuple(runs[count] for count in sorted(runs))
        return Agents(
            sessions=len(self.sessions.names),
            turns=len(self.sessions.after),
            asked=tuple(sorted(counts)),
            by_agents=each,
            most=None if limit_s is None else most_within(limit_s, each),
        )


def most_within(limit_s: float, runs: Sequence[AgentsRun]) -> MostAgents:
    """Return the most agents, of those looked at, before the first whose p95 turn is too long."""

    def most(end: int) -> int | None:
        within = 0
        for run in sorted(runs, key=lambda run: run.agents):
            if _ends(run)[end] > limit_s:
                return within
            within = run.agents
        return None

    fast, usual, slow = (most(end) for end in range(3))
    return MostAgents(limit_s=limit_s, agents=usual, low=slow, high=fast)


def _ends(run: AgentsRun) -> tuple[float, float, float]:
    """Return the low end, the value and the high end of a p95 turn."""
    p95 = run.turn_s["p95"]
    low, high = (p95.value if end is None else end for end in (p95.low, p95.high))
    return low, p95.value, high


def _cached_share(turns: AgentTurns) -> float:
    return float(turns.cached_tokens.sum() / max(turns.prompt_tokens.sum(), 1))


def _statistic(statistic: Callable[[Floats], float], name: str, turns: AgentTurns) -> float:
    return statistic(getattr(turns, name))


_PARTS: Final[Mapping[str, Callable[[Floats], float]]] = {
    "mean": lambda values: float(np.mean(values)),
    "p50": lambda values: float(np.quantile(values, 0.5)),
    "p95": lambda values: float(np.quantile(values, 0.95)),
}


@dataclass(frozen=True)
class _Numbers:
    """Loads at the usual speed [draws], and the first of them at its fast and its slow end."""

    usual: Sequence[AgentTurns]
    ends: Sequence[AgentTurns]
    extrapolated: bool

    def of(self, number: Callable[[AgentTurns], float], unit: str) -> Estimate:
        """Return a number with the interval of one more run of agents with these sessions."""
        each = [number(turns) for turns in self.usual]
        return of_one_more_run(
            float(np.mean(each)),
            unit,
            draws=each,
            days=[number(turns) / max(each[0], 1e-12) for turns in self.ends],
            most=1.0 if unit == "1" else math.inf,
            extrapolated=self.extrapolated,
        )

    def spread(self, name: str) -> dict[str, Estimate]:
        """Return mean, p50 and p95 of a time of turns, with both of its intervals."""
        among = spread(getattr(self.usual[0], name), "s", self.usual[0].session)
        found = {}
        for part, statistic in _PARTS.items():
            plain = self.of(partial(_statistic, statistic, name), "s")
            others = among[part]
            if plain.low is None or plain.high is None or others is None:
                found[part] = plain
                continue
            low, high = (
                None
                if end is None or end <= 0 or others.value <= 0
                else plain.value * math.exp(sign * math.hypot(math.log(end / others.value), own))
                for sign, end, own in (
                    (-1, others.low, math.log(plain.value / plain.low)),
                    (1, others.high, math.log(plain.high / plain.value)),
                )
            )
            found[part] = Estimate.predicted(
                plain.value,
                "s",
                fresh=Interval(low=plain.low, high=plain.high),
                others=Interval(low=low, high=high),
                of="fresh",
                extrapolated=self.extrapolated,
            )
        return found
