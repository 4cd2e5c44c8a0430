"""Generation with the training network: greedy or sampled, many rows at a time, no engine.

It exists to pick and measure checkpoints; the profiler itself runs the models on vLLM.
"""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from profiler.demo.task import DIGITS, EFFORT_MARKS, DemoProblem, answer_of
from scripts.reasoners.network import CONTEXT_TOKENS, Reasoner
from scripts.reasoners.tokenizer import BOS, EOS, PAD, THINK, decode, encode

ROWS = 1024  # sequences in flight


def prompt_ids(problem: DemoProblem, effort: str = "low") -> list[int]:
    """Return the token ids that the chat template makes of a problem's prompt."""
    return [BOS, *encode(problem.prompt + EFFORT_MARKS[effort]), THINK]


def choose(logits: Tensor, temperature: float, draw: torch.Generator) -> Tensor:
    """Return next tokens (rows,) from logits (rows, vocabulary); temperature 0 is greedy."""
    if temperature == 0:
        return logits.argmax(-1)
    weights = torch.softmax(logits / temperature, -1)
    return torch.multinomial(weights, 1, generator=draw).squeeze(-1)


def generate(
    model: Reasoner,
    problems: Sequence[DemoProblem],
    *,
    samples: int,
    temperature: float,
    seed: int,
    effort: str = "low",
    max_tokens: int = 500,
) -> list[list[list[int]]]:
    """Return completions as token ids, ``samples`` for each problem, in its place.

    A completion ends with EOS, or without it where it ran to ``max_tokens`` or the context limit.
    """
    draw = torch.Generator().manual_seed(seed)
    prompts = [prompt_ids(problem, effort) for problem in problems]
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        by_length[len(prompt)].append(index)
    done: dict[int, list[list[int]]] = {}
    step = max(1, ROWS // samples)
    for _, same_length in sorted(by_length.items()):
        for first in range(0, len(same_length), step):
            group = same_length[first : first + step]
            tokens = torch.tensor([prompts[index] for index in group])
            with torch.no_grad():
                made = _complete(
                    model,
                    tokens,
                    draw,
                    samples=samples,
                    temperature=temperature,
                    max_tokens=max_tokens,
                )
            for place, index in enumerate(group):
                done[index] = made[place * samples : (place + 1) * samples]
    return [done[index] for index in range(len(prompts))]


def _complete(
    model: Reasoner,
    prompts: Tensor,
    draw: torch.Generator,
    *,
    samples: int,
    temperature: float,
    max_tokens: int,
) -> list[list[int]]:
    count, length = prompts.shape
    total = min(CONTEXT_TOKENS, length + max_tokens)
    shared = model.new_cache(count, length)
    logits = model.logits(model.hidden(prompts, shared)[:, -1]).repeat_interleave(samples, 0)
    cache = model.new_cache(count * samples, total)
    for (keys, values), (shared_keys, shared_values) in zip(cache, shared, strict=True):
        keys[:, :, :length] = shared_keys.repeat_interleave(samples, 0)
        values[:, :, :length] = shared_values.repeat_interleave(samples, 0)
    output = torch.full((count * samples, total - length), PAD)
    alive = torch.arange(count * samples)
    for step in range(total - length):
        chosen = choose(logits, temperature, draw)
        output[alive, step] = chosen
        going = (chosen != EOS).nonzero().squeeze(-1)
        if not len(going) or step == total - length - 1:
            break
        # Rows that ended are dropped at every step they end in: batches shrink as they finish.
        if len(going) < len(alive):
            alive, chosen = alive[going], chosen[going]
            cache = [(keys[going], values[going]) for keys, values in cache]
        logits = model.logits(model.hidden(chosen[:, None], cache, length + step)[:, -1])
    rows: list[list[int]] = output.tolist()
    return [row[: row.index(EOS) + 1] if EOS in row else _unpadded(row) for row in rows]


def _unpadded(row: list[int]) -> list[int]:
    end = len(row)
    while end and row[end - 1] == PAD:
        end -= 1
    return row[:end]


def forced_answers(
    model: Reasoner, prefixes: Sequence[Sequence[int]], *, temperature: float, seed: int
) -> list[str | None]:
    """Return the answers decoded after prefixes that end in ``</think>``.

    The prefixes are of equal length; None where the token is not a number.
    """
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.tensor([list(prefix) for prefix in prefixes])
    with torch.no_grad():
        chosen = choose(model.logits(model.hidden(tokens)[:, -1]), temperature, draw)
    texts = (decode([token]) for token in chosen.tolist())
    return [text if text in DIGITS else None for text in texts]


def completion_text(token_ids: Sequence[int]) -> str:
    """Return the text as a server would: without the final ``<eos>``."""
    ids = list(token_ids)
    return decode(ids[:-1] if ids and ids[-1] == EOS else ids)


def right(problem: DemoProblem, token_ids: Sequence[int]) -> bool:
    """Tell whether a finished completion answers its problem."""
    finished = bool(token_ids) and token_ids[-1] == EOS
    return finished and answer_of(completion_text(token_ids)) == problem.expected
