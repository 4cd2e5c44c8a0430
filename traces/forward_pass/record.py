"""One record of forward-pass metrics, checked: what an engine says of an iteration.

SGLang 0.5.23 (`sglang/srt/observability/forward_pass_metrics.py`), Dynamo's wrappers of vLLM,
SGLang and TensorRT-LLM (`dynamo.common.forward_pass_metrics`, schema dynamo.fpm.trace.v1) and
vLLM's open change (vllm#52061) write the same fields, version 1. vLLM's adds `timing_scope`.
Dynamo's first records had neither a version nor a counter. ZMQ has them as msgpack, files as JSON.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

VERSION = 1
LONGEST_NAME = 256
MOST_BYTES = 8_192  # of a record; an honest one has 600
LONGEST_S = 86_400.0

_Count = Annotated[int, Meta(ge=0, le=1 << 40)]
_Much = Annotated[float, Meta(ge=0, le=1e24)]
_Name = Annotated[str, Meta(max_length=LONGEST_NAME)]


class Scheduled(Struct, frozen=True, gc=False):
    """Requests computed in the iteration.

    `sum_prefill_tokens` are computed, `sum_prefill_kv_tokens` were in the cache before and are
    read. `sum_decode_kv_tokens` is the context of the decoding requests.
    """

    num_prefill_requests: _Count = 0
    sum_prefill_tokens: _Count = 0
    var_prefill_length: _Much = 0.0
    sum_prefill_kv_tokens: _Count = 0
    num_decode_requests: _Count = 0
    sum_decode_kv_tokens: _Count = 0
    var_decode_kv_tokens: _Much = 0.0


class Queued(Struct, frozen=True, gc=False):
    """Requests that wait; those that decoded before were preempted."""

    num_prefill_requests: _Count = 0
    sum_prefill_tokens: _Count = 0
    var_prefill_length: _Much = 0.0
    num_decode_requests: _Count = 0
    sum_decode_kv_tokens: _Count = 0
    var_decode_kv_tokens: _Much = 0.0


class ForwardPass(Struct, frozen=True, gc=False):
    """One iteration of one rank; `wall_time` is in seconds, 0 in a heartbeat of an idle engine.

    `counter_id` counts the records of a publisher, heartbeats too. `timing_scope` says what
    `wall_time` covers, where the engine says it.
    """

    wall_time: Annotated[float, Meta(ge=0, le=LONGEST_S)]
    scheduled_requests: Scheduled
    queued_requests: Queued = Queued()
    version: int = VERSION
    worker_id: _Name = ""
    dp_rank: Annotated[int, Meta(ge=0, lt=1 << 20)] = 0
    counter_id: Annotated[int, Meta(ge=0, lt=1 << 62)] | None = None
    timing_scope: _Name | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing was computed, as in a heartbeat."""
        done = self.scheduled_requests  # SGLang counts only new requests as prefills
        return not (
            done.num_prefill_requests or done.sum_prefill_tokens or done.num_decode_requests
        )


class OtherVersionError(ValueError):
    """A record of another schema version than is read here; `version` is what it says."""

    def __init__(self, version: str) -> None:
        super().__init__(f"records of schema version {version}, not {VERSION}")
        self.version = version


_DECODER = msgspec.msgpack.Decoder(ForwardPass)


def read_message(payload: bytes) -> ForwardPass:
    """Read a record in msgpack. Raises ValueError: OtherVersionError, or where it is none."""
    if len(payload) > MOST_BYTES:
        raise ValueError(f"records of more than {MOST_BYTES:,} bytes")
    try:
        return _checked(_DECODER.decode(payload))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        try:
            decoded = msgspec.msgpack.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise ValueError("records that are not msgpack") from None
        raise _fault(decoded) from None


def read_object(told: Any) -> ForwardPass:
    """Read a record that was JSON. Raises ValueError: OtherVersionError, or where it is none."""
    try:
        return _checked(msgspec.convert(told, ForwardPass))
    except msgspec.ValidationError:
        raise _fault(told) from None


def _checked(record: ForwardPass) -> ForwardPass:
    if record.version != VERSION:
        raise OtherVersionError(str(record.version)[:20])
    done, queued = record.scheduled_requests, record.queued_requests
    names = (record.worker_id, record.timing_scope or "")
    numbers = (  # JSON has none that is infinite, msgpack may
        *(record.wall_time, done.var_prefill_length, done.var_decode_kv_tokens),
        *(queued.var_prefill_length, queued.var_decode_kv_tokens),
    )
    if not all(map(math.isfinite, numbers)) or not all(map(str.isprintable, names)):
        raise ValueError(_FAULT)
    return record


_FAULT = "records with a number out of range or an odd name"


def _fault(told: Any) -> ValueError:
    if not isinstance(told, dict):
        return ValueError("records that are no object")
    version = told.get("version", VERSION)
    if version != VERSION or isinstance(version, bool):
        return OtherVersionError(str(version)[:20] if isinstance(version, int | str) else "unknown")
    for name in ("wall_time", "scheduled_requests"):
        if name not in told:
            return ValueError(f"records without {name}")
    return ValueError(_FAULT)
