"""How far off the watts of the prior are: published ones, each GPU left out.

The law of advisor/step_time/power/prior.py is fitted to the other GPUs and asked of the one left
out, from measured step times. Needs ttscope[prior] for the joules a token, whose step times are the
prior's too. Caps: --data FOLDER holds power/qwen38_mtp of an RTX 5090 (skipped where it is not).

Each point is a fact that its source publishes: requests in flight, output tokens a second, watts of
one board.
"""

import argparse
import re
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.optimize import least_squares

from advisor.step_time.power.boards import Board
from advisor.step_time.power.prior import SHARES, SIGMA, Lengths, PowerAsked, Shares, slowed
from advisor.step_time.prior.recalibration import PriorTimes
from advisor.step_time.prior.relatives import read_gpu
from profiler.engines.models.model_facts import given_facts
from traces.errors import TtscopeError
from traces.schema.engine import EngineConfig
from traces.statistics import Z95, Floats

ML_ENERGY = "ML.ENERGY leaderboard v3 (github.com/ml-energy/leaderboard), vLLM 0.11.1"
SHANG = "github.com/chuyishang/inference-energy, vLLM, 8 clients"
MMBT = "github.com/Light-Heart-Labs/MMBT-Messy-Model-Bench-Tests, vLLM, AWQ"
HOST_SHARE = 0.2  # of a step
MTP = "qwen38-mtp (power/qwen38_mtp), llama.cpp, Q4"


class Gpu(NamedTuple):
    """A board, and its peaks by the maker's sheet."""

    board: Board
    bandwidth: float
    flops: float  # bfloat16, dense
    system: str | None = None


GPUS = {
    "H100": Gpu(Board(limit_w=700, idle_w=98), 3.35e12, 989e12, "h100_sxm"),
    "B200": Gpu(Board(limit_w=1000, idle_w=140), 7.7e12, 2250e12, "b200_sxm"),
    "A100 80GB": Gpu(Board(limit_w=400, idle_w=62), 2.039e12, 312e12, "a100_sxm"),
    "RTX 6000 Ada": Gpu(Board(limit_w=300, idle_w=25, gddr=True), 0.96e12, 364e12),
    "RTX 3090": Gpu(Board(limit_w=350, idle_w=28, gddr=True), 0.936e12, 142e12),
    "RTX 5090": Gpu(Board(limit_w=600, idle_w=84, gddr=True), 1.792e12, 419e12),
    "RTX PRO 6000": Gpu(Board(limit_w=600, idle_w=84, gddr=True), 1.792e12, 504e12),
}


class Model(NamedTuple):
    """Bytes of what every step reads and of experts, their number and those of a token.

    `kv` are bytes of a token of context, `config` is its name in the prior's package.
    """

    dense: float
    active: float
    kv: float
    experts: float = 0.0
    count: int = 1
    used: int = 1
    peak: float = 1.0  # over bfloat16
    config: str | None = None


MODELS = {
    "Qwen3-14B": Model(27.9e9, 14e9, 163840),
    "Qwen3-8B": Model(15.2e9, 7.6e9, 147456, config="Qwen/Qwen3-8B"),
    "Llama-3.1-8B": Model(15e9, 7.5e9, 131072, config="meta-llama/Meta-Llama-3.1-8B"),
    "Llama-3.1-405B": Model(810e9, 405e9, 516096, config="meta-llama/Meta-Llama-3.1-405B"),
    "Gemma-3-12B": Model(23.6e9, 11.8e9, 131072),
    "Gemma-3-27B": Model(54e9, 27e9, 169301),
    "Qwen2.5-3B": Model(6.2e9, 3.1e9, 36864),
    "Qwen2.5-7B": Model(14.2e9, 7.1e9, 57344),
    "Llama-3-8B": Model(15e9, 7.5e9, 131072),
    "gpt-oss-20b": Model(2.5e9, 3.6e9, 24576, 11.3e9, 32, 4, config="openai/gpt-oss-20b"),
    "gpt-oss-120b": Model(3.5e9, 5.1e9, 36864, 60e9, 128, 4, config="openai/gpt-oss-120b"),
    "Qwen3-235B-FP8": Model(
        8e9, 22e9, 192512, 227e9, 128, 8, 2.0, config="Qwen/Qwen3-235B-A22B-FP8"
    ),
    "DeepSeek-V3.1": Model(17e9, 37e9, 70272, 650e9, 256, 8, 2.0, config="deepseek-ai/DeepSeek-V3"),
    "27B 4-bit": Model(17.3e9, 27e9, 0),
    "Qwen3-Coder-Next 4-bit": Model(1.9e9, 3e9, 0, 41e9, 512, 10),
}


