"""The closed form against the replay, and which candidates are looked at."""

import numpy as np
import pytest

from advisor.search.space import Space
from traces.schema.advice import Budget


@pytest.mark.parametrize("rate", [None, 4.0])
def test_the_closed_form_lies_near_the_replay(fresh, rate):
    """Of whole votes and single answers at random, nine in ten within a fifth."""
    state = fresh.under(rate)
    state.begin()
    space: Space = fresh.space
    whole = [
        row
        for row in np.random.default_rng(1).permutation(len(space))
        if space.kinds[space.kind[row]].policy.method in ("greedy", "majority")
    ][:60]
    state.replay([int(row) for row in whole])
    screen, errors = state.closed_form, []
    for row in whole:
        outcome = state.metrics.replayed[state.metrics.place[int(row)]]
        if rate is None or screen.slowing[row] < 2:
            found = np.log(outcome.latency_s[0].mean() / screen.latency_s[row])
            errors.append(abs(found))
    assert len(errors) > 20
    assert np.median(errors) < 0.08
    assert np.quantile(errors, 0.9) < 0.25


def test_what_is_known_exactly_is_exact(fresh):
    """FLOPs, tokens and accuracy of whole votes do not depend on the load."""
    state = fresh.under(None)
    state.begin()
    for row in state.metrics.rows:
        outcome = state.metrics.replayed[state.metrics.place[row]]
        if outcome.candidate.policy.method in ("greedy", "majority"):
            for name in ("accuracy", "tokens", "flops"):
                closed = state.closed_form.values(name)[row]
                assert closed == pytest.approx(float(getattr(outcome, name).mean()))


def test_a_tighter_limit_leaves_fewer_candidates(fresh):
    counts = []
    for latency in (1.0, 0.1, 0.05, 0.02):
        ranking = fresh.shortlist(Budget(max_latency_s=latency, min_accuracy=0.5))
        assert not (ranking.fits & ~ranking.possible).any()
        counts.append(int(ranking.possible.sum()))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]


def test_leaders_are_distinct_and_ordered(fresh):
    ranking = fresh.shortlist(Budget(min_accuracy=0.5))
    leaders = ranking.leaders(24)
    assert 1 < len(leaders) <= 24
    least = ranking.least[leaders]
    assert (np.diff(least) >= 0).all()
    space = fresh.space
    assert (space.replicas[leaders] == 1).all()  # no --gpus, no replicas
    assert len({(space.kind[r], round(float(least[i]), 9)) for i, r in enumerate(leaders)}) > 1


def test_replicas_share_the_load(fresh):
    """Two engines serve twice the problems, and no problem is slower there."""
    space, state = fresh.space, fresh.under(None)
    row = next(
        r for r in range(len(space))
        if space.replicas[r] == 1 and space.kinds[space.kind[r]].policy.n == 16
    )  # fmt: skip
    two = next(
        r for r in range(len(space))
        if space.replicas[r] == 2 and space.kind[r] == space.kind[row]
        and space.max_num_seqs[r] == space.max_num_seqs[row]
        and space.max_num_batched_tokens[r] == space.max_num_batched_tokens[row]
    )  # fmt: skip
    state.replay([row, two])
    one, both = (state.metrics.replayed[state.metrics.place[r]] for r in (row, two))
    assert both.candidate.engine.num_devices == 2 * one.candidate.engine.num_devices
    assert both.capacity_per_s > 1.1 * one.capacity_per_s
    assert both.latency_s.mean() < 1.02 * one.latency_s.mean()
