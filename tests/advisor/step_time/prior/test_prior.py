import dataclasses

import numpy as np
import polars as pl
import pytest

from advisor.step_time.cost import scaled_cost, table_cost
from advisor.step_time.operators.tables import captured_sizes, interpolated
from advisor.step_time.prior import tables as prior_tables
from advisor.step_time.prior.operations.attention import attending
from advisor.step_time.prior.operations.moving import SORT_S
from advisor.step_time.prior.operations.products import product
from advisor.step_time.prior.prior import FAMILIES, prior_of
from advisor.step_time.prior.recalibration import PriorTimes, Recalibration, cost_of
from advisor.step_time.prior.relatives import read_gpu
from advisor.step_time.prior.tables import known_systems, read_prior, tables_folder
from tests.advisor.step_time.prior.prior_files import (
    BANDWIDTH,
    DEVICE,
    KERNEL_S,
    SIZES,
    TINY,
    all_reduce_s,
    decode_s,
    edited,
    gemm_s,
    installed,
    prompt_s,
    write_prior,
)
from tests.advisor.step_time.step_costs import step, step_seconds
from traces.errors import MissingDependencyError, TablesError, UsageError
from traces.notes import Decisive
from traces.schema.engine import EngineConfig
from traces.schema.layers import Attention
from traces.schema.tts.policy import Policy

LIMITS = {"max_num_batched_tokens": 256, "max_num_seqs": 16}


@pytest.fixture(scope="module")
def tables(made_tables):
    return read_prior("test_gpu", made_tables)


def priced(tables, size=1, facts=TINY, **engine):
    return prior_of(tables, facts, EngineConfig(model="tiny", tensor_parallel_size=size, **engine))


def decode_step(prior, batch, context, capture_sizes=()):
    cost = table_cost(prior.step_tables(**LIMITS, capture_sizes=capture_sizes))
    return step(cost, decodes=batch, context=batch * (context + 1.0), longest=context + 1.0)


@pytest.mark.parametrize(("n", "k"), [(64, 64), (700, 300), (1024, 3000)])
def test_a_product_between_measured_shapes_is_bilinear(tables, n, k):
    rows = product(tables, n, k).rows
    np.testing.assert_allclose(rows[:, 1], gemm_s(rows[:, 0], n, k), rtol=1e-9)


def test_a_product_wider_than_any_measured_takes_in_proportion(tables):
    rows = product(tables, 8192, 512).rows
    np.testing.assert_allclose(rows[:, 1], 2 * gemm_s(rows[:, 0], 4096, 512), rtol=1e-9)


@pytest.mark.parametrize(
    ("version", "sorts"), [("0.8.5", True), ("0.16.0", True), ("0.17.0", False), (None, False)]
)
def test_sampling_within_top_p_sorts_the_logits_of_older_engines(tables, version, sorts):
    engine = EngineConfig(model="tiny", vllm_version=version)
    plain, within = (prior_of(tables, TINY, engine, truncated=each) for each in (False, True))
    for batch in (1, 16):
        longer = decode_step(within, batch, 100) - decode_step(plain, batch, 100)
        assert longer == pytest.approx(sorts * 1.35e-10 * TINY.vocab_size * batch, abs=1e-15)
    assert any("sorting the logits" in rule for rule in within.rules) == sorts
    assert (within.spread > plain.spread) == sorts


@pytest.mark.parametrize("size", [1, 2])
def test_a_decode_step_is_the_sum_of_its_operators(tables, size):
    batch, context, layers = 4, 255, TINY.num_hidden_layers
    heads, kv_heads, hidden = 8 // size, 4 // size, TINY.hidden_size
    width = TINY.intermediate_size // size
    query, key = 64 * heads, 64 * kv_heads
    vocabulary = 1024 // size  # padded to 64 for each GPU

    def moved(values, kernels=1):
        return kernels * KERNEL_S + batch * values / BANDWIDTH

    layer = (
        gemm_s(batch, query + 2 * key, hidden)
        + gemm_s(batch, hidden, query)
        + gemm_s(batch, 2 * width, hidden)
        + gemm_s(batch, hidden, width)
        + 2 * moved(8 * hidden)
        + moved(4 * (query + key))
        + moved(6 * width)
        + decode_s(batch, context, heads, kv_heads)
    )
    whole = layers * layer + moved(4 * hidden) + moved(8 * hidden)
    whole += gemm_s(batch, vocabulary, hidden) + moved(10 * TINY.vocab_size, kernels=3)
    if size > 1:
        whole += (2 * layers + 1) * all_reduce_s(2 * batch * hidden, graph=False)
    assert decode_step(priced(tables, size), batch, context) == pytest.approx(whole, rel=1e-6)


