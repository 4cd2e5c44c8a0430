"""A million engine steps in the terminal app: ``python benchmarks/tui_million.py``.

The recording is made of a shipped one, its steps repeated, with 500 problems of 16 samples laid
over them. Printed are the first paint of the app, the time until the Run screen shows the
recording, what keys take that move the cursor, zoom and play, and the memory.
Processor times stand beside wall times, for machines that are shared.
"""

import argparse
import asyncio
import gc
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from tui.verbs.terminal import prepare

prepare()  # as `ttscope tui` does, before numpy is imported

import numpy as np
import polars as pl

import profiler.demo
from traces.recording.parts import write_part
from traces.recording.reader import Recording
from traces.recording.tables import TABLES
from tui.app.app import TtscopeApp
from tui.screens.run.screen import RunScreen

SHIPPED = Path(profiler.demo.__file__).parent / "recordings"
PROBLEMS, SAMPLES, TOGETHER = 500, 16, 4
KEYS = (
    *("right", "shift+right", "full_stop", "comma", "plus", "left", "minus", "end", "home"),
    *("z", "0", "right_square_bracket"),
)


def make(folder: Path, steps: int) -> None:
    """Write a recording of so many steps."""
    source = Recording.open(next(SHIPPED.glob("demo-l-tp1-seqs64-maj@16*")))
    own = source.steps.sort("step")
    rows = pl.concat([own] * -(-steps // own.height)).head(steps)
    wall = rows["wall_ns"].fill_null(5_000_000).to_numpy()
    ends = int(own["end"][0]) + np.cumsum(wall)
    begun = ends - wall
    rows = rows.with_columns(
        step=pl.int_range(pl.len()), end=pl.Series(ends), interval_ns=pl.Series(wall)
    )
    folder.mkdir(parents=True)
    write_part(folder, "steps", rows.select(*TABLES["steps"]), 0, 0)
    longest = steps * TOGETHER // PROBLEMS
    rng = np.random.default_rng(0)
    problem, sample = source.problems.row(0, named=True), source.samples.row(0, named=True)
    problems: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
    for number in range(PROBLEMS):
        first = number // TOGETHER * longest
        lengths = rng.integers(longest // 16, longest - 1, SAMPLES)
        wrong = rng.integers(1, 3, SAMPLES) * (rng.random(SAMPLES) < 0.4)
        arrival, name = int(begun[first]), f"q{number}"
        for index, (length, answer) in enumerate(
            zip(lengths.tolist(), wrong.tolist(), strict=True)
        ):
            last = first + length
            samples.append(
                sample
                | {"problem_id": name, "sample_index": index, "span_id": f"{name}.{index}"}
                | dict.fromkeys(("arrival", "queued", "scheduled"), arrival)
                | {"first_step": first, "last_step": last, "first_token": int(ends[first])}
                | {"think_end": int(ends[last - 10]), "end": int(ends[last])}
                | {"output_tokens": length, "answer": str(answer), "correct": answer == 0}
            )
        end = int(ends[first + int(lengths.max())])
        problems.append(
            problem
            | {"problem_id": name, "span_id": name, "arrival": arrival, "start": arrival}
            | {"end": end, "decided_at": end, "answer": "0", "correct": True}
        )
    for table, made in (("problems", problems), ("samples", samples)):
        write_part(folder, table, pl.DataFrame(made, schema=TABLES[table], strict=False), 0, 0)
    source.manifest.write(folder)


async def drive(folder: Path, begun: float, began_cpu: float) -> None:
    """Open the recording, move in it and play it; print what that took."""
    app = TtscopeApp([folder])
    async with app.run_test(size=(200, 60)) as pilot:
        print(f"first paint           {time.perf_counter() - begun:.2f} s")
        app.switch_mode("run")
        while not (isinstance(app.screen, RunScreen) and app.screen.model):
            await asyncio.sleep(0.005)
        model = app.screen.model
        while model.play is None:
            await asyncio.sleep(0.005)
        await pilot.pause()
        wall, cpu = time.perf_counter() - begun, time.process_time() - began_cpu
        print(f"recording on screen   {wall:.2f} s, {cpu:.2f} s of processor time")
        await app.workers.wait_for_complete()
        costs = []
        for key in KEYS * 3:
            begun, spent = time.perf_counter(), time.thread_time()
            await pilot.press(key)
            costs.append((time.perf_counter() - begun, time.thread_time() - spent))
        await app.workers.wait_for_complete()
        walls, cpus = zip(*costs, strict=True)
        print(
            f"a key                 median {np.median(walls) * 1e3:.0f} ms, longest "
            f"{max(walls) * 1e3:.0f} ms; of processor time {np.median(cpus) * 1e3:.0f}, "
            f"{max(cpus) * 1e3:.0f} ms"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--recording", type=Path, help="made before; else a new one is made")
    given = parser.parse_args()
    folder = given.recording
    if folder is None:
        # In a process of its own, so that its memory is not counted here.
        import multiprocessing

        folder = Path(tempfile.mkdtemp(prefix="ttscope-")) / "million"
        process = multiprocessing.get_context("spawn").Process(
            target=make, args=(folder, given.steps)
        )
        process.start()
        process.join()
    gc.freeze()  # as `ttscope tui` does
    try:
        asyncio.run(drive(folder, time.perf_counter(), time.process_time()))
    finally:
        if given.recording is None:
            shutil.rmtree(folder.parent)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"memory at its highest {memory:.0f} MB")


if __name__ == "__main__":
    main()
