"""The Advice screen: what it does where something is missing, wrong or late."""

from __future__ import annotations

import shutil

import pytest
from textual.widgets import DataTable, Input, Static

from tests.traces.synthetic import simulate, write_recording
from tests.tui.fake_advisor import FakeAdvisor
from tui.app import TtscopeApp


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        write_recording(tmp_path / "runs" / name, simulate(problems=10, n=4))
    return tmp_path / "runs"


async def settle(pilot):
    await pilot.app.workers.wait_for_complete()
    await pilot.pause()
    await pilot.pause()


def said(app):
    return str(app.screen.query_one("#message", Static).render())


class Opened:
    """The app on its Advice screen, with the advisors that were made."""

    def __init__(self, folder, size=(80, 24), advisor=FakeAdvisor):
        self.made = []

        def factory(recordings):
            self.made.append(advisor(recordings))
            return self.made[-1]

        self.app = TtscopeApp([folder], factory)
        self.run = self.app.run_test(size=size)

    async def __aenter__(self):
        self.pilot = await self.run.__aenter__()
        await settle(self.pilot)
        await self.pilot.press("4")
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
        await pilot.press("4")
        await settle(pilot)
        assert [each.path.name for each in opened.made[-1].recordings] == ["two"]
        assert "no longer there, so left out: one" in said(app)
        assert "candidates" in said(app)
        await pilot.press("1")
        await settle(pilot)
        assert app.screen.query_one(DataTable).row_count == 1
