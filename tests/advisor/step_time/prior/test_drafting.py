"""Drafting on a GPU that was not measured: what it takes, and up to which batch it pays."""

import dataclasses
import re
from types import SimpleNamespace

import numpy as np
import pytest

from advisor.evidence.features import Features
from advisor.evidence.runs import ProblemRun, Sample
from advisor.step_time.host.law import host_part
from advisor.step_time.prior.defaults import Device, memory_of
from advisor.step_time.prior.drafting import drafter_in, drafting_of, step_seconds
from advisor.step_time.prior.offers import memory_on
from advisor.step_time.prior.prior import prior_of
from advisor.step_time.prior.recalibration import PriorTimes, Recalibration
from advisor.step_time.prior.tables import read_prior
from advisor.what_if.drafts.published import KNOWN, published
from tests.advisor.step_time.prior.kinds_files import HEADS, layer, model, write_kinds
from tests.advisor.step_time.prior.prior_files import TINY, write_prior
from tests.advisor.step_time.step_costs import step_seconds as priced_step
from traces.errors import UsageError
from traces.schema.engine import EngineConfig, Speculative

ONE = np.ones(1)


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    return read_prior("test_gpu", write_kinds(write_prior(tmp_path_factory.mktemp("drafts"))))


def asked(method, k=2, name=None):
    wanted = Speculative(method=method, num_speculative_tokens=k, model=name)
    return EngineConfig(
        model="tiny", speculative=wanted, max_num_seqs=16, max_num_batched_tokens=256
    )


def test_a_draft_model_takes_its_own_steps_one_after_another(tables):
    small = dataclasses.replace(TINY, name="small", num_hidden_layers=1)
    found = {
        k: drafting_of(tables, TINY, asked("draft_model", k, "small"), {"small": small})
        for k in (1, 2, 3)
    }
    alone = prior_of(tables, small, EngineConfig(model="small"))
    step = step_seconds(alone, ONE, ONE, ONE)[0]
    times = {k: each.launch_s + each.each_s for k, each in found.items()}
    assert times[3] - times[2] == pytest.approx(step, rel=0.1)
    assert times[1] == pytest.approx(step, rel=0.1)
    assert "small, by its own layers" in found[1].what


def test_an_mtp_layer_is_the_last_and_its_logits(tables):
    mixture = model(layer(4))
    found = drafting_of(tables, mixture, asked("mtp", 1), {})
    target = prior_of(tables, mixture, EngineConfig(model="kinds"))
    whole = step_seconds(target, ONE, ONE, ONE)[0]
    assert whole / 8 < found.launch_s + found.each_s < whole
    assert "an MTP layer" in found.what
    assert "EAGLE head" in drafting_of(tables, mixture, asked("eagle3", 1), {}).what


def test_lookup_takes_nothing_of_the_gpu_and_says_what_is_left_out(tables):
    found = drafting_of(tables, TINY, asked("ngram"), {})
    assert (found.launch_s, found.each_s) == (0.0, 0.0)
    assert "on the host" in found.what
    assert drafting_of(tables, TINY, EngineConfig(model="tiny"), {}) is None


def test_a_drafter_that_is_not_known_is_one_line(tables):
    with pytest.raises(UsageError, match="what the draft model other weighs is not known"):
        drafting_of(tables, TINY, asked("draft_model", 2, "other"), {})


def test_a_step_with_drafts_has_the_drafters_time(tables):
    small = dataclasses.replace(TINY, name="small", num_hidden_layers=1)
    engine = asked("draft_model", 2, "small")
    times = PriorTimes(tables=tables, facts=TINY, found=None, models={"small": small})
    cost, drafting = times.times(engine, 0).cost, times.drafting(engine)
    with_drafts, without = (
        priced_step(cost, 0, 0, 0.0, 0.0, 0.0, 4, 12.0, 4 * 256.0, 256.0, speculative)
        for speculative in (True, False)
    )
    host = Features(*host_part(engine).seconds.tolist()).draft_requests
    assert host > 0  # of each draft as of a request: such small kernels hide none of it
    assert with_drafts - without == pytest.approx(drafting.launch_s + 4 * (drafting.each_s + host))


def test_what_recordings_say_of_the_gpu_holds_for_a_drafter_too(tables):
    small = dataclasses.replace(TINY, name="small", num_hidden_layers=1)
    found = Recalibration(
        families={}, step=1.5, sigma=0.1, checked=frozenset(), recordings=("run",)
    )
    as_told, scaled = (
        PriorTimes(tables=tables, facts=TINY, found=each, models={"small": small}).drafting(
            asked("draft_model", 2, "small")
        )
        for each in (None, found)
    )
    assert scaled.launch_s == pytest.approx(1.5 * as_told.launch_s)
    assert scaled.each_s == pytest.approx(1.5 * as_told.each_s)


