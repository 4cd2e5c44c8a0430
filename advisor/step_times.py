"""What a replay is asked, and where its step times come from: recordings, or operator tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from advisor.models.operator_files import Operators
from advisor.models.step_cost import StepCost, linear_cost, scaled_cost, table_cost
from advisor.models.step_time import StepLaw
from advisor.replay import Replicas
from traces.errors import UsageError
from traces.schema import EngineConfig, ModelFacts, Policy

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked: an engine, a policy and a load.

    Without a load the recorded one is meant: so many problems in flight, or the recorded arrivals.
    Arrivals at `rate_per_s` are drawn several times, with `arrivals_sent` only those of the seed.
    With `operators`, a folder of operator tables of a GPU, step times are theirs, for a model of
    `num_hidden_layers` (that of `model_facts`, or of the recorded model, if not given), and the
    all-reduces, which tables leave out, are those of `collectives`
    (`communication.measured_messages`). With `gpu`, the name of a system of the prior
    (models/prior_tables.py), they are that system's, for a model of `model_facts` (the recorded one
    if not given). `assumed` are fields of the engine that nobody set, which have vLLM's defaults.
    """

    engine: EngineConfig
    policy: Policy
    concurrency: int | None = None
    rate_per_s: float | None = None
    arrivals_sent: bool = False
    replicas: Replicas = field(default_factory=Replicas)
    seed: int = 0
    operators: Path | None = None
    num_hidden_layers: int | None = None
    collectives: Path | None = None
    gpu: str | None = None
    model_facts: ModelFacts | None = None
    assumed: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """Where a question's step times come from.

    `sigma` is the spread of a whole run's speed inside and outside what was recorded, None for
    operator tables, which no run of the user's has checked; `runs` taught it, and `repeats` are the
    recordings left out from which these spreads are measured, 0 where they are assumed. `notes` are
    what else there is to say of them.
    """

    cost: StepCost
    sigma: tuple[float, float] | None
    runs: int | None
    within: Callable[[Mapping[str, float]], bool]
    notes: tuple[str, ...] = ()
    repeats: tuple[int, int] | None = None

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
        repeats=(law.repeats, law.repeats_outside),
    )


def _layers(question: Question, operators: Operators, facts: ModelFacts | None) -> int:
    """Return how many layers the model of the tables has.

    Raises UsageError where nothing says it, or what says it contradicts itself.
    """
    given = question.num_hidden_layers
    if facts is None:
        if given is None or given < 1:
            raise UsageError(
                "--operators: say how many layers the model has, --num-hidden-layers 32, or give "
                "its config.json with --model-config"
            )
        return given
    whose = "--model-config" if question.model_facts is not None else "the recorded model"
    if given not in (None, facts.num_hidden_layers):
        raise UsageError(
            f"--num-hidden-layers {given}: {whose} ({facts.name}) has {facts.num_hidden_layers}. "
            "Leave it out, or give the config.json of the tables' model with --model-config"
        )
    if not facts.reads_all(question.engine.max_model_len):
        raise UsageError(
            f"--operators: {whose} ({facts.name}) has {facts.other_layers()}, which is in no "
            "table. Give a model whose layers read the whole context"
        )
    operators.check_model(facts, question.engine)
    return facts.num_hidden_layers


def tabled(
    question: Question, operators: Operators, facts: ModelFacts | None, longest: int
) -> StepTimes:
    """Return the step times of operator tables.

    Raises UsageError when the number of layers is not known or the model is not the tables',
    TablesError for tables of tensor parallelism without collectives.
    """
    from advisor.models.operators import default_capture_sizes, domain, step_tables

    engine, facts = question.engine, question.model_facts or facts
    layers = _layers(question, operators, facts)
    if engine.max_num_seqs is None or engine.max_num_batched_tokens is None:
        raise UsageError(
            "--operators: set engine.max_num_seqs and engine.max_num_batched_tokens, "
            "which this recording does not tell"
        )
    measured = domain(operators)
    captured = [] if engine.enforce_eager else default_capture_sizes(engine.max_num_seqs)
    together = _all_reduces(question, facts, layers, captured)
    tables = step_tables(
        operators,
        num_hidden_layers=layers,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        max_num_seqs=engine.max_num_seqs,
        capture_sizes=captured,
        tensor_parallel_size=engine.tensor_parallel_size,
        collectives=None if together is None else together.seconds,
    )

    def within(peaks: Mapping[str, float]) -> bool:
        most = {"tokens": peaks["tokens"], "batch": peaks["requests"], "context": longest}
        known = together is None or peaks["tokens"] <= together.most_tokens
        return known and not measured.beyond(most)

    return StepTimes(
        cost=table_cost(tables),
        sigma=None,
        runs=None,
        within=within,
        notes=(operators.source, *(() if together is None else (together.note,))),
    )


@dataclass(frozen=True, kw_only=True)
class _AllReduces:
    """Seconds of a step's all-reduces by its tokens, of which so many at most were measured."""

    seconds: Callable[[Floats], Floats]
    most_tokens: float
    note: str


def _all_reduces(
    question: Question, facts: ModelFacts | None, layers: int, captured: Sequence[int]
) -> _AllReduces | None:
    """Return what the question's collectives say of its engine and model, None without any."""
    path, size = question.collectives, question.engine.tensor_parallel_size
    if path is None:
        return None
    if size == 1:
        raise UsageError("--collectives: one GPU has none; set engine.tensor_parallel_size")
    if facts is None:
        raise UsageError(
            "--collectives: a message is as large as the model's hidden size says, which this "
            "recording does not tell; give the model's config.json with --model-config"
        )
    from advisor.models.communication import Communication, all_reduces, measured_messages

    found = Communication().fit(measured_messages(path))
    eager, graph = (found.law("all_reduce", size, graph=each) for each in (False, True))
    note = (
        f"all-reduces of {size} are those of {path.name}: {eager.sizes:,} sizes up to "
        f"{eager.high_bytes:,.0f} bytes"
    )
    if eager.left_out_error is not None:
        note += f", known to {eager.left_out_error:.1%} where they were left out"
    if captured and graph is eager:
        note += "; launched one by one, also where the engine runs in CUDA graphs"
    return _AllReduces(
        seconds=all_reduces(
            replace(facts, num_hidden_layers=layers),
            eager=eager.seconds,
            graph=graph.seconds,
            captured=max(captured, default=0),
        ),
        most_tokens=eager.high_bytes / (2 * facts.hidden_size),
        note=f"{note}; the gathering of logits is left out",
    )
