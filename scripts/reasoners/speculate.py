"""Draft acceptance: one model proposes tokens, another verifies them by rejection sampling.

The rule is that of Leviathan et al. (2023): a proposed token t is kept with probability
min(1, p(t) / q(t)); the first refused one is drawn again from the positive part of p - q.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from profiler.demo.task import DemoProblem
from scripts.reasoners.decode import prompt_ids
from scripts.reasoners.network import Reasoner
from scripts.reasoners.tokenizer import EOS, PAD
from traces.schema.estimate import Estimate
from traces.statistics import ratio

MAX_TOKENS = 300


@dataclass(frozen=True, kw_only=True)
class Acceptance:
    """What a draft of ``k`` tokens gave at one temperature.

    ``by_position``: kept share at each position, of the drafts that reached it. ``emitted``:
    tokens per forward of the target, the last one included.
    """

    k: int
    temperature: float
    by_position: list[Estimate | None]
    emitted: Estimate | None


def draft_acceptance(
    draft: Reasoner,
    target: Reasoner,
    problems: Sequence[DemoProblem],
    *,
    k: int,
    temperature: float,
    seed: int = 0,
) -> Acceptance:
    """Run every problem to its end with speculation and count what the target kept."""
    draw = torch.Generator().manual_seed(seed)
    rows = [prompt_ids(problem) for problem in problems]
    limits = [len(row) + MAX_TOKENS for row in rows]
    reached = np.zeros((len(rows), k))
    kept = np.zeros((len(rows), k))
    rounds, emitted = np.zeros(len(rows)), np.zeros(len(rows))
    alive = list(range(len(rows)))
    while alive:
        proposed = [list(rows[index]) for index in alive]
        drafted = []
        for _ in range(k):
            last = torch.tensor([[len(row) - 1] for row in proposed])
            chances = _distributions(draft, proposed, last, temperature)[:, 0]
            drafted.append(chances)
            chosen = torch.multinomial(chances, 1, generator=draw).squeeze(-1).tolist()
            for row, token in zip(proposed, chosen, strict=True):
                row.append(token)
        places = torch.tensor([[len(rows[i]) - 1 + j for j in range(k + 1)] for i in alive])
        wanted = _distributions(target, proposed, places, temperature)
        for place, index in enumerate(alive):
            tokens = proposed[place][len(rows[index]) :]
            q = torch.stack([chances[place] for chances in drafted])
            new, accepted = _verified(tokens, wanted[place], q, draw)
            reached[index, : min(accepted + 1, k)] += 1
            kept[index, :accepted] += 1
            rounds[index] += 1
            emitted[index] += len(new)
            rows[index] += new
        alive = [i for i in alive if rows[i][-1] != EOS and len(rows[i]) < limits[i]]
    return Acceptance(
        k=k,
        temperature=temperature,
        by_position=[ratio(kept[:, j], reached[:, j], "1") for j in range(k)],
        emitted=ratio(emitted, rounds, "1"),
    )


def with_interval(estimate: Estimate | None) -> str:
    """Return value and 90 % interval."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return "-"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _verified(
    tokens: Sequence[int], wanted: Tensor, drafted: Tensor, draw: torch.Generator
) -> tuple[list[int], int]:
    """Return the tokens that join the row, and how many of them were the draft's."""
    for place, token in enumerate(tokens):
        chance = wanted[place, token] / drafted[place, token]
        if torch.rand((), generator=draw) >= chance:
            rest = (wanted[place] - drafted[place]).clamp(min=0)
            other = int(torch.multinomial(rest / rest.sum(), 1, generator=draw))
            return [*tokens[:place], other], place
        if token == EOS:
            return list(tokens[: place + 1]), place + 1
    bonus = int(torch.multinomial(wanted[len(tokens)], 1, generator=draw))
    return [*tokens, bonus], len(tokens)


def _distributions(
    model: Reasoner, rows: Sequence[Sequence[int]], places: Tensor, temperature: float
) -> Tensor:
    """Return next-token probabilities (rows, places, vocabulary) after the given places."""
    longest = max(map(len, rows))
    tokens = torch.tensor([[*row, *[PAD] * (longest - len(row))] for row in rows])
    with torch.no_grad():
        states = model.hidden(tokens)[torch.arange(len(rows))[:, None], places]
        logits = model.logits(states)
    if temperature == 0:
        return functional.one_hot(logits.argmax(-1), logits.shape[-1]).float()
    return torch.softmax(logits / temperature, -1)
