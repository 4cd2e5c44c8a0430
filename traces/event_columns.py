"""Columns of a trace's events, kept in chunks that are deflated when they are full.

A kernel takes some fifty bytes as numbers and eight deflated: its start and its correlation id are
little more than those of the kernel before. So a trace of any length fits, and is read again a
chunk at a time.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from traces.intervals import Ints

_CHUNK = 1 << 14  # rows
_LEVEL = 1


class Columns:
    """Rows that arrive in batches; `dtypes` has a numpy type per column."""

    _open: dict[str, array[int]]

    def __init__(self, **dtypes: type[np.generic]) -> None:
        self._dtypes = dtypes
        self.clear()

    @property
    def size(self) -> int:
        """How many rows there are."""
        return self._rows_full + len(next(iter(self._open.values())))

    def add(self, **columns: Sequence[int] | Ints) -> None:
        """Add rows, given as all the columns."""
        for name, values in columns.items():
            self._open[name].frombytes(np.asarray(values, dtype=self._dtypes[name]).tobytes())
        if (count := len(next(iter(self._open.values())))) >= _CHUNK:
            self._rows_full += count
            self._full.append({name: _deflated(rows) for name, rows in self._numbers().items()})
            self._open = self._empty()

    def clear(self) -> None:
        """Forget all rows."""
        self._full: list[dict[str, bytes]] = []
        self._rows_full = 0
        self._open = self._empty()

    def chunks(self) -> Iterator[dict[str, Any]]:
        """Yield the rows a chunk at a time, in their order; at least one chunk."""
        for packed in self._full:
            yield {name: _inflated(packed[name], kind) for name, kind in self._dtypes.items()}
        yield self._numbers()

    def whole(self) -> dict[str, Any]:
        """Return all rows together."""
        chunks = list(self.chunks())
        return {name: np.concatenate([each[name] for each in chunks]) for name in self._dtypes}

    def _numbers(self) -> dict[str, Any]:
        return {
            name: np.frombuffer(rows.tobytes(), dtype=self._dtypes[name])
            for name, rows in self._open.items()
        }

    def _empty(self) -> dict[str, array[int]]:
        return {name: array(np.dtype(kind).char) for name, kind in self._dtypes.items()}


def _deflated(values: Any) -> bytes:
    """Pack the differences between neighbours, which wrap around as the type does."""
    steps = np.diff(values, prepend=values.dtype.type(0))
    return zlib.compress(steps.tobytes(), _LEVEL)


def _inflated(packed: bytes, kind: type[np.generic]) -> Any:
    return np.cumsum(np.frombuffer(zlib.decompress(packed), dtype=kind), dtype=kind)
