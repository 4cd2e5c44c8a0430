"""HTML that escapes what it is given, and its style: only what `tag` made is taken as markup."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Mapping
from importlib.resources import files
from string import Template

from traces.plain_text import clean
from traces.schema.estimate import Estimate
from traces.schema.formats import ABSENT, chance, interval, intervals_of, number, value_of

NOT_MEASURED = "Not measured in these recordings."
BEYOND = "Marked *: it lies outside what was measured, so trust it less than its interval says."
VOID = ("meta", "br", "line", "rect", "circle", "path", "use")


class Html(str):
    """Markup; any other string is escaped where it is put into a tag."""

    __slots__ = ()


BREAK = Html("<br>")  # parts are lines of their own without a style too


Content = str | None


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


def _escaped(part: str) -> str:
    return part if isinstance(part, Html) else html.escape(clean(part))


def estimated(
    estimate: Estimate | None, meaning: str, *, key: str | None = None, sign: bool = False
) -> Html:
    """Return an estimate as `value [low, high]`, its meaning shown on hover and on focus.

    `key` names where the number stands in the JSON documents, for those who read the page by
    program: the attribute data-value has all its digits.
    """
    if estimate is None or not math.isfinite(estimate.value):
        return absent(meaning, key=key)
    ends = interval(estimate, sign=sign)
    tip = [meaning]
    if ends:
        low, high = ends.strip("[]").split(", ")
        tip.append(f"90 % interval: {low} to {high}.")
    if estimate.extrapolated:
        tip.append(BEYOND)
    return tag(
        "span",
        tag("b", value_of(estimate, sign=sign)),
        Html(" ") if ends else None,
        tag("small", ends) if ends else None,
        class_="n beyond" if estimate.extrapolated else "n",
        tabindex="0",
        data_tip=" ".join(tip),
        data_key=key,
        data_value=repr(estimate.value),
    )


def figure(
    value: float | None, unit: str, meaning: str, *, key: str | None = None, text: str | None = None
) -> Html:
    """Return a number that has no interval; `text` where it is not written as usual."""
    if value is None or not math.isfinite(value):
        return absent(meaning, key=key)
    return tag(
        "span",
        tag("b", number(value, unit) if text is None else text),
        class_="n",
        tabindex="0",
        data_tip=meaning,
        data_key=key,
        data_value=repr(value),
    )


def probability(share: float, meaning: str, *, key: str | None = None) -> Html:
    """Return a probability that was counted over draws."""
    return figure(share, "1", meaning, key=key, text=chance(share))


def absent(meaning: str, *, key: str | None = None) -> Html:
    """Return the "-" of what was not measured."""
    return tag(
        "span",
        ABSENT,
        class_="n none",
        tabindex="0",
        data_tip=f"{meaning} {NOT_MEASURED}",
        data_key=key,
    )


def term(text: str, meaning: str) -> Html:
    """Return words with their meaning on hover and on focus."""
    return tag("span", text, class_="term", tabindex="0", data_tip=meaning)


def table(
    head: Iterable[Content],
    rows: Iterable[Iterable[Content]],
    *,
    class_: str | None = None,
    caption: str,
) -> Html:
    """Return a table that scrolls by itself where it is too wide; the first cell heads its row."""
    body = [
        tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in cells))
        for first, *cells in rows
    ]
    return tag(
        "div",
        tag(
            "table",
            tag("caption", caption),
            tag("thead", tag("tr", *(tag("th", cell, scope="col") for cell in head))),
            tag("tbody", *body),
            class_=class_,
        ),
        class_="wide",
    )


def captioned(
    caption: str,
    estimates: Iterable[Estimate | None],
    beside: Mapping[str, Iterable[Estimate | None]] | None = None,
) -> str:
    """Return a caption that says what the intervals of its table are of, if it has any."""
    of = intervals_of(estimates, beside=beside)
    return f"{caption}, with {of}" if of else caption


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
