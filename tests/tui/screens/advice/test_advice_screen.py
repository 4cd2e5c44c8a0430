"""The Advice screen: what it does where something is missing, wrong or late."""

from __future__ import annotations

import dataclasses
import shutil
import threading

import pytest
from textual.widgets import DataTable, Input

from advisor.advice.accounts.costs import Accounts, Costs, Tariff
from advisor.advice.accounts.efforts import ClassEfforts, Effort, EffortMap
from tests.traces.synthetic import simulate, write_recording
from tests.tui.fake_advisor import LARGE, FakeAdvisor, estimate
from tests.tui.pilot import last, press, screen_text, settle, text_of
from traces.errors import WorkloadsError
from tui.app.app import TtscopeApp
from tui.screens.advice.screen import Advised
from tui.widgets.scatter import Scatter

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        write_recording(tmp_path / "runs" / name, simulate(problems=10, n=4))
    return tmp_path / "runs"


class Opened:
    """The app on its Advice screen, with the advisors that were made."""

    def __init__(self, folder, size=(80, 24), advisor=FakeAdvisor):
        self.made, self.seen = [], []

        def factory(recordings):
            self.made.append(advisor(recordings))
            return self.made[-1]

        limits = {"min_accuracy": "0.7"}
        self.app = TtscopeApp([folder], factory, limits=limits, screen="advice")
        self.run = self.app.run_test(size=size, message_hook=self.seen.append)

    async def __aenter__(self):
        self.pilot = await self.run.__aenter__()
        await settle(self.pilot)
        return self

    async def __aexit__(self, *error):
        await self.run.__aexit__(*error)

    async def give(self, name, text):
        field = self.app.screen.query_one(f"#field_{name}", Input)
        field.value = text
        field.focus()
        await self.pilot.press("enter")
        await settle(self.pilot)
        return field

    @property
    def budget(self):
        return self.made[-1].budgets[-1]


async def test_the_rest_still_advises_where_a_folder_is_gone(folder):
    async with Opened(folder) as opened:
        app, pilot = opened.app, opened.pilot
        assert len(opened.made[-1].recordings) == 2
        await pilot.press("1")
        shutil.rmtree(folder / "one")
        await press(pilot, "4")
        assert [each.path.name for each in opened.made[-1].recordings] == ["two"]
        assert "no longer there, so left out: one" in text_of(app)
        assert "Run large" in text_of(app, "#answer")
        await press(pilot, "1")
        assert app.screen.query_one(DataTable).row_count == 1
        shutil.rmtree(folder / "two")
        await press(pilot, "4")
        assert "No complete recording to learn from." in text_of(app, "#answer")
        assert "ttscope demo" in text_of(app, "#answer")
        assert "left out: two" in text_of(app)
        assert app.entries == []


async def test_advice_is_asked_for_before_the_recordings_are_read(folder):
    opened = Opened(folder)
    app = opened.app
    with app.estimating:  # nothing is read, and nobody learns, meanwhile
        pilot = await opened.run.__aenter__()
        while not any(each.group == "advice" for each in app.workers):
            await pilot.pause()
        assert app.loading_paths and all(entry.run is None for entry in app.entries)
    await settle(pilot)
    assert not app.loading_paths and all(entry.run for entry in app.entries)
    assert [len(each.recordings) for each in opened.made] == [2] and len(
        opened.made[0].budgets
    ) == 1
    assert "Run large" in text_of(app, "#answer")
    await opened.run.__aexit__(None, None, None)


async def test_recordings_are_read_behind_the_answer_unless_they_are_looked_at(folder):
    begun, go = threading.Event(), threading.Event()

    class Slow(FakeAdvisor):
        def recommend(self, *given, **told):
            begun.set()
            assert go.wait(60)
            return super().recommend(*given, **told)

    opened = Opened(folder, advisor=Slow)
    app = opened.app
    pilot = await opened.run.__aenter__()
    while not begun.is_set():
        await pilot.pause()
    for _ in range(5):
        await pilot.pause(0.05)
    assert app.loading_paths and not all(entry.run for entry in app.entries)
    await pilot.press("1")
    while app.loading_paths:
        await pilot.pause()
    assert all(entry.run for entry in app.entries) and not go.is_set()
    go.set()
    await press(pilot, "4")
    assert "Run large" in text_of(app, "#answer")
    await opened.run.__aexit__(None, None, None)


