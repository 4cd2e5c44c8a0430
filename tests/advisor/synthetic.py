"""Recordings of an engine whose step-time law and answers are known."""

import dataclasses
import zlib
from pathlib import Path

import numpy as np

from advisor.evidence.features import HOST_WORK, ZERO, Features, reads_of
from advisor.evidence.runs import RecordedProblem, Sample, verify_steps
from advisor.replay.limits import Limits
from benchmarks.twin.replay_twin import naive_replay
from traces.recording.manifest import ClockReading, Manifest, WorkloadFacts
from traces.recording.reader import Recording
from traces.recording.writer import RecordingWriter
from traces.schema.engine import EngineConfig, ModelFacts, Speculative
from traces.schema.layers import Attention, Experts, Layers, Matrix
from traces.schema.tts.policy import Policy
from traces.summary.speculation.ngram import PromptLookup, draft_counts

START = 1_700_000_000_000_000_000
FACTS = {
    name: ModelFacts(
        name=name, num_hidden_layers=layers, hidden_size=width, num_attention_heads=width // 64,
        num_key_value_heads=2, head_dim=64, intermediate_size=4 * width, vocab_size=1000,
        total_parameters=parameters, active_parameters=parameters, weight_bytes=2 * parameters,
        kv_bytes_per_token=2 * 2 * layers * 2 * 64,
    )
    for name, layers, width, parameters in (
        ("small", 4, 256, 4_000_000),
        ("large", 8, 512, 30_000_000),
    )
}  # fmt: skip
FACTS["mixed"] = dataclasses.replace(  # half of its layers with a window, experts in all
    FACTS["large"],
    name="mixed",
    num_experts=16,
    experts_per_token=2,
    active_parameters=9_000_000,
    attention=("full_attention", "sliding_attention"),
    kv_value_bytes=2.0,
    layers=tuple(
        Layers(
            places=tuple(range(first, 8, 2)),
            attention=Attention(
                kind=kind, heads=8, kv_heads=2, head_dim=64, v_head_dim=64, window=window
            ),
            experts=Experts(total=16, active=2, width=512),
            matrices=(
                Matrix(
                    name="experts", inputs=512, outputs=366, precision="bf16",
                    parameter_bytes=2.0, copies=16, used=2,
                ),
            ),
        )
        for first, kind, window in ((0, "full_attention", None), (1, "sliding_attention", 64))
    ),
)  # fmt: skip
SKILL = {"small": 0.45, "large": 0.75, "mixed": 0.6}  # chance that a sample is right, on average
GREEDY = Policy(method="greedy", max_tokens=200)
VOTE16 = Policy(method="majority", n=16, temperature=0.8, max_tokens=200)
BY_CLASS = {  # chance to be right and mean tokens of a sample, by class and reasoning effort
    ("easy", "low"): (0.92, 20),
    ("easy", "high"): (0.94, 90),
    ("hard", "low"): (0.30, 30),
    ("hard", "high"): (0.90, 120),
}
NGRAM = Speculative(method="ngram", num_speculative_tokens=3)


def engine_of(model: str = "small", **changes) -> EngineConfig:
    plain = EngineConfig(
        model=model, dtype="bfloat16", max_model_len=1024, max_num_seqs=32,
        max_num_batched_tokens=512, block_size=16, num_gpu_blocks=2000, enable_prefix_caching=True,
    )  # fmt: skip
    return dataclasses.replace(plain, **changes)


