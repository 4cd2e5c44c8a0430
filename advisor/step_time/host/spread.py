"""How far off the prior may be, by the points that were left out (`benchmarks/host_fit.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from advisor.step_time.host.law import SYNCHRONOUS, generation_of, kept, ranks_of
from traces.notes import Decisive, Telling
from traces.schema.engine import EngineConfig, ModelFacts
from traces.statistics import Floats

# What of a question no point that taught the host's part was like, from near to far.
SEEN, GPU = "model", "GPU"
PLAIN, QUANTISED, EXPERTS = "16-bit", "quantised", "experts"
ENOUGH: Final = 5  # models of a lab and GPU, whose TTFTs say how far off another one is
OTHER_KIND: Final = 1.5  # a model of a kind that no point had: so many times the spread, a rule


def kind_of(facts: ModelFacts) -> str:
    """Return the kind of a model, whose parts are priced from other tables."""
    return EXPERTS if facts.num_experts else QUANTISED if facts.quantization else PLAIN


def together(kernels: float, host: float, shares: Floats) -> Floats:
    """Return the spreads of times that have so large shares of the host [points]."""
    return np.hypot((1 - shares) * kernels, shares * host)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How far off the prior may be: sds of logs, from points like which, and their number.

    `few` is how many points of one model alone are of such an engine, which lay farther off.
    """

    kernels: float
    host: float
    unseen: tuple[str, ...]
    points: int
    few: int = 0

    def sigma(self, share: float) -> float:
        """Return the spread (sd of the log) of a time, given the host's share of it."""
        return float(together(self.kernels, self.host, np.array(share)))

    def note(self) -> str:
        """Say where the interval is from."""
        if self.few:
            return Decisive(
                "the tables have kernels of a newer vLLM than is asked about. Quantised experts of "
                f"engines as old took up to 3 times as long in {self.few} published runs, all of "
                "one model, and the interval is as wide as they lay off"
            )
        what = (
            "of another model on that GPU"
            if not self.unseen
            else f"with {' and '.join(self.unseen)} left out"
        )
        return Telling(
            f"no run of this GPU has checked it: the interval is that of {self.points:,} published "
            f"runs of vLLM, each predicted from those {what}"
        )


def was_seen(facts: ModelFacts, engine: EngineConfig) -> bool:
    """Whether published runs were of such a generation and kind of model."""
    return f"{generation_of(engine)}, {kind_of(facts)}" in kept()["seen"]


def stratum(name: str, unseen: str) -> str:
    """Return the name of a stratum: `synchronous, 16-bit, GPU left out`."""
    return f"{name}, {unseen} left out"


@dataclass(frozen=True, kw_only=True)
class FirstTokens:
    """Between which ratios to the predicted TTFT 90 % of so many published ones lie.

    The `usual` one is their median. `alike` says that they are of the same generation and kind of
    model.
    """

    low: float
    usual: float
    high: float
    points: int
    alike: bool

    def note(self) -> str:
        """Say what the interval of TTFT is."""
        if not self.alike:
            return Telling(
                "no published TTFTs are of such a model and engine. Those of other kinds were "
                f"{self.usual:.2g} times what the kernels take, as shown, and its interval of "
                f"{self.low:.2g} to {self.high:.2g} times holds them"
            )
        return Telling(
            f"TTFT was {self.usual:.2g} times what the kernels take in published runs of such "
            f"models, as shown, and {self.low:.2g} to {self.high:.2g} times in 90 % of "
            f"{self.points:,}. Its interval holds both ends"
        )


def first_tokens_of(facts: ModelFacts, engine: EngineConfig) -> FirstTokens:
    """Return how far off TTFT may be, from points of the same generation and kind of model.

    Where fewer than ENOUGH models were like it, from all that there are, at their widest.
    """
    by_stratum = kept()["ttft"]
    nearest = by_stratum.get(f"{generation_of(engine)}, {kind_of(facts)}")
    alike = nearest is not None and nearest["clusters"] >= ENOUGH
    used = [nearest] if alike else list(by_stratum.values())
    return FirstTokens(
        low=min(float(each["low"]) for each in used),
        usual=float(np.exp(np.mean([np.log(float(each["usual"])) for each in used]))),
        high=max(float(each["high"]) for each in used),
        points=sum(int(each["points"]) for each in used),
        alike=alike,
    )


def spread_of(
    system: str, facts: ModelFacts, engine: EngineConfig, table: Mapping[str, object] | None = None
) -> Spread:
    """Return how far off the prior may be for an engine, from what the learned-from points were.

    Points of the same generation and kind of model say it. Where there are none, those of that kind
    in another generation, but no less than those of dense models in its own. Where no point had
    the kind, OTHER_KIND times those of dense models. GPUs and numbers of ranks that none of these
    had are unseen: another GPU is as far off as those that 16-bit models of any generation had. Of
    several, the kernels' and the host's spread are the widest of each. Quantised mixtures
    of a generation in which few models were seen are at least as far off as those were.
    """
    data = kept() if table is None else table
    seen, spreads = data["seen"], data["spread"]
    assert isinstance(seen, dict) and isinstance(spreads, dict)
    generation, kind = generation_of(engine), kind_of(facts)
    alike = [name for name in seen if name.endswith(f", {kind}")]
    wanted = f"{generation}, {kind}"
    dense = [f"{generation}, {each}" for each in (PLAIN, QUANTISED)]
    plain = next((name for name in dense if name in seen), f"{SYNCHRONOUS}, {PLAIN}")
    used = wanted if wanted in seen else alike[0] if alike else plain
    unseen: list[str] = []
    laws = []
    for name in dict.fromkeys([used] if used == wanted else [used, plain]):
        new = system not in seen[name]["systems"]
        more = ranks_of(engine) > seen[name]["ranks"]
        laws.append(spreads[stratum(name, GPU if new or more else SEEN)])
        if name == used:
            unseen += ["the GPU"] * new + ["the number of GPUs"] * more
        if new:  # GPUs of one generation may be of one chip: another one is no nearer elsewhere
            laws += [spreads[stratum(each, GPU)] for each in seen if each.endswith(f", {PLAIN}")]
    few = spreads.get(stratum(wanted, SEEN)) if wanted not in seen and facts.quantization else None
    if few is not None:
        laws.append(few)
    factor = 1.0
    if kind != PLAIN and not alike:
        factor = OTHER_KIND
        unseen.append("mixtures of experts" if kind == EXPERTS else f"{kind} weights")
    return Spread(
        kernels=factor * max(float(law["kernels"]) for law in laws),
        host=factor * max(float(law["host"]) for law in laws),
        unseen=tuple(unseen),
        points=int(max(laws, key=lambda law: float(law["kernels"]))["points"]),
        few=0 if few is None else int(few["points"]),
    )
