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


class _LogLabels(NumericAxisFormatter):  # type: ignore[misc]
    """Labels of places that are logarithms."""

    def get_labels_for_ticks(self, ticks: Sequence[float]) -> list[str]:
        return [f"{float(f'{10**tick:.6g}'):g}" for tick in ticks]


class Scatter(PlotWidget):  # type: ignore[misc]
    """textual-plot's widget without pan, zoom and focus, and with a quiet frame."""

    DEFAULT_CSS = """
    Scatter {
        & > .plot--axis { color: $foreground 35%; }
        & > .plot--tick { color: $text-muted; text-style: none; }
        & > .plot--label { color: $text-muted; text-style: none; }
    }
    """

    @dataclass
    class Resized(Message):
        """The plot was given another size."""

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id, allow_pan_and_zoom=False)
        self.set_x_formatter(_Labels())
        self.set_y_formatter(_Labels())
        self.can_focus = False

    def set_x_log(self, log: bool) -> None:
        """Say whether x values are logarithms (base 10) of what is written at the ticks."""
        self.set_x_formatter(_LogLabels() if log else _Labels())

    def fit(self) -> None:
        """Draw once more, on canvases of the sizes that the layout has given them."""
        self._needs_canvas_resize = True  # as `refresh(layout=True)` does, without a layout
        self._rerender()

    @property
    def columns(self) -> int:
        """How many columns the x axis has: what the left margin and the frame leave."""
        columns: int = self.size.width - self.margin_left - 2
        return max(columns, 1)

    @property
    def rows(self) -> int:
        """How many rows the y axis has."""
        rows: int = self.size.height - self.margin_top - self.margin_bottom - 2
        return max(rows, 1)

    def on_resize(self) -> None:
        self.post_message(self.Resized())
