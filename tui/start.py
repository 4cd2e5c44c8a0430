"""Where the command begins: Ctrl-C ends it without a traceback while Python still imports."""

from __future__ import annotations

from traces.endings import leave_interrupted, leaving_at_ctrl_c


def main() -> None:
    """Run the command line, which answers Ctrl-C itself once it is there."""
    try:
        with leaving_at_ctrl_c():
            from tui import cli
        cli.main()
    except KeyboardInterrupt:
        leave_interrupted()
