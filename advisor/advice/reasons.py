"""Why an answer is what it is, and what to measure next: short sentences with numbers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import ceil, floor, isfinite, log10
from typing import Any

import numpy as np

from advisor.advice.command import in_flight_at, planned, record_command, servers_note
from advisor.advice.feasible import TOLD, ReplayedCheck
from advisor.advice.measure_next.gpu_runs import PROBLEMS, ShortRun
from advisor.evidence.features import PARTS, Features
from advisor.evidence.gather import PROBLEMS_FILE, Evidence
from advisor.evidence.measured import Under
from advisor.search.metrics import CandidateMetrics
from advisor.search.replayed import ReplayedCandidate
from advisor.search.space import REPLICAS, Candidate
from advisor.step_time.fit import ENOUGH_CONFIGURATIONS
from advisor.step_time.law import PriorCost
from traces.plain_text import flag_word, name_word
from traces.schema.advice import Experiment, NearMiss, Stages
from traces.schema.engine import EngineConfig, in_words
from traces.schema.estimate import Estimate
from traces.schema.formats import (
    chance,
    counted,
    digits,
    number,
    percent,
    relative_change,
    with_interval,
    written,
)
from traces.schema.quantities import LIMITS, latency, quantity, which_latency
from traces.schema.tts.policy import AS_SENT, Policy
from traces.statistics import ENDS, Z95, tells_above, tied
from traces.summary.comparison import RUN_TO_RUN, assumed_words

ENOUGH_PROBLEMS = 100
EXPECTED_LOSS = "how much worse it is than what one would choose if all were known, on average"
MORE = 0.005  # of accuracy, from which more of it at the same cost is named
SAME_RESULT = {  # limits, and what of an engine they bound
    "max_num_seqs": "samples run at once",
    "max_num_batched_tokens": "tokens come in a step",
}
CLEARLY = 1.1  # times as many steps, or as long ones, that explain why one is worse


def name_of(candidate: Candidate, *, limits: bool = True) -> str:
    """Return a candidate in words, with its limits or without."""
    return in_words(candidate.engine, candidate.policy, prior=candidate.prior, limits=limits)


def noun(metric: str) -> str:
    """Return a metric's name in a sentence."""
    return quantity(metric).noun


