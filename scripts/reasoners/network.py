"""The models: a Qwen2 decoder small enough to train on one core, read and written as Hugging Face.

One forward serves training (whole rows) and generation (a key-value cache), in float32: on a
processor without bfloat16 arithmetic the narrow type is ten times slower. Files are bfloat16.
The query, key and value projections are one matrix and so are the gate and up projections; they
are split on writing, so that transformers and vLLM load the files as any Qwen2.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from scripts.reasoners.tokenizer import BOS, EOS, PAD, VOCABULARY_SIZE, save_tokenizer

CONTEXT_TOKENS = 1024
HEAD_DIM = 32
NORM_EPS = 1e-6
ROPE_THETA = 10_000.0

Cache = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The dimensions of one size, in Qwen2's terms; the head dimension is 32 throughout."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int


SHAPES = {
    "s": Shape(hidden=96, layers=3, heads=3, kv_heads=1, ffn=256),
    "m": Shape(hidden=128, layers=4, heads=4, kv_heads=2, ffn=384),
    "l": Shape(hidden=192, layers=4, heads=6, kv_heads=2, ffn=512),
}


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


class Block(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """One decoder layer: grouped-query attention with rotary positions, then a gated FFN."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.ffn = shape.heads, shape.kv_heads, shape.ffn
        hidden = shape.hidden
        self.attention_norm = nn.Parameter(torch.ones(hidden))
        self.ffn_norm = nn.Parameter(torch.ones(hidden))
        self.qkv = nn.Linear(hidden, (shape.heads + 2 * shape.kv_heads) * HEAD_DIM)
        self.out = nn.Linear(hidden, hidden, bias=False)
        self.gate_up = nn.Linear(hidden, 2 * shape.ffn, bias=False)
        self.down = nn.Linear(shape.ffn, hidden, bias=False)

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor | None,
        past: tuple[Tensor, Tensor] | None,
        start: int,
    ) -> Tensor:
        rows, length, hidden = x.shape
        heads, kv_heads = self.heads, self.kv_heads
        normed = functional.rms_norm(x, (hidden,), self.attention_norm, NORM_EPS)
        qkv = self.qkv(normed).view(rows, length, heads + 2 * kv_heads, HEAD_DIM).transpose(1, 2)
        rotated = _rotate(qkv[:, : heads + kv_heads], *rotation)
        query, key = rotated[:, :heads], rotated[:, heads:]
        value = qkv[:, heads + kv_heads :]
        if past is not None:
            end = start + length
            past[0][:, :, start:end], past[1][:, :, start:end] = key, value
            key, value = past[0][:, :, :end], past[1][:, :, :end]
        # The query heads of one key-value head are stacked in time: one bmm instead of a repeat.
        group, context = heads // kv_heads, key.shape[2]
        query = query.reshape(rows * kv_heads, group * length, HEAD_DIM) * HEAD_DIM**-0.5
        key = key.reshape(rows * kv_heads, context, HEAD_DIM)
        value = value.reshape(rows * kv_heads, context, HEAD_DIM)
        scores = torch.bmm(query, key.transpose(1, 2))
        if mask is not None:
            scores = scores.view(rows * kv_heads, group, length, context) + mask
        weights = torch.softmax(scores, -1).view(rows * kv_heads, group * length, context)
        mixed = torch.bmm(weights, value).view(rows, heads, length, HEAD_DIM)
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, length, hidden))
        normed = functional.rms_norm(x, (hidden,), self.ffn_norm, NORM_EPS)
        gate, up = self.gate_up(normed).chunk(2, -1)
        output: Tensor = x + self.down(functional.silu(gate) * up)
        return output


