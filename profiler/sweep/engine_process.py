"""The child process of a sweep: one engine, its jobs one after the other.

The order comes as JSON on stdin, progress goes as JSON lines to the stdout it was given; whatever
the engine and its libraries print goes to stderr.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, TextIO

from profiler.engines.interface import Engine
from profiler.engines.start import start_engine
from profiler.runs.record import check_answered, record
from profiler.sweep.plan import EngineJobs, Job
from profiler.workload.problems import load_workload
from traces.errors import TtscopeError

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def claim_stdout() -> TextIO:
    """Return the real stdout and send everything else that is printed to stderr."""
    mine = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return mine


def end_with_parent() -> None:
    """Have Linux send SIGTERM when who started this dies, so that no engine keeps a GPU."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def main() -> int:
    """Run the order on stdin; exits 1 when the engine cannot start."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # closes recordings as incomplete
    for number in (signal.SIGINT, signal.SIGHUP):  # they are for the parent, which sends SIGTERM
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()
    out = claim_stdout()

    def say(line: dict[str, Any]) -> None:
        out.write(json.dumps(line) + "\n")

    order = json.loads(sys.stdin.read())
    group, folder = EngineJobs.from_json(order), Path(order["folder"])
    budgets = any(job.policy.thinking_token_budget is not None for job in group.jobs)
    try:
        engine = start_engine(group.engine, thinking_budget=budgets)
    except TtscopeError as error:
        for job in group.jobs:
            say({"finished": job.name, "error": str(error)})
        return 1
    try:
        for job in group.jobs:
            say({"finished": job.name, "error": _run(job, engine, folder, say)})
    finally:
        engine.close()
    return 0


def _run(job: Job, engine: Engine, folder: Path, say: Any) -> str | None:
    try:
        record(
            load_workload(**job.posed),
            job.policy,
            engine,
            folder / job.name,
            concurrency=job.concurrency,
            timeout_s=job.timeout_s,
            logprobs=job.logprobs,
            budget_checkpoints=job.budget_checkpoints,
            checkpoint_samples=job.checkpoint_samples,
            record_text=job.record_text,
            power_hz=job.power_hz,
            progress=lambda done, total: say({"job": job.name, "done": done, "total": total}),
        )
        check_answered(folder / job.name, engine)
    except TtscopeError as error:
        return str(error)
    return None


if __name__ == "__main__":
    sys.exit(main())
