"""What `import ttscope` gives back: values of the packages that a notebook shows.

Each prints as its verb does, has the report's tables as HTML, and gives its numbers as rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from advisor.what_if.predict import Prediction
from advisor.what_if.question import Question
from traces.errors import UsageError
from traces.live.watched import Watched
from traces.recording import reader
from traces.recording.tables import TABLES
from traces.schema import advice
from traces.schema.estimate import Estimate
from traces.schema.tts.parameters import meant
from traces.summary.metrics import METRICS, estimate_of
from traces.summary.run import Run
from tui.report.markup import Html, join, table, tag
from tui.report.material import Material
from tui.report.measured import recorded_runs, time_breakdown
from tui.report.verdict import verdict
from tui.text.advice import advice_lines, cost_lines
from tui.text.recordings.live import watched_lines
from tui.text.recordings.show import show_lines
from tui.text.replay import replay_lines

if TYPE_CHECKING:
    from advisor.advice.accounts.costs import Accounts
    from advisor.advice.accounts.efforts import EffortMap


class Recording(reader.Recording):
    """A recording on disk."""

    def __repr__(self) -> str:
        state = "" if self.complete else " (incomplete)"
        rows = [f"  {name:<10}{count:>10,}" for name, count in self._sizes()]
        return "\n".join([f"{self.path}{state}", *rows])

    def _repr_html_(self) -> str:
        rows = [(name, f"{count:,}") for name, count in self._sizes()]
        return table(("table", "rows"), rows, caption=str(self.path))

    @property
    def notes(self) -> tuple[str, ...]:
        """What its import said of it, a sentence or two each."""
        events = self.frame("events")
        return tuple(events.filter(pl.col("kind") == "note")["detail"].drop_nulls())

    def _sizes(self) -> Iterator[tuple[str, int]]:
        yield from ((name, count) for name in TABLES if (count := self.rows(name)))

    def to_polars(self, table: str = "problems") -> pl.DataFrame:
        """Return one of its tables (docs/recording-format.md). Raises UsageError for another."""
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
        return join([*parts, *(tag("pre", "\n".join(watched_lines(w))) for w in self.watched)])

    def to_polars(self) -> pl.DataFrame:
        """Return a row for each number of each run, with its 90 % interval and unit."""
        return _numbers((str(place), run) for place, run in enumerate(self.runs, 1))


@dataclass(frozen=True, repr=False)
class Replay:
    """A run as recorded, as replayed, and as predicted for the question."""

    prediction: Prediction
    question: Question

    def __repr__(self) -> str:
        return "\n".join(replay_lines(self.prediction, self.question))

    def _repr_html_(self) -> Html:
        return recorded_runs([run for _, run in self._runs()])

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
        return verdict(material)

    def to_polars(self) -> pl.DataFrame:
        """Return a row for each number of the two picks and of the front of accuracy."""
        picks = {"system-optimal": self.system_optimal, "compute-optimal": self.compute_optimal}
        picks |= {f"front {place}": pick for place, pick in enumerate(self.pareto, 1)}
        return _frame(
            ({"pick": name, "model": pick.engine.model, "engine": pick.engine.label(),
              "policy": pick.policy.label_with_temperature()}, pick.estimates)
            for name, pick in picks.items() if pick is not None
        )  # fmt: skip


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
