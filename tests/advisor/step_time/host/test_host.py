"""The host's part of a step: how it is learned, whose it is, and how it adds to the kernels."""

import dataclasses

import numpy as np
import pytest

from advisor.evidence.features import FEATURES
from advisor.step_time.cost import table_cost, with_hidden
from advisor.step_time.host.law import (
    ASYNCHRONOUS,
    BEFORE,
    OLD,
    SINCE,
    SYNCHRONOUS,
    TERMS,
    generation_of,
    host_note,
    host_part,
    kept,
)
from advisor.step_time.host.spread import ENOUGH, first_tokens_of, spread_of
from advisor.step_time.table_cost import StepTables
from benchmarks.host_fit import HostTerm, LeftOutSpread
from tests.advisor.step_time.prior.prior_files import TINY
from tests.advisor.step_time.step_costs import leap_seconds
from traces.notes import Decisive
from traces.schema.engine import EngineConfig
from traces.statistics import Z95

TRUE = {
    OLD: np.array([1.4e-3, 6e-4, 6e-5, 8e-4, 2e-8]),
    SYNCHRONOUS: np.array([5e-4, 2e-4, 2e-5, 3e-4, 0.0]),
}


def points(rng, count, name, ranks=(1, 2, 4, 8)):
    requests = rng.integers(1, 129, count)
    shared = rng.choice(ranks, count) > 1
    context = requests * rng.integers(50, 500, count) * (name == OLD)
    prompts = rng.uniform(0, 0.3, count)
    exposure = np.column_stack([np.ones(count), shared, requests, prompts, context])
    kernels = rng.uniform(3e-3, 3e-2, count)
    measured = kernels + exposure @ TRUE[name]
    return exposure, kernels, measured * np.exp(rng.normal(0, 0.01, count)), np.repeat(name, count)


