"""What a replay holds while it runs, laid out for compiled code; times in seconds.

One record per sample, problem, engine (a replica) and cache node. A node is a run of KV blocks that
are allocated and freed together: a segment of a shared prompt on one engine, or the blocks that a
sample has to itself.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from advisor.evidence.features import Work
from traces.schema.tts.stop_rules import FIELDS

# States of a sample.
DRAWN_LATER: Final = 0
WAITING: Final = 1
PREFILL: Final = 2
DECODE: Final = 3
DRAINING: Final = 4  # it ended or was cancelled, but async scheduling still holds its slot
ENDED: Final = 5
CANCELLED: Final = 6

NONE: Final = -1

PEAKS: Final = ("requests", "tokens", "kv_tokens")

SAMPLE = np.dtype(
    [
        # What it is.
        ("problem", "i4"),
        ("prompt", "i4"),  # tokens
        ("output", "i4"),  # tokens, the first of them from the prompt's step
        ("verify", "i4"),  # decode steps that make the others
        ("forward", "f8"),  # tokens forwarded in each of these
        ("answer", "i4"),  # its place in `answers`, or NONE
        ("by_length", "?"),  # its end is known ahead, so no step is spent on finding it
        # Where it is.
        ("engine", "i4"),
        ("state", "i4"),
        ("known", "i4"),  # tokens to compute before it decodes: prompt, and what it had
        ("computed", "i4"),  # of these
        ("passed", "i4"),  # decode steps of `verify`
        ("held", "i4"),  # blocks, kept up to date under speculation only
        ("since", "i8"),  # the engine's clock when it began to decode
        ("ends", "i8"),  # the engine's clock when it will have ended
        ("turns", "i8"),  # the same, or when its context first reaches beyond its window or chunk
        ("unread", "f8"),  # tokens of its context before its chunk, NONE where its window is full
        ("entry", "f8"),  # the engine's `per_token` when it began to decode
        ("place", "i4"),  # in the heap of ends
        ("rank", "i4"),  # in the heap of contexts
        ("before", "i4"),  # neighbours in the waiting or the running list
        ("after", "i4"),
        ("doomed", "i4"),  # the next of those to cancel when the engine's step ends
        # What came of it.
        ("queued", "f8"),
        ("scheduled", "f8"),
        ("first", "f8"),
        ("end", "f8"),
        ("cached", "i4"),
        ("preemptions", "i4"),
        ("generated", "i4"),
    ],
    align=True,
)

PROBLEM = np.dtype(
    [
        ("sample", "i4"),  # its first
        *FIELDS,  # of the votes on it
        ("path", "i4"),  # its first segment in `path`
        ("segments", "i4"),
        ("answer", "i4"),  # its first place in `answers`
        ("answers", "i4"),
        ("drawn", "i4"),
        ("draw", "i4"),  # of a ring: the problem that stands here, with samples to be drawn
        ("decided_by", "i4"),
        # The session that it is a turn of, if it is one of several.
        ("root", "i4"),  # its first turn
        ("left", "i4"),  # turns of the session that are not decided, kept by the first
        ("follower", "i4"),  # a turn that comes `after_s` after this one is decided, or NONE
        ("companion", "i4"),  # a turn that comes `after_s` after this one came, or NONE
        ("sibling", "i4"),  # another that comes after the same, or NONE
        ("after_s", "f8"),
        ("coming", "i4"),  # of a heap: the turn that stands here, the next to come on top
        ("arrival", "f8"),
        ("decided", "f8"),
        ("right", "f8"),  # share of right answers among those that led
        ("busy", "f8"),  # its share of the engines' time
    ],
    align=True,
)


LIST = np.dtype([("first", "i8"), ("last", "i8")], align=True)  # of linked records, or NONE


def _sum_type(name: str) -> str:
    return "i8" if name.endswith("_requests") else "f8"


ENGINE = np.dtype(
    [
        ("waiting", "i8"),
        ("queue", LIST),  # of samples that wait
        ("running", "i8"),  # slots taken, draining ones too
        ("runners", LIST),  # samples, in the order in which they began
        ("partial", "i8"),  # its prompt is not whole yet; always the last to run
        ("doomed", "i8"),
        ("draining", "i8"),
        ("heap", "i8"),
        ("outstanding", "i8"),
        ("idle", "i8"),
        ("segments", "i8"),  # of all prompts
        # What the next step, or the one under way, computes, and how its context grows per step.
        *((name, _sum_type(name)) for name in Work._fields),
        ("growth", "f8"),
        ("window_growth", "f8"),
        # The same of requests whose output nobody waits for.
        *(
            (f"drain_{name}", _sum_type(name))
            for name in Work._fields
            if name.startswith("decode_")
        ),
        # The step, or the steps, under way.
        ("steps", "i8"),
        ("chunks", "f8"),
        ("begun", "f8"),
        ("due", "f8"),
        ("last_begun", "f8"),
        # What the process has to do before the next step, and how long it takes in this one.
        ("problem_starts", "i8"),
        ("sample_starts", "i8"),
        ("sample_ends", "i8"),
        ("host", "f8"),
        ("empty", "i8"),  # it had no request when the last of them ended
        # Counted up.
        ("clock", "i8"),  # steps in which any request decoded
        ("per_token", "f8"),  # seconds per token, summed over those
        ("busy", "f8"),
        ("beyond", "f8"),  # of it, in steps beyond what the law was learned from
        ("all_steps", "i8"),
        ("preemptions", "i8"),
        # The most that any step had.
        *((f"peak_{name}", "f8") for name in PEAKS),
        # The KV cache.
        ("used", "i8"),
        ("virgin", "i8"),  # free blocks that hold nothing
        ("free", LIST),  # nodes in the order in which their blocks are taken again
    ],
    align=True,
)

NODE = np.dtype(
    [
        ("whole", "i4"),  # blocks of the segment when none is missing
        ("blocks", "i4"),  # that are allocated, or free but not yet taken
        ("cached", "i4"),  # of these, from the first, computed; before the first use by others
        ("holders", "i4"),
        ("queued", "?"),  # among the free
        ("before", "i4"),
        ("after", "i4"),
    ],
    align=True,
)

ANSWER = np.dtype([("tally", "i4"), ("right", "?")], align=True)

SLOT = np.dtype(
    [
        ("heap", "i8"),  # samples, the first to turn on top
        ("tall", "i8"),  # samples, the longest on top
        ("drain", "i8"),  # samples whose slot falls free after a step
        ("prompt", "i8"),  # prompts under way: sample and tokens
        ("chunk", "i8"),
    ],
    align=True,
)

# One leap: a step, or steps in which only decoding happens.
LEAP = np.dtype(
    [
        ("engine", "i8"),
        ("begun", "f8"),
        ("seconds", "f8"),
        ("steps", "i8"),
        ("work", "f8", (len(Work._fields),)),  # of the first
        ("growth", "f8"),
        ("window_growth", "f8"),
        ("longest", "f8"),
        ("running", "i8"),
        ("waiting", "i8"),
        ("kv_blocks", "i8"),
        ("preemptions", "i8"),  # up to then
        ("host", "f8"),
    ],
    align=True,
)


class World(NamedTuple):
    """Everything that changes, and the problems' prompts."""

    samples: npt.NDArray[np.void]
    problems: npt.NDArray[np.void]
    engines: npt.NDArray[np.void]
    nodes: npt.NDArray[np.void]
    path: npt.NDArray[np.int32]
    answers: npt.NDArray[np.void]
    slots: npt.NDArray[np.void]  # [engines, slots]
    phases: npt.NDArray[np.int32]  # [engines, block_size] decoding samples by when they need one
    totals: npt.NDArray[np.float64]  # [FEATURES] summed over all steps


class Rules(NamedTuple):
    """The engine's limits and the policy, as numbers."""

    max_seqs: int
    max_tokens: int
    block_size: int
    caching: bool
    asynchronous: bool
    speculative: bool
    stop: int
    stop_value: float
    drawn_first: int
    routing: int
    together: bool
    reserve: int  # samples that wait for each engine, for which problems arrive; 0: they do not
    at_once: int  # samples in flight, from which on who has its time to arrive waits; 0: no limit
    roots: int  # problems that come by themselves; those behind them are later turns of sessions
    keep_longest: bool
    window: float
    chunked: bool
