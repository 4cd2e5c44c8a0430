"""A GPU that was never measured here: operator times from others' tables, for a model and a size.

A step is the sum of its operations (parts.py): what the tables have is taken from them, and what
they lack is a stated rule or is missing. Both are told (`PRIOR_RULES`, `Prior.rules`,
`PRIOR_MISSING`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from typing import Final

import numpy as np

from advisor.evidence.unrecorded import SHOWN
from advisor.step_time.host.law import OLD, generation_of
from advisor.step_time.operators.communication import all_reduces
from advisor.step_time.operators.grids import doubled
from advisor.step_time.operators.tables import Collectives, Domain, interpolated, padded
from advisor.step_time.prior.operations.attention import Mixer, beside
from advisor.step_time.prior.operations.collectives import handed_on
from advisor.step_time.prior.operations.moving import sorts_logits
from advisor.step_time.prior.parts import BYTES, Split, StepPart, StepParts, parts_of, with_router
from advisor.step_time.prior.tables import PriorTables
from advisor.step_time.table_cost import StepTables
from traces.errors import UsageError
from traces.schema.engine import EngineConfig, ModelFacts
from traces.schema.formats import percent
from traces.statistics import Floats

PRICED_KV: Final = (
    "auto",
    "bfloat16",
    "float16",
    "float32",
    "fp8",
    "fp8_e4m3",
    "fp8_e5m2",
    "fp8_ds_mla",
)  # float32, that of a CPU, is asked about in bfloat16
ONLINE: Final = ("fp8", "fp8_per_tensor")  # that an engine brings bfloat16 weights to
LONGEST: Final = 8192  # tokens of a chunk, and before it: together what was measured
FARTHEST: Final = 1 << 20  # tokens of context that decode attention is continued to

FAMILIES: Final = ("gemm", "attention", "communication", "other")
# The step that shares of rules are told of: so many requests of so many tokens that decode.
USUAL_BATCH: Final = 32
USUAL_CONTEXT: Final = 2048
MATTERS: Final = 0.01  # of that step

PRIOR_RULES: Final = (
    "norms, activation, rotary positions, embedding, the choice of experts and sampling: the "
    "fewest bytes they move, at the bandwidth and with the start of a kernel that the tables' "
    "authors state",
    "a chunk after earlier tokens: the whole prompt less the earlier part, no less than reading it",
    "a chunk beside decoding requests: the sum of both less one start",
)
TOGETHER_RULE: Final = (
    "requests that decode beside a chunk: 1.6 times as long as alone, and 2.6 times from 128 on, "
    "as one kernel computes both on this GPU"
)
PRIOR_MISSING: Final = (
    "unequal contexts in a batch",
    "the gathering of logits",
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Prior:
    """Operator times of one GPU, model and split.

    `all_reduces` [rows, (bytes, seconds)] by whether they run in a CUDA graph; empty for one GPU.
    `scales` by family are what recordings of that GPU said the times are to be multiplied by, and
    `host` the part of a step beyond its kernels (host/law.py). `apart` says that the engine (V0)
    has kernels of their own for chunks and for decoding on any GPU.
    """

    tables: PriorTables
    facts: ModelFacts
    split: Split
    parts: StepParts
    all_reduces: Mapping[bool, Floats]
    scales: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(FAMILIES, 1.0))
    host: float = 1.0
    apart: bool = False

    def scaled(self, scales: Mapping[str, float]) -> Prior:
        """Return the prior with its times of some families multiplied further."""
        return replace(
            self, scales={name: self.scales[name] * scales.get(name, 1.0) for name in FAMILIES}
        )

    @cached_property
    def domain(self) -> Domain:
        """What the tables cover."""
        mixers = [mixer for _, mixer in self.parts.mixers]
        contexts = [mixer.contexts[-1] for mixer in mixers if len(mixer.contexts) > 1]
        tables = [each for each in self.parts.dense if each.family != "other"]
        return Domain(
            tokens=int(min(each.times.rows[-1, 0] for each in tables)),
            sequences=int(min(each.times.rows[-1, 0] for each in self.parts.logits)),
            batch=int(min((mixer.batches[-1] for mixer in mixers), default=1)),
            context=int(min(contexts, default=FARTHEST)),
        )

    def holds(self, peaks: Mapping[str, float], longest: int) -> bool:
        """Whether the tables hold a replay's largest steps, of contexts up to the `longest`."""
        return self.domain.holds(peaks, longest) and peaks["tokens"] <= self.most_tokens

    def step_tables(
        self, *, max_num_batched_tokens: int, max_num_seqs: int, capture_sizes: Sequence[int]
    ) -> StepTables:
        """Return the seconds of an engine's steps.

        `capture_sizes` are the numbers of tokens that CUDA graphs were captured for, none with
        enforce_eager: up to the largest, a step computes as many tokens as the next of them.
        """
        most = max(max_num_batched_tokens + max_num_seqs, self.domain.tokens)
        computed = padded(np.arange(most + 1, dtype=float), capture_sizes)
        sequences = np.arange(max(max_num_seqs, self.domain.sequences) + 1, dtype=float)
        captured = max(capture_sizes, default=0)
        tokens = self._token_seconds(computed, captured)
        decode_batch, decode_kv = self._knots(max_num_seqs)
        decode = self.decoding(decode_batch, decode_kv)
        chunk, before, alone = self._chunks(max_num_batched_tokens)
        launch = self._whole(np.ones(1))
        more = self._beside(decode_batch, decode_kv)
        more = np.concatenate([np.zeros((1, len(decode_kv))), more])
        both = alone[:, :, None, None] + more - launch[0]
        least = np.maximum(alone[:, :, None, None], more)
        mixed = np.maximum(both, least)
        mixed[:, :, 0] = alone[:, :, None]
        mixed_batch = np.append(0.0, decode_batch)
        return StepTables(
            tokens=tokens,
            sequences=self.logit_seconds(sequences),
            decode_batch=decode_batch,
            decode_kv=decode_kv,
            decode=decode,
            decode_skew=np.zeros(len(decode_batch)),
            chunk=chunk,
            before=before,
            mixed_batch=mixed_batch,
            mixed_kv=decode_kv,
            mixed=mixed,
            mixed_skew=np.zeros((len(before), len(mixed_batch), len(decode_kv))),
            launch=launch,
        )

    def token_seconds(self, tokens: Floats) -> Floats:
        """Return the seconds of what works on a step's tokens, in CUDA graphs."""
        return self._token_seconds(tokens, int(tokens.max()))

    def logit_seconds(self, rows: Floats) -> Floats:
        """Return the seconds of so many rows of logits."""
        return self._summed(self.parts.logits, rows)

    def communication_s(self, tokens: int, captured: int) -> float:
        """Return the seconds of the all-reduces of a step of so many tokens."""
        if not self.all_reduces:
            return 0.0
        return float(self._collectives(captured)(np.array([float(tokens)]))[0])

    @cached_property
    def shares(self) -> Mapping[str, tuple[float, float]]:
        """The share of a usual step, and the spread (sd of the log), of each rule that matters."""
        at = np.array([float(USUAL_BATCH)])
        context = np.array([float(USUAL_CONTEXT)])
        by_rule: dict[str, list[float]] = {}
        total = float(self._token_seconds(at, USUAL_BATCH)[0])
        for part in (*self.parts.dense, *self.parts.logits):
            spent = float(self._summed((part,), at)[0])
            total += spent if part in self.parts.logits else 0.0
            _add(by_rule, part.times.rule, part.times.spread, spent)
        for count, mixer in self.parts.mixers:
            spent = count * self.scales["attention"] * float(mixer.decode(at, context)[0, 0])
            total += spent
            _add(by_rule, mixer.rule, mixer.spread, spent)
        slow = self.tables.slow_host(self.split.tensor) if self.all_reduces else None
        if slow is not None:
            spent = float(self._collectives(USUAL_BATCH)(at)[0])
            _add(by_rule, slow.rule, slow.spread, spent)
        return {
            rule: (spent / total, spread / spent)
            for rule, (spent, spread) in by_rule.items()
            if spent > MATTERS * total
        }

    @property
    def spread(self) -> float:
        """The spread (sd of the log) that rules and the routing of experts add to a step's time."""
        rules = float(sum(share * spread for share, spread in self.shares.values()))
        return float(np.hypot(rules, self.routing))

    @property
    def routing(self) -> float:
        """How far off (log of a usual step's time) other routings of the experts are."""
        at = np.array([float(USUAL_BATCH)])
        total = float(self._token_seconds(at, USUAL_BATCH)[0])
        total += float(self.decoding(at, np.array([float(USUAL_CONTEXT)]))[0, 0])
        spent = (
            part.times.routing * float(self._summed((part,), at)[0]) for part in self.parts.dense
        )
        return sum(spent) / total

    @property
    def rules(self) -> list[str]:
        """What of this model is by rule, with its share of a usual step."""
        ordered = sorted(self.shares.items(), key=lambda item: -item[1][0])
        listed = [f"{rule} ({percent(share)} of a step)" for rule, (share, _) in ordered]
        together = any(mixer.together for _, mixer in self.parts.mixers)
        return [TOGETHER_RULE, *listed] if together and not self.apart else listed

    def _token_seconds(self, tokens: Floats, captured: int) -> Floats:
        """Return the seconds of what works on a step's tokens, without attention."""
        seconds = self._dense(tokens)
        if self.all_reduces:
            seconds = seconds + self._collectives(captured)(tokens)
        if self.split.pipeline > 1:
            rows = handed_on(self.tables, self.facts.hidden_size, tokens).rows
            seconds = (
                seconds + (self.split.pipeline - 1) * rows[:, 1] * self.scales["communication"]
            )
        return seconds

    def _dense(self, tokens: Floats) -> Floats:
        """Return what layers take of so many tokens; all limits of an engine share the work."""
        most = int(tokens.max(initial=0.0))
        if most > FARTHEST or (tokens % 1).any():
            return self._summed(self.parts.dense, tokens)
        if len(self._of_tokens.get("dense", ())) <= most:
            every = np.arange(most + 1, dtype=float)
            self._of_tokens["dense"] = self._summed(self.parts.dense, every)
        return self._of_tokens["dense"][tokens.astype(np.int64)]

    @cached_property
    def _of_tokens(self) -> dict[str, Floats]:
        """What `_dense` has worked out."""
        return {}

    def _summed(self, parts: Sequence[StepPart], counts: Floats) -> Floats:
        total = np.zeros(len(counts))
        for part in parts:
            scale = part.calls * self.scales[part.family]
            total += scale * interpolated(part.times.rows, counts)
        return total

    def _knots(self, max_num_seqs: int) -> tuple[Floats, Floats]:
        """Return the batches and contexts that any mixer was measured at, and beyond."""
        batches, contexts = np.ones(1), np.ones(1)
        for _, mixer in self.parts.mixers:
            batches = np.union1d(batches, mixer.batches)
            if len(mixer.contexts) > 1:
                contexts = np.union1d(contexts, mixer.contexts)
        return doubled(batches, max_num_seqs), doubled(contexts, FARTHEST)

    def decoding(self, batches: Floats, contexts: Floats) -> Floats:
        """Return the seconds [batches, contexts] of all layers where only decoding happens."""
        shape = (len(batches), len(contexts))
        return self._of_mixers(shape, lambda mixer: mixer.decode(batches, contexts))

    def _beside(self, batches: Floats, contexts: Floats) -> Floats:
        """Return the seconds [batches, contexts] of all layers of decoding beside a chunk."""
        if self.apart:
            return self.decoding(batches, contexts)
        shape = (len(batches), len(contexts))
        return self._of_mixers(shape, lambda mixer: beside(mixer, batches, contexts))

    def _whole(self, lengths: Floats) -> Floats:
        """Return the seconds [lengths] of all layers of a whole prompt."""
        return self._of_mixers((len(lengths),), lambda mixer: mixer.prompt(lengths))

    def _of_mixers(self, shape: tuple[int, ...], seconds: Callable[[Mixer], Floats]) -> Floats:
        total = np.zeros(shape)
        for count, mixer in self.parts.mixers:
            total += count * seconds(mixer)
        return total * self.scales["attention"]

    def _chunks(self, max_num_batched_tokens: int) -> tuple[Floats, Floats, Floats]:
        """Return chunks, tokens before them, and their seconds [chunks, before] alone."""
        lengths = np.ones(1)
        for _, mixer in self.parts.mixers:
            lengths = np.union1d(lengths, mixer.lengths[mixer.lengths <= LONGEST])
        chunks = doubled(lengths, max_num_batched_tokens)
        before = np.append(0.0, lengths[lengths >= 16])
        launch = float(self._whole(np.ones(1))[0])
        at = chunks[:, None] + before
        work = self._whole(at.ravel()).reshape(at.shape) - self._whole(before) + launch
        read = self.decoding(np.ones(1), np.maximum(before, 1.0))[0]
        alone = np.maximum(np.maximum(work, read), self._whole(chunks)[:, None])
        alone[:, 0] = self._whole(chunks)
        return chunks, before, alone

    @property
    def most_tokens(self) -> float:
        """The tokens of the largest step whose all-reduces were measured; inf without any."""
        largest = [rows[-1, 0] for rows in self.all_reduces.values()]
        return min(largest, default=np.inf) / (self.facts.hidden_size * BYTES)

    def _collectives(self, captured: int) -> Collectives:
        """Return the seconds of a step's all-reduces, in a graph up to `captured` tokens."""
        eager = self.all_reduces.get(False, self.all_reduces.get(True))
        graph = self.all_reduces.get(True, eager)
        assert eager is not None and graph is not None
        scale = self.scales["communication"]
        return all_reduces(
            self.facts,
            eager=partial(interpolated, eager * [1.0, scale]),
            graph=partial(interpolated, graph * [1.0, scale]),
            captured=captured,
            value_bytes=BYTES,
            calls=self.parts.reduces,
        )


