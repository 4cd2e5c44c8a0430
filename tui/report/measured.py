"""What was measured: the runs, where their time went, kernels, and accepted draft tokens."""

from __future__ import annotations

from collections.abc import Sequence

from traces.metrics import BY_TAG, estimate_of
from traces.schema import Estimate
from traces.summary import Run
from tui.formats import compact, number, percent
from tui.report.markup import Content, Html, absent, empty, figure, join, quantity, table, tag, term
from tui.report.meanings import KINDS, OF_RUN
from tui.report.words import configuration

MOST_RUNS = 100  # rows of a table; the page stays small
SAMPLES_OF_IMPORTS = ("sample_latency_s.p50", "Latency of a sample as the imported file has it.")


def name_of(run: Run, index: int) -> Html:
    """Return a run's number in the table of runs and its configuration."""
    imported = run.imported is not None
    return configuration(run.engine, run.policy, lead=f"{index + 1}", imported=imported)


def _count(value: float | None, meaning: str, *, key: str | None = None) -> Html:
    text = None if value is None else f"{value:,.6g}"
    return figure(value, "tokens", meaning, key=key, text=text)


def _cut(runs: Sequence[Run]) -> Html | None:
    left = len(runs) - MOST_RUNS
    if left <= 0:
        return None
    return tag("p", f"{left:,} more runs are left out here; ttscope show tells of each.",
               class_="note")  # fmt: skip


def recorded_runs(runs: Sequence[Run]) -> Html:
    """Return the table of runs with their numbers, and what a reader must know of them."""
    if not runs:
        return empty("No run: the recordings hold no problem that was posed.")
    tags = [t for t in OF_RUN if t != "cost_usd_per_problem" or _any(runs, BY_TAG[t].get)]
    told = dict(OF_RUN)
    if _any(runs, BY_TAG["sample_latency_s.p50"].get):
        tags.append("sample_latency_s.p50")
        told["sample_latency_s.p50"] = ("sample latency p50", SAMPLES_OF_IMPORTS[1])
    decided = "Problems that got an answer; every mean rests on these."
    heads: list[Content] = ["run", term("problems", decided)]
    heads += [term(*told[name]) for name in tags]
    rows = []
    for index, run in enumerate(runs[:MOST_RUNS]):
        where = f"runs.{index}"
        cells: list[Content] = [
            join([name_of(run, index), tag("span", run.recording, class_="recording")]),
            _count(run.problems, decided, key=f"{where}.problems"),
        ]
        for name in tags:
            estimate = estimate_of(run, name)
            cells.append(quantity(estimate, told[name][1], key=f"{where}.{name}"))
        rows.append(cells)
    caption = "Recorded runs, per problem, with 90 % intervals"
    whole = table(heads, rows, caption=caption, class_="runs")
    return join([whole, _cut(runs), _warnings(runs)])


def _any(runs: Sequence[Run], get: object) -> bool:
    return callable(get) and any(get(run) is not None for run in runs)


def _warnings(runs: Sequence[Run]) -> Html | None:
    found: dict[str, list[str]] = {}
    for run in runs:
        notes = list(run.notes)
        if not run.complete:
            notes.append(
                "incomplete: it was cut off or is still going; problems in flight, left out: "
                f"{run.problems_in_flight:,}"
            )
        elif run.problems_in_flight:
            notes.append(f"problems that never ended, left out: {run.problems_in_flight:,}")
        for note in notes:
            found.setdefault(note, []).append(run.recording)
    if not found:
        return None
    items = [
        tag("li", note, " ", tag("span", f"({', '.join(dict.fromkeys(names))})", class_="how"))
        for note, names in found.items()
    ]
    return join([tag("h3", "To know before the numbers"), tag("ul", *items)])


