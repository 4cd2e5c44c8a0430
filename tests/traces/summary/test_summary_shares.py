from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.traces.synthetic import engine_config, simulate, write_recording
from traces.foreign.written import written_into
from traces.recording.reader import Recording
from traces.recording.tables import TABLES
from traces.summary.problems import busy_seconds, share, share_steps
from traces.summary.run import summarise


def frames(rows):
    return (
        pl.from_dicts(rows["steps"], schema=TABLES["steps"]),
        pl.from_dicts(rows["samples"], schema=TABLES["samples"]),
    )


@settings(max_examples=25)
@given(
    problems=st.integers(1, 8), n=st.integers(1, 6), seqs=st.integers(1, 9),
    concurrency=st.integers(1, 4), seed=st.integers(0, 1000),
)  # fmt: skip
def test_shares_sum_to_the_busy_time(problems, n, seqs, concurrency, seed):
    rows = simulate(problems=problems, n=n, seqs=seqs, concurrency=concurrency, seed=seed)
    steps, samples = frames(rows)
    shares = share_steps(steps, samples)
    assert (shares > 0).all()
    assert shares.sum() == pytest.approx(busy_seconds(steps).sum())


def test_shares_match_a_step_by_step_count():
    rows = simulate(problems=5, n=4, seqs=6, seed=2)
    steps, samples = frames(rows)
    seconds = busy_seconds(steps)
    exact = np.zeros(samples.height)
    for position, step in enumerate(steps.iter_rows(named=True)):
        tokens = np.zeros(samples.height)
        for row, sample in enumerate(samples.iter_rows(named=True)):
            if sample["first_step"] == step["step"]:
                tokens[row] = 10
            elif sample["first_step"] < step["step"] <= sample["last_step"]:
                tokens[row] = 1
        exact += seconds[position] * tokens / tokens.sum()
    assert share_steps(steps, samples) == pytest.approx(exact)


@pytest.mark.parametrize("late_ns", [0, 50_000])  # on the way to a client
@pytest.mark.parametrize("seen", [("queued", "scheduled"), ()], ids=["spans", "client"])
def test_steps_are_found_by_time_where_their_numbers_are_not_recorded(seen, late_ns):
    """A client sees neither numbers of steps nor when a request is scheduled."""
    steps, samples = frames(simulate(problems=4, n=3, seed=4))
    unseen = {"first_step", "last_step", "queued", "scheduled"} - {*seen}
    blind = samples.with_columns(**dict.fromkeys(unseen)).cast(TABLES["samples"])
    late = blind.with_columns(pl.col("first_token", "end") + late_ns)
    assert share_steps(steps, late) == pytest.approx(share_steps(steps, samples))


