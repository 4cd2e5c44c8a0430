"""Azure's traces of LLM inference: `TIMESTAMP,ContextTokens,GeneratedTokens`, a line per request.

Those of 2023 have times without a zone (UTC) to 100 ns, those of 2024 with one. Lines are read in
stretches of 8 MiB, so that a week of them is never held whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import polars as pl

from traces.errors import OutcomesError
from traces.files import Inflated
from traces.foreign.requests.reader import (
    REQUESTS,
    RequestReader,
)
from traces.foreign.source import LINE_BYTES, open_pieces
from traces.recording.tables import LATEST_NS, MOST_TOKENS

_COLUMNS = {"timestamp": "arrival", "contexttokens": "prompt", "generatedtokens": "output"}
_NAMES = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_STRETCH_BYTES = 8 << 20


class AzureTrace(RequestReader):
    """Reads a trace."""

    name = "Azure LLM inference trace"
    measured = False

    @classmethod
    def recognises(cls, head: bytes) -> bool:
        first = head.partition(b"\n")[0].decode(errors="replace")
        return set(_COLUMNS) <= {name.strip(' "\r').lower() for name in first.split(",")}

    def __iter__(self) -> Iterator[pl.DataFrame]:
        names: list[str] = []
        pieces = open_pieces(self._path, self._choices.limit_bytes)
        for first, lines in self._stretches(pieces):
            head = 0 if names else 1  # the line of the columns' names
            names = names or [name.strip(' "\r').lower() for name in lines[0].split(",")]
            frame = self._frame(first + head, lines[head:], names)
            if frame.height:
                yield frame
        if pieces.cut is not None:
            self.facts.notes.append(f"the file is cut off ({pieces.cut})")

    def _stretches(self, pieces: Inflated) -> Iterator[tuple[int, list[str]]]:
        """Yield the number of the first line and the lines of each stretch."""
        number, buffer, end = 1, bytearray(), -1
        for piece in pieces:
            last = piece.rfind(b"\n")
            end = end if last < 0 else len(buffer) + last
            buffer += piece
            if end < 0 and len(buffer) > LINE_BYTES:
                raise OutcomesError(
                    f"{self._path}: line {number} has more than {LINE_BYTES >> 20} MiB. It is no "
                    "trace of requests"
                )
            if len(buffer) >= _STRETCH_BYTES and end >= 0:
                lines = buffer[:end].decode(errors="replace").split("\n")
                yield number, lines
                number, buffer, end = number + len(lines), buffer[end + 1 :], -1
        if pieces.cut is not None:  # the last line's number may lack digits
            del buffer[end + 1 :]
        if buffer:
            yield number, buffer.removesuffix(b"\n").decode(errors="replace").split("\n")

    def _frame(self, first: int, lines: list[str], names: list[str]) -> pl.DataFrame:
        """Return the requests of some lines; what is wrong with the others is counted."""
        cells = pl.col("line").str.split(",")
        rows = (
            pl.DataFrame({"line": lines}, schema={"line": pl.Utf8})
            .with_row_index("place", offset=first)
            .with_columns(pl.col("line").str.strip_chars())
            .filter(pl.col("line") != "")
            .with_columns(cells.alias("cells"), even=cells.list.len() == len(names))
            .with_columns(
                pl.col("cells")
                .list.get(names.index(column), null_on_oob=True)
                .str.strip_chars(' "')
                .alias(name)
                for column, name in _COLUMNS.items()
            )
        )
        parsed = rows.select(
            pl.col("place").cast(pl.Int64),
            "even",
            prompt_tokens=_tokens("prompt"),
            output_tokens=_tokens("output"),
            arrival=_nanoseconds(),
            dated=pl.col("arrival") != "",
        )
        faults = {
            f"that have other than {len(names)} columns": ~pl.col("even"),
            "without a TIMESTAMP": ~pl.col("dated"),
            "whose TIMESTAMP is no time such as 2023-11-16 18:15:46.68": pl.col(
                "arrival"
            ).is_null(),
        }
        for column, name in (("prompt_tokens", _NAMES[1]), ("output_tokens", _NAMES[2])):
            fault = f"whose {name} is no whole number from 1 to {MOST_TOKENS:,}"
            faults[fault] = pl.col(column).is_null()
        first_fault = pl.coalesce(
            pl.when(holds).then(pl.lit(reason)) for reason, holds in faults.items()
        )
        judged = parsed.with_columns(fault=first_fault)
        bad = judged.drop_nulls("fault").group_by("fault").agg(pl.min("place"), count=pl.len())
        for reason, place, count in bad.sort("place").iter_rows():
            self.skipped.add(f"lines {reason}", place, count)
        absent = (
            pl.lit(None, kind).alias(name)
            for name, kind in REQUESTS.items()
            if name not in judged.columns
        )
        return judged.filter(pl.col("fault").is_null()).with_columns(absent).select(list(REQUESTS))


def _tokens(name: str) -> pl.Expr:
    count = pl.col(name).cast(pl.Float64, strict=False)  # pandas writes 44.0 beside a gap
    valid = count.is_between(1, MOST_TOKENS) & (count == count.floor())
    return pl.when(valid).then(count).cast(pl.Int64)


def _nanoseconds() -> pl.Expr:
    """Return unix nanoseconds; microseconds guard against years that do not fit in them."""

    def read(pattern: str, unit: Literal["us", "ns"]) -> pl.Expr:
        text = pl.col("arrival").str.replace("T", " ", literal=True).str.replace("Z$", "+00:00")
        time = text.str.to_datetime(pattern, time_unit=unit, strict=False)
        if "z" not in pattern:
            return time
        return time.dt.convert_time_zone("UTC").dt.replace_time_zone(None)

    patterns = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f%:z")
    near = pl.coalesce(read(each, "us") for each in patterns).dt.epoch("us")
    exact = pl.coalesce(read(each, "ns") for each in patterns).dt.epoch("ns")
    return pl.when(near.is_between(0, LATEST_NS // 1000)).then(exact)
