"""A server of which only /metrics was read: a coarse law of its steps, and its traffic drawn again.

Between two polls the counters tell how many steps ran, how many tokens they had, and the mean time
between tokens, which is the mean time of a step where decoding requests are as many in each of
them. So each interval between polls stands as one mean step. A law that is linear in what a step
has takes means as well as single steps, and knows as little as their spread between intervals.

Requests are not seen one by one: their lengths are drawn from the histograms, prompt and output
each for itself, and their arrivals from what the counters say of each interval. Of a page without
histograms of lengths the counters tell their means, and each draw has another spread around them.

A page that does not count steps tells them by Little's law: so many requests decode on average as
the times between tokens add up to seconds in a second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from advisor.evidence.features import Features, Reads, features_of, work_of_steps
from advisor.evidence.live.drafts import drafts_of
from advisor.evidence.live.front_end_time import mean_front_end
from advisor.evidence.runs import ProblemRun, RecordedRun, Sample, arrival_rate, beginnings
from traces.live.engine_names import SGLANG, software_of
from traces.live.numbers import (
    ASKED_TOKENS,
    FINISHED,
    GENERATED,
    ITL,
    KV,
    OUTPUT_LENGTH,
    PROMPT,
    PROMPT_LENGTH,
    RUNNING,
    STEP_TOKENS,
    TTFT,
    WAITING,
    Histogram,
    Window,
)
from traces.schema.engine import EngineConfig
from traces.schema.tts.policy import AS_SENT
from traces.statistics import Floats, Ints
from traces.summary.prefix_hits import CACHED, HIT_TOKENS, spread_evenly

FEWEST_INTERVALS = 10  # between polls at which requests ran, below which no law is learned
AGREE = 1.5  # by which the gaps between tokens may differ from the tokens that were counted
ROWS = 4  # of an interval, on average
SPREAD = 0.15  # sd of the log of a run's time beside that of a law of single steps
DRAWS = 8  # of the traffic
MOST_DRAWN = 4_000  # requests of a draw: the last of them
SHORTEST = 1e-3  # tokens of the mean request: less is none
LONGEST = 1 << 24  # tokens of a request, where the context that a server allows is not known
MOST_COUNTED = 1 << 53  # requests: a float counts no farther
MOST_SPREAD = 1.2  # sd of the log of lengths whose mean alone is known: from none up to this


@dataclass(frozen=True, kw_only=True)
class MeanSteps:
    """Mean steps: `composition` [rows, FEATURES], `seconds` [rows].

    An interval between polls has rows in proportion to the steps that it is the mean of, `ROWS` on
    average. One of few steps has one row: those of long prompts are in no other.
    `most` [FEATURES] is the most of single steps, as far as gauges tell.
    """

    composition: Floats
    seconds: Floats
    most: Floats


def mean_steps(window: Window, engine: EngineConfig, reads: Reads) -> MeanSteps | None:
    """Return the mean step of each interval in which requests ran; None for too few of them."""
    gaps, firsts = window.histograms.get(ITL), window.histograms.get(TTFT)
    if gaps is None or firsts is None or np.isnan(gaps.sums).all():
        return None
    decoded, ended = gaps.counts.sum(axis=1).astype(float), firsts.counts.sum(axis=1).astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        seconds = gaps.sums / decoded
    drafts = drafts_of([window], engine)
    if software_of(engine) == SGLANG:  # its times are a token's, and of streams alone
        kept = 1.0 if drafts is None else drafts.kept
        decoded, seconds = np.nan_to_num(window.counted[GENERATED]) / kept, seconds * kept
    elif _counted(window, f"{STEP_TOKENS}_count") is None:
        generated = window.total(GENERATED)
        tokens = float(decoded.sum() * (1.0 if drafts is None else drafts.kept) + ended.sum())
        if generated is not None and not 1 / AGREE <= tokens / max(generated, 1e-9) <= AGREE:
            return None  # its gaps are not those between tokens, so that they tell of no step
    steps = _steps(window, decoded, seconds, engine.data_parallel_size)
    computed = _counted(window, PROMPT)
    computed = np.zeros_like(steps) if computed is None else computed
    hits, scale = _counted(window, CACHED), 1.0
    if hits is None:  # older vLLM, SGLang
        hits, scale = _counted(window, HIT_TOKENS), _tokens_of_a_hit(window)
    cached = np.zeros_like(steps) if hits is None else scale * np.nan_to_num(hits)
    computed = np.maximum(computed - cached, 0.0)
    usable = np.isfinite(steps) & (steps >= 1) & (decoded >= 1) & (gaps.sums > 0)
    running = window.gauges[RUNNING] / engine.data_parallel_size  # of the ranks of a server
    usable &= np.isfinite(running) & (running > 0)
    usable[0] = False
    if usable.sum() < FEWEST_INTERVALS:
        return None
    each = [column[usable] / steps[usable] for column in (decoded, ended, computed, cached)]
    decodes, prompts, prompt_tokens, cached_tokens = each
    context = _context(window, engine, usable, decodes)
    length, before = (of / np.maximum(prompts, 1e-9) for of in (prompt_tokens, cached_tokens))
    means = {
        "prefill_requests": prompts,
        "prefill_tokens": prompt_tokens,
        "decode_requests": decodes,
        "decode_tokens": decodes * (1.0 if drafts is None else drafts.forwarded),
        "prefill_kv_tokens": prompt_tokens + cached_tokens,
        "decode_kv_tokens": context,
        "prefill_query_context": prompt_tokens * (before + (length + 1) / 2),
    }
    work = work_of_steps(pl.DataFrame(means), reads)
    features = features_of(work, engine.speculative is not None, reads.experts)
    features = features._replace(prefill_step=np.minimum(prompts, 1.0))  # a share of the steps
    composition = np.column_stack(np.broadcast_arrays(*features)).astype(float)
    most = float(np.nanmax(running))
    longest = _mean_and_most(_told_lengths(window, PROMPT_LENGTH, PROMPT))[1]
    high = Features(*composition.max(axis=0))
    high = high._replace(
        prefill_step=1.0,
        requests=max(high.requests, most),
        prefill_requests=max(high.prefill_requests, most),
        tokens=max(high.tokens, most + longest),
    )
    ran = steps[usable]
    times = np.maximum(np.rint(ROWS * ran / ran.mean()), 1).astype(np.int64)
    return MeanSteps(
        composition=np.repeat(composition, times, axis=0),
        seconds=np.repeat(seconds[usable], times),
        most=np.array(high),
    )


def _steps(window: Window, decoded: Floats, seconds: Floats, ranks: int) -> Floats:
    """Return the steps of all ranks since the poll before, [polls]; nan where they are not known.

    Where the page does not count them, only intervals that begin and end with running requests
    are known.
    """
    counts = _counted(window, f"{STEP_TOKENS}_count")
    if counts is not None:
        return counts
    lengths = np.diff(window.times, prepend=window.times[0]) / 1e9
    ran = np.nan_to_num(window.gauges[RUNNING]) > 0
    busy = ran & np.concatenate(([False], ran[:-1]))
    with np.errstate(divide="ignore", invalid="ignore"):
        at_once = np.maximum(decoded * seconds / lengths / ranks, 1.0)
        return np.asarray(np.where(busy, decoded / at_once, np.nan))


def _tokens_of_a_hit(window: Window) -> float:
    """Return the prompt tokens for each of what the prefix cache was asked for.

    vLLM 0.8 counts blocks there, later versions and SGLang tokens.
    """
    computed, asked = window.total(PROMPT), window.total(ASKED_TOKENS)
    return computed / asked if computed and asked else 1.0


def _counted(window: Window, name: str) -> Floats | None:
    counts = window.counted.get(name)
    return None if counts is None or np.isnan(counts).all() else counts


def _context(
    window: Window, engine: EngineConfig, usable: npt.NDArray[np.bool_], decodes: Floats
) -> Floats:
    """Return the context that the decoding requests of a mean step read, in tokens.

    What the cache holds: a prompt that requests share is in it once. Where the size of the cache is
    not told, each request has the mean prompt and half of the mean output.
    """
    blocks, usage = engine.num_gpu_blocks, window.gauges[KV]
    if blocks is not None and engine.block_size is not None and np.isfinite(usage).any():
        held = np.nan_to_num((usage + np.append(usage[:1], usage[:-1])) / 2)
        return np.asarray(held[usable] * (blocks - 1) * engine.block_size)
    prompt = _mean_and_most(_told_lengths(window, PROMPT_LENGTH, PROMPT))[0]
    output = _mean_and_most(_told_lengths(window, OUTPUT_LENGTH, GENERATED))[0]
    return decodes * (prompt + output / 2)


def _mean_and_most(told: Histogram | float | None) -> tuple[float, float]:
    """Return the mean of lengths and a bound of the largest: the mean if that alone is known."""
    if not isinstance(told, Histogram):
        return told or 0.0, told or 0.0
    histogram, count = told, float(told.counts.sum())
    largest = histogram.quantile(1.0, "tokens")
    assert largest is not None
    most = largest.low if largest.high is None else largest.high
    return float(np.nansum(histogram.sums)) / count, float(most)


def drawn_traffic(
    window: Window, engine: EngineConfig, recording: str, key: str
) -> list[RecordedRun]:
    """Return the traffic of a server drawn `DRAWS` times, the same problems in each.

    Of more than `MOST_DRAWN` requests these are the last, so that no page asks for hours of replay.
    Empty where /metrics does not tell lengths or nothing finished. Problems have no answers, no
    latency and one sample each.
    """
    firsts, arrivals = window.histograms.get(TTFT), arrivals_in(window)
    prompts = _told_lengths(window, PROMPT_LENGTH, PROMPT)
    outputs = _told_lengths(window, OUTPUT_LENGTH, GENERATED)
    if isinstance(outputs, float) and software_of(engine) == SGLANG:
        outputs += 1.0  # it counts the tokens of decode steps, and the first is of a prompt's
    if not len(arrivals) or prompts is None or outputs is None:
        return []
    cached = window.total(CACHED)
    if cached is None:
        cached = (window.total(HIT_TOKENS) or 0.0) * _tokens_of_a_hit(window)
    counted = float(firsts.counts.sum()) if firsts is not None else 0.0
    hits = round(cached * len(arrivals) / max(counted, 1.0))  # more may wait than began
    names = [f"{recording}.{key}.{place}" for place in range(len(arrivals))]
    front_end_s = mean_front_end(window)
    runs = []
    for draw in range(DRAWS):
        rng = np.random.default_rng([draw, len(arrivals)])
        most = engine.max_model_len
        spread = MOST_SPREAD * draw / (DRAWS - 1)
        prompt = _lengths(prompts, len(arrivals), rng, most, spread)
        output = _lengths(outputs, len(arrivals), rng, most, spread)
        if most is not None:
            output = _within(prompt, output, most, rng)
        found = spread_evenly(hits, np.maximum(prompt.astype(np.int64) - 1, 0), engine)
        asked = prompt.astype(np.int64).tolist()
        problems = {
            name: ProblemRun(
                problem_id=name,
                arrival_ns=arrival,
                prompt_tokens=prompt_tokens,
                cached_tokens=cached_tokens,
                shared_tokens=shared_tokens,
                latency_s=math.nan,
                samples=(Sample(output_tokens=made, answer=None, correct=None),),
                indices=(0,),
                front_end_s=front_end_s,
            )
            for name, arrival, prompt_tokens, cached_tokens, shared_tokens, made in zip(
                names,
                arrivals.tolist(),
                asked,
                found.tolist(),
                beginnings(found.tolist(), asked, engine),
                output.astype(np.int64).tolist(),
                strict=True,
            )
        }
        runs.append(
            RecordedRun(
                recording=recording,
                engine=engine,
                policy=AS_SENT,
                problems=problems,
                concurrency=None,
                rate_per_s=arrival_rate(arrivals[arrivals > window.times[0]].tolist()),
                drawn=True,
                spread_unknown=isinstance(prompts, float) or isinstance(outputs, float),
            )
        )
    return runs


def arrivals_in(window: Window) -> Ints:
    """Return when requests came, unix ns, evenly within each interval between polls.

    The last `MOST_DRAWN` of them, so that no counter of a page fills the memory. None of a page
    that does not count first tokens.

    Ascending, though polls may not be. Those that came got their first token or wait: the first
    tokens and how many more wait. Those that wait at the first poll came before it, at times that
    nothing tells, and come with it here.
    """
    firsts = window.histograms.get(TTFT)
    if firsts is None:
        return np.zeros(0, dtype=np.int64)
    waiting = np.nan_to_num(window.gauges[WAITING])
    came = firsts.counts.sum(axis=1).astype(float)
    came[1:] += np.diff(waiting)
    came[0] = waiting[0]
    # A queue that shrinks gives its requests to the intervals before, in which they came.
    total = np.maximum.accumulate(np.maximum(np.cumsum(came), 0.0))
    upto = np.floor(np.minimum(total, MOST_COUNTED) + 1e-9).astype(np.int64)
    counts = np.diff(upto, prepend=0)
    kept = np.clip(MOST_DRAWN - (upto[-1] - upto), 0, counts)
    times = []
    for place in np.flatnonzero(kept):
        begin, end = window.times[max(place - 1, 0)], window.times[place]
        parts = (np.arange(counts[place] - kept[place], counts[place]) + 0.5) / counts[place]
        times.append(begin + np.rint(parts * (end - begin)).astype(np.int64))
    return np.sort(np.concatenate(times)) if times else np.zeros(0, dtype=np.int64)


def _told_lengths(window: Window, name: str, counter: str) -> Histogram | float | None:
    """Return a histogram of lengths, or their mean where counters alone tell it; None for neither.

    Those of requests that ended: what counters have of others too is as much at either end.
    """
    histogram = window.histograms.get(name)
    if histogram is not None and histogram.counts.sum():
        return histogram
    tokens, ended = window.total(counter), window.total(FINISHED)
    return tokens / ended if tokens and ended else None


def _lengths(
    told: Histogram | float,
    count: int,
    rng: np.random.Generator,
    most: int | None,
    spread: float,
) -> Floats:
    """Return so many lengths in tokens, at least 1, in random order, with the histogram's mean.

    They are even within a bucket; the one without an end is as wide as the one before. None is
    as long as `most`, the context that the server allows. Around a mean alone they are log-normal,
    with this `spread` of their logarithm.
    """
    longest = LONGEST if most is None else most - 1
    if isinstance(told, float):
        drawn = np.exp(rng.normal(0.0, spread, count))
        drawn *= told / drawn.mean()
        return np.asarray(np.clip(np.rint(drawn), 1.0, longest))
    histogram = told
    counts = histogram.counts.sum(axis=0, dtype=float)
    begins = np.clip(np.concatenate(([0.0], histogram.bounds[:-1])), 0.0, longest)
    ends = np.where(np.isfinite(histogram.bounds), histogram.bounds, 2 * begins)
    ends = np.clip(ends, begins, longest)
    upto = np.cumsum(counts) / counts.sum()
    places = (np.arange(count) + rng.random()) / count
    bucket = np.minimum(np.searchsorted(upto, places, side="right"), len(counts) - 1)
    below = np.concatenate(([0.0], upto[:-1]))[bucket]
    share = (places - below) / np.maximum(upto[bucket] - below, 1e-12)
    lengths = begins[bucket] + share * (ends - begins)[bucket]
    mean = min(float(np.nansum(histogram.sums)) / counts.sum(), longest)
    if mean > 0 and lengths.mean() > SHORTEST:
        lengths = lengths * (mean / lengths.mean())
    return np.asarray(np.clip(np.rint(rng.permutation(lengths)), 1.0, longest))


ROUNDS = 20  # of exchanges between requests too long for the context


def _within(prompt: Floats, output: Floats, most: int, rng: np.random.Generator) -> Floats:
    """Return the outputs in an order in which each has room behind its prompt.

    Which output a prompt had is not told, but both were within the context of `most` tokens. The
    few for which no other prompt is found are cut.
    """
    output, shortest = output.copy(), np.argsort(prompt, kind="stable")
    for _ in range(ROUNDS):
        over = np.flatnonzero(prompt + output > most)
        roomy = np.searchsorted(prompt[shortest], most - output[over], side="right")
        for one, among in zip(over, roomy, strict=True):
            other = shortest[rng.integers(max(among, 1))]
            if output[other] <= most - prompt[one] and output[one] <= most - prompt[other]:
                output[[one, other]] = output[[other, one]]
    return np.asarray(np.maximum(np.minimum(output, most - prompt), 1.0), dtype=float)
