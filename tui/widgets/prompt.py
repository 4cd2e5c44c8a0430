"""A field that says what it asks, and which keys answer it and leave it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.message import Message
from textual.suggester import Suggester
from textual.widgets import Input, Label


@dataclass(frozen=True, kw_only=True)
class FieldQuestion:
    """What a field asks for: its label, an example, and who completes what is typed."""

    label: str
    example: str
    suggester: Suggester | None = None


class Field(Input):
    """An input whose footer says enter and escape; escape posts `Left`, and the text stays."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "submit", "apply", key_display="enter"),
        Binding("escape", "cancel", "cancel", key_display="esc"),
    ]

    @dataclass
    class Left(Message):
        """Escape was pressed."""

        field: Field

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id, compact=True, select_on_focus=False)

    def action_cancel(self) -> None:
        self.post_message(self.Left(self))


class Prompt(Horizontal):
    """A field with its label, shown while it is asked; the field has an id of its own."""

    DEFAULT_CSS = """
    Prompt {
        height: 1;
        display: none;
        background: $boost;
        &.open, &.used { display: block; }
        Label { padding: 0 1; }
        .label { color: $text-accent; text-style: bold; }
        .keys { color: $text-muted; }
        Field { width: 1fr; background: $boost; }
    }
    """

    def __init__(self, *, field: str, id: str) -> None:
        super().__init__(id=id)
        self._label, self.field = Label(classes="label"), Field(id=field)

    def compose(self) -> ComposeResult:
        yield self._label
        yield self.field
        yield Label("enter applies, esc cancels", classes="keys")

    @property
    def is_open(self) -> bool:
        return self.has_class("open")

    def ask(self, question: FieldQuestion, text: str | None = "") -> None:
        """Show the field and go to it, with a text in it; None leaves what is in it."""
        self._label.update(question.label)
        self.field.placeholder = f"such as {question.example}"
        self.field.suggester = question.suggester
        if text is not None:
            self.field.value = text
        self.field.cursor_position = len(self.field.value)
        self.add_class("open")
        self.screen.set_focus(self.field)  # at once, for what is typed behind the key

    def close(self) -> None:
        """Hide the field, and forget what was in it."""
        self.field.value = ""
        self.remove_class("open")


class Paths(Suggester):
    """Completes the path that is typed last, by the names that are there."""

    def __init__(self) -> None:
        super().__init__(use_cache=False, case_sensitive=True)

    async def get_suggestion(self, value: str) -> str | None:
        word = value.rpartition(" ")[2]
        if not word:
            return None
        folder, _, begun = word.rpartition("/")
        there = Path(f"{folder}/" if folder or word.startswith("/") else ".").expanduser()
        try:
            names = sorted(path.name + ("/" if path.is_dir() else "") for path in there.iterdir())
        except (OSError, RuntimeError):  # no such folder, or no such home
            return None
        found = next((name for name in names if begun and name.startswith(begun)), None)
        return None if found is None else value[: len(value) - len(begun)] + found


class Words(Suggester):
    """Completes the word that is typed last, to one of those that are known."""

    def __init__(self, known: Sequence[str]) -> None:
        super().__init__(use_cache=False, case_sensitive=True)
        self._known = known

    async def get_suggestion(self, value: str) -> str | None:
        word = value.rpartition(" ")[2]
        found = next((name for name in self._known if word and name.startswith(word)), None)
        return None if found is None else value[: len(value) - len(word)] + found
