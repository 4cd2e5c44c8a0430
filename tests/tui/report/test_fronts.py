"""Which runs are drawn as measured, and what of them: one load, one price."""

import dataclasses
import re
import shutil

import pytest

from tests.traces.synthetic import simulate, write_recording
from tests.tui.fake_advisor import FakeAdvisor
from traces.recording.reader import Recording
from traces.schema.advice import Budget, Load
from traces.summary.run import summarise
from tui.report.fronts import fronts
from tui.report.material import Material, gather_material
from tui.screens.library_app import FittedAdvisor
from tui.verbs.demo import SHIPPED

CROSS = 'aria-label="Measured: '


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "one"
    (run,) = summarise(write_recording(folder, simulate(problems=8, n=4), concurrency=2))
    return run


def answer_for(load, **budget):
    answer = FakeAdvisor([]).recommend(Budget(min_accuracy=0.7, **budget))
    return dataclasses.replace(answer, load=Load(concurrency=load[0], rate_per_s=load[1]))


def page_of(*runs, **more):
    return str(fronts(Material(runs=runs, **more)))


@pytest.mark.parametrize("advice", [None, answer_for((2, None))])
def test_a_prediction_is_not_drawn_as_measured(run, advice):
    alone = page_of(run, advice=advice)
    assert alone.count(CROSS) == 4  # against latency, device time, FLOPs and tokens
    predicted = dataclasses.replace(run, replay_of="one")
    assert page_of(run, predicted, advice=advice).count(CROSS) == 4
    assert CROSS not in page_of(predicted, advice=advice)


def test_a_run_under_another_load_stands_against_what_no_load_changes(run):
    under = page_of(run, advice=answer_for((2, None)))
    assert "Runs under another load" not in under
    for load in ((8, None), (None, 0.5)):
        page = page_of(run, advice=answer_for(load))
        assert page.count(CROSS) == 2
        assert page.index("Accuracy against FLOPs") < page.index(CROSS)
        assert "load changes nothing: against FLOPs and tokens." in page
    at_rate = dataclasses.replace(run, load=Load(concurrency=None, rate_per_s=0.01))
    page = page_of(at_rate, advice=answer_for((None, 0.01)))
    assert page.count(CROSS) == 4
    assert "device time 100 dev-s" in page  # all that is paid, and not the busy part


def charts_of(page):
    """Return how each chart joins fronts, by what it draws accuracy against."""
    charts = page.split("<figcaption>")[1:]
    return {
        re.search("Accuracy against ([^<]+)", chart)[1]: re.findall('class="front (.*?)" p', chart)
        for chart in charts
    }


def test_a_front_is_joined_against_its_own_measure_alone(run):
    answer = answer_for((2, None))
    dear = dataclasses.replace(answer.pareto[0], estimates=answer.pareto[1].estimates)
    answer = dataclasses.replace(answer, pareto=(*answer.pareto, dear))
    by_mean = {"mean latency": ["system"], "FLOPs": ["compute"], "device time": [], "tokens": []}
    assert charts_of(page_of(run, advice=answer)) == by_mean
    for asked, first in (("latency", "p95 latency"), ("accuracy", "mean latency")):
        budget = dataclasses.replace(answer.budget, optimise=asked, latency_percentile=95)
        charts = charts_of(page_of(run, advice=dataclasses.replace(answer, budget=budget)))
        assert next(iter(charts)) == first
        assert {name: kinds for name, kinds in charts.items() if kinds} == {
            first: ["system"],
            "FLOPs": ["compute"],
        }
    budget = dataclasses.replace(answer.budget, optimise="throughput")
    charts = charts_of(page_of(run, advice=dataclasses.replace(answer, budget=budget)))
    assert [name for name, kinds in charts.items() if kinds] == ["FLOPs"]


def test_a_load_that_is_not_known_is_no_other_one_and_runs_without_a_cross_are_not_spoken_of(run):
    answer = answer_for((8, None))
    untold = dataclasses.replace(run, load=Load(concurrency=None, rate_per_s=None))
    page = page_of(untold, advice=answer)
    assert page.count(CROSS) == 4 and "Runs under another load" not in page
    unjudged = dataclasses.replace(run, accuracy=None)
    assert "Runs under another load" not in page_of(unjudged, advice=answer)


def test_runs_are_at_the_price_of_their_type_of_device(tmp_path):
    for recorded in (None, 7.0):
        folder = tmp_path / f"{recorded}"
        rows = simulate(problems=8, n=4)
        write_recording(folder, rows, price_usd_per_device_hour=recorded)
        for price, cost in (("cpu=3.6", 3.6), ("H100=2.5", None), (None, recorded)):
            (found,) = gather_material([Recording.open(folder)], {"price": price}, seed=0).runs
            if cost is None:
                assert found.cost_usd_per_problem is None
            else:
                whole = found.device_s_per_problem.value
                assert found.cost_usd_per_problem.value == pytest.approx(whole * cost / 3600)


@pytest.mark.slow
def test_runs_are_at_the_price_of_the_answer_wherever_they_stand(tmp_path):
    """One recording tells a price, which is that of all on its type of device."""
    shipped = [next(SHIPPED.glob(f"demo-{size}-*-greedy-t0-*")) for size in "sm"]
    made = [
        Recording.open(shutil.copytree(path, tmp_path / f"{number}"))
        for number, path in enumerate(shipped)
    ]
    dataclasses.replace(made[0].manifest, price_usd_per_device_hour=2.0).write(made[0].path)
    made = [Recording.open(each.path) for each in made]
    material = gather_material(made, {"optimise": "latency"}, seed=0)
    measured = material.advice.system_optimal.measured
    for run in material.runs:
        whole = run.device_s_per_problem.value * 2.0 / 3600
        assert run.cost_usd_per_problem.value == pytest.approx(whole)
        if run.recording == measured.recording:
            assert measured.estimates["cost_usd"] == run.cost_usd_per_problem
    told = summarise(made[1])[0]
    assert FittedAdvisor(made).price_of(told, material.advice.budget) == 2.0
