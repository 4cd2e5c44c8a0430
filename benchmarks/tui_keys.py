"""What each key of the app costs on the shipped recordings: ``python -m benchmarks.tui_keys``.

A key counts from its press until something is drawn, and until the thread that draws rests. The
time is the processor time of that thread, and what a terminal would be sent is made too. What
scrolls smoothly, plays, or answers later counts until its last frame. It does not wait from within,
as Textual's pilot does: that calls each widget, a seventh of what a key took. Printed are the
medians of so many presses and the slowest, by screen and size, those that rest last first. A
watched server that is made stands on screen 3. Behind them stand the first paint, and the first
answer and the last of the advice screen, each in a new process: opened by `ttscope demo` behind its
answer, at once, at once in a later session, and once the app has learned.
"""

import argparse
import asyncio
import contextlib
import gc
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tui.verbs.terminal import prepare

prepare()  # as `ttscope tui` does, before numpy is imported

from textual.events import Key

import profiler.demo
from advisor.advice.advisor import Advisor
from benchmarks import live_day
from traces.recording.reader import Recording
from tui.app.app import TtscopeApp
from tui.cli import COLLECTED_AT
from tui.screens.advice.screen import AdviceScreen, Advised
from tui.screens.earlier import EarlierAnswers
from tui.screens.entries import recording_paths
from tui.text.commands import here
from tui.verbs.demo import BUDGET

SHIPPED = Path(profiler.demo.__file__).parent / "recordings"
OPENED = ("by the demo", "at once", "at once in a later session", "once learned")
SIZES = ("80x24", "120x40", "200x60")
TYPED = ("m", "a", "x", "backspace")
MOVES = ("down", "up", "j", "k", "end", "home", "G", "g", "pagedown", "pageup")
SCREENS: dict[str, Sequence[tuple[str, Sequence[str]]]] = {  # what is open, and its keys in order
    "recordings": (
        ("", (*MOVES, "space", "space", "up", "up", "down", "u", "r", "r", *["s"] * 9)),
        ("", ("slash",)),
        ("filter", (*TYPED, "escape")),
        ("", ("o",)),
        ("open", (*TYPED, "escape")),
        ("", ("i",)),
        ("import", (*TYPED, "escape")),
        ("", ("dollar_sign",)),
        ("price", ("2", "escape")),
        ("", ("x",)),
        ("delete", ("n",)),
        ("", ("question_mark",)),
        ("help", ("down", "escape")),
        ("", ("t", "t", "enter", "1", "4", "1")),
    ),
    "run": (
        ("", ("right", "left", "shift+right", "shift+left", "end", "home", "full_stop", "comma")),
        ("", ("plus", "minus", "z", "0", "w", "left_square_bracket", "right_square_bracket")),
        ("", ("down", "up", "pagedown", "pageup", "r", "r", "r", "r", "k", "k", "k", "k")),
        ("", ("greater_than_sign", "less_than_sign", "space", "space", "escape", "g")),
        ("go to", (*TYPED, "escape")),
        ("", ("v",)),
        ("replay", (*TYPED, "escape")),
        ("", ("question_mark",)),
        ("help", ("down", "escape")),
        ("", ("t", "t")),
    ),
    "live": (
        ("", ("d", "d", "down", "up", "pagedown", "pageup", "u")),
        ("URL", (*TYPED, "escape")),
        ("", ("question_mark",)),
        ("help", ("down", "escape")),
        ("", ("t", "t")),
    ),
    "advice": (
        ("", (*MOVES, "x", "x", "x", "x", "x", "c", "f")),
        ("front", (*MOVES, "x", "x", "x", "x", "x", "f")),
        ("", ("e",)),
        ("answer", ("down", "up", "end", "home", "e")),
        ("", ("b",)),
        ("budget", ("5", "s", "backspace", "backspace", "tab", "shift+tab", "escape")),
        ("", ("w",)),
        ("what if", (*TYPED, "escape")),
        ("", ("m",)),
        ("measure", ("n",)),
        ("", ("question_mark",)),
        ("help", ("down", "escape")),
        ("", ("t", "t")),
    ),
}


DRAWN: list[float] = []  # when something was, by the processor time of the thread


def draw_all(app: TtscopeApp) -> TtscopeApp:
    """Have the app make what it would send to a terminal, though it has none."""
    display = app._display

    def drawn(screen: Any, renderable: Any) -> None:
        if not app._batch_count and hasattr(renderable, "render_segments"):
            renderable.render_segments(app.console)
            DRAWN.append(time.thread_time())
        display(screen, renderable)

    app._display = drawn  # type: ignore[method-assign]
    return app


async def settle(pilot: Any) -> None:
    """Wait until no worker runs, and what they have posted is drawn."""
    await pilot.pause()
    while any(not worker.is_finished for worker in pilot.app.workers):
        await pilot.app.workers.wait_for_complete()
        await pilot.pause()


