"""Step times of a GPU from the prior, recalibrated by recordings of that GPU where there are any.

A recording says how much longer its kernels took than the prior has them, by family, where kernels
were profiled, and how much longer its steps took than the kernels of the prior so scaled: what the
tables lack (the host's work, gaps between kernels) is in that last factor. The factors go with the
GPU, so a recording of one model and tensor-parallel size speaks for others.

Cases of `vllm bench forward` say it of the kernels alone, by family, where no steps were recorded.

A mean time between tokens that somebody measured at a load (`MeasuredLoads`) corrects steps of that
load, and those of others the less the farther they are from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, NamedTuple

import numpy as np
import polars as pl

from advisor.evidence.features import FEATURES, Features
from advisor.evidence.live.ranks import ranks_in
from advisor.evidence.runs import RecordedRun
from advisor.step_time.cost import (
    StepCost,
    drafts_speed,
    predicted_steps,
    scaled_cost,
    table_cost,
    with_hidden,
)
from advisor.step_time.host.law import HostPart, host_note, host_part
from advisor.step_time.host.spread import Spread, first_tokens_of, was_seen
from advisor.step_time.host.spread import spread_of as published_spread
from advisor.step_time.law import StepTimes, StepTotals, largest, non_negative_least_squares
from advisor.step_time.operators.tables import captured_sizes
from advisor.step_time.power.boards import board_of
from advisor.step_time.power.law import PowerLaw
from advisor.step_time.power.prior import (
    BATCHES,
    NOTHING,
    BusyBoard,
    PowerAsked,
    is_known,
    power_note,
    prior_law,
    slowed,
    slowed_spread,
    slowed_tables,
)
from advisor.step_time.prior.drafting import (
    MOST,
    Drafting,
    drafting_of,
    mean_context,
    verify_step,
)
from advisor.step_time.prior.operations.moving import SORT_S, sorts_logits
from advisor.step_time.prior.prior import (
    FAMILIES,
    LONGEST,
    PRIOR_MISSING,
    PRIOR_RULES,
    USUAL_BATCH,
    Prior,
    prior_of,
)
from advisor.step_time.prior.tables import PriorTables
from traces.errors import TablesError, UsageError
from traces.foreign.values import UNKNOWN_MODEL
from traces.notes import Decisive, Telling
from traces.recording.reader import Recording
from traces.recording.tables import COMPOSITION, FORWARD, STEP_INTERVAL
from traces.schema.engine import LOOKUPS, EngineConfig, ModelFacts
from traces.schema.formats import counted, percent
from traces.schema.tts.policy import Policy
from traces.statistics import Z95, Floats, student_95
from traces.summary.comparison import PRIOR_REPEATS, RUN_TO_RUN

MATTERS: Final = 0.02  # of a step
# How far a recalibration is off at another tensor-parallel size (sd of a log): up to 18 % in the
# runs of benchmarks/RESULTS.md.
OTHER_SIZE: Final = float(np.log(1.18)) / Z95
MOST_STEPS: Final = 2000  # of a recording, evenly spaced, that are priced
ROUTING_NOTE: Final = (
    "experts are visited unevenly, as by a power law of 1.01. Balanced, or by one of 1.2, a step "
    "of usual size takes up to {:.0f} % longer or less"
)
SHARING_NOTE: Final = (
    "experts are shared by the {} data-parallel ranks of a server, which are taken to have as many "
    "tokens at a time as one another"
)
CASE_NOISE: Final = 0.03  # of a case's time, beside its kernels'
FAMILY_SPREAD: Final = 0.15  # of a family's factor (sd), before cases are seen
UNLIKE: Final = 2.5  # times what tables give, beyond which a case is of another model or GPU
UNTAUGHT: Final = "teaches no step times:"
# What a measured load says of others, as published runs have it (benchmarks/measured_loads.py).
AGAIN: Final = 0.02  # spread (sd) of the log of a mean time that is measured again on a GPU
FADES: Final = (3.0, 6.0)  # doublings, of requests and of contexts, over which it falls to 1/e
ROUNDS: Final = 2  # of looking at the load that corrected steps have
FREEDOM: Final = 6.0  # of the law of all errors of an engine: how well their spread is known
# Times the prior's variance, beyond which what is off is the engine, at all of its loads alike:
# another kernel than the tables have, or a host that hides nothing. So much of it at most.
WHOLE, MOST_WHOLE = 3.0, 0.6
STALL: Final = 10.0  # steps beyond so many times the usual count as that many times
FAMILY_OF_KERNELS: Final = {
    "gemm": "gemm",
    "attention": "attention",
    "kv-cache": "attention",
    "communication": "communication",
}


@dataclass(frozen=True, kw_only=True)
class Recalibration:
    """What recordings of the GPU say of the prior.

    `families` are factors by family, of those whose kernels were profiled; `step` is the factor of
    all that is left. `sigma` is the spread (sd) of the log of a run's time about the prediction;
    `checked` are the models (nameless) and tensor-parallel sizes that ran: a factor learned at one
    size is off at another (benchmarks/RESULTS.md), so others have a wider interval (OTHER_SIZE).
    `recordings` taught it. Of `cases` it is what the kernels alone took: the host's part, and so
    the interval, is the prior's, and nothing is `checked`. `untaught` says, by recording, which
    cases taught nothing and why.
    """

    families: Mapping[str, float]
    step: float
    sigma: float
    checked: frozenset[tuple[ModelFacts, int]]
    recordings: tuple[str, ...]
    cases: int = 0
    untaught: Mapping[str, str] = field(default_factory=dict)

    def has(self, facts: ModelFacts, tensor_parallel_size: int) -> bool:
        """Whether this model ran at this tensor-parallel size."""
        return _shape(facts, tensor_parallel_size) in self.checked

    @property
    def scales(self) -> str:
        """The factors of the families in words."""
        return ", ".join(f"{name} x{scale:.2f}" for name, scale in self.families.items())

    def cases_note(self) -> str:
        """Say what cases of the forward alone said of the kernels."""
        return (
            f"kernels recalibrated by {counted(self.cases, 'case')} of vllm bench forward "
            f"({', '.join(self.recordings)}): {self.scales}. With these factors they are "
            f"{percent(self.sigma)} off on average (root mean square)"
        )


class StepLoad(NamedTuple):
    """What an engine has in a step on average: requests, and tokens of context of each."""

    requests: float
    context: float

    @classmethod
    def of(cls, run: StepTotals) -> StepLoad:
        """Return the load of a replay."""
        totals = Features(*run.totals.tolist())
        requests = max(totals.requests, 1.0)
        return cls(requests / max(totals.step, 1.0), max(totals.kv_tokens / requests, 1.0))


@dataclass(frozen=True, kw_only=True)
class MeasuredLoads:
    """Loads whose mean time per token was measured on the GPU.

    `logs` [loads] are of measured over predicted time, and `spreads` [loads, 2] the prior's own
    there before anything was measured (`spread_at`).
    """

    loads: tuple[StepLoad, ...]
    logs: Floats
    spreads: Floats

    def correction(self, load: StepLoad, spread: Floats) -> tuple[float, float]:
        """Return the log of the factor of steps at a load, and its spread (sd), a fresh run's too.

        The posterior of a Gaussian process (kriging). The prior's errors at two loads have the
        correlation exp(-distance), each doubling of requests or contexts being 1 / FADES of it,
        and a mean that is measured again differs by AGAIN. Their common scale is not known better
        than a spread of FREEDOM degrees is: where the loads lie farther off than the prior's
        `spread` [2] is wide, that of others is wider too, else narrower. What is more surprising
        than WHOLE does not fade.
        """
        places = np.log2(np.array([*self.loads, load])) / FADES
        alike = np.exp(-np.abs(places[:, None] - places[None]).sum(axis=2))
        sizes = np.vstack([self.spreads, spread])
        again = AGAIN**2 * np.eye(len(self.logs))
        usual = WHOLE * len(self.logs)
        surprise = max(self._surprise(alike * (sizes @ sizes.T), again), usual)
        whole = min(1 - usual / surprise, MOST_WHOLE)
        errors = (whole + (1 - whole) * alike) * (sizes @ sizes.T)
        measured, to = errors[:-1, :-1], errors[:-1, -1]
        surprise = self._surprise(errors, again)
        scale = (FREEDOM - 2 + surprise) / (FREEDOM - 2 + len(self.logs))
        weights = np.linalg.solve(scale * measured + again, scale * to)
        left = scale * (float(errors[-1, -1]) - float(weights @ to))
        return float(weights @ self.logs), float(np.sqrt(max(left, 0.0) + AGAIN**2))

    def _surprise(self, errors: Floats, again: Floats) -> float:
        """Return the squared errors of the measured loads over what is expected of them."""
        return float(self.logs @ np.linalg.solve(errors[:-1, :-1] + again, self.logs))


@dataclass(frozen=True, kw_only=True)
class PriorTimes:
    """The prior of one GPU and model; `found` is what recordings said of it, None without any.

    Samples may be drawn from `truncated` vocabularies. An engine of a replay is one of `ranks` of
    data parallelism, each a replica: those of a mixture share its experts, and are taken to have as
    many tokens at a time. `told` says how what was `measured` corrects it. A power cap that was
    `asked` makes steps longer.
    """

    tables: PriorTables
    facts: ModelFacts
    found: Recalibration | None
    ranks: int = 1
    truncated: bool = False
    told: tuple[str, ...] = ()
    models: Mapping[str, ModelFacts] = field(default_factory=dict)
    measured: MeasuredLoads | None = None
    asked: PowerAsked = NOTHING

    @classmethod
    def of(
        cls,
        tables: PriorTables,
        facts: ModelFacts,
        recordings: Sequence[Recording],
        *,
        ranks: int = 1,
        truncated: bool = False,
        asked: PowerAsked = NOTHING,
    ) -> PriorTimes:
        """Return the prior of a model on a system, as recordings of that GPU correct it.

        Raises UsageError for a cap that no such board has.
        """
        asked.check(tables.device, tables.gpu.get("power"))
        models = {name: each for one in recordings for name, each in one.manifest.models.items()}
        return cls(
            tables=tables,
            facts=facts,
            found=recalibrate(tables, recordings, models=models | {facts.name: facts}, asked=facts),
            ranks=ranks,
            truncated=truncated,
            models=models,
            asked=asked,
        )

    @property
    def ran(self) -> Recalibration | None:
        """What whole steps or requests said of the prior; None where at most its kernels ran."""
        return None if self.found is None or not self.found.checked else self.found

    def drafting(self, engine: EngineConfig) -> Drafting | None:
        """Return what drafting takes in a step, None without speculation.

        Raises UsageError where the model that drafts is not known.
        """
        tables = self.tables.of_version(engine.vllm_version)
        return drafting_of(
            tables, self.facts, self.shared(engine), self.models, scaled=self._scaled
        )

    def shared(self, engine: EngineConfig) -> EngineConfig:
        """Return an engine with the ranks of data parallelism that share a mixture's experts."""
        return replace(engine, data_parallel_size=self.ranks) if self.facts.num_experts else engine

    def pays(self, engine: EngineConfig, runs: Sequence[RecordedRun]) -> str | None:
        """Say up to which batch an engine's drafts pay, as those of runs went; None without any.

        Raises UsageError where the model that drafts is not known.
        """
        step = verify_step(runs)
        if engine.speculative is None or step is None:
            return None
        plain, context = replace(engine, speculative=None), mean_context(runs)
        batches = np.arange(1, (engine.max_num_seqs or MOST) + 1)
        speed = drafts_speed(
            self.cost(plain),
            self.cost(engine),
            batches,
            computed=step.computed,
            kept=step.kept,
            context=context,
        )
        k, less = engine.speculative.num_speculative_tokens, np.flatnonzero(speed <= 1.0)
        head = f"drafts of {k}, which give {step.kept:.2f} tokens a step,"
        if not len(less):
            most = f"pay at all batches up to {batches[-1]:,}"
            return f"{head} {most} (x{speed[0]:.2f} alone, x{speed[-1]:.2f})"
        if less[0] == 0:
            return f"{head} do not pay even for one request (x{speed[0]:.2f})"
        return (
            f"{head} pay up to {less[0]:,} requests at a time (x{speed[0]:.2f} alone, "
            f"x{speed[less[0]]:.2f} with {less[0] + 1:,}), at contexts of {context:,.0f} tokens"
        )

    def prior(self, engine: EngineConfig) -> Prior:
        """Return the operator times of an engine, as the recordings scale them.

        Raises UsageError for an engine that cannot be priced, TablesError for shapes that were not
        measured.
        """
        shared, truncated = self.shared(engine), self.truncated
        return self._scaled(prior_of(self.tables, self.facts, shared, truncated=truncated))

    def _scaled(self, prior: Prior) -> Prior:
        return prior if self.found is None else _recalibrated(prior, self.found)

    def cost(self, engine: EngineConfig) -> StepCost:
        """Return the cost of an engine's steps, at the power cap where one is asked.

        Raises UsageError for a cap where what steps would draw is not known.
        """
        prior, shared, drafting = self.prior(engine), self.shared(engine), self.drafting(engine)
        busy, cap = self.busy(engine), self.asked.cap_w
        if cap is None:
            return cost_of(prior, shared, drafting)
        if busy is None:
            raise UsageError(
                f"--power-cap: what steps of {self.facts.name} move and compute is not known"
            )
        return cost_of(prior, shared, drafting, slowed(self._wanted(engine, busy, BATCHES), cap))

    def _wanted(self, engine: EngineConfig, busy: BusyBoard, tokens: Floats) -> Floats:
        """Return the watts that steps of so many tokens would draw without a limit."""
        cost = self._any_load(engine)
        return replace(busy.measured_as(cost, self.asked), tokens=1).wanted(cost, tokens)

    def _any_load(self, engine: EngineConfig) -> StepCost:
        """Return the cost of steps without a cap, of an engine that takes any load."""
        shared = _of_any_load(self.shared(engine))
        return cost_of(self.prior(engine), shared, self.drafting(engine))

    def busy(self, engine: EngineConfig) -> BusyBoard | None:
        """Return the board under an engine's steps; None where its limit or the work is unknown."""
        tables = self.tables
        board = board_of(tables.device, tables.gpu.get("power"))
        if board is None or not is_known(self.facts):
            return None
        drafts = engine.speculative
        form = f"{engine.quantization or self.facts.quantization or ''}".lower()
        return BusyBoard(
            board=board,
            facts=self.facts,
            devices=engine.one_replica().num_devices,
            peak=tables.peak("fp8" if form.startswith("fp8") else "bfloat16"),
            bandwidth=tables.peak_bandwidth,
            lengths=self.asked.lengths,
            ranks=self.ranks,
            tokens=1 if drafts is None else 1 + drafts.num_speculative_tokens,
        )

    def power(self, engine: EngineConfig) -> PowerLaw | None:
        """Return what the devices of a replica draw, None where it cannot be told."""
        busy = self.busy(engine)
        if busy is None:
            return None
        return prior_law(busy, self._any_load(engine), self.asked)

    def times(self, engine: EngineConfig, longest: int) -> StepTimes:
        """Return the step times of an engine; `longest` is the longest context to come.

        Raises UsageError for an engine that cannot be priced, TablesError for shapes that were not
        measured.
        """
        prior = self.prior(engine)
        sigma = self.sigma(engine, 0.0)
        runs = None if self.ran is None else len(self.ran.recordings)
        cost = self.cost(engine)
        first = first_tokens_of(self.facts, engine)
        times = StepTimes(
            cost=cost,
            sigma=(sigma, 2 * sigma),
            runs=runs,
            within=lambda runs: prior.holds(largest(runs), longest),
            ends=self.ends(engine, cost),
            ttft=(1.0, 1.0, 1.0) if self.ran is not None else (first.low, first.usual, first.high),
        )
        if self.ran is not None and self.measured is None:
            return times
        spread = partial(self.sigma_of, engine)
        return replace(times, at_load=partial(_at_load, self.measured, times, spread))

    def ends(self, engine: EngineConfig, cost: StepCost) -> tuple[StepCost, StepCost] | None:
        """Return the costs of fast and of slow steps, None where they are alike but for `sigma`.

        How much of the host's part an engine hides that schedules while kernels run was not seen of
        every kind of model. It may be all of it, or nothing.
        """
        shared = self.shared(engine)
        host = host_of(self.facts, shared).scaled(self.prior(engine).host)
        if self.ran is not None or not host.hidden or was_seen(self.facts, shared):
            return None
        kernels = cost._replace(linear=cost.linear - (1 - host.hidden) * host.seconds)
        return with_hidden(kernels, host.seconds, 1.0), with_hidden(kernels, host.seconds, 0.0)

    def sigma_of(self, engine: EngineConfig, run: StepTotals) -> float:
        """Return the spread of an engine's time about the prediction (`sigma`), at a run's load."""
        return self.sigma(engine, float(self.host(engine) @ run.totals) / max(run.busy_s, 1e-9))

    def host(self, engine: EngineConfig) -> Floats:
        """Return the host's seconds [FEATURES] in an engine's steps that no kernels hide."""
        part = host_of(self.facts, self.shared(engine))
        return (1 - part.hidden) * part.seconds

    def sigma(self, engine: EngineConfig, share: float) -> float:
        """Return the spread (sd) of the log of an engine's time about the prediction.

        The host has that `share` of the time. Of a model and a size that ran on this GPU, that of
        the recalibration. Else that of the published runs that were left out, with how far other
        sizes were off where one ran, and of the rules that stand for what no table has.
        """
        if self.ran is not None and self.ran.has(self.facts, engine.tensor_parallel_size):
            # its runs hold what rules add
            return float(np.hypot(self.ran.sigma, self._capped_spread(engine)))
        ruled = float(np.hypot(self.prior(engine).spread, self._capped_spread(engine)))
        if self.ran is None:
            published = self.published(engine).sigma(share)
            return float(np.hypot(published, ruled))
        return float(np.hypot(self.ran.sigma, np.hypot(OTHER_SIZE, ruled)))

    def _capped_spread(self, engine: EngineConfig) -> float:
        """Return what a cap adds to the spread of a usual step, as its watts are not known."""
        busy, cap = self.busy(engine), self.asked.cap_w
        if busy is None or cap is None:
            return 0.0
        wanted = self._wanted(engine, busy, np.full(1, float(USUAL_BATCH)))
        return slowed_spread(float(wanted[0]), cap, self.asked.sigma)

    def published(self, engine: EngineConfig) -> Spread:
        """Return how far off published runs say that the prior may be for an engine."""
        return published_spread(self.tables.system, self.facts, self.shared(engine))

    def other_versions(self, engine: EngineConfig, requests: int, step_s: float) -> str | None:
        """Say what the all-reduces of other versions of vLLM would give, where it matters.

        For steps that decode `requests` and take `step_s`: where one differs by more than MATTERS
        of it.
        """
        size = engine.tensor_parallel_size
        if size == 1:
            return None
        prior = self.prior(engine)
        captured = max(captured_sizes(engine), default=0)
        own = prior.communication_s(requests, captured)
        others = {}
        for tables in prior.tables.other_collectives:
            try:
                rows = tables.all_reduces(size)
            except TablesError:  # this version did not measure groups of that size
                continue
            other = replace(prior, all_reduces=rows).communication_s(requests, captured)
            if abs(other - own) > MATTERS * step_s:
                others[tables.versions["comm"]] = other
        if not others:
            return None
        listed = ", ".join(
            f"vLLM {version} would take {other * 1e3:.2f} ms ({(other - own) / step_s:+.0%} of the "
            "step)"
            for version, other in others.items()
        )
        return (
            f"the all-reduces of a step of {requests:,} requests take {own * 1e3:.2f} ms in the "
            f"tables of vLLM {prior.tables.versions['comm']}, and those of {listed}. "
            "--set engine.vllm_version=X takes the tables nearest to it"
        )

    def untold_sort(
        self, engine: EngineConfig, policy: Policy, requests: int, step_s: float
    ) -> str | None:
        """Say what sorting the logits would take where top_p is not known, if it matters.

        For steps of so many `requests` that take `step_s`.
        """
        if policy.top_p is not None or policy.temperature == 0:
            return None
        share = requests * self.facts.vocab_size * SORT_S / step_s
        if share < MATTERS or not sorts_logits(engine.version):
            return None
        return Decisive(
            f"top_p is not known. Below 1 vLLM {engine.vllm_version} sorts all logits, which would "
            f"make a step of {requests:,} requests {percent(share)} longer. --set "
            "policy.top_p=0.95 prices it"
        )

    def notes(self, engine: EngineConfig) -> list[str]:
        """Return what of the step times is prior, what is missing, and what was checked."""
        tensor_parallel_size, prior = engine.tensor_parallel_size, self.prior(engine)
        label = self.tables.of_version(engine.vllm_version).described(tensor_parallel_size > 1)
        lines = [
            f"prior: step times of {self.facts.name} on {self.tables.device} are from operator"
            f" tables of others (aiconfigurator-core: {label})",
            "by a rule, as no table has it: " + " | ".join([*PRIOR_RULES, *prior.rules]),
            "in no table and left out: " + ", ".join(PRIOR_MISSING),
        ]
        if self.facts.num_experts:
            lines.insert(2, ROUTING_NOTE.format(100 * prior.routing))
            if self.ranks > 1:
                lines.insert(3, SHARING_NOTE.format(self.ranks))
        drafting = self.drafting(engine)
        if drafting is not None:
            lines.insert(2, drafting.what)
        if (busy := self.busy(engine)) is not None:
            lines.append(power_note(busy.board, self.asked))
        ran = self.ran
        if ran is None:
            by_cases = []
            if self.found is not None and self.found.cases:
                by_cases = [
                    f"{self.found.cases_note()}. Logits, sampling and the host are not in them, "
                    "so the interval stays that of the prior"
                ]
            return [
                *lines,
                *by_cases,
                *(self.told or (host_note(self.shared(engine)), self.published(engine).note())),
                first_tokens_of(self.facts, engine).note(),
            ]
        scales = f"{ran.scales}, " if ran.scales else "no kernels were profiled: one scale, "
        names = ", ".join(ran.recordings)
        lines = [
            *lines[:-1],
            f"recalibrated by {names}: {scales}steps x{ran.step:.2f}, which stands for what "
            f"no table has ({', '.join(PRIOR_MISSING)}), and the rest is prior",
        ]
        if not ran.has(self.facts, tensor_parallel_size):
            lines.append(
                Telling(
                    f"no run of this GPU had {self.facts.name} at tensor_parallel_size "
                    f"{tensor_parallel_size}: the interval holds how far other sizes were off"
                )
            )
        return [*lines, *self.told]


