"""How long a batch takes that is sent at once, against the twin that runs it."""

import json
from dataclasses import replace

import numpy as np
import pytest

from advisor.replay.replay import Replicas
from advisor.what_if.predict import predict
from advisor.what_if.question import Question
from advisor.what_if.rollouts.batch import DONE
from tests.advisor.synthetic import VOTE16, engine_of, record
from traces.summary.run import summarise
from tui.text.replay import replay_json, replay_lines

PROBLEMS = 40
EIGHT = replace(VOTE16, n=8)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Eight samples at a time."""
    folder = tmp_path_factory.mktemp("few")
    return record(folder / "few", engine_of(max_num_seqs=8), EIGHT, concurrency=8)


def asked(recording, *, of=PROBLEMS, concurrency=None, replicas=None, policy=None, **changes):
    (run,) = summarise(recording)
    question = Question(
        engine=replace(run.engine, **changes), policy=policy or run.policy, batch=of,
        concurrency=concurrency, replicas=replicas or Replicas(),
    )  # fmt: skip
    return predict(recording, run, question)


def took(recording):
    """When the share of a run's problems was answered, when it ended, and its empty slots."""
    problems, samples = recording.problems, recording.samples
    begun = problems["start"].min()
    ends = np.sort((problems["end"] - begun).to_numpy()) / 1e9
    end = (samples["end"].max() - begun) / 1e9
    steps = recording.steps
    held = ((steps["prefill_requests"] + steps["decode_requests"]) * steps["wall_ns"]).sum() / 1e9
    (engine,) = recording.manifest.engines.values()
    done = {name: ends[int(np.ceil(share * len(ends))) - 1] for name, share in DONE.items()}
    return done, end, 1 - held / engine.max_num_seqs / end


@pytest.mark.parametrize("seqs", [8, 32, 64])
def test_a_batch_on_another_engine_takes_as_long_as_the_twin_takes_for_it(few, tmp_path, seqs):
    """Others are asked, of the same law, so that their lengths differ."""
    ran = record(tmp_path / f"ran{seqs}", engine_of(max_num_seqs=seqs), EIGHT, concurrency=PROBLEMS)
    done, end, empty = took(ran)
    _, batch = asked(few, max_num_seqs=seqs).batch
    assert batch.end_s.value == pytest.approx(end, rel=0.07)
    assert batch.idle_slots_share.value == pytest.approx(empty, abs=0.05)
    for name, wanted in done.items():
        assert batch.done_s[name].value == pytest.approx(wanted, rel=0.1)
    assert batch.end_s.low < batch.end_s.value < batch.end_s.high
    assert batch.idle_share.value == 0  # of one replica


def test_parts_are_answered_one_after_another_and_the_tail_is_what_follows_nine_in_ten(few):
    was, batch = asked(few, of=100, max_num_seqs=32).batch
    for each in (was, batch):
        values = [each.done_s[name].value for name in DONE]
        assert values == sorted(values) and values[-1] <= each.end_s.value
        tail = 1 - each.done_s["p90"].value / each.end_s.value
        assert each.tail_share.value == pytest.approx(tail, abs=0.01)
    assert (batch.problems, batch.samples, batch.concurrency) == (100, 8, None)
    assert was.end_s.value > batch.end_s.value


def test_a_larger_batch_takes_in_proportion_where_slots_are_full(few):
    _, one = asked(few, of=PROBLEMS).batch
    _, four = asked(few, of=4 * PROBLEMS).batch
    assert four.end_s.value == pytest.approx(4 * one.end_s.value, rel=0.08)


def test_so_many_at_a_time_take_no_less_than_all_at_once(few):
    _, once = asked(few, of=64, max_num_seqs=64).batch
    _, few_at_a_time = asked(few, of=64, concurrency=2, max_num_seqs=64).batch
    assert few_at_a_time.concurrency == 2
    assert few_at_a_time.end_s.value > 1.5 * once.end_s.value


def test_replicas_stand_idle_while_the_last_one_ends(few):
    _, batch = asked(few, of=9, replicas=Replicas(count=4, together=True)).batch
    assert 0.02 < batch.idle_share.value < 0.75
    _, one = asked(few, of=9).batch
    assert one.idle_share.value == 0
    assert one.end_s.value > batch.end_s.value


def test_fewer_samples_of_a_problem_are_fewer_of_the_batch(few):
    _, batch = asked(few, policy=replace(EIGHT, n=2)).batch
    assert batch.samples == 2
    _, whole = asked(few).batch
    assert batch.end_s.value < 0.5 * whole.end_s.value


def test_the_batch_is_printed_and_in_the_document(few):
    prediction = asked(few, of=64, max_num_seqs=32)
    lines = list(replay_lines(prediction, Question(engine=few.manifest.engines[
        next(iter(few.manifest.engines))], policy=EIGHT, batch=64)))  # fmt: skip
    assert "batch of 64 problems of 8 samples, all sent at once" in lines
    assert max(map(len, lines)) <= 80
    document = json.loads(json.dumps(replay_json(prediction)))
    assert document["batch"]["after"]["done_s"]["p90"]["unit"] == "s"
    assert document["batch"]["before"]["problems"] == 64