class Series(NamedTuple):
    """Loads of one model on so many GPUs: (requests, tokens a second, watts of all boards)."""

    gpu: str
    model: str
    boards: int
    prompt: float
    output: float
    points: tuple[tuple[float, float, float], ...]
    source: str


PUBLISHED = (
    Series("H100", "Qwen3-14B", 1, 200, 617, (
        (7.99, 627.4, 443), (15.97, 1168.2, 465.3), (31.9, 2023.2, 493.9), (63.8, 3140.3, 525),
        (95.9, 3774.8, 541.8), (127.7, 4474.4, 572.1), (191.7, 5309, 612.8), (253.4, 5760, 644.7),
    ), ML_ENERGY),
    Series("H100", "Llama-3.1-8B", 1, 200, 400, (
        (15.95, 1953.6, 513.3), (31.9, 3391, 559.7), (127.6, 7036.5, 669.2), (191.7, 8223, 688.3),
        (255.2, 9009.6, 690.5), (383, 9248, 686.5),
    ), ML_ENERGY),
    Series("H100", "Qwen3-8B", 1, 200, 645, (
        (7.97, 961.7, 427), (63.9, 4314.7, 514.4), (95.8, 5254.7, 543.8),
    ), ML_ENERGY),
    Series("H100", "Gemma-3-12B", 1, 200, 722, (
        (7.98, 604.3, 424.2), (15.97, 1082.3, 452.3), (31.9, 1786.6, 483.8), (63.9, 2691.4, 540.5),
        (95.8, 3224.4, 575.5), (127.8, 3545.6, 589),
    ), ML_ENERGY),
    Series("H100", "Gemma-3-27B", 1, 200, 722, (
        (7.99, 337.8, 510.4), (15.97, 624.6, 539.2), (31.7, 1088.2, 571.4),
    ), ML_ENERGY),
    Series("H100", "Gemma-3-27B", 2, 200, 710, (
        (7.99, 525, 813), (15.98, 978.3, 871.8), (31.96, 1686.9, 935.2), (63.9, 2653.7, 1029.7),
        (127.8, 3714, 1137), (187, 4180.8, 1210.4),
    ), ML_ENERGY),
    Series("H100", "gpt-oss-120b", 1, 250, 1730, (
        (7.99, 803.9, 550), (16, 1191.4, 609.9), (32, 1744.9, 655.9), (64, 2571.9, 688.2),
    ), ML_ENERGY),
    Series("H100", "gpt-oss-120b", 2, 250, 1730, (
        (16, 1717, 992.4), (32, 2606.6, 1086.5), (63.9, 3906.2, 1164), (128, 5427.6, 1208.4),
        (191.9, 6450, 1264.5), (255.8, 8222.6, 1238), (383.9, 9292.4, 1258.9),
        (511.7, 10143, 1163.9), (1023.8, 11938.7, 1139),
    ), ML_ENERGY),
    Series("H100", "Qwen3-235B-FP8", 4, 200, 865, (
        (7.99, 223.8, 2120), (15.98, 420.7, 2209.8), (31.97, 731.6, 2201.6), (63.9, 1262.3, 2198),
        (95.9, 1752.5, 2222), (127.9, 2294.9, 2526), (191.75, 3015.6, 2533.8),
    ), ML_ENERGY),
    Series("H100", "Qwen3-235B-FP8", 8, 200, 875, (
        (15.98, 577.8, 3638), (127.8, 2840, 3874),
    ), ML_ENERGY),
    Series("B200", "Gemma-3-27B", 1, 200, 716, (
        (7.97, 594.2, 804.6), (63.9, 3062, 899.4), (127.8, 4438.8, 957.5), (247.3, 5510.4, 973.9),
    ), ML_ENERGY),
    Series("B200", "Llama-3.1-405B", 8, 200, 365, (
        (7.98, 268.84, 5878), (15.95, 522.96, 6077), (31.9, 1052.4, 6734.6), (63.8, 1800.4, 7349.6),
        (127.6, 2804.9, 7575), (255.1, 3587, 7642.9), (1021, 6461.4, 7710),
    ), ML_ENERGY),
    Series("B200", "DeepSeek-V3.1", 8, 200, 847, (
        (7.99, 449.9, 3853.8), (15.98, 728.9, 4421.7), (31.96, 1091.4, 4790.5),
        (63.9, 1776, 5185.7),
        (127.9, 2906.8, 5628.6), (255.7, 4534, 5935.5), (511.5, 5587.9, 5383.8),
        (2042, 9302, 5861.6),
    ), ML_ENERGY),
    # The watts of SHANG are means over 630 s of which the last 30 s are idle: that is taken out.
    Series("A100 80GB", "Qwen2.5-3B", 1, 280, 126.6, ((8, 872, 301),), SHANG),
    Series("A100 80GB", "Qwen2.5-7B", 1, 280, 101.4, ((8, 464, 351),), SHANG),
    Series("A100 80GB", "Llama-3-8B", 1, 280, 20.7, ((8, 269, 378),), SHANG),
    Series("A100 80GB", "gpt-oss-20b", 1, 280, 237, ((8, 850, 331),), SHANG),
    Series("RTX 6000 Ada", "Qwen2.5-3B", 1, 280, 126, ((8, 582, 272),), SHANG),
    Series("RTX 6000 Ada", "Qwen2.5-7B", 1, 280, 100.5, ((8, 253.7, 290),), SHANG),
    Series("RTX 6000 Ada", "Llama-3-8B", 1, 280, 20.8, ((8, 142.5, 294),), SHANG),
    Series("RTX 6000 Ada", "gpt-oss-20b", 1, 280, 237.5, ((8, 637.7, 292),), SHANG),
    Series("RTX 3090", "Qwen2.5-3B", 1, 280, 126, ((8, 423.5, 350),), SHANG),
    Series("RTX 3090", "Qwen2.5-7B", 1, 280, 100.6, ((8, 195.8, 350),), SHANG),
    Series("RTX 3090", "Llama-3-8B", 1, 280, 21, ((8, 97, 350),), SHANG),
    Series("RTX 5090", "27B 4-bit", 1, 100, 400, ((1, 74.8, 537),), MTP),
    Series("RTX PRO 6000", "27B 4-bit", 1, 100, 200, ((1, 72.1, 511), (32, 1351.5, 573)), MMBT),
    Series("RTX PRO 6000", "Qwen3-Coder-Next 4-bit", 1, 100, 200, (
        (1, 163.3, 482.8), (32, 2415.6, 549.1),
    ), MMBT),
)  # fmt: skip

