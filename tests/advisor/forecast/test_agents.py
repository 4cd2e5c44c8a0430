"""Agents at work: turns that wait for answers and tools, sessions that follow one another."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from advisor.evidence.features import FEATURES
from advisor.evidence.runs import ProblemRun, Sample
from advisor.forecast.agents import AgentsAsked, most_within
from advisor.forecast.sessions import Sessions
from advisor.replay.limits import Limits
from advisor.replay.replay import replay
from advisor.step_time.cost import linear_cost
from traces.errors import UsageError

STEP_S = 0.01
BLOCK = 16


def cost(factor=1.0, **seconds):
    each = {"step": STEP_S} | seconds
    return linear_cost(factor * np.array([each.get(name, 0.0) for name in FEATURES]))


def turn(number, session, came_s, took_s, tokens=20, blocks=(), prompt=64):
    return ProblemRun(
        problem_id=f"{session}/{number}", session=session, arrival_ns=int(came_s * 1e9),
        latency_s=took_s, prompt_tokens=prompt, cached_tokens=0, prompt_blocks=blocks,
        samples=(Sample(output_tokens=tokens, answer=None, correct=None),), indices=(0,),
    )  # fmt: skip


def chat(name, turns, tool_s, took_s=1.0, tokens=20, of=0):
    """Return a session whose prompts grow by two blocks a turn, after tools of `tool_s`."""
    return [
        turn(
            number, name, number * (took_s + tool_s), took_s, tokens,
            tuple(range(of, of + 2 * number + 4)), BLOCK * (2 * number + 4),
        )
        for number in range(turns)
    ]  # fmt: skip


def sessions_of(*chats):
    problems = [each for chat in chats for each in chat]
    return Sessions.of(problems, problems, prompt_block_tokens=BLOCK)


def asked(sessions, *, sigma=None, blocks=None, slots=None, devices=1, **seconds):
    limits = Limits(
        max_num_seqs=slots, max_num_batched_tokens=8192, block_size=BLOCK, num_blocks=blocks,
        prefix_caching=True,
    )  # fmt: skip

    def serve(workload, agents, *, factor=1.0, is_endless=False):
        own = Limits(**{**vars(limits), "num_blocks": None}) if is_endless else limits
        return replay(workload, cost(factor, **seconds), own, concurrency=agents)

    return AgentsAsked(
        sessions=sessions, serve=serve, seed=0, sigma=sigma, devices=devices,
        within=lambda runs: True,
    )  # fmt: skip


def test_a_turn_comes_after_the_last_answer_before_it_and_beside_the_first_where_none_had_come():
    chain = [
        turn(0, "a", 0.0, 2.0),
        turn(1, "a", 0.5, 1.0),  # while the first ran: a title, say
        turn(2, "a", 5.0, 1.0),  # after the first, which ended last
        turn(3, "a", 5.5, 9.0),  # a sub-agent of the same
        turn(4, "a", 16.0, 1.0),  # after the sub-agent
    ]
    found = sessions_of(chain)
    assert found.after.tolist() == [-1, 0, 0, 0, 3]
    assert found.beside.tolist() == [False, True, False, False, False]
    np.testing.assert_allclose(found.after_s, [0.0, 0.5, 3.0, 3.5, 1.5])
    assert not found.one_at_a_time
    assert sessions_of(chat("b", 5, 2.0)).one_at_a_time


def test_recordings_without_sessions_or_without_ends_say_what_is_not_known():
    with pytest.raises(UsageError, match="no sessions"):
        sessions_of([turn(0, None, 0.0, 1.0)])
    with pytest.raises(UsageError, match="when answers came"):
        sessions_of([turn(n, "a", float(n), float("nan")) for n in range(3)])


@pytest.mark.parametrize("tool_s", [0.0, 3.0])
def test_agents_that_never_meet_take_what_one_takes(tool_s):
    """A step takes as long whoever is in it, so that agents do not slow one another."""
    tokens = 20
    found = asked(sessions_of(chat("a", 6, tool_s), chat("b", 6, tool_s, of=100))).run(5)
    assert found.turn_s["mean"].value == pytest.approx(tokens * STEP_S, rel=0.06)
    whole = 6 * tokens * STEP_S + 5 * tool_s  # after the last turn the next session begins
    assert found.session_s.value == pytest.approx(whole, rel=0.06)
    assert found.sessions_per_h.value == pytest.approx(3600 * 5 / whole, rel=0.06)
    assert found.tokens_per_s.value == pytest.approx(5 * 6 * tokens / whole, rel=0.06)
    assert found.tools_share.value == pytest.approx(5 * tool_s / whole, abs=0.04)
    assert found.device_s_per_session.value == pytest.approx(whole / 5, rel=0.06)


def test_more_agents_than_places_wait_as_a_closed_queue_does():
    """Without tools, one place and equal turns, each of N waits for the N - 1 others."""
    for agents in (1, 3, 8):
        found = asked(sessions_of(chat("a", 4, 0.0)), slots=1).run(agents)
        assert found.turn_s["p50"].value == pytest.approx(agents * 20 * STEP_S, rel=0.05)
        assert found.tools_share.value < 0.02 * agents


def test_a_small_cache_drops_what_the_next_turn_would_have_found():
    """A turn after tools finds its session's blocks where all of them have room, else none."""
    sessions = sessions_of(*(chat(name, 8, 2.0, of=1_000 * n) for n, name in enumerate("abcd")))
    roomy, tight = (asked(sessions, blocks=blocks) for blocks in (400, 45))
    few, many = roomy.run(2), tight.run(8)
    assert few.cached_share.value == pytest.approx(few.cached_share_kept, abs=0.02)
    assert many.cached_share.value < 0.6 * many.cached_share_kept
    # A prompt's last block is computed anew. A session that comes again has prompts of its own.
    found, asked_for = sum(2 * n + 1 for n in range(1, 8)), sum(2 * n + 4 for n in range(8))
    assert few.cached_share_kept == pytest.approx(found / asked_for, abs=0.01)


