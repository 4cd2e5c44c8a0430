"""Windows of the torch profiler: when they open, which steps they mark, what they cost."""

import json

import pytest

from profiler.engines.vllm.probes.kernel_windows import BUDGET, KernelWindows, WindowPlan
from profiler.engines.vllm.probes.steps import StepProbe
from tests.profiler.scheduler import FakeScheduler, decoding
from traces.errors import UsageError


class Clock:
    """Seconds that pass only where a test says so; every look at a CPU's costs `look_s`."""

    def __init__(self, look_s=0.0):
        self.now_s, self.look_s = 1000.0, look_s

    def __call__(self):
        self.now_s += self.look_s
        return round(self.now_s * 1e9)


class FakeEngine:
    """Counts its profiler's steps and writes a trace of them, as vLLM's worker does.

    Starting takes `start_s`, the export `stall_s`, a step `step_s` and, profiled, `slow_s` more.
    """

    def __init__(
        self,
        folder,
        clock,
        *,
        step_s=0.001,
        slow_s=0.0,
        start_s=0.0,
        stall_s=0.0,
        lost_steps=0,
        broken=False,
        refuse=False,
    ):
        self.folder, self.clock = folder, clock
        self.step_s, self.slow_s, self.start_s, self.stall_s = step_s, slow_s, start_s, stall_s
        self.lost_steps, self.broken, self.refuse = lost_steps, broken, refuse
        self.prefix = None
        self.steps = 0

    def start_profile(self, profile_prefix):
        if self.refuse:
            raise RuntimeError("Profiling is not enabled")
        self.prefix, self.steps = profile_prefix, 0
        self.clock.now_s += self.start_s

    def run(self, count):
        self.steps += count
        self.clock.now_s += count * (self.step_s + (self.slow_s if self.prefix else 0))

    def stop_profile(self):
        self.clock.now_s += self.stall_s
        events = []
        for step in range(self.steps - self.lost_steps):
            begin = 1000 * step
            mark = "execute_context_0(0)_generation_4(4)"
            events.append(_event("user_annotation", mark, begin, 900))
            events.append(_event("cpu_op", "aten::mm", begin + 10, 300))
            events.append(_event("cpu_op", "aten::silu", begin + 400, 100))
        text = json.dumps({"traceEvents": events})
        path = self.folder / f"{self.prefix}_rank0.1.pt.trace.json"
        path.write_text(text[:5] if self.broken else text)
        self.prefix = None


def _event(category, name, start, length):
    common = {"ph": "X", "pid": 1, "tid": 1, "args": {}}
    return common | {"cat": category, "name": name, "ts": start, "dur": length}


def run(folder, plan, steps, *, read_s=0.0, drain_every=0, later=None, **options):
    """Do so many steps with windows; gives the engine, the windows and the steps' rows.

    A trace takes `read_s` to read; `later` changes the engine after the rehearsal.
    """
    folder.mkdir()
    scheduler = FakeScheduler([decoding([5] * 4) for _ in range(steps)])
    scheduler.running = ["r0"]
    probe = StepProbe(scheduler, "e", 0)
    probe.install()
    clock = Clock()
    engine = FakeEngine(folder, clock, **options)
    windows = KernelWindows(
        engine, probe, WindowPlan.parse(plan), folder, clock=clock, cpu_clock=Clock(read_s)
    )
    windows.rehearse(engine.run)
    vars(engine).update(later or {})
    windows.reset()
    for step in range(steps):
        engine.run(1)
        scheduler.update_from_output(scheduler.schedule(), None)
        windows.between_steps()
        if drain_every and step % drain_every == 0:
            windows.drain()
    windows.finish()
    return engine, windows, probe.drain()


def starts(steps):
    """The steps with which windows began."""
    opened = steps.filter("profiled")["step"].to_list()
    return [step for step in opened if step - 1 not in opened]


def test_kernels_get_the_engines_step_and_the_steps_are_marked(tmp_path):
    _, windows, steps = run(tmp_path / "t", "3/40", 30)
    kernels = windows.drain()
    profiled = steps.filter("profiled")["step"].to_list()
    assert profiled == [20, 21, 22, 23]  # and one after it, which has the export's stall
    assert sorted(set(kernels["step"])) == [20, 21, 22]
    sums = dict(kernels.group_by("family").agg(total=kernels["self_time"].sum()).iter_rows())
    assert set(sums) == {"gemm", "activation"}
    assert kernels.filter(family="gemm")["self_time"].sum() == 3 * 300_000
    (event,) = windows.events()
    detail = json.loads(event["detail"])
    assert event["kind"] == "window" and detail["steps"] == 3 and detail["window"] == 0
    assert detail["busy_ns"] == 3 * 400_000
    assert windows.cost_share == 0  # nothing of it took time here
    assert not list(windows.folder.iterdir())