# Tokens a second by cap, and the watts without one that binds: (name, watts, ((cap, tokens/s), ..))
CAPS = (
    ("27B, 1 request", 516, ((450, 72.0), (400, 71.3), (350, 68.6), (300, 62.6)), 72.1),
    ("27B, 32 requests", 573, ((450, 1382.1), (400, 1320.2), (350, 1201.5), (300, 1033.5)), 1358),
    ("Coder-Next, 1 request", 489, ((450, 163.1), (400, 161.8), (350, 159), (300, 148.4)), 163.3),
    ("Coder-Next, 32 requests", 548, ((450, 2430.8), (400, 2370.8), (350, 2227.9), (300, 2011.2)),
     2472.8),
)  # fmt: skip


def busy(series: Series) -> tuple[Floats, Floats, Floats]:
    """Return the shares of bandwidth and FLOP/s of points, and the watts of one board."""
    gpu, model = GPUS[series.gpu], MODELS[series.model]
    requests, tokens_per_s, watts = np.array(series.points).T
    touched = 1 - (1 - model.used / model.count) ** requests
    context = series.prompt + series.output / 2
    step_bytes = model.dense + model.experts * touched + requests * context * model.kv
    moved = tokens_per_s / requests * step_bytes / series.boards / gpu.bandwidth
    forwarded = tokens_per_s * (1 + series.prompt / series.output)
    computed = forwarded * 2 * model.active / series.boards / (gpu.flops * model.peak)
    return moved, computed, watts / series.boards