def law_of(engine: EngineConfig, host=None) -> np.ndarray:
    """Seconds per feature: 1 ms and the weights, 20 us a request, 2 TFLOP/s, 40 GB/s of KV."""
    facts, tp = FACTS[engine.model], engine.tensor_parallel_size
    routed, read = facts.routed_weight_bytes(), facts.reads_by_end()
    whole = (facts.kv_bytes_per_token, facts.attention_flops(1))
    kv_bytes, flops = read.get(None, whole)
    window_bytes, window_flops = read.get(64, (0.0, 0.0))
    law = ZERO._replace(
        step=1e-3 * tp**0.5 + (facts.weight_bytes - routed) / 40e9 / tp,
        experts=routed / 40e9 / tp,
        prefill_step=5e-4,
        requests=2e-5,
        tokens=1e-6 + facts.matmul_flops(1) / 2e12 / tp,
        kv_tokens=kv_bytes / 40e9 / tp,
        query_context=flops / 2e12 / tp,
        window_tokens=window_bytes / 40e9 / tp,
        window_context=window_flops / 2e12 / tp,
        **dict(zip(HOST_WORK, host or (), strict=False)),
    )
    if engine.speculative is not None:
        k = engine.speculative.num_speculative_tokens
        pace = k / 3 if engine.speculative.method == "draft_model" else 1.0
        law = law._replace(draft_step=4e-4 * pace, draft_requests=1e-5 * pace)
    return np.array(law)


def record(
    folder: Path,
    engine: EngineConfig,
    policy: Policy,
    *,
    problems: int = 40,
    concurrency: int = 4,
    noise: float = 0.02,
    drift: float = 0.0,
    seed: int = 0,
    workload: str = "sums",
    watts: float | None = None,
    power: tuple[str, str] = ("nvml", "watts"),  # kind, and the column that tells it
    host: tuple[float, float, float] | None = None,  # seconds of HOST_WORK, joined to samples
    lookups: bool = False,  # counts of n-gram lookup that was not run
    classes: bool = False,  # each second problem is hard, and answers are those of BY_CLASS
    **manifest,
) -> Recording:
    """Run the twin of the engine and write what a probe would have seen.

    `noise` is the spread of single steps, `drift` slows the whole run. With `host` a process of its
    own takes time between steps, and says in which step each sample began.
    """
    rng = np.random.default_rng([seed, zlib.crc32(folder.name.encode())])
    loads = _workload(rng, engine, policy, problems, classes=classes)
    limits = Limits(
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        block_size=engine.block_size,
        num_blocks=engine.num_gpu_blocks - 1,
        speculative=engine.speculative is not None,
    )
    log = {"steps": [], "cached": {}, "first": {}}
    ran = naive_replay(
        loads,
        law_of(engine, host) * np.exp(drift),
        limits,
        concurrency=concurrency,
        noise=lambda: float(np.exp(rng.normal(0, noise))) if noise else 1.0,
        log=log,
        reads=reads_of(FACTS[engine.model]),
    )
    document = Manifest(
        clock_start=ClockReading(monotonic_ns=0, unix_ns=START),
        engines={engine.key(): engine},
        policies={policy.key(): policy},
        models={engine.model: FACTS[engine.model]},
        workload=WorkloadFacts(name=workload, hash=workload, problems=problems, seed=0),
        **{"concurrency": concurrency} | manifest,
    )
    writer = RecordingWriter(folder, document, period_s=60)
    keys = {"engine": engine.key(), "policy": policy.key()}
    for number, step in enumerate(log["steps"]):
        nanoseconds = _ns(step["seconds"])
        composition = {k: v for k, v in step.items() if k not in ("seconds", "end", "idle")}
        writer.append(
            "steps",
            {
                "engine": keys["engine"],
                "step": number,
                "end": START + _ns(step["end"]),
                "interval_ns": None if step["idle"] else nanoseconds,
                "wall_ns": nanoseconds,
                "source": "measured",
                "draft_ns": _draft_ns(engine, composition["decode_requests"]),
                **composition,
            },
        )
    for time in np.linspace(0, ran["makespan"], 20) if watts is not None else ():
        for device in range(engine.num_devices):
            writer.append(
                "power",
                {
                    "host": "h",
                    "device": str(device),
                    "kind": power[0],
                    "time": START + _ns(float(time)),
                    power[1]: watts if power[1] == "watts" else watts * (100 + float(time)),
                },
            )
    number = 0
    for row, load in enumerate(loads):
        begun = START + _ns(ran["arrival"][row])
        ended = begun + _ns(ran["latency"][row])
        writer.append(
            "problems",
            keys
            | {
                "problem_id": f"p{row}", "group": class_of(row) if classes else None,
                "prompt_tokens": load.prompt_tokens, "arrival": begun, "start": begun,
                "end": ended, "decided_at": ended,
            },
        )  # fmt: skip
        for index, sample in enumerate(load.samples):
            writer.append(
                "samples",
                keys
                | {
                    "problem_id": f"p{row}",
                    "sample_index": index,
                    "role": "sample",
                    "prompt_tokens": load.prompt_tokens,
                    "cached_tokens": log["cached"][number],
                    "output_tokens": sample.output_tokens,
                    "arrival": begun,
                    "first_step": log["first"][number] if host is not None else None,
                    "end": START + _ns(ran["ends"][number]),
                    "answer": sample.answer,
                    "correct": sample.correct,
                    **_speculation(sample),
                },
            )
            if lookups:
                for counts in _counted(sample.output_tokens, index):
                    row_keys = {"problem_id": f"p{row}", "sample_index": index}
                    writer.append("drafts", keys | row_keys | counts)
            number += 1
    writer.close(complete=True)
    return Recording.open(folder)


