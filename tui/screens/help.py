"""The keys of the screen below, with what they do."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from tui.formats import align

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
        """Return the list."""
        rows = [(shown_key(key), what) for key, what in self._bindings_shown]
        text = ["keys", "", *align(rows, gap=3), "", "- not measured   * outside what was measured"]
        with VerticalScroll():
            yield Static("\n".join(text), markup=False)
