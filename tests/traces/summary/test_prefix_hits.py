"""What was counted of the cache is shared out among the requests whose first token came there."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.traces.synthetic import engine_config, simulate, write_recording
from traces.summary.prefix_hits import _beside, _evenly, _shared_out
from traces.summary.problems import busy_seconds
from traces.summary.run import summarise


@given(
    rooms=st.lists(st.integers(0, 6), min_size=1, max_size=8),
    size=st.sampled_from([1, 4, 16]),
    tokens=st.integers(0, 120),
)
def test_as_many_tokens_are_shared_out_as_there_is_room_for(rooms, size, tokens):
    room = np.array(rooms) * size
    found = _evenly(tokens, room, size)
    assert found.sum() == min(tokens, room.sum())
    assert (found >= 0).all() and (found <= room).all()
    below = found[found < room]
    assert below.size < 2 or np.ptp(below) < 2 * size


def shared(at, tokens, most, further=None, size=16):
    further = np.zeros(len(at), dtype=bool) if further is None else np.array(further)
    return _shared_out(
        np.array(at), np.array(tokens), np.array(most), further, size
    ).tolist()  # fmt: skip


@pytest.mark.parametrize(
    ("at", "tokens", "found"),
    [
        ([0, 1, 1, 1], [304, 608], [304, 0, 304, 304]),  # the first of three computed it
        ([0, 1, 1], [304, 304], [304, 0, 304]),
        ([0, 0], [320], [160, 160]),
        ([0, 0, 1], [0, 304], [0, 0, 304]),
        ([0, 0, 2], [304, 304, 304], [304, 304, 304]),  # one step was between two clocks
    ],
)
def test_requests_of_one_step_found_what_is_usual_or_alike(at, tokens, found):
    assert shared(at, tokens, [330] * len(at)) == found


def test_further_samples_of_a_prompt_found_all_of_it():
    assert shared([0, 0, 0], [304 + 2 * 320], [330] * 3, [False, True, True]) == [304, 320, 320]


def test_what_nobody_there_had_room_for_is_moved_to_one_place_beside_it():
    assert _beside(np.array([10, 50, 0]), np.array([30, 20, 100])).tolist() == [30, 20, 10]
    assert _beside(np.array([0, 50, 0, 0]), np.array([0, 0, 0, 99])).tolist() == [0, 50, 0, 0]


@pytest.mark.parametrize(("others", "hits", "told"), [(0, 8, 8), (1, 8, None), (1, 0, 0)])
def test_of_a_workload_sent_to_a_server_the_steps_tell_it_unless_others_asked_too(
    tmp_path, others, hits, told
):
    """A server's answers say nothing of its cache, which may have held prompts of others."""
    rows = simulate(problems=3, n=2, seed=3)
    for step in rows["steps"]:
        ended = sum(each["last_step"] == step["step"] for each in rows["samples"])
        step |= {"finished": ended, "cached_prompt_tokens": hits * step["prefill_requests"]}
    rows["steps"][-1]["finished"] += others
    unseen = dict.fromkeys(("first_step", "last_step", "queued", "scheduled", "cached_tokens"))
    rows["samples"] = [sample | unseen for sample in rows["samples"]]
    engine = engine_config(mode="server", block_size=4, enable_prefix_caching=True)
    recording = write_recording(tmp_path / "r", rows, engine=engine)
    (run,) = summarise(recording)
    assert run.sample_rows["cached_tokens"].to_list() == [told] * 6
    assert (run.flops_per_problem is None) == (told is None)
    assert run.device_s_per_problem.value * 3 == pytest.approx(busy_seconds(run.step_rows).sum())
