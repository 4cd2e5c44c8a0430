"""The marks that say where an engine step begins and ends in a profiler trace.

Four forms: PyTorch's `ProfilerStep#12`, vLLM's `execute_context_1(128)_generation_8(8)` and its
detailed `execute_136_context_1(sq128sk128sqsq16384sqsk16384)_generation_8(sq8sk900sqsq8sqsk900)`,
where sq is the tokens scheduled, sk the lengths of the sequences, and sqsq and sqsk the sums over
requests of the products (vLLM, v1/worker/gpu_worker.py); and SGLang's `step[DECODE bs=8]`,
`step[EXTEND bs=2 toks=512]` or `step[MIXED bs=9]`, of some versions in lower case and with `ext=2
dec=7`. With its detailed_annotations the same sums follow, `c_sq=.. c_sk=.. c_sqsq=.. c_sqsk=..` of
prefills and `g_sq=..` of decodes (SGLang 0.5.23, srt/utils/profile_utils.py and
model_executor/step_span_utils.py). What a draft model runs (`step[DRAFT ...]`) is no step.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

_PROFILER = re.compile(r"ProfilerStep\s*#\s*(\d{1,15})")
_SIMPLE = re.compile(r"execute_context_(\d{1,9})\((\d{1,12})\)_generation_(\d{1,9})\((\d{1,12})\)")
_SUMS = r"(\d{1,9})\(sq(\d{1,12})sk(\d{1,15})sqsq(\d{1,17})sqsk(\d{1,17})\)"
_SGLANG = re.compile(r"step\[([A-Za-z_]{1,40}) bs=(\d{1,9})((?: [a-z_]{1,30}=[^\s\]]{1,60})*)\]")
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
    if match := _SGLANG.match(name):
        return _sglang(match[1].lower(), int(match[2]), match[3])
    return None


def _sglang(stage: str, requests: int, more: str) -> StepMark | None:
    """Return what SGLang says of a step, None of a part of one that a draft model runs."""
    pairs = (each.partition("=") for each in more.split())
    sums = {name: int(text) for name, _, text in pairs if text.isdecimal() and len(text) <= 17}
    if stage.startswith("draft"):
        return None
    complete = sums.get("ext", 0) + sums.get("dec", 0) == requests
    prefills = sums.get("c", sums.get("ext") if complete else None)
    decodes = sums.get("g", sums.get("dec") if complete else None)
    prefill_tokens, tokens = sums.get("c_sq"), sums.get("g_sq", decodes)
    if stage in {"decode", "verify", "idle"}:  # of a step that verifies, the drafts are in the sums
        prefills, decodes, prefill_tokens = 0, requests, 0
        tokens = sums.get("g_sq", requests if stage != "verify" else None)
    elif stage in {"extend", "prefill"}:
        prefills, decodes, tokens = requests, 0, 0
        prefill_tokens = sums.get("toks", sums.get("c_sq"))
    context = None
    if {"c_sq", "c_sqsq", "c_sqsk"} <= sums.keys():
        context = max(sums["c_sqsk"] - (sums["c_sqsq"] - sums["c_sq"]) // 2, 0)
    return StepMark(
        prefill_requests=prefills,
        prefill_tokens=prefill_tokens,
        decode_requests=decodes,
        decode_tokens=tokens,
        prefill_kv_tokens=sums.get("c_sk", 0 if prefills == 0 else None),
        decode_kv_tokens=sums.get("g_sk", 0 if decodes == 0 else None),
        prefill_query_context=0 if prefills == 0 else context,
    )
