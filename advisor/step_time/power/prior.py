"""Board power of a GPU that was not measured: a concave function of how busy its steps keep it.

    watts = idle + (limit - idle) x min(1, runs + moves x sqrt(moved) + computes x sqrt(computed))

`moved` is the share of the peak bandwidth that the bytes of a step take, `computed` that of the
peak FLOP/s. `runs` is what steps take by running at all, more on boards without HBM. The
result is a law as recordings teach it (law.py), so that a replay and advice ask both alike.
benchmarks/power_prior.py has the published watts, fits the constants and leaves each GPU out.

A cap lowers the clock, not the memory's, so that a step loses little until the cap is far below
what the board would draw (`slowed`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Final, NamedTuple

import numpy as np
import polars as pl

from advisor.evidence.runs import RecordedRun
from advisor.step_time.cost import StepCost, predicted_steps
from advisor.step_time.law import non_negative_least_squares
from advisor.step_time.power.boards import Board, board_of
from advisor.step_time.power.law import PowerLaw, shapes_of
from advisor.step_time.table_cost import StepTables
from traces.errors import UsageError
from traces.recording.tables import COMPOSITION, TABLES
from traces.schema.engine import ModelFacts
from traces.statistics import Bools, Floats


class Shares(NamedTuple):
    """The constants of the law."""

    runs: float  # with HBM
    runs_gddr: float
    moves: float
    computes: float

    def of(self, moved: Floats, computed: Floats, gddr: Bools | bool) -> Floats:
        """Return the share of (limit - idle) that is wanted, not cut at 1."""
        runs = np.where(gddr, self.runs_gddr, self.runs)
        return np.asarray(runs + self.moves * np.sqrt(moved) + self.computes * np.sqrt(computed))


# Fitted to the published watts of seven GPUs in benchmarks/power_prior.py, each GPU with the same
# weight. `runs` is set: decode attention under 3 % of a B200's bandwidth draws 365 of its 1,000 W
# in the median (aiconfigurator-core 0.12), and boards with GDDR draw most of their limit always.
SHARES: Final = Shares(runs=0.3, runs_gddr=0.6, moves=0.40, computes=0.97)
SIGMA: Final = 0.20  # of the log of the watts above idle, a GPU left out
MEASURED_SIGMA: Final = 0.10  # where they were measured at one load
IDLE_SIGMA: Final = 0.3  # of the log of idle watts
LEFT: Final = 0.02  # of the log of energy: sensors and clocks
LAWS: Final = 9
# The share of its speed that a step loses at a cap: SLOWS x (1 - cap / watts without it)^3. Of the
# caps of an RTX 5090 and an RTX PRO 6000 in benchmarks/power_prior.py.
SLOWS: Final = 2.0
LEAST_SPEED: Final = 0.05
BATCHES: Final[Floats] = np.exp2(np.arange(11.0))  # whose watts are asked about, or between


class Lengths(NamedTuple):
    """Mean tokens of prompt and output of the requests."""

    prompt: float = 512.0
    output: float = 1024.0

    @property
    def context(self) -> float:
        return self.prompt + self.output / 2


USUAL: Final = Lengths()


@dataclass(frozen=True, kw_only=True)
class PowerAsked:
    """What is known of a load, and what is asked and measured of the power.

    `cap_w` is a board's. `measured` are the watts of a board at so many requests in flight.
    """

    lengths: Lengths = USUAL
    cap_w: float | None = None
    measured: tuple[float, int] | None = None

    @property
    def sigma(self) -> float:
        """The spread of the log of the watts above idle."""
        return SIGMA if self.measured is None else MEASURED_SIGMA

    def check(self, name: str, stated_w: float | None = None) -> None:
        """Raise UsageError for a cap or watts that the board of a GPU cannot have (`board_of`)."""
        board = board_of(name, stated_w)
        for option, watts in (
            ("--power-cap", self.cap_w),
            ("--measured watts", None if self.measured is None else self.measured[0]),
        ):
            if watts is None:
                continue
            if board is None:
                raise UsageError(f"{option}: what {name} may draw is not known")
            if not watts <= board.limit_w:
                raise UsageError(
                    f"{option} {watts:g}: above the {board.limit_w:g} W that {name} may draw"
                )
            if watts <= board.idle_w:
                raise UsageError(
                    f"{option} {watts:g}: not above the {board.idle_w:.0f} W that {name} draws idle"
                )


NOTHING: Final = PowerAsked()


@dataclass(frozen=True, kw_only=True)
class BusyBoard:
    """A board under a model: what its steps move and compute, and what it then draws.

    `devices` share a replica's work, `ranks` replicas a mixture's experts. A request forwards
    `tokens` a step. `peak` [FLOP/s] and `bandwidth` [bytes/s] are those of one board, whose watts
    above idle are `scale` times those of the law.
    """

    board: Board
    facts: ModelFacts
    devices: int
    peak: float
    bandwidth: float
    lengths: Lengths = USUAL
    ranks: int = 1
    tokens: int = 1
    shares: Shares = SHARES
    scale: float = 1.0

    def busy(self, cost: StepCost, batches: Floats) -> tuple[Floats, Floats]:
        """Return the shares of bandwidth and of FLOP/s [batches] that steps take, not cut at 1.

        The mean over decoding steps of a batch, and the prompts that come with them.
        """
        prompts = batches / self.lengths.output  # that begin in a step
        seconds = self.round_s(cost, batches)
        prompt, context = self.lengths.prompt, self.lengths.context
        moved = self._bytes(batches * self.tokens, batches * context)
        moved += prompts * self._bytes(np.full(1, prompt), np.full(1, prompt))
        flops = batches * self.tokens * self.facts.forward_flops(context - 1, 1)
        flops += prompts * self.facts.forward_flops(0.0, prompt)
        each = self.devices * seconds
        return moved / each / self.bandwidth, flops / each / self.peak

    def round_s(self, cost: StepCost, batches: Floats) -> Floats:
        """Return the seconds [batches] of a decoding step, and of the prompts that come with it."""
        decode_s, prompt_s = self._seconds(cost, batches)
        return np.asarray(decode_s + batches / self.lengths.output * prompt_s)

    def wanted(self, cost: StepCost, batches: Floats) -> Floats:
        """Return the watts of one board [batches] that steps would draw without any limit."""
        moved, computed = self.busy(cost, batches)
        idle, limit = self.board.idle_w, self.board.limit_w
        share = self.shares.of(moved, computed, self.board.gddr)
        return np.asarray(idle + self.scale * (limit - idle) * share)

    def measured_as(self, cost: StepCost, asked: PowerAsked) -> BusyBoard:
        """Return the board that draws what was measured of it, where that is so."""
        if asked.measured is None:
            return self
        watts, load = asked.measured
        told = float(self.wanted(cost, np.full(1, float(load)))[0])
        idle = self.board.idle_w
        return replace(self, scale=(watts - idle) / (told - idle))

    def _seconds(self, cost: StepCost, batches: Floats) -> tuple[Floats, float]:
        """Return the seconds of a decoding step [batches], and of a prompt alone."""
        prompt = max(round(self.lengths.prompt), 1)
        rows = [
            {
                "decode_requests": batch,
                "decode_tokens": batch * self.tokens,
                "decode_kv_tokens": batch * max(round(self.lengths.context), 1),
            }
            for batch in batches.astype(int).tolist()
        ]
        rows.append({
            "prefill_requests": 1,
            "prefill_tokens": prompt,
            "prefill_kv_tokens": prompt,
            "prefill_query_context": prompt * (prompt + 1) // 2,
        })  # fmt: skip
        plain = {name: TABLES["steps"][name] for name in COMPOSITION}
        steps = pl.DataFrame([dict.fromkeys(plain, 0) | row for row in rows], schema=plain)
        seconds = predicted_steps(cost, steps)
        return seconds[:-1], float(seconds[-1])

    def _bytes(self, tokens: Floats, context: Floats) -> Floats:
        """Return the bytes [steps] that a replica's devices read for tokens, of so much context."""
        facts = self.facts
        cache = facts.kv_read_bytes(1.0) or float(facts.kv_bytes_per_token or 0)
        weights = [self._weights(each) for each in np.atleast_1d(tokens).tolist()]
        return np.asarray(np.array(weights) + cache * context)

    def _weights(self, tokens: float) -> float:
        facts = self.facts
        read = facts.read_weight_bytes(self.ranks * tokens)
        if read is None:
            return float(facts.weight_bytes or 2 * (facts.total_parameters or 0))
        routed = facts.routed_weight_bytes()
        dense = (facts.read_weight_bytes(float(1 << 30)) or routed) - routed
        return dense + max(read - dense, 0.0) / self.ranks


