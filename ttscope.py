"""ttscope in a notebook or a script: recordings in, summaries, replays and advice out.

Each answer prints as its verb does, shows the report's tables in a notebook, and gives its rows by
`to_polars`. Options have the names of the command line (docs/python.md). Every function raises
`TtscopeError` where its verb ends with a message. Nothing heavy is imported before
it is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traces.errors import TtscopeError

if TYPE_CHECKING:
    from typing import TypeAlias

    from traces.recording import reader
    from tui.notebook import Compared, Gate, Policies, Recommendation, Recording, Replay, Summary

    Source: TypeAlias = reader.Recording | str | Path
    Price: TypeAlias = float | str | Mapping[str, float]

__all__ = [
    "TtscopeError", "advise", "attach", "compare", "gate", "import_files", "open",
    "policies", "record", "replay", "show",
]  # fmt: skip


def __getattr__(name: str) -> str:  # the package's metadata take a while to read
    if name != "__version__":
        raise AttributeError(f"module 'ttscope' has no attribute {name!r}")
    from traces.errors import installed

    return installed("ttscope") or "unknown"


def open(path: Source) -> Recording:
    """Open the recording in a folder."""
    from tui.notebook import Recording, path_of

    return Recording.open(path_of(path))


def record(output: str | Path, **options: Any) -> Recording:
    """Run a workload on vLLM: `record("runs/s", model="demo/s", n=8)`."""
    from tui.options import RuleOptions, Sampling, grouped
    from tui.verbs.record import Ask, Keep, run_workload

    options["output"] = output
    return open(run_workload(*grouped(options, Ask, Sampling, RuleOptions, Keep)))


def attach(*urls: str, output: str | Path, **options: Any) -> Recording:
    """Watch servers for `duration`, or while a `workload` is sent to them."""
    from tui.options import Sampling, Watch, grouped
    from tui.verbs.attach import Judging, MethodRules, Pose, watch_servers

    options |= {"urls": list(urls), "output": output}
    return open(watch_servers(*grouped(options, Watch, Pose, Sampling, MethodRules, Judging))[0])


def import_files(*files: str | Path, output: str | Path, **options: Any) -> Recording:
    """Make a recording of profiler traces, samples, requests or forward passes."""
    from tui.options import grouped
    from tui.verbs import import_export

    options |= {"files": list(files), "output": output}
    import_export.import_files(*grouped(options, import_export.Import))
    return open(output)


def show(
    recording: Source, other: Source | None = None, *, price: Price | None = None
) -> Summary | Compared:
    """Sum up a recording, or compare two of the same problems: `show(before, after)`.

    With a price (USD per device-hour, or by type as `{"H100": 2.5}`) it has the cost.
    """
    from tui.notebook import compared, prices_of, summed

    at = prices_of(price)  # which is read first
    if other is None:
        return summed(open(recording), at)
    return compared([open(each) for each in (recording, other)], at)


def policies(
    recording: Source, *, k: Sequence[int] | None = None, max_tokens: int | None = None
) -> Policies:
    """Judge policies that a recording's samples contain and that were never run."""
    from tui.notebook import Policies

    return Policies.of(open(recording), k, max_tokens)


def gate(
    against: Source, recording: Source, *, fail_on: Sequence[str] = (), price: float | None = None
) -> Gate:
    """Hold a recording against another, or against an expect.json: `gate(before, after).broken`."""
    from tui.notebook import Gate, path_of
    from tui.options import grouped
    from tui.verbs.gate import GateOptions, judged

    limits = [fail_on] if isinstance(fail_on, str) else list(fail_on)
    named = {"against": path_of(against), "recording": path_of(recording), "price": price}
    (asked,) = grouped({**named, "fail_on": limits or None}, GateOptions)
    return Gate(**vars(judged(asked)))


def replay(
    recording: Source,
    changes: Mapping[str, Any] | None = None,
    *,
    learn: Sequence[Source] | None = None,
    run: int | None = None,
    seed: int | None = None,
    rate: str | float | None = None,
    concurrency: int | None = None,
    replicas: int | None = None,
    routing: str | None = None,
    together: bool | None = None,
    gpu: str | Sequence[str] | None = None,
    tables: str | Path | None = None,
    measured: str | Sequence[str] | None = None,
    model_config: str | Path | None = None,
    operators: str | Path | None = None,
    num_hidden_layers: int | None = None,
    collectives: str | Path | None = None,
    solver: Any = None,
) -> Replay:
    """Predict a run under changes: `replay(run, {"engine.max_num_seqs": 8}, rate="2/s")`.

    A `solver` is another regression for step times (docs/step-time.md). Raises UsageError for
    changes that are no mapping, and as the verb does.
    """
    given = {**locals()}
    from tui.notebook import replayed

    return replayed(given)


def compare(
    recording: Source, a: Mapping[str, Any], b: Mapping[str, Any], *, price: Price | None = None,
    **options: Any,
) -> Compared:  # fmt: skip
    """Compare two replays of a recording: `compare(run, {"policy.n": 8}, {"policy.n": 16})`."""
    from tempfile import TemporaryDirectory

    from tui.notebook import compared, prices_of

    at = prices_of(price)
    with TemporaryDirectory(prefix="ttscope-") as folder:
        kept = [replay(recording, each, **options).write(Path(folder) / name)
                for name, each in (("a", a), ("b", b))]  # fmt: skip
        return compared(kept, at)


def advise(
    recordings: Source | Iterable[Source],
    *,
    seed: int = 0,
    output: str | Path | None = None,
    max_latency: str | float | None = None,
    percentile: str | int | None = None,
    min_accuracy: str | float | None = None,
    max_cost: str | None = None,
    max_energy: str | None = None,
    gpus: int | None = None,
    rate: str | float | None = None,
    price: Price | Sequence[str] | None = None,
    optimise: str | None = None,
    confidence: str | float | None = None,
    gpu: str | Sequence[str] | None = None,
    tables: str | Path | None = None,
    effort_map: bool | None = None,
    kwh_price: float | None = None,
    pue: float | None = None,
    api_price: float | None = None,
    solver: Any = None,
) -> Recommendation:
    """Recommend what to run for a budget: `advise("runs", min_accuracy=0.75)`.

    A path may be a folder of recordings. Incomplete and predicted recordings are left out. Where
    something fits, serve.sh, policy.json and expect.json are written into the folder `output`.
    With `effort_map=True` the answer has `efforts`. Its `costs` hold those of `kwh_price`, `pue`
    and `api_price` too. A price may be by type: `{"H100": 2.5}`. A `solver` is another regression
    for step times (docs/step-time.md).
    """
    given = {**locals()}
    from tui.notebook import recommended

    return recommended(given)
