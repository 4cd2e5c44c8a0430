"""The style of the report's page, and of its parts in a cell of a notebook."""

from __future__ import annotations

import re
from importlib.resources import files
from string import Template

from tui.report.markup import Content, Html, tag


def resource(name: str) -> str:
    """Return the text of a file beside this one."""
    return files("tui.report").joinpath(name).read_text(encoding="utf-8")


def _filled(name: str, **parts: str) -> str:
    """Return a style with its colours, light and dark."""
    colours = {theme: resource(f"{theme}.css") for theme in ("light", "dark")}
    return Template(resource(name)).substitute(colours, **parts)


def page_style() -> str:
    """Return the style of the page, light or dark as the system is and as its button says."""
    return resource("parts.css") + _filled("page.css")


def cell(*parts: Content) -> Html:
    """Return parts of the page for a cell of a notebook, as light or dark as the notebook is.

    The style is in it and holds for nothing else. No script runs there, so meanings are titles.
    """
    style = Html(f"<style>{_filled('cell.css', parts=resource('parts.css'))}</style>")
    whole = tag("div", style, *parts, class_="ttscope")
    titled = re.sub(r'(<g class="mark [^>]*aria-label="([^"]*)">)', r"\1<title>\2</title>", whole)
    return Html(titled.replace(' data-tip="', ' title="'))
