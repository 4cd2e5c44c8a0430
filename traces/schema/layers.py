"""What the layers of a model hold: their matrices, what they keep of a token, their experts.

Layers that are alike stand together (`Layers`). Every count is of the whole model: what tensor or
expert parallelism leaves on a device is a share of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from traces.schema.record import Amount, Count, Record, Some

STATE_FLOPS: Final = {"mamba": 5, "linear_attention": 7}  # of a token, a value of the state


@dataclass(frozen=True, kw_only=True)
class Matrix(Record):
    """`copies` matrices of one shape, of which a token is multiplied with `used`.

    `parameter_bytes` includes the scales stored beside quantised weights, None where the form is
    not known. An embedding, which is looked up, is used by no token.
    """

    name: str
    inputs: Count
    outputs: Count
    precision: str
    parameter_bytes: Amount | None
    copies: Some = 1
    used: Count = 1

    @property
    def parameters(self) -> int:
        return self.copies * self.inputs * self.outputs

    @property
    def active_parameters(self) -> int:
        """Parameters that a token is multiplied with."""
        return self.used * self.inputs * self.outputs

    @property
    def size_bytes(self) -> float | None:
        """Bytes of all copies."""
        return None if self.parameter_bytes is None else self.parameters * self.parameter_bytes

    def read_bytes(self, tokens: float) -> float | None:
        """Bytes that a batch of so many tokens reads, where each token's choice is uniform.

        Of E copies of which a token visits k, a batch of T visits E (1 - (1 - k/E)^T).
        """
        if self.parameter_bytes is None or not self.used:
            return None if self.parameter_bytes is None else 0.0
        visited: float = self.copies * (1 - (1 - min(self.used / self.copies, 1.0)) ** tokens)
        return visited * self.inputs * self.outputs * self.parameter_bytes


@dataclass(frozen=True, kw_only=True)
class Attention(Record):
    """How a layer reads the context.

    `kind` is full_attention, sliding_attention or chunked_attention (of `window` tokens),
    latent_attention (MLA), or compressed_attention, which reads `window` tokens and an entry for
    every `tokens_per_entry` of the context. `head_dim` is that of queries and keys. `latent` and
    `rope` are the values that latent attention keeps of a token instead of keys and values.
    Where `top_k` is there, an index chooses so many entries; `index_heads` and `index_dim` are
    its queries' and keys', None where the layer uses the choice of an earlier one. `kept` is
    False where the layer reads the keys and values of an earlier one, `one_entry` True where one
    vector is key and value at once.
    """

    kind: str
    heads: Count
    kv_heads: Count
    head_dim: Count
    v_head_dim: Count
    window: Count | None = None
    latent: Count | None = None
    rope: Count | None = None
    tokens_per_entry: Some = 1
    top_k: Count | None = None
    index_heads: Count | None = None
    index_dim: Count | None = None
    kept: bool = True
    one_entry: bool = False

    @property
    def values(self) -> int:
        """Values of an entry: keys and values, or one latent for all heads.

        MLA keeps kv_lora_rank + qk_rope_head_dim (arXiv 2405.04434, section 2.1).
        """
        if self.latent is not None:
            return self.latent + (self.rope or 0)
        return self.kv_heads * (self.head_dim + (0 if self.one_entry else self.v_head_dim))

    def index_bytes(self, value_bytes: float) -> float:
        """Bytes of an entry's index key.

        Beside a latent it is FP8 with a float32 scale for every 128 values (vLLM's
        DeepseekV32IndexerCache), else as wide as the cache's values.
        """
        if self.index_dim is None:
            return 0.0
        narrow = self.latent is not None or self.kind == "compressed_attention"
        return self.index_dim * (1 + 4 / 128 if narrow else value_bytes)

    def entries(self, context: float) -> float:
        """Entries that are kept of a context of so many tokens."""
        if not self.kept:
            return 0.0
        if self.kind == "compressed_attention":
            return min(context, self.window or 0) + context / self.tokens_per_entry
        return context if self.window is None else min(context, self.window)

    def reads(self, context: float) -> float:
        """Entries that decoding a token reads of a context.

        A chunk holds the tokens since its start, a window the last ones.
        """
        if self.kind == "compressed_attention":
            distant = context / self.tokens_per_entry
            return min(context, self.window or 0) + min(distant, self.top_k or distant)
        if self.kind == "chunked_attention" and self.window is not None:
            return (context - 1) % self.window + 1 if context > 0 else 0.0
        near = context if self.window is None else min(context, self.window)
        return near if self.top_k is None else min(near, self.top_k)

    @property
    def terms(self) -> tuple[tuple[float, int | None], ...]:
        """How `reads` grows: entries for every token of a context up to so many (None: all).

        A chunk begins again instead of ending there.
        """
        if self.kind == "compressed_attention":
            size = self.tokens_per_entry
            return (1.0, self.window), (1 / size, None if self.top_k is None else self.top_k * size)
        return ((1.0, min((each for each in (self.window, self.top_k) if each), default=None)),)

    def index_reads(self, context: float) -> float:
        """Index keys that decoding a token reads of a context: all there are."""
        return 0.0 if self.index_dim is None else context / self.tokens_per_entry

    @property
    def flops_per_entry(self) -> int:
        """FLOPs of a query and an entry: 2 for each value of q k and of the weighted sum, a head.

        Of latent attention as the model has it, with keys and values made of the latent.
        """
        return 2 * self.heads * (self.head_dim + self.v_head_dim)


@dataclass(frozen=True, kw_only=True)
class State(Record):
    """What a layer keeps of a request, however long it is: a recurrent state, a convolution's tail.

    `kind` is mamba, linear_attention (gated delta net, Kimi delta attention, lightning) or conv.
    """

    kind: str
    heads: Count
    values: Count
    value_bytes: Amount | None
    convolved_values: Count
    convolved_bytes: Amount | None

    @property
    def size_bytes(self) -> float | None:
        if self.value_bytes is None or self.convolved_bytes is None:
            return None
        return self.values * self.value_bytes + self.convolved_values * self.convolved_bytes

    @property
    def flops(self) -> float:
        """FLOPs of a token: decay, update and read of every value of the state.

        Mamba 2 takes 5 a value (arXiv 2405.21060, equation 1: h = a h + b x, y = c h), the delta
        rule 7 (arXiv 2412.06464, equation 10: it reads the state before it writes it too).
        """
        return float(STATE_FLOPS.get(self.kind, 7) * self.values)


@dataclass(frozen=True, kw_only=True)
class Experts(Record):
    """The experts of a layer: a token visits `active` of `total`, and all `shared`."""

    total: Count
    active: Count
    width: Count
    shared: Count = 0
    shared_width: Count = 0


@dataclass(frozen=True, kw_only=True)
class Layers(Record):
    """Layers that are alike: their places, counted from 0, and what each of them holds.

    `mlp_width` is the intermediate size of a dense MLP.
    """

    places: tuple[int, ...]
    attention: Attention | None = None
    state: State | None = None
    mlp_width: Count | None = None
    experts: Experts | None = None
    matrices: tuple[Matrix, ...] = ()

    @property
    def count(self) -> int:
        return len(self.places)
