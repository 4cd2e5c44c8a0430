from __future__ import annotations

import pytest
from textual.widgets import Input

from tests.tui.pilot import opened, press
from traces.errors import UsageError
from tui.app.app import TtscopeApp, key_ids
from tui.app.keys import default_file, read_keys


@pytest.mark.slow
async def test_a_key_is_where_the_file_puts_it(tmp_path):
    path = tmp_path / "keys.toml"
    path.write_text('[app]\nlive = "f3,3"\nadvice = "f4"\n')
    async with opened(TtscopeApp([tmp_path], keys=path)) as (app, pilot):
        await pilot.press("4")
        assert app.current_mode == "recordings"
        for key, mode in (("f3", "live"), ("f4", "advice")):
            await pilot.press(key)
            await pilot.pause()
            assert app.current_mode == mode


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[run", "is not TOML"),
        ("[run]\nplaay = 'p'", "no run.plaay. There are .*run.play"),
        ("[nowhere]\nx = 'p'", "There are others"),
        ("play = 'p'", "a table per screen"),
        ("[run]\nplay = 3", "give a key as text"),
    ],
)
def test_mistakes_are_told(tmp_path, text, told):
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=told):
        read_keys(path, key_ids())
    with pytest.raises(UsageError, match="cannot be read"):
        read_keys(tmp_path / "none", key_ids())


def test_where_the_file_is(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert default_file() == tmp_path / "ttscope" / "keys.toml"


async def test_text_typed_where_no_field_is_open_changes_no_screen(tmp_path):
    """As `w` before there is an answer, and then what the field would take."""
    said = []
    app = TtscopeApp([tmp_path], screen="advice")
    app.notify = lambda message, **_: said.append(message)
    async with opened(app, (120, 40)) as (app, pilot):
        await press(pilot, *"w0.4")
        assert app.current_mode == "advice"
        assert said == [
            "w does nothing here now, and no field is open. ? lists the keys",
            "No field is open. Press 4 again for: advice",
        ]
        await press(pilot, "n", "1")
        assert app.current_mode == "advice"
        await press(pilot, "1")
        assert app.current_mode == "recordings"
        await press(pilot, "h", "question_mark", "x", "escape", "n", "q")
        assert app.is_running
        await press(pilot, "o", *"n1")  # a field has its letters
        assert isinstance(app.focused, Input) and app.focused.value == "n1"
