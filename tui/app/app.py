"""The terminal app: four screens over one library of recordings."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import rich.text
import textual.content
from rich.segment import Segment
from textual.app import SystemCommand
from textual.binding import Binding, BindingType
from textual.color import Color
from textual.dom import DOMNode
from textual.events import Event, Key
from textual.filter import LineFilter
from textual.message_pump import MessagePump
from textual.screen import Screen
from textual.worker import WorkerCancelled

from traces.errors import UsageError
from traces.plain_text import COMMANDS, clean_lines
from tui.app.keys import read_keys
from tui.app.themes import DARK, LIGHT, ThemedStylesheet
from tui.screens.advice.screen import AdviceScreen
from tui.screens.base import HelpScreen, Section, sentence, shown_key
from tui.screens.library_app import AdvisorFactory, FittedAdvisor, LibraryApp
from tui.screens.live.screen import LiveScreen
from tui.screens.recordings.screen import RecordingsScreen
from tui.screens.run.screen import RunScreen
from tui.widgets.navbar import TABS

if TYPE_CHECKING:
    from textual.pilot import Pilot

    from advisor.advice.advisor import Advisor

SCREENS = ("recordings", "run", "live", "advice")
SCREENS_TOLD = "Go to Recordings, Run, Live or Advice."
QUIT_TOLD = "Leave ttscope. The recording of a server that is being watched is completed first."
ROUNDS, MOST_ROUNDS = 100, 300  # that a key waits for, later ones of 5 ms: some may never rest
MARKS = [("-", "Not measured."), ("*", "Outside what was measured.")]


# Rich and Textual leave some of `COMMANDS` out of each text. The app shows them as verbs do.
rich.text.strip_control_codes = clean_lines  # type: ignore[assignment, attr-defined]
textual.content._strip_control_codes = clean_lines  # type: ignore[assignment]


class CleanLines(LineFilter):
    """Takes out the characters of `COMMANDS`, all without a width; Textual's own pass by.

    It serves what was not drawn from a text. It runs the other filters too, so that a line is built
    once.
    """

    def __init__(self, before: Sequence[LineFilter] = ()) -> None:
        super().__init__()
        self.before = before

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        for each in self.before:
            segments = each.apply(segments, background)
        if not any(COMMANDS.search(segment.text) for segment in segments):
            return segments
        return [
            segment if segment.control else segment._replace(text=COMMANDS.sub("", segment.text))
            for segment in segments
        ]


FONT_FACE = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


class TtscopeApp(LibraryApp):
    """Shows recordings, one run, and advice.

    Parameters
    ----------
    paths: recordings, or folders that hold them; they are read in a thread.
    advisor_factory: fits an advisor to recordings; None takes the real one.
    systems: of the prior, offered in advice too.
    fitted: an advisor that has learned from the complete recordings in `paths`.
    limits: what the budget fields hold at the start, such as {"min_accuracy": "0.8"}.
    present: a recording of what runs today; read with the others.
    keys: a TOML file of keys that are elsewhere; raises UsageError where it is wrong.
    screen: the one that is shown first.
    watch: what the Live screen watches at the start, as its field takes it.

    """

    TITLE = "ttscope"
    CSS_PATH = "app.tcss"
    ENABLE_COMMAND_PALETTE = True
    MODES: ClassVar[dict[str, Any]] = {
        "recordings": RecordingsScreen,
        "run": RunScreen,
        "live": LiveScreen,
        "advice": AdviceScreen,
    }
    DEFAULT_MODE = "recordings"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "1",
            "show('recordings')",
            "Recordings",
            id="app.recordings",
            show=False,
            tooltip=SCREENS_TOLD,
        ),
        Binding("2", "show('run')", "Run", id="app.run", show=False, tooltip=SCREENS_TOLD),
        Binding("3", "show('live')", "Live", id="app.live", show=False, tooltip=SCREENS_TOLD),
        Binding(
            "4",
            "show('advice')",
            "Advice",
            id="app.advice",
            show=False,
            tooltip=SCREENS_TOLD,
        ),
        Binding(
            "t",
            "light",
            "light or dark",
            id="app.theme",
            show=False,
            tooltip="Change between dark and light.",
        ),
        Binding("question_mark", "help", "help", id="app.help", tooltip="Show this help."),
        Binding("q", "quit", "quit", id="app.quit", tooltip=QUIT_TOLD),
    ]

    def __init__(
        self,
        paths: Sequence[Path],
        advisor_factory: AdvisorFactory | None = None,
        *,
        limits: Mapping[str, str] | None = None,
        present: Path | None = None,
        systems: Sequence[str] = (),
        fitted: Advisor | None = None,
        keys: Path | None = None,
        screen: str = DEFAULT_MODE,
        watch: str = "",
    ) -> None:
        factory = advisor_factory or partial(FittedAdvisor, systems=systems)
        self.DEFAULT_MODE = screen  # type: ignore[misc]
        super().__init__(paths, factory, present, fitted)
        self._left = False
        self._unheeded = False  # whether the last key was a letter that does nothing
        self._typed: deque[Key] = deque()  # keys that wait for the one before
        self._passing: asyncio.Task[None] | None = None  # gives them on
        self._clean = CleanLines()
        self.stylesheet = ThemedStylesheet()
        self.stylesheet.set_variables(self.get_css_variables())
        if keys is not None:
            self.set_keymap(read_keys(keys, key_ids()))
        self.limits, self.watch_first = dict(limits or {}), watch

    def get_line_filters(self) -> Sequence[LineFilter]:
        """Return the filter that keeps commands from the terminal, behind Textual's."""
        before = super().get_line_filters()
        if before != self._clean.before:
            self._clean = CleanLines(before)
        return [self._clean]

    def notify(self, message: str, **given: Any) -> None:
        """Show a message as it is: a name in it may look like Textual's markup."""
        super().notify(message, **given | {"markup": False})

    def export_screenshot(self, **options: Any) -> str:
        """Return the screen as SVG, without the fonts that Rich would have fetched from a host."""
        return FONT_FACE.sub("", super().export_screenshot(**options))

    def on_mount(self) -> None:
        for theme in (DARK, LIGHT):
            self.register_theme(theme)
        self.theme = DARK.name
        self.open_first()

    def refresh_css(self, animate: bool = False) -> None:
        """Find the styles of another theme; colours change at once, on screens shown later too."""
        super().refresh_css(animate=animate)

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """Offer every key of the screen that is shown in the palette, and what Textual has more."""
        titles = set()
        for active in screen.active_bindings.values():
            binding, node = active.binding, active.node
            title = binding.description.capitalize()
            if binding.id is not None and title not in titles:
                titles.add(title)
                run = partial(self.call_later, self.run_action, binding.action, node)
                key = binding.key_display or shown_key(binding.key)
                yield SystemCommand(title, f"{sentence(binding)} Key: {key}", run)
        ours = {*titles, "Keys"}  # the help has them
        yield from (each for each in super().get_system_commands(screen) if each.title not in ours)

    async def on_event(self, event: Event) -> None:
        """Let a key on its way once the one before has done all, so that it reaches what opened.

        Textual gives it to what has the focus when it comes, however busy that is. Keys that were
        typed after `q` do nothing, as screens are gone.
        """
        if not isinstance(event, Key):
            await super().on_event(event)
        elif self._left:
            pass
        elif event.is_forwarded:
            await super().on_event(event)
        elif self._passing is not None:
            self._typed.append(event)
        else:
            await super().on_event(event)
            self._passing = asyncio.create_task(self._pass_on())

    def on_key(self, event: Key) -> None:
        """Say of a letter that it does nothing here: who types it may think a field is open.

        Right behind one, a key that changes screens or leaves is of the same text and waits to be
        pressed again. Fields keep their letters, so these never come here.
        """
        if not event.is_printable or len(self.screen_stack) > 1:
            return
        active = self.screen.active_bindings.get(event.key)
        typed, key = self._unheeded, shown_key(event.key)
        self._unheeded = active is None or not active.enabled
        if self._unheeded and not typed:
            self.clear_notifications()
            self.notify(f"{key} does nothing here now, and no field is open. ? lists the keys")
        elif typed and active is not None and active.node is self and key != "?":
            event.prevent_default()
            self.clear_notifications()
            does = active.binding.description.lower()
            self.notify(f"No field is open. Press {key} again for: {does}")

    async def _pass_on(self) -> None:
        """Give each key that waits to the app, once no message is left of the one before."""
        while True:
            for at in range(MOST_ROUNDS):
                await asyncio.sleep(0 if at < ROUNDS else 0.005)
                if not any(each.message_queue_size for each in self._who_listens()):
                    break
            if self._left or not (self._typed and self.is_running):
                break
            await super().on_event(self._typed.popleft())
        self._passing = None

    @property
    def keys_waiting(self) -> bool:
        """Whether a key is on its way, or waits for that."""
        return self._passing is not None

    def _who_listens(self) -> Iterable[MessagePump]:
        yield self
        for screen in self.screen_stack:
            yield from screen.walk_children(with_self=True)

    async def action_quit(self) -> None:
        self._left = True
        await super().action_quit()

    def action_show(self, mode: str) -> None:
        """Show a screen; from the table of runs, screen 2 with the one under the cursor."""
        if mode == "run" and isinstance(self.screen, RecordingsScreen):
            chosen = self.screen.chosen
            if chosen is not None:
                self.choose_run(chosen)
        self.switch_mode(mode)

    def action_light(self) -> None:
        self.theme = LIGHT.name if self.theme == DARK.name else DARK.name

    def action_help(self) -> None:
        """Show what every key does here, and what the columns are."""
        by_node: dict[DOMNode | None, dict[str, list[str]]] = {}
        for key, active in self.screen.active_bindings.items():
            if key == "ctrl+q" and active.binding.id is None:  # Textual's, beside ours
                continue
            if active.binding.tooltip:
                rows = by_node.setdefault(active.node, {})
                rows.setdefault(sentence(active.binding), []).append(shown_key(key))
            elif active.binding.id is not None:
                by_node.setdefault(active.node, {})[sentence(active.binding)] = [shown_key(key)]

        def rows_of(node: DOMNode | None) -> list[tuple[str, str]]:
            return [(" ".join(keys), what) for what, keys in by_node.get(node, {}).items()]

        sections: list[Section] = [
            (f"Keys of {dict(TABS)[self.current_mode]}", rows_of(self.screen)),
            ("Moving", [*rows_of(self.screen.focused), ("tab", "Go to the next panel or field.")]),
            ("Columns and marks", [*getattr(self.screen, "LEGEND", ()), *MARKS]),
            ("Every screen", rows_of(self)),
        ]
        self.push_screen(HelpScreen(sections))