def test_the_period_is_stretched_until_windows_fit_the_budget(tmp_path):
    _, windows, steps = run(
        tmp_path / "t", "2/10", 4000, stall_s=0.005, slow_s=0.001, read_s=0.003, drain_every=7
    )
    windows.drain()
    # One costs 10 ms: 2 of slower steps, 5 of export, 3 of reading. It is expected to cost 15.
    began = starts(steps)
    assert began[0] == 500
    assert 8 <= len(began) <= 12
    assert 0.02 < windows.cost_share <= BUDGET
    details = [json.loads(event["detail"]) for event in windows.events()]
    assert all(each["expected_cost_ns"] == pytest.approx(15e6) for each in details)


def test_no_window_opens_where_one_does_not_fit_the_run_and_the_reason_is_said(tmp_path):
    _, windows, steps = run(tmp_path / "t", "2/10", 499, stall_s=0.007, slow_s=0.001, read_s=0.001)
    assert starts(steps) == [] and windows.cost_share is None
    assert windows.drain().height == 0
    (event,) = windows.events()
    assert event["kind"] == "note" and event["engine"] == "e"
    assert event["detail"] == (
        "no kernel window was opened: one may cost 0.015 s, more than 3% of the run's 0.5 s. It "
        "takes a run of 0.5 s (more problems), or fewer steps a window"
    )


def test_a_run_that_ends_before_the_first_window_says_so(tmp_path):
    _, windows, _ = run(tmp_path / "t", "2/400", 100)
    (event,) = windows.events()
    assert event["detail"] == (
        "no kernel window was opened: the run ended after 100 steps, and the first was due at 200"
    )


@pytest.mark.slow
def test_a_window_that_cost_more_than_expected_puts_off_the_next(tmp_path):
    _, windows, steps = run(
        tmp_path / "t", "2/10", 6000, stall_s=0.004, later={"stall_s": 0.040}, drain_every=5
    )
    began = starts(steps)
    # At 0.2 s for 6 ms expected; then at (40 + 60) / 3 % = 3.3 s.
    assert began[0] == 200 and 3250 < began[1] < 3350
    assert windows.cost_share <= BUDGET


def test_what_is_not_read_yet_counts(tmp_path):
    _, windows, steps = run(tmp_path / "t", "2/10", 3000, read_s=0.010)
    # Nothing is read until the end: two unread and half a window more are 35 ms.
    assert starts(steps) == pytest.approx([500, 833, 1166, 1500], abs=2)
    windows.drain()
    assert windows.cost_share <= BUDGET


def test_a_long_window_is_rehearsed_with_few_steps(tmp_path):
    engine, windows, _ = run(tmp_path / "t", "80/100", 1, slow_s=0.001, read_s=0.001)
    assert engine.clock.now_s < 1000 + 2 * 8 * 0.002 + 0.01
    assert windows._expected_ns() == pytest.approx(1.5 * 80 * 0.001e9 + 1.5 * 10 * 0.001e9)


def test_a_trace_with_other_steps_gives_kernels_without_a_step(tmp_path):
    _, windows, _ = run(tmp_path / "t", "4/20", 30, lost_steps=1)
    kernels = windows.drain()
    assert kernels.height and kernels["step"].is_null().all()


def test_a_trace_that_cannot_be_read_is_said_and_the_run_goes_on(tmp_path):
    _, windows, steps = run(tmp_path / "t", "2/20", 30, broken=True)
    assert windows.drain().height == 0
    assert "error" in json.loads(windows.events()[0]["detail"])
    assert steps.height == 30


def test_a_profiler_that_refuses_ends_the_windows_and_not_the_run(tmp_path):
    _, windows, steps = run(tmp_path / "t", "2/20", 30, refuse=True)
    assert "Profiling is not enabled" in (windows.failure or "")
    assert windows.drain().height == 0 and not steps["profiled"].any()
    assert windows.cost_share is None


def test_a_window_open_at_the_end_is_closed_and_kept(tmp_path):
    _, windows, steps = run(tmp_path / "t", "8/20", 14)
    assert sorted(set(windows.drain()["step"])) == [10, 11, 12, 13]
    assert steps["profiled"].sum() == 4


@pytest.mark.parametrize("text", ["", "4", "4/", "/4", "4/4", "5/4", "0/9", "a/b", "4/400/2"])
def test_a_plan_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match="M/N"):
        WindowPlan.parse(text)
