"""One measured load against others of an engine: ``python benchmarks/measured_loads.py --runs R``.

Needs ttscope[prior], and what `host_term.py` reads. Each published point is predicted with the
host's part of points of other models. Then each load of an engine (a model, GPU and size of a lab)
corrects that engine's other loads, as `ttscope replay --gpu --measured` does: what is corrected is
the time of steps, and where requests arrive by themselves slower steps have more of them. Printed
are the mean absolute errors of a token's time before and after, the share of 90 % intervals that
hold, and the half-width of those of steps, by how far the loads are apart. Arrivals at a server
that has seen none of the prompts are left out: how long these are is a guess, and matters only
there.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from host_term import Row, by_kind, family, fitted, rows_of, seconds_of, shares_of, with_host
from replayed_points import chosen, options, replayed, times_of
from serving_points import OPEN, Point

from advisor.step_time.cost import StepCost, scaled_cost
from advisor.step_time.host.law import kept
from advisor.step_time.host.spread import spread_of
from advisor.step_time.prior.recalibration import ROUNDS, UNLIKE, MeasuredLoads, StepLoad
from traces.schema.engine import EngineConfig
from traces.statistics import Z95

HALVED = 12  # times, until the factor of steps is found
DISTANCES = (("as many requests", 0.0, 0.1), ("up to twice", 0.1, 1.1), ("up to 4 times", 1.1, 2.1),
             ("more", 2.1, np.inf))  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Priced:
    """A measured load of an engine, what its steps cost by the prior, and the prior's spread."""

    point: Point
    engine: EngineConfig
    cost: StepCost
    sigma: float

    def off(self, log: float) -> float:
        """Return the log of measured over predicted of steps that take exp(log) times as long."""
        work, run = replayed(self.point, self.engine, self._slower(log))
        if self.point.tpot_s is None:
            assert self.point.latency_s
            return float(np.log(self.point.latency_s / run.makespan_s))
        return float(np.log(self.point.tpot_s / times_of(self.point, work, run)[0]))

    def load(self, log: float) -> StepLoad:
        """Return the load of such steps: of the point's own requests, not of runs before it."""
        alone = replace(self.point, before=())
        return StepLoad.of(replayed(alone, self.engine, self._slower(log))[1])

    def _slower(self, log: float) -> StepCost:
        return scaled_cost(self.cost, float(np.exp(log)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Known:
    """A load with the log of the factor of steps with which it takes its time."""

    priced: Priced
    log: float
    load: StepLoad  # with that factor
    usual: StepLoad  # by the prior

    @property
    def arrives(self) -> bool:
        """Whether requests arrive by themselves, so that slower steps have more of them."""
        return self.priced.point.load == OPEN

    @classmethod
    def of(cls, priced: Priced) -> "Known":
        """Find the factor: nothing but the clock changes where requests are kept in flight."""
        log, usual = priced.off(0.0), priced.load(0.0)
        if priced.point.load != OPEN:
            return cls(priced=priced, log=log, load=usual, usual=usual)
        low, high = -np.log(UNLIKE), np.log(UNLIKE)
        for _ in range(HALVED):
            log = (low + high) / 2
            low, high = (log, high) if priced.off(log) > 0 else (low, log)
        return cls(priced=priced, log=log, load=priced.load(log), usual=usual)

    def corrects(self, other: "Known") -> tuple[float, float, float]:
        """Return another load's log of measured over predicted, of its time and steps; the spread.

        The load is looked at as `ttscope replay` does.
        """
        spread = np.array([other.priced.sigma, 0.0])
        one = MeasuredLoads(loads=(self.load,), logs=np.array([self.log]), spreads=spread[None])
        value, wide = one.correction(other.usual, spread)
        if not other.arrives:
            return other.log - value, other.log - value, wide
        for _ in range(ROUNDS):
            value, wide = one.correction(other.priced.load(value), spread)
        return other.priced.off(value), other.log - value, wide


def known(rows: Iterable[Row]) -> dict[tuple[object, ...], list[Known]]:
    """Return the loads of each engine, by a host's part that its model has not taught."""
    every = list(rows)
    laws, found = {}, defaultdict(list)
    for row in every:
        point, facts = row.point, row.point.facts
        if row.waited or row.guessed or facts is None:
            continue
        if (name := family(point)) not in laws:
            laws[name] = fitted([each for each in every if family(each.point) != name])
        hidden = kept()["hidden"]  # as all points taught it
        seconds = seconds_of(laws[name], row)
        cost = with_host(row.cost, row.engine, seconds, row.share(hidden))
        sizes = row.engine.tensor_parallel_size, row.engine.data_parallel_size
        versions = point.engine.vllm_version, row.engine.expert_parallel
        engine = (by_kind(row), point.model, point.precision, point.system, *sizes, *versions)
        share = float(shares_of([row], laws[name], hidden)[0])
        sigma = spread_of(point.system, facts, row.engine).sigma(share)
        priced = Priced(point=point, engine=row.engine, cost=cost, sigma=sigma)
        found[engine].append(Known.of(priced))
    return found


def main() -> None:
    rows = rows_of(chosen(options(__doc__).parse_args()))
    pairs = defaultdict(list)
    for engine, loads in known(rows).items():
        for one in loads:
            for other in loads:
                if other is not one:
                    off, steps, wide = one.corrects(other)
                    apart = abs(np.log2(other.load.requests / one.load.requests))
                    before = other.priced.off(0.0) if other.arrives else other.log
                    sigma = other.priced.sigma
                    pairs[engine[0]].append((apart, before, other.log, off, steps, sigma, wide))
    print("pairs of loads, mean |error| % by the prior and with one load, held and half-width %")
    for name, values in sorted(pairs.items()):
        found = np.array(values)
        for title, low, high in (("all", 0.0, np.inf), *DISTANCES):
            own = found[(found[:, 0] >= low) & (found[:, 0] < high)]
            if not len(own):
                continue
            _, before, unscaled, after, left, sigma, wide = own.T
            cells = [
                f"{100 * np.mean(np.abs(error)):>6.1f}"
                f"{100 * np.mean(np.abs(steps) <= Z95 * s):>5.0f}"
                f"{100 * (np.exp(Z95 * np.median(s)) - 1):>6.1f}"
                for error, steps, s in ((before, unscaled, sigma), (after, left, wide))
            ]
            print(f"  {name:<32}{title:<18}{len(own):>7}   " + "   ".join(cells))


if __name__ == "__main__":
    main()
