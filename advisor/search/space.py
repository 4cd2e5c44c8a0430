"""The candidates: recorded engines with other limits, and policies that the samples can answer.

Nothing is proposed whose step time or samples were never recorded, but for engines of a prior that
was asked for (advisor/step_time/prior/offers.py). Limits take powers of two up to the largest
recorded, n also values between them, and an engine may stand several times. Candidates are rows of
arrays, as there may be a hundred thousand; `Space.candidate` makes one.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Final

import numpy as np

from advisor.evidence.features import FEATURES
from advisor.evidence.gather import Evidence
from advisor.evidence.keys import (
    blocks_of,
    decoder_of,
    law_key,
    powers,
    tokens_a_request,
    without_limits,
)
from advisor.evidence.measured import RunsMade
from advisor.evidence.pools import Pool, find_pools
from advisor.search.routing import with_routings
from advisor.step_time.power.law import PowerLaw, power_laws
from advisor.step_time.prior.defaults import usual_limits
from traces.schema.advice import Routing
from traces.schema.engine import EngineConfig, ModelFacts
from traces.schema.tts.policy import AS_SENT, Policy
from traces.statistics import Bools, Floats, Ints

if TYPE_CHECKING:
    from advisor.step_time.prior.offers import Offers


UNRECORDED: Final = "speculation was not recorded with this sampling"
ENOUGH_PROBLEMS: Final = 0.5  # of those of the fullest pool; a pool with fewer is left out
FEWEST_BATCHED: Final = 256  # tokens a step that are proposed
REPLICAS: Final = (1, 2, 4, 8)
MORE: Final = (2, 4)  # times the max_num_seqs that bound a server that was watched


@dataclass(frozen=True, kw_only=True)
class CandidateKind:
    """What candidates share that differ in limits and replicas alone: engine, samples, policy.

    The engine is without limits; it was recorded, or is one of a `prior`. Without `facts` its FLOPs
    are not known. `ranks` of a server of a mixture share the experts, and are replicas.
    """

    engine: EngineConfig
    pool: Pool
    policy: Policy
    facts: ModelFacts | None
    prior: str | None = None
    ranks: int | None = None


@dataclass(frozen=True, kw_only=True)
class Candidate(CandidateKind):
    """A configuration that could be run, with limits and replicas; `recorded` says that it was."""

    recorded: bool


@dataclass(frozen=True, kw_only=True)
class Space:
    """The candidates as arrays [candidates], how many were dropped and why, the common problems.

    `kind` is the place in `kinds`; `max_num_seqs` and `max_num_batched_tokens` are 0 where they are
    not known; `replicas` is how many engines serve. `power` are the laws of what engines
    draw.
    `offers` are those of the prior that were asked for.
    """

    kinds: tuple[CandidateKind, ...]
    kind: Ints
    max_num_seqs: Ints
    max_num_batched_tokens: Ints
    replicas: Ints
    dropped: Mapping[str, int]
    problem_ids: tuple[str, ...]
    made: RunsMade
    routings: tuple[Routing, ...] = ()
    power: Mapping[EngineConfig, PowerLaw] = field(default_factory=dict)
    offers: Offers | None = None

    def __len__(self) -> int:
        return len(self.kind)

    @property
    def judged(self) -> bool:
        """Whether it is known which answers are right."""
        return all(kind.policy != AS_SENT for kind in self.kinds)

    @cached_property
    def _by_engine(self) -> dict[EngineConfig, list[int]]:
        by_engine: dict[EngineConfig, list[int]] = {}
        for number, kind in enumerate(self.kinds):
            by_engine.setdefault(kind.engine, []).append(number)
        return by_engine

    @cached_property
    def _first(self) -> Ints:
        """The first candidate of each kind, whose candidates stand together, and their number."""
        return np.asarray(np.searchsorted(self.kind, np.arange(len(self.kinds) + 1)))

    @cached_property
    def alone(self) -> Bools:
        """Whether a candidate is a single server, or a single replica."""
        least = np.array([kind.ranks or 1 for kind in self.kinds], dtype=np.int64)
        return np.asarray(self.replicas == least[self.kind])

    @cached_property
    def devices(self) -> Ints:
        by_kind = np.array([kind.engine.num_devices for kind in self.kinds], dtype=np.int64)
        return np.asarray(by_kind[self.kind] * self.replicas)

    @cached_property
    def engine_devices(self) -> Ints:
        """The devices of one replica of each candidate."""
        return np.asarray(self.devices // self.replicas)

    @cached_property
    def powered(self) -> Ints:
        """The place in `power` of each candidate's law, -1 where there is none."""
        places = {key: place for place, key in enumerate(self.power)}
        by_kind = [places.get(law_key(kind.engine), -1) for kind in self.kinds]
        return np.array(by_kind, dtype=np.int64)[self.kind]

    @cached_property
    def policies(self) -> Ints:
        """A number for each kind, the same where the model and the policy are."""
        seen: dict[tuple[str, Policy], int] = {}
        pairs = [(kind.engine.model, kind.policy) for kind in self.kinds]
        return np.array([seen.setdefault(pair, len(seen)) for pair in pairs], dtype=np.int64)

    @cached_property
    def usual(self) -> Ints:
        """VLLM's own max_num_seqs and max_num_batched_tokens on the device [candidates, 2].

        Engines of a prior are asked about as servers.
        """
        usual: dict[EngineConfig, list[int]] = {}
        for kind in self.kinds:
            if kind.engine not in usual:
                mode = kind.engine.mode if kind.prior is None else "server"
                usual[kind.engine] = usual_limits(dataclasses.replace(kind.engine, mode=mode))
        by_kind = [usual[kind.engine] for kind in self.kinds]
        return np.array(by_kind, dtype=np.int64).reshape(-1, 2)[self.kind]

    @cached_property
    def unusual(self) -> Floats:
        """How many doublings the limits of each candidate are from vLLM's own, 0 where they ran."""
        limits = np.column_stack([self.max_num_seqs, self.max_num_batched_tokens])
        known = np.where(limits > 0, limits, self.usual)
        far = np.abs(np.log2(known / self.usual)).sum(axis=1)
        for engine in self.made.engines:
            far[self.rows_with(engine, replicas=None)] = 0.0
        return np.asarray(far)

    @cached_property
    def preferred(self) -> Floats:
        """What decides between equals, less being better.

        A run of it comes first, then one of its engine, then fewer replicas, then recorded limits,
        or else those nearest to vLLM's own.
        """
        runs = np.full(len(self), 2, dtype=np.int64)
        for engine in self.made.engines:
            for row in self.rows_with(engine, replicas=engine.data_parallel_size):
                ran = self.made.has(engine, self.kinds[self.kind[row]].policy)
                runs[row] = min(runs[row], 0 if ran else 1)
        far = self.unusual / (self.unusual.max(initial=0.0) + 1)
        return np.asarray(runs * 64 + np.log2(self.replicas).astype(np.int64) + far)

    def candidate(self, row: int) -> Candidate:
        kind = self.kinds[self.kind[row]]
        replicas, gpus = int(self.replicas[row]), kind.engine.num_gpus
        engine = dataclasses.replace(
            kind.engine,
            max_num_seqs=int(self.max_num_seqs[row]) or None,
            max_num_batched_tokens=int(self.max_num_batched_tokens[row]) or None,
            data_parallel_size=replicas,
            num_gpus=None if gpus is None else gpus * replicas,
        )
        if kind.ranks is not None and replicas > 1:
            engine = engine.of_servers(kind.ranks)
        recorded = self.made.has(engine, kind.policy)
        return Candidate(**vars(kind) | {"engine": engine, "recorded": recorded})

    def rows_of(self, engine: EngineConfig, policy: Policy) -> list[int]:
        """Return the candidates with an engine and a policy: one, or none."""
        rows = self.rows_with(engine, replicas=engine.data_parallel_size)
        return [row for row in rows if self.kinds[self.kind[row]].policy == policy]

    def rows_with(self, engine: EngineConfig, *, replicas: int | None) -> list[int]:
        """Return the candidates with an engine and its limits, with any policy.

        Without `replicas` there are those with any number of them.
        """
        kinds = self._by_engine.get(without_limits(engine), [])
        parts = [np.arange(self._first[kind], self._first[kind + 1]) for kind in kinds]
        rows = np.concatenate([np.zeros(0, dtype=np.int64), *parts])
        same_limits = (
            (self.max_num_seqs[rows] == (engine.max_num_seqs or 0))
            & (self.max_num_batched_tokens[rows] == (engine.max_num_batched_tokens or 0))
            & ((self.replicas[rows] == replicas) | (replicas is None))
        )
        return [int(row) for row in rows[same_limits]]


