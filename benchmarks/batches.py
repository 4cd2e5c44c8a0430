"""How long a batch takes that is sent at once, predicted from one that ran with fewer.

    python -m benchmarks.batches [--model demo/l] [--problems 64] [--n 8] [--seqs 8 32 64]
        [--taught 4]

Records the same problems with each `max_num_seqs` on the engine here, all at once. `replay --batch`
predicts each from a recording with the smallest of them and `--taught` problems in flight, or from
the first batch itself with 0. Prints when shares of the problems are answered, the end and the
share of empty slots, predicted and measured.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from advisor.what_if.predict import predict
from advisor.what_if.question import Question
from advisor.what_if.rollouts.batch import DONE
from traces.recording.reader import Recording
from traces.summary.run import summarise

VERB = "from tui.cli import main; main()"


def record(folder: Path, seqs: int, given: argparse.Namespace, in_flight: int) -> Recording:
    """Run the batch with so many places for samples, and so many problems in flight."""
    command = ["record", "--model", given.model, "--dtype", "float32", "--n", given.n]
    command += ["--problems", given.problems, "--concurrency", in_flight]
    command += ["--max-num-seqs", seqs, "--max-tokens", 400, "--seed", given.seed, "-o", folder]
    subprocess.run([sys.executable, "-c", VERB, *map(str, command)], check=True, stdout=sys.stderr)
    return Recording.open(folder)


def came(recording: Recording, seqs: int) -> dict[str, float]:
    """Return when shares were answered, when all ended, and the share of empty places."""
    problems, samples = recording.problems, recording.samples
    begun = problems["start"].min()
    ends = np.sort((problems["decided_at"] - begun).to_numpy()) / 1e9
    end = (samples["end"].max() - begun) / 1e9
    held = (samples["end"] - samples["scheduled"]).sum() / 1e9
    done = {name: float(ends[int(np.ceil(q * len(ends))) - 1]) for name, q in DONE.items()}
    return {**done, "end": end, "empty": 1 - held / seqs / end}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", default="demo/l")
    options.add_argument("--problems", type=int, default=64)
    options.add_argument("--n", type=int, default=8)
    options.add_argument("--seqs", type=int, nargs="+", default=[8, 32, 64])
    options.add_argument("--taught", type=int, default=4)
    options.add_argument("--seed", type=int, default=41)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        ran = {
            seqs: record(Path(name) / str(seqs), seqs, given, given.problems) for seqs in given.seqs
        }
        least = given.seqs[0]
        first = ran[least]
        if given.taught:
            first = record(Path(name) / "taught", least, given, given.taught)
        (run,) = summarise(first)
        print(f"| max_num_seqs | {' | '.join([*DONE, 'end', 'held', 'empty places'])} |")
        for seqs, recording in ran.items():
            engine = replace(run.engine, max_num_seqs=seqs)
            asked = Question(engine=engine, policy=run.policy, batch=given.problems)  # type: ignore
            _, batch = predict(first, run, asked).batch or (None, None)
            assert batch is not None and batch.idle_slots_share is not None
            real = came(recording, seqs)
            times = {**batch.done_s, "end": batch.end_s}
            cells = [f"{each.value:.2f}, {real[tag]:.2f} s ({each.value / real[tag] - 1:+.1%})"
                     for tag, each in times.items()]  # fmt: skip
            held = (batch.end_s.low or 0) <= real["end"] <= (batch.end_s.high or np.inf)
            empty = f"{batch.idle_slots_share.value:.3f}, {real['empty']:.3f}"
            print(f"| {seqs} | {' | '.join(cells)} | {held} | {empty} |")


if __name__ == "__main__":
    main()
