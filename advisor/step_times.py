"""Where a question's step times come from: the law of recorded steps, or operator tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from advisor.models.step_cost import StepCost, linear_cost, scaled_cost, table_cost
from advisor.models.step_time import StepLaw
from traces.errors import UsageError
from traces.schema import EngineConfig


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """Where a question's step times come from.

    `sigma` is the spread of a whole run's speed inside and outside what was recorded, None for
    operator tables, which no run of the user's has checked; `runs` taught it.
    """

    cost: StepCost
    sigma: tuple[float, float] | None
    runs: int | None
    within: Callable[[Mapping[str, float]], bool]

    def at(self, factor: float) -> StepCost:
        """Return the cost of steps that take `factor` times as long."""
        return self.cost if factor == 1.0 else scaled_cost(self.cost, factor)


def learned(law: StepLaw) -> StepTimes:
    """Return the step times of recorded steps."""
    return StepTimes(
        cost=linear_cost(law.seconds),
        sigma=(law.sigma, law.sigma_outside),
        runs=law.runs,
        within=law.within,
    )


def tabled(engine: EngineConfig, folder: Path, layers: int | None, longest: int) -> StepTimes:
    """Return the step times of operator tables of a GPU, for samples of up to `longest` tokens.

    Raises UsageError when the number of layers is not known, TablesError for damaged tables.
    """
    from advisor.models.operator_files import read_operators
    from advisor.models.operators import default_capture_sizes, domain, step_tables

    if layers is None or layers < 1:
        raise UsageError("--operators: say how many layers the model has, --num-hidden-layers 32")
    if engine.max_num_seqs is None or engine.max_num_batched_tokens is None:
        raise UsageError(
            "--operators: set engine.max_num_seqs and engine.max_num_batched_tokens, "
            "which this recording does not tell"
        )
    operators = read_operators(folder)
    measured = domain(operators)
    captured = [] if engine.enforce_eager else default_capture_sizes(engine.max_num_seqs)
    tables = step_tables(
        operators,
        num_hidden_layers=layers,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        max_num_seqs=engine.max_num_seqs,
        capture_sizes=captured,
        tensor_parallel_size=engine.tensor_parallel_size,
    )

    def within(peaks: Mapping[str, float]) -> bool:
        most = {"tokens": peaks["tokens"], "batch": peaks["requests"], "context": longest}
        return not measured.beyond(most)

    return StepTimes(cost=table_cost(tables), sigma=None, runs=None, within=within)
