"""Damaged, unfinished and hostile traces: what is sound is read, or one line says why not.

By hand, 20,000 mutations: TTSCOPE_FUZZ=20000 pytest -k fuzz and this file
"""

import gzip
import json
import os
import random
import zlib

import polars as pl
import pytest

from benchmarks.made.kineto_files import cpu_events, device_events, document, event, kernel, write
from traces.errors import TraceError
from traces.kineto.read import read_trace, skipped_text

ROUNDS = int(os.environ.get("TTSCOPE_FUZZ", "150"))


def long_trace(count=3000):
    return document([kernel("gemm", 10 * i, 4, i + 1) for i in range(count)])


def totals(tables):
    return tables.kernels["count"].sum(), tables.kernels["time"].sum()


def refused(path, **options):
    with pytest.raises(TraceError) as error:
        read_trace(path, **options)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"   \n", "it has no traceEvents"),
        (b"hello there", "not a PyTorch profiler trace"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 100, "not a PyTorch profiler trace"),
        (b'{"a": [1, 2, 3]}', "it has no traceEvents"),
        (b'{"traceEvents": null}', "it has no traceEvents"),
        (b'{"traceEvents": []}', "no kernel and no operator in 0 events"),
        (b"[]", "no kernel and no operator"),
        (b"[1, 2, 3]", "no kernel and no operator"),
        (b'{"traceEvents": [{"ph": "M"}]}', "no kernel and no operator in 1 events"),
        (b"\x1f\x8b", "its gzip data end early"),
        (gzip.compress(b"", mtime=0)[:-3], "its gzip data end early"),
        ("{}".encode("utf-16"), "not a PyTorch profiler trace"),
        (b"{" * 300_000, "it has no traceEvents"),
        (b"[" * 300_000, "no kernel and no operator"),
    ],
    ids=lambda value: value if isinstance(value, str) else repr(value[:12]),
)
def test_what_is_no_trace_is_refused(tmp_path, content, reason):
    assert reason in refused(write(tmp_path / "t.json", content))


def test_what_cannot_be_opened_is_refused(tmp_path):
    assert "No such file" in refused(tmp_path / "absent.json")
    assert "Is a directory" in refused(tmp_path)


def test_events_without_anything_of_use_say_so(tmp_path):
    events = [{"ph": "X", "cat": "kernel", "name": "k", "ts": 1}]
    message = refused(write(tmp_path / "t.json", document(events)))
    assert "skipped: 1 events without dur" in message


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_truncated_gzip(tmp_path, share):
    whole = gzip.compress(json.dumps(long_trace()).encode())
    path = tmp_path / "t.json.gz"
    path.write_bytes(whole[: int(len(whole) * share)])
    tables = read_trace(path)
    count, time = totals(tables)
    assert 0 < count <= 3000
    assert time == count * 4000
    assert "gzip data end early" in tables.notes[-1]


