"""The command as a user runs it, for the tests with real engines."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def ttscope(*arguments, **rest):
    """Run the command as a user would; stdout, and stderr on failure."""
    return subprocess.run(
        [sys.executable, "-c", "from tui.cli import main; main()", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **rest,
    )
