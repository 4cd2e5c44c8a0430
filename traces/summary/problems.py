"""What became of each problem: one row with its latency, tokens, FLOPs and device-seconds.

Everything else that a summary says is a mean or a percentile of these rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from traces.recording.reader import Recording
from traces.recording.tables import STEP_INTERVAL
from traces.recording.window_cost import WindowCost, window_cost
from traces.statistics import Floats
from traces.summary.prefix_hits import with_hits

# Of problems and samples: an import that tells no times tells of what has ended.
ENDED = pl.col("end").is_not_null() | pl.col("arrival").is_null()


def run_keys(recording: Recording) -> list[tuple[str, str]]:
    """Return the (engine, policy) pairs that problems ran under, in the manifest's order.

    Without problems they are those that it was made for, or of engines whose steps were imported.
    An imported trace and traffic that was only watched have no policy, but an empty key.
    """
    manifest = recording.manifest
    seen = set(recording.problems.select("engine", "policy").drop_nulls().unique().iter_rows())
    policies = list(manifest.policies) or [""]
    if any(policy == "" for _, policy in seen):
        policies = [*manifest.policies, ""]
    pairs = [(engine, policy) for engine in manifest.engines for policy in policies]
    seen_pairs = [pair for pair in pairs if pair in seen]
    if not seen_pairs and "imported" in manifest.provenance and len(manifest.engines) > 1:
        return pairs
    return seen_pairs or pairs[:1]


def engine_steps(recording: Recording, engine: str) -> pl.DataFrame:
    """Return the steps of one engine in order, with the columns `STEP_TIMES`."""
    steps = recording.step_times
    mine = steps["engine"] == engine
    rows = steps if mine.all() else steps.filter(mine)
    return rows if rows["step"].is_sorted() else rows.sort("step")


def engine_windows(recording: Recording, engine: str) -> WindowCost:
    """Return what the profiler's windows cost an engine's steps, reckoned once a recording."""
    costs = recording.window_costs
    if engine not in costs:
        costs[engine] = window_cost(engine_steps(recording, engine))
    return costs[engine]


def samples_with_shares(recording: Recording, engine: str, policy: str) -> pl.DataFrame:
    """Return the samples of the run's problems with two columns more.

    `problem` is the number of the problem's row in `problem_rows`; `busy_s` the sample's share
    of its engine's busy time in seconds, null where it is not known. Samples of other roles
    count wherever they ran.
    """
    problems = _numbered(recording, engine, policy).select("problem", "problem_id", "arrival")
    samples = with_hits(recording, recording.samples).with_row_index("row")
    if (
        not recording.step_times.height
        or recording.manifest.dropped.get("steps")
        or recording.manifest.dropped.get("samples")
    ):
        shares = pl.Series("busy_s", [None] * samples.height, dtype=pl.Float64)
    else:
        shares = _all_shares(recording, samples)
    of_run = (pl.col("engine") == engine) & (pl.col("policy") == policy)
    helper = pl.col("role").fill_null("sample") != "sample"
    mine = of_run | (helper & pl.col("policy").fill_null(policy).eq(policy))
    chosen = _where(samples.with_columns(shares), mine).drop("row")
    if problems["problem_id"].is_unique().all():
        # A million rows: one column is looked up, and the others are not copied.
        names = chosen.select("problem_id").join(
            problems.drop("arrival"), on="problem_id", how="left", maintain_order="left"
        )
        return _where(chosen.with_columns(names["problem"]), pl.col("problem").is_not_null())
    # The same problem posed several times: a sample belongs to the latest posing before it.
    return (
        chosen.sort("arrival")
        .join_asof(
            problems.sort("arrival").rename({"arrival": "posed"}),
            left_on="arrival",
            right_on="posed",
            by="problem_id",
            check_sortedness=False,
        )
        .drop("posed")
        .drop_nulls("problem")
    )


def _where(frame: pl.DataFrame, wanted: pl.Expr) -> pl.DataFrame:
    """Return the rows that are wanted, the same frame where all are."""
    kept = frame.select(wanted.fill_null(False)).to_series()
    return frame if kept.all() else frame.filter(kept)


def voting_samples(samples: pl.DataFrame) -> pl.DataFrame:
    """Return the samples of role "sample", each with the tokens of its forced answer added."""
    keys = ["engine", "policy", "problem", "sample_index"]
    forced = (
        samples.filter(pl.col("role") == "forced")
        .group_by("engine", "policy", "problem", sample_index="parent_sample")
        .agg(more=pl.col("output_tokens").sum())
    )
    voting = _where(samples, pl.col("role").fill_null("sample") == "sample")
    if forced.is_empty():
        return voting
    return (
        voting.join(forced, on=keys, how="left", maintain_order="left")
        .with_columns(output_tokens=pl.col("output_tokens") + pl.col("more").fill_null(0))
        .drop("more")
    )


def without_timed_out(samples: pl.DataFrame, problems: pl.DataFrame) -> pl.DataFrame:
    """Return the samples of problems that no timeout cut off: the others are the short ones."""
    late = problems.filter(pl.col("timed_out").fill_null(False)).select("problem")
    return samples.join(late, on="problem", how="anti") if late.height else samples


def answers_told(samples: pl.DataFrame) -> bool:
    """Whether every right sample has its answer. Some imports tell none, so that none can vote."""
    untold = pl.col("correct").fill_null(False) & pl.col("answer").is_null()
    return not samples.select(untold.any()).item()


def all_judged(samples: pl.DataFrame) -> pl.Expr:
    """Return whether all samples of a problem were judged, as an aggregate over the problem.

    A sample that gave no answer is wrong, where the others' answers are told.
    """
    marked = judged = pl.col("correct").is_not_null()
    if samples["answer"].is_not_null().any() and answers_told(samples):
        judged = marked | pl.col("answer").is_null()
    return judged.all() & marked.any()


def _all_shares(recording: Recording, samples: pl.DataFrame) -> pl.Series:
    """Return every sample's share of its engine's time: other policies' samples share it too."""
    pieces = [pl.DataFrame(schema={"row": pl.UInt32, "busy_s": pl.Float64})]
    for (engine,), group in samples.group_by("engine"):
        steps, cost = engine_steps(recording, str(engine)), engine_windows(recording, str(engine))
        seconds = share_steps(steps, group, cost, shared=of_a_server(recording, str(engine)))
        piece = group.select("row").with_columns(pl.Series("busy_s", seconds).fill_nan(None))
        pieces.append(piece.select("row", "busy_s"))
    return samples.select("row").join(pl.concat(pieces), on="row", how="left")["busy_s"]