def spread_at(times: StepTimes, run: Callable[[StepCost], StepTotals], sigma: float) -> Floats:
    """Return the spreads [2] (sd) of the log of a load's time: of the prior, and of the host.

    That of the host is 0 where kernels do not hide it.
    """
    if times.ends is None:
        return np.array([sigma, 0.0])
    fast, slow = (run(cost).busy_s for cost in times.ends)
    return np.array([sigma, np.log(slow / fast) / 2 / Z95])


def _at_load(
    measured: MeasuredLoads | None,
    times: StepTimes,
    spread: Callable[[StepTotals], float],
    run: Callable[[StepCost], StepTotals],
) -> StepTimes:
    """Return step times with the spread that they have at the load of a run.

    Corrected by loads where some were measured.
    """
    cost, usual = times.cost, run(times.cost)
    sigma = spread(usual)
    if measured is None:
        return replace(times, sigma=(sigma, 2 * sigma), at_load=None)
    load = StepLoad.of(usual)
    spreads = [spread_at(times, run, each) for each in (sigma, 2 * sigma)]
    for _ in range(ROUNDS):  # faster steps have fewer requests where these arrive by themselves
        factor, _ = measured.correction(load, spreads[0])
        cost = scaled_cost(times.cost, float(np.exp(factor)))
        load = StepLoad.of(run(cost))
    inside, outside = (measured.correction(load, spread)[1] for spread in spreads)
    runs = (times.runs or 0) + len(measured.loads)
    return replace(times, cost=cost, sigma=(inside, outside), ends=None, runs=runs, at_load=None)


