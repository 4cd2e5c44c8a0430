import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advisor.evidence.features import FEATURES, ZERO
from advisor.step_time.cost import linear_cost, needs_longest, table_cost
from advisor.step_time.table_cost import StepTables
from tests.advisor.step_time import step_costs
from tests.advisor.step_time.step_costs import host_seconds, leap_seconds

LAW = np.array(
    ZERO._replace(
        step=3e-3, prefill_step=1e-3, draft_step=7e-4, requests=2e-5, prefill_requests=1e-4,
        draft_requests=5e-5, tokens=4e-6, kv_tokens=3e-8, query_context=2e-9, problem_starts=5e-4,
        sample_starts=3e-4, sample_ends=2e-4,
    )
)  # fmt: skip


def step(tables, **what):
    return step_costs.step(table_cost(tables) if isinstance(tables, StepTables) else tables, **what)


def attention(chunk, before, batch, context):
    """A time that is linear in each of four, so that interpolation has to give it exactly."""
    return 1e-6 * (5 + 3 * chunk) * (2 + before) + 1e-7 * batch * context * (1 + 0.01 * chunk)


def tables(**parts) -> StepTables:
    chunk, before = np.array([16.0, 64, 512]), np.array([0.0, 32, 1024])
    batch, kv = np.array([0.0, 1, 8, 32]), np.array([16.0, 256, 4096])
    grid = np.meshgrid(chunk, before, batch, kv, indexing="ij")
    made = StepTables(
        chunk=chunk, before=before, mixed_batch=batch, mixed_kv=kv,
        mixed=np.ascontiguousarray(attention(*grid)), launch=np.zeros(1),
        mixed_skew=np.zeros((3, 4, 3)),
        decode_batch=batch[1:].copy(), decode_kv=kv, decode_skew=np.zeros(3),
        decode=1e-6 * (1 + batch[1:, None] * kv),
    )  # fmt: skip
    return made._replace(**parts)


def test_an_empty_cost_is_nothing_and_a_law_is_its_product():
    assert step(StepTables(), chunks=[(10, 0)], decodes=3, context=30) == 0.0
    got = step(linear_cost(LAW), chunks=[(10, 4)], decodes=2, tokens=8, context=50, drafting=True)
    features = ZERO._replace(
        step=1, prefill_step=1, draft_step=1, requests=3, prefill_requests=1, draft_requests=2,
        tokens=18, kv_tokens=14 + 50, query_context=4 * 10 + 55 + 50 * 4,
    )  # fmt: skip
    assert got == pytest.approx(LAW @ features, rel=1e-14)
    host = ZERO._replace(problem_starts=1, sample_starts=4, sample_ends=2)
    assert host_seconds(linear_cost(LAW), 1, 4, 2) == pytest.approx(LAW @ host, rel=1e-14)
    with pytest.raises(ValueError, match=str(len(FEATURES))):
        linear_cost(LAW[:3])


def test_layers_are_looked_up_by_tokens_and_by_rows_of_logits():
    cost = StepTables(tokens=np.array([0.0, 1, 4, 9, 16]), sequences=np.array([0.0, 10, 30]))
    assert step(cost, decodes=2, context=9) == 4 + 30
    # Verified drafts have their logits too; a chunk has those of its last token.
    assert step(cost, decodes=1, tokens=2, context=9) == 4 + 30
    assert step(cost, chunks=[(3, 0)]) == 9 + 10
    # Beyond the ends with the slope of the upper half: (16 - 4) / 2 and (30 - 10) / 1.
    assert step(cost, chunks=[(6, 0)], decodes=2, context=9) == (16 + 4 * 6) + (30 + 20)


@pytest.mark.parametrize("chunk", [16, 40, 700])
@pytest.mark.parametrize("before", [0, 20, 3000])
def test_one_chunk_is_interpolated_in_all_four_and_goes_on_beyond(chunk, before):
    cost = tables()
    for decodes, context in ((0, 0), (1, 16), (5, 100), (60, 9000)):
        got = step(cost, chunks=[(chunk, before)], decodes=decodes, context=decodes * (context + 1))
        assert got == pytest.approx(attention(chunk, before, decodes, context), rel=1e-12)


def test_below_the_first_knot_time_is_held():
    cost = tables()
    assert step(cost, chunks=[(3, 0)]) == step(cost, chunks=[(16, 0)])
    assert step(cost, decodes=8, context=8 * 3) == step(cost, decodes=8, context=8 * 17)


