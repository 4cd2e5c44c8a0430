import dataclasses
import importlib.util

import numpy as np
import polars as pl
import pytest

from advisor.step_time.cost import scaled_cost, table_cost
from advisor.step_time.operators.tables import interpolated
from advisor.step_time.prior import tables as prior_tables
from advisor.step_time.prior.prior import FAMILIES, PRIOR_MISSING, prior_of
from advisor.step_time.prior.tables import known_systems, read_prior, tables_folder
from tests.advisor.step_time.prior.prior_files import (
    BANDWIDTH,
    DEVICE,
    KERNEL_S,
    TINY,
    all_reduce_s,
    decode_s,
    gemm_s,
    prompt_s,
    write_prior,
)
from tests.advisor.step_time.step_costs import step_seconds
from traces.errors import MissingDependencyError, TablesError, UsageError
from traces.schema.engine import EngineConfig, Speculative

LIMITS = {"max_num_batched_tokens": 256, "max_num_seqs": 16}


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    return read_prior("test_gpu", write_prior(tmp_path_factory.mktemp("systems")))


def priced(tables, size=1, facts=TINY, **engine):
    return prior_of(tables, facts, EngineConfig(model="tiny", tensor_parallel_size=size, **engine))


def decode_step(prior, batch, context, capture_sizes=()):
    cost = table_cost(prior.step_tables(**LIMITS, capture_sizes=capture_sizes))
    read = batch * (context + 1.0)
    return step_seconds(cost, 0, 0, 0.0, 0.0, 0.0, batch, float(batch), read, context + 1.0, False)


@pytest.mark.parametrize(("n", "k"), [(64, 64), (700, 300), (1024, 3000)])
def test_a_product_between_measured_shapes_is_bilinear(tables, n, k):
    rows = tables.gemm(n, k)
    np.testing.assert_allclose(rows[:, 1], gemm_s(rows[:, 0], n, k), rtol=1e-9)


def test_a_product_wider_than_any_measured_takes_in_proportion(tables):
    rows = tables.gemm(8192, 512)
    np.testing.assert_allclose(rows[:, 1], 2 * gemm_s(rows[:, 0], 4096, 512), rtol=1e-9)


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


def test_heads_between_measured_ones_lie_between_their_times(tables):
    rows = tables.decode(6, 2, 64, kv_fp8=False)
    np.testing.assert_allclose(rows[:, 2], decode_s(rows[:, 0], rows[:, 1], 6, 2), rtol=1e-9)


def test_a_chunk_after_earlier_tokens_costs_what_the_whole_prompt_does_beyond_them(tables):
    rows = {tuple(row[:4]): row[4] for row in priced(tables).operators.attention}
    launch = prompt_s(1, 8)
    work = np.interp(1536, (1024, 4096), prompt_s(np.array([1024, 4096]), 8)) - prompt_s(1024, 8)
    assert rows[512, 0, 0, 0] == pytest.approx(prompt_s(512, 8))
    assert rows[512, 1024, 0, 0] == pytest.approx(work + launch, rel=1e-6)
    both = prompt_s(512, 8) + decode_s(64, 4095, 8, 4) - launch
    assert rows[512, 0, 64, 4095] == pytest.approx(both, rel=1e-6)


def test_a_chunk_is_never_cheaper_than_reading_what_was_before_it(tables):
    rows = {tuple(row[:4]): row[4] for row in priced(tables).operators.attention}
    assert rows[1, 4096, 0, 0] >= decode_s(1, 4095, 8, 4)


