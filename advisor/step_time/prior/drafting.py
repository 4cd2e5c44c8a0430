"""What drafting takes on a GPU that was not measured, and up to which batch drafts pay.

A drafter is priced as a model of its own: its facts where they are known, else by rule what such
drafters have. Lookup (n-gram, suffix) runs on the host, whose time no table has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np

from advisor.evidence.features import ZERO
from advisor.evidence.runs import RecordedRun
from advisor.step_time.prior.parts import layers_of
from advisor.step_time.prior.prior import Prior, prior_of
from advisor.step_time.prior.tables import PriorTables
from traces.errors import UsageError
from traces.schema.engine import LOOKUPS, EngineConfig, ModelFacts, Speculative
from traces.schema.layers import Attention, Layers, Matrix
from traces.statistics import Floats

CONTEXT: Final = 2048.0  # tokens that a drafter reads of each request
MOST: Final = 1024  # requests of a step that is looked at
HEAD: Final = 128  # of an EAGLE head's attention, with `KEYS` KV heads, as Llama's
KEYS: Final = 8
WIDER: Final = 3.5  # an EAGLE head's MLP, times the hidden size: Llama 3's


@dataclass(frozen=True, kw_only=True)
class Drafting:
    """Seconds of drafting in a step, `launch_s` and `each_s` for every request, and what it is."""

    launch_s: float
    each_s: float
    what: str

    @property
    def seconds(self) -> Floats:
        """Seconds [FEATURES] of drafting."""
        return np.array(ZERO._replace(draft_step=self.launch_s, draft_requests=self.each_s))


def drafting_of(
    tables: PriorTables,
    facts: ModelFacts,
    engine: EngineConfig,
    models: Mapping[str, ModelFacts],
    *,
    scaled: Callable[[Prior], Prior] | None = None,
) -> Drafting | None:
    """Return what drafting takes in a step of an engine; None without speculation.

    The last stage of a pipeline drafts. `scaled` is what recordings of the GPU say of the prior.

    The first pass of a drafter reads all tokens that were verified, and each further one a token of
    each request (vLLM's EagleProposer). Nearest line in relative error over batches to `MOST`.
    Raises UsageError where the model that drafts is not known, TablesError for what is in no table.
    """
    speculative = engine.speculative
    if speculative is None:
        return None
    if speculative.method in LOOKUPS:
        return Drafting(
            launch_s=0.0, each_s=0.0, what="the lookup of drafts, on the host, is left out"
        )
    drafter, what = drafter_of(facts, speculative, models)
    alone = replace(engine, speculative=None, quantization=None, pipeline_parallel_size=1)
    prior = prior_of(tables, drafter, alone)
    prior = prior if scaled is None else scaled(prior)
    k = speculative.num_speculative_tokens
    steps = int(np.log2(min(engine.max_num_seqs or MOST, MOST))) + 1
    batches: Floats = np.geomspace(1.0, 2.0 ** (steps - 1), steps)
    first = step_seconds(prior, batches, (k + 1) * batches, batches)
    seconds = first + (k - 1) * step_seconds(prior, batches, batches, batches)
    rows = np.column_stack([1 / seconds, batches / seconds])
    (launch, each), *_ = np.linalg.lstsq(rows, np.ones(len(batches)), rcond=None)
    each = max(float(each), 0.0)
    return Drafting(launch_s=max(float(launch), 0.0), each_s=each, what=f"drafting: {what}")


def drafter_in(
    engine: EngineConfig, facts: ModelFacts, models: Mapping[str, ModelFacts]
) -> ModelFacts | None:
    """Return the facts of the model that drafts for an engine's; None where none does.

    Raises UsageError where it is not known.
    """
    if engine.speculative is None or not drafts_with_a_model(engine):
        return None
    return drafter_of(facts, engine.speculative, models)[0]


def drafts_with_a_model(engine: EngineConfig) -> bool:
    """Whether drafts are another model's or layer's, and not looked up."""
    return engine.speculative is not None and engine.speculative.method not in LOOKUPS


def drafter_of(
    facts: ModelFacts, speculative: Speculative, models: Mapping[str, ModelFacts]
) -> tuple[ModelFacts, str]:
    """Return the facts of what drafts, other than by lookup, and what they are.

    Weights of an MTP layer or an EAGLE head are those of its layer, as vLLM has it share embedding
    and logits with the model (`_maybe_share_embeddings` in v1/spec_decode/llm_base_proposer.py).
    Raises UsageError where the model that drafts is not known.
    """
    method, name = speculative.method, speculative.model
    if name is not None and name in models:
        return models[name], f"{name}, by its own layers"
    layers, others = layers_of(facts)
    head = tuple(each for each in others if each.name == "lm_head" or each.used)
    if method == "mtp" or method.endswith("_mtp"):
        last = max(layers, key=lambda group: group.places[-1])
        joined = Matrix(
            name="mtp.eh_proj", inputs=2 * facts.hidden_size, outputs=facts.hidden_size,
            precision="bfloat16", parameter_bytes=2.0,
        )  # fmt: skip
        layer = replace(last, places=(0,), matrices=(*last.matrices, joined))
        what = "an MTP layer like the model's last, and its logits"
        return _one_layer(facts, f"MTP layer of {facts.name}", layer, head), what
    if method not in ("eagle", "eagle3"):
        raise UsageError(
            f"--gpu: what the draft model {name or 'of ' + method} weighs is not known. Give a "
            "recording that ran it with --with, or set engine.speculative=null"
        )
    what = "an EAGLE head of one layer like Llama's, of the model's hidden size, and its logits"
    return _eagle_head(facts, head), what


def _eagle_head(facts: ModelFacts, head: tuple[Matrix, ...]) -> ModelFacts:
    hidden, width = facts.hidden_size, round(WIDER * facts.hidden_size / 256) * 256
    heads = max(hidden // HEAD, KEYS)
    sizes = (
        ("self_attn.q_proj", 2 * hidden, heads * HEAD),
        ("self_attn.k_proj", 2 * hidden, KEYS * HEAD),
        ("self_attn.v_proj", 2 * hidden, KEYS * HEAD), ("self_attn.o_proj", heads * HEAD, hidden),
        ("mlp.gate_proj", hidden, width), ("mlp.up_proj", hidden, width),
        ("mlp.down_proj", width, hidden),
    )  # fmt: skip
    layer = Layers(
        places=(0,), mlp_width=width,
        attention=Attention(
            kind="full_attention", heads=heads, kv_heads=KEYS, head_dim=HEAD, v_head_dim=HEAD
        ),
        matrices=tuple(
            Matrix(name=name, inputs=n, outputs=m, precision="bfloat16", parameter_bytes=2.0)
            for name, n, m in sizes
        ),
    )  # fmt: skip
    alike = replace(
        facts, num_experts=None, attention=("full_attention",), quantization=None,
        kv_cache_dtype=None,
    )  # fmt: skip
    return _one_layer(alike, f"EAGLE head of {facts.name}", layer, head)


def _one_layer(facts: ModelFacts, name: str, layer: Layers, head: tuple[Matrix, ...]) -> ModelFacts:
    """Return the facts of a drafter that is a layer, and computes the logits of `head`."""
    sizes = [each.size_bytes for each in layer.matrices]
    return replace(
        facts,
        name=name,
        num_hidden_layers=1,
        layers=(layer,),
        others=head,
        total_parameters=sum(each.parameters for each in layer.matrices),
        weight_bytes=None if None in sizes else round(sum(size or 0.0 for size in sizes)),
    )


class VerifyStep(NamedTuple):
    """Mean tokens of a request that a verify step computes, and that it gives."""

    computed: float
    kept: float


def verify_step(runs: Iterable[RecordedRun]) -> VerifyStep | None:
    """Return what a verify step does on average, None where no run says it."""
    steps = computed = kept = 0
    for run in runs:
        for sample in run.samples:
            if sample.advance is not None and sample.scheduled is not None:
                steps += len(sample.advance)
                computed += int(sample.scheduled.sum(dtype=np.int64))
                kept += int(sample.advance.sum(dtype=np.int64))
    return VerifyStep(computed / steps, kept / steps) if steps else None


def mean_context(runs: Iterable[RecordedRun]) -> float:
    """Return the context that a decoding step of runs reads of a request, in the mean."""
    read = tokens = 0.0
    for run in runs:
        for problem in run.problems.values():
            for sample in problem.samples:
                read += sample.output_tokens * (problem.prompt_tokens + sample.output_tokens / 2)
                tokens += sample.output_tokens
    return read / max(tokens, 1.0)


def step_seconds(prior: Prior, requests: Floats, tokens: Floats, logits: Floats) -> Floats:
    """Return the seconds of steps that decode, of so many requests, tokens and rows of logits."""
    attention = np.diag(prior.decoding(requests, np.full(len(requests), CONTEXT)))
    return prior.token_seconds(tokens) + prior.logit_seconds(logits) + attention
