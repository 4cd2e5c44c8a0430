"""The host's part of a step, learned from published runs: ``python benchmarks/host_term.py``.

Needs ttscope[prior], and `--runs FOLDER` (shared/data/gpu_runs) for the labs' runs. Each point is
replayed with the kernels of the prior, and with each term of the host's part a little longer: how
much longer a token then takes is the point's exposure. `HostTerm` is fitted to these. Printed is
what each generation learned, then the error of TPOT (of the whole batch where no TPOT was measured)
by kernels alone, and with the host's part of the points of other models, of other GPUs and of other
labs. `--write` keeps what all points say in advisor/step_time/host/host_term.json.

Not learned from, but predicted: points whose requests waited for KV blocks (how many blocks they
had is not told), engines that schedule asynchronously (what of the host's part kernels hide is not
known), and tensor parallelism over PCIe before vLLM 0.12 (no table has those all-reduces).
A closed loop teaches by the whole time of a request over its tokens, as how it splits into TTFT and
TPOT depends on who arrives with whom.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from serving_points import CLOSED, OPEN, TOGETHER, Point
from silicon import chosen, errors, flight_of, options, priced_engine, replayed

from advisor.replay.result import Replayed
from advisor.replay.workload import Workload
from advisor.step_time.cost import StepCost
from advisor.step_time.host.fit import TERMS, HostTerm, as_table
from advisor.step_time.host.law import (
    ASYNCHRONOUS,
    KEPT,
    SYNCHRONOUS,
    generation_of,
    in_features,
)
from advisor.step_time.host.spread import Evidence, evidence_of, learn_spread
from advisor.step_time.prior.relatives import RELATIVES
from traces.errors import TablesError, UsageError
from traces.schema.engine import EngineConfig

Floats = npt.NDArray[np.float64]

USUAL: Final = np.array([8e-4, 4e-4, 4e-5, 2e-3])  # seconds [TERMS] that exposures are taken at
SMALL: Final = 0.2  # of these: how far a term is moved
WAITED: Final = 0.5  # seconds in the queue, on average, from which a point waited for blocks
PCIE: Final = tuple(name for name, each in RELATIVES.items() if each.wires != each.of)


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """A priced point: seconds of a token, as measured and by kernels alone, and its exposure."""

    point: Point
    engine: EngineConfig
    cost: StepCost
    generation: str
    measured: float
    kernels: float
    exposure: Floats
    teaches: bool
    evidence: Evidence

    def with_host(self, seconds: Floats) -> StepCost:
        """Return the cost of steps with a host's part, seconds [TERMS]."""
        return _with(self.cost, self.engine, seconds, self.generation == ASYNCHRONOUS)

    def ratio(self, seconds: Floats) -> float:
        """Return predicted over measured: TPOT, or the whole batch's time."""
        work, done = replayed(self.point, self.engine, self.with_host(seconds))
        if self.point.load == TOGETHER:
            assert self.point.latency_s
            return done.makespan_s / self.point.latency_s
        assert self.point.tpot_s
        return _tpot(self.point, work, done) / self.point.tpot_s


def _with(cost: StepCost, engine: EngineConfig, seconds: Floats, hidden: bool) -> StepCost:
    law = in_features(seconds, engine)
    nothing = np.zeros(len(law))
    return cost._replace(linear=nothing if hidden else law, hidden=law if hidden else np.zeros(0))


def _tpot(point: Point, work: Workload, done: Replayed) -> float:
    count = len(work.output_tokens)
    edge = flight_of(point) if point.load == CLOSED else 0
    kept = slice(edge, max(count - edge, edge + 1))
    spent = (done.end_s - done.first_token_s)[kept]
    return float(np.mean(spent / np.maximum(work.output_tokens[kept] - 1, 1)))


