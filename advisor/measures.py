"""Every candidate's metrics, as values and joint draws, for one load: arrays to filter and sort."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from advisor.draws import Draws, point_mean, point_quantile
from advisor.outcomes import Outcome
from traces.errors import UsageError
from traces.schema import Budget, EngineConfig, Estimate

Floats = npt.NDArray[np.float64]

UNITS: Mapping[str, str] = {
    "accuracy": "1",
    "latency_s": "s",
    "latency_p95_s": "s",
    "cost_usd": "USD",
    "device_s": "device s",
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
        watts: Mapping[EngineConfig, float],
        law_key: Callable[[EngineConfig], EngineConfig],
    ) -> None:
        self.outcomes, self._draws, self.rate_per_s = list(outcomes), draws, rate_per_s
        self.factors = [
            draws.factor(o.candidate.engine, o.law, outside=o.extrapolated) for o in self.outcomes
        ]
        self.devices = np.array([o.candidate.engine.num_devices for o in self.outcomes])
        self.watts = [watts.get(law_key(o.candidate.engine)) for o in self.outcomes]
        self._known: dict[str, tuple[Floats, Floats]] = {}
        self._rows: dict[tuple[str, int, int], tuple[float, Floats]] = {}
        capacity = np.array([o.capacity_per_s for o in self.outcomes])
        if rate_per_s is None:
            self.keeps_up = np.ones((len(self.outcomes), draws.count), dtype=bool)
        else:
            up = np.array([o.keeps_up for o in self.outcomes])
            slowed = rate_per_s * np.array(self.factors)
            self.keeps_up = (slowed < capacity[:, None]) & up[:, None]

    def values(self, name: str) -> Floats:
        """Return the metric of every candidate."""
        return self._get(name)[0]

    def draws(self, name: str) -> Floats:
        """Return [candidates, draws] of the metric."""
        return self._get(name)[1]

    def estimate(self, name: str, row: int, *, price: float | None) -> Estimate | None:
        """Return a candidate's metric with its interval, None where it is not known."""
        scale = 1.0
        source = name
        if name == "cost_usd":
            if price is None:
                return None
            source, scale = "device_s", price / 3600
        if name == "energy_j" and self.watts[row] is None:
            return None
        outcome = self.outcomes[row]
        steps = name not in ("accuracy", "tokens", "flops")
        return self._draws.estimate(
            self.values(source)[row] * scale,
            self.draws(source)[row] * scale,
            UNITS.get(name, "s"),
            runs=outcome.law.runs if steps else len(outcome.candidate.pool.runs),
            extrapolated=steps and outcome.extrapolated,
        )

    def difference(
        self, name: str, first: int, second: int, *, price: float | None
    ) -> Estimate | None:
        """Return the metric of `first` minus that of `second`, drawn together."""
        one = self.estimate(name, first, price=price)
        other = self.estimate(name, second, price=price)
        if one is None or other is None:
            return None
        source, scale = name, 1.0
        if name == "cost_usd" and price is not None:
            source, scale = "device_s", price / 3600
        draws = self.draws(source)
        return self._draws.estimate(
            one.value - other.value,
            (draws[first] - draws[second]) * scale,
            one.unit,
            runs=one.runs,
            extrapolated=one.extrapolated or other.extrapolated,
        )

    def objective(self, budget: Budget) -> str:
        """Return the metric that a budget optimises.

        Raises UsageError when it is energy and none was recorded.
        """
        if budget.optimise == "latency":
            return latency_name(budget.latency_percentile)
        if budget.optimise == "energy" and all(w is None for w in self.watts):
            raise UsageError("--optimise energy: no recording holds power; record on a GPU")
        return {
            "accuracy": "accuracy",
            "cost": "device_s",  # the price is the same for all
            "energy": "energy_j",
            "throughput": "throughput_problems_per_s",
        }[budget.optimise]

    def cost(self, name: str) -> Floats:
        """Return the metric so that less is better, infinite where it is not known."""
        values = self.values(name)
        return -values if name in HIGHER_IS_BETTER else values

    def _get(self, name: str) -> tuple[Floats, Floats]:
        if name not in self._known:
            rows = [self._row(name, row) for row in range(len(self.outcomes))]
            self._known[name] = (
                np.array([value for value, _ in rows]),
                np.array([drawn for _, drawn in rows]),
            )
        return self._known[name]

    def _row(self, name: str, row: int) -> tuple[float, Floats]:
        outcome = self.outcomes[row]
        draws, factor = self._draws, self.factors[row]
        if name == "accuracy":
            return point_mean(outcome.accuracy), draws.accuracy(outcome.accuracy)
        if name in ("tokens", "flops"):
            values: Floats = getattr(outcome, name)
            return point_mean(values), draws.mean(values)
        # Candidates whose replays are one and the same are drawn once.
        key = (name, id(outcome.law), hash(outcome.latency_s.tobytes()))
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
        if name in ("device_s", "energy_j", "throughput_problems_per_s"):
            by_speed = [draws.mean(each) for each in outcome.device_s]
            value = point_mean(outcome.device_s[0])
            drawn = _at_speed(factor, outcome.speeds, by_speed)
            if self.rate_per_s is not None:
                # An engine is paid for while it idles: what arrives shares its whole time.
                whole = outcome.candidate.engine.num_devices / self.rate_per_s
                value, drawn = max(value, whole), np.maximum(drawn, whole)
            if name != "throughput_problems_per_s":
                return value, drawn
            devices = outcome.candidate.engine.num_devices
            return devices / value, devices / drawn
        middle = outcome.latency_s[0]
        if name == "latency_s":
            by_speed = [draws.mean(each) for each in outcome.latency_s]
            return point_mean(middle), _at_speed(factor, outcome.speeds, by_speed)
        q = int(name.removeprefix("latency_p").removesuffix("_s")) / 100
        by_speed = [draws.quantile(each, q) for each in outcome.latency_s]
        return point_quantile(middle, q), _at_speed(factor, outcome.speeds, by_speed)


def latency_name(percentile: int | None) -> str:
    """Return the name of the latency that a budget speaks of."""
    return "latency_s" if percentile is None else f"latency_p{percentile}_s"


def _at_speed(factor: Floats, speeds: Floats, by_speed: Sequence[Floats]) -> Floats:
    """Return what draws give when steps take `factor` times as long.

    With one replay all times scale; with a second, slower one they go with the power of the factor
    that leads from the first to it, more than 1 where problems queue.
    """
    if len(by_speed) == 1:
        return np.asarray(factor * by_speed[0])
    power = np.log(by_speed[1] / by_speed[0]) / np.log(speeds[1])
    return np.asarray(by_speed[0] * factor**power)
