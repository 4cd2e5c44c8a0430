"""Imports of damaged files: python -m benchmarks.damaged_imports [--count 20000] [--seed 1].

Small files of every kind that `ttscope import` reads are damaged at random (bytes changed, cut out,
doubled, cut off, swapped between two files; values made absurd) and imported in this one process.
Counted are those that were imported, refused in one line, broke with a traceback, or took more than
`SLOW_S` of processor time; the largest memory is that of the whole process. Exits 1 when one broke
or was slow.
"""

from __future__ import annotations

import argparse
import gzip
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from benchmarks.made import foreign_files as made
from benchmarks.made import kineto_files
from traces.errors import TtscopeError
from traces.foreign.evaluations.importer import import_outcomes
from traces.foreign.evaluations.reader import Choices
from traces.foreign.kinds import kind_of
from traces.foreign.profiler_traces import import_traces
from traces.foreign.requests.importer import import_requests
from traces.foreign.requests.reader import RequestChoices

SLOW_S = 5.0
LIMIT_BYTES = 16_000_000_000  # as of the command
ABSURD = (
    b"null", b"NaN", b"-1", b"1e999", b"1e308", b"99999999999999999999999", b"\"\"", b"[]", b"{}",
    b"true", b"\"\\u0000\"", b"\"\\ud800\"", b"\"\xff\xfe\"", b"[[[[[[", b"{\"a\":", b"0.5", b"-0",
)  # fmt: skip


def originals(folder: Path) -> dict[str, bytes]:
    """Return a small sound file of each kind, plain and compressed, by its name."""
    samples = [(f"p{problem}", index, "42", True) for problem in range(3) for index in range(3)]
    sent = [(number / 2, 600 + number, 20, 0.1, 1.5) for number in range(6)]
    paths = [case.write(folder / case.file, samples) for case in made.CASES]
    paths += [case.write(folder / case.file, sent) for case in made.REQUEST_CASES]
    paths.append(made.inspect_zip(folder / "stored.eval", samples, compression=zipfile.ZIP_STORED))
    for name, events in (("gpu", kineto_files.device_events()), ("cpu", kineto_files.cpu_events())):
        document = kineto_files.document(events)
        paths.append(kineto_files.write(folder / f"{name}_trace.json", document))
    found = {path.name: path.read_bytes() for path in paths}
    for name, data in list(found.items()):
        if not name.endswith(".eval"):
            found[f"{name}.gz"] = gzip.compress(data, 1)
    return found


def damaged(data: bytes, others: list[bytes], draw: random.Random) -> bytes:
    if data.startswith(b"\x1f\x8b") and draw.random() < 0.5:
        return gzip.compress(damaged(gzip.decompress(data), others, draw), 1)
    body = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 6))):
        at = draw.randrange(len(body) + 1)
        length = min(int(draw.paretovariate(0.6)), 4000)
        fault = draw.randrange(8)
        if fault == 0:
            del body[at : at + length]
        elif fault == 1:
            body[at:at] = draw.randbytes(min(length, 64))
        elif fault == 2:
            body[at : at + 1] = bytes([draw.randrange(256)])
        elif fault == 3:
            del body[at:]
        elif fault == 4:
            body[at:at] = body[at : at + length] * draw.randrange(1, 20)
        elif fault == 5:
            other = draw.choice(others)
            start = draw.randrange(len(other))
            body[at : at + length] = other[start : start + length]
        elif fault == 6:
            body[at:at] = draw.choice(ABSURD) * draw.choice((1, 1, 1, 5000))
        else:  # a whole value, where one stands
            colon = body.find(b":", at)
            end = min((e for e in (body.find(m, colon) for m in (b",", b"}", b"\n")) if e > 0),
                      default=-1)  # fmt: skip
            if 0 <= colon < end:
                body[colon + 1 : end] = draw.choice(ABSURD)
    return bytes(body)


def import_once(path: Path, target: Path) -> None:
    """Import a file as the command does, whatever kind its first bytes say it is."""
    kind = kind_of([path])
    if kind == "samples":
        import_outcomes([path], target, choices=Choices(limit_bytes=LIMIT_BYTES))
    elif kind == "requests":
        import_requests(path, target, choices=RequestChoices(limit_bytes=LIMIT_BYTES))
    else:
        import_traces([path], target, limit_bytes=LIMIT_BYTES)


def judged(run: Callable[[], None]) -> tuple[str, str]:
    """Return how an import ended, and what it said where that matters."""
    try:
        run()
    except TtscopeError as error:
        text = str(error)
        return ("refused in one line" if text and "\n" not in text else "refused in lines"), text
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "traceback", traceback.format_exc()
    return "imported", ""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="Folder for the files that broke or were slow.")
    given = parser.parse_args()
    draw, counts, slowest = random.Random(given.seed), Counter[str](), 0.0
    kinds: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as made_here:
        folder = Path(made_here)
        files = originals(folder)
        for name in files:
            (folder / name).write_bytes(files[name])
            import_once(folder / name, folder / "sound")  # raises where a sound file is refused
            shutil.rmtree(folder / "sound")
        at_start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        names, others = list(files), list(files.values())
        begun = time.monotonic()
        for number in range(given.count):
            name = names[number % len(names)]
            path, target = folder / f"damaged-{name}", folder / "made"
            path.write_bytes(damaged(files[name], others, draw))
            started = time.process_time()  # others may have the cores
            end, told = judged(lambda path=path, target=target: import_once(path, target))
            seconds = time.process_time() - started
            slowest = max(slowest, seconds)
            counts[end] += 1
            kinds[f"{name}: {end}"] += 1
            if seconds > SLOW_S:
                counts["slow"] += 1
            if end in ("traceback", "refused in lines") or seconds > SLOW_S:
                print(f"{number} {name} {seconds:.1f} s: {told[-600:]}", file=sys.stderr)
                if given.keep is not None:
                    given.keep.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, given.keep / f"{number}-{name}")
            shutil.rmtree(target, ignore_errors=True)
        seconds = time.monotonic() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for end in ("imported", "refused in one line", "refused in lines", "traceback", "slow"):
        print(f"{end:<20}{counts[end]:>8,}")
    for what, count in sorted(kinds.items()):
        print(f"  {what:<60}{count:>6,}")
    print(f"slowest {slowest:.2f} s; {given.count:,} in {seconds:.0f} s")
    print(f"memory {peak / 1024:.0f} MB at most, {at_start / 1024:.0f} MB after the sound files")
    return 1 if counts["traceback"] or counts["slow"] or counts["refused in lines"] else 0


if __name__ == "__main__":
    sys.exit(main())
