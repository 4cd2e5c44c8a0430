"""What became of each problem: one row with its latency, tokens, FLOPs and device-seconds.

Everything else that a summary says is a mean or a percentile of these rows.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from traces.recording import Recording
from traces.schema import ModelFacts
from traces.shares import never_ran, share_steps
from traces.window_cost import WindowCost, window_cost

# Of problems and samples: an import that tells no times tells of what has ended.
ENDED = pl.col("end").is_not_null() | pl.col("arrival").is_null()


def run_keys(recording: Recording) -> list[tuple[str, str]]:
    """Return the (engine, policy) pairs that problems ran under, in the manifest's order.

    A recording without problems has the pair that it was made for; an imported trace has no
    policy, nor has traffic that was only watched, and an empty key stands for it.
    """
    manifest = recording.manifest
    seen = set(recording.problems.select("engine", "policy").drop_nulls().unique().iter_rows())
    policies = list(manifest.policies) or [""]
    if any(policy == "" for _, policy in seen):
        policies = [*manifest.policies, ""]
    pairs = [(engine, policy) for engine in manifest.engines for policy in policies]
    known = [pair for pair in pairs if pair in seen]
    return known or pairs[:1]


def engine_steps(recording: Recording, engine: str) -> pl.DataFrame:
    """Return the steps of one engine in order, with the columns `STEP_TIMES`."""
    steps = recording.step_times
    mine = steps["engine"] == engine
    own = steps if mine.all() else steps.filter(mine)
    return own if own["step"].is_sorted() else own.sort("step")


def engine_windows(recording: Recording, engine: str) -> WindowCost:
    """Return what the profiler's windows cost an engine's steps, reckoned once a recording."""
    known = recording.window_costs
    if engine not in known:
        known[engine] = window_cost(engine_steps(recording, engine))
    return known[engine]


def samples_with_shares(recording: Recording, engine: str, policy: str) -> pl.DataFrame:
    """Return the samples of the run's problems with two columns more.

    `problem` is the number of the problem's row in `problem_rows`; `busy_s` the sample's share
    of its engine's busy time in seconds, null where it is not known. Samples of other roles
    count wherever they ran.
    """
    problems = _numbered(recording, engine, policy).select("problem", "problem_id", "arrival")
    samples = recording.samples.with_row_index("row")
    if recording.manifest.dropped.get("steps") or recording.manifest.dropped.get("samples"):
        shares = pl.Series("busy_s", [None] * samples.height, dtype=pl.Float64)
    else:
        shares = _all_shares(recording, samples)
    own = (pl.col("engine") == engine) & (pl.col("policy") == policy)
    helper = pl.col("role").fill_null("sample") != "sample"
    chosen = (
        samples.with_columns(shares)
        .filter(own | (helper & pl.col("policy").fill_null(policy).eq(policy)))
        .drop("row")
    )
    if problems["problem_id"].is_unique().all():
        return chosen.join(problems.drop("arrival"), on="problem_id", how="inner")
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


def voting_samples(samples: pl.DataFrame) -> pl.DataFrame:
    """Return the samples of role "sample", each with the tokens of its forced answer added."""
    keys = ["engine", "policy", "problem", "sample_index"]
    forced = (
        samples.filter(pl.col("role") == "forced")
        .group_by("engine", "policy", "problem", sample_index="parent_sample")
        .agg(more=pl.col("output_tokens").sum())
    )
    own = samples.filter(pl.col("role").fill_null("sample") == "sample")
    return (
        own.join(forced, on=keys, how="left", maintain_order="left")
        .with_columns(output_tokens=pl.col("output_tokens") + pl.col("more").fill_null(0))
        .drop("more")
    )


def _all_shares(recording: Recording, samples: pl.DataFrame) -> pl.Series:
    """Return every sample's share of its engine's time: other policies' samples share it too."""
    pieces = [pl.DataFrame(schema={"row": pl.UInt32, "busy_s": pl.Float64})]
    for (engine,), group in samples.group_by("engine"):
        steps, cost = engine_steps(recording, str(engine)), engine_windows(recording, str(engine))
        seconds = share_steps(steps, group, cost).sample_s
        piece = group.select("row").with_columns(pl.Series("busy_s", seconds).fill_nan(None))
        pieces.append(piece.select("row", "busy_s"))
    return samples.select("row").join(pl.concat(pieces), on="row", how="left")["busy_s"]


