"""Forge recordings of every kind, without checksums, and see what the verbs make of them.

``python -m benchmarks.forged_recordings [--count 10000] [--seed 0]`` writes recordings as `record`,
`attach`, `serve` and `import` leave them, changes values in their tables and `recording.json`, and
gives each to show, replay, advise, gate and report. It prints how many ended well, were refused in
lines of ttscope, ended in a traceback or in other lines, took over 5 s of processor time in one
verb, or over 1 GB of memory above what the process holds before. Exits 1 where one of the last
four did. More memory cannot be had: what asks for it ends in a traceback.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ["NUMBA_NUM_THREADS"] = "1"
import polars as pl

from benchmarks import live_day
from benchmarks.damaged_imports import import_once
from benchmarks.damaged_recordings import call, small
from benchmarks.made import foreign_files, kineto_files
from traces.recording import checksums
from traces.recording.manifest import NAME, ClockReading, Manifest
from traces.recording.parts import list_parts
from traces.recording.reader import Recording
from traces.recording.tables import TABLES
from traces.recording.writer import RecordingWriter

LONGEST_S, MOST_BYTES = 5.0, 1 << 30
EVIL = "\x1b]0;x\x07\u202egpj\x00<b>|`$(x)`"
WHOLE = (
    *(None, None, 0, 0, 1, -1, 2, 7, 1 << 20, (1 << 20) + 1, 1 << 31, 1 << 40, 1 << 53),
    *((1 << 62) - 1, 1 << 62, (1 << 63) - 1, -(1 << 63), -(1 << 40), 1_700_000_000_000_000_000),
    *(4_200_000_000_000_000_000, 86_400_000_000_000, 10**9),
)
REAL = (None, None, 0.0, -0.0, 1.0, -1.0, 1e-320, 1e30, 1e308, -1e308, float("nan"), float("inf"))
TEXT = (None, None, "", "x", "-x", "--help", EVIL, "n" * 5_000, "0", "sample", "scorer", "draft",
        "checkpoint", "forced", "revision", "measured", "inferred", "forward", "replayed", "nan",
        "profiled", "restart", "drop", "{}", "[1]", "1e999", "../x")  # fmt: skip
JSON = (
    *(None, True, False, 0, 1, -1, 2, 1 << 20, 1 << 31, 1 << 50, (1 << 63) - 1, 1 << 63),
    *(-(1 << 62), 10**40, 0.5, 1e308, -1e308, "", "x", "-x", EVIL, "n" * 5_000),
    *([], {}, [[]], [1, 2], {"a": 1}),
)


# Sound recordings of every kind.


def recorded(root: Path) -> Path:
    """What `record` leaves: a vote's problems, samples and steps, and rows of other tables."""
    folder = small(root).rename(root / "record")
    whole = Recording.open(folder)
    engine, at = next(iter(whole.manifest.engines)), int(str(whole.steps["end"].min()))
    problem, policy = whole.problems["problem_id"][0], next(iter(whole.manifest.policies))
    asked = {"problem_id": problem, "sample_index": 0, "engine": engine, "policy": policy}
    opened = {"begun_ns": at, "ended_ns": at + 10**9}
    more: dict[str, list[dict[str, Any]]] = {
        "answers": [asked | {"budget_tokens": size, "forced": True, "answer": "1", "correct": True,
                             "answer_tokens": 3} for size in (16, 32, 64)],
        "drafts": [asked | {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 2,
                            "prompt_lookup_max": 4, "phase": phase, "steps": 20, "tokens": 25,
                            "drafted": [9, 8, 7], "accepted": [5, 3, 1]}
                   for phase in ("thinking", "answer")],
        "kernels": [{"engine": engine, "rank": 0, "step": step, "window_id": 0, "stream": 7,
                     "family": family, "name": f"{family}_kernel", "count": 4, "time": 90_000,
                     "self_time": 90_000, "exposed_time": 80_000}
                    for step in range(3) for family in ("gemm", "attention")],
        "power": [{"host": "h", "device": "0", "kind": "nvml", "time": at + tick * 10**8,
                   "watts": 200.0 + tick, "energy_j": 20.0 * tick, "utilisation": 0.5,
                   "memory_bytes": 1 << 30, "sm_clock_mhz": 1500.0, "temperature_c": 50.0,
                   "throttle_bits": 0} for tick in range(40)],
        "events": [{"time": at + 1, "engine": engine, "kind": kind, "detail": detail}
                   for kind, detail in (("note", "a note"), ("clock", "jumped"), ("gap", "3 polls"),
                                        ("profiled", json.dumps(opened)))],
    }  # fmt: skip
    for table, rows in more.items():
        frame = pl.DataFrame(rows, schema_overrides=TABLES[table])
        frame.write_parquet(folder / f"{table}-000100.parquet")
    return folder


