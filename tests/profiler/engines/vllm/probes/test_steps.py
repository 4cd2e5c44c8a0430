"""The step probe: what it says of a step, and that it never fails the engine."""

import logging
import weakref
from types import SimpleNamespace

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiler.engines.vllm.probes.step_rows import composition
from profiler.engines.vllm.probes.steps import CPU_EVERY, StepProbe
from tests.profiler.scheduler import Cached, FakeScheduler, Output, Simulated, decoding, new
from traces.recording.tables import TABLES


def watched(outputs, **options):
    scheduler = FakeScheduler(outputs)
    probe = StepProbe(scheduler, "e1", 1_000_000, **options)
    probe.install()
    return scheduler, probe


def step(scheduler, computed=None):
    output = scheduler.schedule()
    assert scheduler.update_from_output(output, computed) == "outputs"
    return output


def test_a_step_of_prefills_chunks_and_decodes():
    cached = Cached(["d", "chunk", "back"], [40, 100, 7], [3, 0, 2], {"back"})
    output = Output(
        {"d": 1, "chunk": 20, "back": 5, "n": 9},
        cached,
        scheduled_new_reqs=[new("n", cached=16)],
        preempted_req_ids={"x"},
    )
    scheduler, probe = watched([output])
    scheduler.running, scheduler.waiting = ["d", "chunk", "back", "n"], ["w"]
    scheduler.kv_cache_manager.block_pool.free_block_queue.num_free_blocks = 90
    step(scheduler)
    row = probe.drain().row(0, named=True)
    assert row["prefill_requests"] == 3 and row["prefill_tokens"] == 34
    assert row["decode_requests"] == 1 and row["decode_tokens"] == 1
    assert row["decode_kv_tokens"] == 41
    assert row["prefill_kv_tokens"] == 25 + 120 + 12
    pairs = [(16, 9), (100, 20), (7, 5)]
    assert row["prefill_query_context"] == sum(
        context + place + 1 for context, count in pairs for place in range(count)
    )
    assert row["max_context_tokens"] == 120
    assert row["cached_prompt_tokens"] == 16
    assert (row["running"], row["waiting"], row["kv_blocks"], row["preempted"]) == (4, 1, 10, 1)
    assert row["source"] == "measured" and row["profiled"] is False
    assert probe.first_step == {"n": 0}
    assert row["decode_window_tokens"] is row["prefill_window_context"] is None


@pytest.mark.parametrize(("window", "chunked"), [(16, False), (16, True), (200, False)])
def test_what_layers_with_a_window_read(window, chunked):
    def within(context):
        return (context - 1) % window + 1 if chunked else min(context, window)

    mixed = Output({"d": 1, "chunk": 20, "n": 9}, Cached(["d", "chunk"], [40, 100], [3, 0], set()))
    mixed.scheduled_new_reqs = [new("n", cached=16)]
    outputs = [mixed, *(decoding([40 + i, 9 + i, 3 + i]) for i in range(20))]
    scheduler, probe = watched(outputs, window=(window, chunked))
    scheduler.running = ["r0", "r1", "r2"]
    for _ in outputs:
        step(scheduler)
    first, *plain = probe.drain().rows(named=True)
    assert first["decode_window_tokens"] == within(41)
    assert first["prefill_window_context"] == sum(
        within(context + place + 1)
        for context, count in [(100, 20), (16, 9)]
        for place in range(count)
    )
    for i, row in enumerate(plain):
        assert row["decode_window_tokens"] == sum(within(c + i + 1) for c in (40, 9, 3))
        assert row["prefill_window_context"] == 0


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=64))
def test_the_fast_path_of_plain_decoding_gives_what_the_loop_gives(contexts):
    plain = decoding(contexts).scheduled_cached_reqs
    names, produced = plain.req_ids, plain.num_output_tokens
    fast = composition(contexts, produced, None)
    assert fast == composition(contexts, produced, (dict.fromkeys(names, 1), names, set(), []))
    assert fast[2:4] == (len(contexts), len(contexts))
    assert fast[5] == sum(contexts) + len(contexts)
    assert fast[7] == max(contexts) + 1
    assert fast[0] == fast[1] == fast[4] == fast[6] == fast[8] == 0


