"""Rows of a CSV file of measured times; damage is told with the file, the line and the mend."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from traces.errors import TablesError

MAX_BYTES = 1 << 28  # of one file; the largest known has 1.4 MB
Line = tuple[int, list[str]]  # the number of a line, and its cells


class CsvRows:
    """The rows of a CSV file as lists of cells, each with its line; all of `wanted` are there."""

    def __init__(self, path: Path, wanted: Sequence[str]) -> None:
        self.path = path
        try:
            if path.exists() and not path.is_file():  # a device has no end
                raise TablesError(f"{path}: is no file. Copy it again")
            if path.stat().st_size > MAX_BYTES:
                raise TablesError(
                    f"{path}: larger than {MAX_BYTES >> 20} MiB, as no operator table is"
                )
            with path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.reader(file)
                header = [name.strip() for name in next(reader, [])]
                self.rows = [(reader.line_num, row) for row in reader if any(row)]
        except FileNotFoundError:
            raise TablesError(f"{path}: not there. Profile it, or give another folder") from None
        except (OSError, UnicodeDecodeError, csv.Error) as cause:
            raise TablesError(f"{path}: cannot be read as CSV ({cause}). Copy it again") from cause
        self.columns = {name: number for number, name in enumerate(header)}
        for name in wanted:
            if name not in self.columns:
                raise TablesError(
                    f"{path}: line 1: no column {name} (there are {', '.join(header) or 'none'})."
                    " Write it with the profiler that made the others"
                )
        if not self.rows:
            raise TablesError(f"{path}: no rows below the header. Profile it again")

    def __iter__(self) -> Iterator[Line]:
        return iter(self.rows)

    def error(self, line: Line, what: str) -> TablesError:
        """Return an error that tells what is wrong with a line."""
        return TablesError(f"{self.path}: line {line[0]}: {what}")

    def cell(self, line: Line, name: str) -> str:
        """Return the text of a column. Raises TablesError when the line ends before it."""
        if len(line[1]) <= self.columns[name]:
            raise self.error(line, f"ends before {name}. The file is cut, copy it again")
        return line[1][self.columns[name]]

    def number(self, line: Line, name: str) -> float:
        """Return a finite number. Raises TablesError for anything else."""
        text = self.cell(line, name)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise self.error(line, f"{name} is {text!r:.40}, not a number. Profile that row again")
        return value

    def count(self, line: Line, name: str, *, least: int = 0) -> int:
        """Return a whole number from `least`. Raises TablesError for anything else."""
        value = self.number(line, name)
        if value != int(value) or not least <= value < 1 << 40:
            raise self.error(line, f"{name} is {value:g}, not a whole number from {least}")
        return int(value)

    def seconds(self, line: Line, name: str, *, positive: bool = False) -> float:
        """Return microseconds as seconds. Raises TablesError below 0, or at 0 if `positive`."""
        value = self.number(line, name)
        if value < 0 or (positive and value == 0):
            raise self.error(line, f"{name} is {value:g}: no time. Profile that row again")
        return value * 1e-6