def time_breakdown(runs: Sequence[Run]) -> Html:
    """Return how much of each run's time was prefill, decode, both at once, and idle."""
    timed = [(i, run) for i, run in enumerate(runs) if sum(run.seconds.values()) > 0]
    if not timed:
        return empty(
            "No steps: these recordings do not hold what the engine did step by step. ttscope "
            "record holds it; imported outcomes and servers watched from outside do not."
        )
    length = "Mean seconds of one step of this kind."
    heads: list[Content] = ["run", "share of the time"]
    heads += [term(kind, told) for kind, told in KINDS.items()]
    heads += [
        term("whole", "From the first step to the last."),
        *(term(f"a {kind} step", length) for kind in ("prefill", "decode", "mixed")),
    ]
    rows = []
    for index, run in timed[:MOST_RUNS]:
        whole = sum(run.seconds.values())
        shares = {kind: run.seconds.get(kind, 0.0) / whole for kind in KINDS}
        cells: list[Content] = [name_of(run, index), _stack(shares)]
        for kind, told in KINDS.items():
            spent = run.seconds.get(kind, 0.0)
            meaning = f"{told} {number(spent, 's')} of {number(whole, 's')}."
            cells.append(figure(shares[kind], "1", meaning, text=percent(shares[kind])))
        cells.append(figure(whole, "s", "From the first step to the last."))
        for kind in ("prefill", "decode", "mixed"):
            where = f"runs.{index}.step_time.{kind}_s"
            cells.append(quantity(run.step_time.get(f"{kind}_s"), length, key=where))
        rows.append(cells)
    keys = [tag("span", tag("i", class_=f"swatch {kind}"), kind, class_="key") for kind in KINDS]
    none = len(runs) - len(timed)
    note = f"Without recorded steps, and so not shown: {none:,} of {len(runs):,} runs."
    return join(
        [
            tag("p", *keys, class_="legend"),
            table(heads, rows, caption="Share of each run's time by kind of step"),
            tag("p", note, class_="note") if none else None,
        ]
    )


def _stack(shares: dict[str, float]) -> Html:
    words = ", ".join(f"{kind} {percent(share)}" for kind, share in shares.items())
    parts = [
        tag("i", class_=kind, style=f"width:{share * 100:.2f}%")
        for kind, share in shares.items()
        if share > 0
    ]
    return tag(
        "span", *parts, class_="bar stack", role="img", tabindex="0", aria_label=words,
        data_tip=words,
    )  # fmt: skip


def _bar(share: float, tip: str, low: float | None = None, high: float | None = None) -> Html:
    """Return a bar of a share of 1, with its interval as a line on it."""
    parts = [tag("i", class_="fill", style=f"width:{share * 100:.2f}%")]
    if low is not None and high is not None:
        place = f"left:{low * 100:.2f}%;width:{max(high - low, 0.002) * 100:.2f}%"
        parts.append(tag("s", class_="span", style=place))
    return tag("span", *parts, class_="bar", role="img", aria_label=tip)


def kernels(runs: Sequence[Run]) -> Html:
    """Return families of kernels, collectives and idle devices of the runs that were profiled."""
    profiled = [(i, run) for i, run in enumerate(runs) if run.time_by_family]
    if not profiled:
        return empty(
            "No kernels: no run was profiled. ttscope record --kernels 4/400 profiles 4 steps in "
            "400; ttscope import takes traces of the PyTorch profiler."
        )
    parts: list[Content] = []
    for index, run in profiled[:MOST_RUNS]:
        parts += [
            tag("h3", name_of(run, index)),
            _families(run, index),
            _idle(run),
            _collectives(run),
        ]
    return join(parts)


def _families(run: Run, index: int) -> Html:
    meaning = "Own time of the kernels of this family in the profiled steps, per rank."
    rows = []
    for place, each in enumerate(run.time_by_family or ()):
        where = f"runs.{index}.time_by_family.{place}"
        rows.append(
            [
                each.family,
                _bar(each.share, f"{each.family} {percent(each.share)}"),
                figure(each.share, "1", meaning, key=f"{where}.share", text=percent(each.share)),
                figure(each.s, "s", meaning, key=f"{where}.s"),
            ]
        )
    heads = ("family", "share", "", term("time", meaning))
    return table(heads, rows, caption="Kernel time by family", class_="bars")


