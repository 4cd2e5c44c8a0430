"""A model's layers as operations on one GPU of several: what is split, and how often each runs.

Split as vLLM does: by tensor parallelism outputs of a block's first products and inputs of its
last, heads and their states; by expert parallelism whole experts over all ranks of tensor and data
parallelism, which otherwise share each expert; what is small is on every GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from advisor.step_time.prior.operations.attention import Mixer, attending
from advisor.step_time.prior.operations.collectives import dispatched
from advisor.step_time.prior.operations.experts import Shape, routed
from advisor.step_time.prior.operations.modules import modules_of, whole_layer
from advisor.step_time.prior.operations.moving import (
    SAMPLER_BYTES,
    SAMPLER_KERNELS,
    SORT_RULE,
    SORT_S,
    SORT_SPREAD,
    connected,
    moving,
)
from advisor.step_time.prior.operations.products import product
from advisor.step_time.prior.operations.states import keeping
from advisor.step_time.prior.operations.times import CallTimes
from advisor.step_time.prior.tables import PriorTables
from traces.errors import UsageError
from traces.schema.engine import EngineConfig, ModelFacts
from traces.schema.layers import Attention, Layers, Matrix

Moved = Callable[[str, float, float], None]  # name, calls, values for each token

BYTES: Final = 2  # of a value in bfloat16
VOCABULARY_PADDING: Final = 64  # vLLM's VocabParallelEmbedding
BESIDE: Final = 256  # tokens up to which shared experts run beside the others, on a second stream
NORM_BYTES: Final = 2 * 4  # of a token: the variance of its queries and of its keys, in float32
# Of these the norm is over all heads, so that the GPUs sum its variance (vLLM's
# MiniMaxText01RMSNormTP).
NORM_OVER_HEADS: Final = ("MiniMaxM2",)
QK_NORM: Final = ("Qwen3", "MiniMaxM2", "Gemma3", "Gemma4", "Glm4Moe", "Step3p")
# Of these the router's weights are in float32, and cuBLAS multiplies them without tensor cores
# (vllm-project/vllm pull request 41332): before vLLM had kernels of its own for them.
FLOAT32_ROUTERS: Final = ("MiniMaxM2", "Glm4Moe", "Ernie4_5_Moe", "Step3p5")
ROUTER_FORM: Final = "float32_cores"
OWN_ROUTERS: Final = (0, 23)
# Architectures of recordings that do not have a model's layers: all of them are alike.
ARCHITECTURES: Final = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")

_SPLIT_OUTPUTS: Final = frozenset({
    "q_proj", "k_proj", "v_proj", "g_proj", "gate_proj", "up_proj", "q_b_proj", "kv_b_proj",
    "f_b_proj", "g_b_proj", "b_proj", "o_a_proj", "in_proj", "in_proj_qkv", "in_proj_z",
    "in_proj_a", "in_proj_b", "qkv_proj", "output_gate", "dt_proj",
})  # fmt: skip
_SPLIT_INPUTS: Final = frozenset({"o_proj", "down_proj", "out_proj", "o_b_proj", "x_proj"})
_WHOLE: Final = frozenset({
    "gate", "q_a_proj", "kv_a_proj_with_mqa", "kv_proj", "f_a_proj", "g_a_proj", "compressor",
    "wq_b", "wk", "weights_proj", "eh_proj", "index_q_proj", "index_k_proj",
    "fc1_latent_proj", "fc2_latent_proj",
})  # fmt: skip
_NO_PRODUCT: Final = frozenset({"conv1d", "hyper_connection"})
_ONE_KERNEL: Final = {
    "q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj", "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj", "q_a_proj": "qkv_a_proj", "kv_a_proj_with_mqa": "qkv_a_proj",
    "in_proj_qkv": "in_proj_qkvz", "in_proj_z": "in_proj_qkvz", "in_proj_a": "in_proj_ba",
    "in_proj_b": "in_proj_ba",
}  # fmt: skip
_HEADS: Final = ("k_proj", "v_proj")  # of which each GPU has one at the least


@dataclass(frozen=True, kw_only=True)
class Split:
    """How many GPUs share a model, and what they share."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    experts: bool = False

    @classmethod
    def of(cls, engine: EngineConfig) -> Split:
        """Return how an engine splits its model."""
        return cls(
            tensor=engine.tensor_parallel_size,
            pipeline=engine.pipeline_parallel_size,
            data=engine.data_parallel_size,
            experts=engine.expert_parallel,
        )

    @property
    def ranks(self) -> int:
        """GPUs of a stage: those that share the experts."""
        return self.tensor * self.data


