"""Plain outcomes: what is read of a usual line at once is what is read of it value by value."""

import json
import random

from traces.foreign.evaluations.plain import PlainOutcomes
from traces.foreign.evaluations.reader import Choices

VALUES = {
    "problem_id": ["p1", "ä", "", 7, 7.0, None, True, []],
    "sample_index": [0, 3, 2**53, 2**60, -1, 1.0, 1.5, "1", True, None],
    "correct": [True, False, None, 1, 0, "yes", 2],
    "answer": ["42", "", None, 42, 2.0, 1e300, True, ["a"]],
    "expected": ["42", None, 3],
    "output_tokens": [10, 0, None, -5, 10.0, "10", 2**70, True],
    "think_tokens": [4, 10, 11, None, 0],
    "latency_s": [0.5, 1, None, -1, "x", 1e17, True],
    "logprob_mean": [-0.5, None, 0, "x", 1e308],
    "group": ["a", None, 3, {}],
    "other": [1, None, {"a": [1, 2]}],
}


def test_both_ways_read_the_same(tmp_path):
    rng = random.Random(5)
    lines = [b"", b"not", b"[]", b'{"problem_id": "p", "sample_index": 0, "correct": NaN}', b"\xff"]
    for _ in range(3000):
        row = {
            name: rng.choice(values if rng.random() < 0.2 else values[:1])
            for name, values in VALUES.items()
            if rng.random() < 0.97
        }
        lines.append(json.dumps(row).encode())
    path = tmp_path / "o.jsonl"
    path.write_bytes(b"\n".join(lines))
    fast, slow = (PlainOutcomes(path, Choices()) for _ in range(2))
    numbered = [(at, line) for at, line in enumerate(lines, 1)]
    ours, theirs = list(fast._of_lines(numbered)), list(slow._of_rows(numbered))
    assert ours == theirs and len(ours) > 1000
    assert (fast.skipped.counts, fast.skipped.first) == (slow.skipped.counts, slow.skipped.first)
    assert len(fast.skipped.counts) > 8
