"""Made sessions of coding agents, as kv-cache-tester keeps them.

`python -m benchmarks.made.agent_sessions FOLDER` writes the two of `profiler/demo/sessions`. No
agent had them: prompts grow by what tools give, now and then one reads much, and a sub-agent has a
context of its own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

BLOCK = 256
MODEL = "made"


def session(name: str, turns: int, seed: int) -> dict[str, Any]:
    """Return a session of so many turns of its own, and three of a sub-agent halfway."""
    rng = np.random.default_rng(seed)
    prompt, at, ids = int(rng.integers(14_000, 22_000)), 0.0, iter(range(1 << 20))
    own, requests = list[int](), list[dict[str, Any]]()
    for number in range(turns):
        answer = int(np.clip(rng.lognormal(5.4, 0.9), 40, 4_000))
        request = _request(at, prompt, answer, own, ids)
        requests.append(request)
        if number == turns // 2:
            requests.append({"t": request["t"], "type": "subagent", "requests": (
                inner := _sub_agent(at + request["api_time"] + 1.0, rng, ids))})  # fmt: skip
            at = inner[-1]["t"] + inner[-1]["api_time"] + 1.0
        else:
            tool_s = float(np.clip(rng.lognormal(1.6, 1.2), 0.5, 240.0))
            at = round(at + request["api_time"] + tool_s, 2)
        prompt += answer + int(np.clip(rng.lognormal(6.8, 1.0), 100, 20_000))
    return {
        "id": name, "block_size": BLOCK, "hash_id_scope": "local", "models": [MODEL],
        "requests": requests,
    }  # fmt: skip


def _sub_agent(at: float, rng: np.random.Generator, ids: Any) -> list[dict[str, Any]]:
    prompt, own, requests = int(rng.integers(6_000, 9_000)), list[int](), list[dict[str, Any]]()
    for _ in range(3):
        requests.append(_request(at, prompt, int(rng.integers(80, 500)), own, ids))
        at = round(at + requests[-1]["api_time"] + 2.0, 2)
        prompt += int(rng.integers(800, 4_000))
    return requests


def _request(at: float, prompt: int, answer: int, own: list[int], ids: Any) -> dict[str, Any]:
    """Return a request whose prompt begins with the full blocks of the ones before it."""
    while len(own) < prompt // BLOCK:
        own.append(next(ids))
    took = round(0.6 + prompt / 40_000 + answer / 60, 2)
    return {
        "t": round(at, 2), "model": MODEL, "in": prompt, "out": answer, "hash_ids": own[:],
        "api_time": took,
    }  # fmt: skip


def write(folder: Path, counts: dict[str, int]) -> list[Path]:
    """Write sessions of so many turns by their names; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for seed, (name, turns) in enumerate(counts.items()):
        path = folder / f"{name}.json"
        path.write_text(json.dumps(session(name, turns, seed), separators=(",", ":")) + "\n")
        paths.append(path)
    return paths


if __name__ == "__main__":
    write(Path(sys.argv[1]), {"session-1": 24, "session-2": 15})
