"""How many values JSON may hold before it is decoded: a text of 3 bytes a value grows 60-fold."""

from __future__ import annotations

import re

LINE_VALUES = 2_000_000  # of a line, a sample or metadata: 0.5 GB at the worst
DOCUMENT_VALUES = 10_000_000
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_MARKS = (b",", b"[", b"{")


def check_values(text: bytes, most: int) -> None:
    """Raise ValueError where JSON holds more values than `most`; strings count as one."""
    if len(text) <= most or sum(map(text.count, _MARKS)) <= most:
        return
    if sum(map(_STRING.sub(b"", text).count, _MARKS)) > most:
        raise ValueError(f"more than {most:,} values")
