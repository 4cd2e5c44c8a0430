"""The energy of processors: RAPL's package counters, as Linux shows them (Intel and AMD)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from profiler.probes.sensor import Reading, SensorError

ROOT = Path("/sys/class/powercap")


class Package:
    """One processor package (socket): its cores, caches and memory controller, not the DRAM."""

    kind = "rapl"

    def __init__(self, zone: Path) -> None:
        self.device = (zone / "name").read_text().strip()
        self._file = zone / "energy_uj"
        self._last = _read(self._file)
        self._wrapped = 0
        try:
            self._range = _read(zone / "max_energy_range_uj")
        except (OSError, ValueError):
            self._range = 0

    def read(self, *, state: bool) -> Reading:
        """Return `energy_j`, counted on when the counter wraps at its range.

        A package that draws 200 W wraps after some 20 minutes; it is read far more often.
        Raises SensorError when the counter can no longer be read.
        """
        try:
            now = _read(self._file)
        except (OSError, ValueError) as error:
            raise SensorError(f"RAPL: {error}") from None
        if now < self._last:
            self._wrapped += self._range
        self._last = now
        return {"energy_j": (self._wrapped + now) / 1e6}


def _read(path: Path) -> int:
    return int(path.read_text())


@contextmanager
def open_packages(root: Path = ROOT) -> Iterator[list[Package]]:
    """Open every package of the host; an empty list where RAPL is absent or not readable."""
    yield examine(root)[0]


def examine(root: Path = ROOT) -> tuple[list[Package], str | None]:
    """Return the packages that can be read, and why there is none."""
    packages = []
    for zone in sorted(root.glob("intel-rapl:*")):
        if zone.name.count(":") != 1:  # intel-rapl:0:0 is a part of intel-rapl:0
            continue
        try:
            package = Package(zone)
        except PermissionError:
            return [], "RAPL is readable by root only"
        except (OSError, ValueError):
            continue
        if package.device.startswith("package"):
            packages.append(package)
    return packages, None if packages else "no RAPL"
