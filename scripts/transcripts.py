"""Make the transcripts in benchmarks/transcripts.md again, in a pseudo-terminal of 80 columns.

    python -m scripts.transcripts [install] [doctor]

In the checkout's folder, both unless one is named. A command that fails leaves its transcript as it
was.
"""

import re
import sys
import time
from pathlib import Path

from benchmarks.made.terminal import ROOT, in_terminal

PAGE = ROOT / "benchmarks" / "transcripts.md"
COMMANDS = {
    "install": ("make", "install"),
    "doctor": (".venv/bin/ttscope", "doctor"),
}


def rewritten(page: str, command: str, took_s: float, lines: list[str]) -> str:
    """Return the page with what a command left on the screen below its heading."""
    body = "\n".join(lines).replace(str(ROOT), "~/ttscope").replace(str(Path.home()), "~")
    minutes, seconds = divmod(round(took_s), 60)
    took = f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
    block = f"## {command} ({took})\n\n```\n$ {command}\n{body}\n```\n"
    pattern = rf"^## {re.escape(command)}\b.*?\n```\n.*?^```\n"
    found = re.search(pattern, page, re.DOTALL | re.MULTILINE)
    if found is None:
        return f"{page.rstrip()}\n\n{block}"
    return page[: found.start()] + block + page[found.end() :]


def main() -> int:
    """Run what is named; exits 1 where one failed."""
    failed = 0
    for name in sys.argv[1:] or COMMANDS:
        command, begun = COMMANDS[name], time.monotonic()
        seen = in_terminal(*command, cwd=ROOT, timeout_s=3600)
        if seen.code:
            sys.stderr.write(f"{' '.join(command)} exits {seen.code}\n{seen.text}\n")
            failed = 1
            continue
        shown = " ".join(command).removeprefix(".venv/bin/")
        took_s = time.monotonic() - begun
        PAGE.write_text(rewritten(PAGE.read_text(), shown, took_s, seen.lines))
    return failed


if __name__ == "__main__":
    sys.exit(main())