def _a_token(point: Point, work: Workload, done: Replayed) -> float:
    """Return the predicted seconds of a token: of the whole batch, TPOT, or a request's time."""
    if point.load == TOGETHER:
        return done.makespan_s / point.output_tokens
    tpot = _tpot(point, work, done)
    if point.load == OPEN:
        return tpot
    edge = flight_of(point)
    ttft = float(np.mean(done.ttft_s[edge : max(len(done.ttft_s) - edge, edge + 1)]))
    return (ttft + tpot * (point.output_tokens - 1)) / point.output_tokens


def _measured(point: Point) -> float:
    if point.load == TOGETHER:
        assert point.latency_s
        return point.latency_s / point.output_tokens
    assert point.tpot_s and point.ttft_s
    if point.load == OPEN:
        return point.tpot_s
    return (point.ttft_s + point.tpot_s * (point.output_tokens - 1)) / point.output_tokens


def row_of(point: Point) -> Row | None:
    """Return a point with its exposure; None where it cannot be priced."""
    if point.facts is None or point.unknown is not None:
        return None
    generation = generation_of(point.engine)
    try:
        engine, cost = priced_engine(point.system, point.facts, point.engine)
        hidden = generation == ASYNCHRONOUS
        laws = [np.zeros(len(TERMS)), USUAL]
        laws += [USUAL * np.where(np.arange(len(TERMS)) == at, 1 + SMALL, 1) for at in range(4)]
        ran = [replayed(point, engine, _with(cost, engine, law, False)) for law in laws]
    except (UsageError, TablesError, ValueError):
        return None
    _, usual, *moved = (_a_token(point, work, done) for work, done in ran)
    exposure = (np.array(moved) - usual) / (SMALL * USUAL)
    done = ran[1][1]
    waited = float(np.mean(done.scheduled_s - done.queued_s)) > WAITED or done.preemptions > 0
    old_wires = point.system in PCIE and engine.tensor_parallel_size > 1 and point.version < (0, 12)
    return Row(
        point=point,
        engine=engine,
        cost=cost,
        generation=generation,
        measured=_measured(point),
        kernels=usual - float(exposure @ USUAL),
        exposure=exposure,
        teaches=not (waited or hidden or old_wires),
        evidence=evidence_of(point.system, engine, point.facts, done.peak["requests"]),
    )


def fitted(rows: Sequence[Row]) -> HostTerm:
    """Return what the points that teach say."""
    kept = [row for row in rows if row.teaches]
    return HostTerm().fit(
        np.array([row.exposure for row in kept]),
        np.array([row.kernels for row in kept]),
        np.array([row.measured for row in kept]),
        np.array([row.generation for row in kept]),
    )


def seconds_of(model: HostTerm, row: Row) -> Floats:
    """Return the seconds [TERMS] that a fit has for a point."""
    return model.seconds(SYNCHRONOUS if row.generation == ASYNCHRONOUS else row.generation)


def family(point: Point) -> str:
    """Return a model's name for leaving it out, with all of the same shape."""
    facts = point.facts
    assert facts is not None
    return f"{facts.num_hidden_layers}x{facts.hidden_size}x{facts.intermediate_size}"


LEFT_OUT: Final[dict[str, Callable[[Row], str]]] = {
    "model": lambda row: family(row.point),
    "GPU": lambda row: row.point.system,
    "lab": lambda row: row.point.lab,
}


def left_out(rows: Sequence[Row], key: Callable[[Row], str]) -> list[float]:
    """Return predicted over measured of each point, from those of other models, GPUs or labs."""
    found = [1.0] * len(rows)
    for name in sorted({key(row) for row in rows}):
        others = [row for row in rows if key(row) != name]
        if not any(row.teaches for row in others):
            continue
        model = fitted(others)
        for place, row in enumerate(rows):
            if key(row) == name:
                found[place] = row.ratio(seconds_of(model, row))
    return found