def attached(root: Path) -> Path:
    """What `attach` leaves: pages and steps of a live server, and requests by their spans."""
    folder = root / "attach"
    live_day.make(folder, 2 * live_day.FAN_IN)
    start, second = live_day.START, live_day.S
    manifest = Manifest(
        clock_start=ClockReading(monotonic_ns=0, unix_ns=start),
        engines={live_day.ENGINE.key(): live_day.ENGINE},
    )
    with RecordingWriter(folder, manifest, period_s=60) as writer:
        for number in range(40):
            begin = start + number * 2 * second
            sent = {"problem_id": f"r{number}", "engine": live_day.ENGINE.key(), "policy": ""}
            sent |= {"arrival": begin, "end": begin + 9 * second, "prompt_tokens": 700}
            writer.append(
                "problems", sent | {"decided_at": begin + 9 * second, "span_id": f"{number}"}
            )
            sent |= {"sample_index": 0, "role": "sample", "output_tokens": 90, "cached_tokens": 0}
            sent |= {"queued": begin, "scheduled": begin + 1, "first_token": begin + second}
            writer.append("samples", sent | {"finish_reason": "stop", "span_id": f"s{number}"})
        for kind in ("restart", "counter_reset", "gap", "drop"):
            writer.event(kind, "a detail", engine=live_day.ENGINE.key())
    return folder


def served(root: Path) -> Path:
    """What `serve` leaves: questions of clients, answered by a vote in front of a fake engine."""
    import httpx

    from benchmarks.servers.fake_engine import FakeEngine, running
    from profiler.serve.serve import serve
    from profiler.serve.service import Settings
    from traces.deployment.documents import PolicyFile
    from traces.schema.tts.parameters import make_policy

    policy = make_policy({"temperature": 0.8, "method": "majority", "n": 4})
    document = PolicyFile(policy=policy, verifier="numeric", most_n=4)
    folder, ready, told = root / "serve", threading.Event(), {}

    def work(url: str) -> None:
        serve(
            document,
            url,
            folder,
            Settings(port=0, drain_s=1.0),
            ready=lambda where: (told.update(url=where), ready.set()),
            handed=lambda end: told.update(end=end),
        )

    with running(FakeEngine()) as url:
        thread = threading.Thread(target=work, args=(url,))
        thread.start()
        assert ready.wait(60)
        for number in range(12):
            body = {"model": "fake", "messages": [{"role": "user", "content": f"{number} + 1?"}]}
            httpx.post(f"{told['url']}/v1/chat/completions", json=body).raise_for_status()
        told["end"]()
        thread.join()
    return folder


def imported(root: Path) -> Iterator[Path]:
    """What `import` leaves of samples, of requests and of a profiler's trace."""
    samples = [(f"p{at // 4}", at % 4, str(41 + at % 3), at % 3 == 1) for at in range(48)]
    sent = [(at / 2, 600 + at, 20 + at % 7, 0.1, 1.5) for at in range(40)]
    files = [case.write(root / case.file, samples) for case in foreign_files.CASES[:1]]
    files += [case.write(root / case.file, sent) for case in foreign_files.REQUEST_CASES]
    document = kineto_files.document(kineto_files.device_events())
    files.append(kineto_files.write(root / "gpu_trace.json", document))
    for number, path in enumerate(files):
        import_once(path, root / f"import{number}")
        path.unlink()
        yield root / f"import{number}"


