"""Answers of earlier sessions: shown at once, and worked out again behind what is shown."""

from __future__ import annotations

import dataclasses
import os
import threading

import pytest

from tests.traces.synthetic import simulate, write_recording
from tests.tui.fake_advisor import FakeAdvisor
from tests.tui.pilot import settle, text_of
from traces.errors import UsageError
from traces.recording.reader import Recording
from traces.schema.advice import Budget
from tui.app.app import TtscopeApp
from tui.screens.advice.screen import EARLIER
from tui.screens.earlier import MOST_KEPT, EarlierAnswers

BUDGET = Budget(min_accuracy=0.7)


@pytest.fixture
def recording(tmp_path):
    write_recording(tmp_path / "runs" / "one", simulate(problems=10, n=4))
    return Recording.open(tmp_path / "runs" / "one")


@pytest.fixture
def answers(tmp_path):
    return EarlierAnswers(folder=tmp_path / "answers")


def test_an_answer_is_found_by_its_question_and_the_files(recording, answers, tmp_path):
    answer = FakeAdvisor([recording]).recommend(BUDGET)
    assert answers.find(BUDGET, [recording]) is None
    answers.keep(BUDGET, [recording], answer)
    assert answers.find(BUDGET, [recording]) == answer
    assert answers.find(Budget(min_accuracy=0.8), [recording]) is None
    assert EarlierAnswers(["h100"], tmp_path / "answers").find(BUDGET, [recording]) is None
    file = recording.path / "recording.json"
    file.touch()
    assert answers.find(BUDGET, [recording]) == answer
    status = file.stat()
    file.write_text(file.read_text().replace("p", "q", 1))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert answers.find(BUDGET, [recording]) is None


def test_other_code_does_not_take_an_answer(recording, answers, monkeypatch):
    answers.keep(BUDGET, [recording], FakeAdvisor([recording]).recommend(BUDGET))
    monkeypatch.setattr("tui.screens.earlier.code_version", lambda: "of other code")
    assert answers.find(BUDGET, [recording]) is None


def test_what_cannot_be_trusted_or_kept_is_no_answer(recording, answers, tmp_path):
    answer, folder = FakeAdvisor([recording]).recommend(BUDGET), tmp_path / "answers"
    answers.keep(BUDGET, [recording], dataclasses.replace(answer, regret={"x": None}, candidates=1))
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes()[:-9])
    assert answers.find(BUDGET, [recording]) is None
    answers.keep(BUDGET, [recording], answer)
    folder.chmod(0o777)  # others may put a command there
    assert answers.find(BUDGET, [recording]) is None
    folder.chmod(0o700)
    sure = dataclasses.replace(BUDGET, confidence=float("inf"))
    answers.keep(sure, [recording], dataclasses.replace(answer, budget=sure))
    assert len([*folder.iterdir()]) == 1  # JSON has no infinity
    for number in range(MOST_KEPT + 5):
        budget = Budget(min_accuracy=number / 100)
        answers.keep(budget, [recording], dataclasses.replace(answer, budget=budget))
    assert len([*folder.iterdir()]) == MOST_KEPT
    assert answers.find(budget, [recording]) is not None


class Held(FakeAdvisor):
    """Answers when it may, and refuses where it is told to."""

    go, refuses = threading.Event(), False

    def recommend(self, *given, **told):
        self.go.wait(30)
        if self.refuses:
            raise UsageError("nothing to learn from")
        return super().recommend(*given, **told)


@pytest.mark.parametrize("refuses", [False, True])
async def test_it_is_shown_before_anything_is_learned(recording, answers, refuses, monkeypatch):
    monkeypatch.setattr(Held, "refuses", refuses)
    monkeypatch.setattr(Held, "go", threading.Event())
    answers.keep(BUDGET, [recording], FakeAdvisor([recording]).recommend(BUDGET))
    app = TtscopeApp([recording.path], Held, limits={"min_accuracy": "0.7"}, screen="advice")
    app.answers = answers
    async with app.run_test(size=(80, 24)) as pilot:
        panel = app.screen.query_one("#answer")
        while "Run large" not in text_of(app, "#answer"):
            await pilot.pause()
        assert panel.border_title == EARLIER
        Held.go.set()
        await settle(pilot)
        assert panel.border_title == "Answer"
        assert ("Run large" in text_of(app, "#answer")) != refuses
        assert ("nothing to learn from" in text_of(app)) == refuses
