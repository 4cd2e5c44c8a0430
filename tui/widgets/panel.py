"""A framed panel with a title: charts that fill the room that its lines leave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from textual.content import Content
from textual.widgets import Static

from tui.text.layout import whole_parts
from tui.widgets.lanes import Lane, Lanes, lanes_content


@dataclass(frozen=True, kw_only=True)
class Panel:
    """What a panel shows: `lanes` makes charts of so many columns, `lines` stand below them.

    `heading` makes what stands above charts of so many columns, where there is room.
    """

    title: str
    lanes: Callable[[int], Sequence[Lane]] | None = None
    lines: tuple[str, ...] = ()
    heading: Callable[[int], str] | None = None

    @property
    def needs(self) -> int:
        """The rows that show all of it, the frame included."""
        return (0 if self.lanes is None else len(self.lanes(1))) + len(self.lines) + 2


class PanelView(Static):
    """Draws a panel in the size that it has, and nothing without one."""

    DEFAULT_CSS = """
    PanelView { height: 1fr; padding: 0 1; border: round $primary 50%; }
    PanelView { border-title-color: $text-accent; border-title-style: bold; }
    """

    def __init__(self) -> None:
        super().__init__(markup=False)
        self._panel: Panel | None = None

    def show(self, panel: Panel | None) -> None:
        self._panel = panel
        self.display = panel is not None
        if panel is not None:
            self.border_title = panel.title
            self.refresh()

    def render(self) -> Content:
        panel = self._panel
        if panel is None:
            return Content("")
        width, height = self.content_size
        lanes = [] if panel.lanes is None else panel.lanes(Lanes.bins(width + 1))
        lines = panel.lines[: max(height - len(lanes), 0)]
        columns, room, above = Lanes.bins(width + 1), height - len(lines), []
        if panel.heading is not None and lanes and room > 2 * len(lanes):
            above, room = [Content.styled(panel.heading(columns), "$text-muted")], room - 1
        shown = [*above, *lanes_content(lanes, -1, "", room)]
        shown += [Content(whole_parts(line, width)) for line in lines]
        return Content("\n").join(shown[:height])