def _shape(facts: ModelFacts, tensor_parallel_size: int) -> tuple[ModelFacts, int]:
    """Return a model without its name, and without what older recordings do not have of it."""
    shape = replace(
        facts, name="", kv_cache_dtype=None, kv_value_bytes=None, state_bytes_per_request=None,
        mtp_layers=None, layers=None, others=(), uncounted=None,
    )  # fmt: skip
    return shape, tensor_parallel_size


def recalibrate(
    tables: PriorTables,
    recordings: Sequence[Recording],
    *,
    models: Mapping[str, ModelFacts] | None = None,
    asked: ModelFacts | None = None,
    unnamed: bool = True,
) -> Recalibration | None:
    """Compare the prior with recordings of that GPU; None where there are none.

    Recordings of models or engines that cannot be priced do not count. Cases of `vllm bench
    forward` whose files name no GPU are of this one where `unnamed` may be, and of the model that
    is `asked` about where they name none; `models` are others' facts by name. Raises UsageError for
    cases of a model that is not known, or of another.
    """
    ran = [each for recording in recordings for each in _ran(tables, recording.afresh())]
    here = [
        each
        for recording in recordings
        if "imported" in recording.manifest.provenance
        for each in _cases_here(tables, recording.afresh(), models or {}, asked, unnamed=unnamed)
    ]
    if not ran:
        return _by_cases(tables, here) if here else None
    families = _families(ran)
    logs, raw = _logs(ran, families), _logs(ran, {})
    return Recalibration(
        families=families,
        step=float(np.exp(logs.mean())),
        sigma=spread_of(logs, float(raw.mean())),
        checked=frozenset(
            _shape(each.prior.facts, each.engine.tensor_parallel_size) for each in ran
        ),
        recordings=tuple(dict.fromkeys(each.recording for each in ran)),
        untaught={
            each.recording: f"{UNTAUGHT} its cases are of the forward alone. Recordings of whole "
            "steps say more"
            for each in here
        },
    )


