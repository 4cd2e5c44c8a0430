"""Serving points that others measured, in one form: what ran, under which load, and how fast.

Four sources. `silicon`: the vLLM rows of silicon_sample.csv in the package aiconfigurator-core.
`argonne`, `iog` and `gpustack`: labs' runs, read from a folder that holds theirs (argonne/, iog/,
gpustack/). Facts of models are read from config.json files (`--configs`, else those of the
package). What no config is there for is built from the sizes below.
"""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from advisor.step_time.operators.tables import CAPTURE
from advisor.step_time.prior.tables import tables_folder
from profiler.engines.models.model_facts import facts_from_config, facts_from_file
from traces.schema.engine import EngineConfig, ModelFacts

CLOSED, TOGETHER, OPEN = "closed loop", "all at once", "arrivals"


@dataclass(frozen=True, kw_only=True)
class Point:
    """A measured serving point. Times are seconds; None where it was not measured.

    `in_flight` requests are kept running (`CLOSED`) or come all at once (`TOGETHER`), or `requests`
    come at `rate_per_s` (`OPEN`), after the same requests came at the rates of `before`, each with
    the seconds it took, to the same server. A closed loop begins with all its requests at once and
    has `ROUNDS` times as many in all. `tpot_s` and `ttft_s` are means of all, `latency_s` is from
    the first arrival to the last token. Lengths of a closed loop are drawn between `drawn` times
    the named ones. Those of requests that come all at once are `skewed` about their mean, or equal.
    Tokens may be drawn from `truncated` vocabularies. `facts` is None where the model has none, and
    `unknown` says why a point is not priced.
    """

    name: str
    lab: str
    model: str
    facts: ModelFacts | None
    unknown: str | None
    system: str
    engine: EngineConfig
    precision: str
    load: str
    prompt_tokens: int
    output_tokens: int
    in_flight: int | None = None
    rate_per_s: float | None = None
    requests: int | None = None
    before: tuple[tuple[float, float], ...] = ()
    tpot_s: float | None = None
    ttft_s: float | None = None
    latency_s: float | None = None
    drawn: tuple[float, float] = (1.0, 1.0)
    skewed: bool = False
    truncated: bool = False

    @property
    def version(self) -> tuple[int, ...]:
        """The engine's vLLM version, empty where it is not known."""
        return tuple(int(part) for part in re.findall(r"\d+", self.engine.vllm_version or ""))


def async_by_default(version: str | None) -> bool:
    """Whether vLLM of a version schedules asynchronously unless it is told otherwise."""
    parts = tuple(int(part) for part in re.findall(r"\d+", version or "")[:2])
    return parts >= (0, 14)


# Silicon's models as the package names their configs, by model and precision.
_CONFIGS: Final = {
    ("meta-llama/Llama-3.1-70B", "fp8"): "nvidia--Llama-3.1-70B-Instruct-FP8",
    ("meta-llama/Llama-3.1-70B", "fp4"): "meta-llama--Meta-Llama-3.1-70B",
    ("nvidia/Llama-3.1-8B-Instruct-FP8", "fp8"): "meta-llama--Meta-Llama-3.1-8B",
    ("Qwen/Qwen3-32B", "fp8"): "Qwen--Qwen3-32B-FP8",
    ("MiniMaxAI/MiniMax-M2.5", "fp4"): "nvidia--MiniMax-M2.5-NVFP4",
    ("moonshotai/Kimi-K2.5", "fp4"): "nvidia--Kimi-K2.5-NVFP4",
    ("deepseek-ai/DeepSeek-R1-0528", "fp8"): "deepseek-ai--DeepSeek-R1",
}
# Checkpoints without a config of their own: quantised by ModelOpt, as NVIDIA publishes them.
_MODELOPT: Final = {
    ("meta-llama/Llama-3.1-70B", "fp4"): "NVFP4",
    ("nvidia/Llama-3.1-8B-Instruct-FP8", "fp8"): "FP8",
}

