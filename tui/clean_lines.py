"""What every widget of the app draws, without what could command the terminal."""

from __future__ import annotations

from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

from tui.terminal_text import COMMANDS


class CleanLines(LineFilter):
    """Takes out the characters of `COMMANDS`, all without a width; Textual's own pass by."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """Return the segments without them."""
        if not any(COMMANDS.search(segment.text) for segment in segments):
            return segments
        return [
            segment if segment.control else segment._replace(text=COMMANDS.sub("", segment.text))
            for segment in segments
        ]
