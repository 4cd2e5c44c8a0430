"""What the page is made of: runs as `show` has them, advice as `advise`, and runs foretold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from traces.errors import TtscopeError
from traces.live.watched import Watched, only_watched, runs_and_servers
from traces.recording.reader import Recording
from traces.schema.advice import Recommendation
from traces.schema.formats import counted
from traces.summary.run import Run, at_price

if TYPE_CHECKING:
    from advisor.advice.accounts.costs import Accounts, Tariff
    from advisor.advice.accounts.efforts import EffortMap
    from advisor.advice.advisor import Advisor
    from advisor.what_if.left_out import Foretold
    from advisor.what_if.suggest import Suggestion

MOST_SUGGESTED = 4  # live recordings: each takes two replays
MOST_FORETOLD = 40  # recordings: each takes a fit and three replays
NO_STEPS = (
    "no recording holds engine steps, from which times are learned. Imported outcomes have none"
)
BY_TABLES = "--gpu h100_sxm takes them from operator tables"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Material:
    """All that the page tells; where a part is None or empty, the reason stands beside it.

    `left_out` are recordings that the advice does not rest on: incomplete, without problems, or
    predicted by a replay. `suggested` are the replays to run next, by a live recording's path.
    `command` made the page, at `written`. The runs were recorded on `machines`, from `begun` on.
    """

    runs: tuple[Run, ...]
    watched: tuple[Watched, ...] = ()
    advice: Recommendation | None = None
    accounts: Accounts | None = None
    efforts: EffortMap | None = None
    no_advice: str | None = None
    foretold: tuple[Foretold, ...] = ()
    not_foretold: str | None = None
    left_out: tuple[str, ...] = ()
    suggested: Mapping[str, Suggestion | str] = field(default_factory=dict)
    machines: tuple[str, ...] = ()
    begun: datetime | None = None
    command: str | None = None
    written: datetime | None = None

    @property
    def of_live(self) -> bool:
        """Whether the page tells what limits servers, and not which configuration to run."""
        return bool(self.watched) and (self.advice is None or not self.advice.budget.required)


def gather_material(
    recordings: Sequence[Recording],
    given: Mapping[str, Any],
    *,
    seed: int,
    systems: Sequence[str] = (),
    power_cap_w: float | None = None,
    tariff: Tariff | None = None,
    efforts: bool = False,
    progress: Progress | None = None,
    command: str | None = None,
) -> Material:
    """Summarise the recordings, ask for advice, and foretell each run from the others.

    `given` are the options of `ttscope advise`, `systems` of the prior are offered too, whose
    boards may draw `power_cap_w`. With a `tariff` the picks' costs are worked out, with `efforts`
    which of them to use. Raises UsageError for a budget that is not understood, or that limits what
    was not measured.
    """
    from advisor.search.budget import Prices, parse_budget

    budget = parse_budget(given)
    if systems:
        from advisor.step_time.prior.relatives import read_gpu

        for system in systems:  # a wrong name is an error, not a page without advice
            read_gpu(system)
    report = progress or (lambda what, done, whole: None)
    watched: list[Watched] = []
    runs: list[Run] = []
    for number, recording in enumerate(recordings):
        report("reading", number, len(recordings))
        fresh = recording.afresh()  # its tables are read once, and go with it
        of_recording, servers = runs_and_servers(fresh, budget.price_usd_per_device_hour)
        watched += servers
        runs += [
            replace(  # the page shows no rows
                at_price(run, Prices(budget, None).of_run(run)),
                rows=None,
                sample_rows=None,
                step_rows=None,
            )
            for run in of_recording
        ]
    posed = {run.recording for run in runs if run.problems or run.curve is not None}
    posed |= {each.recording for each in watched if each.numbers is not None}
    posed |= {each.name for each in recordings if only_watched(each) and not each.rows("scrapes")}
    complete = [
        each
        for each in recordings
        if each.complete and each.name in posed and each.replay_of is None
    ]
    report("advising", 0, 1)
    advisor, no_advice = _advisor(complete, runs, watched, seed, systems, power_cap_w)
    advice, accounts, mapped = None, None, None
    if advisor is not None:
        prices = advisor.prices(budget)  # one price for a device on all of the page
        runs = [at_price(run, prices.of_run(run)) for run in runs]
        from advisor.advice.accounts.costs import accounts_of
        from advisor.advice.accounts.efforts import efforts_of
        from tui.text.commands import here

        advice = advisor.recommend(budget, **here())
        accounts = None if tariff is None else accounts_of(advisor, advice, tariff)
        mapped = efforts_of(advisor, complete, advice) if efforts else None
    foretold, not_foretold = _foretold(complete, runs, report)
    begun = [each.manifest.clock_start.unix_ns for each in recordings]
    return Material(
        runs=tuple(runs),
        watched=tuple(watched),
        advice=advice,
        accounts=accounts,
        efforts=mapped,
        no_advice=no_advice,
        foretold=tuple(foretold),
        not_foretold=not_foretold,
        left_out=tuple(each.name for each in recordings if each not in complete),
        suggested=_suggested(recordings, watched, report),
        machines=tuple(dict.fromkeys(filter(None, map(_machine, recordings)))),
        begun=None if not begun else datetime.fromtimestamp(min(begun) / 1e9, UTC),
        command=command,
        written=None if command is None else datetime.now(UTC),
    )


def _machine(recording: Recording) -> str | None:
    """Return what a run was recorded on; None of what ran elsewhere, which does not tell."""
    made, engines = recording.manifest.provenance, recording.manifest.engines.values()
    gpus = [f"{each.num_devices} {each.gpu}" for each in engines if each.gpu is not None]
    if gpus or any(each.mode == "server" for each in engines) or not recording.rows("steps"):
        return " and ".join(dict.fromkeys(gpus)) or None
    cpu, count = made.get("cpu"), made.get("cpus")
    return None if not cpu else f"{cpu}, {counted(count, 'core')}" if count else str(cpu)


def _suggested(
    recordings: Sequence[Recording], watched: Sequence[Watched], report: Progress
) -> dict[str, Suggestion | str]:
    """Return the replay to run next for the recordings that were only watched."""
    names = {each.recording for each in watched if each.numbers is not None}
    live = [each for each in recordings if each.name in names][:MOST_SUGGESTED]
    if not live:
        return {}
    from advisor.what_if.suggest import suggest

    suggested = {}
    for number, recording in enumerate(live):
        report("what to change", number, len(live))
        suggested[str(recording.path)] = suggest(recording)
    return suggested


def _advisor(
    recordings: Sequence[Recording],
    runs: Sequence[Run],
    watched: Sequence[Watched],
    seed: int,
    systems: Sequence[str],
    power_cap_w: float | None,
) -> tuple[Advisor | None, str | None]:
    from advisor.advice.advisor import Advisor

    if not recordings:
        return None, (
            "no measured recording is complete and holds answered problems. Record to the end"
        )
    if not systems and not watched and not any(run.steps for run in runs):
        judged = any(run.accuracy is not None for run in runs)
        return None, f"{NO_STEPS}. {BY_TABLES}" if judged else NO_STEPS
    try:
        return Advisor.fit(recordings, seed=seed, gpus=systems, power_cap_w=power_cap_w), None
    except TtscopeError as error:
        return None, str(error)


def _foretold(
    recordings: Sequence[Recording], runs: Sequence[Run], report: Progress
) -> tuple[list[Foretold], str | None]:
    from advisor.what_if.left_out import foretell

    if len(recordings) < 2:
        return [], "it takes at least two complete recordings: each is predicted from the others"
    if not any(run.steps for run in runs):
        return [], NO_STEPS
    try:
        predictions = foretell(
            recordings[:MOST_FORETOLD],
            on_run=lambda done, whole: report("foretelling each run from the others", done, whole),
        )
    except TtscopeError as error:
        return [], str(error)
    return predictions, None
