"""Importers of outcomes: the battery for all, then what is particular to each format."""

import gzip
import json
import os
import random
import shlex
import zipfile
from pathlib import Path

import polars as pl
import pytest

from advisor.accuracy.counterfactual import evaluate
from benchmarks.made.foreign_files import CASES, HEADER, inspect_samples, inspect_zip, plain
from traces.errors import OutcomesError, UsageError
from traces.foreign import source
from traces.foreign.evaluations.importer import import_outcomes
from traces.foreign.evaluations.reader import Choices, Given
from traces.recording.reader import Recording
from traces.summary.run import summarise
from tui.text.recordings.show import show_json, show_lines

DATA = Path(__file__).parents[3] / "data" / "foreign"
SAMPLES = [
    ("p", 0, "42", True), ("p", 1, "7", False), ("p", 2, "42", True), ("q", 0, "8", False),
    ("q", 1, "9", False), ("q", 2, "9", False), ("r", 0, None, False), ("r", 1, None, False),
    ("r", 2, "42", True),
]  # fmt: skip


@pytest.fixture(params=CASES, ids=lambda case: case.file)
def case(request):
    return request.param


def read(path, folder, **options):
    found = import_outcomes([path], folder, **options)
    return found, Recording.open(folder)


def refused(path, folder, **options):
    with pytest.raises(OutcomesError) as error:
        import_outcomes([path], folder, **options)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert not (folder / "recording.json").exists()
    return str(error.value)


def test_counts_go_round(case, tmp_path):
    path = case.write(tmp_path / case.file, SAMPLES)
    found, recording = read(path, tmp_path / "r")
    assert found.facts["format"] == case.name
    assert (
        found.facts["problems"],
        found.facts["samples"],
        found.facts["judged"],
        found.facts["answered"],
    ) == (3, 9, 9, 7)
    assert [each.skipped.counts for each in found.files] == [{}]
    assert recording.complete and not recording.manifest.text_recorded
    samples = recording.samples
    assert samples["correct"].to_list() == [right for *_, right in SAMPLES]
    assert samples["answer"].to_list() == ["0", "1", "0", "0", "1", "1", None, None, "0"]
    assert samples["sample_index"].to_list() == [0, 1, 2] * 3
    for column in ("arrival", "end", "first_token", "token_ids"):
        assert samples[column].null_count() == 9
    problems = recording.problems
    assert problems["answer"].to_list() == ["0", "1", "0"]
    assert problems["correct"].to_list() == [True, False, True]
    assert problems["expected"].null_count() == 3
    assert recording.steps.height == 0


def test_it_can_be_shown(case, tmp_path):
    path = case.write(tmp_path / case.file, SAMPLES)
    (run,) = summarise(read(path, tmp_path / "r")[1])
    assert (run.problems, run.problems_in_flight, run.problems_failed) == (3, 0, 0)
    assert run.accuracy.value == pytest.approx(2 / 3)
    by_key = {(each.method, each.n): each.accuracy.value for each in run.policies}
    assert by_key["majority", 3] == by_key["pass_at_k", 3] == pytest.approx(2 / 3)
    assert by_key["pass_at_k", 1] == pytest.approx(1 / 3)
    assert run.steps is None
    text = show_lines([run])
    assert all(len(line) <= 80 for line in text)
    for name in ("latency mean", "TTFT p50", "throughput", "device-s/problem"):
        assert any(line.split() == [*name.split(), "-"] for line in text), name
    assert not any("tp1" in line for line in text)
    document = show_json([run])["runs"][0]
    json.dumps(document, allow_nan=False)
    assert document["latency_s"] == {"mean": None, "p50": None, "p95": None}
    assert document["config"]["engine"]["tensor_parallel_size"] is None
    assert document["steps"] is document["throughput_tokens_per_s"] is None


def test_texts_are_kept_only_when_asked(case, tmp_path):
    secret = [(p, i, a and f"secret {a}", r) for p, i, a, r in SAMPLES]
    path = case.write(tmp_path / case.file, secret)
    read(path, tmp_path / "r")
    for file in (tmp_path / "r").iterdir():
        assert b"secret" not in file.read_bytes() and b"question" not in file.read_bytes()
    recording = Recording.open(tmp_path / "r")
    assert (
        not recording.problems.select(pl.any_horizontal(pl.col("answer") == "secret 9"))
        .sum()
        .item()
    )
    _, recording = read(case.write(tmp_path / case.file, SAMPLES), tmp_path / "t", record_text=True)
    assert recording.manifest.text_recorded
    assert recording.samples["answer"].to_list() == [answer for _, _, answer, _ in SAMPLES]
    assert recording.problems["answer"].to_list() == ["42", "9", "42"]
    assert set(recording.problems["expected"]) == {"42"}


def test_a_file_that_is_cut_off(case, tmp_path):
    whole = case.write(tmp_path / case.file, SAMPLES).read_bytes()
    path = tmp_path / case.file
    path.write_bytes(whole[: int(len(whole) * 0.8)])
    if not case.rows:
        refused(path, tmp_path / "r")
        return
    found, _ = read(path, tmp_path / "r")
    assert 0 < found.facts["samples"] < 9
    assert found.files[0].skipped.counts == {"lines that are not JSON": 1}
    path.write_bytes(gzip.compress(whole)[:-30])
    found, recording = read(path, tmp_path / "g")
    assert 0 < found.facts["samples"] <= 9
    assert "the file is cut off (its gzip data end early)" in found.files[0].facts.notes
    (run,) = summarise(recording)
    assert any("gzip data end early" in note for note in run.notes)


def test_doubled_samples_are_counted_once(case, tmp_path):
    if case.name != "outcomes JSONL" and not case.rows:
        pytest.skip("a zip or a document holds each sample once")
    path = case.write(tmp_path / case.file, SAMPLES)
    path.write_bytes(path.read_bytes() * 2)
    found, recording = read(path, tmp_path / "r")
    assert found.facts["samples"] == recording.samples.height == 9
    assert any("samples that were there before, left out: 9" in note for note in found.notes)


def test_a_judge_reads_the_completions(case, tmp_path):
    if case.file == "outcomes.jsonl":
        pytest.skip("plain outcomes hold no completions")

    def judge(text, expected, prompt):
        answer = text.rpartition(" ")[2]
        return (answer, answer != expected) if answer.isdigit() else (None, False)

    path = case.write(tmp_path / case.file, SAMPLES)
    choices = Choices(judge=judge, verifier="contrary")
    found, recording = read(path, tmp_path / "r", choices=choices)
    wrong = [answer is not None and not right for *_, answer, right in SAMPLES]
    assert recording.samples["correct"].to_list() == wrong
    assert recording.manifest.workload.verifier == "contrary"
    assert any("judged by the verifier contrary" in note for note in found.notes)


# What is particular to each format.


def lines(path, *rows):
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return path