@dataclass(frozen=True, kw_only=True)
class StepPart:
    """An operation on a step's tokens, or on its rows of logits, that runs `calls` times."""

    name: str
    family: str
    calls: float
    times: CallTimes


@dataclass(frozen=True, kw_only=True, eq=False)
class StepParts:
    """All operations of a step on one GPU of each stage.

    `mixers` depend on the requests and their contexts, each with the layers that have it. `reduces`
    counts all-reduces.
    """

    dense: tuple[StepPart, ...]
    logits: tuple[StepPart, ...]
    mixers: tuple[tuple[int, Mixer], ...]
    reduces: int


def layers_of(facts: ModelFacts) -> tuple[tuple[Layers, ...], tuple[Matrix, ...]]:
    """Return a model's layers and the matrices outside of them.

    Older recordings do not have them: they follow from the counts of models whose layers are alike.
    Raises UsageError where they do not.
    """
    if facts.layers is not None:
        return facts.layers, facts.others
    if facts.uncounted is not None:
        raise UsageError(f"--gpu: {facts.name} has {facts.uncounted}, so its layers are not known")
    if facts.architecture not in ARCHITECTURES or facts.num_experts:
        raise UsageError(
            f"--gpu: the layers of {facts.name} "
            f"({facts.architecture or 'of unknown architecture'}) are not in this recording. "
            "Give the model's config.json with --model-config"
        )
    if facts.intermediate_size is None:
        raise UsageError(
            f"--gpu: the config of {facts.name} has no intermediate_size. Give the whole"
        )
    hidden, width = facts.hidden_size, facts.intermediate_size
    query = facts.num_attention_heads * facts.head_dim
    key = facts.num_key_value_heads * facts.head_dim
    form = "bfloat16" if facts.quantization is None else facts.quantization
    sizes = (
        ("self_attn.q_proj", hidden, query), ("self_attn.k_proj", hidden, key),
        ("self_attn.v_proj", hidden, key), ("self_attn.o_proj", query, hidden),
        ("mlp.gate_proj", hidden, width), ("mlp.up_proj", hidden, width),
        ("mlp.down_proj", width, hidden), ("lm_head", hidden, facts.vocab_size),
    )  # fmt: skip
    *matrices, lm_head = (
        Matrix(name=name, inputs=into, outputs=out, precision=form, parameter_bytes=None)
        for name, into, out in sizes
    )
    attention = Attention(
        kind="full_attention", heads=facts.num_attention_heads, kv_heads=facts.num_key_value_heads,
        head_dim=facts.head_dim, v_head_dim=facts.head_dim,
    )  # fmt: skip
    layer = Layers(
        places=tuple(range(facts.num_hidden_layers)), attention=attention, mlp_width=width,
        matrices=tuple(matrices),
    )  # fmt: skip
    return (layer,), (replace(lm_head, precision="bfloat16"),)


def with_router(facts: ModelFacts, version: tuple[int, int] | None) -> ModelFacts:
    """Return a model with the form of its router's weights in a version of vLLM."""
    in_float32 = (facts.architecture or "").startswith(FLOAT32_ROUTERS)
    if not in_float32 or facts.layers is None or version is None or version >= OWN_ROUTERS:
        return facts

    def form(each: Matrix) -> Matrix:
        return replace(each, precision=ROUTER_FORM) if each.name.endswith(".gate") else each

    layers = (replace(g, matrices=tuple(map(form, g.matrices))) for g in facts.layers)
    return replace(facts, layers=tuple(layers))


