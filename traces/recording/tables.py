"""The tables of a recording: their columns in order, the types and the ranges of their values.

Times are int nanoseconds since the unix epoch, durations int nanoseconds, energies joules.
What was not measured is null. Only raw facts are kept: every derived number is recomputed on
reading.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Annotated

import msgspec
import polars as pl
from msgspec import Meta

Columns = dict[str, pl.DataType]

LATEST_NS = 4_102_444_800_000_000_000  # 2100: no time is later, none before 1970
LONGEST_NS = 10 * 366 * 86_400 * 10**9  # ten years: no duration is longer
MOST = 1 << 40  # of what is counted one by one: requests, steps, their tokens
MOST_TOKENS = 100_000_000  # of a request
MOST_AHEAD = 1 << 10  # tokens that a draft is ahead


@dataclass(frozen=True)
class Column:
    """The type of a column, and between what its values lie, those of its lists too.

    Both ends belong to the range, and null is in it but where the column is `present`. A list has
    at most `longest` values.
    """

    type: pl.DataType
    low: float = -inf
    high: float = inf
    present: bool = False
    longest: int = MOST_TOKENS

    @property
    def listed(self) -> bool:
        return isinstance(self.type, pl.List)


NAME = Column(pl.Utf8(), present=True)
TEXT, BOOL = Column(pl.Utf8()), Column(pl.Boolean())
TIME, DURATION = Column(pl.Int64(), 0, LATEST_NS), Column(pl.Int64(), -LONGEST_NS, LONGEST_NS)
WHEN = Column(pl.Int64(), 0, LATEST_NS, present=True)
TOKENS, FEW = Column(pl.Int64(), 0, MOST_TOKENS), Column(pl.Int64(), 0, MOST_AHEAD)
COUNT, COUNTS = Column(pl.Int64(), 0, MOST), Column(pl.List(pl.Int64), 0, MOST)
POSITIONS = Column(pl.List(pl.Int64), 0, MOST, longest=MOST_AHEAD)
# What is kept as it was told, such as ids and counters of bytes: sums and differences fit 64 bits.
INT, INTS = (Column(each, 1 - (1 << 62), (1 << 62) - 1) for each in (pl.Int64(), pl.List(pl.Int64)))
# Of these each of the 64 bits may be set, and none is computed with.
BITS, NAMES = Column(pl.Int64()), Column(pl.List(pl.Int64))
FLOAT, FLOATS = Column(pl.Float64()), Column(pl.List(pl.Float64))

_Columns = dict[str, Column]

PROBLEMS: _Columns = {
    "problem_id": TEXT,
    "engine": TEXT,
    "policy": TEXT,
    "group": TEXT,  # level or data set
    "session": TEXT,  # of which it is a turn
    "prompt_tokens": TOKENS,
    "cached_prompt_tokens": TOKENS,
    "prompt_blocks": NAMES,  # of imports that tell them: equal names are equal prefixes
    "arrival": TIME,
    "start": TIME,
    "end": TIME,
    "decided_at": TIME,
    "decided_by_sample": COUNT,
    "answer": TEXT,  # the number of its class within the problem unless text is recorded
    "expected": TEXT,
    "correct": BOOL,
    "timed_out": BOOL,
    "weight": FLOAT,
    "trace_id": TEXT,
    "span_id": TEXT,
    "error": TEXT,
}

SAMPLES: _Columns = {
    "problem_id": TEXT,
    "sample_index": COUNT,
    "engine": TEXT,
    "policy": TEXT,
    "request_id": TEXT,
    "span_id": TEXT,
    "role": TEXT,  # sample, forced, revision, scorer, draft, checkpoint
    "parent_sample": COUNT,
    "depth": COUNT,
    "round": COUNT,
    "prompt_tokens": TOKENS,
    "cached_tokens": TOKENS,
    "output_tokens": TOKENS,
    "think_tokens": TOKENS,
    "answer_tokens": TOKENS,
    "arrival": TIME,
    "queued": TIME,
    "scheduled": TIME,
    "first_token": TIME,
    "think_end": TIME,
    "end": TIME,
    "latency_ns": DURATION,  # of an imported sample, whose times are not known
    "first_step": COUNT,
    "last_step": COUNT,
    "preemptions": COUNT,
    "finish_reason": TEXT,
    "cancelled_by": TEXT,
    "censored": BOOL,  # cut by max_tokens
    "answer": TEXT,
    "correct": BOOL,
    "logprob_mean": FLOAT,
    "confidence_min_window": FLOAT,
    "score": FLOAT,  # by a scorer of the user's
    "drafted_per_step": COUNTS,
    "accepted_per_step": COUNTS,
    "token_ids": INTS,  # only when text is recorded
    "token_logprobs": FLOATS,
    "error": TEXT,
}

ANSWERS: _Columns = {  # forced at a budget
    "problem_id": TEXT,
    "sample_index": COUNT,
    "engine": TEXT,
    "policy": TEXT,
    "budget_tokens": TOKENS,
    "forced": BOOL,
    "answer": TEXT,
    "correct": BOOL,
    "answer_tokens": TOKENS,
    "logprob_mean": FLOAT,
}

# What prompt lookup would have done for a phase of a sample (traces/summary/speculation/ngram.py).
DRAFTS: _Columns = {
    "problem_id": TEXT,
    "sample_index": COUNT,
    "engine": TEXT,
    "policy": TEXT,
    "method": TEXT,
    "num_speculative_tokens": FEW,
    "prompt_lookup_min": FEW,
    "prompt_lookup_max": FEW,
    "phase": TEXT,  # thinking, answer; null where the end of thinking is not known
    "steps": COUNT,  # decode steps
    "tokens": COUNT,  # emitted in them
    "drafted": POSITIONS,  # the first is the number of steps that drafted
    "accepted": POSITIONS,
}

STEPS: _Columns = {
    "engine": TEXT,
    "step": COUNT,
    "end": TIME,
    "interval_ns": DURATION,  # from the end of the step before, while busy
    "wall_ns": DURATION,
    "cpu_ns": DURATION,
    "gap_ns": DURATION,  # between the end of the step before and this start, while busy
    "prefill_requests": COUNT,
    "prefill_tokens": COUNT,
    "decode_requests": COUNT,
    "decode_tokens": COUNT,
    "running": COUNT,
    "waiting": COUNT,
    "prefill_kv_tokens": COUNT,  # context read by prefills; a shared prompt once per sample
    "decode_kv_tokens": COUNT,
    "prefill_query_context": INT,  # sum over prefill tokens of the context each attends to
    "decode_window_tokens": COUNT,  # of decode_kv_tokens, what layers with a window or chunks read
    "prefill_window_context": INT,  # of prefill_query_context, the same
    "max_context_tokens": COUNT,
    "kv_blocks": COUNT,
    "cached_prompt_tokens": COUNT,
    "drafted": POSITIONS,
    "accepted": POSITIONS,
    "draft_ns": DURATION,
    "finished": COUNT,
    "aborted": COUNT,
    "preempted": COUNT,
    "graph_tokens": COUNT,
    "flops": FLOAT,
    "read_bytes": FLOAT,
    "profiled": BOOL,
    "source": TEXT,  # measured | inferred | replayed | forward
}

PROFILED = "profiled"  # an event: a profiler's window was open on a server
WINDOW = "window"  # an event: what a rank's trace of a profiler's window says
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

_KERNELS: _Columns = {
    "engine": TEXT,
    "rank": COUNT,
    "step": COUNT,
    "window_id": COUNT,
    "stream": INT,
    "family": NAME,
    "name": NAME,
    "count": COUNT,
    "time": DURATION,
    "self_time": DURATION,
    "exposed_time": DURATION,
    "collective": TEXT,
    "algorithm": TEXT,
    "bytes": INT,
    "dtype": TEXT,
    "group_size": COUNT,
}

POWER: _Columns = {
    "host": TEXT,
    "device": TEXT,
    "kind": TEXT,  # nvml, rapl
    "time": TIME,
    "watts": FLOAT,
    "energy_j": FLOAT,
    "utilisation": FLOAT,
    "memory_bytes": INT,
    "sm_clock_mhz": FLOAT,
    "memory_clock_mhz": FLOAT,
    "temperature_c": FLOAT,
    "throttle_bits": BITS,
    "pcie_bytes": INT,
    "nvlink_bytes": INT,
}

_SCRAPES: _Columns = {
    "time": WHEN,
    "engine": TEXT,
    "name": NAME,
    "labels": NAME,
    "le": FLOAT,
    "value": FLOAT,
}

EVENTS: _Columns = {
    "time": TIME,
    "engine": TEXT,
    # start, restart, counter_reset, gap, drop, before, preempted, window, reconnect, killed, note,
    # clock
    "kind": TEXT,
    "detail": TEXT,
}

COLUMNS: dict[str, _Columns] = {
    "problems": PROBLEMS,
    "samples": SAMPLES,
    "answers": ANSWERS,
    "drafts": DRAFTS,
    "steps": STEPS,
    "kernels": _KERNELS,
    "power": POWER,
    "scrapes": _SCRAPES,
    "events": EVENTS,
}
TABLES: dict[str, Columns] = {
    table: {name: column.type for name, column in columns.items()}
    for table, columns in COLUMNS.items()
}
KERNELS, SCRAPES = TABLES["kernels"], TABLES["scrapes"]


def in_table(table: str, rows: pl.DataFrame) -> pl.DataFrame:
    """Return rows with all the columns of a table, null where there is no such column."""
    return rows.select(
        (pl.col(name) if name in rows.columns else pl.lit(None)).cast(kind).alias(name)
        for name, kind in TABLES[table].items()
    )


Time = Annotated[int, Meta(ge=0, le=LATEST_NS)]
_Count = Annotated[int, Meta(ge=0, le=MOST)] | None
_Duration = Annotated[int, Meta(ge=0, le=LONGEST_NS)] | None


class ProfiledDetail(msgspec.Struct, frozen=True):
    """The `detail` of an event PROFILED."""

    begun_ns: Time
    ended_ns: Time


class WindowDetail(msgspec.Struct, frozen=True):
    """What is read of the `detail` of an event WINDOW; the steps are those of the recording."""

    window: _Count = None
    steps: _Count = None
    first_step: _Count = None
    last_step: _Count = None
    steps_unknown: str | None = None  # why
    error: str | None = None
    busy_ns: _Duration = None  # of all devices together
    idle_ns: _Duration = None
    profiled_ns: _Duration = None
    usual_ns: _Duration = None


DETAILS: dict[str, type[msgspec.Struct]] = {PROFILED: ProfiledDetail, WINDOW: WindowDetail}


# A span is written when it starts (its end null) and again when it ends; the last row stands.
KEYS: dict[str, tuple[str, ...]] = {
    "problems": ("engine", "policy", "problem_id", "span_id"),
    "samples": ("engine", "policy", "problem_id", "sample_index", "span_id"),
}