GOOD = {"problem_id": "p", "sample_index": 0, "correct": True}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{broken", "lines that are not JSON"),
        ("[1, 2]", "lines that are no JSON object"),
        ("7", "lines that are no JSON object"),
        ("[" * 100_000, "lines that are"),
        ({**GOOD, "problem_id": None}, "lines whose problem_id is neither"),
        ({**GOOD, "problem_id": True}, "lines whose problem_id is neither"),
        ({**GOOD, "sample_index": -1}, "lines whose sample_index is no whole number"),
        ({**GOOD, "sample_index": 1.5}, "lines whose sample_index is no whole number"),
        ({**GOOD, "sample_index": float("nan")}, "lines whose sample_index is no whole number"),
        ({**GOOD, "sample_index": 10**40}, "lines whose sample_index is no whole number"),
        ({**GOOD, "correct": "yes"}, "lines whose correct is neither"),
        ({"problem_id": "p", "sample_index": 0}, "lines without correct"),
        ({"sample_index": 0, "correct": True}, "lines without problem_id"),
        ({"problem_id": "p", "correct": True}, "lines without sample_index"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_lines_that_are_no_samples(tmp_path, row, reason):
    path = lines(
        tmp_path / "o.jsonl", {**GOOD, "sample_index": 3}, row, {**GOOD, "sample_index": 4}
    )
    found, _ = read(path, tmp_path / "r")
    assert found.facts["samples"] == 2
    (told,) = found.files[0].skipped.counts
    assert told.startswith(reason)
    assert "(first: line 2)" in found.files[0].remarks()[0]


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("output_tokens", "12", "output_tokens that are no whole number"),
        ("output_tokens", -3, "output_tokens that are no whole number"),
        ("output_tokens", True, "output_tokens that are no whole number"),
        ("output_tokens", 10**12, "output_tokens above 100,000,000"),
        ("latency_s", -1, "latency_s that are no time"),
        ("latency_s", "1s", "latency_s that are no time"),
        ("latency_s", 1e300, "latency_s that are no time"),
        ("latency_s", 9e15, "latency_s that are no time"),  # beyond 64 bits of nanoseconds
        ("logprob_mean", [], "logprob_mean that are no number"),
        ("answer", {"a": 1}, "answer that are neither text nor number"),
    ],
)
def test_values_that_cannot_be_read_are_null(tmp_path, name, value, reason):
    path = lines(tmp_path / "o.jsonl", {**GOOD, name: value})
    found, recording = read(path, tmp_path / "r")
    assert list(found.files[0].skipped.counts) == [f"values of {reason}"]
    column = {"latency_s": "latency_ns"}.get(name, name)
    assert recording.samples[column].to_list() == [None]


def test_numbers_that_are_none_count_as_absent(tmp_path):
    row = {**GOOD, "latency_s": float("nan"), "logprob_mean": float("-inf"), "output_tokens": 7.0}
    found, recording = read(lines(tmp_path / "o.jsonl", row), tmp_path / "r")
    assert found.facts["samples"] == 1
    samples = recording.samples
    assert samples.select("latency_ns", "logprob_mean", "output_tokens").row(0) == (None, None, 7)


def test_log_probabilities_that_are_sums_are_told_and_left_out(tmp_path):
    rows = [{**GOOD, "sample_index": i, "logprob_mean": -5000.0 - i} for i in range(4)]
    found, recording = read(lines(tmp_path / "o.jsonl", *rows), tmp_path / "r")
    (told,) = (note for note in found.notes if "logprob_mean" in note)
    assert told.startswith("4 of 4 values of logprob_mean are below -20")
    assert told.endswith("(first: line 1)")
    assert recording.samples["logprob_mean"].null_count() == 4


def test_what_is_measured_stays(tmp_path):
    row = {**GOOD, "latency_s": 1.25, "prompt_tokens": 9, "think_tokens": 3, "group": "easy"}
    _, recording = read(lines(tmp_path / "o.jsonl", row), tmp_path / "r")
    kept = recording.samples.select("latency_ns", "prompt_tokens", "think_tokens").row(0)
    assert kept == (1_250_000_000, 9, 3)
    assert recording.problems["group"].to_list() == ["easy"]


