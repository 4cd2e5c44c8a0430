"""The tables of a recording: their columns and types, in order.

Times are int nanoseconds since the unix epoch, durations int nanoseconds, energies joules.
What was not measured is null. Only raw facts are kept: every derived number is recomputed on
reading.
"""

from __future__ import annotations

import polars as pl

Columns = dict[str, pl.DataType]

TEXT, INT, FLOAT, BOOL = pl.Utf8(), pl.Int64(), pl.Float64(), pl.Boolean()
INTS, FLOATS = pl.List(pl.Int64), pl.List(pl.Float64)

PROBLEMS: Columns = {
    "problem_id": TEXT,
    "engine": TEXT,
    "policy": TEXT,
    "group": TEXT,  # level or data set
    "prompt_tokens": INT,
    "cached_prompt_tokens": INT,
    "prompt_blocks": INTS,  # of imports that tell them: equal names are equal prefixes
    "arrival": INT,
    "start": INT,
    "end": INT,
    "decided_at": INT,
    "decided_by_sample": INT,
    "answer": TEXT,  # the number of its class within the problem unless text is recorded
    "expected": TEXT,
    "correct": BOOL,
    "timed_out": BOOL,
    "weight": FLOAT,
    "trace_id": TEXT,
    "span_id": TEXT,
    "error": TEXT,
}

SAMPLES: Columns = {
    "problem_id": TEXT,
    "sample_index": INT,
    "engine": TEXT,
    "policy": TEXT,
    "request_id": TEXT,
    "span_id": TEXT,
    "role": TEXT,  # sample, forced, revision, scorer, draft, checkpoint
    "parent_sample": INT,
    "depth": INT,
    "round": INT,
    "prompt_tokens": INT,
    "cached_tokens": INT,
    "output_tokens": INT,
    "think_tokens": INT,
    "answer_tokens": INT,
    "arrival": INT,
    "queued": INT,
    "scheduled": INT,
    "first_token": INT,
    "think_end": INT,
    "end": INT,
    "latency_ns": INT,  # of an imported sample, whose times are not known
    "first_step": INT,
    "last_step": INT,
    "preemptions": INT,
    "finish_reason": TEXT,
    "cancelled_by": TEXT,
    "censored": BOOL,  # cut by max_tokens
    "answer": TEXT,
    "correct": BOOL,
    "logprob_mean": FLOAT,
    "confidence_min_window": FLOAT,
    "score": FLOAT,  # by a scorer of the user's
    "drafted_per_step": INTS,
    "accepted_per_step": INTS,
    "token_ids": INTS,  # only when text is recorded
    "token_logprobs": FLOATS,
    "error": TEXT,
}

ANSWERS: Columns = {  # forced at a budget
    "problem_id": TEXT,
    "sample_index": INT,
    "engine": TEXT,
    "policy": TEXT,
    "budget_tokens": INT,
    "forced": BOOL,
    "answer": TEXT,
    "correct": BOOL,
    "answer_tokens": INT,
    "logprob_mean": FLOAT,
}

# What prompt lookup would have done for a phase of a sample (traces/summary/speculation/ngram.py).
DRAFTS: Columns = {
    "problem_id": TEXT,
    "sample_index": INT,
    "engine": TEXT,
    "policy": TEXT,
    "method": TEXT,
    "num_speculative_tokens": INT,
    "prompt_lookup_min": INT,
    "prompt_lookup_max": INT,
    "phase": TEXT,  # thinking, answer; null where the end of thinking is not known
    "steps": INT,  # decode steps
    "tokens": INT,  # emitted in them
    "drafted": INTS,  # per position; the first is the number of steps that drafted
    "accepted": INTS,
}

