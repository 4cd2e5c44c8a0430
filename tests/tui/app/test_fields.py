"""Fields say which keys answer and leave them, and keep what cannot be used; keys of tables."""

import pytest
from textual.widgets import DataTable, Input

from tests.traces.synthetic import engine_config, simulate, write_recording
from tests.tui.fake_advisor import FakeAdvisor
from tests.tui.pilot import opened, press, screen_text, settle, text_of
from tui.app.app import TtscopeApp
from tui.screens.base import KeyFooter
from tui.screens.library import failure, paths_of
from tui.widgets.prompt import Paths, Words

pytestmark = pytest.mark.slow

FIELDS = (  # the screen's key, the field's, its id, what cannot be used, and what is said of it
    ("1", "o", "ask", "nowhere/at/all", "no such file"),
    ("1", "dollar_sign", "ask", "much", "USD per device-hour"),
    ("1", "i", "ask", "'open", "quotation"),
    ("2", "g", "ask", "x", "give a problem"),
    ("2", "v", "ask", "engine.max_num_seq=4", "did you mean max_num_seqs?"),
    ("3", "u", "url", "host --lisen 4318", "did you mean --listen?"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for n, seqs in enumerate((8, 4, 2)):
        rows = simulate(problems=12, n=2, seqs=seqs)
        write_recording(folder / f"run{n}", rows, engine=engine_config(max_num_seqs=seqs))
    return folder


def footer(app):
    return app.screen.query_one(KeyFooter).shown


async def test_fields(folder):
    async with opened(TtscopeApp([folder])) as (app, pilot):
        for screen, key, name, text, told in FIELDS:
            await press(pilot, screen)
            before = footer(app)
            await pilot.press(key, *text[:1])  # what is typed behind the key is in it
            field = app.screen.query_one(f"#{name}", Input)
            assert (app.screen.focused, field.value) == (field, text[:1])
            await settle(pilot)
            assert footer(app) == {"enter": "apply", "esc": "cancel"}
            field.value = text
            await press(pilot, "enter")
            assert told in text_of(app), key
            assert (app.screen.focused, field.value) == (field, text)
            await press(pilot, "escape")
            assert app.screen.focused is not field
            assert not app.screen.query_one("#message").display or not text_of(app)
            assert footer(app) == before


async def test_help_and_quit_stay_where_there_is_no_room_for_all_keys(folder):
    async with opened(TtscopeApp([folder]), (120, 24)) as (app, pilot):
        whole = screen_text(app).splitlines()[-1]
        for columns in (40, 60, 80, 120):
            await pilot.resize_terminal(columns, 24)
            await settle(pilot)
            keys = screen_text(app).splitlines()[-1]
            begun = keys.removesuffix("? help q quit")
            assert begun != keys and whole.startswith(begun) and len(keys) <= columns
        assert keys == whole


async def test_a_filter_without_a_match_names_near_words_and_keys_of_the_table(folder):
    async with opened(TtscopeApp([folder])) as (app, pilot):
        await press(pilot, "slash", *"seq88", "enter")
        assert "Did you mean seqs8?" in text_of(app, "#detail")
        assert app.screen.query_one("#filtering").display  # it still filters
        await press(pilot, "slash", "escape")
        assert app.screen.query_one(DataTable).row_count == 3
        assert not app.screen.query_one("#filtering").display
        await keys_of(app.screen.query_one(DataTable), pilot)


async def test_names_are_completed(folder):
    (folder / "runway").mkdir(exist_ok=True)
    assert await Paths().get_suggestion(f"a {folder}/runw") == f"a {folder}/runway/"
    assert await Paths().get_suggestion(f"{folder}/none/x") is None
    words = Words(["engine.max_num_seqs=", "policy.n="])
    assert await words.get_suggestion("policy.n=2 eng") == "policy.n=2 engine.max_num_seqs="
    assert await words.get_suggestion("policy.n=2 ") is None
    with pytest.raises(Exception, match="Did you mean") as raised:
        paths_of(str(folder / "rum1"))
    assert failure(raised.value).endswith(f"Did you mean {folder / 'run1'}?")


async def keys_of(table, pilot):
    """Every key that moves the cursor of a table."""
    table.focus()
    last = table.row_count - 1
    assert last > 0
    for key, row in (("G", last), ("g", 0), ("end", last), ("home", 0), ("j", 1), ("k", 0)):
        await pilot.press(key)
        assert table.cursor_row == row, key


async def test_keys_of_the_table_of_advice(folder):
    async with opened(TtscopeApp([folder], FakeAdvisor), (120, 40)) as (app, pilot):
        await press(pilot, "4")
        await keys_of(app.screen.query_one(DataTable), pilot)
