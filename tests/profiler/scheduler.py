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


@dataclass
class Request:
    """A request of `Simulated`: tokens of its prompt, computed, put out, and in all."""

    name: str
    prompt: int
    length: int
    computed: int = 0
    produced: int = 0


class Simulated(FakeScheduler):
    """Schedules as vLLM does: running requests first, prompts in chunks, within a budget.

    `truth` has of each step that scheduled something what it computes, request by request.
    """

    def __init__(self, *, budget, seats, drafts=False):
        super().__init__([])
        self.budget, self.seats, self.drafts = budget, seats, drafts
        self.preempted, self.resumed, self.truth = set(), set(), []

    def add(self, name, prompt, length):
        self.waiting.append(Request(name, prompt, length))

    def abort(self, request):
        (self.running if request in self.running else self.waiting).remove(request)
        self.finished_req_ids.add(request.name)

    def preempt(self):
        """The last one starts again, its tokens being its prompt."""
        request = self.running.pop()
        request.computed = 0
        self.waiting.insert(0, request)
        self.preempted.add(request.name)
        self.resumed.add(request.name)

    def schedule(self):
        left, parts, drafted = self.budget, [], {}
        for request in self.running:
            wants = request.prompt + request.produced - request.computed
            if self.drafts and wants == 1 and request.produced % 3 == 1:
                drafted[request.name] = [7]
                wants = 2
            if adds := min(wants, left):
                parts.append((request, adds, False))
                left -= adds
        drafted = {each.name: drafted[each.name] for each, _, _ in parts if each.name in drafted}
        while self.waiting and left and len(self.running) < self.seats:
            request = self.waiting.pop(0)
            adds = min(request.prompt + request.produced - request.computed, left)
            self.running.append(request)
            parts.append((request, adds, True))
            left -= adds
        new = [each for each, _, fresh in parts if fresh and each.name not in self.resumed]
        old = [each for each, _, _ in parts if each not in new]
        back = {each.name for each, _, fresh in parts if fresh and each not in new}
        output = Output(
            {each.name: adds for each, adds, _ in parts},
            Cached(
                [each.name for each in old],
                [each.computed for each in old],
                [each.produced for each in old],
                back,
            ),
            [SimpleNamespace(req_id=each.name, num_computed_tokens=each.computed) for each in new],
            self.finished_req_ids,
            self.preempted,
            drafted,
        )
        self.resumed -= back
        self.finished_req_ids, self.preempted = set(), set()
        if parts:
            prompts = [(r.computed, n) for r, n, _ in parts if not r.produced or r.name in back]
            decodes = [(r.computed, n) for r, n, _ in parts if r.produced and r.name not in back]
            self.truth.append(
                {
                    "prefill_requests": len(prompts),
                    "prefill_tokens": sum(adds for _, adds in prompts),
                    "decode_requests": len(decodes),
                    "decode_tokens": sum(adds for _, adds in decodes),
                    "prefill_kv_tokens": sum(context + adds for context, adds in prompts),
                    "decode_kv_tokens": sum(context + adds for context, adds in decodes),
                    "max_context_tokens": max(
                        context + adds for context, adds in prompts + decodes
                    ),
                    "running": len(self.running),
                    "waiting": len(self.waiting),
                    "preempted": len(output.preempted_req_ids),
                    "drafted": [len(drafted)] if drafted else None,
                }
            )
        for request, adds, _ in parts:
            request.computed += adds
        return output

    def update_from_output(self, scheduled, computed):
        for request in list(self.running):
            adds = scheduled.num_scheduled_tokens.get(request.name)
            if adds is None or request.computed < request.prompt + request.produced:
                continue
            request.computed = request.prompt + request.produced  # no draft is kept
            request.produced += 1
            if request.produced >= request.length:
                self.running.remove(request)
                self.finished_req_ids.add(request.name)
        return "outputs"