def test_all_reduces_run_in_a_graph_up_to_the_largest_captured_size(tables):
    prior = priced(tables, 2)
    eager, graph = (decode_step(prior, 4, 255, sizes) for sizes in ((), (1, 4)))
    calls = 2 * TINY.num_hidden_layers + 1
    assert eager - graph == pytest.approx(calls * 16e-6, rel=1e-6)


def test_a_prompt_just_beyond_cuda_graphs_takes_no_leap(tables):
    """A law of giants once charged each such step 20 ms, whatever the model."""
    engine = EngineConfig(model="tiny", **CHUNKED, vllm_version="0.20.0")
    for facts in (dataclasses.replace(TINY, quantization="fp8"), TINY):
        cost = cost_of(PriorTimes(tables=tables, facts=facts, found=None).prior(engine), engine)
        largest = max(captured_sizes(engine))
        below, beyond = (
            step_seconds(cost, 1, n, float(n), n * (n + 1) / 2, 0.0, 0, 0.0, 0.0, 0.0, False)
            for n in (largest, largest + 1)
        )
        assert below <= beyond < 1.05 * below


def test_all_of_a_step_is_recalibrated_with_its_host(tables):
    eight = dataclasses.replace(TINY, quantization="fp8")
    found = Recalibration(families={}, step=0.8, sigma=0.1, checked=frozenset(), recordings=("a",))
    engine = EngineConfig(model="tiny", **CHUNKED)
    seconds = []
    for each in (None, found):
        prior = PriorTimes(tables=tables, facts=eight, found=each).prior(engine)
        work = (1, 600, 600.0, 600 * 601 / 2, 0.0, 0, 0.0, 0.0, 0.0, False)
        seconds.append(step_seconds(cost_of(prior, engine), *work))
    assert seconds[1] == pytest.approx(0.8 * seconds[0])


def test_an_unknown_top_p_is_said_where_sorting_the_logits_would_matter(tables):
    times = PriorTimes(tables=tables, facts=TINY, found=None)
    old, new = (EngineConfig(model="tiny", vllm_version=each) for each in ("0.11.0", "0.20.0"))
    unknown = Policy(method="majority", n=1, temperature=None, top_p=None)
    step_s = 64 * TINY.vocab_size * SORT_S / 0.05
    note = times.untold_sort(old, unknown, 64, step_s)
    assert "a step of 64 requests 5 % longer" in note and isinstance(note, Decisive)
    known, cold = (
        dataclasses.replace(unknown, **told) for told in ({"top_p": 1.0}, {"temperature": 0})
    )
    others = [
        (new, unknown, step_s),
        (old, known, step_s),
        (old, cold, step_s),
        (old, unknown, 1e3),
    ]
    assert [times.untold_sort(each, policy, 64, s) for each, policy, s in others] == 4 * [None]


def test_heads_between_measured_ones_lie_between_their_times(tables):
    layer = Attention(kind="full_attention", heads=6, kv_heads=2, head_dim=64, v_head_dim=64)
    mixer = attending(tables, layer, 1, kv_fp8=False)
    told = mixer.decode(mixer.batches, mixer.contexts)
    expected = decode_s(mixer.batches[:, None], mixer.contexts, 6, 2)
    np.testing.assert_allclose(told, expected, rtol=1e-9)
    assert mixer.rule is None


CHUNKED = {"max_num_batched_tokens": 2048, "max_num_seqs": 64}


