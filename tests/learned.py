"""Recordings that several tests of a process advise on are learned and replayed once."""

from __future__ import annotations

from typing import Any

from advisor.advice.advisor import Advisor
from traces.recording.reader import Recording
from tui.verbs.demo import SHIPPED

FIT, REFINED = vars(Advisor)["fit"].__func__, Advisor.refined


class Learned:
    """The advisors, by recordings and options.

    An answer does not depend on what was asked before (tests/advisor/advice/test_same_answer.py).
    """

    def __init__(self) -> None:
        self.known: dict[str, Advisor] = {}

    def __call__(self, recordings: list[Recording], **options: Any) -> Advisor:
        asked = sorted((name, value) for name, value in options.items() if value)
        key = repr(([str(each.path) for each in recordings], asked))
        if key not in self.known:
            self.known[key] = FIT(Advisor, recordings, **options)
        return self.known[key]


class LearnedIfShipped(Learned):
    """The same of the shipped recordings alone, which no test changes, where no laws are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.whole: dict[int, Advisor] = {}  # by the quick one, which `known` keeps

    def __call__(self, recordings: list[Recording], **options: Any) -> Advisor:
        shipped = all(each.path.is_relative_to(SHIPPED) for each in recordings)
        if shipped and not options.get("saved"):
            return super().__call__(recordings, **options)
        return FIT(Advisor, recordings, **options)

    def refined(self, advisor: Advisor) -> Advisor:
        """Stand for `Advisor.refined`."""
        if advisor not in self.known.values():
            return REFINED(advisor)
        if id(advisor) not in self.whole:
            self.whole[id(advisor)] = REFINED(advisor)
        return self.whole[id(advisor)]
