"""GPUs that were not measured in the advice: what is offered, how sure, and what it is called."""

import dataclasses

import numpy as np
import pytest
import yaml

from advisor.advice import feasible
from advisor.advice.advisor import Advisor
from advisor.evidence.features import FEATURES
from advisor.step_time.host.law import HostPart
from advisor.step_time.host.spread import spread_of
from advisor.step_time.prior import recalibration
from advisor.step_time.prior import tables as prior_tables
from advisor.step_time.prior.defaults import usual_limits
from advisor.step_time.prior.recalibration import OTHER_SIZE
from advisor.what_if.predict import predict
from advisor.what_if.question import Question
from tests.advisor.asking import predicted
from tests.advisor.step_time.prior import prior_files
from tests.advisor.step_time.prior.prior_files import DEVICE, TINY, write_prior
from tests.advisor.step_time.prior.test_recalibration import measured
from tests.advisor.synthetic import GREEDY, NGRAM, VOTE16, engine_of, record
from traces.errors import UsageError
from traces.recording.reader import Recording
from traces.schema.advice import Budget
from traces.summary.run import summarise

pytestmark = pytest.mark.slow

# Of products that tensor parallelism is worth its all-reduces for.
WIDE = dataclasses.replace(
    TINY, name="small", hidden_size=4096, intermediate_size=16384, total_parameters=1_000_000_000
)
NARROW = dataclasses.replace(TINY, name="small")
PRICES = (("Test 1", 2.0), ("CPU", 0.1))


def alone(patch, folder):
    """The small tables, and kernels alone: beside their microseconds the host would decide all."""
    patch.setattr(prior_tables, "tables_folder", lambda: folder)
    nothing = HostPart(seconds=np.zeros(len(FEATURES)), hidden=0.0)
    patch.setattr(recalibration, "host_part", lambda engine: nothing)


@pytest.fixture(autouse=True)
def tables(made_tables, monkeypatch):
    alone(monkeypatch, made_tables)


def of_model(folder, facts, *, engine=None, policy=VOTE16, **changes):
    """A recording of a model with these facts, on a processor."""
    made = record(
        folder, engine or engine_of(), policy, **{"problems": 12, "concurrency": 1} | changes
    )
    dataclasses.replace(made.manifest, models={"small": facts}).write(made.path)
    return Recording.open(made.path)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    return of_model(tmp_path_factory.mktemp("wide") / "wide", WIDE)


@pytest.fixture(scope="module")
def advisor(wide, made_tables):
    with pytest.MonkeyPatch.context() as patch:
        alone(patch, made_tables)
        return Advisor.fit([wide], gpus=["test_gpu"])


def offered(advisor):
    return [kind for kind in advisor.space.kinds if kind.prior is not None]


def test_every_size_that_can_be_priced_is_offered_beside_what_was_recorded(advisor):
    kinds = offered(advisor)
    assert {kind.engine.tensor_parallel_size for kind in kinds} == {1, 2, 4}
    assert {kind.prior for kind in kinds} == {"test_gpu"}
    assert {kind.engine.gpu for kind in kinds} == {DEVICE}
    recorded = [kind for kind in advisor.space.kinds if kind.prior is None]
    assert {kind.policy for kind in kinds} == {kind.policy for kind in recorded}
    # Eight GPUs: no all-reduce of so many is in the tables.
    (why,) = (w for w in advisor.space.dropped if "no all-reduce of 8 GPUs" in w)
    assert advisor.space.dropped[why] == len({k.policy for k in kinds}) * 36
    # 36 limits: up to vLLM's own on a GPU of this memory, which is not told.
    limits = {(c.engine.max_num_seqs, c.engine.max_num_batched_tokens) for c in (
        advisor.space.candidate(row) for row in range(len(advisor.space))
    ) if c.prior is not None}  # fmt: skip
    assert max(limits) == (256, 2048)


def test_latency_asks_for_more_gpus_and_cost_for_one(advisor):
    budgets = [Budget(optimise=name, max_gpus=8, prices=PRICES[:1]) for name in ("latency", "cost")]
    fast, cheap = (advisor.recommend(each).system_optimal for each in budgets)
    assert (fast.engine.tensor_parallel_size, cheap.engine.tensor_parallel_size) == (4, 1)
    assert fast.prior == cheap.prior == "test_gpu"
    assert "--tensor-parallel-size 4" in fast.command
    for name in ("latency_s", "device_s", "cost_usd", "throughput_problems_per_s"):
        assert not fast.estimates[name].extrapolated  # the tables hold it
    assert not fast.estimates["tokens"].extrapolated
    assert fast.estimates["energy_j"].low < fast.estimates["energy_j"].high


