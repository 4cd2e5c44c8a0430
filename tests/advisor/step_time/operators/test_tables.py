import dataclasses

import numpy as np
import pytest

from advisor.step_time.cost import table_cost
from advisor.step_time.operators.files import read_operators
from advisor.step_time.operators.skew import decode_skew, mixed_skew
from advisor.step_time.operators.tables import (
    captured_sizes,
    default_capture_sizes,
    domain,
    step_tables,
)
from tests.advisor.step_time import step_costs
from tests.advisor.step_time.operators.operator_tables import (
    BEFORE,
    LAYERS,
    META,
    attention_rows,
    attention_us,
    dense_us,
    write_tables,
)
from traces.errors import TablesError
from traces.schema.engine import CAPTURE, EngineConfig

ENGINE = {"num_hidden_layers": 2, "max_num_batched_tokens": 32, "max_num_seqs": 8}


def tables(folder, **engine):
    return step_tables(read_operators(folder), **{**ENGINE, **engine})


def step(made, *, chunks=(), decodes=0, context=0.0, longest=None):
    """The seconds of a step; each of `decodes` has had `context` tokens before it."""
    longest = context if longest is None else longest
    return step_costs.step(
        table_cost(made), chunks=chunks, decodes=decodes, context=decodes * (context + 1.0),
        longest=longest + 1.0,
    )  # fmt: skip


def layers_s(tokens):
    """Two layers of Llama: one norm before attention, one before the MLP."""
    once = dense_us("embedding", tokens) + dense_us("final_layernorm", tokens)
    each = sum(dense_us(name, tokens) for name in LAYERS[2:]) + dense_us("layernorm", tokens)
    return 1e-6 * (once + 2 * each)


def logits_s(rows):
    return 1e-6 * (10 + rows + 3 + 2 * rows)


@pytest.mark.slow
def test_a_step_is_its_layers_its_logits_and_its_attention(tmp_path):
    made = tables(write_tables(tmp_path))
    expected = layers_s(4) + logits_s(4) + 2e-6 * attention_us(0, 0, 4, 64)
    assert step(made, decodes=4, context=64) == pytest.approx(expected, rel=1e-12)
    expected = layers_s(20) + logits_s(5) + 2e-6 * attention_us(16, 64, 4, 64)
    got = step(made, chunks=[(16, 64)], decodes=4, context=64)
    assert got == pytest.approx(expected, rel=1e-12)
    # Between what was measured: 6 requests at a context of 100; 18 tokens lie between 16 and 32.
    expected = layers_s(6) + logits_s(6) + 2e-6 * attention_us(0, 0, 6, 100)
    assert step(made, decodes=6, context=100) == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
def test_with_graphs_a_step_computes_the_next_captured_size(tmp_path):
    folder = write_tables(tmp_path)
    made = tables(folder, capture_sizes=[8, 1, 4])
    attention = 2e-6 * attention_us(0, 0, 3, 64)
    got = step(made, decodes=3, context=64)
    assert got == pytest.approx(layers_s(4) + logits_s(3) + attention, rel=1e-12)
    assert made.tokens[9] == pytest.approx(layers_s(9), rel=1e-12)  # beyond the largest: as it is
    assert tables(folder).tokens[3] == pytest.approx(layers_s(3), rel=1e-12)


def test_sizes_of_graphs_are_those_of_vllm():
    assert default_capture_sizes(4) == [1, 2, 4, 8]
    sizes = default_capture_sizes(256)
    # As vLLM 0.19 resolved them for max_num_seqs 256.
    assert (len(sizes), sizes[:5], sizes[34:37], sizes[-1]) == (
        51, [1, 2, 4, 8, 16], [256, 272, 288], 512
    )  # fmt: skip


def test_sizes_of_graphs_hold_whole_requests_with_drafts_and_more_on_blackwell():
    sizes = default_capture_sizes(64, 4)
    assert sizes[-1] == 512
    assert {4 * n for n in (1, 2, 4, 8, 40, 56, 64)} < set(sizes)
    assert default_capture_sizes(3, 3) == [1, 2, 3, 4, 6, 8, 9, 16]
    engine = EngineConfig(model="m", max_num_seqs=1024, gpu="NVIDIA GB200")
    assert captured_sizes(engine)[-1] == 1024
    for other in ({"gpu": "NVIDIA H200"}, {"vllm_version": "0.19.0"}):
        assert captured_sizes(dataclasses.replace(engine, **other))[-1] == 512
    assert captured_sizes(dataclasses.replace(engine, enforce_eager=True)) == []
    told = dataclasses.replace(engine, max_num_seqs=4, other=((CAPTURE, "2048"),))
    assert captured_sizes(told)[-1] == 2048


