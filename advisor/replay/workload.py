"""What is replayed: problems, their samples, and which prompts begin alike, in flat arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.typing import ArrayLike

from advisor.evidence.runs import RecordedProblem
from advisor.replay.simulation.state import NONE
from advisor.step_time.pace import Pace
from traces.statistics import Bools, Floats, Ints


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleArrays:
    """What a replay takes of samples, in arrays.

    Equal numbers of `answer` are equal answers, whosever they are. `forwarded` is 1 where a sample
    has no drafts.
    """

    output_tokens: Ints
    verify_steps: Ints
    forwarded: Floats
    answer: Ints
    correct: Bools
    by_length: Bools

    @classmethod
    def of(cls, loads: Sequence[RecordedProblem]) -> SampleArrays:
        """Return the samples of problems in their order."""
        samples = [sample for load in loads for sample in load.samples]
        output = np.array([sample.output_tokens for sample in samples], dtype=np.int64)
        verify, forwarded = output - 1, np.ones(len(samples))
        for place, sample in enumerate(samples):
            if sample.scheduled is not None:
                verify[place] = len(sample.scheduled)
                forwarded[place] = sample.scheduled.mean() if len(sample.scheduled) else 1.0
        number_of: dict[str | None, int] = {None: NONE}
        numbers = [number_of.setdefault(sample.answer, len(number_of) - 1) for sample in samples]
        return cls(
            output_tokens=output,
            verify_steps=verify,
            forwarded=forwarded,
            answer=np.array(numbers, dtype=np.int64),
            correct=np.array([bool(sample.correct) for sample in samples], dtype=bool),
            by_length=np.array([sample.by_length for sample in samples], dtype=bool),
        )

    def at(self, places: Ints) -> SampleArrays:
        return SampleArrays(**{name: values[places] for name, values in vars(self).items()})


@dataclass(frozen=True, kw_only=True, eq=False)
class Turns:
    """Which problem comes after which: the first `sessions` of them begin one, the others follow.

    Per problem, [problems]: its session; the turn `after` which it comes, an earlier one of its
    session (NONE of the first); whether it comes `after_s` seconds after that one was sent,
    `beside` it, or after its answer.
    """

    sessions: int
    session: Ints
    after: Ints
    beside: Bools
    after_s: Floats

    def put_into(self, problems: npt.NDArray[np.void]) -> None:
        """Write them into records of PROBLEM."""
        problems["root"], problems["after_s"] = self.session, self.after_s
        problems["left"] = 0
        problems["left"][: self.sessions] = np.bincount(self.session, minlength=self.sessions)
        for name, alike in (("companion", self.beside), ("follower", ~self.beside)):
            turns = self.sessions + np.flatnonzero(alike[self.sessions :])
            turns = turns[np.argsort(self.after[turns], kind="stable")]
            before = self.after[turns]
            follows = np.append(before[1:] == before[:-1], False)[: len(turns)]
            problems["sibling"][turns[follows]] = turns[1:][follows[:-1]]
            parents, first = np.unique(before, return_index=True)
            problems[name][parents] = turns[first]


@dataclass(frozen=True, kw_only=True, eq=False)
class ReplayWorkload:
    """Problems in the order of their arrival, with their samples.

    Per sample: tokens of its prompt and output; `verify_steps`, the decode steps that make all of
    the output but its first token; `forwarded`, the tokens computed in each of these; `answer`, its
    place in `right`, or NONE; whether it ended `by_length`.
    Per problem: its first sample in `first` [problems + 1], its first place of `right` in
    `first_answer` [problems + 1], its arrival in seconds, and the segments that its prompt begins
    with, `path`[first_segment[p] : first_segment[p + 1]], each from token `segment_start` to
    `segment_end`; prompts that share a segment are equal up to its end. A segment is in the cache
    up to `segment_found` when it is first used, as others had it before. `route` are the problems'
    own tables of samples, packed, 0 without one. `front_end_s` is what a server's front end takes
    of a problem's requests, beside its engine. `server` is the engine that a problem goes to (None:
    not known of all). `turns` say which problems come after others, None where each comes by
    itself.
    """

    first: Ints
    prompt_tokens: Ints
    output_tokens: Ints
    verify_steps: Ints
    forwarded: Floats
    answer: Ints
    by_length: Bools
    first_answer: Ints
    right: Bools
    arrivals: Floats | None
    first_segment: Ints
    path: npt.NDArray[np.int32]
    segment_start: Ints
    segment_end: Ints
    segment_found: Ints
    route: Floats
    front_end_s: Floats
    server: Ints | None = None
    turns: Turns | None = None

    @classmethod
    def from_loads(
        cls,
        loads: Sequence[RecordedProblem],
        arrivals: Sequence[float] | Floats | None = None,
        *,
        prompt_block_tokens: int | None = None,
    ) -> ReplayWorkload:
        """Build from recorded problems.

        A problem's samples share its prompt but for the last token. With `prompt_block_tokens`,
        the size of the loads' `prompt_blocks`, problems share what these say. Without, what many
        problems found in the cache they share, and what few found they find again (`_levels`).
        """
        counts = np.array([len(load.samples) for load in loads], dtype=np.int64)
        prompts = np.array([load.prompt_tokens for load in loads], dtype=np.int64)
        servers = [load.server for load in loads if load.server is not None]
        if prompt_block_tokens is None:
            segments = _levels(loads)
        else:
            segments = _segments(
                [load.prompt_blocks for load in loads],
                prompt_block_tokens,
                prompts.tolist(),
                counts.tolist(),
            )
        return cls(
            **_of_samples(SampleArrays.of(loads), counts),
            prompt_tokens=np.repeat(prompts, counts),
            **segments,
            arrivals=None if arrivals is None else ascending(arrivals),
            route=np.array([load.route for load in loads]),
            front_end_s=np.array([load.front_end_s for load in loads]),
            server=np.array(servers, dtype=np.int64) if len(servers) == len(loads) else None,
        )

    @classmethod
    def from_requests(
        cls,
        prompt_tokens: Ints,
        output_tokens: Ints,
        *,
        arrivals: Sequence[float] | Floats | None = None,
        prefix_blocks: Sequence[Sequence[int]] | None = None,
        prefix_block_tokens: int = 16,
    ) -> ReplayWorkload:
        """Build from requests, each a problem with one sample whose length is its end.

        `prefix_blocks` [requests] name the blocks of `prefix_block_tokens` of each prompt, the last
        of which may be cut; equal names are equal prefixes. Raises ValueError for tokens below 1
        and arrivals that fall.
        """
        count = len(prompt_tokens)
        if np.min(prompt_tokens, initial=1) < 1 or np.min(output_tokens, initial=1) < 1:
            raise ValueError("requests need at least one token of prompt and of output")
        segments = _segments(
            prefix_blocks or [()] * count,
            prefix_block_tokens,
            np.asarray(prompt_tokens).tolist(),
            [1] * count,
        )
        output = np.asarray(output_tokens, dtype=np.int64)
        return cls(
            first=np.arange(count + 1),
            prompt_tokens=np.asarray(prompt_tokens, dtype=np.int64),
            output_tokens=output,
            verify_steps=output - 1,
            forwarded=np.ones(count),
            answer=np.full(count, NONE),
            by_length=np.ones(count, dtype=bool),
            first_answer=np.zeros(count + 1, dtype=np.int64),
            right=np.zeros(0, dtype=bool),
            **segments,
            arrivals=None if arrivals is None else ascending(arrivals),
            route=np.zeros(count),
            front_end_s=np.zeros(count),
        )

    def with_samples(self, samples: SampleArrays) -> ReplayWorkload:
        """Return the same problems with others of as many samples, in their order."""
        return replace(self, **_of_samples(samples, np.diff(self.first)))

    def posed(
        self, places: Ints, *, groups: Ints | None = None, copies: Ints | None = None
    ) -> ReplayWorkload:
        """Return the problems at these places in this order, each as often as it stands there.

        The same as of their recorded problems, if each stands there as often as the others. What
        only problems of one of the `groups` [problems] begin with, each of the `copies` [places]
        has for itself: by default each problem is a group and each place a copy.
        """
        counts = np.diff(self.first)[places]
        first, samples = _taken(self.first, places)
        first_answer, answers = _taken(self.first_answer, places)
        moved = np.repeat(first_answer[:-1] - self.first_answer[places], counts)
        answer = self.answer[samples]
        return replace(
            self,
            first=first,
            prompt_tokens=self.prompt_tokens[samples],
            output_tokens=self.output_tokens[samples],
            verify_steps=self.verify_steps[samples],
            forwarded=self.forwarded[samples],
            answer=np.where(answer == NONE, NONE, answer + moved),
            by_length=self.by_length[samples],
            first_answer=first_answer,
            right=self.right[answers],
            arrivals=None,
            **self._segments_at(places, groups, copies),
            route=self.route[places],
            front_end_s=self.front_end_s[places],
            server=None if self.server is None else self.server[places],
            turns=None,
        )

    def _segments_at(self, places: Ints, groups: Ints | None, copies: Ints | None) -> Segments:
        """Return the segments of the problems at these places (`posed`)."""
        own = self._of_one_problem if groups is None else self._of_one(groups)
        copies = np.arange(len(places)) if copies is None else copies
        count = len(self.segment_start)
        first_segment, parts = _taken(self.first_segment, places)
        path = self.path[parts].astype(np.int64)
        copied = own[path]
        each = np.repeat(copies, np.diff(first_segment))[copied] * count + path[copied]
        made, place = np.unique(each, return_inverse=True)
        shared = np.flatnonzero(~own)
        path[copied] = len(shared) + place
        path[~copied] = np.searchsorted(shared, path[~copied])
        segments = np.concatenate([shared, made % max(count, 1)])
        return _arrays(
            first_segment,
            path,
            self.segment_start[segments],
            self.segment_end[segments],
            self.segment_found[segments],
        )

    def _of_one(self, groups: Ints) -> Bools:
        """Return which segments only problems of one of the groups [problems] begin with."""
        users = np.repeat(groups, np.diff(self.first_segment))
        least = np.full(len(self.segment_start), len(groups))
        most = np.full(len(self.segment_start), NONE)
        np.minimum.at(least, self.path, users)
        np.maximum.at(most, self.path, users)
        return np.asarray(least == most)

    @cached_property
    def _of_one_problem(self) -> Bools:
        return self._of_one(np.arange(len(self.first) - 1))

    def in_machine_time(self, pace: Pace) -> ReplayWorkload:
        """Return the same with what comes by the clock in the machine's own time."""
        turns = self.turns
        if turns is not None:
            turns = replace(turns, after_s=turns.after_s / pace.mean)
        if self.arrivals is None:
            return replace(self, front_end_s=self.front_end_s / pace.mean, turns=turns)
        arrivals = pace.in_machine_time(self.arrivals)
        begun = len(arrivals)
        after = pace.in_machine_time(self.arrivals + self.front_end_s[:begun]) - arrivals
        later = self.front_end_s[begun:] / pace.mean
        front_end_s = np.concatenate([after, later])
        return replace(self, arrivals=arrivals, front_end_s=front_end_s, turns=turns)

    def segment_blocks(self, block_size: int) -> tuple[Ints, Ints]:
        """Return the blocks of each segment, and how many of them the cache has beforehand."""
        before = self.segment_start // block_size
        return self.segment_end // block_size - before, self.segment_found // block_size - before

    @cached_property
    def longest(self) -> int:
        """The most tokens that a sample comes to hold, drafts among them."""
        drafts = np.ceil(self.forwarded).astype(np.int64) - 1
        return int(np.max(self.prompt_tokens + self.output_tokens + drafts, initial=1))


