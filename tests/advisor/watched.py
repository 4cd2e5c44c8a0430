"""Recordings of a server that was only watched, made of an engine's run whose truth is known."""

import dataclasses
import gzip
import json

import numpy as np
import polars as pl

from advisor.evidence.runs import ProblemRun, RecordedRun, Sample
from advisor.replay.recording import write_recording
from tests.traces.forward_pass.passes import enveloped, passed
from traces.foreign.steps.forward_passes import import_passes
from traces.forward_pass.record import read_object
from traces.forward_pass.rows import ForwardPassRows
from traces.recording.reader import Recording
from traces.recording.tables import TABLES
from traces.schema.engine import EngineConfig
from traces.schema.tts.policy import AS_SENT

_SUCCESS, _STEPS = "vllm:request_success_total", "vllm:iteration_tokens_total"
BOUNDS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, np.inf)
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, np.inf)


def requests(recording, engine, names, **changes):
    """A run of requests of one sample each, whose answers nobody judged."""
    problems = {
        name: ProblemRun(
            problem_id=name, arrival_ns=place, prompt_tokens=50, cached_tokens=0, latency_s=1.0,
            samples=(Sample(output_tokens=50, answer=None, correct=None),), indices=(0,),
        )
        for place, name in enumerate(names)
    }  # fmt: skip
    return RecordedRun(
        recording=recording, engine=engine, policy=AS_SENT, problems=problems, concurrency=None,
        rate_per_s=4.0, **changes,
    )  # fmt: skip


def watched(
    truth, folder, *, spans=True, steps=True, metrics=True, period_s=0.25, polled=None, took_s=None,
    hits=True,
):  # fmt: skip
    """Write what a watch at some depth would have kept of a `Prediction` taken for the truth.

    /metrics is that of `polled` where it is given. `steps` are the plugin's, or "passes" of FPM.
    `took_s` [problems] is what a front end took of each before the engine had it. Without `hits`
    spans do not say what came from the cache, as vLLM's do not.
    """
    tables = {name: frame.clone() for name, frame in truth.tables.items()}
    if took_s is not None:
        tables = behind_front_end(tables, took_s)
    (key,) = truth.manifest.engines
    engine = truth.manifest.engines[key]
    if not steps:
        limits = dict.fromkeys(("max_num_seqs", "max_num_batched_tokens", "max_model_len"))
        engine = dataclasses.replace(engine, **limits)
    engine = dataclasses.replace(engine, mode="server")
    own = engine.key()
    kept = {}
    if spans:
        for name in ("problems", "samples"):
            kept[name] = tables[name].with_columns(
                engine=pl.lit(own), policy=pl.lit(""), answer=pl.lit(None, pl.Utf8),
                correct=pl.lit(None, pl.Boolean),
            )  # fmt: skip
        unseen = ["finish_reason"] if took_s is not None else ["queued", "finish_reason"]
        kept["samples"] = kept["samples"].drop(unseen)
        unseen = [] if hits else ["cached_tokens"]
        kept["samples"] = _whole("samples", kept["samples"].drop(unseen))
    if steps:
        told = passes if steps == "passes" else front_end
        kept["steps"] = _whole("steps", told(tables["steps"], tables["samples"], own))
    if metrics:
        seen = tables if polled is None else polled.tables
        kept["scrapes"] = scrapes(seen, own, engine.num_gpu_blocks, period_s)
    manifest = dataclasses.replace(
        truth.manifest, engines={own: engine}, policies={}, workload=None, concurrency=None,
        rate_per_s=None, provenance={},
    )  # fmt: skip
    write_recording(folder, manifest, kept)
    return Recording.open(folder)


def behind_front_end(tables, took_s):
    """Return a run whose problems came to a front end so much earlier; queued as vLLM tells it.

    vLLM's engine takes requests in between two steps.
    """
    problems, samples, steps = (tables[name] for name in ("problems", "samples", "steps"))
    took = pl.Series(np.rint(np.asarray(took_s) * 1e9).astype(np.int64))
    earlier = problems.select("problem_id", took=took)
    came = samples["arrival"].to_numpy()
    ends = steps["end"].to_numpy()
    place = np.minimum(np.searchsorted(ends, came), len(ends) - 1)
    busy = ends[place] - steps["wall_ns"].to_numpy()[place] < came
    queued = np.where(busy, ends[place], came)
    samples = samples.join(earlier, on="problem_id", how="left", maintain_order="left")
    return tables | {
        "problems": problems.with_columns(arrival=pl.col("arrival") - took),
        "samples": samples.with_columns(
            arrival=pl.col("arrival") - pl.col("took"), queued=pl.Series(queued)
        ).drop("took"),
    }


