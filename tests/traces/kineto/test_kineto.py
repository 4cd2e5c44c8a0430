"""Reading profiler traces: steps, self and exposed time, idle, and sums that others agree with."""

import gzip
import json
from collections import defaultdict
from decimal import Decimal
from itertools import pairwise

import polars as pl
import pytest

from benchmarks.made.kineto_files import (
    BASE_NS,
    cpu_events,
    device_events,
    document,
    event,
    kernel,
    launch,
    write,
)
from traces.kineto.names import family_of
from traces.kineto.read import read_trace
from traces.recording.tables import KERNELS

DEVICE = ("kernel", "gpu_memcpy", "gpu_memset", "memcpy", "memset")


def rows(tables, **wanted):
    frame = tables.kernels
    for column, value in wanted.items():
        frame = frame.filter(pl.col(column).eq_missing(value))
    return frame


@pytest.fixture
def device(tmp_path):
    return read_trace(write(tmp_path / "t.json.gz", document(device_events())), window_id=3)


def test_kernels_belong_to_the_step_of_their_launch(device):
    assert device.kernels.schema == pl.Schema(KERNELS)
    steps = dict(device.kernels.group_by("step").agg(pl.sum("count")).iter_rows())
    assert steps == {0: 2, 1: 4, None: 1}
    (gemm,) = rows(device, step=0, family="gemm").iter_rows(named=True)
    assert (gemm["time"], gemm["self_time"], gemm["stream"]) == (40_000, 40_000, 7)
    assert (gemm["rank"], gemm["window_id"], gemm["exposed_time"]) == (0, 3, None)
    (copy,) = rows(device, family="memory copy").iter_rows(named=True)
    assert (copy["step"], copy["bytes"], copy["time"]) == (1, 64, 5_000)
    first, second = device.steps
    assert (first.start_ns, first.end_ns, first.last_kernel_ns) == (100_000, 150_000, 230_000)
    assert (first.mark.prefill_requests, first.mark.prefill_tokens) == (1, 20)
    assert (second.mark.decode_requests, second.number) == (4, 1)


def test_exposed_is_what_other_streams_do_not_hide(device):
    (reduce,) = rows(device, family="communication").iter_rows(named=True)
    assert (reduce["collective"], reduce["algorithm"]) == ("all_reduce", "nccl ring ll")
    assert (reduce["bytes"], reduce["dtype"], reduce["group_size"]) == (2000, "bfloat16", 2)
    assert (reduce["time"], reduce["exposed_time"]) == (20_000, 15_000)  # hidden from 245 to 250


def test_the_window_says_what_was_idle(device):
    window = device.window  # from the first launch, at 110 us, to the last kernel's end
    assert (window.start_ns, window.end_ns, window.devices) == (110_000, 290_000, 1)
    assert window.busy_ns == 30_000 + 75_000 + 5_000 + 10_000  # 190-230, 230-265 join
    assert window.idle_ns == 180_000 - window.busy_ns
    assert device.unix_offset_ns == BASE_NS


def test_the_devices_own_annotation_counts_where_no_launch_is_known(tmp_path):
    events = [
        event("ProfilerStep#5", "user_annotation", 0, 10, **{"External id": 44}),
        event("ProfilerStep#5", "gpu_user_annotation", 50, 30, 7, **{"External id": 44}),
        kernel("gemm", 55, 5, 0),
        kernel("gemm", 5, 2, 0),  # starts within the step on the CPU's clock: no link, no step
    ]
    tables = read_trace(write(tmp_path / "t.json", document(events)))
    assert dict(tables.kernels.select("step", "time").iter_rows()) == {5: 5_000, None: 2_000}


