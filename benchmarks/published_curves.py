"""How well ``import --curve`` predicts points of published curves that were left out.

    python -m benchmarks.published_curves CURVE.json:PROBLEMS ... [--recordings FOLDER ...]

A CURVE is a list of {accuracy} by n from 1 (as OptScale publishes it). Some points teach the laws
of answers, and the others are predicted for these same problems. It prints how far the value is
off, and how often the 90 % interval holds what was published. Two rivals carry the last point
forward, or draw a line over log n through the nearest two points.
The interval of `show --policies` is that of all problems like these. It is tried where others are
at hand: one half of the problems of a recording makes the curve, and the other is predicted. The
same is done with problems made up by laws of several shapes, where one set makes the curve.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from advisor.accuracy.models.published import CurveAccuracy
from advisor.accuracy.samples import read_samples
from benchmarks.votes_ahead import FAMILIES, RIGHT, Answers, draw, family
from traces.recording.reader import Recording, find_recordings
from traces.schema.estimate import Estimate
from traces.schema.tts.published import CurvePoint, PublishedCurve
from traces.summary.run import summarise
from traces.summary.votes import majority_curve

TAUGHT = ((1, 2, 4), (1, 2, 4, 8), (1, 4, 16), (1, 8, 64), (1, 2, 4, 8, 16, 32))
OF_HALVES = (1, 2, 4)
ASKED = (3, 6, 8, 12, 16, 24, 32, 48, 64)


@dataclass(frozen=True)
class Try:
    """A point that was left out: how far three forecasts lie off, and whether ours holds it."""

    ours: float
    carried: float
    line: float
    held: bool
    width: float


def curve_of(points: Mapping[int, float], problems: int) -> PublishedCurve:
    """Return a curve; its tokens do not matter here."""
    made = tuple(CurvePoint(n=n, accuracy=a, tokens=100.0 * n) for n, a in sorted(points.items()))
    return PublishedCurve(points=made, problems=problems)


def carried(points: Mapping[int, float], n: int) -> float:
    """Return the last point at or before n."""
    return points[max((k for k in points if k <= n), default=min(points))]


def straight(points: Mapping[int, float], n: int) -> float:
    """Return a line over log n through the points around n, or the last two."""
    known = sorted(points)
    after = min(max(int(np.searchsorted(known, n)), 1), len(known) - 1)
    one, two = known[after - 1], known[after]
    share = np.log(n / one) / np.log(two / one)
    return float(np.clip(points[one] + share * (points[two] - points[one]), 0.0, 1.0))


def tried(points: Mapping[int, float], n: int, said: Estimate, real: float) -> Try:
    assert said.low is not None and said.high is not None
    return Try(
        said.value - real,
        carried(points, n) - real,
        straight(points, n) - real,
        said.low <= real <= said.high,
        said.high - said.low,
    )


def same_problems(whole: Mapping[int, float], problems: int, taught: Sequence[int]) -> list[Try]:
    """Predict the points left out of a published curve."""
    points = {n: whole[n] for n in taught}
    asked = [n for n in ASKED if n not in points and n in whole]
    model = CurveAccuracy(curve_of(points, problems), asked)
    return [tried(points, n, model.same_problems(n), whole[n]) for n in asked]


def votes(answers: Sequence[Answers], counts: Sequence[int]) -> dict[int, float]:
    """Return the accuracy of votes of the first n samples of each problem."""
    right = [[answer == RIGHT for answer in row] for row in answers]
    return {
        n: float(
            np.mean([majority_curve(a[:n], r[:n])[-1] for a, r in zip(answers, right, strict=True)])
        )
        for n in counts
    }


def others(seen: Sequence[Answers], rest: Sequence[Answers], most: int) -> list[Try]:
    """Foretell other problems from a curve of some, at its points and beyond them."""
    points = votes(seen, OF_HALVES)
    asked = [1, 4, *(n for n in ASKED if n <= most and n not in points)]
    real = votes(rest, asked)
    model = CurveAccuracy(curve_of(points, len(seen)), asked)
    return [tried(points, n, model.other_problems(n, of=len(rest)), real[n]) for n in asked]


def recorded(folder: Path) -> list[tuple[str, list[Answers]]]:
    """Return the answers of votes recorded in a folder, right ones under one name."""
    found = []
    for path in find_recordings(folder) or [folder]:
        for run in summarise(Recording.open(path)):
            if run.policy is None or run.policy.method != "majority" or run.policy.n < 8:
                continue
            samples = read_samples(run)
            rows: list[Answers] = [
                [
                    RIGHT if right else answer
                    for answer, right in zip(p.answers, p.correct, strict=True)
                ]
                for p in samples.problems
            ]
            found.append((f"{run.engine.model}, {len(rows)} problems", rows))
    return found


def line(name: str, tries: Sequence[Try]) -> None:
    """Print mean absolute errors, and how often the interval held."""
    ours, last, through = (
        np.mean([abs(getattr(each, kind)) for each in tries])
        for kind in ("ours", "carried", "line")
    )
    held = sum(each.held for each in tries)
    width = np.mean([each.width for each in tries])
    print(
        f"| {name:<34} | {len(tries):>3} | {ours:.4f} | {last:.4f} | {through:.4f} | "
        f"{held}/{len(tries)} | {width:.3f} |",
        flush=True,
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("curves", nargs="*", metavar="CURVE.json:PROBLEMS")
    options.add_argument("--recordings", nargs="*", type=Path, default=[])
    options.add_argument("--sets", type=int, default=4, help="made-up sets of each shape")
    given = options.parse_args()
    print("| curve | left out | ours | carried | line | held | width |")
    print("|---|---|---|---|---|---|---|")
    every: list[Try] = []
    for named in given.curves:
        path, _, problems = named.rpartition(":")
        rows = json.loads(Path(path).read_text())
        whole = {n: row["accuracy"] for n, row in enumerate(rows, start=1)}
        for taught in TAUGHT:
            tries = same_problems(whole, int(problems), taught)
            every += tries
            line(f"{Path(path).name.split('_')[0]} from {' '.join(map(str, taught))}", tries)
    if every:
        line("all points left out", every)
    of_halves: list[Try] = []
    for folder in given.recordings:
        for name, rows in recorded(folder):
            order = np.random.default_rng(0).permutation(len(rows))
            tries = []
            for some, rest in ((order[::2], order[1::2]), (order[1::2], order[::2])):
                seen, unseen = [rows[i] for i in some], [rows[i] for i in rest]
                tries += others(seen, unseen, min(len(row) for row in rows))
            of_halves += tries
            line(name, tries)
    if of_halves:
        line("all halves of recordings", of_halves)
    made: list[Try] = []
    for shape in FAMILIES if given.sets else ():
        tries = []
        for number in range(given.sets):
            rng = np.random.default_rng([number, FAMILIES.index(shape), 5])
            laws = family(shape, 400, rng)
            answers = draw(laws, 64, rng)
            tries += others(answers[:100], answers[100:], 64)
        made += tries
        line(f"made up: {shape}", tries)
    if made:
        line("all made up", made)


if __name__ == "__main__":
    main()
