"""What `import ttscope` gives back: values of the packages that a notebook shows.

Each prints as its verb does, has parts of the report as HTML, and gives its numbers as rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from advisor.accuracy.counterfactual import Counterfactuals
from advisor.search.budget import parse_budget
from advisor.what_if.predict import Prediction, predict
from advisor.what_if.question import Question
from traces.deployment import checks
from traces.deployment.reports import measured_text, word_of
from traces.errors import UsageError
from traces.live.watched import Watched, runs_and_servers
from traces.recording import reader
from traces.recording.tables import TABLES
from traces.schema import advice
from traces.schema.advice import Budget
from traces.schema.estimate import Estimate
from traces.schema.formats import counted
from traces.schema.tts.parameters import meant
from traces.summary.comparison import Difference, beside, compare
from traces.summary.metrics import METRICS, estimate_of
from traces.summary.run import Run, summarise
from tui.options import AccountOptions, BudgetOptions, check_price, grouped, read_as
from tui.report.fronts import own_charts
from tui.report.markup import Html, cell, tag
from tui.report.material import Material
from tui.report.measured import recorded_runs, time_breakdown
from tui.report.verdict import reasons, verdict_alone
from tui.text.advice import advice_lines, cost_lines
from tui.text.blocks import Table
from tui.text.recordings.gate import gate_lines
from tui.text.recordings.live import watched_lines
from tui.text.recordings.show import (
    judged_policies,
    label,
    policies_lines,
    show_json,
    show_lines,
    show_policies_head,
)
from tui.text.replay import MOST_NOTES, replay_lines
from tui.verbs.replay import ReplayOptions, question_of

if TYPE_CHECKING:
    from advisor.advice.accounts.costs import Accounts
    from advisor.advice.accounts.efforts import EffortMap


def summed(recording: Recording, prices: Budget | None) -> Summary:
    """Sum up a recording, at a price of a device-hour or at one by type of device."""
    return Summary(*runs_and_servers(recording, price_of(recording, prices)))


def prices_of(price: Any) -> Budget | None:
    """Return what a price, or prices by type of device, are. Raises UsageError for what is none."""
    if price is None:
        return None
    if not isinstance(price, Mapping):
        check_price(read_as("price", price, float))
    return parse_budget({"price": prices(price)})


def price_of(recording: Recording, budget: Budget | None) -> float | None:
    """Return USD per device-hour of a recording's devices, None where it is not known."""
    if budget is None:
        return None
    gpus = {each.gpu for each in recording.manifest.engines.values()} or {None}
    found = {budget.price_of(gpu) for gpu in gpus}
    return found.pop() if len(found) == 1 else None


def prices(price: Any) -> list[str] | None:
    """Return prices as the command line has them."""
    if isinstance(price, Mapping):
        return [f"{name}={usd}" for name, usd in price.items()]
    several = price if isinstance(price, list | tuple) else [price]
    return None if price is None else [str(each) for each in several]


def compared(recordings: Sequence[Recording], prices: Budget | None = None) -> Compared:
    """Compare two recordings of one run each. Raises UsageError for others."""
    runs = [
        summarise(each, price_usd_per_device_hour=price_of(each, prices)) for each in recordings
    ]
    for recording, of_it in zip(recordings, runs, strict=True):
        if len(of_it) != 1:
            raise UsageError(f"{recording.path}: holds {len(of_it)} runs. Compare one with one")
    one, two = (run for (run,) in runs)
    return Compared([one, two], compare(one, two, beside(recordings)))


def path_of(recording: Any) -> Path:
    """Return where a recording lies. Raises UsageError for what is none."""
    if isinstance(recording, str | Path):
        return Path(recording)
    path = getattr(recording, "path", None)
    if not isinstance(path, Path):
        raise UsageError(f"{str(recording)[:60]}: is no recording. Give its path")
    return path


