"""What people know of a GPU: a mean time between tokens at a load, said or in an import."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import polars as pl

from advisor.replay.workload import ReplayWorkload
from advisor.step_time.prior.drafting import VerifyStep
from advisor.step_time.prior.recalibration import UNTAUGHT
from traces.errors import UsageError
from traces.foreign.values import UNKNOWN_MODEL
from traces.recording.reader import Recording
from traces.recording.tables import FORWARD

ITL: Final = "itl"  # mean over steps of requests; TPOT is the mean over requests of their own means
TPOT: Final = "tpot"
ROUNDS: Final = 4  # requests in turn for each that is in flight, so that the ends count little
MOST_IN_FLIGHT: Final = 8192
MOST_TOKENS: Final = 1 << 20
_UNITS: Final = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
_POINT: Final = re.compile(
    r"(?P<what>[a-z]+)=(?P<value>[-+.\deE]+)\s*(?P<unit>[a-z]*)@(?P<load>[-+.\d]+)"
    r"(?::(?P<prompt>\d+)\+(?P<output>\d+))?"
)
_WATTS: Final = re.compile(r"watts=(?:(?P<value>\d+(?:\.\d+)?) ?w?@(?P<load>\d{1,6}))?")
_EXAMPLE: Final = "itl=12.3ms@32, or itl=12.3ms@32:1024+512 with tokens of prompt and output"


@dataclass(frozen=True, kw_only=True)
class MeasuredPoint:
    """A mean time per token that was measured under a load.

    `what` is ITL or TPOT, `concurrency` the requests in flight, None for those of the workload's
    arrivals. `name` is what is said of it.
    """

    name: str
    what: str
    seconds: float
    workload: ReplayWorkload
    concurrency: int | None

    def drafted(self, step: VerifyStep) -> MeasuredPoint:
        """Return the point of an engine that drafts, whose requests advance as `step` says."""
        tokens = self.workload.output_tokens - 1
        steps = np.maximum(np.rint(tokens / step.kept), np.minimum(tokens, 1)).astype(np.int64)
        forwarded = np.full(len(steps), step.computed)
        return replace(
            self, workload=replace(self.workload, verify_steps=steps, forwarded=forwarded)
        )

    def is_load_of(self, other: MeasuredPoint) -> bool:
        """Whether another point is of as many requests in flight, of the same lengths."""
        return self.concurrency == other.concurrency and self.has_lengths_of(other)

    def has_lengths_of(self, other: MeasuredPoint) -> bool:
        """Whether the requests of another point are as long."""
        ours, theirs = (
            {*zip(each.prompt_tokens.tolist(), each.output_tokens.tolist(), strict=True)}
            for each in (self.workload, other.workload)
        )
        return ours == theirs


def said_watts(texts: Sequence[str]) -> tuple[float, int] | None:
    """Return the watts of a board that `--measured` says, and at how many requests in flight.

    Raises UsageError for what is not understood, and for two of them.
    """
    said = [text for text in texts if _WATTS.match(text.strip().lower())]
    if not said:
        return None
    if len(said) > 1:
        raise UsageError(f"--measured {said[0]} and --measured {said[1]}: give one wattage")
    match = _WATTS.fullmatch(said[0].strip().lower())
    if match is None or match["value"] is None:
        raise UsageError(f"--measured {said[0]}: is not understood. Write watts=520@32")
    load = int(match["load"])
    if not 1 <= load <= MOST_IN_FLIGHT:
        raise UsageError(
            f"--measured {said[0]}: requests in flight are from 1 to {MOST_IN_FLIGHT:,}"
        )
    return float(match["value"]), load


def said_points(texts: Sequence[str], recording: Recording) -> list[MeasuredPoint]:
    """Return the times that `--measured` says. Lengths it leaves out are those of a recording.

    Raises UsageError for what is not understood, and for two times of one load.
    """
    texts = [text for text in texts if not _WATTS.match(text.strip().lower())]
    points = [_said(text, recording) for text in texts]
    for before, point in itertools.combinations(points, 2):
        if before.what == point.what and before.is_load_of(point):
            raise UsageError(
                f"--measured {before.name} and --measured {point.name}: two times of one load. "
                "Give one"
            )
    return points


def _said(text: str, recording: Recording) -> MeasuredPoint:
    option = f"--measured {text}"
    match = _POINT.fullmatch(text.strip().lower())
    if match is None:
        raise UsageError(f"{option}: is not understood. Write {_EXAMPLE}")
    what, unit = match["what"], match["unit"]
    if what not in (ITL, TPOT):
        raise UsageError(
            f"{option}: {what} does not say how long a step takes. Give itl or tpot, as in "
            f"{_EXAMPLE}. watts=520@32 says what a board draws"
        )
    if unit not in _UNITS:
        raise UsageError(f"{option}: needs a unit, one of {', '.join(_UNITS)}, as in {_EXAMPLE}")
    try:
        seconds, load = float(match["value"]) * _UNITS[unit], int(match["load"])
    except ValueError:
        raise UsageError(f"{option}: is not understood. Write {_EXAMPLE}") from None
    if not 0 < seconds < math.inf:
        raise UsageError(f"{option}: a time must be above 0 and finite")
    if not 1 <= load <= MOST_IN_FLIGHT:
        raise UsageError(f"{option}: requests in flight are from 1 to {MOST_IN_FLIGHT:,}")
    if match["prompt"] is None:
        prompts, outputs = _recorded_lengths(recording)
    else:
        prompts, outputs = (np.array([int(match[each])]) for each in ("prompt", "output"))
        if min(prompts[0], outputs[0]) < 1 or max(prompts[0], outputs[0]) > MOST_TOKENS:
            raise UsageError(f"{option}: tokens are from 1 to {MOST_TOKENS:,}")
    if outputs.max() < 2:
        raise UsageError(f"{option}: outputs of one token have no time between tokens")
    count = max(ROUNDS * load, len(prompts))
    workload = ReplayWorkload.from_requests(np.resize(prompts, count), np.resize(outputs, count))
    return MeasuredPoint(
        name=text.strip(), what=what, seconds=seconds, workload=workload, concurrency=load
    )


def _recorded_lengths(recording: Recording) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens of prompt and output of a recording's samples."""
    samples = recording.samples.filter(pl.col("role").fill_null("sample") == "sample")
    lengths = samples.select("prompt_tokens", "output_tokens").drop_nulls()
    lengths = lengths.filter(pl.col("prompt_tokens") > 0, pl.col("output_tokens") > 0)
    if lengths.is_empty():
        raise UsageError(
            f"--measured: {recording.name} lacks the lengths of requests. Add them: {_EXAMPLE}"
        )
    return lengths["prompt_tokens"].to_numpy(), lengths["output_tokens"].to_numpy()