def is_known(facts: ModelFacts) -> bool:
    """Whether what a model's steps move and compute is known."""
    weights = facts.weight_bytes or facts.total_parameters or facts.read_weight_bytes(1.0)
    return facts.active_parameters is not None and bool(weights)


def lengths_of(runs: Iterable[RecordedRun], model: str) -> Lengths:
    """Return the mean lengths of a model's samples in runs, usual ones without any."""
    told = [
        (problem.prompt_tokens, sample.output_tokens)
        for run in runs
        if run.engine.model == model
        for problem in run.problems.values()
        for sample in problem.samples
    ]
    if not told:
        return Lengths()
    prompt, output = np.mean(told, axis=0).tolist()
    return Lengths(prompt=prompt, output=max(output, 1.0))


def prior_law(busy: BusyBoard, cost: StepCost, asked: PowerAsked) -> PowerLaw:
    """Return the law of an engine with the `cost` of steps without a cap, of a replica's devices.

    Each of its laws draws more or less than the constants say, and each is cut at the limit, which
    a cap lowers. Where watts were measured they have them at that load, and lie closer together.
    """
    board, devices = busy.board, busy.devices
    sigma = asked.sigma
    active = busy.measured_as(cost, asked).wanted(cost, BATCHES) - board.idle_w
    base, more, shape = _as_shape(BATCHES, active)
    usual = NormalDist()
    scores = [usual.inv_cdf((place + 0.5) / LAWS) for place in range(LAWS)]
    of_idle = [scores[(4 * place + 2) % LAWS] for place in range(LAWS)]  # apart from the others
    factors = np.exp(sigma * np.array(scores))
    idle = board.idle_w * np.exp(IDLE_SIGMA * np.array(of_idle))
    limit = board.limit_w if asked.cap_w is None else asked.cap_w
    return PowerLaw(
        watts=devices * np.column_stack([idle, base * factors, more * factors]),
        shape=np.full(LAWS, shape),
        chance=np.full(LAWS, 1 / LAWS),
        sigma=LEFT,
        batch=(0.0, np.inf),
        least_busy=0.0,
        limit_w=devices * limit,
    )