def test_beyond_the_tables_layers_go_on_by_tokens(tmp_path):
    made = tables(write_tables(tmp_path), max_num_batched_tokens=100, max_num_seqs=40)
    assert len(made.tokens) == 141
    assert made.tokens[100] == pytest.approx(layers_s(100), rel=1e-12)
    assert made.sequences[40] == pytest.approx(logits_s(40), rel=1e-12)


def test_a_longer_chunk_is_one_and_another_with_the_first_before_it(tmp_path):
    made = tables(write_tables(tmp_path), max_num_batched_tokens=128)
    assert made.chunk[-1] == 128
    assert made.before.tolist() == list(BEFORE)
    for chunk, before in ((64, 32), (128, 0)):
        a, b = np.searchsorted(made.chunk, chunk), np.searchsorted(made.before, before)
        # The launch of an empty chunk is taken from the smallest one, of 8 tokens.
        launches = chunk // 32 - 1
        small = 0.01 * 8 * 4
        expected = attention_us(chunk, before, 0, 0) - launches * small
        assert made.mixed[a, b, 0, 0] == pytest.approx(2e-6 * expected, rel=1e-12)
        expected = attention_us(chunk, before, 4, 64) - launches * small
        assert made.mixed[a, b, 3, 2] == pytest.approx(2e-6 * expected, rel=1e-12)


def test_twice_the_requests_add_as_much_again(tmp_path):
    made = tables(write_tables(tmp_path), max_num_seqs=30)
    assert made.mixed_batch.tolist() == [0, 1, 2, 4, 8, 16, 32]
    expected = attention_us(16, 64, 32, 64)
    assert made.mixed[1, 2, -1, 2] == pytest.approx(2e-6 * expected, rel=1e-12)
    assert made.decode_batch[-1] == 32


@pytest.mark.slow
def test_beyond_the_longest_context_more_of_it_costs_what_kv_costs(tmp_path):
    made = tables(write_tables(tmp_path))
    for decodes, context in ((8, 1000), (1, 4000)):
        expected = layers_s(decodes) + logits_s(decodes)
        expected += 2e-6 * attention_us(0, 0, decodes, context)
        assert step(made, decodes=decodes, context=context) == pytest.approx(expected, rel=2e-3)
        got = step(made, chunks=[(16, 0)], decodes=decodes, context=context)
        expected = layers_s(16 + decodes) + logits_s(1 + decodes)
        expected += 2e-6 * attention_us(16, 0, decodes, context)
        assert got == pytest.approx(expected, rel=1e-9)


def test_holes_of_two_grids_laid_over_each_other_are_interpolated(tmp_path):
    def linear(chunk, before, batch, context):
        return 5 + 0.1 * chunk + 0.02 * before + 0.3 * batch + 0.01 * context

    coarse = attention_rows()
    fine = attention_rows(chunks=(8, 12, 32), before=(0, 48, 128), contexts=(16, 24, 100, 128))
    keys = sorted({row[:4] for row in (*coarse, *fine)})
    # As where the cache was too small for the largest batch and context.
    keys = [key for key in keys if key[2] * key[3] <= 512]
    made = tables(write_tables(tmp_path, attention=[(*key, linear(*key)) for key in keys]))
    assert made.mixed.shape == (4, 5, 5, 6)
    grid = np.meshgrid(made.chunk, made.before, made.mixed_batch[1:], made.mixed_kv, indexing="ij")
    np.testing.assert_allclose(made.mixed[:, :, 1:], 2e-6 * linear(*grid), rtol=1e-12)