def explore(evidence: Evidence, offers: Offers | None = None, *, quick: bool = False) -> Space:
    """Return every candidate that the evidence can judge, and those that a prior offers.

    With `quick` n goes in powers of two alone, and no tables by difficulty are learned.
    """
    pools = find_pools(evidence, few=quick)
    fullest = max((len(pool.problem_ids) for pool in pools), default=0)
    dropped: Counter[str] = Counter()
    kept = []
    for pool in pools:
        if len(pool.problem_ids) < ENOUGH_PROBLEMS * fullest:
            dropped["recorded on too few of the problems"] += len(pool.policies)
        else:
            kept.append(pool)
    names, kept = _common(evidence, kept)
    kept, routings = (kept, ()) if quick else with_routings(kept, names)
    engines: dict[EngineConfig, tuple[str | None, Sequence[tuple[int, int]]]] = {
        engine: (None, choices) for engine, choices in _engines(evidence).items()
    }
    sharing = {} if offers is None else offers.ranks
    if offers is not None:
        engines |= offers.engines
        for refused in offers.refused:
            decoder = decoder_of(refused.engine)
            policies = sum(len(pool.policies) for pool in kept if pool.key[0] == decoder)
            dropped[refused.why] += refused.choices * policies
    sizes = {pool.key: _Sizes(pool, names) for pool in kept}
    ran: dict[EngineConfig, set[int]] = {}
    for run in evidence.runs:
        ran.setdefault(without_limits(run.engine), set()).add(run.engine.data_parallel_size)
    kinds: list[CandidateKind] = []
    columns: list[Ints] = []
    for engine, (prior, choices) in engines.items():
        decoder = decoder_of(engine)
        sampled = {pool.key[1] for pool in kept if pool.key[0] == decoder}
        for pool in kept:
            if pool.key[0] != decoder:
                undrafted = engine.speculative is not None and pool.key[0][:-1] == decoder[:-1]
                if undrafted and not pool.by_problem and pool.key[1] not in sampled:
                    dropped[UNRECORDED] += len(pool.policies) * len(choices)
                continue
            reason = _unfit(engine, sizes[pool.key])
            if reason is not None:
                dropped[reason] += len(pool.policies) * len(choices)
                continue
            fitting = _fitting(engine, choices, dropped, len(pool.policies))
            ranks = evidence.ranks_of(engine) if prior is None else sharing.get(engine)
            facts = evidence.models.get(engine.model)
            kind = partial(
                CandidateKind, engine=engine, pool=pool, facts=facts, prior=prior, ranks=ranks
            )
            for policy in pool.policies if fitting else ():
                kinds.append(kind(policy=policy))
                columns.append(_rows(len(kinds) - 1, fitting, ranks or 1, ran.get(engine, ())))
    rows = np.concatenate([np.zeros((0, 4), dtype=np.int64), *columns])
    return Space(
        kinds=tuple(kinds),
        kind=rows[:, 0],
        max_num_seqs=rows[:, 1],
        max_num_batched_tokens=rows[:, 2],
        replicas=rows[:, 3],
        dropped=dict(dropped),
        problem_ids=names,
        made=evidence.made,
        routings=routings,
        power={**power_laws(evidence.power), **({} if offers is None else offers.power)},
        offers=offers,
    )


