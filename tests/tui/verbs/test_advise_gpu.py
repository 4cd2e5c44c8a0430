"""`ttscope advise --gpu`: GPUs that were not measured, in the text, the document and the page."""

import dataclasses
import json
import re

import pytest
from textual.widgets import DataTable, Input

from tests.advisor.step_time.prior.prior_files import DEVICE, TINY
from tests.advisor.synthetic import FACTS, SKILL, VOTE16, engine_of, record
from tests.tui.pilot import last, press, settle, text_of
from tui.app.app import TtscopeApp
from tui.screens.advice.rows import pick_title
from tui.screens.advice.screen import Advised
from tui.text.fronts import candidates

pytestmark = pytest.mark.slow

GIVEN = ("--gpu", "test_gpu", "--gpus", "8", "--price", "Test=2.5", "--price", "cpu=0.05")


@pytest.fixture
def recording(tmp_path, prior):
    made = record(tmp_path / "runs" / "one", engine_of(), VOTE16, problems=12, concurrency=1)
    facts = dataclasses.replace(TINY, name="small", hidden_size=4096, intermediate_size=16384)
    dataclasses.replace(made.manifest, models={"small": facts}).write(made.path)
    return made.path


def test_the_pick_is_said_to_be_of_the_prior(run, recording):
    out = run.ok("advise", recording, *GIVEN, "--optimise", "latency", "--explain")
    assert max(map(len, out.splitlines())) <= 80
    told = " ".join(out.split())
    assert "tensor parallel 4" in told
    assert "operator tables of this GPU (the prior), not from a run." in told
    verdict = told[: told.index("90 % intervals")]
    assert verdict.count(DEVICE) == 1 and "test_gpu" not in verdict
    assert "*" not in out  # nothing lies outside the tables
    assert "the interval is that of" in told
    assert "the GPU left out" in told


def test_the_document_names_the_prior_of_each_pick(run, recording):
    found = {}
    for goal in ("latency", "cost"):
        out = run.ok("advise", recording, *GIVEN, "--optimise", goal, "--json")
        found[goal] = json.loads(out)
    fast, cheap = (found[goal]["system_optimal"] for goal in ("latency", "cost"))
    assert fast["prior"] == "test_gpu"
    assert fast["engine"]["gpu"] == DEVICE
    assert fast["engine"]["tensor_parallel_size"] > 1
    assert not fast["estimates"]["latency_s"]["extrapolated"]
    assert cheap["engine"]["tensor_parallel_size"] == 1
    assert {pick["prior"] for pick in found["latency"]["pareto"]} <= {None, "test_gpu"}
    assert any("no all-reduce of 8 GPUs" in why for why in found["latency"]["infeasible"])


