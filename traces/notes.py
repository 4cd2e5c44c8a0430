"""Notes beside numbers, by how much they change of what a reader takes from these."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final


class Decisive(str):
    """A note without which a number is taken for what it is not."""

    __slots__ = ()


class Differing(str):
    """A note that says why two numbers that stand side by side differ."""

    __slots__ = ()


class Telling(str):
    """A note that says why an interval is wide, or what the numbers leave out."""

    __slots__ = ()


_KINDS: Final = (Decisive, Differing, Telling)


def by_weight(notes: Iterable[str]) -> list[str]:
    """Return decisive notes first, those of differences and telling ones next, then the others.

    Those of one kind stay in the order given.
    """
    return sorted(notes, key=lambda note: [not isinstance(note, kind) for kind in _KINDS])