def _taken(first: Ints, places: Ints) -> tuple[Ints, Ints]:
    """Return where the parts at these places begin when taken, and what is in them."""
    counts = np.diff(first)[places]
    begins = np.concatenate([[0], np.cumsum(counts)])
    return begins, np.arange(begins[-1]) + np.repeat(first[places] - begins[:-1], counts)


def ascending(arrivals: Sequence[float] | Floats) -> Floats:
    """Return arrivals as an array. Raises ValueError when they fall or are no numbers."""
    times = np.asarray(arrivals, dtype=np.float64)
    if not np.isfinite(times).all() or np.any(np.diff(times) < 0):
        raise ValueError("arrivals must be finite and ascend")
    return times


def _of_samples(samples: SampleArrays, counts: Ints) -> dict[str, Any]:
    """Return the fields of a workload that its samples give. `counts` are those of each problem.

    Answers are numbered as they are first met. Whether one is right its first sample says.
    """
    answered = np.flatnonzero(samples.answer != NONE)
    owner = np.repeat(np.arange(len(counts)), counts)[answered]
    each = owner * (samples.answer.max(initial=0) + 1) + samples.answer[answered]
    _, met, same = np.unique(each, return_index=True, return_inverse=True)
    order = np.argsort(met)
    number = np.empty_like(order)
    number[order] = np.arange(len(order))
    answer = np.full(len(samples.answer), NONE, dtype=np.int64)
    answer[answered] = number[same]
    firsts = met[order]
    answers = np.bincount(owner[firsts], minlength=len(counts))
    return {
        "first": np.concatenate([[0], np.cumsum(counts)]),
        "output_tokens": samples.output_tokens,
        "verify_steps": samples.verify_steps,
        "forwarded": samples.forwarded,
        "answer": answer,
        "by_length": samples.by_length,
        "first_answer": np.concatenate([[0], np.cumsum(answers)]),
        "right": samples.correct[answered][firsts],
    }


