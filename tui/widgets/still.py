"""Containers and texts that ask for no layout of the screen where it would change nothing.

Textual lays the screen out and draws it again whenever a container's content has another size, as
scroll bars may come or go, and whenever a text is another. Each container stands on its own: a
common base in front would take Textual's styles of containers away.
"""

from __future__ import annotations

from textual.containers import Container, Grid, Horizontal, Vertical
from textual.content import Content
from textual.geometry import Region, Size
from textual.reactive import Reactive
from textual.strip import Strip
from textual.visual import VisualType
from textual.widget import Widget
from textual.widgets import Static


def blank_lines(widget: Widget, crop: Region) -> list[Strip]:
    """Return the lines of a container without a frame: one for all, as they are alike.

    Textual draws and cuts each, though most lie behind what is in the container.
    """
    line = Strip.blank(crop.width, widget.visual_style.background_style.rich_style)
    for each in widget.get_line_filters():
        line = line.apply_filter(each, widget.background_colors[1])
    return [line] * crop.height


class Box(Container):
    """A container without a frame."""

    render_lines = blank_lines


class StillRow(Horizontal):
    """Children beside each other."""

    virtual_size = Reactive(Size(0, 0))
    render_lines = blank_lines


class StillColumn(Vertical):
    """Children below each other."""

    virtual_size = Reactive(Size(0, 0))


class StillGrid(Grid):
    """Children in a grid."""

    virtual_size = Reactive(Size(0, 0))
    render_lines = blank_lines


class StillText(Static):
    """Text as wide as it may be. Another asks for a layout only where it takes other rows."""

    def __init__(self, *, id: str, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes, markup=False)
        self._text = Content("")

    def update(self, content: VisualType = "", *, layout: bool = True) -> None:
        text = Content(content) if isinstance(content, str) else content
        assert isinstance(text, Content)
        before, self._text = self._text, text
        if text.is_same(before):
            return
        width = self.content_size.width
        fits = width > 0 and before.get_height({}, width) == text.get_height({}, width)
        super().update(text, layout=layout and not fits)
