"""What the profiled windows say: time by family, collectives, idle devices, the dearest."""

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
        windows = f"{found.windows} window{'s' if found.windows > 1 else ''}"
        of_steps = f", {found.steps:,} steps" if found.steps else ""
        lines.append(f"in {windows}{of_steps}: {spans} ({percent(found.idle_share)})")
        if found.ranks > 1:
            lines[-1] += f" over {found.ranks} ranks"
        cost = [
            *([f"steps took {found.slowdown:.2f} times as long"] if found.slowdown else ()),
            *([f"windows cost {found.cost_share:.1%} of the run"] if found.cost_share else ()),
        ]
        lines += [f"  profiled, {'; '.join(cost)}"] if cost else []
    tops = [
        (f"  {shortened(each.name, 44)}", f"{each.calls:,.6g}", number(each.s, "s"))
        for each in run.top_kernels or ()
    ]
    header = ("most expensive", "calls", "time")
    return [*lines, *collective_lines(run.collectives or ()), *align([header, *tops], right=(1, 2))]


def shortened(name: str, width: int) -> str:
    """Cut a kernel's name in the middle: its end tells the shape or type apart."""
    half = (width - 1) // 2
    return name if len(name) <= width else f"{name[:half]}…{name[-half:]}"


def collective_lines(found: tuple[Collective, ...]) -> list[str]:
    """Return the table of collectives; `exposed` is what no other stream hid."""
    if not found:
        return []
    rows = [("collective", "ranks", "calls", "bytes", "time", "exposed", "bus")]
    for each in found:
        rows.append(
            (
                f"  {each.name}"[:NAME],
                ABSENT if each.group_size is None else str(each.group_size),
                f"{each.calls:,.6g}",
                ABSENT if each.bytes is None else f"{compact(each.bytes)}B",
                number(each.s, "s"),
                ABSENT if each.exposed_s is None else number(each.exposed_s, "s"),
                _bandwidth(each.busbw_bytes_per_s),
            )
        )
    return align(rows, right=(1, 2, 3, 4, 5, 6))


def _bandwidth(bytes_per_s: float | None) -> str:
    return ABSENT if bytes_per_s is None else f"{compact(bytes_per_s)}B/s"
