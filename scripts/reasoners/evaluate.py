"""Measure the family on held-out problems: ``python -m scripts.reasoners.evaluate --seed N``.

Prints Markdown tables: samples and votes, thinking budgets, effort, preamble, draft acceptance.
Every interval is a 90 % bootstrap over problems; differences are paired by problem.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path

import numpy as np
import torch

from profiler.demo.task import EFFORT_MARKS, DemoProblem, answer_of, model_path, problems
from profiler.policies.choices import plurality
from scripts.reasoners.decode import completion_text, forced_answers, generate, prompt_ids, right
from scripts.reasoners.network import Reasoner, load_model
from scripts.reasoners.speculate import draft_acceptance, with_interval
from scripts.reasoners.tokenizer import EOS, THINK_END
from traces.statistics import mean

SIZES = ("s", "m", "l")
SAMPLES = 16
TEMPERATURE = 0.8
MAX_TOKENS = 500
BUDGETS = (4, 8, 12, 16, 24, 32, 40, 48, 64, 80, 96)
BUDGET_SAMPLES = 4
DRAFT_TOKENS = (1, 3, 5)
DRAFT_PROBLEMS = 60


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The completions of one model on one set of problems, at one temperature.

    ``completions`` are token ids, [problem][sample]; ``answers`` and ``right`` (problems,
    samples) follow from them, and ``think_tokens`` is where each thought ended.
    """

    completions: list[list[list[int]]]
    answers: list[list[str | None]]
    right: np.ndarray
    think_tokens: np.ndarray
    unfinished: float

    def pass_at(self, k: int) -> np.ndarray:
        samples = self.right.shape[1]
        wrong = (samples - self.right.sum(1)).tolist()
        return np.array([1 - comb(n, k) / comb(samples, k) for n in wrong])  # Chen et al., 2021


def observe(
    model: Reasoner,
    held_out: Sequence[DemoProblem],
    *,
    samples: int,
    temperature: float,
    effort: str = "low",
) -> Outcome:
    """Generate ``samples`` completions of every problem and score them."""
    made = generate(
        model,
        held_out,
        samples=samples,
        temperature=temperature,
        seed=0,
        effort=effort,
        max_tokens=MAX_TOKENS,
    )
    flat = [row for rows in made for row in rows]
    return Outcome(
        completions=made,
        answers=[[answer_of(completion_text(row)) for row in rows] for rows in made],
        right=np.array(
            [[right(p, row) for row in rows] for p, rows in zip(held_out, made, strict=True)]
        ),
        think_tokens=np.array([thought_tokens(row) for row in flat]).reshape(len(made), samples),
        unfinished=float(np.mean([row[-1] != EOS for row in flat])),
    )


def thought_tokens(completion: Sequence[int]) -> int:
    """Count the tokens before ``</think>``; all of them where the thought never ended."""
    return completion.index(THINK_END) if THINK_END in completion else len(completion)


def budget_accuracy(
    model: Reasoner,
    held_out: Sequence[DemoProblem],
    outcome: Outcome,
    *,
    effort: str,
    budget: int,
) -> np.ndarray:
    """Return, per problem, the share of right answers with thoughts cut at ``budget`` tokens.

    A thought within the budget keeps its own answer; a longer one is cut, ``</think>`` is
    appended and the answer decoded at the temperature of the samples.
    """
    samples = min(BUDGET_SAMPLES, outcome.right.shape[1])
    good = outcome.right[:, :samples].astype(float)
    cut: dict[int, list[tuple[int, int, list[int]]]] = defaultdict(list)
    for index, problem in enumerate(held_out):
        prompt = prompt_ids(problem, effort)
        for sample in range(samples):
            if outcome.think_tokens[index, sample] > budget:
                kept = outcome.completions[index][sample][:budget]
                prefix = [*prompt, *kept, THINK_END]
                cut[len(prefix)].append((index, sample, prefix))
    for group in cut.values():
        prefixes = [prefix for _, _, prefix in group]
        answers = forced_answers(model, prefixes, temperature=TEMPERATURE, seed=0)
        for (index, sample, _), answer in zip(group, answers, strict=True):
            good[index, sample] = answer == held_out[index].expected
    accuracy: np.ndarray = good.mean(1)
    return accuracy


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """Give a Markdown table, line by line, with an empty line behind."""
    yield "| " + " | ".join(header) + " |"
    yield "|" + "---|" * len(header)
    for row in rows:
        yield "| " + " | ".join(str(cell) for cell in row) + " |"
    yield ""


