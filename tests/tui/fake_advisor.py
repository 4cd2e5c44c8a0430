"""An advisor that answers at once: a small and a large model, and what was asked of it."""

from __future__ import annotations

from advisor.advice.measure_next.forward_shapes import Forwards
from advisor.search.budget import Prices
from tests.traces.synthetic import engine_config
from traces.errors import TtscopeError, UsageError
from traces.schema.advice import Budget, NearMiss, Pick, Present, Recommendation, Turning
from traces.schema.estimate import Estimate
from traces.schema.tts.policy import Policy
from tui.screens.library import words_of


def estimate(value: float, unit: str, *, extrapolated: bool = False) -> Estimate:
    return Estimate(
        value=value,
        low=value * 0.9,
        high=value * 1.1,
        unit=unit,
        extrapolated=extrapolated,
        of="others",
    )


def pick(model: str, n: int, accuracy: float, latency: float, flops: float) -> Pick:
    policy = Policy() if n == 1 else Policy(method="majority", n=n, temperature=0.8)
    return Pick(
        engine=engine_config(model=model),
        policy=policy,
        command=f"vllm serve {model} --max-num-seqs 8",
        estimates={
            "accuracy": estimate(accuracy, "1"),
            "latency_s": estimate(latency, "s"),
            "latency_p95_s": estimate(latency * 2, "s", extrapolated=n > 1),
            "device_s": estimate(latency / 2, "device-s"),
            "cost_usd": None,
            "tokens": estimate(100.0 * n, "tokens"),
            "flops": estimate(flops, "FLOP"),
        },
        probability_within_budget=0.93,
    )


SMALL, LARGE = pick("small", 1, 0.71, 0.4, 1e9), pick("large", 4, 0.93, 1.6, 3e9)


class FakeAdvisor:
    def __init__(self, recordings):
        self.recordings = recordings
        self.budgets: list[Budget] = []
        self.presents: list[object] = []

    def outline(self, budget):
        return None

    def recommend(self, budget: Budget, present=None, progress=None) -> Recommendation:
        self.budgets.append(budget)
        self.presents.append(present)
        if budget.max_energy_j is not None:
            raise UsageError("--max-energy: energy was not measured in these recordings")
        if budget.max_gpus == 7:
            raise ZeroDivisionError("a defect")
        fits = budget.max_latency_s is None or budget.max_latency_s > 0.5
        picked = fits and budget.required
        return Recommendation(
            budget=budget,
            system_optimal=LARGE if picked else None,
            compute_optimal=SMALL if picked else None,
            regret={"latency_s": estimate(-1.2, "s"), "cost_usd": None} if picked else {},
            pareto=(SMALL, LARGE) if fits else (),
            compute_pareto=(SMALL, LARGE) if fits else (),
            reasons=("the weights bound the step",),
            near_misses=()
            if fits
            else (
                NearMiss(
                    limit="max_latency_s", wanted=budget.max_latency_s or 0.0,
                    nearest=estimate(0.6, "s"), sure=0.02, pick=SMALL,
                ),
            ),
            measure_next=("large greedy: settles 1 against 2",),
            candidates=12,
            infeasible={"does not fit the memory": 3},
            sensitivity=(
                Turning(
                    name="min_accuracy", value=0.9, unit="1", direction="below",
                    pick="small greedy", exact=False,
                ),
            )
            if fits
            else (),
            present=None
            if present is None
            else Present(
                pick=SMALL,
                best=present == (LARGE.engine, LARGE.policy),
                difference={"latency_p95_s": estimate(12.5, "s"), "cost_usd": None},
            ),
        )  # fmt: skip

    def price_of(self, run, budget):
        return Prices(budget, None).of_run(run)

    def what_if(self, pick, changes, budget):
        words_of(changes)
        raise UsageError(f"what-if: no recording of {pick.engine.model}")

    def accounts(self, answer, api_price):
        return None, None, None

    def write_plan(self, path, answer):
        if answer.system_optimal is None:
            raise TtscopeError("--plan: nothing fits, so there is nothing to measure for it")
        path.write_text("runs: []\n")
        shapes = path.with_name(f"{path.stem}-m-tp2.forward.json")
        return Forwards(files=(shapes,), commands=("vllm bench forward --model m",))
