import numpy as np
import polars as pl
import pytest

from advisor.step_time.operators.communication import (
    CollectiveKind,
    Communication,
    all_reduces,
    measured_messages,
    read_collectives,
    recorded_messages,
)
from tests.advisor.synthetic import FACTS, engine_of
from traces.errors import RecordingError, TablesError, UsageError
from traces.recording.manifest import ClockReading, Manifest
from traces.recording.tables import KERNELS
from traces.recording.writer import RecordingWriter

SIZES = 2.0 ** np.arange(10, 26.01, 0.25)
ALL_REDUCE = CollectiveKind("all_reduce", 4, False)


def link(size):
    """8 us to start, then 20 GB/s up to 1 MiB and 100 GB/s beyond."""
    return 8e-6 + np.minimum(size, 2**20) / 20e9 + np.maximum(size - 2**20, 0) / 100e9


def fitted(rows, kind=ALL_REDUCE):
    return Communication().fit({kind: np.asarray(rows, dtype=float)}).laws_[kind]


def test_a_link_whose_price_changes_with_size_comes_back():
    law = fitted(np.column_stack([SIZES, link(SIZES)]))
    np.testing.assert_allclose(law.seconds(SIZES), link(SIZES), rtol=1e-6)
    between = SIZES[:-1] * 1.5
    np.testing.assert_allclose(law.seconds(between), link(between), rtol=0.02)
    assert law.start_s == pytest.approx(8e-6, rel=1e-6)
    assert (law.high_bytes, law.sizes) == (2**26, 65)
    beyond = np.array([2.0**28])
    np.testing.assert_allclose(law.seconds(beyond), link(beyond), rtol=1e-6)
    assert law.left_out_error < 0.02
    coarse = fitted(np.column_stack([SIZES[::4], link(SIZES[::4])]))
    assert np.abs(coarse.seconds(SIZES) / link(SIZES) - 1).max() < 0.25
    assert np.abs(coarse.seconds(SIZES) / link(SIZES) - 1).mean() < 0.03


def test_a_larger_message_is_never_cheaper_and_a_stall_bends_nothing():
    rng = np.random.default_rng(0)
    seconds = link(SIZES) * rng.lognormal(0, 0.05, len(SIZES))
    seconds[5] *= 20
    law = fitted(np.column_stack([SIZES, seconds]))
    grid = np.geomspace(1, 2**28, 400)
    assert (np.diff(law.seconds(grid)) >= 0).all()
    assert (law.per_byte_s >= 0).all()
    assert law.start_s > 0
    error = np.abs(law.seconds(SIZES) / link(SIZES) - 1)
    assert error.mean() < 0.05


def test_repeats_of_a_size_are_their_median_and_few_sizes_have_no_breaks():
    rows = [(2**20, 1e-5), (2**20, 2e-5), (2**20, 9e-5), (2**24, 8e-5)]
    law = fitted(rows)
    assert law.breaks.tolist() == []
    assert law.left_out_error is None
    np.testing.assert_allclose(law.seconds(np.array([2.0**20, 2.0**24])), [2e-5, 8e-5], rtol=1e-9)
    only = fitted([(4096, 3e-6)])
    assert only.seconds(np.array([4096.0, 2.0**20])).tolist() == pytest.approx([3e-6, 3e-6])
    assert only.high_bytes == 4096


def test_what_was_not_measured_is_refused_by_name():
    model = Communication().fit({ALL_REDUCE: np.array([(1024, 1e-5), (2048, 0.0)])})
    eager = model.law("all_reduce", 4, graph=False)
    assert eager.sizes == 1
    assert model.law("all_reduce", 4, graph=True) is eager  # for want of one in a graph
    for name, size in (("all_gather", 4), ("all_reduce", 8)):
        with pytest.raises(UsageError, match=r"was not measured. Measured are: all_reduce of 4"):
            model.law(name, size, graph=False)
    with pytest.raises(UsageError, match="Measured are: none"):
        Communication().fit({}).law("all_reduce", 2, graph=True)


def test_tensor_parallelism_reduces_twice_a_layer_and_once_for_the_embedding():
    facts = FACTS["small"]
    calls, token_bytes = 2 * facts.num_hidden_layers + 1, 2 * facts.hidden_size
    seconds = all_reduces(facts, eager=link, graph=lambda size: link(size) / 4, captured=256)
    expected = [calls * link(256 * token_bytes) / 4, calls * link(257 * token_bytes)]
    assert seconds(np.array([256.0, 257.0])).tolist() == pytest.approx(expected, rel=1e-12)


