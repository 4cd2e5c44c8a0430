"""`ttscope report`: recordings and the advice for a budget, as one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from traces.errors import UsageError
from traces.whole_file import whole_file
from tui.formats import wrap
from tui.read_verbs import open_all, print_document
from tui.terminal_text import say


def run_report(
    paths: Sequence[Path],
    output: Path,
    given: Mapping[str, Any],
    *,
    seed: int,
    systems: Sequence[str] = (),
    as_json: bool,
) -> None:
    """Write the page and say where; `given` and `systems` are as for `ttscope advise`."""
    from tui.advice_text import advice_json, advice_lines
    from tui.progress import progress_bar
    from tui.report.material import gather_material
    from tui.report.page import page
    from tui.show_text import show_json

    if output.suffix not in (".html", ".htm"):
        raise UsageError(f"-o {output}: name a .html file")
    with progress_bar() as bar:
        task = bar.add_task("reading", total=1)

        def progress(what: str, done: int, whole: int) -> None:
            bar.update(task, description=what, completed=done, total=whole)

        material = gather_material(
            open_all(paths), given, seed=seed, systems=systems, progress=progress
        )
        text = page(material)
    size = write(output, text)
    answer = material.advice
    if as_json:
        print_document(
            {
                "report": str(output),
                "bytes": size,
                "advice": None if answer is None else advice_json(answer),
                "no_advice": material.no_advice,
                **show_json(material.runs),
            }
        )
        return
    verdict = material.no_advice if answer is None else advice_lines(answer, width=10_000)[0]
    wrote = f"wrote {output} ({size / 1e3:,.0f} kB): {verdict}"
    for line in wrap("", wrote, width=80, indent=0):
        say(line)


def write(path: Path, text: str) -> int:
    """Write a file whole or not at all; return its bytes.

    Raises RecordingError when it cannot be written.
    """
    data = text.encode()
    with whole_file(path) as partial:
        partial.write_bytes(data)
    return len(data)
