"""Lines on their way to a terminal: what is coloured there, and that a pipe gets none of it."""

import io

import pytest

from tui.terminal import say_all

LINES = [
    "Run demo/s with 8 samples, temperature 0.8.",
    "no  GPU                   none",
    "no candidate keeps up",
    "A=1 python \\",
    "    -m vllm --served-model-name x",
    "next      ttscope show runs/a",
    "a ttscope in a sentence \x1b[31m",
]
SEEN = [
    "\x1b[1mRun demo/s with 8 samples, temperature 0.8.\x1b[0m",
    "\x1b[31mno\x1b[0m  GPU                   none",
    "no candidate keeps up",
    "\x1b[36mA=1 python \\\x1b[0m",
    "    \x1b[36m-m vllm --served-model-name x\x1b[0m",
    "\x1b[1mnext\x1b[0m      \x1b[36mttscope show runs/a\x1b[0m",
    "a ttscope in a sentence \\x1b[31m",
]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("kind", "no_color"), [(Terminal, ""), (Terminal, "1"), (io.StringIO, "")])
def test_colours_are_for_terminals(monkeypatch, kind, no_color):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", no_color)
    out = kind()
    say_all(LINES, file=out)
    plain = [*LINES[:-1], "a ttscope in a sentence \\x1b[31m"]
    shown = SEEN if kind is Terminal and not no_color else plain
    assert out.getvalue().splitlines() == shown