def check_split(facts: ModelFacts, layers: Sequence[Layers], split: Split) -> None:
    """Raise UsageError, with both numbers, for what the GPUs do not divide."""

    def divides(what: str, count: int, size: int, which: str) -> None:
        if count % size:
            raise UsageError(
                f"--gpu: {facts.name} has {count:,} {what}, which {which} {size} does not divide"
            )

    tensor = "tensor_parallel_size"
    for group in layers:
        if group.attention is not None:
            divides("attention heads", group.attention.heads, split.tensor, tensor)
            keys = group.attention.kv_heads
            if group.attention.latent is None and keys % split.tensor and split.tensor % keys:
                raise UsageError(
                    f"--gpu: {facts.name} has {keys} KV heads, which tensor_parallel_size "
                    f"{split.tensor} neither divides nor is a multiple of"
                )
        if group.state is not None:
            divides("heads of its states", group.state.heads, split.tensor, tensor)
        if group.mlp_width is not None:
            divides("MLP columns", group.mlp_width, split.tensor, tensor)
        if (experts := group.experts) is None:
            continue
        if split.experts:
            divides(
                "experts", experts.total, split.ranks,
                "expert parallelism of tensor_parallel_size x data_parallel_size",
            )  # fmt: skip
        else:
            of = "tensor_parallel_size" if split.data == 1 else "tensor x data parallelism of"
            divides("columns of each expert", experts.width, split.ranks, of)
    if split.pipeline > facts.num_hidden_layers:
        raise UsageError(
            f"--gpu: {facts.name} has {facts.num_hidden_layers} layers, fewer than "
            f"pipeline_parallel_size {split.pipeline}"
        )


def parts_of(
    tables: PriorTables,
    facts: ModelFacts,
    split: Split,
    *,
    kv_fp8: bool,
    online: str | None,
    sorts: bool,
) -> StepParts:
    """Return the operations of a step.

    `online` is the form that the engine brings the weights of layers to, and `sorts` says that
    sampling sorts the logits. Raises UsageError for what the GPUs do not divide and for matrices
    that are not known, TablesError for what is in no table.
    """
    layers, others = layers_of(facts)
    check_split(facts, layers, split)
    dense: list[StepPart] = []
    mixers: list[tuple[int, Mixer]] = []
    reduces, tokens = 1, np.append(2.0 ** np.arange(16), 0.0)
    tokens.sort()

    def moved(name: str, calls: float, values: float) -> None:
        rows = moving(tables, tokens, values * BYTES)
        dense.append(StepPart(name=name, family="other", calls=calls, times=CallTimes(rows=rows)))

    moved("embedding", 1, 2 * facts.hidden_size)
    moved("final_layernorm", 1, 4 * facts.hidden_size)  # the residual is read, added and written
    for group in layers:
        count = group.count
        mixes = (group.attention is not None) + (group.state is not None)  # both, side by side
        follows = group.mlp_width is not None or group.experts is not None
        moved("layernorm", count * (bool(mixes) + follows), 4 * facts.hidden_size)
        mixer = _mixer(tables, facts, group, split, kv_fp8=kv_fp8)
        if mixer is not None:
            mixers.append((count, mixer))
        has_module = group.attention is not None and bool(modules_of(group.attention)[0])
        if group.state is not None:
            delta = any(each.name.endswith("f_a_proj") for each in group.matrices)
            mixers.append((count, keeping(tables, group.state, split.tensor, delta=delta)))
        reduces += count * mixes
        if group.attention is not None and not has_module:
            _beside_heads(group.attention, facts, split, count, moved)
            if split.tensor > 1 and (facts.architecture or "").startswith(NORM_OVER_HEADS):
                dense.append(_norm_reduce(tables, split.tensor, count))
        for name, n, k, form in _kernels(facts, group, split, online):
            absorbed = has_module and name == "self_attn.kv_b_proj"
            if form == ROUTER_FORM:
                moved("router_input", count, 3 * k)  # read in bfloat16, written in float32
            if ".shared_experts." not in name and not absorbed:
                dense.append(
                    StepPart(
                        name=name, family="gemm", calls=count, times=product(tables, n, k, form)
                    )
                )
        connections = [each for each in group.matrices if each.name == "hyper_connection"]
        if connections:
            streams = connections[0].inputs // facts.hidden_size
            times = connected(tables, facts.hidden_size, streams)
            dense.append(
                StepPart(name="hyper_connection", family="other", calls=count, times=times)
            )
        if group.mlp_width is not None:
            gated = any(each.name == "mlp.gate_proj" for each in group.matrices)
            moved("act_fn", count, (3 if gated else 2) * group.mlp_width / split.tensor)
        if group.experts is not None:
            times = _experts(tables, facts, group, split, online)
            dense.append(StepPart(name="experts", family="gemm", calls=count, times=times))
            if split.data > 1:
                given = dispatched(tables, _routed_matrix(group).inputs, split.ranks)
                rows = given.rows / [split.data, 1.0]
                given = CallTimes(rows=rows, rule=given.rule, spread=given.spread)
                dense.append(
                    StepPart(name="dispatch", family="communication", calls=count, times=given)
                )
        reduces += count * (follows and (split.data == 1 or group.experts is None))
    return StepParts(
        dense=tuple(dense),
        logits=_logits(tables, facts, others, split.tensor, sorts=sorts),
        mixers=tuple(mixers),
        reduces=reduces,
    )