def test_a_chunk_after_earlier_tokens_costs_what_the_whole_prompt_does_beyond_them(tables):
    found = priced(tables).step_tables(**CHUNKED, capture_sizes=())
    layers, launch = TINY.num_hidden_layers, prompt_s(1, 8)
    chunk, before = list(found.chunk).index(512), list(found.before).index(1024)
    work = np.interp(1536, (1024, 4096), prompt_s(np.array([1024, 4096]), 8)) - prompt_s(1024, 8)
    alone = found.mixed[chunk, :, 0, 0]
    assert alone[0] == pytest.approx(layers * prompt_s(512, 8))
    assert alone[before] == pytest.approx(layers * (work + launch), rel=1e-6)
    batch, context = list(found.mixed_batch).index(64), list(found.mixed_kv).index(4095)
    both = prompt_s(512, 8) + decode_s(64, 4095, 8, 4) - launch
    assert found.mixed[chunk, 0, batch, context] == pytest.approx(layers * both, rel=1e-6)


def test_one_kernel_for_chunks_and_decoding_takes_longer_for_those_that_decode(tables):
    limits = {**LIMITS, "capture_sizes": ()}
    apart = priced(tables).step_tables(**limits)
    old = dataclasses.replace(tables, gpu={**tables.gpu, "sm_version": 80})
    prior = priced(old)
    made = prior.step_tables(**limits)
    at = int(np.flatnonzero(made.decode_batch == 4)[0])
    more = made.mixed[2, 0, at + 1] - made.mixed[2, 0, 0] + made.launch
    np.testing.assert_allclose(more, 1.6 * made.decode[at])
    np.testing.assert_allclose(made.decode, apart.decode)
    assert "one kernel" in prior.rules[0]
    assert not priced(dataclasses.replace(tables, gpu={**tables.gpu, "sm_version": 90})).rules


def test_a_chunk_is_never_cheaper_than_reading_what_was_before_it(tables):
    found = priced(tables).step_tables(**CHUNKED, capture_sizes=())
    before = list(found.before).index(4096)
    assert found.mixed[0, before, 0, 0] >= TINY.num_hidden_layers * decode_s(1, 4095, 8, 4)


def test_scales_by_family_add_up_to_the_whole(tables):
    prior = priced(tables, 2)
    whole = decode_step(prior, 4, 255)
    more = [decode_step(prior.scaled({name: 2.0}), 4, 255) - whole for name in FAMILIES]
    assert min(more) > 0
    assert sum(more) == pytest.approx(whole, rel=1e-6)


def test_the_share_of_a_rule_is_of_times_as_they_are_scaled(tables):
    prior = priced(tables, 1, dataclasses.replace(TINY, head_dim=32))
    twice = prior.scaled(dict.fromkeys(FAMILIES, 2.0))
    ((rule, share),) = prior.shares.items()
    assert twice.shares[rule] == pytest.approx(share)
    less = prior.scaled({name: 0.1 for name in FAMILIES if name != "attention"}).shares[rule]
    assert share[0] < less[0] < 1.0
    assert less[1] == pytest.approx(share[1])


def test_a_cost_of_tables_is_scaled_in_its_seconds_only(tables):
    cost = table_cost(priced(tables).step_tables(**LIMITS, capture_sizes=()))
    for ask in (
        (1, 64, 64.0, 2080.0, 0.0, 4, 4.0, 400.0, 101.0, False),
        (0, 0, 0.0, 0.0, 0.0, 4, 4.0, 400.0, 101.0, False),
    ):
        thrice = step_seconds(scaled_cost(cost, 3.0), *ask)
        assert thrice == pytest.approx(3 * step_seconds(cost, *ask), rel=1e-12)


@pytest.mark.parametrize(
    ("facts", "engine", "reason"),
    [
        ({"num_experts": 8}, {}, "layers of tiny"),
        ({"architecture": "DeepseekV3ForCausalLM"}, {}, "Give the model's config.json"),
        ({"architecture": None}, {}, "unknown architecture"),
        ({"uncounted": "parts of size_of_it"}, {}, "has parts of size_of_it"),
        ({}, {"quantization": "awq"}, "engine.quantization=awq, and tiny has plain weights"),
        ({}, {"kv_cache_dtype": "nvfp4"}, "kv_cache_dtype=nvfp4"),
        ({"intermediate_size": None}, {}, "no intermediate_size"),
        ({"attention": ("cross_attention",)}, {}, "cross attention layers"),
        ({}, {"pipeline_parallel_size": 5}, "4 layers, fewer than pipeline_parallel_size 5"),
        ({"num_attention_heads": 6}, {"tensor_parallel_size": 4}, "6 attention heads"),
        ({"intermediate_size": 1022}, {"tensor_parallel_size": 4}, "1,022 MLP columns"),
        ({"num_key_value_heads": 3}, {"tensor_parallel_size": 2}, "3 KV heads"),
    ],
)
def test_what_cannot_be_priced_is_refused_with_the_reason(tables, facts, engine, reason):
    with pytest.raises(UsageError, match=reason):
        prior_of(tables, dataclasses.replace(TINY, **facts), EngineConfig(model="tiny", **engine))