@pytest.mark.slow
def test_latencies_are_shown_and_give_the_order_of_ends(tmp_path):
    times = [3.0, 1.0, 2.0, 4.0]
    rows = [
        {
            **GOOD, "problem_id": problem, "sample_index": index, "latency_s": seconds,
            "output_tokens": 10 * index + 10, "answer": str(index // 3), "correct": index < 3,
        }
        for problem in ("p", "q")
        for index, seconds in enumerate(times)
    ]  # fmt: skip
    _, recording = read(lines(tmp_path / "o.jsonl", *rows), tmp_path / "r")
    (run,) = summarise(recording)
    assert run.sample_latency_s["mean"].value == 2.5
    assert run.sample_latency_s["p50"].value == 2.5
    assert run.latency_s["mean"] is None
    assert sum("sample latency" in line for line in show_lines([run])) == 2
    found = evaluate(run)
    assert any("that of their own latencies" in note for note in found.notes)
    firsts = [o for o in found.outcomes if (o.method, o.n) == ("first_finish", 4)]
    (first,) = (o for o in firsts if o.rule["first"] == 2)
    # Samples 1 and 2 end first, at 2 s: then 0 has made 2/3 of its 10 tokens, 3 half of its 40.
    assert first.tokens_per_problem.value == pytest.approx(20 + 30 + 10 * 2 / 3 + 40 / 2)
    partly = lines(tmp_path / "b.jsonl", *rows[:-1], {**rows[-1], "latency_s": None})
    _, recording = read(partly, tmp_path / "s")
    found = evaluate(summarise(recording)[0])
    assert any("latency is not known: 1 of 8" in note for note in found.notes)


def test_without_answers_nothing_is_voted(tmp_path):
    rows = [{**GOOD, "sample_index": i, "correct": i == 0} for i in range(3)]
    found, recording = read(lines(tmp_path / "o.jsonl", *rows), tmp_path / "r")
    assert any("cannot vote" in note for note in found.notes)
    (run,) = summarise(recording)
    assert run.accuracy is None
    assert run.tokens_per_problem is None
    known = {(each.method, each.n): each.accuracy.value for each in run.policies}
    assert {key for key in known if key[0] != "pass_at_k"} == {("majority", 1)}
    assert known["majority", 1] == known["pass_at_k", 1] == pytest.approx(1 / 3)
    assert all(each.tokens_per_problem is None for each in run.policies)
    assert run.policies[0].accuracy.value == pytest.approx(1 / 3)


def test_a_single_sample_speaks_for_itself(tmp_path):
    rows = [{**GOOD, "problem_id": str(i), "correct": i < 3} for i in range(4)]
    (run,) = summarise(read(lines(tmp_path / "o.jsonl", *rows), tmp_path / "r")[1])
    assert run.accuracy.value == 0.75
    assert run.policy.n == 1 and run.policy.temperature is None


def test_unjudged_samples_have_no_accuracy(tmp_path):
    rows = [{**GOOD, "sample_index": i, "correct": None, "answer": "a"} for i in range(2)]
    found, recording = read(lines(tmp_path / "o.jsonl", *rows), tmp_path / "r")
    assert any("not known to be right or wrong: 2" in note for note in found.notes)
    (run,) = summarise(recording)
    assert run.accuracy is None and run.policies == ()


def test_problems_with_fewer_samples_are_told(tmp_path):
    found, _ = read(plain(tmp_path / "o.jsonl", SAMPLES[:-1]), tmp_path / "r")
    assert any("so that the first 2 of each count" in note for note in found.notes)
    made = [(f"p{p}", i, "1", True) for p in range(20) for i in range(3)]
    found, _ = read(plain(tmp_path / "p.jsonl", made[:-1]), tmp_path / "s")
    assert "problems with fewer than 3 samples: 1" in found.notes


def scored(path, **fields):
    rows = [
        {
            "problem_id": f"p{problem}", "sample_index": index, "answer": answer,
            "correct": answer == "1", "output_tokens": 9,
        }
        | {name: values[index] for name, values in fields.items()}
        for problem in range(20)
        for index, answer in enumerate(["2", "2", "1", None])
    ]  # fmt: skip
    return lines(path, *rows)


def policies(recording):
    (run,) = summarise(recording)
    found = evaluate(run, counts=[4])
    return {each.method: each.accuracy.value for each in found.outcomes}, found.notes


def test_scores_of_a_reward_model_give_best_of_n_and_weighted_votes(tmp_path):
    weighs = scored(tmp_path / "a.jsonl", score=[0.2, 0.1, 0.9, 1.0])
    accuracy, notes = policies(read(weighs, tmp_path / "a")[1])
    assert (accuracy["majority"], accuracy["best_of_n"], accuracy["weighted"]) == (0.0, 1.0, 1.0)
    assert any("go by the score of each sample" in note for note in notes)
    # The best score is not the heaviest answer here.
    _, recording = read(scored(tmp_path / "b.jsonl", score=[0.8, 0.8, 0.9, None]), tmp_path / "b")
    accuracy, notes = policies(recording)
    assert (accuracy["best_of_n"], accuracy["weighted"]) == (1.0, 0.0)
    assert any("missing or not a number: 20 of 80" in note for note in notes)
    _, recording = read(scored(tmp_path / "c.jsonl", score=[-0.8, -0.8, 0.1, 0]), tmp_path / "c")
    accuracy, notes = policies(recording)
    assert accuracy["weighted"] == 1.0
    assert any(note.startswith("scores below 0: 40 of 80.") for note in notes)
    accuracy, _ = policies(read(scored(tmp_path / "d.jsonl"), tmp_path / "d")[1])
    assert not accuracy.keys() & {"best_of_n", "weighted", "confidence"}


@pytest.mark.parametrize(
    ("how", "score"), [(None, 0.4), ("last", 0.4), ("min", 0.2), ("mean", 0.4), ("prod", 0.048)]
)
def test_scores_of_steps_become_one(tmp_path, how, score):
    path = scored(tmp_path / "a.jsonl", scores=[[0.6, 0.2, 0.4], [0.5], None, None])
    found, recording = read(path, tmp_path / "r", choices=Choices(step_scores=how))
    assert recording.samples["score"].to_list()[:4] == pytest.approx([score, 0.5, None, None])
    assert any(f"scores of steps: the {how or 'last'} is" in each for each in found.notes)


def test_scores_that_are_none_are_told_in_a_line(tmp_path):
    path = scored(
        tmp_path / "a.jsonl", score=["high", 0.5, None, None], scores=[None, None, [], [0.1, "x"]]
    )
    found, recording = read(path, tmp_path / "r")
    assert recording.samples["score"].to_list()[:4] == [None, 0.5, None, None]
    assert found.files[0].skipped.counts == {
        "values of score that are no number": 20,
        "values of scores that are no list of numbers": 40,
    }


def responses(path, filters, documents=40):
    """Write documents of 4 responses, each filter with the metric of its own answers."""
    rows = []
    for name, kept, right in filters:
        for number in range(documents):
            texts = ["it is 7", "it is 7", "it is 42", "it is 42"]
            rows.append(
                lm_eval_row(
                    doc_id=number, target="42", resps=[texts], filtered_resps=kept, filter=name,
                    exact_match=right, metrics=["exact_match"],
                )
            )  # fmt: skip
    return lines(path, *rows)


ONE, ALL = ("score-first", ["7"], 0.0), ("all", [["7", "7", "42", "42"]], 0.5)


def test_the_filter_that_kept_all_responses_is_chosen(tmp_path):
    path = responses(tmp_path / "samples_x.jsonl", [ONE, ALL])
    found, recording = read(path, tmp_path / "r")
    assert found.facts["samples"] == 160 and recording.samples["correct"].mean() == 0.5
    assert any("judged by exact_match,all" in each for each in found.notes)


def test_a_verifier_is_held_against_the_metric_of_the_file(tmp_path):
    def notes(right):
        judge = Choices(judge=lambda text, *_: (text, right), verifier="exact")
        path = responses(tmp_path / "samples_x.jsonl", [ONE, ALL])
        told = " ".join(import_outcomes([path], tmp_path / str(right), choices=judge).notes)
        return told

    told = notes(False)
    assert "exact finds 0.000 of the samples right, the file's own exact_match,all 0.500." in told
    assert "exact finds 1.000 of the samples right" in notes(True)


def test_a_verifier_that_agrees_is_not_doubted(tmp_path):
    judge = Choices(judge=lambda text, *_: (text, text.endswith("42")), verifier="numeric")
    path = responses(tmp_path / "samples_x.jsonl", [ALL])
    found = import_outcomes([path], tmp_path / "r", choices=judge)
    assert not any("the file's own" in note for note in found.notes)


def test_the_own_scorer_of_a_log_is_held_against_a_verifier(tmp_path):
    path = inspect_zip(tmp_path / "log.eval", SAMPLES)
    judge = Choices(judge=lambda text, *_: (text, False), verifier="exact")
    found = import_outcomes([path], tmp_path / "r", choices=judge)
    assert any("the file's own match 0.333" in note for note in found.notes)


def test_that_nothing_is_right_is_told(tmp_path):
    path = plain(tmp_path / "o.jsonl", [(*each[:3], False) for each in SAMPLES])
    found = import_outcomes([path], tmp_path / "r")
    assert "none of 9 judged samples is right" in found.notes


def test_two_imports_of_the_same_problems_are_paired(tmp_path):
    from traces.summary.comparison import compare

    better = [(p, i, "42", True) for p, i, *_ in SAMPLES]
    runs = [
        summarise(read(plain(tmp_path / f"{name}.jsonl", samples), tmp_path / name)[1])[0]
        for name, samples in (("a", SAMPLES), ("b", better))
    ]
    found = compare(*runs)
    assert found.problems == 3
    (accuracy,) = [c for c in found.changes if c.metric.tag == "accuracy"]
    assert accuracy.difference.value == pytest.approx(1 / 3)


def test_long_lines_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "LINE_BYTES", 1 << 20)
    bomb = json.dumps({**GOOD, "answer": "x" * (5 << 20)})
    rows = [{**GOOD, "sample_index": 1}, bomb, {**GOOD, "sample_index": 2}]
    found, _ = read(lines(tmp_path / "o.jsonl", *rows), tmp_path / "r")
    assert found.facts["samples"] == 2
    assert found.files[0].skipped.counts == {"lines of more than 1 MiB": 1}
    assert found.files[0].skipped.first == {"lines of more than 1 MiB": 2}


def test_paths_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # a file is read several times
    assert "is no regular file. Write what it gives" in refused(tmp_path / "pipe", tmp_path / "r")
    assert "No such file" in refused(tmp_path / "absent", tmp_path / "r")
    assert "Is a directory" in refused(tmp_path, tmp_path / "r")


