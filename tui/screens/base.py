"""What the four screens share: the bar above, the keys below, and news of the library."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, TypeVar, cast

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.events import ScreenResume
from textual.message import Message
from textual.reactive import Reactive
from textual.screen import ModalScreen, Screen
from textual.widget import Widget
from textual.widgets import Input, Static
from textual.worker import get_current_worker

from tui.screens.library import failure
from tui.screens.library_app import LibraryApp
from tui.text.layout import wrap
from tui.widgets.navbar import NavBar
from tui.widgets.still import StillText, blank_lines

Result = TypeVar("Result")
SETTLING = 100  # rounds of messages that a drawing waits for at most


class CalmScreen(Screen[Result]):
    """Draws once what a layout changes, and what widgets change as they have another size.

    Textual draws all of it after each layout, and layouts follow each other until the widgets have
    heard of theirs. It also draws everything when the focus moves, beside what shows that.
    """

    focused: Reactive[Widget | None] = Reactive(None, repaint=False)

    def __init__(self) -> None:
        super().__init__()
        self._settling: asyncio.Task[None] | None = None
        self._css_update_count = self.app._css_update_count  # its widgets find the styles of today

    def on_screen_resume(self, event: ScreenResume) -> None:
        """Find no styles again that were found: those of another theme are, without this."""
        event.refresh_styles = False

    def _compositor_refresh(self) -> None:
        if self is not self.app.screen:  # behind a question or the help, which draw it
            super()._compositor_refresh()
        elif self._settling is None:
            self._settling = asyncio.create_task(self._settle())

    async def _settle(self) -> None:
        """Have it drawn once no widget has a message left."""
        try:
            for _ in range(SETTLING):
                await asyncio.sleep(0)
                if not self.is_running:
                    return
                if any(each.message_queue_size for each in self.walk_children(with_self=True)):
                    continue
                if not self._layout_required:
                    break
                self._layout_required = False
                self._refresh_layout(scroll=self._scroll_required)
                self._scroll_required = False
        finally:
            self._settling = None
        if self.is_running and not self.app._batch_count:
            try:
                self._compositor.update_widgets(self._dirty_widgets)
                super()._compositor_refresh()
            except Exception as error:
                self.app._handle_exception(error)
            self.check_idle()  # a layout pauses the timer that what follows a drawing waits for


class KeyFooter(Static):
    """The keys of a screen in one line, and a click presses one.

    Where there is no room for all, the last go, and help and quit stay. Textual's has a widget for
    each key and makes all of them again whenever the focus moves.
    """

    DEFAULT_CSS = """
    KeyFooter { dock: bottom; height: 1; }
    KeyFooter { color: $footer-foreground; background: $footer-background; }
    """
    STAY = ("help", "quit")
    ALLOW_SELECT = False

    def __init__(self) -> None:
        super().__init__(markup=False)
        self.shown: dict[str, str] = {}  # what each key does

    def on_mount(self) -> None:
        self.screen.bindings_updated_signal.subscribe(self, self._bindings_changed)

    def _bindings_changed(self, screen: Screen[object]) -> None:
        if screen is self.screen and self.app.app_focus:
            self.call_after_refresh(self._show_keys)

    def on_resize(self) -> None:
        self._show_keys()

    def _show_keys(self) -> None:
        first: dict[str, Binding] = {}  # of each action
        for active in self.screen.active_bindings.values():
            if active.binding.show:
                first.setdefault(active.binding.action, active.binding)
        keys = [(self.app.get_key_display(each), each) for each in first.values()]
        columns = [len(key) + len(each.description) + 2 for key, each in keys]
        stay = [each.action in self.STAY for _, each in keys]
        room = self.size.width + 1 - sum(map(operator.mul, columns, stay))
        drawn = []
        for (key, each), wide, stays in zip(keys, columns, stay, strict=True):
            room -= 0 if stays else wide
            if stays or room >= 0:
                drawn.append((key, each))
        shown = {key: each.description for key, each in drawn}
        if shown == self.shown:
            return
        self.shown = shown
        parts = [
            Content.assemble((key, "bold $footer-key-foreground"), f" {each.description}").stylize(
                f"@click=app.simulate_key('{each.key}')"
            )
            for key, each in drawn
        ]
        self.update(Content(" ").join(parts), layout=False)


def footer_key(
    id: str, keys: str, action: str, words: str, told: str, *, display: str | None = None
) -> Binding:
    """Return a key by the id under which users put it elsewhere.

    `words` stand in the footer, `told` in the help.
    """
    return Binding(keys, action, words, key_display=display, tooltip=told, id=id)


def help_key(id: str, keys: str, action: str, words: str, told: str) -> Binding:
    """Return a key that the help has and the footer has not."""
    return replace(footer_key(id, keys, action, words, told), show=False)


def set_class_alone(widget: Widget, on: bool, name: str) -> None:
    """Set a class whose rules change nothing but the widget.

    Textual would find the styles of everything below it again.
    """
    if widget.has_class(name) != on:
        widget.set_class(on, name, update=False)
        widget.app.stylesheet.apply(widget)


@dataclass
class Made(Message):
    """What shows what a worker made, and whether that is asked for still."""

    show: Callable[[], None]
    still: Callable[[], bool]


class ModeScreen(CalmScreen[None]):
    """A screen under one of the keys 1 to 4; `show_library` is called when recordings load.

    `LEGEND` are columns and marks of it with their meaning, for the help.
    """

    DEFAULT_CSS = """
    ModeScreen #message {
        height: auto;
        display: none;
        color: $text-muted;
        &.bad { color: $text-error; }
    }
    """
    MODE: ClassVar[str]
    LEGEND: ClassVar[Sequence[tuple[str, str]]] = ()
    render_lines = blank_lines

    @property
    def ttscope(self) -> LibraryApp:
        return cast(LibraryApp, self.app)

    def compose(self) -> ComposeResult:
        yield NavBar(self.MODE)
        yield from self.compose_body()
        yield KeyFooter()

    def compose_body(self) -> ComposeResult:
        raise NotImplementedError

    def on_mount(self) -> None:
        self.ttscope.library_changed.subscribe(self, lambda _: self._changed())

    def on_screen_resume(self, event: ScreenResume) -> None:
        """Show what was opened, loaded or marked meanwhile."""
        self._changed()

    def _changed(self) -> None:
        if self.is_current:
            self.show_library()

    def show_library(self) -> None:
        """Show what has been loaded so far."""

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Leave the keys to a field while one is typed into, so that the footer is true."""
        return not isinstance(self.focused, Input) or action.startswith("leave")

    def ask(
        self,
        make: Callable[[], Result],
        show: Callable[[Result], None],
        failed: Callable[[str], None] | None = None,
        *,
        group: str,
        exclusive: bool = False,
        still: Callable[[], bool] = lambda: True,
    ) -> None:
        """Make an answer in a thread, then show it, or say why there is none.

        Neither happens once the group was cancelled, or where the question stands no longer. No
        error ends the app.
        """

        def work() -> None:
            worker = get_current_worker()
            try:
                made = partial(show, make())
            except Exception as problem:
                made = partial(failed or self._refuse, failure(problem))
            if not worker.is_cancelled:
                self.post_message(Made(made, still))

        self.run_worker(work, thread=True, group=group, exclusive=exclusive)

    @on(Made)
    def _show_made(self, event: Made) -> None:
        if event.still():
            event.show()

    def _refuse(self, why: str) -> None:
        self.say(why, bad=True)

    def say(self, text: str, *, bad: bool = False) -> None:
        """Show a word about what was asked in the line for that, or nothing."""
        message = self.query_one("#message", StillText)
        message.display = bool(text)
        message.set_class(bad, "bad").update(text)

    def set_status(self, text: str) -> None:
        self.query_one(NavBar).status = text


