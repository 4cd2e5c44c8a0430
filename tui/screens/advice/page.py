"""A page of lines that scrolls, and a line above them about what goes on."""

from __future__ import annotations

import time
from itertools import zip_longest

from textual.content import Content
from textual.events import Resize
from textual.geometry import Size
from textual.reactive import Reactive
from textual.scroll_view import ScrollView
from textual.selection import Selection
from textual.strip import Strip
from textual.timer import Timer
from textual.visual import Visual

BAR = 40  # columns at most
TURN_S = 2.0  # that the piece of a bar without a total takes to and fro


class Page(ScrollView):
    """Other lines ask for no layout of the screen: what is not their own is not drawn again."""

    DEFAULT_CSS = "Page { overflow-y: scroll; overflow-x: hidden; }"

    virtual_size = Reactive(Size(0, 0))
    auto_links = Reactive(False)  # there are none

    def __init__(self, *, id: str, classes: str) -> None:
        super().__init__(id=id, classes=classes)
        self._content = Content("")
        self._laid_out = (Content(""), 0)  # what `_lines` are of, and how wide
        self._lines: list[Content] = []
        self._strips: dict[int, Strip] = {}  # of lines that were seen
        self._doing: tuple[str, int, int | None] | None = None
        self._timer: Timer | None = None

    def on_mount(self) -> None:
        self._timer = self.set_interval(TURN_S / 20, self._turn, pause=True)

    def show(self, content: Content) -> None:
        self._content = content
        self._draw()

    def show_progress(self, doing: str | None, done: int = 0, total: int | None = None) -> None:
        """Say what goes on, with a bar. Without a total a piece of it runs to and fro."""
        self._doing = None if doing is None else (doing, done, total)
        if self._timer is not None:
            self._timer.resume() if self._doing and total is None else self._timer.pause()
        self._draw()

    def render(self) -> Content:
        return Content("\n").join(self._lines)

    def render_line(self, y: int) -> Strip:
        at, width = y + round(self.scroll_y), self.scrollable_content_region.width
        look = self.visual_style
        if at >= len(self._lines):
            return Strip.blank(width, look.rich_style)
        if at not in self._strips and self.text_selection is not None:
            self._strips = dict(enumerate(Visual.to_strips(self, self.render(), width, None, look)))
        elif at not in self._strips:
            (strip,) = Visual.to_strips(self, self._lines[at], width, 1, look)
            self._strips[at] = strip.apply_offsets(0, at)
        return self._strips[at].adjust_cell_length(width, look.rich_style)

    def _draw(self) -> None:
        width, content = self.scrollable_content_region.width, self._content
        if not width:
            return
        if self._doing is not None:
            content = Content("\n").join([self._busy_line(*self._doing), content])
        if width != self._laid_out[1] or not content.is_same(self._laid_out[0]):
            lines = content.split(allow_blank=True)
            if any(line.cell_length > width for line in lines):
                lines = content.wrap(width)
            if len(lines) != len(self._lines):
                self.virtual_size = Size(width, len(lines))
                self._scroll_update(self.virtual_size)
            self._lines, self._laid_out = lines, (content, width)
        self._strips = {}
        self.refresh()

    def _turn(self) -> None:
        """Draw the line about what goes on, which is the first, and none below it."""
        line = None if self._doing is None else self._busy_line(*self._doing)
        if line is None or not self._lines or line.cell_length > self._laid_out[1]:
            self._draw()
            return
        self._lines[0] = line
        self._strips.pop(0, None)
        self.refresh_line(0)

    def _busy_line(self, doing: str, done: int, total: int | None) -> Content:
        count = "" if total is None else f" {done} of {total}"
        width = min(BAR, self.scrollable_content_region.width - len(doing) - len(count) - 1)
        width = max(width, 0)
        if total:
            begins, ends = 0, round(width * done / total)
        else:
            turn = abs(time.monotonic() % TURN_S / TURN_S * 2 - 1)
            begins = round(turn * (width - width // 4))
            ends = begins + width // 4
        bar = [
            (mark * columns, style)
            for mark, columns, style in (
                ("─", begins, "$foreground 35%"),
                ("━", ends - begins, "$primary"),
                ("─", width - ends, "$foreground 35%"),
            )
        ]
        return Content.assemble((f"{doing}{count} ", "$text-muted"), *bar)

    def on_resize(self, _: Resize) -> None:
        self._draw()

    def notify_style_update(self) -> None:
        """Draw in the colours of another theme."""
        super().notify_style_update()
        self._draw()

    def selection_updated(self, selection: Selection | None) -> None:
        self._draw()

    def watch_has_focus(self, _has_focus: bool) -> None:
        """Find the page's own styles again, and not those of everything around it."""
        self.app.stylesheet.apply(self)


def beside(left: Content, right: Content, columns: int) -> Content:
    """Return lines beside others, which begin at a column."""
    pairs = zip_longest(left.split("\n"), right.split("\n"), fillvalue=Content(""))
    return Content("\n").join(
        [one.pad_right(columns - one.cell_length) + other for one, other in pairs]
    )
