"""config.json of dense models of which the made-up operator tables have the shapes."""


def llama_config(layers=4, hidden=512):
    return {
        "architectures": ["LlamaForCausalLM"], "hidden_size": hidden, "vocab_size": 1000,
        "intermediate_size": 2 * hidden, "num_attention_heads": hidden // 64,
        "num_key_value_heads": 4, "num_hidden_layers": layers,
    }  # fmt: skip
