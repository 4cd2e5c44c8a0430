"""What a plugin sends is checked before it is taken: types, ranges, sizes and names."""

import json
import tracemalloc

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiler.plugin.batches import COLUMNS, MOST_ROWS, PluginRows, read_batch
from tests.profiler.attach.receiver.test_receiver import EMPTY, raw_steps
from traces.recording.tables import TABLES
from traces.schema.engine import EngineConfig

GOOD = {"end": 5, "running": 1, "generated": 1}
CONFIG = {"model": "m", "mode": "server", "max_num_seqs": 17}


def body(*rows, **more):
    batch = {"v": 1, "instance": "i", "engine": 0, "columns": COLUMNS, "rows": raw_steps(*rows)}
    return json.dumps(batch | more).encode()


def test_a_good_batch_and_its_configuration():
    batch = read_batch(body(GOOD, config=CONFIG | {"unknown": {"deep": [1]}}))
    assert batch.config == EngineConfig(model="m", mode="server", max_num_seqs=17)
    assert batch.rows == raw_steps(GOOD | {"kv_usage": 0.0})


@pytest.mark.parametrize(
    "row",
    [
        {"end": 0},
        {"end": -5},
        {"end": 2**63},
        {"end": 5 * 10**18},
        {"end": 1e30},
        {"end": None},
        {"running": -1},
        {"running": 2**63},
        {"running": None},  # and the rest of the load is there
        {"running": "1"},
        {"running": True},
        {"running": {}},
        {"kv_usage": None},
        {"kv_usage": -0.1},
        {"kv_usage": 1e30},
        {"generated": -1},
        {"generated": 0.5},
        {"generated": None},
        {"drafted": [-1]},
        {"drafted": [1] * 2_000},
        {"drafted": [[1]]},
        {"drafted": 3},
        {"ctx_requests": 1},  # and the rest of the details is not
        {"flops": -1.0},
        {"flops": 1e300},
        {"dummy": 1},
    ],
)
def test_a_row_with_a_wrong_type_or_out_of_range_is_refused(row):
    with pytest.raises(ValueError, match=r"not a batch|missing"):
        read_batch(body(GOOD, GOOD | row))


@pytest.mark.parametrize(
    "more",
    [
        {"config": {}},
        {"config": []},
        {"config": "x"},
        {"config": {"model": {"a": 1}, "mode": "server"}},
        {"config": {"model": None, "mode": "server"}},
        {"config": CONFIG | {"num_gpu_blocks": [1]}},
        {"config": CONFIG | {"num_gpu_blocks": -1}},
        {"config": CONFIG | {"num_gpu_blocks": 10**30}},
        {"config": CONFIG | {"gpu_memory_utilization": -1.0}},
        {"config": CONFIG | {"mode": "other"}},
        {"config": CONFIG | {"model": "m" * 1_025}},
        {"config": CONFIG | {"gpu": "\x1b]0;owned\x07"}},
        {"config": CONFIG | {"other": [["a", "\x00"]]}},
        {"config": CONFIG | {"other": [["a", "b"]] * 17}},
        {"config": CONFIG | {"other": [["a"]]}},
        {"config": CONFIG | {"speculative": {"method": "\x07", "num_speculative_tokens": 1}}},
        {"config": CONFIG | {"speculative": {"method": "ngram", "num_speculative_tokens": 0}}},
        {"instance": ""},
        {"instance": "\x1b[2J"},
        {"instance": "i" * 65},
        {"engine": -1},
        {"engine": 2**63},
        {"now": -1},
        {"now": 10**30},
        {"dropped": -1},
        {"first": -1},
        {"process_start_s": 1e30},
        {"ports": [70_000]},
        {"ports": [1] * 65},
        {"columns": ["end"]},
        {"columns": [*COLUMNS, "end"]},
        {"rows": [[]]},
        {"rows": None},
        {"rows": raw_steps(*[GOOD] * (MOST_ROWS + 1))},
        {"v": 2},
    ],
)
def test_a_batch_with_a_wrong_type_or_out_of_range_is_refused(more):
    with pytest.raises(ValueError, match=r"batch|odd name|configuration"):
        read_batch(body(GOOD, **more))


