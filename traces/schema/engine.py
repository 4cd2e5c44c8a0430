"""What is run: an engine's configuration, a model's facts, and both with a policy.

A `Config` (engine and policy) identifies a run everywhere. It is hashable, and `key()` is its
short, stable name in a recording. Units are in the fields' names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from traces.errors import UsageError
from traces.schema.formats import counted
from traces.schema.layers import Attention, Layers, Matrix
from traces.schema.record import Amount, Count, Few, Many, Record, Some
from traces.schema.tts.policy import Policy
from traces.schema.window import read_until

SCHEMA_VERSION = 1


EXPERTS = "enable_expert_parallel"  # in `EngineConfig.other`, where it is so
BLOCKS = "num_gpu_blocks_override"  # there, where the server was started with it
CAPTURE = "max_cudagraph_capture_size"  # there, where it was set
RANKS = "ranks"  # there: data-parallel ranks of each of the servers that an engine stands for
LOOKUPS = ("ngram", "ngram_gpu", "suffix")  # methods of speculation without a model that drafts
UNKNOWN_METHOD = "unknown"  # of speculation that a server's metrics alone tell


@dataclass(frozen=True, kw_only=True)
class Speculative(Record):
    """Speculative decoding, in the names of vLLM's `--speculative-config`."""

    method: str
    num_speculative_tokens: Few
    model: str | None = None
    prompt_lookup_min: Count | None = None
    prompt_lookup_max: Count | None = None
    num_speculative_tokens_per_batch_size: tuple[tuple[Some, Some, Count], ...] | None = None

    def __post_init__(self) -> None:
        if self.num_speculative_tokens < 1:
            raise UsageError("speculative: num_speculative_tokens must be at least 1")
        ranges = self.num_speculative_tokens_per_batch_size
        if ranges is None:
            return
        ends = [0, *(high for _, high, _ in ranges)]
        for before, (low, high, tokens) in zip(ends, ranges, strict=False):
            if low != before + 1 or high < low:
                fault = f"{low} to {high} does not go on after {before}"
            elif not 0 <= tokens <= self.num_speculative_tokens:
                fault = f"{tokens} tokens are not from 0 to {self.num_speculative_tokens}"
            else:
                continue
            raise UsageError(f"{_RANGES}: {fault}. Give for example {_EXAMPLE}")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Build as a `Record`. Raises UsageError for ranges that are not three numbers each."""
        ranges = data.get("num_speculative_tokens_per_batch_size")
        whole = isinstance(ranges, list | tuple) and all(
            isinstance(each, list | tuple) and [*map(type, each)] == [int] * 3 for each in ranges
        )
        if ranges is not None and not (whole and ranges):
            raise UsageError(f"{_RANGES} must be ranges of three numbers, such as {_EXAMPLE}")
        return super().from_json(data)

    def to_json(self) -> dict[str, Any]:
        """Return as a `Record`, without ranges where there are none, as before there could be."""
        plain = super().to_json()
        if self.num_speculative_tokens_per_batch_size is None:
            del plain["num_speculative_tokens_per_batch_size"]
        return plain

    def fixed(self, tokens: int) -> Self:
        """Return the same drafter with drafts of so many tokens in each step."""
        return replace(
            self, num_speculative_tokens=tokens, num_speculative_tokens_per_batch_size=None
        )

    @property
    def length(self) -> str:
        """How many tokens a draft has: `3`, or `0 to 3` by batch."""
        tokens = [k for *_, k in self.num_speculative_tokens_per_batch_size or ()]
        least, most = min(tokens, default=0), max(tokens, default=0)
        return f"{least} to {most}" if least < most else str(most or self.num_speculative_tokens)

    @property
    def short_length(self) -> str:
        """The same in labels: `k3`, or `k0-3` by batch."""
        return "k" + self.length.replace(" to ", "-")


_RANGES = "speculative: num_speculative_tokens_per_batch_size"
_EXAMPLE = "[[1, 8, 3], [9, 64, 1]]"


@dataclass(frozen=True, kw_only=True)
class EngineConfig(Record):
    """What an engine was started with, in vLLM's own names; None where it is not known."""

    model: str
    dtype: str | None = None
    quantization: str | None = None
    kv_cache_dtype: str | None = None
    max_model_len: Some | None = None
    tensor_parallel_size: Few = 1
    pipeline_parallel_size: Few = 1
    data_parallel_size: Few = 1
    max_num_seqs: Some | None = None
    max_num_batched_tokens: Some | None = None
    block_size: Many | None = None
    num_gpu_blocks: Count | None = None
    gpu_memory_utilization: Amount | None = None
    enable_prefix_caching: bool | None = None
    enforce_eager: bool | None = None
    async_scheduling: bool | None = None
    speculative: Speculative | None = None
    gpu: str | None = None
    num_gpus: Count | None = None
    mode: Literal["in_process", "server"] = "in_process"
    vllm_version: str | None = None
    other: tuple[tuple[str, str], ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Build as a `Record`, with RANKS where a recording before them holds `urls` alone."""
        engine = super().from_json(data)
        other = dict(engine.other)
        if "urls" not in other or RANKS in other or engine.ranks is None:
            return engine
        return engine.of_servers(engine.ranks)

    @property
    def num_devices(self) -> int:
        """Devices that the engine occupies: GPUs, or worker processes where there is none."""
        if self.num_gpus is not None:
            return self.num_gpus
        return self.tensor_parallel_size * self.pipeline_parallel_size * self.data_parallel_size

    @property
    def version(self) -> tuple[int, int] | None:
        """The first two numbers of vLLM's version, None where it is not known."""
        match = re.match(r"\D*(\d+)\.(\d+)", self.vllm_version or "")
        return None if match is None else (int(match[1]), int(match[2]))

    @property
    def on_gpu(self) -> bool | None:
        """Whether it runs on GPUs, None where nobody told.

        An engine in this process and vLLM's plugin tell their GPU, and tell none on a processor.
        Nothing but the plugin tells of a server of vLLM whether it is eager. GPUs that are only
        counted are those of a profiler's trace, or of imported watts.
        """
        if self.gpu is not None or self.num_gpus is not None:
            return True
        by_plugin = self.vllm_version is not None and self.enforce_eager is not None
        return False if by_plugin or self.mode == "in_process" else None

    @property
    def place(self) -> str:
        """What of `other` says which server or worker it is, in words."""
        settings = (EXPERTS, BLOCKS, CAPTURE)
        return " ".join(value for name, value in self.other if name not in settings)

    @property
    def expert_parallel(self) -> bool:
        """Whether the ranks of tensor and data parallelism share whole experts."""
        return dict(self.other).get(EXPERTS) == "true"

    @property
    def ranks(self) -> int | None:
        """Data-parallel ranks of each server that it stands for, None where these differ.

        Ranks of a mixture share its experts, and servers behind a router share nothing. An engine
        without RANKS is one server, or those at its `urls`.
        """
        other = dict(self.other)
        if RANKS in other:
            return int(other[RANKS]) if re.fullmatch(r"[1-9]\d{0,5}", other[RANKS]) else None
        servers = len(other.get("urls", "").split()) or 1
        return None if self.data_parallel_size % servers else self.data_parallel_size // servers

    def of_servers(self, ranks: int) -> Self:
        """Return the engine as servers of so many data-parallel ranks each."""
        rest = (pair for pair in self.other if pair[0] != RANKS)
        return replace(self, other=(*rest, (RANKS, str(ranks))))

    def by_server(self) -> tuple[int, int]:
        """Return how many servers it is told to stand for, else one, and the ranks of each."""
        size, ranks = self.data_parallel_size, self.ranks if RANKS in dict(self.other) else None
        ranks = min(ranks or size, size) or 1
        return (1, size) if size % ranks else (size // ranks, ranks)

    @property
    def shares_experts(self) -> bool:
        """Whether its server has several ranks, which share a mixture's experts."""
        return RANKS in dict(self.other) and self.by_server()[1] > 1

    def replica_words(self) -> str:
        """Return what shares its load, such as `4 servers`; empty where it is one engine."""
        servers, ranks = self.by_server()
        has_ranks = RANKS in dict(self.other) and self.ranks is not None
        what = "data-parallel ranks" if has_ranks else "replicas"
        words = [f"{servers} servers"] if servers > 1 else []
        return " of ".join([*words, *([f"{ranks} {what}"] if ranks > 1 else [])])

    def one_replica(self) -> EngineConfig:
        """Return the engine of one data-parallel rank: with its limits, blocks and devices."""
        count = self.data_parallel_size
        gpus = None if self.num_gpus is None else max(self.num_gpus // count, 1)
        return self if count == 1 else replace(self, data_parallel_size=1, num_gpus=gpus)

    def label(self) -> str:
        """Return the short form shown in tables, such as `tp2 seqs64 ngram k3`."""
        parts = [f"tp{self.tensor_parallel_size}"]
        servers, ranks = self.by_server()
        parts += [f"dp{ranks}"] if ranks > 1 else []
        parts += [f"servers{servers}"] if servers > 1 else []
        if self.max_num_seqs is not None:
            parts.append(f"seqs{self.max_num_seqs}")
        if self.speculative is not None:
            parts.append(f"{self.speculative.method} {self.speculative.short_length}")
        return " ".join(parts)

    def words(self, *, prior: str | None = None, limits: bool = True) -> str:
        """Return how it is started, such as `1 device, up to 64 samples at once`.

        With a `prior` it says that nobody has measured it. Without `limits` only what it runs on.
        """
        count = self.num_devices
        words = [f"{count} {self.gpu}" if self.gpu else counted(count, "device")]
        if self.tensor_parallel_size > 1:
            words.append(f"tensor parallel {self.tensor_parallel_size}")
        words += [each for each in (self.replica_words(),) if each]
        if self.max_num_seqs is not None and limits:
            words.append(f"up to {counted(self.max_num_seqs, 'sample')} at once")
        if self.speculative is not None:
            drafts = self.speculative
            method = drafts.method.replace("_", " ")
            method = "an unknown method" if drafts.method == UNKNOWN_METHOD else method
            words.append(f"speculation by {method}, {drafts.length} tokens ahead")
        words += [each for each in (self.quantization,) if each]
        words += [] if prior is None else [f"times by the prior of {prior}, not measured"]
        return ", ".join(words)


def model_words(model: str) -> str:
    """Return a model's name; of a path in the file system its last part."""
    name = model.rstrip("/")
    is_path = name.startswith(("/", ".", "~")) or name.count("/") > 1
    return name.rpartition("/")[2] if is_path else name or model


def in_words(
    engine: EngineConfig,
    policy: Policy,
    *,
    prior: str | None = None,
    limits: bool = True,
    beside: EngineConfig | None = None,
) -> str:
    """Return a configuration as `demo/s with 8 samples, majority vote`, and what it runs on.

    Without `limits` one device is not named. What runs the one `beside` it, which was named before,
    is not named again.
    """
    words = f"{model_words(engine.model)} with {policy.words()}"
    if beside is not None and beside.gpu == engine.gpu:
        if beside.words(limits=limits) == engine.words(limits=limits):
            return words
        engine, prior = replace(engine, gpu=None), None
    where = engine.words(prior=prior, limits=limits)
    return words if where == "1 device" else f"{words}, on {where}"


@dataclass(frozen=True, kw_only=True)
class Config(Record):
    """An engine configuration and a policy: what is run, replayed and recommended."""

    engine: EngineConfig
    policy: Policy


@dataclass(frozen=True, kw_only=True)
class ModelFacts(Record):
    """What the cost of a model depends on, so that a recording replays without the model.

    `attention` names the kinds of its layers that mix tokens, in the words of transformers'
    `layer_types` (full_attention, sliding_attention, linear_attention, ...) and `latent_attention`
    for MLA; `sliding_window` is in tokens; `quantization` is that of the checkpoint's weights.
    `layers` holds what each layer has, and `others` the matrices outside of them (embedding,
    logits, what looks at images). `kv_bytes_per_token` is what the layers keep of a token in every
    window, `kv_value_bytes` the bytes of one value there. `mtp_layers` only draft and are in no
    total. `uncounted` says what of a config is not understood: totals are None then, as what is not
    known.
    """

    name: str
    architecture: str | None = None
    num_hidden_layers: Count
    hidden_size: Count
    num_attention_heads: Count
    num_key_value_heads: Count
    head_dim: Count
    intermediate_size: Count | None
    vocab_size: Count
    num_experts: Count | None = None
    experts_per_token: Count | None = None
    total_parameters: Count | None
    active_parameters: Count | None
    weight_bytes: Count | None
    kv_bytes_per_token: Count | None
    attention: tuple[str, ...] | None = None
    sliding_window: Count | None = None
    quantization: str | None = None
    kv_cache_dtype: str | None = None
    kv_value_bytes: Amount | None = None
    state_bytes_per_request: Count | None = None
    mtp_layers: Count | None = None
    layers: tuple[Layers, ...] | None = None
    others: tuple[Matrix, ...] = ()
    uncounted: str | None = None

    def reads_all(self, max_model_len: int | None) -> bool:
        """Whether no layer is known to read less than a context of up to `max_model_len`."""
        window = self.sliding_window
        if self.attention == ("sliding_attention",) and window and max_model_len:
            return max_model_len <= window
        return self.attention is None or not set(self.attention) - {"full_attention"}

    def is_linear(self, max_model_len: int | None) -> bool:
        """Whether what a step reads of the cache is in proportion to the contexts in it.

        So it is with keys and values of all layers, and with one latent in all of them, whose
        FLOPs only `layers` tell.
        """
        latent = self.attention == ("latent_attention",) and self.layers is not None
        return latent or self.reads_all(max_model_len)

    def other_layers(self) -> str:
        """Return the kinds of layers that mix tokens by other than full attention, in words."""
        kinds = (kind for kind in self.attention or () if kind != "full_attention")
        return ", ".join(kinds).replace("_", " ")

    def matmul_flops(self, tokens: float) -> float:
        """FLOPs of forwarding tokens through the weights: 2 x active parameters, if known, each."""
        if self.active_parameters is None:
            raise ValueError(f"{self.name}: its active parameters are not known")
        return 2.0 * self.active_parameters * tokens

    def counts_flops(self, max_model_len: int | None) -> bool:
        """Whether FLOPs are known: of the weights, and of what the layers read and keep."""
        known = self.layers is not None and "cross_attention" not in (self.attention or ())
        return self.active_parameters is not None and (known or self.reads_all(max_model_len))

    def forward_flops(
        self, before: npt.ArrayLike, tokens: npt.ArrayLike
    ) -> npt.NDArray[np.float64]:
        """FLOPs of forwarding tokens that follow `before` tokens of their request [any shape].

        Weights take 2 x active parameters a token, states what each token changes (`State.flops`),
        and attention what `flops_by_end` has for each token that one reads, itself included.
        Raises ValueError where the active parameters are not known.
        """
        first, count = np.asarray(before, dtype=float), np.asarray(tokens, dtype=float)
        found = (self.matmul_flops(1.0) + self.state_flops()) * count
        for end, flops in self.flops_by_end().items():
            read = read_until(first + count, end, self.chunked)
            found = found + flops * (read - read_until(first, end, self.chunked))
        return np.asarray(found, dtype=np.float64)

    def state_flops(self) -> float:
        """FLOPs of a token in the states of all layers."""
        return sum(g.count * g.state.flops for g in self.layers or () if g.state is not None)

    def flops_by_end(self) -> dict[int | None, float]:
        """Return the FLOPs of attention for a token of context, by where layers end to read.

        QK^T and AV are 2 x heads x head_dim multiply-adds each per token of context and layer
        (`Attention.flops_per_entry`), and an index scores every key. Those that end nowhere are
        under None.
        """
        if self.layers is None:
            width = self.num_attention_heads * self.head_dim
            return {None: 4.0 * self.num_hidden_layers * width}
        by_end: dict[int | None, float] = {None: 0.0}
        for count, each in ((g.count, g.attention) for g in self.layers if g.attention):
            scores = each.index_reads(1.0) * 2.0 * (each.index_heads or 0) * (each.index_dim or 0)
            terms = [(slope * each.flops_per_entry, end) for slope, end in each.terms]
            for flops, end in [(scores, None), *terms]:
                by_end[end] = by_end.get(end, 0.0) + count * flops
        return by_end

    def attention_flops(self, query_context: float, window_context: float = 0.0) -> float:
        """FLOPs of attention, by the sums over tokens of the context, and of that in the window."""
        by_end = self.flops_by_end()
        whole = by_end.pop(None)
        return whole * query_context + sum(by_end.values()) * window_context

    def kv_bytes(self, context: float) -> float | None:
        """Bytes of the cache that a request of so many tokens occupies, without its states."""
        return self._cached(lambda each: (each.entries(context), each.index_reads(context)))

    def kv_read_bytes(self, context: float) -> float | None:
        """Bytes of the cache that decoding one token after a context reads, without states."""
        return self._cached(lambda each: (each.reads(context), each.index_reads(context)))

    def reads_by_end(self) -> dict[int | None, tuple[float, float]]:
        """Return the bytes read and the FLOPs for a token of context, by where they end.

        Layers read so much for every token of a context up to the key, those of None of all. Empty
        where `layers` or the cache's dtype is not known.
        """
        if self.layers is None or self.kv_value_bytes is None:
            return {}
        read: dict[int | None, float] = {}
        for count, each in ((g.count, g.attention) for g in self.layers if g.attention):
            keys = each.index_reads(1.0) * each.index_bytes(self.kv_value_bytes)
            size = each.values * self.kv_value_bytes
            for amount, end in [(keys, None), *((slope * size, end) for slope, end in each.terms)]:
                read[end] = read.get(end, 0.0) + count * amount
        flops = self.flops_by_end()
        return {end: (amount, flops[end]) for end, amount in read.items()}

    @property
    def window(self) -> int:
        """Tokens of a context beyond which some layers read no more, 0 where all of it is read.

        Of several windows it is the one beyond which most is left unread.
        """
        ends = {end: end * read for end, (read, _) in self.reads_by_end().items() if end}
        return max(ends, key=lambda end: ends[end], default=0)

    @property
    def chunked(self) -> bool:
        """Whether layers with a window read from the start of a chunk, not so many last tokens."""
        return "chunked_attention" in (self.attention or ())

    def routed_weight_bytes(self) -> float:
        """Bytes of the experts of which a token visits some, 0 where `layers` does not say."""
        sizes = (
            g.count * (each.size_bytes or 0.0)
            for g in self.layers or ()
            for each in g.matrices
            if 0 < each.used < each.copies
        )
        return sum(sizes)

    def state_bytes(self) -> int | None:
        """Bytes that the layers keep of a request beside the cache, None where not known."""
        sizes = [(g.count, g.state.size_bytes) for g in self.layers or () if g.state is not None]
        if self.layers is None or any(size is None for _, size in sizes):
            return None
        return round(sum(count * size for count, size in sizes if size is not None))

    def _cached(self, entries: Callable[[Attention], tuple[float, float]]) -> float | None:
        """Return the bytes of so many entries and index keys of each layer."""
        size = self.kv_value_bytes
        if self.layers is None or size is None:
            return None
        total = 0.0
        for group in self.layers:
            if group.attention is not None:
                kept, keys = entries(group.attention)
                each = kept * group.attention.values * size
                total += group.count * (each + keys * group.attention.index_bytes(size))
        return total

    def read_weight_bytes(self, tokens: float) -> float | None:
        """Bytes of weights that a step with so many tokens reads (`Matrix.read_bytes`)."""
        if self.layers is None:
            return None
        sizes = [(1, each.read_bytes(tokens)) for each in self.others]
        sizes += [(g.count, each.read_bytes(tokens)) for g in self.layers for each in g.matrices]
        if any(size is None for _, size in sizes):
            return None
        return sum(count * size for count, size in sizes if size is not None)
