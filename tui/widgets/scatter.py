"""A plot that says when it has a new size, so that its ticks can follow."""

from __future__ import annotations

from dataclasses import dataclass

from textual.message import Message
from textual_plot import PlotWidget


class Scatter(PlotWidget):  # type: ignore[misc]
    """textual-plot's widget without pan, zoom and focus."""

    @dataclass
    class Resized(Message):
        """The plot was given another size."""

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id, allow_pan_and_zoom=False)
        self.can_focus = False

    def on_resize(self) -> None:
        """Tell the screen, which sets limits and ticks."""
        self.post_message(self.Resized())
