"""ttscope in a notebook or a script: recordings in, summaries, replays and advice out.

Each answer prints as its verb does, shows the report's tables in a notebook, and gives its rows by
`to_polars`. Options have the names of the command line (docs/python.md). Every function raises
`traces.errors.TtscopeError` where its verb ends with a message. Nothing heavy is imported before
it is needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from traces.recording import reader
    from tui.notebook import Recommendation, Recording, Replay, Summary

__all__ = ["advise", "attach", "import_files", "open", "record", "replay", "show"]


def open(path: str | Path) -> Recording:
    """Open the recording in a folder."""
    from tui.notebook import Recording

    return Recording.open(_path(path))


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


def show(recording: reader.Recording | str | Path, *, price: float | None = None) -> Summary:
    """Sum up a recording; with a price (USD per device-hour) also its cost."""
    from traces.live.watched import runs_and_servers
    from tui.notebook import Summary
    from tui.options import check_price, read_as

    price = None if price is None else read_as("price", price, float)
    check_price(price)
    return Summary(*runs_and_servers(open(_path(recording)), price))


def replay(
    recording: reader.Recording | str | Path,
    changes: Mapping[str, Any] | None = None,
    **options: Any,
) -> Replay:
    """Predict a run under changes: `replay(run, {"engine.max_num_seqs": 8}, rate="2/s")`.

    Raises UsageError for changes that are no mapping, and as the verb does.
    """
    from advisor.what_if.predict import predict
    from traces.errors import UsageError
    from tui.notebook import Replay
    from tui.options import grouped
    from tui.verbs.replay import ReplayOptions, question_of

    if not isinstance(changes or {}, Mapping):
        raise UsageError(
            'changes are given by name, such as {"engine.max_num_seqs": 8}, not as '
            f"{type(changes).__name__}"
        )
    texts = {k: v if isinstance(v, str) else _written(k, v) for k, v in (changes or {}).items()}
    options["recording"] = _path(recording)
    options["change"] = [f"{name}={text}" for name, text in texts.items()]
    base, recorded, question, others = question_of(*grouped(options, ReplayOptions))
    return Replay(predict(base, recorded, question, others), question)


def advise(
    recordings: reader.Recording | str | Path | Iterable[reader.Recording | str | Path],
    *,
    seed: int = 0,
    output: str | Path | None = None,
    **budget: Any,
) -> Recommendation:
    """Recommend what to run for a budget: `advise("runs", min_accuracy=0.75)`.

    A path may be a folder of recordings. Incomplete and predicted recordings are left out. Where
    something fits, serve.sh, policy.json and expect.json are written into the folder `output`.
    With `effort_map=True` the answer has `efforts`. Its `costs` hold those of `kwh_price`, `pue`
    and `api_price` too.
    """
    from advisor.advice.accounts.costs import accounts_of
    from advisor.advice.accounts.efforts import efforts_of
    from advisor.advice.advisor import Advisor
    from advisor.advice.promise import check_folder, check_has_policy, write_config
    from advisor.search.budget import parse_budget
    from tui.notebook import Recommendation
    from tui.options import AccountOptions, BudgetOptions, grouped, read_as
    from tui.text.commands import here
    from tui.verbs.open_all import open_measured

    options, told = grouped(budget, BudgetOptions, AccountOptions)
    tariff = told.tariff()
    wanted = parse_budget(options.given())
    several = recordings if isinstance(recordings, Iterable) else [recordings]
    several = [several] if isinstance(several, str) else several
    opened = open_measured([_path(each) for each in several])
    folder = None if output is None else Path(output)
    if folder is not None:
        check_folder(folder)
        check_has_policy(opened, "output")
    advisor = Advisor.fit(opened, seed=read_as("seed", seed, int), gpus=options.systems())
    answer = advisor.recommend(wanted, **here())
    if folder is not None and answer.system_optimal is not None:
        write_config(folder, answer, advisor)
    return Recommendation(
        **vars(answer),
        costs=accounts_of(advisor, answer, tariff),
        efforts=efforts_of(advisor, opened, answer) if told.effort_map else None,
    )


def _path(recording: reader.Recording | str | Path) -> Path:
    """Return where a recording lies. Raises UsageError for what is none."""
    if isinstance(recording, str | Path):
        return Path(recording)
    path = getattr(recording, "path", None)
    if not isinstance(path, Path):
        from traces.errors import UsageError

        raise UsageError(f"{str(recording)[:60]}: is no recording. Give its path")
    return path


def _written(name: str, value: Any) -> str:
    """Return the value of a change as it is typed. Raises UsageError for what cannot be."""
    from traces.errors import UsageError

    try:
        return json.dumps(value, default=lambda number: number.item())  # numpy's
    except (TypeError, ValueError, AttributeError):
        raise UsageError(f"{name}: {str(value)[:60]} is no value of a setting") from None
