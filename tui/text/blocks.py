"""What is shown, as data that a terminal and a page each draw: numbers, terms, bars and tables.

A terminal writes each as its `str` (`table_lines`), a page as tui/report/markup.py does.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field

from traces.schema.estimate import Estimate
from traces.schema.formats import chance, integer, intervals_of, number, with_interval
from tui.text.layout import side_by_side, wrap


@dataclass(frozen=True)
class Value:
    """An estimate, or a number of a unit, with its meaning: in a table by its column's head.

    `key` is where it stands in the JSON documents. `text` is how it is written, where that is not
    as usual. With `sign` it is a difference.
    """

    of: Estimate | float | None
    meaning: str = ""
    _: KW_ONLY
    unit: str = ""
    key: str | None = None
    text: str | None = None
    sign: bool = False

    def __str__(self) -> str:
        if self.text is not None:
            return self.text
        if self.of is None or isinstance(self.of, Estimate):
            return with_interval(self.of, sign=self.sign)
        return number(self.of, self.unit)


def count(of: float | None, meaning: str = "", *, key: str | None = None) -> Value:
    """Return a number of things."""
    return Value(of, meaning, key=key, text=integer(of))


def probability(share: float, meaning: str = "", *, key: str | None = None) -> Value:
    """Return a probability that was counted over draws."""
    return Value(share, meaning, unit="1", key=key, text=chance(share))


@dataclass(frozen=True)
class Term:
    """Words with their meaning."""

    words: str
    meaning: str

    def __str__(self) -> str:
        return self.words


@dataclass(frozen=True)
class Bar:
    """A share of 1, with its interval; `name` says what of, `columns` how long a whole one is."""

    of: Estimate | float
    name: str
    columns: int

    @property
    def share(self) -> float:
        return self.of.value if isinstance(self.of, Estimate) else self.of

    def __str__(self) -> str:
        return "#" * round(self.columns * self.share)


Cell = str | Value | Term | Bar


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells below their heads; what the intervals in it are of is said above.

    A page has the `caption` for the `title` where there is one. `apart` are columns by name whose
    intervals may be of something else, `right` those that a terminal flushes right. A terminal
    indents rows by `indent`, and leaves out the heads of a `bare` table. `style` is a page's.
    """

    heads: Sequence[Cell] = ()
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    caption: str = ""
    apart: Mapping[str, int] = field(default_factory=dict)
    right: Sequence[int] = ()
    bare: bool = False
    indent: int = 0
    style: str | None = None

    @property
    def intervals(self) -> str:
        """What the intervals are of, empty where there are none."""
        columns = [*map(_estimates, zip(*self.rows, strict=True))]
        apart = {name: columns[at] for name, at in self.apart.items() if columns}
        main = [each for each in columns if not any(each is column for column in apart.values())]
        return intervals_of(itertools.chain(*main), beside=apart)


def _estimates(column: Sequence[Cell]) -> list[Estimate]:
    values = (each.of for each in column if isinstance(each, Value))
    return [each for each in values if isinstance(each, Estimate)]


def table_lines(table: Table, width: int = 80) -> list[str]:
    """Return a table as a terminal shows it: columns for which there is no room stand below."""
    head = ", ".join(filter(None, (table.title, table.intervals)))
    rows = [[" " * table.indent + str(first), *map(str, rest)] for first, *rest in table.rows]
    rows = [[*map(str, table.heads)], *rows] if table.heads and not table.bare else rows
    lines = wrap("", head, width=width, indent=0) if head else []
    return lines + side_by_side(rows, width, table.right)
