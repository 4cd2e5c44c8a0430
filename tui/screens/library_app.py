"""The app as its screens know it: the recordings, what is marked, and who advises."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from textual import work
from textual.app import App
from textual.signal import Signal
from textual.widget import AwaitMount
from textual.worker import get_current_worker

from traces.errors import TtscopeError, UsageError
from traces.recording.reader import Recording, measured
from traces.schema.advice import Budget, Pick, Recommendation
from traces.schema.engine import EngineConfig
from traces.schema.tts.policy import Policy
from traces.summary.run import Run
from tui.screens.entries import (
    Entry,
    fit_frames,
    foreseen,
    listed,
    load,
    recording_paths,
    to_list,
)
from tui.screens.index import Indexes, state_of

if TYPE_CHECKING:
    from advisor.advice.accounts.costs import Accounts
    from advisor.advice.accounts.efforts import EffortMap
    from advisor.advice.advisor import Advisor
    from advisor.advice.measure_next.forward_shapes import Forwards
    from tui.screens.earlier import EarlierAnswers

MOST_AHEAD = 24  # recordings that are learned from before anybody asks for advice
LISTED_TOGETHER = 200  # rows that are shown at a time before they are read


@cache
def keep_imports() -> None:
    """Leave what stands in memory now out of garbage collections, once.

    What advice imports are some hundred thousand objects: looking through them took 0.2 to 0.4 s
    of a key, as `ttscope tui` knew of its own imports.
    """
    gc.freeze()


Progress = Callable[[int, int], None]


class FittedAdvisor:
    """The advisor's models fitted to recordings; imported when first asked, for it is heavy.

    `systems` of the prior are offered too. What takes longest, the spread of step times, is learned
    when a recommendation is asked for, and an outline needs none. A `fitted` advisor is taken as it
    is.
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        systems: Sequence[str] = (),
        fitted: Advisor | None = None,
    ) -> None:
        from advisor.advice.advisor import Advisor
        from traces.recording.reader import distinct
        from tui.text.commands import here

        self._whole, self._recordings = fitted is not None, recordings
        if fitted is None:
            unique, _ = distinct(recordings)
            fitted = Advisor.fit(measured(unique), seed=0, gpus=systems, quick=True)
        self._advisor = fitted
        self._here = here()

    def outline(self, budget: Budget) -> Recommendation | None:
        """Return a first answer at once, None where `recommend` takes no longer."""
        return None if self._whole else self._advisor.outline(budget)

    def recommend(
        self,
        budget: Budget,
        present: tuple[EngineConfig, Policy] | None = None,
        progress: Progress | None = None,
    ) -> Recommendation:
        """Return what to run for a budget, beside what runs today where that is a candidate.

        `progress` hears how many of how many candidates are replayed.
        """
        self._refine()
        is_candidate = present is not None and bool(self._advisor.space.rows_of(*present))
        today = present if is_candidate else None
        return self._advisor.recommend(budget, **self._here, present=today, progress=progress)

    def _refine(self) -> None:
        if not self._whole:
            self._advisor, self._whole = self._advisor.refined(), True
            keep_imports()

    def what_if(
        self, pick: Pick, changes: str, budget: Budget | None
    ) -> tuple[str, list[Sequence[str]]]:
        """Return what a change makes of a pick, as the answer to the budget has it."""
        from tui.screens.advice.what_if import what_if

        self._refine()
        return what_if(self._advisor, pick, changes, budget)

    def accounts(
        self, answer: Recommendation, api_price: float | None
    ) -> tuple[Accounts | None, EffortMap | None, str | None]:
        """Return what the picks of the last recommendation cost, and which effort to use.

        The last is why costs are not known: an API has a price, and devices have none.
        """
        from advisor.advice.accounts.costs import Tariff, accounts_of
        from advisor.advice.accounts.efforts import efforts_of

        efforts = None
        if self._advisor.space.judged:
            efforts = efforts_of(self._advisor, self._recordings, answer)
        try:
            return accounts_of(self._advisor, answer, Tariff(api_price=api_price)), efforts, None
        except UsageError as problem:
            return None, efforts, str(problem)

    def price_of(self, run: Run, budget: Budget) -> float | None:
        """Return a run's USD per device-hour beside an answer for a budget."""
        return self._advisor.prices(budget).of_run(run)

    def write_plan(self, path: Path, answer: Recommendation) -> Forwards:
        """Write what to measure next for `ttscope sweep`; raises TtscopeError.

        Return the files of shapes beside it, of the steps that were recorded.
        """
        from advisor.advice.measure_next.experiments import write_plan

        return write_plan(path, answer, self._advisor.evidence, self._recordings)


