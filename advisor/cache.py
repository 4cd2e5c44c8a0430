"""The KV cache of a replayed engine: whole blocks, a problem's prompt counted once.

Blocks of a prompt that are whole and leave its last token to compute are shared by the samples of
a problem; what every problem shares is counted once for all. The blocks of a prompt stay in the
prefix cache for the samples of its problem that come later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A problem's prompt: its tokens, those that other problems have cached, its samples.

    `longest` is the most tokens that a sample of it comes to hold.
    """

    tokens: int
    cached_tokens: int
    samples: int
    longest: int


class Cache:
    """Counts blocks; does nothing but prefix hits when they can never run out (`tight` False).

    Parameters
    ----------
    prompts: of the problems.
    block_size: tokens of a block.
    total: blocks that can be given out, None for no limit.
    prefix_caching: whether prompts are shared.
    together: the most samples that can run at once.

    Raises ValueError when a sample cannot fit alone.

    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        *,
        block_size: int,
        total: int | None,
        prefix_caching: bool,
        together: int,
    ) -> None:
        self.size, self.prefix_caching = block_size, prefix_caching
        self.total = total or 0
        self.shared = [(p.tokens - 1) // block_size * prefix_caching for p in prompts]
        self.common = min(
            (p.cached_tokens // block_size * prefix_caching for p in prompts), default=0
        )
        self.reached = [p.cached_tokens * prefix_caching for p in prompts]
        self.holders = [0] * len(prompts)
        self.used = self.common
        self.tight = False
        if total is not None:
            needs = [self.blocks(p.longest) for p in prompts for _ in range(p.samples)]
            needs.sort(reverse=True)
            if needs and needs[0] > total:
                raise ValueError(f"a sample needs {needs[0]} blocks of the cache's {total}")
            self.tight = self.common + sum(needs[:together]) > total

    def blocks(self, tokens: int) -> int:
        """Return the blocks that hold so many tokens."""
        return -(-tokens // self.size)

    def hit(self, problem: int, tokens: int) -> int:
        """Return how many of a request's known tokens come from the prefix cache."""
        if not self.prefix_caching:
            return 0
        return min(self.reached[problem], (tokens - 1) // self.size * self.size)

    def reach(self, problem: int, tokens: int) -> None:
        """Note that so many tokens of a problem's prompt are being computed."""
        if self.prefix_caching:
            self.reached[problem] = max(self.reached[problem], tokens // self.size * self.size)

    def admit(self, problem: int, tokens: int) -> bool:
        """Take the blocks of a request's known tokens; False when they are not free."""
        if not self.tight:
            return True
        fresh = self.blocks(tokens) - self.shared[problem]
        if not self.holders[problem]:
            fresh += max(self.shared[problem] - self.common, 0)
        if self.used + fresh > self.total:
            return False
        self.used += fresh
        self.holders[problem] += 1
        return True

    def release(self, problem: int, blocks: int) -> None:
        """Give back the blocks of a request that holds `blocks`, with the shared ones."""
        if not self.tight:
            return
        self.used -= blocks - self.shared[problem]
        self.holders[problem] -= 1
        if not self.holders[problem]:
            self.used -= max(self.shared[problem] - self.common, 0)
