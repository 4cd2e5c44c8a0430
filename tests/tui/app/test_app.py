from __future__ import annotations

import pytest
from textual import events
from textual.widgets import DataTable, Input, Static

from tests.traces.synthetic import engine_config, simulate, write_recording
from tests.tui.fake_advisor import FakeAdvisor
from tests.tui.pilot import opened, press, settle, text_of
from traces.errors import UsageError
from tui.app.app import SCREENS, TtscopeApp, screenshot
from tui.screens.advice.screen import AdviceScreen, Advised
from tui.screens.base import HelpScreen
from tui.screens.recordings.screen import RecordingsScreen
from tui.screens.run.screen import RunScreen
from tui.widgets.scatter import Scatter

pytestmark = pytest.mark.slow

SIZES = [(80, 24), (120, 40)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_recording(folder / "one", simulate(problems=10, n=4))
    engine = engine_config(max_num_seqs=3)
    write_recording(folder / "two", simulate(problems=10, n=4, seqs=3), engine=engine)
    rows = simulate(problems=4, n=1)
    rows["problems"][-1] |= {"end": None, "decided_at": None, "answer": None, "correct": None}
    write_recording(folder / "zcut", rows, complete=False)
    return folder


class Advisors:
    """Keeps the advisors that were made, to see how often and of what."""

    def __init__(self):
        self.made = []

    def __call__(self, recordings):
        self.made.append(FakeAdvisor(recordings))
        return self.made[-1]


@pytest.mark.parametrize("size", SIZES)
async def test_open_mark_compare_advise_quit(folder, size):
    advisors = Advisors()
    app = TtscopeApp([folder], advisors, limits={"min_accuracy": "0.7"})
    async with opened(app, size) as (_, pilot):
        assert isinstance(app.screen, RecordingsScreen)
        assert app.screen.query_one(DataTable).row_count == 3
        await pilot.press("s", "ctrl+home", "space")  # by p95; the first is incomplete
        assert app.marked == []
        await press(pilot, "down", "space", "space")
        assert len(app.marked) == 2
        panel = text_of(app, "#detail")
        assert "2 against 1: 10 problems, paired" in panel
        assert "engine.max_num_seqs" in panel

        await press(pilot, "ctrl+home", "down", "enter")
        assert isinstance(app.screen, RunScreen)
        assert "problem 1 of" in text_of(app, "#title")
        await press(pilot, "right_square_bracket", "right", "right", "full_stop", "w")

        await press(pilot, "4")
        assert isinstance(app.screen, AdviceScreen)
        assert len(advisors.made) == 1
        assert len(advisors.made[0].recordings) == 2
        assert "vllm serve large" in text_of(app, "#answer")
        await pilot.press("c")
        assert app.clipboard.startswith("vllm serve large")
        await pilot.press("q")
    assert app.return_code == 0


async def test_keys_after_q_do_nothing(folder):
    app = TtscopeApp([folder])
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.pause()
        for each in ("q", "2", "3", "4"):  # both are there before the app has left
            app.post_message(events.Key(each, each))
        await pilot.pause()
    assert app.return_code == 0


async def test_filter_sort_and_errors_in_place(folder, tmp_path):
    async with opened(TtscopeApp([folder, tmp_path / "missing"]), (120, 40)) as (app, pilot):
        table = app.screen.query_one(DataTable)
        assert table.row_count == 4
        await press(pilot, "slash", *"seqs3", "enter")
        assert table.row_count == 1
        await press(pilot, "slash", *["backspace"] * 5, "enter")
        assert table.row_count == 4
        await press(pilot, "ctrl+end")
        assert "no such recording" in text_of(app, "#detail")
        await press(pilot, "space", "r", "s", "u")
        assert app.marked == []


async def test_two_columns_appear_and_leave_with_the_width(folder):
    async with opened(TtscopeApp([folder])) as (app, pilot):
        table = app.screen.query_one(DataTable)
        narrow = len(table.columns)
        await pilot.resize_terminal(140, 40)
        await settle(pilot)
        assert len(table.columns) > narrow
        assert table.row_count == 3


async def test_an_incomplete_run_says_so(folder):
    async with opened(TtscopeApp([folder / "zcut"])) as (app, pilot):
        await press(pilot, "2")
        assert "incomplete" in text_of(app, "#head")


async def test_key_2_shows_the_run_under_a_cursor_that_was_moved(folder):
    async with opened(TtscopeApp([folder])) as (app, pilot):
        table, shown = app.screen.query_one(DataTable), []
        for row in (*range(1, table.row_count), 0):
            await press(pilot, "1", "home", *["down"] * row)
            key = table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value
            await press(pilot, "2")
            shown.append((key, app.current_entry().key))
        assert len(shown) > 1 and all(key == opened for key, opened in shown)


async def test_budget_is_asked_and_mistakes_are_told(folder):
    advisors = Advisors()
    async with opened(TtscopeApp([folder], advisors), (120, 40)) as (app, pilot):
        await press(pilot, "4")
        (advisor,) = advisors.made
        assert len(advisor.recordings) == 2  # the complete ones
        assert text_of(app, "#answer").startswith("No limit is set, so nothing is recommended")
        await press(pilot, "b", *"0.7", "tab", *"2s", "enter")
        assert advisor.budgets[-1].min_accuracy == 0.7
        assert advisor.budgets[-1].max_latency_s == 2.0
        assert advisor.budgets[-1].latency_percentile is None  # the mean, as in advise

        field = app.screen.query_one("#field_max_latency", Input)
        assert app.screen.focused is app.screen.query_one(DataTable)
        field.value = "0.1s"
        field.focus()
        await press(pilot, "enter")
        assert "Nothing fits the budget: mean latency of at most 100 ms" in text_of(app, "#answer")
        for name, text, told in (
            ("gpus", "7", "ZeroDivisionError"),
            ("max_energy", "5J", "was not measured"),
        ):
            field = app.screen.query_one(f"#field_{name}", Input)
            field.value = text
            field.focus()
            await press(pilot, "enter")
            message = app.screen.query_one("#message", Static)
            assert told in str(message.render()), name
            assert message.has_class("bad")
            field.value = ""
        assert len(advisors.made) == 1  # fitted once


async def test_axis_what_if_and_answers_while_typing(folder):
    advisors, seen = Advisors(), []
    app = TtscopeApp([folder], advisors, limits={"min_accuracy": "0.7"})
    async with opened(app, (120, 40), message_hook=seen.append) as (_, pilot):
        await pilot.press("ctrl+home", "down", "enter")  # what runs today
        await settle(pilot)
        await press(pilot, "4")
        assert any(isinstance(each, Advised) for each in seen)
        table = app.screen.query_one(DataTable)
        assert str(table.get_row_at(table.row_count - 1)[0]) == "◆"
        (today,) = advisors.made[0].presents
        assert today == (app.present_entry().run.engine, app.present_entry().run.policy)
        told = " ".join(text_of(app, "#answer").split())
        assert "Compared with the recommendation" in told
        await pilot.press("enter")  # all of it, where it scrolls
        await settle(pilot)
        assert not app.screen.query_one("#above").display
        assert app.screen.focused is app.screen.query_one("#answer")
        await press(pilot, "escape")
        assert app.screen.query_one("#above").display
        assert app.screen.focused is table
        plot = app.screen.query_one(Scatter)
        assert plot.x.label == "mean latency (s)"
        await press(pilot, "x")
        assert plot.x.label == "p95 latency (s)"

        asked = len(advisors.made[0].budgets)
        app.screen.query_one("#field_max_latency", Input).focus()
        await press(pilot, "full_stop")
        assert len(advisors.made[0].budgets) == asked  # half a number
        await press(pilot, "7", "s")
        assert advisors.made[0].budgets[-1].max_latency_s == 0.7
        await pilot.press("enter", "w")
        app.screen.query_one("#change", Input).value = "engine.max_num_seqs=4"
        await press(pilot, "enter")
        assert "no recording of large" in text_of(app, "#message")


async def test_what_to_measure_next_becomes_a_plan(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    app = TtscopeApp([folder], Advisors(), limits={"min_accuracy": "0.7"})
    async with opened(app, (120, 40)) as (_, pilot):
        await press(pilot, "4")
        await pilot.press("m", "n")
        assert not [*tmp_path.glob("*.yaml")]  # it asks first
        for name in ("measure-next.yaml", "measure-next2.yaml"):
            await press(pilot, "m", "y")
            assert f"ttscope sweep {name} -o runs" in text_of(app, "#message")
            assert (tmp_path / name).exists()
            assert f"{name.removesuffix('.yaml')}-m-tp2.forward.json" in text_of(app, "#message")
        await press(pilot, "b", "tab", *"1ms", "enter")
        await press(pilot, "m", "y")
        assert "nothing fits" in text_of(app, "#message")
        assert app.screen.query_one("#message").has_class("bad")


async def test_what_runs_today_may_be_named(folder):
    advisors = Advisors()
    app = TtscopeApp([folder / "one"], advisors, present=folder / "two")
    async with opened(app) as (_, pilot):
        await pilot.press("ctrl+home", "enter")  # opening another does not change it
        await settle(pilot)
        await press(pilot, "4")
        assert app.present_entry().path == folder / "two"
        assert [each.path.name for each in advisors.made[0].recordings] == ["one", "two"]
        assert advisors.made[0].presents == [
            (app.present_entry().run.engine, app.present_entry().run.policy)
        ]


async def test_a_prediction_is_not_what_runs_today_but_its_source(folder, tmp_path):
    write_recording(
        tmp_path / "guess",
        simulate(problems=10, n=4),
        engine=engine_config(max_num_seqs=9),
        provenance={"replayed": {"recording": "two"}},
    )
    advisors = Advisors()
    present = tmp_path / "guess"
    async with opened(TtscopeApp([folder], advisors, present=present)) as (app, pilot):
        assert any(each.run and each.run.replay_of == "two" for each in app.entries)
        await press(pilot, "4")
        assert app.present_entry().path == folder / "two"
        app.forget(folder / "two")
        assert app.present_entry() is None


async def test_no_recordings_at_all(tmp_path):
    async with opened(TtscopeApp([tmp_path])) as (app, pilot):
        for key in "1234":
            await press(pilot, key)
        told = text_of(app, "#answer")
        for wanted in ("No complete recording", "ttscope demo", "1 and then o", "3 and then u"):
            assert wanted in told
        assert app.entries == []  # no row that cannot be read
        await pilot.press("3")
        await pilot.pause()
        assert any("ttscope attach" in str(each.render()) for each in app.screen.query("#text"))


async def test_help_names_the_keys_and_closes(folder):
    async with opened(TtscopeApp([folder])) as (app, pilot):
        await pilot.press("question_mark")
        await pilot.pause()
        assert isinstance(app.screen, HelpScreen)
        shown = "\n".join(str(each.render()) for each in app.screen.query(Static))
        for wanted in ("1 2 3 4", "Mark the row.", "home g", "dev-s", "ctrl+p"):
            assert wanted in shown, wanted
        assert shown.count("ctrl+p") == 1 and "ctrl+q" not in shown
        await pilot.press("escape")
        await pilot.pause()
        assert isinstance(app.screen, RecordingsScreen)


async def test_the_palette_offers_the_keys_of_the_screen(folder):
    async with opened(TtscopeApp([folder])) as (app, pilot):
        offered = {command.title: command for command in app.get_system_commands(app.screen)}
        assert {"Mark", "Filter", "Delete", "Quit", "Light or dark"} <= set(offered)
        assert offered["Filter"].help.endswith("Key: /")
        titles = [command.title for command in app.get_system_commands(app.screen)]
        assert len(set(titles)) == len(titles)
        offered["Light or dark"].callback()
        await settle(pilot)
        assert app.theme == "ttscope-light"
        await pilot.press("t")
        assert app.theme == "ttscope-dark"
        offered["Sort"].callback()
        await settle(pilot)
        assert "sort p95 s" in app.screen.query_one("NavBar").status


@pytest.mark.parametrize("screen", SCREENS)
def test_screenshot(folder, tmp_path, screen):
    target = tmp_path / "x.svg"
    app = TtscopeApp([folder], Advisors(), limits={"min_accuracy": "0.7"})
    screenshot(app, screen, (80, 24), target)
    text = target.read_text()
    assert text.startswith("<svg")
    assert "url(http" not in text.replace('"', "") and "@font-face" not in text  # nothing fetched
    wanted = {"recordings": "maj@4", "run": "seqs8", "live": "attach", "advice": "large"}
    assert wanted[screen] in text.replace("&#160;", " ")


def test_screenshot_refuses_what_is_not_there(folder, tmp_path):
    with pytest.raises(UsageError, match="cannot be written"):
        screenshot(TtscopeApp([folder]), "live", (80, 24), tmp_path / "none" / "x.svg")
    with pytest.raises(UsageError, match="at least"):
        screenshot(TtscopeApp([folder]), "run", (10, 5), tmp_path / "x.svg")