def test_a_shape_that_was_not_measured_is_the_nearest_by_what_it_reads(tables):
    wide = priced(tables, 1, dataclasses.replace(TINY, head_dim=32))
    assert "4 KV heads of 32: as of 8, 4 of 64" in " ".join(wide.rules)
    assert wide.spread > 0
    assert decode_step(wide, 4, 255) < decode_step(priced(tables), 4, 255)


def test_a_form_that_no_rule_prices_is_named(tables):
    with pytest.raises(TablesError, match="weights in awq are in no table"):
        priced(tables, 1, dataclasses.replace(TINY, quantization="awq"))


def test_groups_that_were_not_measured_are_named(tables):
    facts = dataclasses.replace(TINY, num_attention_heads=16, num_key_value_heads=8)
    with pytest.raises(TablesError, match="There are 2, 4"):
        priced(tables, 8, facts)


def test_a_system_without_all_reduces_serves_one_gpu(tmp_path):
    tables = read_prior("test_gpu", write_prior(tmp_path, group_sizes=()))
    assert priced(tables).all_reduces == {}
    with pytest.raises(TablesError, match="no all-reduces were measured"):
        priced(tables, 2)


def test_an_all_reduce_takes_no_longer_than_a_larger_one(tmp_path):
    slow = pl.when(message_size=SIZES[1]).then(pl.col("latency") * 100).otherwise("latency")
    edited(write_prior(tmp_path), "custom_allreduce", lambda t: t.with_columns(latency=slow))
    for rows in read_prior("test_gpu", tmp_path).all_reduces(2).values():
        assert rows[1, 1] == rows[2, 1] and rows[0, 1] < rows[1, 1]
        assert np.all(np.diff(rows[:, 1]) >= 0)


def test_a_wrong_name_lists_the_systems_that_have_tables(tmp_path):
    write_prior(tmp_path)
    (tmp_path / "data" / "empty_gpu").mkdir()
    (tmp_path / "empty_gpu.yaml").write_text("gpu: {}")
    assert known_systems(tmp_path) == ["test_gpu"]
    with pytest.raises(UsageError, match="no operator tables. Choose one of test_gpu"):
        read_prior("h100", tmp_path)
    for asked in ("TEST", "test_gpv"):
        with pytest.raises(UsageError, match="Did you mean test_gpu"):
            read_prior(asked, tmp_path)


def test_the_newest_version_of_each_family_is_read(tmp_path):
    write_prior(tmp_path)
    write_prior(tmp_path / "older", version="0.10.1")
    (tmp_path / "older/data/test_gpu/gemm/vllm/0.10.1").rename(
        tmp_path / "data/test_gpu/gemm/vllm/0.10.1"
    )
    tables = read_prior("test_gpu", tmp_path)
    assert tables.versions == {"gemm": "0.10.1", "attention": "0.9.0", "comm": "0.9.0"}
    assert tables.device == DEVICE


@pytest.mark.parametrize(
    ("chip", "vllm", "found"),
    [
        (90, "0.12.0", "0.18.0"),
        (90, "0.10.2", "0.14.0"),
        (90, "0.24.1", "0.24.0"),
        (80, "0.12.0", "0.14.0"),
    ],
)
def test_an_engine_with_symmetric_memory_has_all_reduces_that_were_measured_with_it(
    tables, chip, vllm, found
):
    versions = {"comm": ("0.14.0", "0.18.0", "0.24.0")}
    made = dataclasses.replace(
        tables, gpu={"sm_version": chip}, measured=tables.measured | versions
    )
    assert made.of_version(vllm).versions["comm"] == found