def watts_of(series: Series, shares: Shares) -> Floats:
    """Return the watts of one board by the law."""
    board = GPUS[series.gpu].board
    moved, computed, _ = busy(series)
    share = np.minimum(shares.of(moved, computed, board.gddr), 1.0)
    return board.idle_w + (board.limit_w - board.idle_w) * share


def fitted(left_out: str | None = None) -> Shares:
    """Return the constants from all GPUs but one, each GPU with the same weight."""
    taken = [each for each in PUBLISHED if each.gpu != left_out]
    counts = defaultdict[str, int](int)
    for each in taken:
        counts[each.gpu] += len(each.points)

    def errors(found: Floats) -> Floats:
        shares = SHARES._replace(moves=found[0], computes=found[1])
        return np.concatenate([
            np.log(watts_of(each, shares) / busy(each)[2]) / np.sqrt(counts[each.gpu])
            for each in taken
        ])  # fmt: skip

    found = least_squares(errors, [0.4, 0.9], bounds=([0, 0], [4, 6])).x
    return SHARES._replace(moves=float(found[0]), computes=float(found[1]))


def row(name: str, logs: Floats, spread: Floats | float) -> str:
    """Return a line of errors, and how many lie within the spread at 95 %."""
    off = np.abs(np.expm1(logs))
    held = int(np.sum(np.abs(logs) <= Z95 * spread))
    bias = 100 * np.expm1(logs.mean())
    return f"{name:24s} {100 * off.mean():5.1f} % {bias:+6.1f} %   {held} of {len(logs)}"


def left_out() -> None:
    """Print the errors of each GPU's watts by what the others teach."""
    print(f"constants of all: {fitted()}, in use {SHARES}")
    print(f"\nwatts, GPU left out      mean    bias   within {Z95 * SIGMA:.2f} of the log")
    every, again = [], []
    for gpu, (board, *_) in GPUS.items():
        shares, logs, scaled = fitted(gpu), [], []
        for each in (each for each in PUBLISHED if each.gpu == gpu):
            told, watts = watts_of(each, shares), busy(each)[2]
            logs.append(np.log(told / watts))
            if len(watts) > 1:
                at = int(np.argmin(np.abs(np.log(np.array(each.points)[:, 0] / 32))))
                factor = (watts[at] - board.idle_w) / (told[at] - board.idle_w)
                one = np.minimum(board.idle_w + factor * (told - board.idle_w), board.limit_w)
                scaled.append(np.delete(np.log(one / watts), at))
        every.append(np.concatenate(logs))
        again += scaled
        print(row(gpu, every[-1], SIGMA))
    print(row("all points", np.concatenate(every), SIGMA))
    means = [np.abs(np.expm1(logs)).mean() for logs in every]
    print(f"mean of the GPUs {100 * np.mean(means):.1f} %")
    print(row("\nothers, one measured", np.concatenate(again), SIGMA / 2))