def problem_rows(
    recording: Recording, engine: str, policy: str, samples: pl.DataFrame, cost: WindowCost
) -> pl.DataFrame:
    """Return one row per problem of the run; what is not known is null.

    Columns: problem, problem_id, group, state (decided, failed, in_flight), correct (0 or 1),
    latency_s = decided_at - arrival, tokens (generated, every role), flops, busy_s (engine
    seconds), slowed (by the profiler). What the profiler's windows cost is taken out of latency and
    seconds, with the standard error `cost_sd_s`; a problem slowed by what is not known has neither.
    `as_measured` says that this is so of every decided problem: then they are as measured.
    """
    manifest = recording.manifest
    # An import tells of what has ended, whether or not it tells when.
    imported = pl.col("arrival").is_null() | pl.lit("imported" in manifest.provenance)
    posed = _numbered(recording, engine, policy)
    has_decision = pl.col("decided_at").is_not_null() & ~_nothing_came(posed, samples)
    decided = has_decision | (imported & pl.col("error").is_null())
    rows = posed.with_columns(
        state=pl.when(decided)
        .then(pl.lit("decided"))
        .when(ENDED | imported | pl.col("decided_at").is_not_null())
        .then(pl.lit("failed"))
        .otherwise(pl.lit("in_flight")),
    )
    rows = _without_cost(rows, cost)
    cached = pl.col("cached_tokens")
    if manifest.engines[engine].enable_prefix_caching is False:
        cached = cached.fill_null(0)
    work = samples.with_columns(cached.alias("cached_tokens"))
    work = work.with_columns(_flops_of(recording, work))
    work = work.with_columns(
        flops=pl.when(never_ran())
        .then(0.0)
        .when(pl.col("cached_tokens").is_not_null())
        .then("flops")
    )
    totals = work.group_by("problem").agg(
        _whole("output_tokens").alias("tokens"), _whole("flops"), _whole("busy_s")
    )
    measured = ~pl.col("cost_unknown") | pl.col("as_measured")
    return (
        rows.join(totals, on="problem", how="left")
        .with_columns(
            correct=pl.col("correct").cast(pl.Float64),
            latency_s=pl.when(measured, pl.col("state") == "decided").then(
                (pl.col("decided_at") - pl.col("arrival")) / 1e9 - pl.col("cost_s")
            ),
            busy_s=pl.when(measured).then("busy_s"),
        )
        .sort("problem")
    )


