"""Shapes of steps for `vllm bench forward`, of an engine on a GPU that nobody measured.

vLLM 0.33 times the forward of exact batches with dummy weights, so that neither weights nor prompts
are needed there. The batches are those of the recorded steps that the engine's limits allow, or
else those that it will meet. Each file says too what its cases run on (`ttscope import --shapes`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import polars as pl

from advisor.evidence.gather import Evidence
from advisor.step_time.prior.offers import steps_to_come
from traces.foreign.steps.bench_forward import SHAPES_KEY
from traces.plain_text import flag_word, name_word, quoted
from traces.recording.reader import Recording
from traces.recording.tables import COMPOSITION, FORWARD, TABLES
from traces.schema.engine import EngineConfig, model_words

MOST_CASES: Final = 24  # a few seconds each


@dataclass(frozen=True, kw_only=True)
class Forwards:
    """Files of shapes, and the commands that measure them and read the results."""

    files: tuple[Path, ...] = ()
    commands: tuple[str, ...] = ()


def write_forwards(
    plan: Path,
    engines: Sequence[EngineConfig],
    evidence: Evidence,
    recordings: Sequence[Recording],
) -> Forwards:
    """Write shapes beside a plan, a file for each that differs in its kernels. Raises OSError."""
    files, lines = [], []
    for path, engine in shapes_paths(plan, engines).items():
        document = forward_shapes(engine, evidence, recordings)
        if not document["cases"]:
            lines.append(
                f"# no step within the limits of {engine.model} {engine.label()}: no shapes"
            )
            continue
        path.write_text(json.dumps(document, indent=1) + "\n")
        files.append(path)
        lines += commands(engine, path)
    return Forwards(files=tuple(files), commands=tuple(lines))


def shapes_paths(plan: Path, engines: Sequence[EngineConfig]) -> dict[Path, EngineConfig]:
    """Return the files of shapes beside a plan, each with the first engine of its kernels.

    A name has the model's last part, the size, and how weights and cache are quantised. Where that
    is not enough, it has the model's whole name and the GPU.
    """
    first: dict[tuple[Any, ...], EngineConfig] = {}
    for engine in engines:
        first.setdefault(tuple(_runs_on(engine).values()), engine)
    short = [
        _name(engine, model_words(engine.model).rpartition("/")[2]) for engine in first.values()
    ]
    by_path: dict[Path, EngineConfig] = {}
    for name, engine in zip(short, first.values(), strict=True):
        full_name = _name(engine, engine.model, engine.gpu or "")
        chosen = name if short.count(name) == 1 else full_name
        path, number = plan.with_name(f"{plan.stem}-{chosen}.forward.json"), 2
        while path in by_path:  # names that differ in odd characters alone
            path = plan.with_name(f"{plan.stem}-{chosen}-{number}.forward.json")
            number += 1
        by_path[path] = engine
    return by_path


def _name(engine: EngineConfig, *start: str) -> str:
    settings = _runs_on(engine)
    words = [
        *start,
        f"tp{engine.tensor_parallel_size}",
        settings["quantization"] or "",
        f"kv {settings['kv_cache_dtype']}" if settings["kv_cache_dtype"] else "",
        "ep" if settings["enable_expert_parallel"] else "",
    ]
    plain = (re.sub(r"[^a-z0-9._]+", "-", word.lower()).strip("-.") for word in words)
    return "-".join(word for word in plain if word)


def _runs_on(engine: EngineConfig) -> dict[str, Any]:
    """Return what the times of an engine's kernels depend on, as its file of shapes says it."""
    cache = (engine.kv_cache_dtype or "").removeprefix("torch.")
    return {
        "model": engine.model,
        "gpu": engine.gpu,
        "tensor_parallel_size": engine.tensor_parallel_size,
        "quantization": engine.quantization,
        "kv_cache_dtype": cache if cache.startswith("fp8") else None,
        "enable_expert_parallel": engine.expert_parallel,
    }


def forward_shapes(
    engine: EngineConfig, evidence: Evidence, recordings: Sequence[Recording]
) -> dict[str, Any]:
    """Return the document of an engine's shapes."""
    plain = pl.DataFrame(schema={name: TABLES["steps"][name] for name in COMPOSITION})
    steps = pl.concat([plain, *(_recorded(each, engine) for each in recordings)])
    chosen = _chosen(steps, engine)
    if chosen.is_empty():  # none ran, or none without drafts and within the limits
        chosen = _chosen(steps_to_come(replace(engine, speculative=None), evidence), engine)
    return {
        SHAPES_KEY: {name: value for name, value in _runs_on(engine).items() if value},
        "cases": [_case(row) for row in chosen.iter_rows(named=True)],
    }


