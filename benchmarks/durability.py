"""What a recording keeps when it is killed and when its disk is full.

``python -m benchmarks.durability [--kills 500] [--full 50]`` prints counts. A kill (SIGKILL) at a
random moment may lose the rows of the last 2 s, no others, and none stands twice. A disk (tmpfs, so
it needs the right to mount) is filled at a random moment: in half of the cases room comes back, and
every row must be there. In the others what is missing must be counted.
"""

import argparse
import logging
import random
import subprocess
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.made.killed import check, kill_once
from traces.errors import RecordingError
from traces.recording.manifest import Manifest
from traces.recording.reader import Recording
from traces.recording.writer import RecordingWriter, read_clocks

AT_ONCE = 3
ROWS = 4_000


def kills(root: Path, count: int, seed: int) -> Counter[str]:
    """Kill so many recordings; half of whole runs, half of a writer that merges all the time."""
    draw, counts = random.Random(seed), Counter[str]()
    jobs = [(("run", "write")[i % 2], root / f"k{i}", draw.uniform(0, 3.2)) for i in range(count)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for (kind, folder, _), (killed, ledger) in zip(
            jobs, pool.map(lambda job: kill_once(*job), jobs), strict=True
        ):
            try:
                check(folder, killed, ledger)
                counts["killed, nothing older than 2 s lost, nothing twice"] += 1
            except (AssertionError, RecordingError) as error:
                kept = Recording.open(folder).steps["step"].to_list()
                if kept == list(range(len(kept))) and len(kept) < len(ledger):
                    lost_s = (killed - ledger[len(kept)][1]) / 1e9
                    counts["killed, nothing twice, more than 2 s lost"] += 1
                    print(f"{kind} {folder.name}: the rows of the last {lost_s:.1f} s are lost")
                else:
                    counts["killed, and WRONG"] += 1
                    print(kind, folder.name, repr(error)[:300])
    return counts


def full_disks(root: Path, count: int, seed: int) -> Counter[str]:
    """Fill a disk at so many moments of a recording."""
    draw, counts = random.Random(seed), Counter[str]()
    for number in range(count):
        disk = root / f"d{number}"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], check=True)
        try:
            counts[_fill_one(disk, draw, frees=number % 2 == 0)] += 1
        finally:
            subprocess.run(["umount", str(disk)], check=True)
    return counts


def _fill_one(disk: Path, draw: random.Random, *, frees: bool) -> str:
    moment = draw.randrange(ROWS)
    writer = RecordingWriter(
        disk / "r", Manifest(clock_start=read_clocks()), period_s=draw.choice([0.002, 0.02])
    )
    lost = ""
    for step in range(ROWS):
        if step == moment:
            ballast = (disk / "ballast").open("wb", buffering=0)
            try:
                while True:
                    ballast.write(bytes(4096))
            except OSError:
                ballast.close()
        if frees and step == min(moment + ROWS // 4, ROWS - 1):
            (disk / "ballast").unlink()
        writer.append("steps", {"engine": "e", "step": step, "wall_ns": draw.randrange(1 << 40)})
        if step % 50 == 0:
            time.sleep(0.002)
    try:
        writer.close(complete=True)
    except RecordingError as error:
        lost = str(error)
    recording = Recording.open(disk / "r")
    steps = recording.steps["step"].to_list()
    counted = recording.manifest.dropped.get("steps", 0)
    if len(set(steps)) != len(steps) or len(steps) + counted != ROWS:
        return f"WRONG: {len(steps)} kept and {counted} counted of {ROWS}"
    if recording.complete == bool(counted) or bool(lost) != bool(counted):
        return f"WRONG: complete {recording.complete}, {counted} counted, said {lost!r}"
    return "disk full, every row kept" if not counted else "disk full, what is missing is counted"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--full", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    logging.disable()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        counts = full_disks(root, given.full, given.seed)
        counts += kills(root, given.kills, given.seed)
        for name, count in sorted(counts.items()):
            print(f"{name:60} {count:5,}")


if __name__ == "__main__":
    main()
