from __future__ import annotations

import json
from dataclasses import replace

import pytest

from advisor.advice.reasons import name_of
from tests.traces.synthetic import engine_config, simulate, speculative_engine, write_recording
from tests.tui.live_recordings import write_watched
from traces.foreign.evaluations.importer import import_outcomes
from traces.recording.reader import Recording
from traces.schema.advice import Pick
from traces.schema.tts.policy import Policy
from traces.summary.comparison import compare, spread_of
from traces.summary.run import summarise
from tui.screens.advice.rows import paste_text, pick_title
from tui.text.advice import _name
from tui.text.recordings.show import (
    config_lines,
    policy_text,
    show_json,
    show_lines,
    spread_lines,
    time_lines,
)
from tui.text.words import policy_words


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("show")
    fast = write_recording(folder / "fast", simulate(problems=12, n=4))
    engine = engine_config(max_num_seqs=3)
    slow = write_recording(folder / "slow", simulate(problems=12, n=4, seqs=3), engine=engine)
    return fast, slow


def test_one_run_in_80_columns(recordings):
    lines = show_lines(summarise(recordings[0], 2.5))
    text = "\n".join(lines)
    assert max(map(len, lines)) <= 80
    for wanted in (
        *("toy, tp1 seqs8", "maj@4", "12 completed of 12", "accuracy", "TTFT p50", "TPOT p95"),
        *("device-s/problem", "$", "dev x latency/token", "batch", "KV cache", "tok/s"),
        *("step time", "decode", "mixed", "maj@k", "pass@k"),
    ):
        assert wanted in text, wanted
    energy = next(line for line in lines if line.startswith("energy"))
    assert energy.split() == ["energy/problem", "-"]


def test_step_times_and_shares_of_time_need_no_wall_times(tmp_path):
    rows = simulate(problems=6, n=2)
    (known,) = summarise(write_recording(tmp_path / "known", rows))
    for row in rows["steps"]:
        row["wall_ns"] = None
    (run,) = summarise(write_recording(tmp_path / "untold", rows))
    assert [line.split()[0] for line in time_lines(run, 80) if line[0] != " "] == ["step", "time"]
    assert run.step_time["decode_s"] == known.step_time["decode_s"]
    for row in rows["steps"]:
        row["profiled"] = True
    assert time_lines(summarise(write_recording(tmp_path / "slowed", rows))[0], 80) == []


