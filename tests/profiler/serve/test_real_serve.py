"""The whole way on real vLLM: advise -o, its command, serve, an OpenAI client, gate.

Steps are recorded in one process. A server's HTTP comes on top, and weighs much where a step takes
milliseconds. So latencies are promised once a run of the server is among the recordings.
"""

import contextlib
import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.servers.vllm_server import Server, end, free_port, vllm_server, wait_for
from benchmarks.servers.warm import Warm
from profiler.demo import task
from tests.profiler import command
from traces.deployment.documents import read_expectations, read_policy
from traces.recording.reader import Recording
from traces.summary.run import summarise

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

TTSCOPE = Path(sys.executable).parent / "ttscope"
QUESTIONS, IN_FLIGHT = 64, 4
FEW = 10  # of a baseline that a slow engine is held against
TURNS, SLOWER = 3, "latency>+10%"


def ttscope(folder, *arguments, code=0):
    ran = command.ttscope(*arguments, cwd=folder)
    assert code in (ran.returncode, None), ran.stdout + ran.stderr
    return ran.stdout


def command_of(printed, script):
    """The printed command, which is that of the script."""
    lines = printed.split("\n\n")[2].partition("\nPolicy: ")[0]
    words = shlex.split(lines.replace("\\\n", ""))
    assert shlex.split(script.splitlines()[-1]) == ["exec", "env", *words, "$@"]
    return words


@contextlib.contextmanager
def started(folder, words, port):
    """Start the server of a command; gives the URL. Its process begins with vLLM imported."""
    at = words.index("-m")
    variables = os.environ | dict(each.split("=", 1) for each in words[: at - 1])
    variables |= {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    variables.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    log, own = folder / "log", ["--host", "127.0.0.1", "--port", port]
    process = Warm(
        [*words[at + 2 :], *own], module=words[at + 1], stdout=log, stderr=log, env=variables,
        cwd=folder,
    )  # fmt: skip
    server = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        wait_for(server)
        yield server.url
    finally:
        end(server)


@contextlib.contextmanager
def policy_served(folder, *arguments, port):
    """Run `ttscope serve`; gives the URL."""
    url, log = f"http://127.0.0.1:{port}", folder / "log-serve"
    with log.open("w") as file:
        process = subprocess.Popen(
            [TTSCOPE, "serve", *map(str, arguments), "--port", str(port)],
            cwd=folder, stdout=file, stderr=file,
        )  # fmt: skip
        server = Server(url, process, log)
        try:
            wait_for(server)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(60)
            finally:
                process.kill()


def ask(url, problems):
    """Ask through the OpenAI client, so many at a time; returns the `ttscope` of each answer."""
    import openai

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
    recorded = command.warm_ttscope(
        "record", "--model", "demo/s", "--dtype", "float32", *posed, "--n", 8,
        "--max-num-seqs", 64, "--max-model-len", 1024, "--max-tokens", 400,
        "-o", tmp_path / "runs" / "vote",
    )  # fmt: skip
    assert recorded.returncode == 0, recorded.stderr
    wanted = ("--min-accuracy", "0.7")
    printed = subprocess.check_output(
        [TTSCOPE, "advise", "runs", *wanted, "-o", "alone"], cwd=tmp_path, text=True
    )
    alone = read_expectations(tmp_path / "alone" / "expect.json")
    assert alone.served is None
    words = command_of(printed, (tmp_path / "alone" / "serve.sh").read_text())
    with started(tmp_path, words, free_port()) as engine:
        recorded = ("record", "--endpoint", engine, "--policy", "alone/policy.json", *posed)
        ttscope(tmp_path, *recorded, "-o", "runs/served")
        ttscope(tmp_path, "advise", "runs", *wanted, "-o", "config")
        config = tmp_path / "config"
        policy = read_policy(config / "policy.json")
        expected = read_expectations(config / "expect.json")
        assert policy.verifier == "demo" and policy.policy.n > 1
        print("served", expected.served, "alone", alone.promised["latency_s"])
        asked = (config / "policy.json", "--upstream", engine, "-o", tmp_path / "served")
        with policy_served(tmp_path, *asked, port=free_port()) as url:
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
        # A client that is held up by others keeps fewer in flight, which judges no latency.
        assert held["mean latency"] != "absent" or "in flight, and was promised for" in gated
        asked = ("--endpoint", engine, "--json")
        ttscope(tmp_path, "record", "--endpoint", engine, "--policy", config / "policy.json",
                "--problems", FEW, *load, "-o", "base")  # fmt: skip
        # Samples are drawn anew, so the limits leave room for what chance does to a few questions.
        limits = ("accuracy<-.6", "latency>+400%")
        roomy = [word for limit in limits for word in ("--fail-on", limit)]
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
        # So does an engine that works on one sequence at a time. Both are measured in turn, as
        # what else the machine does may hold up one of them alone. Each turn has its own folder,
        # so that the spread from run to run is the assumed one.
        flags = ("--served-model-name", "demo/s", "--max-num-seqs", "1")
        with vllm_server(tmp_path / "slow", *flags) as slow:
            own = ("--policy", config / "policy.json", "--problems", FEW, *load)
            for turn in range(TURNS):
                base, changed = f"turn{turn}/base", f"turn{turn}/changed"
                ttscope(tmp_path, "record", "--endpoint", engine, *own, "-o", base)
                asked = (base, "--endpoint", slow, "--fail-on", SLOWER, "--json", "-o", changed)
                out = ttscope(tmp_path, "gate", *asked, code=None)
                print(out)
                if verdicts(out)[SLOWER] == "broken":
                    break
            else:
                raise AssertionError("the gate passed an engine of one sequence at a time")
