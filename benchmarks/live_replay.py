"""Whether a watched server's replay is right: ``python -m benchmarks.live_replay [--repeats 5]``.

A vLLM server (CPU, the small reasoner) answers foreign clients while `ttscope attach` watches it
with its spans and the plugin. What it recorded is replayed under each of three other settings.
Then the server is started with that setting and gets the same requests at the same times (fixed
lengths, `ignore_eos`), once with the old setting too. It prints what was predicted beside what was
measured, the errors, and how many of the measured values lie in the predicted 90 % intervals.
"Replayed" is the watched run replayed as it was, against its own numbers: the replay's own part.
"Pace" is how much longer the same decode batches took on that server than on the watched one: a
shared machine alone makes that. "Paced" is the prediction with step times that much longer, which
leaves what the other setting changes.
`--keep FOLDER` leaves the recordings there, and predicts again from those that it finds.
"""

import argparse
import os
import random
import tempfile
import threading
import time
from functools import partialmethod
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import httpx
import numpy as np

from benchmarks.servers.clients import attached
from benchmarks.servers.vllm_server import free_port, running, telling
from profiler.workload.problems import load_workload

if TYPE_CHECKING:
    from traces.recording.reader import Recording

BASE = ("--max-num-seqs", "16", "--max-num-batched-tokens", "2048")
CHANGES = {
    "engine.max_num_seqs=16": BASE,  # the same again: what differs is the machine
    "engine.max_num_seqs=4": ("--max-num-seqs", "4", "--max-num-batched-tokens", "2048"),
    "engine.max_num_seqs=8": ("--max-num-seqs", "8", "--max-num-batched-tokens", "2048"),
    "engine.max_num_batched_tokens=64": ("--max-num-seqs", "16", "--max-num-batched-tokens", "64"),
}
TAGS = ("latency_s.mean", "latency_s.p50", "latency_s.p95", "ttft_s.p50", "tpot_s.p50",
        "throughput_tokens_per_s")  # fmt: skip


def requests(
    seconds: float, rate: float, seed: int, system: int = 0
) -> list[tuple[float, str, int, int]]:
    """Return (time, prompt, samples, tokens) of each request; `system` tokens begin all prompts."""
    rng, problems = random.Random(seed), load_workload("demo", problems=200).problems
    begin = "".join(random.Random(7).choices("abcdefghijkABCDEFGHIJK0123456789", k=system))
    found, at = [], 0.0
    while at < seconds:
        tokens = min(max(round(rng.lognormvariate(4.2, 0.7)), 8), 400)
        prompt = str(problems[len(found) % 200].prompt)
        found.append((at, begin + prompt, rng.choice([1, 1, 1, 4]), tokens))
        at += rng.expovariate(rate)
    return found


def watched(folder: Path, flags: tuple[str, ...], load: list[tuple[float, str, int, int]]) -> Path:
    """Serve with these flags, send the load, and return what attach recorded.

    What was recorded there before is returned as it is.
    """
    if (folder / "live" / "recording.json").exists():
        return folder / "live"
    port = free_port()
    spans, variables = telling(port)
    with running(folder / "server", *spans, *flags, **variables) as server:
        model = httpx.get(f"{server.url}/v1/models").json()["data"][0]["id"]

        # One client: to make one for each request takes more of the cores than a sample does.
        client = httpx.Client(timeout=300, limits=httpx.Limits(max_connections=None))

        def ask(prompt: str, n: int, tokens: int) -> None:
            body = {"model": model, "prompt": prompt, "max_tokens": tokens, "ignore_eos": True}
            answer = client.post(f"{server.url}/v1/completions", json=body | {"n": n})
            answer.raise_for_status()

        for _, prompt, n, _ in load[:8]:
            ask(prompt, n, 8)
        time.sleep(6.0)  # their spans go out before anybody listens
        with attached(server.url, port, folder / "live", settle_s=10.0):
            begun, threads = time.monotonic(), []
            for at, *request in load:
                time.sleep(max(begun + at - time.monotonic(), 0.0))
                threads.append(threading.Thread(target=ask, args=request))
                threads[-1].start()
            for thread in threads:
                thread.join()
            client.close()
    return folder / "live"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=4.0)
    parser.add_argument("--first", type=int, default=0, help="the seed of the first repeat")
    parser.add_argument("--system", type=int, default=0, help="tokens of a system prompt")
    parser.add_argument("--keep", type=Path)
    asked = parser.parse_args()
    if asked.keep is None:
        with tempfile.TemporaryDirectory() as name:
            compare(asked, Path(name))
    else:
        compare(asked, asked.keep)