async def press(app: TtscopeApp, key: str) -> tuple[float, float]:
    """Press a key, and return the milliseconds that the thread works until it draws, and rests.

    What draws nothing has the same for both.
    """
    DRAWN.clear()
    begun, quiet = time.thread_time(), 0
    app.post_message(Key(key, key if len(key) == 1 else None))
    while quiet < 4:  # the screen is drawn up to 60 times a second
        before = time.thread_time()
        await asyncio.sleep(0.012)
        working = time.thread_time() - before > 4e-4
        quiet = 0 if working or any(not each.is_finished for each in app.workers) else quiet + 1
    rests = time.thread_time()
    return ((DRAWN or [rests])[0] - begun) * 1e3, (rests - begun) * 1e3


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def asked_before(paths: list[Path]) -> Advisor:
    """Return the advisor that has answered the demo's budget, as `ttscope demo` hands it over."""
    advisor = Advisor.fit([Recording.open(each) for each in recording_paths(paths)])
    advisor.recommend(BUDGET, **here())
    return advisor


async def answer(paths: list[Path], size: tuple[int, int], opened: str, kept: Path) -> None:
    """Print when the first answer and the last of screen 4 are there, `opened` as one of `OPENED`.

    The times are from its opening, by the wall and of the process. Answers are kept in a folder.
    """
    learned = opened == OPENED[-1]
    fitted = asked_before(paths) if opened == OPENED[0] else None
    began, heard = now(), dict[int, tuple[float, float]]()

    def hear(message: Any) -> None:
        if isinstance(message, Advised):
            heard.setdefault(id(message.advice), now())

    screen = "recordings" if learned else "advice"
    limits = {"min_accuracy": f"{BUDGET.min_accuracy}"}
    app = draw_all(TtscopeApp(paths, limits=limits, fitted=fitted, screen=screen))
    if fitted is None:
        app.learns_ahead, app.answers = True, None if learned else EarlierAnswers(folder=kept)
    async with app.run_test(size=size, message_hook=hear) as pilot:
        times = {"first paint": now()}
        if learned:
            await settle(pilot)
            times, began = {}, now()
            await pilot.press("4")
        while not isinstance(app.screen, AdviceScreen) or len(heard) < (2 if fitted is None else 1):
            await asyncio.sleep(0.01)
        await settle(pilot)
    times |= dict(zip(("first answer", "answer"), heard.values(), strict=False))
    told = ", ".join(
        f"{what} {wall - began[0]:.2f} s ({cpu - began[1]:.2f} s)"
        for what, (wall, cpu) in times.items()
    )
    print(f"screen 4 opened {opened}, wall (processor): {told}")


async def drive(paths: list[Path], size: tuple[int, int], times: int, screens: list[str]) -> None:
    """Print what the keys of screens cost at a size."""
    app = draw_all(TtscopeApp(paths, limits={"min_accuracy": "0.75"}))
    app.learns_ahead = True
    async with app.run_test(size=size) as pilot:
        await settle(pilot)
        for screen in screens:
            if screen == "live":
                app.open_run(next(entry for entry in app.entries if entry.is_watched))
            else:
                await app.switch_mode(screen)
            await settle(pilot)
            spent: dict[str, list[tuple[float, float]]] = defaultdict(list)
            for _ in range(times):
                for opened, keys in SCREENS[screen]:
                    for key in keys:
                        spent[f"{opened} {key}".strip()].append(await press(app, key))
            assert app.current_mode == screen, f"{screen}: its keys lead to {app.current_mode}"
            print(f"{screen}, {len(spent)} keys:")
            told = {key: tuple(zip(*each, strict=True)) for key, each in spent.items()}
            for key, (drawn, rests) in sorted(
                told.items(), key=lambda pair: -statistics.median(pair[1][1])
            ):
                medians = f"{statistics.median(drawn):4.0f}  {statistics.median(rests):4.0f}"
                print(f"  {medians}  {max(rests):4.0f}  {key}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--size", choices=SIZES)
    parser.add_argument("--screen", choices=[*SCREENS])
    parser.add_argument("--opened", choices=OPENED, help="the advice screen alone")
    parser.add_argument("--kept", type=Path)
    given = parser.parse_args()
    if given.opened is not None:
        gc.freeze()
        gc.set_threshold(*COLLECTED_AT)
        asyncio.run(answer([SHIPPED], (120, 40), given.opened, given.kept))
        return
    screens = [*SCREENS] if given.screen is None else [given.screen]
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        folder = Path(name) / "live-made"
        live_day.make(folder, 300)
        live_day.close(folder, 300)
        gc.freeze()  # as `ttscope tui` does
        gc.set_threshold(*COLLECTED_AT)
        for told in SIZES if given.size is None else [given.size]:
            columns, _, rows = told.partition("x")
            size = (int(columns), int(rows))
            print(f"{told}, milliseconds: medians until drawn and at rest, and the slowest")
            asyncio.run(drive([SHIPPED, folder], size, given.times, screens))
        kept = str(Path(name) / "answers")
        for opened in OPENED:
            command = [
                sys.executable,
                "-m",
                "benchmarks.tui_keys",
                "--opened",
                opened,
                "--kept",
                kept,
            ]
            subprocess.run(command, check=True, cwd=Path(__file__).parent.parent)


if __name__ == "__main__":
    main()