def test_skew_is_found_for_each_batch_and_what_is_beside_it(tmp_path):
    def share(batch, chunk, before, longest):
        return 0.02 * batch if not chunk else 0.1 + 0.001 * before + 0.0005 * longest

    folder = write_tables(tmp_path, skew=share)
    operators = read_operators(folder)
    got = decode_skew(operators.skew, np.array([0.0, 1, 2, 3, 8, 16]))
    np.testing.assert_allclose(got, [0, 0, 0.04, 0.06, 0.16, 0.16], rtol=1e-12)
    before, contexts = np.array([0.0, 32, 500]), np.array([16.0, 64, 80, 128, 900])
    got = mixed_skew(operators.skew, before, np.array([0.0, 1, 2, 8, 16]), contexts)
    assert got.shape == (3, 5, 5)
    assert not got[:, :2].any()
    # Measured are 0 and 64 before the chunk, and longest contexts of 64 and 128; a row's weight
    # holds each of the eight cells of a batch towards their mean.
    for b, c in ((0, 2), (1, 3), (2, 4)):
        held = share(4, 16, min(before[b], 64), np.clip(contexts, 64, 128))
        mean = share(4, 16, 32, 96)
        np.testing.assert_allclose(got[b, c], held, atol=0.02)
        assert np.abs(got[b, c] - held).max() <= np.abs(mean - held).max()
    made = tables(folder)
    even, uneven = (step(made, decodes=8, context=32, longest=at) for at in (32, 128))
    between = 0.16 * (attention_us(0, 0, 8, 128) - attention_us(0, 0, 8, 32))
    assert uneven - even == pytest.approx(2e-6 * between, rel=1e-9)
    assert step(tables(folder, skew=False), decodes=8, context=32, longest=128) == even
    even, uneven = (
        step(made, chunks=[(16, 0)], decodes=8, context=32, longest=at) for at in (32, 128)
    )
    between = made.mixed_skew[0, 4, 3] * (attention_us(16, 0, 8, 128) - attention_us(16, 0, 8, 32))
    assert uneven - even == pytest.approx(2e-6 * between, rel=1e-9)


def test_skew_is_off_where_the_tables_say_so(tmp_path):
    folder = write_tables(tmp_path, skew=lambda *_: 0.5)
    meta = (folder / "meta.yaml").read_text().replace("enabled: true", "enabled: false")
    (folder / "meta.yaml").write_text(meta)
    made = tables(folder)
    assert not made.decode_skew.any()
    assert not made.mixed_skew.any()


def test_tensor_parallel_tables_need_the_collectives(tmp_path):
    folder = write_tables(tmp_path / "model_tp2", meta=META.replace("[1]", "[2]"))
    with pytest.raises(TablesError, match="of tensor-parallel size 2, and the engine has 1"):
        tables(folder)
    with pytest.raises(TablesError, match="leave out the collectives"):
        tables(folder, tensor_parallel_size=2)
    made = tables(folder, tensor_parallel_size=2, capture_sizes=[4], collectives=lambda t: 1e-3 * t)
    assert made.tokens[3] == pytest.approx(layers_s(4) + 4e-3, rel=1e-12)


def test_what_the_tables_cover(tmp_path):
    found = domain(read_operators(write_tables(tmp_path)))
    assert (found.tokens, found.sequences, found.batch, found.context) == (32, 32, 8, 128)
    most = {"tokens": 32, "requests": 8}
    assert found.holds(most, 128) and not found.holds(most, 129)
    assert not any(found.holds({**most, name: most[name] + 1}, 128) for name in most)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({"layers": (*LAYERS, "kv_b_proj")}, "layer kv_b_proj is not known"),
        ({"layers": LAYERS[:-1]}, "no rows of down_proj. Profile the whole model"),
        ({"attention": [r for r in attention_rows() if r[0]]}, "decoding requests alone"),
        ({"attention": [r for r in attention_rows() if r[2]]}, "no rows with a chunk alone"),
        ({"attention": [r for r in attention_rows() if not r[0] or not r[2]]}, "chunk beside"),
        ({"attention": [(r[0] + (r[2] == 0), *r[1:]) for r in attention_rows()]},
         "no chunk was measured both alone and beside"),
    ],
)  # fmt: skip
def test_tables_of_another_model_or_in_part_are_refused(tmp_path, what, message):
    with pytest.raises(TablesError, match=message):
        tables(write_tables(tmp_path, **what))


@pytest.mark.slow
@pytest.mark.parametrize("gpu", ["RTX4090", "RTXPRO6000"])
def test_measured_times_come_back(shared, gpu):
    operators = read_operators(shared / "data" / "ops" / f"{gpu}_Llama-3.1-8B_tp1")
    made = step_tables(
        operators, num_hidden_layers=32, max_num_batched_tokens=2048, max_num_seqs=256
    )
    assert not np.isnan(made.mixed).any()
    assert (made.mixed > 0).all()
    assert (made.decode > 0).all()
    rng = np.random.default_rng(0)
    for row in operators.attention[rng.choice(len(operators.attention), 300)]:
        chunk, before, batch, context, seconds = row
        chunks = [(int(chunk), int(before))] if chunk else []
        empty = made._replace(tokens=made.tokens[:0], sequences=made.tokens[:0])
        got = step(empty, chunks=chunks, decodes=int(batch), context=context)
        assert got == pytest.approx(32 * seconds, rel=1e-9)
