"""Which length of drafts is best at which load, predicted and measured on the engine here.

    python -m benchmarks.draft_schedule [--method ngram draft_model] [--lengths 1 3 5] [--repeats 2]

Records demo/l without drafts and with each length, at each load, in turns. `advise --drafts` learns
from the runs without drafts and with the longest ones, at the smallest and the largest load.
Printed are tokens a second of the steps that decode, the length that was predicted for the load,
and how fast that was over the best one and over none. The engine also runs with the schedule.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import polars as pl

from advisor.what_if.drafts.by_batch import DraftsByBatch, all_drafts_by_batch
from traces.recording.reader import Recording

VERB = "from tui.cli import main; main()"
DRAFTERS: dict[str, dict[str, Any]] = {
    "ngram": {"method": "ngram", "prompt_lookup_min": 2, "prompt_lookup_max": 4},
    "draft_model": {"method": "draft_model", "model": "demo/s"},
}


def record(folder: Path, load: int, drafts: dict[str, Any] | None) -> Recording:
    """Run problems of greedy samples, so many of the same 120 at a time."""
    command = ["record", "--model", "demo/l", "--dtype", "float32", "--max-num-seqs", "64"]
    command += ["--problems", "120", "--concurrency", str(load), "--seed", "43"]
    command += ["--max-tokens", "400", "-o", str(folder)]
    command += [] if drafts is None else ["--speculative", json.dumps(drafts)]
    subprocess.run([sys.executable, "-c", VERB, *command], check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)  # fmt: skip
    return Recording.open(folder)


def speed(recordings: list[Recording], load: int) -> float:
    """Return the tokens a second of steps that decode nearly so many requests, and no prompt."""
    tokens = seconds = 0.0
    for each in recordings:
        steps = each.steps.filter(
            pl.col("prefill_requests") == 0,
            pl.col("decode_requests") >= 0.75 * load,
            pl.col("interval_ns").is_not_null(),
        )
        kept = steps["accepted"].list.sum().fill_null(0) + steps["decode_requests"]
        tokens += float(kept.sum())
        seconds += float(steps["interval_ns"].sum()) / 1e9
    return tokens / seconds


def chosen(drafts: DraftsByBatch, load: int) -> int:
    """Return the length of drafts that is predicted to be best for so many requests."""
    return next(k for low, high, k in drafts.schedule if low <= load <= high)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--method", nargs="+", default=[*DRAFTERS], choices=[*DRAFTERS])
    options.add_argument("--lengths", type=int, nargs="+", default=[1, 3, 5])
    options.add_argument("--loads", type=int, nargs="+", default=[1, 8, 32])
    options.add_argument("--repeats", type=int, default=2)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for method in given.method:
            ran: dict[tuple[int, int], list[Recording]] = {}
            for repeat in range(given.repeats):
                for load in given.loads:
                    for k in (0, *given.lengths):
                        folder = root / f"{method}-{k}-{load}-{repeat}"
                        drafts = DRAFTERS[method] | {"num_speculative_tokens": k} if k else None
                        ran.setdefault((load, k), []).append(record(folder, load, drafts))
            longest, ends = max(given.lengths), {given.loads[0], given.loads[-1]}
            taught = [each for load in ends for k in (0, longest) for each in ran[load, k]]
            (drafts_of,), _ = all_drafts_by_batch(taught)
            served = drafts_of.served.speculative
            print(f"\n{method}: {drafts_of.schedule}")
            print("| in flight | none | " + " | ".join(f"k = {k}" for k in given.lengths)
                  + " | predicted | of the best | over none | with the schedule |")  # fmt: skip
            for load in given.loads:
                speeds = {k: speed(ran[load, k], load) for k in (0, *given.lengths)}
                k = min(speeds, key=lambda each, load=load: abs(each - chosen(drafts_of, load)))
                by_schedule = speed([
                    record(root / f"{method}-schedule-{load}-{repeat}", load,
                           None if served is None else served.to_json())
                    for repeat in range(given.repeats)
                ], load)  # fmt: skip
                cells = [f"{value:,.0f}" for value in speeds.values()]
                cells += [f"{chosen(drafts_of, load)}", f"{speeds[k] / max(speeds.values()):.2f}"]
                cells += [f"{speeds[k] / speeds[0]:.2f}", f"{by_schedule:,.0f}"]
                print(f"| {load} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
