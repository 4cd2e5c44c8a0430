"""Which reasoning effort or thinking budget to use on the engine of a pick, by class of problem.

The best policy that the budget allows with an effort stands for that effort. Tables that give each
class an effort of its own are one more, "by class". Classes are judged by the same replays, in
which all problems share the engine, of their own problems alone.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from advisor.advice.advisor import Advisor
from advisor.advice.command import servers_note
from advisor.advice.feasible import ReplayedCheck, Shortlist
from advisor.search.metrics import CandidateMetrics
from advisor.search.resampling import Resampling
from traces.recording.reader import Recording
from traces.schema.advice import Budget, Pick, Recommendation
from traces.schema.estimate import Estimate
from traces.schema.record import Record
from traces.schema.tts.policy import Policy
from traces.statistics import Ints, share, tied

Setting = tuple[str | None, int | None]  # reasoning effort, thinking budget

VERSION = 1
BY_CLASS = "by class"
FEWEST = 10  # problems of a class that is judged by itself
MOST_CLASSES = 100  # the largest
TRIED = 4  # policies of each effort that are replayed
ESTIMATES = (
    "accuracy", "latency_s", "latency_p95_s", "energy_j", "cost_usd", "device_s", "tokens",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Effort(Record):
    """One effort with the best policy of it. `use`: it is the best of those that fit the budget.

    `cut_share` of the samples ended at max_tokens, None where that is not known.
    """

    reasoning_effort: str | None
    thinking_token_budget: int | None
    policy: Policy
    estimates: Mapping[str, Estimate | None]
    cut_share: Estimate | None
    probability_within_budget: float
    use: bool


@dataclass(frozen=True, kw_only=True)
class ClassEfforts(Record):
    """The efforts for one class of problem."""

    problems: int
    efforts: tuple[Effort, ...]


@dataclass(frozen=True, kw_only=True)
class EffortMap(Record):
    """The efforts of one model on one engine, for all problems and for each class of them.

    `command` starts one server. `servers` says how several are run, and is None where it is one.
    `left_out` counts the problems of classes that have too few, or that have none.
    """

    ttscope_effort_map: int = VERSION
    model: str
    budget: Budget
    command: str | None
    servers: str | None
    problems: int
    efforts: tuple[Effort, ...]
    classes: Mapping[str, ClassEfforts]
    left_out: int


def effort_map(
    advisor: Advisor, budget: Budget, pick: Pick, groups: Mapping[str, str | None]
) -> EffortMap:
    """Return the efforts on the engine of an answer's pick; `groups` has each problem's class."""
    space, state = advisor.space, advisor.under(budget.rate_per_s)
    shortlist = advisor.shortlist(budget)
    by_setting: dict[Setting, list[int]] = {}
    for row in space.rows_with(pick.engine, replicas=pick.engine.data_parallel_size):
        by_setting.setdefault(_setting(space.kinds[space.kind[row]].policy), []).append(row)
    tried = {name: _promising(shortlist, np.array(rows)) for name, rows in by_setting.items()}
    tried[_setting(pick.policy)] += space.rows_of(pick.engine, pick.policy)
    state.replay([row for rows in tried.values() for row in rows])
    place = state.metrics.place
    places = {name: [place[row] for row in dict.fromkeys(rows)] for name, rows in tried.items()}
    problem_groups = [groups.get(name) for name in space.problem_ids]
    sizes = Counter(each for each in problem_groups if each is not None)
    classes = [name for name, size in sizes.most_common(MOST_CLASSES) if size >= FEWEST]
    class_efforts = {}
    for name in sorted(classes, key=_as_counted):
        members = np.array([i for i, each in enumerate(problem_groups) if each == name])
        check = _of_class(advisor, budget, members)
        class_efforts[name] = ClassEfforts(
            problems=len(members), efforts=_efforts(check, places, members)
        )
    everyone = np.arange(len(problem_groups))
    return EffortMap(
        model=pick.engine.model,
        budget=budget,
        command=pick.command,
        servers=servers_note(pick.engine) or None,
        problems=len(problem_groups),
        efforts=_efforts(advisor.check(budget), places, everyone),
        classes=class_efforts,
        left_out=len(problem_groups) - sum(each.problems for each in class_efforts.values())
        if sizes
        else 0,
    )


def _as_counted(name: str) -> list[str | int]:
    """Return a key that puts `level 3` before `level 10`."""
    return [int(part) if at % 2 else part for at, part in enumerate(re.split(r"(\d+)", name))]


def _setting(policy: Policy) -> Setting:
    effort = policy.reasoning_effort if policy.efforts is None else BY_CLASS
    return effort, policy.thinking_token_budget


def efforts_of(
    advisor: Advisor, recordings: Sequence[Recording], answer: Recommendation
) -> EffortMap | None:
    """Return these by the groups that the recordings have, None where nothing fits."""
    if answer.system_optimal is None:
        return None
    groups: dict[str, str | None] = {}
    for recording in recordings:
        rows = recording.problems.select("problem_id", "group").unique("problem_id")
        groups |= {name: group for name, group in rows.iter_rows() if group is not None}
    return effort_map(advisor, answer.budget, answer.system_optimal, groups)


def _promising(shortlist: Shortlist, rows: Ints) -> list[int]:
    """Return the policies of an effort to replay: the surest to fit, the best first."""
    sure = np.minimum(shortlist.chance[rows], shortlist.budget.confidence)
    order = rows[np.lexsort((tied(shortlist.cost[rows]), -np.round(sure, 6)))]
    return [int(row) for row in order[:TRIED]]


def _of_class(advisor: Advisor, budget: Budget, members: Ints) -> ReplayedCheck:
    """Return the budget asked of what was replayed, with some of the problems alone."""
    all_metrics, check = advisor.under(budget.rate_per_s).metrics, advisor.check(budget)
    drawn = Resampling(
        len(members), count=all_metrics.resampling.count, seed=all_metrics.resampling.seed
    )
    metrics = CandidateMetrics(
        advisor.space,
        drawn,
        rate_per_s=all_metrics.rate_per_s,
        luck=advisor.demands.luck_among(members),
    )
    for row, each in zip(all_metrics.rows, all_metrics.replayed, strict=True):
        metrics.add(row, each.among(members))
    looked_at = [int(row) for row in np.argsort(check.sequence, kind="stable") if check.asked[row]]
    return ReplayedCheck(metrics, budget, check.prices, looked_at)


def _efforts(
    check: ReplayedCheck, places: Mapping[Setting, Sequence[int]], members: Ints
) -> tuple[Effort, ...]:
    rows = {name: _best(check, own) for name, own in places.items()}
    chosen = [row for row in rows.values() if row is not None]
    best = check.best(_only(check, chosen) & check.fits)
    efforts = [
        Effort(
            reasoning_effort=setting[0],
            thinking_token_budget=setting[1],
            policy=check.metrics.candidate(row).policy,
            estimates={name: check.estimate(name, row) for name in ESTIMATES},
            cut_share=_cut_share(check, row, members),
            probability_within_budget=float(check.chance[row]),
            use=row == best,
        )
        for setting, row in rows.items()
        if row is not None
    ]
    return tuple(sorted(efforts, key=_tokens))


def _tokens(effort: Effort) -> float:
    tokens = effort.estimates["tokens"]
    return float("inf") if tokens is None else tokens.value


def _only(check: ReplayedCheck, rows: Sequence[int]) -> npt.NDArray[np.bool_]:
    chosen = np.zeros(len(check.price), dtype=bool)
    chosen[list(rows)] = True
    return chosen


def _best(check: ReplayedCheck, rows: Sequence[int]) -> int | None:
    """Return the best policy that fits, or else the surest to fit."""
    tried = _only(check, rows)
    fitting = check.best(tried & check.fits)
    if fitting is not None:
        return fitting
    asked = tried & check.asked
    surest = asked & (check.chance >= check.chance[asked].max(initial=0.0) - 1e-9)
    return check.best(surest)


def _cut_share(check: ReplayedCheck, row: int, members: Ints) -> Estimate | None:
    """Return the share of the recorded samples that ended at max_tokens."""
    candidate, metrics = check.metrics.candidate(row), check.metrics
    if candidate.pool.curve is not None:  # whose lengths are drawn
        return None
    names = np.array(metrics.space.problem_ids)[members].tolist()
    problems, most = candidate.pool.loads(names) or [], candidate.policy.max_tokens
    cut = [
        [s.by_length or s.output_tokens >= (most or np.inf) for s in p.samples] for p in problems
    ]
    shares = np.array([np.mean(each) for each in cut])
    if not len(shares) or (most is None and not shares.any()):
        return None
    estimate = share(float(shares.mean()), float(shares.var()), len(shares))
    return dataclasses.replace(estimate, runs=len(candidate.pool.runs))
