"""What vLLM says of a sample's drafts, one entry per decode step.

vLLM's per-request arrays leave out the steps that verified nothing, which prompt lookup has many
of, and hold one that drafted nothing: a request whose prompt is cached but for one token is
padded with k tokens of id -1 in its first step (`pad_spec_decode`, v1/core/sched/scheduler.py).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from traces.schema.engine import Speculative
from traces.summary.speculation.ngram import KnownTokens, lookup_of

Steps = tuple[tuple[int, ...], tuple[int, ...]]


def draft_steps(
    drafted: Sequence[int],
    accepted: Sequence[int],
    *,
    speculative: Speculative,
    prompt: Sequence[int],
    output: Sequence[int],
    cached_tokens: int | None,
    max_model_len: int | None,
) -> Steps:
    """Return tokens drafted and accepted per decode step, zeros where nothing was drafted.

    Steps without a draft can be placed for prompt lookup, whose drafts follow from the tokens;
    for another method that leaves steps out the arrays come back as they are, too short to
    account for the sample's tokens (`accounts_for`). The last step's count stays vLLM's own.
    """
    given = (tuple(drafted), tuple(accepted))
    without = (given[0][1:], given[1][1:])
    may_be_padded = (
        cached_tokens is not None
        and cached_tokens == len(prompt) - 1
        and given[0][:1] == (speculative.num_speculative_tokens,)
        and given[1][:1] == (0,)
    )
    lookup = lookup_of(speculative)
    if lookup is None:
        return without if may_be_padded and accounts_for(without[1], len(output)) else given
    tokens = KnownTokens(prompt, output, longest=lookup.prompt_lookup_max)
    replayed = tokens.replay(lookup, max_model_len=max_model_len)
    rule = (replayed.drafted.tolist(), replayed.accepted.tolist())
    for reported in (given, without) if may_be_padded else (given,):
        filled = _filled(reported, rule)
        if filled is not None:
            return filled
    return given


def accounts_for(accepted: Sequence[int], output_tokens: int) -> bool:
    """Whether decode steps with these acceptances emit a sample of so many tokens.

    The first token comes from the prompt's step; the last step may be cut by the sample's end.
    """
    wanted = output_tokens - 1
    emitted = sum(accepted) + len(accepted)
    last = accepted[-1] + 1 if accepted else 0
    return emitted - last < wanted <= emitted or (wanted <= 0 and not accepted)


def _filled(told: Steps, rule: tuple[list[int], list[int]]) -> Steps | None:
    """Return the rule's steps with vLLM's counts, None where the two disagree."""
    drafted, accepted = rule
    places = [place for place, draft in enumerate(drafted) if draft]
    if [drafted[place] for place in places] != list(told[0]):
        return None
    kept = list(accepted)
    for place, count in zip(places, told[1], strict=True):
        last = place == len(drafted) - 1
        if count != accepted[place] and not (last and count >= accepted[place]):
            return None
        kept[place] = count
    return tuple(drafted), tuple(kept)


def steps_after_first(token: int | None, accepted: Sequence[int] | None, tokens: int) -> int | None:
    """How many steps after the first token's the token of this index came out."""
    if token is None or accepted is None:
        return token
    if not accounts_for(accepted, tokens):
        return None
    produced = list(accumulate(1 + count for count in accepted))
    return 0 if token == 0 else bisect_right(produced, token - 1) + 1
