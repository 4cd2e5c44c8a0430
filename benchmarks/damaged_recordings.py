"""Damage recordings at random and see what every verb and the app's loader make of them.

``python -m benchmarks.damaged_recordings [--count 10000] [--old] [--seed 0]`` prints how many were
refused in one line, gave the same output as the undamaged recording, said that something is
missing, gave another output without a word (a silent change), ended in a traceback, or took over
5 s of processor time.
`--old` deletes the checksums first, as recordings of older versions have none: a changed number is
not noticed there, and only tracebacks and hangs are faults.
"""

import argparse
import contextlib
import io
import os
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import typer

os.environ["NUMBA_NUM_THREADS"] = "1"
from traces.recording import checksums
from traces.recording.manifest import Manifest
from traces.recording.reader import Recording
from traces.recording.writer import RecordingWriter, read_clocks
from tui import cli
from tui.screens.entries import load

SHIPPED = Path(__file__).parent.parent / "profiler/demo/recordings"
LONGEST_S = 5.0
MISSING = ("is missing", "incomplete")
KINDS = (
    *("flip", "flip", "flip", "flip", "cut", "zero", "grow", "swap", "copy", "remove", "special"),
    *("text", "text"),
)


def small(root: Path) -> Path:
    """Return a recording of few problems, so that thousands of replays of it are quick."""
    source = Recording.open(next(SHIPPED.glob("demo-s-*maj@16*")))
    facts = source.manifest
    manifest = Manifest(
        clock_start=read_clocks(),
        engines=facts.engines,
        policies=facts.policies,
        models=facts.models,
        workload=facts.workload,
        concurrency=facts.concurrency,
        provenance=facts.provenance,
    )
    kept = set(source.problems["problem_id"].to_list()[:8])
    samples = source.samples.filter(source.samples["problem_id"].is_in(kept))
    last = samples["end"].max()
    with RecordingWriter(root / "whole", manifest, period_s=60) as writer:
        problems = source.problems.filter(source.problems["problem_id"].is_in(kept))
        steps = source.steps.filter(source.steps["end"] <= last)
        for table, frame in (("problems", problems), ("samples", samples), ("steps", steps)):
            for row in frame.iter_rows(named=True):
                writer.append(table, row)
        writer.event("note", "a note")
    return root / "whole"


def damage(folder: Path, draw: random.Random) -> str:
    """Change one thing in a recording; returns what."""
    path = draw.choice(sorted(folder.iterdir()))
    kind = draw.choice(KINDS)
    data = bytearray(path.read_bytes())
    if kind == "flip":
        for _ in range(draw.choice([1, 1, 1, 4, 64])):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del data[draw.randrange(len(data)) :]
    elif kind == "zero":
        at = draw.randrange(len(data))
        data[at : at + draw.choice([4, 64, 4096])] = bytes(min(64, len(data) - at))
    elif kind == "grow":
        at = draw.randrange(len(data))
        data[at:at] = draw.randbytes(draw.choice([1, 16, 4096]))
    elif kind == "swap":
        data = bytearray(draw.choice(sorted(folder.iterdir())).read_bytes())
    elif kind == "copy":
        name = path.name.replace("000000", f"{draw.randrange(1, 9):06d}")
        shutil.copy(path, folder / name if name != path.name else folder / f"{name}.copy")
        return f"{kind} {path.name}"
    elif kind == "text":
        text = (folder / "recording.json").read_bytes()
        old = draw.choice([b'"', b"{", b"[", b"1", b"null", b"true", b":", b",", b"e", b"0"])
        new = draw.choice(
            [b"", b"null", b"[[[[", b"1e999", b"-1", b'"x"', b"NaN", b"{}", b"9" * 40]
        )
        where = [i for i in range(len(text)) if text.startswith(old, i)]
        at = draw.choice(where)
        path, data = folder / "recording.json", bytearray(text[:at] + new + text[at + len(old) :])
    path.unlink()
    if kind == "special":
        draw.choice([path.mkdir, lambda: os.mkfifo(path), lambda: path.symlink_to("/dev/zero")])()
    elif kind != "remove":
        path.write_bytes(data)
    return f"{kind} {path.name}"


COMMAND = typer.main.get_command(cli.app)  # built once: it takes 70 ms


def call(*arguments: object) -> tuple[int, str, str]:
    """Run a command in this process; exit code, stdout, stderr. 99 is a traceback."""
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["ttscope", *map(str, arguments)]
    cli.app = COMMAND
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 0
        except BaseException:
            traceback.print_exc()
            code = 99
    return code, out.getvalue(), err.getvalue()


def verbs(folder: Path, page: Path) -> dict[str, tuple[int, str, str]]:
    said = {
        "show": call("show", folder),
        "replay": call("replay", folder, "--set", "engine.max_num_seqs=4"),
        "advise": call("advise", folder, "--min-accuracy", "0.1", "--optimise", "latency"),
        "report": call("report", folder, "-o", page),
    }
    if said["report"][0] == 0:
        code, _, err = said["report"]
        said["report"] = code, re.sub("written at .*? by", "", page.read_text()), err
    try:
        (entry,) = load(folder)
        code = 0 if entry.run is not None else 1
        notes = "" if entry.run is None else " ".join(entry.run.notes)
        said["app"] = code, f"{entry.cells} {entry.comparable} {notes}", entry.error or ""
    except BaseException:
        said["app"] = (99, "", traceback.format_exc())
    return said


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--old", action="store_true")
    given = parser.parse_args()
    draw, counts = random.Random(given.seed), Counter[str]()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        whole, folder, page = small(root), root / "r", root / "page.html"
        whole.rename(root / "keep")
        whole = root / "keep"
        if given.old:
            (whole / checksums.NAME).unlink()
        shutil.copytree(whole, folder)
        right = verbs(folder, page)
        assert all(code == 0 for code, _, _ in right.values()), right
        slowest = 0.0
        for number in range(given.count):
            shutil.rmtree(folder)
            shutil.copytree(whole, folder)
            what = damage(folder, draw)
            begun = time.process_time()
            said = verbs(folder, page)
            took = time.process_time() - begun
            slowest = max(slowest, took)
            for verb, (code, out, err) in said.items():
                outcome = judge(code, out, err, right[verb])
                counts[f"{verb}: {outcome}"] += 1
                if outcome in {"traceback", "refused in several lines"} or (
                    outcome == "silent change" and not given.old
                ):
                    print(f"{number} {what} {verb}: {outcome}\n{err[-1500:]}{out[-200:]}")
            if took > LONGEST_S:
                counts["slow"] += 1
                print(f"{number} {what}: {took:.1f} s")
            if number % 500 == 499:
                print(f"{number + 1:,} done", file=sys.__stderr__, flush=True)
    for name, count in sorted(counts.items()):
        print(f"{name:40} {count:8,}")
    print(f"slowest, all verbs together: {slowest:.1f} s of processor time")


def judge(code: int, out: str, err: str, right: tuple[int, str, str]) -> str:
    """Name what became of a damaged recording in one verb."""
    if code == 99:
        return "traceback"
    if code:
        return "refused in one line" if len(err.splitlines()) <= 1 else "refused in several lines"
    if out == right[1]:
        return "as undamaged"
    return "said" if any(word in out + err for word in MISSING) else "silent change"


if __name__ == "__main__":
    main()