@dataclass(frozen=True, kw_only=True)
class _Here:
    """Cases of the forward alone that ran on the GPU, and what is known of their model."""

    recording: str
    engine: EngineConfig
    facts: ModelFacts | None
    steps: pl.DataFrame


@dataclass(frozen=True, kw_only=True)
class _Cases:
    """Cases of the forward alone on an engine that the prior can price."""

    recording: str
    prior: Prior
    steps: pl.DataFrame

    def seconds(self, families: Mapping[str, float]) -> Floats:
        """Return the prior's seconds of them, its families scaled: no logits, padding or host."""
        most = self.steps.select(
            pl.sum_horizontal("prefill_tokens", "decode_tokens").max().alias("tokens"),
            pl.sum_horizontal("prefill_requests", "decode_requests").max().alias("requests"),
        )
        tokens, requests = most.row(0)
        step_tables = self.prior.scaled(families).step_tables(
            max_num_batched_tokens=tokens,
            max_num_seqs=requests,
            capture_sizes=range(1, tokens + requests + 1),  # one graph for each case
        )
        return predicted_steps(table_cost(step_tables._replace(sequences=np.zeros(0))), self.steps)


def _cases_here(
    tables: PriorTables,
    recording: Recording,
    models: Mapping[str, ModelFacts],
    asked: ModelFacts | None,
    *,
    unnamed: bool,
) -> list[_Here]:
    cases = []
    for key, engine in recording.manifest.engines.items():
        if engine.gpu != tables.device and not (engine.gpu is None and unnamed):
            continue
        steps = recording.steps.filter(pl.col("engine") == key, pl.col("source") == FORWARD)
        if steps.is_empty():
            continue
        facts = recording.manifest.models.get(engine.model) or models.get(engine.model)
        if facts is None and engine.model == UNKNOWN_MODEL:
            facts = asked
        cases.append(_Here(recording=recording.name, engine=engine, facts=facts, steps=steps))
    return cases


