"""Routing tables: how many samples a problem gets, by its class and by what its first ones say.

A table `16,16,8,4,4` draws 4 samples first, one fewer than it has entries. Entry i is how many
samples there are in all where i of the first gave the same answer, the most frequent one. A single
entry is a number of samples. Classes have a table each: `easy=2 | *=16,16,8,4,4`, where `*` is for
all others. Behind a table may stand the reasoning effort that all samples of the class are drawn
at: `easy=2@low | *=8@high`. Without one the effort is not set.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, TypeVar

from traces.errors import UsageError

OTHERS: Final = "*"
SPLIT: Final = "|"
CLASS: Final = re.compile(r"[A-Za-z0-9_.:@~-]([A-Za-z0-9_.:@~ -]{0,62}[A-Za-z0-9_.:@~-])?")
MOST_FIRST: Final = 12  # samples by whose agreement a table goes
MOST_DOUBLED: Final = 7  # times
FIRST_BITS: Final = 4_096  # above the number of first samples
AT: Final = "@"
EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")  # vLLM's

Table = tuple[int, ...]
T = TypeVar("T")


def read_routes(text: str) -> dict[str, Table]:
    """Return the tables by class. Raises UsageError in one line for what is none."""
    return {name: table for name, (table, _) in _read(text).items()}


def read_efforts(text: str) -> dict[str, str | None] | None:
    """Return the reasoning efforts by class, None where no table has one. Raises as above."""
    efforts = {name: effort for name, (_, effort) in _read(text).items()}
    return efforts if any(efforts.values()) else None


def _read(text: str) -> dict[str, tuple[Table, str | None]]:
    """Return the tables and the efforts by class."""
    tables: dict[str, tuple[Table, str | None]] = {}
    for part in text.split(SPLIT):
        name, mark, cell = part.rpartition("=")
        name = name.strip() if mark else OTHERS
        if name != OTHERS and not CLASS.fullmatch(name):
            raise UsageError(
                "policy: a class of route is at most 64 letters, digits, spaces and _.:@~-"
            )
        if name in tables:
            raise UsageError(f"policy: route has two tables for {name}")
        numbers, at, effort = cell.partition(AT)
        tables[name] = _table(numbers), _effort(effort.strip()) if at else None
    if OTHERS not in tables:
        raise UsageError(f"policy: route needs a table for all other classes, such as {OTHERS}=8")
    return tables


def _effort(text: str) -> str:
    if text not in EFFORTS:
        raise UsageError(
            f"policy: no reasoning_effort {text[:40]!r} behind {AT} in route. Choose one of "
            f"{', '.join(EFFORTS)}"
        )
    return text


def _table(text: str) -> Table:
    try:
        table = tuple(int(number) for number in text.split(","))
    except ValueError:
        raise UsageError(
            "policy: route must be numbers of samples, such as 16,16,8,4,4, or easy=2 | *=8, each "
            "with an effort or without, such as 8@high"
        ) from None
    first = first_of(table)
    if not 1 <= first < FIRST_BITS or len(table) == 2:
        raise UsageError("policy: route needs a number of samples, or a table of 3 and more")
    if len(table) > MOST_FIRST + 1:
        raise UsageError(f"policy: a table of route goes by at most {MOST_FIRST} first samples")
    able = {first << times for times in range(MOST_DOUBLED + 1)}
    if not set(table) <= able:
        raise UsageError(
            f"policy: a table of route with {first} first samples may give {first}, {2 * first}, "
            f"{4 * first}, .. samples in all, not {sorted(set(table) - able)[0]}"
        )
    return table


def write_routes(
    tables: Mapping[str, Table], efforts: Mapping[str, str | None] | None = None
) -> str:
    """Return the text of tables by class, with the efforts that the classes have."""
    given_efforts = {name: effort for name, effort in (efforts or {}).items() if effort is not None}
    texts = {
        name: ",".join(map(str, tables[name]))
        + (AT + given_efforts[name] if name in given_efforts else "")
        for name in sorted(tables)
    }
    others = texts.pop(OTHERS)
    if not texts:
        return others
    texts[OTHERS] = others  # behind those of classes
    return f" {SPLIT} ".join(f"{name}={text}" for name, text in texts.items())


def first_of(table: Table) -> int:
    """Return how many samples a table draws first."""
    return table[0] if len(table) == 1 else len(table) - 1


def packed(table: Table) -> float:
    """Return a table as one number, which compiled code unpacks (stop_rules.py).

    It holds the first samples, and for each number of them that agree how often it is doubled, all
    of which is exact in 51 bits.
    """
    first = first_of(table)
    code = 0
    for agree, samples in enumerate(table if len(table) > 1 else ()):
        code += (samples // first).bit_length() - 1 << 3 * agree
    return float(first + FIRST_BITS * code)


def table_for(tables: Mapping[str, T], group: str | None) -> T:
    """Return the table of a class, or what else there is by class."""
    return tables.get(group or OTHERS, tables[OTHERS])


def most_samples(tables: Mapping[str, Table]) -> int:
    """Return how many samples a problem gets at most."""
    return max(max(table) for table in tables.values())


def half_first(n: int) -> str:
    """Return the table of n that is taken where none is given.

    The half is drawn first, and the others where no more than half of that agree.
    """
    first = n // 2
    if n % 2 or not 2 <= first <= MOST_FIRST:
        return str(n)
    return ",".join(str(n if 2 * agree <= first else first) for agree in range(first + 1))


def in_words(text: str) -> str:
    """Return tables in words: that of all problems, or `samples by class (easy: 1 sample, ..)`."""
    words = tables_in_words(text)
    return f"samples by class ({words})" if ": " in words else words


def tables_in_words(text: str) -> str:
    """Return tables in words, those of classes behind their names; classes of one table share it.

    `1 sample`, or `easy: 2 samples at low effort, hard and others: 1 sample at high effort`.
    """
    tables, efforts = read_routes(text), read_efforts(text)
    words = {name: table_words(table) for name, table in tables.items()}
    for name, effort in (efforts or {}).items():
        words[name] += " with no effort set" if effort is None else f" at {effort} effort"
    words["others"] = words.pop(OTHERS)
    if len(words) == 1:
        return words["others"]
    classes: dict[str, list[str]] = {}
    for name, wording in words.items():
        classes.setdefault(wording, []).append(name)
    last = classes.pop(words["others"])
    each = [*classes.items(), (words["others"], last)]
    return ", ".join(f"{' and '.join(names)}: {told}" for told, names in each)


def table_words(table: Table) -> str:
    """Return a table in words, such as `4 samples, 16 if no two agree, 8 if 2 agree`."""
    first = first_of(table)
    if len(table) == 1 or set(table) == {first}:
        return f"{first} sample{'s' if first > 1 else ''}"
    parts = []
    agree = 0
    while agree <= first:
        last = agree
        while last < first and table[last + 1] == table[agree]:
            last += 1
        if table[agree] != first:
            which = f"{agree} to {last} agree" if last > agree else f"{agree} agree"
            if agree == 0:
                which = "no two agree" if last <= 1 else f"at most {last} agree"
            parts.append(f"{table[agree]} if {which}")
        agree = last + 1
    return f"{first} samples, " + ", ".join(parts)
