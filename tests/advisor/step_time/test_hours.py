"""At another rate the recorded hours pass faster, with their bursts and the machine's pace."""

import dataclasses

import numpy as np
import pytest

from advisor.evidence.runs import rate_under_load
from advisor.step_time.pace import FEWEST, Hours, Pace
from tests.advisor.asking import predicted
from tests.advisor.synthetic import VOTE16, engine_of, record
from tests.advisor.watched import watched


def bursts(faster):
    return Hours(came_s=np.repeat(np.arange(40) * 10.0, 5), period_s=392.0, faster=faster)


@pytest.mark.parametrize("times", [0.5, 1.0, 3.0])
def test_hours_pass_faster_and_come_again(times):
    hours = bursts(times)
    count = len(hours.came_s)
    came = hours.arrivals(2 * count)
    assert came[:count] * times == pytest.approx(hours.came_s)
    assert came[count:] - came[:count] == pytest.approx(hours.period_s / times)
    assert (np.diff(came) >= 0).all()


@pytest.mark.parametrize("faster", [0.5, 1.0, 2.0])
def test_the_pace_of_the_hours_passes_with_them(faster):
    ends = np.arange(1, 8001) * 0.01
    slow = (ends % 20) < 5  # of 20 s five are slow
    pace = Pace.of(ends, np.where(slow, 0.02, 0.01), np.full(8000, 0.01))
    passing = pace.passing(dataclasses.replace(bursts(faster), period_s=80.0), 200.0)
    at = np.arange(0.05, 160 / faster, 0.5)
    assert passing.at(at) == pytest.approx(pace.at((at * faster) % 80.0), rel=0.05)
    assert passing.mean == pace.mean
    there_and_back = passing.by_clock(passing.in_machine_time(at))
    assert there_and_back == pytest.approx(at)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """A server that 240 requests came to at random, as spans tell."""
    folder = tmp_path_factory.mktemp("bursts")
    vote = dataclasses.replace(VOTE16, n=2)
    base = record(folder / "base", engine_of(), vote, problems=240, concurrency=8)
    truth = predicted(base, rate_per_s=40.0)
    return watched(truth, folder / "seen")


@pytest.mark.slow
def test_the_recorded_rate_gives_the_run_as_it_was_and_advice_says_the_same(seen):
    from advisor.advice.advisor import Advisor
    from advisor.evidence.gather import gather
    from traces.schema.tts.policy import AS_SENT

    (run,) = gather([seen], judged=False).runs
    assert len(run.problems) >= FEWEST
    came = run.problems.values()
    own = rate_under_load((e.arrival_ns for e in came), (e.latency_s for e in came))
    same = predicted(seen, rate_per_s=own)
    for which in ("mean", "p95"):
        was, now = (each.latency_s[which].value for each in (same.replayed, same.predicted))
        assert now == pytest.approx(was, rel=1e-6), which
    assert any("as they did when recorded" in note for note in same.notes)
    advisor = Advisor.fit([seen], draws=200)
    for rate in (0.7 * own, 1.3 * own):
        found = predicted(seen, rate_per_s=rate).predicted.latency_s
        (row,) = advisor.space.rows_of(run.engine, AS_SENT)
        state = advisor.under(rate)
        state.replay([row])
        place = state.metrics.place[row]
        for name, which in (("latency_s", "mean"), ("latency_p95_s", "p95")):
            said = state.metrics.estimate(name, place, price=None)
            assert said.value == pytest.approx(found[which].value, rel=0.01), (rate, which)