def joules() -> None:
    """Print the errors of joules a token, with step times of the prior, GPU left out."""
    by_gpu = defaultdict[str, list[tuple[float, float, float]]](list)
    for each in PUBLISHED:
        system, config = GPUS[each.gpu].system, MODELS[each.model].config
        if system is None or config is None:
            continue
        try:
            tables, facts = read_gpu(system), given_facts(Path(config))
            engine = EngineConfig(
                model=config, dtype="bfloat16", gpu=tables.device, mode="server",
                tensor_parallel_size=each.boards, max_num_seqs=2048, max_num_batched_tokens=8192,
                vllm_version="0.11.1",
            )  # fmt: skip
            asked = PowerAsked(lengths=Lengths(each.prompt, each.output))
            times = PriorTimes(tables=tables, facts=facts, found=None, asked=asked)
            cost, on_board = times.cost(engine), times.busy(engine)
            assert on_board is not None
        except TtscopeError as error:
            print(f"{each.gpu} {each.model}: {error}")
            continue
        shares = fitted(each.gpu)
        for requests, tokens_per_s, watts in each.points:
            batch = np.array([requests])
            seconds = on_board.round_s(cost, batch)[0]
            moved, computed = on_board.busy(cost, batch)
            board = on_board.board
            share = min(shares.of(moved, computed, board.gddr)[0], 1.0)
            told_w = board.idle_w + (board.limit_w - board.idle_w) * share
            told = told_w * each.boards * seconds / requests
            known = watts / tokens_per_s
            own = np.log(told_w * each.boards / watts)
            spread = np.hypot(SIGMA, times.sigma(engine, HOST_SHARE))
            by_gpu[each.gpu].append((np.log(told / known), own, spread))
    print("\njoules a token, prior     mean    bias   | its watts")
    for gpu, errors in by_gpu.items():
        both, own, spread = np.array(errors).T
        print(f"{row(gpu, both, spread)} | {100 * np.abs(np.expm1(own)).mean():.1f} %")
    both, _, spread = np.array([error for errors in by_gpu.values() for error in errors]).T
    print(row("all points", both, spread))


def caps(data: Path) -> None:
    """Print what caps take of the speed, told and measured."""
    print("\ncaps of an RTX PRO 6000 (MMBT): loss of speed told, measured")
    off = []
    found = list(CAPS)
    table = data / "power/qwen38_mtp/rtx-5090.md"
    if table.exists():
        found.append(("RTX 5090, 27B, 1 request", 537, *_caps_5090(table.read_text())))
    else:
        print(f"skipped: no {table}")
    for name, watts, points, without in found:
        told = 1 / slowed(np.full(len(points), float(watts)), np.array([c for c, _ in points]))
        real = np.array([speed for _, speed in points]) / without
        off.append(told - real)
        listed = ", ".join(
            f"{cap} W {100 * (1 - t):.1f} {100 * (1 - r):.1f}"
            for (cap, _), t, r in zip(points, told.tolist(), real.tolist(), strict=True)
        )
        print(f"{name:26s} {listed}")
    print(f"mean off {100 * np.abs(np.concatenate(off)).mean():.1f} points of the speed")


def _caps_5090(text: str) -> tuple[tuple[tuple[int, float], ...], float]:
    """Return the speeds without drafts by cap, and that without one."""
    table = text[text.index("#### Throughput, mean tok/s") :]
    rows = re.findall(r"\| (\d+) W \| ([\d.]+) \|", table)[:5]
    speeds = {int(cap): float(speed) for cap, speed in rows}
    return tuple((cap, speeds[cap]) for cap in (500, 450, 400)), speeds[600]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    asked = parser.parse_args()
    left_out()
    joules()
    caps(asked.data)


if __name__ == "__main__":
    main()
