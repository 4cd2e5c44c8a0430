"""A stand-in for vLLM's scheduler with the attributes that the step probe reads."""

from dataclasses import dataclass, field
from types import SimpleNamespace


@dataclass
class Cached:
    """As vLLM's CachedRequestData."""

    req_ids: list
    num_computed_tokens: list
    num_output_tokens: list
    resumed_req_ids: set = field(default_factory=set)


@dataclass
class Output:
    """As vLLM's SchedulerOutput."""

    num_scheduled_tokens: dict
    scheduled_cached_reqs: Cached
    scheduled_new_reqs: list = field(default_factory=list)
    finished_req_ids: set = field(default_factory=set)
    preempted_req_ids: set | None = None
    scheduled_spec_decode_tokens: dict = field(default_factory=dict)

    @property
    def total_num_scheduled_tokens(self):
        return sum(self.num_scheduled_tokens.values())


def decoding(contexts, *, produced=5):
    """A step in which every request decodes one token after so much context."""
    names = [f"r{index}" for index in range(len(contexts))]
    cached = Cached(names, list(contexts), [produced] * len(names))
    return Output(dict.fromkeys(names, 1), cached)


def new(name, cached=0):
    return SimpleNamespace(req_id=name, num_computed_tokens=cached)


class FakeScheduler:
    """Gives the outputs it was made with, one a step."""

    def __init__(self, outputs, *, blocks=101):
        self.outputs = list(outputs)
        self.running, self.waiting, self.finished_req_ids = [], [], set()
        queue = SimpleNamespace(num_free_blocks=blocks - 1)
        pool = SimpleNamespace(num_gpu_blocks=blocks, free_block_queue=queue)
        self.kv_cache_manager = SimpleNamespace(block_pool=pool)

    def schedule(self):
        return self.outputs.pop(0)

    def update_from_output(self, scheduled, computed):
        return "outputs"
