"""The command as a user runs it, for the tests with real engines."""

import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.servers.warm import Warm

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


def warm_ttscope(*arguments, module=None):
    """Run the command, or `module` in its place, in a process that has vLLM imported."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        process = Warm(arguments, module=module, stdout=out, stderr=err, cwd=ROOT)
        try:
            code = process.wait(timeout=300)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return subprocess.CompletedProcess(arguments, code, out.read_text(), err.read_text())
