"""What a server's stream amounts to, however its reasoning parser cuts thought and answer."""

import json

import pytest

from profiler.engines.server.server import Events
from profiler.engines.server.stream import Stream
from profiler.workload.answers import final_answer
from profiler.workload.verifiers import Numeric
from tests.profiler.engines.server.test_hostile_server import events, recorded, server
from traces.summary.run import summarise

START, END = (3,), (4,)  # the tokens of the marks


def delta(*, finish=None, ids=None, tokens=None, **fields):
    choice = {"index": 0, "delta": fields, "finish_reason": finish}
    event = {"choices": [choice if ids is None else choice | {"token_ids": ids}]}
    return event if tokens is None else event | {"usage": {"completion_tokens": tokens}}


def result_of(*events, prompt=None, **more):
    stream = Stream(think_start_ids=START, think_end_ids=END, **more)
    if prompt is not None:
        stream.take({"prompt_token_ids": prompt, "choices": []}, 1)
    for now, event in enumerate(events, 2):
        stream.take(event, now)
    return stream.result("r", None)


def read(result):
    """The text as answers are read from it."""
    return ("<think>" if result.opened else "") + result.text


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
@pytest.mark.parametrize(
    ("deltas", "answer"),
    [
        ([("1 + 1", ""), ("", "2")], "2"),
        ([("1 + ", ""), ("1", "2")], "2"),  # both at once
        ([("1 + 1", "2")], "2"),  # all at once
        ([("1 + ", ""), ("1", "1"), ("", "2")], "12"),
        ([("", "2")], "2"),  # no thought
        ([("", "Well. "), ("1 + 1", ""), ("", "2")], "2"),  # content, then a thought
        ([("1", ""), ("", "7"), ("1 + 1", ""), ("", "2")], "2"),  # it thinks twice
        ([("1", "7"), ("1 + 1", "2")], "2"),
        ([("1 + 1", "")], None),  # cut in its thought
        ([("1", ""), ("", "7"), ("1 + 1", "")], None),  # and in its second one
        ([("1 + 1 = 2\n", ""), ("", "\n\n")], None),
    ],
)
def test_thought_and_answer_are_parted(field, deltas, answer):
    told = [
        delta(**{name: part for name, part in ((field, thought), ("content", said)) if part})
        for thought, said in deltas
    ]
    assert final_answer(read(result_of(delta(role="assistant", content=""), *told))) == answer


def test_both_in_one_delta_end_the_thought_there():
    found = result_of(
        delta(role="assistant", content="", tokens=0),
        delta(reasoning="ab", ids=[10, 11], tokens=2),
        delta(reasoning="c", content="J", ids=[12, 4, 20], tokens=5),
        delta(ids=[2], tokens=6, finish="stop"),
        {"choices": [], "usage": {"completion_tokens": 6, "prompt_tokens": 9}},
    )
    assert found.text == "abc</think>J"
    assert (found.first_token, found.think_end) == (3, 4)
    assert (found.think_tokens, found.output_tokens) == (3, 6)


def test_a_mark_that_is_not_sent_ends_the_thought_when_it_comes():
    found = result_of(
        delta(reasoning="ab", ids=[10, 11]),
        delta(ids=[4]),
        delta(content="J", ids=[20]),
        delta(finish="stop", ids=[2]),
    )
    assert (found.text, found.think_end, found.think_tokens) == ("ab</think>J", 3, 2)


def test_an_empty_thought_that_the_prompt_opened():
    found = result_of(delta(ids=[4]), delta(content="J", ids=[20]), prompt=[1, 9, 3])
    assert (read(found), found.think_tokens) == ("<think></think>J", 0)
    assert final_answer(read(found)) == "J"


def test_a_thought_that_the_prompt_opened_and_nobody_closed_has_no_answer():
    """A server without a parser, and the engine in this process, give the text alone."""
    found = result_of(delta(content="1 + 1 = 2", ids=[10, 11], finish="length"), prompt=[1, 9, 3])
    assert Numeric().answer_of(found.text) is not None
    assert Numeric().answer_of(read(found)) is None
    closed = result_of(delta(content="2", ids=[10]), prompt=[1, 3, 4])  # thinking is switched off
    assert final_answer(read(closed)) == "2"


