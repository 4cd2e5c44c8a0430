"""Quick benchmarks, compared with a kept baseline: ``make bench`` (``BASELINE=1`` keeps a new one).

Each of five subjects is measured in turns with a peer that does work of the same kind in the same
process, so that the ratio hardly depends on the machine: 7 pairs of CPU seconds, their median
ratio, and its noise (the scaled median deviation of the pairs). A ratio above the kept one is
faster. What fell by more than twice the noise of both, and by more than 7 %, is named. Nothing
fails because of it: the same work varies by some 7 % on shared machines.

| subject | peer |
|---|---|
| advice: all candidates of the shipped recordings in closed form | a fixed loop of numpy |
| replay: 1,024 requests, compiled | the naive twin of the tests on 64 of them |
| probe: steps with the step probe, less those without | the same loop of numpy |
| import: a profiler trace of 40,000 events | ``json.loads`` of the same bytes |
| first paint: the app with the shipped recordings | an empty Textual app |
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tui.verbs.terminal import prepare

prepare()  # as `ttscope tui` does, before numpy is imported

import numpy as np
from textual.app import App

from advisor.advice.advisor import Advisor
from advisor.evidence.gather import gather
from advisor.evidence.runs import RecordedProblem, Sample
from advisor.replay.replay import replay
from advisor.replay.workload import ReplayWorkload
from advisor.search.resampling import Resampling
from advisor.search.space import explore
from advisor.step_time.cost import linear_cost
from advisor.step_time.fit import StepTimeModel
from benchmarks import advice_speed, step_probe
from benchmarks.replay_speed import LAW, LIMITS
from benchmarks.twin.replay_twin import naive_replay
from profiler.engines.vllm.probes.steps import StepProbe
from traces.kineto.read import read_trace
from traces.recording.reader import Recording, find_recordings
from tui.app.app import TtscopeApp

KEPT = Path(__file__).parent / "quick_baseline.json"
PAIRS = 7
LEAST_FALL = 0.07  # the same work varies by that much on shared machines
Work = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How many times as fast as its peer a subject is, and the noise of that as a share."""

    value: float
    noise: float


def numpy_loop() -> None:
    """Do a fixed amount of array work, as a measure of the machine."""
    values = np.random.default_rng(0).random(200_000)
    for _ in range(20):
        order = np.argsort(values)
        values = np.sqrt(np.cumsum(values[order]) % 1.0)


def advice() -> tuple[Work, Work]:
    """Return the closed form of all candidates, and its peer."""
    recordings = [Recording.open(path) for path in find_recordings(advice_speed.SHIPPED)]
    evidence = gather(recordings)
    model = StepTimeModel().fit(evidence.steps)
    evidence = advice_speed.widened(evidence, model)

    def candidates() -> None:
        space = explore(evidence)
        Advisor(evidence, space, model, Resampling(len(space.problem_ids))).under(None)

    return candidates, numpy_loop


def requests() -> tuple[Work, Work]:
    """Return a replay of requests made with a fixed seed, and the naive twin's of some."""
    rng = np.random.default_rng(1)
    prompts, outputs = rng.integers(50, 2_000, 1_024), rng.integers(20, 400, 1_024)
    arrivals = np.cumsum(rng.exponential(0.2, 1_024))
    what, cost = ReplayWorkload.from_requests(prompts, outputs, arrivals=arrivals), linear_cost(LAW)
    few = [
        RecordedProblem(
            prompt_tokens=int(prompt),
            cached_tokens=0,
            samples=(Sample(output_tokens=int(output), answer=None, correct=None, by_length=True),),
        )
        for prompt, output in zip(prompts[:64], outputs[:64], strict=True)
    ]

    def many() -> None:
        for _ in range(100):
            replay(what, cost, LIMITS)

    return many, lambda: naive_replay(few, LAW, LIMITS, arrivals=arrivals[:64])


def probe() -> tuple[Work, Work]:
    """Return steps with the step probe and the drains of it, and the loop of numpy."""
    scheduler = step_probe.Idle()
    watch = StepProbe(scheduler, "engine", 0)

    def steps() -> None:
        gc.disable()
        watch.install()
        for _ in range(20):
            step_probe.timed(scheduler, 2_000)
            watch.drain()
        watch.remove()
        gc.enable()

    return steps, numpy_loop