@pytest.mark.slow
@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "add", "go", "go", "go", "go", "abort", "preempt", "drain"]),
            st.integers(1, 6),
            st.integers(1, 9),
        ),
        min_size=8,
        max_size=60,
    ),
    st.integers(1, 9),
    st.integers(1, 4),
    st.booleans(),
)
def test_steps_say_what_was_computed_whoever_comes_and_goes(events, budget, seats, drafts):
    scheduler = Simulated(budget=budget, seats=seats, drafts=drafts)
    probe = StepProbe(scheduler, "e1", 0)
    probe.install()
    frames, aborted = [], 0
    for number, (kind, size, length) in enumerate(events):
        if kind == "add":
            scheduler.add(f"r{number}", size, length)
        elif kind == "abort" and (there := [*scheduler.running, *scheduler.waiting]):
            scheduler.abort(there[size % len(there)])
            aborted += 1
        elif kind == "preempt" and scheduler.running:
            scheduler.preempt()
        elif kind == "drain":
            frames.append(probe.drain())
        if kind != "add":
            step(scheduler, SimpleNamespace(req_ids=[], sampled_token_ids=[]))
    rows = pl.concat([*frames, probe.drain()], how="diagonal")
    assert probe.failure is None
    assert rows["step"].to_list() == list(range(len(scheduler.truth)))
    names = [name for name in (scheduler.truth or [{}])[0] if name != "drafted"]
    assert rows.select(names).rows(named=True) == [
        {name: truth[name] for name in names} for truth in scheduler.truth
    ]
    assert rows["aborted"].sum() <= aborted


def test_a_step_whose_update_never_came_is_lost_and_shifts_none():
    scheduler, probe = watched([decoding([4, 9]), decoding([5, 10]), decoding([6, 11])])
    scheduler.running = ["r0", "r1"]
    step(scheduler)
    scheduler.schedule()
    step(scheduler)
    assert probe.drain()["decode_kv_tokens"].to_list() == [15, 19]
    assert probe.step == 2 and probe.first_step == {}


def test_a_prompt_of_which_one_token_is_left_is_no_decode():
    output = decoding([40, 9])
    output.scheduled_cached_reqs.num_output_tokens[1] = 0
    scheduler, probe = watched([output])
    step(scheduler)
    row = probe.drain().row(0, named=True)
    assert (row["prefill_requests"], row["prefill_tokens"], row["prefill_kv_tokens"]) == (1, 1, 10)
    assert (row["decode_requests"], row["decode_kv_tokens"]) == (1, 41)
    assert row["max_context_tokens"] == 41


def test_a_step_that_only_decodes_is_not_kept_alive_until_it_is_drained():
    scheduler, probe = watched([decoding([4, 5])])
    output = step(scheduler)
    kept = weakref.ref(output)
    del output
    assert kept() is None
    assert probe.drain()["decode_kv_tokens"].to_list() == [11]


def test_what_the_engine_gives_is_passed_on():
    told = []

    class Told(FakeScheduler):
        def schedule(self, throttle=False, *, more=None):
            told.append((throttle, more))
            return super().schedule()

        def update_from_output(self, scheduled, computed, *, more=None):
            told.append((computed, more))

    scheduler = Told([decoding([4]), decoding([5])])
    probe = StepProbe(scheduler, "e1", 0)
    probe.install()
    scheduler.update_from_output(scheduler.schedule(True), "c")
    scheduler.update_from_output(scheduler.schedule(throttle=1, more=2), "c", more=3)
    assert told == [(True, None), ("c", None), (1, 2), ("c", 3)]
    assert probe.drain().height == 2


def test_times_of_a_step_are_null_when_the_engine_was_idle_before():
    scheduler = Simulated(budget=10, seats=2)
    probe = StepProbe(scheduler, "e1", 1_000_000)
    probe.install()
    scheduler.add("a", 3, 2)
    step(scheduler)
    step(scheduler)
    scheduler.add("b", 3, 1)
    step(scheduler)
    rows = probe.drain()
    assert rows["gap_ns"].is_null().to_list() == [True, False, True]
    assert rows["interval_ns"].is_null().to_list() == [True, False, True]
    second = rows.row(1, named=True)
    assert second["interval_ns"] == second["gap_ns"] + second["wall_ns"]
    assert second["interval_ns"] == rows["end"][1] - rows["end"][0]
    assert probe.end_of(1) == rows["end"][1] and probe.end_of(3) is None
    assert probe.step_at(rows["end"][0]) == 1 and probe.step_at(rows["end"][2] + 10**12) == 2


def test_requests_that_end_between_steps_were_aborted():
    first, second = decoding([4, 4, 4]), decoding([5])
    scheduler, probe = watched([first, second])
    output = scheduler.schedule()
    scheduler.finished_req_ids = {"r1"}  # ends in the update
    scheduler.update_from_output(output, None)
    second.finished_req_ids = {"r1", "r2"}  # r2 was aborted since
    scheduler.finished_req_ids = set()
    step(scheduler)
    rows = probe.drain()
    assert rows["finished"].to_list() == [1, 0]
    assert rows["aborted"].to_list() == [0, 1]


