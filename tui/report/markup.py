"""Blocks as HTML, its style, and `tag`: whatever else is given is escaped."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable
from dataclasses import replace
from importlib.resources import files
from string import Template

from traces.plain_text import clean
from traces.schema.estimate import Estimate
from traces.schema.formats import ABSENT, interval, number, percent, value_of
from tui.text.blocks import Bar, Cell, Table, Term, Value

NOT_MEASURED = "Not measured in these recordings."
BEYOND = "Marked *: it lies outside what was measured, so trust it less than its interval says."
VOID = ("meta", "br", "line", "rect", "circle", "path", "use")


class Html(str):
    """Markup; any other string is escaped where it is put into a tag."""

    __slots__ = ()


BREAK = Html("<br>")  # parts are lines of their own without a style too


Content = Cell | Table | None


def join(parts: Iterable[Content], between: str = "") -> Html:
    """Return the parts as one piece of markup, strings escaped, None left out."""
    return Html(between.join(_escaped(part) for part in parts if part is not None))


def tag(name: str, *children: Content, **attributes: str | float | bool | None) -> Html:
    """Return an element; `class_` is the attribute class, `data_tip` is data-tip.

    An attribute that is None or False is left out; one that is True has no value.
    """
    written = ""
    for given, value in attributes.items():
        if value is None or value is False:
            continue
        label = given.rstrip("_").replace("_", "-")
        if value is True:
            written += f" {label}"
            continue
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
        written += f' {label}="{html.escape(clean(text))}"'
    if name in VOID and not children:
        return Html(f"<{name}{written}>" if name in ("meta", "br") else f"<{name}{written}/>")
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def _escaped(part: Cell | Table) -> str:
    match part:
        case Html():
            return part
        case Value():
            return _number(part)
        case Term():
            return tag("span", part.words, class_="term", tabindex="0", data_tip=part.meaning)
        case Bar():
            return _bar(part)
        case Table():
            return _table(part)
    return html.escape(clean(part))


def _number(value: Value) -> Html:
    """Return a number as `value [low, high]`, its meaning shown on hover and on focus.

    For those who read the page by program data-key has its key, data-value all its digits.
    """
    of, tip, ends, shown = value.of, [value.meaning], "", value.text
    known = of.value if isinstance(of, Estimate) else of
    if known is None or not math.isfinite(known):
        tip.append(NOT_MEASURED)
        return tag("span", ABSENT, class_="n none", tabindex="0", data_tip=" ".join(tip),
                   data_key=value.key)  # fmt: skip
    beyond = isinstance(of, Estimate) and of.extrapolated
    if isinstance(of, Estimate):
        shown = value_of(of, sign=value.sign) if shown is None else shown
        ends = interval(of, sign=value.sign)
    if ends:
        low, high = ends.strip("[]").split(", ")
        tip.append(f"90 % interval: {low} to {high}.")
    if beyond:
        tip.append(BEYOND)
    return tag(
        "span",
        tag("b", number(known, value.unit) if shown is None else shown),
        Html(" ") if ends else None,
        tag("small", ends) if ends else None,
        class_="n beyond" if beyond else "n",
        tabindex="0",
        data_tip=" ".join(tip),
        data_key=value.key,
        data_value=repr(known),
    )


def _bar(bar: Bar) -> Html:
    """Return a bar of a share of 1, with its interval as a line on it."""
    parts = [tag("i", class_="fill", style=f"width:{bar.share * 100:.2f}%")]
    low, high = (getattr(bar.of, end, None) for end in ("low", "high"))
    if low is not None and high is not None:
        place = f"left:{low * 100:.2f}%;width:{max(high - low, 0.002) * 100:.2f}%"
        parts.append(tag("s", class_="span", style=place))
    words = f"{bar.name} {percent(bar.share)}"
    return tag("span", *parts, class_="bar", role="img", aria_label=words)


def _table(table: Table) -> Html:
    """Return a table that scrolls by itself where it is too wide; the first cell heads its row."""
    body = [
        tag("tr", tag("th", first, scope="row"), *map(_data, cells, table.heads[1:]))
        for first, *cells in table.rows
    ]
    heads = tag("tr", *(tag("th", cell, scope="col") for cell in table.heads))
    caption = table.caption or f"{table.title[:1].upper()}{table.title[1:]}"
    of = f", with {table.intervals}" if table.intervals else ""
    return tag(
        "div",
        tag(
            "table",
            tag("caption", f"{caption}{of}"),
            tag("thead", heads),
            tag("tbody", *body),
            class_=table.style,
        ),
        class_="wide",
    )


def _data(cell: Cell, head: Cell) -> Html:
    if isinstance(cell, Value) and isinstance(head, Term) and not cell.meaning:
        cell = replace(cell, meaning=head.meaning)
    return tag("td", cell)


class Empty(Html):
    """Why a section has nothing to show."""

    __slots__ = ()


def empty(reason: str) -> Empty:
    """Return why a section has nothing to show."""
    return Empty(tag("p", reason, class_="empty"))


# The style of the page, and of its parts in a cell of a notebook.


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