def _mixer(
    tables: PriorTables, facts: ModelFacts, group: Layers, split: Split, *, kv_fp8: bool
) -> Mixer | None:
    attention = group.attention
    if attention is None:
        return None
    modules, rule = modules_of(attention)
    if not modules:
        return attending(tables, attention, split.tensor, kv_fp8=kv_fp8)
    kernels = [
        each for each in _kernels(facts, group, split, None) if each[0].startswith("self_attn.")
    ]
    products = [(name, n, k) for name, n, k, _ in kernels if not name.endswith("kv_b_proj")]
    forms = {form for name, _, _, form in kernels if name.endswith(("q_b_proj", "qkv_proj"))}
    return whole_layer(
        tables, modules, attention.heads // split.tensor, facts.hidden_size, products,
        "bfloat16" if forms <= {"bfloat16"} else "fp8_block", kv_fp8=kv_fp8, rule=rule,
    )  # fmt: skip


def _norm_reduce(tables: PriorTables, size: int, count: int) -> StepPart:
    """Return the all-reduces of a norm over all heads, one in each layer, as in a CUDA graph."""
    measured = tables.all_reduces(size)
    rows = measured[True in measured] / [NORM_BYTES, 1.0]
    return StepPart(
        name="qk_norm_all_reduce", family="communication", calls=count, times=CallTimes(rows=rows)
    )


