"""Screen 3: what will watch a running server; this version says what can be done until then."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Static

from tui.screens.base import ModeScreen

TEXT = """\
Watching a server while it serves is not in this version (ttscope attach URL).

What can be done now:

  ttscope record --endpoint http://HOST:8000
      runs a workload against an OpenAI-compatible server and records each
      problem, its samples and their times as seen from outside

  ttscope record
      the same with vLLM in this process, with its steps, batch and KV cache

  ttscope doctor
      says what can be captured here, and what each missing part needs

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
