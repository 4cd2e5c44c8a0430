"""The elements of an array come out as they are written, whatever the pieces and the strings."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces.errors import OutcomesError
from traces.foreign import source as json_array
from traces.foreign.source import ArrayStream

TEXTS = st.text(alphabet='a"\\[]{}:, \né', max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(TEXTS | st.just("samples"), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = st.sampled_from(["a", 'x"samples"', "samples\\", "[", '"samples": ['])


class Pieces:
    """A file in pieces of some size, as `Inflated` gives it."""

    def __init__(self, raw, size, cut=None):
        self.raw, self.size, self.cut = raw, size, cut

    def __iter__(self):
        return iter([self.raw[i : i + self.size] for i in range(0, len(self.raw), self.size)])


def stream_of(tmp_path, raw, size=5, key=b"samples", **pieces):
    stream = ArrayStream(tmp_path, 1 << 30, key)
    stream._pieces = Pieces(raw, size, **pieces)
    return stream


@pytest.mark.slow
@settings(max_examples=150)
@given(
    before=st.dictionaries(KEYS, VALUES, max_size=3),
    elements=st.lists(st.dictionaries(TEXTS, VALUES, max_size=3), max_size=4),
    after=st.dictionaries(KEYS.map(lambda key: f"z{key}"), VALUES, max_size=2),
    size=st.integers(1, 40),
    indent=st.sampled_from([None, 1]),
)
def test_every_element_comes_out(tmp_path_factory, before, elements, after, size, indent):
    text = json.dumps(
        before | {"samples": elements} | after, indent=indent, ensure_ascii=size % 2 == 0
    )
    stream = stream_of(tmp_path_factory.getbasetemp(), text.encode(), size)
    assert [json.loads(raw) for raw in stream] == elements
    assert json.loads(bytes(stream.outside)) == before | {"samples": []} | after
    assert stream.cut is None


@pytest.mark.parametrize("keep", [12, 20, 25, 30])
def test_a_file_that_ends_early_says_so(tmp_path, keep):
    stream = stream_of(tmp_path, b'{"samples": [{"a": "b"}, {}]}'[:keep])
    list(stream)
    assert (stream.cut is None) == (keep == 30)
    damaged = stream_of(tmp_path, b'{"samples": []}', cut="its gzip data are damaged")
    assert list(damaged) == []
    assert damaged.cut == "its gzip data are damaged"


def test_what_is_no_object_is_given_too(tmp_path):
    stream = stream_of(tmp_path, b'{"samples": [{"a": 1} 7, {}, null]}')
    assert list(stream) == [b'{"a": 1}', b"7", b"{}", b"null"]


def test_memory_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(json_array, "ENTRY_BYTES", 100)
    small, large = b'{"a": "b"}', b'{"a": "%s"}' % (b"b" * 500)
    stream = stream_of(tmp_path, b'{"samples": [%s, %s, %s]}' % (small, large, small))
    assert list(stream) == [small, None, small]
    monkeypatch.setattr(json_array, "_OUTSIDE_BYTES", 100)
    for key, advice in ("samples", "Give the .eval file"), ("benchmarks", "Export fewer"):
        with pytest.raises(OutcomesError, match=f"stand beside its {key}. {advice}"):
            list(stream_of(tmp_path, b'{"a": "%s"}' % (b"b" * 200), key=key.encode()))
