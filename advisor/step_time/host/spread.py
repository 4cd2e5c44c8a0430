"""How far off the prior may be, learned from points that were left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from advisor.step_time.host.law import SYNCHRONOUS, generation_of, kept, ranks_of
from traces.schema.engine import EngineConfig, ModelFacts
from traces.statistics import LEVEL, Z95, Floats

# What of a question no point that taught the host's part was like, from near to far.
SEEN, GPU = "model", "GPU"
PLAIN, QUANTISED, EXPERTS = "16-bit", "quantised", "experts"
ENOUGH: Final = 5  # models of a lab and GPU, whose TTFTs say how far off another one is
OTHER_KIND: Final = 1.5  # a model of a kind that no point had: so many times the spread, a rule


def kind_of(facts: ModelFacts) -> str:
    """Return the kind of a model, whose parts are priced from other tables."""
    return EXPERTS if facts.num_experts else QUANTISED if facts.quantization else PLAIN


class LeftOutSpread:
    """The spread of the log of measured over predicted time, by what was left out.

    Attributes
    ----------
    sigma_: by stratum, the standard deviation whose interval of LEVEL reaches the quantile of
        the left-out errors' size.
    points_, clusters_: how many taught each.

    Notes
    -----
    Split conformal prediction with clusters: points of a model in a lab err alike, so each such
    cluster weighs the same in the quantile, and what is covered is told for clusters left out.

    """

    def fit(self, errors: Floats, clusters: Sequence[str], strata: Sequence[str]) -> LeftOutSpread:
        """Learn from log errors [points], each of a cluster and a stratum."""
        names, groups = np.array(strata), np.array(clusters)
        self.sigma_: dict[str, float] = {}
        self.points_: dict[str, int] = {}
        self.clusters_: dict[str, int] = {}
        for name in sorted(set(strata)):
            size, own = np.abs(errors[names == name]), groups[names == name]
            weight = np.array([1 / np.sum(own == each) for each in own])
            order = np.argsort(size)
            share = np.cumsum(weight[order]) / weight.sum()
            at = min(int(np.searchsorted(share, LEVEL)), len(size) - 1)
            self.sigma_[name] = float(size[order][at]) / Z95
            self.points_[name], self.clusters_[name] = len(size), len(set(own.tolist()))
        return self


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How far off the prior may be: the sd of a log, from points like which, and their number."""

    sigma: float
    unseen: tuple[str, ...]
    points: int

    def note(self) -> str:
        """Say where the interval is from."""
        what = (
            "of another model on that GPU"
            if not self.unseen
            else f"with {' and '.join(self.unseen)} left out"
        )
        return (
            f"no run of this GPU has checked it: the interval is that of {self.points:,} published "
            f"runs of vLLM, each predicted from those {what}"
        )


def stratum(name: str, unseen: str) -> str:
    """Return the name of a stratum: `synchronous, 16-bit, GPU left out`."""
    return f"{name}, {unseen} left out"


@dataclass(frozen=True, kw_only=True)
class FirstTokens:
    """Between which ratios to the predicted TTFT 90 % of so many published ones lie.

    `alike` says that they are of the same generation and kind of model.
    """

    low: float
    high: float
    points: int
    alike: bool

    def note(self) -> str:
        """Say what the interval of TTFT is."""
        if not self.alike:
            return (
                "no published TTFTs are of such a model and engine. The interval of "
                f"{self.low:.2g} to {self.high:.2g} times the predicted holds those of other kinds"
            )
        return (
            f"TTFT was {self.low:.2g} to {self.high:.2g} times the predicted in 90 % of "
            f"{self.points:,} published runs of such models, of another model each. Its interval "
            "holds both ends"
        )


def first_tokens_of(facts: ModelFacts, engine: EngineConfig) -> FirstTokens:
    """Return how far off TTFT may be, from points of the same generation and kind of model.

    Where fewer than ENOUGH models were like it, from all that there are, at their widest.
    """
    found = kept()["ttft"]
    own = found.get(f"{generation_of(engine)}, {kind_of(facts)}")
    alike = own is not None and own["clusters"] >= ENOUGH
    used = [own] if alike else list(found.values())
    return FirstTokens(
        low=min(float(each["low"]) for each in used),
        high=max(float(each["high"]) for each in used),
        points=sum(int(each["points"]) for each in used),
        alike=alike,
    )


def spread_of(
    system: str, facts: ModelFacts, engine: EngineConfig, table: Mapping[str, object] | None = None
) -> Spread:
    """Return how far off the prior may be for an engine, from what the learned-from points were.

    Points of the same generation and kind of model say it. Where there are none, those of that kind
    in another generation, but no less than those of 16-bit models in its own. Where no point had
    the kind, OTHER_KIND times those of 16-bit models. GPUs and numbers of ranks that none of these
    had are unseen: another GPU is as far off as those that 16-bit models of any generation had.
    """
    data = kept() if table is None else table
    seen, found = data["seen"], data["spread"]
    assert isinstance(seen, dict) and isinstance(found, dict)
    generation, kind = generation_of(engine), kind_of(facts)
    alike = [name for name in seen if name.endswith(f", {kind}")]
    own, plain = f"{generation}, {kind}", f"{generation}, {PLAIN}"
    plain = plain if plain in seen else f"{SYNCHRONOUS}, {PLAIN}"
    used = own if own in seen else alike[0] if alike else plain

    def spread(name: str) -> tuple[float, list[str], int]:
        unseen = [] if system in seen[name]["systems"] else ["the GPU"]
        unseen += [] if ranks_of(engine) <= seen[name]["ranks"] else ["the number of GPUs"]
        names = [stratum(name, GPU if unseen else SEEN)]
        if system not in seen[name]["systems"]:
            # GPUs of one generation may be of one chip: another one is no nearer than elsewhere.
            names += [stratum(each, GPU) for each in seen if each.endswith(f", {PLAIN}")]
        widest = max((found[each] for each in names), key=lambda each: float(each["sigma"]))
        return float(widest["sigma"]), unseen, int(widest["points"])

    sigma, unseen, points = spread(used)
    if used != own:
        other, _, more = spread(plain)
        sigma, points = max((sigma, points), (other, more))
    if kind != PLAIN and not alike:
        sigma *= OTHER_KIND
        unseen.append("mixtures of experts" if kind == EXPERTS else f"{kind} weights")
    return Spread(sigma=sigma, unseen=tuple(unseen), points=points)
