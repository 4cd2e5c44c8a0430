"""What an energy sensor is: the seam between the power sampler and the devices it reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

Reading = Mapping[str, float | int | None]


class SensorError(Exception):
    """A device cannot be read (any more); the message says why, for a person."""


class Sensor(Protocol):
    """One device whose energy can be read."""

    @property
    def kind(self) -> str:
        """Return `nvml` or `rapl`."""

    @property
    def device(self) -> str:
        """Return the device's name, the same in every recording of this host."""

    def read(self, *, state: bool) -> Reading:
        """Return columns of the `power` table, those that it does not know absent or null.

        With `state` everything, without it only what energy is made of. Raises SensorError when
        the device is gone.
        """


Sensors = AbstractContextManager[Sequence[Sensor]]  # open while they are read
