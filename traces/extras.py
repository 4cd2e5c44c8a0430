"""How to install what an extra of ttscope needs. ttscope itself is on no package index."""

from __future__ import annotations

import importlib.metadata
import re
import shlex
import sys


def install_command(extra: str) -> str:
    """Return the command that gives this Python the packages of an extra."""
    asked = re.compile(rf"""extra == ["']{extra}["']""")
    try:
        listed = importlib.metadata.requires("ttscope") or []
    except importlib.metadata.PackageNotFoundError:  # run from its sources
        listed = []
    packages = [each.partition(";")[0].strip() for each in listed if asked.search(each)]
    if not packages:
        return f"pip install -e '.[{extra}]' in a checkout of ttscope"
    return shlex.join([sys.executable, "-m", "pip", "install", *packages])
