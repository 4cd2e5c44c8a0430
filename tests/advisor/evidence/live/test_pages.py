"""Pages of other engines than vLLM, watched and then replayed and advised on."""

import re
import threading

import pytest

from advisor.advice.advisor import Advisor
from advisor.evidence.live.servers import replayable
from advisor.what_if.predict import predict
from advisor.what_if.question import Question
from benchmarks.servers.metrics_server import metrics_server
from profiler.attach.deployment import Deployment
from profiler.attach.watch import watch
from profiler.engines.server.access import accesses_of
from traces.live.engine_names import NIM_NAMES
from traces.recording.reader import Recording
from traces.schema.advice import Budget
from traces.schema.tts.policy import AS_SENT

POLLS = 16
INFO = {"tp_size": 1, "page_size": 16, "max_total_num_tokens": 65_536, "max_running_requests": 16}


def as_sglang(state):
    state.as_sglang(INFO)


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


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "pods"), [(as_sglang, 1), (as_nim, 1), (as_sglang, 2)])
def test_other_pages_are_watched_replayed_and_advised_on(tmp_path, kind, pods):
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
    assert run.engine.data_parallel_size == pods
    found = predict(seen, run, Question(engine=run.engine, policy=AS_SENT))
    latency = found.predicted.latency_s["mean"]
    assert 0 < latency.low < latency.value < latency.high
    assert any("/metrics" in note for note in found.notes)
    told = Advisor.fit([seen]).recommend(Budget(rate_per_s=0.01, optimise="latency"))
    assert told.present or told.reasons  # whether or not a load so artificial can be served
