"""Accuracies of many candidates seen together, so that the luckiest of them is not believed.

Who chooses the cheapest candidate that seems good enough chooses one that was lucky. Its chance
comes true if its accuracy is drawn to what the others make likely, by how much few problems may be
off against how much the candidates really differ (empirical Bayes, Efron and Morris 1975).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np

from traces.statistics import Floats, wider

_ALIKE = 4.0  # problems' worth of evidence that candidates vary and go together alike
_FEWEST = 4  # candidates that tell how much candidates differ


def luck_by_name(
    shares: Mapping[Hashable, Floats], cost: Mapping[Hashable, float]
) -> dict[Hashable, float]:
    """Return the `own_luck` of candidates by name, of their `shares` [problems] and `cost`.

    Candidates whose shares are the same count once, at the least of their costs.
    """
    alike: dict[bytes, list[Hashable]] = {}
    for name, each in shares.items():
        alike.setdefault(np.round(each, 9).tobytes(), []).append(name)
    groups = list(alike.values())
    if not groups:
        return {}
    rows = np.array([shares[names[0]] for names in groups])
    costs = np.array([min(cost[name] for name in names) for names in groups])
    luck = own_luck(rows, np.log(np.maximum(costs, 1e-300)))
    return {name: float(one) for names, one in zip(groups, luck, strict=True) for name in names}


def own_luck(shares: Floats, log_cost: Floats) -> Floats:
    """Return by how much the mean share of each candidate is likely too high, 0 or more.

    `shares` are [candidates, problems], `log_cost` [candidates] the logarithm of what an answer
    takes. True accuracies are taken as normal about a line over it, which the estimates alone tell.
    They err as the problems' shares vary and go together. The spread about the line is what they
    vary by more than that (the method of moments). What an estimate is then above its posterior
    mean counts as far as it may be luck of its own: the luck of votes over the same samples is that
    of all of them, so that none of them is chosen for it. That part is one less the largest
    correlation with another candidate. All is 0 where too few candidates or problems tell.
    """
    count, problems = shares.shape
    if count < _FEWEST or problems < 2:
        return np.zeros(count)
    means, (noise, together) = shares.mean(axis=1), _noise(shares)
    line = np.ones((count, 1))
    if np.ptp(log_cost) > 0:
        line = np.stack([line[:, 0], log_cost - log_cost.mean()], axis=1)
    basis, _ = np.linalg.qr(line)
    off_line = np.eye(count) - basis @ basis.T
    free = count - line.shape[1]
    by_chance = noise * float((off_line * together).sum()) / free
    spread = max(float(((off_line @ means) ** 2).sum()) / free - by_chance, 0.05 * by_chance + 1e-6)
    precision = np.linalg.inv(spread * np.eye(count) + noise * together)
    fitted = line @ np.linalg.solve(line.T @ precision @ line, line.T @ precision @ means)
    above = (means - fitted) - spread * precision @ (means - fitted)
    np.fill_diagonal(together, 0.0)
    return np.asarray(np.maximum(above, 0.0) * np.clip(1 - together.max(axis=1), 0.0, 1.0))


def _noise(shares: Floats) -> tuple[float, Floats]:
    """Return the variance of a mean share and the correlations [candidates, candidates] of them.

    Few problems tell covariances badly, so that they are drawn to those of candidates that are all
    alike. The variance is that of all candidates, as for one that is always right none is seen.
    """
    count, problems = shares.shape
    seen = np.cov(shares, bias=True) + 1e-9 * np.eye(count)
    own = float(np.trace(seen)) / count
    alike = np.full_like(seen, (float(seen.sum()) - own * count) / (count * (count - 1)))
    np.fill_diagonal(alike, own)
    part = _ALIKE / (problems + _ALIKE)
    noise = (1 - part) * seen + part * alike
    spreads = np.sqrt(np.diag(noise))
    return own * wider(problems) ** 2 / problems, noise / np.outer(spreads, spreads)