def table(title: str, rows: Sequence[Row], ratios: Sequence[float], key: Callable[[Row], str]):
    """Print the errors by a key."""
    print(f"\n{title}: points, mean and median |error| %, bias %, least and most")
    for name in sorted({key(row) for row in rows}):
        print(
            f"  {name:<40}"
            + errors([r for row, r in zip(rows, ratios, strict=True) if key(row) == name])
        )


def gains(rows: Sequence[Row], ratios: Sequence[float]) -> None:
    """Print how much faster more GPUs are, predicted over measured, at the same load."""
    times: dict[tuple[object, ...], dict[int, tuple[float, float]]] = {}
    for row, ratio in zip(rows, ratios, strict=True):
        p = row.point
        key = (p.lab, p.model, p.system, p.precision, p.prompt_tokens, p.output_tokens,
               p.in_flight, p.rate_per_s)  # fmt: skip
        times.setdefault(key, {})[row.engine.tensor_parallel_size] = (
            row.measured,
            ratio * row.measured,
        )
    print("\ngain of TP over the least measured, predicted / measured, by lab, GPU and TP")
    found: dict[str, list[float]] = {}
    for key, sizes in times.items():
        least = min(sizes)
        for size, (real, ours) in sizes.items():
            if size != least:
                gain = (sizes[least][1] / ours) / (sizes[least][0] / real)
                found.setdefault(f"{key[0]} {key[2]} TP {least} to {size}", []).append(gain)
    for name, values in sorted(found.items()):
        print(f"  {name:<40}{errors(values)}")


def main() -> None:
    parser = options()
    parser.add_argument("--write", action="store_true", help="keep the law of all points")
    given: argparse.Namespace = parser.parse_args()
    rows = [row for point in chosen(given) if (row := row_of(point)) is not None]
    print(f"{len(rows):,} points priced, {sum(row.teaches for row in rows):,} teach")
    print(Counter((row.point.lab, row.generation, row.teaches) for row in rows))
    model = fitted(rows)
    for name, law in as_table(model).items():
        print(f"  {name:<14}" + "  ".join(f"{t} {1e6 * s:.1f} us" for t, s in law.items()))
    zero = np.zeros(len(TERMS))
    found = {"kernels alone": [row.ratio(zero) for row in rows]}
    found |= {f"{name} left out": left_out(rows, key) for name, key in LEFT_OUT.items()}
    found["all points"] = [row.ratio(seconds_of(model, row)) for row in rows]
    for title, ratios in found.items():
        table(title, rows, ratios, lambda row: f"{row.point.lab} {row.generation}")
    whole = found["model left out"]
    for what, key in (
        (
            "GPU and TP",
            lambda r: f"{r.point.lab} {r.point.system} tp{r.engine.tensor_parallel_size}",
        ),
        ("model", lambda r: f"{r.point.lab} {r.point.model} {r.point.precision}"),
        ("load", lambda r: f"{r.point.lab} {r.point.in_flight or r.point.rate_per_s:>6}"),
    ):
        table(f"model left out, by {what}", rows, whole, key)
    gains(rows, whole)
    spread = learn_spread([row.evidence for row in rows], found, rows)
    if given.write:
        KEPT.write_text(json.dumps(
            {
                "about": "seconds of a step beyond its kernels, by generation of vLLM's engine:"
                " benchmarks/host_term.py --write. Coefficients are ttscope's own",
                "learned_from": {
                    f"{lab}, {name}": count
                    for (lab, name), count in sorted(Counter(
                        (row.point.lab, row.generation) for row in rows if row.teaches
                    ).items())
                },
                "sources": {
                    "aic, inferencex": "silicon_sample.csv of aiconfigurator-core, Apache-2.0",
                    "argonne": "LLM-Inference-Bench, BSD-3-Clause",
                    "iog": "IOG-Foundation/llm-inference-benchmarks, Apache-2.0",
                },
                "seconds": as_table(model),
                "spread": spread,
            },
            indent=1,
        ) + "\n")  # fmt: skip


if __name__ == "__main__":
    main()