def test_small_chunks_run_side_by_side_and_large_ones_one_after_another():
    # Time is that of the longest context until 64 tokens fill the device, then by work.
    chunk, before = np.array([16.0, 64, 128]), np.array([0.0, 1024])
    work = np.array([[1.0, 11.0], [1.0, 11.0], [2.0, 21.0]])
    cost = StepTables(
        chunk=chunk, before=before, mixed_batch=np.array([0.0]), mixed_kv=np.array([0.0]),
        mixed=np.ascontiguousarray(work[:, :, None, None]), mixed_skew=np.zeros((2, 1, 1)),
        launch=np.ones(1),
    )  # fmt: skip
    assert step(cost, chunks=[(16, 1024)] * 4) == pytest.approx(1 + 10 * 1000 / 1024)
    assert step(cost, chunks=[(64, 1024)] * 2) == pytest.approx(2 + 19 * 992 / 1024)
    # Two from scratch have half the work of one of their tokens: not above the sum of theirs.
    assert step(cost, chunks=[(64, 0)] * 2) == pytest.approx(1.0)


def test_skew_moves_from_the_mean_to_the_longest():
    mixed = np.zeros((3, 4, 3))
    mixed[:, 2:] = np.array([0.25, 0.1])[:, None]
    cost = tables(decode_skew=np.array([0.0, 0.5, 0.1]), mixed_skew=mixed)

    def pure(context):
        return step(tables(), decodes=8, context=8 * context, longest=context)

    got = step(cost, decodes=8, context=8 * 101, longest=1001)
    assert got == pytest.approx(0.5 * pure(101) + 0.5 * pure(1001), rel=1e-12)
    got = step(cost, chunks=[(64, 0)], decodes=8, context=8 * 101, longest=1001)
    expected = 0.75 * attention(64, 0, 8, 100) + 0.25 * attention(64, 0, 8, 1000)
    assert got == pytest.approx(expected, rel=1e-12)
    assert needs_longest(table_cost(cost))
    assert not needs_longest(table_cost(tables()))
    assert not needs_longest(linear_cost(LAW))
    # Between batches the skew is between; beyond the last it is held.
    got = step(cost, decodes=64, context=64 * 101, longest=1001)
    assert got == pytest.approx(1e-6 * (1 + 64 * (0.9 * 100 + 0.1 * 1000)), rel=1e-12)


@pytest.mark.slow
@settings(max_examples=200)
@given(
    seed=st.integers(0, 10_000), steps=st.integers(1, 600), decodes=st.integers(1, 40),
    pace=st.sampled_from([1.0, 1.0, 2.5]), mean=st.floats(1, 6000), spread=st.floats(0, 3000),
    slower=st.sampled_from([1.0, 0.0, 0.3]), drafting=st.booleans(),
)  # fmt: skip
def test_a_leap_is_the_sum_of_its_steps(seed, steps, decodes, pace, mean, spread, slower, drafting):
    rng = np.random.default_rng(seed)
    knots = np.cumsum(rng.integers(1, 900, 12)).astype(float)
    batches = np.array([1.0, 2, 7, 30])
    made = StepTables(
        tokens=rng.random(200), sequences=rng.random(50), decode_batch=batches, decode_kv=knots,
        decode=rng.random((4, 12)), decode_skew=rng.choice([0.0, 0.3, -0.1], 4),
    )  # fmt: skip
    cost = table_cost(made, LAW)
    tokens, context = decodes * pace, decodes * (mean + pace)
    growth, longest = tokens * slower, mean + pace + spread
    each = [
        step(
            cost, decodes=decodes, tokens=tokens, context=context + i * growth,
            longest=longest + i * pace, drafting=drafting,
        )
        for i in range(steps)
    ]  # fmt: skip
    got = leap_seconds(
        cost, steps, decodes, tokens, context, growth, longest, pace, drafting
    )  # fmt: skip
    assert got == pytest.approx(sum(each), rel=1e-12, abs=1e-12)


def test_tables_that_do_not_fit_their_knots_are_refused():
    with pytest.raises(ValueError, match=r"decode has the shape \(2, 3\): \(3, 3\)"):
        table_cost(tables(decode=np.zeros((2, 3))))
    with pytest.raises(ValueError, match="mixed_skew"):
        table_cost(tables(mixed_skew=np.zeros((3, 4, 2))))


def test_a_batch_beyond_the_tables_goes_on_in_proportion():
    # 32 requests are the most in the tables; the slope is that of the last segment.
    def at(batch):
        return step(tables(), decodes=batch, context=batch * 101)

    assert at(64) - at(32) == pytest.approx(1e-6 * 32 * 100)