def test_of_steps_shared_with_others_a_sample_has_its_part_from_its_prompt_on():
    """A front end ends a request just before its plugin tells of the step."""
    ms = 10**6
    steps = pl.DataFrame({
        "step": range(4), "end": [10 * ms, 20 * ms, 30 * ms, 40 * ms], "interval_ns": [10 * ms] * 4,
        "prefill_requests": [1, 2, 0, 0], "decode_requests": [0, 0, 2, 2],
    })  # fmt: skip
    samples = pl.DataFrame({
        "scheduled": [1, 10 * ms], "end": [10 * ms - ms // 2, 40 * ms - ms // 2],
        "prompt_tokens": [10, 10], "cached_tokens": [9, 0], "output_tokens": [1, 3],
    })  # fmt: skip
    steps, samples = (
        pl.concat([pl.DataFrame(schema=TABLES[name]), frame], how="diagonal_relaxed")
        for name, frame in (("steps", steps), ("samples", samples))
    )
    shares = share(busy_seconds(steps), steps, samples, shared=True)
    assert shares == pytest.approx([0.010, 0.015])


def test_unknown_samples_have_no_share():
    steps, samples = frames(simulate(problems=2, n=2))
    times = dict.fromkeys(("first_step", "last_step", "scheduled", "first_token", "end"))
    nowhere = samples.with_columns(**times)
    assert np.isnan(share_steps(steps, nowhere.cast(TABLES["samples"]))).all()
    assert np.isnan(share_steps(steps.clear(), samples)).all()


def test_profiled_steps_cost_nothing():
    steps, samples = frames(simulate(problems=2, n=2))
    marked = steps.with_columns(profiled=pl.col("step") < 3)
    shares = share_steps(marked, samples)
    assert shares.sum() == pytest.approx(busy_seconds(steps)[3:].sum())


def test_what_nobody_ran_for_is_nobodys():
    steps, samples = frames(simulate(problems=1, n=1))
    amounts = np.ones(steps.height)
    early = samples.with_columns(last_step=pl.col("first_step"))
    assert share(amounts, steps, early).sum() == pytest.approx(amounts.sum())
    amounts[0] = 0.0  # the only step that it ran in
    assert np.isnan(share(amounts, steps, early)).all()


def cancelled_before_it_ran(rows):
    """Add to every second problem a sample that was cancelled while it waited."""
    idle = []
    for sample in rows["samples"]:
        if sample["sample_index"] == 0 and len(idle) < len(rows["samples"]) // 4:
            blank = dict.fromkeys(("queued", "scheduled", "first_token", "think_end"))
            steps = dict.fromkeys(("first_step", "last_step", "cached_tokens", "correct", "answer"))
            told = {"sample_index": 99, "output_tokens": 0, "cancelled_by": "decision"}
            idle.append(sample | blank | steps | told)
    return idle


def test_a_sample_that_never_ran_cost_nothing_and_changes_no_share():
    rows = simulate(problems=8, n=4, seqs=6, seed=5)
    before = share_steps(*frames(rows))
    idle = cancelled_before_it_ran(rows)
    assert idle
    steps, samples = frames(rows | {"samples": rows["samples"] + idle})
    after = share_steps(steps, samples)
    assert after[: len(before)] == pytest.approx(before)
    assert (after[len(before) :] == 0).all()


def test_where_scheduling_is_not_told_a_cancelled_sample_stays_unknown():
    rows = simulate(problems=2, n=2, seqs=6, seed=5)
    for sample in rows["samples"]:
        sample |= {"scheduled": None, "first_step": None, "first_token": None, "output_tokens": 0}
        sample["cancelled_by"] = "decision"
    assert np.isnan(share_steps(*frames(rows))).all()


def test_a_step_behind_a_pause_begins_when_its_first_sample_is_scheduled():
    """A front end sees its end alone: a prefill of 1 s, and three steps of 100 ms, twice."""
    ends = [1.0, 1.1, 1.2, 1.3, 6.0, 6.1, 6.2, 6.3]
    steps = pl.from_dicts(
        [
            {"engine": "e", "step": number, "end": round(end * 1e9), "interval_ns": interval}
            for number, (end, interval) in enumerate(
                zip(ends, [None, 100_000_000, 100_000_000, 100_000_000] * 2, strict=True)
            )
        ],
        schema=TABLES["steps"],
    )
    samples = pl.from_dicts(
        [
            {"engine": "e", "prompt_tokens": 9, "cached_tokens": 0, "output_tokens": 4,
             "scheduled": round(begun * 1e9), "end": round(end * 1e9)}
            for begun, end in ((0.0, 1.3), (5.0, 6.3))
        ],
        schema=TABLES["samples"],
    )  # fmt: skip
    shares = share_steps(steps, samples)
    # Where the first step began is not known: samples before it may have run for long.
    assert shares == pytest.approx([0.3, 1.3])
    assert busy_seconds(steps).sum() == pytest.approx(0.6)  # nobody tells
    late = samples.with_columns(scheduled=pl.lit(6_050_000_000))
    assert busy_seconds(steps, late).sum() == pytest.approx(0.6)  # of others, who are not in it


def test_requests_of_others_on_a_server_have_their_part_of_its_steps(tmp_path):
    rows = simulate(problems=40, n=2, concurrency=8, seed=3)
    ends = np.linspace(0, 1, 50) * (rows["steps"][-1]["end"] - rows["steps"][0]["end"])
    power = [
        {"host": "h", "device": "g", "kind": "nvml", "watts": 300.0,
         "time": rows["steps"][0]["end"] + round(end)}
        for end in ends
    ]  # fmt: skip
    few = {
        table: [row for row in rows[table] if int(row["problem_id"].removeprefix("p")) % 4 == 0]
        for table in ("problems", "samples")
    }
    engine = engine_config(mode="server")
    (whole,), (part,) = (
        summarise(
            write_recording(
                tmp_path / name, {**rows, **kept, "power": power}, engine=engine, workload=name
            )
        )
        for name, kept in (("whole", {}), ("part", few))
    )
    assert (whole.problems, part.problems) == (40, 10)
    for one, other in (
        (whole.device_s_per_problem, part.device_s_per_problem),
        (whole.energy_j.per_problem, part.energy_j.per_problem),
        (whole.energy_j.per_token, part.energy_j.per_token),
    ):
        assert other.value == pytest.approx(one.value, rel=0.15)
    assert part.energy_j.total.value == pytest.approx(whole.energy_j.total.value, rel=0.1)


def test_where_few_requests_are_traced_the_throughput_of_all_is_not_known(tmp_path):
    watched = Recording.open(Path(__file__).parents[3] / "scripts" / "watched")
    (whole,) = summarise(watched)
    some = watched.problems["problem_id"].sort().gather_every(10).implode()
    for folder, left in (("few", ()), ("few without steps", ("steps",))):
        with written_into(tmp_path / folder) as tables:
            for name in TABLES:
                if name in ("problems", "samples"):
                    rows = watched.frame(name)
                    tables.add(name, rows.filter(pl.col("problem_id").is_in(some)))
                elif name not in left:
                    tables.copy(name, watched.paths(name))
            watched.manifest.write(tmp_path / folder)
    (untold,) = summarise(Recording.open(tmp_path / "few without steps"))
    assert untold.throughput_tokens_per_s is None  # how many were traced is not known
    (part,) = summarise(Recording.open(tmp_path / "few"))
    count = len(watched.problems)
    assert (whole.problems, part.problems) == (count, -(-count // 10))
    times = whole.device_s_per_problem, part.device_s_per_problem
    traced = watched.samples.filter(pl.col("problem_id").is_in(some))  # longer than the others
    ran = [(rows["end"] - rows["first_token"]).mean() for rows in (watched.samples, traced)]
    assert times[1].value / times[0].value == pytest.approx(ran[1] / ran[0], rel=0.05)
    assert whole.throughput_tokens_per_s is not None and part.throughput_tokens_per_s is None
    # 5.7 s of the 42.3 s in which it ran from the first of them to the last.
    assert any("traced requests took 14 % of the server's time" in note for note in part.notes)
