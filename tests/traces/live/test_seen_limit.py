"""The limit of running requests that a server does not tell, from what its polls say."""

import pytest

from traces.live.verdict import SeenLimit


def seen(polls, kv=0.001):
    limit = SeenLimit()
    for running, waiting in polls:
        limit.take(running, waiting, kv)
    return limit.limit


IDLE = [(0, 0)] * 12 + [(3, 0), (1, 0), (8, 0)]


@pytest.mark.parametrize(
    ("queued", "limit"),
    [
        ([(8, 82), (7, 2), (8, 16), (5, 17), (8, 4), (7, 34)], 8),  # ended, not replaced yet
        ([(8, 82), (7, 2), (8, 16)], None),  # too seldom
        ([(8, 9), (3, 2), (8, 4), (2, 3), (8, 5), (1, 2)], None),  # others keep them out
        ([(9, 1), (8, 9), (8, 4), (8, 5)], None),  # more have run
    ],
)
def test_short_bursts_behind_a_limit_tell_it(queued, limit):
    assert seen(IDLE + queued) == limit


def test_a_small_number_comes_again_by_chance():
    assert seen([(2, 1)] * 6) is None
    assert seen([(2, 1)] * 10) == 2
    assert seen([(1, 1)] * 30) is None


def test_a_queue_behind_a_full_cache_tells_none():
    assert seen([(8, 20)] * 12, kv=0.95) is None