# The keys of the screen below, with what they do.


NAMES = {"slash": "/", "question_mark": "?", "left_square_bracket": "[", "space": "space"}
NAMES |= {"right_square_bracket": "]", "less_than_sign": "<", "greater_than_sign": ">"}
NAMES |= {"comma": ",", "full_stop": ".", "plus": "+", "equals_sign": "=", "minus": "-"}
NAMES |= {"dollar_sign": "$", "left": "←", "right": "→", "up": "↑", "down": "↓", "escape": "esc"}
HELP_COLUMNS = 92

Section = tuple[str, list[tuple[str, str]]]  # a heading, and rows of keys and what they do


def shown_key(key: str) -> str:
    """Return a key as it stands on the keyboard."""
    kind, _, last = key.rpartition("+")
    return f"{kind}+{NAMES.get(last, last)}" if kind else NAMES.get(key, key)


def sentence(binding: Binding) -> str:
    """Return what a key does in a sentence: its tooltip, or what the footer says."""
    words = binding.tooltip or binding.description
    return words if words.endswith((".", "!")) else f"{words[:1].upper()}{words[1:]}."


class HelpScreen(CalmScreen[None], ModalScreen[None]):
    """Keys with what they do, in sections; any of escape, ? and q closes it."""

    CSS_PATH = "help.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,q", "dismiss", "close", show=False),
        Binding("j", "scroll(1)", show=False),
        Binding("k", "scroll(-1)", show=False),
    ]

    def __init__(self, sections: Sequence[Section]) -> None:
        super().__init__()
        self._sections = sections

    def compose(self) -> ComposeResult:
        width = min(self.app.size.width - 4, HELP_COLUMNS) - 6
        indent = max(len(key) for _, rows in self._sections for key, _ in rows) + 3
        parts: list[Content | str] = [
            Content.styled("Help", "bold"),
            "   esc closes it, ↑ ↓ scroll\n",
        ]
        for heading, rows in self._sections:
            parts += ["\n", Content.styled(heading, "bold $text-accent"), "\n"]
            for key, what in rows:
                first, *more = wrap(key, what, width=width, indent=indent)
                parts += [Content(first).stylize("$text-accent", 0, len(key)), "\n"]
                parts += [f"{line}\n" for line in more]
        with VerticalScroll():
            yield Static(Content.assemble(*parts), markup=False)

    def action_scroll(self, lines: int) -> None:
        self.query_one(VerticalScroll).scroll_relative(y=lines, animate=False)


# A question before something that cannot be undone.


class ConfirmScreen(CalmScreen[bool], ModalScreen[bool]):
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
