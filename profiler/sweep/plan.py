"""A plan of configurations, run one engine process at a time, resumable.

A plan is YAML: what holds for all, and a list of engines with their policies. A list anywhere in
an engine or a policy makes a grid.

    workload: demo
    problems: 48
    concurrency: 8
    engines:
      - model: [demo/s, demo/l]
        max_num_seqs: 64
        policies:
          - {method: majority, n: 16, temperature: 0.8, max_tokens: 300}
          - {method: greedy, max_tokens: 300}
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import polars as pl

from profiler.engines.options import EngineOptions
from profiler.probes.power import HZ, check_hz
from profiler.workload.problems import load_workload
from profiler.workload.verifiers import NAMES as VERIFIERS
from traces.clock import now_ns
from traces.errors import TtscopeError, UsageError
from traces.plain_yaml import plain_yaml
from traces.recording.manifest import NAME, read_manifest
from traces.recording.reader import Recording
from traces.schema.engine import Speculative
from traces.schema.record import Record, misfit
from traces.schema.tts.parameters import make_policy
from traces.schema.tts.policy import Policy

MOST_REPEATS = 10_000
_LEAST = {"problems": 1, "seed": 0, "concurrency": 1, "checkpoint_samples": 1, "repeats": 1}
DRAFTS = ("method", "num_speculative_tokens")  # what a setting of `speculative` must have
LOG = "engine.log"  # what the engine printed, in the folder of the recordings


@dataclass(frozen=True, kw_only=True)
class Job(Record):
    """One policy on one engine: what becomes one recording, in the folder `name`."""

    name: str
    policy: Policy
    workload: str = "demo"
    problems: int | None = None
    seed: int = 0
    concurrency: int = 8
    record_text: bool = False
    power_hz: float = HZ
    logprobs: bool = False
    timeout_s: float | None = None
    budget_checkpoints: tuple[int, ...] = ()
    checkpoint_samples: int = 8
    repeat: int = 0
    verifier: str | None = None
    system_prompt: str | None = None

    def __post_init__(self) -> None:
        check_hz(self.power_hz)

    @property
    def posed(self) -> dict[str, Any]:
        names = ("problems", "seed", "verifier", "system_prompt")
        return {"source": self.workload} | {name: getattr(self, name) for name in names}


# What a plan says of all of its runs.
RUN_FIELDS = tuple(
    each.name for each in fields(Job) if each.name not in ("name", "policy", "repeat")
)


@dataclass(frozen=True, kw_only=True)
class EngineJobs(Record):
    """An engine configuration with all that runs inside its process."""

    engine: EngineOptions
    jobs: tuple[Job, ...]


@dataclass(frozen=True, kw_only=True)
class JobOutcome:
    """What became of a job; `error` is None when its recording is complete."""

    name: str
    path: Path
    error: str | None
    skipped: bool = False


def load_plan(path: Path, *, power_hz: float | None = None) -> list[EngineJobs]:
    """Read a plan; `power_hz` stands instead of its own. Raises UsageError naming the field."""
    try:
        data = plain_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UsageError(f"{path}: not YAML ({error})") from None
    if not isinstance(data, dict) or not data.get("engines"):
        raise UsageError(f"{path}: needs a list named engines (see docs/record.md)")
    allowed = {*RUN_FIELDS, "repeats", "engines", "policies"}
    if unknown := data.keys() - allowed:
        raise UsageError(
            f"{path}: no field {sorted(unknown)[0]!r}, only {', '.join(sorted(allowed))}"
        )
    plan = list(_engines(data if power_hz is None else data | {"power_hz": power_hz}, path))
    names = Counter(job.name for group in plan for job in group.jobs)
    if doubled := [name for name, count in names.items() if count > 1]:
        raise UsageError(f"{path}: the plan holds {min(doubled)} twice")
    return plan


def _engines(data: Mapping[str, Any], path: Path) -> Iterator[EngineJobs]:
    run = {name: data[name] for name in RUN_FIELDS if data.get(name) is not None}
    budgets = run.get("budget_checkpoints", [])
    counts = isinstance(budgets, list) and all(type(each) is int and each > 0 for each in budgets)
    if not counts:
        raise UsageError(f"{path}: budget_checkpoints must be a list of token counts")
    run["budget_checkpoints"] = tuple(budgets)
    if run.get("verifier") not in (None, *VERIFIERS):
        raise UsageError(
            f"{path}: no verifier {run['verifier']!r}. Choose one of {', '.join(VERIFIERS)}"
        )
    _check_kinds(Job, run, str(path))
    repeats = 1 if data.get("repeats") is None else data["repeats"]
    if type(repeats) is not int:
        raise UsageError(f"{path}: repeats must be a whole number, not {repeats}")
    for name, least in _LEAST.items():
        if (value := data.get(name)) is not None and value < least:
            raise UsageError(f"{path}: {name} must be at least {least}, not {value}")
        if value is not None and value >= 1 << 63:
            raise UsageError(f"{path}: {name} must be below 2^63, not {value}")
    if run.get("timeout_s", 1) <= 0:
        raise UsageError(f"{path}: timeout_s must be above 0, not {run['timeout_s']}")
    if repeats > MOST_REPEATS:
        raise UsageError(f"{path}: repeats must be at most {MOST_REPEATS:,}")
    for number, entry in enumerate(_list(data["engines"], f"{path}: engines"), 1):
        where = f"{path}, engine {number}"
        if "model" not in entry:
            raise UsageError(f"{where}: needs a model")
        policies = entry.get("policies", data.get("policies"))
        if not policies:
            raise UsageError(f"{where}: needs policies, here or for the whole plan")
        policies = _list(policies, f"{where}: policies")
        settings = {name: value for name, value in entry.items() if name != "policies"}
        for one in _grid(settings):
            engine = _build(EngineOptions, one, where)
            chosen = [_policy(p, where) for raw in policies for p in _grid(raw)]
            jobs = [
                Job(name=_job_name(engine, policy, repeat), policy=policy, repeat=repeat, **run)
                for repeat in range(repeats)
                for policy in chosen
            ]
            yield EngineJobs(engine=engine, jobs=tuple(jobs))


def _list(value: Any, where: str) -> list[Mapping[str, Any]]:
    if isinstance(value, list) and all(isinstance(each, Mapping) for each in value):
        return value
    raise UsageError(f"{where} must be a list of settings (see docs/record.md)")


def _grid(settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    lists = {name: value for name, value in settings.items() if isinstance(value, list)}
    for choice in product(*lists.values()):
        yield {**settings, **dict(zip(lists, choice, strict=True))}


def _check_kinds(kind: type[Any], given: Mapping[str, Any], where: str) -> None:
    """Raise UsageError for a value of another kind than its field."""
    for name, value in given.items():
        if (words := misfit(kind, name, value)) is not None:
            raise UsageError(f"{where}: {name} must be {words}, not {str(value)[:60]}")


def _build(kind: type[Any], fields: Mapping[str, Any], where: str) -> Any:
    names = kind.__dataclass_fields__
    if unknown := fields.keys() - names.keys():
        raise UsageError(
            f"{where}: no {kind.__name__} field {sorted(unknown)[0]!r}, only {', '.join(names)}"
        )
    _check_kinds(kind, fields, where)
    drafts = fields.get("speculative")
    if drafts is not None:
        if not isinstance(drafts, Mapping) or not {*DRAFTS} <= drafts.keys():
            raise UsageError(f"{where}: speculative must have {' and '.join(DRAFTS)}")
        _check_kinds(Speculative, drafts, f"{where}: speculative")
    try:
        return kind.from_json(fields)
    except (UsageError, TypeError, ValueError) as error:
        raise UsageError(f"{where}: {error}") from None


def _policy(fields: Mapping[str, Any], where: str) -> Policy:
    if fields.get("temperature", 0.0) is None:
        raise UsageError(
            f"{where}: temperature is not known, as outcomes lack it. Give the one with "
            "which they were drawn"
        )
    _check_kinds(
        Policy, {name: value for name, value in fields.items() if value is not None}, where
    )
    try:
        return make_policy(fields)
    except (UsageError, TypeError, ValueError) as error:
        raise UsageError(f"{where}: {error}") from None


def _job_name(engine: EngineOptions, policy: Policy, repeat: int) -> str:
    """A folder name that a person can read, with a hash that tells look-alikes apart."""
    label = f"{engine.label()} {policy.label()} t{policy.temperature:g}"
    plain = "".join(c if c.isalnum() or c in ".-@" else "-" for c in label)
    plain = plain.encode()[:_LONGEST_LABEL].decode(errors="ignore")
    suffix = f"-r{repeat}" if repeat else ""
    return f"{plain}-{engine.key()[2:6]}{policy.key()[2:6]}{suffix}"


_LONGEST_LABEL = 150  # bytes of a folder's name, which may have 255


Listener = Callable[[Mapping[str, Any]], None]
Runner = Callable[[Sequence[EngineJobs], Path, Listener], list[JobOutcome]]


def run_plan(
    plan: Sequence[EngineJobs],
    folder: Path,
    *,
    on_line: Listener = lambda line: None,
    runner: Runner | None = None,
) -> list[JobOutcome]:
    """Run what is not finished yet; returns an outcome per job.

    `on_line` hears of progress: {"job", "done", "total"} and {"job", "state"}. A job that fails
    leaves its error in `<folder>/failures.jsonl` and the rest goes on. `runner` runs engines
    elsewhere than in processes of this machine, one at a time. Raises UsageError for a workload
    that cannot be read, and where a finished recording in the folder is of another workload or
    load than the plan's.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"-o {folder}: cannot be written ({error.strerror})") from None
    outcomes: list[JobOutcome] = []
    missing: list[EngineJobs] = []
    hash_of = cache(lambda **posed: load_workload(**posed).facts(None).hash)  # reads a file once
    for group in plan:
        left = []
        for job in group.jobs:
            path = folder / job.name
            if finished(path):
                _check_same(path, job, hash_of(**job.posed))
                outcomes.append(JobOutcome(name=job.name, path=path, error=None, skipped=True))
                on_line({"job": job.name, "state": "skipped"})
            else:
                hash_of(**job.posed)
                set_aside(path)
                left.append(job)
        if left:
            missing.append(EngineJobs(engine=group.engine, jobs=tuple(left)))
    outcomes += (runner or run_here)(missing, folder, on_line) if missing else []
    for outcome in outcomes:
        if outcome.error is not None:
            line = {"time": now_ns(), "job": outcome.name, "error": outcome.error}
            with (folder / "failures.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
    return outcomes


def finished(path: Path) -> bool:
    """Whether a complete recording is there, of which some sample was answered."""
    from profiler.runs.record import errors_of_all

    if not (path / NAME).exists():
        return False
    try:
        return read_manifest(path).complete and not errors_of_all(path)
    except TtscopeError:
        return False


def _check_same(path: Path, job: Job, asked: str) -> None:
    """Raise UsageError where a finished recording is not what the job would record.

    `asked` is the hash of the job's workload.
    """
    manifest = read_manifest(path)
    kept = manifest.checkpoints
    forced = () if kept is None else (*kept.budgets, kept.samples)
    wanted = (*sorted(job.budget_checkpoints), min(job.checkpoint_samples, job.policy.n))
    alike = {
        "of another workload": manifest.workload is not None and manifest.workload.hash == asked,
        "with another concurrency": manifest.concurrency == job.concurrency,
        "without these budget_checkpoints and checkpoint_samples": (
            not job.budget_checkpoints or forced == wanted
        ),
        "without record_text": manifest.text_recorded or not job.record_text,
        "without logprobs": not job.logprobs or _has_logprobs(path),
    }
    if other := [words for words, same in alike.items() if not same]:
        raise UsageError(f"{path}: was recorded {' and '.join(other)}. Name another folder")


def _has_logprobs(path: Path) -> bool:
    ended = Recording.open(path).samples.filter(pl.col("finish_reason").is_in(["stop", "length"]))
    return not ended.height or ended["logprob_mean"].null_count() < ended.height


def run_here(plan: Sequence[EngineJobs], folder: Path, on_line: Listener) -> list[JobOutcome]:
    """Run engines on this machine, one after the other; a `Runner`."""
    outcomes = []
    for group in plan:
        on_line({"job": group.jobs[0].name, "state": "starting"})
        with contextlib.closing(engine_lines(group, folder)) as lines:
            for line in lines:
                on_line(line)
                if name := line.get("finished"):
                    outcomes.append(JobOutcome(name=name, path=folder / name, error=line["error"]))
    return outcomes


def engine_lines(group: EngineJobs, folder: Path) -> Generator[dict[str, Any]]:
    """Run jobs in a process of their own; gives what it says, with one `finished` for each job.

    Closing the iterator ends the process.
    """
    order = {"folder": str(folder), **group.to_json()}
    left = [job.name for job in group.jobs]
    log = folder / LOG
    with (
        log.open("ab") as stderr,
        subprocess.Popen(
            [sys.executable, "-P", "-m", "profiler.sweep.engine_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"},
        ) as process,
    ):
        try:
            assert process.stdin is not None and process.stdout is not None
            with contextlib.suppress(BrokenPipeError):  # it died at once; its log says why
                process.stdin.write(json.dumps(order).encode())
                process.stdin.close()
            for raw in process.stdout:
                line = json.loads(raw)
                if line.get("finished") in left:
                    left.remove(line["finished"])
                yield line
        except BaseException:
            process.terminate()
            raise
    died = f"the engine process ended with exit code {process.returncode}. See {log}"
    yield from ({"finished": name, "error": died} for name in left)


def set_aside(path: Path) -> None:
    """Move an unfinished recording out of the way: nothing of a user's is deleted."""
    if path.exists():
        target = path.with_name(f"{path.name}.incomplete-{now_ns() // 10**9}")
        path.replace(target)
