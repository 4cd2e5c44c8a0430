"""Open, import, delete and sort on the Recordings screen, messages first."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from textual.widgets import DataTable, Input

from tests.traces.synthetic import simulate, write_recording
from tests.tui.pilot import entry_at_cursor, opened, press, settle, text_of
from tui.app.app import TtscopeApp
from tui.screens.base import ConfirmScreen
from tui.screens.entries import to_list


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_recording(tmp_path / "runs" / "one", simulate(problems=4, n=2))
    write_recording(tmp_path / "elsewhere" / "two", simulate(problems=4, n=4))
    return tmp_path


async def ask(pilot, key, text):
    await pilot.press("escape", key)  # a field that was left with a mistake
    pilot.app.screen.query_one("#ask", Input).value = text
    await press(pilot, "enter")


@pytest.mark.slow
async def test_open_import_and_delete(folder):
    app = TtscopeApp([folder / "runs"])
    async with opened(app, (100, 30)) as (_, pilot):
        table = app.screen.query_one(DataTable)
        assert table.row_count == 1
        await ask(pilot, "o", str(folder / "elsewhere"))
        assert table.row_count == 2
        await ask(pilot, "o", str(folder / "elsewhere"))
        assert table.row_count == 2
        await ask(pilot, "o", str(folder / "nowhere"))
        assert "no such file" in text_of(app)

        rows = [{"problem_id": "p", "sample_index": i, "correct": True} for i in range(3)]
        (folder / "others.jsonl").write_text("\n".join(map(json.dumps, rows)))
        await ask(pilot, "i", str(folder / "others.jsonl"))
        assert (folder / "runs" / "others" / "recording.json").exists()
        assert table.row_count == 3
        (folder / "broken.jsonl").write_text("{")
        await ask(pilot, "i", str(folder / "broken.jsonl"))
        assert app.screen.query_one("#message").has_class("bad")

        await pilot.press("escape", "ctrl+home")
        key = entry_at_cursor(app).path
        await pilot.press("x")
        await pilot.pause()
        assert isinstance(app.screen, ConfirmScreen)
        await pilot.press("n")
        await pilot.pause()
        assert key.exists()
        await press(pilot, "x", "y")
        assert not key.exists()
        assert table.row_count == 2


@pytest.mark.slow
async def test_a_row_that_was_read_is_dim_no_longer(folder):
    async with opened(TtscopeApp([folder / "runs"]), (120, 30)) as (app, _):
        table, (entry,) = app.screen.query_one(DataTable), app.entries
        app.entries = [replace(entry, run=None, listed=to_list(entry))]
        app.screen.show_library()
        assert table.get_cell(entry.key, "policy").style == "dim"
        app.entries = [entry]
        app.screen.show_library()
        assert table.get_cell(entry.key, "policy").style == ""


@pytest.mark.slow
async def test_a_price_makes_costs(folder):
    async with opened(TtscopeApp([folder / "runs"]), (120, 30)) as (app, pilot):
        await ask(pilot, "dollar_sign", "36")
        (entry,) = app.entries
        device = entry.run.device_s_per_problem.value
        assert entry.run.cost_usd_per_problem.value == pytest.approx(device * 0.01)
        await ask(pilot, "dollar_sign", "much")
        assert "USD per device-hour" in text_of(app)


@pytest.mark.slow
async def test_a_price_is_told_at_80_columns(folder):
    async with opened(TtscopeApp([folder / "runs"])) as (app, pilot):
        bar = app.screen.query_one("NavBar")
        await ask(pilot, "dollar_sign", "2.5")
        assert text_of(app) == "costs are at $2.50 a device-hour"
        assert bar.render().plain.rstrip().endswith("1/1  $2.50 an hour  0 marked")
        await ask(pilot, "dollar_sign", "-")
        assert text_of(app) == "costs are those of the recordings"
        assert "hour" not in bar.status


@pytest.mark.slow
async def test_a_click_on_a_header_sorts(folder):
    app = TtscopeApp([folder / "runs", folder / "elsewhere"])
    async with opened(app, (100, 30)) as (_, pilot):
        screen = app.screen
        table = screen.query_one(DataTable)
        for arrow in ("▲", "▼"):
            column = next(each for each in table.ordered_columns if each.key == "tok/pb")
            table.post_message(DataTable.HeaderSelected(table, column.key, 5, column.label))
            await pilot.pause()
            await pilot.pause()
            assert f"sort tok/pb {arrow}" in screen.query_one("NavBar").status
            labels = [str(each.label) for each in table.ordered_columns]
            assert [each for each in labels if arrow in each] == [f"tok/pb{arrow}"]


@pytest.mark.slow
async def test_a_recording_whose_folder_is_gone_leaves_the_list(folder):
    async with opened(TtscopeApp([folder / "runs", folder / "elsewhere"])) as (app, pilot):
        for key, moment in (("x", "before"), ("y", "while it is confirmed")):
            await pilot.press("ctrl+home")
            path = entry_at_cursor(app).path
            if key == "y":
                await pilot.press("x")
                await pilot.pause()
                assert isinstance(app.screen, ConfirmScreen)
            shutil.rmtree(path)
            await press(pilot, key)
            assert "its folder is gone" in text_of(app), moment
            assert path not in [entry.path for entry in app.entries], moment
        assert app.screen.query_one(DataTable).row_count == 0


async def test_a_row_of_what_was_never_there_can_leave(folder):
    async with opened(TtscopeApp([folder / "nowhere"])) as (app, pilot):
        await press(pilot, "x")
        assert app.entries == []


@pytest.mark.slow
async def test_the_panel_scrolls_without_a_mouse(folder):
    write_recording(folder / "runs" / "three", simulate(problems=4, n=8))
    async with opened(TtscopeApp([folder / "runs", folder / "elsewhere"])) as (app, pilot):
        await press(pilot, "ctrl+home", *["space"] * 3)
        panel = app.screen.query_one("#panel")
        assert panel.max_scroll_y > 0
        await pilot.press("tab")
        assert app.screen.focused is panel
        await pilot.press("end")
        await pilot.wait_for_scheduled_animations()
        assert panel.scroll_y == panel.max_scroll_y
        await pilot.press("escape")
        assert app.screen.focused is app.screen.query_one(DataTable)


@pytest.mark.slow
async def test_a_column_is_there_from_the_width_on_that_it_names(folder):
    async with opened(TtscopeApp([folder / "runs"]), (119, 30)) as (app, pilot):
        table = app.screen.query_one(DataTable)
        assert "tok/s" not in table.columns
        await pilot.resize_terminal(120, 30)
        await settle(pilot)
        assert "tok/s" in table.columns
        assert table.max_scroll_x == 0