def test_a_recorded_price_is_not_that_of_another_gpu(tmp_path):
    priced = of_model(tmp_path / "priced", WIDE, price_usd_per_device_hour=0.5)
    advisor = Advisor.fit([priced], gpus=["test_gpu"])
    fast, cheap = (
        advisor.recommend(Budget(optimise=name, max_gpus=8)).system_optimal
        for name in ("latency", "cost")
    )
    assert fast.prior == "test_gpu"
    assert fast.estimates["cost_usd"] is None
    assert cheap.prior is None
    assert cheap.estimates["cost_usd"].value > 0
    given = Budget(optimise="latency", max_gpus=8, price_usd_per_device_hour=2.0)
    assert advisor.recommend(given).system_optimal.estimates["cost_usd"].value > 0


def test_a_small_model_gains_nothing_from_more_gpus(tmp_path):
    advisor = Advisor.fit([of_model(tmp_path / "narrow", NARROW)], gpus=["test_gpu"])
    found = advisor.recommend(Budget(optimise="latency", max_gpus=8)).system_optimal
    assert (found.prior, found.engine.tensor_parallel_size) == ("test_gpu", 1)


def test_the_answer_says_what_is_prior_and_how_wrong_it_may_be(advisor):
    answer = advisor.recommend(Budget(optimise="latency", max_gpus=8))
    told = " ".join(answer.reasons)
    assert "not measured: they come from the prior (test_gpu, vLLM 0.9.0)" in told
    assert "No run of this GPU has checked" in told
    told += " ".join(each.pick or "" for each in answer.sensitivity)
    assert "times by the prior of test_gpu, not measured" in told
    latency = answer.system_optimal.estimates["latency_s"]
    # The interval is at least that of the published runs that were left out.
    width = np.exp(1.6 * spread_of("test_gpu", WIDE, answer.system_optimal.engine).sigma(0.0))
    assert latency.high / latency.low > 0.95 * width**2


def test_recorded_and_prior_are_never_one_law(advisor):
    laws = {id(advisor.model.law(kind.engine)): kind.prior for kind in advisor.space.kinds}
    assert sorted(map(str, laws.values())) == ["None", "test_gpu", "test_gpu", "test_gpu"]
    recorded = [k for k in advisor.space.kinds if k.prior is None]
    law = advisor.model.law(recorded[0].engine)
    assert law.prior is None
    engine = offered(advisor)[0].engine
    assert advisor.model.law(engine).sigma >= spread_of("test_gpu", WIDE, engine).sigma(0.0)


@pytest.mark.parametrize("size", [1, 4])
def test_times_are_those_that_a_replay_on_the_gpu_gives(advisor, wide, size):
    rows = [
        row
        for row in range(len(advisor.space))
        if (c := advisor.space.candidate(row)).prior is not None
        and c.engine.tensor_parallel_size == size
        and c.policy == VOTE16
        and (c.engine.max_num_seqs, c.engine.max_num_batched_tokens) == (32, 512)
        and c.engine.data_parallel_size == 1
    ]
    (row,) = rows
    mine = advisor.replays.of(row, concurrency=1, rate_per_s=None)
    run = summarise(wide)[0]
    engine = dataclasses.replace(advisor.space.candidate(row).engine, max_model_len=1024)
    found = predict(wide, run, Question(engine=engine, policy=VOTE16, gpu="test_gpu"))
    told = found.predicted.latency_s["mean"]
    assert mine.latency_s.mean() == pytest.approx(told.value, rel=1e-3)
    closed_form = advisor.under(None).closed_form
    assert closed_form.latency_s[row] == pytest.approx(told.value, rel=0.15)


def test_of_equals_the_gpu_has_its_own_limit_of_tokens(advisor, monkeypatch):
    """However little others save, as where all that cost less than 10 times as much are equal."""
    monkeypatch.setattr(feasible, "TOLD", 10.0)
    for goal in ("latency", "cost"):
        answer = advisor.recommend(Budget(optimise=goal, max_gpus=8, prices=PRICES[:1]))
        assert answer.system_optimal.engine.max_num_batched_tokens == 2048
        assert not any("max_num_batched_tokens" in reason for reason in answer.reasons)


