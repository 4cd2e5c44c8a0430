"""What decode attention costs at batches and contexts that were not measured."""

from __future__ import annotations

import numpy as np

from advisor.step_time.law import non_negative_least_squares
from advisor.step_time.operators.grids import (
    fill_between,
    fill_beyond,
    interpolate,
    pieces,
    to_grid,
)
from traces.statistics import Floats

BREAKS = 4  # of the price of KV, each a quarter of the next, the last an eighth of the most KV read
NOISE = 0.01  # the relative error (sd) that a measured time is taken to have at least


class DecodeAttention:
    """Seconds of decode attention by batch and by context of each request.

    Attributes
    ----------
    split_: the measured context after which the kernel is another one; None without such a break.
    prices_: the non-negative seconds of the law's terms.
    residual_: what was measured less the law, on the grid of `batches_` and `contexts_`.

    Notes
    -----
    With n requests of k tokens of context, T = launch(n) + kv(n k). The launch is linear between
    measured batches: their CTAs fill the SMs, then wait for one another. kv is linear between
    breaks of n k, the tokens of KV read: few do not fill the memory bus, many pay the bandwidth's
    price. Contexts of more than a tile are cut into parts that a second kernel puts together: up to
    `split_` and beyond it both have prices of their own. None is negative; all are fitted in
    relative error. Between measured points what the law leaves over is interpolated in log n and
    log k; beyond them it is held, so that more context costs what KV costs.

    """

    def fit(self, batch: Floats, context: Floats, seconds: Floats) -> DecodeAttention:
        """Learn from one row per measured batch and context, all positive.

        Raises ValueError without rows.
        """
        if not len(seconds):
            raise ValueError("no rows to learn decode attention from")
        self.batch_breaks_ = np.unique(batch)[1:-1]
        most = float(np.max(batch * context))
        self.read_breaks_: Floats = np.array([most / 8 / 4**n for n in range(BREAKS)][::-1])
        self.split_ = self._find_split(batch, context, seconds)
        self.prices_, _ = self._solve(batch, context, seconds, self.split_)
        law = self.law(batch, context)
        knots, grid = to_grid(np.column_stack([batch, context]), seconds - law)
        self.batches_, self.contexts_ = knots
        logs = [np.log(known) for known in knots]
        fill_between(grid, logs, (1, 0))
        fill_beyond(grid, logs, (1, 0), hold=True)
        self.residual_ = grid
        self.least_ = float(seconds.min())
        return self

    def law(self, batch: Floats, context: Floats) -> Floats:
        terms = self._terms(batch, context, self.split_)
        return np.asarray(terms @ self.prices_, dtype=float)

    def predict(self, batch: Floats, context: Floats) -> Floats:
        """Return the seconds of batches and contexts, one of each per row."""
        logs = np.log(self.batches_), np.log(self.contexts_)
        left = interpolate(self.residual_, logs, (np.log(batch), np.log(context)))
        return np.asarray(np.maximum(self.law(batch, context) + left, self.least_), dtype=float)

    def _find_split(self, batch: Floats, context: Floats, seconds: Floats) -> float | None:
        """Return the measured context after which there is another kernel, by Schwarz's criterion.

        m log(error / m) + (prices that are not zero) log m, over m rows; no split is a candidate.
        """
        rows = len(seconds)
        best, best_split = np.inf, None
        for split in (None, *np.unique(context)[:-1].tolist()):
            prices, error = self._solve(batch, context, seconds, split)
            score = rows * np.log(error / rows + NOISE**2)
            score += np.count_nonzero(prices) * np.log(rows)
            if score < best:
                best, best_split = score, split
        return best_split

    def _solve(
        self, batch: Floats, context: Floats, seconds: Floats, split: float | None
    ) -> tuple[Floats, float]:
        """Return the prices of the terms, and the sum of squares of the relative error."""
        rows = self._terms(batch, context, split) / seconds[:, None]
        prices = non_negative_least_squares(rows, np.ones(len(seconds)))
        return prices, float(np.sum(np.square(rows @ prices - 1)))

    def _terms(self, batch: Floats, context: Floats, split: float | None) -> Floats:
        one = np.ones((len(batch), 1))
        launch = pieces(batch, self.batch_breaks_)
        read = pieces(batch * context, self.read_breaks_)
        terms: Floats = np.concatenate([one, launch, read], axis=1)
        if split is None:
            return terms
        beyond = (context > split)[:, None]
        both: Floats = np.concatenate([terms * ~beyond, terms * beyond], axis=1)
        return both
