"""The Run screen without Textual: what is looked at, and what there is to draw of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from traces.schema.formats import number
from traces.summary.run import Run
from tui.screens.entries import Entry
from tui.screens.run.beside import Beside
from tui.screens.run.charts import (
    axis_line,
    beside_lanes,
    collective_line,
    draft_line,
    family_line,
    run_lanes,
    run_title,
    step_lines,
)
from tui.screens.run.data import RunData, StepPages, taken_ns
from tui.screens.run.playback import Goto, Playback
from tui.screens.run.problem import (
    ShownProblem,
    cut_at,
    problem_at,
    problem_in_flight,
    problem_title,
    same_problem,
    sample_rows,
    scale_of,
    stop_lines,
    vote_lines,
)
from tui.text.layout import clock, whole_parts, wrap
from tui.text.recordings.kernels import acceptance_lines, kernel_lines, what_if_lines
from tui.text.recordings.live import watched_lines
from tui.text.recordings.series import Timeline
from tui.text.recordings.show import energy_lines, policy_lines, warning_lines
from tui.widgets.lanes import Lane
from tui.widgets.sample_bars import Bars

if TYPE_CHECKING:
    from advisor.accuracy.stopping import Savings

ROUNDED_S = 0.05  # by which a time that was read off the screen may lie beyond the end
PAGES = ("problem", "kernels", "policies", "replay")
WIDE = 150  # from which a replay's samples stand beside the recorded ones
NO_KERNELS = "no kernels were profiled: record with --kernels M/N"
NO_REPLAY = (
    "nothing has been replayed: v replays this run, as recorded or with a change such as "
    "engine.max_num_seqs=8 policy.n=4"
)


class RunModel:
    """One run and where one looks in it; `data` comes later, from a worker."""

    def __init__(self, entry: Entry, rules: Sequence[str]) -> None:
        if entry.run is None:
            raise ValueError(f"{entry.key}: no run to show")
        self.entry, self.run = entry, entry.run
        # A copy: what replays read of it goes with the model.
        self.recording = None if entry.recording is None else replace(entry.recording)
        self.pages = StepPages(self.recording, entry.run)
        self.data: RunData | None = None
        self.unread = False  # whether the steps cannot be read
        self.play: Playback | None = None
        self.problem: ShownProblem | None = problem_at(self.run, 0)
        self.page = "problem"
        self.rules, self.rule = tuple(rules), 0
        self.judged: dict[str, Savings | str] = {}
        self.policies: Sequence[str] | None = None
        self.cut = False  # whether the problem is shown as it stood at the cursor
        self.beside: Beside | None = None
        policy = entry.run.policy
        self.most_samples = 1 if policy is None else policy.n
        self._other: tuple[Timeline, int] | None = None  # and how much later it begins

    # -- what is looked at ---------------------------------------------------------------------

    @property
    def timeline(self) -> Timeline | None:
        return None if self.data is None else self.data.timeline

    @property
    def is_reading(self) -> bool:
        """Whether the steps are still to come."""
        return self.data is None and not self.unread

    def show_data(self, data: RunData) -> None:
        self.data = data
        if data.timeline is not None:
            self.play = Playback.over(data.timeline.start_ns, data.timeline.end_ns)

    def show_beside(self, beside: Beside) -> None:
        """Show another run of the same problems beside this one, both from their first arrival."""
        self.beside, self._other = beside, None
        steps = beside.run.step_rows
        theirs = None if steps is None else Timeline.of(steps, beside.run.engine.num_gpu_blocks)
        begun = [_first_arrival(each) for each in (self.run, beside.run)]
        if theirs is None or self.play is None or None in begun:
            return
        later = int(begun[1] or 0) - int(begun[0] or 0)
        self._other = (theirs, later)
        if theirs.end_ns - later > self.play.end:
            self.play = Playback.over(self.play.start, theirs.end_ns - later)

    def move(self, columns: int, bins: int) -> None:
        if self.play is not None:
            self.play = self.play.move(columns, bins)

    def step_by(self, steps: int) -> None:
        """Move the cursor to the end of a step so many steps on."""
        timeline = self.timeline
        if self.play is None or timeline is None:
            return
        place = int(timeline.ends_ns.searchsorted(self.play.now, side="left")) + steps
        place = min(max(place, 0), timeline.ends_ns.size - 1)
        self.play = self.play.seek(int(timeline.ends_ns[place]))

    def tick(self, seconds: float) -> None:
        """Let time pass; the problem that is shown is one in flight."""
        if self.play is None:
            return
        self.play = self.play.tick(seconds)
        row = None if self.problem is None else self.problem.row
        now = self.play.now
        ended = row is None or (row["decided_at"] or row["end"] or 2**62) < now
        if ended or (row is not None and (row["arrival"] or 0) > now):
            newest = problem_in_flight(self.run, now)
            if newest is not None:
                self.problem = problem_at(self.run, newest)

    def go_to_problem(self, at: int) -> None:
        """Show the problem in a row of the run, as a whole; rows are counted round."""
        if self.run.rows is not None and self.run.rows.height:
            self.problem = problem_at(self.run, at % self.run.rows.height)
            self.cut, self.page = False, "problem"

    def slowest(self) -> int | None:
        return None if self.run.rows is None else self.run.rows["latency_s"].arg_max()

    def go_to(self, target: Goto) -> str | None:
        """Go to a problem, a step or a time; return why it cannot be where it cannot."""
        problems = 0 if self.run.rows is None else self.run.rows.height
        timeline = self.timeline
        if target.what == "problem":
            if not 1 <= target.number <= problems:
                return f"problem {target.number:,.0f}: there are {problems:,}"
            self.go_to_problem(int(target.number) - 1)
        elif timeline is None or self.play is None:
            return "no engine steps were recorded"
        elif target.what == "time":
            length = (self.play.end - self.play.start) / 1e9
            if target.number > length + ROUNDED_S:
                return f"time {clock(target.number)}: the run ends at {clock(length)}"
            self.play = self.play.seek(self.play.start + round(target.number * 1e9))
        else:
            steps = None if self.run.step_rows is None else self.run.step_rows["step"]
            at = None if steps is None else steps.search_sorted(int(target.number))
            if steps is None or at is None or at >= steps.len() or steps[at] != target.number:
                return f"step {target.number:,.0f}: was not recorded"
            place = int(timeline.positions.searchsorted(at))
            self.play = self.play.seek(int(timeline.ends_ns[min(place, timeline.ends_ns.size - 1)]))
        return None

    def show_time(self, what: str) -> None:
        """Zoom the charts to the problem, or to the whole."""
        if what == "whole" and self.play is not None:
            self.play = self.play.whole()
            return
        row = None if self.problem is None else self.problem.row
        if row is None or self.play is None or row["arrival"] is None:
            return
        end = row["decided_at"] or row["end"] or self.play.end
        self.play = self.play.show(row["arrival"], end)

    @property
    def position(self) -> int:
        """The step under the cursor as a row of the run's steps, -1 where there is none."""
        timeline = self.timeline
        return -1 if timeline is None or self.play is None else timeline.step_at(self.play.now)

    # -- what there is to draw -----------------------------------------------------------------

    def status(self) -> str:
        return "" if self.play is None else self.play.label()

    def head(self, width: int) -> list[str]:
        """Return what the run amounts to in a line, and the first of its warnings in another."""
        notes = warning_lines(self.run, 10_000)
        more = f"  ({len(notes)} notes: k)" if len(notes) > 1 else ""
        lines = [whole_parts(f"{self.entry.title}  {run_title(self.run)}", width)]
        if notes:
            text = notes[0]
            if len(text) + len(more) > width:
                more = more or "  (all: k)"
                text = f"{text[: width - len(more) - 1]}…"
            lines.append(text + more)
        return lines

    def charts(
        self, bins: int, *, tall: bool
    ) -> tuple[list[Lane], int | None, list[tuple[str, str]]]:
        """Return the lanes, the cursor's column, and styled lines for below them."""
        timeline = self.timeline
        if self.data is None:
            reading = "the steps cannot be read" if self.unread else "reading the steps ..."
            return [], None, [(reading, "")]
        if timeline is None or self.play is None:
            outside = self.run.engine.mode == "server" and self.run.imported is None
            why = ": the server was seen from outside" if outside else ""
            return [], None, [(f"no engine steps were recorded{why}", "")]
        play = self.play
        bins_of_run = timeline.bins(bins, play.left, play.right)
        cursor = play.column(bins)
        lanes = run_lanes(bins_of_run, self.data.watts(bins_of_run.edges_ns), tall=tall)
        if self._other is not None and self.beside is not None:
            theirs, later = self._other
            other = theirs.bins(bins, play.left + later, play.right + later)
            lanes = beside_lanes(bins_of_run, other, self.beside.word)
        row = None if self.problem is None else self.problem.row
        extent = None
        if row is not None and row["arrival"] is not None:
            extent = row["arrival"], row["decided_at"] or row["end"]
        axis = axis_line(play.start, bins_of_run.edges_ns, cursor, play.now, extent)
        return lanes, cursor, [(axis, "$text-accent")]

    def step_row(self, bins: int) -> Mapping[str, Any] | None:
        """Return the step under the cursor, None where the engine was idle."""
        row = self.pages.known(self.position)
        if row is None or self.play is None:
            return None
        begun = (row["end"] or 0) - (taken_ns(row) or 0)
        column_ns = (self.play.right - self.play.left) // max(bins, 1)
        return None if begun > self.play.now + column_ns else row

    def step(self, bins: int, width: int) -> list[str]:
        if self.data is None or self.data.timeline is None:
            return []
        row = self.step_row(bins)
        lines = step_lines(row, width=width, joules=self.data.joules(row))
        families, moved = self.data.kernels_of(None if row is None else row["step"])
        more = (
            draft_line(row, self.run),
            family_line(families, width),
            collective_line(moved, width),
        )
        return [*lines, *(line[:width] for line in more if line)]

    def title(self, width: int) -> str:
        """Return the problem's line, or the name of the page that is shown instead."""
        if self.page != "problem":
            pages = "  ".join(f"[{each}]" if each == self.page else each for each in PAGES)
            return f"{pages}   k: next page"[:width]
        if self.problem is None:
            is_watched = self.data is not None and self.data.watched
            return "no problem was recorded" + (
                ": what /metrics said stands below" if is_watched else ""
            )
        text = problem_title(self.problem)
        until = self._until()
        return f"{text}  as at {number(until, 's')}" if until is not None else text

    def _until(self) -> float | None:
        """Return the time of the problem that is shown where it is shown as it stood."""
        if not self.cut or self.problem is None or self.play is None:
            return None
        arrival = self.problem.row["arrival"]
        return None if arrival is None else max((self.play.now - arrival) / 1e9, 0.0)

    def bars(self, width: int) -> tuple[Bars | None, Bars | None]:
        """Return the samples, and those of the same problem in the run beside."""
        problem = self.problem
        if problem is None:
            return None, None
        other = None if self.beside is None else same_problem(problem, self.beside.run)
        each = width // 2 - 1 if other is not None and width >= WIDE else width
        span = max(problem.span_s, 0.0 if other is None else other.span_s)
        word = "" if self.beside is None else self.beside.word
        mine = "this replay" if word == "recorded" else "recorded"
        asked = "" if self.beside is None else self.beside.asked
        titles = ("", "") if other is None else (mine, f"{word}: {asked}")
        own = self._bars(problem, each, span, titles[0], own=True)
        return own, None if other is None else self._bars(other, each, span, titles[1], own=False)

    def _bars(
        self, problem: ShownProblem, width: int, span: float, title: str, *, own: bool
    ) -> Bars:
        until = self._until()
        shown = problem if until is None else cut_at(problem, until)
        judged = self.judged.get(self.rules[self.rule]) if self.rules else None
        stop = None
        if own and judged is not None and not isinstance(judged, str):
            stop = judged.stopped.get(problem.row["problem_id"])
        after = None
        if stop is not None and stop.early and until is None:
            after = (stop.ended, f"◂ {self.rules[self.rule]} stops here")
        rows = sample_rows(shown, width, stop=stop, span_s=span, until=until)
        scale = scale_of(shown, width, span)
        return Bars(title=title, scale=scale, rows=tuple(rows), after=after)

    def vote(self, width: int, *, tall: bool) -> list[str]:
        """Return how the vote converged, and what the chosen rule would have done."""
        if self.page != "problem" or self.problem is None:
            return []
        until = self._until()
        if until is not None:  # what comes later is not told before
            return vote_lines(cut_at(self.problem, until), width=width)[:1]
        lines = vote_lines(self.problem, width=width)
        if not lines or not self.rules:
            return lines
        rule = self.rules[self.rule]
        return lines[: None if tall else 1] + stop_lines(
            self.problem, self.judged.get(rule), rule, width=width
        )

    def text(self, width: int) -> list[str]:
        """Return the lines of a page other than the problem; none where the problem is shown."""
        if self.page == "problem":
            return self._watched_lines(width) if self.problem is None else []
        if self.page == "kernels":
            parts = (
                warning_lines(self.run, width),
                kernel_lines(self.run, width) or [NO_KERNELS],
                acceptance_lines(self.run.acceptance, width),
                what_if_lines(self.run.ngram_what_if, width),
                energy_lines(self.run, width),
            )
            return [line for part in parts if part for line in (*part, "")]
        if self.page == "policies":
            if self.policies is not None:
                return [*self.policies]
            return ["judging policies that were not run ...", "", *policy_lines(self.run, width)]
        none = wrap("", NO_REPLAY, width=width, indent=0)
        return [*self.beside.lines] if self.beside and self.beside.lines else none

    def _watched_lines(self, width: int) -> list[str]:
        watched = () if self.data is None else self.data.watched
        return [line for each in watched for line in (*watched_lines(each, width=width), "")][:-1]


def _first_arrival(run: Run) -> int | None:
    first = None if run.rows is None else run.rows["arrival"].min()
    return first if isinstance(first, int) else None