def pace(base: "Recording", other: "Recording") -> float:
    """Return how much longer decode batches of the same size took, as a weighted geometric mean."""
    import polars as pl  # not before the servers are forked

    step = pl.col("interval_ns")
    of_size = [
        recording.frame("steps")
        .filter((pl.col("prefill_tokens") == 0) & (pl.col("decode_requests") > 0))
        .group_by("decode_requests")
        .agg(step.median(), pl.len())
        .filter(pl.col("len") >= 20)
        for recording in (base, other)
    ]
    both = of_size[0].join(of_size[1], on="decode_requests", suffix="_other")
    ratio = (both["interval_ns_other"] / both["interval_ns"]).log().to_numpy()
    weight = both.select(pl.min_horizontal("len", "len_other")).to_series().to_numpy()
    return float(np.exp(np.average(ratio, weights=weight)))


def compare(asked: argparse.Namespace, kept: Path) -> None:
    """Measure, predict and print, with recordings in the folder `kept`."""
    # Servers are forked from a process that imports this module, and vLLM does not start beside
    # numba.
    from advisor.step_time.law import StepTimes
    from advisor.what_if.predict import predict
    from advisor.what_if.question import Question, changed
    from traces.recording.reader import Recording
    from traces.summary.metrics import estimate_of
    from traces.summary.prefix_hits import with_hits
    from traces.summary.run import summarise

    at = StepTimes.at
    errors: dict[tuple[str, str], list[float]] = {}
    paced: dict[tuple[str, str], list[tuple[float, bool]]] = {}
    held: dict[tuple[str, str], list[bool]] = {}
    replayed: dict[str, list[float]] = {}
    for repeat in range(asked.first, asked.first + asked.repeats):
        load = requests(asked.seconds, asked.rate, repeat, asked.system)
        folder = kept / str(repeat)
        base_path = watched(folder / "base", BASE, load)
        paths = {change: watched(folder / change, flags, load) for change, flags in CHANGES.items()}
        base = Recording.open(base_path)
        (run,) = summarise(base)
        cached = with_hits(base, base.samples)["cached_tokens"].sum()
        for change, path in paths.items():
            engine, policy, _ = changed(run, [change])
            question = Question(engine=engine, policy=policy)
            found = predict(base, run, question)
            if change == next(iter(CHANGES)):
                again = found.tables["samples"]["cached_tokens"].sum()
                print(f"{repeat} prompt tokens from the cache: {cached:,} recorded, {again:,}")
            other = Recording.open(path)
            (real,), slower = summarise(other), pace(base, other)
            longer = partialmethod(lambda times, slower, factor: at(times, slower * factor), slower)
            with patch.object(StepTimes, "at", longer):
                at_its_pace = predict(base, run, question).predicted
            print(f"{repeat} {change:34} pace {slower:.2f}", flush=True)
            for tag in TAGS:
                told, took = estimate_of(found.predicted, tag), estimate_of(real, tag)
                was = estimate_of(run, tag)
                inside = told.low <= took.value <= told.high
                errors.setdefault((change, tag), []).append(told.value / took.value - 1)
                held.setdefault((change, tag), []).append(inside)
                then = estimate_of(at_its_pace, tag)
                of_pace = then.value / took.value - 1, then.low <= took.value <= then.high
                paced.setdefault((change, tag), []).append(of_pace)
                if change == next(iter(CHANGES)):
                    again = estimate_of(found.replayed, tag)
                    replayed.setdefault(tag, []).append(again.value / was.value - 1)
                print(
                    f"{repeat} {change:34} {tag:24} base {was.value:9.4g} predicted "
                    f"{told.value:9.4g} [{told.low:.4g}, {told.high:.4g}] measured "
                    f"{took.value:9.4g} error {told.value / took.value - 1:+7.1%} "
                    f"{'in' if inside else 'OUT'}",
                    flush=True,
                )
    print(f"load {os.getloadavg()[0]:.1f}")
    for (change, tag), values in errors.items():
        print(
            f"{change:34} {tag:24} mean {np.mean(values):+7.1%} median {np.median(values):+7.1%} "
            f"size {np.mean(np.abs(values)):6.1%}, paced "
            f"{np.mean([abs(error) for error, _ in paced[change, tag]]):6.1%}"
        )
    for tag, values in replayed.items():
        print(f"{'replayed':34} {tag:24} {', '.join(f'{each:+.1%}' for each in values)}")
    for place, names in enumerate((CHANGES, TAGS)):
        for name in names:
            inside = [each for key, values in held.items() if key[place] == name for each in values]
            of_pace = [
                held for key, found in paced.items() if key[place] == name for _, held in found
            ]
            print(
                f"{name:34} inside 90 % intervals: {sum(inside)} of {len(inside)}, "
                f"paced {sum(of_pace)}"
            )


if __name__ == "__main__":
    main()
