"""Which of two times of a replay is later, whatever their last digits."""

from __future__ import annotations

from typing import Final

from advisor.compiled import inner

SAME: Final = 1e-9  # share by which times may differ that are equal but for rounding


@inner
def later(time: float, than: float) -> bool:
    """Whether a time is later than another, by more than rounding; both are 0 or more."""
    return time > than * (1 + SAME)