def originals(root: Path) -> list[Path]:
    """Write a small sound recording of each kind, without checksums."""
    found = [recorded(root), attached(root), served(root), *imported(root)]
    for each in found:
        (each / checksums.NAME).unlink()
    return found


# Forgeries.


def forge(folder: Path, draw: random.Random) -> str:
    """Change something in a recording's tables or its `recording.json`; returns what."""
    told = []
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        if draw.random() < 0.3:
            told.append(_forge_manifest(folder / NAME, draw))
        else:
            told.append(_forge_table(folder, draw))
    return ", ".join(told)


def _forge_table(folder: Path, draw: random.Random) -> str:
    there = [table for table in TABLES if list_parts(folder, table)]
    table = draw.choice(there)
    path = draw.choice(list_parts(folder, table)).path
    frame = pl.read_parquet(path)
    height = frame.height
    if not height or not frame.width:
        return f"{table} empty"
    kind = draw.choice(("value",) * 12 + ("rows", "rows", "order", "column", "swap"))
    name = draw.choice(frame.columns)
    what = f"{table}.{name} {kind}"
    if kind == "value":
        values = frame[name].to_list()
        new = _value(frame.schema[name], values, draw)
        rows = _some(height, draw)
        for row in rows:
            values[row] = new if draw.random() < 0.9 else _value(frame.schema[name], values, draw)
        frame = frame.with_columns(pl.Series(name, values, dtype=frame.schema[name], strict=False))
        what += f" {len(rows)} of {height} = {new!r}"[:90]
    elif kind == "rows":
        rows = [draw.randrange(height) for _ in range(draw.choice((0, 1, 2, height)))]
        frame = frame[rows]
    elif kind == "order":
        frame = frame.sort(name, descending=draw.random() < 0.5)
    elif kind == "column":
        frame = frame.drop(name)
    else:
        alike = [each for each in frame.columns if frame.schema[each] == frame.schema[name]]
        other = draw.choice(alike)
        what += f" with {other}"
        frame = frame.rename({name: other, other: name})
    frame.write_parquet(path)
    return what