def test_several_files(tmp_path):
    one, two = (
        outcome_lines(tmp_path / f"{name}.jsonl", SAMPLES, expected=f"{name} 42")
        for name in ("one", "two")
    )
    found = import_outcomes([one, two], tmp_path / "r")
    assert (found.facts["problems"], found.facts["samples"]) == (6, 18)
    problems = Recording.open(tmp_path / "r").problems
    assert problems["problem_id"].to_list()[:4] == ["one/p", "one/q", "one/r", "two/p"]
    assert set(problems["group"]) == {"one", "two"}
    with pytest.raises(UsageError, match="hold the same"):
        import_outcomes([one, one], tmp_path / "s")
    other = inspect_zip(tmp_path / "log.eval", SAMPLES)
    with pytest.raises(UsageError, match="different formats"):
        import_outcomes([one, other], tmp_path / "s")


# lm-evaluation-harness


def test_real_lm_eval_files(tmp_path):
    found, recording = read(DATA / "samples_toy_sums_all.jsonl", tmp_path / "all")
    (run,) = summarise(recording)
    assert (found.facts["problems"], found.facts["samples"]) == (5, 20)
    assert run.workload.name == "toy_sums_all"
    assert (run.policy.temperature, run.policy.max_tokens) == (0.7, 64)
    # what lm-eval reports: the mean over samples 0.6, and maj@4 by its other filter 0.6
    assert run.policies[0].accuracy.value == pytest.approx(0.6)
    assert run.accuracy.value == pytest.approx(0.6)
    found, recording = read(DATA / "samples_toy_choice.jsonl", tmp_path / "mc")
    (run,) = summarise(recording)
    assert run.accuracy.value == pytest.approx(0.6)
    found, recording = read(DATA / "samples_toy_sums_one.jsonl", tmp_path / "one")
    assert summarise(recording)[0].accuracy.value == 0


def test_one_answer_made_of_many_responses_is_no_sample(tmp_path):
    path = DATA / "samples_toy_sums_self.jsonl"
    with pytest.raises(
        UsageError, match=r"'score-first' made one answer of 4 responses. Give --ver"
    ):
        import_outcomes([path], tmp_path / "r")

    def judge(text, expected, prompt):
        answer = text.rpartition(" ")[2]
        return answer, answer == expected

    found, recording = read(path, tmp_path / "r", choices=Choices(judge=judge, verifier="last"))
    assert (found.facts["problems"], found.facts["samples"]) == (5, 20)
    again = read(DATA / "samples_toy_sums_all.jsonl", tmp_path / "all")[1]
    kept = ("problem_id", "sample_index", "answer", "correct")
    assert recording.samples.select(kept).equals(again.samples.select(kept))


def asking():
    """A judge by whom all is right, and the prompts that it was asked with."""
    asked = []

    def judge(text, expected, prompt):
        asked.append(prompt)
        return text, True

    return Choices(judge=judge, verifier="v"), asked


@pytest.mark.parametrize("older", [False, True])
def test_a_judge_sees_the_prompt_of_lm_eval(tmp_path, older):
    choices, asked = asking()
    settings = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "max_gen_toks": 512}
    told = [["2?", settings]] if older else {"gen_args_0": {"arg_0": "2?", "arg_1": settings}}
    rows = [
        {"doc_id": number, "target": "2", "arguments": each, "resps": [["2"]]}
        for number, each in enumerate((told, None))
    ]
    path = lines(tmp_path / "samples_t.jsonl", *rows)
    _, recording = read(path, tmp_path / "r", choices=choices)
    assert asked == ["2?", ""]
    (policy,) = recording.manifest.policies.values()
    assert (policy.temperature, policy.top_p, policy.max_tokens) == (0.6, 0.95, 512)


def test_a_judge_sees_the_choices_of_inspect(tmp_path):
    choices, asked = asking()
    path = inspect_log(tmp_path / "l.json", {"input": "Why?", "choices": ["a", "b"]})
    read(path, tmp_path / "r", choices=choices)
    assert asked[0] == '"Why?"\nA)\nB)'


def test_lm_eval_choices(tmp_path):
    path = DATA / "samples_toy_choice.jsonl"
    found, recording = read(path, tmp_path / "r", choices=Choices(score="acc_norm"))
    assert found.files[0].facts.notes == ["judged by acc_norm,none"]
    assert recording.samples["answer"].null_count() == 5
    with pytest.raises(UsageError, match="has no metric 'f1'. Choose one of acc, acc_norm"):
        import_outcomes([path], tmp_path / "s", choices=Choices(score="f1"))
    with pytest.raises(UsageError, match="has no filter 'x'. Choose one of none"):
        import_outcomes([path], tmp_path / "s", choices=Choices(score="acc,x"))


def lm_eval_row(**changes):
    row = json.loads((DATA / "samples_toy_sums_all.jsonl").read_text().splitlines()[0])
    return row | changes


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"doc_id": "x"}, "documents whose doc_id is no whole number"),
        ({"exact_match": 0.33}, "documents whose exact_match is not there for each response"),
        ({"exact_match": None}, "documents whose exact_match is not there for each response"),
        ({"filtered_resps": None}, "documents without filtered_resps"),
        ({"filtered_resps": ["a", "b"]}, "documents of several requests"),
    ],
)
def test_lm_eval_documents_that_cannot_be_read(tmp_path, changes, reason):
    path = lines(tmp_path / "s.jsonl", lm_eval_row(), lm_eval_row(**{"doc_id": 1} | changes))
    found, _ = read(path, tmp_path / "r")
    assert found.files[0].skipped.counts == {reason: 1}
    assert found.facts["judged"] == 4


def test_lm_eval_takes_a_metric_of_the_answer_before_one_of_its_parts(tmp_path):
    parts = {"resps": [["t"]], "filtered_resps": ["t"]} | {
        "parts": [True, False],
        "whole": False,
    }  # as IFEval's, instruction by instruction
    row = lm_eval_row(metrics=["parts", "whole"], **parts)
    path = lines(tmp_path / "s.jsonl", row, row | {"doc_id": 1, "whole": True})
    found, recording = read(path, tmp_path / "r")
    assert found.facts["judged"] == 2
    assert recording.samples["correct"].to_list() == [False, True]


def test_lm_eval_pass_at_1_of_none_or_all_says_what_each_response_is(tmp_path):
    drawn = {"resps": [["a", "b"]], "filtered_resps": [["a", "b"]], "metrics": ["pass@1"]}
    path = lines(
        tmp_path / "s.jsonl",
        *(
            lm_eval_row(**drawn) | {"doc_id": number, "pass@1": share}
            for number, share in enumerate((0.0, 1.0, 0.5))
        ),
    )
    found, recording = read(path, tmp_path / "r")
    right = [False, False, True, True, None, None]
    assert recording.samples["correct"].to_list() == right and found.facts["judged"] == 4


def test_lm_eval_without_a_metric_of_right_or_wrong(tmp_path):
    row = lm_eval_row(metrics=["word_perplexity"], word_perplexity=[-31.2, 4])
    del row["exact_match"]
    row["word_perplexity"] = 12.5
    message = refused(lines(tmp_path / "s.jsonl", row), tmp_path / "r")
    assert "no metric of right or wrong (word_perplexity)" in message


# inspect_ai