def _common(evidence: Evidence, pools: list[Pool]) -> tuple[tuple[str, ...], list[Pool]]:
    """Return the problems that all pools have, or else the fullest pool's, in order of arrival."""
    common = frozenset.intersection(*(pool.problem_ids for pool in pools)) if pools else frozenset()
    if pools and not common:
        pools = [max(pools, key=lambda pool: len(pool.problem_ids))]
        common = pools[0].problem_ids
    order = dict.fromkeys(name for run in evidence.runs for name in run.problems)
    return tuple(name for name in order if name in common), pools


def _rows(kind: int, choices: Sequence[tuple[int, int]], ranks: int, ran: Collection[int]) -> Ints:
    """Return a row for each choice of limits and number of replicas, those that `ran` among them.

    Ranks of a server are replicas too.
    """
    replicas = sorted({*(ranks * count for count in REPLICAS), *ran})
    limits = np.repeat(np.array(choices, dtype=np.int64), len(replicas), axis=0)
    return np.column_stack(
        [np.full(len(limits), kind), limits, np.tile(replicas, len(choices))]
    ).astype(np.int64)


def _engines(evidence: Evidence) -> dict[EngineConfig, list[tuple[int, int]]]:
    """Return recorded engines without limits, and their (max_num_seqs, max_num_batched_tokens).

    Both take the recorded values and the powers of two up to the largest recorded of their law,
    max_num_seqs also `MORE` where it bound a server that was only watched.
    """
    recorded = list(
        dict.fromkeys([t.engine for t in evidence.steps] + [r.engine for r in evidence.runs])
    )
    taught = {law_key(table.engine) for table in evidence.steps}
    by_law: dict[EngineConfig, list[EngineConfig]] = {}
    for engine in recorded:
        by_law.setdefault(law_key(engine), []).append(engine)
    bound = _bound(evidence)
    engines: dict[EngineConfig, list[tuple[int, int]]] = {}
    for engine in recorded:
        if law_key(engine) not in taught:
            continue
        same_law = by_law[law_key(engine)]
        seqs, batched = [0], [0]  # not known
        if engine.max_num_seqs is not None:
            seqs = powers([other.max_num_seqs for other in same_law], 1)
            if engine.max_num_seqs == seqs[-1] and engine in bound:
                seqs += [times * engine.max_num_seqs for times in MORE]
        if engine.max_num_batched_tokens is not None:
            batched = powers([other.max_num_batched_tokens for other in same_law], FEWEST_BATCHED)
        choices = engines.setdefault(without_limits(engine), [])
        choices += [(s, b) for s in seqs for b in batched if (s, b) not in choices]
    return engines


