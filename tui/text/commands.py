"""Commands that are printed to be pasted: how they begin on this machine, and how they break."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advisor.advice.command import CpuBuild
from profiler.engines.options import model_path
from traces.errors import UsageError
from traces.plain_text import name_word, quoted
from tui.text.layout import wrap

if TYPE_CHECKING:
    from profiler.engines.interface import Capability

_OWN = re.compile(r"\bttscope (?:record|sweep) .*")
_WORD = re.compile(r"""(?:'[^']*'|"[^"]*"|\\.|[^\s'"\\])+""")


def served_path(name: str) -> str:
    """Return what vLLM is given for a model: its folder, whole, or its name on the hub."""
    try:
        path = Path(model_path(name))
    except UsageError:  # a server's own name that looks like one of ours
        return name
    return str(path.resolve()) if path.is_dir() else str(path)


def cpu_build_here() -> CpuBuild | None:
    """Return vLLM's CPU build in this Python, None where it is not installed."""
    from profiler.engines.vllm.environment import on_cpu

    if not on_cpu():
        return None
    return CpuBuild(python=sys.executable, omp_threads=os.environ.get("OMP_NUM_THREADS", "1"))


def here() -> dict[str, Any]:
    """Return what `Advisor.recommend` is to know of where its commands are run."""
    return {"model_path": served_path, "cpu_build": cpu_build_here()}


def own_name() -> str:
    """Return what calls this ttscope in a shell: its name where that finds it, else its path."""
    script = Path(sys.argv[0])
    if script.name != "ttscope" or not script.is_file():
        return "ttscope"
    on_path = shutil.which("ttscope")
    return "ttscope" if on_path and script.samefile(on_path) else shlex.quote(str(script))


def next_lines(*words: str | Path) -> list[str]:
    """Return the command that is worth running next, as an output ends with it.

    A path is a name, whatever it begins with. Texts are options too.
    """
    given = (name_word(each) if isinstance(each, Path) else quoted(each) for each in words)
    command = " ".join((own_name(), *given))
    lines = command_lines(command, width=80, indent=10)
    return ["", f"{'next':<10}{lines[0].lstrip()}", *lines[1:]]


def split_command(text: str) -> tuple[str, str | None]:
    """Part a sentence from the ttscope command that it ends with, where there is one."""
    match = _OWN.search(text)
    if match is None:
        return text, None
    return text[: match.start()].rstrip(), own_name() + match[0].removeprefix("ttscope")


def command_lines(command: str, *, width: int, indent: int = 0) -> list[str]:
    r"""Break a command into lines that end in \, so that they can be pasted together.

    An option keeps its value where both fit on a line, and only a word that is longer than a line
    is wider than `width`.
    """
    parts: list[str] = []
    room = width - indent - 4 - 2
    for word in _WORD.findall(command):
        option = parts and re.fullmatch(r"--?[a-z][\w.-]*", parts[-1])
        if option and not word.startswith("-") and len(parts[-1]) + 1 + len(word) <= room:
            parts[-1] += f" {word}"
        else:
            parts.append(word)
    lines, line = [], " " * indent
    for part in parts:
        if line.strip() and len(line) + 1 + len(part) + 2 > width:
            lines.append(f"{line} \\")
            line = " " * (indent + 4) + part
        else:
            line += f" {part}" if line.strip() else part
    return [*lines, line]


def findings_text(findings: Sequence[Capability], *, width: int, indent: int) -> list[str]:
    """Return what can be seen, and the flag or command that brings what cannot, each once."""
    lines: list[str] = []
    named: set[str] = set()
    for each in findings:
        mark = {True: "yes", False: "no", None: "-"}[each.present]
        lines += wrap(f"{mark:<4}{each.what}", each.detail, width=width, indent=indent)
        if each.needs:
            lines += wrap("", f"needs: {each.needs}", width=width, indent=indent)
        for command in each.run:
            if command not in named:
                lines += command_lines(command, width=width, indent=4)
        named.update(each.run)
    return lines
