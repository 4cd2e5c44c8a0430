"""Why an answer is what it is, and what to measure next: short sentences with numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from math import ceil, floor, isfinite, log10

import numpy as np

from advisor.advice.command import record_command
from advisor.advice.feasible import Question
from advisor.evidence.features import PARTS, Features
from advisor.evidence.gather import Evidence
from advisor.evidence.measured import Under
from advisor.search.budget import OPTIONS, which_latency
from advisor.search.metrics import HIGHER_IS_BETTER, Measures
from advisor.search.replayed import Outcome
from advisor.search.space import Candidate, Space
from advisor.step_time.fit import ENOUGH_CONFIGURATIONS
from advisor.step_time.law import PriorCost
from traces.schema.advice import Experiment, Measured, NearMiss, Stages
from traces.schema.engine import EngineConfig
from traces.schema.estimate import Estimate
from traces.schema.policy import Policy
from traces.statistics import Z95
from traces.summary.comparison import RUN_TO_RUN

NOUNS = {
    "latency_s": "mean latency",
    "device_s": "device time",
    "energy_j": "energy",
    "accuracy": "accuracy",
    "throughput_problems_per_s": "throughput",
}
ENOUGH_PROBLEMS = 100
CLEARLY = 1.1  # times as many steps, or as long ones, that explain why one is worse


def name_of(candidate: Candidate) -> str:
    """Return the short name of a candidate, such as `demo/l tp1 seqs64, maj@8`."""
    engine, policy = candidate.engine, candidate.policy
    where = "" if candidate.prior is None else f" on {candidate.prior} (prior)"
    return f"{engine.model} {engine.label()}{where}, {policy.label_with_temperature()}"


def name_without_limits(candidate: Candidate) -> str:
    """Return the name of a candidate without its limits."""
    engine = dataclasses.replace(candidate.engine, max_num_seqs=None, max_num_batched_tokens=None)
    return name_of(dataclasses.replace(candidate, engine=engine))


def noun(metric: str) -> str:
    """Return a metric's name in a sentence."""
    if metric.startswith("latency_p"):
        return f"{metric.split('_')[1]} latency"
    return NOUNS.get(metric, metric)


def quantity(value: float, unit: str) -> str:
    """Return a number as it stands in a sentence."""
    if unit == "1":
        return f"{value:.3f}"
    text = f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"${text}" if unit == "USD" else f"{text} {unit}"


def interval(estimate: Estimate) -> str:
    """Return a value with its interval as it stands in a sentence."""
    text = quantity(estimate.value, estimate.unit)
    if estimate.low is None or estimate.high is None:
        return text
    low = quantity(estimate.low, "1" if estimate.unit == "1" else "")
    high = quantity(estimate.high, "1" if estimate.unit == "1" else "")
    return f"{text} [{low.strip()}, {high.strip()}]"


def reasons(
    evidence: Evidence,
    space: Space,
    question: Question,
    *,
    system: int | None,
    compute: int | None,
    least_tokens: int | None,
    equals: Sequence[int],
    stages: Stages,
    load: Under,
) -> list[str]:
    """Return the sentences, the most telling first; why nothing fits is not among them."""
    lines: list[str] = []
    measures = question.measures
    if system is not None:
        lines += _as_run(question, system, load)
        lines.append(_steps(measures.outcomes[system]))
        lines += _against_compute(question, system, compute)
        lines += _fewest_tokens(question, system, compute, least_tokens)
        lines += _without_accuracy(question, system)
        lines += _equal_ones(question, system, equals)
        lines += _certainty(measures.outcomes[system])
    lines += _how_far(stages)
    lines += _assumptions(evidence, space, question)
    return lines


