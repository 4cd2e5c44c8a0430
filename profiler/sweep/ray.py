"""A sweep's engines as tasks of a Ray cluster, each where its GPUs are free (extra `ray`).

A task runs the same child process as a sweep of one machine and keeps recordings in a folder of its
node; when one is finished its files come through Ray's object store to the folder of the sweep,
which no node but this one needs to reach. A task whose worker or node is lost starts again with the
jobs that are not finished; a job in which that happens twice has failed.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from profiler.doors.outgoing import Try
from profiler.sweep.plan import LOG, EngineJobs, JobOutcome, Listener, engine_lines, set_aside
from traces.errors import EngineError, TtscopeError, UsageError, install_command

MOST_LOSSES = 2  # of a worker or node in one job
MOST_TASKS = 256  # that wait or run at a time
_PIECE = 16 << 20  # bytes of a file that travel at a time
_LOG_TAIL = 1 << 20
_LONGEST_FETCH_S = 300.0
_GATHERING = ".gathering-"  # begins the name of a recording that is not here whole


class RayRunner:
    """Runs engines on the Ray cluster at `address`; a `profiler.sweep.plan.Runner`.

    `address` is Ray's own: `auto` or host:port of the cluster that this machine belongs to. None is
    started here, since Ray listens on more than loopback. Raises UsageError without Ray or for Ray
    Client, EngineError where the cluster cannot be reached.
    """

    def __init__(self, address: str) -> None:
        if address.startswith("ray://"):  # its tasks cannot give one result after the other
            raise UsageError(
                f"--ray {address}: not through Ray Client. Make this machine a node (ray start "
                "--address HOST:PORT --num-cpus 0 --num-gpus 0) and use --ray auto"
            )
        try:
            import ray
        except ImportError:
            raise UsageError(f"--ray needs ray: {install_command('ray')}") from None
        self._ray = ray
        if address != "auto":
            _check_answers(address)  # Ray itself waits for minutes
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            why = str(error).strip().splitlines() or [type(error).__name__]
            raise EngineError(f"--ray {address}: no cluster there ({why[0]})") from None
        self._task = ray.remote(
            num_returns="streaming", max_retries=0, scheduling_strategy="SPREAD"
        )(run_on_node)
        self._version = importlib.metadata.version("ttscope")

    def close(self) -> None:
        self._ray.shutdown()

    def __call__(
        self, plan: Sequence[EngineJobs], folder: Path, on_line: Listener
    ) -> list[JobOutcome]:
        """Run engines, as many at a time as the cluster has room for, and one of each server."""
        lock, stop = threading.Lock(), threading.Event()

        def say(line: Mapping[str, Any]) -> None:
            with lock:
                on_line(line)

        def in_turn(groups: Sequence[EngineJobs]) -> list[JobOutcome]:
            return [each for group in groups for each in self._run(group, folder, say, stop)]

        turns = one_at_a_time(plan)
        with ThreadPoolExecutor(min(len(turns), MOST_TASKS)) as threads:
            runs = [threads.submit(in_turn, groups) for groups in turns]
            try:
                return [outcome for run in runs for outcome in run.result()]
            except BaseException:
                stop.set()
                for run in runs:
                    run.cancel()
                raise

    def _run(
        self, group: EngineJobs, folder: Path, on_line: Listener, stop: threading.Event
    ) -> list[JobOutcome]:
        """Run one engine's jobs, again where a worker was lost."""
        errors: dict[str, str | None] = {}
        losses = dict.fromkeys((job.name for job in group.jobs), 0)
        while not stop.is_set():
            if not (left := [job for job in group.jobs if job.name not in errors]):
                break
            now = EngineJobs(engine=group.engine, jobs=tuple(left))
            try:
                demand = demanded(group, self._ray.nodes())
            except TtscopeError as error:
                errors |= {job.name: str(error) for job in left}
                break
            for job in left:
                shutil.rmtree(folder / f"{_GATHERING}{job.name}", ignore_errors=True)
            order, files = now.to_json(), files_of(now)
            pieces: Any = self._task.options(**demand).remote(order, self._version, files)
            try:
                self._take(pieces, folder, on_line, errors, stop)
            except self._ray.exceptions.RayTaskError as error:
                errors |= {job.name: _told(error.cause) for job in left if job.name not in errors}
            except self._ray.exceptions.RayError as error:
                if not (open_ := [job.name for job in left if job.name not in errors]):
                    break
                losses[open_[0]] += 1
                on_line({"job": open_[0], "state": "lost"})
                if losses[open_[0]] >= MOST_LOSSES:
                    errors[open_[0]] = (
                        f"its worker was lost {MOST_LOSSES} times ({type(error).__name__})"
                    )
        return [
            JobOutcome(name=name, path=folder / name, error=error) for name, error in errors.items()
        ]

    def _take(
        self,
        pieces: Iterator[Any],
        folder: Path,
        on_line: Listener,
        errors: dict[str, str | None],
        stop: threading.Event,
    ) -> None:
        """Take what a task says and the files that it gives."""
        for reference in pieces:
            if stop.is_set():
                self._ray.cancel(pieces)
                return
            piece = self._ray.get(reference, timeout=_LONGEST_FETCH_S)  # its node may be lost
            if "file" in piece:
                keep_piece(folder, piece)
                continue
            if log := piece.pop("log", None):
                with (folder / LOG).open("ab") as file:
                    file.write(log)
                continue
            if name := piece.get("finished"):
                bring_in(folder, name)
                errors[name] = piece["error"]
            on_line(piece)