def test_damaged_gzip(tmp_path):
    whole = bytearray(gzip.compress(json.dumps(long_trace()).encode(), mtime=0))
    whole[len(whole) // 2] ^= 0xFF
    path = tmp_path / "t.json.gz"
    path.write_bytes(whole)
    tables = read_trace(path)
    assert tables.kernels.height
    assert tables.notes or tables.skipped


def test_two_gzip_members_are_one_trace(tmp_path):
    raw = json.dumps(long_trace()).encode()
    path = tmp_path / "t.json.gz"
    path.write_bytes(gzip.compress(raw[:50_000]) + gzip.compress(raw[50_000:]))
    assert totals(read_trace(path)) == (3000, 12_000_000)


@pytest.mark.slow
def test_json_that_ends_anywhere(tmp_path):
    raw = json.dumps(document(device_events())).encode()
    start, end = raw.index(b"flash_fwd"), raw.index(b'], "traceName"')
    last = 0
    for cut in range(raw.index(b"}", start) + 2, end, 7):
        tables = read_trace(write(tmp_path / "t.json", raw[:cut]))
        assert "its JSON ends early" in tables.notes[-1]
        assert tables.kernels["count"].sum() >= last
        last = tables.kernels["count"].sum()
    assert last == 7 or last == 6  # the last events are no kernels, one may be cut


def test_a_cut_between_events_skips_none(tmp_path):
    raw = json.dumps(long_trace(10)).encode()
    tables = read_trace(write(tmp_path / "t.json", raw[: raw.rindex(b", {")]))
    assert totals(tables)[0] == 9
    assert tables.skipped == {}
    tables = read_trace(write(tmp_path / "t.json", raw[: raw.rindex(b", {") + 20]))
    assert totals(tables)[0] == 9
    assert tables.skipped == {"event cut off at the end": 1}


def test_events_that_cannot_be_used_are_counted(tmp_path):
    good = kernel("gemm", 1, 2, 1)
    bad = [
        {**good, "ts": None}, {**good, "dur": None}, {**good, "dur": -1}, {**good, "ts": 1e300},
        {**good, "dur": 1e300}, {**good, "cat": "a_new_thing"}, {**good, "ts": {}}, "not an event",
        7,
    ]  # fmt: skip
    tables = read_trace(write(tmp_path / "t.json", document([good, *bad, good])))
    assert totals(tables) == (2, 4000)
    assert tables.skipped == {
        "events without ts": 1,
        "events without dur": 1,
        "events of negative duration": 1,
        "events with times out of range": 2,
        "events of unknown category 'a_new_thing'": 1,
        "damaged event": 1,
        "damaged text between events": 1,
    }
    assert skipped_text(tables.skipped).startswith("2 events with times out of range, 1 damaged")


def test_numbers_written_as_text_are_read(tmp_path):
    events = [{**kernel("gemm", 1, 2, 1), "ts": "1.5", "dur": "2.25"}]
    assert totals(read_trace(write(tmp_path / "t.json", document(events)))) == (1, 2250)


def test_strange_arguments_cost_only_what_they_tell(tmp_path):
    args = {"correlation": "x", "stream": [], "device": {}, "bytes": 10**30, "dtype": 3}
    events = [
        {**kernel("ncclDevKernel_AllReduce_Sum_f32_RING_LL(x)", 1, 2, 1), "args": args},
        {**kernel("gemm", 1, 2, 1), "args": []},
        {**kernel("gemm", 1, 2, 1), "args": None, "pid": 10**40, "tid": "stream 7"},
    ]
    tables = read_trace(write(tmp_path / "t.json", document(events)))
    assert totals(tables)[0] == 3
    assert tables.kernels.filter(pl.col("collective").is_not_null())["dtype"].to_list() == [
        "float32"
    ]


def test_bytes_that_are_no_utf8(tmp_path):
    raw = json.dumps(document([kernel("gemm_?", 1, 2, 1), kernel("gemm", 4, 3, 2)])).encode()
    tables = read_trace(write(tmp_path / "t.json", raw.replace(b"gemm_?", b"gemm_\xff\xfe")))
    assert totals(tables) == (2, 5000)


def test_separators_inside_strings_and_arguments(tmp_path):
    trap = {"a": [{"b": 1}, {"c": 2}], "d": "}, {", "e": "]}", "f": '"traceEvents": ['}
    events = [kernel("f() }, {lambda()#1} ], [", 10 * i, 4, i, **trap) for i in range(5000)]
    tables = read_trace(write(tmp_path / "t.json", document(events)))
    assert totals(tables) == (5000, 20_000_000)
    assert tables.skipped == {}


def test_damage_in_the_middle_costs_one_event(tmp_path):
    raw = json.dumps(long_trace()).encode()
    middle = raw.index(b'"ts": 15000,')
    for damage in (b"]", b"}", b"{", b'"', b"\\", b"\0", b"[[["):
        broken = raw[:middle] + damage + raw[middle:]
        tables = read_trace(write(tmp_path / "t.json", broken))
        assert totals(tables)[0] in (2999, 3000), damage
        assert tables.skipped


def test_overlapping_steps(tmp_path):
    events = [
        event("ProfilerStep#1", "user_annotation", 0, 100),
        event("ProfilerStep#2", "user_annotation", 50, 100),
        event("aten::mm", "cpu_op", 60, 5),
        event("aten::mm", "cpu_op", 20, 5),
        event("aten::mm", "cpu_op", 120, 5),
    ]
    tables = read_trace(write(tmp_path / "t.json", document(events)))
    assert dict(tables.kernels.select("step", "count").iter_rows()) == {1: 1, 2: 2}
    assert tables.notes == ("1 steps overlap. A kernel belongs to the last begun",)


@pytest.mark.slow
def test_a_bomb_meets_the_limit(tmp_path):
    one = json.dumps(kernel("gemm", 1, 2, 1)).encode() + b",\n"
    deflate = zlib.compressobj(wbits=31)
    path = tmp_path / "bomb.json.gz"
    with path.open("wb") as file:
        file.write(deflate.compress(b'{"traceEvents": ['))
        for _ in range(40):
            file.write(deflate.compress(one * 1000))
        file.write(deflate.flush())
    assert path.stat().st_size < 100_000
    assert "holds more than 4,000,000 bytes" in refused(path, limit_bytes=4_000_000)
    many = 33 << 20  # bytes; without an event in 32 MiB it is refused
    for filler in (b"\0", b'{"a":'):
        path.write_bytes(gzip.compress(b'{"traceEvents": [' + filler * (many // len(filler)), 1))
        assert "no event in" in refused(path)


def mutate(raw, rng):
    """Return the text with one to three wounds of any kind."""
    raw = bytearray(raw)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(raw) + 1)
        to = min(at + rng.choice((1, 1, 2, 8, 60, 400)), len(raw))
        kind = rng.randrange(8)
        if kind == 0:
            del raw[at:]
        elif kind == 1:
            del raw[at:to]
        elif kind == 2:
            raw[at:at] = raw[at:to] * rng.randint(1, 3)
        elif kind == 3:
            raw[at:to] = bytes(rng.randrange(256) for _ in range(to - at))
        elif kind == 4:
            raw[at:at] = rng.choice(
                (b"{", b"}", b"[", b"]", b",", b'"', b":", b"\\", b"}, {", b"\0")
            )
        elif kind == 5:
            digits = [i for i, byte in enumerate(raw) if 48 <= byte < 58]
            if digits:
                spot = rng.choice(digits)
                worse = (b"-1", b"1e999", b"NaN", b"null", b'"x"', b"99999999999999999999", b"{}")
                raw[spot : spot + 1] = rng.choice(worse)
        elif kind == 6:
            words = (
                b'"ts"', b'"dur"', b'"ph"', b'"cat"', b'"name"', b'"args"', b"kernel", b"cpu_op",
            )  # fmt: skip
            word = rng.choice(words)
            spots = raw.count(word)
            if spots:
                place = -1
                for _ in range(rng.randint(1, spots)):
                    place = raw.find(word, place + 1)
                raw[place : place + len(word)] = rng.choice((b'"zz"', b"null", word.upper(), b""))
        else:
            raw[at:to] = raw[at:to][::-1]
    return bytes(raw)


def check(path):
    """Read one mutated trace; whatever comes must be sound."""
    try:
        tables = read_trace(path, limit_bytes=1 << 24)
    except TraceError as error:
        assert str(path) in str(error)
        return "refused"
    kernels = tables.kernels
    assert kernels.height
    assert kernels.select((pl.col("time") >= 0).all() & (pl.col("self_time") >= 0).all()).item()
    for part in ("self_time", "exposed_time"):
        assert kernels.select((pl.col(part).fill_null(0) <= pl.col("time")).all()).item()
    assert tables.window.busy_ns >= 0 <= tables.window.idle_ns
    assert all("\n" not in note for note in tables.notes)
    skipped_text(tables.skipped)
    return "damage told" if tables.skipped or tables.notes else "read"


@pytest.mark.slow
def test_fuzz(tmp_path):
    rng = random.Random(7)
    bases = [
        json.dumps(document(events), indent=indent).encode()
        for events in (device_events(), cpu_events(), [*cpu_events(), *device_events()])
        for indent in (None, 1)
    ]
    outcomes = dict.fromkeys(("refused", "read", "damage told"), 0)
    for _ in range(ROUNDS):
        raw = mutate(rng.choice(bases), rng)
        if rng.random() < 0.3:
            raw = gzip.compress(raw, 1, mtime=0)
            if rng.random() < 0.5:
                raw = mutate(raw, rng)
        path = tmp_path / "t.json"
        path.write_bytes(raw)
        try:
            outcomes[check(path)] += 1
        except Exception:
            kept = tmp_path / "failing.json"
            kept.write_bytes(raw)
            print(f"the trace that failed is in {kept}")
            raise
    print(outcomes)
    assert outcomes["damage told"] > ROUNDS // 10
    assert outcomes["read"] > ROUNDS // 10