_ANSWERING = ("sample", "forced", "revision")


def _nothing_came(problems: pl.DataFrame, samples: pl.DataFrame) -> pl.Expr:
    """Return whether a problem has no answer and all of its requests failed.

    It has a decision then, after the time that it took them to fail. A sample of which a later
    request failed, such as its forced answer, has failed too.
    """
    unanswered = pl.col("error").is_not_null() & pl.col("answer").is_null()
    unanswered &= ~pl.col("timed_out").fill_null(False)
    without = problems.filter(unanswered).select("problem")
    if not without.height:
        return pl.lit(False)
    sound = ENDED & pl.col("error").is_null() & pl.col("cancelled_by").is_null()
    came = (
        samples.filter(pl.col("role").fill_null("sample").is_in(_ANSWERING))
        .join(without, on="problem", how="semi")
        .group_by("problem", pl.coalesce("parent_sample", "sample_index"))
        .agg(whole=sound.all())
        .filter("whole")["problem"]
    )
    return unanswered & ~pl.col("problem").is_in(came.unique().implode())


def _numbered(recording: Recording, engine: str, policy: str) -> pl.DataFrame:
    mine = recording.problems.filter(pl.col("engine") == engine, pl.col("policy") == policy)
    return mine.sort("arrival", nulls_last=True, maintain_order=True).with_row_index("problem")


def _whole(column: str) -> pl.Expr:
    """Return the sum, null when any part of it is."""
    total = pl.col(column).sum()
    return pl.when(pl.col(column).is_not_null().all()).then(total)


def _without_cost(rows: pl.DataFrame, cost: WindowCost) -> pl.DataFrame:
    """Return problems with what the profiler's windows cost each while it was in flight."""
    since = rows["arrival"].fill_null(0).to_numpy()
    until = rows.select(pl.coalesce("decided_at", "end", pl.lit(2**62))).to_series().to_numpy()
    until = np.where(rows["arrival"].is_null().to_numpy(), 0, until)  # of imports without times
    with_cost = rows.with_columns(
        slowed=pl.Series(cost.touched(since, until)),
        cost_unknown=pl.Series(cost.unknown(since, until)),
        cost_s=pl.Series(cost.within_s(since, until)),
        cost_sd_s=pl.Series(cost.sd_within_s(since, until)),
    )
    decided = pl.col("state") == "decided"
    nothing_left = (pl.col("cost_unknown") | ~decided).all() & decided.any()
    return with_cost.with_columns(as_measured=nothing_left)


def _flops_of(recording: Recording, samples: pl.DataFrame) -> pl.Series:
    """Return FLOPs of each of `samples` by its engine's model; null when its facts are not kept.

    Null too where they do not tell the active parameters or what the layers read, and with
    speculation: what was drafted and rejected is work, and no sample's row has it.

    With prompt P of which C came from the cache and T generated tokens, the positions C+1 .. P+T-1
    are forwarded (the last token is never fed back), each reading the context up to itself.
    """
    prompt, output, cached = (
        samples[name].cast(pl.Float64).to_numpy()
        for name in ("prompt_tokens", "output_tokens", "cached_tokens")
    )
    flops = np.full(len(samples), np.nan)
    engines = samples["engine"]
    used = set(engines)  # a manifest can name thousands
    for key, engine in recording.manifest.engines.items():
        facts = recording.manifest.models.get(engine.model) if key in used else None
        if facts is None or engine.speculative is not None:
            continue
        if facts.counts_flops(engine.max_model_len):
            own = (engines == key).fill_null(value=False).to_numpy()
            last = prompt[own] + np.maximum(output[own] - 1, 0)
            flops[own] = facts.forward_flops(cached[own], last - cached[own])
    return pl.Series("flops", flops, nan_to_null=True)


