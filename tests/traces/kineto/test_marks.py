"""What a step's annotation says, in the forms of each engine."""

import pytest

from traces.kineto.marks import StepMark, read_mark

EMPTY = {"prefill_requests": 0, "prefill_tokens": 0, "prefill_kv_tokens": 0}
EMPTY |= {"prefill_query_context": 0}
NO_DECODES = {"decode_requests": 0, "decode_tokens": 0, "decode_kv_tokens": 0}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("step[DECODE bs=8]", EMPTY | {"decode_requests": 8, "decode_tokens": 8}),
        ("step[decode bs=8]", EMPTY | {"decode_requests": 8, "decode_tokens": 8}),
        ("step[VERIFY bs=8]", EMPTY | {"decode_requests": 8}),
        ("step[VERIFY bs=2 g_sq=8 g_sqsq=32 g_sqsk=1616 g_sk=404 forward_id=7]",
         EMPTY | {"decode_requests": 2, "decode_tokens": 8, "decode_kv_tokens": 404}),
        ("step[EXTEND bs=2 toks=512]", NO_DECODES | {"prefill_requests": 2, "prefill_tokens": 512}),
        ("step[prefill bs=1 toks=64]", NO_DECODES | {"prefill_requests": 1, "prefill_tokens": 64}),
        (
            "step[EXTEND bs=1 toks=4 c_sq=4 c_sqsq=16 c_sqsk=24 c_sk=6]",
            NO_DECODES
            | {"prefill_requests": 1, "prefill_tokens": 4, "prefill_kv_tokens": 6}
            | {"prefill_query_context": 3 + 4 + 5 + 6},
        ),
        ("step[MIXED bs=9]", {}),
        ("step[mixed bs=9 ext=2 dec=7]",
         {"prefill_requests": 2, "decode_requests": 7, "decode_tokens": 7}),
        ("step[mixed bs=9 ext=512 dec=7]", {}),
        (
            "step[MIXED bs=3 c=1 g=2 c_sq=4 c_sk=6 c_sqsq=16 c_sqsk=24 g_sq=2 g_sk=50 g_sqsq=2 "
            "g_sqsk=50]",
            {"prefill_requests": 1, "prefill_tokens": 4, "prefill_kv_tokens": 6}
            | {"prefill_query_context": 18, "decode_requests": 2, "decode_tokens": 2}
            | {"decode_kv_tokens": 50},
        ),
    ],
)  # fmt: skip
def test_sglangs_marks(name, told):
    assert read_mark(name) == StepMark(**told)


@pytest.mark.parametrize(
    "name",
    [
        "step[DRAFT bs=8]", "step[DRAFT_LOOP raw_bs=2 bs=4 topk=1]", "step[DECODE]",
        "step[DECODE bs=x]", "step[DECODE bs=99999999999]", "optimizer_step[bs=2]",
        "step[\x1b bs=1]",
    ],
)  # fmt: skip
def test_what_marks_no_step(name):
    assert read_mark(name) is None


def test_odd_numbers_are_not_told():
    mark = read_mark("step[EXTEND bs=2 toks=-4 c_sq=1e9 c_sk=" + "9" * 40 + "]")
    assert (mark.prefill_requests, mark.prefill_tokens, mark.prefill_kv_tokens) == (2, None, None)
