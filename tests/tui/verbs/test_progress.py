"""Progress on stderr: rows that keep their places, lines in a log, and no work lost to drawing."""

import io
import sys
import time
from types import SimpleNamespace

import pytest

from tui.text.layout import without_middle
from tui.verbs.progress import TaskBars, progress_bar, sweep_progress

PLAN = [SimpleNamespace(jobs=["a", "b"]), SimpleNamespace(jobs=["c"])]


class Terminal(io.StringIO):
    """Stands for stderr at a terminal, which is `gone` after so many writes."""

    def __init__(self, gone_after=None):
        super().__init__()
        self.left = gone_after

    def isatty(self):
        return True

    def write(self, text):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise OSError(5, "Input/output error")
        return super().write(text)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("total", [None, 0, 3])
def test_a_total_may_be_unknown(monkeypatch, total):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with progress_bar() as bar:
        task = bar.add_task("learning [1/2]", total=total)
        bar.update(task, completed=2)
        bar.refresh()
    assert "learning [1/2]" in screen.getvalue()


@pytest.mark.parametrize("writes", range(8))
def test_a_terminal_that_is_gone_ends_no_work(monkeypatch, writes):
    monkeypatch.setattr(sys, "stderr", Terminal(gone_after=writes))
    done = 0
    with progress_bar() as bar:
        task = bar.add_task("runs", total=3)
        for done in range(1, 4):
            bar.update(task, completed=done)
            bar.refresh()
        bar.remove_task(task)
        bar.stop()
    assert done == 3


def test_a_name_that_cannot_be_drawn_ends_no_work(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress_bar() as bar:
        task = bar.add_task("runs", total=3)
        bar.tasks[0].description = None
        bar.refresh()
        bar.update(task, completed=3)


def test_a_log_has_a_line_now_and_then(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with progress_bar(line_every_s=0.01) as bar:
        listen = sweep_progress(bar, PLAN)
        listen({"job": "a", "state": "skipped"})
        listen({"job": "b", "state": "starting"})
        wait_for(log, "ttscope: runs 1/3, starting vLLM for b, 0:00:0")
        listen({"job": "b", "done": 2, "total": 5})
        wait_for(log, "ttscope: runs 1/3, b 2/5, 0:00:0")
    assert "\x1b" not in log.getvalue()


def wait_for(log, line):
    deadline = time.monotonic() + 20
    while line not in log.getvalue():
        assert time.monotonic() < deadline, log.getvalue()
        time.sleep(0.01)


def test_short_work_says_nothing_in_a_log(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with progress_bar() as bar:
        bar.add_task("runs", total=3)
    assert log.getvalue() == ""


def test_one_run_at_a_time_has_one_row_and_several_have_one_each():
    bars = TaskBars(drawn=False)
    listen = sweep_progress(bars, PLAN)
    for job in ("a", "b"):
        listen({"job": job, "state": "starting"})
        listen({"job": job, "done": 1, "total": 2})
        listen({"finished": job, "error": None})
        assert len(bars.tasks) == 2
    assert bars.line().startswith("ttscope: runs 2/3, b 1/2, ")

    bars = TaskBars(drawn=False)
    listen = sweep_progress(bars, PLAN, at_a_time=True)
    for job in ("a", "b"):
        listen({"job": job, "done": 1, "total": 2})
    listen({"finished": "a", "error": None})
    assert bars.line().startswith("ttscope: runs 1/3, b 1/2, ")


def test_a_long_name_keeps_both_ends():
    name = "demo-l-tp1-seqs64-draft-model-k3-greedy-high-t0-863e3479"
    assert without_middle(name, 21) == "demo-l-tp1…0-863e3479"
    assert without_middle(name, 60) == name
