"""What contexts of unequal length cost: how far attention moves from its mean to its longest.

t = t_mean + share (t_max - t_mean), where t_mean is the time with all contexts at their mean and
t_max with all at the longest. Shares are found by least squares of the relative error.
"""

from __future__ import annotations

import numpy as np

from advisor.step_time.operators.grids import fill_between, fill_beyond, to_grid
from traces.statistics import Floats


def decode_skew(rows: Floats | None, batches: Floats) -> Floats:
    """Return the shares of batches that only decode; of one request it is 0.

    `rows` are those of `Operators.skew`; None is no skew. A share for each measured batch, linear
    between them and held beyond.
    """
    measured, shares, _ = _by_batch(_used(rows, mixed=False))
    return np.asarray(np.interp(batches, measured, shares), dtype=float)


def mixed_skew(rows: Floats | None, before: Floats, batches: Floats, contexts: Floats) -> Floats:
    """Return the shares beside a chunk, [before, batch, longest context].

    A share for each measured tokens before the chunk, batch and longest context, held towards that
    of the batch by the weight of one row: without split KV the last wave of long contexts is what
    skew costs, and how long it is depends on all three. Linear between what was measured, held
    beyond.
    """
    used = _used(rows, mixed=True)
    measured, of_batch, weight = _by_batch(used)
    if not len(used):
        return np.zeros((len(before), len(batches), len(contexts)))
    cells, place = np.unique(used[:, [2, 0, 3]], axis=0, return_inverse=True)
    more, moved = _moves(used)
    at = np.searchsorted(measured, cells[:, 1])
    squares = np.bincount(place.ravel(), more**2, len(cells)) + weight[at]
    shares = np.bincount(place.ravel(), more * moved, len(cells)) + weight[at] * of_batch[at]
    shares = np.divide(shares, squares, out=np.zeros(len(cells)), where=squares > 0)
    knots, grid = to_grid(cells, shares)
    fill_between(grid, knots, (2, 0, 1))
    fill_beyond(grid, knots, (2, 0, 1), hold=True)
    knots[1] = np.append(1.0, knots[1])  # of one request there is none
    grid = np.concatenate([np.zeros_like(grid[:, :1]), grid], axis=1)
    for axis, wanted in enumerate((before, batches, contexts)):
        grid = _along(grid, axis, knots[axis], wanted)
    return grid


def _along(grid: Floats, axis: int, known: Floats, wanted: Floats) -> Floats:
    """Return a grid at other knots of one axis, linear between the known and held beyond."""
    lines = np.moveaxis(grid, axis, -1)
    flat = [np.interp(wanted, known, line) for line in lines.reshape(-1, len(known))]
    reshaped = np.reshape(flat, (*lines.shape[:-1], len(wanted)))
    return np.asarray(np.moveaxis(reshaped, -1, axis), dtype=float)


def _used(rows: Floats | None, *, mixed: bool) -> Floats:
    """Return the rows with a chunk, or those without, of more than one request."""
    if rows is None:
        return np.zeros((0, 7))
    chosen: Floats = rows[((rows[:, 1] > 0) == mixed) & (rows[:, 0] > 1)]
    return chosen


def _moves(rows: Floats) -> tuple[Floats, Floats]:
    """Return t_max - t_mean and t - t_mean, each as a share of t."""
    at_mean, at_longest, was = rows[:, 4:].T
    return (at_longest - at_mean) / was, (was - at_mean) / was


def _by_batch(rows: Floats) -> tuple[Floats, Floats, Floats]:
    """Return batches from 1 on, their shares, and the weight of one row of each."""
    batches = np.unique(rows[:, 0])
    more, moved = _moves(rows)
    shares, weight = [0.0], [0.0]
    for batch in batches:
        here = rows[:, 0] == batch
        squares = float(np.sum(np.square(more[here])))
        shares.append(float(more[here] @ moved[here]) / squares if squares else 0.0)
        weight.append(squares / int(here.sum()))
    return np.append(1.0, batches), np.array(shares), np.array(weight)