# Of the requests in flight, how many both labs' clients send in all: `--request-count`
# 10 x concurrency of aiconfigurator's (eval/benchmarks/genai_perf_runner.py), `--num-prompts`
# 10 x CONC of InferenceX's recipes. The first of them come at once, and means are of all.
ROUNDS: Final = 10
# The lengths that they draw, between so many times the named ones: a deviation of 0 of the one, a
# --random-range-ratio of 0.8 of the other.
_EQUAL: Final = (1.0, 1.0)
_DRAWN: Final = (0.8, 1.0)
# From when on its recipes read DP_ATTENTION: vLLM is started with as many data-parallel ranks as it
# has GPUs. Before they read the sizes of tensor and expert parallelism alone.
_RANKS_READ: Final = "2026-04-08"
# From a prefix cache, whose hits are not told: 64 prompts of 2,000 tokens in flight on one H200
# would take 1,963 TFLOP/s for their weights alone, of a peak of 1,979 in FP8.
_CACHED: Final = ("nvidia/Llama-3.1-8B-Instruct-FP8",)
_WAITED: Final = 3.0  # times its decoding that a request waited, from which a limit was not told

# Dense models of labs: architecture, layers, hidden, heads, KV heads, MLP, vocabulary, tied.
_DENSE: Final = {
    "meta-llama/Llama-2-7b-hf": ("Llama", 32, 4096, 32, 32, 11008, 32000, False),
    "huggyllama/llama-7b": ("Llama", 32, 4096, 32, 32, 11008, 32000, False),
    "meta-llama/Llama-2-70b-hf": ("Llama", 80, 8192, 64, 8, 28672, 32000, False),
    "meta-llama/Meta-Llama-3-8B": ("Llama", 32, 4096, 32, 8, 14336, 128256, False),
    "meta-llama/Meta-Llama-3-70B": ("Llama", 80, 8192, 64, 8, 28672, 128256, False),
    "mistralai/Mistral-7B-v0.1": ("Llama", 32, 4096, 32, 8, 14336, 32000, False),
    "Qwen/Qwen2-7B": ("Qwen2", 28, 3584, 28, 4, 18944, 152064, False),
    "Qwen/Qwen2-72B": ("Qwen2", 80, 8192, 64, 8, 29568, 152064, False),
    "Qwen/Qwen1.5-7B": ("Qwen2", 32, 4096, 32, 32, 11008, 151936, False),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": (
        "Qwen2", 28, 1536, 12, 2, 8960, 151936, False
    ),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": ("Qwen2", 28, 3584, 28, 4, 18944, 152064, False),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B": ("Qwen2", 48, 5120, 40, 8, 13824, 152064, False),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B": ("Qwen2", 64, 5120, 40, 8, 27648, 152064, False),
    "Qwen/QwQ-32B-Preview": ("Qwen2", 64, 5120, 40, 8, 27648, 152064, False),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": ("Llama", 32, 4096, 32, 8, 14336, 128256, False),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-70B": ("Llama", 80, 8192, 64, 8, 28672, 128256, False),
    "meta-llama/Meta-Llama-3-8B-Instruct": ("Llama", 32, 4096, 32, 8, 14336, 128256, False),
    "Qwen/Qwen3-14B": ("Qwen3", 40, 5120, 40, 8, 17408, 151936, False),
}  # fmt: skip

# Their Mistral has a window of 4,096 tokens, which no row reaches, and is Llama's layers otherwise.


@cache
def _dense(name: str) -> ModelFacts | None:
    if name not in _DENSE:
        return None
    kind, layers, hidden, heads, kv_heads, width, vocabulary, tied = _DENSE[name]
    config = {
        "architectures": [f"{kind}ForCausalLM"],
        "model_type": kind.lower(),
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": width,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "torch_dtype": "float16",
    }
    return facts_from_config(config, name=name)


