"""A record is taken whole or refused in a few words, whatever it is."""

import math
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.traces.forward_pass.passes import passed
from traces.forward_pass.record import MOST_BYTES, OtherVersionError, read_message, read_object

LIVE = Path(__file__).parents[2] / "data" / "live"


def test_sglangs_own_messages_are_read():
    messages = msgspec.msgpack.decode((LIVE / "fpm_sglang_0.5.23.msgpack").read_bytes())
    records = [read_message(each) for each in messages]
    assert [record.counter_id for record in records] == list(range(60))
    busy = [record for record in records if not record.idle]
    assert all(0.006 < record.wall_time < 0.2 for record in busy)
    assert {record.worker_id for record in records} == {"sgl-0"}
    assert {record.timing_scope for record in records} == {None}


def test_what_vllms_open_change_adds_is_kept():
    told = passed(7, decodes=1, timing_scope="model_step_cuda", some_later_field=[1])
    assert read_message(msgspec.msgpack.encode(told)).timing_scope == "model_step_cuda"
    assert read_object(told) == read_message(msgspec.msgpack.encode(told))


def test_dynamos_first_records_had_no_version_and_no_counter():
    told = passed(7, decodes=3)
    del told["version"], told["counter_id"]
    assert read_object(told).counter_id is None


@pytest.mark.parametrize("version", [2, 0, -1, "1.1", True, None, [1]])
def test_another_version_says_which(version):
    told = passed(1, version=version, wall_time={"s": 3})
    for read in (read_object, lambda t: read_message(msgspec.msgpack.encode(t))):
        with pytest.raises(OtherVersionError) as failure:
            read(told)
        assert failure.value.version in {str(version), "unknown"}


@pytest.mark.parametrize(
    "changes",
    [
        {"wall_time": math.nan},
        {"wall_time": math.inf},
        {"wall_time": -1.0},
        {"wall_time": 1e9},
        {"wall_time": "1"},
        {"dp_rank": -1},
        {"dp_rank": 1 << 30},
        {"counter_id": 1 << 63},
        {"counter_id": 1.5},
        {"worker_id": "a" * 300},
        {"worker_id": "\x1b[2J"},
        {"timing_scope": "\u202e"},
        {"scheduled_requests": {"num_decode_requests": -1}},
        {"scheduled_requests": {"num_decode_requests": 1 << 60}},
        {"scheduled_requests": {"var_prefill_length": math.nan}},
        {"scheduled_requests": []},
        {"queued_requests": {"var_decode_kv_tokens": math.inf}},
    ],
)
def test_what_is_out_of_range_is_refused(changes):
    with pytest.raises(ValueError, match="out of range or an odd name"):
        read_message(msgspec.msgpack.encode(passed(1) | changes))


@pytest.mark.parametrize("name", ["wall_time", "scheduled_requests"])
def test_what_must_be_there_is_named(name):
    told = passed(1)
    del told[name]
    with pytest.raises(ValueError, match=f"without {name}"):
        read_object(told)


def test_a_message_that_is_too_large_is_not_decoded():
    with pytest.raises(ValueError, match=f"more than {MOST_BYTES:,} bytes"):
        read_message(msgspec.msgpack.encode(passed(1, more="x" * MOST_BYTES)))


@given(st.binary(max_size=300))
def test_any_bytes_are_a_record_or_refused(payload):
    try:
        read_message(payload)
    except ValueError as error:
        assert len(str(error)) < 80
