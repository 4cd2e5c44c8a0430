"""Candidates at a rate: a few problems are loaded as many are."""

import dataclasses

import numpy as np
import pytest

from advisor.advice.advisor import Advisor
from advisor.evidence.gather import gather
from advisor.search.resampling import Resampling
from advisor.search.space import explore
from advisor.step_time.fit import StepTimeModel
from tests.advisor.synthetic import GREEDY, engine_of, record


def copied(evidence, times):
    """The same problems so many times, under other names."""
    runs = [
        dataclasses.replace(
            run,
            problems={
                f"{name}-{copy}": problem
                for copy in range(times)
                for name, problem in run.problems.items()
            },
        )
        for run in evidence.runs
    ]
    names = sorted({name for run in runs for name in run.problems})
    return dataclasses.replace(evidence, runs=tuple(runs), problem_ids=tuple(names))


@pytest.mark.slow
def test_a_few_problems_wait_as_long_as_copies_of_them(tmp_path):
    """More are in flight at this rate than there are: they come before and after, too."""
    few = gather([record(tmp_path / "few", engine_of("large"), GREEDY, problems=6)])
    model, latency = StepTimeModel().fit(few.steps), []
    for evidence in (few, copied(few, 50)):
        space = explore(evidence)
        advisor = Advisor(evidence, space, model, Resampling(len(space.problem_ids)))
        (row,) = space.rows_of(engine_of("large"), GREEDY)
        found = advisor.replays.of(int(row), concurrency=None, rate_per_s=80.0)
        assert found.keeps_up
        latency.append(float(np.mean(found.latency_s[0])))
    assert latency[0] == pytest.approx(latency[1], rel=0.08)
