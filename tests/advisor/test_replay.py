import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advisor.evidence import Sample, verify_steps
from advisor.load import Limits, Load
from advisor.replay import replay
from tests.advisor.replay_twin import naive_replay

COST = np.array([3e-3, 1e-3, 7e-4, 2e-5, 1e-4, 5e-5, 4e-6, 3e-8, 2e-9])


def plain(tokens: int) -> Sample:
    return Sample(output_tokens=tokens, answer="1", correct=True)


def drafted(tokens: int, k: int, rng: np.random.Generator) -> Sample:
    accepted = []
    while sum(accepted) + len(accepted) < tokens - 1:
        accepted.append(int(rng.integers(0, k + 1)))
    scheduled, advance = verify_steps(tokens, [k] * len(accepted), accepted)
    return Sample(
        output_tokens=tokens, answer="1", correct=True, scheduled=scheduled, advance=advance
    )


def loads_of(seed: int, problems: int, n: int, k: int = 0, *, longest: int = 40) -> list[Load]:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(problems):
        prompt = int(rng.integers(1, 60))
        lengths = [int(length) for length in rng.integers(1, longest, n)]
        samples = tuple(drafted(t, k, rng) if k else plain(t) for t in lengths)
        cached = min(int(rng.integers(0, 2)) * 8, (prompt - 1) // 8 * 8)
        found.append(Load(prompt_tokens=prompt, cached_tokens=cached, samples=samples))
    return found


def assert_twins(loads, limits, **load):
    ours = replay(loads, COST, limits, **load)
    naive = naive_replay(loads, COST, limits, **load)
    assert ours.steps == naive["steps"]
    assert ours.preemptions == naive["preemptions"]
    np.testing.assert_allclose(ours.latency_s, naive["latency"], rtol=1e-9)
    np.testing.assert_allclose(ours.ttft_s, naive["ttft"], rtol=1e-9)
    np.testing.assert_allclose(ours.busy_share_s, naive["share"], rtol=1e-9)
    np.testing.assert_allclose(ours.makespan_s, naive["makespan"], rtol=1e-9)
    np.testing.assert_allclose(ours.busy_share_s.sum(), ours.busy_s, rtol=1e-9)
    np.testing.assert_allclose(ours.totals @ COST, ours.busy_s, rtol=1e-9)
    return ours


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    problems=st.integers(1, 8),
    n=st.integers(1, 5),
    k=st.sampled_from([0, 0, 3]),
    max_seqs=st.sampled_from([None, 1, 2, 5]),
    batched=st.sampled_from([None, 24, 64]),
    blocks=st.sampled_from([None, 14, 30]),
    caching=st.booleans(),
    concurrency=st.integers(1, 4),
    rate=st.sampled_from([None, 3.0, 50.0]),
)
def test_the_replay_equals_its_naive_twin(
    seed, problems, n, k, max_seqs, batched, blocks, caching, concurrency, rate
):
    limits = Limits(
        max_num_seqs=max_seqs,
        max_num_batched_tokens=batched,
        block_size=8,
        num_blocks=blocks,
        prefix_caching=caching,
        speculative=k > 0,
    )
    loads = loads_of(seed, problems, n, k)
    if rate is None:
        assert_twins(loads, limits, concurrency=concurrency)
    else:
        gaps = np.random.default_rng(seed).exponential(1 / rate, problems)
        assert_twins(loads, limits, arrivals=np.cumsum(gaps).tolist())


@pytest.mark.parametrize("k", [0, 3])
def test_preemption_happens_and_is_the_same(k):
    limits = Limits(block_size=8, num_blocks=20, speculative=k > 0)
    assert assert_twins(loads_of(3, 6, 4, k), limits, concurrency=4).preemptions > 0


def test_a_sample_that_cannot_fit_is_refused():
    loads = [Load(prompt_tokens=50, cached_tokens=0, samples=(plain(60),))]
    with pytest.raises(ValueError, match="14 blocks"):
        replay(loads, COST, Limits(block_size=8, num_blocks=10), concurrency=1)


def test_siblings_share_whole_blocks_of_the_prompt():
    # 136-token prompt, block size 32, 8 samples: 136 + 7 * (136 - 128) = 192 tokens computed.
    loads = [Load(prompt_tokens=136, cached_tokens=0, samples=(plain(1),) * 8)]
    got = replay(loads, COST, Limits(block_size=32, max_num_batched_tokens=512), concurrency=1)
    assert got.totals[6] == 192
    assert got.steps == 1


def test_one_sample_by_hand():
    loads = [Load(prompt_tokens=10, cached_tokens=0, samples=(plain(3),))]
    got = replay(loads, COST, Limits(block_size=16), concurrency=1)
    step, prompt, _, request, first, _, token, kv, query = COST
    expected = (
        3 * (step + request)
        + prompt
        + first
        + token * 12
        + kv * (10 + 11 + 12)
        + query * (55 + 11 + 12)
    )
    assert got.latency_s[0] == pytest.approx(expected, rel=1e-12)
    assert got.ttft_s[0] == pytest.approx(
        step + request + prompt + first + 10 * token + 10 * kv + 55 * query, rel=1e-12
    )


def test_verify_steps_keep_what_the_sample_kept():
    scheduled, advance = verify_steps(8, [3, 3, 3], [3, 0, 3])
    assert advance.tolist() == [4, 1, 2]
    assert scheduled.tolist() == [4, 4, 4]
    scheduled, advance = verify_steps(8, [2, 2], [2, 1])
    # Two steps drafted nothing; where they were is not recorded.
    assert advance.tolist() == [1, 3, 1, 2]
    assert scheduled.tolist() == [1, 3, 1, 3]
    assert [steps.tolist() for steps in verify_steps(3, [], [])] == [[1, 1], [1, 1]]
    assert verify_steps(8, None, None) == (None, None)


def test_a_hundred_problems_of_sixteen_samples_replay_quickly():
    loads = loads_of(1, 100, 16, longest=120)
    limits = Limits(max_num_seqs=64, max_num_batched_tokens=2048, block_size=128, num_blocks=9000)
    replay(loads, COST, limits, concurrency=8)
    spent = []
    for _ in range(5):
        begun = time.process_time()
        replay(loads, COST, limits, concurrency=8)
        spent.append(time.process_time() - begun)
    assert min(spent) < 0.15  # 0.02 on a quiet core