AdvisorFactory = Callable[[Sequence[Recording]], FittedAdvisor]


class LibraryApp(App[None]):
    """Recordings that are read in a thread, and the marks and the price that go with them."""

    def __init__(
        self,
        paths: Sequence[Path],
        advisor_factory: AdvisorFactory,
        present: Path | None,
        fitted: Advisor | None = None,
    ) -> None:
        super().__init__()
        self.limits: dict[str, str] = {}  # what the budget's fields hold at the start
        self.entries: list[Entry] = []
        self.marked: list[str] = []
        self.loading_paths = True
        self.foresees = False  # whether it is known of what is still read that advice learns of it
        self.watching = False  # whether screen 3 watches a server
        self.watch_first = ""  # what it is to watch at the start
        self.price: float | None = None  # USD per device-hour, over what recordings say
        self.library_changed: Signal[None] = Signal(self, "library")
        self.first_paths = [*map(Path, paths), *([] if present is None else [present])]
        self._present = None if present is None else present.resolve()
        self._factory = advisor_factory
        self._fitted = fitted
        self.learns_ahead = False  # whether the advisor learns, and screens are made, unasked
        self.answers: EarlierAnswers | None = None  # of earlier sessions
        self._advisor: tuple[tuple[str, ...], FittedAdvisor] | None = None
        self.advising = threading.Lock()  # held by who asks the advisor, one thread at a time
        self.estimating = threading.Lock()  # held while recordings are not to be read
        self._answering = False  # whether an answer is worked out
        self._may_read = threading.Condition()  # told when an answer may go first no longer
        self._current: str | None = None
        self._opening: Entry | None = None  # to be read next, and shown
        self._indexes = Indexes()
        self._coming: set[Path] = set()  # whose samples and steps are read again
        self._next_told = 0.0  # when the screens hear of more recordings: a long table is dear

    def open_first(self) -> None:
        """Read the recordings that the app was started with, a folder that holds none aside."""
        self._load(self.first_paths, first=True)

    def open_paths(self, paths: Sequence[Path]) -> None:
        """Read more recordings; those that are there already are read again."""
        self.loading_paths = True
        self._load(paths)

    def set_price(self, usd_per_device_hour: float | None) -> None:
        """Work out what everything costs at a price; None takes the recordings' own."""
        self.price = usd_per_device_hour
        self.open_paths(list(dict.fromkeys(entry.path for entry in self.entries)))

    def forget(self, *paths: Path) -> None:
        self._take_out(paths)
        self.library_changed.publish(None)

    def _take_out(self, paths: Collection[Path]) -> None:
        gone = {entry.key for entry in self.entries if entry.path in paths}
        self.entries = [entry for entry in self.entries if entry.key not in gone]
        self.marked = [key for key in self.marked if key not in gone]

    def forget_gone(self) -> list[Path]:
        """Take the recordings whose folder is gone out of the list, untold; return which."""
        paths = dict.fromkeys(entry.path for entry in self.entries if entry.recording is not None)
        gone = [path for path in paths if not path.is_dir()]
        self._take_out(gone)
        return gone

    @work(thread=True, group="library")
    def _load(self, paths: Sequence[Path], *, first: bool = False) -> None:
        worker = get_current_worker()
        left = dict.fromkeys(recording_paths(paths))
        if first:
            left = {path: None for path in left if not _holds_none(path)}
        if self.price is None:  # at which the index has its costs
            self._list(left)
            if first and self._present is None and len(left) <= MOST_AHEAD:
                self.call_from_thread(self._foresee, foreseen([*self.entries]))
        while left and not worker.is_cancelled:
            with self.estimating:
                pass
            with self._may_read:
                self._may_read.wait_for(lambda: not self._is_answer_first)
            wanted = None if self._opening is None else self._opening.path
            path = wanted if wanted in left else next(iter(left))
            del left[path]
            state = None
            with contextlib.suppress(OSError):
                state = state_of(path)
            entries = load(path, self.price)
            if worker.is_cancelled:
                return
            rows = [row for row in map(to_list, entries) if row is not None]
            if self.price is None and rows and state is not None:
                self._indexes.note(path, state, rows)
            self.call_from_thread(self._add, entries)
        self._indexes.write()
        if not worker.is_cancelled:
            self.call_from_thread(self._loaded)

    @property
    def _is_answer_first(self) -> bool:
        """Whether nothing is looked at but advice, whose answer would come a third later."""
        alone = self.current_mode == "advice" and self._opening is None
        return self.foresees and alone and self._answering

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Have an answer go before recordings that are still to be read."""
        self._answering = True
        try:
            yield
        finally:
            self._answering = False
            self._read_on()

    def _read_on(self) -> None:
        with self._may_read:
            self._may_read.notify_all()

    def switch_mode(self, mode: str) -> AwaitMount:
        shown = super().switch_mode(mode)
        self._read_on()
        return shown

    def _list(self, paths: Iterable[Path]) -> None:
        """Show rows of recordings that were not read yet, some at a time."""
        listed_paths = {entry.path for entry in self.entries}
        rows: list[Entry] = []
        for path in paths:
            if path not in listed_paths:
                rows += listed(path, self._indexes)
            if len(rows) >= LISTED_TOGETHER:
                self.call_from_thread(self._add, rows)
                rows = []
        if rows:
            self.call_from_thread(self._add, rows)

    def _foresee(self, entries: list[Entry] | None) -> None:
        """Let advice begin before everything is read."""
        if entries and [entry.key for entry in entries] == [entry.key for entry in self.entries]:
            self.entries, self.foresees = entries, True
            self.library_changed.publish(None)

    def read_now(self, entry: Entry) -> None:
        """Read a recording before the others, and show it."""
        self._opening = entry
        self._read_on()
        self.notify(f"reading {entry.path.name} ...")

    def _add(self, entries: list[Entry]) -> None:
        paths = {entry.path for entry in entries}
        self._coming -= paths
        stale = [at for at, entry in enumerate(self.entries) if entry.path in paths]
        others = [entry for entry in self.entries if entry.path not in paths]
        at = stale[0] if stale else len(others)
        kept = {entry.key for entry in self._shown()}
        self.entries = fit_frames([*others[:at], *entries, *others[at:]], kept)
        opening = self._opening
        read = [entry for entry in entries if entry.listed is None]
        if opening is not None and opening.path in {entry.path for entry in read}:
            self._opening = None
            able = [entry for entry in read if entry.run is not None]
            if able:
                self.open_run(next((e for e in able if e.key == opening.key), able[0]))
        if time.monotonic() > self._next_told:
            self.library_changed.publish(None)
            self._next_told = time.monotonic() + 0.1 + len(self.entries) / 1_000

    def _shown(self) -> list[Entry]:
        """Return the run of screen 2, and the one that it was replayed from."""
        entry = self.current_entry()
        source = None if entry is None or entry.run is None else entry.run.replay_of
        return [each for each in (entry, source and self.entry_named(source)) if each]

    def bring_back(self) -> bool:
        """Read the samples and steps of what screen 2 shows again where they were let go.

        Returns whether they are being read.
        """
        gone = {each.path for each in self._shown() if each.run and each.run.sample_rows is None}
        if gone - self._coming:
            self._load([*gone - self._coming])
        self._coming |= gone
        return bool(gone)

    def _loaded(self) -> None:
        self.loading_paths = self.foresees = False
        self.library_changed.publish(None)
        entries = self.advisable()
        if self.learns_ahead and 0 < len(entries) <= MOST_AHEAD:
            self._learn([each.recording for each in entries if each.recording is not None])
        if self.learns_ahead:
            self._make_screens()

    @work(group="screens")
    async def _make_screens(self) -> None:
        """Make the screens that were not shown yet: a key that does so takes 0.05 to 0.15 s."""
        for mode in self.MODES:
            await self._init_mode(mode)

    @work(thread=True, group="ahead", exclusive=True, exit_on_error=False)
    def _learn(self, recordings: Sequence[Recording]) -> None:
        """Learn from the recordings while other screens are shown, so that advice comes at once."""
        with self.advising, contextlib.suppress(TtscopeError):  # said where advice is asked for
            self.advisor_for(recordings).outline(Budget(required=False))

    def toggle_mark(self, key: str) -> None:
        if key in self.marked:
            self.marked.remove(key)
        else:
            self.marked.append(key)
        self.library_changed.publish(None)

    def clear_marks(self) -> None:
        self.marked.clear()
        self.library_changed.publish(None)

    def marked_entries(self) -> list[Entry]:
        by_key = {entry.key: entry for entry in self.entries}
        return [by_key[key] for key in self.marked if key in by_key]

    def advisable(self) -> list[Entry]:
        """Return the runs that advice rests on: the marked ones, or every one that teaches."""
        marked = self.marked_entries()
        return marked or [entry for entry in self.entries if entry.teaches]

    def advisor_for(self, recordings: Sequence[Recording]) -> FittedAdvisor:
        """Return the advisor fitted to the recordings; the last one is kept. Call in a thread."""
        unique = {str(each.path): each for each in recordings}
        key, distinct_ones = tuple(unique), list(unique.values())
        if self._advisor is None or self._advisor[0] != key:
            given, names = self._fitted, sorted(each.path.name for each in distinct_ones)
            has_learned = given is not None and sorted(given.evidence.recordings) == names
            advisor = (
                FittedAdvisor(distinct_ones, fitted=given)
                if has_learned
                else self._factory(distinct_ones)
            )
            self._advisor = (key, advisor)
        return self._advisor[1]

    def plan_path(self) -> Path:
        """Return the file of this folder that a plan of what to measure next goes into."""
        names = (Path(f"measure-next{number}.yaml") for number in ("", *range(2, 1000)))
        return next(each for each in names if not each.exists())

    @property
    def advisor(self) -> FittedAdvisor:
        """The advisor that was asked last. Raises UsageError where none was."""
        if self._advisor is None:
            raise UsageError("nothing has been advised yet")
        return self._advisor[1]

    def open_run(self, entry: Entry) -> None:
        """Show a run: on screen 3 one of watched servers, unless a server is watched there."""
        self._current = entry.key
        self.switch_mode("live" if entry.is_watched and not self.watching else "run")

    def choose_run(self, entry: Entry) -> None:
        """Have screen 2 show a run when it is shown next."""
        self._current = entry.key

    def leave_run(self) -> None:
        """Have no run opened, as once a server is watched in the place of one."""
        self._current = None

    def opened_entry(self) -> Entry | None:
        """Return the run that was opened, or the only one if the app was started with it alone."""
        if len(self.entries) == 1 and [self.entries[0].path] == self.first_paths:
            return self.entries[0]
        return next((entry for entry in self.entries if entry.key == self._current), None)

    def entry_named(self, name: str) -> Entry | None:
        """Return the recording of a name that holds a run, None when it is not loaded."""
        named = [entry for entry in self.entries if entry.path.name == name]
        return next((entry for entry in named if entry.run is not None), None)

    def present_entry(self) -> Entry | None:
        """Return what runs today, to set beside advice: `present`, else the run that was opened.

        Of a prediction it is the run that it was replayed from.
        """

        def is_meant(entry: Entry) -> bool:
            if self._present is None:
                return entry.key == self._current
            return entry.path.resolve() == self._present

        able = [e for e in self.entries if e.comparable and e.run and e.run.policy]
        meant = next(filter(is_meant, able), None)
        source = None if meant is None or meant.run is None else meant.run.replay_of
        if source is None:
            return meant
        return next((e for e in able if e.path.name == source), None)

    def runs_today(self) -> tuple[EngineConfig, Policy] | None:
        """Return the configuration of what runs today, None where it is not known."""
        entry = self.present_entry()
        if entry is None or entry.run is None or entry.run.policy is None:
            return None
        return entry.run.engine, entry.run.policy

    def current_entry(self) -> Entry | None:
        """Return the run that was opened, or the first that can be shown."""
        shown = [entry for entry in self.entries if entry.run is not None]
        opened = [entry for entry in shown if entry.key == self._current]
        if not opened and self.loading_paths:
            return None
        complete = [entry for entry in shown if entry.comparable]
        votes = [entry for entry in complete if entry.run and entry.run.policies]
        return next(iter([*opened, *votes, *complete, *shown]), None)


def _holds_none(path: Path) -> bool:
    """Whether a path is ./runs before anything was recorded, or a folder of nothing but folders."""
    if path == Path("runs") and not path.exists():
        return True
    try:
        return path.is_dir() and not any(each.is_file() for each in path.iterdir())
    except OSError:
        return False  # reading it says why