def test_operators_of_a_cpu_count_self_time(tmp_path):
    tables = read_trace(write(tmp_path / "t.json", document(cpu_events())))
    own = dict(rows(tables).group_by("name").agg(pl.sum("self_time")).iter_rows())
    assert own == {
        "aten::linear": 10_000 + 4_000, "aten::addmm": 35_000, "aten::copy_": 5_000,
        "_C::shm_allreduce": 10_500, "aten::argmax": 5_000,
    }  # fmt: skip
    (reduce,) = rows(tables, family="communication").iter_rows(named=True)
    assert (reduce["bytes"], reduce["algorithm"]) == (256, "shared memory")
    assert reduce["exposed_time"] == reduce["self_time"] == 10_500
    assert rows(tables, name="aten::argmax")["step"].to_list() == [None]
    other_thread = rows(tables, name="aten::linear", step=None)
    assert other_thread["time"].to_list() == [4_000]
    assert (tables.window.busy_ns, tables.window.idle_ns) == (65_500, 39_500)


def test_the_detailed_annotation_gives_exact_sums(tmp_path):
    # Two prefills, 3 tokens to reach 3 and 2 to reach 10, and one decode at 21.
    name = "execute_6_context_2(sq5sk13sqsq13sqsk29)_generation_1(sq1sk21sqsq1sqsk21)"
    events = [event(name, "user_annotation", 0, 9), event("aten::mm", "cpu_op", 1, 2)]
    (step,) = read_trace(write(tmp_path / "t.json", document(events))).steps
    mark = step.mark
    assert (mark.prefill_tokens, mark.prefill_kv_tokens, mark.decode_kv_tokens) == (5, 13, 21)
    assert mark.prefill_query_context == (1 + 2 + 3) + (9 + 10)


def test_old_category_names(tmp_path):
    events = [
        event("ProfilerStep#1", "user_annotation", 0, 50),
        event("hipLaunchKernel", "Runtime", 5, 2, correlation=9),
        {**kernel("Cijk_Alik", 60, 5, 9), "cat": "Kernel"},
        {**kernel("Memcpy HtoD", 70, 5, 0), "cat": "Memcpy"},
    ]
    tables = read_trace(write(tmp_path / "t.json", events))  # a bare array, as Chrome allows
    assert dict(tables.kernels.select("family", "step").iter_rows()) == {
        "gemm": 1,
        "memory copy": None,
    }
    assert (tables.rank, tables.unix_offset_ns) == (None, None)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("void vllm::cross_device_reduce_2stage<__nv_bfloat16, 8>(vllm::RankData*)",
         ("all_reduce", "custom 2-stage", "bfloat16", 8)),
        ("ncclDevKernel_ReduceScatter_Sum_f16_TREE_LL128(x)",
         ("reduce_scatter", "nccl tree ll128", "float16", 4)),
        ("ncclKernel_SendRecv_RING_SIMPLE_Sum_int8_t(x)",
         ("send_recv", "nccl ring simple", None, 4)),
        ("multimem_all_reduce_kernel<c10::Half>", ("all_reduce", "symmetric memory", None, 4)),
        ("ncclDevKernel_AllGather_RING_LL(x)", ("all_gather", "nccl ring ll", None, 4)),
    ],
)  # fmt: skip
def test_collectives_by_name(tmp_path, name, expected):
    group = {"pg_config": [{"pg_size": 4}, {"pg_size": 1}], "rank": 2, "world_size": 8}
    data = document([kernel(name, 1, 2, 1)], distributedInfo=group)
    tables = read_trace(write(tmp_path / "t.json", data))
    columns = ("collective", "algorithm", "dtype", "group_size")
    assert tables.kernels.select(columns).row(0) == expected
    assert tables.kernels["bytes"].to_list() == [None]
    assert (tables.rank, tables.world_size) == (2, 8)


def test_time_stamps_lose_no_nanosecond(tmp_path):
    text = json.dumps(document([kernel("gemm", 1.0, 0.001, 1), kernel("gemm", 2.0, 0.002, 1)]))
    text = text.replace("1.0,", "1712195495505543.123,").replace("2.0,", "1712195495505543.127,")
    window = read_trace(write(tmp_path / "t.json", text.encode())).window
    assert (window.start_ns, window.end_ns) == (1712195495505543123, 1712195495505543129)
    relative = text.replace("1712195495505543.", "8712195495505.")
    window = read_trace(write(tmp_path / "r.json", relative.encode())).window
    assert (window.start_ns, window.end_ns) == (8712195495505123, 8712195495505129)