def _priced(tables: PriorTables, here: _Here) -> _Cases | str:
    """Return cases that the tables price, or why they price none.

    Raises UsageError for cases of a model that is not known, or of another.
    """
    engine, facts = here.engine, here.facts
    if facts is None:
        raise UsageError(
            f"{here.recording}: what {engine.model} is made of is not known, so its cases say "
            "nothing. Import them again with --model-config FILE"
        )
    try:
        prior = prior_of(tables, facts, engine)
    except (UsageError, TablesError) as error:
        return str(error).removeprefix("--gpu: ")
    tokens = pl.col("prefill_tokens") + pl.col("decode_tokens")
    steps = here.steps.with_columns(seconds=pl.col("wall_ns") / 1e9).filter(
        tokens <= min(prior.domain.tokens, prior.most_tokens),
        pl.col("prefill_requests") + pl.col("decode_requests") <= prior.domain.batch,
        pl.col("max_context_tokens") <= prior.domain.context,
    )
    if steps.is_empty():
        return "its cases are larger than what the tables hold"
    cases = _Cases(recording=here.recording, prior=prior, steps=steps)
    ratio = float(np.median(steps["seconds"].to_numpy() / cases.seconds({})))
    if not 1 / UNLIKE <= ratio <= UNLIKE:
        raise UsageError(
            f"{here.recording}: its cases take {ratio:.2g} times what the tables of "
            f"{tables.system} give {facts.name} at tensor_parallel_size "
            f"{engine.tensor_parallel_size}. Check the model, the size and the GPU"
        )
    return cases


