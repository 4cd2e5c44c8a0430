"""Containers without scroll bars, of which another size of their content asks for no layout.

Textual lays the screen out and draws it a second time then, as scroll bars may come or go. Each
stands on its own: a common base in front would take Textual's styles of containers away.
"""

from __future__ import annotations

from textual.containers import Grid, Horizontal, Vertical
from textual.geometry import Size
from textual.reactive import Reactive


class StillRow(Horizontal):
    """Children beside each other."""

    virtual_size = Reactive(Size(0, 0))


class StillColumn(Vertical):
    """Children below each other."""

    virtual_size = Reactive(Size(0, 0))


class StillGrid(Grid):
    """Children in a grid."""

    virtual_size = Reactive(Size(0, 0))