class Reasoner(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """A decoder of one size with tied embeddings; ``hidden`` then ``logits``."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Parameter(torch.randn(VOCABULARY_SIZE, shape.hidden) * 0.04)
        self.blocks = nn.ModuleList([Block(shape) for _ in range(shape.layers)])
        self.norm = nn.Parameter(torch.ones(shape.hidden))
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2 and name != "embedding":
                residual = name.endswith(("out.weight", "down.weight"))
                gain = 0.5 / math.sqrt(shape.layers) if residual else 0.7
                nn.init.normal_(parameter, std=gain * parameter.shape[1] ** -0.5)
        inverse = ROPE_THETA ** (-torch.arange(0, HEAD_DIM, 2).float() / HEAD_DIM)
        angles = torch.arange(CONTEXT_TOKENS).float()[:, None] * inverse
        self._cos, self._sin = angles.cos(), angles.sin()
        self._mask = torch.full((CONTEXT_TOKENS, CONTEXT_TOKENS), float("-inf")).triu(1)

    def hidden(self, tokens: Tensor, cache: Cache | None = None, start: int = 0) -> Tensor:
        """Return final normed states (rows, length, hidden) of ``tokens`` (rows, length).

        With a cache the tokens sit at positions ``start`` onward and their keys and values are
        written into it.
        """
        end = start + tokens.shape[1]
        x = functional.embedding(tokens, self.embedding)
        rotation = (self._cos[start:end], self._sin[start:end])
        mask = self._mask[start:end, :end] if tokens.shape[1] > 1 else None
        for index, block in enumerate(self.blocks):
            x = block(x, rotation, mask, cache[index] if cache else None, start)
        return functional.rms_norm(x, (x.shape[-1],), self.norm, NORM_EPS)

    def logits(self, states: Tensor) -> Tensor:
        """Return next-token logits (..., vocabulary) of final states (..., hidden)."""
        return functional.linear(states, self.embedding)

    def new_cache(self, rows: int, length: int) -> Cache:
        """Return an empty float32 cache for ``rows`` sequences of up to ``length`` tokens."""
        size = (rows, self.shape.kv_heads, length, HEAD_DIM)
        return [(torch.zeros(size), torch.zeros(size)) for _ in range(self.shape.layers)]


def save_model(model: Reasoner, folder: Path) -> None:
    """Write weights (bfloat16), configuration and tokenizer as a Hugging Face folder."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {"model.embed_tokens.weight": model.embedding, "model.norm.weight": model.norm}
    heads = [model.shape.heads, model.shape.kv_heads, model.shape.kv_heads]
    for index, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        prefix = f"model.layers.{index}."
        sizes = [count * HEAD_DIM for count in heads]
        matrices, biases = block.qkv.weight.split(sizes), block.qkv.bias.split(sizes)
        for letter, matrix, bias in zip("qkv", matrices, biases, strict=True):
            weights[f"{prefix}self_attn.{letter}_proj.weight"] = matrix
            weights[f"{prefix}self_attn.{letter}_proj.bias"] = bias
        gate, up = block.gate_up.weight.chunk(2)
        weights[prefix + "self_attn.o_proj.weight"] = block.out.weight
        weights[prefix + "mlp.gate_proj.weight"], weights[prefix + "mlp.up_proj.weight"] = gate, up
        weights[prefix + "mlp.down_proj.weight"] = block.down.weight
        weights[prefix + "input_layernorm.weight"] = block.attention_norm
        weights[prefix + "post_attention_layernorm.weight"] = block.ffn_norm
    plain = {name: w.detach().bfloat16().clone() for name, w in weights.items()}
    save_file(plain, folder / "model.safetensors", metadata={"format": "pt"})
    ends = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "dtype": "bfloat16",
        "vocab_size": VOCABULARY_SIZE,
        "hidden_size": model.shape.hidden,
        "intermediate_size": model.shape.ffn,
        "num_hidden_layers": model.shape.layers,
        "num_attention_heads": model.shape.heads,
        "num_key_value_heads": model.shape.kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT_TOKENS,
        "rms_norm_eps": NORM_EPS,
        "rope_parameters": {"rope_theta": ROPE_THETA, "rope_type": "default"},
        "rope_theta": ROPE_THETA,
        "tie_word_embeddings": True,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "initializer_range": 0.04,
        **ends,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    (folder / "generation_config.json").write_text(json.dumps(ends) + "\n", encoding="utf-8")
    save_tokenizer(folder, context_tokens=CONTEXT_TOKENS)


def load_model(folder: Path) -> Reasoner:
    """Read a folder that `save_model` wrote, in float32, ready to generate."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shape = Shape(
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        ffn=config["intermediate_size"],
    )
    stored = load_file(folder / "model.safetensors")
    state = {"embedding": stored["model.embed_tokens.weight"], "norm": stored["model.norm.weight"]}
    for index in range(shape.layers):
        theirs, ours = f"model.layers.{index}.", f"blocks.{index}."
        for kind in ("weight", "bias"):
            parts = [stored[f"{theirs}self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            state[f"{ours}qkv.{kind}"] = torch.cat(parts)
        halves = [stored[f"{theirs}mlp.{half}_proj.weight"] for half in ("gate", "up")]
        state[ours + "gate_up.weight"] = torch.cat(halves)
        state[ours + "out.weight"] = stored[theirs + "self_attn.o_proj.weight"]
        state[ours + "down.weight"] = stored[theirs + "mlp.down_proj.weight"]
        state[ours + "attention_norm"] = stored[theirs + "input_layernorm.weight"]
        state[ours + "ffn_norm"] = stored[theirs + "post_attention_layernorm.weight"]
    model = Reasoner(shape)
    model.load_state_dict({name: weight.float() for name, weight in state.items()})
    model.eval()
    return model