async def test_keys_that_need_an_answer_are_offered_once_there_is_one(folder):
    def keys():
        return {each.binding.description for each in app.screen.active_bindings.values()}

    async with Opened(folder) as opened:
        app = opened.app
        assert keys() >= {"budget", "copy", "answer", "front", "axis", "what if", "measure"}
        app.screen._clear()
        assert "budget" in keys()
        assert not keys() & {"copy", "answer", "front", "axis", "what if", "measure"}


async def test_the_late_answer_of_an_earlier_question_leaves_an_error_standing(folder):
    async with Opened(folder) as opened:
        app = opened.app
        earlier = last(opened.seen, Advised).question
        await opened.give("max_latency", "soon")
        assert "latency at most soon" in text_of(app)
        app.screen.post_message(Advised(earlier, None, "too late", 2))
        await settle(opened.pilot)
        assert "latency at most soon" in text_of(app)
        await opened.give("max_latency", "2s")
        assert "Run large" in text_of(app, "#answer")


async def test_the_price_of_screen_1_is_that_of_the_budget(folder):
    async with Opened(folder) as opened:
        assert opened.budget.price_usd_per_device_hour is None
        await press(opened.pilot, "b")
        opened.app.set_price(3.0)
        await settle(opened.pilot)
        assert opened.budget.price_usd_per_device_hour == 3.0
        field = opened.app.screen.query_one("#field_price", Input)
        shown = field.render_line(0).text  # what is empty looks empty, and what holds stands behind
        assert shown.strip() == "3 (screen 1)" and shown.index("3") >= field.size.width // 3
        opened.app.set_price(None)
        await settle(opened.pilot)
        assert field.render_line(0).text.strip() == "none"
        await opened.give("price", "H100=2.5")
        assert opened.budget.price_usd_per_device_hour is None
        assert opened.budget.prices == (("H100", 2.5),)


async def test_fields_show_what_was_given_at_80_columns(folder):
    given = {
        "max_latency": "250ms", "max_cost": "$0.002", "max_energy": "0.5kJ", "min_accuracy": "0.75",
        "gpus": "16", "rate": "10/min", "price": "H100=2.5", "confidence": "0.95",
    }  # fmt: skip
    async with Opened(folder) as opened:
        screen = opened.app.screen
        await opened.pilot.press("b")
        for name, text in given.items():
            screen.query_one(f"#field_{name}", Input).value = text
        await settle(opened.pilot)
        for name, text in given.items():
            field = screen.query_one(f"#field_{name}", Input)
            assert field.render_line(0).text.strip() == text
            assert field.region.right <= 80
        await press(opened.pilot, "enter")
        assert "energy was not measured" in text_of(opened.app)  # and the words stay
        assert field.value == "0.95"


async def test_escape_takes_back_what_was_typed(folder):
    async with Opened(folder) as opened:
        field = await opened.give("max_latency", "2s")
        asked = len(opened.made[-1].budgets)
        field.focus()
        await opened.pilot.pause()
        for key in "9m":
            await opened.pilot.press(key)
        assert field.value == "9m"
        await press(opened.pilot, "escape")
        assert field.value == "2s"
        assert opened.budget.max_latency_s == 2.0 and len(opened.made[-1].budgets) >= asked
        assert not isinstance(opened.app.screen.focused, Input)


async def test_what_is_wrong_stays_in_its_field_with_the_focus(folder):
    async with Opened(folder) as opened:
        field = await opened.give("gpus", "many")
        assert opened.app.screen.focused is field and field.value == "many"
        assert "GPUs at most many: wants a whole number" in text_of(opened.app)
        await opened.pilot.press("escape")
        await opened.give("gpus", "2")
        assert opened.budget.max_gpus == 2
        await opened.pilot.press("w")
        change = opened.app.screen.query_one("#change", Input)
        change.value = "engine.max_num_seq=4"
        await press(opened.pilot, "enter")
        assert opened.app.screen.focused is change and change.value == "engine.max_num_seq=4"
        assert change.display