def test_what_the_tables_do_not_hold_is_marked_as_in_a_replay(wide, tmp_path, monkeypatch):
    monkeypatch.setattr(prior_files, "CONTEXTS", (1, 15, 63))  # tokens, fewer than recorded
    folder = write_prior(tmp_path)
    monkeypatch.setattr(prior_tables, "tables_folder", lambda: folder)
    pick = Advisor.fit([wide], gpus=["test_gpu"]).recommend(Budget(optimise="latency"))
    pick = pick.system_optimal
    assert pick.prior == "test_gpu" and pick.estimates["latency_s"].extrapolated
    engine = dataclasses.replace(pick.engine, max_model_len=1024)
    question = Question(engine=engine, policy=pick.policy, gpu="test_gpu")
    found = predict(wide, summarise(wide)[0], question)
    assert found.predicted.latency_s["mean"].extrapolated
    assert any("outside what the tables measured" in note for note in found.notes)


def test_of_equal_limits_vllms_own_come_first(wide):
    space = Advisor.fit([wide], gpus=["test_gpu"]).space
    offered = next(place for place, kind in enumerate(space.kinds) if kind.prior is not None)
    rows = np.flatnonzero((space.kind == offered) & space.alone)
    first = rows[space.preferred[rows].argmin()]
    own = usual_limits(dataclasses.replace(space.kinds[offered].engine, mode="server"))
    assert [space.max_num_seqs[first], space.max_num_batched_tokens[first]] == own
    assert own[0] > space.max_num_seqs[rows].min() and own[1] > min(
        space.max_num_batched_tokens[rows]
    )


def test_of_limits_that_make_no_difference_the_pick_has_those_nearest_to_vllms_own(wide):
    advisor = Advisor.fit([wide], gpus=["test_gpu"], draws=100)
    budget = Budget(min_accuracy=0.1)
    pick = advisor.recommend(budget).system_optimal
    check = advisor.check(budget)
    row, rows = check.best(), np.array(check.metrics.rows)
    space, own = advisor.space, rows[check.best()]
    assert pick.prior is not None
    alike = check.fits & (space.kind[rows] == space.kind[own])
    alike &= space.replicas[rows] == space.replicas[own]
    alike &= check.cost <= check.cost[row] * (1 + feasible.TOLD)
    assert alike.sum() > 1
    assert space.unusual[own] == space.unusual[rows][alike].min() < space.unusual[rows].max()