def test_drafted_and_accepted_tokens_by_position():
    output = decoding([10, 20, 30])
    output.num_scheduled_tokens = {"r0": 4, "r1": 3, "r2": 3}
    output.scheduled_spec_decode_tokens = {"r0": [7, 8, 9], "r1": [7, 8], "r2": [-1, -1]}
    computed = SimpleNamespace(sampled_token_ids=[[7, 8, 1], [5], [4]], req_ids=["r0", "r1", "r2"])
    timer = SimpleNamespace(last_ns=1234)
    scheduler, probe = watched([output, decoding([30])], draft_timer=timer)
    update = scheduler.update_from_output
    scheduler.schedule()
    computed_before = computed.sampled_token_ids
    update(output, computed)
    computed_before[0].clear()  # as vLLM cuts what a sample that ended got too much
    step(scheduler)
    rows = probe.drain()
    assert rows["drafted"].to_list() == [[2, 2, 1], None]
    assert rows["accepted"].to_list() == [[1, 1, 0], None]
    assert rows["draft_ns"].to_list() == [1234, 1234]
    assert rows["decode_tokens"].to_list() == [10, 1]


def test_two_batches_in_flight_are_taken_in_their_order():
    scheduler, probe = watched([decoding([1]), Output({}, Cached([], [], [])), decoding([2, 2])])
    first, nothing, second = scheduler.schedule(), scheduler.schedule(), scheduler.schedule()
    for output in (first, nothing, second):
        scheduler.update_from_output(output, None)
    rows = probe.drain()
    assert rows["step"].to_list() == [0, 1]
    assert rows["decode_requests"].to_list() == [1, 2]


def test_columns_fit_the_table_and_an_empty_drain_is_an_empty_frame():
    scheduler, probe = watched([decoding([9]) for _ in range(CPU_EVERY + 1)])
    assert probe.drain().height == 0
    probe.profiled = True
    for _ in range(CPU_EVERY + 1):
        step(scheduler)
    rows = probe.drain()
    assert all(TABLES["steps"][name] == kind for name, kind in rows.schema.items())
    assert rows["cpu_ns"].is_not_null().to_list() == [True] + [False] * (CPU_EVERY - 1) + [True]
    assert rows["profiled"].all()
    assert probe.cost_us is not None and 0 < probe.cost_us < 10_000


def test_a_full_ring_drops_and_counts(monkeypatch):
    monkeypatch.setattr("profiler.engines.vllm.probes.steps.RING_CAPACITY", 3)
    scheduler, probe = watched([decoding([context]) for context in range(4, 14)])
    scheduler.running = ["r0"]
    for _ in range(5):
        step(scheduler)
    assert probe.drain()["step"].to_list() == [0, 1, 2]
    assert probe.dropped == 2 and probe.step == 5
    for _ in range(4):
        step(scheduler)
    rows = probe.drain()  # numbers and contexts go on over what was lost
    assert rows["step"].to_list() == [5, 6, 7] and rows["decode_kv_tokens"].to_list() == [
        10,
        11,
        12,
    ]
    step(scheduler)
    assert probe.drain()["step"].to_list() == [9] and probe.dropped == 3


def test_the_steps_during_which_a_profiler_is_on_are_marked():
    scheduler, probe = watched([decoding([4]) for _ in range(7)])
    marked = []
    for on in (False, True, True, False, None, True, True):
        if on is None:
            marked += probe.drain()["profiled"].to_list()
        probe.profiled = bool(on)
        step(scheduler)
    assert [*marked, *probe.drain()["profiled"]] == [False, True, True, False, False, True, True]


def test_ends_of_long_ago_are_forgotten(monkeypatch):
    monkeypatch.setattr("profiler.engines.vllm.probes.steps.ENDS_KEPT", 10)
    scheduler, probe = watched([decoding([4]) for _ in range(25)])
    for _ in range(25):
        step(scheduler)
    rows = probe.drain()
    ends = rows["end"].to_list()
    assert rows["step"].to_list() == list(range(25)) and probe.step == 25
    assert probe.end_of(0) is None
    assert probe.end_of(24) == ends[24]
    assert probe.step_at(ends[22]) == 23


@pytest.mark.parametrize("missing", ["scheduled_new_reqs", "total_num_scheduled_tokens"])
def test_a_scheduler_that_changed_switches_the_probe_off_and_goes_on(missing, caplog):
    broken = decoding([4])
    fields = vars(broken) | {"total_num_scheduled_tokens": 1}
    del fields[missing]
    scheduler, probe = watched([SimpleNamespace(**fields), decoding([5])])
    with caplog.at_level(logging.WARNING):
        step(scheduler)
        step(scheduler)
    assert missing in (probe.failure or "")
    assert "switched itself off" in caplog.text
    assert isinstance(probe.drain(), pl.DataFrame)


def test_reset_numbers_from_zero():
    scheduler, probe = watched([decoding([4]), decoding([5])])
    step(scheduler)
    probe.reset("e2")
    step(scheduler)
    rows = probe.drain()
    assert rows["step"].to_list() == [0]
    assert rows["engine"].to_list() == ["e2"]
