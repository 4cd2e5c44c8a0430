"""What the profiled windows say: time by family, collectives, idle devices."""

from __future__ import annotations

from traces.kernel_time import Collective
from traces.summary import Run
from tui.formats import ABSENT, align, compact, number, percent

NAME = 22


def kernel_lines(run: Run) -> list[str]:
    """Return families, collectives and idle time; empty when no kernels were captured."""
    if not run.time_by_family:
        return []
    rows = [
        (f"  {each.family}", number(each.s, "s"), percent(each.share), "#" * round(30 * each.share))
        for each in run.time_by_family
    ]
    lines = ["kernel time in the profiled steps, per rank", *align(rows, right=(1, 2))]
    if run.device_time is not None:
        found = run.device_time
        spans = f"busy {number(found.busy_s, 's')}, idle {number(found.idle_s, 's')}"
        lines.append(f"in the windows: {spans} ({percent(found.idle_share)})")
    return lines + collective_lines(run.collectives or ())


def collective_lines(found: tuple[Collective, ...]) -> list[str]:
    """Return the table of collectives; `exposed` is what no other stream hid."""
    if not found:
        return []
    rows = [("collective", "ranks", "calls", "bytes", "time", "exposed")]
    for each in found:
        rows.append(
            (
                f"  {each.name}"[:NAME],
                ABSENT if each.group_size is None else str(each.group_size),
                f"{each.calls:,.6g}",
                ABSENT if each.bytes is None else f"{compact(each.bytes)}B",
                number(each.s, "s"),
                ABSENT if each.exposed_s is None else number(each.exposed_s, "s"),
            )
        )
    return align(rows, right=(1, 2, 3, 4, 5))