def test_memory_rules_out_what_does_not_fit(wide, tmp_path, monkeypatch):
    write_prior(tmp_path)
    file = tmp_path / "test_gpu.yaml"
    plain = yaml.safe_load(file.read_text())
    misc = {"other_mem": 200e6, "nccl_mem": {2: 50e6, 4: 50e6}}
    # 0.92 of it less 0.2 GB: room for half of the weights and some of the cache.
    plain = {"gpu": plain["gpu"] | {"mem_capacity": 2e9}, "misc": misc}
    file.write_text(yaml.safe_dump(plain))
    monkeypatch.setattr(prior_tables, "tables_folder", lambda: tmp_path)
    advisor = Advisor.fit([wide], gpus=["test_gpu"])
    assert {k.engine.tensor_parallel_size for k in offered(advisor)} == {2, 4}
    assert any("tensor_parallel_size 1 does not fit" in why for why in advisor.space.dropped)
    blocks = {k.engine.tensor_parallel_size: k.engine.num_gpu_blocks for k in offered(advisor)}
    per_block = 16 * WIDE.kv_bytes_per_token
    assert blocks[2] == int((1.84e9 - 250e6 - 1e9) // (per_block / 2))
    assert blocks[4] == int((1.84e9 - 250e6 - 0.5e9) // (per_block / 4))

    # A replay there has the same blocks, and says the sum where it does not fit.
    def there(size, *changes):
        return predicted(wide, f"engine.tensor_parallel_size={size}", *changes, gpu="test_gpu")

    for size in (2, 4):
        found = there(size)
        assert found.predicted.engine.num_gpu_blocks == blocks[size]
        (note,) = (note for note in found.notes if note.startswith("num_gpu_blocks"))
        assert f"num_gpu_blocks {blocks[size]:,} by a rule: on each GPU 0.92 x 2.0 GB" in note
    whole = r"0\.92 x 2\.0 GB of memory less weights of 2\.0 GB and 0\.2 GB .* \(-0\.4 GB\)"
    with pytest.raises(UsageError, match=whole):
        there(1)
    with pytest.raises(UsageError, match="a sequence of max_model_len 400,000 needs 0.8 GB"):
        there(2, "engine.max_model_len=400000")
    with pytest.raises(UsageError, match=r"num_gpu_blocks=31,000 .* are 2\.0 GB of 2\.0 GB"):
        there(2, "engine.num_gpu_blocks=31000")


def test_what_was_measured_there_is_not_offered_and_recalibrates_the_rest(wide, tmp_path):
    changes = ("engine.enforce_eager=false", "engine.async_scheduling=true")
    prior = predicted(wide, *changes, gpu="test_gpu")
    there = measured(prior, tmp_path / "there", 1.3)
    (engine,) = there.manifest.engines.values()
    facts = {engine.model: WIDE}
    dataclasses.replace(there.manifest, models=facts, concurrency=1).write(there.path)
    there = Recording.open(there.path)
    both = Advisor.fit([wide, there], gpus=["test_gpu"])
    kinds = offered(both)
    assert {kind.engine.tensor_parallel_size for kind in kinds} == {2, 4}
    law = both.model.law(kinds[0].engine)
    assert law.prior.recordings == ("there",)
    alone = Advisor.fit([wide], gpus=["test_gpu"])
    size = kinds[0].engine.tensor_parallel_size
    (same,) = {
        id(alone.model.law(k.engine)): k for k in offered(alone)
        if k.engine.tensor_parallel_size == size
    }.values()  # fmt: skip
    assert law.seconds.sum() == pytest.approx(
        1.3 * alone.model.law(same.engine).seconds.sum(), rel=0.1
    )
    wrong = np.hypot(0.07, np.log(1.3))
    assert law.sigma == pytest.approx(np.hypot(wrong, OTHER_SIZE), rel=0.1)
    answer = both.recommend(Budget(optimise="latency", max_gpus=8))
    assert answer.system_optimal.prior == "test_gpu"
    assert "recalibrated by there" in " ".join(answer.reasons)


def test_kept_laws_hold_no_prior(wide, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for _ in range(2):
        assert len(offered(Advisor.fit([wide], gpus=["test_gpu"]))) > 0
    (kept,) = tmp_path.glob("ttscope/laws/*.json")
    assert "test_gpu" not in kept.read_text()
    assert DEVICE not in kept.read_text()


def test_what_cannot_be_offered_is_said(tmp_path, wide):
    with pytest.raises(UsageError, match="--gpu h100: no operator tables. Did you mean h100_pcie"):
        Advisor.fit([wide], gpus=["h100"])
    unknown = of_model(
        tmp_path / "unknown", dataclasses.replace(WIDE, architecture="OtherForCausalLM")
    )
    with pytest.raises(
        UsageError, match=r"--gpu test_gpu: nothing can be offered.*OtherForCausalLM"
    ):
        Advisor.fit([unknown], gpus=["test_gpu"])
    whole = of_model(tmp_path / "whole", WIDE, engine=engine_of(dtype="float32"))
    with pytest.raises(UsageError, match="recorded in float32, and the tables are bfloat16's"):
        Advisor.fit([whole], gpus=["test_gpu"])


def test_recorded_drafts_are_offered_and_say_up_to_where_they_pay(tmp_path):
    drafts = of_model(tmp_path / "drafts", WIDE, engine=engine_of(speculative=NGRAM))
    advisor = Advisor.fit([drafts], gpus=["test_gpu"])
    offered = [kind for kind in advisor.space.kinds if kind.prior is not None]
    assert offered
    assert all(kind.engine.speculative == NGRAM for kind in offered)
    law = advisor.model.law(offered[0].engine)
    assert law.prior.drafts.startswith("drafts of ")
    assert "pay" in law.prior.drafts


def test_a_rate_is_served_by_replicas_of_the_gpu(tmp_path):
    advisor = Advisor.fit([of_model(tmp_path / "greedy", WIDE, policy=GREEDY)], gpus=["test_gpu"])
    found = advisor.recommend(Budget(optimise="cost", max_gpus=8, rate_per_s=2.0))
    pick = found.system_optimal
    assert pick is not None
    assert pick.estimates["device_s"].value >= pick.engine.num_devices / 2.0 * 0.999
