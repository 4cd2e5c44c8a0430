"""Hybrids against what others published of them: ``python benchmarks/hybrids.py CONFIGS``.

Needs ttscope[prior]. CONFIGS is a folder of config.json files (shared/data/model_configs). Models
with Mamba layers or gated delta nets are in no table of served runs. These few points stand on web
pages, each a closed loop of `vllm bench serve` with random prompts. Nothing was learned from them.
Printed are TPOT and TTFT, predicted and measured, and the 90 % interval of TPOT. What a page does
not say (vLLM's version, a checkpoint's form) is taken as `POINTS` has it.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from replayed_points import priced_engine, replayed, tables_of, times_of
from serving_points import CLOSED, TOGETHER, Point

from advisor.step_time.prior.defaults import as_on
from advisor.step_time.prior.offers import device_of
from advisor.step_time.prior.recalibration import PriorTimes
from profiler.engines.models.model_facts import facts_from_file
from traces.errors import TablesError, UsageError
from traces.schema.engine import EngineConfig, ModelFacts
from traces.statistics import Z95

SUPER: Final = "nvidia--NVIDIA-Nemotron-3-Super-120B-A12B"
NANO: Final = "nvidia--NVIDIA-Nemotron-3-Nano-30B-A3B"
QWEN: Final = "Qwen--Qwen3.5-35B-A3B"
LAMBDA: Final = "https://lambda.ai/inference-models/nvidia/nvidia-nemotron-3-super-120b-a12b"
VULTR: Final = "https://docs.vultr.com/inference-cookbook/cuda/benchmarks/results-overview"
TUNED: Final = "https://github.com/vllm-project/vllm/pull/37340"


@dataclass(frozen=True, kw_only=True)
class Published:
    """A point of a page: what ran, and milliseconds. `form` is the checkpoint's quantisation."""

    page: str
    stem: str
    form: str
    system: str
    tensor: int
    vllm: str | None
    prompt: int
    output: int
    in_flight: int
    tpot_ms: float | None = None
    ttft_ms: float | None = None
    duration_s: float | None = None


def _super(form: str, system: str, size: int, tokens_per_s: float, ttft_ms: float) -> Published:
    """Return a point of Lambda's: 512 requests, 32 in flight, TPOT from throughput and TTFT."""
    whole_ms = 1e3 * 32 * 1024 / tokens_per_s
    return Published(
        page=LAMBDA, stem=SUPER, form=form, system=system, tensor=size, vllm=None, prompt=8192,
        output=1024, in_flight=32, tpot_ms=(whole_ms - ttft_ms) / 1023, ttft_ms=ttft_ms,
    )  # fmt: skip


POINTS: Final = (
    _super("NVFP4", "b200_sxm", 2, 2057, 4040),
    _super("NVFP4", "b200_sxm", 1, 1517, 4455),
    _super("FP8", "b200_sxm", 2, 1847, 3948),
    _super("FP8", "h100_sxm", 2, 1116, 4557),
    _super("BF16", "a100_sxm", 4, 553, 6694),
    Published(
        page=VULTR, stem=NANO, form="FP8", system="b200_sxm", tensor=2, vllm="0.16.0", prompt=2048,
        output=512, in_flight=32, tpot_ms=7.86, ttft_ms=206,
    ),
    Published(
        page=TUNED, stem=QWEN, form="blocks", system="h200_sxm", tensor=1, vllm="0.17", prompt=2,
        output=512, in_flight=128, duration_s=9.44,
    ),
)  # fmt: skip


def facts_of(each: Published, folder: Path) -> ModelFacts:
    """Return the facts of a checkpoint, made from those of the same model in another form."""
    own = folder / f"{each.stem}-{each.form}_config.json"
    if own.is_file():
        return facts_from_file(own)
    forms = [folder / f"{each.stem}{form}_config.json" for form in ("", "-BF16", "-FP8")]
    config = json.loads(next(path for path in forms if path.is_file()).read_bytes())
    config.pop("quantization_config", None)
    beside: Mapping[str, Any] | None = None
    if each.form == "blocks":
        config["quantization_config"] = {
            "quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
            "modules_to_not_convert": ["lm_head"],
        }  # fmt: skip
    elif each.form == "FP8":  # leaves out what its sibling in NVFP4 does
        beside = json.loads((folder / f"{each.stem}-NVFP4_hf_quant_config.json").read_bytes())
        beside = {**beside, "quantization": {**beside["quantization"], "quant_algo": "FP8"}}
    with tempfile.TemporaryDirectory() as made:
        path = Path(made) / f"{each.stem}-{each.form}_config.json"
        path.write_text(json.dumps(config))
        if beside is not None:
            path.with_name(path.name.replace("_config", "_hf_quant_config")).write_text(
                json.dumps(beside)
            )
        return facts_from_file(path)


def point(each: Published, facts: ModelFacts) -> Point:
    """Return a page's point as the other benchmarks have theirs."""
    return Point(
        name=each.page,
        lab="page",
        model=facts.name,
        facts=facts,
        unknown=None,
        system=each.system,
        engine=EngineConfig(
            model=facts.name, tensor_parallel_size=each.tensor, mode="server",
            vllm_version=each.vllm, async_scheduling=True, enable_prefix_caching=False,
        ),
        precision=each.form,
        load=CLOSED if each.duration_s is None else TOGETHER,
        prompt_tokens=each.prompt,
        output_tokens=each.output,
        in_flight=each.in_flight,
        tpot_s=None if each.tpot_ms is None else each.tpot_ms / 1e3,
        ttft_s=None if each.ttft_ms is None else each.ttft_ms / 1e3,
        latency_s=each.duration_s,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", type=Path)
    given = parser.parse_args()
    inside = []
    for each in POINTS:
        facts = facts_of(each, given.configs)
        asked = point(each, facts)
        what = f"{facts.name} {each.system} tp{each.tensor} {each.in_flight} in flight"
        tables = tables_of(each.system)
        engine, _ = as_on(device_of(tables), asked.engine, given=["async_scheduling"])
        try:
            ran, cost = priced_engine(asked.system, facts, asked.engine)
            times = PriorTimes(tables=tables, facts=facts, found=None)
            sigma, rules = times.sigma(engine, 0.0), times.prior(engine).rules
        except (UsageError, TablesError) as error:
            print(f"{what}: {error}")
            continue
        work, done = replayed(asked, ran, cost)
        tpot_s, ttft_s = times_of(asked, work, done)
        kinds = {
            "TPOT": (tpot_s, asked.tpot_s),
            "TTFT": (ttft_s, asked.ttft_s),
            "whole": (done.makespan_s, asked.latency_s),
        }
        told = [(name, ours, real) for name, (ours, real) in kinds.items() if real is not None]
        pairs = [
            f"{name} {1e3 * ours:.1f} of {1e3 * real:.1f} ms ({ours / real:.2f})"
            for name, ours, real in told
        ]
        ratio = told[0][1] / told[0][2]
        bound = float(np.exp(Z95 * sigma))
        inside.append(1 / bound <= ratio <= bound)
        print(f"{what}: {', '.join(pairs)}, interval x/{bound:.2f}, {each.page}")
        for rule in rules:
            print(f"    {rule}")
    print(f"{sum(inside)} of {len(inside)} inside")


if __name__ == "__main__":
    main()