def _add(found: dict[str, list[float]], rule: str | None, spread: float, spent: float) -> None:
    names = (rule or "").splitlines()
    for each in names:
        totals = found.setdefault(each, [0.0, 0.0])
        totals[0] += spent
        totals[1] += spread * spent / len(names)


@lru_cache(maxsize=64)
def _priced(
    tables: PriorTables,
    facts: ModelFacts,
    split: Split,
    kv_fp8: bool,
    online: str | None,
    apart: bool,
    sorts: bool,
) -> Prior:
    return Prior(
        tables=tables,
        facts=facts,
        split=split,
        parts=parts_of(tables, facts, split, kv_fp8=kv_fp8, online=online, sorts=sorts),
        all_reduces=tables.all_reduces(split.tensor) if split.tensor > 1 else {},
        apart=apart,
    )


def prior_of(
    tables: PriorTables, facts: ModelFacts, engine: EngineConfig, *, truncated: bool = False
) -> Prior:
    """Return the prior of a model on a system, split as the engine is.

    Samples may be drawn from `truncated` vocabularies (`Policy.truncated`). Raises UsageError for
    what cannot be priced, with the reason, and TablesError, naming the table, for what is in none.
    """
    check(facts, engine)
    tables = tables.of_version(engine.vllm_version)
    kv = engine.kv_cache_dtype
    if kv in (None, "auto"):
        kv = facts.kv_cache_dtype
    online = "fp8" if facts.quantization is None and engine.quantization in ONLINE else None
    fp8 = (kv or "").startswith("fp8")
    apart = generation_of(engine) == OLD
    facts = with_router(facts, engine.version)
    sorts = truncated and sorts_logits(engine.version)
    return _priced(tables, facts, Split.of(engine), fp8, online, apart, sorts)


def check(facts: ModelFacts, engine: EngineConfig) -> None:
    """Raise UsageError, with the reason, for what no tables price."""
    name = facts.name
    if facts.uncounted is not None:
        raise UsageError(
            f"--gpu: the config of {name} has {facts.uncounted}, so that its layers are not known "
            f"({SHOWN})"
        )
    other = {"cross_attention", "recurrent"} & set(facts.attention or ())
    if other:
        raise UsageError(
            f"--gpu: {name} has {', '.join(sorted(other)).replace('_', ' ')} layers, which are in "
            "no table. Ask about another model (--model-config)"
        )
    asked = engine.quantization
    if asked is not None and facts.quantization is None and asked not in ONLINE:
        raise UsageError(
            f"--gpu: engine.quantization={asked}, and {name} has plain weights. Give the config of "
            f"the quantised checkpoint with --model-config, or set one of {', '.join(ONLINE)}"
        )
    kv = engine.kv_cache_dtype
    if kv is not None and kv.removeprefix("torch.") not in PRICED_KV:
        raise UsageError(
            f"--gpu: engine.kv_cache_dtype={kv}: the attention of such a cache is in no table. Set "
            f"one of {', '.join(PRICED_KV)}"
        )
