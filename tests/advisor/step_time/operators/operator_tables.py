"""Small folders of operator times whose every number follows from a formula."""

import csv
from itertools import product

TOKENS = (1, 2, 4, 8, 16, 32)
CHUNKS, BEFORE = (8, 16, 32), (0, 32, 64, 128)
BATCHES, CONTEXTS = (1, 2, 4, 8), (16, 32, 64, 128)
LAYERS = (
    "embedding", "final_layernorm", "layernorm", "qkv_proj", "rotary_emb", "o_proj",
    "gate_up_proj", "act_fn", "down_proj",
)  # fmt: skip
META = "gpu: NVIDIA Test\nmodel: test/model\nvllm_version: 0.19.0\ntp_degrees: [1]\n"


def dense_us(layer, tokens):
    return 1 + [*LAYERS, layer].index(layer) + 0.5 * tokens


def attention_us(chunk, before, batch, context):
    """A launch, the work of the chunk (queries x context), and the KV of the others."""
    return 4 + 0.01 * chunk * (before + chunk / 2) + 0.02 * batch * context


def attention_rows(chunks=CHUNKS, before=BEFORE, batches=BATCHES, contexts=CONTEXTS):
    keys = [(0, 0, n, k) for n, k in product(batches, contexts)]
    keys += [(c, p, 0, 0) for c, p in product(chunks, before)]
    keys += list(product(chunks, before, batches, contexts))
    return [(*key, attention_us(*key)) for key in keys]


def skew_rows(share):
    """Rows whose times lie at `share(batch, chunk, before, longest)` between mean and longest."""
    for n, chunk, before, longest, mean_us in product(
        (2, 4, 8), (0, 16), (0, 64), (64, 128), (30.0, 50.0)
    ):
        if not chunk and before:
            continue
        most = 3 * mean_us
        was = mean_us + share(n, chunk, before, longest) * (most - mean_us)
        yield ("mixed" if chunk else "pure", n, 1, 0.5, 4.0, chunk, before, longest // 4, longest,
               40, mean_us, most, was, "")  # fmt: skip


def write_tables(folder, *, layers=LAYERS, attention=None, skew=None, meta=META):
    folder.mkdir(parents=True, exist_ok=True)
    rows = [(name, n, dense_us(name, n)) for name, n in product(layers, TOKENS)]
    write(folder / "dense.csv", "layer,tokens,time_us", rows)
    rows = [("lm_head", n, 10 + n) for n in TOKENS] + [("sampler", n, 3 + 2 * n) for n in TOKENS]
    write(folder / "per_sequence.csv", "layer,sequences,time_us", rows)
    header = "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us"
    write(folder / "attention.csv", header, attention_rows() if attention is None else attention)
    if skew is not None:
        header = (
            "regime,n,nb,ratio,skew,pc,kp,kvs,kv_big,kv_mean,t_mean_us,t_max_us,t_skew_us,alpha"
        )
        write(folder / "skew.csv", header, skew_rows(skew))
        meta += "skew_profile:\n  enabled: true\n"
    (folder / "meta.yaml").write_text(meta)
    return folder


def write(path, header, rows):
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header.split(","))
        writer.writerows(rows)
