"""How many tokens to draft at which batch, of engines whose law is known."""

import dataclasses

import numpy as np
import pytest

from advisor.evidence.features import Features
from advisor.what_if.drafts.by_batch import WORTH, all_drafts_by_batch
from advisor.what_if.drafts.redrafting import read_acceptance
from advisor.what_if.predict import predict
from advisor.what_if.question import Question
from tests.advisor.synthetic import GREEDY, NGRAM, engine_of, law_of, record
from traces.errors import UsageError
from traces.schema.engine import Speculative
from traces.summary.run import summarise

DRAFT = Speculative(method="draft_model", model="small", num_speculative_tokens=4)
EAGLE = Speculative(method="eagle3", num_speculative_tokens=3)
ACCEPTANCE = (0.58, 0.31, 0.12)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Steps of 1 to 32 requests, with drafts and without."""
    folder = tmp_path_factory.mktemp("drafts")
    return [
        record(folder / f"{name}{load}", engine_of("large", speculative=drafts), GREEDY,
               concurrency=load, problems=40)
        for name, drafts in (("plain", None), ("drafts", DRAFT))
        for load in (2, 32)
    ]  # fmt: skip


def gain(k, kept, requests, context):
    """Tokens of a second with drafts of k over those without, by the law of the engine."""

    def seconds(tokens, drafts):
        engine = engine_of("large", speculative=DRAFT.fixed(drafts) if drafts else None)
        step = Features(*np.zeros(len(Features._fields)))._replace(
            step=1, requests=requests, tokens=tokens * requests, kv_tokens=requests * context,
            query_context=requests * context * tokens, draft_step=drafts > 0,
            draft_requests=requests * (drafts > 0),
        )  # fmt: skip
        return float(np.array(step) @ law_of(engine))

    return kept * seconds(1, 0) / seconds(k + 1, k)


def test_the_speed_of_each_batch_is_that_of_the_law_of_steps(recordings):
    (drafts,), without = all_drafts_by_batch(recordings)
    assert not without
    assert drafts.ranges[0].low == 1 and drafts.ranges[-1].high == 32
    for each in drafts.ranges:
        k = each.num_speculative_tokens
        for requests, told in zip((each.low, each.high), each.gain, strict=True):
            truth = gain(k, each.tokens_per_step.value, requests, drafts.context_tokens)
            assert told.value == pytest.approx(truth, rel=0.05)
            assert not k or told.low < truth < told.high


def test_the_best_draft_is_no_slower_than_none_or_any_other_that_ran(recordings, tmp_path):
    """Passes of a drafter have a fixed part, so that lengths that did not run are not tried."""
    short = record(
        tmp_path / "short", engine_of("large", speculative=DRAFT.fixed(1)), GREEDY, concurrency=32
    )
    (drafts,), _ = all_drafts_by_batch([*recordings, short])
    assert {each.num_speculative_tokens for each in drafts.ranges} <= {0, 1, 4}
    kept = {0: 1.0}
    for k in (1, 4):
        (alone,), _ = all_drafts_by_batch([*recordings, short], speculative=DRAFT.fixed(k))
        kept |= {each.num_speculative_tokens: each.tokens_per_step.value for each in alone.ranges}
    for each in drafts.ranges:
        k, tokens = each.num_speculative_tokens, each.tokens_per_step.value
        own = gain(k, tokens, each.low, drafts.context_tokens)
        others = [gain(k, kept[k], each.low, drafts.context_tokens) for k in kept]
        assert own > 0.97 * max(others)


def test_an_acceptance_that_was_given_says_what_is_kept(recordings):
    (drafts,), _ = all_drafts_by_batch(recordings, speculative=DRAFT, acceptance=ACCEPTANCE)
    by_length = {each.num_speculative_tokens: each.tokens_per_step for each in drafts.ranges}
    wanted = 1 + np.cumsum((0.0, *ACCEPTANCE))
    for k, tokens in by_length.items():
        if 0 < k <= 3:  # the last step of a sample is cut, so that a little less is kept
            assert tokens.value == pytest.approx(wanted[k], rel=0.04)
            assert not tokens.extrapolated
    assert drafts.ranges[-1].gain[1].value >= 1.0


def test_drafts_of_which_nothing_is_kept_never_pay(recordings):
    (drafts,), _ = all_drafts_by_batch(recordings, speculative=DRAFT, acceptance=(0.0,))
    assert drafts.schedule == [[1, 32, 0]]
    assert drafts.stops_paying_at == 1
    assert drafts.served.speculative is None


def test_the_engine_that_is_served_drafts_by_batch_as_vllm_takes_it(recordings):
    (drafts,), _ = all_drafts_by_batch(recordings, speculative=DRAFT, acceptance=(0.2, 0.02))
    served = drafts.served.speculative
    lengths = [k for *_, k in drafts.schedule]
    assert len(lengths) == 1 or served.num_speculative_tokens == max(lengths)
    if len(lengths) > 1:
        ranges = [list(each) for each in served.num_speculative_tokens_per_batch_size]
        assert ranges == drafts.schedule
    for each in drafts.ranges:
        assert not each.num_speculative_tokens or each.gain[0].value >= WORTH


def test_steps_that_never_ran_with_drafts_are_refused_with_the_command(recordings):
    with pytest.raises(UsageError, match="ttscope record --model large --speculative"):
        all_drafts_by_batch(recordings[:2], speculative=EAGLE, acceptance=ACCEPTANCE)
    with pytest.raises(UsageError, match="no draft was recorded"):
        all_drafts_by_batch(recordings[:2])


def test_batches_beyond_the_recorded_ones_are_marked(recordings):
    few = [recordings[0], recordings[2]]
    (drafts,), _ = all_drafts_by_batch(few)
    assert not drafts.ranges[0].gain[0].extrapolated
    last = drafts.ranges[-1]
    assert last.gain[1].extrapolated or not last.num_speculative_tokens


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1.2", "position 1 has 1.2, and shares are from 0 to 1"),
        (".5,.6", "position 2 has 0.6, more than the 0.5 before it"),
        ("-.1", "position 1 has -0.1"),
        (".5,x", "give the share kept at each position, such as .58,.31,.12"),
        ("", "give the share kept"),
        ("nan", "position 1 has nan"),
    ],
)
def test_an_acceptance_that_cannot_be_is_refused(text, words):
    with pytest.raises(UsageError) as caught:
        read_acceptance(text)
    assert words in str(caught.value)


def test_replay_draws_by_an_acceptance_that_was_given(recordings):
    """Also where drafts of that length were recorded."""
    plain, drafted = recordings[0], recordings[2]
    (run,) = summarise(plain)
    engine = dataclasses.replace(run.engine, speculative=DRAFT.fixed(3))
    asked = Question(engine=engine, policy=run.policy, acceptance=ACCEPTANCE)
    told = predict(plain, run, asked, [drafted])
    steps = told.tables["steps"]
    decoded = steps["decode_tokens"].sum() / steps["decode_requests"].sum()
    assert decoded == pytest.approx(4, abs=0.01)
    assert any("the acceptance that was given" in note for note in told.notes)
    never = dataclasses.replace(asked, acceptance=(0.0,))
    assert (
        predict(plain, run, never, [drafted]).predicted.latency_s["mean"].value
        > told.predicted.latency_s["mean"].value
    )
    with pytest.raises(UsageError, match="--acceptance goes with drafts"):
        predict(plain, run, dataclasses.replace(asked, engine=run.engine))


def test_drafts_by_batch_are_not_replayed_otherwise_than_recorded(recordings):
    (run,) = summarise(recordings[0])
    ranges = ((1, 8, 3), (9, 32, 1))
    drafts = dataclasses.replace(DRAFT, num_speculative_tokens_per_batch_size=ranges)
    asked = Question(engine=dataclasses.replace(run.engine, speculative=drafts), policy=run.policy)
    with pytest.raises(UsageError, match="whose length goes by batch"):
        predict(recordings[0], run, asked, recordings[2:])


def test_lookup_that_was_counted_needs_steps_that_verify(tmp_path):
    lookup = dataclasses.replace(NGRAM, prompt_lookup_min=2, prompt_lookup_max=4)
    plain = record(tmp_path / "plain", engine_of("small"), GREEDY, lookups=True)
    with pytest.raises(UsageError, match="was never recorded"):
        all_drafts_by_batch([plain], speculative=lookup)
    looked = record(tmp_path / "ngram", engine_of("small", speculative=lookup), GREEDY)
    (drafts,), _ = all_drafts_by_batch([plain, looked])
    assert drafts.speculative == lookup
    assert drafts.engine == engine_of("small")
