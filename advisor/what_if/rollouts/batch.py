"""How long a batch takes that is sent at once, when its parts are done, and what stands idle."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from advisor.forecast.one_more_run import of_one_more_run
from advisor.replay.result import Replayed
from traces.schema.estimate import Estimate
from traces.schema.record import Record

DONE: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


@dataclass(frozen=True, kw_only=True)
class BatchRun(Record):
    """A batch of problems with so many samples each, of which `concurrency` are in flight.

    All are sent at once where that is None. `done_s` are when these shares of the problems are
    answered, and `end_s` when all are. Of the time until then `idle_share` is that of devices whose
    replica has ended all that it had, `idle_slots_share` that of places for samples that are empty,
    and `tail_share` what comes after nine in ten problems are answered.
    """

    problems: int
    samples: int
    concurrency: int | None
    end_s: Estimate
    done_s: Mapping[str, Estimate]
    tail_share: Estimate
    idle_share: Estimate
    idle_slots_share: Estimate | None


def batch_run(
    usual: Sequence[Replayed],
    fresh: Sequence[Replayed],
    speeds: Sequence[Sequence[Replayed]],
    *,
    problems: int,
    samples: int,
    concurrency: int | None,
    slots: int | None,
    replicas: int,
    extrapolated: bool,
) -> BatchRun:
    """Return a batch from draws of it at the usual speed, fresh runs of it, and draws at others.

    `slots` are the samples that a replica runs at once, None where that is not known. Intervals
    are of one more run of the same problems: ends of speeds, and half-widths of draws in logs.
    """

    def estimate(of: Callable[[Replayed], float], unit: str, most: float = math.inf) -> Estimate:
        value = float(np.mean([of(run) for run in usual]))
        ends = [float(np.mean([of(run) for run in side])) for side in speeds]
        return of_one_more_run(
            value,
            unit,
            draws=[of(run) for run in fresh or usual],
            days=[end / value for end in ends] if value > 0 else [],
            most=most,
            extrapolated=extrapolated,
        )

    return BatchRun(
        problems=problems,
        samples=samples,
        concurrency=concurrency,
        end_s=estimate(_end_s, "s"),
        done_s={name: estimate(partial(_done_s, share), "s") for name, share in DONE.items()},
        tail_share=estimate(_tail_share, "1", 1.0),
        idle_share=estimate(partial(_idle_share, replicas), "1", 1.0),
        idle_slots_share=None
        if slots is None
        else estimate(partial(_idle_slots_share, slots * replicas), "1", 1.0),
    )


def _done_s(share: float, run: Replayed) -> float:
    """Return when so many of the problems are answered."""
    done = np.sort(run.arrival_s + run.latency_s) - run.arrival_s.min()
    return float(done[max(math.ceil(share * len(done)), 1) - 1])


def _end_s(run: Replayed) -> float:
    """Return when all samples have ended, those too that a decision cancels."""
    return run.makespan_s - float(run.arrival_s.min())


def _tail_share(run: Replayed) -> float:
    """Return the share of the time that comes after nine in ten problems are answered."""
    return 1 - _done_s(0.9, run) / _end_s(run)


def _idle_share(replicas: int, run: Replayed) -> float:
    """Return the share of the time in which a replica has no sample left, the mean of all."""
    ends = np.full(replicas, float(run.arrival_s.min()))
    ran = np.isfinite(run.end_s)
    np.maximum.at(ends, run.engine[ran], run.end_s[ran])
    return float(1 - (ends.mean() - run.arrival_s.min()) / _end_s(run))


def _idle_slots_share(slots: int, run: Replayed) -> float:
    """Return the share of the places for samples that are empty, over the time."""
    return 1 - float(np.nansum(run.end_s - run.scheduled_s)) / (slots * _end_s(run))
