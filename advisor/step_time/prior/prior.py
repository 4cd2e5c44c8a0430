"""A GPU that was never measured here: operator times from others' tables, for a model and a size.

What the tables have is taken from them: matrix products, attention, all-reduces. What they lack is
a stated rule or is missing, and both are told (`PRIOR_RULES`, `PRIOR_MISSING`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from advisor.step_time.operators.attention import DecodeAttention
from advisor.step_time.operators.communication import all_reduces
from advisor.step_time.operators.files import Operators
from advisor.step_time.operators.tables import Collectives, interpolated, step_tables
from advisor.step_time.prior.tables import PriorTables
from advisor.step_time.table_cost import StepTables
from traces.errors import UsageError
from traces.schema.engine import EngineConfig, ModelFacts

Floats = npt.NDArray[np.float64]

BYTES: Final = 2  # of a value in bfloat16
ARCHITECTURES: Final = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
QK_NORM: Final = ("Qwen3ForCausalLM",)
PRICED_KV: Final = (
    "auto",
    "bfloat16",
    "float16",
    "float32",
    "fp8",
    "fp8_e4m3",
    "fp8_e5m2",
)  # float32, that of a CPU, is asked about in bfloat16
VOCABULARY_PADDING: Final = 64  # vLLM's VocabParallelEmbedding
LONGEST: Final = 8192  # tokens of a chunk, and before it: together what was measured

FAMILIES: Final = ("gemm", "attention", "communication", "other")
FAMILY_OF: Final = {
    "qkv_proj": "gemm",
    "o_proj": "gemm",
    "gate_up_proj": "gemm",
    "down_proj": "gemm",
    "lm_head": "gemm",
}

# The least that sampling moves for each logit: read in bfloat16, written and read in float32.
SAMPLER_BYTES: Final = 10
SAMPLER_KERNELS: Final = 3

PRIOR_RULES: Final = (
    "norms, activation, rotary positions, embedding and sampling: the fewest bytes they move, at "
    "the bandwidth and with the start of a kernel that the tables' authors state",
    "a chunk after earlier tokens: the whole prompt less the earlier part, no less than reading it",
    "a chunk beside decoding requests: the sum of both less one start",
)
PRIOR_MISSING: Final = (
    "work of the host",
    "unequal contexts in a batch",
    "the gathering of logits",
)


@dataclass(frozen=True, kw_only=True)
class Prior:
    """Operator times of one GPU, model and tensor-parallel size.

    `all_reduces` [rows, (bytes, seconds)] by whether they run in a CUDA graph; empty for one GPU.
    `scales` by family are what recordings of that GPU said the times are to be multiplied by, and
    `host` the part of a step beyond its kernels (host/law.py).
    """

    tables: PriorTables
    facts: ModelFacts
    tensor_parallel_size: int
    operators: Operators
    all_reduces: Mapping[bool, Floats]
    scales: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(FAMILIES, 1.0))
    host: float = 1.0

    def scaled(self, scales: Mapping[str, float]) -> Prior:
        """Return the prior with its times of some families multiplied further."""
        return replace(
            self, scales={name: self.scales[name] * scales.get(name, 1.0) for name in FAMILIES}
        )

    def step_tables(
        self, *, max_num_batched_tokens: int, max_num_seqs: int, capture_sizes: Sequence[int]
    ) -> StepTables:
        """Return the seconds of an engine's steps (see `tables.step_tables`)."""
        collectives = None
        if self.tensor_parallel_size > 1:
            collectives = self._collectives(max(capture_sizes, default=0))
        return step_tables(
            self._scaled_operators(),
            num_hidden_layers=self.facts.num_hidden_layers,
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_seqs=max_num_seqs,
            capture_sizes=capture_sizes,
            tensor_parallel_size=self.tensor_parallel_size,
            collectives=collectives,
        )

    def _scaled_operators(self) -> Operators:
        def times(layers: Mapping[str, Floats]) -> dict[str, Floats]:
            return {
                name: rows * [1.0, self.scales[FAMILY_OF.get(name, "other")]]
                for name, rows in layers.items()
            }

        attention = self.operators.attention.copy()
        attention[:, 4] *= self.scales["attention"]
        return replace(
            self.operators,
            dense=times(self.operators.dense),
            per_sequence=times(self.operators.per_sequence),
            attention=attention,
        )

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
        )