class Long(FakeAdvisor):
    """Names models at length, and is sure."""

    def recommend(self, budget, *given):
        advice = super().recommend(budget, *given)
        pick = advice.system_optimal
        engine = dataclasses.replace(pick.engine, model="m" * 60)
        sure = dataclasses.replace(pick, engine=engine, probability_within_budget=1.0)
        return dataclasses.replace(advice, system_optimal=sure)


@pytest.mark.parametrize("size", [(80, 24), (116, 36)])
async def test_numbers_stay_whole_where_a_configuration_is_long(folder, size):
    async with Opened(folder, size, Long) as opened:
        if size[0] < 100:
            await press(opened.pilot, "f")
        table = opened.app.screen.query_one(DataTable)
        assert table.max_scroll_x == 0
        assert any(">99 %" in line.text for line in map(table.render_line, range(6)))
        title = str(table.get_row_at(0)[1])
        assert title.startswith("mmm")
        assert title.endswith("maj@4")


async def test_a_word_about_something_else_goes_when_the_row_changes(folder):
    async with Opened(folder, (120, 40)) as opened:
        app, pilot = opened.app, opened.pilot
        await press(pilot, "m", "y")
        assert "ttscope sweep" in text_of(app)
        await press(pilot, "down")
        assert text_of(app) == ""
        for text, told in (
            ("policy.n='4", "No closing quotation"),
            ("policy.n=4", "no recording of small"),
        ):
            await pilot.press("w")
            app.screen.query_one("#change", Input).value = text
            await press(pilot, "enter")
            assert told in text_of(app)
            assert "Error" not in text_of(app)
            await press(pilot, "escape", "up" if told.startswith("no") else "x")
            assert text_of(app) == ""


async def test_a_word_about_the_plan_gives_way_to_what_is_wrong_with_the_budget(folder):
    async with Opened(folder, (120, 40)) as opened:
        await opened.give("max_latency", "soon")
        await press(opened.pilot, "escape", "m", "y")
        assert "ttscope sweep" in text_of(opened.app)
        await press(opened.pilot, "down")
        assert "latency at most soon" in text_of(opened.app)


class Planning(FakeAdvisor):
    """Writes a plan once it may."""

    may = threading.Event()

    def write_plan(self, path, answer):
        assert self.may.wait(60)
        return super().write_plan(path, answer)


async def test_keys_pass_while_a_plan_is_written(folder):
    async with Opened(folder, (120, 40), Planning) as opened:
        app, pilot = opened.app, opened.pilot
        await pilot.press("m", "y")
        assert text_of(app) == "writing what to measure next ..."
        await pilot.press("e")
        assert app.screen.query_one("#answer").has_focus
        Planning.may.set()
        await settle(pilot)
        assert "plan in measure-next.yaml" in text_of(app)


class Costly(FakeAdvisor):
    """Knows what the picks cost, and two efforts."""

    def accounts(self, answer, api_price):
        even = None if api_price is None else estimate(3.0 / api_price, "problems/s")
        costs = Costs(usd_per_million_tokens=estimate(1.25, "USD"), break_even_per_s=even)
        efforts = [
            Effort(
                reasoning_effort=name, thinking_token_budget=None, policy=LARGE.policy,
                estimates=LARGE.estimates, cut_share=estimate(0.02, "1"),
                probability_within_budget=sure, use=sure > 0.9,
            )
            for name, sure in (("low", 0.5), ("high", 0.97))
        ]  # fmt: skip
        classes = {"easy": ClassEfforts(problems=20, efforts=tuple(efforts[:1]))}
        mapped = EffortMap(
            model="large", budget=answer.budget, command=None, servers=None, problems=40,
            efforts=tuple(efforts), classes=classes, left_out=20,
        )  # fmt: skip
        if api_price is not None and answer.budget.price_usd_per_device_hour is None:
            return None, mapped, "--api-price is compared with what devices cost. Give --price"
        tariff = Tariff(api_price=api_price)
        return Accounts(tariff=tariff, system_optimal=costs, compute_optimal=None), mapped, None


