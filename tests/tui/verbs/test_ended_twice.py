"""A second Ctrl-C, or SIGTERM: a recording that is being closed is closed all the same."""

import json
import signal
import subprocess
import sys
import threading
import time
import tomllib

import httpx
import pytest

from benchmarks.made.terminal import ROOT
from benchmarks.servers.clients import until
from benchmarks.servers.fake_engine import FakeEngine, running
from traces.deployment.documents import PolicyFile
from traces.recording.reader import Recording
from traces.schema.tts.parameters import make_policy

CHAT = {"model": "fake", "messages": [{"role": "user", "content": "What is 3 x 4?"}]}


def started(*arguments):
    command = [sys.executable, "-c", "from tui.cli import main; main()", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def signalled(process, number, times):
    """End a process with so many signals, one each 20 ms; returns its code, words and seconds."""
    begun = time.monotonic()
    for _ in range(times):
        if process.poll() is None:
            process.send_signal(number)
            time.sleep(0.02)
    _, said = process.communicate(timeout=60)
    return process.returncode, said, time.monotonic() - begun


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_leaves_the_end_of_a_recording(tmp_path, number):
    engine, folder = FakeEngine(), tmp_path / "r"
    engine.token_s = 0.05
    with running(engine) as url:
        process = started("record", "--endpoint", url, "--problems", 2000, "-o", folder)
        until(lambda: len(engine.asked) > 20)
        code, said, _ = signalled(process, number, 5)
    recording = Recording.open(folder)
    assert (code, recording.cut) == (130, "ended early")
    whole = recording.problems["end"].count()
    assert f"keeps {whole} whole problems, as an incomplete recording" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "times", "drain"),
    [(signal.SIGTERM, 1, 1.0), (signal.SIGTERM, 2, 60.0), (signal.SIGINT, 9, 60.0)],
)
def test_serve_ends_what_runs_when_its_time_is_over_or_at_a_second_signal(
    tmp_path, number, times, drain
):
    """The recording is whole: it has each question, those that were ended as such."""
    policy = make_policy({"temperature": 0.8, "method": "majority", "n": 2})
    document = PolicyFile(policy=policy, verifier="numeric", most_n=2)
    (tmp_path / "policy.json").write_text(json.dumps(document.to_json()))
    engine, folder, answers = FakeEngine(), tmp_path / "r", []
    engine.fault = "hang"
    with running(engine) as url:
        process = started(
            "serve", tmp_path / "policy.json", "--upstream", url, "--port", 0, "--drain", drain,
            "-o", folder,
        )  # fmt: skip
        where = next(word for word in process.stderr.readline().split() if "http" in word)
        asked = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{where}/chat/completions", json=CHAT))
        )
        asked.start()
        until(lambda: len(engine.asked) == 2)
        code, said, took = signalled(process, number, times)
        asked.join()
    recording = Recording.open(folder)
    assert recording.cut is None, said
    assert code == 0 or times > 2  # the last may have come as Python itself ended
    assert recording.problems["error"].to_list() == ["server ended"]
    assert (answers[0].status_code, answers[0].json()["error"]["code"]) == (503, 503)
    assert took < 20


@pytest.mark.parametrize(
    "module", ["typer", "tui.cli", "tui.verbs.show", "traces.recording.reader"]
)
def test_ctrl_c_while_python_still_imports_ends_without_a_traceback(module):
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["ttscope"]
    code = f"""
import os, signal, sys
class Finder:
    def find_spec(name, *_):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder)
from {entry.replace(":", " import ")}
main()
"""
    command = [sys.executable, "-c", code, "show", "nothing"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "ttscope: interrupted\n")
