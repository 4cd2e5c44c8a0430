"""The battery that every importer of outcomes passes, over a file of its format that is made here.

A `Case` writes problems and samples as the format would. A new format adds one to `CASES`.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Sample = tuple[str, int, str | None, bool]  # problem, sample, answer, right


@dataclass(frozen=True)
class Case:
    """`write` makes a file; `rows` is whether its samples are lines, so that one can be broken."""

    name: str
    file: str
    write: Callable[[Path, list[Sample]], Path]
    rows: bool


def plain(path: Path, samples: list[Sample]) -> Path:
    rows = [
        {
            "problem_id": problem,
            "sample_index": index,
            "output_tokens": 10 + index,
            "answer": answer,
            "expected": "42",
            "correct": right,
            "latency_s": 0.5 + index,
        }
        for problem, index, answer, right in samples
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lm_eval(path: Path, samples: list[Sample]) -> Path:
    """Write documents whose filter keeps all answers, as `take_first_k` does."""
    problems = list(dict.fromkeys(problem for problem, *_ in samples))
    lines = []
    for number, name in enumerate(problems):
        own = [sample for sample in samples if sample[0] == name]
        answers = [answer or "[invalid]" for _, _, answer, _ in own]
        texts = [f"so it is {answer}" for answer in answers]
        row = {
            "doc_id": number,
            "doc": {"question": f"question {name}"},
            "target": "42",
            "arguments": {"gen_args_0": {"arg_0": "q", "arg_1": {"temperature": 0.7}}},
            "resps": [texts],
            "filtered_resps": [answers],
            "filter": "all",
            "metrics": ["exact_match"],
            "doc_hash": f"hash of {name}",
            "exact_match": sum(right for *_, right in own) / len(own),
        }
        lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines))
    return path


def inspect_samples(samples: list[Sample]) -> list[dict]:
    return [
        {
            "id": problem,
            "epoch": index + 1,
            "input": f"question {problem}",
            "target": "42",
            "messages": [],
            "output": {
                "model": "m",
                "choices": [
                    {
                        "message": {"role": "assistant", "content": f"it is {answer}"},
                        "stop_reason": "stop",
                    }
                ],
            },
            "scores": {"match": {"value": "C" if right else "I", "answer": answer}},
            "model_usage": {"m": {"input_tokens": 5, "output_tokens": 10 + index}},
        }
        for problem, index, answer, right in samples
    ]


HEADER = {
    "version": 2,
    "status": "success",
    "eval": {"task": "sums", "model": "m", "config": {"epochs": 3}},
    "plan": {"config": {"temperature": 0.7, "top_p": 0.95, "max_tokens": 100}},
}


def inspect_json(path: Path, samples: list[Sample]) -> Path:
    path.write_text(json.dumps(HEADER | {"samples": inspect_samples(samples)}, indent=2))
    return path


def inspect_zip(path: Path, samples: list[Sample], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    """Write the zip with the compression that inspect_ai used before Zstandard."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("_journal/start.json", json.dumps(HEADER))
        for sample in inspect_samples(samples):
            name = f"samples/{sample['id']}_epoch_{sample['epoch']}.json"
            file.writestr(name, json.dumps(sample))
        file.writestr("header.json", json.dumps(HEADER))
    return path


CASES = (
    Case("outcomes JSONL", "outcomes.jsonl", plain, rows=True),
    Case("lm-evaluation-harness samples", "samples_sums.jsonl", lm_eval, rows=True),
    Case("inspect_ai log", "log.eval", inspect_zip, rows=False),
    Case("inspect_ai log", "log.json", inspect_json, rows=False),
)