def commands(engine: EngineConfig, shapes: Path) -> list[str]:
    """Return how to measure an engine's shapes, and how to read the result."""
    size, result = engine.tensor_parallel_size, _beside(shapes, ".result.json")
    settings = _runs_on(engine)
    start = "vllm"
    if size > 1:
        start = f"torchrun --nproc-per-node={size} -m vllm.entrypoints.cli.main"
    options: dict[str, Any] = {
        "model": engine.model,
        "tensor-parallel-size": size if size > 1 else None,
        "quantization": settings["quantization"],
        "kv-cache-dtype": settings["kv_cache_dtype"],
        "max-model-len": engine.max_model_len,
        "shapes": shapes,
        "kv-len-jitter": 0,
        "output-json": result,
    }
    given = [flag_word(name, value) for name, value in options.items() if value is not None]
    given += ["--enable-expert-parallel"] if engine.expert_parallel else []
    files = f"{name_word(result)} {flag_word('shapes', shapes)}"
    return [
        f"{start} bench forward {' '.join(given)}",
        f"ttscope import {files} -o {quoted('runs/' + _beside(shapes, '').name)}",
    ]


def _beside(shapes: Path, ending: str) -> Path:
    return shapes.with_name(shapes.name.removesuffix(".forward.json") + ending)


def _recorded(recording: Recording, engine: EngineConfig) -> pl.DataFrame:
    """Return the composition of a recording's steps of the engine's model, drafts left out."""
    keys = [k for k, e in recording.manifest.engines.items() if e.model == engine.model]
    columns = ("engine", "profiled", "source", *COMPOSITION)
    measured = ~pl.col("source").fill_null("measured").is_in(["replayed", FORWARD])
    return (
        recording.frame("steps", columns)
        .filter(pl.col("engine").is_in(keys), measured, ~pl.col("profiled").fill_null(False))
        .select(COMPOSITION)
        .drop_nulls()
    )


def _chosen(steps: pl.DataFrame, engine: EngineConfig) -> pl.DataFrame:
    """Return steps that stand for all: the middle one of each of the most frequent kinds.

    Of a kind are those with about as many requests that decode, contexts and new tokens (powers of
    two).
    """
    decodes, new = pl.col("decode_requests"), pl.col("prefill_tokens")
    size = decodes + new
    fits = pl.lit(True)
    if engine.max_num_seqs is not None:
        fits = fits & (decodes + pl.col("prefill_requests") <= engine.max_num_seqs)
    if engine.max_num_batched_tokens is not None:
        fits = fits & (size <= engine.max_num_batched_tokens)
    plain = pl.col("decode_tokens") == decodes

    def power(count: pl.Expr) -> pl.Expr:
        return pl.when(count > 0).then(count.cast(pl.Float64).log(2).round()).otherwise(-1)

    read = pl.col("decode_kv_tokens") + pl.col("prefill_kv_tokens")
    kinds = (
        steps.filter(fits, plain, size > 0)
        .with_columns(read=read)
        .sort("read", maintain_order=True)
        .group_by(
            power(decodes).alias("requests"),
            power(new).alias("new"),
            power(pl.col("decode_kv_tokens") // pl.max_horizontal(decodes, 1)).alias("context"),
            maintain_order=True,
        )
        .agg(pl.len().alias("steps"), *(pl.col(c).get(pl.len() // 2) for c in COMPOSITION))
    )
    often = kinds.sort("steps", descending=True, maintain_order=True).head(MOST_CASES)
    return often.sort("decode_requests", "prefill_tokens", "decode_kv_tokens").select(COMPOSITION)


def _case(row: dict[str, int]) -> dict[str, Any]:
    """Return a step as a case: its sums shared equally among its requests."""
    prompts, decodes = row["prefill_requests"], row["decode_requests"]
    requests, parts = [], []
    if prompts:
        read, new = row["prefill_kv_tokens"] // prompts, row["prefill_tokens"]
        requests += [
            {"query_len": query, "kv_len": max(read, query), "count": count}
            for query, count in _shared(new, prompts)
        ]
        parts.append(f"prefill{prompts}x{new // prompts}of{read}")
    if decodes:
        requests += [
            {"query_len": 1, "kv_len": max(context, 2), "count": count}
            for context, count in _shared(row["decode_kv_tokens"], decodes)
        ]
        parts.append(f"decode{decodes}at{row['decode_kv_tokens'] // decodes}")
    return {"name": "-".join(parts), "requests": requests}


def _shared(total: int, among: int) -> list[tuple[int, int]]:
    """Return whole shares of a total that differ by one at most, each with how many have it."""
    share, more = divmod(total, among)
    return [(each, n) for each, n in ((share, among - more), (share + 1, more)) if n]