def _as_run(question: Question, system: int, load: Under) -> Iterable[str]:
    """Say what a run of the pick measured, and under which load."""
    pick = question.measures.outcomes[system].candidate
    found = question.made.measured(pick.engine, pick.policy, load)
    if found is None:
        return
    names = ("accuracy", "latency_s", "latency_p95_s", "device_s", "energy_j")
    goal = question.goal.metric if question.goal.metric in names else "latency_s"
    told = [
        f"{noun(name)} {interval(estimate)}"
        for name in dict.fromkeys(("accuracy", goal))
        if (estimate := found.estimates.get(name)) is not None
    ]
    times = "" if found.runs == 1 else f" {found.runs} times"
    under = "" if found.at_load else f", under another load ({load_words(found)})"
    where = f"{found.recording}, {found.problems} problems"
    if found.runs > 1:
        where = f"last in {where}"
    yield f"the pick was run{times}{under}; measured ({where}): {', '.join(told)}"


def load_words(measured: Measured) -> str:
    """Return the load under which something was measured."""
    if measured.rate_per_s is not None:
        return f"{measured.rate_per_s:.3g} problems/s"
    return f"{measured.concurrency} problem{'s' * (measured.concurrency != 1)} in flight"


def _steps(outcome: Outcome) -> str:
    size = f"{_step_s(outcome) * 1e3:.3g} ms for {outcome.requests_per_step:.3g} samples"
    if outcome.law.prior is not None:
        return f"a step takes about {size}"
    spent = Features(*outcome.law.seconds * outcome.totals)._asdict()
    parts = {part: sum(spent[name] for name in names) for part, names in PARTS.items()}
    shares = {part: seconds / sum(spent.values()) for part, seconds in parts.items()}
    largest = sorted(shares.items(), key=lambda item: -item[1])
    words = ", ".join(f"{share:.0%} {part}" for part, share in largest if share >= 0.05)
    return f"a step takes {size}: {words}"


def _step_s(outcome: Outcome) -> float:
    """Return the mean seconds of a step."""
    return float(outcome.law.seconds @ outcome.totals / outcome.totals.step)


def _against_compute(question: Question, system: int, compute: int | None) -> Iterable[str]:
    if compute is None and not np.isfinite(question.measures.values("flops")).any():
        yield "FLOPs are not known, for no recording has the facts of a draft model"
        return
    if compute is None:
        yield "no candidate is accurate enough with the wanted probability by FLOPs alone"
        return
    if compute == system:
        yield "compute-optimal and system-optimal agree: the pick also needs the fewest FLOPs"
        return
    measures, objective = question.measures, question.goal.metric
    ours, theirs = measures.outcomes[system], measures.outcomes[compute]
    flops = measures.values("flops")
    more = flops[system] / flops[compute]
    than = f"the pick takes {more:.3g} times its FLOPs"
    if not np.isfinite(more):
        than = "those of the pick are not known, for no recording has the facts of its draft model"
    metric = "latency_s" if objective == "accuracy" else objective
    difference = measures.difference(metric, compute, system, prices=question.price)
    name = name_of(theirs.candidate)
    head = f"compute-optimal is {name}: {than}"
    if difference is None:
        yield head
    elif (
        difference.low is None or difference.high is None or difference.low <= 0 <= difference.high
    ):
        yield f"{head}; the two cannot be told apart in {noun(metric)}"
    elif (difference.value > 0) == (metric in HIGHER_IS_BETTER):
        breaks = "" if question.fits[compute] else " but breaks limits that the pick meets"
        told = f"{_more(metric, difference)}{breaks}"
        yield f"{head}, and the compute-optimal one has {told}"
    else:
        told = f"{_more(metric, difference)}{_why_worse(theirs, ours, metric)}"
        yield f"{head}, yet the compute-optimal one has {told}"


def _more(metric: str, difference: Estimate) -> str:
    size = Estimate(
        value=abs(difference.value),
        low=difference.low if difference.value > 0 else _negative(difference.high),
        high=difference.high if difference.value > 0 else _negative(difference.low),
        unit=difference.unit,
    )
    told = interval(size)
    if size.unit == "1":  # a difference of shares, in points
        ends = [end for end in (size.low, size.high) if end is not None]
        told = f"{size.value * 100:.1f} points"
        told += f" [{', '.join(f'{end * 100:.1f}' for end in ends)}]" if ends else ""
    return f"{told} {'more' if difference.value > 0 else 'less'} {noun(metric)}"


