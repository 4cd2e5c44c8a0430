"""Records of forward passes that are made here."""


def passed(counter, *, decodes=0, context=0, prefills=0, new=0, cached=0, wall=0.01, **changes):
    """A record as JSON has it: `context` is of the decoding requests, `new` of the prefills."""
    record = {
        "version": 1,
        "worker_id": "w",
        "dp_rank": 0,
        "counter_id": counter,
        "wall_time": wall,
        "scheduled_requests": {
            "num_prefill_requests": prefills,
            "sum_prefill_tokens": new,
            "sum_prefill_kv_tokens": cached,
            "num_decode_requests": decodes,
            "sum_decode_kv_tokens": context,
        },
        "queued_requests": {"num_prefill_requests": 2, "num_decode_requests": 1},
    }
    return record | changes


def enveloped(record, *, written_ms=1_782_777_600_000, mode="full", **changes):
    """A line of Dynamo's files."""
    event = {
        "schema": "dynamo.fpm.trace.v1",
        "source": {"namespace": "default", "component": "backend", "producer_id": "4192"},
        "capture_mode": mode,
        "observed_at_unix_ms": written_ms,
        "fpm": record,
    }
    return {"timestamp": 0, "event": event | changes}
