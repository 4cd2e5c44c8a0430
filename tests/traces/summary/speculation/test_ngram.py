"""Prompt lookup on known tokens, against the rule written out slowly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from traces.errors import UsageError
from traces.schema.engine import Speculative
from traces.summary.speculation.ngram import (
    STANDARD,
    KnownTokens,
    PromptLookup,
    draft_counts,
    lookup_of,
)

SHORT = PromptLookup(num_speculative_tokens=3, prompt_lookup_min=2, prompt_lookup_max=4)
few_tokens = st.lists(st.integers(0, 2), max_size=40)
lookups = st.builds(
    lambda k, low, more: PromptLookup(
        num_speculative_tokens=k, prompt_lookup_min=low, prompt_lookup_max=low + more
    ),
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(0, 3),
)


def slow_draft(context, lookup, max_model_len):
    """The draft by vLLM's rule, in the words of its docstring."""
    k = lookup.num_speculative_tokens
    if max_model_len is not None:
        k = min(k, max_model_len - len(context) - 1)
    for n in range(min(lookup.prompt_lookup_max, len(context)), lookup.prompt_lookup_min - 1, -1):
        suffix = context[-n:]
        for start in range(len(context) - n):
            if context[start : start + n] == suffix:
                return context[start + n :][: max(k, 0)]
    return []


def slow_replay(prompt, output, lookup, max_model_len):
    tokens, k = [*prompt, *output], lookup.num_speculative_tokens
    context, filled, steps = len(prompt) + 1, len(prompt), []
    while context < len(tokens):
        draft = slow_draft(tokens[:context], lookup, max_model_len)
        if max_model_len is not None and filled + k > max_model_len:
            draft = [0] * min(k, max(max_model_len - context - 1, 0))
        kept = 0
        while kept < len(draft) and tokens[context + kept : context + kept + 1] == [draft[kept]]:
            kept += 1
        steps.append((context - len(prompt), len(draft), kept))
        filled = context + len(draft)
        context += kept + 1
    return steps


@pytest.mark.slow
@given(few_tokens, few_tokens, lookups, st.none() | st.integers(0, 12))
def test_replay_follows_the_rule(prompt, output, lookup, room):
    limit = None if room is None else len(prompt) + len(output) + room
    done = KnownTokens(prompt, output, longest=7).replay(lookup, max_model_len=limit)
    mine = list(zip(*(each.tolist() for each in vars(done).values()), strict=True))
    assert mine == slow_replay(prompt, output, lookup, limit)
    assert (done.accepted <= done.drafted).all()
    assert (done.drafted <= lookup.num_speculative_tokens).all()


@pytest.mark.slow
@given(few_tokens, few_tokens, lookups, st.none() | st.integers(0, 40))
def test_counts_account_for_every_token(prompt, output, lookup, think):
    rows = draft_counts([lookup, SHORT], prompt, output, think_tokens=think)
    for setting in (lookup, SHORT):
        mine = [r for r in rows if all(r[name] == value for name, value in vars(setting).items())]
        mine = mine[: len({r["phase"] for r in mine})]  # the two settings may be the same
        assert sum(row["tokens"] for row in mine) == max(len(output) - 1, 0)
        for row in mine:
            assert (row["phase"] is None) == (think is None)
            drafted, accepted = np.array(row["drafted"]), np.array(row["accepted"])
            assert len(drafted) == len(accepted) == setting.num_speculative_tokens
            assert (accepted <= drafted).all() and drafted[0] <= row["steps"] <= row["tokens"]
            assert (np.diff(drafted) <= 0).all() and (np.diff(accepted) <= 0).all()
            # each step gives one token more than it accepts, unless the last ends on a draft
            assert row["tokens"] <= row["steps"] + accepted.sum() <= row["tokens"] + 1


def test_a_worked_example():
    # 1 2 3 4 | 1 2 3 4 1 9: behind "1 2" the earliest place offers 3 4 1, all of it right
    known = KnownTokens([1, 2, 3, 4], [1, 2, 3, 4, 1, 9], longest=4)
    done = known.replay(SHORT)
    assert known.draft_sources(2, 4)[6] == 2
    assert done.starts.tolist() == [1, 2]
    assert done.drafted.tolist() == [0, 3]
    assert done.accepted.tolist() == [0, 3]


def test_the_longest_suffix_wins_and_then_the_earliest_place():
    tokens = [7, 1, 2, 5, 0, 1, 2, 6, 0, 1, 2]
    assert KnownTokens([], tokens, longest=4).draft_sources(2, 4)[-1] == 7  # behind 0 1 2
    assert KnownTokens([], tokens, longest=4).draft_sources(2, 2)[-1] == 3  # behind 1 2, first


def test_settings():
    assert len(set(STANDARD)) == 4
    ngram = Speculative(method="ngram", num_speculative_tokens=3)
    assert (lookup_of(ngram).prompt_lookup_min, lookup_of(ngram).prompt_lookup_max) == (5, 5)
    only_max = Speculative(method="ngram", num_speculative_tokens=3, prompt_lookup_max=4)
    assert lookup_of(only_max).prompt_lookup_min == 4
    assert lookup_of(Speculative(method="eagle", num_speculative_tokens=3)) is None
    with pytest.raises(UsageError, match="prompt_lookup_min"):
        PromptLookup(num_speculative_tokens=3, prompt_lookup_min=4, prompt_lookup_max=2)