def problem_rows(
    recording: Recording, engine: str, policy: str, samples: pl.DataFrame, cost: WindowCost
) -> pl.DataFrame:
    """Return one row per problem of the run; what is not known is null.

    Columns: problem, problem_id, group, state (decided, failed, in_flight), correct (0 or 1),
    latency_s = decided_at - arrival, tokens (generated, every role), flops, busy_s (engine
    seconds), slowed (whether the profiler slowed it). What the profiler's windows cost is taken
    out of latency and seconds, and `cost_sd_s` is the standard error of that; a problem that they
    slowed by what is not known has none of them. `as_measured` says that this is so of every
    decided problem: then they are as measured.
    """
    manifest = recording.manifest
    # An import tells of what has ended, whether or not it tells when.
    imported = pl.col("arrival").is_null() | pl.lit("imported" in manifest.provenance)
    decided = pl.col("decided_at").is_not_null() | (imported & pl.col("error").is_null())
    rows = _numbered(recording, engine, policy).with_columns(
        state=pl.when(decided)
        .then(pl.lit("decided"))
        .when(ENDED | imported)
        .then(pl.lit("failed"))
        .otherwise(pl.lit("in_flight")),
    )
    rows = _without_cost(rows, cost)
    cached = pl.col("cached_tokens")
    if manifest.engines[engine].enable_prefix_caching is False:
        cached = cached.fill_null(0)
    flops = _flops_column(recording, samples)
    work = samples.with_columns(cached.alias("cached_tokens"), flops=flops)
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
            correct=pl.when(pl.col("timed_out").fill_null(False) & pl.col("correct").is_null())
            .then(0.0)
            .otherwise(pl.col("correct").cast(pl.Float64)),
            latency_s=pl.when(measured & decided).then(
                (pl.col("decided_at") - pl.col("arrival")) / 1e9 - pl.col("cost_s")
            ),
            busy_s=pl.when(measured).then("busy_s"),
        )
        .sort("problem")
    )


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
    found = rows.with_columns(
        slowed=pl.Series(cost.touched(since, until)),
        cost_unknown=pl.Series(cost.unknown(since, until)),
        cost_s=pl.Series(cost.within_s(since, until)),
        cost_sd_s=pl.Series(cost.sd_within_s(since, until)),
    )
    decided = pl.col("state") == "decided"
    nothing_left = (pl.col("cost_unknown") | ~decided).all() & decided.any()
    return found.with_columns(as_measured=nothing_left)


def _flops_column(recording: Recording, samples: pl.DataFrame) -> pl.Expr:
    """Return FLOPs of each of `samples` by its engine's model; null when its facts are not kept.

    Null too where they do not tell the active parameters, or attention reads less than the context;
    and with speculation: what was drafted and rejected is work, and no sample's row has it.
    """
    column = pl.lit(None, dtype=pl.Float64)
    used = set(samples["engine"])  # a manifest can name thousands
    for key, engine in recording.manifest.engines.items():
        facts = recording.manifest.models.get(engine.model) if key in used else None
        if facts is None or facts.active_parameters is None or engine.speculative is not None:
            continue
        if facts.reads_all(engine.max_model_len):
            column = pl.when(pl.col("engine") == key).then(sample_flops(facts)).otherwise(column)
    return column


def sample_flops(facts: ModelFacts) -> pl.Expr:
    """Return FLOPs of a sample: weights for every forwarded token, attention for its context.

    With prompt P of which C came from the cache and T generated tokens, the positions C+1 .. P+T-1
    are forwarded (the last token is never fed back), each reading as much context as its position:
    sum = L(L+1)/2 - C(C+1)/2 with L = P+T-1.
    """
    fed_back = (pl.col("output_tokens") - 1).clip(lower_bound=0)
    last = (pl.col("prompt_tokens") + fed_back).cast(pl.Float64)
    cached = pl.col("cached_tokens").cast(pl.Float64)
    context = last * (last + 1) / 2 - cached * (cached + 1) / 2
    return facts.matmul_flops(1.0) * (last - cached) + facts.attention_flops(1.0) * context
