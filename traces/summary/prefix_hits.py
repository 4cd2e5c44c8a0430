"""What the prefix cache held of requests to a server, where neither spans nor answers tell it.

vLLM's spans do not, and its answers only where the server was started so. Its plugin tells of each
step how many tokens of prompts the cache held, and /metrics how many since the last poll. These are
of the requests whose first token came there. Of one request they are its own. Of several, further
samples of a prompt found all of it, and the others found as much as each other. So their sum is
what was counted.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import polars as pl

from traces.recording.reader import Recording
from traces.schema.engine import EngineConfig
from traces.statistics import Bools, Floats, Ints

CACHED, HIT_TOKENS = "vllm:prompt_tokens_cached_total", "vllm:prefix_cache_hits_total"


def with_hits(recording: Recording, samples: pl.DataFrame) -> pl.DataFrame:
    """Return samples with the `cached_tokens` that nothing tells of each by itself.

    Those of an engine stay null where some of its requests tell them, or nothing does. So do those
    of a workload of ours where the cache may have held prompts of others.
    """
    asked = samples.filter(pl.col("first_token").is_not_null())
    untold = asked.group_by("engine").agg(pl.col("cached_tokens").count()).filter(
        cached_tokens=0
    )["engine"]  # fmt: skip
    if untold.is_empty():
        return samples
    found = samples["cached_tokens"].to_numpy().astype(np.float64)
    places = pl.int_range(samples.height).alias("place")
    for key in untold.drop_nulls():
        timed = (
            samples.with_columns(places)
            .filter(pl.col("engine") == key)
            .drop_nulls(["first_token", "prompt_tokens"])
            .sort("first_token", "sample_index")
        )
        engine = recording.manifest.engines.get(key)
        if engine is None or timed.is_empty():
            continue
        counted = _counted(recording, key, engine.model)
        if counted is None:
            continue
        until, tokens = counted
        is_posed = (timed["policy"] != "").any()
        if is_posed and tokens.any() and _others_asked(recording, engine.model):
            continue
        times, prompts = (timed[name].to_numpy() for name in ("first_token", "prompt_tokens"))
        at = np.searchsorted(until, times)
        further = timed.select(pl.col("sample_index").cum_count().over("problem_id") > 1)
        found[timed["place"].to_numpy()] = _shared_out(
            np.minimum(at, len(until)),
            np.append(tokens, 0),
            np.maximum(prompts - 1, 0),
            further.to_series().to_numpy(),
            engine.block_size or 1,
        )
    filled = pl.Series("cached_tokens", found).fill_nan(None).cast(pl.Int64)
    return samples.with_columns(filled)


def _others_asked(recording: Recording, model: str) -> bool:
    """Whether servers of a model ended more requests than the recording has, or do not say."""
    engines = recording.manifest.engines
    keys = [key for key, engine in engines.items() if engine.model == model]
    of_model = pl.col("engine").is_in(keys)
    finished = recording.frame("steps", ("engine", "finished")).filter(of_model)["finished"]
    own = recording.samples.filter(of_model).height
    return finished.count() < len(finished) or not len(finished) or finished.sum() > own


def _counted(recording: Recording, key: str, model: str) -> tuple[Ints, Ints] | None:
    """Return until when, ascending unix ns, and how many tokens the cache held of prompts.

    Spans that do not say on which server of a model they were get those of all of them.
    """
    engines = recording.manifest.engines
    for keys in ([key], [each for each, engine in engines.items() if engine.model == model]):
        for counted in (_of_steps(recording, keys), _of_polls(recording, keys)):
            if counted is not None:
                return counted
    return None


def _of_steps(recording: Recording, keys: Collection[str]) -> tuple[Ints, Ints] | None:
    """Return what the steps tell. A first token is of the step that ended nearest to it."""
    if recording.manifest.dropped.get("steps"):
        return None
    columns = ("engine", "end", "prefill_requests", "cached_prompt_tokens")
    steps = recording.frame("steps", columns).filter(pl.col("engine").is_in(keys))
    if not steps["cached_prompt_tokens"].count():
        return None
    steps = steps.filter(
        (pl.col("prefill_requests") > 0) | (pl.col("cached_prompt_tokens") > 0)
    ).drop_nulls("end").sort("end")  # fmt: skip
    if steps.is_empty():
        return None
    ends = steps["end"].to_numpy()
    until = np.append(ends[:-1] + np.diff(ends) // 2, np.iinfo(np.int64).max)
    return until, steps["cached_prompt_tokens"].fill_null(0).to_numpy()


def _of_polls(recording: Recording, keys: Collection[str]) -> tuple[Ints, Ints] | None:
    """Return what /metrics tell. A counter that fell, as at a restart, tells nothing there."""
    columns = ("engine", "time", "name", "labels", "value")
    rows = recording.frame("scrapes", columns).filter(pl.col("engine").is_in(keys))
    for name in (CACHED, HIT_TOKENS):
        counter = rows.filter(pl.col("name") == name).drop_nulls("value").sort("time")
        if counter.is_empty():
            continue
        grown = pl.col("value").diff().over("engine", "labels").clip(lower_bound=0)
        gained = counter.with_columns(gained=grown).group_by("time").agg(pl.col("gained").sum())
        polls = rows.select(pl.col("time").unique().sort())
        polls = polls.join(gained, on="time", how="left", maintain_order="left")
        tokens = polls["gained"].fill_null(0).round().cast(pl.Int64).to_numpy()
        return polls["time"].to_numpy(), tokens
    return None


def _shared_out(at: Ints, tokens: Ints, most: Ints, further: Bools, size: int) -> Floats:
    """Return what each request found, [requests], in whole blocks of `size` tokens.

    `at` is its place in `tokens`, ascending. None found more than `most`, and `further` samples of
    a prompt found all of that.
    """
    room = most // size * size
    counts = np.bincount(at, minlength=len(tokens))
    tokens = _beside(tokens, np.bincount(at, room, len(tokens)).astype(np.int64))
    found = np.minimum(tokens[at], room)
    alone = found[(counts[at] == 1) & (found > 0)]
    usual = 0
    if alone.size:
        values, times = np.unique(alone, return_counts=True)
        usual = int(values[np.argmax(times)])
    begins = np.concatenate([[0], np.cumsum(counts)])
    for place in np.flatnonzero(counts > 1):
        own = slice(begins[place], begins[place + 1])
        found[own] = _split(int(tokens[place]), room[own], further[own], usual, size)
    return found.astype(np.float64)


def spread_evenly(tokens: int, most: Ints, engine: EngineConfig) -> Ints:
    """Return what each of many requests found of so many tokens, none more than `most`.

    In whole blocks, and as much as each other where that is possible.
    """
    size = engine.block_size or 1
    return _evenly(tokens, most // size * size, size)


def _evenly(tokens: int, room: Ints, size: int) -> Ints:
    """Return a number for each, up to its room and in whole parts of a size, with this sum.

    All are alike but for the room and for the last parts, which the first of them get.
    """
    parts = room // size
    wanted = min(-(-tokens // size), int(parts.sum()))
    order = np.sort(parts)
    # With a level l each gets min(parts, l): the sum up to each rank, and l for all above it.
    below = np.concatenate([[0], np.cumsum(order)])
    at_rank = below[:-1] + order * np.arange(len(order), 0, -1)
    rank = int(np.searchsorted(at_rank, wanted, side="left"))
    if rank == len(order):
        return room.copy()
    level, rest = divmod(wanted - int(below[rank]), len(order) - rank)
    found = np.minimum(parts, level)
    found[np.flatnonzero(parts > level)[:rest]] += 1
    found *= size
    last = np.flatnonzero(found)[-1:]
    found[last] -= max(int(found.sum()) - tokens, 0)  # a part of one, if it is not a whole number
    return found


def _beside(tokens: Ints, room: Ints) -> Ints:
    """Return the counts with what no request there had room for moved to one place beside it.

    Two clocks tell when a token came, so that it may be of the step before or the next.
    """
    tokens = tokens.copy()
    for place in np.flatnonzero(tokens > room):
        for other in (place - 1, place + 1):
            if 0 <= other < len(tokens):
                spare = max(int(room[other] - tokens[other]), 0)
                moved = min(int(tokens[place] - room[place]), spare)
                tokens[place], tokens[other] = tokens[place] - moved, tokens[other] + moved
    return tokens


def _split(tokens: int, room: Ints, further: Bools, usual: int, size: int) -> Ints:
    """Return what several requests found of so many tokens, [requests].

    Where so many found what is `usual`, the last of them did: the first computed it.
    """
    found = np.zeros_like(room)
    for each in np.flatnonzero(further):
        found[each] = min(room[each], tokens)
        tokens -= int(found[each])
    first = np.flatnonzero(~further)
    count = tokens // usual if usual and tokens % usual == 0 else len(first)
    some = first[len(first) - count :]
    if 0 < count < len(first) and (room[some] >= usual).all():
        found[some] = usual
        return found
    found[first] = _evenly(tokens, room[first], size)
    return found