@pytest.mark.parametrize("raw", [b"NaN", b"1e999", b"null", b"[[[[", b'"\\ud800"', b"\xff"])
def test_what_is_no_number_is_refused(raw):
    with pytest.raises(ValueError, match=r"batch|missing"):
        read_batch(body(GOOD).replace(b"0.0", raw, 1))


@pytest.mark.parametrize(
    "large",
    [
        body(GOOD, columns=["end"] * 500_000),
        body(GOOD, config=CONFIG | {"other": [["a", "b"]] * 300_000}),
        body(GOOD, config=CONFIG | {"model": "m" * 5_000_000}),
        body(GOOD, ports=[1] * 1_000_000),
        b"[" * 4_000_000,
    ],
)
def test_a_batch_that_would_take_much_memory_is_refused(large):
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="batch"):
            read_batch(large)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


COUNT = st.one_of(st.none(), st.integers(-1, 2**41), st.floats(), st.just("x"))
WILD = st.fixed_dictionaries({}, optional=dict.fromkeys(COLUMNS, COUNT))


@pytest.mark.slow
@given(st.lists(WILD, max_size=4), st.one_of(st.none(), st.integers(0, 2**31)))
def test_whatever_is_taken_fits_the_table(rows, blocks):
    try:
        batch = read_batch(body(*(EMPTY | {"kv_usage": 0.0, "end": 5} | row for row in rows)))
    except ValueError:
        return
    made = PluginRows(engine="e", usable_blocks=blocks, asynchronous=False).rows(batch.rows)
    pl.from_dicts(made, schema=dict(TABLES["steps"]))


def test_what_waits_for_other_front_ends_is_bounded():
    alone = {"running": None, "waiting": None, "kv_usage": None}
    probe = PluginRows(engine="e")
    for _ in range(5):
        probe.rows(raw_steps(*[GOOD | {"end": 10**18}] * 100), until=5, most=50)
        probe.rows(raw_steps(*[GOOD | alone | {"end": 10**18}] * 100), until=5, most=50)
    assert len(probe._waiting) == len(probe._parts) == 50
    assert probe.lost == 450


@pytest.mark.parametrize("pipelined", [False, True])
def test_the_context_is_of_the_requests_that_get_a_token(pipelined):
    begin = {"running": 20, "first_tokens": 20, "generated": 20, "prompts": 1980}
    rows = [begin, *({"running": 20, "continued": n, "generated": n} for n in (20, 10, 10))]
    probe = PluginRows(engine="e", pipelined=pipelined)
    made = probe.rows(raw_steps(*({**row, "end": 5 + n} for n, row in enumerate(rows))))
    read = [row["decode_kv_tokens"] for row in made]
    # Half of 20 requests with 101 tokens each: another batch of a pipeline, or all aborted.
    assert read == [0, 2000, *([1010, 1015] if pipelined else [None, None])]


def test_what_a_preempted_request_computes_again_is_prefill():
    """vLLM counts it among the requests that generate, with all of its tokens.

    A server with max_num_seqs 32 preempted 1,044 requests, and 71,051 tokens were those.
    """
    both = EMPTY | {"ctx_requests": 1, "ctx_tokens": 10, "gen_requests": 3, "elapsed_ms": 1.0}
    told = both | {"running": 4, "generated": 4, "gen_tokens": 302}
    ((row,), (drafts,)) = (
        PluginRows("e", asynchronous=False).rows(raw_steps(told | {"end": 5} | more))
        for more in ({}, {"drafted": [299]})
    )
    names = ("prefill_requests", "prefill_tokens", "decode_requests", "decode_tokens")
    assert [row[name] for name in names] == [2, 310, 2, 2]
    assert [drafts[name] for name in names] == [1, 10, 3, 302]
