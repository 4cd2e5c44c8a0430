"""What the four screens share: the bar above, the keys below, and news of the library."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from textual.app import ComposeResult
from textual.screen import Screen
from textual.widgets import Footer

from tui.widgets.navbar import NavBar

if TYPE_CHECKING:
    from tui.app import TtscopeApp


class ModeScreen(Screen[None]):
    """A screen under one of the keys 1 to 4; `show_library` is called when recordings load."""

    MODE: ClassVar[str]

    @property
    def ttscope(self) -> TtscopeApp:
        """Return the app, which holds the recordings and the marks."""
        return cast("TtscopeApp", self.app)

    def compose(self) -> ComposeResult:
        """Return the bar, the screen's own widgets and the keys."""
        yield NavBar(self.MODE)
        yield from self.compose_body()
        yield Footer(compact=True, show_command_palette=False)

    def compose_body(self) -> ComposeResult:
        """Return the screen's own widgets."""
        raise NotImplementedError

    def on_mount(self) -> None:
        """Listen for recordings, and show what is there."""
        self.ttscope.library_changed.subscribe(self, lambda _: self._changed())
        self.show_library()

    def on_screen_resume(self) -> None:
        """Show what was opened, loaded or marked meanwhile."""
        self.show_library()

    def _changed(self) -> None:
        if self.is_current:
            self.show_library()

    def show_library(self) -> None:
        """Show what has been loaded so far."""

    def set_status(self, text: str) -> None:
        """Write into the right of the bar."""
        self.query_one(NavBar).status = text