def fitted(*parts):
    return HostTerm().fit(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def test_the_terms_of_each_generation_are_found():
    rng = np.random.default_rng(0)
    model = fitted(points(rng, 200, OLD), points(rng, 200, SYNCHRONOUS))
    for name, law in TRUE.items():
        assert model.seconds(name)[:3] == pytest.approx(law[:3], rel=0.15)
        assert model.seconds(name)[4] == pytest.approx(law[4], rel=0.15)  # one has it alone
    exposure, kernels, measured, names = points(rng, 50, OLD)
    assert np.abs(model.predict(exposure, kernels, names) / measured - 1).mean() < 0.015


def test_a_generation_that_ran_on_one_gpu_alone_gains_ranks_as_the_others_do():
    rng = np.random.default_rng(1)
    model = fitted(points(rng, 200, OLD), points(rng, 60, SYNCHRONOUS, ranks=(1,)))
    # About a third of the other's, as its other terms are; nothing of its own tells.
    assert model.seconds(SYNCHRONOUS)[1] == pytest.approx(2e-4, rel=0.4)
    assert np.all(model.seconds("another") >= 0) and model.seconds("another")[4] == 0


def test_points_that_are_wildly_off_do_not_move_it_and_nothing_is_negative():
    rng = np.random.default_rng(2)
    exposure, kernels, measured, names = points(rng, 200, OLD)
    measured[:10] *= 3
    model = HostTerm().fit(exposure, kernels, measured, names)
    assert model.seconds(OLD)[:3] == pytest.approx(TRUE[OLD][:3], rel=0.25)
    faster = HostTerm().fit(exposure, kernels, 0.8 * kernels, names)
    assert np.all(faster.seconds(OLD) == 0)
    with pytest.raises(ValueError, match="no points"):
        HostTerm().fit(exposure[:0], kernels[:0], measured[:0], names[:0])


@pytest.mark.parametrize(
    ("version", "scheduling", "expected"),
    [
        ("0.6.3", None, OLD),
        ("0.8.5", None, SYNCHRONOUS),
        ("0.12.0", True, ASYNCHRONOUS),
        ("0.14.0", None, ASYNCHRONOUS),
        ("v0.19.1rc2", False, SYNCHRONOUS),
        ("nightly-5b8c30d62b754b57", None, ASYNCHRONOUS),
        (None, None, ASYNCHRONOUS),
    ],
)
def test_the_generation_is_that_of_version_and_scheduling(version, scheduling, expected):
    engine = EngineConfig(model="m", vllm_version=version, async_scheduling=scheduling)
    assert generation_of(engine) == expected
    assert (0 < host_part(engine).hidden < 1) == (expected == ASYNCHRONOUS)
    assert ("schedules while kernels run" in host_note(engine)) == (expected == ASYNCHRONOUS)


def test_what_is_hidden_goes_by_the_version_that_schedules_ahead():
    each = [
        EngineConfig(model="m", vllm_version=version, async_scheduling=True)
        for version in ("0.11.0", "0.13.0", "0.14.0", "0.20.0", None)
    ]
    shares = [host_part(engine).hidden for engine in each]
    assert shares[0] == shares[1] == kept()["hidden"][BEFORE]
    assert shares[2:] == 3 * [kept()["hidden"][SINCE]]


def test_more_ranks_and_requests_take_longer():
    one = EngineConfig(model="m", vllm_version="0.12.0")
    law = kept()["seconds"][SYNCHRONOUS]
    for ranks in (2, 8):  # which read one message in shared memory
        several = dataclasses.replace(one, tensor_parallel_size=ranks)
        more = host_part(several).seconds - host_part(one).seconds
        assert more[FEATURES.index("step")] == pytest.approx(law["shared_step"])
    assert host_part(one).seconds[FEATURES.index("requests")] == law["requests"] > 0
    assert set(law) == set(TERMS)
    old = host_part(EngineConfig(model="m", vllm_version="0.6.0")).seconds
    context = FEATURES.index("kv_tokens")
    assert old[context] > host_part(one).seconds[context] == 0  # lists of all tokens, each step


def growing(hidden, *, linear=0.0, context=0.0):
    """Attention of 1 us a token of context, layers of 1 ms, and a host that may be hidden."""
    tables = StepTables(
        tokens=np.full(50, 1e-3), decode_batch=np.array([1.0, 8.0]),
        decode_kv=np.array([0.0, 1000.0, 4000.0]),
        decode=np.array([[0.0, 1e-3, 3e-3], [0.0, 2e-3, 7e-3]]), decode_skew=np.zeros(2),
    )  # fmt: skip
    law = np.zeros(len(FEATURES))
    law[FEATURES.index("requests")] = linear
    law[FEATURES.index("kv_tokens")] = context
    beside = np.zeros(len(FEATURES))
    beside[FEATURES.index("step")] = hidden
    return with_hidden(table_cost(tables, law), beside, 1.0)


def decoding(cost, steps, context, requests=4):
    kv = float(requests * (context + 1))
    return leap_seconds(
        cost, steps, requests, float(requests), kv, float(requests), context + 1.0, 1.0, False
    )


@pytest.mark.parametrize("hidden", [0.0, 5e-4, 1.9e-3, 2.4e-3, 1.0])
@pytest.mark.parametrize("context", [0, 700, 2500])
def test_a_leap_is_the_sum_of_its_steps_each_the_longer_of_host_and_kernels(hidden, context):
    cost, steps = growing(hidden, linear=1e-5), 1500
    one_by_one = sum(decoding(cost, 1, context + i) for i in range(steps))
    assert decoding(cost, steps, context) == pytest.approx(one_by_one, rel=1e-9)
    kernels = growing(0.0)
    each = sum(max(decoding(kernels, 1, context + i), hidden) for i in range(steps))
    assert one_by_one == pytest.approx(each + steps * 4e-5, rel=1e-9)
    more = decoding(growing(hidden, linear=1e-5, context=2e-8), steps, context) - one_by_one
    read = sum(4 * (context + i + 1) for i in range(steps))
    assert more == pytest.approx(2e-8 * read, rel=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_kernels_hide_a_share_of_the_host_and_no_more_than_they_take(share):
    law = np.zeros(len(FEATURES))
    kernels = growing(0.0)
    took = decoding(kernels, 1, 100)
    for host in (2e-4, 2e-3, 2e-2):
        law[FEATURES.index("step")] = host
        step = decoding(with_hidden(kernels, law, share), 1, 100)
        assert step == pytest.approx((1 - share) * host + max(took, share * host))


def test_nine_of_ten_left_out_points_lie_inside_and_clusters_weigh_alike():
    rng = np.random.default_rng(3)
    errors = rng.normal(0, 0.1, 4000)
    clusters = [str(i % 40) for i in range(4000)]
    none = np.zeros(4000)
    model = LeftOutSpread().fit(errors, none, clusters, ["near"] * 4000)
    assert model.sigma("near", none) == pytest.approx(0.1, rel=0.05)
    # A cluster of 1,000 points that fit well does not hide three that do not.
    many = np.concatenate([np.full(1000, 0.01), np.full(3, 0.5)])
    names = ["a"] * 1000 + ["b", "c", "d"]
    assert LeftOutSpread().fit(many, none[:1003], names, ["far"] * 1003).kernels_["far"] > 0.29


def test_the_spread_follows_the_hosts_share_of_a_step():
    rng = np.random.default_rng(4)
    shares = rng.uniform(0, 0.6, 4000)
    kernels, host = rng.normal(0, 0.05, 4000), rng.normal(0, 0.4, 4000)
    clusters = [str(i % 40) for i in range(4000)]
    model = LeftOutSpread().fit(
        (1 - shares) * kernels + shares * host, shares, clusters, ["near"] * 4000
    )
    found = model.sigma("near", np.array([0.0, 0.5]))
    assert found == pytest.approx([0.05, np.hypot(0.025, 0.2)], rel=0.1)


def test_what_was_never_seen_is_wider():
    engine = EngineConfig(model="m", vllm_version="0.12.0", tensor_parallel_size=2)
    seen = spread_of("h100_sxm", TINY, engine)
    assert not seen.unseen
    assert "another model on that GPU" in seen.note()
    other = spread_of("gb300", TINY, engine)
    assert other.unseen == ("the GPU",)
    assert seen.sigma(0.5) > seen.sigma(0.1)
    assert all(other.sigma(share) >= seen.sigma(share) for share in (0.0, 0.1, 0.5))
    mixture = dataclasses.replace(TINY, num_experts=8, experts_per_token=2)
    assert spread_of("h100_sxm", mixture, engine).sigma(0.0) > seen.sigma(0.0)
    many = dataclasses.replace(engine, tensor_parallel_size=64)
    assert "the number of GPUs" in spread_of("h100_sxm", TINY, many).unseen


def test_quantised_experts_of_engines_older_than_the_tables_are_as_far_off_as_they_were():
    """One model of FP8 experts on vLLM 0.12 took up to three times the tables' time."""
    eight = dataclasses.replace(TINY, num_experts=8, experts_per_token=2, quantization="fp8")
    plain = dataclasses.replace(eight, quantization=None)
    old, new = (EngineConfig(model="m", vllm_version=each) for each in ("0.12.0", "0.20.0"))
    wide = spread_of("h200_sxm", eight, old)
    assert np.exp(Z95 * wide.sigma(0.1)) > 2 and wide.few
    assert isinstance(wide.note(), Decisive) and "kernels of a newer vLLM" in wide.note()
    for facts, engine in ((plain, old), (eight, new)):
        other = spread_of("h200_sxm", facts, engine)
        assert not other.few and other.sigma(0.1) < 0.5 * wide.sigma(0.1)


def test_ttft_is_as_far_off_as_models_of_the_kind_were_or_all_where_few_were():
    engine = EngineConfig(model="m", vllm_version="0.12.0")
    own = first_tokens_of(TINY, engine)
    assert (
        own.low < 1 < own.usual < own.high
        and own.points == kept()["ttft"]["synchronous, 16-bit"]["points"]
    )
    eight = dataclasses.replace(TINY, quantization="fp8")
    later = dataclasses.replace(engine, vllm_version="0.20.0")
    few = first_tokens_of(eight, later)
    assert kept()["ttft"]["asynchronous, quantised"]["clusters"] < ENOUGH
    assert few.points == sum(each["points"] for each in kept()["ttft"].values())
    assert few.low <= own.low and few.high >= own.high
    assert "no published TTFTs are of such a model" in few.note()


def test_a_kind_of_model_that_no_point_had_is_wider_by_a_rule_and_so_is_said():
    seen = {"synchronous, 16-bit": {"systems": ["a"], "ranks": 8}}
    found = {
        f"synchronous, 16-bit, {what} left out": {"kernels": 0.1, "host": 0.3, "points": 9}
        for what in ("model", "GPU")
    }
    engine = EngineConfig(model="m", vllm_version="0.20.0")
    mixture = dataclasses.replace(TINY, num_experts=8, experts_per_token=2)
    told = spread_of("a", mixture, engine, {"seen": seen, "spread": found})
    assert (told.sigma(0.0), told.sigma(1.0)) == pytest.approx((0.15, 0.45))
    assert "mixtures of experts left out" in told.note()
    # Points of the kind in another generation say it of the kernels, but not less than dense ones
    # of its own generation, which say it of the host.
    seen["v0, experts"] = {"systems": ["a"], "ranks": 8}
    few = {"kernels": 0.2, "host": 0.0, "points": 4}
    found["v0, experts, model left out"] = few
    told = spread_of("a", mixture, engine, {"seen": seen, "spread": found})
    assert (told.kernels, told.host, told.points) == (0.2, 0.3, 4)
    few["kernels"] = 0.05
    assert spread_of("a", mixture, engine, {"seen": seen, "spread": found}).kernels == 0.1