def prior_of(tables: PriorTables, facts: ModelFacts, engine: EngineConfig) -> Prior:
    """Return the prior of a model on a system, sharded as the engine is.

    Raises UsageError for what cannot be priced, with the reason, and TablesError for shapes that
    were not measured.
    """
    check(facts, engine)
    size = engine.tensor_parallel_size
    heads = facts.num_attention_heads // size
    kv_heads = max(facts.num_key_value_heads // size, 1)
    kv_fp8 = (engine.kv_cache_dtype or "").startswith("fp8")
    decode = tables.decode(heads, kv_heads, facts.head_dim, kv_fp8=kv_fp8)
    # A prompt's own keys are attended to before they are stored, in whatever form.
    prompts = tables.prompts(heads, kv_heads, facts.head_dim, kv_fp8=False)
    operators = Operators(
        folder=tables.folder,
        dense=_dense(tables, facts, size, heads, kv_heads),
        per_sequence=_logits(tables, facts, size),
        attention=_attention(decode, prompts),
        skew=None,
        gpu=tables.device,
        model=facts.name,
        vllm_version=tables.versions["gemm"],
        tensor_parallel_size=size,
    )
    return Prior(
        tables=tables,
        facts=facts,
        tensor_parallel_size=size,
        operators=operators,
        all_reduces=tables.all_reduces(size) if size > 1 else {},
    )


def check(facts: ModelFacts, engine: EngineConfig) -> None:
    """Raise UsageError, with the reason, for what no tables price."""
    name, size = facts.name, engine.tensor_parallel_size
    if facts.num_experts:
        raise UsageError(
            f"--gpu: {name} is a mixture of experts. Which experts a batch visits is in no table, "
            "and no run has checked it. Use a dense model"
        )
    if facts.architecture not in ARCHITECTURES:
        raise UsageError(
            f"--gpu: {name} is {facts.architecture or 'of unknown architecture'}. Only "
            f"{', '.join(ARCHITECTURES)} are known to have the layers that are priced (no latent "
            "attention, no state instead of a cache)"
        )
    if not facts.reads_all(engine.max_model_len):
        raise UsageError(
            f"--gpu: {name} has {facts.other_layers()}, which is not priced, as no run has "
            "checked it. Use a model whose layers read the whole context"
        )
    _check_precision(facts, engine)
    if facts.intermediate_size is None:
        raise UsageError(f"--gpu: the config of {name} has no intermediate_size. Give the whole")
    if engine.speculative is not None and engine.speculative.model is not None:
        raise UsageError(
            "--gpu: the draft model's own time is in no table. Set engine.speculative=null"
        )
    if engine.pipeline_parallel_size > 1 or engine.data_parallel_size > 1:
        raise UsageError("--gpu: pipeline and data parallelism are in no table. Set them to 1")
    for what, count in (
        ("attention heads", facts.num_attention_heads),
        ("MLP columns", facts.intermediate_size),
    ):
        if count % size:
            raise UsageError(
                f"--gpu: {name} has {count:,} {what}, which tensor_parallel_size {size} does not "
                "divide"
            )
    groups = facts.num_key_value_heads
    if groups % size and size % groups:
        raise UsageError(
            f"--gpu: {name} has {groups} KV heads, which tensor_parallel_size {size} neither "
            "divides nor is a multiple of"
        )


def _check_precision(facts: ModelFacts, engine: EngineConfig) -> None:
    """Raise UsageError where weights or values are not bfloat16: in the checkpoint or the engine.

    A recording in float32 is asked about in bfloat16, which a note says.
    """
    name, priced = facts.name, "only bfloat16 weights are priced"
    if facts.quantization is not None:
        raise UsageError(
            f"--gpu: the checkpoint of {name} is quantised ({facts.quantization}), and "
            f"{priced}, as no run has checked the products of others. Use the "
            "bfloat16 model (--model-config)"
        )
    if engine.quantization is not None:
        raise UsageError(
            f"--gpu: engine.quantization={engine.quantization}: {priced}, as no run has checked "
            "the products of others. Set engine.quantization=null to ask about bfloat16"
        )
    kv = engine.kv_cache_dtype
    if kv is not None and kv.removeprefix("torch.") not in PRICED_KV:
        raise UsageError(
            f"--gpu: engine.kv_cache_dtype={kv}: the attention of such a cache is in no table. Set "
            f"one of {', '.join(PRICED_KV)}"
        )


def _dense(
    tables: PriorTables, facts: ModelFacts, size: int, heads: int, kv_heads: int
) -> dict[str, Floats]:
    assert facts.intermediate_size is not None  # `check`
    hidden, width = facts.hidden_size, facts.intermediate_size // size
    query, key = heads * facts.head_dim, kv_heads * facts.head_dim
    found = {
        "qkv_proj": tables.gemm(query + 2 * key, hidden),
        "o_proj": tables.gemm(hidden, query),
        "gate_up_proj": tables.gemm(2 * width, hidden),
        "down_proj": tables.gemm(hidden, width),
    }
    tokens = found["qkv_proj"][:, 0]
    moved = {  # values read and written for each token
        "embedding": 2 * hidden,
        "final_layernorm": 4 * hidden,  # the residual is read, added and written too
        "layernorm": 4 * hidden,
        "rotary_emb": 2 * (query + key),
        "act_fn": 3 * width,
    }
    if facts.architecture in QK_NORM:
        moved["qk_norm"] = query + key  # two calls, of queries and of keys: their mean
    for name, values in moved.items():
        found[name] = _moving(tables, tokens, values * BYTES, kernels=1)
    return found


def _logits(tables: PriorTables, facts: ModelFacts, size: int) -> dict[str, Floats]:
    step = VOCABULARY_PADDING * size
    vocabulary = -(-facts.vocab_size // step) * VOCABULARY_PADDING
    lm_head = tables.gemm(vocabulary, facts.hidden_size)
    sampler = _moving(
        tables, lm_head[:, 0], SAMPLER_BYTES * facts.vocab_size, kernels=SAMPLER_KERNELS
    )
    return {"lm_head": lm_head, "sampler": sampler}


def _moving(tables: PriorTables, counts: Floats, size: float, *, kernels: int) -> Floats:
    """Return [rows, (count, seconds)] of kernels that move `size` bytes for each of a count."""
    seconds = kernels * tables.kernel_s + counts * size / tables.bandwidth_bytes_per_s
    return np.column_stack([counts, seconds])


def _attention(decode: Floats, prompts: Floats) -> Floats:
    """Return rows of `Operators.attention` from decode attention and from whole prompts."""
    law = DecodeAttention().fit(*decode.T)
    lengths, seconds = prompts.T
    launch = float(seconds[0])
    chunks = lengths[lengths <= LONGEST]
    befores = np.append(0.0, chunks[chunks >= 16])
    batches, contexts = np.unique(decode[:, 0]), np.unique(decode[:, 1])
    at = np.meshgrid(batches, contexts, indexing="ij")
    beside = law.predict(at[0].ravel(), at[1].ravel())
    rows = [(0.0, 0.0, batch, context, spent) for batch, context, spent in decode]

    def whole(tokens: Floats | float) -> Floats:
        return np.asarray(np.interp(tokens, lengths, seconds), dtype=float)

    for chunk in chunks:
        for before in befores:
            alone = float(whole(chunk))
            if before:
                read = float(law.predict(np.array([1.0]), np.array([before]))[0])
                work = float(whole(chunk + before) - whole(before)) + launch
                alone = max(alone, work, read)
            rows.append((chunk, before, 0.0, 0.0, alone))
            sums = np.maximum(alone + beside - launch, np.maximum(alone, beside))
            rows.extend(
                (chunk, before, batch, context, spent)
                for batch, context, spent in zip(at[0].ravel(), at[1].ravel(), sums, strict=True)
            )
    return np.array(rows, dtype=float)
