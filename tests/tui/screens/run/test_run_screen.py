"""The Run screen: messages first, then what is drawn."""

from __future__ import annotations

import shutil
from contextlib import asynccontextmanager

import pytest
from textual.widgets import Input

from tests.traces.synthetic import simulate, write_recording
from tests.tui.pilot import opened, press, screen_text, settle, text_of
from tui.app.app import TtscopeApp
from tui.screens.library import delete_recording
from tui.screens.run.screen import RunScreen
from tui.verbs.demo import SHIPPED

pytestmark = pytest.mark.slow

RECORDED = next(SHIPPED.glob("demo-s-*maj@16*"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_recording(folder / "one", simulate(problems=10, n=4))
    return folder


async def go(pilot, text):
    await pilot.press("g")
    pilot.app.screen.query_one("#ask", Input).value = text
    await pilot.press("enter")


@asynccontextmanager
async def on_run(path, size=(80, 24)):
    """The app on its Run screen, and its pilot."""
    async with opened(TtscopeApp([path]), size) as (app, pilot):
        await press(pilot, "2")
        yield app, pilot


async def test_steps_and_problems(folder):
    async with on_run(folder / "one") as (app, pilot):
        assert app.screen.model.judged
        assert "step 0 |" in text_of(app, "#step")
        assert "reads 80 KV tok" in text_of(app, "#step")
        await pilot.press("full_stop")
        assert "step 1 |" in text_of(app, "#step")
        before = text_of(app, "#lanes")
        await pilot.press("right")
        assert text_of(app, "#lanes") != before
        await pilot.press("right_square_bracket")
        assert "problem 2 of 10" in text_of(app, "#title")
        await pilot.press("left_square_bracket", "left_square_bracket")
        assert "problem 10 of 10" in text_of(app, "#title")
        await pilot.press("w")
        assert "problem" in text_of(app, "#title")
        for _ in range(3):
            await press(pilot, "k")
            if app.screen.model.page == "policies":
                assert "maj@4" in text_of(app, "#text")
        assert "v replays" in text_of(app, "#text")
        await pilot.press("k")
        assert "problem" in text_of(app, "#title")


async def test_seek_by_number_step_and_time(folder):
    async with on_run(folder / "one") as (app, pilot):
        model = app.screen.model
        for text, told in (("4", "problem 4 of 10"), ("10", "problem 10 of 10")):
            await go(pilot, text)
            assert told in text_of(app, "#title")
        await go(pilot, "s20")
        assert "step 20 |" in text_of(app, "#step")
        seconds = (model.play.end - model.play.start) / 1e9
        await go(pilot, f"{seconds / 2:.4f}s")
        assert abs(model.play.now - model.play.start - seconds / 2 * 1e9) < 1e6
        for text, told in (("99", "there are 10"), ("s9999", "was not recorded"), ("x", "give a")):
            await go(pilot, text)
            assert told in text_of(app, "#message"), text
        now = model.play.now
        for text, told in (
            ("1:99", "end at 59"),
            ("99999s", "the run ends at"),
            ("3:32", "3:32.0"),
        ):
            await go(pilot, text)
            assert told in text_of(app, "#message"), text
        assert model.play.now == now
        await go(pilot, f"{seconds:.1f}s")
        assert text_of(app, "#message") == ""
        await pilot.press("end")
        assert model.play.now == model.play.end
        await pilot.press("z")
        assert model.play.start < model.play.left
        await pilot.press("0", "home")
        assert (model.play.left, model.play.now) == (model.play.start, model.play.start)


async def test_play_pause_and_speed(folder):
    async with on_run(folder / "one") as (app, pilot):
        model, screen = app.screen.model, app.screen
        await pilot.press("space")
        assert model.play.playing
        assert "playing" in screen.query_one("NavBar").status
        screen._last -= (model.play.end - model.play.start) / 2e9 / model.play.speed
        screen._tick()
        assert model.play.start < model.play.now < model.play.end
        row = model.problem.row
        assert row["arrival"] <= model.play.now
        assert "as at" in text_of(app, "#title")
        speed = model.play.speed
        await pilot.press("greater_than_sign", "greater_than_sign", "less_than_sign")
        assert model.play.speed == 2 * speed
        await pilot.press("space")
        assert not model.play.playing
        now = model.play.now
        screen._tick()
        assert model.play.now == now
        await pilot.press("escape")
        assert "as at" not in text_of(app, "#title")


async def test_rules_are_judged_one_by_one(folder):
    async with on_run(folder / "one", (120, 40)) as (app, pilot):
        assert "ASC .90" in text_of(app, "#vote")
        judged = len(app.screen.model.judged)
        await press(pilot, "r")
        assert len(app.screen.model.judged) == judged + 1
        assert "ASC .95" in text_of(app, "#vote")
        assert "all 10: " in text_of(app, "#vote")


async def test_a_recording_that_goes_away_is_told_in_place(tmp_path):
    path = write_recording(tmp_path / "gone", simulate(problems=4, n=2)).path
    async with opened(TtscopeApp([path])) as (app, pilot):
        delete_recording(path)
        await press(pilot, "2")
        assert "its folder is gone" in text_of(app, "#message")
        assert "the steps cannot be read" in text_of(app, "#lanes")
        assert "problem 1 of 4" in text_of(app, "#title")
        await press(pilot, "k", "k")
        assert app.is_running


async def test_a_replay_on_disk_is_shown_beside_its_recording(folder, tmp_path):
    shutil.copytree(folder / "one", tmp_path / "one")
    rows = simulate(problems=10, n=4, seqs=4)
    for row in rows["steps"]:
        row["source"] = "replayed"
    made_from = {"replayed": {"recording": "one", "seed": 0}}
    write_recording(tmp_path / "two", rows, provenance=made_from)
    async with on_run(tmp_path, (120, 40)) as (app, pilot):
        app.open_run(next(entry for entry in app.entries if entry.path.name == "two"))
        app.screen.show_library()
        await settle(pilot)
        assert app.screen.model.beside.word == "recorded"
        assert " recorded" in text_of(app, "#lanes")
        assert "replayed" in text_of(app, "#step")
        assert "one, which this replays" in text_of(app, "#other")


async def test_a_replay_is_shown_beside_its_recording():
    async with on_run(RECORDED, (160, 50)) as (app, pilot):
        await pilot.press("v")
        field = app.screen.query_one("#ask", Input)
        field.value = "engine.max_num_seqs=4"
        await press(pilot, "enter")
        assert app.screen.model.beside.run.step_rows["source"][0] == "replayed"
        assert isinstance(app.screen, RunScreen)
        assert "replay" in text_of(app, "#lanes")
        assert "engine.max_num_seqs=4" in text_of(app, "#other")
        assert app.screen.query_one("#both").has_class("beside", "wide")
        await pilot.press("k", "k", "k")
        assert "predicted" in text_of(app, "#text")
        await pilot.press("v")
        field.value = "engine.nothing=4"
        await press(pilot, "enter")
        assert "no such field" in text_of(app, "#message")


@pytest.mark.parametrize("plain", [True, False])
async def test_letters_stand_for_blocks_without_colours(folder, monkeypatch, plain):
    if plain:
        monkeypatch.setenv("NO_COLOR", "1")
    else:
        monkeypatch.delenv("NO_COLOR", raising=False)
    async with on_run(folder / "one") as (app, _):
        bars = text_of(app, "#bars")
        legend = " ".join(bars.splitlines()[:2])
        assert ("= thinking" in legend) == ("===" in bars) == plain
        assert ("▆ thinking" in legend) == ("▆▆▆" in bars) == (not plain)


@pytest.mark.parametrize("size", [(60, 18), (80, 24), (120, 40)])
async def test_nothing_is_cut_below_and_lanes_take_what_is_free(folder, size):
    async with on_run(folder / "one", size) as (app, pilot):
        screen = app.screen
        assert screen.max_scroll_y == 0
        bottom = size[1] - 1
        assert all(each.region.bottom <= bottom for each in screen.query("#page, #vote"))
        assert screen.query_one("#page").region.height >= 3
        lines = text_of(app, "#lanes").splitlines()
        assert all(len(line.rstrip()) <= size[0] for line in lines)
        assert len(lines) > 10 if size[1] == 40 else 4 <= len(lines) <= 7
        whole = screen.model.head(1000)[0], screen.model.title(1000)
        for name, line in zip(("#head", "#title"), whole, strict=True):
            shown = text_of(app, name).splitlines()[0]
            assert f"{line}  ".startswith(f"{shown}  ")  # no number is cut
        assert "paused x1/" in screen_text(app).splitlines()[0]
        for page in ("kernels", "policies", "replay"):
            await press(pilot, "k")
            lines = text_of(app, "#text").splitlines()
            assert screen.model.page == page and lines
            assert max(map(len, lines)) < size[0]  # nothing is wrapped in the middle of a table


async def test_the_footer_says_pause_while_the_run_plays(folder):
    async with on_run(folder / "one") as (app, pilot):
        keys = [each.binding.description for each in app.screen.active_bindings.values()]
        assert "play" in keys and "pause" not in keys and "rule" in keys
        await pilot.press("space")
        keys = [each.binding.description for each in app.screen.active_bindings.values()]
        assert "pause" in keys and "play" not in keys
        await pilot.press("space")
        assert not app.screen.model.play.playing