def _some(height: int, draw: random.Random) -> list[int]:
    """Return rows to change: one, some, all, the first or the last."""
    return draw.choice((
        [draw.randrange(height)], [0], [height - 1], list(range(height)),
        draw.sample(range(height), max(height // 3, 1)),
    ))  # fmt: skip


def _value(kind: Any, there: list[Any], draw: random.Random) -> Any:
    near = draw.choice(there)
    if draw.random() < 0.1:
        return near
    if isinstance(kind, pl.List):
        pool = WHOLE if kind.inner == pl.Int64 else REAL
        length, one = draw.choice((0, 1, 2, 3, 100, 20_000)), draw.choice(pool)
        mixed = length <= 100 and draw.random() < 0.3
        return [draw.choice(pool) if mixed else one for _ in range(length)]
    if kind == pl.Int64 and near is not None and draw.random() < 0.4:
        step = draw.choice((-1, 1, 10**9, -(10**9), 86_400 * 10**9, -30 * 365 * 86_400 * 10**9))
        other = draw.choice((near + step, near * 1000, -near))
        return max(min(other, (1 << 63) - 1), -(1 << 63))
    if kind == pl.Float64 and near is not None and draw.random() < 0.3:
        return near * draw.choice((-1.0, 1e-9, 1e9))
    pools = {pl.Int64: WHOLE, pl.Float64: REAL, pl.Boolean: (None, True, False)}
    return draw.choice(pools.get(type(kind), TEXT))


def _forge_manifest(path: Path, draw: random.Random) -> str:
    document = json.loads(path.read_text())
    places = list(_places(document, ()))
    place = draw.choice(places)
    inside = document
    for step in place[:-1]:
        inside = inside[step]
    kind = draw.choice(("set", "set", "set", "set", "remove", "rename", "double"))
    what = f"{NAME} {'.'.join(map(str, place))} {kind}"
    old = inside[place[-1]]
    if kind == "set":
        new = draw.choice(JSON)
        if isinstance(old, int) and not isinstance(old, bool) and draw.random() < 0.5:
            new = draw.choice((old + 1, -old, old * 1000, 0, 1 << 20, 1 << 31, (1 << 62)))
        inside[place[-1]] = new
        what += f" = {new!r}"[:60]
    elif kind == "remove" or isinstance(inside, list):
        del inside[place[-1]]
    else:
        if kind == "rename":
            del inside[place[-1]]
        inside[draw.choice(("x", "-x", EVIL, "n" * 5_000, ""))] = old
    with suppress(ValueError):
        path.write_text(json.dumps(document))
    return what


def _places(value: Any, at: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, each in items:
        yield (*at, key)
        yield from _places(each, (*at, key))


# What the verbs make of them.


def verbs(folder: Path, whole: Path, page: Path) -> dict[str, Callable[[], tuple[int, str, str]]]:
    budget = ("--min-accuracy", "0.1") if "attach" not in whole.name else ("--max-latency", "1000s")
    return {
        "show": lambda: call("show", folder),
        "replay": lambda: call("replay", folder, "--set", "engine.max_num_seqs=4"),
        "advise": lambda: call("advise", folder, *budget),
        "gate": lambda: call("gate", whole, folder, "--fail-on", "p95>+5%"),
        "report": lambda: call("report", folder, "-o", page),
    }


def _status(name: str) -> int:
    """Return bytes of a line of this process's status."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def run(count: int, seed: int, first: int = 0, only: int | None = None) -> Counter[str]:
    counts, slowest, largest = Counter[str](), 0.0, 0
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        sound, page = originals(root), root / "page.html"
        for whole in sound:
            for verb, ask in verbs(whole, whole, page).items():
                code, _, err = ask()
                assert judge(code, err) in ("ended", "refused in lines"), (whole, verb, err)
                print(f"{whole.name} {verb}: {code} {err.strip()[:150]}", file=sys.__stderr__)
        unlimited = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + MOST_BYTES, unlimited[1]))
        for number in range(first, first + count) if only is None else [only]:
            draw = random.Random(f"{seed} {number}")
            whole = sound[number % len(sound)]
            folder = root / "forged" / "r"
            shutil.rmtree(folder.parent, ignore_errors=True)
            shutil.copytree(whole, folder)
            what = f"{number} {whole.name} {forge(folder, draw)}"
            for verb, ask in verbs(folder, whole, page).items():
                with suppress(OSError):
                    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again
                before, begun = _status("VmRSS"), time.process_time()
                code, _, err = ask()
                took, held = time.process_time() - begun, _status("VmHWM") - before
                slowest, largest = max(slowest, took), max(largest, held)
                outcome = judge(code, err)
                counts[f"{verb}: {outcome}"] += 1
                if outcome in ("traceback", "other lines"):
                    counts["broken"] += 1
                    print(f"{what} {verb}: {outcome}\n{err[-1500:]}", flush=True)
                if took > LONGEST_S or held > MOST_BYTES:
                    counts["slow or large"] += 1
                    print(f"{what} {verb}: {took:.1f} s, {held / 1e6:,.0f} MB", flush=True)
            if number % 100 == 99:
                print(f"{number + 1:,} done", file=sys.__stderr__, flush=True)
    print(f"slowest {slowest:.1f} s of processor time, largest {largest / 1e6:,.0f} MB more")
    return counts


def judge(code: int, err: str) -> str:
    """Name how a verb ended."""
    if code == 99:
        return "traceback"
    if code not in (1, 2):
        return "ended"
    others = [line for line in err.splitlines() if not line.startswith("ttscope: ")]
    return "other lines" if others else "refused in lines"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", type=int)
    given = parser.parse_args()
    counts = run(given.count, given.seed, given.first, given.only)
    for name, number in sorted(counts.items()):
        print(f"{name:40} {number:8,}")
    return int(bool(counts["broken"] or counts["slow or large"]))


if __name__ == "__main__":
    sys.exit(main())
