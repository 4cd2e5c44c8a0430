"""A real server at all depths: what /metrics, spans and the plugin say agree with one another."""

import threading

import httpx
import polars as pl
import pytest

from profiler.access import Access
from profiler.attach import watch
from profiler.deployment import Deployment
from profiler.incoming import Incoming
from profiler.receiver import Receiver
from tests.profiler.servers import ROOT, entry_point, vllm_server
from traces.recording import Recording
from traces.watched import watched_engines

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

CANARY = "canary 31415"
PROBLEMS, SAMPLES = 6, 4


def test_all_depths_agree(tmp_path, monkeypatch):
    receiver = Receiver("127.0.0.1", 0)
    receiver.start()
    entry_point(tmp_path / "site")
    where = f"http://127.0.0.1:{receiver.port}"
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{tmp_path / 'site'}")
    monkeypatch.setenv("TTSCOPE_PLUGIN", where)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
    flags = ["--otlp-traces-endpoint", f"{where}/v1/traces", "--enable-logging-iteration-details"]
    try:
        with vllm_server(tmp_path, *flags) as url:
            deployment = Deployment([Access.of(url)], period_s=0.5)
            deployment.connect()
            incoming = Incoming(receiver, deployment)
            assert incoming.adopt(30) == 1
            stop = threading.Event()
            texts = []
            client = threading.Thread(target=ask, args=(url, texts, stop))
            client.start()
            path = watch(deployment, tmp_path / "r", stop=stop, probes=[incoming.watched])
            client.join()
    finally:
        receiver.close()
    recording = Recording.open(path)
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
    kept = (path / "recording.json").read_text()
    for part in path.glob("*.parquet"):
        kept += pl.read_parquet(part).write_ndjson()
    assert CANARY not in kept
    assert "token_ids" not in kept or samples["token_ids"].null_count() == samples.height
    assert all(text not in kept for text in texts if len(text) > 12)


def ask(url, texts, stop):
    try:
        model = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
        for problem in range(1, PROBLEMS + 1):
            body = {"model": model, "prompt": f"{CANARY} {problem}", "max_tokens": 24}
            headers = {"traceparent": f"00-{problem:032x}-{problem:016x}-01"}
            for _ in range(SAMPLES):
                answer = httpx.post(
                    f"{url}/v1/completions", json=body, headers=headers, timeout=120
                )
                texts.append(answer.json()["choices"][0]["text"])
    finally:
        threading.Event().wait(8)  # vLLM's exporter sends every 5 s
        stop.set()
