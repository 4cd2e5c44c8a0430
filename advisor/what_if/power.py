"""The power law of an engine, learned from the stretches of its recordings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from advisor.evidence.keys import law_key, learned_as
from advisor.step_time.law import non_negative_least_squares
from traces.recording.reader import Recording
from traces.schema.engine import EngineConfig
from traces.statistics import Floats
from traces.summary.energy import PowerTable, power_table


def power_law(recordings: Sequence[Recording], engine: EngineConfig) -> PowerLaw | None:
    """Return the power law of an engine, None where no recording of it has power."""
    tables = [
        power_table(recording, key)
        for recording in recordings
        for key, other in learned_as(recording.manifest.engines).items()
        if law_key(other) == law_key(engine)
    ]
    law = fit_power([table for table in tables if table is not None])
    limit = limit_of(engine)
    return law if law is None or limit is None else replace(law, limit_w=limit)


# What an engine's devices draw: idle, more while a step runs, and more for each request in it.
#
#     joules = idle x seconds + busy x seconds of steps
#              + batch x sum over steps of seconds x requests
#
# The three are watts, non-negative least squares over stretches of recorded time (Lawson and
# Hanson 1974), which are longer than the sensors' delay. Utilisation is the part of the time in
# which steps run. Power is concave in the batch, and no more than the boards' limit: beyond the
# recorded batches that bounds it, and the line is not continued.


BLOCKS = 8  # of neighbouring stretches, whose errors tell the spread
SEVERAL = 1.5  # times the least batch from which on the largest is another point
# Watts that a board may draw, by its driver's name: those that the system files of
# aiconfigurator_core 0.12 state (`power` in systems/*.yaml). Of other boards no limit is known.
_LIMITS_W = (
    (r"H100 80GB HBM3", 700), (r"H100 PCIe", 350), (r"H200", 700), (r"B200", 1000),
    (r"B300 SXM6 AC", 1100), (r"GB200", 1200), (r"GB300", 1400), (r"A100-SXM4-80GB", 400),
    (r"A100 80GB PCIe|A100-PCIE-80GB", 300), (r"A30", 165), (r"L40S", 350), (r"L4", 72),
    (r"RTX PRO 6000 Blackwell Server Edition", 600),
)  # fmt: skip


def limit_of(engine: EngineConfig) -> float | None:
    """Return what an engine's GPUs may draw together, None where it is not known."""
    for name, watts in _LIMITS_W:
        if re.fullmatch(rf"(?:NVIDIA )?(?:{name})", engine.gpu or ""):
            return float(watts * engine.num_devices)
    return None


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """Watts of all devices of an engine: idle, while a step runs, and per request in it.

    `sigma` is the spread of the log of (recorded / predicted) energy over parts of the recordings,
    `batch` the least and the largest mean batch of a stretch, `least_busy` the least part of one in
    which steps ran: where they always ran, idle cannot be told from busy, and where the batch was
    always the same, its part not from the rest. `limit_w` is what all boards may draw, None where
    it is not known.
    """

    watts: Floats
    sigma: float
    batch: tuple[float, float]
    least_busy: float
    limit_w: float | None = None

    def within(self, seconds: float, busy_s: float, request_s: float) -> bool:
        """Whether the mean batch and the part of the time in steps lie in what was recorded."""
        low, high = self.batch
        return low * busy_s <= request_s <= high * busy_s and busy_s >= self.least_busy * seconds

    def joules(self, seconds: float, busy_s: float, request_s: float) -> float:
        """Return the energy of so much time, time in steps, and requests x time in steps.

        Beyond the recorded batches the middle of `bounds`, in proportion.
        """
        low, high = self.bounds(seconds, busy_s, request_s)
        return float(np.sqrt(low * high))

    def bounds(self, seconds: float, busy_s: float, request_s: float) -> tuple[float, float]:
        """Return the least and the most that a power which is concave in the batch can draw."""
        idle = float(self.watts[0])
        low, high = self._active_w(request_s / busy_s) if busy_s > 0 else (0.0, 0.0)
        if self.limit_w is not None:
            most = max(self.limit_w - idle, 0.0)
            low, high = min(low, most), min(high, most)
        return idle * seconds + low * busy_s, idle * seconds + high * busy_s

    def _active_w(self, batch: float) -> tuple[float, float]:
        """Return the least and most watts beyond idle while steps of a mean batch run.

        A rising concave curve lies, outside two of its points, below the line through them and
        above the nearer one (beyond) or the line from nothing to it (before). Of one point only the
        line from nothing is known.
        """
        _, busy, slope = self.watts.tolist()
        least, most = self.batch
        first, last = busy + slope * least, busy + slope * most
        several = most > SEVERAL * least
        if batch > most:
            return last, last + (slope if several else last / most) * (batch - most)
        if batch < least:
            below = first + slope * (batch - least) if several else first
            return first * batch / least, max(below, first * batch / least)
        return busy + slope * batch, busy + slope * batch


def fit_power(tables: Sequence[PowerTable]) -> PowerLaw | None:
    """Return the law of an engine's recordings, None where there is nothing to learn from."""
    tables = [table for table in tables if len(table.joules) >= BLOCKS]
    if not tables:
        return None
    amounts = np.concatenate([table.amounts for table in tables])
    joules = np.concatenate([table.joules for table in tables])
    watts = non_negative_least_squares(amounts, joules)
    if not watts.any():
        return None
    ran = amounts[:, 1] > 0
    batches = amounts[ran, 2] / amounts[ran, 1]
    errors = [
        np.log(drawn.sum() / float((part @ watts).sum()))
        for table in tables
        for part, drawn in zip(
            np.array_split(table.amounts, BLOCKS), np.array_split(table.joules, BLOCKS), strict=True
        )
        if drawn.sum() > 0
    ]
    return PowerLaw(
        watts=watts,
        sigma=float(np.sqrt(np.mean(np.square(errors)))),
        batch=(float(batches.min()), float(batches.max())),
        least_busy=float(np.min(amounts[:, 1] / amounts[:, 0])),
    )
