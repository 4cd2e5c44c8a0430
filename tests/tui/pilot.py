"""What tests of the app wait for and read."""

from contextlib import asynccontextmanager

from textual.widgets import DataTable

from tui.app.app import settle

__all__ = ["entry_at_cursor", "last", "opened", "press", "screen_text", "settle", "text_of"]


@asynccontextmanager
async def opened(app, size=(80, 24), **options):
    """Run the app in a terminal of that size; gives it and its pilot once all is drawn."""
    async with app.run_test(size=size, **options) as pilot:
        await settle(pilot)
        yield app, pilot


async def press(pilot, *keys):
    """Press the keys, and wait for what comes of them."""
    await pilot.press(*keys)
    await settle(pilot)


def text_of(app, selector="#message"):
    """Return what a text of the screen says."""
    return str(app.screen.query_one(selector).render())


def entry_at_cursor(app):
    """Return the recording on whose row the cursor of the list stands."""
    table = app.screen.query_one(DataTable)
    key = table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value
    return next(entry for entry in app.entries if entry.key == key)


def last(seen, kind):
    """Return the last message of a kind that a `message_hook` saw."""
    return next(each for each in reversed(seen) if isinstance(each, kind))


def screen_text(app):
    """Return what the screen shows, as the lines of a terminal."""
    strips = app.screen._compositor.render_strips()
    return "\n".join(
        "".join(segment.text for segment in strip).rstrip() for strip in strips
    ).rstrip()
