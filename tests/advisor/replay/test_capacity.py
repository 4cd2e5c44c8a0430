"""What engines serve in a steady state does not depend on how many problems there are to try."""

from __future__ import annotations

import numpy as np
import pytest

from advisor.evidence.features import FEATURES
from advisor.replay.capacity import capacity_per_s
from advisor.replay.limits import Limits
from advisor.replay.replay import Replicas, replay
from advisor.replay.result import Replayed
from advisor.replay.workload import Workload
from advisor.step_time.cost import linear_cost

SECONDS = np.array([{"step": 0.007, "tokens": 2e-5}.get(name, 0.0) for name in FEATURES])


def lengths_of(problems: int) -> np.ndarray:
    rng = np.random.default_rng(7)
    return np.clip(rng.lognormal(7.3, 0.8, problems), 50, 8000).astype(np.int64)


def served(lengths: np.ndarray, *, seqs: int | None, replicas: int = 1) -> tuple[float, float]:
    """Return the capacity, and the problems over the time until the last of them is done."""

    def stream(passes: int) -> Workload:
        rng = np.random.default_rng(1)
        output = np.concatenate([rng.permutation(lengths) for _ in range(passes)])
        return Workload.from_requests(np.full(len(output), 120), output)

    def serve(workload: Workload) -> Replayed:
        return replay(
            workload,
            linear_cost(SECONDS),
            Limits(max_num_seqs=seqs, max_num_batched_tokens=8192),
            concurrency=len(workload.first) - 1,
            replicas=Replicas(count=replicas, routing="least-outstanding"),
        )

    drained = serve(stream(1))
    return capacity_per_s(stream, serve), len(lengths) / drained.makespan_s


@pytest.mark.parametrize(("seqs", "replicas"), [(8, 1), (64, 1), (64, 3)])
def test_a_few_problems_are_served_as_fast_as_copies_of_them(seqs, replicas):
    few, many = lengths_of(40), np.tile(lengths_of(40), 20)
    capacity, drained = served(few, seqs=seqs, replicas=replicas)
    assert capacity == pytest.approx(served(many, seqs=seqs, replicas=replicas)[0], rel=0.05)
    # Each engine is full: so many tokens a step, and a step takes what so many tokens cost.
    step_s = SECONDS[FEATURES.index("step")] + seqs * SECONDS[FEATURES.index("tokens")]
    assert capacity == pytest.approx(replicas * seqs / (few.mean() * step_s), rel=0.08)
    assert drained < 0.8 * capacity or seqs == 8


def test_requests_of_one_length_come_and_go_together():
    lengths = np.full(10, 500, dtype=np.int64)
    step_s = SECONDS[FEATURES.index("step")] + 32 * SECONDS[FEATURES.index("tokens")]
    assert served(lengths, seqs=32)[0] == pytest.approx(32 / (500 * step_s), rel=0.05)


def test_without_a_limit_the_longest_stream_tells():
    few, many = served(lengths_of(40), seqs=None)[0], served(lengths_of(40), seqs=64)[0]
    assert np.isfinite(few) and few > many
