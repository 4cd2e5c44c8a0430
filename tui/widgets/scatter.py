"""A plot that says when it has a new size, so that its ticks can follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textual.message import Message
from textual_plot import NumericAxisFormatter, PlotWidget

from tui.text.layout import tick_labels


class _Labels(NumericAxisFormatter):  # type: ignore[misc]
    """Labels of which none is rounded, as are those of a single tick, or of two far apart."""

    def get_labels_for_ticks(self, ticks: Sequence[float]) -> list[str]:
        return tick_labels(ticks)


class Scatter(PlotWidget):  # type: ignore[misc]
    """textual-plot's widget without pan, zoom and focus."""

    @dataclass
    class Resized(Message):
        """The plot was given another size."""

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id, allow_pan_and_zoom=False)
        self.set_x_formatter(_Labels())
        self.set_y_formatter(_Labels())
        self.can_focus = False

    @property
    def columns(self) -> int:
        """How many columns the x axis has: what the left margin and the frame leave."""
        columns: int = self.size.width - self.margin_left - 2
        return max(columns, 1)

    def on_resize(self) -> None:
        self.post_message(self.Resized())
