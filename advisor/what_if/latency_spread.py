"""How far the mean and quantiles of problem latency lie off where the time of all steps does not.

The spread of a law (`StepLaw.sigma`) is that of a run's total time. The median problem has met
fewer steps than the run has, and a quantile of few problems moves with each of them, so that these
lie further off, each run in its own way. Each problem lies off in its own way too, and where
problems arrive at given times, the last of them decide how long the run took.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from advisor.evidence.features import reads_of
from advisor.evidence.gather import StepTable
from advisor.evidence.keys import law_key
from advisor.evidence.runs import RecordedRun
from advisor.replay.limits import limits_of
from advisor.replay.replay import replay
from advisor.replay.result import Replayed
from advisor.replay.workload import ReplayWorkload
from advisor.step_time.cost import ANY, Most, linear_cost
from advisor.step_time.fit import StepTimeModel
from advisor.step_time.pace import Pace, pace_of_run
from traces.schema.engine import ModelFacts
from traces.statistics import Floats
from traces.summary.comparison import PRIOR_REPEATS

BEYOND = {"mean": 0.01, "p50": 0.02, "p95": 0.025}  # sd of the log (benchmarks/RESULTS.md)
MOST_RUNS = 24  # that are replayed to see it


def latency_spread(
    runs: Sequence[RecordedRun], tables: Sequence[StepTable], model: StepTimeModel | None
) -> dict[str, float]:
    """Return the spread (sd of the log) of the mean, p50 and p95 beyond that of the total time.

    Recorded runs are replayed by the law that their steps, the `tables`, helped to teach; `BEYOND`
    counts for `PRIOR_REPEATS` of them, and is all there is without a model.
    """
    if model is None:
        return dict(BEYOND)
    if len(runs) > MOST_RUNS:
        places = np.linspace(0, len(runs) - 1, MOST_RUNS).round().astype(int)
        runs = [runs[place] for place in places]
    each_off = (_beyond(run, tables, model) for run in runs)
    off = [each for each in each_off if each is not None and np.isfinite(each).all()]
    return {
        name: float(
            np.sqrt(
                (PRIOR_REPEATS * known**2 + sum(each[place] ** 2 for each in off))
                / (PRIOR_REPEATS + len(off))
            )
        )
        for place, (name, known) in enumerate(BEYOND.items())
    }


def replay_recorded(
    run: RecordedRun,
    seconds: Floats,
    facts: ModelFacts | None,
    pace: Pace | None = None,
    most: Most = ANY,
) -> Replayed:
    """Return a recorded run under its own load as a law of `seconds` [FEATURES] has it.

    Where its problems came by the clock the machine has the `pace` of each moment.
    """
    arrivals = None if run.concurrency is not None else run.arrivals_s(run.problems)
    workload = ReplayWorkload.from_loads([*run.problems.values()], arrivals)
    return replay(
        workload,
        linear_cost(seconds, reads_of(facts), most),
        limits_of(run.engine, facts, workload),
        concurrency=run.concurrency,
        at_once=run.at_once,
        pace=pace,
    )


def latency_scatter(
    run: RecordedRun, tables: Sequence[StepTable], model: StepTimeModel | None
) -> Floats:
    """Return log(recorded / replayed) latency of a run's problems, in order.

    Empty where the run cannot be replayed as it was, and for a closed loop, where it ends when it
    may.
    """
    recorded = np.array([each.latency_s for each in run.problems.values()])
    usable = np.isfinite(recorded) & (recorded > 0)
    if model is None or run.concurrency is not None or not usable.all():
        return np.zeros(0)
    replayed = _replayed(run, tables, model)
    return np.zeros(0) if replayed is None else np.log(recorded / replayed[0].latency_s)


def _beyond(run: RecordedRun, tables: Sequence[StepTable], model: StepTimeModel) -> Floats | None:
    """Return log(recorded / replayed) of mean, p50 and p95, less that of the total time."""
    replayed = _replayed(run, tables, model)
    if replayed is None:
        return None
    simulated, slower = replayed
    recorded = _statistics(np.array([each.latency_s for each in run.problems.values()]))
    with np.errstate(divide="ignore", invalid="ignore"):  # an end before its start
        return np.asarray(np.log(recorded / _statistics(simulated.latency_s)) - np.log(slower))


def _replayed(
    run: RecordedRun, tables: Sequence[StepTable], model: StepTimeModel
) -> tuple[Replayed, float] | None:
    """Return a run as its law has it, and how many times as long all of its steps took.

    That is in the replay already where that has the machine's pace.

    None for what cannot be replayed as it was: without steps, ranks, drafts that are not told, and
    samples that the cache has no room for.
    """
    own_tables = [t for t in tables if (t.recording, t.engine) == (run.recording, run.engine)]
    law = model.laws_.get(law_key(run.engine))
    if law is None or not own_tables or run.engine.data_parallel_size > 1 or run.drafts_untold:
        return None
    took = sum(float(table.seconds.sum()) for table in own_tables)
    should = sum(float(law.predict(table.composition).sum()) for table in own_tables)
    pace = pace_of_run(run, own_tables, law)
    try:
        replayed = replay_recorded(run, law.seconds, own_tables[0].facts, pace)
    except ValueError:
        return None
    return replayed, took / should if pace is None else 1.0


def _statistics(latency_s: Floats) -> Floats:
    return np.array([latency_s.mean(), *np.quantile(latency_s, (0.5, 0.95))])
