"""The page of the Advice screen shows, wraps and selects its text as Textual's own does."""

from textual.app import App
from textual.content import Content
from textual.widgets import Static

from tests.tui.pilot import settle
from tui.screens.advice.page import Page

TEXT = Content("\n").join(
    [
        Content.styled("a head", "bold $accent"),
        Content(""),
        Content.assemble("  a line that is longer than the page is ", ("wide", "$error"), "."),
        Content("x" * 50),
        *(Content(f"line {at}") for at in range(30)),
    ]
)


class Pages(App):
    CSS = """
    Page, Static { width: 31; height: 12; background: $panel; color: $foreground; }
    Page { scrollbar-size-vertical: 1; }
    Static { width: 30; }
    """

    def compose(self):
        yield Page(id="page", classes="panel")
        yield Static(TEXT)


def looks(widget):
    """Return each letter of the first rows with its style."""
    lines = [[*widget.render_line(y)] for y in range(12)]
    return [
        [(letter, style.without_color, style.color, style.bgcolor)]
        for line in lines
        for letters, style, _ in line
        for letter in letters.strip()
    ]


async def test_it_shows_what_a_static_does_and_scrolls_to_the_rest():
    app = Pages()
    async with app.run_test(size=(40, 26)) as pilot:
        page = app.query_one(Page)
        page.show(TEXT)
        for theme in ("textual-dark", "textual-light"):
            app.theme = theme
            await settle(pilot)
            assert looks(page) == looks(app.query_one(Static))
        page.scroll_end(animate=False)
        await settle(pilot)
        assert "line 29" in page.render_line(11).text
        page.show(Content("other"))
        await settle(pilot)
        assert [page.render_line(y).text.strip() for y in range(3)] == ["other", "", ""]


async def test_what_is_selected_is_marked_and_copied():
    app = Pages()
    async with app.run_test(size=(40, 26)) as pilot:
        page = app.query_one(Page)
        page.show(TEXT)
        await settle(pilot)
        plain = page.render_line(5).text
        await pilot.mouse_down(page, offset=(0, 5))
        await pilot.hover(page, offset=(2, 6))
        await pilot.mouse_up(page, offset=(2, 6))
        await settle(pilot)
        chosen = app.screen.get_selected_text()
        assert chosen is not None and chosen.startswith(plain.rstrip())
        marked = app.screen.get_component_styles("screen--selection").background.rich_color
        assert any(style.bgcolor != marked for _, style, _ in page.render_line(7))
        assert len({style.bgcolor for _, style, _ in page.render_line(6)}) == 2


async def test_what_goes_on_stands_above_the_text_and_moves_alone(monkeypatch):
    app, seen = Pages(), []
    async with app.run_test(size=(40, 26)) as pilot:
        page = app.query_one(Page)
        page.show(TEXT)
        page.show_progress("Learning")
        head = page.render_line(1)
        assert head.text.startswith("a head")
        monkeypatch.setattr(page, "refresh_line", seen.append)
        while not seen:
            await pilot.pause(0.01)
        assert set(seen) == {0}
        assert page.render_line(0).text.startswith("Learning ") and page.render_line(1) == head
        page.show_progress(None)
        assert page.render_line(0).text.startswith("a head")