def _by_cases(tables: PriorTables, here: Sequence[_Here]) -> Recalibration:
    """Return the factor of each family by which the cases come out, each case alike.

    Ridge regression towards 1, non-negative. Raises UsageError as `_priced`.
    """
    priced, untaught = list[_Cases](), dict[str, str]()
    for each in here:
        cases = _priced(tables, each)
        if isinstance(cases, str):
            untaught[each.recording] = f"{UNTAUGHT} {cases}"
            continue
        priced.append(cases)
        if (lost := len(each.steps) - len(cases.steps)) > 0:
            lost_cases = counted(lost, "case")
            untaught[each.recording] = (
                f"is used without {lost_cases}, larger than what the tables hold"
            )
    if not priced:
        return Recalibration(
            families={}, step=1.0, sigma=0.0, checked=frozenset(), recordings=(), untaught=untaught
        )
    measured = np.concatenate([each.steps["seconds"].to_numpy() for each in priced])
    usual = np.concatenate([each.seconds({}) for each in priced])
    spent = np.column_stack([
        np.concatenate([each.seconds({name: 2.0}) for each in priced]) - usual for name in FAMILIES
    ])  # fmt: skip
    names = [name for at, name in enumerate(FAMILIES) if spent[:, at].any()]
    spent = spent[:, spent.any(axis=0)]
    rows = np.vstack([spent / measured[:, None] / CASE_NOISE, np.eye(len(names)) / FAMILY_SPREAD])
    target = np.append(
        np.full(len(measured), 1 / CASE_NOISE), np.full(len(names), 1 / FAMILY_SPREAD)
    )
    scales = non_negative_least_squares(rows, target)
    off = np.log(spent @ scales / measured)
    return Recalibration(
        families={name: float(each) for name, each in zip(names, scales, strict=True)},
        step=1.0,
        sigma=float(np.sqrt(np.mean(np.square(off)))),
        checked=frozenset(),  # no whole step ran
        recordings=tuple(dict.fromkeys(each.recording for each in priced)),
        cases=len(measured),
        untaught=untaught,
    )


