"""Every candidate's metrics, as values and joint draws, for one load: arrays to filter and sort."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from advisor.search.replayed import Outcome
from advisor.search.resampling import Draws, point_mean, point_quantile
from traces.schema.engine import EngineConfig
from traces.schema.estimate import Estimate

Floats = npt.NDArray[np.float64]

UNITS: Mapping[str, str] = {
    "accuracy": "1",
    "latency_s": "s",
    "latency_p95_s": "s",
    "cost_usd": "USD",
    "device_s": "device-s",
    "energy_j": "J",
    "tokens": "tokens",
    "flops": "FLOP",
    "throughput_problems_per_s": "problems/s",
}
HIGHER_IS_BETTER = ("accuracy", "throughput_problems_per_s")


class Measures:
    """Metrics of candidates, per problem: `values(name)` [candidates], `draws(name)` [.., draws].

    Names are those of UNITS, `latency_p50_s` to `latency_p99_s`, and with a price `cost_usd`.
    """

    def __init__(
        self,
        outcomes: Sequence[Outcome],
        draws: Draws,
        *,
        rate_per_s: float | None,
        concurrency: int | None = None,
        watts: Mapping[EngineConfig, float],
        law_key: Callable[[EngineConfig], EngineConfig],
    ) -> None:
        self._draws, self.rate_per_s = draws, rate_per_s
        self._in_flight = concurrency or 1
        self._by_law, self._law_key = watts, law_key
        self.outcomes: list[Outcome] = []
        self.factors: list[Floats] = []
        self._known: dict[str, list[tuple[float, Floats]]] = {}
        self._arrays: dict[str, tuple[Floats, Floats]] = {}
        self._estimates: dict[tuple[str, int, float | None], Estimate | None] = {}
        self._rows: dict[tuple[str, int, int, int], tuple[float, Floats]] = {}
        self.add(outcomes)

    def add(self, outcomes: Sequence[Outcome]) -> None:
        """Take in further candidates, behind those that are there."""
        if self.outcomes and not outcomes:
            return
        draws = self._draws
        self.outcomes += outcomes
        self.factors += [
            draws.factor(o.candidate.engine, o.law, outside=o.extrapolated) for o in outcomes
        ]
        engines = [outcome.candidate.engine for outcome in self.outcomes]
        self.devices = np.array([engine.num_devices for engine in engines], dtype=np.int64)
        # A replica draws what the engine that was recorded did.
        self.watts = [
            None
            if (each := self._by_law.get(self._law_key(engine))) is None
            else each * engine.data_parallel_size
            for engine in engines
        ]
        if self.rate_per_s is None:
            self.keeps_up = np.ones((len(self.outcomes), draws.count), dtype=bool)
        else:
            capacity = np.array([o.capacity_per_s for o in self.outcomes])
            up = np.array([o.keeps_up for o in self.outcomes], dtype=bool)
            slowed = self.rate_per_s * np.array(self.factors).reshape(len(up), draws.count)
            self.keeps_up = (slowed < capacity[:, None]) & up[:, None]

    def values(self, name: str) -> Floats:
        """Return the metric of every candidate."""
        return self._get(name)[0]

    def draws(self, name: str) -> Floats:
        """Return [candidates, draws] of the metric."""
        return self._get(name)[1]

    def estimate(self, name: str, row: int, *, price: float | None) -> Estimate | None:
        """Return a candidate's metric with its interval, None where it is not known."""
        key = (name, row, price)
        if key not in self._estimates:
            self._estimates[key] = self._estimate(name, row, price)
        return self._estimates[key]

    def _estimate(self, name: str, row: int, price: float | None) -> Estimate | None:
        scale = 1.0
        source = name
        if name == "cost_usd":
            if price is None:
                return None
            source, scale = "device_s", price / 3600
        if name == "energy_j" and self.watts[row] is None:
            return None
        if name == "flops" and not np.isfinite(self.values(name)[row]):
            return None
        outcome = self.outcomes[row]
        steps = name not in ("accuracy", "tokens", "flops")
        return self._draws.estimate(
            self.values(source)[row] * scale,
            self.draws(source)[row] * scale,
            UNITS.get(name, "s"),
            runs=outcome.law.runs if steps else len(outcome.candidate.pool.runs),
            extrapolated=steps and outcome.unmeasured,
        )

    def difference(
        self, name: str, first: int, second: int, *, prices: Sequence[float | None]
    ) -> Estimate | None:
        """Return the metric of `first` minus that of `second`, drawn together.

        `prices` are USD per device-hour of each candidate.
        """
        one = self.estimate(name, first, price=prices[first])
        other = self.estimate(name, second, price=prices[second])
        if one is None or other is None:
            return None
        source, scales = name, (1.0, 1.0)
        if name == "cost_usd":
            source = "device_s"
            scales = ((prices[first] or 0.0) / 3600, (prices[second] or 0.0) / 3600)
        draws = self.draws(source)
        return self._draws.estimate(
            one.value - other.value,
            draws[first] * scales[0] - draws[second] * scales[1],
            one.unit,
            runs=one.runs,
            extrapolated=one.extrapolated or other.extrapolated,
        )

    def _get(self, name: str) -> tuple[Floats, Floats]:
        rows = self._known.setdefault(name, [])
        rows += [self._row(name, row) for row in range(len(rows), len(self.outcomes))]
        if name not in self._arrays or len(self._arrays[name][0]) < len(rows):
            self._arrays[name] = (
                np.array([value for value, _ in rows]),
                np.array([drawn for _, drawn in rows]),
            )
        return self._arrays[name]

    def _row(self, name: str, row: int) -> tuple[float, Floats]:
        outcome = self.outcomes[row]
        draws, factor = self._draws, self.factors[row]
        if name == "accuracy":
            return point_mean(outcome.accuracy), draws.accuracy(outcome.accuracy)
        if name in ("tokens", "flops"):
            values: Floats = getattr(outcome, name)
            if not np.isfinite(values).all():
                return np.inf, np.full(draws.count, np.inf)
            return point_mean(values), draws.mean(values)
        # Candidates whose replays are one and the same are drawn once.
        ranks = outcome.candidate.engine.data_parallel_size
        key = (name, ranks, id(outcome.law), hash(outcome.latency_s.tobytes()))
        if key not in self._rows:
            self._rows[key] = self._time_row(name, outcome, factor)
        value, drawn = self._rows[key]
        if name == "energy_j":
            watts = self.watts[row]
            scale = np.inf if watts is None else watts / self.devices[row]
            value, drawn = self._row("device_s", row)
            return value * scale, drawn * scale
        return value, drawn

    def _time_row(self, name: str, outcome: Outcome, factor: Floats) -> tuple[float, Floats]:
        draws = self._draws
        if name in ("device_s", "energy_j"):
            return self._device_row(outcome, factor)
        if name == "throughput_problems_per_s":
            devices = outcome.candidate.engine.num_devices
            value, drawn = self._device_row(outcome, factor)
            return devices / value, devices / drawn
        middle = outcome.latency_s[0]
        if name == "latency_s":
            by_speed = [draws.mean(each) for each in outcome.latency_s]
            return point_mean(middle), _at_speed(factor, outcome.speeds, by_speed)
        q = int(name.removeprefix("latency_p").removesuffix("_s")) / 100
        by_speed = [draws.quantile(each, q) for each in outcome.latency_s]
        return point_quantile(middle, q), _at_speed(factor, outcome.speeds, by_speed)

    def _device_row(self, outcome: Outcome, factor: Floats) -> tuple[float, Floats]:
        """Return device-seconds of a problem: devices over problems served a second.

        Devices are paid for while they idle. At a rate those that arrive share all the time that
        there is; of replicas some may idle with few problems in flight, of which latency tells how
        many are served (Little's law). One engine that is never idle is told by its own busy time.
        """
        engine, draws = outcome.candidate.engine, self._draws
        if self.rate_per_s is not None:
            whole = engine.num_devices / self.rate_per_s
            least = engine.num_devices / outcome.capacity_per_s
            return max(whole, least), np.maximum(whole, least * factor)
        if engine.data_parallel_size > 1:
            value, drawn = self._time_row("latency_s", outcome, factor)
            share = engine.num_devices / self._in_flight
            return value * share, drawn * share
        by_speed = [draws.mean(each) for each in outcome.device_s]
        return point_mean(outcome.device_s[0]), _at_speed(factor, outcome.speeds, by_speed)


def _at_speed(factor: Floats, speeds: Floats, by_speed: Sequence[Floats]) -> Floats:
    """Return what draws give when steps take `factor` times as long.

    With one replay all times scale; with a second, slower one they go with the power of the factor
    that leads from the first to it, more than 1 where problems queue.
    """
    if len(by_speed) == 1:
        return np.asarray(factor * by_speed[0])
    power = np.log(by_speed[1] / by_speed[0]) / np.log(speeds[1])
    return np.asarray(by_speed[0] * factor**power)