def reasons(
    evidence: Evidence,
    check: ReplayedCheck,
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
    if system is not None:
        pick = check.metrics.replayed[system]
        lines += _as_run(check, pick, load)
        lines += _small_steps(check, system)
        if pick.candidate.policy.routes is not None:
            lines += _routed(check, pick)
        lines.append(_steps(pick))
        lines += _against_compute(check, system, compute)
        lines += _fewest_tokens(check, system, compute, least_tokens)
        lines += _without_accuracy(check, system)
        lines += _equal_ones(check, system, equals)
        lines += _no_early_stop(check, system)
        lines += _certainty(pick)
        if note := servers_note(pick.candidate.engine):
            lines.append(f"{note[0].lower()}{note[1:-1]}")
        if pick.candidate.policy.routes is None:
            lines += _routed(check, pick)
    lines += _how_far(stages)
    lines += _assumptions(evidence, check)
    if system is not None:
        lines += _of_a_run(check)
    return lines


def alternatives(check: ReplayedCheck, system: int) -> Iterator[str]:
    """Name what is as good as the pick in what is optimised, and more accurate or clearly faster.

    At a rate it is much: engines of as many devices cost the same, whatever they run.
    """
    metrics, cost = check.metrics, tied(check.cost)
    speed = latency(check.budget.latency_percentile).name
    accuracy, seconds = tied(metrics.values("accuracy")), tied(metrics.values(speed))
    alike = [int(row) for row in check.order[check.fits[check.order]] if cost[row] == cost[system]]
    best, fastest = max(alike, key=accuracy.__getitem__), min(alike, key=seconds.__getitem__)
    more = {fastest: "faster"} if seconds[fastest] * CLEARLY < seconds[system] else {}
    if metrics.space.judged and accuracy[best] >= accuracy[system] + MORE:
        more = {best: "more accurate"} | more
    same = f"has the same {noun(check.goal.metric)}"
    same = "costs the same" if check.budget.goal == "cost" else same
    for row, what in more.items():
        differences = [
            f"{noun(name)} {number(metrics.values(name)[row], quantity(name).unit)} against "
            f"{number(metrics.values(name)[system], quantity(name).unit)}"
            for name in (("accuracy", speed) if metrics.space.judged else (speed,))
        ]
        theirs, ours = chance(check.chance[row]), chance(check.chance[system])
        differences += [] if theirs == ours else [f"{theirs} sure against {ours}"]
        other, pick = metrics.candidate(row), metrics.candidate(system)
        by_limits = name_of(other, limits=False) == name_of(pick, limits=False)  # alone
        name = in_words(other.engine, other.policy, limits=by_limits, beside=pick.engine)
        comma = "," * ("," in name)
        yield f"{name}{comma} {same} and is {what}: {', '.join(differences)}"


def _as_run(check: ReplayedCheck, pick: ReplayedCandidate, load: Under) -> Iterable[str]:
    """Say what a run of the pick measured, and under which load."""
    made, engine = check.metrics.space.made, pick.candidate.engine
    run = made.measured(engine, pick.candidate.policy, load, check.prices.of(engine))
    if run is None:
        return
    names = ("accuracy", "latency_s", "latency_p95_s", "device_s", "energy_j")
    goal = check.goal.metric if check.goal.metric in names else "latency_s"
    measured = [
        f"{noun(name)} {with_interval(estimate)}"
        for name in dict.fromkeys(("accuracy", goal))
        if (estimate := run.estimates.get(name)) is not None
    ]
    times = "" if run.runs == 1 else f" {run.runs} times"
    under = "" if run.at_load else f", under another load ({run.load.words()})"
    where = f"{run.recording}, {run.problems} problems"
    if run.runs > 1:
        where = f"last in {where}"
    yield f"the pick was run{times}{under} and measured ({where}): {', '.join(measured)}"


def _routed(check: ReplayedCheck, pick: ReplayedCandidate) -> Iterable[str]:
    """Say what tables by difficulty gain, where any was tried with the model of the pick."""
    candidate = pick.candidate
    routings = [
        each for each in check.metrics.space.routings if each.model == candidate.engine.model
    ]
    offered = [each for each in routings if each.offered]
    related = [each for each in offered if candidate.policy in (each.policy, each.against)]
    for each in [*related, *offered][:1]:
        table = each.policy.spec.describe("{route}", each.policy.n, dict(each.policy.rule))
        yield (
            f"samples by difficulty ({table}) were tried on {each.problems} problems, each by a "
            f"table learned without it. Against {each.against.words()}, they give "
            f"{with_interval(each.accuracy, sign=True)} accuracy and "
            f"{relative_change(each.tokens)} tokens"
        )
    if routings and not offered:
        yield (
            "no table of samples by difficulty is offered. None is told apart from the best single "
            f"policy on problems that it was not learned from ({routings[0].problems} problems)"
        )


def _steps(pick: ReplayedCandidate) -> str:
    size = f"{number(pick.step_s, 's')} for {digits(pick.requests_per_step)} samples"
    if pick.law.prior is not None:
        return f"a step takes about {size}"
    spent = Features(*pick.law.seconds * pick.totals)._asdict()
    parts = {part: sum(spent[name] for name in names) for part, names in PARTS.items()}
    shares = {part: seconds / sum(spent.values()) for part, seconds in parts.items()}
    largest = sorted(shares.items(), key=lambda item: -item[1])
    words = ", ".join(f"{percent(share)} {part}" for part, share in largest if share >= 0.05)
    return f"a step takes {size}: {words}"


def _against_compute(check: ReplayedCheck, system: int, compute: int | None) -> Iterable[str]:
    """Say what the compute-optimal candidate has more or less than the pick, and why."""
    metrics, flops = check.metrics, check.metrics.values("flops")
    if compute is None:
        yield (
            "no candidate is accurate enough with the wanted probability by FLOPs alone"
            if np.isfinite(flops).any()
            else "FLOPs are not known, for the facts of the model or of what drafts are in no "
            "recording, or layers read less than the context or keep a state"
        )
        return
    if compute == system:
        yield "the pick is compute-optimal too: it also needs the fewest FLOPs"
        return
    less = flops[compute] / flops[system]
    than = f"It needs {percent(less)} of the pick's FLOPs"
    if not np.isfinite(flops[system]):
        than = "The pick's FLOPs are not known, for no recording has the facts of its draft model"
    head = f"the compute-optimal one is {name_of(metrics.candidate(compute))}. {than}"
    metric = "latency_s" if check.goal.metric == "accuracy" else check.goal.metric
    difference = check.difference(metric, compute, system)
    if difference is None:
        yield head
    elif not _is_sure(difference):
        yield f"{head}, and the two cannot be told apart in {noun(metric)}"
    elif (difference.value > 0) == quantity(metric).higher_is_better:
        breaks = "" if check.fits[compute] else " but breaks limits that the pick meets"
        yield f"{head}, and the compute-optimal one has {_more(metric, difference)}{breaks}"
    else:
        why = _why_worse(metrics.replayed[compute], metrics.replayed[system], metric)
        yield f"{head}, yet the compute-optimal one has {_more(metric, difference)}{why}"


def _is_sure(difference: Estimate) -> bool:
    """Whether an interval leaves out 0; an end that is not known is infinite."""
    low, high = difference.low, difference.high
    return (low is not None and low > 0) or (high is not None and high < 0)


def _more(metric: str, difference: Estimate) -> str:
    more = difference.value > 0
    ends = [end for end in (difference.low, difference.high) if end is not None]
    if not more:
        ends = [-end for end in reversed(ends)]
    low, high = ends if len(ends) == 2 else (None, None)
    size = Estimate(value=abs(difference.value), low=low, high=high, unit=difference.unit)
    text = with_interval(size, sign=True).replace("+", "")
    return f"{text} {'more' if more else 'less'} {noun(metric)}"


def _why_worse(theirs: ReplayedCandidate, ours: ReplayedCandidate, metric: str) -> str:
    """Say what of the steps makes a candidate worse than the pick: most by which they differ."""
    latency = metric.startswith("latency")
    count = []
    for replayed in (theirs, ours):
        engine = replayed.candidate.engine
        devices = engine.num_devices / engine.data_parallel_size
        spent = replayed.latency_s[0] if latency else replayed.device_s[0] / devices
        count.append(float(spent.mean()) / replayed.step_s)
    steps, times = count[0] / count[1], theirs.step_s / ours.step_s
    if max(steps, times) < CLEARLY:
        return ""
    if times > steps:
        return f". Its steps take {number(theirs.step_s, 's')} against {number(ours.step_s, 's')}"
    takes = "lasts" if latency else "takes"
    more = f". A problem {takes} {digits(count[0])} steps against {digits(count[1])}"
    if theirs.requests_per_step * CLEARLY > ours.requests_per_step:
        return more
    return (
        f"{more}, of {digits(theirs.requests_per_step)} samples each against "
        f"{digits(ours.requests_per_step)}"
    )


def _fewest_tokens(
    check: ReplayedCheck, system: int, compute: int | None, least: int | None
) -> Iterable[str]:
    """Say which candidate needs the fewest tokens, where FLOPs do not tell the same."""
    if least is None or compute is None or least in (system, compute):
        return
    few, many = (check.metrics.candidate(row) for row in (least, compute))
    tokens = check.metrics.values("tokens")
    if (few.policy, few.engine.model) == (many.policy, many.engine.model):
        return
    difference = check.difference("tokens", compute, least)
    if difference is None or difference.low is None or difference.low <= 0:
        return
    yield (
        f"the fewest tokens: {name_of(few)} needs {digits(tokens[least])}, "
        f"the compute-optimal one {digits(tokens[compute])}"
    )


def _without_accuracy(check: ReplayedCheck, system: int) -> Iterable[str]:
    """Say what accuracy the pick has where none is required, and which could be had."""
    budget, accuracy = check.budget, tied(check.metrics.values("accuracy"))
    if budget.min_accuracy is not None or budget.goal == "accuracy":
        return
    if not check.metrics.space.judged:
        yield "accuracy is not known: the traffic of others is not judged"
        return
    estimate = check.estimate("accuracy", system)
    value = "not known" if estimate is None else with_interval(estimate)
    line = f"no accuracy is required (--min-accuracy): the pick's is {value}"
    best = max((row for row in check.order if check.fits[row]), key=accuracy.__getitem__)
    if accuracy[best] > accuracy[system]:
        line += f". {name_of(check.metrics.candidate(best))} reaches {number(accuracy[best], '1')}"
        line += " within the limits" if budget.limits() else ""
    yield line


def _equal_ones(check: ReplayedCheck, system: int, equals: Sequence[int]) -> Iterable[str]:
    """Say which limits would do the same as the pick's, and what else is as good."""
    metrics, pick = check.metrics, check.metrics.candidate(system)
    latency, goal = metrics.replayed[system].latency_s, tied(metrics.values(check.goal.metric))
    engines = [
        metrics.candidate(row).engine
        for row in equals
        if metrics.candidate(row).policy == pick.policy
        and goal[row] == goal[system]
        and np.array_equal(metrics.replayed[row].latency_s, latency)
    ]
    usual = metrics.space.usual[metrics.rows[system]].tolist()
    for (name, what), own in zip(SAME_RESULT.items(), usual, strict=True):
        value = getattr(pick.engine, name)
        values = sorted({getattr(each, name) or 0 for each in engines} - {value})
        if values and value != own:
            *most, last = map(str, values)
            listed = f"{', '.join(most)} or {last}" if most else last
            yield f"a {name} of {listed} gives the same result: no more {what}"
    others = dict.fromkeys(name_of(metrics.candidate(row), limits=False) for row in equals)
    names = [name for name in others if name != name_of(pick, limits=False)]
    if names:
        named = " | ".join(names[:3])
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        yield f"statistically tied with the pick in {noun(check.goal.metric)}: {named}{more}"


def _small_steps(check: ReplayedCheck, system: int) -> Iterator[str]:
    """Say what fewer tokens in a step than an engine may have are good for, in the pick."""
    metrics, name = check.metrics, check.goal.metric
    mine = metrics.candidate(system)
    limit = mine.engine.max_num_batched_tokens or 0
    larger = {
        metrics.candidate(row).engine.max_num_batched_tokens or 0: row
        for row in check.order[check.asked[check.order]]
        if metrics.candidate(row).policy == mine.policy
        and dataclasses.replace(metrics.candidate(row).engine, max_num_batched_tokens=limit)
        == mine.engine
    }
    most = max(larger, default=0)
    if not 0 < limit < most:
        return
    row, head = larger[most], f"max_num_batched_tokens is {limit:,}: with {most:,}"
    if not check.fits[row]:
        yield f"{head} the limits are only {chance(check.chance[row])} sure"
        return
    if name == "accuracy":
        theirs, ours = (number(metrics.values(name)[each], "1") for each in (row, system))
        if theirs != ours:
            yield f"{head} its accuracy is {theirs} against {ours}"
            return
        name = "latency_s"
    change = metrics.values(name)[row] / metrics.values(name)[system] - 1
    if abs(change) < TOLD:
        yield (
            f"max_num_batched_tokens may be {limit:,} to {most:,}: {noun(name)} differs by less "
            f"than {percent(TOLD, 1)}"
        )
    else:
        size = f"{percent(abs(change), 1)} {'more' if change > 0 else 'less'}"
        yield f"{head} it has {size} {noun(name)}"


def _no_early_stop(check: ReplayedCheck, system: int) -> Iterator[str]:
    """Say of a pick that takes all votes that an early stop would have saved no time."""
    metrics, pick = check.metrics, check.metrics.candidate(system)
    if pick.policy.n == 1 or pick.policy.stops_early:
        return
    for row in check.order[check.fits[check.order]]:
        other = metrics.candidate(row)
        alike = dataclasses.replace(other.policy, method=pick.policy.method, rule=pick.policy.rule)
        if row == system or (other.engine, alike) != (pick.engine, pick.policy):
            continue
        same = all(
            len({*tied(metrics.values(name)[[row, system]])}) == 1
            for name in ("accuracy", "latency_s", "device_s")
        )
        if same:
            yield f"an early stop saves no time here: {other.policy.words()} takes as long"
            return


def _certainty(pick: ReplayedCandidate) -> Iterable[str]:
    law = pick.law
    sigma = law.sigma_outside if pick.extrapolated else law.sigma
    if law.prior is not None:
        yield from _of_prior(law.prior, sigma, beyond=pick.extrapolated)
        return
    repeats = law.repeats_outside if pick.extrapolated else law.repeats
    where = "outside" if pick.extrapolated else "inside"
    if repeats:
        # So many errors are a spread of their own; fewer are pooled with the assumed one.
        few = repeats < ENOUGH_CONFIGURATIONS
        pooled = f", with an assumed {percent(RUN_TO_RUN)} run to run" if few else ""
        yield (
            f"predicted step times {where} the recorded domain are within {percent(sigma, 1)} "
            f"(one standard deviation of {counted(repeats, 'run')} left out{pooled})"
        )
    else:
        assumed = assumed_words([law.sigma], law.runs, unsteady=not law.coarse)
        yield f"the run-to-run spread of times is {assumed}. No recording could be left out"
    if pick.extrapolated:
        yield f"extrapolated: {_beyond(pick)}"


def _beyond(pick: ReplayedCandidate) -> str:
    """Return what of a pick that is marked lies beyond the recorded steps."""
    if pick.law.smaller(pick.requests_per_step):
        return (
            f"the pick's steps have {pick.requests_per_step:.2g} requests in the mean, "
            f"{pick.law.fewest:,.0f} and more recorded"
        )
    if pick.beyond > 0:
        return f"steps larger than any recorded take {percent(pick.beyond)} of its busy time"
    return "the KV cache has blocks of several kinds and nearly fills"


def _of_prior(prior: PriorCost, sigma: float, *, beyond: bool) -> Iterable[str]:
    low, high = (float(np.exp(z * sigma - sigma**2 / 2)) for z in (-Z95, Z95))
    spread = f"The 90 % interval is {low:.2f} to {high:.2f} times the prediction"
    head = f"the pick's step times are not measured: they come from the prior ({prior.label})"
    names, sentence = ", ".join(prior.recordings), f"{prior.told[0].upper()}{prior.told[1:]}"
    if prior.kernels:
        yield f"{head}, its kernels recalibrated by {names}. {sentence}. {spread}"
    elif prior.recordings:
        other = "" if prior.checked else ", of another size or model"
        yield f"{head}, recalibrated by {names}{other}. {spread}"
    else:
        yield f"{head}. {sentence}. {spread}"
    if prior.drafts is not None:
        yield prior.drafts
    if beyond:
        yield "extrapolated: the pick makes larger steps or contexts than the tables hold"


def _how_far(stages: Stages) -> Iterable[str]:
    if stages.first is not None:
        yield f"the replay changed the pick: by the closed form it was {stages.first}"
    if stages.replayed < stages.screened and stages.spread is not None:
        yield (
            f"replayed the {stages.replayed:,} most promising of the {stages.screened:,} "
            "candidates that can be judged. A closed form judged the others, 90 % of the time "
            f"within {percent(stages.spread)}"
        )


def _assumptions(evidence: Evidence, check: ReplayedCheck) -> Iterable[str]:
    metrics, q = check.metrics, check.budget.latency_percentile
    count = len(metrics.space.problem_ids)
    if q is not None and not tells_above(count, q / 100):
        yield (
            f"the slowest of {counted(count, 'problem')} does not bound p{q:g}. How many take "
            "longer is assumed: half as many twice as long"
        )
    if metrics.rate_per_s is not None:
        come = "when they did as recorded" if metrics.as_sent else "at random"
        if metrics.as_sent and metrics.rate_per_s != evidence.load[1]:
            come = "as they did when recorded, faster or slower"
        yield f"the load: {number(metrics.rate_per_s, 'problems/s')} arrive {come}"
    else:
        in_flight = evidence.load[0]
        noted = {run.concurrency for run in evidence.runs}
        several = "" if len(noted) == 1 else " most often"
        whose = f"as recorded{several}"
        if noted == {None}:
            whose = "as no recording says its load (--rate says another)"
        yield f"the load: {counted(in_flight or 1, 'problem')} in flight, {whose}"
    if not metrics.space.judged:
        yield f"for {len(metrics.space.problem_ids):,} problems as they were sent"
        return
    named = evidence.workload.name if evidence.workload else "unnamed"
    problems = counted(len(metrics.space.problem_ids), "problem")
    yield f"judged on {problems} of the workload {named}"
    if check.prices.recorded:
        yield f"price: ${check.prices.plain:g} per device-hour, as recorded"


def _of_a_run(check: ReplayedCheck) -> Iterator[str]:
    """Say what the chance of a limit on accuracy holds beside the choice of problems."""
    if check.budget.min_accuracy is not None:
        yield (
            "how sure the accuracy is counts that one run has its luck, and that the pick may "
            "look best by luck"
        )


def measure_next(
    evidence: Evidence,
    metrics: CandidateMetrics,
    system: int | None,
    proposed: Sequence[Experiment],
    *,
    load: Under,
    short: Sequence[ShortRun] = (),
    at_limits: float = 0.0,
) -> list[str]:
    """Return what would make the answer surer, as commands where there is one.

    Where times are of a prior, `short` runs on its GPU that save loss stand for whole ones.
    `at_limits` is what of the expected loss is that the pick may break a limit.
    """
    whole = [] if any(run.saves for run in short) else proposed
    lines = [
        *(_short(evidence, short, at_limits) if short and not whole else ()),
        *(
            f"{run.reason}. Once it is run, {_saves(run, at_limits if not place else None)}. Run it"
            f"{_record(evidence, run.engine, run.policy, evidence.load[0])}"
            for place, run in enumerate(whole)
        ),
    ]
    lines += _not_told_apart(whole or [run for run in short if run.saves])
    if system is None:
        return lines
    pick, problems, why = metrics.replayed[system], len(metrics.space.problem_ids), None
    engine, policy = pick.candidate.engine, pick.candidate.policy
    if not pick.candidate.recorded:
        why = "the pick was never run. Run it"
        if not lines:
            why = (
                "no run is expected to lead to a better pick. To check this one, which was never "
                "run, run it"
            )
    elif not evidence.made.has_under(engine, policy, load):
        why = "the pick was run under another load. Run it under this one"
    elif not pick.law.repeats or pick.law.runs < 2:
        why = "run the pick again to learn the run-to-run spread"
    if why is not None and (engine, policy) not in [(run.engine, run.policy) for run in whole]:
        in_flight = load[0]
        if load[1] is not None and policy != AS_SENT:  # `record` sends no rate
            in_flight = in_flight_at(load[1], float(metrics.values("latency_s")[system]))
            flying = counted(in_flight, "problem")
            why += f", with {flying} in flight, the rate times the predicted latency"
        lines.append(f"{why}{_record(evidence, engine, policy, in_flight)}")
    if problems < ENOUGH_PROBLEMS and metrics.space.judged:
        low, high = np.quantile(metrics.draws("accuracy")[system], ENDS)
        lines.append(
            f"more problems: with {problems} the accuracy is known to "
            f"+-{(high - low) / 2:.3f}, which four times as many would halve"
        )
    return lines


def _saves(run: ShortRun | Experiment, at_limits: float | None = None) -> str:
    """Return what a run does to the expected loss of the pick.

    With `at_limits`, what of the loss is that it may break a limit, also what the loss is, and how
    it goes with how sure the pick is of its limits.
    """
    before, after = percent(run.regret, 1), percent(run.regret_after, 1)
    if at_limits is None:
        return f"the pick's expected loss falls from {before} to {after}"
    of_limits = ""
    if at_limits > 0:
        others = percent(max(run.regret - at_limits, 0.0), 1)
        of_limits = (
            f". {percent(at_limits, 1)} is for the chance that it breaks a limit, and {others} for "
            "others that may turn out better within the limits"
        )
    return f"the pick's expected loss ({EXPECTED_LOSS}) falls from {before} to {after}{of_limits}"


def _not_told_apart(runs: Sequence[ShortRun | Experiment]) -> Iterator[str]:
    """Say which runs save the same, so that equal numbers do not read as so many reasons."""
    alike: dict[str, list[int]] = {}
    for place, run in enumerate(runs, 1):
        alike.setdefault(_saves(run), []).append(place)
    for places in alike.values():
        if len(places) > 1:
            *most, last = map(str, places)
            yield (
                f"runs {', '.join(most)} and {last} save the same by what is known now, so they "
                "cannot be told apart. Make the first one, then ask again"
            )


def _short(evidence: Evidence, runs: Sequence[ShortRun], at_limits: float) -> Iterator[str]:
    for number_, run in enumerate(runs, 1):
        policy = dataclasses.replace(run.policy, method="majority", rule=())
        engine = dataclasses.replace(run.engine, mode="in_process", data_parallel_size=1)
        price = "" if run.cost_usd is None else f", {number(run.cost_usd, 'USD')}"
        takes = f"{number(run.device_s, 'device-s')}{price}"
        on = f"On {engine.gpu}"
        if not evidence.posed:
            on += f", with two of the problems in {PROBLEMS_FILE}"
        if settings := planned(engine, evidence.models.get(engine.model)):
            command = (
                f"{PROBLEMS} problems, one after the other, of {in_words(engine, policy)}"
                f"{_by_plan(settings, f' -o {name_word(run.folder)}')}"
            )
        else:
            command = _command(evidence, engine, policy, PROBLEMS, in_flight=1)
            command += f" -o {name_word(run.folder)}"
        which = (
            f"a short run for the step times of {engine.model} tp{engine.tensor_parallel_size}, "
            f"about {takes}"
        )
        if not run.saves:
            yield (
                "no run is expected to lead to a better pick, and this one checks its times: "
                f"{which}. {on}: {command}"
            )
            continue
        yield (
            f"{number_} of {len(runs)}, {which}: "
            f"{_saves(run, at_limits if number_ == 1 else None)}. {on}: {command}"
        )
    folders = " ".join(f"{flag_word('with', run.folder)}" for run in runs)
    yield f"then advise as now with what was run, which checks the prior: {folders}"


def _by_plan(settings: Mapping[str, Any], options: str = "") -> str:
    listed = ", ".join(f"{name}: {json.dumps(value)}" for name, value in settings.items())
    return f", by a plan for ttscope sweep{options}, as record has no option for {listed}"


def _record(evidence: Evidence, engine: EngineConfig, policy: Policy, in_flight: int | None) -> str:
    """Return how to run it with so many problems in flight, as the end of a sentence."""
    if policy == AS_SENT:
        return ": start the server so, and watch its traffic again with ttscope attach"
    where = "" if engine.gpu in evidence.gpus else f", on {engine.gpu}"
    if engine.mode == "server" or engine.data_parallel_size > 1:
        servers, _ = engine.by_server()
        several = f", with its {servers} servers up and the plugin in each (docs/attach.md)"
        where += ", with its server started" if servers == 1 else several
    if not evidence.posed:
        where += f", with the problems in {PROBLEMS_FILE}"
    if settings := planned(engine, evidence.models.get(engine.model)):
        return f"{where}{_by_plan(settings)}"
    problems = None if evidence.workload is None else evidence.workload.problems
    return f"{where}: {_command(evidence, engine, policy, problems, in_flight=in_flight)}"


def _command(
    evidence: Evidence,
    engine: EngineConfig,
    policy: Policy,
    problems: int | None,
    *,
    in_flight: int | None,
) -> str:
    workload = evidence.workload
    return record_command(
        engine,
        policy,
        workload=evidence.posable,
        problems=problems,
        concurrency=in_flight,
        seed=None if workload is None else workload.seed,
        verifier=None if workload is None else workload.verifier,
    )


# Why no candidate meets a budget, and what a limit that is missed would have to be.


def why_nothing(
    check: ReplayedCheck, misses: Sequence[NearMiss], rows: Sequence[tuple[str, int]]
) -> Iterator[str]:
    """Yield the sentences; `rows` are the limits and candidates of `misses`."""
    wanted = check.budget.confidence
    yield f"no candidate meets every limit with {percent(wanted)} probability"
    alone = {field: bool(check.within(field).any()) for field in check.limits}
    never = [LIMITS[field].option for field, met in alone.items() if not met]
    if never:
        options = " or ".join(never)
        yield f"no candidate is {percent(wanted)} sure of {options}, whatever the other limits"
    elif len(alone) > 1:
        listed = " and ".join(LIMITS[field].option for field in alone)
        most = float(check.chance.max())
        yield f"{listed}: each alone is met, all together with {chance(most)} probability at most"
    for miss, (_, row) in zip(misses, rows, strict=True):
        yield from _would_take(check, miss, row)


def _would_take(check: ReplayedCheck, miss: NearMiss, row: int) -> Iterable[str]:
    """Yield what the limit would have to be; nothing where it is met and the others are not."""
    engine, policy = miss.pick.engine, miss.pick.policy
    name, option = in_words(engine, policy, prior=miss.pick.prior), LIMITS[miss.limit].option
    missed = miss.sure < check.budget.confidence
    if miss.limit in ("max_gpus", "rate"):
        if missed:
            yield f"{option}: {name} comes nearest, with {with_interval(miss.nearest)}"
        if missed and check.budget.max_gpus is None:
            most = REPLICAS[-1]
            yield (
                f"only single engines were asked about. --gpus {most * engine.num_devices} offers "
                f"up to {most} of this one"
            )
        return
    needed, end = check.needed(miss.limit, row, alone=False), "fits"
    if not isfinite(needed):
        if not missed:
            return
        needed, end = check.needed(miss.limit, row), "surely meets it"
    above = check.limits[miss.limit].above
    value = written(_enough(needed, above=above), miss.nearest.unit)
    which = which_latency(miss.limit, check.budget.latency_percentile)
    yield f"{option} would have to be {value}{which}. Then {name} {end}"


def _enough(value: float, *, above: bool) -> float:
    """Return a limit in three digits that is no tighter than `value`."""
    if above:
        return floor(value * 1000) / 1000
    if value <= 0:
        return value
    places = 2 - floor(log10(value))
    return float(f"{ceil(value * 10**places - 1e-9) / 10**places:.3g}")
