"""Functions of `import ttscope` that take all options of their verb, for a notebook to complete."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import ttscope
from tui.options import RuleOptions, Sampling, Watch, grouped
from tui.verbs import import_export
from tui.verbs.attach import Judging, MethodRules, Pose, watch_servers
from tui.verbs.record import Ask, Keep, run_workload

Function = TypeVar("Function", bound=Callable[..., Any])
PRINTED = {"as_json"}  # what a verb prints is no option of a function


def _options(*groups: type[Any]) -> list[inspect.Parameter]:
    return [
        inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=None)
        for group in groups
        for each in fields(group)
        if each.name not in PRINTED
    ]


def _taking(options: list[inspect.Parameter]) -> Callable[[Function], Function]:
    """Return a decorator that names the options in a function's signature, in place of `**`."""

    def named(function: Function) -> Function:
        signature = inspect.signature(function)
        own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
        taken = {each.name for each in own}
        more = [each for each in options if each.name not in taken]
        function.__signature__ = signature.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
        return function

    return named


@_taking(_options(Ask, Sampling, RuleOptions, Keep))
def record(output: str | Path, **options: Any) -> ttscope.Recorded:
    """Run a workload on vLLM: `record("runs/s", model="demo/s", n=8)`."""
    options["output"] = output
    return ttscope.open(run_workload(*grouped(options, Ask, Sampling, RuleOptions, Keep)))


@_taking(_options(Watch, Pose, Sampling, MethodRules, Judging))
def attach(*urls: str, output: str | Path, **options: Any) -> ttscope.Recorded:
    """Watch servers for `duration`, or while a `workload` is sent to them."""
    options |= {"urls": list(urls), "output": output}
    watched, *_ = watch_servers(*grouped(options, Watch, Pose, Sampling, MethodRules, Judging))
    return ttscope.open(watched)


@_taking(_options(import_export.Import))
def import_files(*files: str | Path, output: str | Path, **options: Any) -> ttscope.Recorded:
    """Make a recording of profiler traces, samples, requests or forward passes."""
    options |= {"files": list(files), "output": output}
    import_export.import_files(*grouped(options, import_export.Import))
    return ttscope.open(output)


@_taking([each for each in inspect.signature(ttscope.replay).parameters.values()
          if each.name != "changes"])  # fmt: skip
def compare(
    recording: ttscope.Source,
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    *,
    price: ttscope.Price | None = None,
    **options: Any,
) -> ttscope.Comparison:
    """Compare two replays of a recording: `compare(run, {"policy.n": 8}, {"policy.n": 16})`."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory(prefix="ttscope-") as folder:
        one, other = (
            ttscope.replay(recording, each, **options).write(Path(folder) / name)
            for name, each in (("a", a), ("b", b))
        )
        return ttscope.show(one, other, price=price)  # type: ignore[return-value]
