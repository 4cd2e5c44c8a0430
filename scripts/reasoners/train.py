"""Train the family from scratch: ``python -m scripts.reasoners.train [--size s|m|l] --out DIR``.

One schedule for all sizes, by steps of about 1,000 tokens, with a fixed seed:

    walk      250 steps       walking and copying; results carry no label
    products  until learned   four terms, one more whenever 0.85 of the results are right
    settle    1,500 to 2,500  all terms; the products that the size is not to know are taught with
                              random results, one batch in twelve has the preamble, and the
                              learning rates fall to almost nothing

Each is there because training without it failed: results at once disturb the walk, the table
starts only with few terms, and random results from the beginning keep it from starting at all. The
level grows from 3 to 10 over the first 400 steps.
"""

import argparse
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from profiler.demo.task import LEVELS, TERMS
from scripts.reasoners.examples import NO_LABEL, Kind, Mix, Products, batch, unknown_products
from scripts.reasoners.muon import Muon
from scripts.reasoners.network import SHAPES, Reasoner, save_model
from scripts.reasoners.tokenizer import encode

SEED = 1
BATCH_TOKENS = 1024
WARM_UP_STEPS = 40
WALK_STEPS = 250
LEVEL_STEPS = 400  # over which the level grows
FIRST_TERMS = 4
LEARNED = 0.85  # share of right results at which a term is added
GROWTH_STEPS = 10  # at least, between two terms
LONGEST_GROWTH_STEPS = 4000  # a run whose products do not start is given up
FLOOR = 0.02  # of the learning rates, at the end
SMOOTHING = 0.03
HIGH_MARK = encode("!")[0]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What differs between the sizes: learning rates, steps, shares of products not to know."""

    muon_lr: float
    adam_lr: float
    unknown_by_term: float
    unknown_by_prime: float
    settle_steps: int


PLANS = {
    "s": Plan(
        muon_lr=0.02, adam_lr=5e-3, unknown_by_term=0.13, unknown_by_prime=0.02, settle_steps=2500
    ),
    "m": Plan(
        muon_lr=0.02, adam_lr=5e-3, unknown_by_term=0.09, unknown_by_prime=0.015, settle_steps=2000
    ),
    "l": Plan(
        muon_lr=0.015, adam_lr=4e-3, unknown_by_term=0.05, unknown_by_prime=0.01, settle_steps=1500
    ),
}


@dataclass
class Progress:
    """How far a run is: `stage`, its first step, and the smoothed share of right results."""

    plan: Plan
    stage: str = "walk"
    since: int = 0
    terms: int = FIRST_TERMS
    grown: int = 0
    right: dict[str, float] = field(default_factory=lambda: {"low": 0.0, "high": 0.0})

    def advance(self, step: int) -> None:
        """Add a term or enter the next stage when it is time."""
        learned = min(self.right.values()) > LEARNED
        if self.stage == "walk" and step == WALK_STEPS:
            self.stage, self.since = "products", step
        elif self.stage == "products" and learned and step - self.grown >= GROWTH_STEPS:
            if self.terms < len(TERMS):
                self.terms, self.grown = self.terms + 1, step
            elif step - self.grown >= 10 * GROWTH_STEPS:
                self.stage, self.since = "settle", step
        elif self.stage == "products" and step - self.since > LONGEST_GROWTH_STEPS:
            raise SystemExit(f"the products were not learned in {LONGEST_GROWTH_STEPS} steps")
        elif self.stage == "settle" and step - self.since == self.plan.settle_steps:
            self.stage = "done"

    def rate(self, step: int) -> float:
        """Return the factor on the learning rates."""
        if self.stage != "settle":
            return min(1.0, (step + 1) / WARM_UP_STEPS)
        return max(FLOOR, 1 - (step - self.since) / self.plan.settle_steps)

    def unknown(self) -> Products:
        return unknown_products(
            by_term=self.plan.unknown_by_term, by_prime=self.plan.unknown_by_prime
        )

    def mix(self, step: int) -> Mix:
        settling = self.stage == "settle"
        spread = LEVELS[-1] - LEVELS[0] + 1
        return Mix(
            terms=TERMS if self.stage == "walk" else TERMS[: self.terms],
            min_level=2,
            max_level=min(LEVELS[-1], LEVELS[0] + spread * step // LEVEL_STEPS),
            high_share=0.45 if settling else 0.4,
            preamble_share=1 / 12 if settling else 0.0,
            unknown=self.unknown() if settling else frozenset(),
            results=self.stage != "walk",
        )


def train(size: str, out: Path) -> None:
    """Train one size into the folder ``out``/SIZE."""
    plan = PLANS[size]
    progress = Progress(plan)
    torch.manual_seed(SEED)
    draw = np.random.default_rng(SEED)
    model = Reasoner(SHAPES[size]).train()
    names = dict(model.named_parameters())
    matrices = [p for name, p in names.items() if p.ndim == 2 and name != "embedding"]
    others = [p for name, p in names.items() if p.ndim != 2 or name == "embedding"]
    muon = Muon(matrices, lr=plan.muon_lr)
    adam = torch.optim.AdamW(others, lr=plan.adam_lr, betas=(0.9, 0.98), weight_decay=0.0)
    began, step = time.monotonic(), 0
    while progress.stage != "done":
        muon.lr = plan.muon_lr * progress.rate(step)
        adam.param_groups[0]["lr"] = plan.adam_lr * progress.rate(step)
        mix = progress.mix(step)
        ids, labels, kinds = map(torch.from_numpy, batch(draw, mix, tokens=BATCH_TOKENS))
        labelled = labels[:, 1:] != NO_LABEL
        wanted = labels[:, 1:][labelled]
        logits = model.logits(model.hidden(ids)[:, :-1][labelled])
        loss = functional.cross_entropy(logits, wanted)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        muon.step()
        adam.step()
        model.zero_grad(set_to_none=True)
        results = kinds[:, 1:][labelled] == Kind.RESULT
        if results.any():
            effort = "high" if (ids == HIGH_MARK).any() else "low"
            right = float((logits.argmax(-1) == wanted)[results].float().mean())
            progress.right[effort] += SMOOTHING * (right - progress.right[effort])
        step += 1
        progress.advance(step)
        if step % 100 == 0:
            shares = ", ".join(f"{effort} {share:.3f}" for effort, share in progress.right.items())
            seconds = time.monotonic() - began
            sys.stderr.write(
                f"{size} step {step} {progress.stage} {seconds:.0f} s loss {loss.item():.3f} "
                f"{progress.terms} terms, results right: {shares}\n"
            )
    save_model(model, out / size)


def main() -> None:
    """Read the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", choices=sorted(SHAPES), help="one size; all three without it")
    parser.add_argument("--out", type=Path, required=True, help="folder for the trained models")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for size in [arguments.size] if arguments.size else SHAPES:
        train(size, arguments.out)


if __name__ == "__main__":
    main()
