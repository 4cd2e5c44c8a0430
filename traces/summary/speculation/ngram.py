"""What vLLM's prompt lookup would have drafted for tokens that are known, without running it.

The rule is that of vLLM 0.32, read in these places:

- the draft, `v1/spec_decode/ngram_proposer.py`: of the suffixes of the context with a length in
  [prompt_lookup_min, prompt_lookup_max], the longest that also stands earlier counts, at its
  earliest place; the draft is the up to k tokens that follow it there, none of them beyond the
  context's end;
- the end of the model's length, `v1/core/sched/scheduler.py`: at most
  max_model_len - context - 1 drafted tokens are verified;
- just before it, `_input_fits_in_drafter` in `v1/worker/gpu_model_runner.py`: after a step whose
  last position comes within k of max_model_len nothing is looked up and k tokens of id 0 stand in.

A draft depends on the context alone, not on chance, so a drafted token is accepted exactly when
it is the token that came out. With greedy decoding that is the rule itself. With rejection
sampling (Leviathan et al. 2023, algorithm 1) the draft's distribution is one-hot at t: t is kept
with probability p(t), anything else is emitted with its own probability p(x), x != t. So the
emitted tokens have the target's distribution, and given them "accepted" is "emitted = drafted".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from traces.errors import UsageError
from traces.schema.engine import Speculative
from traces.schema.record import Record

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class PromptLookup(Record):
    """A setting of vLLM's method "ngram", in the names of its `--speculative-config`."""

    num_speculative_tokens: int
    prompt_lookup_min: int
    prompt_lookup_max: int

    def __post_init__(self) -> None:
        if self.num_speculative_tokens < 1:
            raise UsageError("prompt lookup: num_speculative_tokens must be at least 1")
        if not 1 <= self.prompt_lookup_min <= self.prompt_lookup_max:
            raise UsageError("prompt lookup: needs 1 <= prompt_lookup_min <= prompt_lookup_max")


# The window that vLLM takes when none is given (5, 5), which drafts seldom and surely, and a
# short one that drafts often; each with a short and with a long draft.
STANDARD = tuple(
    PromptLookup(num_speculative_tokens=k, prompt_lookup_min=low, prompt_lookup_max=high)
    for low, high in ((2, 4), (5, 5))
    for k in (3, 5)
)


def lookup_of(speculative: Speculative | None) -> PromptLookup | None:
    """Return an engine's setting with vLLM's defaults filled in; None for another method."""
    if speculative is None or speculative.method != "ngram":
        return None
    low, high = speculative.prompt_lookup_min, speculative.prompt_lookup_max
    return PromptLookup(
        num_speculative_tokens=speculative.num_speculative_tokens,
        prompt_lookup_min=low or high or 5,
        prompt_lookup_max=high or low or 5,
    )


@dataclass(frozen=True)
class NgramSteps:
    """The decode steps of one sample, arrays of shape (steps,).

    Step i starts at output token `starts[i]` (0 is the token that the prompt's own step gives,
    so `starts[0]` is 1), verifies `drafted[i]` tokens, keeps `accepted[i]` of them and emits one
    more, except that the last step ends with the sample. vLLM's own count of the last step can
    be higher: it counts accepted tokens past the end, which it then throws away.
    """

    starts: Ints
    drafted: Ints
    accepted: Ints


