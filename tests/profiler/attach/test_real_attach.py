"""Two real servers, one of them with two front ends, attached to at every depth.

They are started once for all tests here; the last one ends the first server.
"""

import json
import os
import signal
import time
from contextlib import contextmanager
from dataclasses import replace

import httpx
import polars as pl
import pytest

from benchmarks.servers.clients import CANARY, asking, everything_in, until
from benchmarks.servers.vllm_server import NOTED, end, free_port, launch, wait_for, with_probe
from profiler.attach.deployment import Deployment
from profiler.attach.kernel_windows import ServerPlan, ServerWindows
from profiler.attach.receiver.incoming import Incoming
from profiler.attach.receiver.receiver import Receiver
from profiler.attach.window_steps import SeenSteps
from profiler.engines.server.access import Access
from profiler.plugin.shared_token import shared_token
from tests.profiler.command import Running
from tests.profiler.watching import watch_while
from traces.live.watched import watched_engines
from traces.recording.reader import Recording
from traces.summary.kernels import device_time

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

ANSWER = "quartz-zebra"  # letters: digits would be found in some time
PROBLEMS, SAMPLES = 6, 4


class Two:
    """Both servers, and the port where they send spans and steps."""

    def __init__(self, folder):
        self.port, self.grpc_port = free_port(), free_port()
        self.traces, self.noted = folder / "traces", folder / "noted"
        self.traces.mkdir()
        here = f"http://127.0.0.1:{self.port}"
        variables = {
            "TTSCOPE_PLUGIN": here,
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{shared_token()}",
            "OTEL_BSP_SCHEDULE_DELAY": "300",  # ms between two exports of spans
            "PYTHONPATH": with_probe(folder / "site", NOTED.format(path=self.noted)),
        }
        flags = [
            "--otlp-traces-endpoint",
            f"{here}/v1/traces",
            "--enable-logging-iteration-details",
        ]
        profiler = {"profiler": "torch", "torch_profiler_dir": str(self.traces)}
        profiler |= {"ignore_frontend": True, "torch_profiler_with_stack": False}
        profiler |= {"detailed_trace_annotation": True}
        self.one = launch(
            folder / "one", *flags, "--profiler-config", json.dumps(profiler), **variables
        )
        variables["PYTHONPATH"] = with_probe(folder / "plain", "")
        del variables["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"]  # so that it speaks gRPC
        flags = ["--api-server-count", "2"]
        flags += ["--otlp-traces-endpoint", f"http://127.0.0.1:{self.grpc_port}"]
        self.two = launch(folder / "two", *flags, **variables)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    made = Two(tmp_path_factory.mktemp("servers"))
    try:
        wait_for(made.one)
        wait_for(made.two)
        yield made
    finally:
        end(made.one)
        end(made.two)


@contextmanager
def receiving(two):
    receiver = Receiver("127.0.0.1", two.port)
    receiver.start()
    try:
        yield receiver
    finally:
        receiver.close()


def test_all_depths_agree(two, tmp_path):
    with receiving(two) as receiver:
        deployment = Deployment([Access.of(two.one.url)], period_s=0.5)
        deployment.connect()
        incoming = Incoming(receiver, deployment)
        assert incoming.adopt(30) == 1
        texts = []

        def polled():
            parts = list((tmp_path / "r").glob("scrapes-*.parquet"))
            return parts and Recording.open(tmp_path / "r").frame("scrapes")["time"].max()

        def between_two_polls():  # what comes before the first is in no rate of /metrics
            until(polled)
            spans = receiver.received
            ask(two.one.url, texts)
            ended = time.time_ns()
            until(lambda: receiver.received >= spans + PROBLEMS * SAMPLES)
            until(lambda: polled() > ended + 200_000_000)

        receiver.take_batches()
        made = {"folder": tmp_path / "r", "probes": [incoming.watched]}
        recording = watch_while(between_two_polls, deployment, **made)
    (watched,) = watched_engines(recording)
    samples, steps = recording.samples, recording.steps
    assert recording.manifest.engines[watched.verdict.engine].max_num_seqs == 16
    assert recording.problems.height == PROBLEMS
    assert samples.group_by("problem_id").len()["len"].to_list() == [SAMPLES] * PROBLEMS
    # Three depths, one count of tokens.
    tokens = samples["output_tokens"].sum()
    assert round(watched.numbers.generated_tokens_per_s * watched.numbers.seconds) == tokens
    assert steps["decode_tokens"].sum() + samples.height == tokens
    assert steps["prefill_tokens"].sum() + steps["cached_prompt_tokens"].sum() == (
        samples["prompt_tokens"].sum()
    )
    assert steps["finished"].sum() == samples.height == sum(watched.numbers.finished.values())
    assert set(steps["source"]) == {"measured"}
    assert watched.columns["wall_ns"] == "measured"
    assert watched.columns["decode_kv_tokens"] == "inferred"
    assert watched.columns["aborted"] == "null"
    assert (samples["first_token"] <= samples["end"]).all()
    kept = everything_in(recording.path)
    assert CANARY not in kept
    assert "token_ids" not in kept or samples["token_ids"].null_count() == samples.height
    assert all(text not in kept for text in texts if len(text) > 12)