def _logs(ran: Sequence[_Ran], families: Mapping[str, float]) -> Floats:
    """Return the log of recorded over predicted time, by configuration."""
    logs: dict[str, list[float]] = {}
    for each in ran:
        predicted = each.seconds(each.steps, families)
        recorded = each.steps["seconds"].to_numpy()
        usual = float(np.median(recorded / predicted))
        total = float(np.minimum(recorded, STALL * usual * predicted).sum())
        logs.setdefault(each.configuration, []).append(np.log(total / predicted.sum()))
    return np.array([np.mean(group) for group in logs.values()])


def spread_of(logs: Floats, raw: float) -> float:
    """Return the spread of the log of time in a run that was not learned from.

    Of several configurations each is predicted from the others; these errors are pooled with
    `RUN_TO_RUN`, which counts for `PRIOR_REPEATS` of them, and few widen the spread as Student's t
    does. One configuration cannot be left out: what the prior as it came was wrong by there (`raw`,
    a log), it may be wrong by elsewhere.
    """
    count = len(logs)
    if count < 2:
        return float(np.hypot(RUN_TO_RUN, raw))
    errors = (logs - logs.mean()) * count / (count - 1)
    freedom = PRIOR_REPEATS + count
    squares = PRIOR_REPEATS * RUN_TO_RUN**2 + float(np.sum(np.square(errors)))
    return float(np.sqrt(squares / freedom)) * student_95(freedom) / Z95


@dataclass(frozen=True, kw_only=True)
class _Ran:
    """An engine of a recording that the prior can price, with its steps and profiled kernels."""

    recording: str
    configuration: str
    engine: EngineConfig
    prior: Prior
    steps: pl.DataFrame
    profiled: pl.DataFrame
    kernels: pl.DataFrame

    def seconds(self, steps: pl.DataFrame, families: Mapping[str, float]) -> Floats:
        """Return the prior's seconds of steps, its families scaled."""
        return predicted_steps(cost_of(self.prior.scaled(families), self.engine), steps)


