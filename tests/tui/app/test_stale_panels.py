"""Opening one recording after another: nothing of the first is left on any screen."""

import pytest
from textual.widgets import DataTable, Input

from benchmarks.servers.metrics_server import metrics_server
from tests.traces.synthetic import simulate, write_recording
from tests.tui.fake_advisor import FakeAdvisor
from tests.tui.live_recordings import write_watched
from tests.tui.pilot import entry_at_cursor, opened, press, settle, text_of
from tests.tui.screens.live.test_live_screen import attach_to, on_live, wait_for
from traces.errors import UsageError
from tui.app.app import TtscopeApp
from tui.screens.live.screen import LiveScreen
from tui.widgets.panel import PanelView
from tui.widgets.prompt import Prompt

pytestmark = pytest.mark.slow

PANELS = ("#lanes", "#step", "#title", "#bars", "#other", "#text", "#vote", "#message")


@pytest.fixture
def folder(tmp_path):
    write_recording(tmp_path / "voted", simulate(problems=6, n=4))
    write_watched(tmp_path / "metrics", spans=False)
    write_watched(tmp_path / "spans", spans=True)
    return tmp_path


async def open_named(pilot, name):
    entry = next(each for each in pilot.app.entries if each.path.name == name)
    pilot.app.open_run(entry)
    pilot.app.switch_mode("run")  # one of watched servers opens on screen 3
    for _ in range(200):
        await settle(pilot)
        model = getattr(pilot.app.screen, "model", None)
        if model is not None and model.entry is entry and model.data and model.judged:
            return
    raise AssertionError(f"{name} is not shown")


def panels(app):
    return {each: text_of(app, each) for each in PANELS}


@pytest.mark.parametrize(
    ("second", "size", "of_first"), [("metrics", (160, 40), (0, 3)), ("spans", (80, 24), (1, 2))]
)
async def test_the_run_screen_after_another_recording(folder, second, size, of_first):
    """What it shows of the second, from pages of the first, is what it shows of it alone."""

    async def shown(*names, pages=0):
        async with opened(TtscopeApp([folder]), size) as (app, pilot):
            for name in names:
                await open_named(pilot, name)
                if name == "voted":
                    assert "▆" in text_of(app, "#bars")
                    await pilot.press("v")
                    app.screen.query_one("#ask", Input).value = "policy.n=2"
                    await press(pilot, "enter")
                    await press(pilot, *"k" * pages, *("greater_than_sign", "plus", "right"))
                    assert text_of(app, "#vote") or pages
                    await pilot.press("v", *"half")
                    app.switch_mode("recordings")
                    await settle(pilot)
            prompt = app.screen.query_one(Prompt)
            bar = app.screen.query_one("NavBar").status
            return panels(app), bar, prompt.field.value, prompt.is_open

    alone = await shown(second)
    for pages in of_first:
        assert await shown("voted", second, pages=pages) == alone, f"from page {pages}"


async def test_the_run_screen_when_its_recording_is_forgotten(folder):
    async with opened(TtscopeApp([folder / "voted"])) as (app, pilot):
        await press(pilot, "2")
        assert "problem 1 of 6" in text_of(app, "#title")
        app.forget(folder / "voted")
        await settle(pilot)
        found = panels(app)
        assert "no run to show" in found.pop("#message")
        assert text_of(app, "#head") == ""
        assert set(found.values()) == {""}


async def test_what_failed_for_another_recording_is_not_said_here(folder):
    async with opened(TtscopeApp([folder])) as (app, pilot):
        await open_named(pilot, "spans")
        await pilot.press("v")
        app.screen.query_one("#ask", Input).value = ""
        await pilot.press("enter")
        model = app.screen.model
        app.switch_mode("recordings")
        await open_named(pilot, "voted")
        assert app.screen.model is not model
        assert text_of(app, "#message") == ""


class OfVotes(FakeAdvisor):
    """Cannot learn from recordings without a policy."""

    def recommend(self, budget, *given):
        if any(not each.manifest.policies for each in self.recordings):
            raise UsageError("spans: no policy")
        return super().recommend(budget, *given)


async def test_advice_that_fails_leaves_no_picks_of_others(folder):
    async with opened(TtscopeApp([folder], OfVotes), (120, 40)) as (app, pilot):
        (voted,) = (each for each in app.entries if each.path.name == "voted")
        (spans,) = (each for each in app.entries if each.path.name == "spans")
        app.toggle_mark(voted.key)
        await press(pilot, "4")
        assert app.screen.query_one(DataTable).row_count
        assert app.screen.query_one("#middle").display
        await pilot.press("1")
        app.toggle_mark(voted.key)
        app.toggle_mark(spans.key)
        await press(pilot, "4")
        assert "spans" in text_of(app, "#message")
        assert not app.screen.query_one(DataTable).row_count
        assert not app.screen.query_one("#middle").display
        assert text_of(app, "#answer") == ""
        assert app.screen.query_one("NavBar").status == ""


async def test_the_live_screen_shows_nothing_of_the_server_before(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with metrics_server() as server:
        async with on_live(folder / "voted") as (app, pilot, seen):
            server.gauges = {"vllm:num_requests_running": 7}
            await attach_to(pilot, server.url)
            await wait_for(pilot, seen, LiveScreen.Ticked, 2)
            assert any("7 req│" in str(each.render()) for each in app.screen.query(PanelView))
            await pilot.press("s")
            await wait_for(pilot, seen, LiveScreen.Ended)
            server.status = 500
            await attach_to(pilot, server.url)
            await wait_for(pilot, seen, LiveScreen.Ended, 2)
            assert "/metrics cannot be read" in text_of(app, "#message")
            for name in ("#verdict", "#next", "#gauges", "#spreads", "#sees"):
                assert text_of(app, name) == "", name
            assert "Press u and enter a server's URL" in text_of(app, "#text")
            assert not any(each.display for each in app.screen.query(PanelView))


async def test_a_comparison_is_of_what_is_loaded_now(folder):
    write_recording(folder / "again", simulate(problems=6, n=4, seed=1))
    async with opened(TtscopeApp([folder]), (120, 40)) as (app, pilot):
        for name in ("voted", "again"):
            (entry,) = (each for each in app.entries if each.path.name == name)
            app.toggle_mark(entry.key)
        await settle(pilot)
        assert "cost" not in text_of(app, "#detail")
        app.set_price(2.0)
        await settle(pilot)
        assert "cost" in text_of(app, "#detail")


async def test_the_row_stays_where_the_terminal_changes_its_size(folder):
    async with opened(TtscopeApp([folder]), (120, 40)) as (app, pilot):
        await pilot.press("down")
        key = entry_at_cursor(app)
        assert app.screen.query_one(DataTable).cursor_row == 1
        await pilot.resize_terminal(80, 24)
        await settle(pilot)
        assert entry_at_cursor(app) == key
        assert app.screen.query_one(DataTable).cursor_row == 1
