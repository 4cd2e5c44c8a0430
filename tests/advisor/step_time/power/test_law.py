"""The power law, on recordings whose devices draw what a known law says; no real device."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from advisor.advice.advisor import Advisor
from advisor.evidence.gather import gather
from advisor.step_time.power.boards import limit_of
from advisor.step_time.power.law import fit_power, power_laws
from tests.advisor.synthetic import START, VOTE16, engine_of, record
from tests.advisor.what_if.test_predict import asked
from traces.recording.reader import Recording
from traces.recording.writer import RecordingWriter
from traces.schema.advice import Budget
from traces.summary.energy import PowerTable, power_table
from traces.summary.run import summarise

pytestmark = pytest.mark.slow

IDLE, BUSY, BATCH = 60.0, 90.0, 3.0


def powered(folder, *, engine=None, noise=0.0, idle=0.0, **how):
    """A recording whose GPU draws idle + busy + batch x requests, by its counter every 50 ms.

    `idle` seconds pass after each 100 steps.
    """
    made = record(folder / "plain" / "run", engine or engine_of(), VOTE16, noise=0.0, **how)
    steps = made.steps.sort("end")
    requests = (steps["prefill_requests"] + steps["decode_requests"]).to_numpy()
    pause = np.arange(steps.height) // 100 * int(idle * 1e9)
    ended = steps["end"].to_numpy() + pause
    begun = ended - steps["wall_ns"].to_numpy()
    edges = np.column_stack([begun, ended]).ravel()
    spent = (ended - begun) / 1e9 * (BUSY + BATCH * requests)
    level = np.column_stack([np.cumsum(spent) - spent, np.cumsum(spent)]).ravel()
    manifest = dataclasses.replace(made.manifest, complete=False)
    writer = RecordingWriter(folder / "run", manifest, period_s=60)
    rng = np.random.default_rng(0)
    late = dict(zip(steps["end"].to_list(), pause.tolist(), strict=True))
    for name in ("problems", "samples", "steps"):
        times = [c for c in ("arrival", "start", "end", "decided_at") if c in made.frame(name)]
        for row in made.frame(name).iter_rows(named=True):
            moved = {c: row[c] + moved_by(late, row[c]) for c in times if row[c] is not None}
            writer.append(name, row | moved)
    for time in np.arange(START, ended[-1] + 10**8, 50_000_000):
        seconds = (time - START) / 1e9
        joules = IDLE * seconds + float(np.interp(time, edges, level)) + rng.normal(0, noise)
        reading = {"host": "h", "device": "0", "kind": "nvml", "time": int(time)}
        writer.append("power", reading | {"energy_j": 1e6 + joules, "watts": 100.0})
    writer.close(complete=True)
    return Recording.open(folder / "run")


def moved_by(late, time):
    ends = [end for end in late if end <= time]
    return late[max(ends)] if ends else 0


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return powered(tmp_path_factory.mktemp("power"), idle=0.4, problems=40, noise=0.02)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """Batches of another size, without which their part cannot be told."""
    folder = tmp_path_factory.mktemp("narrow")
    return powered(folder, idle=0.4, problems=40, engine=engine_of(max_num_seqs=4))


def power_law(recordings):
    (law,) = power_laws(gather(recordings).power).values()
    return law


def test_a_known_law_comes_back(drawn, narrow):
    law = power_law([drawn, narrow])
    for busy in (0.0, 0.5, 1.0):
        for batch in (4, 8, 16, 32):
            real, recorded = IDLE + busy * (BUSY + BATCH * batch), batch in (4, 32)
            low, high = law.ends(1.0, busy, batch)
            assert low * 0.98 < real < high * 1.02
            exact = 0.03 if recorded else 0.08  # between two batches the shape is open
            assert float(law.joules(1.0, busy, batch)) == pytest.approx(real, rel=exact)
    assert law.sigma < 0.02


def test_stretches_hold_all_time_steps_and_joules(drawn):
    table = power_table(drawn, engine_of().key())
    steps = drawn.steps
    requests = (steps["prefill_requests"] + steps["decode_requests"]).to_numpy()
    seconds = steps["wall_ns"].to_numpy() / 1e9
    assert table.amounts[:, 1].sum() == pytest.approx(seconds.sum(), rel=1e-3)
    assert table.amounts[:, 2].sum() == pytest.approx((seconds * requests).sum(), rel=1e-3)
    run = summarise(drawn)[0]
    assert table.joules.sum() == pytest.approx(run.energy_j.total.value, rel=1e-3)


def test_steps_without_wall_times_count(drawn, tmp_path):
    writer = RecordingWriter(tmp_path / "r", dataclasses.replace(drawn.manifest, complete=False))
    for name in ("problems", "samples", "steps", "power"):
        for row in drawn.frame(name).iter_rows(named=True):
            writer.append(name, row | ({"wall_ns": None} if name == "steps" else {}))
    writer.close(complete=True)
    key = engine_of().key()
    known, untold = (power_table(each, key) for each in (drawn, Recording.open(tmp_path / "r")))
    assert untold.amounts[:, 1].sum() == pytest.approx(known.amounts[:, 1].sum(), rel=0.02)


def test_energy_of_the_run_and_of_smaller_batches_is_foretold(drawn, narrow):
    found = asked(drawn, [narrow], engine={"max_num_seqs": 8})
    assert not found.predicted.energy_j.total.extrapolated
    alone = asked(drawn, engine={"max_num_seqs": 8})  # such batches were not seen
    assert alone.predicted.energy_j.total.extrapolated
    run = found.predicted
    steps = found.tables["steps"]
    seconds = steps["wall_ns"].to_numpy() / 1e9
    requests = (steps["prefill_requests"] + steps["decode_requests"]).to_numpy()
    whole = (steps["end"].max() - START) / 1e9
    expected = IDLE * whole + float((seconds * (BUSY + BATCH * requests)).sum())
    assert run.energy_j.total.value == pytest.approx(expected, rel=0.08)
    assert run.energy_j.per_problem.low < expected / run.problems < run.energy_j.per_problem.high
    assert run.energy_j.method == "law"


def test_idle_replicas_draw_too(drawn):
    from advisor.replay.draws import MOST
    from advisor.replay.replay import Replicas
    from advisor.what_if.replayed import poisson_arrivals

    one = asked(drawn, rate_per_s=1.0)
    two = asked(drawn, rate_per_s=1.0, replicas=Replicas(count=2))
    more = two.predicted.energy_j.total.value - one.predicted.energy_j.total.value
    # Both see the same draws of arrivals; what is served afterwards takes some seconds.
    draws = [poisson_arrivals(1.0, 40, 0, draw=draw) for draw in range(MOST)]
    lasted = np.mean([each[-1] - each[0] for each in draws])
    problems = one.tables["problems"]
    served = problems.select((pl.col("end").max() - pl.col("arrival").max()) / 1e9).item()
    assert more == pytest.approx(IDLE * (lasted + served), rel=0.1)


def test_a_load_that_leaves_more_idle_than_was_seen_is_marked(tmp_path):
    busy = powered(tmp_path, problems=20)
    assert power_law([busy]).least_busy > 0.9
    assert not asked(busy).predicted.energy_j.total.extrapolated
    assert asked(busy, rate_per_s=0.5).predicted.energy_j.total.extrapolated


def test_without_power_there_is_no_energy(tmp_path):
    plain = record(tmp_path / "plain", engine_of(), VOTE16, problems=8)
    assert not power_laws(gather([plain]).power)
    found = asked(plain, engine={"max_num_seqs": 8})
    assert found.predicted.energy_j.total is None
    assert found.predicted.energy_j.per_problem is None


def test_watts_are_never_negative_and_few_stretches_teach_nothing():
    rng = np.random.default_rng(0)
    amounts = np.column_stack([np.ones(40), rng.random(40), 8 * rng.random(40)])
    table = PowerTable(amounts=amounts, joules=amounts @ [50.0, 30.0, -1.0] + 1)
    assert (fit_power([table]).watts >= 0).all()
    few = PowerTable(amounts=amounts[:4], joules=np.ones(4))
    assert fit_power([few]) is None


MADE_IDLE = 100.0
CONCAVE = {  # watts beyond idle of made GPUs, by the batch
    "power": lambda batch: 60 * batch**0.5,
    "slow power": lambda batch: 200 * batch**0.25,
    "saturating": lambda batch: 500 * batch / (batch + 8),
    "saturating from a base": lambda batch: 200 + 300 * batch / (batch + 32),
    "straight": lambda batch: 90 + 3 * batch,
}


def law_of(watts, batches, *, idle=True):
    """The law of stretches at about these batches, a fifth of them nearly idle if so."""
    rng = np.random.default_rng(0)
    rows = [
        (1.0, busy, busy * batch * rng.uniform(0.93, 1.07))
        for batch in batches
        for busy in ([0.2, 1.0, 1.0, 1.0, 1.0] if idle else [1.0] * 5) * 6
    ]
    joules = [MADE_IDLE + busy * watts(held / busy) for _, busy, held in rows]
    return fit_power([PowerTable(amounts=np.array(rows), joules=np.array(joules))])


@pytest.mark.parametrize("name", CONCAVE)
def test_between_recorded_batches_a_concave_power_is_found_and_no_chord(name):
    """A chord from 1 to 64 is up to 44 % below these curves at a batch of 8."""
    watts = CONCAVE[name]
    ends, whole = law_of(watts, (1, 64)), law_of(watts, (1, 8, 64))
    for batch in (1, 2, 4, 8, 16, 32, 64):
        real = MADE_IDLE + watts(batch)
        low, high = ends.ends(1.0, 1.0, batch)
        assert low * 0.98 <= real <= high * 1.02, batch  # what two batches leave open
        assert float(whole.joules(1.0, 1.0, batch)) == pytest.approx(real, rel=0.04), batch
    chord = MADE_IDLE + watts(1) + (watts(64) - watts(1)) * 7 / 63
    real = MADE_IDLE + watts(8)
    if chord < 0.9 * real:
        assert float(ends.joules(1.0, 1.0, 8)) > chord * 1.02
    low, high = ends.ends(1.0, 1.0, 8)
    less, more = whole.ends(1.0, 1.0, 8)
    assert more / less < high / low


@pytest.mark.parametrize("name", CONCAVE)
@pytest.mark.parametrize("batches", [(4,), (4, 16), (1, 64), (1, 8, 64)])
def test_beyond_recorded_batches_the_interval_holds_a_concave_power(name, batches):
    watts, law = CONCAVE[name], law_of(CONCAVE[name], batches)
    for batch in (1, 2, 64, 256, 512):
        low, high = law.ends(1.0, 1.0, batch)
        assert low * 0.93 <= MADE_IDLE + watts(batch) <= high * 1.07, batch
        assert low <= float(law.joules(1.0, 1.0, batch)) <= high
        inside = 0.94 * batches[0] <= batch <= 1.06 * batches[-1] and len(batches) > 1
        assert law.within(1.0, 1.0, batch) == inside
    widths = [np.divide(*law.ends(1.0, 1.0, batch)[::-1]) for batch in (512, 64)]
    assert widths[0] > widths[1]


def test_what_idle_devices_draw_is_open_where_steps_always_ran():
    seen, unseen = (law_of(CONCAVE["power"], (4, 16), idle=idle) for idle in (True, False))
    assert seen.ends(10.0, 0.0, 1.0) == pytest.approx((1000.0, 1000.0), rel=0.05)
    low, high = unseen.ends(10.0, 0.0, 1.0)
    assert low < 300 and high > 1700  # between nothing and what the smaller batch draws
    busy = [float(law.joules(10.0, 10.0, 8.0)) for law in (seen, unseen)]
    assert busy == pytest.approx([10 * (MADE_IDLE + CONCAVE["power"](8))] * 2, rel=0.05)
    assert not unseen.within(10.0, 5.0, 40.0) and seen.within(10.0, 5.0, 40.0)


def test_no_board_draws_more_than_its_limit():
    law = dataclasses.replace(law_of(CONCAVE["power"], (4,)), limit_w=700.0)
    assert law.ends(10.0, 10.0, 512.0)[1] == pytest.approx(7000.0)
    for gpu, tp, limit in (
        ("NVIDIA H100 80GB HBM3", 1, 700.0),
        ("NVIDIA H100 PCIe", 2, 700.0),
        ("NVIDIA A100 80GB PCIe", 1, 300.0),
        ("NVIDIA A100-SXM4-80GB", 2, 800.0),
        ("NVIDIA GB200", 1, 1200.0),
        ("NVIDIA B300 SXM6 AC", 1, 1100.0),
        ("NVIDIA GeForce RTX 4090", 1, None),  # that no source at hand states
        ("NVIDIA H100 NVL", 1, 400.0),
        ("NVIDIA H200 NVL", 1, 600.0),
        ("NVIDIA A100-PCIE-40GB", 1, None),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", 1, None),
        ("NVIDIA B200", 4, 4000.0),
        ("NVIDIA Test 1", 1, None),
        (None, 1, None),
    ):
        engine = dataclasses.replace(engine_of(), gpu=gpu, tensor_parallel_size=tp)
        assert limit_of(engine) == limit


def test_energy_of_larger_batches_says_where_no_limit_of_the_boards_is_known(tmp_path):
    small = powered(tmp_path, engine=engine_of(max_num_seqs=2), problems=20)
    said = "what the devices may draw at most is not known"
    more = asked(small, engine={"max_num_seqs": 8})
    assert said in " ".join(more.notes)
    assert said not in " ".join(asked(small).notes)
    known = dataclasses.replace(small.manifest, engines=dict(small.manifest.engines))
    for key, engine in known.engines.items():
        known.engines[key] = dataclasses.replace(engine, gpu="NVIDIA H200")
    capped = dataclasses.replace(small, manifest=known)
    assert said not in " ".join(asked(capped, engine={"max_num_seqs": 8}).notes)


def test_an_interval_says_how_little_one_batch_tells(drawn):
    inside = asked(drawn).predicted.energy_j.total
    beyond = asked(drawn, engine={"max_num_seqs": 2}).predicted.energy_j.total
    assert inside.high / inside.low < beyond.high / beyond.low
    assert beyond.low < beyond.value < beyond.high


def test_an_idle_device_is_not_paid_for_as_a_busy_one(drawn, tmp_path):
    """At one problem in 10 s the devices draw their idle power nearly all the time."""
    advisor = Advisor.fit([drawn], draws=40)
    found = advisor.recommend(Budget(optimise="energy", rate_per_s=0.1)).system_optimal
    energy, busy_s = found.estimates["energy_j"], found.estimates["latency_s"].value
    most = BUSY + BATCH * engine_of().max_num_seqs
    assert IDLE * 10 * 0.9 < energy.value < IDLE * 10 * 1.1 + most * busy_s
    assert energy.high < 1.1 * energy.low
    # While steps always ran, what is drawn without one is not known.
    busy = powered(tmp_path, problems=20)
    advisor = Advisor.fit([busy], draws=40)
    found = advisor.recommend(Budget(optimise="energy", rate_per_s=0.1)).system_optimal
    energy, (run,) = found.estimates["energy_j"], summarise(busy)
    assert energy.extrapolated and energy.low < IDLE * 10 < energy.high
    assert energy.high == pytest.approx(run.energy_j.mean_w.value * 10, rel=0.1)
    row = row_of(advisor)
    estimate = energy_of(advisor, row)
    busy_s = advisor.under(None).metrics.values("busy_s")[advisor.under(None).metrics.place[row]]
    assert estimate.value / busy_s == pytest.approx(run.energy_j.mean_w.value, rel=0.02)


def row_of(advisor, policy=VOTE16, **limits):
    (row,) = advisor.space.rows_of(engine_of(**limits), policy)
    return row


def energy_of(advisor, row, rate_per_s=None):
    state = advisor.under(rate_per_s)
    state.replay([row])
    return state.metrics.estimate("energy_j", state.metrics.place[row], price=None)


@pytest.mark.parametrize("seqs", [1, 2, 4, 8, 16, 32])
def test_replay_and_advise_say_the_same_joules(drawn, narrow, seqs):
    """Beside the recorded batches (4 and 32), between them and beyond, and by the closed form."""
    found = asked(drawn, [narrow], engine={"max_num_seqs": seqs}).predicted.energy_j.per_problem
    advisor = Advisor.fit([drawn, narrow], draws=200)
    row = row_of(advisor, max_num_seqs=seqs)
    advised = energy_of(advisor, row)
    assert advised.value == pytest.approx(found.value, rel=1e-6)
    assert advised.extrapolated == found.extrapolated == (seqs < 4)
    assert advised.low < found.high and found.low < advised.high
    # That of advice holds other problems too, and so no less.
    assert advised.high / advised.low > 0.8 * found.high / found.low
    closed = advisor.under(None).closed_form.values("energy_j")[row]
    assert closed == pytest.approx(found.value, rel=0.15)


def test_time_between_arrivals_is_paid_for_alike(drawn):
    advisor = Advisor.fit([drawn], draws=200)
    for rate in (0.1, 0.4):
        found = asked(drawn, rate_per_s=rate).predicted.energy_j.per_problem
        advised = energy_of(advisor, row_of(advisor), rate)
        assert advised.value == pytest.approx(found.value, rel=0.02)
        assert advised.low < found.high and found.low < advised.high
        assert found.value > 0.9 * IDLE / rate
