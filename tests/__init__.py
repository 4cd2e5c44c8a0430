"""The terminal that all tests and kept outputs are written for, whatever one they run in.

It is set before Typer and Rich are imported, which read some of it once.
"""

import os

from benchmarks.made.terminal import NOT_INHERITED

for name in NOT_INHERITED:
    os.environ.pop(name, None)
os.environ["COLUMNS"] = "80"
