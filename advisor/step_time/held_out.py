"""Which recorded steps to leave out of a fit, to see how well the others foretell them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from advisor.evidence.features import FEATURES
from advisor.evidence.gather import StepTable
from advisor.evidence.keys import law_key
from traces.schema.engine import EngineConfig

MOST_LEFT_OUT: Final = 60  # groups: each takes a fit of the others


def left_out_groups(tables: Sequence[StepTable]) -> list[list[StepTable]]:
    """Return the groups of tables to predict from the rest: whole configurations.

    Where nothing else would teach a configuration's laws, each of its recordings alone. Of more
    than `MOST_LEFT_OUT` groups so many, evenly spaced.
    """
    groups: dict[str, list[StepTable]] = {}
    teachers: dict[EngineConfig, set[str]] = {}
    for table in tables:
        groups.setdefault(table.configuration, []).append(table)
        teachers.setdefault(law_key(table.engine), set()).add(table.configuration)
    left_out = []
    for group in groups.values():
        if any(len(teachers[law_key(table.engine)]) > 1 for table in group):
            left_out.append(group)
            continue
        alone: dict[str, list[StepTable]] = {}
        for table in group:
            alone.setdefault(table.recording, []).append(table)
        left_out += alone.values()
    if len(left_out) > MOST_LEFT_OUT:
        kept = np.linspace(0, len(left_out) - 1, MOST_LEFT_OUT).round().astype(int)
        left_out = [left_out[place] for place in kept]
    return left_out


def fewest_requests(tables: Sequence[StepTable]) -> float:
    """Return how many requests nearly all steps had at least."""
    place = FEATURES.index("requests")
    return float(np.quantile(np.concatenate([t.composition[:, place] for t in tables]), 0.05))


def inside(held: Sequence[StepTable], rest: Sequence[StepTable]) -> bool:
    """Whether steps lie, but for a few, within the batches and contexts of the others."""
    for place in (FEATURES.index("requests"), FEATURES.index("kv_tokens")):
        values = np.concatenate([table.composition[:, place] for table in held])
        others = np.concatenate([table.composition[:, place] for table in rest])
        low, high = np.quantile(others, 0.05), max(t.most[place] for t in rest)
        if np.median(values) < low or np.quantile(values, 0.95) > 1.1 * high:
            return False
    return True
