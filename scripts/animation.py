"""Make the animation of README: the demo's answer and the app, from real runs of both.

    python -m scripts.animation docs/app.svg

It is an SVG that moves by CSS, so that it plays where a page shows it as a picture. A part that
several frames share is drawn once.
"""

import asyncio
import contextlib
import html
import io
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.text import Text

from advisor.advice.command import CpuBuild
from tui import cli
from tui.app.app import TtscopeApp, settle
from tui.terminal import say_all
from tui.text import commands
from tui.verbs.demo import SHIPPED

COLUMNS, ROWS = 120, 40
CELL, LINE, MARGIN, CAPTION = 12.2, 24.4, 14, 46  # as Rich draws them
RUN = "demo-l-tp1-seqs8-maj@16-*"
STYLE = re.compile(r"\.[\w-]+-(r\d+) \{([^}]*)\}")
RECT = re.compile(r'<rect fill="([^"]+)" x="([^"]+)" y="([^"]+)" width="([^"]+)" height="([^"]+)"')
TEXT = re.compile(
    r'<text class="[\w-]+-(r\d+)" x="([^"]+)" y="([^"]+)" textLength="([^"]+)"[^>]*>([^<]*)</text>'
)


@dataclass
class Film:
    """Frames, each with the parts that it shows; `rects` and `texts` are by their markup."""

    seconds: list[float] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    rects: dict[str, set[int]] = field(default_factory=dict)
    texts: dict[str, set[int]] = field(default_factory=dict)
    styles: dict[str, str] = field(default_factory=dict)

    def add(self, picture: str, caption: str, seconds: float) -> None:
        """Take a frame from the SVG of Rich or Textual."""
        frame = len(self.seconds)
        self.seconds.append(seconds)
        self.captions.append(caption)
        styles = {name: " ".join(css.split()) for name, css in STYLE.findall(picture)}
        begin = picture.index("clip-terminal)")  # what comes before is the window around it
        for fill, x, y, width, height in RECT.findall(picture, begin):
            part = f'<rect fill="{fill}" x="{x}" y="{y}" width="{width}" height="{height}"/>'
            self.rects.setdefault(part, set()).add(frame)
        for name, x, y, length, text in TEXT.findall(picture, begin):
            if not html.unescape(text).strip("\xa0 \n"):
                continue
            look = self.styles.setdefault(styles[name], f"s{len(self.styles)}")
            part = f'<text class="{look}" x="{x}" y="{y}" textLength="{length}">{text}</text>'
            self.texts.setdefault(part, set()).add(frame)

    def svg(self) -> str:
        width, height = COLUMNS * CELL + 2 * MARGIN, ROWS * LINE + 2 * MARGIN + CAPTION
        whole, patterns = sum(self.seconds), dict[frozenset[int], str]()
        parts = [self._grouped(self.rects, patterns), self._grouped(self.texts, patterns)]
        said = {
            f'<text class="say" x="{MARGIN}" y="{height - 18:g}">{html.escape(caption)}</text>': {
                frame for frame, each in enumerate(self.captions) if each == caption
            }
            for caption in self.captions
        }
        below = self._grouped(said, patterns)
        rules = [f".{name}{{{css}}}" for css, name in self.styles.items()]
        for frames, name in patterns.items():
            if len(frames) < len(self.seconds):
                rules += [self._keyframes(frames, name, whole)]
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}">\n'
            "<style>\n"
            "text{font-family:'Fira Code',ui-monospace,Menlo,Consolas,monospace;font-size:20px;"
            "white-space:pre}\n.say{font-family:system-ui,sans-serif;font-size:23px;fill:#e4e6e8}\n"
            "rect{shape-rendering:crispEdges}\n"
            + "\n".join(rules)
            + "\n@media (prefers-reduced-motion:reduce){g{animation:none!important}}\n</style>\n"
            f'<rect width="{width:g}" height="{height:g}" rx="10" fill="#14161a"/>\n'
            f'<g transform="translate({MARGIN},{MARGIN})">\n{parts[0]}\n{parts[1]}\n</g>\n{below}\n'
            "</svg>\n"
        )

    def _grouped(self, shown: dict[str, set[int]], patterns: dict[frozenset[int], str]) -> str:
        groups: dict[frozenset[int], list[str]] = {}
        for part, frames in shown.items():
            groups.setdefault(frozenset(frames), []).append(part)
        lines = []
        for frames, found in groups.items():
            name = patterns.setdefault(frames, f"f{len(patterns)}")
            lines.append(f'<g class="{name}">{"".join(found)}</g>')
        return "\n".join(lines)

    def _keyframes(self, frames: frozenset[int], name: str, whole: float) -> str:
        steps, begun = [], 0.0
        for frame, seconds in enumerate(self.seconds):
            if frame == 0 or (frame in frames) != (frame - 1 in frames):
                steps.append(f"{100 * begun / whole:.4g}%{{opacity:{int(frame in frames)}}}")
            begun += seconds
        last = int(0 in frames)  # what stands still shows the first frame
        return (
            f"@keyframes {name}{{{''.join(steps)}}}"
            f".{name}{{opacity:{last};animation:{name} {whole:g}s step-end infinite}}"
        )


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed(command: str, lines: list[str]) -> str:
    """Return a command and what it prints as an SVG, in the colours of a terminal."""
    out = _Terminal()
    out.write(f"$ {command}\n")
    say_all(lines, file=out)
    console = Console(record=True, width=COLUMNS, height=ROWS, file=io.StringIO())
    console.print(Text.from_ansi(out.getvalue()))
    return console.export_svg(title="ttscope")


async def screens(film: Film) -> None:
    """Add the app's screens, worked out from the shipped recordings."""
    for accuracy, caption in (
        ("0.75", "The same in the app: what a budget buys, and what else fits."),
        ("0.9", "A stricter limit, and another configuration is best."),
    ):
        app = TtscopeApp([SHIPPED], limits={"min_accuracy": accuracy}, screen="advice")
        async with app.run_test(size=(COLUMNS, ROWS)) as pilot:
            await settle(pilot)
            film.add(app.export_screenshot(), caption, 4.5)
    (run,) = SHIPPED.glob(RUN)
    app = TtscopeApp([run], screen="run")
    async with app.run_test(size=(COLUMNS, ROWS)) as pilot:
        await settle(pilot)
        for _ in range(6):
            caption = "A recorded run: the batch, and the samples of one problem."
            film.add(app.export_screenshot(), caption, 0.9)
            await pilot.press(*["right"] * 4)
            await settle(pilot)
        film.add(app.export_screenshot(), caption, 2.0)


def main() -> int:
    """Write the animation where the argument says."""
    film = Film()
    command, out = "ttscope demo --shipped", io.StringIO()
    commands.served_path = "models/{}".format  # no path of this machine
    commands.cpu_build_here = lambda: CpuBuild(python="python", omp_threads="1")
    with contextlib.redirect_stdout(out):
        cli.app([*command.split()[1:], "--once"], standalone_mode=False)
    lines = out.getvalue().split("\nrecordings in ")[0].splitlines()
    film.add(printed(command, []), "Which configuration should serve your reasoning model?", 1.5)
    film.add(printed(command, lines), "The fastest that reaches an accuracy of 0.75.", 6.0)
    asyncio.run(screens(film))
    target = Path(sys.argv[1])
    target.write_text(film.svg(), encoding="utf-8")
    sys.stdout.write(f"{target}: {target.stat().st_size / 1e3:.0f} kB, {sum(film.seconds):g} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
