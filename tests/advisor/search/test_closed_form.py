"""The closed form against the replay, and which candidates are looked at."""

import numpy as np
import pytest

from advisor.search.space import Space
from traces.schema.advice import Budget


@pytest.mark.slow
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
    closed_form, errors = state.closed_form, []
    for row in whole:
        outcome = state.metrics.replayed[state.metrics.place[int(row)]]
        if rate is None or closed_form.slowing[row] < 2:
            found = np.log(outcome.latency_s[0].mean() / closed_form.latency_s[row])
            errors.append(abs(found))
    assert len(errors) > 20
    assert np.median(errors) < 0.08
    assert np.quantile(errors, 0.9) < 0.25


@pytest.mark.slow
@pytest.mark.parametrize("rate", [None, 4.0, 20.0])
def test_how_far_the_closed_form_lies_off_is_told_with_what_queues_add(fresh, rate):
    state = fresh.under(rate)
    state.begin()
    closed = state.closed_form.values("latency_s")
    looked_at = [(state.metrics.rows[at], state.metrics.replayed[at]) for at in state.looked_at]
    ratios = np.array(
        [run.latency_s[0].mean() / closed[row] for row, run in looked_at if run.keeps_up]
    )
    off = np.maximum(ratios, 1 / ratios) - 1
    assert np.mean(off <= state.closed_form.off * (1 + 1e-9)) >= 0.9


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


@pytest.mark.parametrize("rate", [None, 4.0])
def test_both_stages_give_the_same_metrics_and_bounds_of_their_draws(fresh, rate):
    state = fresh.under(rate)
    state.begin()
    rows = np.arange(8)
    names = ("accuracy", "latency_s", "latency_p95_s", "device_s", "devices", "load_per_s")
    for metrics in (state.closed_form, state.metrics):
        assert metrics.rate_per_s == rate
        for name in (*names, "throughput_problems_per_s", "energy_j"):
            assert len(metrics.values(name)) == len(metrics.kind)
            for of in ("all", "others"):
                draws = metrics.draws(name, rows, of=of)
                assert draws.shape == (8, len(metrics.choosing))
                if name in names:
                    low, high = metrics.extremes(name, rows, of)
                    assert (low <= draws.min(axis=1) * (1 + 1e-9)).all()
                    assert (high >= draws.max(axis=1) * (1 - 1e-9)).all()


def test_a_tighter_limit_leaves_fewer_candidates(fresh):
    counts = []
    for latency in (1.0, 0.1, 0.05, 0.02):
        shortlist = fresh.shortlist(Budget(max_latency_s=latency, min_accuracy=0.5))
        assert not (shortlist.fits & ~shortlist.possible).any()
        counts.append(int(shortlist.possible.sum()))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]


def test_leaders_are_distinct_and_ordered(fresh):
    shortlist = fresh.shortlist(Budget(min_accuracy=0.5))
    leaders = shortlist.leaders(24)
    assert 1 < len(leaders) <= 24
    least = shortlist.least[leaders]
    assert (np.diff(least) >= 0).all()
    space = fresh.space
    assert (space.replicas[leaders] == 1).all()  # no --gpus, no replicas
    assert len({(space.kind[r], round(float(least[i]), 9)) for i, r in enumerate(leaders)}) > 1


def test_of_equals_the_recorded_limits_come_first_by_any_number_of_replicas(fresh):
    space = fresh.space
    recorded = {(e.max_num_seqs, e.max_num_batched_tokens) for e in space.made.engines}
    for replicas in (1, 2):
        rows = np.flatnonzero((space.kind == 0) & (space.replicas == replicas))
        first = rows[space.preferred[rows].argmin()]
        limits = (space.max_num_seqs[first], space.max_num_batched_tokens[first])
        assert limits in recorded and len(rows) > len(recorded)
    budget = Budget(max_latency_s=1.0, max_gpus=2, optimise="latency")
    pick = fresh.recommend(budget).system_optimal.engine
    assert pick.data_parallel_size == 2
    assert (pick.max_num_seqs, pick.max_num_batched_tokens) in recorded


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