def imported_point(recording: Recording, models: Sequence[str]) -> MeasuredPoint | str | None:
    """Return what an import of measured requests says; why it says nothing; None for no import.

    The file does not tell GPU and size, which whoever names it with `--with` does. A file of
    another model than all of `models` says nothing.
    """
    if "imported" not in recording.manifest.provenance or recording.steps.height:
        return None
    names = {_plain(name) for name in models}
    engine = next(iter(recording.manifest.engines.values()), None)
    if engine is not None and engine.model != UNKNOWN_MODEL and _plain(engine.model) not in names:
        return f"it is of {engine.model}, and {models[-1]} is asked about"
    ended = recording.samples.filter(
        pl.col("output_tokens") > 1,
        pl.col("prompt_tokens") > 0,
        pl.col("first_token").is_not_null() & (pl.col("end") > pl.col("first_token")),
    ).sort("arrival", maintain_order=True)
    if ended.is_empty():
        return "it has no times of tokens"
    took = (ended["end"] - ended["first_token"]).to_numpy() / 1e9
    arrival = ended["arrival"].to_numpy() / 1e9
    load = recording.manifest.concurrency
    workload = ReplayWorkload.from_requests(
        ended["prompt_tokens"].to_numpy(),
        ended["output_tokens"].to_numpy(),
        arrivals=None if load is not None else arrival - arrival[0],
    )
    return MeasuredPoint(
        name=recording.name,
        what=TPOT,
        seconds=float(np.mean(took / (ended["output_tokens"].to_numpy() - 1))),
        workload=workload,
        concurrency=load,
    )


def check_used(
    imports: Sequence[Recording], base: Recording, models: Sequence[str], *, priced: bool
) -> None:
    """Raise UsageError for imports of measured requests that say nothing of what is asked.

    `models` are the names of the one that is asked about, and `priced` says that a prior has its
    times. Samples of the problems of `base` are of use in any case, and so are facts of the model.
    """
    base_workload = base.manifest.workload
    for each in imports:
        workload = each.manifest.workload
        alike = (
            base_workload is not None
            and workload is not None
            and base_workload.hash == workload.hash
        )
        if alike or models[0] in each.manifest.models:
            continue
        point = imported_point(each, models)
        if point is None or (priced and not isinstance(point, str)):
            continue
        why = point if isinstance(point, str) else "it has no steps. Requests correct a --gpu"
        raise UsageError(f"--with {each.path}: {UNTAUGHT} {why}. Leave it out")


def of_forwards(recording: Recording) -> bool:
    """Whether a recording has the model's forward alone (`vllm bench forward`)."""
    return recording.steps.height > 0 and bool((recording.steps["source"] == FORWARD).all())


def gpus_of(recording: Recording) -> list[str]:
    """Return the GPUs that a recording names."""
    gpus = (engine.gpu for engine in recording.manifest.engines.values())
    return sorted({gpu for gpu in gpus if gpu is not None})


def _plain(name: str) -> str:
    """Return a model's name without its publisher: `Qwen/Qwen3-8B`, `Qwen--Qwen3-8B`."""
    return re.split(r"/|--", name.rstrip("/"))[-1].lower()