def replayed(given: dict[str, Any]) -> Replay:
    """Predict a run under changes, of the arguments of `ttscope.replay`."""
    changes = given.pop("changes") or {}
    if not isinstance(changes, Mapping):
        raise UsageError(
            'changes are given by name, such as {"engine.max_num_seqs": 8}, not as '
            f"{type(changes).__name__}"
        )
    texts = {k: v if isinstance(v, str) else _written(k, v) for k, v in changes.items()}
    learn = given["learn"]
    several = learn if isinstance(learn, list | tuple) else [learn] * (learn is not None)
    given["learn"] = [path_of(each) for each in several] or None
    for name in ("recording", "at_pace_of"):
        given[name] = None if given[name] is None else path_of(given[name])
    given["change"] = [f"{name}={text}" for name, text in texts.items()]
    solver = given.pop("solver")
    base, recorded, question, others = question_of(*grouped(given, ReplayOptions))
    return Replay(predict(base, recorded, question, others, solver=solver), question)


def _written(name: str, value: Any) -> str:
    """Return the value of a change as it is typed. Raises UsageError for what cannot be."""
    try:
        return json.dumps(value, default=lambda number: number.item())  # numpy's
    except (TypeError, ValueError, AttributeError):
        raise UsageError(f"{name}: {str(value)[:60]} is no value of a setting") from None


def recommended(budget: dict[str, Any]) -> Recommendation:
    """Recommend what to run for a budget, of the arguments of `ttscope.advise`."""
    from advisor.advice.accounts.costs import accounts_of
    from advisor.advice.accounts.efforts import efforts_of
    from advisor.advice.advisor import Advisor
    from advisor.advice.promise import check_folder, check_has_policy, write_config
    from tui.text.commands import here
    from tui.verbs.open_all import open_measured

    names = ("seed", "output", "recordings", "solver")
    seed, output, recordings, solver = (budget.pop(name) for name in names)
    several = recordings if isinstance(recordings, Iterable) else [recordings]
    paths = [path_of(each) for each in ([several] if isinstance(several, str) else several)]
    budget["price"] = prices(budget["price"])
    options, told = grouped(budget, BudgetOptions, AccountOptions)
    tariff = told.tariff()
    wanted = parse_budget(options.given())
    opened = open_measured(paths)
    folder = None if output is None else Path(output)
    if folder is not None:
        check_folder(folder)
        check_has_policy(opened, "output")
    advisor = Advisor.fit(
        opened,
        seed=read_as("seed", seed, int),
        gpus=options.systems(),
        power_cap_w=options.power_cap,
        solver=solver,
    )
    answer = advisor.recommend(wanted, **here())
    if folder is not None and answer.system_optimal is not None:
        write_config(folder, answer, advisor)
    return Recommendation(
        **vars(answer),
        costs=accounts_of(advisor, answer, tariff),
        efforts=efforts_of(advisor, opened, answer) if told.effort_map else None,
    )


class Recording(reader.Recording):
    """A recording on disk."""

    def __repr__(self) -> str:
        state = "" if self.complete else " (incomplete)"
        rows = [f"  {name:<10}{count:>10,}" for name, count in self._sizes()]
        return "\n".join([f"{self.path}{state}", *rows])

    def _repr_html_(self) -> str:
        rows = [(name, f"{count:,}") for name, count in self._sizes()]
        return cell(Table(heads=("table", "rows"), rows=rows, caption=str(self.path)))

    @property
    def notes(self) -> tuple[str, ...]:
        """What its import said of it, a sentence or two each."""
        events = self.frame("events")
        return tuple(events.filter(pl.col("kind") == "note")["detail"].drop_nulls())

    def _sizes(self) -> Iterator[tuple[str, int]]:
        yield from ((name, count) for name in TABLES if (count := self.rows(name)))

    def to_polars(self, table: str = "problems") -> pl.DataFrame:
        """Return one of its tables (docs/json.md). Raises UsageError for another."""
        if table not in TABLES:
            raise UsageError(f"no table {table!r}: {meant(str(table), list(TABLES))}")
        return self.frame(table)


