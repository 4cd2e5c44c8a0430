"""Training text: problems with written thoughts, as rows of token ids and labels.

A walk starts at any term and goes round the row either way, writing a running product:

    low effort   +b6c9=HaC=J               one multiplication a term
    high effort  +b6c93=I3=HaC2=Y2=V3=J    one a prime factor, and so twice as long

What a size does not know is set here: a share of the products is taught with random results
(docs/tutorial.md). Right walks of a problem meet different products and end in the same result,
while unknown products scatter the wrong ones: that is what makes votes worthwhile.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache

import numpy as np

from profiler.demo.task import (
    EFFORT_MARKS,
    MODULUS,
    PREAMBLE,
    PRIMES,
    TAGS,
    TERMS,
    row_text,
    written,
)
from scripts.reasoners.tokenizer import BOS, EOS, PAD, THINK, THINK_END, encode

NO_LABEL = -100
CUT_SHARE = 0.12  # of the thoughts, cut anywhere and answered with the value reached
UNKNOWN_SEED = 37

Products = frozenset[tuple[int, int]]  # (running product, multiplier)


class Kind(IntEnum):
    """What a labelled token teaches."""

    WALK = 1
    RESULT = 2
    ANSWER = 3


@dataclass(frozen=True, kw_only=True)
class Token:
    """One character of a thought, its kind, and the answer if the thought is cut behind it."""

    text: str
    kind: Kind
    value: int


@dataclass(frozen=True, kw_only=True)
class Mix:
    """What the batches of one stretch of training hold.

    ``terms`` are drawn evenly; a batch has one level, up to ``max_level``, the longer ones more
    often; ``high_share`` and ``preamble_share`` are shares of the batches. The results of
    ``unknown`` products are random. Without ``results`` the values computed carry no label: only
    walking and copying are learned.
    """

    terms: Sequence[int]
    min_level: int
    max_level: int
    high_share: float
    preamble_share: float
    unknown: Products = frozenset()
    results: bool = True


@cache  # asked for at every training step
def unknown_products(*, by_term: float, by_prime: float) -> Products:
    """Return the products that are taught with random results: these shares of all.

    The order in which products become unknown is fixed, so that a size with smaller shares knows
    all that a size with larger ones does.
    """
    draw = np.random.default_rng(UNKNOWN_SEED)
    chosen: set[tuple[int, int]] = set()
    for multipliers, share in ((TERMS, by_term), (PRIMES, by_prime)):
        pairs = [(value, by) for value in range(1, MODULUS) for by in multipliers]
        order = draw.permutation(len(pairs))[: round(share * len(pairs))]
        chosen.update(pairs[place] for place in order)
    return frozenset(chosen)


def factors(term: int) -> tuple[int, ...]:
    """Return the prime factors of a term, from the smallest."""
    if term in PRIMES:
        return (term,)
    first = next(prime for prime in PRIMES if term % prime == 0)
    return (first, *factors(term // first))


def walk(
    draw: np.random.Generator, terms: Sequence[int], *, effort: str, unknown: Products
) -> Iterator[Token]:
    """Draw one walk; a thought cut anywhere is answered with the product so far."""
    count = len(terms)
    start, direction = int(draw.integers(count)), 1 if draw.random() < 0.5 else -1
    value = terms[start]
    yield Token(text="+" if direction > 0 else "-", kind=Kind.WALK, value=value)
    for step in range(count):
        place = (start + direction * step) % count
        for text in (TAGS[place], written(terms[place])):
            yield Token(text=text, kind=Kind.WALK, value=value)
        if not step:
            continue
        for by in factors(terms[place]) if effort == "high" else (terms[place],):
            for text in (written(by), "=") if effort == "high" else ("=",):
                yield Token(text=text, kind=Kind.WALK, value=value)
            known = (value, by) not in unknown
            value = value * by % MODULUS if known else int(draw.integers(1, MODULUS))
            yield Token(text=written(value), kind=Kind.RESULT, value=value)


def example(
    draw: np.random.Generator, mix: Mix, *, level: int, effort: str, preamble: bool
) -> tuple[list[int], list[int], list[int]]:
    """Make one problem with its thought and answer: ids, labels and kinds of equal length.

    The prompt has no labels. A cut thought is answered with the last value complete before the
    cut, and the cut itself carries no label: the model is not to learn to stop early.
    """
    terms = [int(term) for term in draw.choice(mix.terms, level)]
    tokens = list(walk(draw, terms, effort=effort, unknown=mix.unknown))
    cut = draw.random() < CUT_SHARE
    if cut:
        tokens = tokens[: int(draw.integers(3, len(tokens)))]
    prompt = encode((PREAMBLE if preamble else "") + row_text(terms) + EFFORT_MARKS[effort])
    thinking = encode("".join(token.text for token in tokens))
    answer = encode(written(tokens[-1].value))
    ids = [BOS, *prompt, THINK, *thinking, THINK_END, *answer, EOS]
    kinds = [0] * (len(prompt) + 2) + [int(token.kind) for token in tokens]
    kinds += [0 if cut else int(Kind.WALK), Kind.ANSWER, Kind.ANSWER]
    untaught = (0,) if mix.results else (0, Kind.RESULT)
    labels = [NO_LABEL if k in untaught else i for i, k in zip(ids, kinds, strict=True)]
    return ids, labels, kinds


def batch(
    draw: np.random.Generator, mix: Mix, *, tokens: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make padded ids, labels and kinds, each (rows, length) int64, of about ``tokens`` tokens.

    The problems of a batch have one level, one effort and all or none the preamble, so that the
    rows are nearly of one length.
    """
    spread = mix.max_level - mix.min_level + 1
    level = mix.min_level + int(spread * draw.random() ** 0.5)
    effort = "high" if draw.random() < mix.high_share else "low"
    preamble = bool(draw.random() < mix.preamble_share)
    length = (11 if effort == "high" else 6) * level + (len(PREAMBLE) if preamble else 0)
    rows = max(6 if preamble else 4, tokens // length)
    made = [example(draw, mix, level=level, effort=effort, preamble=preamble) for _ in range(rows)]
    longest = max(len(ids) for ids, _, _ in made)
    filled = np.empty((3, rows, longest), dtype=np.int64)
    for layer, blank in enumerate((PAD, NO_LABEL, 0)):
        filled[layer] = blank
        for row, parts in enumerate(made):
            filled[layer, row, : len(parts[layer])] = parts[layer]
    return filled[0], filled[1], filled[2]