def voting_tables(
    greedy: Mapping[str, Outcome], sampled: Mapping[str, Outcome], held_out: Sequence[DemoProblem]
) -> Iterator[str]:
    """Tabulate greedy, pass@k and maj@k for each size, their paired differences, and each level."""
    expected = [problem.expected for problem in held_out]
    votes = {
        (size, n): majority_right(sampled[size].answers, expected, votes=n)
        for size in SIZES
        for n in (4, 8, SAMPLES)
    }
    rows = []
    for size in SIZES:
        once = greedy[size].right[:, 0].astype(float)
        drawn = sampled[size]
        passes = [f"{drawn.pass_at(k).mean():.3f}" for k in (4, SAMPLES)]
        majorities = [f"{votes[size, n].mean():.3f}" for n in (4, 8)]
        gain = interval(votes[size, SAMPLES] - once)
        thought = f"{drawn.think_tokens.mean():.0f}, {drawn.think_tokens.max()}"
        head = [size, interval(once), interval(drawn.pass_at(1)), *passes, *majorities]
        cut = f"{drawn.unfinished:.2%}"
        rows.append([*head, interval(votes[size, SAMPLES]), gain, thought, cut])
    header = ["size", "greedy", "pass@1", "pass@4", "pass@16", "maj@4", "maj@8", "maj@16"]
    yield from table(
        [*header, "maj@16 - greedy", "thought: mean, longest", "ran to the limit"], rows
    )
    pairs = [("s", "m"), ("m", "l"), ("s", "l")]
    differences = [
        interval(votes[small, SAMPLES] - greedy[large].right[:, 0]) for small, large in pairs
    ]
    names = [f"{small} maj@16 - {large} greedy" for small, large in pairs]
    yield from table(names, [differences])
    levels = np.array([problem.level for problem in held_out])
    by_level = []
    for size in SIZES:
        kinds = {
            "greedy": greedy[size].right[:, 0],
            "pass@1": sampled[size].pass_at(1),
            "maj@16": votes[size, SAMPLES],
        }
        for kind, values in kinds.items():
            means = [f"{values[levels == level].mean():.2f}" for level in np.unique(levels)]
            by_level.append([size, kind, *means])
    yield from table(["size", "terms:", *(str(level) for level in np.unique(levels))], by_level)


def interval(per_problem: np.ndarray) -> str:
    """Return the mean of one number per problem; for a paired difference pass the differences."""
    return with_interval(mean(per_problem, "1"))


def majority_right(
    answers: Sequence[Sequence[str | None]], expected: Sequence[str], *, votes: int, draws: int = 8
) -> np.ndarray:
    """Return, per problem, the share of ``draws`` subsets of ``votes`` samples that vote right."""
    draw = np.random.default_rng(0)

    def share(row: Sequence[str | None], truth: str) -> float:
        if votes == len(row):
            return float(plurality(dict(enumerate(row))) == truth)
        subsets = ([row[i] for i in draw.permutation(len(row))[:votes]] for _ in range(draws))
        return float(np.mean([plurality(dict(enumerate(subset))) == truth for subset in subsets]))

    return np.array([share(row, truth) for row, truth in zip(answers, expected, strict=True)])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, required=True, help="seed of the problems")
    parser.add_argument("--count", type=int, default=500, help="number of problems")
    parser.add_argument("--models", type=Path, help="folder with s, m and l; the bundled ones")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folders = {s: arguments.models / s if arguments.models else model_path(s) for s in SIZES}
    models = {size: load_model(folder) for size, folder in folders.items()}
    for line in report(models, seed=arguments.seed, count=arguments.count):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def report(models: Mapping[str, Reasoner], *, seed: int, count: int) -> Iterator[str]:
    """Measure all tables for a family, line by line as they are measured."""
    plain = problems(count, seed=seed)
    led = problems(count, seed=seed, preamble=True)
    greedy: dict[str, dict[str, Outcome]] = {"low": {}, "high": {}, "led": {}}
    sampled: dict[str, dict[str, Outcome]] = {"low": {}, "high": {}}
    for size, model in models.items():
        for effort in EFFORT_MARKS:
            greedy[effort][size] = observe(model, plain, samples=1, temperature=0.0, effort=effort)
            sampled[effort][size] = observe(
                model, plain, samples=SAMPLES, temperature=TEMPERATURE, effort=effort
            )
        greedy["led"][size] = observe(model, led, samples=1, temperature=0.0)
    for effort in EFFORT_MARKS:
        yield f"{effort} effort, temperature {TEMPERATURE}, {SAMPLES} samples, {count} problems\n"
        yield from voting_tables(greedy[effort], sampled[effort], plain)
    yield "high against low effort, and with the preamble against without (greedy, low)\n"
    rows = []
    for size in SIZES:
        once = {kind: outcomes[size].right[:, 0].astype(float) for kind, outcomes in greedy.items()}
        drawn = sampled["high"][size].pass_at(1) - sampled["low"][size].pass_at(1)
        tokens = [outcomes[size].think_tokens.mean() for outcomes in sampled.values()]
        row = [size, interval(once["high"] - once["low"]), interval(drawn)]
        rows.append(
            [*row, f"{tokens[0]:.0f}, {tokens[1]:.0f}", interval(once["led"] - once["low"])]
        )
    header = ["size", "greedy high - low", "pass@1 high - low", "mean thought low, high"]
    yield from table([*header, "preamble - without"], rows)
    yield "accuracy of one sample when the thought is cut at a budget of tokens\n"
    rows = []
    for size, model in models.items():
        for effort in EFFORT_MARKS:
            outcome = sampled[effort][size]
            curve = [
                budget_accuracy(model, plain, outcome, effort=effort, budget=budget).mean()
                for budget in BUDGETS
            ]
            rows.append([size, effort, *(f"{share:.3f}" for share in curve)])
    yield from table(["size", "effort", *(str(budget) for budget in BUDGETS)], rows)
    yield f"drafts verified by l, {DRAFT_PROBLEMS} problems, low effort\n"
    rows = []
    for size in ("s", "m"):
        for temperature in (0.0, TEMPERATURE):
            for k in DRAFT_TOKENS:
                got = draft_acceptance(
                    models[size], models["l"], plain[:DRAFT_PROBLEMS], k=k, temperature=temperature
                )
                kept = "; ".join(map(with_interval, got.by_position))
                rows.append([size, temperature, k, kept, with_interval(got.emitted)])
    header = ["draft", "temperature", "k", "kept at position 1..k", "tokens per forward of l"]
    yield from table(header, rows)


if __name__ == "__main__":
    main()
