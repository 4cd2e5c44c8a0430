from itertools import product

import numpy as np
import pytest

from advisor.step_time.operators.attention import DecodeAttention
from advisor.step_time.operators.grids import fill_between, fill_beyond, interpolate, to_grid

BATCHES = np.array([1.0, 2, 4, 8, 16, 32, 64, 128, 256])
CONTEXTS = np.array([16.0, 32, 64, 128, 256, 512, 1024, 2048])


def grid(batches=BATCHES, contexts=CONTEXTS):
    return np.array(list(product(batches, contexts))).T


def device(batch, context, *, split=64.0, price=3e-9):
    """A launch that grows once the SMs are full, a second kernel, and bytes of KV."""
    launch = 8e-6 + 2e-7 * np.maximum(batch - 16, 0.0)
    read = batch * context
    kv = np.where(read > 30_000, price * read + 2e-5, (price + 2e-5 / 30_000) * read)
    return launch + np.where(context > split, 4e-6 + kv, 0.3 * kv)


def test_a_device_of_the_laws_kind_comes_back_and_is_continued():
    batch, context = grid()
    model = DecodeAttention().fit(batch, context, device(batch, context))
    assert model.split_ == 64
    assert (model.prices_ >= 0).all()
    assert np.abs(model.law(batch, context) / device(batch, context) - 1).mean() < 0.02
    np.testing.assert_allclose(model.predict(batch, context), device(batch, context), rtol=1e-9)
    longer = grid(contexts=np.array([4096.0, 16384, 131072]))
    error = np.abs(model.predict(*longer) / device(*longer) - 1)
    assert error.max() < 0.1
    assert error.mean() < 0.02
    wider = grid(batches=np.array([512.0, 1024]), contexts=CONTEXTS[3:])
    assert np.abs(model.predict(*wider) / device(*wider) - 1).max() < 0.05


def test_no_second_kernel_is_made_up():
    batch, context = grid()
    seconds = device(batch, context, split=0.0)
    assert DecodeAttention().fit(batch, context, seconds).split_ is None


def test_prices_are_relative_so_small_batches_count_as_much():
    batch, context = grid()
    rng = np.random.default_rng(3)
    seconds = device(batch, context) * rng.lognormal(0, 0.03, len(batch))
    model = DecodeAttention().fit(batch, context, seconds)
    error = np.abs(model.law(batch, context) / device(batch, context) - 1)
    assert error[batch <= 4].mean() < 0.03
    assert error[batch >= 64].mean() < 0.03


def test_one_row_and_one_line_are_enough_to_hold_a_time():
    model = DecodeAttention().fit(np.array([4.0]), np.array([100.0]), np.array([1e-5]))
    assert model.predict(np.array([4.0]), np.array([100.0]))[0] == pytest.approx(1e-5)
    line = np.array([16.0, 64, 256])
    model = DecodeAttention().fit(np.full(3, 8.0), line, 1e-5 + 1e-8 * line)
    got = model.predict(np.full(3, 8.0), line)
    np.testing.assert_allclose(got, 1e-5 + 1e-8 * line, rtol=1e-9)
    with pytest.raises(ValueError, match="no rows"):
        DecodeAttention().fit(np.zeros(0), np.zeros(0), np.zeros(0))


def test_holes_are_filled_between_and_held_or_continued_beyond():
    knots, table = to_grid(np.array([[1.0, 1], [1, 4], [3, 1]]), np.array([1.0, 4, 3]))
    assert np.isnan(table).sum() == 1
    rows = np.array([[1.0, 1, 10], [1, 3, 30], [2, 2, 25], [4, 1, 40], [4, 2, 50], [4, 3, 60]])
    knots, table = to_grid(rows[:, :2], rows[:, 2])
    held, gone_on = table.copy(), table
    for each, hold in ((held, True), (gone_on, False)):
        fill_between(each, knots, (1, 0))
        fill_beyond(each, knots, (1, 0), hold=hold)
    # (1, 2) lies between 10 and 30; (2, 1) and (2, 3) then between their batches.
    np.testing.assert_allclose(gone_on, [[10, 20, 30], [20, 25, 40], [40, 50, 60]])
    np.testing.assert_allclose(held, gone_on)
    cut = np.array([[np.nan, 2.0, 3, np.nan]])
    for hold, end in ((True, 3.0), (False, 5.0)):
        line = cut.copy()
        fill_beyond(line, (np.array([1.0]), np.array([1.0, 2, 3, 5])), (1,), hold=hold)
        assert line.tolist() == [[2.0, 2.0, 3.0, end]]
    at = (np.array([0.0, 3.0, 9.0]), np.array([2.0, 1.5, 9.0]))
    np.testing.assert_allclose(interpolate(gone_on, knots, at), [20, 33.75, 60])


@pytest.mark.slow
@pytest.mark.parametrize("gpu", ["RTX4090", "RTXPRO6000"])
def test_measured_decode_attention_is_met_within_and_beyond(shared, gpu):
    from advisor.step_time.operators.files import read_operators

    rows = read_operators(shared / "data" / "ops" / f"{gpu}_Llama-3.1-8B_tp1").attention
    batch, context, seconds = rows[rows[:, 0] == 0].T[2:]
    known = context <= 2048
    fold = np.random.default_rng(0).permutation(int(known.sum())) % 5
    own = batch[known], context[known], seconds[known]
    inside = [
        np.abs(
            DecodeAttention().fit(*(part[fold != k] for part in own))
            .predict(own[0][fold == k], own[1][fold == k])
            / own[2][fold == k] - 1
        )
        for k in range(5)
    ]  # fmt: skip
    assert np.concatenate(inside).mean() < 0.045
    error = np.abs(DecodeAttention().fit(*own).predict(batch, context) / seconds - 1)
    assert error[(context > 2048) & (context <= 4096)].mean() < 0.05
    assert error[context > 2048].mean() < 0.09
