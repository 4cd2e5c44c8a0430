"""Output lengths that a workload gives: how many tokens each sample of a problem is made to have.

Runs that are given their lengths do the same work every time, whatever the samples say; so they
can be compared in time, with each other and with a replay.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from traces.errors import UsageError
from traces.schema.tts.policy import Policy

Lengths = int | tuple[int, ...]


def read_lengths(value: Any, where: str) -> Lengths | None:
    """Read `output_tokens` of a workload: one length, or one for each sample by its index.

    Raises UsageError that begins with `where`.
    """
    if value is None:
        return None
    each = value if isinstance(value, list) else [value]
    if not each or not all(type(tokens) is int and tokens >= 1 for tokens in each):
        raise UsageError(
            f'{where}: "output_tokens" must be a whole number of at least 1, or a list of such, '
            "one for each sample"
        )
    return tuple(each) if isinstance(value, list) else each[0]


def length_of(lengths: Lengths | None, index: int) -> int | None:
    """Return the length given to the sample of this index, None where none is given."""
    return lengths[index] if isinstance(lengths, tuple) else lengths


def check_lengths(
    given: Iterable[tuple[str, Lengths]],
    policy: Policy,
    *,
    checkpoints: bool,
    max_model_len: int | None,
) -> None:
    """Refuse what given lengths cannot be run with; `given` are they by problem id.

    Raises UsageError in one line.
    """
    for problem_id, lengths in given:
        where = f"problem {problem_id}: output_tokens"
        if policy.stop is None:
            raise UsageError(
                f"{where} cannot be kept by {policy.method}, whose requests go on from earlier "
                "ones. Use another --method"
            )
        if policy.thinking_token_budget is not None:
            raise UsageError(f"{where} cannot be kept with a thinking budget. Leave one out")
        if checkpoints:
            raise UsageError(
                f"{where} cannot be kept with --budget-checkpoints, which need thoughts of the "
                "model's own length. Leave one of them out"
            )
        if isinstance(lengths, tuple) and len(lengths) < policy.n:
            raise UsageError(
                f"{where} has {len(lengths):,} lengths for {policy.n:,} samples. Give one for "
                "each, or one number for all"
            )
        longest = max(lengths[: policy.n]) if isinstance(lengths, tuple) else lengths
        if policy.max_tokens is not None and longest > policy.max_tokens:
            raise UsageError(
                f"{where} asks for {longest:,}, above max_tokens {policy.max_tokens:,}. "
                "Leave out --max-tokens"
            )
        if max_model_len is not None and longest >= max_model_len:
            raise UsageError(
                f"{where} asks for {longest:,}, which max_model_len {max_model_len:,} cannot hold"
            )
