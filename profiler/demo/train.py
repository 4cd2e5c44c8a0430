"""Train the family from scratch: ``python -m profiler.demo.train [--size s|m|l] --out DIR``.

The schedule is by steps and the seed is fixed. Within one run:

    first 25 %   the level grows from 3 to 12
    first 30 %   one batch in five teaches only walking and copying, on all two-digit terms
    first 40 %   every second batch is high effort, one in five from there on
    first 50 %   the terms grow from the smallest four to all of them
    from 30 %    the learning rates fall in a line
    from 40 %    one batch in twelve has the preamble
    from 60 %    every 100 steps the weights are kept and validated

Each of the first four is there because training without it failed: the product table starts only
with few terms and is lost again without the one-digit steps of high effort, and the copying of a
term's second digit is learned late from terms that are few and alike.

Training to the end would master the whole table, and a model that knows everything gains nothing
from votes. So the checkpoint published is the one whose greedy accuracy at low effort, on problems
of a seed of its own, comes nearest to the target of its size, and a run stops once it is well past
it.

The weights bundled now are older than this script; docs/reasoners.md tells how they came about and
what this script gives.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from profiler.demo.decode import generate, right
from profiler.demo.examples import NO_LABEL, Mix, batch
from profiler.demo.muon import Muon
from profiler.demo.network import SHAPES, Reasoner, save_model
from profiler.demo.task import problems
from profiler.demo.tokenizer import encode

SEED = 1
VALIDATION_SEED = 77
VALIDATION_PROBLEMS = 300
BATCH_TOKENS = 1024
FLOOR = 0.02  # of the learning rates, at the end
WARM_UP_STEPS = 40
PAST_TARGET = 0.1  # validation accuracy above the target at which a run stops
EQUALS, HIGH = encode("=!")
MAX_LEVEL = 12
TERMS = sorted(
    {a * b * c for a in range(1, 10) for b in range(1, 10) for c in range(1, 10)} & {*range(2, 97)}
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The schedule of one size: optimizer steps, learning rates, and where to stop.

    ``target`` is the greedy accuracy on the validation problems to come nearest to.
    """

    steps: int
    muon_lr: float
    adam_lr: float
    orthogonal_iterations: int
    target: float


PLANS = {
    "s": Plan(steps=4500, muon_lr=0.02, adam_lr=5e-3, orthogonal_iterations=5, target=0.55),
    "m": Plan(steps=4200, muon_lr=0.02, adam_lr=5e-3, orthogonal_iterations=5, target=0.67),
    "l": Plan(steps=3800, muon_lr=0.015, adam_lr=4e-3, orthogonal_iterations=4, target=0.80),
}


def _log(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def mix_at(progress: float, draw: np.random.Generator) -> Mix:
    """Choose what the batch at ``progress`` (0 to 1) of a run holds."""
    longest = min(MAX_LEVEL, 3 + int((MAX_LEVEL - 2) * progress / 0.25))
    if progress < 0.3 and draw.random() < 0.2:
        return Mix(
            terms=range(2, 100),
            min_level=2,
            max_level=longest,
            high_share=0.0,
            preamble_share=0.1,
            results=False,
        )
    known = min(len(TERMS), 4 + int((len(TERMS) - 4) * progress / 0.5))
    return Mix(
        terms=TERMS[:known],
        min_level=2,
        max_level=longest,
        high_share=0.5 if progress < 0.4 else 0.2,
        preamble_share=0.08 if progress > 0.4 else 0.0,
    )


def validate(model: Reasoner) -> float:
    """Return greedy accuracy at low effort on the validation problems."""
    model.eval()
    held_out = problems(VALIDATION_PROBLEMS, seed=VALIDATION_SEED)
    made = generate(model, held_out, samples=1, temperature=0.0, seed=0, max_tokens=120)
    model.train()
    pairs = zip(held_out, made, strict=True)
    return sum(right(problem, rows[0]) for problem, rows in pairs) / len(held_out)


def run(size: str) -> Iterator[tuple[int, Reasoner]]:
    """Train one size, giving (step, model) at every step past 60 % that is to be validated."""
    plan = PLANS[size]
    torch.manual_seed(SEED)
    draw = np.random.default_rng(SEED)
    model = Reasoner(SHAPES[size]).train()
    names = dict(model.named_parameters())
    matrices = [p for name, p in names.items() if p.ndim == 2 and name != "embedding"]
    others = [p for name, p in names.items() if p.ndim != 2 or name == "embedding"]
    muon = Muon(matrices, lr=plan.muon_lr, iterations=plan.orthogonal_iterations)
    adam = torch.optim.AdamW(others, lr=plan.adam_lr, betas=(0.9, 0.98), weight_decay=0.0)
    began, average = time.monotonic(), 0.0
    known = 0.0
    for step in range(plan.steps):
        progress = step / plan.steps
        scale = min(1.0, (step + 1) / WARM_UP_STEPS, max(FLOOR, (1 - progress) / 0.7))
        muon.lr = plan.muon_lr * scale
        adam.param_groups[0]["lr"] = plan.adam_lr * scale
        ids, labels = map(
            torch.from_numpy, batch(draw, mix_at(progress, draw), tokens=BATCH_TOKENS)
        )
        wanted = labels[:, 1:]
        logits = model.logits(model.hidden(ids)[:, :-1][wanted != NO_LABEL])
        loss = functional.cross_entropy(logits, wanted[wanted != NO_LABEL])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        muon.step()
        adam.step()
        model.zero_grad(set_to_none=True)
        results = (ids[:, :-1] == EQUALS)[wanted != NO_LABEL]
        if results.any() and not (ids == HIGH).any():
            good = logits.argmax(-1) == wanted[wanted != NO_LABEL]
            known += 0.02 * (float(good[results].float().mean()) - known)
        average = loss.item() if step == 0 else 0.98 * average + 0.02 * loss.item()
        if (step + 1) % 100 == 0:
            seconds = time.monotonic() - began
            _log(f"{size} step {step + 1} {seconds:.0f} s loss {average:.4f} results {known:.3f}")
            if step + 1 > 0.6 * plan.steps:
                yield step + 1, model


def train(size: str, out: Path) -> None:
    """Train one size, keep its checkpoints in ``out``/SIZE-steps and the one picked in SIZE."""
    target, nearest = PLANS[size].target, float("inf")
    for step, model in run(size):
        accuracy = validate(model)
        _log(f"{size} step {step} validation {accuracy:.3f}")
        folder = out / f"{size}-steps" / f"{step:05d}"
        save_model(model, folder)
        if abs(accuracy - target) < nearest:
            nearest = abs(accuracy - target)
            shutil.copytree(folder, out / size, dirs_exist_ok=True)
        if accuracy > target + PAST_TARGET:
            break


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
