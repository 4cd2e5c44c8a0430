"""Which problems waited longest, whatever the last digits of sums are."""

from types import SimpleNamespace

import numpy as np

from advisor.replay.waiting import longest_waits


def test_problems_that_waited_as_long_keep_their_order():
    queued = np.array([0.3, 0.5, 0.5 + 1e-15, 0.5 + 3e-16, 0.7])
    each = np.zeros(5)
    replayed = SimpleNamespace(
        decided_by=each.astype(int), scheduled_s=queued, queued_s=each, first_token_s=queued,
        end_s=queued + 1, latency_s=queued + 1, arrival_s=each, preempted=each, engine=each,
    )  # fmt: skip
    waits = longest_waits(replayed, range(6), "abcde")
    assert [each.problem_id for each in waits] == ["e", "b", "c", "d", "a"]
    assert [name for name, _ in waits[0].behind] == ["a", "b", "c"]
