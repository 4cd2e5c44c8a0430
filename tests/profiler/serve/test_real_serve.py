"""The whole way on real vLLM: advise -o, serve.sh, serve, an OpenAI client, gate.

Steps are recorded in one process. A server's HTTP comes on top, and weighs much where a step takes
milliseconds. So latencies are promised once a run of the server is among the recordings.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest

from benchmarks.servers.vllm_server import free_port, vllm_server
from profiler.demo import task
from tests.profiler.command import warm_ttscope
from traces.deployment.documents import read_expectations, read_policy
from traces.recording.reader import Recording
from traces.summary.run import summarise

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

TTSCOPE = Path(sys.executable).parent / "ttscope"
QUESTIONS, IN_FLIGHT = 64, 4
FEW = 16  # of a baseline that a slow engine is held against
WAIT_S = 900


def ttscope(folder, *arguments, code=0):
    ran = subprocess.run(
        [TTSCOPE, *map(str, arguments)], cwd=folder, capture_output=True, text=True, check=False
    )
    assert ran.returncode == code, ran.stdout + ran.stderr
    return ran.stdout


class Process:
    """A process that answers at a URL until the block ends."""

    def __init__(self, folder, command, url):
        self.folder, self.command, self.url = folder, command, url

    def __enter__(self):
        self.log = (self.folder / f"log-{self.url.rpartition(':')[2].partition('/')[0]}").open("w")
        environment = os.environ | {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
        environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
        self.process = subprocess.Popen(
            list(map(str, self.command)), cwd=self.folder, stdout=self.log, stderr=self.log,
            env=environment,
        )  # fmt: skip
        until = time.monotonic() + WAIT_S
        while True:
            assert self.process.poll() is None and time.monotonic() < until, self.said()
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(self.url, timeout=2).status_code == 200:
                    return self
            time.sleep(0.2)

    def said(self):
        return Path(self.log.name).read_text()[-4000:]

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(60)
        finally:
            self.process.kill()
            self.log.close()


def ask(url, problems):
    """Ask through the OpenAI client, so many at a time; returns the `ttscope` of each answer."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=120, max_retries=0)

    def one(problem):
        answer = client.chat.completions.create(
            model="demo/s",
            messages=[{"role": "user", "content": problem.prompt}],
            extra_body={"ttscope": {"id": problem.problem_id, "answer": problem.expected}},
        )
        return answer.ttscope | {"content": answer.choices[0].message.content}

    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        return list(pool.map(one, problems))


def verdicts(text):
    return {each["name"]: each["verdict"] for each in json.loads(text)["checks"]}


def test_from_advice_to_a_gate_that_holds_and_one_that_fails(tmp_path):
    load = ("--seed", 7, "--concurrency", IN_FLIGHT)
    posed = ("--problems", QUESTIONS, *load)
    recorded = warm_ttscope(
        "record", "--model", "demo/s", "--dtype", "float32", *posed, "--n", 8,
        "--max-num-seqs", 64, "--max-model-len", 1024, "--max-tokens", 400,
        "-o", tmp_path / "runs" / "vote",
    )  # fmt: skip
    assert recorded.returncode == 0, recorded.stderr
    wanted = ("--min-accuracy", "0.7")
    ttscope(tmp_path, "advise", "runs", *wanted, "-o", "alone")
    alone = read_expectations(tmp_path / "alone" / "expect.json")
    assert alone.served is None
    engine_port, port = free_port(), free_port()
    engine, url = f"http://127.0.0.1:{engine_port}", f"http://127.0.0.1:{port}"
    script = ["sh", tmp_path / "alone" / "serve.sh", "--host", "127.0.0.1", "--port", engine_port]
    with Process(tmp_path, script, f"{engine}/health"):
        recorded = ("record", "--endpoint", engine, "--policy", "alone/policy.json", *posed)
        ttscope(tmp_path, *recorded, "-o", "runs/served")
        ttscope(tmp_path, "advise", "runs", *wanted, "-o", "config")
        config = tmp_path / "config"
        policy = read_policy(config / "policy.json")
        expected = read_expectations(config / "expect.json")
        assert policy.verifier == "demo" and policy.policy.n > 1
        print("served", expected.served, "alone", alone.promised["latency_s"])
        serve = [TTSCOPE, "serve", config / "policy.json", "--upstream", engine, "--port", port]
        with Process(tmp_path, [*serve, "-o", tmp_path / "served"], f"{url}/health"):
            told = ask(url, task.problems(QUESTIONS, seed=7))
        assert all("</think>" in each["content"] for each in told)
        served = Recording.open(tmp_path / "served")
        (run,) = summarise(served)
        assert (served.complete, run.problems) == (True, QUESTIONS)
        for name, found in (
            ("accuracy", run.accuracy), ("tokens", run.tokens_per_problem),
            ("latency_s", run.latency_s["mean"]),
        ):  # fmt: skip
            print(name, "promised", expected.promised[name], "served", found)
        # What the client got was promised.
        gated = ttscope(tmp_path, "gate", config / "expect.json", "served", "--json")
        held = verdicts(gated)
        print(gated)
        assert {"accuracy", "tokens", "mean latency"} <= held.keys()
        assert not {held[name] for name in ("accuracy", "tokens")} & {"broken", "absent"}, held
        assert held["mean latency"] != "absent", held
        asked = ("--endpoint", engine, "--json")
        ttscope(tmp_path, "record", "--endpoint", engine, "--policy", config / "policy.json",
                "--problems", FEW, *load, "-o", "base")  # fmt: skip
        # Samples are drawn anew, so the limits leave room for what chance does to a few questions.
        roomy = [word for limit in ("accuracy<-.6", "p95>+400%") for word in ("--fail-on", limit)]
        print(ttscope(tmp_path, "gate", "base", *asked, *roomy, "-o", "again"))
        # Fewer samples fail, and the reason is said.
        document = json.loads((config / "policy.json").read_text())
        document["policy"] = {"method": "majority", "n": 1, "temperature": 0.8, "max_tokens": 400}
        document["most_n"] = 1
        (tmp_path / "smaller.json").write_text(json.dumps(document))
        ttscope(tmp_path, "record", "--endpoint", engine, "--policy", "smaller.json", *posed,
                "-o", "smaller")  # fmt: skip
        out = ttscope(tmp_path, "gate", config / "expect.json", "smaller", code=3)
        print(out)
        assert "FAIL  accuracy" in out and f"policy.n {policy.policy.n} -> 1" in out
    # So does an engine that works on one sequence at a time.
    flags = ("--served-model-name", "demo/s", "--max-num-seqs", "1")
    with vllm_server(tmp_path / "slow", *flags) as slow:
        asked = ("--endpoint", slow, "--json")
        out = ttscope(tmp_path, "gate", "base", *asked, "-o", "changed", code=3)
        print(out)
        assert verdicts(out)["p95>+10%"] == "broken"
