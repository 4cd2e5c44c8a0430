"""Small real models of each kind on vLLM's CPU engine, each configuration left out.

    python benchmarks/kinds_of_models.py FOLDER [--repeats 3] [--seed 7] [--only mixture]

FOLDER/models gets a folder for each of `KINDS`, with random weights and the demo's tokenizer, as a
person has one that `ttscope record --model FOLDER` takes. Output lengths are given, so that the
weights decide no time. Each kind runs in the same nine configurations, in an order drawn anew in
every round (`held_out_runs.run`), so that all kinds met the same disturbances. Then each
configuration is predicted from the eight others of its kind alone, as `benchmarks/held_out.py`
does. Printed is a line for each kind, with its error over that of the dense one. What an engine
says that cannot start is printed, and in FOLDER/failures.jsonl. `--report` runs nothing. Mamba is
not among them: vLLM 0.32's CPU build fails on prompts there (an index beyond the chunks' states).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import random
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from held_out import STATISTICS, Errors, left_out, read
from held_out_runs import Configuration, run

from advisor.evidence.gather import Evidence
from profiler.demo import task
from profiler.engines.options import EngineOptions

MODEL_LEN: Final = 1024
BATCHED_TOKENS: Final = 2048
# (max_num_seqs, [(problems in flight, samples each, problems)])
LOADS: Final = (
    (8, ((1, 1, 16), (4, 4, 8), (16, 1, 32), (1, 16, 4))),
    (64, ((1, 4, 10), (4, 1, 24), (16, 4, 16), (4, 16, 6), (64, 1, 64))),
)
MEDIAN_TOKENS, PROBLEM_SIGMA, SAMPLE_SIGMA, MOST_TOKENS = 48, 0.7, 0.35, 320
MEDIAN_PROMPT, PROMPT_SIGMA, MOST_PROMPT = 120, 0.9, 640

_SHAPE: Final = {
    "vocab_size": 64, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
    "max_position_embeddings": MODEL_LEN, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_HEADS: Final = {"num_key_value_heads": 2, "head_dim": 64}
# Of each kind, transformers' config: its class and fields.
KINDS: Final[Mapping[str, tuple[str, dict[str, Any]]]] = {
    "dense": ("Qwen3Config", {**_SHAPE, **_HEADS, "intermediate_size": 768}),
    "mixture": ("Qwen3MoeConfig", {
        **_SHAPE, **_HEADS, "intermediate_size": 768, "num_experts": 32, "num_experts_per_tok": 4,
        "moe_intermediate_size": 192, "norm_topk_prob": True,
    }),
    "window": ("Gemma3TextConfig", {
        **_SHAPE, **_HEADS, "intermediate_size": 768, "sliding_window": 64,
        "query_pre_attn_scalar": 64,
        "layer_types": [*["sliding_attention"] * 3, "full_attention"],
    }),
    "latent": ("DeepseekV2Config", {
        **_SHAPE, "num_key_value_heads": 4, "intermediate_size": 768, "kv_lora_rank": 512,
        "q_lora_rank": None, "qk_nope_head_dim": 64, "qk_rope_head_dim": 64, "v_head_dim": 64,
        "n_routed_experts": 16, "num_experts_per_tok": 4, "n_shared_experts": 1,
        "moe_intermediate_size": 192, "first_k_dense_replace": 1, "topk_method": "greedy",
        "n_group": 1, "topk_group": 1,
    }),
    "delta": ("Qwen3NextConfig", {
        **_SHAPE, **_HEADS, "intermediate_size": 768, "num_experts": 16, "num_experts_per_tok": 4,
        "moe_intermediate_size": 192, "shared_expert_intermediate_size": 192,
        "linear_key_head_dim": 64, "linear_value_head_dim": 64, "linear_num_key_heads": 2,
        "linear_num_value_heads": 4, "full_attention_interval": 4,
    }),
}  # fmt: skip
DTYPES: Final = {"delta": "bfloat16"}  # of the engine, where it is not float32


def make_model(kind: str, folder: Path) -> None:
    """Write a model of a kind with random weights, where it is not there."""
    if (folder / "config.json").exists():
        return
    import torch
    import transformers

    name, fields = KINDS[kind]
    config = getattr(transformers, name)(**fields)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    folder.mkdir(parents=True)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(task.model_path("s") / file, folder / file)
    model.save_pretrained(folder)


def configurations(folder: Path, kind: str) -> list[Configuration]:
    return [
        Configuration(
            name=f"{kind}-seqs{seqs}-c{concurrency}-n{n}",
            engine=EngineOptions(
                model=str(folder / "models" / kind),
                dtype=DTYPES.get(kind, "float32"),
                max_model_len=MODEL_LEN,
                max_num_seqs=seqs,
                max_num_batched_tokens=BATCHED_TOKENS,
            ),
            concurrency=concurrency,
            n=n,
            temperature=0.8,
        )
        for seqs, loads in LOADS
        for concurrency, n, _ in loads
    ]


def workload(one: Configuration, seed: int) -> Iterator[dict[str, object]]:
    """Yield the lines of a configuration's workload, the same for every kind.

    Prompts are log-normal in length. A problem's samples have lengths around their own median.
    """
    load = one.name.partition("-")[2]
    draw = random.Random(f"{seed} {load}")
    counts = {(seqs, c, n): count for seqs, loads in LOADS for c, n, count in loads}
    seqs = one.engine.max_num_seqs or 0
    for index in range(counts[seqs, one.concurrency, one.n]):
        letters = round(math.exp(draw.gauss(math.log(MEDIAN_PROMPT), PROMPT_SIGMA)))
        middle = draw.gauss(math.log(MEDIAN_TOKENS), PROBLEM_SIGMA)
        lengths = [math.exp(draw.gauss(middle, SAMPLE_SIGMA)) for _ in range(one.n)]
        yield {
            "id": index,
            "prompt": "".join(
                draw.choices(task.PREAMBLE_LETTERS, k=min(max(letters, 8), MOST_PROMPT))
            ),
            "output_tokens": [min(max(round(each), 4), MOST_TOKENS) for each in lengths],
        }


def errors_of(data: Mapping[str, list[Evidence]]) -> dict[str, Errors]:
    """Return the errors of each configuration of a kind, from the others of the kind."""
    found: dict[str, Errors] = {}
    for name in data:
        with contextlib.redirect_stdout(io.StringIO()):
            found |= left_out(dict(data), [name])
    return found


def report(folder: Path) -> None:
    """Print a line for each kind that has recordings."""
    data = read(folder)
    print(
        "mean |error| %, of the mean of a configuration's repeats (noise floor, sd of a run): "
        "mean, p50 and p95 of problem latency"
    )
    for kind in KINDS:
        own = {name: each for name, each in data.items() if name.startswith(f"{kind}-")}
        if not own:
            continue
        found = errors_of(own)
        line = f"{kind:<9}{len(own):>3}{sum(map(len, own.values())):>4} runs"
        for name in STATISTICS:
            size = np.mean([abs(each[name].mean()) for each in found.values()])
            floor = np.sqrt(np.mean([each[f"noise {name}"] ** 2 for each in found.values()]))
            line += f"  {name} {100 * size:.1f} ({100 * floor:.1f})"
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--only", choices=KINDS, action="append", help="these kinds alone")
    parser.add_argument("--report", action="store_true", help="run nothing")
    given = parser.parse_args()
    if not given.report:
        kinds = given.only or list(KINDS)
        for kind in kinds:
            make_model(kind, given.folder / "models" / kind)
        chosen = [one for kind in kinds for one in configurations(given.folder, kind)]
        run(given.folder, chosen, given.repeats, given.seed, workload)
        failures = given.folder / "failures.jsonl"
        said = failures.read_text().splitlines() if failures.exists() else []
        for each in sorted({json.loads(line)["error"] for line in said}):
            print(f"not run: {each}")
    report(given.folder)


if __name__ == "__main__":
    main()
