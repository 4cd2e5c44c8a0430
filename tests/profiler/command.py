"""The command as a user runs it, in processes that begin with its modules imported."""

import subprocess
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.servers.warm import VERBS, VLLM, Warm

ROOT = Path(__file__).parents[2]


class Running(Warm):
    """A command that runs; what it says is kept until it ends."""

    def __init__(self, *arguments, imported=VERBS, cwd=ROOT, **rest):
        self._says = [tempfile.NamedTemporaryFile("r") for _ in range(2)]  # noqa: SIM115
        out, err = (each.name for each in self._says)
        super().__init__(arguments, imported=imported, stdout=out, stderr=err, cwd=cwd, **rest)

    def communicate(self, timeout=None):
        """Wait until it ends; its stdout and stderr."""
        self.wait(timeout)
        said = [each.read() for each in self._says]
        for each in self._says:
            each.close()
        return said


def ttscope(*arguments, **rest):
    """Run the command, or `module` in its place, as `Running` does."""
    process = Running(*arguments, **rest)
    try:
        out, err = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


warm_ttscope = partial(ttscope, imported=VLLM)