def test_a_long_trace_is_read_in_batches(tmp_path):
    events = [
        e for i in range(4000) for e in (launch(3 * i, i + 1), kernel("gemm", 3 * i, 1, i + 1))
    ]
    events.insert(0, event("ProfilerStep#1", "user_annotation", 0, 4500))
    for indent in (None, 1):
        raw = json.dumps(document(events), indent=indent).encode()
        tables = read_trace(write(tmp_path / "t.json.gz", raw))
        assert (tables.events, tables.bytes_read, tables.skipped) == (8001, len(raw), {})
        assert dict(tables.kernels.select("step", "count").iter_rows()) == {1: 1501, None: 2499}


def nanoseconds(number):
    return int((Decimal(repr(number)) * 1000).to_integral_value())


def self_times(operators):
    """Give each slice of a thread's time to the operator begun last; an independent way."""
    own = defaultdict(int)
    threads = defaultdict(list)
    for index, e in enumerate(operators):
        threads[e["pid"], e["tid"]].append((nanoseconds(e["ts"]), nanoseconds(e["dur"]), index))
    for spans in threads.values():
        edges = sorted({t for start, time, _ in spans for t in (start, start + time)})
        spans.sort(key=lambda span: (span[0], -span[1]))
        waiting, active = list(reversed(spans)), []
        for edge, following in pairwise(edges):
            active = [span for span in active if span[0] + span[1] > edge]
            while waiting and waiting[-1][0] <= edge:
                active.append(waiting.pop())
            active = [span for span in active if span[0] + span[1] > edge]
            if active:
                own[active[-1][2]] += following - edge
    return own


def naive_sums(path):
    """Sum the raw events per family, by `json.load` and nothing of the reader's."""
    data = json.loads(gzip.decompress(path.read_bytes()))
    events = [e for e in data["traceEvents"] if e.get("ph") == "X"]
    sums = defaultdict(int)
    on_device = [e for e in events if e["cat"].lower() in DEVICE]
    for e in on_device:
        sums[family_of(e["name"])] += nanoseconds(e["dur"])
    if not on_device:
        operators = [
            e for e in events if e["cat"] == "cpu_op" or e["name"].startswith(("gloo:", "mpi:"))
        ]
        for index, time in self_times(operators).items():
            sums[family_of(operators[index]["name"])] += time
    return dict(sums)


FILES = (
    *("a100_nccl", "world128_rank0", "world128_rank1", "old_category_names", "triton"),
    *("amd_mi250", "v100_ns_resolution", "cpu_only", "vllm_cpu_spec_decode"),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_totals_equal_an_independent_sum(shared, name):
    path = shared / "data" / "kineto" / f"{name}.json.gz"
    tables = read_trace(path)
    sums = dict(tables.kernels.group_by("family").agg(pl.sum("self_time")).iter_rows())
    assert sums == naive_sums(path)
    assert not tables.skipped
    other = tables.kernels.filter(pl.col("family") == "other")["self_time"].sum()
    assert other < 0.03 * sum(sums.values())


def test_every_file_of_others_is_covered(shared):
    found = {
        path.name.removesuffix(".json.gz") for path in (shared / "data" / "kineto").glob("*.gz")
    }
    assert found == set(FILES)


@pytest.mark.slow
def test_what_the_traces_of_others_say(shared):
    folder = shared / "data" / "kineto"
    nccl = read_trace(folder / "a100_nccl.json.gz")
    reduce = rows(nccl, collective="all_reduce")
    assert reduce["count"].sum() == 15
    assert set(reduce["dtype"]) == {"float32"}
    assert set(reduce["group_size"]) == {2}
    assert 6637568 * 4 in (reduce["bytes"] // reduce["count"]).to_list()
    assert [step.number for step in nccl.steps] == [4, 5, 6]
    speculative = read_trace(folder / "vllm_cpu_spec_decode.json.gz")
    assert len(speculative.steps) == 22
    assert speculative.steps[0].mark.prefill_tokens == 132
    assert speculative.vllm_version == "0.32.0"
    assert not speculative.on_device
    amd = read_trace(folder / "amd_mi250.json.gz")
    assert amd.kernels.drop_nulls("step")["count"].sum() == 9
