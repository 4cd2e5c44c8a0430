"""`ttscope report`: recordings and the advice for a budget, as one HTML file."""

from __future__ import annotations

import shlex
import sys
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from traces.errors import RecordingError, UsageError
from traces.files import whole_file
from traces.schema.formats import number
from traces.summary.run import to_plain
from tui.options import (
    ACCOUNTS,
    BUDGET,
    OPTIONS,
    AccountOptions,
    BudgetOptions,
    BudgetSeed,
    Json,
    Recordings,
    option,
    takes,
)
from tui.terminal import say_all, say_json
from tui.text.layout import wrap
from tui.verbs.open_all import open_all

if TYPE_CHECKING:
    from tui.report.material import Material


@dataclass(frozen=True, kw_only=True)
class Report:
    """Recordings, and the page."""

    recordings: Recordings
    output: Path = option(MISSING, "The page: report.html.", "-o", "--output")


@dataclass(frozen=True, kw_only=True)
class ReportOutput:
    """How it is worked out and said."""

    seed: BudgetSeed = 0
    as_json: Json = False


@takes(
    Report,
    BudgetOptions,
    AccountOptions,
    ReportOutput,
    panels=BUDGET | {"effort_map": ACCOUNTS, "seed": OPTIONS},
)
def report(
    asked: Report, budget: BudgetOptions, more: AccountOptions, printed: ReportOutput
) -> None:
    """Write one HTML page: what was measured, and what to run for a budget."""
    from tui.report.material import gather_material
    from tui.report.page import page
    from tui.text.advice import advice_json
    from tui.text.recordings.show import show_json
    from tui.verbs.progress import progress_bar

    if asked.output.suffix not in (".html", ".htm"):
        raise UsageError(f"-o {asked.output}: name a .html file")
    try:
        asked.output.parent.stat()  # before the work
    except OSError as error:
        raise RecordingError(f"{asked.output}: cannot be written ({error.strerror})") from None
    with progress_bar() as bar:
        task = bar.add_task("reading", total=1)

        def progress(what: str, done: int, whole: int) -> None:
            bar.update(task, description=what, completed=done, total=whole)

        material = gather_material(
            open_all(asked.recordings),
            budget.given(),
            seed=printed.seed,
            systems=budget.systems(),
            power_cap_w=budget.power_cap,
            tariff=more.tariff(),
            efforts=more.effort_map,
            progress=progress,
            command=shlex.join(["ttscope", *sys.argv[1:]]),
        )
        data = page(material).encode()
    with whole_file(asked.output) as partial:
        partial.write_bytes(data)
    size = len(data)
    answer = material.advice
    if printed.as_json:
        accounts = material.accounts
        costed = {} if accounts is None or not accounts.known else {"costs": to_plain(accounts)}
        mapped = {} if material.efforts is None else {"efforts": to_plain(material.efforts)}
        say_json(
            {
                "report": str(asked.output),
                "bytes": size,
                "advice": None if answer is None else advice_json(answer),
                "no_advice": material.no_advice,
                **costed,
                **mapped,
                **show_json(material.runs),
            }
        )
        return
    wrote = f"wrote {asked.output} ({number(size, 'B')}): {headline(material)}"
    say_all([*wrap("", wrote, width=80, indent=0), "", "next      open it in a browser"])


def headline(material: Material) -> str:
    """Return the verdict in a line: of several servers that of the first with a bottleneck."""
    from tui.text.advice import verdict
    from tui.text.recordings.live import server_name, verdict_text

    answer = material.advice
    if material.of_live:
        server = min(material.watched, key=lambda each: not each.verdict.found)  # as in the app
        words = verdict_text(server.verdict)
        return words if len(material.watched) == 1 else f"{server_name(server)}: {words}"
    return material.no_advice or "" if answer is None else verdict(answer)[0]