@dataclass(frozen=True, repr=False)
class Summary:
    """The runs of a recording, and the servers that it watched."""

    runs: Sequence[Run]
    watched: Sequence[Watched]

    def __repr__(self) -> str:
        parts = [show_lines(self.runs)] if self.runs else []
        return "\n\n".join("\n".join(p) for p in [*parts, *map(watched_lines, self.watched)])

    def _repr_html_(self) -> str:
        parts = [recorded_runs(self.runs), time_breakdown(self.runs)] if self.runs else []
        return cell(*parts, *(tag("pre", "\n".join(watched_lines(w))) for w in self.watched))

    def to_polars(self) -> pl.DataFrame:
        """Return a row for each number of each run, with its 90 % interval and unit."""
        return _numbers((str(place), run) for place, run in enumerate(self.runs, 1))


@dataclass(frozen=True, repr=False)
class Compared:
    """Two runs of the same problems, and what the second changes."""

    runs: Sequence[Run]
    difference: Difference

    def __repr__(self) -> str:
        return "\n".join(show_lines(self.runs, self.difference))

    def _repr_html_(self) -> str:
        return cell(recorded_runs(self.runs), tag("pre", repr(self)))

    def to_json(self) -> dict[str, Any]:
        """Return the document of the verb."""
        return show_json(self.runs, self.difference)

    def to_polars(self) -> pl.DataFrame:
        """Return a row for each number: the second minus the first, and as a share of the first."""
        return _frame(
            ({"kind": kind, "verdict": change.verdict, "problems": change.problems},
             {change.metric.tag: estimate})
            for change in self.difference.changes
            for kind, estimate in (("difference", change.difference), ("relative", change.relative))
        )  # fmt: skip


@dataclass(frozen=True, repr=False)
class Policies:
    """What other policies would have given, for each run of a recording."""

    runs: Sequence[Run]
    judged: Sequence[Counterfactuals | str]

    @classmethod
    def of(cls, recording: Recording, k: Any, max_tokens: Any) -> Policies:
        """Judge the policies of a recording. Raises UsageError for what it cannot answer."""
        counts = None if k is None else read_as("k", k, list[int])
        most = None if max_tokens is None else read_as("max_tokens", max_tokens, int)
        runs = summarise(recording)
        return cls(
            runs, [judged_policies(recording, run, counts=counts, max_tokens=most) for run in runs]
        )

    def __repr__(self) -> str:
        pairs = zip(self.runs, self.judged, strict=True)
        lines = ["\n".join([*show_policies_head(r), "", *policies_lines(r, j)]) for r, j in pairs]
        return "\n\n".join(lines)

    def _repr_html_(self) -> str:
        return cell(tag("pre", repr(self)))

    def to_polars(self) -> pl.DataFrame:
        """Return a row for each number of each policy. Runs that say nothing have none."""
        return _frame(
            ({"run": str(place), "policy": label(each), "method": each.method, "n": each.n,
              "basis": each.basis, "bound": each.bound},
             {"accuracy": each.accuracy, "tokens_per_problem": each.tokens_per_problem,
              "fresh_run": each.fresh_run})
            for place, found in enumerate(self.judged, 1) if not isinstance(found, str)
            for each in found.outcomes
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, repr=False)
class Gate(checks.Gate):
    """A run held against a promise or an earlier run: `verdict`, `broken`, `checks`, `power`."""

    def __repr__(self) -> str:
        return "\n".join(gate_lines(self))

    def _repr_html_(self) -> str:
        rows = [(word_of(c), c.name, c.wanted, measured_text(c), c.why) for c in self.checks]
        head = f"{self.verdict}: {self.recording} against {self.against}"
        return cell(Table(heads=("", "check", "wanted", "measured", ""), rows=rows, caption=head))

    def to_polars(self) -> pl.DataFrame:
        """Return a row for each check; its numbers are absent where it was not measured."""
        rows = []
        for each in self.checks:
            row = {"check": each.name, "kind": each.kind, "verdict": each.verdict,
                   "wanted": each.wanted, "by_noise": each.by_noise}  # fmt: skip
            for name in ("value", "low", "high", "unit"):
                row[name] = getattr(each.measured, name, None)
            rows.append(row | {"why": each.why})
        return pl.DataFrame(rows, infer_schema_length=None)


