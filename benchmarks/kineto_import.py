"""How fast and in how much memory profiler traces are read, against HolisticTraceAnalysis.

    python benchmarks/kineto_import.py DATA [--hta PYTHON] [--repeats 5]

DATA is the folder with `v100_ns_resolution.json.gz` and `a100_nccl.json.gz`. Traces of 50 and
200 MB are made from the first by repeating its events with shifted times and correlation ids.
PYTHON is an interpreter that has HolisticTraceAnalysis 0.5 (a package of its own environment:
it is no dependency of ttscope), by default this one. Every reading is a process of its own, the
two readers take turns, and medians are printed. Times are seconds of CPU of reading alone, all
threads together and without imports: others that use the machine count for neither reader. Both
have numpy's OpenBLAS without threads of its own, as `ttscope import` does: where a core is free,
each of them spins for 50 ms after the import of numpy, which is no part of reading. Memory
is the highest resident size of the process. On a shared machine only the ratios mean anything.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

MADE = {"made_50_mb": 50_000_000, "made_200_mb": 200_000_000}


def highest_mb() -> float:
    """Return the highest resident size of this process in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1e3
    raise RuntimeError("needs Linux")


def read_once(reader: str, path: str) -> dict[str, Any]:
    """Read one trace in this process; seconds and memory."""
    if reader == "ttscope":
        from traces.kineto.read import read_trace as read

        version = importlib.metadata.version("msgspec")
    else:
        import logging
        import warnings

        warnings.filterwarnings("ignore")
        logging.disable(logging.CRITICAL)
        from hta.common.trace import parse_trace_file as read  # type: ignore[import-not-found]

        version = importlib.metadata.version("HolisticTraceAnalysis")
    start = time.process_time()
    read(path)
    seconds = time.process_time() - start
    return {"seconds": seconds, "peak_mb": highest_mb(), "version": version}


def make_trace(source: Path, target: Path, size: int) -> None:
    """Write a trace of `size` bytes: the source's events again and again, later each time."""
    data = json.loads(gzip.decompress(source.read_bytes()))
    events = data.pop("traceEvents")
    timed = [event["ts"] for event in events if event.get("ph") == "X"]
    span = max(timed) - min(timed) + 1e6
    ids = 1 + max(event.get("args", {}).get("correlation", 0) for event in events)
    with target.open("w") as file:
        file.write(json.dumps(data)[:-1] + ', "traceEvents": [\n')
        separator, again = "", 0
        while file.tell() < size:
            for event in events:
                shifted = event
                if again and "ts" in event:
                    shifted = event | {"ts": round(event["ts"] + again * span, 3)}
                    if "correlation" in event.get("args", {}):
                        number = event["args"]["correlation"] + again * ids
                        shifted["args"] = event["args"] | {"correlation": number}
                    if event.get("cat") == "ac2g":
                        shifted["id"] = event["id"] + again * ids
                file.write(separator + json.dumps(shifted))
                separator = ",\n"
            again += 1
        file.write("\n]}\n")


def json_bytes(path: Path) -> int:
    raw = path.read_bytes()
    return len(gzip.decompress(raw)) if path.suffix == ".gz" else len(raw)


def measure(python: str, reader: str, path: Path) -> dict[str, Any]:
    command = [python, __file__, "--child", reader, str(path)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{reader} failed on {path.name}: {done.stderr.strip().splitlines()[-1:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--hta", default=sys.executable, help="Python with HolisticTraceAnalysis.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="The two files of DATA only.")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(read_once(*given.child)))
        return
    with tempfile.TemporaryDirectory() as folder:
        files = [given.data / f"{name}.json.gz" for name in ("v100_ns_resolution", "a100_nccl")]
        for name, size in () if given.small else MADE.items():
            files.append(Path(folder) / f"{name}.json")
            make_trace(files[0], files[-1], size)
        readers = {"ttscope": sys.executable, "HTA": given.hta}
        report(files, readers, given.repeats)


def report(files: list[Path], readers: dict[str, str], repeats: int) -> None:
    versions: dict[str, str] = {}
    lines = []
    for path in files:
        found: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for _ in range(repeats):
            for reader, python in readers.items():
                found[reader].append(measure(python, reader, path))
        size = json_bytes(path) / 1e6
        middle = {
            reader: {
                key: statistics.median(run[key] for run in runs) for key in ("seconds", "peak_mb")
            }
            for reader, runs in found.items()
        }
        versions |= {reader: runs[0]["version"] for reader, runs in found.items()}
        ours, theirs = middle["ttscope"], middle["HTA"]
        ratios = sorted(
            b["seconds"] / a["seconds"] for a, b in zip(found["ttscope"], found["HTA"], strict=True)
        )
        lines.append(
            f"| {path.name.split('.')[0]} | {size:.1f} "
            f"| {size / ours['seconds']:.0f} | {size / theirs['seconds']:.1f} "
            f"| {theirs['seconds'] / ours['seconds']:.1f} ({ratios[0]:.1f}-{ratios[-1]:.1f}) "
            f"| {ours['peak_mb']:.0f}, {theirs['peak_mb']:.0f} |"
        )
        print(lines[-1], file=sys.stderr)
    from profiler.runs.provenance import cpu_name

    print(
        f"{cpu_name()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {platform.system()}"
    )
    print(
        f"Python {platform.python_version()}, msgspec {versions['ttscope']}, "
        f"HolisticTraceAnalysis {versions['HTA']}; medians of {repeats}, taken in turns"
    )
    print()
    print(
        "| trace | MB of JSON | ttscope MB/s | HTA MB/s | ratio (range) | peak MB: ttscope, HTA |"
    )
    print("|---|---|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
