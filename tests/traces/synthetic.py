"""Recordings made up by a small simulation of continuous batching, written with the writer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from traces.recording.manifest import Manifest, WorkloadFacts
from traces.recording.reader import Recording
from traces.recording.writer import RecordingWriter, read_clocks
from traces.schema.engine import EngineConfig, ModelFacts, Speculative
from traces.schema.tts.policy import Policy

START = 1_700_000_000_000_000_000
MODEL = ModelFacts(
    name="toy", num_hidden_layers=2, hidden_size=64, num_attention_heads=4, num_key_value_heads=2,
    head_dim=16, intermediate_size=128, vocab_size=100, total_parameters=100_000,
    active_parameters=100_000, weight_bytes=200_000, kv_bytes_per_token=256,
)  # fmt: skip


def engine_config(**changes: Any) -> EngineConfig:
    fields = {"model": "toy", "max_num_seqs": 8, "num_gpu_blocks": 101, "block_size": 16}
    return EngineConfig(**(fields | {"enable_prefix_caching": False} | changes))


def simulate(
    *, problems: int, n: int, seqs: int = 8, concurrency: int = 2, seed: int = 0, skill: float = 0.6
) -> dict[str, list[dict[str, Any]]]:
    """Return rows of problems, samples and steps; every time and token fits the others."""
    rng = np.random.default_rng(seed)
    levels = rng.uniform(skill - 0.3, skill + 0.3, problems)
    waiting: list[dict[str, Any]] = []
    running: list[dict[str, Any]] = []
    rows: dict[str, list[dict[str, Any]]] = {"problems": [], "samples": [], "steps": []}
    open_problems: dict[int, int] = {}
    posed, now, step, last_end = 0, START, 0, None
    while posed < problems or open_problems:
        while posed < problems and len(open_problems) < concurrency:
            lengths = rng.integers(3, 30, n)
            right = rng.random(n) < levels[posed]
            wrong = rng.integers(1, 4, n)
            open_problems[posed] = n
            rows["problems"].append(
                {"problem_id": f"p{posed}", "prompt_tokens": 10, "arrival": now, "start": now}
            )
            for index in range(n):
                waiting.append(
                    {
                        "problem": posed,
                        "left": int(lengths[index]),
                        "row": {
                            "problem_id": f"p{posed}",
                            "sample_index": index,
                            "role": "sample",
                            "prompt_tokens": 10,
                            "cached_tokens": 0,
                            "output_tokens": int(lengths[index]),
                            "arrival": now,
                            "queued": now,
                            "answer": "0" if right[index] else str(wrong[index]),
                            "correct": bool(right[index]),
                        },
                    }
                )
            posed += 1
        fresh = []
        while waiting and len(running) + len(fresh) < seqs:
            fresh.append(waiting.pop(0))
        decoding = list(running)
        running += fresh
        tokens = 10 * len(fresh) + len(decoding)
        wall = 1_000_000 + 20_000 * tokens
        begin, now = now, now + wall + 50_000
        for sample in fresh:
            sample["row"] |= {"first_step": step, "scheduled": begin, "first_token": now}
        for sample in running:
            sample["left"] -= 1
        done = [sample for sample in running if sample["left"] == 0]
        running = [sample for sample in running if sample["left"] > 0]
        rows["steps"].append(
            {
                "step": step,
                "end": now,
                "interval_ns": None if last_end is None else now - last_end,
                "wall_ns": wall,
                "gap_ns": None if last_end is None else 50_000,
                "prefill_requests": len(fresh),
                "prefill_tokens": 10 * len(fresh),
                "decode_requests": len(decoding),
                "decode_tokens": len(decoding),
                "prefill_kv_tokens": 10 * len(fresh),
                "decode_kv_tokens": 15 * len(decoding),
                "running": len(decoding) + len(fresh),
                "waiting": len(waiting),
                "kv_blocks": 2 * (len(decoding) + len(fresh)),
                "source": "measured",
            }
        )
        last_end = now
        for sample in done:
            think = sample["row"]["first_token"]
            sample["row"] |= {"last_step": step, "end": now, "think_end": (think + now) // 2}
            rows["samples"].append(sample["row"])
            open_problems[sample["problem"]] -= 1
        for number in [number for number, left in open_problems.items() if not left]:
            del open_problems[number]
            own = [row for row in rows["samples"] if row["problem_id"] == f"p{number}"]
            votes = [row["answer"] for row in sorted(own, key=lambda row: row["sample_index"])]
            answer = max(votes, key=votes.count)
            rows["problems"][number] |= {
                "end": now, "decided_at": now, "answer": answer, "correct": answer == "0",
            }  # fmt: skip
        step += 1
    return rows


def write_recording(
    folder: Path,
    rows: dict[str, list[dict[str, Any]]],
    *,
    engine: EngineConfig | None = None,
    policy: Policy | None = None,
    complete: bool = True,
    workload: str = "w",
    **manifest: Any,
) -> Recording:
    engine = engine or engine_config()
    n = 1 + max((row["sample_index"] for row in rows.get("samples", [])), default=0)
    policy = policy or Policy(
        method="greedy" if n == 1 else "majority", n=n, temperature=0.0 if n == 1 else 0.8
    )
    at, names = {"engine": engine.key()}, {"engine": engine.key(), "policy": policy.key()}
    facts = Manifest(
        clock_start=read_clocks(),
        engines={engine.key(): engine},
        policies={policy.key(): policy},
        models={"toy": MODEL},
        workload=WorkloadFacts(
            name="sums", hash=workload, problems=len(rows.get("problems", [])), seed=0
        ),
        **manifest,
    )
    writer = RecordingWriter(folder, facts, period_s=60)
    for table, table_rows in rows.items():
        for index, row in enumerate(table_rows):
            extra = names if table in ("problems", "samples", "drafts") else at
            if table in ("power", "events"):
                extra = {}
            if table == "problems":
                extra = extra | {"span_id": f"s{index}"}
            writer.append(table, {**extra, **row})
    writer.close(complete=complete)
    return Recording.open(folder)


def speculative_engine() -> EngineConfig:
    return engine_config(speculative=Speculative(method="ngram", num_speculative_tokens=3))
