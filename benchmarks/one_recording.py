"""What one recording says of another load: ``python -m benchmarks.one_recording RUNS``.

RUNS is a folder of recordings, such as `benchmarks/held_out_runs.py` or `kinds_of_models.py` fill,
or the bundled ones. Each of its configurations alone predicts each other one of the same engine, as
`ttscope replay` does, and what it predicts is held against the mean of that one's repeats, with
`--unnamed` as if nobody had said on what they ran. With `--published` the rows of Argonne's
LLM-Inference-Bench are read, too: the time of a step at one batch alone predicts that at the
others, with and without the word that it was a GPU.
"""

import argparse
import csv
import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np

from advisor.evidence.features import ZERO
from advisor.evidence.gather import Evidence, StepTable, gather
from advisor.evidence.keys import law_key
from advisor.step_time.fit import StepTimeModel, middle_of
from advisor.what_if.question import Question, by_replica
from advisor.what_if.replayed import Replays
from traces.recording.reader import Recording
from traces.schema.engine import EngineConfig
from traces.statistics import Z95, jeffreys
from traces.summary.comparison import RUN_TO_RUN

STATISTICS = {"mean": np.mean, "p50": np.median, "p95": lambda values: np.quantile(values, 0.95)}


def pooled(name: str, rows: list[tuple[float, float, float]]) -> None:
    """Print how far off (truth, low, high) are, each over what was predicted, and how many hold."""
    truth, low, high = np.array(rows).T
    held = int(np.sum((low <= truth) & (truth <= high)))
    ends = jeffreys(held, len(rows))
    off = 1 / truth - 1
    print(
        f"{name:<28}{len(rows):>5} cases, mean |error| {100 * np.abs(off).mean():.1f} % (worst "
        f"{100 * off[np.abs(off).argmax()]:+.0f} %), bias {100 * np.mean(-np.log(truth)):+.1f} %, "
        f"inside 90 % {held / len(rows):.3f} [{ends[0]:.3f}, {ends[1]:.3f}], half-width "
        f"{50 * np.median(high - low):.1f} %"
    )


def unnamed(engine: EngineConfig) -> EngineConfig:
    """Return an engine as a watch without the plugin tells it: not on what it runs."""
    return replace(engine, mode="server", gpu=None, enforce_eager=None)


def watched(evidence: Evidence) -> Evidence:
    """Return evidence of engines that do not say on what they ran."""
    return replace(
        evidence,
        steps=tuple(replace(each, engine=unnamed(each.engine)) for each in evidence.steps),
        runs=tuple(replace(each, engine=unnamed(each.engine)) for each in evidence.runs),
    )


def recorded(folder: Path, told: bool) -> None:
    """Print how each configuration predicts each other one; `told` says whether of what device."""
    runs: dict[str, list[Recording]] = defaultdict(list)
    for path in sorted(each.parent for each in folder.glob("*/recording.json")):
        runs[re.sub(r"-r\d+$", "", path.name)].append(Recording.open(path))
    evidence = {name: [gather([r], judged=False) for r in each] for name, each in runs.items()}
    if not told:
        evidence = {name: [watched(each) for each in found] for name, found in evidence.items()}
    found = defaultdict(list)
    for name, (first, *_) in evidence.items():
        model = StepTimeModel().fit(first.steps)
        for other, repeats in evidence.items():
            run = repeats[0].runs[0]
            if other == name or law_key(run.engine) not in model.laws_:
                continue
            question = by_replica(Question(engine=run.engine, policy=run.policy))
            replays = Replays(runs[other][0], first, model, run, (run,), question)
            latency = replays.summary.latency_s
            for statistic, of in STATISTICS.items():
                told = latency[statistic]
                assert told is not None and told.low is not None and told.high is not None
                took = np.mean(
                    [of([p.latency_s for p in each.runs[0].problems.values()]) for each in repeats]
                )
                row = tuple(float(each) / told.value for each in (took, told.low, told.high))
                found[statistic].append(row)
                found[f"{statistic}, {'' if told.extrapolated else 'not '}marked *"].append(row)
    for name, rows in sorted(found.items()):
        pooled(name, rows)


def published(path: Path) -> None:
    """Print how the step of one published batch predicts those of others."""
    took: dict[tuple[str, ...], dict[int, float]] = defaultdict(dict)
    for row in csv.DictReader(path.open()):
        length = int(row["Input Output Length"])
        case = (row["Hardware"], row["Num of Hardware"], row["Model"], str(length))
        took[case][int(row["Batch Size"])] = float(row["Latency"]) / length

    def step(batch: int, length: int) -> np.ndarray:
        context = 1.5 * length * batch
        return np.array(
            ZERO._replace(
                step=1.0, requests=batch, tokens=batch, kv_tokens=context, query_context=context
            )
        )

    spread = Z95 * RUN_TO_RUN
    for gpu in ("NVIDIA H100", None):
        found = defaultdict(list)
        for (_, size, model, length), steps in took.items():
            engine = EngineConfig(
                model=model, tensor_parallel_size=int(size), gpu=gpu, mode="server"
            )
            for batch, seconds in steps.items():
                table = StepTable(
                    recording="published",
                    configuration="published",
                    engine=engine,
                    facts=None,
                    composition=np.tile(step(batch, int(length)), (200, 1)),
                    seconds=np.full(200, seconds),
                )
                (laws,) = StepTimeModel().fit_shapes([table]).values()
                for other, truth in steps.items():
                    if other == batch:
                        continue
                    asked = step(other, int(length))
                    both, middle = laws @ asked, middle_of(laws) @ asked
                    low, high = (np.log(of(both) / middle) for of in (min, max))
                    found["larger" if other > batch else "smaller"].append(
                        (
                            truth / middle,
                            float(np.exp(-np.hypot(low, spread))),
                            float(np.exp(np.hypot(high, spread))),
                        )
                    )
        for name, rows in found.items():
            pooled(f"{'GPU' if gpu else 'not said'}, {name} batches", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--published", type=Path)
    parser.add_argument("--unnamed", action="store_true", help="as if no device were told")
    given = parser.parse_args()
    recorded(given.runs, not given.unnamed)
    if given.published:
        published(given.published)


if __name__ == "__main__":
    main()
