"""The first line of every screen: where one is, and a word about what is shown."""

from __future__ import annotations

from textual.content import Content
from textual.reactive import reactive
from textual.widgets import Static

TABS = (("recordings", "Recordings"), ("run", "Run"), ("live", "Live"), ("advice", "Advice"))


class NavBar(Static):
    """Names the four screens by their keys; a click goes there."""

    DEFAULT_CSS = """
    NavBar { height: 1; background: $panel; }
    """

    status: reactive[str] = reactive("")

    def __init__(self, current: str) -> None:
        super().__init__(markup=False)
        self._current = current

    def render(self) -> Content:
        tabs = []
        for number, (mode, title) in enumerate(TABS, 1):
            style = "reverse bold" if mode == self._current else ""
            label = Content.styled(f" {number} {title} ", style)
            tabs.append(label.stylize(f"@click=app.show('{mode}')"))
        left = Content.assemble((" ttscope ", "bold $accent"), *tabs)
        if left.cell_length + len(self.status) + 2 > self.size.width:
            left = Content.assemble(*tabs)
        room = self.size.width - left.cell_length - 2
        status = self.status if len(self.status) <= room else f"{self.status[: max(room - 1, 0)]}…"
        space = " " * max(room - len(status) + 1, 1)
        return Content.assemble(left, space, (status, "$text-muted"))