def one_at_a_time(plan: Sequence[EngineJobs]) -> list[list[EngineJobs]]:
    """Return the engines of a plan, those of one server together: they would slow one another."""
    turns: dict[str | int, list[EngineJobs]] = {}
    for place, group in enumerate(plan):
        url = group.engine.endpoint
        server = place if url is None else url.rstrip("/").removesuffix("/v1")
        turns.setdefault(server, []).append(group)
    return list(turns.values())


def demanded(group: EngineJobs, nodes: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return what a task asks of one node: a GPU for each rank.

    An engine on CPUs asks for a node of its own, since it computes on all cores: for so many that
    no node has room for two. Raises EngineError where no node is large enough, or none has a CPU.
    """
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    ranks = group.engine.tensor_parallel_size or 1
    gpus = max((each.get("GPU", 0) for each in resources), default=0)
    if group.engine.endpoint is not None:
        return {"num_cpus": 1}
    if not gpus:
        if not (cpus := [each["CPU"] for each in resources if each.get("CPU")]):
            raise EngineError(
                "no node of the cluster has a CPU or a GPU to run on. Add one with ray start "
                "--address HOST:PORT"
            )
        return {"num_cpus": max(min(cpus), max(cpus) // 2 + 1)}
    if gpus < ranks:
        raise EngineError(
            f"tensor_parallel_size {ranks} needs as many GPUs on one node. The largest has {gpus:g}"
        )
    return {"num_cpus": 1, "num_gpus": ranks}


def files_of(group: EngineJobs) -> dict[str, bytes]:
    """Return the workloads and the chat template of jobs by their paths, those that are files."""
    named = {job.workload for job in group.jobs if job.workload.partition(":")[0] != "demo"}
    files = {}
    for path in named | {group.engine.chat_template or ""} - {""}:
        with contextlib.suppress(OSError):  # the task says what it misses
            files[path] = Path(path).read_bytes()
    return files


def with_files(group: EngineJobs, files: Mapping[str, bytes], folder: Path) -> EngineJobs:
    """Return jobs whose files lie in `folder`, under their own names."""
    kept = {}
    for place, (path, data) in enumerate(sorted(files.items())):
        kept[path] = folder / str(place) / PurePosixPath(path).name
        kept[path].parent.mkdir(parents=True)
        kept[path].write_bytes(data)

    def of(path: str) -> str:
        return str(kept.get(path, path))

    template = group.engine.chat_template
    return replace(
        group,
        engine=replace(group.engine, chat_template=None if template is None else of(template)),
        jobs=tuple(replace(job, workload=of(job.workload)) for job in group.jobs),
    )


def run_on_node(
    order: dict[str, Any], version: str, files: Mapping[str, bytes]
) -> Generator[dict[str, Any]]:
    """Run an engine's jobs on this node; the task. Gives its lines, and files before `finished`.

    `files` are those that the jobs name, by their paths on the machine of the sweep.
    """
    here = importlib.metadata.version("ttscope")
    if here != version:
        raise EngineError(f"a node has ttscope {here}, this machine {version}. Install the same")
    with tempfile.TemporaryDirectory(prefix="ttscope-sweep-") as made:
        folder = Path(made)
        group = with_files(EngineJobs.from_json(order), files, folder / ".files")
        yield {"job": group.jobs[0].name, "state": "starting"}
        with contextlib.closing(engine_lines(group, folder)) as lines:
            for line in lines:
                if name := line.get("finished"):
                    yield from pieces_of(folder, name)
                    if line["error"]:
                        line["error"] = line["error"].replace(made, "the sweep's folder")
                yield line
        with (folder / LOG).open("rb") as log:
            log.seek(max(log.seek(0, os.SEEK_END) - _LOG_TAIL, 0))
            yield {"log": log.read()}


def pieces_of(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    """Give the files of a recording in pieces."""
    for path in sorted(path for path in (folder / name).rglob("*") if path.is_file()):
        shown = path.relative_to(folder / name).as_posix()
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                yield {"job": name, "file": shown, "data": piece}


def keep_piece(folder: Path, piece: Mapping[str, Any]) -> None:
    """Add a piece to the recording that comes in. Raises EngineError for a path that leads out."""
    job, shown = PurePosixPath(piece["job"]), PurePosixPath(piece["file"])
    if len(job.parts) != 1 or shown.is_absolute() or ".." in (*job.parts, *shown.parts):
        raise EngineError(f"a node sent a file named {piece['job']}/{piece['file']}")
    path = folder / f"{_GATHERING}{job}" / shown
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(piece["data"])


def bring_in(folder: Path, name: str) -> None:
    """Give a recording whose files are all here its name."""
    gathered = folder / f"{_GATHERING}{name}"
    if gathered.exists():
        set_aside(folder / name)
        gathered.replace(folder / name)


def _check_answers(address: str) -> None:
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"--ray {address}: write auto, or HOST:PORT of the cluster")
    try:
        Try(10.0).connect(host.strip("[]"), int(port)).close()
    except OSError as error:
        why = error.strerror or error
        raise EngineError(f"--ray {address}: no cluster there ({why})") from None


def _told(error: BaseException) -> str:
    return str(error) if isinstance(error, TtscopeError) else f"{type(error).__name__}: {error}"
