"""Samples of one problem made up by hand."""

import numpy as np

from advisor.accuracy.samples import ProblemSamples


def samples(answers, *, right="a", tokens=None, finish=None, logprob=None, **columns):
    """Return a problem whose sample i gave answers[i]; an answer equal to `right` is right."""
    count = len(answers)
    nothing = np.full(count, np.nan)

    def numbers(values, default):
        return np.asarray(default if values is None else values, dtype=float)

    tokens = numbers(tokens, np.full(count, 10.0))
    return ProblemSamples(
        **{
            "problem_id": "p",
            "indices": tuple(range(count)),
            "answers": tuple(answers),
            "correct": tuple(answer == right for answer in answers),
            "tokens": tokens,
            "think_tokens": nothing,
            "censored": np.zeros(count, dtype=bool),
            "logprob_mean": numbers(logprob, nothing),
            "confidence": nothing,
            "score": nothing,
            "first_token_s": np.zeros(count),
            "finish_s": numbers(finish, tokens),
        }
        | columns
    )
