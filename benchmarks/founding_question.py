"""Is the compute-optimal configuration the system-optimal one? The numbers of its page in docs.

    python -m benchmarks.founding_question [--out docs] [--recordings FOLDER]

The bundled reasoners first, as recorded on a CPU: what was measured, and what advice says of it.
Then published outcomes with the prior: R1-Distill-Qwen of 1.5B, 7B and 32B on AIME24, of which
DeepSeek published one sample and the vote of 64 (README of DeepSeek-R1), imported as curves.
Lengths are those that OptScale measured of the 7B (9,948 tokens a sample), taken for all three.
Times are the prior's, of two GPUs and 1 to 8 of them. Prices are given below. Printed are tables in
markdown, and a picture goes into the folder `--out`. Needs ttscope[prior].
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from advisor.advice.advisor import Advisor
from advisor.step_time.cost import predicted_steps
from advisor.step_time.power.boards import limit_of
from benchmarks.dense_models import dense
from traces.foreign.evaluations.curve import import_curve
from traces.foreign.evaluations.reader import Given
from traces.recording.reader import Recording, find_recordings
from traces.recording.tables import COMPOSITION, TABLES
from traces.schema.advice import Budget
from traces.schema.engine import ModelFacts
from traces.summary.run import summarise

SHIPPED = Path(__file__).parent.parent / "profiler" / "demo" / "recordings"
AIME24 = {"1.5B": (0.289, 0.527), "7B": (0.555, 0.833), "32B": (0.726, 0.833)}  # n of 1 and of 64
TOKENS = 9948.0  # a sample
PROMPT, PROBLEMS = 150, 30
SHAPES = {  # layers, hidden, heads, KV heads, MLP, vocabulary
    "1.5B": (28, 1536, 12, 2, 8960, 151936),
    "7B": (28, 3584, 28, 4, 18944, 152064),
    "32B": (64, 5120, 40, 8, 27648, 152064),
}
USD_PER_HOUR = {"h100_sxm": 2.5, "a100_sxm": 1.5}  # assumed
TARGETS = (0.5, 0.7, 0.8)
DRAFTS = 3
COLOURS = {"1.5B": "#0a7d33", "7B": "#1f5fbf", "32B": "#b3261e"}


@dataclass(frozen=True, kw_only=True)
class Point:
    """One configuration: what a problem takes alone, and where problems never run out."""

    size: str
    gpu: str
    tensor_parallel: int
    n: int
    accuracy: float
    tokens: float
    flops: float
    latency_s: float
    alone_gpu_s: float
    shared_gpu_s: float
    watts: float | None  # that its boards may draw, of each GPU

    @property
    def usd(self) -> float:
        return self.shared_gpu_s * USD_PER_HOUR[self.gpu] / 3600

    @property
    def alone_usd(self) -> float:
        return self.alone_gpu_s * USD_PER_HOUR[self.gpu] / 3600

    @property
    def most_joules(self) -> float:
        return self.shared_gpu_s * (self.watts or np.nan)

    @property
    def name(self) -> str:
        gpu = self.gpu.partition("_")[0].upper()
        return f"{self.size} maj@{self.n}, {self.tensor_parallel} x {gpu}"


def facts_of(size: str) -> ModelFacts:
    return dense(f"R1-Distill-Qwen-{size}", "Qwen2ForCausalLM", SHAPES[size])


def curves(folder: Path) -> list[Recording]:
    found = []
    for size, shares in AIME24.items():
        path = folder / f"{size}.csv"
        rows = [f"{n},{share},{n * TOKENS}" for n, share in zip((1, 64), shares, strict=True)]
        path.write_text("\n".join(["n,accuracy,tokens", *rows]))
        facts = facts_of(size)
        import_curve(
            path,
            folder / size,
            given=Given(
                model=facts.name,
                facts=facts,
                temperature=0.6,
                max_tokens=32768,
                prompt_tokens=PROMPT,
            ),
            problems=PROBLEMS,
            spread=None,
            benchmark="AIME24",
            limit_bytes=1 << 20,
        )
        found.append(Recording.open(folder / size))
    return found


def points_of(advisor: Advisor) -> Iterator[Point]:
    """Replay each size, GPU and number of them with the limits of a server, one engine."""
    space = advisor.space
    for number, kind in enumerate(space.kinds):
        own = np.flatnonzero((space.kind == number) & (space.replicas == 1))
        limits = space.max_num_seqs[own] * 1_000_000 + space.max_num_batched_tokens[own]
        row = int(own[limits.argmax()])
        done = advisor.replays.of(row, concurrency=1, rate_per_s=None)
        engine = done.candidate.engine
        watts = limit_of(engine)
        yield Point(
            size=engine.model.rpartition("-")[2],
            gpu=str(kind.prior),
            tensor_parallel=engine.tensor_parallel_size,
            n=kind.policy.n,
            accuracy=float(done.accuracy.mean()),
            tokens=float(done.tokens.mean()),
            flops=float(done.flops.mean()),
            latency_s=float(done.latency_s.mean()),
            alone_gpu_s=float(done.device_s.mean()),
            shared_gpu_s=engine.num_devices / advisor.replays.capacity_per_s(row),
            watts=None if watts is None else watts / engine.one_replica().num_devices,
        )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print()
    print(f"| {' | '.join(head)} |")
    print("|---" * len(head) + "|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print(flush=True)


def recorded(folder: Path) -> None:
    """Print what the bundled reasoners measured, and where advice parts from counting FLOPs."""
    recordings = [Recording.open(path) for path in find_recordings(folder)]
    rows = []
    for run in sorted(
        (run for each in recordings for run in summarise(each)),
        key=lambda run: (run.engine.model, run.policy.label() if run.policy else ""),
    ):
        drafts = "" if run.engine.speculative is None else f", {run.engine.speculative.method}"
        times, tokens = run.latency_s["mean"], run.tokens_per_problem
        device, ratio = run.device_s_per_problem, run.cost_per_token_device_s
        if times is None or tokens is None or device is None or ratio is None:
            continue
        if run.policy is None or run.accuracy is None:
            continue
        effort = f", {run.policy.reasoning_effort}" if run.policy.reasoning_effort else ""
        rows.append([
            run.engine.model, f"{run.policy.label()}{effort}{drafts}",
            str(run.engine.max_num_seqs), f"{run.accuracy.value:.3f}", f"{tokens.value:.0f}",
            f"{1e3 * times.value:.0f}", f"{1e3 * device.value:.2f}",
            f"{1e6 * device.value / tokens.value:.1f}", f"{1e6 * ratio.value:.1f}",
        ])  # fmt: skip
    head = ["model", "policy", "seqs", "accuracy", "tokens", "latency ms", "device-ms",
            "device-us/token", "devices x latency / tokens, us"]  # fmt: skip
    table(head, rows)
    for run in (run for each in recordings for run in summarise(each)):
        if run.policy is not None and run.policy.method == "majority" and run.policy.n > 8:
            shares = {p.n: p.accuracy for p in run.policies if p.method == "majority"}
            told = ", ".join(f"{n}: {each.value:.3f}" for n, each in shares.items() if each)
            print(f"maj@k of {run.engine.model} at {run.engine.max_num_seqs} seqs: {told}")
    advisor = Advisor.fit(recordings)
    rows = []
    for least in (0.5, 0.65, 0.75):
        for goal in ("latency", "cost"):
            answer = advisor.recommend(Budget(min_accuracy=least, optimise=goal))
            ours, theirs = answer.system_optimal, answer.compute_optimal
            if ours is None or theirs is None:
                rows.append([f"{least}", goal, "nothing fits", "", "", ""])
                continue
            name = {"latency": "latency_s", "cost": "device_s"}[goal]
            one, two = ours.estimates[name], theirs.estimates[name]
            flops = [pick.estimates["flops"] for pick in (ours, theirs)]
            assert one is not None and two is not None
            known = [each.value for each in flops if each is not None]
            rows.append([
                f"{least}", goal, f"{ours.engine.model} {ours.policy.label()}",
                f"{theirs.engine.model} {theirs.policy.label()}",
                f"{two.value / one.value:.2f}", f"{known[0] / known[-1]:.2f}",
            ])  # fmt: skip
    table(
        ["accuracy at least", "goal", "system-optimal", "compute-optimal",
         "the latter takes, times", "FLOPs of the former, times"], rows)  # fmt: skip


def by_tensor_parallel(points: Sequence[Point]) -> None:
    """Print what 2 to 8 GPUs gain of latency, alone and with a vote, and what they take."""
    rows = []
    found = {(p.size, p.gpu, p.tensor_parallel, p.n): p for p in points}
    for size in AIME24:
        for gpu in USD_PER_HOUR:
            sizes = sorted({tp for s, g, tp, _ in found if (s, g) == (size, gpu)})
            for tp in sizes[1:]:
                cells = [size, gpu, f"{sizes[0]} -> {tp}"]
                for n in (1, 64):
                    one, many = found[size, gpu, sizes[0], n], found[size, gpu, tp, n]
                    cells += [
                        f"{one.latency_s / many.latency_s:.2f}",
                        f"{many.shared_gpu_s / one.shared_gpu_s:.2f}",
                    ]
                rows.append(cells)
    heads = ["model", "GPU", "GPUs"]
    for n in (1, 64):
        heads += [f"maj@{n}: faster", "GPU-s shared"]
    table(heads, rows)


def apart(points: Sequence[Point]) -> None:
    """Print for each accuracy what is best by each measure, and what that loses by the others.

    FLOPs and tokens choose model and votes alone. For them each measure has the engine best by it.
    """
    measures: dict[str, Callable[[Point], float]] = {
        "FLOPs": lambda p: p.flops, "tokens": lambda p: p.tokens, "seconds": lambda p: p.latency_s,
        "$ alone": lambda p: p.alone_usd, "$ shared": lambda p: p.usd,
        "J shared, at most": lambda p: p.most_joules,
    }  # fmt: skip
    rows = []
    for least in TARGETS:
        able = [p for p in points if p.accuracy >= least]
        for name, of in measures.items():
            best = min(able, key=lambda p: (float(f"{of(p):.6g}"), p.latency_s))
            whole = name not in ("FLOPs", "tokens")
            same = [best] if whole else [p for p in able if (p.size, p.n) == (best.size, best.n)]
            shown = best.name if whole else best.name.partition(",")[0]
            cells = [f"{least}", name, f"{shown} ({best.accuracy:.3f})"]
            cells += [f"{min(map(m, same)) / min(map(m, able)):.2f}" for m in measures.values()]
            rows.append(cells)
    table(["accuracy at least", "best by", "configuration", *(f"x {n}" for n in measures)], rows)


def per_token(points: Sequence[Point]) -> None:
    """Print the cost of a token alone and shared, and GPUs x latency / tokens."""
    rows = []
    for p in points:
        if p.gpu == "h100_sxm" and p.n in (1, 16, 64) and p.tensor_parallel in (1, 2):
            by_formula = p.tensor_parallel * p.latency_s / p.tokens
            rows.append([
                p.name, f"{1e6 * by_formula:,.0f}", f"{1e6 * p.alone_gpu_s / p.tokens:,.0f}",
                f"{1e6 * p.shared_gpu_s / p.tokens:,.0f}",
                f"{p.alone_gpu_s / p.shared_gpu_s:.1f}",
            ])  # fmt: skip
    table(["configuration", "GPUs x latency / tokens, us", "GPU-us/token alone",
           "GPU-us/token shared", "alone / shared"], rows)  # fmt: skip


def two_gpus(points: Sequence[Point]) -> None:
    """Print how many times as much the second GPU takes, each with the best number of them."""
    first, second = USD_PER_HOUR
    measures: list[Callable[[Point], float]] = [
        lambda p: p.latency_s, lambda p: p.shared_gpu_s, lambda p: p.most_joules,
    ]  # fmt: skip
    rows = []
    for size in AIME24:
        for n in (1, 16, 64):
            cells = [size, str(n)]
            for of in measures:
                one, two = (
                    min(of(p) for p in points if (p.size, p.n, p.gpu) == (size, n, gpu))
                    for gpu in (first, second)
                )
                cells.append(f"{two / one:.2f}")
            rows.append(cells)
    table(["model", "n", "seconds", "GPU-s shared", "J shared, at most"], rows)
    dearer = USD_PER_HOUR[first] / USD_PER_HOUR[second]
    print(f"{second} over {first}, whose GPU-hour costs {dearer:.2f} times as much")


def drafting(advisor: Advisor) -> None:
    """Print how many tokens a step must keep for three drafts to gain, by batch."""
    rows = []
    plain = {name: TABLES["steps"][name] for name in COMPOSITION}
    for size in AIME24:
        for gpu in USD_PER_HOUR:
            kinds = [
                kind for kind in advisor.space.kinds
                if kind.prior == gpu and kind.engine.model.endswith(f"-{size}")
            ]  # fmt: skip
            least = min(kind.engine.tensor_parallel_size for kind in kinds)
            engine = next(k.engine for k in kinds if k.engine.tensor_parallel_size == least)
            law = advisor.model.law(engine)
            assert law.prior is not None
            cost = law.prior.cost(replace(engine, max_num_seqs=1024, max_num_batched_tokens=8192))
            context = PROMPT + round(TOKENS / 2)
            cells = [size, gpu, str(least)]
            for batch in (1, 8, 64, 256):
                base = {"decode_requests": batch, "decode_kv_tokens": batch * context}
                steps = [base | {"decode_tokens": batch * each} for each in (1, DRAFTS + 1)]
                frame = pl.DataFrame([dict.fromkeys(plain, 0) | row for row in steps], schema=plain)
                one, more = predicted_steps(cost, frame)
                cells.append(f"{more / one:.2f}")
            rows.append(cells)
    heads = [f"batch {batch}" for batch in (1, 8, 64, 256)]
    table(["model", "GPU", "GPUs", *heads], rows)


# -- pictures --------------------------------------------------------------------------------------


LOWEST, HIGHEST = 0.25, 0.9  # accuracy


def _place(left: int, top: int, low: float, high: float, x: float, y: float) -> tuple[float, float]:
    across, up = (np.log10(x) - low) / (high - low), (y - LOWEST) / (HIGHEST - LOWEST)
    return left + 40 + 320 * across, top + 230 - 210 * up


def draw(points: Sequence[Point], path: Path) -> None:
    """Write accuracy against four measures: a line a size and GPU, the best number of GPUs."""
    panels: list[tuple[str, Callable[[Point], float]]] = [
        ("tokens of a problem", lambda p: p.tokens),
        ("seconds, one problem at a time", lambda p: p.latency_s),
        ("US cents, problems never run out", lambda p: 100 * p.usd),
        ("kJ at most, problems never run out", lambda p: p.most_joules / 1e3),
    ]
    parts = []
    for place, (label, of) in enumerate(panels):
        left, top = 20 + 400 * (place % 2), 20 + 290 * (place // 2)
        values = [of(p) for p in points]
        low, high = np.log10(min(values)) - 0.1, np.log10(max(values)) + 0.1
        at = partial(_place, left, top, low, high)
        parts.append(
            f'<rect x="{left + 40}" y="{top + 20}" width="320" height="210" fill="none" '
            'stroke="#888"/>'
            f'<text x="{left + 200}" y="{top + 262}" text-anchor="middle">{label}</text>'
        )
        for power in range(int(np.ceil(low)), int(np.floor(high)) + 1):
            x, _ = at(10.0**power, LOWEST)
            parts.append(
                f'<path d="M{x:.1f} {top + 20}v210" stroke="#ddd"/>'
                f'<text x="{x:.1f}" y="{top + 245}" text-anchor="middle">{10.0**power:g}</text>'
            )
        for share in (0.3, 0.5, 0.7, 0.9):
            _, y = at(10**low, share)
            parts.append(f'<text x="{left + 34}" y="{y + 4:.1f}" text-anchor="end">{share}</text>')
        for size in AIME24:
            for gpu in USD_PER_HOUR:
                mine = [p for p in points if (p.size, p.gpu) == (size, gpu)]
                best = [
                    min((p for p in mine if p.n == n), key=of) for n in sorted({p.n for p in mine})
                ]
                places = [at(of(p), p.accuracy) for p in best]
                way = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
                dash = "" if gpu == "h100_sxm" else ' stroke-dasharray="5 4"'
                tips = "".join(
                    f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{p.name}</title></circle>'
                    for p, (x, y) in zip(best, places, strict=True)
                )
                parts.append(
                    f'<g fill="{COLOURS[size]}"><polyline points="{way}" fill="none" '
                    f'stroke="{COLOURS[size]}" stroke-width="2"{dash}/>{tips}</g>'
                )
    for place, (size, colour) in enumerate(COLOURS.items()):
        parts.append(f'<text x="{60 + 70 * place}" y="618" fill="{colour}">{size}</text>')
    parts.append('<text x="290" y="618">solid H100 SXM, dashed A100 SXM, votes of 1 to 64</text>')
    path.write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 810 630" font-family="sans-serif" '
        'font-size="12" fill="#222"><rect width="810" height="630" fill="#fff"/>'
        + "".join(parts)
        + "</svg>\n"
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, default=Path("docs"))
    options.add_argument("--recordings", type=Path, default=SHIPPED)
    given = options.parse_args()
    print("## As recorded", flush=True)
    recorded(given.recordings)
    print("## Published outcomes, times of the prior", flush=True)
    with tempfile.TemporaryDirectory() as name:
        advisor = Advisor.fit(curves(Path(name)), gpus=list(USD_PER_HOUR))
        points = list(points_of(advisor))
        rows = []
        for size in AIME24:
            mine = {p.n: p for p in points if p.size == size}
            rows.append([size, *(f"{mine[n].accuracy:.3f}" for n in sorted(mine))])
        table(["model", *(f"maj@{n}" for n in sorted({p.n for p in points}))], rows)
        apart(points)
        by_tensor_parallel(points)
        per_token(points)
        two_gpus(points)
        drafting(advisor)
        draw(points, given.out / "founding-question.svg")


if __name__ == "__main__":
    main()
