"""Imports what the verbs of the command line need, in the process that `warm` forks."""

import gc
import importlib
import os
import pkgutil

# What typer reads of a terminal once, when it is imported.
for name in ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "TERMINAL_WIDTH"):
    os.environ.pop(name, None)

gc.disable()  # imports leave hardly any garbage
for package in ("traces", "advisor", "tui"):
    for each in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        importlib.import_module(each.name)
for name in (
    "attach.attachment", "doctor", "engines.server.start", "runs.record", "serve.serve",
    "sweep.plan",
):  # fmt: skip
    importlib.import_module(f"profiler.{name}")
gc.freeze()
gc.enable()