class KnownTokens:
    """A sample's tokens, prepared once for any number of settings.

    `prompt` and `output` are token ids, one-dimensional; `longest` is the longest n-gram that
    will be looked up. O(T log T) for T tokens.
    """

    def __init__(self, prompt: ArrayLike, output: ArrayLike, *, longest: int) -> None:
        head = np.asarray(prompt, dtype=np.int64)
        self.prompt_tokens = head.size
        self.tokens = np.concatenate([head, np.asarray(output, dtype=np.int64)])
        self._earliest = _earliest_places(self.tokens, longest)

    def draft_sources(self, low: int, high: int) -> Ints:
        """Return where the draft after the first c tokens begins, -1 where there is none.

        Shape (T + 1,), index c. A draft begins behind the earliest place of the longest suffix
        with a length in [low, high].
        """
        source = np.full(self.tokens.size + 1, -1, dtype=np.int64)
        for n, earliest in enumerate(self._earliest[:high], 1):
            if n >= low:
                found = np.flatnonzero(earliest < np.arange(earliest.size))
                source[found + n] = earliest[found] + n
        return source

    def replay(self, lookup: PromptLookup, *, max_model_len: int | None = None) -> NgramSteps:
        """Return the steps in which prompt lookup would have emitted the output.

        Exact for a request that is neither preempted nor short of the step's token budget, and
        while no other request of the batch comes within k of max_model_len.
        """
        tokens, k = self.tokens, lookup.num_speculative_tokens
        drafted, accepted = self._at_every_context(lookup, max_model_len)
        drafts, keeps = drafted.tolist(), accepted.tolist()
        steps: list[tuple[int, int, int]] = []
        context, filled = self.prompt_tokens + 1, self.prompt_tokens
        while context < tokens.size:
            draft, kept = drafts[context], keeps[context]
            if max_model_len is not None and filled + k > max_model_len:
                draft = min(k, max(max_model_len - context - 1, 0))
                kept = _leading_zeros(tokens[context : context + draft])
            steps.append((context - self.prompt_tokens, draft, kept))
            filled = context + draft
            context += kept + 1
        table = np.array(steps, dtype=np.int64).reshape(-1, 3)
        return NgramSteps(table[:, 0], table[:, 1], table[:, 2])

    def _at_every_context(
        self, lookup: PromptLookup, max_model_len: int | None
    ) -> tuple[Ints, Ints]:
        """Return tokens drafted after the first c tokens, and how many of them are what follows.

        Both have shape (T + 1,), index c.
        """
        tokens = self.tokens
        source = self.draft_sources(lookup.prompt_lookup_min, lookup.prompt_lookup_max)
        contexts = np.arange(tokens.size + 1)
        drafted = np.where(source < 0, 0, contexts - source)
        drafted = np.minimum(drafted, lookup.num_speculative_tokens)
        if max_model_len is not None:
            drafted = np.minimum(drafted, np.maximum(max_model_len - contexts - 1, 0))
        accepted = np.zeros_like(drafted)
        alike = np.flatnonzero(drafted)
        for place in range(lookup.num_speculative_tokens):
            alike = alike[(drafted[alike] > place) & (alike + place < tokens.size)]
            alike = alike[tokens[source[alike] + place] == tokens[alike + place]]
            accepted[alike] += 1
        return drafted, accepted


def _leading_zeros(tokens: Ints) -> int:
    other = np.flatnonzero(tokens)
    return int(other[0]) if other.size else tokens.size


def _earliest_places(tokens: Ints, longest: int) -> list[Ints]:
    """Return, for n = 1 .. `longest`, where the n-gram that starts at j starts first.

    Item n - 1 has shape (T - n + 1,); n-grams longer than the tokens have no item.
    """
    found: list[Ints] = []
    if not tokens.size:
        return found
    names = alphabet = np.unique(tokens, return_inverse=True)[1]
    letters = int(alphabet.max()) + 1
    for n in range(1, min(longest, tokens.size) + 1):
        if n > 1:  # names[j] tells the n-grams apart, as numbers below T * letters
            names = names[:-1] * letters + alphabet[n - 1 :]
        _, firsts, names = np.unique(names, return_index=True, return_inverse=True)
        found.append(firsts[names])
    return found


def draft_counts(
    lookups: Sequence[PromptLookup],
    prompt: ArrayLike,
    output: ArrayLike,
    *,
    think_tokens: int | None = None,
    max_model_len: int | None = None,
) -> list[dict[str, Any]]:
    """Return a sample's rows of the `drafts` table: one per setting and phase.

    `think_tokens` is the index of the output token that ends thinking; a step belongs to the
    phase of the first token that it emits. Columns: the setting, phase (thinking, answer, or null
    where `think_tokens` is None), steps, tokens (emitted in them), drafted and accepted tokens
    per position.
    """
    known = KnownTokens(prompt, output, longest=max(each.prompt_lookup_max for each in lookups))
    made = known.tokens.size - known.prompt_tokens
    rows = []
    for lookup in lookups:
        done = known.replay(lookup, max_model_len=max_model_len)
        emitted = np.diff(done.starts, append=made)
        phases: dict[str | None, NDArray[np.bool_]] = {None: np.ones(emitted.size, dtype=bool)}
        if think_tokens is not None:
            thinking = done.starts <= think_tokens
            phases = {"thinking": thinking, "answer": ~thinking}
        for phase, mine in phases.items():
            if mine.any():
                k = lookup.num_speculative_tokens
                counted = {
                    "steps": int(mine.sum()),
                    "tokens": int(emitted[mine].sum()),
                    "drafted": _reaching(done.drafted[mine], k),
                    "accepted": _reaching(done.accepted[mine], k),
                }
                rows.append({"method": "ngram", **vars(lookup), "phase": phase, **counted})
    return rows


def _reaching(lengths: Ints, positions: int) -> list[int]:
    """Return how many lengths reach each position: lengths > 0, lengths > 1, ..."""
    tally = np.bincount(lengths, minlength=positions + 1)
    found: list[int] = tally[::-1].cumsum()[::-1][1 : positions + 1].tolist()
    return found