def _ran(tables: PriorTables, recording: Recording) -> list[_Ran]:
    runs = []
    ranks = ranks_in(recording.manifest.engines.values())
    truncated = any(each.truncated for each in recording.manifest.policies.values())
    for key, recorded in recording.manifest.engines.items():
        facts, engine = recording.manifest.models.get(recorded.model), recorded
        if facts is None or engine.gpu != tables.device:
            continue
        if engine.speculative is not None and engine.speculative.method not in LOOKUPS:
            continue  # its steps have a drafter's time
        if facts.num_experts:
            engine = replace(
                recorded, data_parallel_size=ranks.get(recorded) or recorded.data_parallel_size
            )
        try:
            prior = prior_of(tables, facts, engine, truncated=truncated)
        except (UsageError, TablesError):
            continue
        steps = (
            recording.steps.filter(
                pl.col("engine") == key,
                ~pl.col("source").fill_null("measured").is_in(["replayed", FORWARD]),
            )
            .with_columns(
                seconds=STEP_INTERVAL / 1e9,
                profiled=pl.col("profiled").fill_null(False),
            )
            .drop_nulls(["seconds", *COMPOSITION])
            .filter(
                pl.col("seconds") > 0, pl.col("prefill_requests") + pl.col("decode_requests") > 0
            )
        )
        usual = steps.filter(~pl.col("profiled"))
        if usual.is_empty():
            continue
        runs.append(
            _Ran(
                recording=recording.name,
                configuration=f"{engine.key()} {recording.manifest.concurrency}",
                engine=engine,
                prior=prior,
                steps=usual.gather_every(-(-len(usual) // MOST_STEPS)),
                profiled=steps.filter(pl.col("profiled")),
                kernels=recording.frame("kernels").filter(pl.col("engine") == key),
            )
        )
    return runs


def _families(ran: Sequence[_Ran]) -> dict[str, float]:
    """Return by family how many times the prior's the profiled kernels took."""
    recorded, predicted = dict.fromkeys(FAMILIES, 0.0), dict.fromkeys(FAMILIES, 0.0)
    for each in ran:
        spent = _by_family(each.kernels, each.profiled)
        if not spent:
            continue
        alone = replace(each, prior=replace(each.prior, host=0.0))
        usual = alone.seconds(each.profiled, {}).sum()
        for family in FAMILIES:
            recorded[family] += spent.get(family, 0.0)
            predicted[family] += float(alone.seconds(each.profiled, {family: 2.0}).sum() - usual)
    return {
        family: recorded[family] / predicted[family]
        for family in FAMILIES
        if recorded[family] > 0 and predicted[family] > 0
    }


def _by_family(kernels: pl.DataFrame, profiled: pl.DataFrame) -> dict[str, float]:
    """Return a rank's seconds of kernels by family, in profiled steps; empty without any.

    Of collectives the rank that took least counts: the others waited for the last.
    """
    in_steps = kernels.join(profiled.select("step"), on="step", how="semi").with_columns(
        own=pl.coalesce("self_time", "time") / 1e9,
        family=pl.col("family").replace_strict(FAMILY_OF_KERNELS, default="other"),
    )
    by_rank = in_steps.group_by("family", "rank").agg(pl.col("own").sum())
    sums = by_rank.group_by("family").agg(mean=pl.col("own").mean(), least=pl.col("own").min())
    return {
        family: least if family == "communication" else mean
        for family, mean, least in sums.iter_rows()
    }


def _recalibrated(prior: Prior, found: Recalibration) -> Prior:
    step = dict.fromkeys(FAMILIES, found.step)
    return replace(prior.scaled(found.families).scaled(step), host=prior.host * found.step)


def _of_any_load(engine: EngineConfig) -> EngineConfig:
    """Return an engine whose limits bound none of the loads that power is asked of."""
    most = int(BATCHES[-1])
    return replace(engine, max_num_seqs=most, max_num_batched_tokens=max(most, LONGEST))


def cost_of(
    prior: Prior,
    engine: EngineConfig,
    drafting: Drafting | None = None,
    slower: Floats | None = None,
) -> StepCost:
    """Return the cost of an engine's steps: kernels from tables, and the host's part as learned.

    The ranks of data parallelism that it has work on a step together in a mixture alone. Kernels
    take `slower` times as long, by the tokens of a step [BATCHES].

    Raises UsageError where the engine does not tell its limits.
    """
    if engine.max_num_seqs is None or engine.max_num_batched_tokens is None:
        raise UsageError(
            "--gpu: set engine.max_num_seqs and engine.max_num_batched_tokens, "
            "which this recording lacks"
        )
    tables = prior.step_tables(
        max_num_batched_tokens=engine.max_num_batched_tokens,
        max_num_seqs=engine.max_num_seqs,
        capture_sizes=captured_sizes(replace(engine, gpu=prior.tables.device)),
    )
    if slower is not None:
        tables = slowed_tables(tables, BATCHES, slower)
    host = host_of(prior.facts, engine).scaled(prior.host)
    drafts = np.zeros(len(FEATURES)) if drafting is None else drafting.seconds
    return with_hidden(table_cost(tables, drafts), host.seconds, host.hidden)


def host_of(facts: ModelFacts, engine: EngineConfig) -> HostPart:
    """Return the host's part of a step: of all ranks that it has to itself in a mixture alone."""
    return host_part(engine if facts.num_experts else engine.one_replica())