def test_the_interval_holds_a_slow_day_and_other_sessions_widen_it():
    sessions = sessions_of(
        *(chat(name, 5, 1.0, tokens=10 * (n + 1), of=1_000 * n) for n, name in enumerate("abcd"))
    )
    found = asked(sessions, sigma=0.1).run(4)
    p95 = found.turn_s["p95"]
    assert p95.low == pytest.approx(p95.value * np.exp(-0.1645), rel=0.05)
    assert p95.high == pytest.approx(p95.value * np.exp(0.1645), rel=0.05)
    mean = found.turn_s["mean"]
    assert mean.others.low < mean.fresh.low and mean.others.high > mean.fresh.high
    assert found.turns > 1_000


def test_the_most_agents_within_a_limit_are_found_between_those_looked_at():
    """One place: a p95 turn of N agents takes N turns, so that 1.1 s allow 5 of 0.2 s."""
    told = asked(sessions_of(chat("a", 4, 0.0)), slots=1, sigma=0.1).answer([64], 1.1)
    assert told.most.agents == 5
    assert told.most.low == 4 and told.most.high == 6
    assert [run.agents for run in told.by_agents] == sorted(run.agents for run in told.by_agents)
    assert most_within(0.1, told.by_agents).agents == 0
    assert most_within(1e6, told.by_agents).agents is None


def test_a_load_has_the_agents_in_flight_and_every_turn_of_its_sessions():
    sessions = sessions_of(chat("a", 3, 1.0), chat("b", 7, 0.5, of=100))
    load = sessions.at_once(4, 0)
    turns = load.workload.turns
    assert turns.sessions == len(np.unique(turns.session))
    assert (turns.after[: turns.sessions] == -1).all()
    later = np.arange(turns.sessions, len(turns.after))
    assert (turns.after[later] < later).all()
    assert (turns.session[turns.after[later]] == turns.session[later]).all()
    each = np.bincount(turns.session)[4:]
    assert set(each.tolist()) == {3, 7}
    run = asked(sessions).serve(load.workload, 4)
    ends = run.arrival_s + run.latency_s
    began = np.sort(run.arrival_s[: turns.sessions])
    over = np.sort([ends[turns.session == each].max() for each in range(turns.sessions)])
    # The next session begins when one is over.
    np.testing.assert_allclose(began[4:], over[: len(began) - 4], atol=1e-9)


def test_too_many_agents_are_refused_before_they_fill_the_memory():
    sessions = sessions_of(chat("a", 200, 1.0))
    with pytest.raises(UsageError, match="too many to replay"):
        partial(asked(sessions).run, 1_000)()


def test_watched_turns_find_what_they_found_of_the_last_one():
    """Nothing names their blocks. A turn begins with what it found in the cache."""
    found, turns = [0, 48, 80], []
    for number, cached in enumerate(found):
        for name in ("a", "b"):
            own = turn(number, name, 3.0 * number, 1.0, prompt=64 + 32 * number)
            turns.append(replace(own, cached_tokens=cached))
    sessions = Sessions.watched(turns, BLOCK)
    told = asked(sessions).run(2)
    assert told.cached_share.value == pytest.approx(sum(found) / (64 + 96 + 128), abs=0.02)
    assert sessions.names == ("a", "b")
    tight = asked(sessions, blocks=20).run(6)  # their last turns have 8 blocks and more each
    assert tight.cached_share.value < 0.8 * told.cached_share.value