def _as_shape(batches: Floats, active: Floats) -> tuple[float, float, int]:
    """Return base, more and the shape of law.py that come nearest to watts above idle [batches]."""
    found = []
    for place, shape in enumerate(shapes_of(batches).T):
        columns = np.column_stack([np.ones(len(batches)), shape]) / active[:, None]
        base, more = non_negative_least_squares(columns, np.ones(len(batches)))
        off = float(np.square(columns @ [base, more] - 1).sum())
        found.append((off, float(base), float(more), place))
    _, base, more, place = min(found)
    return base, more, place


def power_note(board: Board, asked: PowerAsked) -> str:
    """Say where the energy of a GPU that was not measured is from."""
    known = "published watts of seven GPUs"
    if asked.measured is not None:
        watts, load = asked.measured
        known = f"the {watts:g} W that were measured at {load:,} in flight"
    capped = "" if asked.cap_w is None else f", capped at {asked.cap_w:g} W"
    return (
        f"energy is by the prior: from {board.idle_w:.0f} W idle to the {board.limit_w:g} W of a "
        f"board{capped}, as steps use its bandwidth and FLOP/s, by {known}"
    )


def slowed(wanted: Floats, cap_w: float) -> Floats:
    """Return how many times as long steps take at a cap, by the watts that they would draw."""
    short = np.maximum(1 - cap_w / wanted, 0.0)
    return np.asarray(1 / np.maximum(1 - SLOWS * short**3, LEAST_SPEED))


def slowed_spread(wanted: float, cap_w: float, sigma: float) -> float:
    """Return the spread (sd of the log) of what a cap makes of steps, by that of their watts."""
    ends = slowed(wanted * np.exp(sigma * np.array([-1.0, 1.0])), cap_w)
    return float(np.log(ends[1] / ends[0])) / 2


def slowed_tables(tables: StepTables, tokens: Floats, factors: Floats) -> StepTables:
    """Return the kernels of steps that take `factors` times as long, by the tokens in a step."""

    def longer(count: Floats) -> Floats:
        return np.asarray(np.interp(np.log2(np.maximum(count, 1.0)), np.log2(tokens), factors))

    of_chunks = longer(tables.chunk)[:, None, None, None]
    return tables._replace(
        tokens=tables.tokens * longer(np.arange(len(tables.tokens), dtype=float)),
        sequences=tables.sequences * longer(np.arange(len(tables.sequences), dtype=float)),
        decode=tables.decode * longer(tables.decode_batch)[:, None],
        mixed=tables.mixed * of_chunks,
        launch=tables.launch * longer(np.ones(len(tables.launch))),
    )