def test_energy_is_shown_with_its_source(tmp_path):
    rows = simulate(problems=6, n=2)
    begin, end = rows["problems"][0]["arrival"], rows["steps"][-1]["end"]
    power = [
        {"host": "h", "device": "package-0", "kind": "rapl", "time": time, "energy_j": joules}
        for time, joules in (
            (begin - 10**9, 5.0),
            ((begin + end) // 2, 100.0),
            (end + 10**9, 200.0),
        )
    ]
    (run,) = summarise(write_recording(tmp_path / "e", {**rows, "power": power}))
    lines = show_lines([run])
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    assert "of the processor packages, by counter: idle" in text
    assert "per token" in text
    assert "per right answer" in text
    assert run.energy_j.per_problem.low < run.energy_j.per_problem.high
    missing = write_recording(tmp_path / "m", {**rows, "power": power[:2]})
    text = " ".join(" ".join(show_lines(summarise(missing))).split())
    assert "energy - package-0: its readings end" in text


@pytest.mark.slow
def test_two_runs_side_by_side(recordings):
    compared = compare(*(summarise(each)[0] for each in recordings))
    lines = show_lines([run for each in recordings for run in summarise(each)], compared)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= 80
    assert "2 against 1: 12 problems, paired" in text
    assert "cannot be told apart" in text
    assert "worse" in text
    assert "engine.max_num_seqs 8 -> 3" in text


@pytest.mark.slow
def test_a_difference_of_fewer_problems_says_of_how_many(recordings, tmp_path):
    rows = simulate(problems=12, n=4)
    for row in rows["problems"][:5]:
        row["correct"] = None  # as a tied vote in a kept prediction
    tied = write_recording(tmp_path / "tied", rows)
    whole, part = (summarise(each)[0] for each in (recordings[0], tied))
    compared = compare(whole, part)
    known = {change.metric.tag: change.problems for change in compared.changes}
    assert (known["accuracy"], known["latency_s.mean"]) == (7, 12)
    lines = show_lines([whole, part], compared)
    assert max(map(len, lines)) <= 80
    assert "  accuracy: of the 7 of them that have it in both" in lines
    told = "\n".join(show_lines([whole, whole], compare(whole, whole)))
    assert "that have it in both" not in told


def test_three_runs_fit_too(recordings):
    runs = summarise(recordings[0])
    assert max(map(len, show_lines([*runs, *runs, *runs]))) <= 80


def test_incomplete_says_what_is_missing(tmp_path):
    rows = simulate(problems=6, n=2)
    for name in ("end", "decided_at", "correct", "answer"):
        rows["problems"][-1][name] = None
    lines = show_lines(summarise(write_recording(tmp_path / "cut", rows, complete=False)))
    warning = " ".join(line.strip() for line in lines if line.startswith(("!", "  ")))
    assert "incomplete" in warning
    assert "in flight, left out: 1" in warning


def test_empty_and_seen_from_outside(tmp_path):
    empty = show_lines(summarise(write_recording(tmp_path / "empty", {}, complete=False)))
    assert any("0 completed" in line for line in empty)
    rows = simulate(problems=4, n=2)
    del rows["steps"]
    lines = show_lines(summarise(write_recording(tmp_path / "outside", rows)))
    assert not any(line.startswith(("batch", "step time")) for line in lines)


def test_acceptance_is_shown(tmp_path):
    rows = simulate(problems=4, n=2)
    for row in rows["samples"]:
        row |= {"drafted_per_step": [3, 3], "accepted_per_step": [2, 0]}
    recording = write_recording(tmp_path / "s", rows, engine=speculative_engine())
    text = "\n".join(show_lines(summarise(recording)))
    assert "ngram: length 2.00 tokens" in text
    assert "0.500" in text


@pytest.mark.slow
def test_json(recordings):
    runs = summarise(recordings[0])
    assert list(show_json(runs)) == ["runs"]
    document = show_json(
        [*runs, *summarise(recordings[1])], compare(*(summarise(each)[0] for each in recordings))
    )
    text = json.dumps(document, allow_nan=False)
    assert json.loads(text)["difference"]["problems"] == 12
    change = document["difference"]["metrics"]["latency_s.mean"]
    assert set(change) == {
        "difference", "relative", "verdict", "problems", "times_as_many_problems",
    }  # fmt: skip


@pytest.mark.parametrize("temperature", [None, 0.0, 0.8])
def test_one_sample_is_greedy_at_temperature_0_alone(temperature):
    policy = Policy(temperature=temperature)
    engine = engine_config()
    pick = Pick(engine=engine, policy=policy, estimates={}, probability_within_budget=1.0)
    told = [policy.label(), policy_text(policy), policy_words(policy), name_of(pick)]
    told += [_name(pick), pick_title(pick), paste_text(pick)]
    for text in told:
        assert ("greedy" in text) == (temperature == 0), text
        assert text.count("0.8") == (temperature == 0.8), text
    assert policy.to_json()["method"] == "greedy"  # a contract


def imported(folder, **of):
    rows = [
        {"problem_id": f"p{at}", "sample_index": 0, "correct": at % 2 == 0, **of} for at in range(8)
    ]
    path = folder.with_suffix(".jsonl")
    path.write_text("\n".join(map(json.dumps, rows)))
    import_outcomes([path], folder)
    return summarise(Recording.open(folder))[0]


def test_what_nobody_told_is_not_the_same(tmp_path, recordings):
    one, two = imported(tmp_path / "one"), imported(tmp_path / "two")
    found = compare(one, two)
    assert found.not_told == ("engine", "policy")
    assert found.to_json()["not_told"] == ["engine", "policy"]
    lines = config_lines(found, 80)
    assert "not known: whether engine and policy are the same" in " ".join(lines)
    assert "same engine and policy" not in lines
    (run,) = summarise(recordings[0])
    assert config_lines(compare(run, run), 80) == ["same engine and policy"]
    text = " ".join(config_lines(compare(run, two), 80))
    assert "engine.model toy -> " in text
    assert "not known: what else differs in engine and policy" in text


def test_traffic_of_others_stands_side_by_side(tmp_path):
    runs = [
        summarise(write_watched(tmp_path / name, spans=True, seconds=seconds))[0]
        for name, seconds in (("a", (0.3, 0.4)), ("b", (0.6, 0.7)))
    ]
    lines = show_lines(runs, compare(*runs))
    (latency,) = (line for line in lines if line.startswith("latency p50"))
    assert "300 ms" in latency and "600 ms" in latency
    assert "not known: whether engine and policy are the same" in " ".join(lines)
    assert max(map(len, lines)) <= 80


def test_runs_of_other_problems_are_not_compared(recordings, tmp_path):
    """Several runs stand side by side, and a line says which are of the same problems."""
    others = write_recording(tmp_path / "others", simulate(problems=9, n=4))
    facts = replace(others.manifest.workload, name="other", hash="another")
    replace(others.manifest, workload=facts).write(others.path)
    fast, slow = (summarise(each)[0] for each in recordings)
    (other,) = summarise(Recording.open(others.path))
    head = "! not known to be of the same problems: "
    for runs, told in (
        ([fast, slow, other], "1, 2 (sums) | 3 (other)."),
        ([fast, other], "1 (sums) | 2 (other)."),
    ):
        compared = compare(*runs) if len(runs) == 2 else None
        lines = show_lines(runs, compared)
        (place,) = (at for at, line in enumerate(lines) if line.startswith(head[:40]))
        assert head + told in " ".join(" ".join(lines[place : place + 3]).split())
        assert not [line for line in lines if "paired" in line]
    both = show_lines([fast, slow], compare(fast, slow))
    assert not [line for line in both if line.startswith("!")]
    assert [line for line in both if "paired" in line]


def test_nobody_is_told_to_repeat_what_was_watched(tmp_path):
    own = summarise(write_recording(tmp_path / "own", simulate(problems=4, n=2)))[0]
    seen = summarise(write_watched(tmp_path / "seen", spans=True))[0]
    for run, said in ((own, "Record it again"), (seen, "none measures it")):
        spread, _ = spread_of(run, [])
        assert said in " ".join(" ".join(spread_lines(spread, 80)).split())