@cache
def _silicon_facts(model: str, precision: str, folder: Path) -> ModelFacts | None:
    stem = _CONFIGS.get((model, precision), model.replace("/", "--"))
    path = folder / f"{stem}_config.json"
    if not path.is_file():
        return None
    if (kind := _MODELOPT.get((model, precision))) is None:
        return facts_from_file(path, name=model)
    told = {"quant_algo": kind, "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    beside = {"producer": {"name": "modelopt"}, "quantization": told}
    return facts_from_config(json.loads(path.read_bytes()), name=model, beside=beside)


def silicon(configs: Path | None = None) -> list[Point]:
    """Return the vLLM rows of silicon_sample.csv."""
    systems = tables_folder()
    folder = configs or systems.parent / "model_configs"
    found = []
    with (systems / "silicon_sample.csv").open(newline="") as lines:
        for row in csv.DictReader(lines):
            if row["backend"] == "vllm":
                found.append(_silicon_point(row, folder))
    return found


def _recipe(
    model: str, precision: str, system: str, version: str, flight: int | None, prompt: int
) -> dict[str, Any]:
    """Return what InferenceX's recipes set of an engine.

    As its repository has them (benchmarks/, and pull request 947 for MiniMax-M2.5 in FP8).
    """
    blackwell = system.startswith("b")
    if model.startswith("openai/gpt-oss"):
        return {
            "max_num_batched_tokens": 8192, "max_num_seqs": 512 if blackwell else flight,
            "kv_cache_dtype": "fp8" if blackwell else None, "other": {CAPTURE: "2048"},
        }  # fmt: skip
    if "Llama-3.1-70B" in model:
        return {"max_num_batched_tokens": 8192, "max_num_seqs": 512 if blackwell else flight}
    if "MiniMax-M2.5" in model and precision == "fp8" and blackwell:
        if version == "0.17.0":
            return {"gpu_memory_utilization": 0.95, "other": {"enable_expert_parallel": "true"}}
        return {
            "max_num_batched_tokens": 2 * prompt, "kv_cache_dtype": "fp8",
            "gpu_memory_utilization": 0.9, "other": {CAPTURE: "2048"},
        }  # fmt: skip
    return {}


def _silicon_point(row: dict[str, str], folder: Path) -> Point:
    model, precision = row["model_path"], row["precision"] or "bf16"
    facts = _silicon_facts(model, row["precision"], folder)
    unknown = None if facts is not None else f"no config of {model}"
    if row["mode"] != "agg":
        unknown = "prefill and decode on servers of their own"
    told = re.search(r"silicon_concurrency=(\d+)", row["silicon_data_source"])
    if told is None:
        # In flight there is the batch that a configuration was planned with. 48 requests of 4,500
        # tokens on two H100 would read more in a step than fits in the time that it took.
        unknown = unknown or "how many requests were in flight is not told"
    version = row["backend_version"]
    if image := re.search(r"v?(\d+\.\d+\.\d+)", row["silicon_data_source"].rpartition("openai")[2]):
        version = version if version[:1].isdigit() else image[1]
    date = re.search(r"measured=(\d{4}-\d\d-\d\d)", row["silicon_data_source"])
    aic = "aic-auto-gap" in row["silicon_data_source"]
    ranks, tensor = int(row["attention_dp_size"] or 1), int(row["tp_size"] or 1)
    if ranks > 1 and not aic:
        # The columns multiply what ran: both sizes name the GPUs of one node. Rows of 4 x 4 have
        # the times of the same runs with 4 x 1, and a node has no 16 GPUs.
        ranks, tensor = (tensor, 1) if date and date[1] >= _RANKS_READ else (1, tensor)
    elif aic:
        # Its data-parallel ranks are not written, but its experts are on all GPUs.
        experts = int(row["moe_tp_size"] or 1) * int(row["moe_ep_size"] or 1)
        ranks = max(experts // tensor, ranks)
    tpot_s, ttft_s = (float(row[f"silicon_{each}_ms"]) / 1e3 for each in ("tpot", "ttft"))
    if ttft_s > _WAITED * tpot_s * int(row["osl"]):
        # Engines were started with max_num_seqs as many as requests, and here with fewer.
        unknown = unknown or "most of its requests waited for a limit that is not told"
    if aic and model in _CACHED:
        unknown = unknown or "its prompts came from a prefix cache, whose hits are not told"
    if not version and date and date[1] < "2025-12":
        version = "0.11"  # the newest release at the time of the measurement
    if version.startswith("nightly") and date and date[1] < "2026-05":
        version = "0.19"  # the release of those days
    # InferenceX sets async-scheduling in what it starts, the others what vLLM does by default.
    overlapped = async_by_default(version) if aic else True
    flight, prompt = int(told[1]) if told else None, int(row["isl"])
    recipe = {} if aic else _recipe(model, row["precision"], row["system"], version, flight, prompt)
    other = dict(recipe.pop("other", {}))
    if int(row["moe_ep_size"] or 1) > 1:
        other["enable_expert_parallel"] = "true"
    return Point(
        name=row["id"],
        lab="aic" if aic else "inferencex",
        model=model.rpartition("/")[2],
        facts=facts,
        unknown=unknown,
        system=row["system"],
        engine=EngineConfig(
            model=model,
            tensor_parallel_size=tensor,
            data_parallel_size=ranks,
            mode="server",
            vllm_version=version or None,
            async_scheduling=overlapped,
            enable_prefix_caching=False,
            max_model_len=None,
            other=tuple(sorted(other.items())),
            **recipe,
        ),
        precision=precision,
        load=CLOSED,
        prompt_tokens=prompt,
        output_tokens=int(row["osl"]),
        in_flight=flight,
        tpot_s=tpot_s,
        ttft_s=ttft_s,
        drawn=_EQUAL if aic else _DRAWN,
        # One client names no temperature, so that Qwen3's generation_config.json holds (0.6, top_k
        # 20, top_p 0.95). The other's is 0, as that of `vllm bench serve` until 0.14 (iog).
        truncated=aic,
    )


def _lab_engine(model: str, size: int, version: str) -> EngineConfig:
    return EngineConfig(
        model=model,
        dtype="float16",
        tensor_parallel_size=size,
        mode="in_process",
        vllm_version=version,
        async_scheduling=False,
        enable_prefix_caching=False,
    )


def argonne(folder: Path) -> list[Point]:
    """Return LLM-Inference-Bench's runs of vLLM: one batch of equal prompts and outputs."""
    found = []
    with (folder / "argonne" / "vllm_h100_a100.csv").open(newline="") as lines:
        for number, row in enumerate(csv.DictReader(lines), 2):
            model, size = row["Model"], int(row["Num of Hardware"])
            facts, length = _dense(model), int(row["Input Output Length"])
            found.append(
                Point(
                    name=f"argonne line {number}",
                    lab="argonne",
                    model=model.rpartition("/")[2],
                    facts=facts,
                    unknown=None if facts else f"no sizes of {model}",
                    system="h100_sxm" if "H100" in row["Hardware"] else "a100_sxm_40gb",
                    engine=_lab_engine(model, size, "0.4"),
                    precision="fp16",
                    load=TOGETHER,
                    prompt_tokens=length,
                    output_tokens=length,
                    in_flight=int(row["Batch Size"]),
                    latency_s=float(row["Latency"]),
                )
            )
    return found


def iog(folder: Path) -> list[Point]:
    """Return IOG's runs of `vllm bench serve`: 200 requests that come at a rate.

    A server answered the same 200 requests at 32, 16, 8, 4 and 1 a second, one run within minutes
    of the other, with vLLM's prefix caching: after the first run no token took longer than a step
    without prompts does, where the cache held them all.
    """
    found = []
    series: dict[tuple[str, ...], list[tuple[float, float]]] = {}
    runs = [
        (f"{path.stem} {number}", json.loads(line))
        for path in sorted((folder / "iog").glob("*.json"))
        for number, line in enumerate(path.read_text().replace("}{", "}\n{").splitlines(), 1)
    ]
    for name, run in sorted(runs, key=lambda each: str(each[1]["date"])):
        model, count, rate, gpu = (
            run[key] for key in ("model_id", "completed", "request_rate", "gpu_name")
        )
        facts, key = _dense(model), (model, gpu, run["gpu_count"])
        before = series.get(key, [])
        before = before if before and before[-1][0] > rate else []  # else the server is a new one
        series[key] = [*before, (rate, run["duration"])]
        engine = _lab_engine(model, int(run["gpu_count"]), "0.8.5")
        found.append(
            Point(
                name=name,
                lab="iog",
                model=model.rpartition("/")[2],
                facts=facts,
                unknown=None if facts else f"no sizes of {model}",
                system="h100_pcie" if "H100" in gpu else "rtx_4090",
                engine=replace(engine, mode="server", enable_prefix_caching=True),
                precision="fp8" if "FP8" in model else "fp16",
                load=OPEN,
                prompt_tokens=round(run["total_input_tokens"] / count),
                output_tokens=round(run["total_output_tokens"] / count),
                rate_per_s=rate,
                requests=count,
                before=tuple(before),
                tpot_s=run["mean_tpot_ms"] / 1e3,
                ttft_s=run["mean_ttft_ms"] / 1e3,
                latency_s=run["duration"],
            )
        )
    return found


_GPUS: Final = (("A100", "a100_sxm"), ("H100", "h100_sxm"), ("H200", "h200_sxm"))
_SHARED: Final = (200, 230)  # tokens of ShareGPT's prompts on average, as this lab's runs have them


def gpustack(folder: Path, configs: Path | None = None) -> list[Point]:
    """Return GPUStack's runs of `vllm bench serve`: all requests at once.

    They are of ShareGPT, whose lengths are skewed, or of equal lengths.
    """
    found = []
    package = configs or tables_folder().parent / "model_configs"
    with (folder / "gpustack" / "serving.csv").open(newline="") as lines:
        for number, row in enumerate(csv.DictReader(lines), 2):
            model, words, count = row["model"], row["command"].split(), int(row["requests"])
            told = dict(pairwise(words))
            precision = "fp8" if model.startswith("deepseek-ai") else "bf16"
            facts = _silicon_facts(model, precision, package) or _dense(model)
            version, batched = row["vllm_version"], told.get("--max-num-batched-tokens")
            prompt = round(float(row["input_tokens"]) / count)
            found.append(
                Point(
                    name=f"gpustack line {number}",
                    lab="gpustack",
                    model=model.rpartition("/")[2],
                    facts=facts,
                    unknown=None if facts else f"no sizes of {model}",
                    system=next(name for gpu, name in _GPUS if gpu in row["hardware"]),
                    engine=EngineConfig(
                        model=model,
                        tensor_parallel_size=int(told.get("-tp", 1)),
                        mode="server",
                        vllm_version=version,
                        async_scheduling="--async-scheduling" in words or async_by_default(version),
                        enable_prefix_caching=False,
                        max_num_batched_tokens=int(batched) if batched else None,
                    ),
                    precision=precision,
                    load=TOGETHER,
                    prompt_tokens=prompt,
                    output_tokens=max(round(float(row["output_tokens"]) / count), 1),
                    in_flight=count,
                    latency_s=float(row["duration_s"]),
                    skewed=_SHARED[0] < prompt < _SHARED[1],
                )
            )
    return found


def read_points(runs: Path | None, configs: Path | None = None) -> Iterator[Point]:
    """Return all points: silicon's, and the labs' that lie in `runs`."""
    yield from silicon(configs)
    if runs is not None:
        yield from argonne(runs)
        yield from iog(runs)
        yield from gpustack(runs, configs)