def _bound(evidence: Evidence) -> set[EngineConfig]:
    """Return the servers that were only watched and ran as many requests as max_num_seqs lets."""
    sent = {decoder_of(run.engine) for run in evidence.runs if run.policy == AS_SENT}
    most = FEATURES.index("requests")
    return {
        table.engine
        for table in evidence.steps
        if decoder_of(table.engine) in sent
        and table.engine.max_num_seqs is not None
        and table.most[most] >= table.engine.max_num_seqs
    }


def _fitting(
    engine: EngineConfig, choices: Sequence[tuple[int, int]], dropped: Counter[str], policies: int
) -> list[tuple[int, int]]:
    """Return the choices of limits that vLLM would start with; the others are counted."""
    width = tokens_a_request(engine)
    fitting = [(seqs, tokens) for seqs, tokens in choices if not 0 < tokens < seqs * width]
    if len(fitting) < len(choices):
        what = "max_num_seqs" if width == 1 else "the drafts"
        reason = f"max_num_batched_tokens is too few for {what}"
        dropped[reason] += (len(choices) - len(fitting)) * policies
    return fitting


class _Sizes:
    """What of a pool decides whether an engine can run it, looked up once."""

    def __init__(self, pool: Pool, names: Sequence[str]) -> None:
        problems = pool.loads(names)
        self.known = problems is not None
        self.longest = max(
            (p.prompt_tokens + s.output_tokens for p in problems or () for s in p.samples),
            default=0,
        )
        drafts = [
            s.scheduled.mean()
            for problem in problems or ()
            for s in problem.samples
            if s.scheduled is not None and s.scheduled.size
        ]
        self.held = self.longest + int(np.ceil(max(drafts, default=1.0))) - 1
        drawn = zip(problems or (), pool.drawn(names), strict=False)
        self.enough = all(len(problem.samples) >= most for problem, most in drawn)


def _unfit(engine: EngineConfig, pool: _Sizes) -> str | None:
    """Return why an engine cannot be judged with a pool's samples, or None."""
    if not pool.known:
        return UNRECORDED
    if engine.speculative is not None and not pool.enough:
        return UNRECORDED
    blocks = engine.num_gpu_blocks
    if blocks is not None and blocks_of(engine, pool.held) > blocks - 1:
        return "the KV cache is too small for one sequence"
    if engine.max_model_len is not None and pool.longest > engine.max_model_len:
        return "the recorded sequences are longer than max_model_len"
    return None
