from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from traces.errors import UsageError
from tui.screens.run.playback import Goto, Playback, parse_goto

WHOLE = Playback.over(1_000, 1_000 + 600 * 10**9)


def test_a_recording_plays_in_about_half_a_minute():
    assert WHOLE.speed == 16
    assert Playback.over(0, 10**9).label() == "paused x1/32"
    played = WHOLE.toggle()
    for _ in range(100):
        played = played.tick(1.0)
    assert not played.playing
    assert played.now == WHOLE.end
    again = played.toggle()
    assert again.playing
    assert again.now == WHOLE.start


@given(st.lists(st.integers(-70, 70), max_size=6), st.floats(0.01, 4.0), st.integers(10, 200))
def test_the_cursor_stays_in_what_is_shown(moves, factor, bins):
    play = WHOLE
    for move in moves:
        play = play.move(move, bins).zoom(factor)
        assert WHOLE.start <= play.left <= play.now <= play.right <= WHOLE.end
        assert 0 <= play.column(bins) < bins
    assert play.whole().left == WHOLE.start


@given(st.integers(0, 90), st.integers(-5, 5))
def test_a_move_is_by_columns(start, move):
    play = WHOLE.move(start, 97)
    assert play.column(97) == start
    assert play.move(move, 97).column(97) == max(start + move, 0)


def test_a_problem_is_shown_with_some_room():
    play = WHOLE.show(10**11, 2 * 10**11)
    assert play.left < 10**11 == play.now
    assert play.right > 2 * 10**11
    assert play.seek(0).left == WHOLE.start


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("137", Goto("problem", 137)), (" p3 ", Goto("problem", 3)),
        ("s48,213", Goto("step", 48213)), ("3:32.5", Goto("time", 212.5)),
        ("1:00:02", Goto("time", 3602)), ("12.5s", Goto("time", 12.5)),
    ],
)  # fmt: skip
def test_where_to_go(text, found):
    assert parse_goto(text) == found


@pytest.mark.parametrize("text", ["", "x", "3:", "-1", "s", "12.5"])
def test_where_not_to_go(text):
    with pytest.raises(UsageError, match="give a problem"):
        parse_goto(text)
