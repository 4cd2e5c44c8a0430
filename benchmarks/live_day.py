"""A day of a live deployment in one recording: ``python benchmarks/live_day.py``.

A server makes 10 steps a second and its /metrics page, a recorded one of 325 series, is read every
second, while requests come and go as by day and by night. Pages go through the scraper and steps
through the plugin's rows, without sleeping; each stretch of 64 seconds is written as the parts of
these seconds merge. A writer then closes the recording, and `ttscope show` opens it, each in a
process of its own. Printed are seconds, peak memory and the bytes of the recording.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from profiler.attach.scraper import PolledPage, Scraper
from profiler.engines.server.access import Access
from profiler.plugin.batches import COLUMNS, PluginRows
from traces.live.metrics_page import PageReader
from traces.recording.manifest import ClockReading, Manifest
from traces.recording.parts import FAN_IN, write_part
from traces.recording.tables import TABLES
from traces.recording.writer import RecordingWriter, merge_full_levels, read_clocks
from traces.schema.engine import EngineConfig

PAGE = Path(__file__).parent.parent / "tests" / "data" / "live" / "metrics.txt"
START, S = 1_700_000_000 * 10**9, 10**9
STEPS_PER_S, RUNNING, REQUESTS_PER_S = 10, 8, 0.5
ENGINE = EngineConfig(model="toy", mode="server", num_gpu_blocks=20_000, gpu="NVIDIA made")
TAKEN = {  # by the end of a histogram's name: the median of what it takes in, and how wide
    "time_to_first_token_seconds": (0.3, 0.8),
    "request_queue_time_seconds": (0.02, 2.0),
    "request_prefill_time_seconds": (0.2, 0.5),
    "request_inference_time_seconds": (15.0, 0.6),
    "request_decode_time_seconds": (15.0, 0.6),
    "e2e_request_latency_seconds": (16.0, 0.6),
    "request_time_per_output_token_seconds": (0.1, 0.1),
    "inter_token_latency_seconds": (0.1, 0.2),
    "iteration_tokens_total": (RUNNING, 0.3),
    "request_prompt_tokens": (800.0, 1.0),
    "request_prefill_kv_computed_tokens": (700.0, 1.0),
    "request_params_max_tokens": (1000.0, 0.0),
    "request_max_num_generation_tokens": (150.0, 0.6),
    "request_generation_tokens": (150.0, 0.6),
    "request_num_preemptions": (0.0, 0.0),
    "request_params_n": (1.0, 0.0),
}
EACH_STEP = ("inter_token_latency_seconds", "iteration_tokens_total")


class Server:
    """A /metrics page that moves as that of a server under load."""

    def __init__(self) -> None:
        lines = [each for each in PAGE.read_text().splitlines() if each.startswith("vllm:")]
        self._heads = [each.rpartition(" ")[0] for each in lines]
        self._values = np.array([float(each.rpartition(" ")[2]) for each in lines])
        self._rng = np.random.default_rng(0)
        self._places: dict[str, int] = {}
        self._buckets: dict[str, tuple[list[int], list[float]]] = {}
        for place, head in enumerate(self._heads):
            name, _, labels = head.removeprefix("vllm:").partition("{")
            self._places.setdefault(name, place)
            if name.endswith("_bucket"):
                places, bounds = self._buckets.setdefault(name.removesuffix("_bucket"), ([], []))
                places.append(place)
                bounds.append(float(labels.partition('le="')[2].partition('"')[0]))

    def page(self, second: int) -> tuple[str, int]:
        """Return the page of a second of the day, and how many requests ended in it."""
        by_day = 1 + 0.6 * np.sin(2 * np.pi * second / 86_400)
        ended = int(self._rng.poisson(REQUESTS_PER_S * by_day))
        for name, (median, width) in TAKEN.items():
            number = ended
            if name in EACH_STEP:
                number = STEPS_PER_S * (1 if name.startswith("iteration") else RUNNING)
            if number:
                self._take(name, median * np.exp(self._rng.normal(0, width, number)))
        self._add("prompt_tokens_total", 800 * ended)
        self._add("generation_tokens_total", STEPS_PER_S * RUNNING)
        self._add("prefix_cache_queries_total", 800 * ended)
        self._add("prefix_cache_hits_total", 100 * ended)
        self._add("request_success_total", ended)
        self._set("num_requests_running", RUNNING + int(self._rng.integers(-2, 3)))
        self._set("num_requests_waiting", int(self._rng.poisson(0.1)))
        self._set("kv_cache_usage_perc", 0.3 + 0.1 * self._rng.random())
        values = zip(self._heads, self._values.tolist(), strict=True)
        return "\n".join(f"{head} {value!r}" for head, value in values) + "\n", ended

    def _take(self, name: str, seen: Any) -> None:
        places, bounds = self._buckets[name]
        inside = np.searchsorted(np.sort(seen), bounds, side="right")
        self._values[places] += inside
        self._add(f"{name}_sum", float(seen.sum()))
        self._add(f"{name}_count", seen.size)

    def _add(self, name: str, amount: float) -> None:
        self._values[self._places[name]] += amount

    def _set(self, name: str, value: float) -> None:
        self._values[self._places[name]] = value


def stretches(seconds: int) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Give the rows of scrapes and of steps, 64 seconds at a time."""
    key, server, reader = ENGINE.key(), Server(), PageReader()
    scraper = Scraper(
        Access.of("http://127.0.0.1:1", {}), lambda label: key, on_event=lambda *_: None
    )
    rows = PluginRows(engine=key, usable_blocks=ENGINE.num_gpu_blocks, asynchronous=False)
    for first in range(0, seconds, FAN_IN):
        steps = []
        for second in range(first, min(first + FAN_IN, seconds)):
            text, ended = server.page(second)
            values = reader.read(text)
            scraper._take(PolledPage(START + second * S, 0.002, values))
            raw = [plugin_row(second, at, ended if at == 0 else 0) for at in range(STEPS_PER_S)]
            steps += rows.rows(raw)
        yield scraper.drain(), pl.from_dicts(steps, schema=dict(TABLES["steps"]))
    scraper.close()


