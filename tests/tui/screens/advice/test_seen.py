"""What the Advice screen shows, whole, in a small and a usual terminal. No clock is in it.

`KEEP_SEEN=1 python -m pytest tests/tui/screens/advice/test_seen.py` keeps what is shown now.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.widgets import Input

from tests.tui.kept_screens import compare
from tests.tui.pilot import press, screen_text, settle
from tests.tui.screens.advice.test_advice_screen import Opened, folder  # noqa: F401
from traces.schema.advice import Stages
from tui.screens.advice.screen import Advised, Progress

pytestmark = pytest.mark.slow

SEEN = Path(__file__).parent / "seen"
SMALL_SIZE, USUAL = (80, 24), (120, 40)


async def test_small(folder):  # noqa: F811
    """The answer first; the front, the open budget and a mistake each whole at 80x24."""
    async with Opened(folder, SMALL_SIZE) as opened:
        app, pilot = opened.app, opened.pilot
        compare(app, SEEN / "answer-80x24.txt")
        await press(pilot, "f")
        compare(app, SEEN / "front-80x24.txt")
        await pilot.press("escape")
        field = app.screen.query_one("#field_gpus", Input)
        await pilot.press("b")
        field.value = "many"
        field.focus()
        await press(pilot, "enter")
        compare(app, SEEN / "mistake-80x24.txt")


async def test_usual(folder):  # noqa: F811
    """All three panels at 120x40, while candidates are replayed and where nothing fits."""
    async with Opened(folder, USUAL) as opened:
        app, screen = opened.app, opened.app.screen
        advice = opened.made[-1].recommend(opened.budget)
        stages = Stages(screened=12, replayed=0, spread=0.0998, first=None)
        object.__setattr__(advice, "stages", stages)
        screen.post_message(Advised(screen._asked, advice, None, 2))
        screen.post_message(Progress(screen._asked, 6, 24))
        await settle(opened.pilot)
        compare(app, SEEN / "first-estimate-120x40.txt")
        screen.post_message(Progress(("another question",), 7, 24))
        await settle(opened.pilot)
        assert "6 of 24" in screen_text(app)
        await opened.give("max_latency", "100ms")
        compare(app, SEEN / "nothing-fits-120x40.txt")