STEPS: Columns = {
    "engine": TEXT,
    "step": INT,
    "end": INT,
    "interval_ns": INT,  # from the end of the step before, while busy
    "wall_ns": INT,
    "cpu_ns": INT,
    "gap_ns": INT,  # between the end of the step before and this start, while busy
    "prefill_requests": INT,
    "prefill_tokens": INT,
    "decode_requests": INT,
    "decode_tokens": INT,
    "running": INT,
    "waiting": INT,
    "prefill_kv_tokens": INT,  # context read by prefills; a shared prompt once per sample
    "decode_kv_tokens": INT,
    "prefill_query_context": INT,  # sum over prefill tokens of the context each attends to
    "decode_window_tokens": INT,  # of decode_kv_tokens, what layers with a window or chunks read
    "prefill_window_context": INT,  # of prefill_query_context, the same
    "max_context_tokens": INT,
    "kv_blocks": INT,
    "cached_prompt_tokens": INT,
    "drafted": INTS,  # per position
    "accepted": INTS,
    "draft_ns": INT,
    "finished": INT,
    "aborted": INT,
    "preempted": INT,
    "graph_tokens": INT,
    "flops": FLOAT,
    "read_bytes": FLOAT,
    "profiled": BOOL,
    "source": TEXT,  # measured | inferred | replayed | forward
}

PROFILED = "profiled"  # an event: a profiler's window was open from begun_ns to ended_ns
SILENT = "silent"  # an event: what was asked for never came, in words
FORWARD = "forward"  # a source of steps whose time is that of the model's forward alone

# What a step computes: the columns that its time is a function of.
COMPOSITION = (
    "prefill_requests",
    "prefill_tokens",
    "decode_requests",
    "decode_tokens",
    "prefill_kv_tokens",
    "decode_kv_tokens",
    "prefill_query_context",
)
WINDOWED = ("decode_window_tokens", "prefill_window_context")  # and these, in models with a window

# How long a step took, in ns: by its wall, or where none was measured since the step before it.
STEP_TOOK = pl.coalesce("wall_ns", "interval_ns")
# How much time a step accounts for: since the step before it, or its wall where the engine had been
# idle. Laws and shares of time are of this.
STEP_INTERVAL = pl.coalesce("interval_ns", "wall_ns")
# When a step ran and how large it was; a long recording's other columns are read when asked for.
STEP_TIMES = (
    *("engine", "step", "end", "interval_ns", "wall_ns", "prefill_requests", "prefill_tokens"),
    *("decode_requests", "decode_tokens", "running", "waiting", "kv_blocks", "drafted"),
    *("accepted", "draft_ns", "profiled", "source"),
)

KERNELS: Columns = {
    "engine": TEXT,
    "rank": INT,
    "step": INT,
    "window_id": INT,
    "stream": INT,
    "family": TEXT,
    "name": TEXT,
    "count": INT,
    "time": INT,
    "self_time": INT,
    "exposed_time": INT,
    "collective": TEXT,
    "algorithm": TEXT,
    "bytes": INT,
    "dtype": TEXT,
    "group_size": INT,
}

POWER: Columns = {
    "host": TEXT,
    "device": TEXT,
    "kind": TEXT,  # nvml, rapl
    "time": INT,
    "watts": FLOAT,
    "energy_j": FLOAT,
    "utilisation": FLOAT,
    "memory_bytes": INT,
    "sm_clock_mhz": FLOAT,
    "memory_clock_mhz": FLOAT,
    "temperature_c": FLOAT,
    "throttle_bits": INT,
    "pcie_bytes": INT,
    "nvlink_bytes": INT,
}

SCRAPES: Columns = {
    "time": INT,
    "engine": TEXT,
    "name": TEXT,
    "labels": TEXT,
    "le": FLOAT,
    "value": FLOAT,
}

EVENTS: Columns = {
    "time": INT,
    "engine": TEXT,
    # start, restart, counter_reset, gap, drop, before, preempted, window, reconnect, killed, note,
    # clock
    "kind": TEXT,
    "detail": TEXT,
}

TABLES: dict[str, Columns] = {
    "problems": PROBLEMS,
    "samples": SAMPLES,
    "answers": ANSWERS,
    "drafts": DRAFTS,
    "steps": STEPS,
    "kernels": KERNELS,
    "power": POWER,
    "scrapes": SCRAPES,
    "events": EVENTS,
}


def in_table(table: str, rows: pl.DataFrame) -> pl.DataFrame:
    """Return rows with all the columns of a table, null where there is no such column."""
    return rows.select(
        (pl.col(name) if name in rows.columns else pl.lit(None)).cast(kind).alias(name)
        for name, kind in TABLES[table].items()
    )


# A span is written when it starts (its end null) and again when it ends; the last row stands.
KEYS: dict[str, tuple[str, ...]] = {
    "problems": ("engine", "policy", "problem_id", "span_id"),
    "samples": ("engine", "policy", "problem_id", "sample_index", "span_id"),
}
