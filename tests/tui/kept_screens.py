"""Screens as they stand in tests/tui/kept; with KEEP_SEEN=1 the tests write them."""

import os
from pathlib import Path

from tests.tui.pilot import screen_text, settle

KEPT = Path(__file__).parent / "kept"
SIZES = ((80, 24), (120, 40))


def compare(app, path):
    """Compare what the screen shows with a file."""
    text = f"{screen_text(app)}\n"
    assert max(map(len, text.splitlines())) <= app.size.width
    if os.environ.get("KEEP_SEEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{path.name} differs: KEEP_SEEN=1 writes it"


async def is_kept(pilot, name, sizes=SIZES):
    """Compare what the screen shows at each size with the file of that name."""
    for columns, rows in sizes:
        await pilot.resize_terminal(columns, rows)
        await settle(pilot)
        compare(pilot.app, KEPT / f"{name}-{columns}x{rows}.txt")