def front_end(steps, samples, key):
    """Return steps as the plugin tells them: a prompt counts in the step of its first token."""
    computed = pl.col("prompt_tokens") - pl.col("cached_tokens")
    prompts = samples.group_by(end=pl.col("first_token")).agg(
        prefill_requests=pl.len(),
        prefill_tokens=computed.sum(),
        cached_prompt_tokens=pl.col("cached_tokens").sum(),
    )
    finished = samples.group_by("end").agg(finished=pl.len())
    names = ("prefill_requests", "prefill_tokens", "cached_prompt_tokens", "finished")
    unseen = ("prefill_kv_tokens", "prefill_query_context", "wall_ns")
    return (
        steps.drop(*names, *unseen)
        .join(prompts, on="end", how="left", maintain_order="left")
        .join(finished, on="end", how="left", maintain_order="left")
        .with_columns(
            pl.col(names).fill_null(0),
            *(pl.lit(None, pl.Int64).alias(name) for name in unseen),
            engine=pl.lit(key),
            source=pl.lit("inferred"),
        )
    )


def passes(steps, samples, key):
    """Return steps as the engine's forward-pass metrics tell them, with a heartbeat when idle."""
    rows, found = ForwardPassRows(key, speculates=False), []
    for record, end in records(steps):
        found += rows.rows(read_object(record), end)
    return pl.DataFrame([*found, *rows.flush()], infer_schema_length=None)


def records(steps):
    """Yield an engine's records of forward passes, and when each was written, unix ns."""
    counter = 0
    for step in steps.iter_rows(named=True):
        if step["interval_ns"] is None:
            yield passed(counter, wall=0.0, queued_requests={}), step["end"]
            counter += 1
        record = passed(
            counter, wall=(step["wall_ns"] or step["interval_ns"] or 0) / 1e9,
            decodes=step["decode_requests"], context=step["decode_kv_tokens"],
            prefills=step["prefill_requests"], new=step["prefill_tokens"],
            cached=step["prefill_kv_tokens"] - step["prefill_tokens"],
            queued_requests={"num_prefill_requests": step["waiting"] or 0},
        )  # fmt: skip
        yield record, step["end"]
        counter += 1