# Problems that a timeout or an error cut off, and samples that gave no answer.
#
# What remains of cut problems is no fair draw of all.
#
# A timeout cuts the long ones, so that what is left is short, and as a rule easier.


FAILED_IMPORT = "Import outcomes in which they did not fail"
MOST_UNTOLD = 0.05  # share of the problems without a number at which a mean is still given


def mostly_told(numbers: Floats) -> bool:
    """Return whether so few are nan that a mean of the others, who may be unlike, is of all."""
    return int(np.isnan(numbers).sum()) <= MOST_UNTOLD * numbers.size


@dataclass(frozen=True, kw_only=True)
class Lost:
    """How many of the problems that a run posed were cut off by its timeout, or failed."""

    timed_out: int
    failed: int
    problems: int
    imported: bool = False

    @property
    def count(self) -> int:
        """How many there are of both."""
        return self.timed_out + self.failed

    @property
    def too_many(self) -> bool:
        """Whether those that remain say nothing of all."""
        return self.count > MOST_UNTOLD * self.problems

    @property
    def text(self) -> str:
        """How many problems are lost, and to what."""
        kinds = (
            (self.timed_out, "cut off by the timeout"),
            (self.failed, "failed" if self.imported else "with failed samples"),
        )
        parts = ", ".join(f"{count:,} {what}" for count, what in kinds if count)
        return f"of {self.problems:,} problems {parts}"

    @property
    def why_not(self) -> str:
        """Why nothing is said from those that remain, and what to do, where they are too few."""
        if not self.timed_out:
            how = FAILED_IMPORT if self.imported else "Record again"
            return f"{self.text}, and the others may be unlike them. {how}"
        return (
            f"{self.text}, and those that remain are the short ones. Record without --timeout, or "
            "with a longer one"
        )


def lost_problems(problems: pl.DataFrame, *, imported: bool = False) -> Lost:
    """Return what was lost of the problems of one run, one row each."""
    timed_out = pl.col("timed_out").fill_null(False)
    failed = pl.col("error").is_not_null() & ~timed_out
    totals = problems.select(timed_out.sum().alias("timed_out"), failed.sum().alias("failed"))
    counts = totals.row(0, named=True)
    return Lost(
        timed_out=counts["timed_out"],
        failed=counts["failed"],
        problems=problems.height,
        imported=imported,
    )


def unanswered(samples: pl.DataFrame) -> str | None:
    """Return how many of a run's own samples have no answer, None where nearly all have one.

    Left out are those that failed, were cancelled, or were given their length.
    """
    at_limit = pl.col("finish_reason") == "length"
    finished = samples.filter(
        pl.col("role").fill_null("sample") == "sample",
        pl.col("finish_reason").is_not_null(),
        pl.col("error").is_null() & pl.col("cancelled_by").is_null(),
        ~(at_limit & ~pl.col("censored").fill_null(False)),
    )
    none = finished.filter(pl.col("answer").is_null())
    if none.height <= MOST_UNTOLD * finished.height:
        return None
    cut = none.filter(at_limit).height
    ended = none.height - cut
    parts = [f"{cut:,} were cut at max_tokens or the model's length"] if cut else []
    parts += [f"{ended:,} ended by themselves"] if ended else []
    advice = ". Check the verifier, and a server's --reasoning-parser" if ended else ""
    opening = f"{none.height:,} of {finished.height:,} samples have no answer"
    return f"{opening}: {' and '.join(parts)}{advice}"


# Who occupied the engine: each step's time, shared among the samples it computed.
#
# A step's time is shared by the tokens that were scheduled in it. Which tokens of a sample ran in
# which step is known from its first and its last step: its uncached prompt in the first, its output
# evenly over the steps after it. Samples that were cut into several prefills or preempted are
# therefore shared approximately, but nothing is lost: the shares sum to the busy time.