def _why_worse(theirs: Outcome, ours: Outcome, metric: str) -> str:
    """Say what of the steps makes a candidate worse than the pick: most by which they differ."""
    latency = metric.startswith("latency")
    count, each = [], []
    for outcome in (theirs, ours):
        engine = outcome.candidate.engine
        step_s = _step_s(outcome)
        devices = engine.num_devices / engine.data_parallel_size
        spent = outcome.latency_s[0] if latency else outcome.device_s[0] / devices
        count.append(float(spent.mean()) / step_s)
        each.append(step_s)
    steps, times = count[0] / count[1], each[0] / each[1]
    if max(steps, times) < CLEARLY:
        return ""
    if times > steps:
        return f": its steps take {each[0] * 1e3:.3g} ms against {each[1] * 1e3:.3g} ms"
    goes = "lasts" if latency else "takes"
    told = f": a problem {goes} {count[0]:.3g} steps against {count[1]:.3g}"
    if theirs.requests_per_step * CLEARLY > ours.requests_per_step:
        return told
    return (
        f"{told}, of {theirs.requests_per_step:.3g} samples each against "
        f"{ours.requests_per_step:.3g}"
    )


def _negative(value: float | None) -> float | None:
    return None if value is None else -value


def _fewest_tokens(
    question: Question, system: int, compute: int | None, least: int | None
) -> Iterable[str]:
    """Say which candidate needs the fewest tokens, where FLOPs do not tell the same."""
    if least is None or compute is None or least in (system, compute):
        return
    measures = question.measures
    same = [measures.outcomes[row].candidate for row in (least, compute)]
    tokens = measures.values("tokens")
    if same[0].policy == same[1].policy and same[0].engine.model == same[1].engine.model:
        return
    difference = measures.difference("tokens", compute, least, prices=question.price)
    if difference is None or difference.low is None or difference.low <= 0:
        return
    yield (
        f"by tokens the least is {name_of(same[0])}, with {quantity(tokens[least], 'tokens')} "
        f"against {quantity(tokens[compute], 'tokens')} of the compute-optimal one"
    )


def _without_accuracy(question: Question, system: int) -> Iterable[str]:
    """Say what accuracy the pick has where none is required, and which could be had."""
    budget, measures = question.budget, question.measures
    if budget.min_accuracy is not None or budget.optimise == "accuracy":
        return
    accuracy = measures.values("accuracy")
    known = question.estimate("accuracy", system)
    told = "not known" if known is None else interval(known)
    line = f"no accuracy is required (--min-accuracy): that of the pick is {told}"
    fitting = np.where(question.fits, accuracy, -np.inf)
    best = next((int(row) for row in question.order if fitting[row] >= fitting.max()), system)
    if accuracy[best] > accuracy[system]:
        name = name_of(measures.outcomes[best].candidate)
        line += f", and {name} reaches {accuracy[best]:.3f}"
        line += " within the limits" if budget.limits() else ""
    yield line


def _equal_ones(question: Question, system: int, equals: Sequence[int]) -> Iterable[str]:
    measures, objective = question.measures, question.goal.metric
    pick = measures.outcomes[system].candidate
    same = [
        row
        for row in equals
        if measures.outcomes[row].candidate.policy == pick.policy
        and measures.values(objective)[row] == measures.values(objective)[system]
        and np.array_equal(measures.outcomes[row].latency_s, measures.outcomes[system].latency_s)
    ]
    if same:
        engines = [measures.outcomes[row].candidate.engine for row in same]
        for name, what in (
            ("max_num_seqs", "samples are in flight"),
            ("max_num_batched_tokens", "tokens come in a step"),
        ):
            values = sorted({getattr(e, name) or 0 for e in engines} - {getattr(pick.engine, name)})
            if values:
                listed = ", ".join(map(str, values))
                yield f"{name} {listed} would do the same: no more {what}"
    others = (name_without_limits(measures.outcomes[row].candidate) for row in equals)
    names = [each for each in dict.fromkeys(others) if each != name_without_limits(pick)]
    if names:
        named = "; ".join(names[:3])
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        yield f"cannot be told apart from the pick in {noun(objective)}: {named}{more}"