def _counted(tokens: int, seed: int) -> list[dict]:
    """What lookup would have done for some text of a few letters."""
    text = np.random.default_rng([tokens, seed]).integers(0, 4, 20 + tokens)
    lookups = [
        PromptLookup(num_speculative_tokens=k, prompt_lookup_min=2, prompt_lookup_max=4)
        for k in (3, 5)
    ]
    return draft_counts(lookups, text[:20], text[20:])


def _draft_ns(engine: EngineConfig, decodes: int) -> int | None:
    if engine.speculative is None or not decodes:
        return None
    law = Features(*law_of(engine))
    return _ns(law.draft_step + decodes * law.draft_requests)


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def _speculation(sample) -> dict:
    if sample.advance is None:
        return {}
    return {
        "drafted_per_step": (sample.scheduled - 1).tolist(),
        "accepted_per_step": (sample.advance - 1).tolist(),
    }


def class_of(row: int) -> str:
    return ("easy", "hard")[row % 2]


def _workload(rng, engine, policy, problems, *, classes):
    """Return the same problems for every engine, with fresh samples."""
    fixed = np.random.default_rng(7)
    loads = []
    for row in range(problems):
        prompt, level = int(fixed.integers(20, 90)), float(fixed.uniform(-0.3, 0.25))
        length = float(fixed.uniform(20, 60))
        right = min(max(SKILL[engine.model] + level, 0.02), 0.98)
        if classes:
            right, length = BY_CLASS[class_of(row), policy.reasoning_effort]
        samples = []
        for _ in range(policy.n):
            tokens = max(int(rng.normal(length, 8)), 2)
            correct = bool(rng.random() < right)
            answer = "0" if correct else str(int(rng.integers(1, 6)))
            samples.append(_sample(rng, engine, tokens, answer, correct))
        loads.append(RecordedProblem(prompt_tokens=prompt, cached_tokens=0, samples=tuple(samples)))
    return loads


def _sample(rng, engine, tokens, answer, correct):
    if engine.speculative is None:
        return Sample(output_tokens=tokens, answer=answer, correct=correct)
    k, accepted = engine.speculative.num_speculative_tokens, []
    while sum(accepted) + len(accepted) < tokens - 1:
        accepted.append(int(rng.binomial(k, 0.6)))
    scheduled, advance = verify_steps(tokens, [k] * len(accepted), accepted)
    return Sample(
        output_tokens=tokens, answer=answer, correct=correct, scheduled=scheduled, advance=advance
    )