def profiler_trace(folder: Path) -> tuple[Work, Work]:
    """Return the reading of a made profiler trace, and that of its JSON alone."""
    events: list[dict[str, Any]] = []
    for number in range(20_000):
        name, begun = f"aten::op_{number % 50}", 1_000.0 + 10 * number
        host = {"ph": "X", "pid": 1, "tid": 2, "ts": begun, "dur": 8.0}
        kernel = {"ph": "X", "pid": 0, "tid": 7, "ts": begun + 3, "dur": 6.0}
        events.append(host | {"cat": "cpu_op", "name": name, "args": {"External id": number}})
        events.append(
            kernel
            | {
                "cat": "kernel",
                "name": f"void kernel_{number % 50}<float>(float*)",
                "args": {"External id": number, "device": 0, "stream": 7, "correlation": number},
            }
        )
    path = folder / "trace.json"
    path.write_text(json.dumps({"schemaVersion": 1, "traceEvents": events}))
    text = path.read_bytes()
    return lambda: read_trace(str(path)), lambda: json.loads(text)


def first_paint() -> tuple[Work, Work]:
    """Return the start of the app on the shipped recordings, and that of an empty app."""

    async def paint(app: App[Any]) -> None:
        async with app.run_test(size=(120, 40)) as pilot:
            await pilot.pause()

    def ours() -> None:
        asyncio.run(paint(TtscopeApp([advice_speed.SHIPPED])))

    def empty() -> None:
        for _ in range(5):
            asyncio.run(paint(App()))

    return ours, empty


def measured(ours: Work, peer: Work, pairs: int = PAIRS) -> Ratio:
    """Return the ratio of CPU seconds, peer over ours, of calls in turns; the first warms up."""
    ours(), peer()
    ratios = []
    for _ in range(pairs):
        spent = []
        for work in (ours, peer):
            begun = time.process_time()
            work()
            spent.append(time.process_time() - begun)
        ratios.append(spent[1] / spent[0])
    middle = float(np.median(ratios))
    noise = 1.4826 * float(np.median(np.abs(np.array(ratios) - middle))) / middle
    return Ratio(value=middle, noise=noise)


def fell(now: Ratio, kept: Ratio) -> bool:
    """Tell whether a ratio is lower than the kept one by more than the noise of the two."""
    change = now.value / kept.value - 1
    return change < -max(LEAST_FALL, 2 * float(np.hypot(now.noise, kept.noise)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", action="store_true", help="keep this as the baseline")
    given = parser.parse_args()
    kept = {
        name: Ratio(**each)
        for name, each in (json.loads(KEPT.read_text()) if KEPT.exists() else {}).items()
    }
    found, fallen = {}, []
    print(f"{'':<12}{'x its peer':>12}{'noise':>8}{'kept':>10}{'noise':>8}{'change':>9}")
    with tempfile.TemporaryDirectory() as folder:
        subjects: dict[str, Callable[[], tuple[Work, Work]]] = {
            "advice": advice,
            "replay": requests,
            "probe": probe,
            "import": lambda: profiler_trace(Path(folder)),
            "first paint": first_paint,
        }
        for name, make in subjects.items():
            try:
                now = found[name] = measured(*make())
            except Exception as error:
                print(f"{name:<12}  could not run: {type(error).__name__}: {error}", flush=True)
                continue
            line = f"{name:<12}{now.value:>12.3g}{now.noise:>8.1%}"
            if name in kept:
                change = now.value / kept[name].value - 1
                line += f"{kept[name].value:>10.3g}{kept[name].noise:>8.1%}{change:>+9.1%}"
                if fell(now, kept[name]):
                    fallen.append(name)
                    line += "  fell"
            print(line, flush=True)
    if given.keep:
        KEPT.write_text(json.dumps({name: vars(each) for name, each in found.items()}, indent=1))
        print(f"kept in {KEPT.name}")
    elif fallen:
        print(f"slower than the baseline by more than the noise: {', '.join(fallen)}")
    elif kept:
        print("nothing fell by more than its noise")


if __name__ == "__main__":
    main()
