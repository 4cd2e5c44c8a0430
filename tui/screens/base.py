"""What the four screens share: the bar above, the keys below, and news of the library."""

from __future__ import annotations

from typing import ClassVar, cast

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen, Screen
from textual.widgets import Footer, Static

from tui.screens.library_app import LibraryApp
from tui.text.layout import align
from tui.widgets.navbar import NavBar


class ModeScreen(Screen[None]):
    """A screen under one of the keys 1 to 4; `show_library` is called when recordings load."""

    MODE: ClassVar[str]

    @property
    def ttscope(self) -> LibraryApp:
        return cast(LibraryApp, self.app)

    def compose(self) -> ComposeResult:
        yield NavBar(self.MODE)
        yield from self.compose_body()
        yield Footer(compact=True, show_command_palette=False)

    def compose_body(self) -> ComposeResult:
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
        self.query_one(NavBar).status = text


# The keys of the screen below, with what they do.


NAMES = {"slash": "/", "question_mark": "?", "left_square_bracket": "[", "space": "space"}
NAMES |= {"right_square_bracket": "]", "less_than_sign": "<", "greater_than_sign": ">"}
NAMES |= {"comma": ",", "full_stop": ".", "plus": "+", "equals_sign": "=", "minus": "-"}
NAMES |= {"dollar_sign": "$"}


def shown_key(key: str) -> str:
    """Return a key as it stands on the keyboard."""
    return NAMES.get(key, key)


class HelpScreen(ModalScreen[None]):
    """A list of keys; any of escape, ? and q closes it."""

    CSS_PATH = "help.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,q", "dismiss", "close", show=False),
    ]

    def __init__(self, bindings: list[tuple[str, str]]) -> None:
        super().__init__()
        self._bindings_shown = bindings

    def compose(self) -> ComposeResult:
        rows = [(shown_key(key), what) for key, what in self._bindings_shown]
        text = ["keys", "", *align(rows, gap=3), "", "- not measured   * outside what was measured"]
        with VerticalScroll():
            yield Static("\n".join(text), markup=False)


# A question before something that cannot be undone.


class ConfirmScreen(ModalScreen[bool]):
    """Answers True for y; n, escape and q are no."""

    CSS_PATH = "confirm.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "dismiss(True)", "yes"),
        Binding("n,escape,q", "dismiss(False)", "no"),
    ]

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(f"{self._question}\n\ny  yes    n  no", markup=False)