def test_marks_in_the_text_are_left_as_they_are():
    found = result_of(
        delta(content="<think>", ids=[3], tokens=1),
        delta(content="ab", ids=[10, 11], tokens=3),
        delta(content="</think>", ids=[4], tokens=4),
        delta(content="J", ids=[20], tokens=5),
    )
    assert (found.text, found.think_tokens, found.think_end) == ("<think>ab</think>J", 3, 4)
    assert not found.opened


def test_without_ids_the_thought_is_counted_only_where_that_is_exact():
    text = (
        delta(content="ab", tokens=2),
        delta(content="</think>", tokens=3),
        delta(content="J", tokens=4),
    )
    assert result_of(*text).think_tokens == 2
    parsed = (delta(reasoning="ab", tokens=2), delta(content="J", tokens=3))
    assert result_of(*parsed).think_tokens is None  # 3 may count the mark or not
    told = {"completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 6}}
    assert result_of(*parsed, {"choices": [], "usage": told}).think_tokens == 6


@pytest.mark.parametrize(
    ("pieces", "end"),
    [
        (["ab</th", "ink>J"], 3),
        ([*"</think>", "J"], 9),
        (["</thi", "", "nk>", "J"], 4),
        (["</", "not so: think>ab", "J"], None),  # the parts of a mark, with others between
        (["a" * 50, "b</think", "> J"], 4),
    ],
)
def test_a_mark_ends_the_thought_however_it_is_cut(pieces, end):
    found = result_of(*(delta(content=piece) for piece in pieces))
    assert found.think_end == end


def test_several_choices_and_calls_of_tools():
    parts = [*delta(reasoning="ab")["choices"], *delta(content="J")["choices"]]
    assert result_of({"choices": parts}).text == "ab</think>J"
    call = [{"index": 0, "function": {"name": "f", "arguments": "{}"}}]
    found = result_of(delta(reasoning="ab"), delta(tool_calls=call, finish="tool_calls"))
    assert (found.think_end, final_answer(read(found))) == (3, None)


def test_ids_are_kept_only_where_they_are_wanted():
    told = (delta(reasoning="ab", ids=[10, 11]), delta(content="J", ids=[4, 20]))
    kept, not_kept = (result_of(*told, prompt=[1], want_ids=w) for w in (True, False))
    assert (kept.token_ids, kept.prompt_token_ids) == ((10, 11, 4, 20), (1,))
    assert (not_kept.token_ids, not_kept.prompt_token_ids, not_kept.think_tokens) == (None, None, 2)


def chats(tmp_path, told):
    """A recording of eight chats that have these events, by how many there were before."""
    with server(stream=lambda number: events(*told(number))) as url:
        return recorded(tmp_path, url, problems=8, answer="7", chat=True)


def test_answers_of_a_server_whose_deltas_have_both(tmp_path):
    def told(number):
        split = [delta(reasoning="1 + 6"), delta(content="7", finish="stop")]
        return split if number % 2 else [delta(reasoning="1 + 6", content="7", finish="stop")]

    recording = chats(tmp_path, told)
    assert recording.samples["correct"].to_list() == [True] * 8
    assert recording.samples["think_end"].null_count() == 0
    assert not [note for note in summarise(recording)[0].notes if "no answer" in note]


def test_samples_without_an_answer_are_told(tmp_path):
    def told(number):
        if number < 2:
            return [delta(reasoning="1 +", finish="length")]
        return (
            [delta(reasoning="1 + 6 = 7", finish="stop")]
            if number == 2
            else [delta(reasoning="1 + 6"), delta(content="7", finish="stop")]
        )

    recording = chats(tmp_path, told)
    assert recording.samples["answer"].null_count() == 3
    assert recording.samples["censored"].sum() == 2
    (note,) = [note for note in summarise(recording)[0].notes if "no answer" in note]
    assert note.startswith("3 of 8 samples have no answer: 2 were cut at max_tokens")
    assert "1 ended by themselves. Check the verifier" in note


@pytest.mark.parametrize("size", [1, 2, 7, 10_000])
def test_events_are_the_same_however_their_bytes_are_cut(size):
    told = [{"a": 1}, {"b": float("nan")}, {"c": "\u2028 \n"}, {"d": 2**70}]
    lines = [f"data:{' ' * n}{json.dumps(each)}" for n, each in enumerate(told)]
    body = "\r\n\n".join([": a comment", *lines, "data: [DONE]", 'data: {"late": 1}', ""]).encode()
    cut = Events()
    got = [e for at in range(0, len(body), size) for e in cut.of(body[at : at + size])]
    assert cut.done
    assert repr(got) == repr(told)
