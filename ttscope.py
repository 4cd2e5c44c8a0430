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
    from tui.verb_functions import attach, compare, import_files, record

    Source: TypeAlias = reader.Recording | str | Path
    Price: TypeAlias = float | str | Mapping[str, float]
    Recorded: TypeAlias = Recording
    Comparison: TypeAlias = Compared

__all__ = [
    "TtscopeError", "advise", "attach", "compare", "gate", "import_files", "open",
    "policies", "record", "replay", "show",
]  # fmt: skip


def __getattr__(name: str) -> Any:  # what takes a while to read
    if name == "__version__":
        from traces.errors import installed

        return installed("ttscope") or "unknown"
    if name not in __all__:
        raise AttributeError(f"module 'ttscope' has no attribute {name!r}")
    from tui import verb_functions

    return getattr(verb_functions, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


def open(path: Source) -> Recording:
    """Open the recording in a folder."""
    from tui.notebook import Recording, path_of

    return Recording.open(path_of(path))


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
    at_pace_of: Source | None = None,
    acceptance: str | None = None,
    run: int | None = None,
    seed: int | None = None,
    rate: str | float | None = None,
    concurrency: int | None = None,
    batch: int | None = None,
    agents: str | int | Sequence[int] | None = None,
    max_turn_latency: str | float | None = None,
    replicas: int | None = None,
    routing: str | None = None,
    together: bool | None = None,
    gpu: str | Sequence[str] | None = None,
    tables: str | Path | None = None,
    power_cap: float | None = None,
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
    power_cap: float | None = None,
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