Segments = dict[str, Any]  # the fields of a workload that say which prompts begin alike


COMMON = 0.05  # of the problems, from which a length that they found is a beginning of all of them


def _levels(loads: Sequence[RecordedProblem]) -> Segments:
    """Return the segments of prompts where it is known how much the cache held.

    Lengths that many problems share, as that of a system prompt, are one beginning of several
    lengths. One that nobody computed is in the cache beforehand: the engine had served others. What
    few found, as the next turn of a chat does, each of them finds when it comes.
    """
    last = np.array([load.prompt_tokens - 1 for load in loads], dtype=np.int64)
    found = np.minimum(np.array([load.cached_tokens for load in loads], dtype=np.int64), last)
    hits = np.sort(found[found != 0])
    usual = hits[len(hits) // 2] if len(hits) else 0
    told = np.array(
        [NONE if load.shared_tokens is None else load.shared_tokens for load in loads],
        dtype=np.int64,
    )
    shared = np.minimum(np.where(told == NONE, np.where(found != 0, found, usual), told), last)
    lengths, uses = np.unique(shared[shared != 0], return_counts=True)
    levels = lengths[uses >= max(2.0, COMMON * len(loads))]
    starts = np.concatenate([[0], levels[:-1]])[: len(levels)]
    reached = np.searchsorted(levels, shared, side="right")
    had = np.searchsorted(levels, found, side="right")
    places = np.arange(len(levels))[:, None]
    computed = ((had <= places) & (places < reached)).any(axis=1)
    start = np.concatenate([[0], levels])[reached]
    first = np.concatenate([[0], np.cumsum(reached + 1)])
    path = np.arange(first[-1]) - np.repeat(first[:-1], reached + 1)
    path[first[1:] - 1] = len(levels) + np.arange(len(loads))  # its own rest
    return _arrays(
        first,
        path,
        np.concatenate([starts, start]),
        np.concatenate([levels, last]),
        # up to where the cache has them beforehand
        np.concatenate([np.where(computed, starts, levels), np.maximum(found, start)]),
    )


def _segments(
    prefix_blocks: Sequence[Sequence[int]],
    tokens: int,
    prompt_tokens: Sequence[int],
    samples: Sequence[int],
) -> Segments:
    """Cut the prompts into the longest runs of blocks that are only ever met together.

    A run ends where some request ends or the next block differs. Blocks that one request alone has
    are no segment: nobody else can find them. Returns the first place of each prompt in the path,
    the path, and where segments start and end.
    """
    chains = _chains(prefix_blocks, tokens, prompt_tokens, samples)
    uses: dict[int, int] = {}
    follower: dict[int, int] = {}
    cut: set[int] = set()
    for chain, count in zip(chains, samples, strict=True):
        following = [name for name, _ in chain[1:]] + [NONE]
        for (name, _), after in zip(chain, following, strict=False):
            uses[name] = uses.get(name, 0) + count
            if follower.setdefault(name, after) != after:
                cut.add(name)
    path: list[int] = []
    numbers: dict[int, int] = {}
    first: list[int] = [0]
    starts: list[int] = []
    ends: list[int] = []
    for chain in chains:
        start = 0
        for place, (name, end) in enumerate(chain):
            if uses[name] < 2:
                break
            last = place + 1 == len(chain) or uses[chain[place + 1][0]] < 2
            if name in cut or last:
                if name not in numbers:
                    numbers[name] = len(ends)
                    starts.append(start)
                    ends.append(end)
                path.append(numbers[name])
                start = end
        first.append(len(path))
    return _arrays(first, path, starts, ends, starts)


def _chains(
    prefix_blocks: Sequence[Sequence[int]],
    tokens: int,
    prompt_tokens: Sequence[int],
    samples: Sequence[int],
) -> list[list[tuple[int, int]]]:
    """Name each prompt's blocks by all of the prompt up to their end, and say where they end.

    The last token of a prompt is always computed, so that a block that ends with one has it apart.
    What has no name, the samples of a problem alone have in common.
    """
    full_lengths = {prompt for prompt in prompt_tokens if prompt % tokens == 0}
    number_of: dict[tuple[int, int | None, int], int] = {}
    chains = []
    for problem, (names, prompt) in enumerate(zip(prefix_blocks, prompt_tokens, strict=True)):
        chain: list[tuple[int, int]] = []
        before, end = NONE, 0
        for name in names[: -(-prompt // tokens)]:
            end = min(end + tokens, prompt)
            before = number_of.setdefault((before, name, end), len(number_of))
            if end == prompt or end in full_lengths:
                chain.append((before, end - 1))
                before = number_of.setdefault((before, None, end), len(number_of))
            if end < prompt:
                chain.append((before, end))
        if end < prompt and samples[problem] > 1:
            rest = number_of.setdefault((NONE - 1 - problem, None, prompt), len(number_of))
            chain.append((rest, prompt - 1))
        chains.append(chain)
    return chains


def _arrays(
    first: ArrayLike, path: ArrayLike, starts: ArrayLike, ends: ArrayLike, found: ArrayLike
) -> Segments:
    return {
        "first_segment": np.array(first, dtype=np.int64),
        "path": np.array(path, dtype=np.int32),
        "segment_start": np.array(starts, dtype=np.int64),
        "segment_end": np.array(ends, dtype=np.int64),
        "segment_found": np.array(found, dtype=np.int64),
    }
