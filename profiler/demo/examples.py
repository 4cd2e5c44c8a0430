"""Training text: problems with written thoughts, as rows of token ids and labels.

A thought walks the row of terms from any term, either way round, and writes a running product.

    low effort   b36c51=27a42=08         one step per term, from a table of 96 x all terms
    high effort  b36c51*3=29*5=27a42...  every term taken apart into one-digit factors

There are 2 x level right thoughts for a problem, which meet different table entries and end in the
same answer: that is what makes votes worthwhile.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from profiler.demo.task import EFFORT_MARKS, MODULUS, PREAMBLE, written
from profiler.demo.tokenizer import BOS, EOS, PAD, THINK, THINK_END, encode

NO_LABEL = -100
CUT_SHARE = 0.12  # of the thoughts, cut anywhere and answered with the value reached

Row = tuple[list[int], list[int]]


@dataclass(frozen=True, kw_only=True)
class Mix:
    """What the batches of one stretch of training hold.

    ``terms`` are drawn evenly; a batch has one level, up to ``max_level``, the longer ones more
    often; ``high_share`` and ``preamble_share`` are shares of the batches. Without
    ``results`` the values computed carry no label: only walking and copying are learned.
    """

    terms: Sequence[int]
    min_level: int
    max_level: int
    high_share: float
    preamble_share: float
    results: bool = True


def factors(term: int) -> tuple[int, ...]:
    """Return a term as one-digit factors, the fewest and the most even: 24 is (4, 6), 7 is (7,)."""
    if term < 10:
        return (term,)
    low = max(low for low in range(2, 10) if term % low == 0 and term // low >= low)
    return (low, *factors(term // low))


def thought(
    terms: Sequence[int], *, start: int, direction: int, effort: str
) -> tuple[str, list[tuple[int, int]]]:
    """Return the right thought of one walk, and the values reached on the way.

    Each value comes as (characters written when it is complete, value); the first is the term
    at ``start`` itself and the last the answer.
    """
    count = len(terms)
    text = chr(ord("a") + start) + written(terms[start])
    value = terms[start]
    reached = [(len(text), value)]
    for step in range(1, count):
        place = (start + direction * step) % count
        text += chr(ord("a") + place) + written(terms[place])
        if effort == "high":
            for factor in factors(terms[place]):
                value = value * factor % MODULUS
                text += f"*{factor}={written(value)}"
                reached.append((len(text), value))
        else:
            value = value * terms[place] % MODULUS
            text += "=" + written(value)
            reached.append((len(text), value))
    return text, reached


def example(
    draw: np.random.Generator, *, terms: Sequence[int], effort: str, preamble: bool, results: bool
) -> Row:
    """Make one problem with its thought and answer: token ids and labels of equal length.

    The prompt has no labels. A cut thought is answered with the last value complete before the
    cut, and the cut itself carries no label: the model is not to learn to stop early.
    """
    start, direction = int(draw.integers(len(terms))), 1 if draw.random() < 0.5 else -1
    text, reached = thought(terms, start=start, direction=direction, effort=effort)
    label_end = THINK_END
    if draw.random() < CUT_SHARE:
        cut = int(draw.integers(3, len(text)))
        text = text[:cut]
        reached = [(end, value) for end, value in reached if end <= cut]
        label_end = NO_LABEL
    row = "".join(chr(ord("a") + place) + written(term) for place, term in enumerate(terms))
    prompt = encode((PREAMBLE if preamble else "") + row + EFFORT_MARKS[effort])
    thinking = encode(text)
    answer = [*encode(written(reached[-1][1])), EOS]
    ids = [BOS, *prompt, THINK, *thinking, THINK_END, *answer]
    if not results:
        for end, _ in reached[1:]:
            thinking[end - 2 : end] = [NO_LABEL] * 2
        answer = [NO_LABEL] * len(answer)
    labels = [NO_LABEL] * (len(prompt) + 2) + [*thinking, label_end, *answer]
    return ids, labels


def batch(draw: np.random.Generator, mix: Mix, *, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Make padded ids and labels, each (rows, length) int64, of about ``tokens`` tokens.

    The problems of a batch have one level, one effort and all or none the preamble, so that the
    rows are nearly of one length.
    """
    spread = mix.max_level - mix.min_level + 1
    level = mix.min_level + int(spread * draw.random() ** 0.5)
    effort = "high" if draw.random() < mix.high_share else "low"
    preamble = bool(draw.random() < mix.preamble_share)
    length = (
        3 * level + (13 if effort == "high" else 6) * level + (len(PREAMBLE) if preamble else 0)
    )
    rows = max(6 if preamble else 4, tokens // length)
    made = [
        example(
            draw,
            terms=[int(term) for term in draw.choice(mix.terms, level)],
            effort=effort,
            preamble=preamble,
            results=mix.results,
        )
        for _ in range(rows)
    ]
    longest = max(len(ids) for ids, _ in made)
    ids = np.full((rows, longest), PAD, dtype=np.int64)
    labels = np.full((rows, longest), NO_LABEL, dtype=np.int64)
    for row, (row_ids, row_labels) in enumerate(made):
        ids[row, : len(row_ids)] = row_ids
        labels[row, : len(row_labels)] = row_labels
    return ids, labels