def step_ns(steps: pl.DataFrame, samples: pl.DataFrame | None = None) -> Floats:
    """Return how long each step of one engine took in ns, 0 where that is not known.

    That is the time since the end of the step before, or the step's own wall time where the engine
    had been idle. A front end does not see when a step behind a pause began. It began when the
    first of the `samples` in that pause was scheduled.
    """
    intervals = steps.select(STEP_INTERVAL).to_series()
    took = intervals.cast(pl.Float64).fill_null(0.0).to_numpy(writable=True)
    ends = steps["end"]
    between = intervals.is_null() & ends.is_not_null() & ends.shift(1).is_not_null()
    untold = np.flatnonzero(between.to_numpy())
    if samples is None or not untold.size:
        return took
    since, until = ends.gather(untold - 1).to_numpy(), ends.gather(untold).to_numpy()
    begun = np.append(np.sort(samples["scheduled"].drop_nulls().to_numpy()), np.iinfo(np.int64).max)
    first = begun[np.searchsorted(begun, since, side="right")]
    took[untold] = until - np.minimum(first, until)
    return took


def busy_seconds(steps: pl.DataFrame, samples: pl.DataFrame | None = None) -> Floats:
    """Return the busy time of each step in seconds (`step_ns`); 0 for steps the profiler slowed."""
    profiled = steps["profiled"].fill_null(False).to_numpy()
    return np.where(profiled, 0.0, step_ns(steps, samples) / 1e9)


def never_ran() -> pl.Expr:
    """Return whether a sample was cancelled before it was scheduled, so that it cost nothing.

    False for all where the engine does not tell when samples are scheduled, as a server does not.
    """
    scheduled = pl.col("scheduled").is_not_null() | pl.col("first_step").is_not_null()
    cancelled = pl.col("cancelled_by").is_not_null()
    nothing = pl.col("output_tokens").eq(0).fill_null(False)
    return cancelled & nothing & ~scheduled & scheduled.any()


def of_a_server(recording: Recording, engine: str) -> bool:
    """Whether others, of whom the recording says nothing, may be in an engine's steps."""
    engine_config = recording.manifest.engines.get(engine)
    return (
        engine_config is not None and engine_config.mode == "server" and recording.replay_of is None
    )


def share_steps(
    steps: pl.DataFrame,
    samples: pl.DataFrame,
    cost: WindowCost | None = None,
    *,
    shared: bool = False,
) -> Floats:
    """Share one engine's busy seconds among its samples, in the samples' order (`share`).

    With the `cost` of the profiler's windows the profiled steps count with what they would have
    taken, or where that is not known, with what they took.
    """
    if not steps["step"].is_sorted():
        steps = steps.sort("step")
    busy = busy_seconds(steps, samples)
    if cost is not None:
        busy[cost.places] = np.where(cost.known, cost.usual_ns, cost.ended - cost.begun) / 1e9
    return share(busy, steps, samples, shared=shared)


def share(
    amounts: Floats, steps: pl.DataFrame, samples: pl.DataFrame, *, shared: bool = False
) -> Floats:
    """Share an amount of each step (seconds, joules; `steps` in order) among samples by tokens.

    Returns one number per sample, nan where its steps are not known, 0 where it never ran. The
    amounts of steps in which no sample of the recording ran (a warm-up, another client) are spread
    over all in proportion, so that the shares sum to the amounts. A sample in flight counts up to
    the last step. Of a step that is `shared` with others, who are not in the recording, samples
    have the part that they are of the requests in it.
    """
    numbers = steps["step"].to_numpy()
    unknown = np.full(samples.height, np.nan)
    if not steps.height or not samples.height:
        return unknown
    first, last = _step_range(numbers, steps["end"], samples)
    placed = first >= 0
    if not placed.any():
        return unknown
    first, last = first[placed], np.maximum(last[placed], first[placed])
    prompt = (_floats(samples, "prompt_tokens") - _floats(samples, "cached_tokens"))[placed]
    decoded = np.maximum(_floats(samples, "output_tokens")[placed], 1.0) - 1.0
    span = last - first
    # A prompt served wholly from the cache still runs its last token, and a sample that ends in
    # its first step has nothing after it.
    opening = np.maximum(prompt, 1.0) + np.where(span == 0, decoded, 0.0)
    pace = np.where(span > 0, np.maximum(decoded, span) / np.maximum(span, 1), 0.0)
    tokens, running = _tokens_by_step(first, last, opening, pace, steps.height)
    if shared:
        amounts = amounts * _own_part(running, steps)
    # Of a million steps each array takes 8 MB: they are made in one another's place.
    rate = np.divide(amounts, tokens, out=tokens, where=tokens > 0)
    opened = opening * rate[first]
    total = np.cumsum(rate, out=rate)
    shares = opened + pace * (total[last] - total[first])
    attributed, spent = shares.sum(), amounts.sum()
    if attributed <= 0 < spent:  # it all went where none of them ran
        return unknown
    if attributed > 0:
        shares = shares * (spent / attributed)
    unknown[placed] = shares
    unknown[samples.select(never_ran()).to_series().to_numpy()] = 0.0
    return unknown