@pytest.mark.parametrize("name", ["inspect_sums.eval", "inspect_sums.json"])
def test_real_inspect_logs(tmp_path, name):
    found, recording = read(DATA / name, tmp_path / "r")
    (run,) = summarise(recording)
    assert (found.facts["problems"], found.facts["samples"], found.facts["judged"]) == (3, 9, 9)
    assert (run.engine.model, run.policy.temperature) == ("mockllm/model", 0.7)
    assert run.workload.name == "sums"
    # inspect_ai's own accuracy, the mean over epochs and samples
    assert run.policies[0].accuracy.value == pytest.approx(2 / 3)
    assert recording.samples["output_tokens"].to_list() == [20, 23, 26, 21, 24, 27, 22, 25, 28]
    assert found.files[0].facts.notes == ["judged by match (other scorers, left out: includes)"]
    with pytest.raises(UsageError, match="has no such scorer. Choose one of match, includes"):
        import_outcomes([DATA / name], tmp_path / "s", choices=Choices(score="f1"))


def inspect_log(path, *changes, header=None):
    samples = inspect_samples(SAMPLES)
    changed = [sample | change for sample, change in zip(samples, changes, strict=False)]
    samples[: len(changed)] = changed
    path.write_text(json.dumps(HEADER | (header or {}) | {"samples": samples}))
    return path


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"id": None}, "samples without id or epoch"),
        ({"epoch": 0}, "samples without id or epoch"),
        ({"scores": None}, "samples without a score, left unjudged"),
        ({"scores": {"x": {"value": 1}, "y": 3}}, None),
        ({"scores": {"match": {"value": "P"}}}, "scores that are neither right nor wrong, left un"),
        ({"scores": {"match": {"value": float("nan")}}}, "scores that are neither right nor wrong"),
        ({"scores": {"match": {"value": {"a": 1}}}}, "scores that are neither right nor wrong"),
        ({"model_usage": 5}, "samples that are not as inspect_ai writes them"),
    ],
    ids=str,
)
def test_inspect_samples_that_cannot_be_read(tmp_path, change, reason):
    path = inspect_log(tmp_path / "l.json", {}, change)
    found, _ = read(path, tmp_path / "r")
    told = list(found.files[0].skipped.counts)
    if reason is None:
        assert told == ["samples without a score of match, left unjudged"]
    else:
        assert len(told) == 1 and told[0].startswith(reason)
    assert found.facts["judged"] == (
        8 if told[0].endswith(("unjudged", "match, left unjudged")) else 6
    )


def test_inspect_messages_are_the_same_under_other_ids(tmp_path):
    def asked(name, ids, content="2 + 2"):
        said = [{"id": ids, "role": "user", "content": content, "source": "input"}]
        path = inspect_log(tmp_path / f"{name}.json", *[{"input": said}] * len(SAMPLES))
        return read(path, tmp_path / name)[1].manifest.workload.hash

    assert asked("a", "x7Kq") == asked("b", "Zp09") != asked("c", "x7Kq", "2 + 3")


def usage(made, **more):
    return {"input_tokens": 100, "output_tokens": made} | more


@pytest.mark.parametrize(
    ("told", "prompt_tokens"),
    [
        ({"total_tokens": 110}, 100),
        ({"total_tokens": 1010, "input_tokens_cache_read": 900}, 1000),
        ({"total_tokens": 1060, "input_tokens_cache_read": 900, "input_tokens_cache_write": 50},
         1050),
        ({"total_tokens": 110, "input_tokens_cache_read": 90}, 100),  # as older versions count
        ({"total_tokens": 110, "input_tokens_cache_read": 900}, 1000),
        ({"input_tokens_cache_read": 90}, None),
    ],
)  # fmt: skip
def test_inspect_prompts_hold_the_cached_tokens(tmp_path, told, prompt_tokens):
    changes = [{"model_usage": {"m": usage(10, **told)}}] * 9
    _, recording = read(inspect_log(tmp_path / "l.json", *changes), tmp_path / "r")
    assert set(recording.samples["prompt_tokens"]) == {prompt_tokens}


