"""A sweep on Ray: what a task asks for, what comes back, and workers that are lost."""

import importlib.metadata
import itertools
import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.servers.clients import until
from profiler.engines.options import EngineOptions
from profiler.sweep.plan import LOG, EngineJobs, Job, load_plan, run_plan
from profiler.sweep.ray import (
    RayRunner,
    bring_in,
    demanded,
    files_of,
    keep_piece,
    one_at_a_time,
    pieces_of,
    run_on_node,
    with_files,
)
from tests.tui.chat_server import chat_server
from traces.errors import EngineError, UsageError
from traces.recording.reader import Recording
from traces.schema.tts.policy import Policy
from traces.summary.run import summarise

PLAN = """
workload: demo
problems: 16
concurrency: 2
engines:
  - model: demo-s
    endpoint: [URLS]
    policies: [{method: majority, n: [2, 4], temperature: 0.8, max_tokens: 300}]
"""
# Fewer than the requests of a job, and enough for one of two jobs to have solved two problems.
ANSWERS = 28


def node(alive=True, **resources):
    return {"Alive": alive, "Resources": {"CPU": 8.0, **resources}}


def group(**options):
    return EngineJobs(engine=EngineOptions(**{"model": "m"} | options), jobs=())


def test_a_task_asks_for_a_gpu_for_each_rank():
    nodes = [node(), node(GPU=4.0)]
    assert demanded(group(), nodes) == {"num_cpus": 1, "num_gpus": 1}
    assert demanded(group(tensor_parallel_size=4), nodes) == {"num_cpus": 1, "num_gpus": 4}
    assert demanded(group(endpoint="http://x"), nodes) == {"num_cpus": 1}
    with pytest.raises(EngineError, match="8 needs as many GPUs on one node. The largest has 4"):
        demanded(group(tensor_parallel_size=8), nodes)
    with pytest.raises(EngineError, match="The largest has 4"):
        demanded(group(tensor_parallel_size=8), [*nodes, node(alive=False, GPU=8.0)])


def test_a_sweep_that_is_interrupted_starts_no_task_again(tmp_path):
    runner, stop, begun = object.__new__(RayRunner), threading.Event(), []

    def remote(*_):
        begun.append(1)
        assert len(begun) == 1
        stop.set()
        return iter(["reference"])

    task = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=remote))
    runner._task, runner._version, cancelled = task, "1", []
    runner._ray = SimpleNamespace(
        nodes=lambda: [node(GPU=1.0)],
        cancel=cancelled.append,
        exceptions=SimpleNamespace(RayTaskError=KeyError, RayError=KeyError),
    )
    jobs = (Job(name="a", policy=Policy(), workload="demo", problems=1, seed=0, concurrency=1),)
    assert (
        runner._run(EngineJobs(engine=EngineOptions(model="m"), jobs=jobs), tmp_path, print, stop)
        == []
    )
    assert len(cancelled) == 1


def test_an_engine_on_cpus_is_alone_on_its_node():
    assert demanded(group(), [node(), node()]) == {"num_cpus": 8}
    for sizes in ((4.0, 64.0), (8.0, 12.0), (1.0, 1.0), (2.0, 3.0, 8.0)):
        asked = demanded(group(), [node(CPU=size) for size in sizes])["num_cpus"]
        assert max(sizes) / 2 < asked <= max(sizes)  # two fit on none, and one on some


def test_engines_of_one_server_take_turns():
    """They would slow one another, and their times would be those of another load."""
    plan = [
        group(endpoint="http://a:8000", tensor_parallel_size=1),
        group(endpoint="http://b:8000"),
        group(),
        group(endpoint="http://a:8000/v1/", tensor_parallel_size=2),
        group(),
    ]
    turns = one_at_a_time(plan)
    assert [[plan.index(each) for each in groups] for groups in turns] == [[0, 3], [1], [2], [2]]


def test_a_cluster_without_cpus_is_one_line():
    """Such as the node that starts the sweep, before the others have come."""
    for nodes in ([], [node(CPU=0.0)], [node(CPU=0.0), node(alive=False)]):
        with pytest.raises(EngineError, match="no node of the cluster has a CPU"):
            demanded(group(), nodes)
    assert demanded(group(), [node(CPU=0.0), node()]) == {"num_cpus": 8}


def test_files_come_whole_and_under_their_name(tmp_path, monkeypatch):
    monkeypatch.setattr("profiler.sweep.ray._PIECE", 5)
    there, here = tmp_path / "there", tmp_path / "here"
    files = {"recording.json": b"0123456789ab", "sub/steps-0.parquet": b"xyz"}
    for name, data in files.items():
        (there / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (there / "run" / name).write_bytes(data)
    (here / "run").mkdir(parents=True)  # of an attempt before
    for piece in pieces_of(there, "run"):
        assert len(piece["data"]) <= 5
        keep_piece(here, piece)
    bring_in(here, "run")
    found = {
        p.relative_to(here / "run").as_posix(): p.read_bytes() for p in here.glob("run/**/*.*")
    }
    assert found == files
    assert not list(here.glob(".gathering-*"))


def test_a_workload_and_a_template_go_to_the_node(tmp_path, monkeypatch):
    """A node has no file of the sweep's machine, or another one of the same name."""
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "sub").mkdir(parents=True)
    (here / "sub" / "w.jsonl").write_bytes(b"own")
    (here / "t.jinja").write_bytes(b"{{ messages }}")
    monkeypatch.chdir(here)
    jobs = tuple(
        Job(name=f"j{place}", policy=Policy(), workload=name, problems=1, seed=0, concurrency=1)
        for place, name in enumerate(("sub/w.jsonl", "demo"))
    )
    engine = EngineOptions(model="m", chat_template="t.jinja")
    asked = EngineJobs(engine=engine, jobs=jobs)
    found = with_files(asked, files_of(asked), there)
    monkeypatch.chdir(tmp_path)
    assert Path(found.jobs[0].workload).read_bytes() == b"own"
    assert Path(found.jobs[0].workload).name == "w.jsonl"  # which the recording tells
    assert found.jobs[1] == jobs[1]
    assert Path(found.engine.chat_template).read_bytes() == b"{{ messages }}"
    bare = EngineJobs(engine=EngineOptions(model="m"), jobs=jobs[1:])
    assert with_files(bare, files_of(bare), tmp_path / "none") == bare


