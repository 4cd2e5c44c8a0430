"""Pages of other engines than vLLM, watched and then replayed and advised on."""

import re
import threading
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from advisor.advice.advisor import Advisor
from advisor.evidence.features import Features, Reads
from advisor.evidence.live.histograms import mean_steps
from advisor.evidence.live.servers import replayable
from benchmarks.servers.metrics_server import SGLANG, metrics_server
from profiler.attach.deployment import Deployment
from profiler.attach.watch import watch
from profiler.engines.server.access import accesses_of
from tests.advisor.asking import predicted
from traces.live.engine_names import NIM_NAMES
from traces.live.metrics_page import PageReader
from traces.live.numbers import (
    FLOPS,
    GENERATED,
    ITL,
    KV,
    PROMPT,
    RUNNING,
    STEP_TOKENS,
    TTFT,
    WAITING,
    Histogram,
    Window,
    numbers_in,
    window_of,
)
from traces.recording.reader import Recording
from traces.recording.tables import SCRAPES
from traces.schema.advice import Budget
from traces.schema.engine import EngineConfig

POLLS = 16
GROWS = re.compile(r"^(\S+_(?:total|count|sum|bucket)(?:\{.*\})?) (\S+)$", re.MULTILINE)
INFO = {
    "tp_size": 1, "page_size": 16, "max_total_num_tokens": 65_536, "max_running_requests": 16,
    "speculative_algorithm": "EAGLE", "speculative_num_steps": 3,
}  # fmt: skip


def as_sglang(state):
    state.as_sglang(INFO)


def as_sglang_ranks(state):
    state.as_sglang(INFO | {"dp_size": 2})
    state.lines = of_ranks(state.lines)


def of_ranks(lines):
    """Return SGLang's page of two ranks: each has scheduler's lines, and all tokenizer's."""
    told = []
    for line in lines:
        ranks = (0, 1) if "tp_rank=" in line else ()
        told += [line.replace("tp_rank=", f'dp_rank="{rank}",tp_rank=') for rank in ranks] or [line]
    return told


def grown(page, times):
    return GROWS.sub(lambda line: f"{line[1]} {float(line[2]) * times}", page)


def as_nim(state):
    """Under the names of NIM's page, which does not count steps."""
    own = {told.name: name for name, (told,) in NIM_NAMES.items()}
    lines = []
    for line in state.lines:
        for theirs, name in own.items():
            if re.match(rf"{theirs}(?:_bucket|_sum|_count)?[{{ ]", line):
                lines.append(line.replace(theirs, name, 1).replace('engine="0",', ""))
    state.lines, state.gauges = lines, {"num_requests_running": 4, "gpu_cache_usage_perc": 0.3}
    state.answers["/version"] = None
    state.answers["/v1/version"] = '{"release": "1.15.0"}'


def growing(states, deployment, enough):
    """Let each page's counters grow, the one twice as fast as the other, until enough is seen."""

    def grow():
        while not enough.wait(0.02):
            for place, state in enumerate(states):
                state.scale += 0.05 * (1 + place)
            if all(len(each.pages) >= POLLS for each in deployment.replicas):
                enough.set()

    thread = threading.Thread(target=grow)
    thread.start()
    return thread


def test_the_ranks_of_a_server_teach_the_law_of_one_of_them():
    def window(page, engine):
        rows, reader = [], PageReader()
        for poll in range(14):
            for series, value in reader.read(grown(page, poll + 1)).items():
                rows.append((poll * 10**9, *series, value))
        return window_of(pl.DataFrame(rows, schema=SCRAPES, orient="row"), engine, lengths=True)

    one = SGLANG.read_text()
    lines = of_ranks(one.splitlines())
    both = "\n".join(  # twice the requests, half of them on each
        line if "dp_rank=" in line else grown(line, 2) for line in lines
    )
    engine = EngineConfig(model="m", mode="server", other=(("engine_name", "SGLang"),))
    all_ranks = replace(engine, data_parallel_size=2)
    expected = mean_steps(window(one, ""), engine, Reads())
    server, *ranks = (window(both, each) for each in ("", "0", "1"))
    assert mean_steps(server, all_ranks, Reads()) is None
    found = mean_steps(server.with_ranks(ranks), all_ranks, Reads())
    assert found.composition == pytest.approx(expected.composition)
    assert found.seconds == pytest.approx(expected.seconds)
    assert numbers_in(server.with_ranks(ranks), "").running == 24


def test_the_flops_of_a_server_are_those_of_one_gpu_of_its_ranks():
    def window(*lines):
        rows = [(poll * 10**9, "e", *line, poll * 6.0) for poll in range(3) for line in lines]
        return window_of(pl.DataFrame(rows, schema=SCRAPES, orient="row"), "e")

    ranks = [window((FLOPS, "", None), (GENERATED, "", None)) for _ in range(2)]
    numbers = numbers_in(
        window((RUNNING, "", None)).with_ranks([*ranks, window((KV, "", None))]), ""
    )
    assert numbers.flops_per_gpu_per_s == 6 and numbers.generated_tokens_per_s == 12


def test_ranks_that_count_no_steps_have_the_composition_of_one():
    """Eight requests decode on each rank, whose steps take 10 ms."""

    def found(ranks):
        polls, each = 14, np.full(14, 800.0 * ranks)
        untold = np.full(polls, np.nan)
        window = Window(
            times=np.arange(polls) * 10**9, seconds=13.0, resets=0, increase={},
            counted={f"{STEP_TOKENS}_count": untold, PROMPT: 0.0 * each},
            gauges={RUNNING: np.full(polls, 8.0 * ranks), WAITING: 0.0 * each, KV: untold},
            histograms={
                ITL: Histogram(np.array([np.inf]), each[:, None], 0.01 * each),
                TTFT: Histogram(np.array([np.inf]), 0.1 * each[:, None], each),
            },
        )  # fmt: skip
        engine = EngineConfig(model="m", mode="server", data_parallel_size=ranks)
        return Features(*mean_steps(window, engine, Reads()).composition.T)

    assert found(1).requests == pytest.approx(found(2).requests)
    assert found(2).requests == pytest.approx(8 * 1.1)  # and the prompts that end in a step


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "pods", "replicas"),
    [(as_sglang, 1, 1), (as_nim, 1, 1), (as_sglang, 2, 2), (as_sglang_ranks, 1, 2)],
)
def test_other_pages_are_watched_replayed_and_advised_on(tmp_path, kind, pods, replicas):
    with metrics_server() as one, metrics_server() as two:
        states = [one, two][:pods]
        for state in states:
            kind(state)
        pages = [each.url for each in states] if pods > 1 else []
        deployment = Deployment(accesses_of([one.url], pages, {}), period_s=0.1)
        deployment.connect()
        enough = threading.Event()
        thread = growing(states, deployment, enough)
        try:
            watch(deployment, tmp_path / "live", stop=enough, duration_s=120)
        finally:
            enough.set()
            thread.join()
    seen = Recording.open(tmp_path / "live")
    (run,) = replayable(seen)
    assert run.engine.data_parallel_size == replicas
    found = predicted(seen)
    latency = found.predicted.latency_s["mean"]
    assert 0 < latency.low < latency.value < latency.high
    assert any("/metrics" in note for note in found.notes)
    told = Advisor.fit([seen]).recommend(Budget(rate_per_s=0.01, optimise="latency"))
    assert told.present or told.reasons  # whether or not a load so artificial can be served
