"""Unions of intervals, and columns of events, that arrive a chunk at a time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import traces.kineto.events
from traces.kineto.events import Columns
from traces.kineto.intervals import Union, union

BITS = st.integers(-(2**62), 2**62)


@pytest.mark.slow
@given(st.lists(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 30)), max_size=8)))
def test_a_union_in_chunks_covers_the_same_moments(chunks):
    whole = Union()
    for chunk in chunks:
        starts, lengths = np.array(chunk, dtype=np.int64).reshape(-1, 2).T
        whole.add(starts, starts + lengths)
    covered = {t for chunk in chunks for start, size in chunk for t in range(start, start + size)}
    assert whole.length() == len(covered)
    begin, end = whole.whole()
    pairs = zip(begin.tolist(), end.tolist(), strict=True)
    assert {t for first, last in pairs for t in range(first, last)} == covered
    assert (begin[1:] > end[:-1]).all()
    assert all((a == b).all() for a, b in zip(union(begin, end), (begin, end), strict=True))


@given(rows=st.lists(st.tuples(BITS, st.integers(-128, 127)), max_size=40), by=st.integers(1, 9))
def test_columns_come_back_as_they_were_given(rows, by):
    usual = traces.kineto.events._CHUNK
    traces.kineto.events._CHUNK = 7
    try:
        columns = Columns(wide=np.int64, narrow=np.int8)
        for place in range(0, len(rows), by):
            wide, narrow = zip(*rows[place : place + by], strict=True)
            columns.add(wide=wide, narrow=narrow)
    finally:
        traces.kineto.events._CHUNK = usual
    assert columns.size == len(rows)
    whole = columns.whole()
    assert list(zip(whole["wide"].tolist(), whole["narrow"].tolist(), strict=True)) == rows
    assert columns.whole()["wide"].tolist() == whole["wide"].tolist()
    columns.clear()
    assert columns.size == 0 and columns.whole()["wide"].size == 0
