"""What every policy must keep, on every engine. `check` runs one and looks at its recording."""

from contextlib import contextmanager
from unittest.mock import patch

import polars as pl

from profiler.runs import loop as run_module
from profiler.runs.record import record
from traces.recording.reader import Recording
from traces.schema.tts.parameters import make_policy, most_requests

POLICIES = {
    "greedy": {"method": "greedy"},
    "majority": {"method": "majority", "n": 4},
    "best_of_n": {"method": "best_of_n", "n": 4},
    "weighted": {"method": "weighted", "n": 4},
    "confidence": {"method": "confidence", "n": 4, "keep": 0.5, "confidence_window": 4},
    "early_stopping": {"method": "early_stopping", "n": 7, "window": 3},
    "adaptive": {"method": "adaptive", "n": 8},
    "adaptive in turn": {"method": "adaptive", "n": 6, "in_flight": 1},
    "agreement": {"method": "agreement", "n": 8, "agree": 2},
    "agreement in turn": {"method": "agreement", "n": 6, "agree": 3, "in_flight": 2},
    "first_finish": {"method": "first_finish", "n": 6, "first": 2},
    "routed": {"method": "routed", "n": 6, "route": "6,6,6,3"},
    "budget_forcing": {"method": "budget_forcing", "n": 2, "extend": 2, "word": "."},
    "sequential": {"method": "sequential", "n": 3, "revise_prompt": "{prompt}"},
    "beam": {"method": "beam", "n": 4, "width": 2, "depth": 3, "step_stop": "=", "step_tokens": 9},
    "thinking budget": {"method": "majority", "n": 3, "thinking_token_budget": 5},
    "forced thinking budget": {
        "method": "budget_forcing", "extend": 1, "word": ".", "thinking_token_budget": 20,
    },
}  # fmt: skip
CANCELLING = {
    "adaptive", "adaptive in turn", "agreement", "agreement in turn", "first_finish", "routed",
}  # fmt: skip
ON_ENGINES = (  # whose requests differ; how the others decide is the same on any engine
    "greedy", "confidence", "early_stopping", "adaptive", "routed", "budget_forcing", "sequential",
    "beam", "thinking budget", "forced thinking budget",
)  # fmt: skip


def policy_of(name):
    fields = {"temperature": 0.0 if name == "greedy" else 0.8, "max_tokens": 200}
    return make_policy(POLICIES[name] | fields)


class WatchedRun:
    """A policy's state that notes its decisions and refuses to be asked after one."""

    decisions = ()

    def __init__(self, policy, group):
        self.inner = run_module.real_start(policy, group)
        self.decided = False

    def begin(self):
        return self.noted(self.inner.begin())

    def on_sample(self, vote):
        assert not self.decided, "asked after its decision"
        return self.noted(self.inner.on_sample(vote))

    def noted(self, move):
        if move.decision is not None:
            self.decided = True
            WatchedRun.decisions += (move.decision,)
            assert not move.draw
        return move

    def answer_now(self):
        return self.inner.answer_now()


@contextmanager
def watched_decisions():
    WatchedRun.decisions = ()
    run_module.real_start = run_module.start
    with patch.object(run_module, "start", WatchedRun):
        yield
    del run_module.real_start


def check(name, workload, engine, folder, *, tokens_made, idle, slack=0, **options):
    """Run a policy and check the contract; returns the recording.

    `tokens_made(recording)` is the engine's own count of the tokens that it generated in the run,
    from which those of cancelled samples may differ by `slack` each; `idle()` whether nothing
    runs in it.
    """
    policy = policy_of(name)
    with watched_decisions():
        path = record(workload, policy, engine, folder, concurrency=3, **options)
    recording = Recording.open(path)
    problems, samples = recording.problems, recording.samples
    assert recording.complete
    assert idle(), "requests are left in the engine"
    count = len(workload.problems)
    assert problems.height == count == len(WatchedRun.decisions)
    assert problems["end"].null_count() == problems["decided_at"].null_count() == 0
    own = samples.filter(pl.col("role").is_in(["sample", "forced", "revision"]))
    drawn = own.filter(pl.col("sample_index") < most_requests(policy))
    per_problem = drawn.group_by("problem_id").len()
    assert per_problem.height == count
    assert per_problem["len"].max() <= most_requests(policy)
    assert samples.select("problem_id", "sample_index").is_unique().all()
    assert samples["end"].null_count() == 0
    cancelled = samples.filter(pl.col("cancelled_by").is_not_null())
    assert set(cancelled["cancelled_by"]) <= {"decision", "timeout"}
    assert cancelled["output_tokens"].null_count() == cancelled["answer"].count() == 0
    assert set(cancelled["finish_reason"]) <= {"abort"}
    if name not in CANCELLING:
        assert cancelled.height == 0
    short = tokens_made(recording) - samples["output_tokens"].sum()
    assert 0 <= short <= slack * cancelled.height
    assert (samples.filter(role="forced")["parent_sample"].null_count()) == 0
    return recording
