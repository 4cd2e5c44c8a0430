"""Keys that are typed faster than the app works reach what the keys before them open."""

import pytest
from textual.events import Key
from textual.widgets import Input

from tests.traces.synthetic import simulate, write_recording
from tests.tui.fake_advisor import FakeAdvisor
from tests.tui.pilot import opened, settle
from tui.app.app import TtscopeApp

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("typed", "mode", "field", "text"),
    [
        (("slash", *"maj", "enter", "down"), "recordings", "filter", "maj"),
        (("4", "b", "tab", *"12s", "enter", "x"), "advice", "field_max_latency", "12s"),
        (("4", "w", *"1234", "escape", "question_mark", "q", "e"), "advice", "change", "1234"),
        (("2", "g", *"s5", "enter", "3", "u", *"ht"), "live", "url", "ht"),
    ],
)
async def test_keys_reach_what_the_keys_before_open(tmp_path, typed, mode, field, text):
    write_recording(tmp_path / "one", simulate(problems=10, n=4))
    app = TtscopeApp([tmp_path], FakeAdvisor, limits={"min_accuracy": "0.7"})
    async with opened(app) as (_, pilot):
        if "w" in typed:  # which needs an answer
            await pilot.press("4")
            await settle(pilot)
        for key in typed:
            app.post_message(Key(key, key if len(key) == 1 else None))

        def reached():
            there = [each.value for each in app.screen.query(f"#{field}").results(Input)]
            return app.current_mode == mode and there == [text] and not app.keys_waiting

        for _ in range(300):
            await pilot.pause()
            if reached():
                break
        await settle(pilot)
        assert (app.current_mode, app.screen.query_one(f"#{field}", Input).value) == (mode, text)
        assert isinstance(app.screen.focused, Input) == (typed[-1] == "t")