def test_the_page_says_so_too(run, recording, tmp_path):
    page = tmp_path / "page.html"
    run.ok("report", recording, *GIVEN, "--optimise", "latency", "-o", page)
    text = page.read_text()
    assert "Its times come from operator tables of this GPU" in text
    assert "times by the prior of test_gpu, not measured" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gpu", "h100", "--optimise", "cost"),
         "--gpu h100: no operator tables. Did you mean h100_pcie? Choose one of test_gpu"),
        (("--gpu", "test_gpu", "--optimise", "cost", "--verify"), "not on a --gpu. Give one"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_one_line(run, recording, arguments, message):
    code, out, err = run("advise", recording, *arguments)
    assert code == 2
    assert not out
    assert message in err.strip().splitlines()[-1]


def test_energy_and_electricity_are_of_the_prior(run, recording):
    given = (*GIVEN, "--optimise", "energy", "--kwh-price", "0.2", "--json")
    found = json.loads(run.ok("advise", recording, *given))
    joules = found["system_optimal"]["estimates"]["energy_j"]
    assert joules["low"] < joules["value"] < joules["high"]
    usd = found["costs"]["system_optimal"]["electricity_usd_per_thousand_problems"]
    assert usd["value"] == pytest.approx(joules["value"] * 1e3 / 3.6e6 * 0.2)


def test_a_power_cap_is_of_every_gpu_that_is_offered(run, recording):
    asked = ("advise", recording, *GIVEN, "--optimise", "energy", "--json")
    plain, capped = (
        json.loads(run.ok(*asked, *cap))["system_optimal"]["estimates"]
        for cap in ((), ("--power-cap", "120"))
    )
    assert capped["energy_j"]["value"] < plain["energy_j"]["value"]
    assert "above the 500 W" in run.refused(*asked, "--power-cap", "900", code=2)


def test_a_wrong_system_makes_no_page(run, recording, tmp_path):
    assert "no operator tables" in run.refused(
        "report", recording, "--gpu", "h100", "-o", tmp_path / "page.html", code=2
    )
    assert not (tmp_path / "page.html").exists()


def test_a_plan_says_where_its_runs_belong(run, recording, tmp_path):
    plan = tmp_path / "next.yaml"
    given = (*GIVEN, "--optimise", "latency", "--explain", "--plan", plan)
    out = run.ok("advise", recording, *given)
    assert DEVICE in plan.read_text().splitlines()[0]
    assert re.search(rf"on (\d+ )?{DEVICE}", " ".join(out.split()))


async def advised(pilot):
    """Go to the advice screen and wait for its answer."""
    await settle(pilot)
    await press(pilot, "4")


async def test_the_advice_screen_offers_it(recording):
    app, seen = TtscopeApp([recording], systems=["test_gpu"], limits={"gpus": "8"}), []
    async with app.run_test(size=(120, 40), message_hook=seen.append) as pilot:
        await advised(pilot)
        price = app.screen.query_one("#field_price", Input)
        price.value = "Test=2.5,cpu=0.05"
        await settle(pilot)
        rows = [each.pick for each in candidates(last(seen, Advised).advice)]
        assert rows[0].prior == "test_gpu"
        assert re.match("small tp[24] ", pick_title(rows[0]))
        assert " test_gpu " in pick_title(rows[0])
        assert rows[0].estimates["cost_usd"].value == pytest.approx(
            rows[0].estimates["device_s"].value * 2.5 / 3600
        )
        assert "(the prior), not from a run." in " ".join(text_of(app, "#answer").split())
        table = app.screen.query_one("#picks", DataTable)
        table.move_cursor(row=0)
        await pilot.press("w")
        app.screen.query_one("#change", Input).value = "policy.n=4"
        await press(pilot, "enter")
        assert ", policy.n=4, 90 % intervals" in " ".join(text_of(app, "#answer").split())


async def test_a_system_that_is_not_there_is_told_in_place(recording):
    app = TtscopeApp([recording], systems=["h100"])
    async with app.run_test(size=(120, 40)) as pilot:
        await advised(pilot)
        told = text_of(app)
        assert "--gpu h100: no operator tables" in told


def test_drafts_are_offered_by_a_published_acceptance(run, tmp_path, recording, monkeypatch):
    engine = engine_of(model="moonshotai/Kimi-K2.5")
    facts = dataclasses.replace(TINY, name=engine.model, hidden_size=4096, intermediate_size=16384)
    monkeypatch.setitem(FACTS, engine.model, facts)
    monkeypatch.setitem(SKILL, engine.model, 0.6)
    made = record(tmp_path / "runs" / "kimi", engine, VOTE16, problems=12, concurrency=1)
    dataclasses.replace(made.manifest, models={engine.model: facts}).write(made.path)
    out = run.ok("advise", made.path, *GIVEN, "--optimise", "latency", "--json")
    found = json.loads(out)
    picks = [found["system_optimal"], *found["pareto"]]
    drafted = [pick for pick in picks if pick["engine"]["speculative"] is not None]
    assert drafted
    assert {pick["engine"]["speculative"]["method"] for pick in drafted} == {"eagle3"}
    assert all(pick["prior"] == "test_gpu" for pick in drafted)
    out = run.ok("advise", made.path, *GIVEN, "--optimise", "latency", "--explain")
    assert "by a published acceptance, as none ran" in " ".join(out.split())
