"""Containers without scroll bars, of which another size of their content asks for no layout."""

from __future__ import annotations

from textual.containers import Grid, Horizontal, Vertical, VerticalScroll
from textual.geometry import Size
from textual.reactive import Reactive
from textual.widget import Widget


class Still(Widget):
    """Asks for no layout when its content has another size.

    Textual lays the screen out and draws it a second time then, as scroll bars may come or go.
    """

    virtual_size = Reactive(Size(0, 0))


class StillRow(Still, Horizontal):
    """Children beside each other."""


class StillColumn(Still, Vertical):
    """Children below each other."""


class StillGrid(Still, Grid):
    """Children in a grid."""


class Page(VerticalScroll):
    """A page that scrolls. No style of what is in it depends on whether the page has the focus."""

    def watch_has_focus(self, _has_focus: bool) -> None:
        """Find the page's own styles again, and not those of everything in it."""
        self.app.stylesheet.apply(self)
