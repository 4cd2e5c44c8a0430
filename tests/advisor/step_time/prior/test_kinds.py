"""The prior of mixtures, latent and linear attention, windows, and narrow weights."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from advisor.step_time.host.law import host_note, host_part
from advisor.step_time.operators.grids import growing, without_stalls
from advisor.step_time.prior.defaults import Device, memory_of, with_blocks
from advisor.step_time.prior.operations.attention import attending, decoding_grid
from advisor.step_time.prior.operations.experts import Shape, routed
from advisor.step_time.prior.operations.modules import GAPS, SPARSE
from advisor.step_time.prior.operations.products import product
from advisor.step_time.prior.prior import prior_of
from advisor.step_time.prior.recalibration import PriorTimes, cost_of
from advisor.step_time.prior.tables import read_prior
from tests.advisor.step_time.prior.kinds_files import (
    DELTA,
    HEADS,
    LATENT,
    LATENT_PRODUCTS,
    PRODUCTS,
    delta_s,
    experts_of,
    experts_s,
    latent_s,
    layer,
    matrix,
    model,
    nccl_s,
    write_kinds,
)
from tests.advisor.step_time.prior.prior_files import (
    BANDWIDTH,
    decode_s,
    edited,
    gemm_s,
    installed,
    write_prior,
)
from traces.errors import TablesError, UsageError
from traces.schema.engine import EngineConfig
from traces.schema.layers import State

AT = np.array([8.0])
PARALLEL = (("enable_expert_parallel", "true"),)
SHAPE = Shape(hidden=512, width=256, active=2, total=8)  # that was measured


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    return read_prior("test_gpu", write_kinds(write_prior(tmp_path_factory.mktemp("kinds"))))


def changed(folder, table, change):
    """Return the tables with one of them changed."""
    return read_prior("test_gpu", edited(write_kinds(write_prior(folder)), table, change))


def priced(tables, facts, **engine):
    return prior_of(tables, facts, EngineConfig(model="kinds", **engine))


def part(prior, name):
    return next(each for each in prior.parts.dense if each.name == name)


def seconds(prior, name, tokens=AT):
    return np.interp(tokens, *part(prior, name).times.rows.T)


@pytest.mark.parametrize(
    ("engine", "tokens", "tensor", "expert"),
    [
        ({}, 8, 1, 1),
        ({"tensor_parallel_size": 2}, 8, 2, 1),
        ({"tensor_parallel_size": 2, "other": PARALLEL}, 8, 1, 2),
        ({"tensor_parallel_size": 2, "data_parallel_size": 2, "other": PARALLEL}, 16, 1, 4),
    ],
)
def test_experts_are_those_of_the_table_for_the_tokens_of_all_ranks(
    tables, engine, tokens, tensor, expert
):
    prior = priced(tables, model(layer()), **engine)
    assert part(prior, "experts").calls == 4
    between = np.interp(tokens, (8, 64), experts_s(np.array([8, 64]), "bfloat16", tensor, expert))
    assert seconds(prior, "experts") == pytest.approx(between)
    assert not prior.rules
    assert 0 < prior.routing < np.log(1.2)


def test_ranks_of_data_parallelism_gather_tokens_instead_of_an_all_reduce(tables):
    alone = priced(tables, model(layer()), tensor_parallel_size=2)
    two = priced(tables, model(layer()), tensor_parallel_size=2, data_parallel_size=2)
    assert (alone.parts.reduces, two.parts.reduces) == (2 * 4 + 1, 4 + 1)
    gathered = 2 * nccl_s(2 * 8 * 512 * 2, 4)
    assert seconds(two, "dispatch") == pytest.approx(gathered, rel=1e-6)


def test_narrow_weights_are_in_products_and_in_experts(tables):
    narrow = tuple(dataclasses.replace(each, precision="fp8") for each in layer().matrices[:4])
    prior = priced(tables, model(layer(mixing=narrow, after=experts_of("fp8"))))
    assert seconds(prior, "experts") == pytest.approx(experts_s(8, "fp8", 1, 1))
    assert seconds(prior, "self_attn.o_proj") == pytest.approx(0.5 * gemm_s(8, 512, 512))
    online = priced(tables, model(layer()), quantization="fp8")
    assert seconds(online, "self_attn.o_proj") == seconds(prior, "self_attn.o_proj")
    assert seconds(online, "mlp.gate") == seconds(prior, "mlp.gate")


def test_times_of_experts_that_were_given_get_the_kernel_that_chooses_them(tables, tmp_path):
    fused = changed(
        tmp_path, "moe", lambda rows: rows.with_columns(kernel_source=pl.lit("vllm_fused_moe"))
    )
    given, whole = (routed(each, SHAPE, "bfloat16").rows for each in (fused, tables))
    choosing = tables.kernel_s + whole[:, 0] * 8 * 4 / tables.bandwidth_bytes_per_s
    assert given[:, 1] == pytest.approx(whole[:, 1] + choosing)


def test_a_router_in_float32_is_multiplied_without_tensor_cores(tables):
    hopper = dataclasses.replace(tables, gpu={**tables.gpu, "sm_version": 90})
    mixture = model(layer(), architecture="MiniMaxM2ForCausalLM")
    many = np.array([4096.0])
    usual = priced(hopper, mixture, vllm_version="0.23.0")  # has kernels of its own for it
    slow = priced(hopper, mixture, vllm_version="0.19.0")
    start = tables.kernel_s
    ratio = (seconds(slow, "mlp.gate", many) - start) / (seconds(usual, "mlp.gate", many) - start)
    flops, moved = 2 * 4096 * 512 * 8, 2.0 * (4096 * (512 + 8) + 512 * 8)
    least = max(moved / tables.bandwidth_bytes_per_s, flops / tables.peak("bfloat16"))
    longer = flops / (tables.peak("bfloat16") / 14.8) / least
    assert ratio == pytest.approx(max(longer, 1.0), rel=0.05)
    assert part(slow, "router_input").calls == 4
    other = priced(hopper, model(layer(), architecture="KimiK2ForCausalLM"), vllm_version="0.19.0")
    assert seconds(other, "mlp.gate") == seconds(usual, "mlp.gate")


def test_a_precision_without_a_table_goes_by_bytes_and_peak(tables):
    whole, narrow = product(tables, 4096, 4096).rows, product(tables, 4096, 4096, "int4")
    start = tables.kernel_s
    few = (narrow.rows[0, 1] - start) / (whole[0, 1] - start)
    assert few == pytest.approx((0.5 + 2 / 128) / 2, rel=0.01)  # bytes of weights
    many = (narrow.rows[-1, 1] - start) / (whole[-1, 1] - start)
    assert many == pytest.approx(1.0, rel=1e-6)  # the same peak
    assert narrow.spread > 0
    assert "int4" in narrow.rule


def test_a_form_that_was_measured_at_few_shapes_is_the_nearest_other_one(tmp_path):
    def with_few(rows):
        few = rows.filter(n=64, k=64, gemm_dtype="fp8")
        return pl.concat(
            [rows, few.with_columns(gemm_dtype=pl.lit("fp8_block"), latency=pl.lit(9.0))]
        )

    tables = changed(tmp_path, "gemm", with_few)
    found = product(tables, 4096, 4096, "fp8_block")
    np.testing.assert_allclose(found.rows, product(tables, 4096, 4096, "fp8").rows)
    assert found.rule == "products in fp8_block: as those in fp8"


def test_experts_of_another_shape_are_the_nearest_by_bytes_and_flops(tables):
    rows, wide = (routed(tables, each, "bfloat16") for each in (SHAPE, SHAPE._replace(width=512)))
    start = tables.kernel_s
    ratio = (wide.rows[:, 1] - start) / (rows.rows[:, 1] - start)
    assert ratio[0] == pytest.approx(2.0, rel=0.01)
    assert "as 2 of 8 experts of 512 x 256" in wide.rule
    assert wide.spread > rows.spread == 0


def test_times_of_experts_that_beat_the_roofline_did_not_run(tables, tmp_path):
    broken = pl.when(pl.col("num_tokens") == 4096).then(1e-6).otherwise("latency")
    made = changed(tmp_path, "moe", lambda rows: rows.with_columns(latency=broken))
    found, whole = (routed(each, SHAPE, "bfloat16") for each in (made, tables))
    np.testing.assert_allclose(found.rows, whole.rows[:-1])


def test_experts_in_fp8_take_no_longer_than_in_bfloat16(tmp_path):
    slow = pl.col("latency") * pl.when(pl.col("moe_dtype") == "fp8").then(10.0).otherwise(1.0)
    tables = changed(tmp_path, "moe", lambda rows: rows.with_columns(latency=slow))
    plain, found = (routed(tables, SHAPE, form) for form in ("bfloat16", "fp8"))
    np.testing.assert_allclose(found.rows, plain.rows)
    assert "no longer than in bfloat16" in found.rule
    assert found.spread > 0


def test_a_routing_that_was_hardly_measured_is_another_one(tables, tmp_path):
    few = (pl.col("distribution") != "power_law_1.01") | (pl.col("num_tokens") == 1)
    made = changed(tmp_path, "moe", lambda rows: rows.filter(few))
    found, whole = (routed(each, SHAPE, "bfloat16") for each in (made, tables))
    np.testing.assert_array_equal(found.rows[:, 0], whole.rows[:, 0])
    assert found.rows[-1, 1] > 2 * found.rows[0, 1]


def test_latent_attention_is_its_table_and_its_own_products(tables):
    facts = model(layer(attention=LATENT, mixing=LATENT_PRODUCTS), hidden_size=512)
    prior = priced(tables, facts)
    ((count, mixer),) = prior.parts.mixers
    # Those of the table's model, DeepSeek-V3, and not of the one that is asked about.
    theirs = [(1536 + 576, 7168), (8 * 192, 1536), (7168, 8 * 128)]
    inside = sum(np.interp(4.0, *product(tables, n, k).rows.T) for n, k in theirs)
    told = mixer.decode(np.array([4.0]), np.array([255.0]))[0, 0]
    assert count == 4
    # As its shortest time is too long for a graph, it is less the gaps between kernels.
    gaps = np.interp(4.0, *GAPS.T)
    assert told + inside == pytest.approx(latent_s(4, 255, 8) - gaps, rel=0.02)
    assert "gaps between kernels" in mixer.rule
    names = [each.name for each in prior.parts.dense]
    assert "self_attn.kv_b_proj" not in names  # it is absorbed
    assert "rotary_emb" not in names
    half = priced(tables, facts, tensor_parallel_size=2).parts.mixers[0][1]
    assert half.decode(np.array([64.0]), np.array([4095.0])) < mixer.decode(
        np.array([64.0]), np.array([4095.0])
    )


def test_products_of_a_layers_table_have_its_models_hidden_size():
    asked = (
        ("self_attn.qkv_a_proj", 2112, 2048), ("self_attn.q_b_proj", 3072, 1536),
        ("self_attn.o_proj", 2048, 2048),
    )  # fmt: skip
    assert SPARSE[1].products(16, 2048, asked) == [(2112, 6144), (3072, 1536), (6144, 2048)]


def test_a_disturbed_measurement_takes_no_longer_than_more_work_does():
    times = np.array([[5.0, 60.0, 6.0, np.nan, 5.5], [5.0, 5.5, 6.0, 7.0, 9.0]])
    kept = without_stalls(times)
    np.testing.assert_allclose(kept[0], [5.0, 1.2 * 5.5, 6.0, np.nan, 5.5])
    np.testing.assert_array_equal(kept[1], times[1])
    np.testing.assert_allclose(growing(times[1]), times[1])
    np.testing.assert_allclose(growing(np.array([4.4, 4.0, 9.0])), [17.6**0.5, 17.6**0.5, 9.0])
    stalled = growing(np.array([5.0, 60.0, 6.0, 7.0]))
    np.testing.assert_allclose(stalled, [5.0, 43.2**0.5, 43.2**0.5, 7.0])


@pytest.mark.parametrize("window", [0, 100])
def test_attention_that_the_memory_did_not_hold_goes_on_by_what_it_reads(tables, window):
    def law(batch, context):
        return 1e-5 + 1e-9 * batch * np.minimum(context, window or np.inf)

    at = [(b, c) for b in (1, 8, 64) for c in (1, 50, 100, 200, 400) if b * c <= 3200]
    rows = np.array([(b, c, law(b, c)) for b, c in at], dtype=float)
    rows[-2, 2] *= 1.01  # noise before the end of the largest batch
    batches, contexts, grid = decoding_grid(tables, rows, window=window)
    known = law(batches[:, None], contexts)
    np.testing.assert_allclose(grid, known, rtol=0.03)
    entry = 1e6  # so much that reading it takes longer than was measured
    least = batches[:, None] * np.minimum(contexts, window or np.inf) * entry / BANDWIDTH
    held = decoding_grid(tables, rows, entry=entry, window=window)[2]
    assert (held >= 0.8 * least).all()  # at the peak where it was measured
    assert held[-1, -1] == pytest.approx(0.8 * least[-1, -1])  # and beyond, as it is reached there
    entry = 0.9 * (BANDWIDTH / 0.8) * law(64, 50) / (64 * 50)
    held = decoding_grid(tables, rows, entry=entry, window=window)[2]
    reads = 64 * (window or 400)
    assert held[-1, -1] == pytest.approx(law(64, 50) * reads / (64 * 50))  # at what was reached


def test_a_chunk_reads_half_of_its_length_on_average_whatever_windows_were_measured(tables):
    kinds = [
        dataclasses.replace(HEADS, kind=f"{kind}_attention", window=128)
        for kind in ("sliding", "chunked")
    ]
    window, chunk = (attending(tables, each, 1, kv_fp8=False) for each in kinds)
    assert window.rule is None
    assert "chunks of 128 tokens" in chunk.rule


def test_a_state_costs_the_same_whatever_the_context(tables):
    mixing = (matrix("linear_attn.in_proj_qkv", 512, 1024), matrix("linear_attn.o_proj", 512, 512))
    prior = priced(tables, model(layer(attention=None, state=DELTA, mixing=mixing)))
    ((_, mixer),) = prior.parts.mixers
    told = mixer.decode(np.array([8.0, 64.0]), np.array([1.0, 1e5]))
    np.testing.assert_allclose(told[:, 0], delta_s(np.array([8.0, 64.0]), 8))
    np.testing.assert_array_equal(told[:, 0], told[:, 1])
    half = priced(tables, model(layer(attention=None, state=DELTA, mixing=mixing)),
                  tensor_parallel_size=2)  # fmt: skip
    assert half.parts.mixers[0][1].decode(AT, AT) == pytest.approx(delta_s(8, 4))


def test_a_layer_of_attention_and_a_state_does_both(tables):
    mixing = (matrix("linear_attn.in_proj", 512, 1024), matrix("linear_attn.out_proj", 512, 512))
    both = priced(tables, model(layer(state=DELTA, mixing=(*PRODUCTS, *mixing)))).parts
    alone = [priced(tables, model(each)).parts for each in
             (layer(), layer(attention=None, state=DELTA, mixing=mixing))]  # fmt: skip
    ours, theirs = ([mixer.decode(AT, AT).item() for part in parts for _, mixer in part.mixers]
                    for parts in ([both], alone))  # fmt: skip
    assert ours == theirs and len(ours) == 2
    assert [both.reduces, *(each.reduces for each in alone)] == [13, 9, 9]


def test_a_convolution_reads_its_last_inputs_by_rule(tables):
    last = State(kind="conv", heads=512, values=0, value_bytes=2,
                 convolved_values=1024, convolved_bytes=2)  # fmt: skip
    mixing = (matrix("linear_attn.in_proj", 512, 1536), matrix("linear_attn.out_proj", 512, 512))
    prior = priced(tables, model(layer(attention=None, state=last, mixing=mixing)))
    ((_, mixer),) = prior.parts.mixers
    near, far = mixer.decode(np.array([1.0, 1024.0]), AT).T[0]
    assert far - near == pytest.approx(1023 * 2 * 1024 * 2 / BANDWIDTH)
    assert any("conv layers: the bytes" in rule for rule in prior.rules)


def test_gpus_sum_the_variance_of_a_norm_over_all_heads(tables):
    facts = model(layer())
    over = dataclasses.replace(facts, architecture="MiniMaxM2ForCausalLM")
    of_heads = dataclasses.replace(facts, architecture="Qwen3MoeForCausalLM")
    for size, calls in ((1, 0), (2, 4)):
        more = priced(tables, over, tensor_parallel_size=size)._token_seconds(AT, 8)
        less = priced(tables, of_heads, tensor_parallel_size=size)._token_seconds(AT, 8)
        small = np.interp(8.0, *(tables.all_reduces(2)[True] / [8, 1]).T)
        assert more - less == pytest.approx(calls * small)


@pytest.mark.parametrize("window", [128, 100])
def test_a_window_ends_what_a_layer_reads(tables, window):
    kind = dataclasses.replace(HEADS, kind="sliding_attention", window=window)
    mixer = attending(tables, kind, 1, kv_fp8=False)
    far, farther = mixer.decode(np.array([4.0]), np.array([2000.0, 4000.0]))[0]
    assert far == pytest.approx(farther) if window == 100 else far < farther
    assert farther < decode_s(4, 4000, 8, 4)
    assert (mixer.rule is None) == (window == 128)  # the table has 128 and no other
    prompts = mixer.prompt(np.array([100.0, 200.0, 400.0]))
    assert (np.diff(prompts) > 0).all()


def test_stages_of_a_pipeline_hand_their_tokens_on(tables):
    one, two = priced(tables, model(layer())), priced(tables, model(layer()),
                                                      pipeline_parallel_size=2)  # fmt: skip
    extra = two._token_seconds(AT, 0) - one._token_seconds(AT, 0)
    assert extra == pytest.approx(tables.kernel_s + 8 * 512 * 4 / tables.bandwidth_bytes_per_s)


@pytest.mark.parametrize(
    ("facts", "engine", "message"),
    [
        ({}, {"tensor_parallel_size": 2, "data_parallel_size": 3, "other": PARALLEL},
         "8 experts, which expert parallelism of tensor_parallel_size x data_parallel_size 6"),
        ({}, {"data_parallel_size": 3}, "256 columns of each expert"),
        ({"layers": (layer(mixing=(matrix("self_attn.warp_proj", 512, 512),)),)}, {},
         "the matrix self_attn.warp_proj. How GPUs share it is not known"),
    ],
)  # fmt: skip
def test_what_the_gpus_do_not_divide_is_one_line(tables, facts, engine, message):
    with pytest.raises(UsageError, match=message) as error:
        priced(tables, dataclasses.replace(model(layer()), **facts), **engine)
    assert "\n" not in str(error.value)


def test_a_missing_table_is_named(tmp_path):
    alone = read_prior("test_gpu", write_prior(tmp_path))
    with pytest.raises(TablesError, match=r"no table of experts \(moe/moe_perf.parquet\)"):
        priced(alone, model(layer()))
    with pytest.raises(TablesError, match="no table mla/mla_generation_module_perf.parquet"):
        priced(alone, model(layer(attention=LATENT, mixing=LATENT_PRODUCTS)))


def test_memory_counts_experts_by_all_ranks_and_blocks_by_kind():
    facts = model(layer(), total_parameters=8 * 10**9, weight_bytes=16 * 10**9)
    experts = facts.routed_weight_bytes()
    device = Device(name="g", memory_bytes=64e9)
    one, two = (
        memory_of(device, EngineConfig(model="m", data_parallel_size=ranks), facts)
        for ranks in (1, 2)
    )
    assert one.weights - two.weights == pytest.approx(experts / 2)
    narrow = (
        memory_of(
            device, EngineConfig(model="m", data_parallel_size=ranks, quantization="fp8"), facts
        )
        for ranks in (1, 2)
    )
    assert np.subtract(*(each.weights for each in narrow)) == pytest.approx(experts / 4)
    assert one.token == 4 * 2 * 4 * 64 * 2
    states = model(layer(2), layer(2, attention=None, state=DELTA))
    kept = memory_of(device, EngineConfig(model="m"), states)
    state = DELTA.size_bytes
    assert kept.least_block * kept.token / 2 >= state
    assert with_blocks(kept, EngineConfig(model="m"), states).block_size == kept.least_block


@installed
@pytest.mark.parametrize("form", ["bfloat16", "fp8", "fp8_block", "nvfp4", "int4", "mxfp4"])
def test_no_form_of_the_installed_products_takes_the_hosts_time(form):
    for system in ("h100_sxm", "b200_sxm"):
        rows = product(read_prior(system), 4096, 4096, form).rows
        assert 2e-6 < np.interp(8.0, *rows.T) < 25e-6


def test_ranks_that_share_experts_share_the_hosts_part_and_ranks_of_a_dense_model_do_not(tables):
    def engine(ranks, **changes):
        return EngineConfig(
            model="kinds", data_parallel_size=ranks, vllm_version="0.12.0", max_num_seqs=64,
            max_num_batched_tokens=2048, other=PARALLEL, **changes,
        )  # fmt: skip

    mixture = model(layer(), total_parameters=10**9)
    times = PriorTimes(tables=tables, facts=mixture, found=None, ranks=4)
    found = times.times(engine(1), 100)
    together = host_part(engine(1, tensor_parallel_size=4))
    np.testing.assert_allclose(found.cost.linear, together.seconds)
    assert host_note(engine(4)) in times.notes(engine(1))
    assert host_note(engine(4)) != host_note(engine(1))
    many = dataclasses.replace(times, ranks=16)  # more than any published run had
    assert "the number of GPUs" in many.published(engine(1)).unseen
    assert "the number of GPUs" not in times.published(engine(1)).unseen
    widths = (("gate_proj", 512, 1024), ("up_proj", 512, 1024), ("down_proj", 1024, 512))
    mlp = tuple(matrix(f"mlp.{name}", inputs, outputs) for name, inputs, outputs in widths)
    dense = model(layer(after=mlp), num_experts=None)
    prior = prior_of(tables, dense, engine(4))
    np.testing.assert_allclose(cost_of(prior, engine(4)).linear, host_part(engine(1)).seconds)
