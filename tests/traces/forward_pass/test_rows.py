"""Rows of steps hold what the records say, and null for what they do not."""

import pytest

from tests.traces.forward_pass.passes import passed
from traces.forward_pass.record import read_object
from traces.forward_pass.rows import ForwardPassRows, tokens_kept
from traces.recording.tables import STEPS

MS = 1_000_000


def rows_of(records, ends, speculates=False):
    made = ForwardPassRows(engine="e", speculates=speculates)
    rows = []
    for record, end in zip(records, ends, strict=True):
        rows += made.rows(read_object(record), end)
    return [*rows, *made.flush()], made


def test_a_step_is_what_its_record_says():
    record = passed(5, prefills=1, new=100, cached=64, decodes=3, context=900, wall=0.0125)
    (row,), _ = rows_of([record], [1_000])
    assert set(row) <= set(STEPS)
    assert row == {
        "engine": "e",
        "step": 0,
        "end": 1_000,
        "interval_ns": None,
        "wall_ns": 12_500_000,
        "prefill_requests": 1,
        "prefill_tokens": 100,
        "decode_requests": 3,
        "decode_tokens": 3,
        "waiting": 3,
        "preempted": None,  # one waits that had decoded, since when is not known
        "prefill_kv_tokens": 164,
        "decode_kv_tokens": 900,
        "prefill_query_context": 100 * 64 + 100 * 101 // 2,
        "source": "measured",
    }


def test_what_sums_do_not_tell_is_null():
    several = passed(1, prefills=2, new=100, cached=64)
    continued = passed(2, prefills=0, new=100)  # SGLang: a chunk of a prompt that had begun
    decoding = passed(3, decodes=2, context=50)
    rows, _ = rows_of([several, continued, decoding], [None] * 3, speculates=True)
    assert [row["prefill_query_context"] for row in rows] == [None, None, 0]
    assert [row["decode_tokens"] for row in rows] == [0, 0, None]
    (unknown,), _ = rows_of([decoding], [None], speculates=None)
    assert unknown["decode_tokens"] is None and unknown["decode_requests"] == 2


def test_intervals_are_between_neighbours_that_came_in_time():
    records = [passed(n, decodes=1) for n in (0, 1, 2, 3, 5)]
    ends = [each * MS for each in (10, 21, 50, 51, 62)]  # the third came late
    rows, made = rows_of(records, ends)
    assert [row["interval_ns"] for row in rows] == [None, 11 * MS, None, None, None]
    assert made.lost == 1


def test_a_heartbeat_is_no_step_and_ends_an_interval():
    records = [passed(0, decodes=1), passed(1, wall=0.0), passed(2, decodes=1)]
    rows, made = rows_of(records, [10 * MS, 20 * MS, 30 * MS])
    assert [row["interval_ns"] for row in rows] == [None, None]
    assert (made.idle, made.steps, made.lost) == (1, 2, 0)


def test_what_came_twice_counts_once_and_a_counter_that_falls_is_a_restart():
    records = [passed(n, decodes=1) for n in (8, 9, 9, 0, 1)]
    rows, made = rows_of(records, [n * 10 * MS for n in range(1, 6)])
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert (made.again, made.restarts, made.lost) == (1, 1, 0)
    assert rows[2]["interval_ns"] is None


def test_a_time_of_zero_is_not_known():
    (row,), _ = rows_of([passed(0, decodes=1, wall=0.0)], [1])
    assert row["wall_ns"] is None


@pytest.mark.parametrize("kept", [1, 2.6])
def test_contexts_tell_how_many_tokens_a_request_keeps(kept):
    contexts = [round(4 * 500 + 4 * kept * n) for n in range(60)]
    records = [read_object(passed(n, decodes=4, context=c)) for n, c in enumerate(contexts)]
    assert tokens_kept(records) == pytest.approx(kept, abs=0.13)
    assert tokens_kept(records[:20]) is None
    assert tokens_kept(records[::2]) is None
