"""How likely a drafted token is kept, by its position in the draft, the temperature and the phase.

c(1) is the share of drafts whose first token was kept, c(j) the share of those that kept j - 1
tokens and kept the next one too. Cells are a temperature and a phase (thinking, answer, or None
where it is not known). Of a cell with few drafts the value is held towards that of the others:

    c = (n m + W p) / (n + W),    1 / W = 1 / M + 1 / N

with m its own share among n drafts, p the pooled share of the N drafts of the other cells, and M
the strength of a beta prior by moment matching: M = 1 / rho - 1, rho the intra-class correlation
between the cells (Kleinman 1973, Proportions with extraneous variance, JASA 68). Tokens of one
problem are alike, so n and N are counts divided by the design effect of problems (Kish 1965).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from traces.statistics import Floats

Cell = tuple[float | None, str | None]  # temperature, phase

LEAST_RHO, MOST_RHO = 1e-4, 0.99  # between them M is 9,999 (all alike) to 0.01 (each its own)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Counts of one problem in one cell.

    `drafts` of `len(kept)` tokens were made, and `kept[j]` of them kept their token at position j
    (and all before it).
    """

    problem: str
    temperature: float | None
    phase: str | None
    drafts: int
    kept: tuple[int, ...]


class AcceptanceModel:
    """Conditional acceptance per position, shrunk to the pooled value.

    Attributes
    ----------
    positions_: how many positions any draft had.
    beta_: by cell, [positions, 2] the two parameters of each position's beta distribution.
    pooled_: [positions, 2] the same of all cells together.

    """

    def fit(self, counts: Iterable[Kept]) -> AcceptanceModel:
        """Learn from counts. Raises ValueError when nothing was drafted."""
        rows = [each for each in counts if each.drafts]
        if not rows:
            raise ValueError("nothing was drafted")
        self.positions_ = max(len(each.kept) for each in rows)
        cells: list[Cell] = list(dict.fromkeys((r.temperature, r.phase) for r in rows))
        self.beta_: dict[Cell, Floats] = {cell: np.zeros((self.positions_, 2)) for cell in cells}
        self.pooled_ = np.zeros((self.positions_, 2))
        where = np.array([cells.index((r.temperature, r.phase)) for r in rows])
        names = list(dict.fromkeys(each.problem for each in rows))
        problem = np.array([names.index(each.problem) for each in rows])
        width = self.positions_ + 1
        chain = np.zeros((len(rows), width))
        drafted = np.array([len(each.kept) for each in rows])
        for number, each in enumerate(rows):
            chain[number, : len(each.kept) + 1] = (each.drafts, *each.kept)
        for j in range(self.positions_):
            tried, kept = np.where(drafted > j, chain[:, j], 0.0), chain[:, j + 1]
            effect = _design_effect(tried, kept, where * len(names) + problem, where)
            n, x = (np.bincount(where, each, len(cells)) / effect for each in (tried, kept))
            if not n.sum():  # never reached: as the position before it
                self.pooled_[j] = self.pooled_[j - 1]
                for cell in cells:
                    self.beta_[cell][j] = self.beta_[cell][j - 1]
                continue
            self.pooled_[j] = x.sum() + 0.5, (n - x).sum() + 0.5
            strength = prior_strength(x, n)
            for cell, own, size in zip(cells, x, n, strict=True):
                kept_others, others = x.sum() - own, n.sum() - size
                weight = others * strength / (others + strength)
                p = kept_others / others if others else 0.5
                self.beta_[cell][j] = own + weight * p + 0.5, size - own + weight * (1 - p) + 0.5
        return self

    def draw(self, rng: np.random.Generator) -> Chances:

        def chance(beta: Floats) -> Floats:
            return rng.beta(beta[:, 0], beta[:, 1])

        return Chances(
            by_cell={cell: chance(beta) for cell, beta in self.beta_.items()},
            pooled=chance(self.pooled_),
        )


@dataclass(frozen=True, kw_only=True)
class Chances:
    """Chances of each position, [positions], by cell and pooled.

    A position's is the chance that its token is kept if those before it were.
    """

    by_cell: Mapping[Cell, Floats]
    pooled: Floats

    def at(self, cell: Cell, position: int) -> float:
        """Return the chance at a position, from 0 on; beyond the last as at the last.

        A cell that was not seen has the pooled one.
        """
        chances = self.by_cell.get(cell, self.pooled)
        return float(chances[min(position, len(chances) - 1)])


def prior_strength(kept: Floats, tried: Floats) -> float:
    """Return M, how many drafts the pooled value counts for in each cell [cells].

    rho = (S - p q (r - 1)) / (p q (N - sum n^2 / N - (r - 1))) with S = sum n (m - p)^2 over r
    cells. Cells that differ no more than chance explains are all alike.
    """
    seen = tried > 0
    n, x = tried[seen], kept[seen]
    total, p = float(n.sum()), float(x.sum() / n.sum())
    spare = total - float(np.square(n).sum()) / total - (len(n) - 1)
    rho = LEAST_RHO
    if 0 < p < 1 and spare > 0:
        between = float((n * np.square(x / n - p)).sum())
        rho = (between - p * (1 - p) * (len(n) - 1)) / (p * (1 - p) * spare)
    return 1 / min(max(rho, LEAST_RHO), MOST_RHO) - 1


def _design_effect(
    tried: Floats, kept: Floats, cluster: npt.NDArray[np.int64], cell: npt.NDArray[np.int64]
) -> float:
    """Return by how much problems that differ widen the variance of a share, at least 1.

    The variance of a ratio over clusters, against that of independent tokens.
    """
    n, x = np.bincount(cluster, tried), np.bincount(cluster, kept)
    cells = np.zeros(len(n), dtype=np.int64)
    cells[cluster] = cell
    used = n > 0
    n, x, cells = n[used], x[used], cells[used]
    tokens, right = np.bincount(cells, n), np.bincount(cells, x)
    share = (right / np.maximum(tokens, 1e-12))[cells]
    expected = float((n * share * (1 - share)).sum())
    if len(n) < 2 or expected <= 0:
        return 1.0
    seen = float(np.square(x - share * n).sum()) * len(n) / (len(n) - 1)
    return max(seen / expected, 1.0)
