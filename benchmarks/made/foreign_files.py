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


# Requests: arrival, tokens of prompt and output, and what a client measured of it.

Sent = tuple[float, int, int, float, float]  # arrival, prompt, output, ttft, latency in seconds


@dataclass(frozen=True)
class RequestCase:
    """`write` makes a file of requests; a change of `spoil` puts a value of the test's in one.

    `unit` is where the importer says that something stands, `first` the place of the first request.
    """

    name: str
    file: str
    write: Callable[..., Path]
    measured: bool
    rows: bool
    unit: str = "line"
    first: int = 1


def azure(path: Path, sent: list[Sent], spoil: dict | None = None) -> Path:
    """Write the lines; `spoil` has a request's number and columns by name."""
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    for number, (arrival, prompt, output, *_) in enumerate(sent):
        time = f"2023-11-16 18:{int(arrival // 60):02d}:{arrival % 60:010.7f}"
        row = {"arrival": time, "prompt": prompt, "output": output}
        row |= (spoil or {}).get(number, {})
        lines.append(",".join(str(value) for value in row.values() if value is not ...))
    path.write_bytes("\r\n".join([*lines, ""]).encode())
    return path


def mooncake(path: Path, sent: list[Sent], spoil: dict | None = None) -> Path:
    """Write the lines; requests of the same prompt length begin alike."""
    lines = []
    for number, (arrival, prompt, output, *_) in enumerate(sent):
        row = {"timestamp": arrival * 1000, "input_length": prompt, "output_length": output}
        row["hash_ids"] = [prompt * 1000 + place for place in range(-(-prompt // 512))]
        change = (spoil or {}).get(number, {})
        names = {"arrival": "timestamp", "prompt": "input_length", "output": "output_length"}
        row |= {names[name]: value for name, value in change.items()}
        lines.append(json.dumps({k: v for k, v in row.items() if v is not ...}) + "\n")
    path.write_text("".join(lines))
    return path


def bailian(path: Path, sent: list[Sent], spoil: dict | None = None) -> Path:
    """Write the lines, each a chat of its own; requests of the same prompt length begin alike."""
    lines = []
    for number, (arrival, prompt, output, *_) in enumerate(sent):
        row = {"chat_id": number, "parent_chat_id": -1, "timestamp": arrival, "turn": 1}
        row |= {"input_length": prompt, "output_length": output, "type": "text"}
        row["hash_ids"] = [prompt * 1000 + place for place in range(-(-prompt // 16))]
        change = (spoil or {}).get(number, {})
        names = {"arrival": "timestamp", "prompt": "input_length", "output": "output_length"}
        row |= {names.get(name, name): value for name, value in change.items()}
        lines.append(json.dumps({k: v for k, v in row.items() if v is not ...}) + "\n")
    path.write_text("".join(lines))
    return path


def vllm_bench(path: Path, sent: list[Sent], spoil: dict | None = None, **head) -> Path:
    rows = [
        {"arrival": 4000.5 + arrival, "prompt": p, "output": o, "ttft": ttft, "latency": latency}
        | (spoil or {}).get(number, {})
        for number, (arrival, p, o, ttft, latency) in enumerate(sent)
    ]

    def column(name: str) -> list:
        return [None if row[name] is ... else row[name] for row in rows]

    document = {
        "date": "20261125-102500",
        "endpoint_type": "vllm",
        "backend": "vllm",
        "model_id": "m",
        "tokenizer_id": "m",
        "num_prompts": len(sent),
        "request_rate": "inf",
        "max_concurrency": None,
        **head,
        "input_lens": column("prompt"),
        "output_lens": column("output"),
        "ttfts": column("ttft"),
        "itls": [[] for _ in rows],
        "latencies": column("latency"),
        "start_times": column("arrival"),
        "generated_texts": ["secret" for _ in rows],
        "errors": [row.get("error", "") for row in rows],
    }
    path.write_text(json.dumps(document))
    return path


def aiperf(path: Path, sent: list[Sent], spoil: dict | None = None) -> Path:
    """Write the lines as aiperf does, in the units that it shows."""
    lines = []
    for number, (arrival, prompt, output, ttft, latency) in enumerate(sent):
        row = {"arrival": 1.7e9 + arrival, "prompt": prompt, "output": output, "ttft": ttft}
        row |= {"latency": latency, "phase": "profiling", "error": None}
        row |= (spoil or {}).get(number, {})
        spoilt = "arrival" in (spoil or {}).get(number, {})
        whole = row["arrival"] if spoilt else round(row["arrival"] * 1e9)
        metadata = {
            "session_num": number,
            "x_request_id": "secret",
            "request_start_ns": whole,
            "request_end_ns": round((1.7e9 + arrival + row["latency"]) * 1e9),
            "worker_id": "worker_1",
            "benchmark_phase": row["phase"],
            "was_cancelled": False,
        }
        metrics = {
            "input_sequence_length": {"value": row["prompt"], "unit": "tokens"},
            "output_sequence_length": {"value": row["output"], "unit": "tokens"},
            "time_to_first_token": {"value": row["ttft"] * 1e3, "unit": "ms"},
        }
        metrics = {name: each for name, each in metrics.items() if each["value"] is not ...}
        metadata = {name: each for name, each in metadata.items() if each is not ...}
        lines.append(
            json.dumps({"metadata": metadata, "metrics": metrics, "error": row["error"]}) + "\n"
        )
    path.write_text("".join(lines))
    return path


def guidellm(
    path: Path, sent: list[Sent], spoil: dict | None = None, strategy=None, **fields
) -> Path:
    """Write a report of one benchmark; `fields` are added to it."""
    report = guidellm_report([(sent, spoil, strategy)])
    report["benchmarks"][0] |= fields
    path.write_text(json.dumps(report))
    return path


def guidellm_report(benchmarks) -> dict:
    return {
        "metadata": {"version": 2, "guidellm_version": "0.8.1"},
        "config": {"spec": {"benchmarks": 1}},
        "benchmarks": [_guidellm_benchmark(*each) for each in benchmarks],
        "conclusions": [],
    }


def _guidellm_benchmark(sent, spoil, strategy) -> dict:
    groups: dict[str, list] = {"successful": [], "incomplete": [], "errored": []}
    for number, (arrival, prompt, output, ttft, latency) in enumerate(sent):
        row = {"arrival": 1.7e9 + arrival, "prompt": prompt, "output": output, "ttft": ttft}
        row |= {"latency": latency, "group": "successful"} | (spoil or {}).get(number, {})
        stats = {
            "request_id": str(number),
            "request_args": "secret",
            "output": "secret",
            "info": {"timings": {"first_token_iteration": 1.7e9 + arrival + row["ttft"]}},
            "input_metrics": {"text_tokens": row["prompt"]},
            "output_metrics": {"text_tokens": row["output"]},
            "request_start_time": row["arrival"],
            "request_end_time": 1.7e9 + arrival + row["latency"],
        }
        if stats["request_start_time"] is ...:
            del stats["request_start_time"]
        for name in ("input_metrics", "output_metrics"):
            if stats[name]["text_tokens"] is ...:
                stats[name] = {}
        groups[row["group"]].append(stats)
    return {
        "config": {"strategy": strategy or {"type_": "constant", "rate": 2.0}},
        "requests": groups,
    }


REQUEST_CASES = (
    RequestCase("Azure LLM inference trace", "trace.csv", azure, False, rows=True, first=2),
    RequestCase("Mooncake trace", "trace.jsonl", mooncake, False, rows=True),
    RequestCase("Bailian trace", "chats.jsonl", bailian, False, rows=True),
    RequestCase(
        "vllm bench serve result", "bench.json", vllm_bench, True, rows=False, unit="request"
    ),
    RequestCase("aiperf records", "profile_export.jsonl", aiperf, True, rows=True),
    RequestCase("guidellm report", "benchmarks.json", guidellm, True, rows=False, unit="request"),
)
