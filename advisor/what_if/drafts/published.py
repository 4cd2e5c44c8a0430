"""Acceptance that others published, for drafters that no recording here has run.

Acceptance lengths (tokens that a verify step gives) for drafts of 1 to 8 tokens: DeepSeek-V4 with
its MTP layer, Kimi-K2.5 with an EAGLE-3 head, Qwen3.5-397B with its MTP layer. Their prompts and
temperature are not known here. Acceptance at other ones differs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import numpy as np

from advisor.what_if.drafts.draft_acceptance import Chances
from traces.schema.engine import Speculative


@dataclass(frozen=True, kw_only=True)
class Published:
    """Acceptance `lengths` by the tokens of a draft, from 1 on, of one model and drafter."""

    name: str
    model: re.Pattern[str]
    methods: tuple[str, ...]
    lengths: tuple[float, ...]

    @property
    def chances(self) -> Chances:
        """The chance that each position is kept if those before it were.

        A draft of j gives as much more than one of j - 1 as the chance that all of its j tokens are
        kept, so that chances are the ratios of these gains, and none above 1.
        """
        longest = np.maximum.accumulate(np.array((1.0, *self.lengths)))
        gains = np.minimum.accumulate(np.maximum(np.diff(longest), 1e-3))
        kept = gains / np.append(1.0, gains[:-1])
        return Chances(by_cell={}, pooled=np.minimum(kept, 1.0))


KNOWN: Final = (
    Published(
        name="DeepSeek-V4 with MTP", model=re.compile(r"deepseek.?v4", re.I),
        methods=("mtp", "deepseek_mtp"), lengths=(1.79, 2.27, 2.49, 2.54, 2.55, 2.55, 2.54, 2.58),
    ),
    Published(
        name="Kimi-K2.5 with EAGLE-3", model=re.compile(r"kimi.?k2\.?5", re.I), methods=("eagle3",),
        lengths=(1.83, 2.43, 2.88, 3.24, 3.46, 3.62, 3.71, 3.77),
    ),
    Published(
        name="Qwen3.5-397B with MTP", model=re.compile(r"qwen3\.5.?397b", re.I),
        methods=("mtp", "qwen3_5_mtp", "qwen3_next_mtp"),
        lengths=(1.93, 2.73, 3.39, 3.97, 4.41, 4.80, 5.04, 5.21),
    ),
)  # fmt: skip


def published(model: str, speculative: Speculative) -> Published | None:
    """Return what was published of a model's drafter; None where nothing was."""
    return next(
        (each for each in KNOWN if each.model.search(model) and speculative.method in each.methods),
        None,
    )
