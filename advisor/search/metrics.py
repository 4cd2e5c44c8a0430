"""What candidates give under one load: metrics as values and joint draws, to filter and sort.

`Metrics` is what a budget is read against. The closed form gives it for all candidates of a space
(closed_form.py), the replay for those that were replayed (`CandidateMetrics`, here).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from advisor.accuracy.subsets import decides_as_vote
from advisor.replay.draws import half_width
from advisor.search.replayed import ReplayedCandidate
from advisor.search.resampling import Resampling
from advisor.search.space import Candidate, Space
from traces.schema.estimate import Estimate, Interval, Of
from traces.schema.quantities import quantity
from traces.statistics import Z95, Bools, Floats, Ints, others, tells_above, tied

Rows = Ints | slice

ALL = slice(None)
EXACT = ("accuracy", "tokens", "flops", "devices")  # do not depend on the time of a step


class Metrics(ABC):
    """Metrics per problem of the candidates `rows` of a space under one load.

    Names are those of `traces.schema.quantities`, and `load_per_s`: the problems that arrive per
    second, each step being as slow as it is in the draw. At most `capacity_per_s` can be served.
    """

    space: Space
    rows: Sequence[int] | slice
    rate_per_s: float | None
    choosing: Bools  # [draws]: those that choose; the others state what was chosen
    power_draws: Floats  # [draws]: numbers from 0 to 1, which of the laws that power may have
    power_errors: Sequence[Floats]  # [laws of power, draws]: factors on what each foretells

    @property
    @abstractmethod
    def capacity_per_s(self) -> Floats:
        """Problems that each candidate can serve per second."""

    @abstractmethod
    def _values(self, name: str, rows: Rows) -> Floats:
        """Return a metric that does not follow from device time, as `values` does."""

    @abstractmethod
    def _draws(self, name: str, rows: Rows, of: Of) -> Floats:
        """Return a metric that does not follow from device time, as `draws` does."""

    @abstractmethod
    def chance(self, met: Bools) -> Floats:
        """Return the probability of what is met [.., draws]."""

    @abstractmethod
    def ties(self) -> list[Floats]:
        """Return what decides between equals [candidates], less being better.

        Latency and accuracy come first.
        """

    def values(self, name: str, rows: Rows = ALL) -> Floats:
        """Return the metric [rows], infinite where it is not known."""
        if name == "devices":
            return self.devices[rows].astype(float)
        if name == "throughput_problems_per_s":
            return np.asarray(self.devices[rows] / self._values("device_s", rows))
        if name == "energy_j":
            return self._energy(rows, self._values("on_s", rows), self._values("busy_s", rows))
        return self._values(name, rows)

    def draws(self, name: str, rows: Rows = ALL, *, of: Of = "all") -> Floats:
        """Return [rows, draws] of the metric of all problems like these, or of one more run."""
        if name == "devices":
            devices = self.devices[rows][:, None]
            return np.broadcast_to(devices, (len(devices), len(self.choosing)))
        if name == "throughput_problems_per_s":
            return np.asarray(self.devices[rows][:, None] / self._draws("device_s", rows, of))
        if name == "energy_j":
            spent = self._draws("on_s", rows, of), self._draws("busy_s", rows, of)
            return self._energy(rows, *spent)
        return self._draws(name, rows, of)

    def _energy(self, rows: Rows, on_s: Floats, busy_s: Floats) -> Floats:
        """Return the joules of device-seconds [rows] or [rows, draws], infinite where not known.

        `on_s` are those in which devices wait for a problem or work, `busy_s` those of steps.
        """
        space, places = self.space, self.space.powered[self.rows][rows]
        batch, devices = self.batch[rows], space.engine_devices[self.rows][rows]
        joules = np.full(on_s.shape, np.inf)
        for place, law in enumerate(space.power.values()):
            own = places == place
            if own.any():
                each = devices[own] if on_s.ndim == 1 else devices[own, None]
                on, busy = on_s[own] / each, np.minimum(busy_s[own], on_s[own]) / each
                if on_s.ndim == 1:
                    joules[own] = law.joules(on, busy, batch[own])
                else:
                    drawn = law.draws(on, busy, batch[own], self.power_draws)
                    joules[own] = drawn * self.power_errors[place]
        return joules

    @property
    @abstractmethod
    def batch(self) -> Floats:
        """The mean number of requests in a step, over the time in which steps run."""

    @property
    def powered(self) -> Bools:
        return np.asarray(self.space.powered[self.rows] >= 0)

    def extremes(self, name: str, rows: Ints, of: Of) -> tuple[Floats, Floats]:
        """Return bounds [rows] of what the metric is in the draws."""
        draws = self.draws(name, rows, of=of)
        return draws.min(axis=1), draws.max(axis=1)

    def spread(self, name: str) -> Floats:
        """Return by how much, as a logarithm, nine in ten replays lie off the value at most."""
        return np.zeros(len(self.kind))

    @property
    def kind(self) -> Ints:
        return self.space.kind[self.rows]

    @property
    def devices(self) -> Ints:
        return self.space.devices[self.rows]


class CandidateMetrics(Metrics):
    """Metrics of candidates that were replayed; further ones are added behind them."""

    def __init__(
        self,
        space: Space,
        resampling: Resampling,
        *,
        rate_per_s: float | None,
        as_sent: bool = False,
        luck: Mapping[Hashable, float] | None = None,
    ) -> None:
        self.luck = luck or {}  # of accuracies by pool and policy (`own_luck`)
        self.space, self.resampling, self.rate_per_s = space, resampling, rate_per_s
        self.as_sent = as_sent  # problems come when they did, and else at random
        self.choosing, self.power_draws = resampling.choosing, resampling.power
        self.power_errors = resampling.power_errors(space.power.values())
        self.rows: list[int] = []
        self.place: dict[int, int] = {}  # of a row of the space
        self.replayed: list[ReplayedCandidate] = []
        self.factors: list[Floats] = []
        self.loads: list[Floats] = []  # the share of what can be served that a problem takes
        self._by_row: dict[tuple[str, Of, int], tuple[float, Floats]] = {}
        self._arrays: dict[tuple[str, Of], tuple[Floats, Floats]] = {}
        self._estimates: dict[tuple[str, int, float | None], Estimate | None] = {}
        self._times: dict[Hashable, tuple[float, Floats]] = {}

    def add(self, row: int, replayed: ReplayedCandidate) -> None:
        engine = replayed.candidate.engine
        self.place[row] = len(self.rows)
        self.rows.append(row)
        self.replayed.append(replayed)
        factor = self.resampling.factor(
            engine, replayed.law, outside=replayed.extrapolated, totals=replayed.totals
        )
        self.factors.append(factor)
        work = self.resampling.mean(replayed.device_s[0])
        self.loads.append(factor * work / max(float(replayed.device_s[0].mean()), 1e-12))

    def candidate(self, row: int) -> Candidate:
        return self.replayed[row].candidate

    @property
    def batch(self) -> Floats:
        return np.array([each.batch for each in self.replayed])

    @property
    def capacity_per_s(self) -> Floats:
        return np.array([each.capacity_per_s for each in self.replayed])

    def _values(self, name: str, rows: Rows) -> Floats:
        if isinstance(rows, slice):
            return self._get(name, "all")[0][rows]
        return np.array([self._row(name, int(row), "others")[0] for row in rows])

    def _draws(self, name: str, rows: Rows, of: Of) -> Floats:
        if isinstance(rows, slice):
            return self._get(name, of)[1][rows]
        draws = [self._row(name, int(row), of)[1] for row in rows]  # of those asked about alone
        return np.array(draws).reshape(-1, self.resampling.count)

    def chance(self, met: Bools) -> Floats:
        """Return the share of draws that are met: the lower of the two halves."""
        halves = met[..., self.choosing].mean(axis=-1), met[..., ~self.choosing].mean(axis=-1)
        return np.asarray(np.minimum(*halves))

    def ties(self) -> list[Floats]:
        """Return better metrics, then no early stop, what was run, and limits as vLLM's own."""
        candidates = [each.candidate for each in self.replayed]
        engines, ran = [each.engine for each in candidates], self.space.made.has_engine
        keys = [
            [each.policy.stops_early for each in candidates],  # which then saved nothing
            [each.data_parallel_size for each in engines],
            [2 - each.recorded - ran(each.engine) for each in candidates],
            self.space.unusual[self.rows],
        ]
        return [
            tied(self.values("latency_s")),
            tied(-self.values("accuracy")),
            tied(self.values("device_s")),
            *(np.array(key, dtype=float) for key in keys),
        ]

    def estimate(self, name: str, row: int, *, price: float | None) -> Estimate | None:
        """Return a candidate's metric with its interval, None where it is not known.

        `price` is USD per device-hour.
        """
        key = (name, row, price)
        if key not in self._estimates:
            self._estimates[key] = self._estimate(name, row, price)
        return self._estimates[key]

    def _estimate(self, name: str, row: int, price: float | None) -> Estimate | None:
        if (name == "cost_usd" and price is None) or (name == "accuracy" and not self.space.judged):
            return None
        source, scale = _at_price(name, price)
        value = float(self.values(source, np.array([row]))[0])
        if not np.isfinite(value):
            return None
        replayed = self.replayed[row]
        policy = replayed.candidate.policy
        exact = name == "devices" or (name in EXACT and policy.all_samples_end)
        exact |= name == "accuracy" and decides_as_vote(policy.stop, policy.n)
        drawn = replayed.candidate.pool.curve is not None and name != "devices"
        drawn |= name == "energy_j" and not self._power_seen(row)
        unit, extrapolated = quantity(name).unit, drawn or (not exact and replayed.extrapolated)
        if name == "accuracy":
            return self._accuracy(replayed, value, extrapolated=extrapolated)
        runs = len(replayed.candidate.pool.runs) if exact else replayed.law.runs
        if name == "devices":
            return Estimate(value=value, unit=unit, runs=runs, extrapolated=extrapolated)

        def ends(of: Of) -> Interval:
            draws = self.draws(source, np.array([row]), of=of)[0]
            found = self.resampling.interval(value * scale, draws * scale, unit)
            if of == "fresh" or not name.startswith("latency_p"):
                return found
            _, lower = self._time_row(name, replayed, row, of, lower=True)
            low = self.resampling.interval(value, lower, unit).low
            return Interval(low=low, high=found.high if self._bounds(name) else None)

        found = Estimate.predicted(
            float(value * scale),
            unit,
            fresh=ends("fresh"),
            others=ends("others"),
            of="others",
            runs=runs,
            extrapolated=extrapolated,
        )
        # What the rate fixes, such as the device time, hangs on no step that was not measured.
        return replace(found, extrapolated=drawn) if found.cannot_differ else found

    def _accuracy(
        self, replayed: ReplayedCandidate, value: float, *, extrapolated: bool
    ) -> Estimate:
        candidate, runs = replayed.candidate, len(replayed.candidate.pool.runs)
        right = np.atleast_2d(replayed.accuracy).mean(axis=0)
        if candidate.pool.curve is None:
            return replayed.one_more().accuracy(
                right, candidate.policy, runs=runs, extrapolated=extrapolated
            )
        law = others(value, float(right.var()), right.size)
        return replace(law.interval(extrapolated=extrapolated), runs=runs)

    def _bounds(self, name: str) -> bool:
        """Whether so many problems bound a percentile by themselves."""
        return tells_above(self.resampling.weights.shape[1], quantile_of(name))

    def _power_seen(self, row: int) -> bool:
        """Whether a recording had such batches, and steps in as small a part of the time."""
        law = tuple(self.space.power.values())[self.space.powered[self.rows[row]]]
        busy_s, on_s = (self._row(name, row, "others")[0] for name in ("busy_s", "on_s"))
        return bool(law.within(on_s, busy_s, busy_s * float(self.batch[row])))

    def difference(
        self, name: str, first: int, second: int, *, prices: tuple[float | None, float | None]
    ) -> Estimate | None:
        """Return the metric of `first` minus that of `second`, drawn together.

        `prices` are USD per device-hour of the two.
        """
        one = self.estimate(name, first, price=prices[0])
        other = self.estimate(name, second, price=prices[1])
        if one is None or other is None:
            return None
        draws = []
        for row, price in zip((first, second), prices, strict=True):
            source, scale = _at_price(name, price)
            draws.append(self.draws(source, np.array([row]))[0] * scale)
        both = np.isinf(draws[0]) & (draws[0] == draws[1])
        with np.errstate(invalid="ignore"):
            difference = np.where(both, 0.0, draws[0] - draws[1])
        interval = self.resampling.estimate(
            one.value - other.value,
            difference,
            one.unit,
            runs=one.runs,
            extrapolated=one.extrapolated or other.extrapolated,
        )
        if name.startswith("latency_p") and not self._bounds(name):
            return replace(interval, low=None, high=None)  # nothing tells how slow others differ
        return interval

    def _get(self, name: str, of: Of) -> tuple[Floats, Floats]:
        known = self._arrays.get((name, of))
        if known is None or len(known[0]) < len(self.rows):
            rows = [self._row(name, row, of) for row in range(len(self.rows))]
            self._arrays[name, of] = known = (
                np.array([value for value, _ in rows]),
                np.array([draws for _, draws in rows]).reshape(-1, self.resampling.count),
            )
        return known

    def _row(self, name: str, row: int, of: Of) -> tuple[float, Floats]:
        key = (name, of, row)
        if key not in self._by_row:
            self._by_row[key] = self._drawn_row(name, row, of)
        return self._by_row[key]

    def _drawn_row(self, name: str, row: int, of: Of) -> tuple[float, Floats]:
        replayed, resampling = self.replayed[row], self.resampling
        if name == "accuracy":
            draws = resampling.accuracy(replayed.accuracy)
            if of == "others":
                run = replayed.candidate
                luck = self.luck.get((run.pool.key, run.policy), 0.0)
                draws = resampling.run_accuracy(replayed.accuracy, luck)
            return float(replayed.accuracy.mean()), draws
        if name in ("tokens", "flops"):
            values: Floats = getattr(replayed, name)
            if not np.isfinite(values).all():
                return float(values.mean()), np.full(resampling.count, np.inf)
            return float(values.mean()), self._mean(values, name, row, of)
        if name == "load_per_s":  # too much of it was not replayed
            value = (self.rate_per_s or 0.0) if replayed.keeps_up else np.inf
            return value, value * self.loads[row]
        # Candidates whose replays are one and the same are drawn once.
        replicas = replayed.candidate.engine.data_parallel_size
        times = (replayed.latency_s.tobytes(), replayed.device_s.tobytes(), replayed.paid)
        engine = (id(replayed.law), replayed.extrapolated, replayed.capacity_per_s, replicas)
        key = (name, of, hash(times), replayed.keeps_up, *engine)
        if key not in self._times:
            self._times[key] = self._time_row(name, replayed, row, of)
        return self._times[key]

    def _time_row(
        self, name: str, replayed: ReplayedCandidate, row: int, of: Of, *, lower: bool = False
    ) -> tuple[float, Floats]:
        factor = self.factors[row]
        if name == "device_s":
            return self._device_row(replayed, row, of)
        if name == "on_s":
            return self._on_row(replayed, row, of)
        if name == "busy_s":  # of devices, while steps run
            busy = [self._mean(busy, "device_s", row, of) for busy in replayed.device_s]
            return float(replayed.device_s[0].mean()), _at_speed(factor, replayed.speeds, busy)
        if not replayed.keeps_up:  # its queue grows for ever
            return np.inf, np.full(self.resampling.count, np.inf)
        resampling, recorded_speed = self.resampling, replayed.latency_s[0]
        if name == "latency_s":
            value = float(recorded_speed.mean())
            by_speed = [self._mean(latency, name, row, of) for latency in replayed.latency_s]
        else:
            q = quantile_of(name)
            value = float(np.quantile(recorded_speed, q, axis=1).mean())
            if of == "fresh":
                apart = resampling.apart(self._fresh_spread(row, "latency_s", q))
                quantiles = np.quantile(replayed.latency_s, q, axis=-1).mean(axis=1)
                by_speed = [each * apart for each in quantiles]
            else:
                order = resampling.quantile_order(recorded_speed, q)  # of all speeds
                by_speed = [
                    resampling.quantile(each, q, order, lower=lower, of=of)
                    for each in replayed.latency_s
                ]
        rate, capacity = self.rate_per_s or 0.0, replayed.capacity_per_s
        draws = _at_speed(factor, replayed.speeds, by_speed)
        draws = np.where(rate * self.loads[row] > capacity, np.inf, draws)  # as above
        return value if rate <= capacity else np.inf, draws

    def _mean(self, values: Floats, name: str, row: int, of: Of) -> Floats:
        """Return draws of the mean of values [replays, problems], with the spread of a metric."""
        if of != "fresh":
            drawn = self.resampling.mean(values, of=of)
            if of == "others" and name in ("tokens", "flops"):
                return self._with_samples(values, drawn, name, row)
            return drawn
        return np.asarray(values.mean() * self.resampling.apart(self._fresh_spread(row, name)))

    def _with_samples(self, values: Floats, drawn: Floats, name: str, row: int) -> Floats:
        """Return `drawn` means of other problems, with their draws of samples."""
        _, half = self.replayed[row].exact_spreads.get(name, (0.0, 0.0))
        of_problems = float(np.sqrt(2 * values.var() / values.size)) * Z95
        if not half or not of_problems:
            return drawn
        value = float(values.mean())
        farther = np.hypot(1.0, half * value / of_problems)
        return np.asarray(value * (drawn / value) ** farther)

    def _fresh_spread(self, row: int, name: str, q: float | None = None) -> float:
        """Return the spread (sd of the log) of a metric of fresh runs; of a quantile with `q`."""
        replayed = self.replayed[row]
        if name in ("tokens", "flops") and name in (exact := replayed.exact_spreads):
            return exact[name][0] / Z95
        fresh = replayed.fresh
        values = fresh.tokens if name == "flops" else getattr(fresh, name)
        numbers = values.mean(axis=1) if q is None else np.quantile(values, q, axis=1)
        behind = 1 if name in ("tokens", "flops") else replayed.latency_s.shape[1]
        return half_width(behind, numbers, share=fresh.share, too_little=fresh.too_little) / Z95

    def _device_row(self, replayed: ReplayedCandidate, row: int, of: Of) -> tuple[float, Floats]:
        """Return device-seconds of a problem: devices over problems served a second, idle ones too.

        At a rate those that arrive share all the time that there is. Of several replicas all are
        paid for until the last of them is done, as one engine is, which is busy all that time.
        """
        if self.rate_per_s is None and replayed.candidate.engine.data_parallel_size == 1:
            return self._time_row("busy_s", replayed, row, of)
        return self._on_row(replayed, row, of)

    def _on_row(self, replayed: ReplayedCandidate, row: int, of: Of) -> tuple[float, Floats]:
        """Return device-seconds of a problem from the first arrival to the last end."""
        if self.rate_per_s is None:
            value, draws = self._time_row("busy_s", replayed, row, of)
            return value * replayed.paid, draws * replayed.paid
        devices = replayed.candidate.engine.num_devices
        paid, least = devices / self.rate_per_s, devices / replayed.capacity_per_s
        return max(paid, least), np.maximum(paid, least * self.loads[row])


def quantile_of(name: str) -> float:
    """Return the quantile that `latency_p95_s` names."""
    return int(name.removeprefix("latency_p").removesuffix("_s")) / 100


def _at_price(name: str, price: float | None) -> tuple[str, float]:
    """Return the metric that a metric is a multiple of, and the factor."""
    return ("device_s", (price or 0.0) / 3600) if name == "cost_usd" else (name, 1.0)


def _at_speed(factor: Floats, speeds: Floats, by_speed: Sequence[Floats]) -> Floats:
    """Return what draws give when steps take `factor` times as long.

    With one replay all times scale. With a second, slower one they go with the power of the factor
    that leads to it, more than 1 where problems queue, and with a third, faster one below 1.
    """
    if len(by_speed) == 1:
        return np.asarray(factor * by_speed[0])
    with np.errstate(invalid="ignore"):  # of infinite ones, which stay so
        slow, *fast = (
            np.nan_to_num(np.log(other / by_speed[0]) / np.log(speed))
            for other, speed in zip(by_speed[1:], speeds[1:], strict=True)
        )
    power = np.where(factor < 1, fast[0], slow) if fast else slow
    return np.asarray(by_speed[0] * factor**power)
