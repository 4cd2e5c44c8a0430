"""The KV cache of the naive twin: single blocks with what they hold, in a queue of free ones."""

import itertools
import math


class Blocks:
    """vLLM's block pool: a queue of free blocks that keep what they hold until taken."""

    def __init__(self, total):
        self.never_used = itertools.count() if total is None else iter(range(total))
        self.left = math.inf if total is None else total
        self.free = {}  # block -> None, in the order in which they are taken
        self.key_of, self.block_of, self.users = {}, {}, {}

    def available(self):
        return self.left + len(self.free)

    def hits(self, keys):
        found = list(itertools.takewhile(lambda key: key in self.block_of, keys))
        return [self.block_of[key] for key in found]

    def use(self, block):
        if not self.users.get(block):
            self.free.pop(block, None)
        self.users[block] = self.users.get(block, 0) + 1

    def take(self):
        if self.left:
            block, self.left = next(self.never_used), self.left - 1
        else:
            block = next(iter(self.free))
        key = self.key_of.pop(block, None)
        if key is not None:
            del self.block_of[key]
        self.use(block)
        return block

    def hold(self, block, key):
        if key not in self.block_of:
            self.block_of[key], self.key_of[block] = block, key

    def give_back(self, blocks):
        for block in reversed(blocks):
            self.users[block] -= 1
            if not self.users[block]:
                self.free[block] = None


def keys_of_loads(loads, size):
    """Name the blocks of each prompt that others may share, as `Workload.from_loads` means it."""
    seen = sorted(load.cached_tokens for load in loads if load.cached_tokens)
    usual = seen[len(seen) // 2] if seen else 0
    levels = sorted(set(seen))
    found = []
    for p, load in enumerate(loads):
        common = load.cached_tokens or min(usual, load.prompt_tokens - 1)
        common = max((level for level in levels if level <= common), default=0) // size
        whole = (load.prompt_tokens - 1) // size
        found.append([("all", b) if b < common else (p, b) for b in range(whole)])
    return found