def _beside_heads(
    attention: Attention,
    facts: ModelFacts,
    split: Split,
    count: int,
    moved: Moved,
) -> None:
    """Add what moves queries and keys before attention."""
    query = attention.heads // split.tensor * attention.head_dim
    key = max(attention.kv_heads // split.tensor, 1) * attention.head_dim
    moved("rotary_emb", count, 2 * (query + key))
    if (facts.architecture or "").startswith(QK_NORM):
        moved("qk_norm", 2 * count, query + key)  # two calls, of queries and of keys: their mean


def _kernels(
    facts: ModelFacts, group: Layers, split: Split, online: str | None
) -> Iterator[tuple[str, int, int, str]]:
    """Yield the products of a layer on one GPU: name, outputs, inputs and form.

    Those that vLLM computes at once stand together. Raises UsageError for a matrix that is not
    known, so that neither is how GPUs share it.
    """
    outputs_of: dict[tuple[str, int, str], float] = {}
    for each in group.matrices:
        block, _, leaf = each.name.rpartition(".")
        if leaf in _NO_PRODUCT or block.endswith(".experts"):
            continue
        outputs, inputs = float(each.outputs), each.inputs
        if leaf in _SPLIT_OUTPUTS:
            share = split.tensor
            if leaf in _HEADS and group.attention is not None:
                share = min(share, group.attention.kv_heads)
            outputs = each.copies * outputs / share
        elif leaf in _SPLIT_INPUTS:
            inputs = max(inputs // split.tensor, 1)
        elif leaf not in _WHOLE:
            raise UsageError(
                f"--gpu: {facts.name} has the matrix {each.name}. How GPUs share it is not known"
            )
        form = each.precision
        if online is not None and leaf != "gate":
            form = online
        key = (f"{block}.{_ONE_KERNEL.get(leaf, leaf)}", inputs, form)
        outputs_of[key] = outputs_of.get(key, 0.0) + outputs
    for (name, inputs, form), outputs in outputs_of.items():
        yield name, max(round(outputs), 1), inputs, form


def _routed_matrix(group: Layers) -> Matrix:
    return next(each for each in group.matrices if each.name.endswith(".experts.up_proj"))


def _experts(
    tables: PriorTables, facts: ModelFacts, group: Layers, split: Split, online: str | None
) -> CallTimes:
    """Return [rows, (tokens of one rank, seconds)] of a layer's experts, shared ones beside them.

    The ranks of data parallelism are taken to have as many tokens each.
    """
    experts = group.experts
    assert experts is not None
    up = _routed_matrix(group)
    shape = Shape(
        hidden=up.inputs,
        width=up.outputs,
        active=experts.active,
        total=experts.total,
        tensor=1 if split.experts else split.ranks,
        expert=split.ranks if split.experts else 1,
        gated=any(each.name.endswith(".experts.gate_proj") for each in group.matrices),
    )
    times = routed(tables, shape, online or up.precision)
    rows = times.rows / [split.data, 1.0]
    shared = [
        product(tables, n, k, form)
        for name, n, k, form in _kernels(facts, group, split, online)
        if ".shared_experts." in name
    ]
    if not shared:
        return replace(times, rows=rows)
    width = experts.shared_width / split.tensor
    knots = np.unique(np.concatenate([rows[:, 0], [BESIDE, BESIDE + 1], shared[0].rows[:, 0]]))
    knots = knots[knots <= rows[-1, 0]]
    beside = sum(np.interp(knots, *each.rows.T) for each in shared)
    beside = beside + moving(tables, knots, 3 * width * BYTES)[:, 1]
    routed_s = np.interp(knots, *rows.T)
    seconds = np.where(knots <= BESIDE, np.maximum(routed_s, beside), routed_s + beside)
    rules = dict.fromkeys(each.rule for each in (times, *shared) if each.rule is not None)
    return CallTimes(
        rows=np.column_stack([knots, seconds]),
        rule="\n".join(rules) or None,
        spread=max(each.spread for each in (times, *shared)),
        routing=times.routing,
    )


def _logits(
    tables: PriorTables, facts: ModelFacts, others: Sequence[Matrix], size: int, *, sorts: bool
) -> tuple[StepPart, ...]:
    step = VOCABULARY_PADDING * size
    vocabulary = -(-facts.vocab_size // step) * VOCABULARY_PADDING
    form = next((each.precision for each in others if each.name == "lm_head"), "bfloat16")
    head = product(tables, vocabulary, facts.hidden_size, form)
    counts = head.rows[:, 0]
    sampler = moving(tables, counts, SAMPLER_BYTES * facts.vocab_size, kernels=SAMPLER_KERNELS)
    parts = (
        StepPart(name="lm_head", family="gemm", calls=1, times=head),
        StepPart(name="sampler", family="other", calls=1, times=CallTimes(rows=sampler)),
    )
    if not sorts:
        return parts
    rows = np.column_stack([counts, SORT_S * facts.vocab_size * counts])
    times = CallTimes(rows=rows, rule=SORT_RULE, spread=SORT_SPREAD)
    return (*parts, StepPart(name="sort", family="other", calls=1, times=times))