async def test_costs_and_efforts_stand_below_the_command_whole_at_80_columns(folder):
    async with Opened(folder, advisor=Costly) as opened:
        app, pilot = opened.app, opened.pilot
        lines = text_of(app, "#answer").splitlines()
        (cost,) = (line for line in lines if line.startswith("$ per million output tokens"))
        assert cost.endswith("$1.25 [1.12, 1.38]")
        told = " ".join(" ".join(lines).split())
        assert "< for all problems: high, 4 samples, majority vote, temperature 0.8, 97 %" in told
        assert "< for easy: none fits the budget" in lines
        assert "renting costs less from" not in text_of(app, "#answer")
        await press(pilot, "e")
        await pilot.press("end")
        await pilot.pause()
        assert app.screen.query_one("#answer").max_scroll_x == 0
        assert "Next" in screen_text(app)
        await press(pilot, "e")
        await opened.give("api_price", "x")
        assert "API price x: wants a number, such as 2" in text_of(app)
        await opened.give("api_price", "2")
        assert "Give price" in text_of(app) and "Run large" in text_of(app, "#answer")
        assert "< for all problems: high" in text_of(app, "#answer")
        await opened.give("price", "2.5")
        assert "renting costs less from" in text_of(app, "#answer")
        assert text_of(app) == ""


class Refusing(FakeAdvisor):
    def recommend(self, budget, present=None, progress=None):
        if len(self.recordings) > 1:
            raise WorkloadsError("one and two answer different problems")
        return super().recommend(budget, present, progress)


async def test_recordings_of_two_workloads_say_how_to_advise_on_one(folder):
    async with Opened(folder, advisor=Refusing) as opened:
        app, pilot = opened.app, opened.pilot
        assert "answer different problems" in text_of(app)
        assert "space" in text_of(app, "#answer")
        await press(pilot, "1", "space", "a")
        assert "Run large" in text_of(app, "#answer")
        assert not text_of(app)


class Alike(FakeAdvisor):
    """Answers with configurations whose names differ in their middle."""

    def recommend(self, budget, present=None, progress=None):
        answer = super().recommend(budget, present, progress)
        picks = [
            dataclasses.replace(
                LARGE,
                engine=dataclasses.replace(
                    LARGE.engine, model=f"family-{size}b-instruct", max_num_seqs=size
                ),
            )
            for size in (4, 8, 16)
        ]
        return dataclasses.replace(answer, pareto=tuple(picks))


class Unjudged(FakeAdvisor):
    """Answers of traffic that was only watched: no accuracy is known."""

    def recommend(self, budget, present=None, progress=None):
        answer = super().recommend(budget, present, progress)
        large = dataclasses.replace(LARGE, estimates={**LARGE.estimates, "accuracy": None})
        return dataclasses.replace(
            answer, system_optimal=large, compute_optimal=None, pareto=(large,), compute_pareto=()
        )


@pytest.mark.parametrize("size", [(80, 24), (160, 40)])
async def test_nothing_is_drawn_where_no_accuracy_is_known(folder, size):
    async with Opened(folder, size, advisor=Unjudged) as opened:
        await press(opened.pilot, "f", "x")
        shown = screen_text(opened.app)
        assert not opened.app.screen.query_one(Scatter).display
        assert "accuracy against" not in shown and "limit" not in text_of(opened.app, "#legend")
        assert "1.60 s" in shown and "mean latency" in shown


async def test_an_axis_has_a_column(folder):
    async with Opened(folder) as opened:

        def heads():
            table = opened.app.screen.query_one("#picks", DataTable)
            return [str(column.label) for column in table.ordered_columns]

        await press(opened.pilot, "f")
        assert "p95 latency" not in heads()[2:4]
        await press(opened.pilot, "x")
        assert heads()[3] in ("p95 latency", "p95")
        assert "against p95 latency" in screen_text(opened.app)


async def test_long_names_stand_whole_under_the_plot(folder):
    async with Opened(folder, advisor=Alike) as opened:
        await press(opened.pilot, "f")
        shown = screen_text(opened.app)
        for size in (4, 8, 16):
            assert f"family-{size}b-instruct" in shown
        plot = opened.app.screen.query_one(Scatter)
        assert plot.size.height >= 6 and plot.size.width > 70