def _certainty(outcome: Outcome) -> Iterable[str]:
    law = outcome.law
    sigma = law.sigma_outside if outcome.extrapolated else law.sigma
    if law.prior is not None:
        yield from _of_prior(law.prior, sigma, beyond=outcome.extrapolated)
        return
    repeats = law.repeats_outside if outcome.extrapolated else law.repeats
    where = "outside" if outcome.extrapolated else "inside"
    if repeats:
        # So many errors are a spread of their own; fewer are pooled with the assumed one.
        few = repeats < ENOUGH_CONFIGURATIONS
        pooled = f"; {RUN_TO_RUN:.0%} run to run is assumed" if few else ""
        yield (
            f"step times {where} the recorded domain are met within {sigma:.1%} (one standard "
            f"deviation; left out: {repeats}{pooled})"
        )
    else:
        yield (
            f"run-to-run spread of {RUN_TO_RUN:.0%} is assumed, not measured: "
            "no recording could be left out"
        )
    if outcome.extrapolated:
        yield "extrapolated: the pick makes larger steps than any recorded"


def _of_prior(prior: PriorCost, sigma: float, *, beyond: bool) -> Iterable[str]:
    low, high = (float(np.exp(z * sigma - sigma**2 / 2)) for z in (-Z95, Z95))
    interval = f"its 90 % interval is {low:.2f} to {high:.2f} times that"
    told = f"the pick's step times are not measured: they are of the prior ({prior.label})"
    if prior.recordings:
        yield (
            f"{told}, recalibrated by {', '.join(prior.recordings)}, of another size or model; "
            f"{interval}"
        )
    else:
        yield (
            f"{told}, which no run of this GPU has checked; published runs on H100 took 1.04 to "
            f"1.47 times as long, and {interval}"
        )
    if beyond:
        yield "extrapolated: the pick makes larger steps than the tables hold"


def _how_far(stages: Stages) -> Iterable[str]:
    if stages.first is not None:
        yield f"the replay changed the pick: by the closed form it was {stages.first}"
    if stages.replayed < stages.screened and stages.spread is not None:
        yield (
            f"replayed {stages.replayed:,} of {stages.screened:,} candidates, those that may be "
            f"best; the rest by a closed form, nine times in ten within {stages.spread:.0%} of it"
        )


def _assumptions(evidence: Evidence, space: Space, question: Question) -> Iterable[str]:
    measures = question.measures
    if measures.rate_per_s is not None:
        yield f"load: problems arrive at random at {measures.rate_per_s:.3g}/s"
    else:
        in_flight = evidence.load[0]
        noted = {run.concurrency for run in evidence.runs}
        told = "" if len(noted) == 1 else " (recordings differ; the most frequent)"
        yield f"load: {in_flight} problem{'s' * (in_flight != 1)} in flight, as recorded{told}"
    named = evidence.workload.name if evidence.workload else "unnamed"
    yield f"judged on {len(space.problem_ids)} problems of the workload {named}"
    if question.prices.recorded:
        yield f"price: ${question.prices.plain:g} per device-hour, as recorded"