def test_scales_by_family_add_up_to_the_whole(tables):
    prior = priced(tables, 2)
    whole = decode_step(prior, 4, 255)
    more = [decode_step(prior.scaled({name: 2.0}), 4, 255) - whole for name in FAMILIES]
    assert min(more) > 0
    assert sum(more) == pytest.approx(whole, rel=1e-6)


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
        ({"num_experts": 8}, {}, "mixture of experts"),
        ({"architecture": "DeepseekV3ForCausalLM"}, {}, "latent attention"),
        ({"architecture": None}, {}, "unknown architecture"),
        ({}, {"quantization": "fp8"}, "engine.quantization=fp8: only bfloat16 weights"),
        (
            {"quantization": "awq"},
            {},
            r"quantised \(awq\), and only bfloat16",
        ),
        ({}, {"kv_cache_dtype": "nvfp4"}, "kv_cache_dtype=nvfp4"),
        ({"intermediate_size": None}, {}, "no intermediate_size"),
        (
            {"attention": ("sliding_attention",), "sliding_window": 512},
            {"max_model_len": 513},
            "sliding attention, which is not priced",
        ),
        ({"attention": ("full_attention", "linear_attention")}, {}, "linear attention"),
        ({}, {"pipeline_parallel_size": 2}, "pipeline"),
        ({"num_attention_heads": 6}, {"tensor_parallel_size": 4}, "6 attention heads"),
        ({"intermediate_size": 1022}, {"tensor_parallel_size": 4}, "1,022 MLP columns"),
        ({"num_key_value_heads": 3}, {"tensor_parallel_size": 2}, "3 KV heads"),
        (
            {},
            {"speculative": Speculative(method="draft_model", num_speculative_tokens=2, model="d")},
            "draft model",
        ),
    ],
)
def test_what_cannot_be_priced_is_refused_with_the_reason(tables, facts, engine, reason):
    with pytest.raises(UsageError, match=reason):
        prior_of(tables, dataclasses.replace(TINY, **facts), EngineConfig(model="tiny", **engine))


@pytest.mark.parametrize(
    ("facts", "size", "message"),
    [
        ({"head_dim": 32}, 1, "no generation attention with 4 KV heads of 32"),
        ({"num_attention_heads": 64}, 1, "for 4, 8 heads, not for 64"),
        ({"num_attention_heads": 16, "num_key_value_heads": 8}, 8, "There are 2, 4"),
    ],
)
def test_shapes_that_were_not_measured_are_named(tables, facts, size, message):
    with pytest.raises(TablesError, match=message):
        priced(tables, size, dataclasses.replace(TINY, **facts))


def test_a_system_without_all_reduces_serves_one_gpu(tmp_path):
    tables = read_prior("test_gpu", write_prior(tmp_path, group_sizes=()))
    assert priced(tables).all_reduces == {}
    with pytest.raises(TablesError, match="no all-reduces were measured"):
        priced(tables, 2)


def test_a_wrong_name_lists_the_systems_that_have_tables(tmp_path):
    write_prior(tmp_path)
    (tmp_path / "data" / "empty_gpu").mkdir()
    (tmp_path / "empty_gpu.yaml").write_text("gpu: {}")
    assert known_systems(tmp_path) == ["test_gpu"]
    with pytest.raises(UsageError, match="no operator tables. Choose one of test_gpu"):
        read_prior("h100", tmp_path)


def test_the_newest_version_of_each_family_is_read(tmp_path):
    write_prior(tmp_path)
    write_prior(tmp_path / "older", version="0.10.1")
    (tmp_path / "older/data/test_gpu/gemm/vllm/0.10.1").rename(
        tmp_path / "data/test_gpu/gemm/vllm/0.10.1"
    )
    tables = read_prior("test_gpu", tmp_path)
    assert tables.versions == {"gemm": "0.10.1", "attention": "0.9.0", "comm": "0.9.0"}
    assert tables.device == DEVICE


@pytest.mark.parametrize("damage", ["text", "yaml", "column"])
def test_damage_is_one_line_with_the_mend(tmp_path, damage):
    write_prior(tmp_path)
    table = tmp_path / "data/test_gpu/gemm/vllm/0.9.0/gemm_perf.parquet"
    if damage == "text":
        table.write_text("latency")
    elif damage == "yaml":
        (tmp_path / "test_gpu.yaml").write_text("gpu: {mem_bw: fast}")
    else:
        pl.read_parquet(table).drop("n").write_parquet(table)
    with pytest.raises(TablesError, match="aiconfigurator-core"):
        priced(read_prior("test_gpu", tmp_path))


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(prior_tables, "PACKAGE", "no_such_package_of_tables")
    with pytest.raises(
        MissingDependencyError, match="needs .* aiconfigurator-core: .* -m pip install"
    ):
        tables_folder()


def test_what_is_missing_is_told():
    assert "unequal contexts in a batch" in PRIOR_MISSING


installed = pytest.mark.skipif(
    importlib.util.find_spec("aiconfigurator_core") is None,
    reason="aiconfigurator-core is not installed (ttscope[prior])",
)


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
    rows = read_prior("h100_sxm").gemm(4096, 4096)
    assert interpolated(rows, np.array([1.0]))[0] == pytest.approx(15.0e-6, rel=0.05)
