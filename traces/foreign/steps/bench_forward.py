"""From the results of `vllm bench forward` to a recording of what the model's forward takes.

vLLM 0.33 writes them with `--output-json` (vllm/benchmarks/forward): a list of cases, each with its
requests and the median time on the GPUs of the forward alone, in a CUDA graph, without logits,
sampling and the host. They name neither model nor GPU nor size. The file of shapes that ttscope
writes for a run (`advise --plan`) does, beside the cases that vLLM reads.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import polars as pl
from msgspec import Meta, Struct

from traces.errors import OutcomesError, UsageError
from traces.foreign.source import decode, whole_text
from traces.foreign.values import LIMIT_BYTES, UNKNOWN_MODEL
from traces.foreign.written import Imported, written_into
from traces.recording.tables import FORWARD, TABLES
from traces.schema.engine import EXPERTS, EngineConfig, ModelFacts
from traces.schema.formats import counted

FORMAT = "vllm bench forward"
MOST_CASES = 10_000
SHAPES_KEY = "ttscope"  # of a file of shapes: what the cases are to run on; vLLM reads "cases"
BALANCED = "balanced"  # a routing of experts that no prompt has
SPREAD = 0.5  # percent between samples, above which vLLM itself calls a time unstable
_MARKS = (b'"median_us"', b'"requests"', b'"query_len"')

T = TypeVar("T")
_Name = Annotated[str, Meta(min_length=1, max_length=256)]
_MOST_TOKENS = 1 << 24
_Tokens = Annotated[int, Meta(ge=1, le=_MOST_TOKENS)]


class _Request(Struct):
    query_len: _Tokens
    kv_len: _Tokens
    num_draft_tokens: Annotated[int, Meta(ge=0, le=1 << 12)] = 0

    @property
    def decodes(self) -> bool:
        """As vLLM tells it: a prefix, and one token beside its drafts."""
        return self.kv_len > self.query_len == 1 + self.num_draft_tokens


class _Latency(Struct):
    sample_spread_pct: float | None = None
    timer: str = ""


class _Rank(Struct):
    routing: str | None = None
    timing_scope: str | None = None
    latency_us: _Latency = msgspec.field(default_factory=_Latency)


class _Case(Struct):
    case: _Name
    requests: Annotated[list[_Request], Meta(min_length=1, max_length=1 << 16)]
    median_us: Annotated[float, Meta(ge=0.001, le=1e9)]  # a time is kept in nanoseconds
    ranks: Annotated[list[_Rank], Meta(min_length=1, max_length=4096)]


class _Planned(Struct):
    """What a file of shapes of ttscope says of the run."""

    model: _Name
    gpu: _Name | None = None
    tensor_parallel_size: Annotated[int, Meta(ge=1, le=1024)] = 1
    quantization: _Name | None = None
    kv_cache_dtype: _Name | None = None
    enable_expert_parallel: bool = False


class _Named(Struct):
    name: _Name


class _Shapes(Struct):
    cases: list[_Named]
    ttscope: _Planned | None = None


def recognises(head: bytes) -> bool:
    """Whether a file's first bytes are of such results."""
    return head.lstrip()[:1] == b"[" and b'"case"' in head and any(m in head for m in _MARKS)


def import_forwards(
    path: Path,
    folder: Path,
    *,
    shapes: Path | None = None,
    model: str | None = None,
    facts: ModelFacts | None = None,
    limit_bytes: int = LIMIT_BYTES,
) -> Imported:
    """Read a file of results into the recording `folder`; return what was taken.

    `shapes` is the file that ttscope wrote for the run, `model` the name of what ran, without both
    that of `facts`, which say what it is made of. Raises OutcomesError where it cannot be read,
    UsageError where shapes are not of these cases or the folder holds a recording, RecordingError
    where it cannot be written.
    """
    kept, left_out = _sound(path, _read(path, list[_Case], limit_bytes, "results"))
    engine = _engine(path, kept, shapes, model, limit_bytes)
    if engine.model == UNKNOWN_MODEL and facts is not None:
        engine = replace(engine, model=facts.name)
    notes = _notes(path, kept, left_out, planned=shapes is not None)
    with written_into(folder) as tables:
        rows = [_row(case, at) | {"engine": engine.key()} for at, case in enumerate(kept)]
        tables.add("steps", pl.DataFrame(rows, schema=TABLES["steps"]))
        imported = {"format": FORMAT, "files": [{"name": path.name}]}
        tables.finish_one(imported, notes, engine, model=facts)
    cases, ranks = len(kept), len(kept[0].ranks)
    return Imported(
        head=f"{FORMAT}: {counted(cases, 'case')} on {counted(ranks, 'GPU')}",
        facts={"format": FORMAT, "file": path.name, "cases": cases, "ranks": ranks},
        notes=notes,
    )


def _read(path: Path, kind: type[T], limit_bytes: int, what: str) -> T:
    """Return a whole file of JSON. Raises OutcomesError where it is none of this kind."""
    try:
        return decode(whole_text(path, limit_bytes, what), kind)
    except ValueError as error:
        raise OutcomesError(f"{path}: no {what} of {FORMAT} ({error})") from None


