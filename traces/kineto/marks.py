"""The marks that say where an engine step begins and ends in a profiler trace.

Three forms: PyTorch's `ProfilerStep#12`, vLLM's `execute_context_1(128)_generation_8(8)` and its
detailed `execute_136_context_1(sq128sk128sqsq16384sqsk16384)_generation_8(sq8sk900sqsq8sqsk900)`,
where sq is the tokens scheduled, sk the lengths of the sequences, and sqsq and sqsk the sums over
requests of the products (vLLM, v1/worker/gpu_worker.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

_PROFILER = re.compile(r"ProfilerStep\s*#\s*(\d{1,15})")
_SIMPLE = re.compile(r"execute_context_(\d{1,9})\((\d{1,12})\)_generation_(\d{1,9})\((\d{1,12})\)")
_SUMS = r"(\d{1,9})\(sq(\d{1,12})sk(\d{1,15})sqsq(\d{1,17})sqsk(\d{1,17})\)"
_DETAILED = re.compile(rf"execute_\d+_context_{_SUMS}_generation_{_SUMS}")


@dataclass(frozen=True, kw_only=True)
class StepMark:
    """What an annotation's name says; None is what it does not say.

    `number` is PyTorch's own. Of the sums, `prefill_kv_tokens` and `decode_kv_tokens` are the
    context lengths, and `prefill_query_context` the context that each prefill token attends to:
    a request that adds q tokens to reach a length k counts q k - q (q - 1) / 2.
    """

    number: int | None = None
    prefill_requests: int | None = None
    prefill_tokens: int | None = None
    decode_requests: int | None = None
    decode_tokens: int | None = None
    prefill_kv_tokens: int | None = None
    decode_kv_tokens: int | None = None
    prefill_query_context: int | None = None


@lru_cache(maxsize=16_384)
def read_mark(name: str) -> StepMark | None:
    """Return what an annotation says about a step, None when it marks none."""
    if match := _PROFILER.match(name):
        return StepMark(number=int(match[1]))
    if match := _SIMPLE.match(name):
        counts = [int(text) for text in match.groups()]
        return StepMark(
            prefill_requests=counts[0],
            prefill_tokens=counts[1],
            decode_requests=counts[2],
            decode_tokens=counts[3],
        )
    if match := _DETAILED.match(name):
        requests, sq, sk, sqsq, sqsk, decodes, decode_sq, decode_sk, *_ = map(int, match.groups())
        return StepMark(
            prefill_requests=requests,
            prefill_tokens=sq,
            decode_requests=decodes,
            decode_tokens=decode_sq,
            prefill_kv_tokens=sk,
            decode_kv_tokens=decode_sk,
            prefill_query_context=max(sqsk - (sqsq - sq) // 2, 0),
        )
    return None
