"""Facts of dense models with heads of 128, from the numbers in their config.json."""

from traces.schema.engine import ModelFacts


def dense(
    name: str, architecture: str, shape: tuple[int, ...], *, tied: bool = False
) -> ModelFacts:
    """Return facts of a model from layers, hidden, heads, KV heads, MLP and vocabulary.

    `tied`: the embedding is the output layer too.
    """
    layers, hidden, heads, kv_heads, width, vocabulary = shape
    active = layers * (2 * (heads + kv_heads) * 128 + 3 * width) * hidden + vocabulary * hidden
    total = active + (0 if tied else vocabulary * hidden)
    return ModelFacts(
        name=name,
        architecture=architecture,
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=128,
        intermediate_size=width,
        vocab_size=vocabulary,
        total_parameters=total,
        active_parameters=active,
        weight_bytes=2 * total,
        kv_bytes_per_token=4 * layers * kv_heads * 128,
    )