def measure_next(
    evidence: Evidence,
    space: Space,
    measures: Measures,
    system: int | None,
    proposed: Sequence[Experiment],
    *,
    load: Under,
) -> list[str]:
    """Return what would make the answer surer, as commands where there is one."""
    lines: list[str] = []
    for each in proposed:
        command = _record(evidence, each.engine, each.policy)
        lines.append(
            f"{each.reason}; run it, and what the pick is expected to lose falls from "
            f"{each.regret:.1%} to {each.regret_after:.1%}: {command}"
        )
    if system is not None:
        outcome = measures.outcomes[system]
        engine, policy = outcome.candidate.engine, outcome.candidate.policy
        named = any((each.engine, each.policy) == (engine, policy) for each in proposed)
        command = _record(evidence, engine, policy)
        if not outcome.candidate.recorded and not named:
            lines.append(f"the pick was never run; run it: {command}")
        elif not evidence.made.has_under(engine, policy, load) and not named:
            lines.append(f"the pick was run under another load; run it under this one: {command}")
        elif not named and (not outcome.law.repeats or outcome.law.runs < 2):
            lines.append(f"run the pick again to learn the run-to-run spread: {command}")
    if system is not None and len(space.problem_ids) < ENOUGH_PROBLEMS:
        low, high = np.quantile(measures.draws("accuracy")[system], (0.05, 0.95))
        lines.append(
            f"more problems: with {len(space.problem_ids)} the accuracy is known to "
            f"+-{(high - low) / 2:.3f}; four times as many halve that"
        )
    return lines


def _record(evidence: Evidence, engine: EngineConfig, policy: Policy) -> str:
    workload = evidence.workload
    where = "" if engine.gpu in evidence.gpus else f"on {engine.gpu}: "
    if engine.mode == "server" or engine.data_parallel_size > 1:
        where += "with its server started: "
    return where + record_command(
        engine,
        policy,
        workload=None if workload is None else workload.name,
        problems=None if workload is None else workload.problems,
        concurrency=evidence.load[0],
        seed=None if workload is None else workload.seed,
        verifier=None if workload is None else workload.verifier,
    )


# Why no candidate meets a budget, and what a limit that is missed would have to be.


def why_nothing(
    question: Question, misses: Sequence[NearMiss], rows: Sequence[tuple[str, int]]
) -> Iterator[str]:
    """Yield the sentences; `rows` are the limits and candidates of `misses`."""
    wanted = question.budget.confidence
    yield f"no candidate meets every limit with {wanted:.0%} probability"
    alone = {name: bool(question.within(name).any()) for name in question.met}
    never = [OPTIONS[name] for name, met in alone.items() if not met]
    if never:
        yield f"no candidate meets {' or '.join(never)}, whatever the other limits"
    elif len(alone) > 1:
        listed = " and ".join(OPTIONS[name] for name in alone)
        yield f"{listed} contradict each other: each alone is met, all together are not"
    for miss, (limit, row) in zip(misses, rows, strict=True):
        yield from _would_take(question, miss, limit, row)


def _would_take(question: Question, miss: NearMiss, limit: str, row: int) -> Iterable[str]:
    """Yield what the limit would have to be; nothing where it is met and the others are not."""
    engine, policy = miss.pick.engine, miss.pick.policy
    name = f"{engine.model} {engine.label()}, {policy.label()}"
    missed = miss.sure < question.budget.confidence
    if limit in ("max_gpus", "rate"):
        if missed:
            yield f"{OPTIONS[limit]}: {name} comes nearest, with {interval(miss.nearest)}"
        return
    needed, end = question.needed(limit, row, alone=False), "fit"
    if not isfinite(needed):
        if not missed:
            return
        needed, end = question.needed(limit, row), "be sure of it"
    value = quantity(_enough(needed, above=question.limits[limit].above), miss.nearest.unit)
    which = which_latency(limit, question.budget.latency_percentile)
    yield f"{OPTIONS[limit]} would have to be {value}{which} for {name} to {end}"


def _enough(value: float, *, above: bool) -> float:
    """Return a limit in three digits that is no tighter than `value`."""
    if above:
        return floor(value * 1000) / 1000
    if value <= 0:
        return value
    digits = 2 - floor(log10(value))
    return float(f"{ceil(value * 10**digits - 1e-9) / 10**digits:.3g}")
