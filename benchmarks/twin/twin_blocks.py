"""The KV cache of the naive twin: single blocks with what they hold, in a queue of free ones."""

import itertools
import math


class Blocks:
    """vLLM's block pool: a queue of free blocks that keep what they hold until taken."""

    def __init__(self, total, before=()):
        self.before = set(before)  # what is found without having been computed here
        self.never_used = itertools.count() if total is None else iter(range(total))
        self.left = math.inf if total is None else total
        self.free = {}  # block -> None, in the order in which they are taken
        self.key_of, self.block_of, self.users = {}, {}, {}

    def available(self):
        return self.left + len(self.free)

    def hits(self, keys):
        """Return the block of each key that is found, None of what takes a block only now."""
        there = self.block_of.keys() | self.before
        return [self.block_of.get(key) for key in itertools.takewhile(there.__contains__, keys)]

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
    """Name the blocks of each prompt that others may share, as `Workload.from_loads` means it.

    Also those that are in the cache before anybody has computed them.
    """
    found = [min(load.cached_tokens, load.prompt_tokens - 1) for load in loads]
    hits = sorted(filter(None, found))
    usual = hits[len(hits) // 2] if hits else 0
    shared = [
        (own or min(usual, load.prompt_tokens - 1))
        if load.shared_tokens is None
        else min(load.shared_tokens, load.prompt_tokens - 1)
        for load, own in zip(loads, found, strict=True)
    ]
    least = max(2, 0.05 * len(loads))
    levels = sorted(each for each in set(shared) if each and shared.count(each) >= least)
    reached = [max((level for level in levels if level <= each), default=0) for each in shared]
    named, before = [], set()
    for p, load in enumerate(loads):
        whole = (load.prompt_tokens - 1) // size
        named.append([("all", b) if b < reached[p] // size else (p, b) for b in range(whole)])
        before |= {(p, b) for b in range(reached[p] // size, max(found[p], reached[p]) // size)}
    for begin, level in zip([0, *levels], levels, strict=False):
        if all(found[p] >= level for p in range(len(loads)) if shared[p] >= level):
            before |= {("all", b) for b in range(begin // size, level // size)}
    return named, before
