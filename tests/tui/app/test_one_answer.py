"""The same budget has the same answer in the command line, the app and the report."""

from __future__ import annotations

import json

import pytest
from textual.widgets import Input, Select

import advisor.what_if.left_out
from advisor.advice.advisor import Advisor
from tests.tui.pilot import last, opened, press, settle, text_of
from traces.schema.engine import EngineConfig
from traces.schema.tts.policy import Policy
from tui.app.app import TtscopeApp
from tui.screens.advice.budget import BY_LIMITS
from tui.screens.advice.screen import Advised
from tui.verbs.demo import BUDGET, SHIPPED

pytestmark = pytest.mark.slow

BUDGETS = [
    {"min_accuracy": "0.9", "max_latency": "20ms"},
    {
        "max_latency": "120ms", "percentile": "95", "min_accuracy": "70%", "optimise": "cost",
        "confidence": "0.5", "price": "2.5", "max_cost": "$0.0005", "gpus": "2",
    },
]  # fmt: skip
EMPTY = [{"rate": "2/s", "price": "2.5", "confidence": "0.8"}]


@pytest.fixture(autouse=True)
def learned_once(monkeypatch, shipped):
    """All three ask the same advisor; the report foretells nothing."""
    monkeypatch.setattr(Advisor, "fit", lambda recordings, **options: shipped(recordings))
    monkeypatch.setattr(advisor.what_if.left_out, "foretell", lambda *given, **options: [])


def told(document):
    """What is run, how sure that is, and whether anything was asked for."""
    pick = document["system_optimal"]
    asked = document["budget"]["latency_percentile"], document["budget"]["required"]
    if pick is None:
        return (*asked, None, sorted(each["limit"] for each in document["near_misses"]))
    engine, policy = EngineConfig.from_json(pick["engine"]), Policy.from_json(pick["policy"])
    return (*asked, (engine, policy), pick["probability_within_budget"])


def options(given):
    return [word for name, text in given.items() for word in (f"--{name.replace('_', '-')}", text)]


async def in_app(budgets):
    from tui.text.advice import advice_json

    app, found, seen = TtscopeApp([SHIPPED]), [], []
    async with opened(app, message_hook=seen.append) as (_, pilot):
        await press(pilot, "4")
        for given in budgets:
            for field in app.screen.query(Input):
                field.value = given.get((field.id or "").removeprefix("field_"), "")
            percentile, goal = given.get("percentile"), given.get("optimise", BY_LIMITS)
            which = "mean" if percentile is None else f"p{percentile}"
            app.screen.query_one("#statistic", Select).value = which
            app.screen.query_one("#objective", Select).value = goal
            await settle(pilot)
            detail = text_of(app, "#answer")
            found.append((told(advice_json(last(seen, Advised).advice)), detail))
    return found


@pytest.mark.slow
async def test_the_answers_of_the_three_agree(run, tmp_path):
    answers = await in_app(BUDGETS)
    for given, (app, detail) in zip(BUDGETS, answers, strict=True):
        code, out, _ = run("advise", SHIPPED, *options(given), "--json")
        line = told(json.loads(out))
        assert code == (1 if line[2] is None else 0), given
        page = tmp_path / "r.html"
        out = run.ok("report", SHIPPED, "-o", page, *options(given), "--json")
        report = told(json.loads(out)["advice"])
        assert line == app == report, given
        assert detail.startswith("Nothing fits" if line[2] is None else "Run "), given
        words = "mean latency" if "percentile" not in given else "p95 latency"
        if "max_latency" in given:
            assert f"{words} of at most " in " ".join(detail.split())
            assert f"{words} of at most " in page.read_text()


@pytest.mark.slow
async def test_nothing_is_recommended_where_nothing_is_required(run, tmp_path):
    """The app and the report show what there is to choose from; the command line refuses."""
    for given, (app, detail) in zip(EMPTY, await in_app(EMPTY), strict=True):
        code, out, err = run("advise", SHIPPED, *options(given))
        assert (code, out) == (2, "")
        assert "the budget is empty" in err and "--min-accuracy 0.75" in err
        page = tmp_path / "r.html"
        code, out, _ = run("report", SHIPPED, "-o", page, *options(given), "--json")
        advice = json.loads(out)["advice"]
        assert code == 0
        assert app[1:3] == told(advice)[1:3] == (False, None)
        assert advice["compute_optimal"] is None and advice["near_misses"] == []
        assert len(advice["pareto"]) > 3 and len(advice["compute_pareto"]) > 1
        assert all(pick["command"] is None for pick in advice["pareto"])
        text = page.read_text()
        assert "No limit was given" in text
        assert "vllm serve" not in text and "vllm serve" not in detail
        assert detail.startswith("No limit is set, so nothing is recommended. Set a limit")
        assert "Press b." in detail and "RUN" not in detail


async def test_after_the_demo_the_app_shows_what_was_printed(run):
    """And what it costs, and which effort to use, with the price of an API beside it."""
    given = {"min_accuracy": f"{BUDGET.min_accuracy}", "price": "2.5", "api_price": "2"}
    ((app, detail),) = await in_app([given])
    out = run.ok("demo", "--shipped", "--once", "--json")
    assert told(json.loads(out)) == app
    assert detail.startswith("Run ")
    out = run.ok("advise", SHIPPED, *options(given), "--explain")
    printed = out[out.index("\ncosts ") + 1 : out.index("The API: $2")].splitlines()
    assert any(line.startswith("renting costs less from") for line in printed)
    assert [line for line in printed if line not in detail] == []
    assert "\neffort " in detail and "< for all problems: " in detail


def test_a_pick_without_a_required_accuracy_says_which_it_has(run):
    out = run.ok("advise", SHIPPED, "--optimise", "latency", "--explain")
    text = " ".join(out.split())
    assert "accuracy is required (--min-accuracy): the pick's is 0.385" in text
