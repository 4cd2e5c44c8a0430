"""Published curves of votes: accuracy and tokens by number of samples, as JSON lines or CSV.

    {"n": 1, "accuracy": 0.533, "tokens": 9884}

`n`, `accuracy` (a share) and `tokens` (of all n samples of a problem, on average) must be in each
line. `problems` and `ci` (half the 95 % interval of the accuracy) may be. The recording has no
problem and no sample: what is asked of it rests on the points and what is assumed beside them.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import NormalDist, median
from typing import Any

import msgspec

from traces.errors import OutcomesError, UsageError
from traces.foreign.evaluations.reader import Given
from traces.foreign.source import own_name, text_lines
from traces.foreign.values import finite, whole_number
from traces.foreign.written import Imported, written_into
from traces.recording.manifest import WorkloadFacts, check_free
from traces.schema.engine import EngineConfig
from traces.schema.formats import counted
from traces.schema.tts.policy import Policy
from traces.schema.tts.published import SPREAD, CurvePoint, PublishedCurve

FORMAT = "published curve"
MOST_POINTS = 4_096
LONGEST_LINE = 1 << 20  # bytes
MOST_SAMPLES = 65_536
MOST_PROBLEMS = 10_000_000
APART = 0.25  # by which the tokens of a sample may differ between points
_Z95 = NormalDist().inv_cdf(0.975)
_NEEDED = ("n", "accuracy", "tokens")


def import_curve(
    path: Path,
    folder: Path,
    *,
    given: Given,
    problems: int | None,
    spread: float | None,
    benchmark: str | None,
    limit_bytes: int,
) -> Imported:
    """Read a curve into the recording `folder`; return what was found.

    `problems` is how many the averages are over where the file does not say, `spread` the standard
    deviation of the logarithm of lengths. Curves of one `benchmark` are of the same problems.
    Raises OutcomesError for a file that is no such curve, UsageError for what is given wrongly.
    """
    check_free(folder)
    rows = list(_rows(path, limit_bytes))
    points = sorted((_point(path, place, row) for place, row in rows), key=lambda each: each.n)
    _check(path, points, given.max_tokens)
    if spread is not None and not 0 <= spread <= 3:
        raise UsageError(
            f"--length-spread {spread:g}: wants the standard deviation of the natural logarithm of "
            f"lengths, from 0 to 3. {SPREAD:g} is usual"
        )
    count, how = _problems(path, rows, points, problems)
    curve = PublishedCurve(
        points=tuple(points),
        problems=count,
        spread=SPREAD if spread is None else spread,
        prompt_tokens=given.prompt_tokens,
    )
    notes = _notes(path, curve, how, assumed=spread is None)
    _write(folder, path, curve, notes, given, benchmark)
    return Imported(
        head=f"{FORMAT}: {counted(len(points), 'point')}, votes of up to "
        f"{counted(curve.most, 'sample')}, {counted(count, 'problem')}",
        facts={"format": FORMAT, "file": path.name, **curve.to_json()},
        notes=tuple(notes),
    )


def _short(path: Path, number: int, line: bytes | None) -> bytes:
    """Return a line. Raises OutcomesError for one that is too long for a curve."""
    if line is not None and len(line) > LONGEST_LINE:
        raise OutcomesError(
            f"{path}: line {number:,} has more than {LONGEST_LINE:,} bytes, so it is no curve"
        )
    return (line or b"").strip()


def _rows(path: Path, limit_bytes: int) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the lines that hold something, with their numbers: objects, or cells by column."""
    notes: list[str] = []
    header: list[str] | None = None
    count = 0
    lines = (
        (first + place, text)
        for first, line in text_lines(path, limit_bytes, notes)
        for place, text in enumerate(_short(path, first, line).split(b"\r"))  # an old Mac's ends
    )
    for number, line in lines:
        text = line.decode("utf-8-sig", "replace").strip()
        if not text:
            continue
        if count > MOST_POINTS:
            raise OutcomesError(f"{path}: has more than {MOST_POINTS:,} points, so it is no curve")
        if header is None and text.startswith("{"):
            try:
                row = msgspec.json.decode(text)
            except (msgspec.MsgspecError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise OutcomesError(f"{path}: line {number:,} is no JSON object. {_SHAPE}")
            yield number, row
            count += 1
            continue
        if header is None and text.startswith("["):
            raise OutcomesError(f"{path}: is a JSON array. {_SHAPE}")
        try:
            cells = [cell.strip() for cell in next(csv.reader([text]), [])]
        except csv.Error as error:
            raise OutcomesError(f"{path}: line {number:,} is no CSV ({error}). {_SHAPE}") from None
        if header is None:
            header = [cell.lower() for cell in cells]
            if count or not set(_NEEDED) <= set(header):
                lacking = ", ".join(name for name in _NEEDED if name not in header)
                raise OutcomesError(f"{path}: line {number:,} is no column names: {lacking} lack")
            continue
        if len(cells) != len(header):
            raise OutcomesError(
                f"{path}: line {number:,} has {len(cells)} columns of {len(header)}. {_SHAPE}"
            )
        yield number, {k: _number(v) for k, v in zip(header, cells, strict=True) if v != ""}
        count += 1
    if notes:
        raise OutcomesError(f"{path}: {notes[0]}. Export it again")


_SHAPE = "A curve is lines of n, accuracy and tokens, as JSON objects or CSV (see docs/import.md)"


def _number(cell: str) -> object:
    try:
        return float(cell)
    except ValueError:
        return cell


def _point(path: Path, place: int, row: Mapping[str, Any]) -> CurvePoint:
    where = f"{path}: line {place:,}"
    for name in _NEEDED:
        if row.get(name) is None:
            raise OutcomesError(f"{where} has no {name}. {_SHAPE}")
    count = whole_number(row["n"])
    accuracy, tokens = finite(row["accuracy"]), finite(row["tokens"])
    ci = None if row.get("ci") is None else finite(row["ci"])
    if count is None or not 1 <= count <= MOST_SAMPLES:
        raise OutcomesError(f"{where}: n wants a whole number from 1 to {MOST_SAMPLES:,}")
    if accuracy is None or not 0 <= accuracy <= 1:
        raise OutcomesError(f"{where}: accuracy wants a share from 0 to 1, such as 0.533")
    if tokens is None or tokens < count:
        raise OutcomesError(
            f"{where}: tokens wants those of all n samples of a problem, on average, so {count:,} "
            "at least"
        )
    if row.get("ci") is not None and (ci is None or not 0 < ci < 1):
        raise OutcomesError(f"{where}: ci wants half the 95 % interval of accuracy, such as 0.03")
    return CurvePoint(n=count, accuracy=accuracy, tokens=tokens, ci=ci)


def _check(path: Path, points: list[CurvePoint], max_tokens: int | None) -> None:
    if not points:
        raise OutcomesError(f"{path}: holds no point. {_SHAPE}")
    counts = [point.n for point in points]
    twice = next((n for n in counts if counts.count(n) > 1), None)
    if twice is not None:
        raise OutcomesError(f"{path}: n {twice:,} is there more than once. Keep one of each")
    first = points[0].tokens / points[0].n
    for point in points:
        each = point.tokens / point.n
        if abs(each / first - 1) > APART:
            raise OutcomesError(
                f"{path}: samples have {each:,.0f} tokens each at n {point.n:,}, and {first:,.0f} "
                f"at n {points[0].n:,}. Give votes whose samples all end, and the tokens of all n"
            )
        if max_tokens is not None and each > max_tokens:
            raise UsageError(
                f"--max-tokens {max_tokens:,}: samples have {each:,.0f} tokens each at n "
                f"{point.n:,}. Give the limit that the samples were drawn with"
            )


def _problems(
    path: Path,
    rows: list[tuple[int, Mapping[str, Any]]],
    points: list[CurvePoint],
    asked: int | None,
) -> tuple[int, str]:
    """Return how many problems the averages are over, and how that is known."""
    values = {row["problems"] for _, row in rows if row.get("problems") is not None}
    counts = {whole_number(each) for each in values}
    if any(each is None or not 1 <= each <= MOST_PROBLEMS for each in counts):
        raise OutcomesError(f"{path}: problems wants a whole number from 1 to {MOST_PROBLEMS:,}")
    if len(counts) > 1:
        raise OutcomesError(
            f"{path}: its points are over different numbers of problems. Import those of one"
        )
    if asked is not None:
        if not 1 <= asked <= MOST_PROBLEMS:
            raise UsageError(f"--problems {asked:,}: wants a number from 1 to {MOST_PROBLEMS:,}")
        if counts and counts != {asked}:
            raise UsageError(
                f"--problems {asked:,}: the file says {counts.pop():,}. Leave the option out"
            )
        return asked, "given"
    if counts:
        return counts.pop() or 1, "as the file says"
    sizes = [
        p.accuracy * (1 - p.accuracy) * (_Z95 / p.ci) ** 2
        for p in points
        if p.ci is not None and 0 < p.accuracy < 1
    ]
    if not sizes:
        raise UsageError(
            f"{path}: does not say over how many problems it is, without which nothing has an "
            "interval. Give --problems N"
        )
    return min(max(round(median(sizes)), 1), MOST_PROBLEMS), "as the published intervals have it"


def _notes(path: Path, curve: PublishedCurve, how: str, *, assumed: bool) -> list[str]:
    counts = [point.n for point in curve.points]
    shown = ", ".join(map(str, counts[:8])) + (f" ... {counts[-1]}" if len(counts) > 8 else "")
    spread = f"{curve.spread:g} ({'assumed' if assumed else 'given'})"
    return [
        f"imported from a {FORMAT}: {path.name}. No problem, no sample, no time and no engine is "
        "known",
        f"published for n {shown}, averages over {curve.problems:,} problems ({how})",
        f"lengths are drawn: {curve.tokens_per_sample:,.0f} tokens a sample, as published, spread "
        f"of their logarithm {spread}, half of its square between problems",
    ]


def _write(
    folder: Path,
    path: Path,
    curve: PublishedCurve,
    notes: list[str],
    given: Given,
    benchmark: str | None,
) -> None:
    name = own_name(path) if benchmark is None else benchmark
    policy = Policy(
        method="majority",
        n=curve.most,
        max_tokens=given.max_tokens,
        temperature=given.temperature,
        top_p=given.top_p,
    )
    engine = EngineConfig(model=given.model_name(), mode="server")
    digest = hashlib.sha256(f"{FORMAT} {name} {curve.problems}".encode()).hexdigest()[:16]
    with written_into(folder) as tables:
        tables.finish_one(
            {
                "format": FORMAT,
                "given": given.to_json(),
                "files": [{"name": path.name}],
                "curve": curve.to_json(),
            },
            notes,
            engine,
            policy,
            given.facts,
            workload=WorkloadFacts(name=name, hash=digest, problems=curve.problems),
        )