def _sound(path: Path, cases: list[_Case]) -> tuple[list[_Case], Counter[str]]:
    """Return the usable cases, and why others are not, counted. Raises OutcomesError for none."""
    kept, left_out = list[_Case](), Counter[str]()
    for case in cases:
        first = case.ranks[0]
        if any(r.kv_len < r.query_len for r in case.requests):
            left_out["with contexts shorter than their new tokens"] += 1
        elif sum(r.query_len for r in case.requests) > _MOST_TOKENS:
            left_out[f"of more than {_MOST_TOKENS:,} new tokens"] += 1
        elif first.timing_scope == "target_and_drafter":
            left_out["with the drafter in their time (run with --exclude-drafter)"] += 1
        elif first.latency_us.timer.startswith("pipeline"):
            left_out["of a pipeline"] += 1
        elif any(rank.routing == BALANCED for rank in case.ranks):
            left_out[
                f"whose experts were visited evenly (--routing {BALANCED}). Real prompts visit "
                "them unevenly"
            ] += 1
        elif len(kept) == MOST_CASES:
            left_out[f"beyond the first {MOST_CASES:,}"] += 1
        else:
            kept.append(case)
    if not kept:
        why = ", ".join(_left_out(left_out)) or "it has none"
        raise OutcomesError(f"{path}: no case of {FORMAT} can be used ({why})")
    if len({len(case.ranks) for case in kept}) > 1:
        raise OutcomesError(f"{path}: cases of different numbers of GPUs. Import each by itself")
    return kept, left_out


def _left_out(reasons: Counter[str]) -> list[str]:
    return [f"{counted(count, 'case')} {why}" for why, count in reasons.items()]


def _engine(
    path: Path, cases: list[_Case], shapes: Path | None, name: str | None, limit_bytes: int
) -> EngineConfig:
    """Return what the cases ran on, as the file of shapes says. Raises UsageError."""
    ranks = len(cases[0].ranks)
    planned: _Planned | None = None
    if shapes is not None:
        read = _read(shapes, _Shapes, limit_bytes, "shapes")
        planned, names = read.ttscope, {case.name for case in read.cases}
        other = next((case.case for case in cases if case.case not in names), None)
        if other is not None:
            raise UsageError(f"--shapes {shapes}: has no case {other}, which {path} has")
        if planned is None:
            raise UsageError(
                f"--shapes {shapes}: does not say what it is for. Give the file that "
                "ttscope advise --plan wrote, or leave it out"
            )
        if planned.tensor_parallel_size != ranks:
            raise UsageError(
                f"--shapes {shapes}: is for {planned.tensor_parallel_size} GPUs, and {path} ran on "
                f"{ranks}"
            )
        if name is not None and name != planned.model:
            raise UsageError(f"--model {name}: {shapes} is for {planned.model}")
    if planned is None:
        return EngineConfig(model=name or UNKNOWN_MODEL, tensor_parallel_size=ranks, mode="server")
    return EngineConfig(
        model=planned.model,
        tensor_parallel_size=ranks,
        gpu=planned.gpu,
        quantization=planned.quantization,
        kv_cache_dtype=planned.kv_cache_dtype,
        other=((EXPERTS, "true"),) if planned.enable_expert_parallel else (),
        mode="server",
    )


def _row(case: _Case, at: int) -> dict[str, Any]:
    """Return a case as a row of `steps`: the sums of its requests, and its median time."""
    decoding = [each for each in case.requests if each.decodes]
    prompts = [each for each in case.requests if not each.decodes]
    return {
        "step": at,
        "wall_ns": round(case.median_us * 1e3),
        "prefill_requests": len(prompts),
        "prefill_tokens": sum(each.query_len for each in prompts),
        "decode_requests": len(decoding),
        "decode_tokens": sum(each.query_len for each in decoding),
        "prefill_kv_tokens": sum(each.kv_len for each in prompts),
        "decode_kv_tokens": sum(each.kv_len for each in decoding),
        "prefill_query_context": sum(
            each.query_len * (each.kv_len - each.query_len)
            + each.query_len * (each.query_len + 1) // 2
            for each in prompts
        ),
        "max_context_tokens": max(each.kv_len for each in case.requests),
        "source": FORWARD,
    }


def _notes(
    path: Path, cases: list[_Case], left_out: Counter[str], *, planned: bool
) -> tuple[str, ...]:
    """Return what to say of an import, the first line naming the file."""
    notes = [
        f"imported from {FORMAT}: {path.name}. A case's time is that of the model's forward alone "
        "on the GPUs, without logits, sampling, the engine's graphs and the host"
    ]
    if not planned and len(cases[0].ranks) > 1:
        notes.append(
            f"{len(cases[0].ranks)} GPUs are taken for those of tensor parallelism, as the file "
            "does not say"
        )
    spreads = [case.ranks[0].latency_us.sample_spread_pct for case in cases]
    unsteady = sum(each is not None and each > SPREAD for each in spreads)
    if unsteady:
        count = counted(unsteady, "case")
        notes.append(f"{count} varied by more than {SPREAD} % between samples")
    notes += [f"left out: {each}" for each in _left_out(left_out)]
    return tuple(notes)