def test_messages_of_a_recording_are_the_time_of_the_last_rank():
    rows = [
        # rank, step, count, time_ns, bytes: both ranks of step 0; rank 1 waited for rank 0.
        (0, 0, 2, 20_000, 8192), (1, 0, 2, 60_000, 8192), (0, 1, 1, 12_000, 4096),
        (1, 1, 1, 11_000, 4096), (0, 1, 1, 90_000, None),
    ]  # fmt: skip
    made = [
        {"rank": rank, "step": at, "count": count, "time": time, "bytes": size, "window_id": 0,
         "collective": "all_reduce", "group_size": 2}
        for rank, at, count, time, size in rows
    ]  # fmt: skip
    made.append({"rank": 0, "step": 1, "count": 5, "time": 5, "collective": None})
    kernels = pl.DataFrame(made, schema=KERNELS)
    ((kind, found),) = recorded_messages(kernels, graph=True).items()
    assert kind == CollectiveKind("all_reduce", 2, True)
    np.testing.assert_allclose(sorted(found.tolist()), [[4096, 1e-5], [4096, 1.1e-5]])


def test_a_recording_tells_what_its_profiled_windows_held(tmp_path):
    engines = {name: engine_of(enforce_eager=name == "e") for name in ("e", "g")}
    manifest = Manifest(clock_start=ClockReading(unix_ns=1, monotonic_ns=1), engines=engines)
    writer = RecordingWriter(tmp_path / "r", manifest)
    for engine, size in (("e", 4096), ("g", 8192)):
        writer.append(
            "kernels",
            {"engine": engine, "rank": 0, "step": 0, "count": 1, "time": 9000, "bytes": size,
             "window_id": 0, "collective": "all_reduce", "group_size": 2,
             "family": "collective", "name": "all_reduce"},
        )  # fmt: skip
    writer.close(complete=True)
    found = measured_messages(tmp_path / "r")
    assert {kind: rows.tolist() for kind, rows in found.items()} == {
        CollectiveKind("all_reduce", 2, False): [[4096, 9e-6]],
        CollectiveKind("all_reduce", 2, True): [[8192, 9e-6]],
    }
    RecordingWriter(tmp_path / "empty", manifest).close(complete=True)
    with pytest.raises(RecordingError, match="empty: no collective was profiled. Record with"):
        measured_messages(tmp_path / "empty")


HEADER = "time_stats.all_reduce.median,num_workers,size,collective\n"


def test_a_table_of_all_reduces_is_read(tmp_path):
    path = tmp_path / "all_reduce.csv"
    path.write_text(
        HEADER + "0.02,2,2048,all_reduce\n0.03,2,4096,all_reduce\n.05,8,99,all_reduce\n"
    )
    found = read_collectives(path)
    assert set(found) == {
        CollectiveKind("all_reduce", 2, False),
        CollectiveKind("all_reduce", 8, False),
    }
    np.testing.assert_allclose(
        found[CollectiveKind("all_reduce", 2, False)], [[2048, 2e-5], [4096, 3e-5]]
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0.02,1,2048,all_reduce", "line 2: num_workers is 1, not a whole number from 2"),
        ("0,2,2048,all_reduce", "line 2: time_stats.all_reduce.median is 0: no time"),
        ("x,2,2048,all_reduce", "is 'x', not a number"),
        ("1,2,2048,all_gather", "line 2: no column time_stats.all_gather.median"),
    ],
)
def test_damage_of_such_a_table_is_told(tmp_path, row, message):
    path = tmp_path / "all_reduce.csv"
    path.write_text(HEADER + row + "\n")
    with pytest.raises(TablesError, match=message):
        read_collectives(path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "no column allreduce_dtype"),
        ({"allreduce_dtype": "float32"}, "no all-reduce of bfloat16 in it"),
        ({"allreduce_dtype": "bfloat16", "message_size": "x"}, "not of the kinds expected"),
        (None, "cannot be read as Parquet"),
    ],
)
def test_damage_of_a_parquet_of_all_reduces_is_told(tmp_path, columns, message):
    path = tmp_path / "all_reduce.parquet"
    path.write_bytes(b"PAR1")
    if columns is not None:
        plain = {"num_gpus": 2, "message_size": 8, "kernel_source": "x_graph", "latency": 0.1}
        frame = pl.DataFrame([plain | columns])
        frame.write_parquet(path)
    with pytest.raises(TablesError, match=message):
        measured_messages(path)


def test_measured_all_reduces_are_met_where_they_were_left_out(shared):
    model = Communication().fit(
        read_collectives(shared / "data" / "ops" / "h100_dgx_all_reduce.csv")
    )
    errors = {kind.group_size: law.left_out_error for kind, law in model.laws_.items()}
    assert errors[2] < 0.1  # its small messages scatter between 10 and 45 us
    assert errors[4] < 0.05
    assert errors[8] < 0.05


def test_collectives_of_a_real_trace(shared):
    from traces.kineto.read import read_trace

    found = recorded_messages(
        read_trace(shared / "data" / "kineto" / "a100_nccl.json.gz").kernels, graph=False
    )
    model = Communication().fit(found)
    assert CollectiveKind("all_reduce", 2, False) in model.laws_
    law = model.law("broadcast", 2, graph=False)
    assert law.sizes > 1 and law.high_bytes > 424
