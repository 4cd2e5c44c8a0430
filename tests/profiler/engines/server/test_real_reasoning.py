"""Real servers with a reasoning parser give the answers that the engine in this process gives."""

from contextlib import closing

import pytest

from benchmarks.servers.vllm_server import running
from profiler.engines.server.server import ServerEngine
from profiler.runs.record import record
from profiler.workload.problems import load_workload
from tests.profiler.command import warm_ttscope
from traces.recording.reader import Recording
from traces.schema.tts.policy import Policy
from traces.summary.run import summarise

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

PROBLEMS, LONG, SHORT = 24, 300, 24  # max_tokens that cut none, and about half


@pytest.fixture(scope="module")
def in_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("in-process")
    for most in (LONG, SHORT):
        done = warm_ttscope(
            *("record", "--model", "demo/s", "--dtype", "float32", "--seed", "5", "--json"),
            *("--problems", PROBLEMS, "--max-tokens", most, "-o", folder / str(most)),
        )
        assert done.returncode == 0, done.stderr[-2000:]
    return {most: samples(folder / str(most)) for most in (LONG, SHORT)}


def samples(path):
    return Recording.open(path).samples.sort("problem_id")


@pytest.mark.parametrize("parser", ["deepseek_r1", "qwen3", None])
def test_the_answers_are_the_same_behind_a_parser(parser, in_process, tmp_path):
    """Several tokens a delta, so that many deltas have the end of a thought and the answer."""
    flags = ["--dtype", "float32", "--stream-interval", "3"]
    flags += [] if parser is None else ["--reasoning-parser", parser]
    declared = {"tensor_parallel_size": 1}
    with (
        running(tmp_path / "server", *flags) as server,
        closing(ServerEngine(server.url, name="demo/s", declared=declared)) as engine,
    ):
        for most in (LONG, SHORT):
            workload = load_workload("demo", problems=PROBLEMS, seed=5)
            record(workload, Policy(max_tokens=most), engine, tmp_path / str(most))
    for most, mine in in_process.items():
        theirs = samples(tmp_path / str(most))
        for column in ("answer", "correct", "output_tokens", "censored"):
            assert theirs[column].to_list() == mine[column].to_list(), column
        for column in ("think_tokens", "answer_tokens"):
            assert theirs[column].to_list() == mine[column].to_list(), column
        ended = theirs.filter(theirs["think_tokens"].is_not_null())
        assert (ended["first_token"] <= ended["think_end"]).all()
        assert (ended["think_end"] <= ended["end"]).all()
    cut = theirs["censored"].sum()
    assert 4 < cut < PROBLEMS
    (run,) = summarise(Recording.open(tmp_path / str(SHORT)))
    assert any(f"{cut} of {PROBLEMS} samples have no answer" in note for note in run.notes)
