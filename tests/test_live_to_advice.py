"""A live server is watched, replayed and advised on, restarted as advised, and watched again.

docs/tutorial.md shows the same with its output.
"""

import itertools
import json
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from advisor.evidence.live.histograms import FEWEST_INTERVALS
from benchmarks.servers.vllm_server import end, free_port, launch, telling, wait_for, with_probe
from tests.profiler.command import Running, ttscope
from traces.live.numbers import RUNNING
from traces.live.watched import windows_of
from traces.recording.reader import Recording

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

REQUESTS, SAMPLES, TOKENS = 30, 3, 100
APART_S = 0.02  # faster than any machine answers, so that requests wait for the limit
FEW, MORE = 4, 16


def verb(*arguments):
    """Run a verb of the command line; return what it printed."""
    done = ttscope(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def served(folder, port, limit):
    """Start a server with spans, and the plugin with the batch of each step."""
    spans, variables = telling(port)
    variables |= {
        "OTEL_BSP_SCHEDULE_DELAY": "300",
        "PYTHONPATH": with_probe(folder / "site", ""),
    }
    flags = [*spans, "--max-num-seqs", limit]
    return launch(folder, *flags, "--enable-logging-iteration-details", **variables)


def ask(client, url, number):
    """Send a request of several samples as OpenAI's clients do."""
    body = {"max_tokens": TOKENS, "n": SAMPLES, "ignore_eos": True, "temperature": 1.0}
    prompt = f"What is {number} + 7?"
    answer = client.post(f"{url}/v1/completions", json={"prompt": prompt} | body)
    assert len(answer.json()["choices"]) == SAMPLES


def few_at_a_time(url, folder):
    """Send more than the limit takes, and so little that the server still answers polls.

    It goes on until requests ran at four times as many polls as a law needs.
    """
    numbers, enough = itertools.count(), threading.Event()

    def one_after_the_other(client):
        while not enough.is_set():
            ask(client, url, next(numbers))

    with httpx.Client(timeout=200) as client, ThreadPoolExecutor(3) as pool:
        sending = [pool.submit(one_after_the_other, client) for _ in range(3)]
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline and polls_under_load(folder) < 4 * FEWEST_INTERVALS:
            time.sleep(0.5)
        enough.set()
        for each in sending:
            each.result()


def polls_under_load(folder):
    """Return at how many polls so far requests ran."""
    (window,) = windows_of(Recording.open(folder)).values() or [None]
    return 0 if window is None else int((window.gauge(RUNNING) > 0).sum())


def load(url, _folder):
    """Send requests at fixed times, and wait."""
    begun, threads = time.monotonic(), []
    with httpx.Client(timeout=200) as client:
        for number in range(REQUESTS):
            time.sleep(max(begun + number * APART_S - time.monotonic(), 0))
            threads.append(threading.Thread(target=ask, args=(client, url, number)))
            threads[-1].start()
        for each in threads:
            each.join()


def watched(server, folder, send, *options):
    """Watch while requests are sent; return what attach printed."""
    watch = Running("attach", server.url, *options, "--period", "200ms", "-o", folder)
    deadline = time.monotonic() + 120
    while not (folder / "recording.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(1)
    send(server.url, folder)
    time.sleep(1.5)
    watch.send_signal(signal.SIGINT)
    out, err = watch.communicate(timeout=300)
    assert watch.returncode == 0, err
    return out


def three_uses(folder):
    """Return what each verb printed, by name."""
    port, told = free_port(), {}
    before, page, after = (folder / name for name in ("before", "page", "after"))
    one = served(folder / "one", port, FEW)
    try:
        wait_for(one)
        told["attach"] = watched(one, before, load, "--listen", port)
        told["page"] = watched(one, page, few_at_a_time)
    finally:
        end(one)
    asked = ["--set", f"engine.max_num_seqs={MORE}"]
    told["replay json"] = verb("replay", before, *asked, "--json")
    assert "coarse" in verb("replay", page, *asked, "--explain")
    two = served(folder / "two", port, MORE)
    try:
        wait_for(two)
        told["attach again"] = watched(two, after, load, "--listen", port)
    finally:
        end(two)
    told["compare json"] = verb("show", before, after, "--json")
    limits = ["--rate", "0.2/s", "--max-latency", "600s", "--json"]
    told["advise"] = verb("advise", before, after, *limits)
    return told


def test_what_a_replay_of_a_watched_server_promises_comes(tmp_path):
    told = three_uses(tmp_path)
    assert "VERDICT" in told["attach"] and "NEXT" in told["attach"]
    assert "NEXT" in told["page"]
    predicted = json.loads(told["replay json"])
    runs = json.loads(told["compare json"])["runs"]
    assert [each["problems"] for each in runs] == [REQUESTS] * 2
    # Two cores that others use too are not the same from minute to minute, so latencies tell of
    # them. What a step holds follows from the limit: steps that were promised fewer are fewer.
    was, came = (each["steps"] for each in runs)
    promised = predicted["predicted"]["steps"]
    assert predicted["replayed"]["steps"] == pytest.approx(was, rel=0.05)
    assert promised < 0.8 * was and came < 0.8 * was
    assert 0.4 < came / promised < 2.5
    latency = (predicted[name]["latency_s"]["mean"]["value"] for name in ("predicted", "replayed"))
    assert next(latency) < 0.8 * next(latency)
    assert "VERDICT" in told["attach again"]
    pick = json.loads(told["advise"])["system_optimal"]
    assert pick["engine"]["max_num_seqs"] in (1, 2, FEW, 8, MORE)
    assert f"--max-num-seqs {pick['engine']['max_num_seqs']}" in pick["command"]