@pytest.mark.parametrize(
    ("job", "file"), [("..", "x"), ("a/b", "x"), ("a", "../x"), ("a", "/etc/x"), ("", "x")]
)
def test_no_file_leaves_the_folder(tmp_path, job, file):
    with pytest.raises(EngineError, match="a node sent a file named"):
        keep_piece(tmp_path, {"job": job, "file": file, "data": b"x"})


def test_another_version_on_a_node():
    with pytest.raises(EngineError, match=r"a node has ttscope .*, this machine 0\.0\.7\. Install"):
        next(run_on_node({}, "0.0.7", {}))


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one CPU each, both on this machine."""
    pytest.importorskip("ray", reason="the extra ray is not installed")
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    size = {"num_cpus": 1, "object_store_memory": 100 << 20}
    made = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **size})
    try:
        made.add_node(**size)
        yield made.address
    finally:
        made.shutdown()


def test_no_cluster_there():
    pytest.importorskip("ray", reason="the extra ray is not installed")
    with pytest.raises(EngineError, match="--ray 127.0.0.1:1: no cluster there"):
        RayRunner("127.0.0.1:1")


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("ray://head:10001", "not through Ray Client. Make this machine a node"),
        ("head", "write auto, or HOST:PORT"),
        ("local", "write auto, or HOST:PORT"),
        ("head:99999", "write auto, or HOST:PORT"),
    ],
)
def test_addresses_that_are_refused(address, why):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    with pytest.raises(UsageError, match=why):
        RayRunner(address)


def processes():
    """The parent and the command line of each process."""
    found = {}
    for each in Path("/proc").iterdir():
        if each.name.isdecimal():
            try:
                parent = int((each / "stat").read_text().rpartition(")")[2].split()[1])
                found[int(each.name)] = parent, (each / "cmdline").read_bytes()
            except OSError:
                continue
    return found


def busy():
    """The engines of each process in which a task of ours runs."""
    found = processes()
    return {
        worker: [
            own
            for own, (parent, line) in found.items()
            if parent == worker and b"engine_process" in line
        ]
        for worker, (_, line) in found.items()
        if b"ray::run_on_node" in line
    }


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_only_the_job_that_it_ran(cluster, tmp_path):
    lines, killed, engines = [], threading.Event(), []
    both, asked = threading.Event(), itertools.count(1)

    def listen(line):
        lines.append(line)
        if line.get("done", 0) >= 2 and not killed.is_set():
            worker, own = next(each for each in busy().items() if each[1])
            engines.extend(own)
            os.kill(worker, signal.SIGKILL)
            killed.set()

    def hold():
        """Answer when both nodes have a task, and no job's last request before one is killed."""
        if not both.is_set():
            until(lambda: both.is_set() or sum(map(bool, busy().values())) >= 2, seconds=180)
            both.set()
        if next(asked) > ANSWERS:
            killed.wait(180)

    with chat_server(hold=hold) as one, chat_server(hold=hold) as two:
        (tmp_path / "plan.yaml").write_text(PLAN.replace("URLS", f"{one}, {two}"))
        plan = load_plan(tmp_path / "plan.yaml")
        runner = RayRunner(cluster)
        try:
            outcomes = run_plan(plan, tmp_path / "runs", on_line=listen, runner=runner)
        finally:
            runner.close()
    assert killed.is_set() and engines
    until(lambda: not any(Path(f"/proc/{each}").exists() for each in engines))
    assert [line for line in lines if line.get("state") == "lost"]
    assert len(outcomes) == 4
    assert [outcome.error for outcome in outcomes] == [None] * 4
    for outcome in outcomes:
        (run,) = summarise(Recording.open(outcome.path))
        assert run.problems == 16
    assert all(outcome.skipped for outcome in run_plan(plan, tmp_path / "runs"))


def test_what_an_engine_prints_comes_into_the_log_of_the_sweep(tmp_path, monkeypatch):
    def lines(group, folder):
        (folder / LOG).write_bytes(b"from an engine")
        (folder / "a").mkdir()
        (folder / "a" / "recording.json").write_bytes(b"{}")
        yield {"finished": "a", "error": f"{folder}/a failed"}

    monkeypatch.setattr("profiler.sweep.ray.engine_lines", lines)
    jobs = (Job(name="a", policy=Policy(), workload="demo", problems=1, seed=0, concurrency=1),)
    order = EngineJobs(engine=EngineOptions(model="m"), jobs=jobs).to_json()
    runner, errors = object.__new__(RayRunner), {}
    runner._ray = SimpleNamespace(get=lambda piece, timeout: piece)
    pieces = run_on_node(order, importlib.metadata.version("ttscope"), {})
    runner._take(pieces, tmp_path, lambda line: None, errors, threading.Event())
    assert (tmp_path / LOG).read_bytes() == b"from an engine"
    assert errors == {"a": "the sweep's folder/a failed"}
    assert (tmp_path / "a" / "recording.json").read_bytes() == b"{}"


def test_without_ray_it_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(UsageError, match="-m pip install 'ray"):
        RayRunner("auto")
