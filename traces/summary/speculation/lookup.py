"""Prompt lookup that was not run: what it would have kept, from the counts taken at capture."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from traces.schema.estimate import Estimate
from traces.schema.record import Record
from traces.statistics import ratio
from traces.summary.speculation.acceptance import (
    PHASES,
    PhaseAcceptance,
    kept,
    position_sums,
    tokens_per_step,
)

MOST_POSITIONS = 256  # each is a column
_SETTING = ("num_speculative_tokens", "prompt_lookup_min", "prompt_lookup_max")


@dataclass(frozen=True, kw_only=True)
class NgramWhatIf(Record):
    """What vLLM's method "ngram" would have given the recorded samples (see ngram.py).

    The fields mean what they mean in `Acceptance`; `tokens_per_step` bounds what it can gain:
    decode steps become fewer by this factor, and each of them dearer. `drafted_steps` is the
    share of decode steps that would have had a draft.
    """

    num_speculative_tokens: int
    prompt_lookup_min: int
    prompt_lookup_max: int
    drafted: int
    drafted_steps: Estimate | None
    accepted_per_position: tuple[Estimate | None, ...]
    length: Estimate | None
    tokens_per_step: Estimate | None
    by_phase: tuple[PhaseAcceptance, ...]


def ngram_what_if(drafts: pl.DataFrame) -> tuple[NgramWhatIf, ...] | None:
    """Return a result per setting from rows of the `drafts` table; None without any.

    Rows without a setting, or of over 256 drafted tokens, are left out. Settings are in the order
    of their numbers. Intervals are over problems.
    """
    if drafts.is_empty():
        return None
    setting_is_one = pl.col("num_speculative_tokens").is_between(1, MOST_POSITIONS)
    drafts = drafts.drop_nulls(_SETTING).filter(setting_is_one)
    if not drafts.height:
        return None
    results = []
    for setting, rows in drafts.sort(*_SETTING).group_by(*_SETTING, maintain_order=True):
        values = [int(value) for value in setting]
        parts = _sums(rows, values[0])
        sums = parts.drop("phase").group_by("problem_id").sum().sort("problem_id")
        phases = [(name, parts.filter(phase=name).sort("problem_id")) for name in PHASES]
        results.append(
            NgramWhatIf(
                num_speculative_tokens=values[0],
                prompt_lookup_min=values[1],
                prompt_lookup_max=values[2],
                **kept(sums),
                drafted_steps=ratio(sums["drafts"], sums["steps"], "1"),
                tokens_per_step=tokens_per_step(sums),
                by_phase=tuple(
                    PhaseAcceptance(phase=name, **kept(each), tokens_per_step=tokens_per_step(each))
                    for name, each in phases
                    if each.height
                ),
            )
        )
    return tuple(results)


def _sums(rows: pl.DataFrame, positions: int) -> pl.DataFrame:
    """Return sums per problem and phase in the columns that `kept` reads."""
    return rows.group_by("problem_id", "phase").agg(
        pl.col("steps").sum(), pl.col("tokens").sum(), *position_sums(positions)
    )