def test_tables_are_opened_once_until_a_file_of_theirs_changes(tmp_path):
    write_prior(tmp_path)
    tables = read_prior("test_gpu", tmp_path)
    assert read_prior("test_gpu", tmp_path) is tables
    assert read_gpu("test_gpu", tmp_path) is tables
    told = tmp_path / "test_gpu.yaml"
    told.write_text(told.read_text() + "# read again\n")
    again = read_prior("test_gpu", tmp_path)
    assert again is not tables and read_prior("test_gpu", tmp_path) is again
    (tmp_path / "data/test_gpu/gemm/vllm/0.9.0").rename(tmp_path / "data/test_gpu/gemm/vllm/0.10.1")
    assert read_prior("test_gpu", tmp_path).versions["gemm"] == "0.10.1"


@pytest.mark.parametrize("damage", ["text", "yaml", "column"])
def test_damage_is_one_line_with_the_mend(tmp_path, damage):
    write_prior(tmp_path)
    table = tmp_path / "data/test_gpu/gemm/vllm/0.9.0/gemm_perf.parquet"
    if damage == "text":
        table.write_text("latency")
    elif damage == "yaml":
        (tmp_path / "test_gpu.yaml").write_text("gpu: {mem_bw: fast}")
    else:
        edited(tmp_path, "gemm", lambda rows: rows.drop("n"))
    with pytest.raises(TablesError, match="aiconfigurator-core"):
        priced(read_prior("test_gpu", tmp_path))


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(prior_tables, "PRIOR", "no_such_package_of_tables")
    with pytest.raises(
        MissingDependencyError, match="needs .* aiconfigurator-core: .* -m pip install"
    ):
        tables_folder()


@pytest.mark.slow
@installed
def test_the_installed_tables_price_a_model_on_every_system():
    facts = dataclasses.replace(
        TINY, hidden_size=4096, num_attention_heads=32, num_key_value_heads=8, head_dim=128,
        intermediate_size=14336, vocab_size=128256, num_hidden_layers=32,
    )  # fmt: skip
    systems = known_systems(tables_folder())
    assert {"h100_sxm", "h200_sxm", "a100_sxm"} <= set(systems)
    for name in systems:
        tables = read_prior(name)
        one, two = (decode_step(priced(tables, size, facts), 1, 1023, (1,)) for size in (1, 2))
        reading = 2 * 7.5e9 / tables.bandwidth_bytes_per_s  # the weights
        assert 0.5 * reading < one < 2 * reading, name
        assert two < one, name


@installed
def test_the_installed_times_of_a_table_are_given_back():
    rows = product(read_prior("h100_sxm"), 4096, 4096).rows
    assert interpolated(rows, np.array([1.0]))[0] == pytest.approx(15.0e-6, rel=0.05)


@installed
def test_large_all_reduces_of_a_host_without_peer_to_peer_go_by_the_link():
    """Four L40S of the tables' host moved 3.7 GB/s, two of them 19."""
    tables = read_prior("l40s")
    assert tables.slow_host(2) is None
    pair = tables.all_reduces(2)[True]
    for size in (4, 8):
        slow, raw = tables.slow_host(size), tables._all_reduce_rows(size)
        assert slow.measured < 4e9 < 19e9 < slow.pair
        for rows in tables.all_reduces(size).values():
            on_bus = 2 * (size - 1) / size
            assert rows[-1, 0] * on_bus / rows[-1, 1] == pytest.approx(slow.pair, rel=0.02)
            assert (np.diff(rows[:, 1]) >= 0).all()
            small = rows[:, 0] <= 65_536
            assert set(rows[small, 1]) <= set(raw["seconds"])  # as measured
        assert rows[-1, 1] > pair[-1, 1]
        assert "3.74 GB/s" in slow.rule or "1.95 GB/s" in slow.rule
    for system, size in (("h100_sxm", 8), ("rtx_pro_6000_server", 8)):
        assert read_prior(system).slow_host(size) is None
    facts = dataclasses.replace(TINY, hidden_size=8192)
    told = prior_of(tables, facts, EngineConfig(model="t", tensor_parallel_size=4)).shares
    assert any("without peer-to-peer" in rule for rule in told)


@installed
@pytest.mark.parametrize("asked", ["gh200", "GH200_SXM"])
def test_a_gpu_without_tables_is_told_whose_chip_it_has(asked):
    with pytest.raises(UsageError, match="no operator tables. It has the chip of h100_sxm"):
        read_gpu(asked)