@pytest.mark.parametrize("scorer", ["inspect_ai/model_graded_qa", "match"])
def test_inspect_graders_of_the_same_model_are_no_part_of_a_sample(tmp_path, scorer):
    asked, said = {"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}
    header = {"eval": {"model": "m", "scorers": [{"name": scorer}]}}

    def tokens(name, messages, calls, made=100, input="?"):
        change = {
            "input": input,
            "messages": messages,
            "output": {"usage": usage(made)},
            "model_usage": calls,
        }
        path = inspect_log(tmp_path / f"{name}.json", *[change] * 9, header=header)
        found, recording = read(path, tmp_path / name)
        (made,) = set(recording.samples["output_tokens"])
        return made, list(found.files[0].skipped.counts)

    both, beside = {"m": usage(350)}, ["uses of the model beside the answer, such as for grading"]
    assert tokens("alone", [asked, said], {"m": usage(100)}) == (100, [])
    assert tokens("graded", [asked, said], both) == (100, beside)
    shots = [asked, said, asked]
    assert tokens("shots", [*shots, said], both, input=shots) == (100, beside)
    other = both | {"judge": usage(50)}
    assert tokens("turns of an agent", [asked, said, asked, said], other) == (350, [])
    graded = scorer != "match"
    hold = (None, ["counts of tokens that hold a grader's too"]) if graded else (350, [])
    assert tokens("turns and a grader", [asked, said, asked, said], both) == hold


@pytest.mark.parametrize("reason", ["unknown", "", None])
def test_reasons_that_tell_nothing_hide_no_cut_sample(tmp_path, reason):
    rows = [
        {"problem_id": f"p{at}", "sample_index": 0, "correct": True, "output_tokens": made,
         "finish_reason": reason} for at, made in enumerate([2048] * 4 + [500])
    ]  # fmt: skip
    rows.append(rows[-1] | {"problem_id": "r", "finish_reason": "unknown", "group": 1})  # no usual
    path = lines(tmp_path / "o.jsonl", *rows)
    found, _ = read(path, tmp_path / "r")
    assert any("4 samples have 2,048 output tokens, the most" in note for note in found.notes)
    _, recording = read(path, tmp_path / "cut", given=Given(max_tokens=2048))
    assert recording.samples["finish_reason"].to_list() == ["length"] * 4 + [None] * 2
    choice = {"message": {"role": "assistant", "content": "it"}, "stop_reason": reason}
    log = inspect_log(tmp_path / "l.json", *[{"output": {"choices": [choice]}}] * 9)
    _, recording = read(log, tmp_path / "l")
    assert recording.samples["finish_reason"].null_count() == 9


def test_inspect_values_of_right_and_wrong(tmp_path):
    values = ["C", "I", "N", True, False, 1, 0, 1.0, "correct"]
    changes = [{"scores": {"match": {"value": value, "answer": "a"}}} for value in values]
    _, recording = read(inspect_log(tmp_path / "l.json", *changes), tmp_path / "r")
    right = [True, False, False, True, False, True, False, True, True]
    assert recording.samples["correct"].to_list() == right


def test_inspect_failures_and_absent_problems(tmp_path):
    failed = {"error": {"message": "secret"}, "scores": None}
    header = {"status": "error", "eval": {"model": "m", "dataset": {"sample_ids": ["p", "z"]}}}
    path = inspect_log(tmp_path / "l.json", failed, failed, failed, header=header)
    found, recording = read(path, tmp_path / "r")
    assert "the evaluation's status is 'error'" in found.files[0].facts.notes
    assert "problems without any sample: 1" in found.files[0].facts.notes
    (run,) = summarise(recording)
    assert (run.problems, run.problems_failed) == (2, 1)
    assert recording.samples["error"].to_list()[:3] == ["the sample failed"] * 3


def test_an_evaluation_that_is_still_going(tmp_path):
    path = tmp_path / "log.eval"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("_journal/start.json", json.dumps(HEADER | {"status": "started"}))
        file.writestr("samples/p_epoch_1.json", json.dumps(inspect_samples(SAMPLES)[0]))
        inside = "samples/a/b_epoch_1"  # a sample whose events are entries of their own
        file.writestr(f"{inside}/sample.json", json.dumps(inspect_samples(SAMPLES)[0] | {"id": 7}))
        file.writestr(f"{inside}/events/0.json", "[]")
    found, _ = read(path, tmp_path / "r")
    assert (found.facts["samples"], found.files[0].skipped.counts) == (2, {})
    assert found.files[0].facts.notes[0] == "the evaluation's status is 'started'"


def test_zips_that_are_no_logs(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("notes.txt", "hello")
    assert "no inspect_ai log: it has no header.json" in refused(path, tmp_path / "r")
    whole = inspect_zip(path, SAMPLES).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "its zip directory cannot be read" in refused(path, tmp_path / "r")


def test_damaged_entries_cost_themselves(tmp_path):
    raw = bytearray((DATA / "inspect_sums.eval").read_bytes())
    place = raw.index(b"samples/2_epoch_1.json") + 60
    raw[place : place + 40] = b"\xff" * 40
    path = tmp_path / "log.eval"
    path.write_bytes(raw)
    found, _ = read(path, tmp_path / "r")
    assert found.facts["samples"] == 6  # two of each problem
    assert found.files[0].skipped.counts == {"entries with damaged data": 1}


def test_a_zip_bomb_meets_the_limits(tmp_path, monkeypatch):
    path = tmp_path / "log.eval"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("header.json", json.dumps(HEADER))
        file.writestr("samples/p_epoch_1.json", json.dumps(inspect_samples(SAMPLES)[0]))
        file.writestr("samples/q_epoch_1.json", b" " * (20 << 20))
    assert path.stat().st_size < 100_000
    with pytest.raises(OutcomesError, match="holds more than 4,194,304 bytes"):
        import_outcomes([path], tmp_path / "r", choices=Choices(limit_bytes=1 << 22))
    monkeypatch.setattr(source, "ENTRY_BYTES", 1 << 20)
    found, _ = read(path, tmp_path / "r")
    assert found.files[0].skipped.counts == {"entries of more than 1 MiB": 1}


def voted(path, answers, **more):
    """Write problems whose samples have these answers, that of the last one being right."""
    rows = [
        {"problem_id": f"p{place}", "sample_index": index, "answer": answer,
         "correct": answer == f"right{place}"} | more
        for place, own in enumerate(answers)
        for index, answer in enumerate(own)
    ]  # fmt: skip
    lines(path, *rows)
    return rows


@pytest.mark.parametrize("text", ["NO_ANSWER", "", "[invalid]", "N/A"])
def test_an_answer_that_stands_for_none_is_asked_about(tmp_path, text):
    answers = [[f"right{i}", text, text] for i in range(2)]
    voted(tmp_path / "a.jsonl", answers)
    found = import_outcomes([tmp_path / "a.jsonl"], tmp_path / "a")
    (note,) = [note for note in found.notes if "--no-answer" in note]
    assert "4 samples of 2 problems, and never right" in note
    assert note.endswith(f"--no-answer {shlex.quote(text)}")
    assert Recording.open(tmp_path / "a").problems["correct"].to_list() == [False, False]
    voted(tmp_path / "a.jsonl", [[each, f" {text}", text] for each, *_ in answers])
    given = Given(no_answer=(f"{text} ",))  # the space around it is no part of an answer
    found = import_outcomes([tmp_path / "a.jsonl"], tmp_path / "b", given=given)
    assert not any("It votes" in note for note in found.notes)
    assert found.facts["answered"] == 2
    assert Recording.open(tmp_path / "b").problems["correct"].to_list() == [True, True]


def test_a_common_answer_that_is_never_right_is_asked_about_without_its_text(tmp_path):
    answers = [[f"right{i}", "secret" if i < 5 else f"wrong{i}"] for i in range(40)]
    voted(tmp_path / "a.jsonl", answers)
    found = import_outcomes([tmp_path / "a.jsonl"], tmp_path / "a")
    (note,) = [note for note in found.notes if "--no-answer" in note]
    assert "Open a.jsonl at line 2 (5 samples of 5 problems)." in note
    assert note.startswith("an answer is common and never right.")
    assert "secret" not in note
    answers[0].append("other")
    voted(tmp_path / "c.jsonl", [[*own, "hidden"] for own in answers])
    found = import_outcomes([tmp_path / "c.jsonl"], tmp_path / "c")
    (note,) = [note for note in found.notes if "--no-answer" in note]
    assert note.startswith("2 answers are common and never right.") and "line 4 (40" in note
    answers[0].pop()
    # Right once, it is an answer like others; in few problems it is a mistake like others.
    for place, changed in enumerate(("right", "few")):
        rows = [list(own) for own in answers]
        if changed == "few":
            rows[0][1] = rows[1][1] = "other"
        made = voted(tmp_path / "b.jsonl", rows)
        if changed == "right":
            made[1]["correct"] = True
            lines(tmp_path / "b.jsonl", *made)
        found = import_outcomes([tmp_path / "b.jsonl"], tmp_path / f"b{place}")
        assert not any("--no-answer" in note for note in found.notes)


def test_letters_of_a_choice_are_no_suspects(tmp_path):
    rng = random.Random(3)
    rows = [
        {"problem_id": f"p{i}", "sample_index": k, "answer": rng.choice("ABCD"),
         "expected": "ABCD"[i % 4]}
        for i in range(60) for k in range(4)
    ]  # fmt: skip
    judged = (row | {"correct": row["answer"] == row["expected"]} for row in rows)
    found = import_outcomes([lines(tmp_path / "a.jsonl", *judged)], tmp_path / "a")
    assert not any("--no-answer" in note for note in found.notes)


def test_latencies_that_some_samples_lack_are_told(tmp_path):
    rows = voted(tmp_path / "a.jsonl", [[f"right{i}"] * 4 for i in range(6)], latency_s=2.0)
    del rows[3]["latency_s"], rows[9]["latency_s"]
    found = import_outcomes([lines(tmp_path / "a.jsonl", *rows)], tmp_path / "a")
    assert any(note.startswith("samples without latency_s: 2 of 24.") for note in found.notes)
    (run,) = summarise(Recording.open(tmp_path / "a"))
    told = evaluate(run).notes
    assert any("latency is not known: 2 of 24, so rules that stop early" in note for note in told)


def test_why_accuracy_is_not_the_vote_of_all_is_said_in_words(tmp_path):
    voted(tmp_path / "a.jsonl", [[f"right{i}", "wrong"] for i in range(6)])
    import_outcomes([tmp_path / "a.jsonl"], tmp_path / "a", given=Given(no_answer=("",)))
    (run,) = summarise(Recording.open(tmp_path / "a"))
    assert run.accuracy.value == 1.0  # the first sample's answer wins a tie
    told = " ".join(" ".join(show_lines([run])).split())
    assert "accuracy 1.000 gives a tie to the answer of the lowest sample number" in told
    assert "maj@2 0.500 shares it" in told
    voted(tmp_path / "b.jsonl", [[f"right{i}", "wrong", "wrong"] for i in range(6)])
    import_outcomes([tmp_path / "b.jsonl"], tmp_path / "b")
    (run,) = summarise(Recording.open(tmp_path / "b"))
    assert "gives a tie" not in " ".join(show_lines([run]))
    marked = [(f"p{p}", i, "5", i < 2) for p in range(6) for i in range(3)]
    _, recording = read(outcome_lines(tmp_path / "c.jsonl", marked), tmp_path / "c")
    told = " ".join(" ".join(show_lines(summarise(recording))).split())
    assert "gives a tie" not in told
    assert "answers are marked both right and wrong. accuracy 1.000 goes by most" in told
    assert "maj@3 0.667 by the share" in told


def outcome_lines(path, made, **more):
    """Write plain outcomes of (problem, index, answer, right) with what `more` gives."""
    return lines(
        path,
        *(
            {
                "problem_id": problem, "sample_index": index, "answer": answer, "correct": right,
                "expected": f"of {problem}", "output_tokens": 100 + index, **more,
            }
            for problem, index, answer, right in made
        ),
    )  # fmt: skip


def drawn(problems, samples, seed=0):
    rng = random.Random(seed)
    return [
        (f"p{p}", i, str(rng.randrange(3)), rng.random() < 0.5)
        for p in range(problems)
        for i in range(samples if isinstance(samples, int) else samples[p])
    ]


@pytest.mark.parametrize(
    ("sizes", "n", "kept"),
    [
        ([16] * 29 + [17], 16, 480),
        ([17] + [16] * 29, 16, 480),
        ([8] * 16 + [6] * 14, 6, 180),
        ([16] * 29 + [3], 16, 467),
    ],
)
def test_n_is_what_nearly_all_problems_have(tmp_path, sizes, n, kept):
    path = outcome_lines(tmp_path / "o.jsonl", drawn(30, sizes))
    found, recording = read(path, tmp_path / "r")
    (policy,) = recording.manifest.policies.values()
    assert (policy.n, found.facts["samples"]) == (n, kept)
    told = [each for each in found.notes if "so that the first" in each]
    assert len(told) == (sum(sizes) > kept)
    (run,) = summarise(recording)
    assert max(each.n for each in run.policies) == n


def test_failed_samples_make_room_for_the_others(tmp_path):
    samples = inspect_samples([(f"p{p}", i, "1", True) for p in range(3) for i in range(4)])
    for place in (0, 5, 10):  # one of each problem
        samples[place] |= {"error": {"message": "secret"}, "scores": None}
    path = tmp_path / "l.json"
    path.write_text(json.dumps(HEADER | {"samples": samples}))
    found, recording = read(path, tmp_path / "r")
    (run,) = summarise(recording)
    assert run.policy.n == 3 and recording.samples["error"].null_count() == 9
    assert any("samples that failed: 3" in note for note in found.notes)
    assert not run.policies and "3 failed" in " ".join(run.notes)  # as --policies and advise say


def test_files_of_the_same_problems_are_joined(tmp_path):
    seeds = [outcome_lines(tmp_path / f"seed{seed}.jsonl", drawn(10, 1, seed)) for seed in range(8)]
    found = import_outcomes(seeds, tmp_path / "r")
    recording = Recording.open(tmp_path / "r")
    assert (found.facts["problems"], found.facts["samples"]) == (10, 80)
    assert recording.samples["sample_index"].to_list() == [*range(8)] * 10
    assert recording.problems["problem_id"][0] == "p0" and recording.problems["group"][0] is None
    assert "files of the same problems" in found.notes[1] and "--other-problems" in found.notes[1]
    apart = Choices(same_problems=False)
    found = import_outcomes(seeds, tmp_path / "apart", choices=apart)
    assert (found.facts["problems"], found.facts["samples"]) == (80, 80)
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(seeds[0].read_bytes())
    with pytest.raises(UsageError, match="hold the same"):
        import_outcomes([seeds[0], copy], tmp_path / "c")


def test_files_that_may_be_of_the_same_problems_are_asked_about(tmp_path):
    one, two = (
        outcome_lines(tmp_path / f"{name}.jsonl", drawn(5, 2, seed), expected=None)
        for seed, name in enumerate(("one", "two"))
    )
    found = import_outcomes([one, two], tmp_path / "r")
    assert found.facts["problems"] == 10 and "--same-problems" in found.notes[1]
    found = import_outcomes([one, two], tmp_path / "s", choices=Choices(same_problems=True))
    assert (found.facts["problems"], found.facts["samples"]) == (5, 20)
    other = tmp_path / "other.jsonl"  # a larger set
    other.write_text(outcome_lines(other, drawn(8, 2, 3)).read_text().replace("of p", "is p"))
    told = outcome_lines(tmp_path / "told.jsonl", drawn(5, 2, 4))
    found = import_outcomes([other, told], tmp_path / "t")
    assert found.facts["problems"] == 13 and not any(
        "the same names" in note for note in found.notes
    )


def test_names_of_sets_are_the_same_for_another_model(tmp_path):
    kept = []
    for model in ("qwen3-8b", "r1-32b"):
        paths = [
            outcome_lines(
                tmp_path / f"{model}_{name}_2026-01-02.jsonl", drawn(3, 2), expected=f"{name} 1"
            )
            for name in ("aime24", "gpqa")
        ]
        import_outcomes(paths, tmp_path / model)
        kept.append(Recording.open(tmp_path / model))
    assert kept[0].problems["problem_id"].to_list() == kept[1].problems["problem_id"].to_list()
    assert kept[0].problems["problem_id"][0] == "aime24/p0"
    assert set(kept[0].problems["group"]) == {"aime24", "gpqa"}
    paths = [lines(tmp_path / f"samples_{task}_x.jsonl", lm_eval_row(doc_hash=task))
             for task in ("gsm8k", "math")]  # fmt: skip
    import_outcomes(paths, tmp_path / "tasks")
    assert set(Recording.open(tmp_path / "tasks").problems["group"]) == {"gsm8k_x", "math_x"}


def test_whole_completions_are_no_answers(tmp_path):
    made = [
        (f"p{p}", i, f"Let me think of {p} and {i}. " * 8 + str(i % 2), i % 2 == 0)
        for p in range(6)
        for i in range(4)
    ]
    found, recording = read(outcome_lines(tmp_path / "o.jsonl", made), tmp_path / "r")
    assert found.facts["answered"] == 0
    assert any("whole completions" in note and "final answer" in note for note in found.notes)
    (run,) = summarise(recording)
    assert {each.n for each in run.policies if each.method == "majority"} == {1}
    long = [(p, i, "x" * 150 + str(int(right)), right) for p, i, _, right in made]
    found, _ = read(outcome_lines(tmp_path / "long.jsonl", long), tmp_path / "long")
    assert found.facts["answered"] == 24  # the same answer again and again


def test_votes_are_the_same_with_and_without_texts(tmp_path):
    made = [("p", i, *each) for i, each in enumerate(
        [("42", True), ("42", False), ("42", None), ("7", False), ("7", False), ("8", True),
         ("9", True), ("9", None)])]  # fmt: skip
    path = outcome_lines(tmp_path / "o.jsonl", made)
    votes = []
    for name, keep in (("r", False), ("t", True)):
        _, recording = read(path, tmp_path / name, record_text=keep)
        answers = recording.samples["answer"].to_list()
        votes.append([answers.index(each) for each in answers])
    assert votes[0] == votes[1] == [0, 0, 0, 3, 3, 5, 5, 5]
    unsaid = [("q", i, *each) for i, each in enumerate(
        [(None, True), ("0", False), ("0", False), (None, True), ("1", False)])]  # fmt: skip
    orders = [  # choices in another order for each sample
        {"problem_id": "r", "sample_index": i, "answer": answer, "correct": right, "expected": own}
        for i, (answer, right, own) in enumerate(
            [("A", True, "A"), ("B", True, "B"), ("A", False, "B"), ("B", False, "A"),
             ("A", False, "C"), ("D", False, "B")])
    ]  # fmt: skip
    for at, rows in enumerate((outcome_lines(path, unsaid), lines(tmp_path / "s.jsonl", *orders))):
        kinds = []
        for keep in (False, True):
            _, recording = read(rows, tmp_path / f"{at} {keep}", record_text=keep)
            answers = recording.samples["answer"].to_list()
            kinds.append([answers.index(each) for each in answers])
        assert kinds[0] == kinds[1]
        assert kinds[0] == ([0, 1, 1, 0, 4], [0, 0, 2, 3, 2, 5])[at]


def test_prompts_of_no_token_are_untold(tmp_path):
    path = lines(tmp_path / "o.jsonl", GOOD | {"prompt_tokens": 0})
    assert read(path, tmp_path / "r")[1].samples["prompt_tokens"].to_list() == [None]
    _, recording = read(path, tmp_path / "g", given=Given(prompt_tokens=9))
    assert recording.samples["prompt_tokens"].to_list() == [9]


def test_options_of_another_format_are_refused(tmp_path):
    with pytest.raises(UsageError, match="--score chooses a metric or scorer, and outcomes JSONL"):
        read(lines(tmp_path / "o.jsonl", GOOD), tmp_path / "r", choices=Choices(score="nosuch"))
    with pytest.raises(UsageError, match="--prompt-tokens n: inspect_ai log has no such name"):
        read(inspect_log(tmp_path / "l.json"), tmp_path / "r", choices=Choices(prompt_column="n"))


def test_an_expected_answer_that_took_too_long_judges_nothing():
    from tests.profiler.workload.test_workload import Slow
    from tui.verbs.import_export import _judge

    judge = _judge(Slow())
    assert judge("10", "endless", "") == ("10", None)
    assert judge("endless", "endless", "") == ("endless", True)
    assert judge("endless", "10", "") == ("endless", False)


def test_answers_that_took_too_long_are_noted(tmp_path):
    choices = Choices(judge=lambda *_: ("1", True), verifier="math", too_long=lambda: 3)
    found, _ = read(inspect_log(tmp_path / "l.json"), tmp_path / "r", choices=choices)
    assert any("answers that took too long to check: 3" in note for note in found.notes)


def test_a_sample_of_max_tokens_was_cut(tmp_path):
    rows = [
        {**GOOD, "sample_index": i, "output_tokens": tokens, "answer": "1", **more}
        for i, (tokens, more) in enumerate(
            [(4000, {}), (4096, {}), (4096, {"finish_reason": "stop"}), (9, {})]
        )
    ]
    path = lines(tmp_path / "o.jsonl", *rows)
    _, recording = read(path, tmp_path / "r", given=Given(max_tokens=4096))
    assert recording.samples["finish_reason"].to_list() == [None, "length", "stop", None]
    rows = [{**GOOD, "sample_index": i, "output_tokens": 4096} for i in range(4)]
    found, _ = read(lines(tmp_path / "p.jsonl", *rows), tmp_path / "s")
    assert any("--max-tokens 4096" in note for note in found.notes)
    rows = [{**GOOD, "sample_index": i, "finish_reason": "max_tokens"} for i in range(2)]
    rows[1]["problem_id"] = 7  # which is read the other way
    _, recording = read(lines(tmp_path / "q.jsonl", *rows), tmp_path / "t")
    assert recording.samples["finish_reason"].to_list() == ["length", "length"]


def test_a_first_line_longer_than_the_head_is_recognised(tmp_path):
    row = {"problem_id": "p", "answer": "x" * 70_000, "sample_index": 0, "correct": True}
    assert read(lines(tmp_path / "o.jsonl", row), tmp_path / "r")[0].facts["samples"] == 1
    row = {"doc_id": 0, "doc": None} | lm_eval_row(doc={"text": "x" * 70_000})
    assert read(lines(tmp_path / "s.jsonl", row), tmp_path / "s")[0].facts["judged"]


def test_do_sample_false_does_not_tell_the_temperature(tmp_path):
    for place, (settings, given, known, told) in enumerate([
        ({"do_sample": False}, None, 0.0, 0),
        ({"do_sample": False, "temperature": 0.0}, None, 0.0, 0),
        ({"do_sample": False, "temperature": 0.6}, None, None, 1),
        ({"do_sample": False, "temperature": 0.6}, 0.6, 0.6, 0),
        ({"do_sample": True, "temperature": 0.6}, None, 0.6, 0),
    ]):  # fmt: skip
        row = lm_eval_row(arguments=[["question", settings]])
        path = lines(tmp_path / "s.jsonl", row, row | {"doc_id": 1})
        found, recording = read(path, tmp_path / f"{place}", given=Given(temperature=given))
        (policy,) = recording.manifest.policies.values()
        assert policy.temperature == known
        assert sum("--temperature" in note for note in found.notes) == told


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vllm/Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("hf/Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("openai-api/local/Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("openai/gpt-oss-20b", "openai/gpt-oss-20b"),
        ("ollama/hf/Qwen3", "ollama/hf/Qwen3"),
    ],
)
def test_inspect_models_have_no_provider(tmp_path, name, expected):
    usage = {name: {"input_tokens": 3, "output_tokens": 5, "reasoning_tokens": 9}, "judge": {}}
    header = {"eval": {"model": name}}
    path = inspect_log(tmp_path / "l.json", *[{"model_usage": usage}] * 9, header=header)
    found, recording = read(path, tmp_path / "r")
    assert next(iter(recording.manifest.engines.values())).model == expected
    assert set(recording.samples["output_tokens"]) == {5}
    assert recording.samples["think_tokens"].null_count() == 9
    assert found.files[0].skipped.counts == {
        "values of reasoning_tokens that are above output_tokens": 9
    }


def test_an_expected_answer_that_no_verifier_reads_judges_nothing(tmp_path):
    from profiler.workload.verifiers import verifier
    from tui.verbs.import_export import _judge

    assert _judge(verifier("numeric"))("The answer is 5", "x^2+1", "") == ("5", None)
    assert _judge(verifier("choice"))("The answer is (J).", "J", "") == ("J", True)
    listed = "".join(f"\n{letter}. it" for letter in "ABCDEFG")
    for expected in ("G", "B"):  # which judges, and changes no answer
        assert _judge(verifier("choice"))("Only (G) remains", expected, listed) == (
            "G",
            expected == "G",
        )
        assert _judge(verifier("choice"))("Only (G) remains", expected, "") == (None, False)
    assert _judge(verifier("choice"))("The answer is (B).", "Paris", "") == ("B", None)
    path = inspect_log(tmp_path / "l.json", *[{"target": "x^2+1"}] * 9)
    choices = Choices(judge=_judge(verifier("numeric")), verifier="numeric")
    found, _ = read(path, tmp_path / "r", choices=choices)
    assert found.facts["judged"] == 0
    assert any("expected answer the verifier cannot read" in note for note in found.notes)