def imported(truth, folder):
    """Write Dynamo's files of a `Prediction` taken for the truth, and import them."""
    path = folder.with_suffix(".jsonl.gz")
    with gzip.open(path, "wt") as file:
        for record, end in records(truth.tables["steps"]):
            file.write(json.dumps(enveloped(record, written_ms=end // 1_000_000)) + "\n")
    import_passes([path], folder, model="toy")
    return Recording.open(folder)


def _whole(table, frame):
    return frame.select(
        (pl.col(name) if name in frame.columns else pl.lit(None)).cast(kind).alias(name)
        for name, kind in TABLES[table].items()
    )


def scrapes(tables, key, blocks, period_s):
    """Return the rows of /metrics as they would have been polled."""
    steps, samples = tables["steps"], tables["samples"]
    first, last = int(samples["arrival"].min()), int(steps["end"].max())
    times = np.arange(first, last + 2 * period_s * 1e9, period_s * 1e9).astype(np.int64)
    rows = []

    def add(name, values, le=None):
        rows.extend(
            {"time": int(t), "engine": key, "name": name, "labels": "", "le": le, "value": float(v)}
            for t, v in zip(times, values, strict=True)
        )

    def counter(name, at, amount):
        order = np.argsort(at, kind="stable")
        total = np.concatenate([[0.0], np.cumsum(np.asarray(amount, dtype=float)[order])])
        add(name, total[np.searchsorted(np.asarray(at)[order], times, side="right")])

    def histogram(name, at, values, bounds):
        values = np.asarray(values, dtype=float)
        for bound in bounds:
            counter_le = (values <= bound).astype(float)
            order = np.argsort(at, kind="stable")
            total = np.concatenate([[0.0], np.cumsum(counter_le[order])])
            add(f"{name}_bucket", total[np.searchsorted(at[order], times, side="right")], bound)
        counter(f"{name}_count", at, np.ones(len(values)))
        counter(f"{name}_sum", at, values)

    ends = steps["end"].to_numpy()
    decodes = steps["decode_requests"].to_numpy()
    tokens = (steps["decode_tokens"] + steps["prefill_tokens"]).to_numpy()
    counter(f"{_STEPS}_count", ends, np.ones(len(ends)))
    counter(f"{_STEPS}_sum", ends, tokens)
    arrived, given, ended = (samples[n].to_numpy() for n in ("arrival", "first_token", "end"))
    counter("vllm:prompt_tokens_total", given, samples["prompt_tokens"].to_numpy())
    counter("vllm:prompt_tokens_cached_total", given, samples["cached_tokens"].to_numpy())
    counter("vllm:generation_tokens_total", ended, samples["output_tokens"].to_numpy())
    counter(_SUCCESS, ended, np.ones(len(ended)))
    histogram("vllm:time_to_first_token_seconds", given, (given - arrived) / 1e9, SECONDS)
    histogram("vllm:e2e_request_latency_seconds", ended, (ended - arrived) / 1e9, SECONDS)
    queued, begun = samples["queued"].to_numpy(), samples["scheduled"].to_numpy()
    histogram("vllm:request_queue_time_seconds", ended, (begun - queued) / 1e9, SECONDS)
    histogram("vllm:request_prefill_time_seconds", ended, (given - begun) / 1e9, SECONDS)
    histogram("vllm:request_prompt_tokens", ended, samples["prompt_tokens"].to_numpy(), BOUNDS)
    histogram("vllm:request_generation_tokens", ended, samples["output_tokens"].to_numpy(), BOUNDS)
    seconds = steps["interval_ns"].fill_null(strategy="zero").to_numpy() / 1e9
    histogram(
        "vllm:inter_token_latency_seconds",
        np.repeat(ends, decodes), np.repeat(seconds, decodes), SECONDS,
    )  # fmt: skip
    scheduled = samples["scheduled"].to_numpy()
    running = [int(((scheduled <= t) & (ended > t)).sum()) for t in times]
    waiting = [int(((arrived <= t) & (scheduled > t)).sum()) for t in times]
    place = np.maximum(np.searchsorted(ends, times, side="right") - 1, 0)
    add("vllm:num_requests_running", running)
    add("vllm:num_requests_waiting", waiting)
    used = np.where(np.array(running) > 0, steps["kv_blocks"].to_numpy()[place], 0)
    add("vllm:kv_cache_usage_perc", used / (blocks - 1))
    frame = pl.DataFrame(rows, schema=TABLES["scrapes"])
    return frame.sort("time", maintain_order=True)


NAMED, UNNAMED = "each server", "any server"  # of whom spans tell


def deployed(truths, folder, *, spans=NAMED, named="url", **how):
    """Write what a watch of several servers would have kept, each of a truth of its own.

    They are at URLs of their own, or ranks of one (`named` "engine"). `spans` of each
    server name its process, or none of them does, or there are none (None).
    """
    engines, tables = {}, {}
    for number, truth in enumerate(truths):
        own = watched(truth, folder / str(number), spans=spans is not None, **how)
        ((key, engine),) = own.manifest.engines.items()
        place = f"http://pod-{number}:8000" if named == "url" else str(number)
        at = dataclasses.replace(engine, other=((named, place),))
        name = (("service.instance.id", str(number)),) if spans == NAMED else ()
        told = EngineConfig(
            model=engine.model, mode="server", other=(*name, ("service.name", "vllm"))
        )
        engines |= {at.key(): at} | ({} if spans is None else {told.key(): told})
        for table in ("problems", "samples", "steps", "scrapes"):
            whose = at if table in ("steps", "scrapes") else told
            frame = own.frame(table).with_columns(
                engine=pl.when(pl.col("engine") == key).then(pl.lit(whose.key()))
            )
            if "problem_id" in frame.columns:
                frame = frame.with_columns(problem_id=f"{number}." + pl.col("problem_id"))
            tables.setdefault(table, []).append(frame)
    write_recording(
        folder / "all",
        dataclasses.replace(own.manifest, engines=engines),
        {name: pl.concat(frames) for name, frames in tables.items()},
    )
    return Recording.open(folder / "all")