def key_ids() -> set[str]:
    """Return the ids of everything that has a key."""
    owners = (TtscopeApp, *TtscopeApp.MODES.values())
    ids = {getattr(binding, "id", None) for owner in owners for binding in owner.BINDINGS}
    return {each for each in ids if each}


def check_screen(screen: str) -> None:
    """Raise UsageError where there is no such screen."""
    if screen not in SCREENS:
        raise UsageError(f"--screen {screen}: wants one of {', '.join(SCREENS)}")


def screenshot(app: TtscopeApp, screen: str, size: tuple[int, int], target: Path) -> None:
    """Write a screen as SVG, once everything it shows has been loaded and worked out.

    Raises UsageError when the size is too small or the file cannot be written.
    """
    if size[0] < 40 or size[1] < 12:
        raise UsageError(f"--size {size[0]}x{size[1]}: wants at least 40x12")
    text = asyncio.run(_take(app, screen, size))
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{target}: cannot be written ({error.strerror})") from None


async def _take(app: TtscopeApp, screen: str, size: tuple[int, int]) -> str:
    async with app.run_test(size=size) as pilot:
        await settle(pilot)
        if screen != "recordings":
            await app.switch_mode(screen)
            await pilot.pause()
            await settle(pilot)
        return app.export_screenshot(title="ttscope")


async def settle(pilot: Pilot[None]) -> None:
    """Wait until no worker runs, and no message is left that would start another."""
    while True:
        with suppress(WorkerCancelled):  # what was asked meanwhile has taken its place
            await pilot.app.workers.wait_for_complete()
        await pilot.pause()
        await pilot.pause()
        if all(worker.is_finished for worker in pilot.app.workers):
            return