def ask(url, texts):
    model = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
    for problem in range(1, PROBLEMS + 1):
        body = {"model": model, "prompt": f"{CANARY} {problem}", "max_tokens": 24}
        headers = {"traceparent": f"00-{problem:032x}-{problem:016x}-01"}
        for _ in range(SAMPLES):
            answer = httpx.post(f"{url}/v1/completions", json=body, headers=headers, timeout=120)
            texts.append(answer.json()["choices"][0]["text"])


def test_a_workload_over_two_replicas_with_nothing_of_it_kept(two, tmp_path):
    """Each server gets problems; two front ends are one sequence of steps; no text anywhere."""
    workload = tmp_path / "workload.jsonl"
    lines = [
        {"id": f"p{n}", "prompt": f"{CANARY} {n}", "answer": f"{ANSWER}-{n}"} for n in range(12)
    ]
    workload.write_text("\n".join(map(json.dumps, lines)))
    urls = (two.one.url, two.two.url)
    folder, logs = tmp_path / "r", [len(each.log.read_text()) for each in (two.one, two.two)]
    options = ["--workload", workload, "--n", "3", "--max-tokens", "40", "--top-p", "0.95"]
    options += ["--listen", two.port, "--raw-prompts", "--verifier", "exact", "--period", "500ms"]
    process = Running("attach", *urls, *options, "-o", folder, "--json")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    document = json.loads(out)
    assert len(document["watched"]) == 2
    recording = Recording.open(folder)
    whole = next(e for e in recording.manifest.engines.values() if dict(e.other).get("urls"))
    assert whole.data_parallel_size == 2
    samples, steps = recording.samples, recording.steps
    assert set(samples["engine"]) == {whole.key()}
    assert samples.height == 36
    assert samples["output_tokens"].null_count() == 0
    by_url = {dict(e.other).get("url"): key for key, e in recording.manifest.engines.items()}
    given = steps.group_by("engine").agg(
        pl.col("finished").sum(), tokens=pl.col("decode_tokens").sum() + pl.col("finished").sum()
    )
    rows = {engine: (finished, tokens) for engine, finished, tokens in given.iter_rows()}
    for place, url in enumerate(urls):  # every other problem, and every token of its in a step
        mine = samples.filter(pl.col("problem_id").is_in([f"p{n}" for n in range(place, 12, 2)]))
        assert rows[by_url[url]] == (mine.height, mine["output_tokens"].sum()) != (0, 0)
    of_two = steps.filter(pl.col("engine") == by_url[two.two.url])
    assert of_two["step"].to_list() == list(range(of_two.height))
    assert of_two["end"].is_sorted()
    assert set(of_two["source"]) == {"inferred"}
    exported = tmp_path / "trace.json"
    export = Running("export", folder, "-o", exported)
    said = "".join(export.communicate(timeout=120))
    assert export.returncode == 0, said
    kept = everything_in(folder) + out + err + said + exported.read_text()
    for server, before in zip((two.one, two.two), logs, strict=True):
        kept += "".join(line for line in server.log.read_text()[before:] if "ttscope" in line)
    assert CANARY not in kept
    assert ANSWER not in kept
    assert samples["token_ids"].null_count() == samples.height


def test_spans_as_vllm_sends_them_by_default(two):
    pytest.importorskip("grpc")
    from profiler.attach.receiver.grpc_listener import GrpcListener

    receiver = Receiver("127.0.0.1", 0)
    listener = GrpcListener(receiver, "127.0.0.1", two.grpc_port)
    listener.start()
    try:
        answer = httpx.post(
            f"{two.two.url}/v1/completions", json={"prompt": CANARY, "max_tokens": 3}, timeout=60
        )
        name, spans = answer.json()["id"], []

        def arrived():  # spans of earlier requests may come first
            spans.extend(receiver.take_spans())
            return [s for s in spans if s.values["gen_ai.request.id"].startswith(name)]

        until(arrived)
    finally:
        listener.close()
        receiver.close()
    assert CANARY not in repr(spans)


