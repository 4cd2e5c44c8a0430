"""Notes beside numbers, by how much they change of what a reader takes from these."""

from __future__ import annotations

from collections.abc import Iterable


class Decisive(str):
    """A note without which a number is taken for what it is not."""

    __slots__ = ()


class Telling(str):
    """A note that says why an interval is wide, or why two numbers differ."""

    __slots__ = ()


def by_weight(notes: Iterable[str]) -> list[str]:
    """Return decisive notes first and telling ones next, of one kind in the order given."""
    return sorted(
        notes, key=lambda note: (not isinstance(note, Decisive), not isinstance(note, Telling))
    )
