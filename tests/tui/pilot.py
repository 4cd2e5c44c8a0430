"""What tests of the app wait for and read."""

from textual.widgets import DataTable, Static

from tui.app.app import settle

__all__ = ["entry_at_cursor", "last", "screen_text", "settle", "text_of"]


def text_of(app, selector="#message"):
    """Return what a static text of the screen says."""
    return str(app.screen.query_one(selector, Static).render())


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