def test_windows_of_a_real_profiler_end_by_themselves(two, tmp_path, monkeypatch):
    """Their traces' own sums of context say that the steps that they are put to are theirs."""
    asked = []
    holding = SeenSteps.holding
    monkeypatch.setattr(
        SeenSteps, "holding", lambda *told: asked.append((*told, holding(*told))) or asked[-1][-1]
    )
    monkeypatch.setattr("profiler.attach.kernel_windows.BUDGET", 1.0)
    with receiving(two) as receiver, asking(two.one.url):
        deployment = Deployment([Access.of(two.one.url)], period_s=0.5)
        deployment.connect()
        windows = ServerWindows(deployment, two.traces, ServerPlan(steps=4, every_s=1))
        windows.look()
        windows.rehearse()
        incoming, windows.awaits_steps = Incoming(receiver, deployment, windows.saw), True
        assert incoming.adopt(30) == 1

        def read():
            until(lambda: len(asked) > 3)

        probes = [incoming.watched, windows.watched]
        recording = watch_while(read, deployment, tmp_path / "r", probes=probes)
        # As after a kill: nobody stops it.
        body = {"profile_prefix": "alone", "max_iterations": 3}
        assert httpx.post(f"{two.one.url}/start_profile", json=body).status_code == 200
        until(lambda: list(two.traces.glob("alone_*.json*")))
    assert httpx.post(f"{two.one.url}/stop_profile", timeout=30).status_code == 200
    told = recording.frame("events").filter(kind="window")["detail"]
    details = [json.loads(each) for each in told]
    # A window without any event, as a busy machine may leave one, has an error and no steps.
    details = [each for each in details if "error" not in each]
    assert len(details) == len(asked) > 3
    whole = [each for each in details if (each["steps"], each["skipped"]) == (4, {})]
    assert len(whole) > len(details) / 2, details  # a busy machine cuts some
    kernels, steps = recording.frame("kernels"), recording.steps
    assert {"attention", "norm", "kv-cache"} <= set(kernels["family"])
    assert not list(two.traces.glob("ttscope-*"))
    known = 0
    for detail, (seen, marks, offset, opened, held) in zip(details, asked, strict=True):
        own = kernels.filter(window_id=detail["window"])["step"].drop_nulls()
        if isinstance(held, str):
            assert own.is_empty()
            continue
        assert (own.min(), own.max()) == (held[0], held[-1])
        context = [each.mark.decode_kv_tokens for each in marks]
        rows = steps.filter(pl.col("step").is_in(held)).sort("step")
        assert rows["decode_kv_tokens"].to_list() == context
        assert rows["profiled"].all()
        plain = [replace(e, mark=replace(e.mark, decode_kv_tokens=None)) for e in marks]
        guess = holding(seen, plain, offset, opened)  # by clocks and batches alone
        assert guess == held or "of the steps" in guess
        known += 1
    assert known > len(asked) // 2
    (key,) = set(kernels["engine"])
    device = device_time(recording.frame("events"), key, kernels=kernels)
    first_steps = [detail["first_step"] for detail in details if "first_step" in detail]
    assert [each.first for each in device.held if each.first is not None] == first_steps


def events_of(folder):
    return Recording.open(folder).frame("events")["kind"].to_list()


def test_a_server_that_hangs_and_then_ends(two, tmp_path):
    """The recording is whole up to there and marked; the last steps come as the server ends."""
    folder = tmp_path / "r"
    options = ["--listen", two.port, "--on-loss", "end", "--period", "500ms"]
    process = Running("attach", two.one.url, *options, "-o", folder)
    with asking(two.one.url):
        until(lambda: list(folder.glob("steps-*.parquet")))
        two.one.signal(signal.SIGSTOP)
        until(lambda: "gap" in events_of(folder))  # a poll waits for 5 s
        two.one.signal(signal.SIGCONT)
        went_on = time.time_ns()
        until(lambda: "reconnect" in events_of(folder))
        until(lambda: Recording.open(folder).steps["end"].max() > went_on)
        os.kill(two.one.process.pid, signal.SIGTERM)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert "a server was lost" in err
    assert "VERDICT" in out
    recording = Recording.open(folder)
    assert not recording.complete
    kept = [each for each in events_of(folder) if each not in ("drop", "before")]
    assert kept == ["gap", "reconnect", "gap", "killed"]
    noted = [int(line) for line in two.noted.read_text().split()]
    # The other server's plugin, which nobody watches, is told apart by its instance.
    # Spans that came after it told of itself have an engine of their own, without steps.
    engines, stepped = recording.manifest.engines.items(), set(recording.steps["engine"])
    (own,) = (k for k, each in engines if "instance" not in dict(each.other) and k in stepped)
    ends = recording.steps.filter(engine=own)["end"]
    assert ends.is_sorted()
    lost = [each for each in noted if each > ends[-1]]
    # The server waits half a second for them; a machine that runs other tests beside it is later.
    assert not lost or (noted[-1] - lost[0]) / 1e9 < 4.0
