"""Screen 3: how a running server is watched; the watching itself is `ttscope attach`."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Static

from tui.screens.base import ModeScreen

TEXT = """\
A running server is watched from the command line; this screen does not show it live yet:

  ttscope attach http://HOST:8000 -o runs/live
      its own traffic, with a line per second and a verdict at the end

  ttscope attach http://HOST:8000 --workload problems.jsonl --n 8
      the same while a workload of yours is posed to it

  ttscope doctor http://HOST:8000
      says what can be seen of it, and what each missing part needs

Open the recording with ttscope tui RECORDING; it is then on screen 1.
"""


class LiveScreen(ModeScreen):
    """A page of text."""

    MODE = "live"
    CSS_PATH = "live.tcss"

    def compose_body(self) -> ComposeResult:
        """Return the text."""
        with VerticalScroll(id="page"):
            yield Static(TEXT, markup=False)

    def show_library(self) -> None:
        """Say that nothing is connected."""
        self.set_status("not connected")
