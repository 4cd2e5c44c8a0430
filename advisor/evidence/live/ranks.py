"""Which data-parallel ranks are of one server: those of a mixture share its experts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Final

from advisor.evidence.keys import law_key, learned_as
from traces.live.watched import RANK
from traces.recording.reader import Recording
from traces.schema.engine import EngineConfig

_OF_RANK = re.compile(r"\A\d+(?: |\Z)")  # before the name of a replica, where there is one
_OF_SERVER: Final = frozenset({RANK, "dp_rank"})  # what says which rank of a server an engine is


def server_of(engine: EngineConfig) -> tuple[tuple[str, str], ...]:
    """Return which server an engine is on. Ray's page names replicas, behind their ranks."""
    pairs = ((name, _OF_RANK.sub("", at) if name == RANK else at) for name, at in engine.other)
    return tuple(pair for pair in pairs if pair != (RANK, ""))


def ranks_in(engines: Iterable[EngineConfig]) -> dict[EngineConfig, int | None]:
    """Return how many data-parallel ranks the server has that each of a recording's engines is of.

    None where servers in one engine differ, and where ranks with lower numbers were not watched. A
    server whose ranks are there too is left out, as it
    may not tell how many they are, and so are the replicas of a replayed one.
    """
    engines = list(engines)
    ranks = [each for each in engines if _OF_SERVER & dict(each.other).keys()]
    pages = {_without(each, _OF_SERVER | {"worker"}) for each in ranks}
    parts = {each.one_replica() for each in engines if each.data_parallel_size > 1} | set(ranks)
    wholes = [e for e in engines if e not in parts and _without(e, frozenset()) not in pages]
    watched_ranks = {_of_rank(each) for each in ranks}
    count = Counter((server, model) for server, model, _ in watched_ranks)
    highest = Counter[tuple[object, str]]()
    for server, model, at in watched_ranks:
        number = max((int(each) for each in at if each.isdigit()), default=0)
        highest[server, model] = max(highest[server, model], number)
    rank_counts = {each: count[each] if highest[each] < count[each] else None for each in count}
    return {e: rank_counts[_of_rank(e)[:2]] for e in ranks} | {e: e.ranks for e in wholes}


def ranks_by_law(recordings: Iterable[Recording]) -> dict[EngineConfig, frozenset[int | None]]:
    """Return the numbers of ranks that servers of one `law_key` had in the recordings."""
    counts: dict[EngineConfig, frozenset[int | None]] = {}
    for recording in recordings:
        for engine, count in ranks_in(learned_as(recording.manifest.engines).values()).items():
            key = law_key(engine)
            counts[key] = counts.get(key, frozenset()) | {count}
    return counts


def _of_rank(engine: EngineConfig) -> tuple[tuple[tuple[str, str], ...], str, tuple[str, ...]]:
    """Return the server that a rank is of, its model, and which of the ranks it is."""
    server = tuple(pair for pair in server_of(engine) if pair[0] != "dp_rank")
    return server, engine.model, tuple(at for name, at in engine.other if name in _OF_SERVER)


def _without(engine: EngineConfig, names: frozenset[str]) -> tuple[tuple[str, str], ...]:
    return tuple(pair for pair in engine.other if pair[0] not in names)
