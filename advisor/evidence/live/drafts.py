"""How the drafts of watched requests went. A server tells their sums alone.

Spans and histograms say nothing of a request's drafts. The page of a server does: how many of its
drafts' tokens were accepted at each position, or how many tokens a step keeps on average. Each step
of a request is drawn from that, as if all requests were alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from advisor.evidence.runs import ProblemRun, RecordedRun, Sample, steps_until
from traces.errors import RecordingError
from traces.live.engine_names import SGLANG, software_of
from traces.live.numbers import (
    ACCEPTED_AT,
    DRAFTED,
    DRAFTS,
    ITL,
    STARTED,
    Window,
    by_value,
    numbers_in,
    window_of,
)
from traces.recording.reader import Recording, batches, begin_again
from traces.schema.engine import UNKNOWN_METHOD, EngineConfig, Speculative
from traces.schema.formats import counted
from traces.statistics import Floats


@dataclass(frozen=True, kw_only=True)
class Drafts:
    """What a page tells of drafts: `accepted` is the chance of each position to be kept.

    `share` of the steps of a request have a draft, of so many `tokens`.
    """

    accepted: Floats
    share: float
    tokens: int

    @property
    def kept(self) -> float:
        """The tokens that a step of a request keeps on average."""
        return 1.0 + self.share * float(self.accepted.sum())

    @property
    def forwarded(self) -> float:
        """The tokens that a step of a request computes on average."""
        return 1.0 + self.share * self.tokens


def drafts_of(windows: Sequence[Window], engine: EngineConfig) -> Drafts | None:
    """Return how an engine's drafts went over its servers; None where it has none or none tells.

    Where the servers drafted nothing each step keeps one token.
    """
    if engine.speculative is None:
        return None
    acceptances = [(window, numbers_in(window, "")) for window in windows]
    acceptances = [
        (window, each) for window, each in acceptances if each.acceptance_length is not None
    ]
    tokens = engine.speculative.num_speculative_tokens
    if not acceptances:
        counts = [each for window in windows if (each := window.total(DRAFTS)) is not None]
        if not counts or any(counts):
            return None
        return Drafts(accepted=np.zeros(tokens), share=0.0, tokens=tokens)
    weights = [float(each.drafts or 1) for _, each in acceptances]
    positions = [
        np.array(each.accepted_per_position)
        if each.accepted_per_position is not None
        else _as_long_as(each.acceptance_length or 1.0, tokens)
        for _, each in acceptances
    ]
    most = max(map(len, positions))
    padded = [np.pad(each, (0, most - len(each))) for each in positions]
    accepted = np.minimum.accumulate(np.clip(np.average(padded, axis=0, weights=weights), 0.0, 1.0))
    drafts, drafted, steps = (sum(column) for column in zip(*map(_counts, windows), strict=True))
    # Of an engine that counts the tokens between two chunks and not these, each step has one.
    per_step = drafts / steps if steps and software_of(engine) != SGLANG else 1.0
    length = round(drafted / drafts) if drafts and drafted else tokens
    return Drafts(accepted=accepted, share=min(per_step, 1.0), tokens=length)


def with_lengths(recording: Recording) -> Recording:
    """Return a recording whose engines say how far ahead they draft, as their /metrics tell.

    Its manifest may not: counters may begin later than the watch, and older versions of ttscope
    kept no length. Raises RecordingError where a server drafts and nothing tells the length.
    """
    engines = recording.manifest.engines
    lacking = [key for key, engine in engines.items() if engine.speculative is None]
    if not lacking or not recording.rows("scrapes"):
        return recording
    columns = ("engine", "time", "name", "labels", "le", "value")
    used = pl.col("name").is_in([DRAFTS, DRAFTED, ACCEPTED_AT, STARTED])
    parts = begin_again(recording, lambda: list(batches(recording, "scrapes", columns, used)))
    rows = pl.concat(parts)
    completed = dict(engines)
    for key in lacking:
        window = window_of(rows, key)
        if window is None:
            continue
        drafts, drafted = window.total(DRAFTS), window.total(DRAFTED)
        tokens = len(by_value(window.by_label(ACCEPTED_AT), "position"))
        tokens = tokens or (round(drafted / drafts) if drafts and drafted else 0)
        if tokens:
            setting = Speculative(method=UNKNOWN_METHOD, num_speculative_tokens=tokens)
            completed[key] = replace(engines[key], speculative=setting)
        elif drafts:
            raise RecordingError(f"{recording.name}: {_unknown_length(engines[key])}")
    if completed == engines:
        return recording
    return replace(recording, manifest=replace(recording.manifest, engines=completed))


def _unknown_length(engine: EngineConfig) -> str:
    """Say that it is not known how many tokens ahead a server drafts, and what would tell it."""
    why = (
        "the server drafts, and how many tokens ahead is not known, so that a replay would be wrong"
    )
    if software_of(engine) == SGLANG:
        return f"{why}. Watch it again and name SGLang's own URL, whose /server_info has it"
    return (
        f"{why}. Watch it again with the plugin (docs/attach.md), or with metrics that count "
        "accepted tokens by position"
    )


def _counts(window: Window) -> tuple[float, float, float]:
    """Return drafts, their tokens, and the steps of requests, 0 for what is not told."""
    gaps = window.histograms.get(ITL)
    steps = 0.0 if gaps is None else float(gaps.counts.sum())
    return window.total(DRAFTS) or 0.0, window.total(DRAFTED) or 0.0, steps


def _as_long_as(length: float, tokens: int) -> Floats:
    """Return chances that fall by one factor a position and keep so many tokens in all.

    The factor is found by bisection, as the sum rises with it.
    """
    places = np.arange(1, tokens + 1)
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if (middle**places).sum() < length - 1 else (low, middle)
    return np.asarray(high**places)


def with_drafts(
    runs: Sequence[RecordedRun], windows: Mapping[EngineConfig, Sequence[Window]]
) -> tuple[list[RecordedRun], list[str]]:
    """Return watched runs whose samples say how their drafts went, and what to say of it.

    `windows` are those of the servers that each run's engine stands for.
    """
    completed, notes = [], []
    for run in runs:
        drafts = None
        if run.drafts_untold:
            drafts = drafts_of(windows.get(run.engine, ()), run.engine)
        if drafts is None:
            completed.append(run)
            continue
        rng = np.random.default_rng([len(run.problems), drafts.tokens])
        problems = {name: _drafted(each, drafts, rng) for name, each in run.problems.items()}
        completed.append(replace(run, problems=problems))
        setting = run.engine.speculative
        if setting is not None and setting.method == UNKNOWN_METHOD:
            ahead = counted(setting.num_speculative_tokens, "token")
            notes.append(
                f"{run.recording}: the server drafts {ahead} ahead, by its metrics. They do "
                "not name the method"
            )
        notes.append(
            f"{run.recording}: how drafts went is known on average alone, {drafts.kept:.2f} tokens "
            "a step. Each request has that"
        )
    return completed, list(dict.fromkeys(notes))


def _drafted(problem: ProblemRun, told: Drafts, rng: np.random.Generator) -> ProblemRun:
    return replace(problem, samples=tuple(_sample(each, told, rng) for each in problem.samples))


def _sample(sample: Sample, told: Drafts, rng: np.random.Generator) -> Sample:
    """Return a sample with the tokens of each of its verify steps, the last cut where it ended."""
    wanted = max(sample.output_tokens - 1, 0)
    steps = max(wanted, 1)  # each keeps one at least
    drafted = rng.random(steps) < told.share
    chance = rng.random(steps)
    accepted = len(told.accepted) - np.searchsorted(told.accepted[::-1], chance, side="right")
    advance = steps_until(1 + accepted * drafted, wanted)
    scheduled = 1 + told.tokens * drafted[: len(advance)]
    return replace(sample, scheduled=scheduled.astype(np.int64), advance=advance)
