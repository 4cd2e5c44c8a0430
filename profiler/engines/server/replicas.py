"""Several servers of one model as one engine: problems go to them in turn.

The samples of a problem go to one server, so that they share their prompt in its prefix cache.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence

from profiler.engines.interface import Engine, SampleRequest, SampleResult
from profiler.engines.server.server import ServerEngine
from traces.errors import UsageError
from traces.schema.engine import RANKS, EngineConfig

_LOOK_S = 0.002


def together(configs: Sequence[EngineConfig], urls: Sequence[str]) -> EngineConfig:
    """Return the replicas as one engine: the first one's settings, all devices.

    Raises UsageError where they do not serve the same model.
    """
    models = sorted({config.model for config in configs})
    if len(models) > 1:
        raise UsageError(
            f"--workload: the servers serve different models ({', '.join(models)}). "
            "Name one that all have with --model"
        )
    gpus = [config.num_gpus for config in configs if config.num_gpus is not None]
    ranks = sorted({config.data_parallel_size for config in configs})
    return dataclasses.replace(
        configs[0],
        data_parallel_size=sum(config.data_parallel_size for config in configs),
        num_gpus=sum(gpus) if len(gpus) == len(configs) else None,
        other=(("urls", " ".join(urls)), (RANKS, " ".join(map(str, ranks)))),
    )


class ReplicaEngine(Engine):
    """An `Engine` over the engines of several servers (see the module)."""

    def __init__(self, engines: Sequence[ServerEngine], config: EngineConfig) -> None:
        self._engines = list(engines)
        self._of_problem: dict[str, int] = {}
        self._of_request: dict[str, int] = {}
        self.config = config
        self.provider = engines[0].provider
        self.model = engines[0].model
        self.chat_template = engines[0].chat_template
        self.think_end_ids = engines[0].think_end_ids

    @property
    def thinking_budget(self) -> bool:
        return all(engine.thinking_budget for engine in self._engines)

    def prepare(self, *, top_logprobs: int | None, thinking_budget: bool) -> None:
        for engine in self._engines:
            engine.prepare(top_logprobs=top_logprobs, thinking_budget=thinking_budget)

    def foresee(self, prompts: Iterable[str]) -> None:
        listed = list(prompts)
        for engine in self._engines:
            engine.foresee(listed)

    def submit(self, request: SampleRequest) -> None:
        problem = request.request_id.rpartition(".")[0]
        place = self._of_problem.setdefault(problem, len(self._of_problem) % len(self._engines))
        self._of_request[request.request_id] = place
        self._engines[place].submit(request)

    def cancel(self, request_ids: Sequence[str]) -> list[SampleResult]:
        results: list[SampleResult] = []
        for place, engine in enumerate(self._engines):
            mine = [each for each in request_ids if self._of_request.get(each) == place]
            if mine:
                results += self._ended(engine.cancel(mine))
        return results

    def poll(self, wait_s: float | None = None) -> list[SampleResult]:
        ended = [result for engine in self._engines for result in engine.poll(0.0)]
        if not ended:
            time.sleep(_LOOK_S if wait_s is None else min(wait_s, _LOOK_S))
        return self._ended(ended)

    def _ended(self, results: list[SampleResult]) -> list[SampleResult]:
        for result in results:
            self._of_request.pop(result.request_id, None)
        self.notes = tuple(note for engine in self._engines for note in engine.notes)
        return results

    def close(self) -> None:
        for engine in self._engines:
            engine.close()