def _idle(run: Run) -> Html:
    found = run.device_time
    if found is None:
        return tag("p", "How long the devices were idle was not recorded.", class_="note")
    busy = "Device time in the profiled windows in which something ran, over all ranks."
    idle = "Device time in the profiled windows in which nothing ran, over all ranks."
    many = "window" if found.windows == 1 else "windows"
    return tag(
        "p",
        f"In {found.windows:,} {many}: busy ",
        figure(found.busy_s, "s", busy),
        ", idle ",
        figure(found.idle_s, "s", idle),
        " (",
        figure(found.idle_share, "1", idle, text=percent(found.idle_share)),
        ").",
    )


def _collectives(run: Run) -> Html:
    if not run.collectives:
        why = "No collectives: the run used one device, or its ranks did not talk in the windows."
        return tag("p", why, class_="note")
    meanings = {
        "ranks": "Devices that take part.",
        "calls": "Calls per rank in the profiled steps.",
        "bytes": "Bytes handed to the collective, per rank.",
        "time": "Time per rank; waiting for a late rank counts.",
        "exposed": "Time that no computation hid.",
        "bus": "What a link carries a second, as nccl-tests counts it.",
    }
    rows: list[list[Content]] = []
    for each in run.collectives:
        bandwidth = each.busbw_bytes_per_s
        rows.append(
            [
                each.name,
                _count(each.group_size, meanings["ranks"]),
                _count(each.calls, meanings["calls"]),
                _bytes(each.bytes, meanings["bytes"], "B"),
                figure(each.s, "s", meanings["time"]),
                figure(each.exposed_s, "s", meanings["exposed"]),
                _bytes(bandwidth, meanings["bus"], "B/s"),
            ]
        )
    heads = ["collective", *(term(name, told) for name, told in meanings.items())]
    return table(heads, rows, caption="Collectives: the devices talking to one another")


def _bytes(size: float | None, meaning: str, unit: str) -> Html:
    if size is None:
        return absent(meaning)
    return figure(size, "B", meaning, text=f"{compact(size)}{unit}")


def speculation(runs: Sequence[Run]) -> Html:
    """Return which drafted tokens were accepted, by position, of the runs that speculated."""
    found = [(i, run) for i, run in enumerate(runs) if run.acceptance is not None]
    if not found:
        return empty(
            "No acceptance: no run used speculative decoding. ttscope record --speculative "
            "records one that does."
        )
    meaning = "Share of the drafts whose token at this position the model kept."
    parts: list[Content] = [
        tag(
            "p",
            "A draft guesses the next tokens and the model keeps the leading ones that it would "
            "have written itself. The higher the bars and the slower they fall, the more "
            "speculation pays; the line on a bar is its 90 % interval.",
        )
    ]
    drawn = [_accepted(run, index, meaning) for index, run in found[:MOST_RUNS]]
    return join([*parts, tag("div", *drawn, class_="charts")])


def _accepted(run: Run, index: int, meaning: str) -> Html:
    assert run.acceptance is not None
    length = "Tokens gained by a step with a draft: the kept ones and the model's own."
    where = f"runs.{index}.acceptance"
    rows = []
    for place, share in enumerate(run.acceptance.accepted_per_position):
        rows.append(_position(place, share, meaning, f"{where}.accepted_per_position.{place}"))
    heads = ("position", "", term("share kept", meaning))
    gained = [
        "In a step with a draft a sample gains ",
        quantity(run.acceptance.length, length, key=f"{where}.length"),
        " tokens; without a draft it gains 1.",
    ]
    return tag(
        "figure",
        tag("figcaption", name_of(run, index)),
        tag("p", *gained),
        table(heads, rows, caption="Kept by position of the draft", class_="bars"),
    )


def _position(place: int, share: Estimate | None, meaning: str, where: str) -> list[Content]:
    drawn = None
    if share is not None:
        drawn = _bar(share.value, f"position {place + 1}: {share.value:.3f}", share.low, share.high)
    return [str(place + 1), drawn or "", quantity(share, meaning, key=where)]
