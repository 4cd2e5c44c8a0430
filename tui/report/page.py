"""The page as text: the sections in their order, in one file with its style and script."""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.metadata
from collections.abc import Callable, Mapping
from datetime import datetime
from string import Template

from traces.plain_text import clean
from traces.schema.engine import EngineConfig, model_words
from traces.schema.formats import counted
from tui.report.fronts import fronts
from tui.report.markup import Content, Empty, Html, join, page_style, resource, tag
from tui.report.material import Material
from tui.report.measured import (
    kernels,
    predicted_against_measured,
    recorded_runs,
    speculation,
    time_breakdown,
)
from tui.report.verdict import verdict
from tui.report.words import GLOSSARY
from tui.text.recordings.live import server_name, warning_lines, watched_lines

Section = tuple[str, str, Callable[[Material], Html]]

SECTIONS: tuple[Section, ...] = (
    ("verdict", "Verdict", verdict),
    ("fronts", "Accuracy against what it takes", fronts),
    ("runs", "What was measured", lambda material: recorded_runs(material.runs)),
    ("time", "Where the time went", lambda each: time_breakdown(each.runs, each.watched)),
    ("kernels", "Kernels and collectives", lambda material: kernels(material.runs)),
    ("speculation", "Speculative decoding", speculation),
    ("checked", "Predicted against measured", predicted_against_measured),
)


def page(material: Material) -> str:
    """Return the whole page; the same material gives the same bytes."""
    sections = list(SECTIONS)
    if material.watched:
        sections.insert(
            1 if material.of_live else 3, ("watched", "Servers that were watched", _watched)
        )
    sections.append(("words", "What the words mean", _glossary))
    made = [(name, title, make(material)) for name, title, make in sections]
    parts = [each for each in made if not isinstance(each[2], Empty)]
    lacking = [each for each in made if isinstance(each[2], Empty)]
    if lacking:
        reasons = (tag("dt", title) + tag("dd", why) for _, title, why in lacking)
        told = tag("dl", *map(Html, reasons))
        parts.insert(-1, ("lacking", "What these recordings do not hold", told))
    main = join(
        (tag("section", tag("h2", title), told, id=name) for name, title, told in parts), "\n"
    )
    links = [tag("a", title, href=f"#{name}") for name, title, _ in parts]
    script = resource("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    version = importlib.metadata.version("ttscope")
    filled: Mapping[str, str] = {
        "hash": digest,
        "version": html.escape(version),
        "title": html.escape(clean(_title(material))),
        "style": page_style(),
        "header": _header(material),
        "contents": join(links),
        "main": main,
        "footer": _footer(version),
        "script": script,
    }
    return Template(resource("page.html")).substitute(filled)


def _title(material: Material) -> str:
    if material.of_live:
        servers = list(dict.fromkeys(map(server_name, material.watched)))
        return f"What limits {servers[0] if len(servers) == 1 else f'{len(servers)} servers'}"
    if material.advice is None:
        return "What was recorded, and what it lacks for advice"
    names = dict.fromkeys(model_words(run.engine.model) for run in material.runs)
    if len(names) > 1:
        return f"Which of {len(names)} models to serve, and how"
    return f"How to serve {next(iter(names), 'the model')}"


def _header(material: Material) -> Html:
    runs = material.runs
    models = ", ".join(dict.fromkeys(model_words(run.engine.model) for run in runs))
    intro = (
        "A reasoning model can think longer, or answer several times and vote: both buy accuracy "
        "with time, money and energy. This page shows from measured runs which configuration to "
        "serve: model, policy (how many samples, how chosen) and engine settings."
    )
    if material.advice is None:
        intro = "This page shows what was recorded, and says what advice would need."
    if material.of_live:
        intro = "This page shows what a watched deployment spends its time on, and what to try."
    signs = "[a, b] is a 90 % interval, - was not measured, * lies outside what was measured."
    reading = f"Point at a number, or reach it with the Tab key, for its meaning. {signs}"
    printed = f"{signs} What the words mean is on the last page."
    return join(
        [
            tag("h1", _title(material)),
            tag("p", intro, class_="about"),
            tag("p", _facts(material, models), _made(material), class_="about"),
            tag("p", reading, class_="about screen"),
            tag("p", printed, class_="about paper"),
        ]
    )


def _facts(material: Material, models: str) -> str:
    runs, servers = material.runs, len(material.watched)
    if not runs:
        return f"{counted(servers, 'server')} watched." if servers else "No runs."
    predicted = sum(run.replay_of is not None for run in runs)
    counts = ((len(runs) - predicted, "recorded run"), (predicted, "predicted run"))
    parts = [f"{' and '.join(counted(n, what) for n, what in counts if n)} of {models}"]
    workloads = dict.fromkeys(run.workload for run in runs if run.workload is not None)
    for workload in list(workloads)[:3]:
        parts.append(f"Workload {workload.name}, {workload.problems:,} problems")
    engines = dict.fromkeys(_platform(run.engine) for run in runs if run.imported is None)
    parts += [engine for engine in engines if engine][:3]
    return ". ".join(parts) + "."


def _made(material: Material) -> Html:
    """Return where and when it was recorded, and the command that made the page."""
    parts: list[Content] = []
    if material.machines:
        parts.append(f" On {' and '.join(material.machines[:3])}.")
    if material.begun is not None:
        parts.append(f" Recorded from {_moment(material.begun)} on.")
    if material.written is not None:
        parts += [f" This page was written at {_moment(material.written)} by "]
        words = (material.command or "").split(" ")
        spans = (tag("span", each, class_="option") if each[:2] == "--" else each for each in words)
        parts += [tag("code", join(spans, " ")), "."]
    return join(parts)


def _moment(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M} UTC"


def _platform(engine: EngineConfig) -> str:
    if not engine.vllm_version:  # the machines beside it tell the device
        return ""
    return f"vLLM {engine.vllm_version}" + (f" on {engine.gpu}" if engine.gpu else "")


def _watched(material: Material) -> Html:
    parts = []
    for each in material.watched:
        lines, warned = watched_lines(each), warning_lines(each)
        lines = [*warned, *([""] if warned else []), *lines[lines.index("") + 1 :]]
        parts += [tag("h3", f"{server_name(each)} ({each.recording})")]
        parts += [tag("pre", join(lines, "\n"), tabindex="0")]
    return join(parts)


def _glossary(material: Material) -> Html:
    return tag("dl", *(tag(part, text) for pair in GLOSSARY
                       for part, text in zip(("dt", "dd"), pair, strict=True)))  # fmt: skip


def _footer(version: str) -> Html:
    return join(
        [
            f"Made by ttscope {version} from recordings. No prompt and no answer is on this page. "
            "It needs no network. Numbers are those of ttscope show and ttscope advise."
        ]
    )