def _own_part(running: NDArray[np.int32], steps: pl.DataFrame) -> Floats:
    """Return what part of each step's requests so many are, 1 where the step does not tell."""
    served = pl.col("prefill_requests").fill_null(0) + pl.col("decode_requests")
    requests = _floats(steps.select(told=served), "told")
    return np.divide(running, requests, out=np.ones(running.size), where=requests > running)


def _tokens_by_step(
    first: NDArray[np.intp], last: NDArray[np.intp], opening: Floats, pace: Floats, steps: int
) -> tuple[Floats, NDArray[np.int32]]:
    """Return the tokens of samples in each step, and how many of them ran in it."""
    change = np.zeros(steps + 1)
    np.add.at(change, first + 1, pace)
    np.add.at(change, last + 1, -pace)
    later = np.cumsum(change, out=change)[:steps]
    running = np.zeros(steps + 1, dtype=np.int32)
    np.add.at(running, first + 1, 1)
    np.add.at(running, last + 1, -1)
    ran = np.cumsum(running, out=running)[:steps]
    later[ran == 0] = 0.0  # dust of rounding: nobody runs
    np.add.at(later, first, opening)
    np.add.at(ran, first, 1)
    return later, ran


_ABOUT = 1 / 3  # of the time since the step before, in which a step is about to end


def _step_range(
    numbers: NDArray[np.int64], ends: pl.Series, samples: pl.DataFrame
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return positions of the first and last step of each sample, -1 where it never ran.

    Where the numbers were not recorded, the times say it: the first step is the one that ended
    next after the sample was scheduled, the last the one that had ended when the sample did, or was
    about to. A front end ends a request just before the plugin in it tells of the step. A client
    does not see when its request is scheduled: the first step is then the one that gave its first
    token.
    """
    highest = numbers.size - 1
    end_times = ends.fill_null(0).to_numpy()
    columns = samples.select(
        name
        for each in ("first_step", "scheduled", "first_token", "last_step", "end")
        for name in (
            pl.col(each).fill_null(0), pl.col(each).is_not_null().alias(f"{each} known")
        )
    )  # fmt: skip

    def known(name: str) -> NDArray[np.bool_]:
        return columns[f"{name} known"].to_numpy()

    def by_time(time: str, *, ended: bool) -> NDArray[np.intp]:
        times = columns[time].to_numpy()
        place = np.searchsorted(end_times, times, side="right")
        if ended:
            after, before = np.minimum(place, highest), np.maximum(place - 1, 0)
            about = end_times[after] - times < _ABOUT * (times - end_times[before])
            place = np.where(about, after, before)
        return np.where(known(time), np.minimum(place, highest), -1)

    def find(number: str, timed: NDArray[np.intp]) -> NDArray[np.intp]:
        by_number = np.searchsorted(numbers, columns[number].to_numpy())
        return np.where(known(number), np.minimum(by_number, highest), timed)

    scheduled, first_token = by_time("scheduled", ended=False), by_time("first_token", ended=True)
    first = find("first_step", np.where(known("scheduled"), scheduled, first_token))
    last = find("last_step", by_time("end", ended=True))
    return first, np.where((last < 0) & (first >= 0), highest, last)


def _floats(frame: pl.DataFrame, column: str) -> Floats:
    return frame[column].cast(pl.Float64).fill_null(0.0).to_numpy()
