"""What engines serve in a steady state does not depend on how many problems there are to try."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from advisor.evidence.features import FEATURES
from advisor.evidence.runs import RecordedProblem, Sample
from advisor.replay.capacity import capacity_per_s
from advisor.replay.limits import Limits
from advisor.replay.replay import Replicas, replay, stop_of
from advisor.replay.result import Replayed
from advisor.replay.workload import ReplayWorkload
from advisor.step_time.cost import linear_cost
from traces.schema.tts.parameters import make_policy

SECONDS = np.array([{"step": 0.007, "tokens": 2e-5}.get(name, 0.0) for name in FEATURES])


def problems_of(count: int, n: int = 1) -> list[RecordedProblem]:
    """Problems whose samples have long tails. In some of them the samples agree sooner."""
    rng = np.random.default_rng(7)
    found = []
    for _ in range(count):
        lengths = np.clip(rng.lognormal(6.3, 0.8, n), 50, 4000).astype(int)
        common = rng.uniform(0.3, 1.0)  # how often its samples give the same answer
        samples = tuple(
            Sample(
                output_tokens=int(length),
                answer="0" if rng.random() < common else str(rng.integers(1, 9)),
                correct=True,
            )
            for length in lengths
        )
        found.append(RecordedProblem(prompt_tokens=120, cached_tokens=0, samples=samples))
    return found


def served(problems, *, seqs, replicas=1, stop=None, blocks=None, ahead=False) -> float:
    def stream(passes: int) -> ReplayWorkload:
        order = np.random.default_rng(1).permutation(len(problems))
        return ReplayWorkload.from_loads([problems[place] for place in order] * passes)

    def serve(workload: ReplayWorkload, **load: int) -> Replayed:
        return replay(
            workload,
            linear_cost(SECONDS),
            Limits(
                max_num_seqs=seqs, max_num_batched_tokens=8192, block_size=16, num_blocks=blocks,
                async_scheduling=ahead,
            ),
            stop=stop,
            replicas=Replicas(count=replicas, routing="least-outstanding"),
            **load,
        )  # fmt: skip

    return capacity_per_s(
        stream, serve, problems=len(problems), draws=1, engines=replicas, slots=seqs,
    )  # fmt: skip


@pytest.mark.parametrize(("seqs", "replicas"), [(8, 1), (64, 1), (64, 3)])
def test_a_few_problems_are_served_as_fast_as_their_tokens_allow(seqs, replicas):
    problems = problems_of(40)
    tokens = np.mean([problem.samples[0].output_tokens for problem in problems])
    # Each engine is full: so many tokens a step, and a step takes what so many tokens cost.
    step_s = SECONDS[FEATURES.index("step")] + seqs * SECONDS[FEATURES.index("tokens")]
    full = replicas * seqs / (tokens * step_s)
    assert served(problems, seqs=seqs, replicas=replicas) == pytest.approx(full, rel=0.08)


@pytest.mark.parametrize("ahead", [False, True], ids=["sync", "async"])
def test_short_answers_fill_many_slots(ahead):
    answer = Sample(output_tokens=8, answer=None, correct=None)
    load = RecordedProblem(prompt_tokens=20, cached_tokens=0, samples=(answer,))
    # 20 + 7 tokens in 8 steps; one more of each where the next step is planned before it ends.
    turns, tokens = 8 + ahead, 27 + ahead
    step_s = SECONDS[FEATURES.index("step")]
    step_s += 1024 / turns * tokens * SECONDS[FEATURES.index("tokens")]
    expected = 1024 / turns / step_s
    assert served([load] * 100, seqs=1024, ahead=ahead) == pytest.approx(expected, rel=0.02)


RULES = [
    {"method": "majority", "n": 16},
    {"method": "adaptive", "n": 16},
    {"method": "early_stopping", "n": 16},
    {"method": "agreement", "n": 16, "agree": 9, "in_flight": 4},
]


@pytest.mark.slow
@pytest.mark.parametrize("seqs", [32, 256])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["method"])
def test_rules_that_draw_later_are_served_as_fast_from_a_few_problems(rule, seqs):
    stop = stop_of(make_policy({"temperature": 0.8, "max_tokens": 4000, **rule}))
    few = problems_of(24, n=16)
    once = served(few, seqs=seqs, stop=stop)
    assert once == pytest.approx(served(few * 20, seqs=seqs, stop=stop), rel=0.08)


def test_a_cache_that_is_full_before_the_slots_serves_as_so_many_slots():
    problems = problems_of(40)
    # What runs holds its prompt and, weighed by how long it runs, half of its output.
    outputs = np.array([problem.samples[0].output_tokens for problem in problems])
    held = 120 + np.sum(outputs * outputs / 2) / np.sum(outputs) + 8
    blocks = int(40 * held / 16)
    crowded = served(problems, seqs=1024, blocks=blocks)
    assert crowded == pytest.approx(served(problems, seqs=40), rel=0.1)


def test_requests_of_one_length_come_and_go_together():
    alike = problems_of(1) * 10
    step_s = SECONDS[FEATURES.index("step")] + 32 * SECONDS[FEATURES.index("tokens")]
    expected = 32 / (alike[0].samples[0].output_tokens * step_s)
    assert served(alike, seqs=32) == pytest.approx(expected, rel=0.05)


def test_without_a_limit_all_problems_are_in_flight():
    problems = problems_of(40)
    unlimited, limited = (served(problems, seqs=seqs) for seqs in (None, 20))
    assert np.isfinite(unlimited) and unlimited > limited
    assert served(problems * 4, seqs=None) > 2 * unlimited


@pytest.mark.parametrize("step_s", [1e-12, 0.0])
def test_steps_that_take_hardly_any_time_serve_many_and_are_not_replayed_for_long(step_s):
    asked = []

    def stream(passes: int) -> SimpleNamespace:
        asked.append(passes * 50)
        return SimpleNamespace(prompt_tokens=range(passes * 50))

    def serve(workload: SimpleNamespace, concurrency: int) -> SimpleNamespace:
        """Answers take 72 ms on their way, so that a request begins so long before it is run."""
        places = np.arange(len(workload.prompt_tokens))
        begun = np.maximum(places - concurrency, 0) * step_s - 0.072
        return SimpleNamespace(arrival_s=begun, latency_s=np.full(len(places), 0.072))

    found = capacity_per_s(stream, serve, problems=50, draws=1, engines=1, slots=None)
    assert found == pytest.approx(1 / step_s if step_s else np.inf, rel=0.1)
    assert sum(asked) < 1_000
