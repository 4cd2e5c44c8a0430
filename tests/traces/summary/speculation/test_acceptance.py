"""Acceptance by position, phase and batch size, and prompt lookup that was not run."""

import polars as pl
import pytest

from tests.traces.synthetic import engine_config, simulate, speculative_engine, write_recording
from traces.recording.tables import TABLES
from traces.schema.engine import Speculative
from traces.summary.run import summarise
from traces.summary.speculation.acceptance import decode_steps
from traces.summary.speculation.ngram import STANDARD, draft_counts


def samples(*rows):
    columns = ("output_tokens", "think_tokens", "drafted_per_step", "accepted_per_step")
    rows = [dict(zip(columns, row, strict=True)) | {"problem": 0} for row in rows]
    return pl.DataFrame(
        rows, schema={"problem": pl.Int64} | {c: TABLES["samples"][c] for c in columns}
    )


def test_a_step_belongs_to_the_phase_of_its_first_token():
    # tokens 0 | 1 2 3 4 | 5 | 6 7 (cut at 8): the end mark is token 4
    (whole,) = decode_steps(samples((8, 4, [3, 0, 3], [3, 0, 3]))).partition_by("problem")
    assert whole["tokens"].to_list() == [4, 1, 2]
    assert whole["phase"].to_list() == ["thinking", "answer", "answer"]


@pytest.mark.parametrize(
    "row",
    [
        (20, 4, [3, 3], [3, 3]),  # steps that drafted nothing are missing
        (4, 2, [3, 3], [3, 3]),  # and here are too many
        (None, 4, [3], [3]),
    ],
)
def test_steps_that_do_not_account_for_the_tokens_have_no_phase(row):
    steps = decode_steps(samples(row))
    assert steps["phase"].null_count() == steps["tokens"].null_count() == steps.height > 0
    assert steps["accepted"].sum() > 0


def test_without_the_end_of_thinking_there_is_no_phase():
    steps = decode_steps(samples((5, None, [3], [3])))
    assert steps["tokens"].to_list() == [4] and steps["phase"].to_list() == [None]


@pytest.mark.parametrize("method", ["ngram", "draft_model", "eagle"])
def test_phases_add_up(tmp_path, method):
    rows = simulate(problems=8, n=2)
    for number, row in enumerate(rows["samples"]):
        kept = [number % 4, 0, 3]
        row |= {
            "drafted_per_step": [3, 0, 3],
            "accepted_per_step": kept,
            "output_tokens": 4 + sum(kept),
            "think_tokens": 2,
        }
    engine = engine_config(speculative=Speculative(method=method, num_speculative_tokens=3))
    found = summarise(write_recording(tmp_path / "r", rows, engine=engine))[0].acceptance
    thinking, answer = found.by_phase
    assert (found.method, thinking.phase, answer.phase) == (method, "thinking", "answer")
    assert thinking.drafted + answer.drafted == found.drafted == 6 * 16
    assert answer.length.value == pytest.approx(4.0)
    assert found.tokens_per_step.value == pytest.approx(
        (3 * 16 + sum(n % 4 + 3 for n in range(16))) / 48
    )
    for each in (found, thinking, answer):
        shares = [share.value for share in each.accepted_per_position]
        assert shares == sorted(shares, reverse=True)
        assert each.length.value == pytest.approx(1 + sum(shares))
        assert each.length.low <= each.length.value <= each.length.high


def test_batches_and_draft_time(tmp_path):
    rows = simulate(problems=6, n=3)
    for row in rows["steps"]:
        batch = row["decode_requests"]
        if batch:
            row |= {
                "drafted": [batch, batch],
                "accepted": [batch, 0],
                "draft_ns": 1_000_000 * batch,
            }
        else:
            row |= {"draft_ns": 90_000_000}  # of a prompt, which verifies nothing
    found = summarise(write_recording(tmp_path / "r", rows, engine=speculative_engine()))[
        0
    ].acceptance
    edges = [(each.batch_low, each.batch_high) for each in found.by_batch]
    assert edges == sorted(edges) and set(edges) <= {(1, 1), (2, 2), (3, 4), (5, 8)}
    decoding = [row["decode_requests"] for row in rows["steps"] if row["decode_requests"]]
    assert sum(each.steps for each in found.by_batch) == len(decoding)
    assert found.drafted == sum(each.drafted for each in found.by_batch) == 2 * sum(decoding)
    for each in found.by_batch:
        assert [share.value for share in each.accepted_per_position] == [1.0, 0.0]
        assert each.batch_low <= round(each.draft_s.value * 1e3, 6) <= each.batch_high
    assert found.draft_s.value == pytest.approx(sum(decoding) / len(decoding) / 1e3)
    assert found.tokens_per_step is None and found.by_phase == ()


def test_what_if_of_an_engine_that_does_not_speculate(tmp_path):
    rows = simulate(problems=5, n=2)
    prompt, output = [1, 2, 3, 4] * 3, [1, 2, 3, 4] * 6
    rows["drafts"] = [
        {"problem_id": row["problem_id"], "sample_index": row["sample_index"], **counted}
        for row in rows["samples"]
        for counted in draft_counts(STANDARD, prompt, output, think_tokens=11)
    ]
    (run,) = summarise(write_recording(tmp_path / "r", rows))
    assert run.acceptance is None
    settings = [(each.prompt_lookup_max, each.num_speculative_tokens) for each in run.ngram_what_if]
    assert sorted(settings) == [(4, 3), (4, 5), (5, 3), (5, 5)]
    for each in run.ngram_what_if:
        k = each.num_speculative_tokens
        # everything repeats: 23 tokens after the first, k + 1 of them a step
        assert each.tokens_per_step.value == pytest.approx(23 / -(-23 // (k + 1)))
        assert each.drafted_steps.value == 1.0
        assert len(each.accepted_per_position) == k
        assert sum(phase.drafted for phase in each.by_phase) == each.drafted
    document = run.to_json()["ngram_what_if"][0]
    assert set(document) >= {"num_speculative_tokens", "tokens_per_step", "by_phase"}
    assert (
        summarise(write_recording(tmp_path / "old", simulate(problems=2, n=1)))[0].ngram_what_if
        is None
    )


@pytest.mark.parametrize(
    "damage",
    [{"num_speculative_tokens": None}, {"prompt_lookup_min": None}, {"prompt_lookup_max": None},
     {"num_speculative_tokens": 100_000_000}, {"num_speculative_tokens": -1}],
)  # fmt: skip
def test_drafts_without_a_setting_are_left_out(tmp_path, damage):
    rows = simulate(problems=2, n=1)
    names = {name: rows["samples"][0][name] for name in ("problem_id", "sample_index")}
    (counted, *_) = draft_counts(STANDARD, [1, 2, 3, 4] * 3, [1, 2, 3, 4] * 6, think_tokens=11)
    rows["drafts"] = [{**names, **counted, **damage}]
    (run,) = summarise(write_recording(tmp_path / "r", rows))
    assert run.ngram_what_if is None


def test_notes_of_the_engine_are_shown(tmp_path):
    rows = simulate(problems=2, n=1)
    rows["events"] = [
        {"kind": "note", "engine": engine_config().key(), "detail": "mended"},
        {"kind": "drop", "engine": engine_config().key(), "detail": "other"},
    ]
    assert "mended" in summarise(write_recording(tmp_path / "r", rows))[0].notes
