"""What the prefix cache gave a watched server's requests, and what it gives when they are replayed.

The truth is a server whose requests begin with one system prompt.
"""

import dataclasses
from pathlib import Path

import polars as pl
import pytest

from tests.advisor.asking import predicted
from tests.advisor.synthetic import VOTE16, engine_of, record
from tests.advisor.watched import watched
from traces.recording.reader import Held
from traces.recording.tables import TABLES
from traces.schema.tts.policy import Policy
from traces.summary.prefix_hits import with_hits
from traces.summary.problems import samples_with_shares
from traces.summary.run import summarise

SYSTEM = 320  # tokens
GREEDY = Policy(method="greedy", max_tokens=200)

pytestmark = pytest.mark.slow


def truth_of(tmp_path, policy, warm):
    """Replay requests that share a prompt, of a server that had it, or that computed it first."""
    base = record(tmp_path / "base", engine_of(), policy, problems=120, concurrency=8)
    first = pl.col("problem_id").eq("p0") & pl.lit(not warm)
    tables = {name: base.frame(name) for name in ("problems", "steps", "samples")}
    tables["problems"] = tables["problems"].with_columns(pl.col("prompt_tokens") + SYSTEM)
    tables["samples"] = tables["samples"].with_columns(
        pl.col("prompt_tokens") + SYSTEM,
        cached_tokens=pl.when(first).then(0).otherwise(SYSTEM),
    )
    shared = Held(Path("shared"), base.manifest, tables=tables)
    return predicted(shared, rate_per_s=100.0)


def busy_of(seen):
    (engine,) = seen.manifest.engines
    return samples_with_shares(seen, engine, "")["busy_s"].to_list()


def cached(found):
    return found.tables["samples"]["cached_tokens"].sum()


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("depth", ["plugin", "metrics"])
def test_a_replay_finds_in_the_cache_what_was_found(tmp_path, warm, n, depth):
    policy = GREEDY if n == 1 else dataclasses.replace(VOTE16, n=n)
    truth = truth_of(tmp_path, policy, warm)
    seen = watched(truth, tmp_path / "seen", hits=False, steps=depth == "plugin", period_s=0.1)
    wanted = cached(truth)
    assert wanted > 0.8 * n * 119 * SYSTEM
    found = predicted(seen)
    assert cached(found) == pytest.approx(wanted, rel=0.0 if depth == "plugin" else 0.005)
    assert found.replayed.latency_s["mean"].value == pytest.approx(
        truth.predicted.latency_s["mean"].value, rel=0.05 if depth == "plugin" else 0.2
    )
    assert cached(predicted(seen, "engine.enable_prefix_caching=false")) == 0
    assert cached(predicted(seen, "engine.max_num_seqs=64")) >= wanted


def test_metrics_alone_tell_how_much_all_requests_found(tmp_path):
    truth = truth_of(tmp_path, GREEDY, True)
    seen = watched(truth, tmp_path / "seen", spans=False, steps=False, period_s=0.1)
    assert cached(predicted(seen)) == cached(truth)


def test_flops_are_known_of_requests_whose_spans_do_not_tell_the_cache(tmp_path):
    truth = truth_of(tmp_path, GREEDY, False)
    told, untold = (
        summarise(watched(truth, tmp_path / str(hits), hits=hits))[0].flops_per_problem
        for hits in (True, False)
    )
    assert untold is not None and untold.value == pytest.approx(told.value, rel=1e-3)


def test_time_is_shared_by_the_prompt_tokens_that_the_cache_did_not_hold(tmp_path):
    truth = truth_of(tmp_path, GREEDY, False)
    told, untold = (
        busy_of(watched(truth, tmp_path / str(hits), hits=hits)) for hits in (True, False)
    )
    assert untold == pytest.approx(told, rel=1e-6)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("named", ["other", None])
def test_samples_of_an_engine_that_the_recording_does_not_have_are_left(tmp_path, named):
    seen = watched(truth_of(tmp_path, GREEDY, warm=True), tmp_path / "seen", hits=False)
    tables = {name: seen.frame(name) for name in TABLES}
    renamed = pl.when(pl.int_range(pl.len()) == 3).then(pl.lit(named)).otherwise("engine")
    tables["samples"] = tables["samples"].with_columns(renamed.alias("engine"))
    other = Held(seen.path, seen.manifest, tables=tables)
    rows = with_hits(other, other.samples)
    assert rows.filter(pl.col("engine").eq_missing(named))["cached_tokens"].to_list() == [None]
    assert rows["cached_tokens"].null_count() == 1
