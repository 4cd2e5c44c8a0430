"""Whether the closed loop of agents is right: ``python -m benchmarks.agents [--agents 8,16]``.

A vLLM server (CPU, the small reasoner) serves agents while `ttscope attach` watches it with its
spans and the plugin. Each agent sends a turn, waits for the answer, sleeps as its tools would, and
sends the next one, whose prompt is the last one's and more. What few agents left in the recording
is asked for more of them (`replay --agents`). Then so many are sent. It prints the predicted turns
beside those that the server measured (its spans) and those of the client, which has HTTP and its
own waiting for a core in them.
`--keep FOLDER` leaves the recordings and what was measured there, and predicts again from those.
"""

import argparse
import json
import random
import tempfile
import threading
import time
from pathlib import Path

import httpx
import numpy as np

from benchmarks.servers.clients import attached, verb
from benchmarks.servers.vllm_server import free_port, running, telling

FLAGS = ("--max-num-seqs", "16", "--max-num-batched-tokens", "512", "--enable-prefix-caching")
LONGEST = 1_000  # tokens of the model's context


def sessions(count: int, seed: int) -> list[list[tuple[int, int, float]]]:
    """Return sessions of turns: tokens that are new in the prompt, those of the answer, tools."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        turns, prompt = [], 0
        for number in range(rng.randint(4, 12)):
            later = min(int(rng.expovariate(1 / 50)) + 8, 200)
            new = later if number else rng.randint(120, 260)
            answer = min(max(round(rng.lognormvariate(4.0, 0.6)), 8), 200)
            prompt += new
            if prompt + answer > LONGEST:
                break
            turns.append((new, answer, min(rng.expovariate(1 / 0.8), 4.0)))
        found.append(turns)
    return found


class Agents:
    """So many agents that go through sessions, one after another, until none is left."""

    def __init__(
        self, url: str, model: str, agents: int, todo: list[list[tuple[int, int, float]]]
    ) -> None:
        self.url, self.model, self.agents = url, model, agents
        self.todo, self.lock = list(enumerate(todo)), threading.Lock()
        self.begun: list[float] = []  # when sessions began
        self.turns: list[tuple[int, float, float]] = []  # of which agent, sent, answered
        self.client = httpx.Client(timeout=300, limits=httpx.Limits(max_connections=None))

    def run(self) -> None:
        threads = [threading.Thread(target=self._work, args=(each,)) for each in range(self.agents)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.client.close()

    def _work(self, agent: int) -> None:
        while True:
            with self.lock:
                if not self.todo:
                    return
                number, turns = self.todo.pop(0)
                self.begun.append(time.monotonic())
            rng = random.Random(f"{agent} {number}")
            trace, parent = f"{rng.getrandbits(128):032x}", f"{rng.getrandbits(64):016x}"
            prompt: list[int] = []
            for new, answer, tool_s in turns:
                prompt += [rng.randrange(4, 60) for _ in range(new)]
                body = {
                    "model": self.model, "prompt": prompt, "max_tokens": answer, "ignore_eos": True,
                }  # fmt: skip
                sent = time.monotonic()
                self.client.post(
                    f"{self.url}/v1/completions", json=body,
                    headers={"traceparent": f"00-{trace}-{parent}-01"},
                ).raise_for_status()  # fmt: skip
                self.turns.append((agent, sent, time.monotonic()))
                time.sleep(tool_s)

    def steady(self) -> dict[str, float]:
        """Return mean, p50 and p95 of turns that came while all agents were at work."""
        first = {}
        for agent, _, answered in sorted(self.turns, key=lambda turn: turn[2]):
            first.setdefault(agent, answered)
        begin, end = max(first.values()), max(self.begun)
        ago_s = time.time() - time.monotonic()
        took = np.array([done - sent for _, sent, done in self.turns if begin < sent <= end])
        return figures(took) | {"begin": begin + ago_s, "end": end + ago_s}


def figures(took: np.ndarray) -> dict[str, float]:
    """Return what is looked at of times of turns."""
    p50, p95 = np.quantile(took, (0.5, 0.95)).tolist()
    return {"turns": len(took), "mean": float(took.mean()), "p50": p50, "p95": p95}


def of_spans(folder: Path, window: dict[str, float]) -> dict[str, float]:
    """Return the same of the server's spans of requests that came in a window, unix seconds."""
    from traces.recording.reader import Recording  # not before the servers are forked

    turns = Recording.open(folder / "live").samples.drop_nulls(["arrival", "end"])
    came = turns["arrival"].to_numpy() / 1e9
    inside = (came > window["begin"]) & (came <= window["end"])
    return figures(((turns["end"] - turns["arrival"]).to_numpy() / 1e9)[inside])


def watched(folder: Path, agents: int, count: int, seed: int) -> dict[str, float]:
    """Serve agents, leave what attach recorded in `folder/live`, and return what was measured."""
    told = folder / "measured.json"
    if told.exists():
        return json.loads(told.read_text())
    port = free_port()
    spans, variables = telling(port)
    with running(folder / "server", *spans, *FLAGS, **variables) as server:
        model = httpx.get(f"{server.url}/v1/models").json()["data"][0]["id"]
        Agents(server.url, model, 2, sessions(4, 99)).run()  # it warms up
        time.sleep(6.0)  # their spans go out before anybody listens
        with attached(server.url, port, folder / "live", settle_s=14.0):
            sent = Agents(server.url, model, agents, sessions(count, seed))
            sent.run()
    told.write_text(json.dumps(sent.steady()))
    return sent.steady()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--recorded", type=int, default=4)
    parser.add_argument("--agents", default="8,16")
    parser.add_argument("--sessions", type=int, default=40, help="that are recorded")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    asked = parser.parse_args()
    counts = [asked.recorded, *(int(each) for each in asked.agents.split(","))]
    with tempfile.TemporaryDirectory() as name:
        folder = asked.keep or Path(name)
        measured = {}
        for count in counts:
            # Other sessions of the same kind, but for those recorded.
            seed = asked.seed if count == asked.recorded else asked.seed + 1_000 + count
            number = max(asked.sessions, 5 * count)
            measured[count] = watched(folder / str(count), count, number, seed)
        out, told = verb(
            "replay", folder / str(asked.recorded) / "live", "--agents", ",".join(map(str, counts)),
            "--interval", "others", "--json",
        ).communicate()  # fmt: skip
        if not out:
            raise SystemExit(told)
        print("agents  number   server   client  predicted  off     interval")
        for run in json.loads(out)["agents"]["by_agents"]:
            client = measured[run["agents"]]
            server = of_spans(folder / str(run["agents"]), client)
            for part in ("mean", "p50", "p95"):
                real, said = server[part], run["turn_s"][part]
                held = said["low"] is None or said["low"] <= real <= (said["high"] or np.inf)
                ends = f"[{(said['low'] or 0) * 1e3:.0f}, {(said['high'] or np.inf) * 1e3:.0f}]"
                three = [f"{each * 1e3:6.0f} ms" for each in (real, client[part], said["value"])]
                print(f"{run['agents']:6} {part:>7} {' '.join(three)}", end="")
                print(f" {said['value'] / real - 1:+6.1%}  {ends} {'held' if held else 'MISSED'}")


if __name__ == "__main__":
    main()