def test_the_last_stage_of_a_pipeline_drafts(tables):
    engine = asked("mtp", 1)
    staged = dataclasses.replace(engine, pipeline_parallel_size=2)
    one, two = (drafting_of(tables, model(layer(4)), each, {}) for each in (engine, staged))
    assert one == two


def taken(facts, engine, models=None):
    """Return weights and bytes of a token on a GPU, with what drafts and without it."""
    device = Device(name="g", memory_bytes=64e9)
    drafter = drafter_in(engine, facts, models or {})
    found = [memory_of(device, engine, facts, drafter=each) for each in (drafter, None)]
    return [(each.weights, each.token, each.drafter) for each in found]


def test_a_draft_model_takes_weights_and_cache_beside_the_model():
    small = dataclasses.replace(TINY, name="small", num_hidden_layers=1, total_parameters=3_000_000)
    engine = dataclasses.replace(asked("draft_model", 2, "small"), tensor_parallel_size=2)
    told, alone = taken(TINY, engine, {"small": small})
    assert told[0] - alone[0] == pytest.approx(2 * 3_000_000 / 2)
    assert told[2] == pytest.approx(2 * 3_000_000 / 2)
    assert told[1] - alone[1] == pytest.approx(2 * 2 * 64 * 2)  # of the two heads of a GPU
    staged, one = taken(TINY, dataclasses.replace(engine, pipeline_parallel_size=2),
                        {"small": small})  # fmt: skip
    assert staged[0] - one[0] == pytest.approx(told[0] - alone[0])  # a stage has all of it
    assert staged[1] - one[1] == pytest.approx(told[1] - alone[1])


def test_an_mtp_layer_takes_as_much_as_the_last_and_shares_embedding_and_logits():
    mixture = model(layer(4))
    told, alone = taken(mixture, asked("mtp", 1))
    joined = 2 * 512 * 512 * 2
    assert told[0] - alone[0] == pytest.approx(mixture.weight_bytes / 4 + joined)
    assert told[1] == pytest.approx(alone[1] * 5 / 4)
    eagle, alone = taken(mixture, asked("eagle3", 1))
    assert 0 < eagle[2] < mixture.weight_bytes
    assert eagle[1] - alone[1] == 2 * 8 * 128 * 2  # a layer of eight KV heads of 128
    assert taken(mixture, asked("ngram"))[0] == taken(mixture, asked("ngram"))[1]


def test_layers_of_one_kind_take_what_each_keeps():
    wide = layer(2, attention=dataclasses.replace(HEADS, kv_heads=8))
    both = taken(model(layer(2), wide), EngineConfig(model="m"))[0]
    assert both[1] == 2 * (2 * 4 * 64 * 2) + 2 * (2 * 8 * 64 * 2)


def test_memory_of_a_drafter_that_is_not_known_is_refused(tables):
    with pytest.raises(UsageError, match="what the draft model other weighs is not known"):
        memory_on(tables, asked("draft_model", 2, "other"), TINY)


def test_drafts_pay_until_verifying_costs_more_than_it_gives(tables, tmp_path):
    """With the host's part, and no more than the engine runs at once."""
    times = PriorTimes(tables=tables, facts=TINY, found=None)
    lookup = dataclasses.replace(asked("ngram", 3), max_num_seqs=512)
    head = dataclasses.replace(asked("eagle3", 3), max_num_seqs=512)

    def told(engine, *kept):
        sample = Sample(
            output_tokens=1 + sum(kept), answer=None, correct=None,
            scheduled=np.full(len(kept), 4), advance=np.array(kept),
        )  # fmt: skip
        problem = ProblemRun(
            problem_id="p", arrival_ns=0, prompt_tokens=20, cached_tokens=0, latency_s=1.0,
            samples=(sample,), indices=(0,),
        )  # fmt: skip
        return times.pays(engine, [SimpleNamespace(samples=[sample], problems={"p": problem})])

    assert "give 3.00 tokens a step, pay at all batches up to 512" in told(lookup, 3)
    assert "do not pay even for one request" in told(head, 1)
    many = told(head, 2)
    up_to = re.search(r"pay up to ([\d,]+) requests at a time \(x(\S+) alone, x(\S+) with", many)
    assert 1 <= int(up_to[1].replace(",", "")) < 512
    assert float(up_to[3]) <= 1.0 < float(up_to[2])
    assert times.pays(dataclasses.replace(head, speculative=None), []) is None


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.name)
def test_published_chances_give_the_published_lengths(known):
    chances = known.chances.pooled
    assert ((chances > 0) & (chances <= 1)).all()
    lengths = 1 + np.cumsum(np.cumprod(chances))
    best = np.maximum.accumulate(known.lengths)
    np.testing.assert_allclose(lengths, best, atol=0.03)  # the last of one fell and rose


def test_published_is_asked_by_model_and_method():
    eagle = Speculative(method="eagle3", num_speculative_tokens=3)
    assert published("moonshotai/Kimi-K2.5", eagle).name == "Kimi-K2.5 with EAGLE-3"
    assert published("Qwen/Qwen3-8B", eagle) is None