@dataclass(frozen=True, repr=False)
class Replay:
    """A run as recorded, as replayed, and as predicted for the question."""

    prediction: Prediction
    question: Question

    def __repr__(self) -> str:
        return "\n".join(replay_lines(self.prediction, self.question))

    def _repr_html_(self) -> Html:
        names, runs = zip(*self._runs(), strict=True)
        listed = [tag("li", note) for note in self.prediction.notes]
        first, rest = tag("ul", *listed[:MOST_NOTES]), listed[MOST_NOTES:]
        more = _folded(f"{counted(len(rest), 'more note')}", tag("ul", *rest)) if rest else None
        return cell(recorded_runs(runs, names), first if listed else None, more)

    def _runs(self) -> Iterator[tuple[str, Run]]:
        for name in ("recorded", "replayed", "predicted"):
            if (run := getattr(self.prediction, name)) is not None:
                yield name, run

    def to_polars(self) -> pl.DataFrame:
        """Return a row for each number, `run` being recorded, replayed or predicted."""
        return _numbers(self._runs())

    def write(self, folder: str | Path) -> Recording:
        """Keep the predicted run as a recording, and open that."""
        self.prediction.write(Path(folder))
        return Recording.open(folder)


@dataclass(frozen=True, kw_only=True, repr=False)
class Recommendation(advice.Recommendation):
    """What to run for a budget, what it costs, and which effort to use where that was asked."""

    costs: Accounts | None = None
    efforts: EffortMap | None = None

    def __repr__(self) -> str:
        costs = [] if self.costs is None else cost_lines(self, self.costs)
        return "\n".join([*advice_lines(self, explain=True), *costs])

    def _repr_html_(self) -> Html:
        material = Material(runs=(), advice=self, accounts=self.costs, efforts=self.efforts)
        more = _folded("Why, and what to measure next", reasons(self))
        return cell(verdict_alone(material), own_charts(self), more)

    def to_polars(self) -> pl.DataFrame:
        """Return a row for each number of the two picks and of the front of accuracy."""
        picks = {"system-optimal": self.system_optimal, "compute-optimal": self.compute_optimal}
        picks |= {f"front {place}": pick for place, pick in enumerate(self.pareto, 1)}
        return _frame(
            ({"pick": name, "model": pick.engine.model, "engine": pick.engine.label(),
              "policy": pick.policy.label_with_temperature()}, pick.estimates)
            for name, pick in picks.items() if pick is not None
        )  # fmt: skip


def _folded(title: str, content: Html) -> Html:
    return tag("details", tag("summary", title), content)


def _numbers(runs: Iterable[tuple[str, Run]]) -> pl.DataFrame:
    return _frame(
        ({"run": name, "recording": run.recording, "model": run.engine.model,
          "engine": run.engine.label(), "policy": run.policy and run.policy.label()},
         {metric.tag: estimate_of(run, metric.tag) for metric in METRICS})
        for name, run in runs
    )  # fmt: skip


def _frame(of: Iterable[tuple[dict[str, Any], Mapping[str, Estimate | None]]]) -> pl.DataFrame:
    names = ("value", "low", "high", "of", "unit", "extrapolated")
    return pl.DataFrame(
        [
            {**head, "metric": metric, **{name: getattr(estimate, name) for name in names}}
            for head, estimates in of
            for metric, estimate in estimates.items()
            if estimate is not None
        ],
        infer_schema_length=None,
    )
