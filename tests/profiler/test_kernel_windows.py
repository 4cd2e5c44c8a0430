"""Windows of the torch profiler: when they open, which steps they mark, what they cost."""

import json
import time

import pytest

from profiler.kernels import BUDGET, KernelWindows, WindowPlan
from profiler.steps import StepProbe
from tests.profiler.scheduler import FakeScheduler, decoding
from traces.errors import UsageError


class FakeEngine:
    """Counts its profiler's steps and writes a trace of them, as vLLM's worker does."""

    def __init__(self, folder, *, stall_s=0.0, lost_steps=0, broken=False, refuse=False):
        self.folder, self.stall_s, self.lost_steps = folder, stall_s, lost_steps
        self.broken, self.refuse = broken, refuse
        self.prefix = None
        self.steps = 0

    def start_profile(self, profile_prefix):
        if self.refuse:
            raise RuntimeError("Profiling is not enabled")
        self.prefix, self.steps = profile_prefix, 0

    def stop_profile(self):
        time.sleep(self.stall_s)
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


def _event(category, name, start, length):
    common = {"ph": "X", "pid": 1, "tid": 1, "args": {}}
    return common | {"cat": category, "name": name, "ts": start, "dur": length}


def run(folder, plan, steps, *, step_s=0.0, **options):
    """Do so many steps with windows; gives the engine, the windows and the steps' rows."""
    folder.mkdir()
    scheduler = FakeScheduler([decoding([5] * 4) for _ in range(steps)])
    scheduler.running = ["r0"]
    probe = StepProbe(scheduler, "e", 0)
    probe.install()
    engine = FakeEngine(folder, **options)
    windows = KernelWindows(engine, probe, WindowPlan.parse(plan), folder)
    windows.warm_up()
    windows.reset()
    for _ in range(steps):
        engine.steps += 1
        time.sleep(step_s)
        scheduler.update_from_output(scheduler.schedule(), None)
        windows.between_steps()
    windows.finish()
    return engine, windows, probe.drain()


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
    assert windows.cost_share is not None and windows.cost_share > 0
    assert not list(windows.folder.iterdir())


def test_the_period_is_stretched_until_windows_cost_little(tmp_path):
    _, windows, steps = run(tmp_path / "t", "2/10", 800, step_s=0.0005, stall_s=0.005)
    opened = steps.filter("profiled")["step"].to_list()
    starts = [step for step in opened if step - 1 not in opened]
    assert starts[0] == 5
    # Without the budget there would be 80 windows, and their stalls half of the time.
    assert 2 <= len(starts) <= 10
    assert windows.cost_share <= 2 * BUDGET


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
