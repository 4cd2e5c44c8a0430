"""Spans of requests, protobuf and JSON, and what they amount to: problems and samples."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.made.spans import CANARY, T0, as_protobuf, client, request, span
from traces.live.otlp import read_json, read_protobuf
from traces.live.span_groups import MOST_CHILDREN, SETTLE_S, SpanGroups, sample_row


def read(*spans):
    return read_json(json.dumps(request(*spans)).encode()).spans


def grouped(*batches, settle=True):
    """Rows after adding batches of spans in this order, all at once or settling between."""
    now = [0.0]
    groups = SpanGroups(lambda span: "e", clock=lambda: now[0])
    problems, samples = {}, []
    for batch in batches:
        for each in read(*batch):
            groups.add(each)
        if settle:
            now[0] += SETTLE_S + 1
        more = groups.drain(everything=not settle)
        problems |= {row["problem_id"]: row for row in more[0]}
        samples += more[1]
    return list(problems.values()), samples


def test_both_encodings_say_the_same():
    document = request(span(1), client(2, parent=9), span(3, name="tokenize"))
    from_json = read_json(json.dumps(document).encode())
    from_protobuf = read_protobuf(as_protobuf(document))
    assert from_json == from_protobuf
    assert len(from_json.spans) == 2
    assert from_json.others == 1
    assert CANARY not in repr(from_json)


def test_the_recorded_span(shared):
    recorded = json.loads((shared / "facts" / "otlp_span_example.json").read_text())
    document = {
        "resourceSpans": [
            {"resource": recorded["resource"], "scopeSpans": [{"spans": [recorded["span"]]}]}
        ]
    }
    (found,) = read_json(json.dumps(document).encode()).spans
    assert found.from_engine
    assert (found.span_id, found.parent_id) == (
        "7ad8844bfe6d a0af".replace(" ", ""),
        "0000000000000100",
    )
    assert found.values["gen_ai.usage.completion_tokens"] == 48


def test_a_span_is_a_sample_with_its_times():
    (problem,), (sample,) = grouped([span(1)])
    assert sample["prompt_tokens"] == problem["prompt_tokens"] == 136
    assert sample["output_tokens"] == 48
    assert sample["first_token"] - sample["arrival"] == 500_000_000
    assert sample["first_token"] - sample["scheduled"] == 250_000_000
    assert sample["end"] == problem["decided_at"] == T0 + 2_000_000_000
    assert sample["request_id"] == "cmpl-1"


@pytest.mark.parametrize("settle", [False, True])
def test_a_span_that_is_sent_again_is_no_second_sample(settle):
    _, samples = grouped([span(1), span(2)], [span(2), span(1)], settle=settle)
    assert len(samples) == 2


def test_children_of_one_request_are_one_problem():
    same = {"gen_ai__request__id": "cmpl-x", "gen_ai__request__n": 1}
    children = [span(n, trace=f"{n:02x}", took=n, **same) for n in (1, 2, 3, 4)]
    (problem,), samples = grouped(children)
    assert [row["sample_index"] for row in samples] == [0, 1, 2, 3]
    assert problem["end"] == T0 + 4_000_000_000
    (again,), more = grouped(children[:2], children[2:])  # the others come later
    assert again["end"] == problem["end"]
    assert [row["sample_index"] for row in more] == [0, 1, 2, 3]


def test_requests_of_one_parent_are_one_problem_and_prompts_its_rounds():
    spans = [span(n, parent=77, start=n) for n in (1, 2)]
    spans.append(span(3, parent=77, start=3, gen_ai__usage__prompt_tokens=300))
    problems, samples = grouped([*spans, span(4, parent=78)])
    assert len(problems) == 2
    mine = [row for row in samples if row["problem_id"] == problems[0]["problem_id"]]
    assert [row["round"] for row in mine] == [0, 0, 1]
    assert problems[0]["span_id"] == f"{77:016x}"


@pytest.mark.parametrize("first", ["clients", "engines"])
def test_a_client_span_between_is_no_sample_of_its_own(first):
    clients = [client(n, parent=77) for n in (11, 12)]
    engines = [span(n, parent=n + 10) for n in (1, 2)]
    batch = clients + engines if first == "clients" else engines + clients
    (problem,), samples = grouped(batch)
    assert {row["span_id"] for row in samples} == {f"{n:016x}" for n in (1, 2)}
    assert problem["span_id"] == f"{77:016x}"


def test_clients_alone_are_samples_with_what_they_know():
    usage = {"gen_ai__usage__input_tokens": 7, "gen_ai__usage__output_tokens": 5}
    (problem,), samples = grouped([client(n, parent=77, **usage) for n in (1, 2)])
    assert [row["output_tokens"] for row in samples] == [5, 5]
    assert samples[0]["first_token"] is None
    assert problem["prompt_tokens"] == 7


def test_a_parent_of_everything_is_no_question_without_end():
    spans = [span(n, parent=77) for n in range(1, MOST_CHILDREN + 10)]
    groups = SpanGroups(lambda span: "e")
    for each in read(*spans):
        groups.add(each)
    assert groups.dropped == 9


BAD = [b"", b"{", b"[]", b"null", b'{"resourceSpans": 1}', b"\xff\xfe", b"[" * 100_000]


@pytest.mark.parametrize("body", BAD)
def test_json_that_is_none(body):
    with pytest.raises(ValueError, match="not an Export"):
        read_json(body)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body):
    for reader in (read_json, read_protobuf):
        try:
            assert reader(body).spans == []
        except ValueError:
            continue


def test_sglangs_spans_are_requests_and_their_slices_are_not():
    told = {
        "gen_ai__latency__time_to_first_token": 0.5,
        "gen_ai__latency__time_in_model_prefill": 0.4,  # begins before the queue
        "gen_ai__latency__e2e": 2.0,
        "gen_ai__usage__prompt_tokens": 136,
        "gen_ai__usage__completion_tokens": 48,
        "gen_ai__usage__cached_tokens": 64,
        "gen_ai__request__id": "rid-1",
        "gen_ai__response__model": "m",
        "rid": "rid-1",
        "module": "sglang::request",
    }
    slices = [span(n, parent=1, name=name) for n, name in ((2, "prefill_forward"), (3, "decode"))]
    document = request(span(1, name=" Req rid-1", **told), *slices, service="sglang")
    for found in (read_json(json.dumps(document).encode()), read_protobuf(as_protobuf(document))):
        assert (len(found.spans), found.others, found.bad) == (1, 2, 0)
        groups = SpanGroups(lambda span: "e")
        groups.add(found.spans[0])
        _, (row,) = groups.drain(everything=True)
        assert (row["prompt_tokens"], row["output_tokens"], row["cached_tokens"]) == (136, 48, 64)
        assert row["first_token"] == T0 + 500_000_000 and row["scheduled"] is None
        assert row["end"] == T0 + 2_000_000_000


def test_what_the_front_end_took_lies_between_arrival_and_queue():
    """TTFT 0.5 s, of which 0.25 s in the prompt and 0.2 s in the queue: 50 ms are neither."""
    for waited, took in ((0.2, 0.05), (0.3, 0.0), (None, None)):
        told = {} if waited is None else {"gen_ai__latency__time_in_queue": waited}
        (found,) = read_json(json.dumps(request(span(1, **told))).encode()).spans
        row = sample_row(found)
        assert row["scheduled"] == row["arrival"] + 250_000_000
        if took is None:
            assert row["queued"] is None
        else:
            assert row["queued"] - row["arrival"] == pytest.approx(took * 1e9, abs=2)