def plugin_row(second: int, at: int, ended: int) -> Any:
    """Return what the plugin sends of a step, in which `ended` requests came and went."""
    told: dict[str, Any] = dict.fromkeys(COLUMNS, 0)
    told |= {
        "end": START + second * S + (at + 1) * S // STEPS_PER_S - 1,
        "running": RUNNING,
        "kv_usage": 0.3,
        "first_tokens": ended,
        "computed": 700 * ended,
        "cached": 100 * ended,
        "prompts": 800 * ended,
        "continued": RUNNING - min(ended, RUNNING),
        "generated": RUNNING,
        "finished": ended,
        "finished_context": 950 * ended,
        "drafted": None,
        "accepted": None,
        "ctx_requests": ended,
        "ctx_tokens": 700 * ended,
        "gen_requests": RUNNING - min(ended, RUNNING),
        "gen_tokens": RUNNING - min(ended, RUNNING),
        "elapsed_ms": 12.0 + 0.02 * ended + at / 10,
        "dummy": False,
    }
    return tuple(told[name] for name in COLUMNS)


def make(folder: Path, seconds: int) -> None:
    """Write all but the manifest, as a writer has it before it closes."""
    folder.mkdir(parents=True)
    for number, frames in enumerate(stretches(seconds)):
        first = number * FAN_IN
        for table, frame in zip(("scrapes", "steps"), frames, strict=True):
            write_part(folder, table, frame, first, first + FAN_IN - 1)
            merge_full_levels(folder, table)


def close(folder: Path, seconds: int) -> None:
    """Close the recording as a writer does that wrote it."""
    manifest = Manifest(
        clock_start=ClockReading(monotonic_ns=0, unix_ns=START), engines={ENGINE.key(): ENGINE}
    )
    writer = RecordingWriter(folder, manifest)
    writer.event("note", f"{seconds:,} seconds, made")
    writer.close(complete=True)
    assert read_clocks().unix_ns > START


def measure(what: str, *command: str, lines: int = 12) -> None:
    """Run Python in a process of its own and print what it took."""
    begun = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen([sys.executable, *command], stdout=out)
        _, status, used = os.wait4(process.pid, 0)
        took = time.perf_counter() - begun
        out.seek(0)
        told = out.read().splitlines()
    if status:
        sys.exit(f"{what}: failed")
    print(
        f"{what:<6} {took:7.1f} s, {used.ru_utime + used.ru_stime:7.1f} s of processor, "
        f"peak {used.ru_maxrss / 1024:6,.0f} MB",
        flush=True,
    )
    print("".join(f"    {line}\n" for line in told[:lines]), end="", flush=True)


def show_sizes(folder: Path) -> None:
    """Print the files, bytes and rows of each table."""
    for table in ("scrapes", "steps"):
        files = sorted(folder.glob(f"{table}-*.parquet"))
        rows = sum(pl.scan_parquet(each).select(pl.len()).collect().item() for each in files)
        size = sum(each.stat().st_size for each in files) / 1e6
        print(f"    {table}: {rows:,} rows, {size:.1f} MB in {len(files)} files", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--hours", type=float, default=24.0)
    options.add_argument("--folder", type=Path, help="where to write and leave the recording")
    options.add_argument("--do", choices=("make", "close"), help=argparse.SUPPRESS)
    given = options.parse_args(arguments)
    seconds = round(given.hours * 3600)
    if given.do:
        {"make": make, "close": close}[given.do](given.folder, seconds)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = given.folder or Path(name) / "day"
        again = [__file__, "--hours", str(given.hours), "--folder", str(folder), "--do"]
        for stage in ("make", "close"):
            measure(stage, *again, stage)
            show_sizes(folder)
        code = "import sys; from tui.cli import main; sys.exit(main())"
        measure("show", "-c", code, "show", str(folder))


if __name__ == "__main__":
    main()
