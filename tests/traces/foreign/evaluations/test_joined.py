"""Several files, failed samples and unequal numbers: what counts together, and what is asked."""

import gzip
import json
import random

import pytest

from advisor.accuracy.counterfactual import evaluate
from advisor.evidence.runs import read_runs
from benchmarks.made.foreign_files import HEADER, inspect_samples
from traces.errors import RecordingError, UsageError
from traces.foreign.evaluations.importer import import_outcomes
from traces.foreign.evaluations.reader import Choices
from traces.recording.reader import Recording
from traces.summary.run import summarise


def written(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def plain(problems, samples, seed=0, **more):
    """Rows of plain outcomes with lengths that no two samples share but by chance."""
    rng = random.Random(seed)
    return [
        {
            "problem_id": f"p{p}", "sample_index": i, "answer": str(rng.randrange(4)),
            "correct": rng.random() < 0.5, "output_tokens": rng.randrange(200, 9000),
            "expected": f"of p{p}", **more,
        }
        for p in range(problems)
        for i in range(samples if isinstance(samples, int) else samples[p])
    ]  # fmt: skip


def documents(problems, seed=0, **more):
    """Rows of lm-eval; what is a function is called with the document's number."""
    rng = random.Random(seed)
    for number in range(problems):
        answer = str(rng.randrange(4))
        text = "because " * rng.randrange(50, 900) + answer
        row = {
            "doc_id": number, "target": "1", "resps": [[text]], "filtered_resps": [answer],
            "filter": "none", "metrics": ["exact_match"], "exact_match": float(answer == "1"),
            "doc_hash": f"d{number}", "arguments": {"gen_args_0": {"arg_0": "q", "arg_1": {}}},
        }  # fmt: skip
        yield row | {name: each(number) if callable(each) else each for name, each in more.items()}


def log(path, samples, config=None, task="sums"):
    header = {"eval": {"task": task, "model": "m"}, "plan": {"config": config or {}}}
    path.write_text(json.dumps(HEADER | header | {"samples": samples}))
    return path


def drawn(problems, epochs, seed=0):
    rng = random.Random(seed)
    made = [
        (f"p{p}", i, str(rng.randrange(4)), rng.random() < 0.5)
        for p in range(problems)
        for i in range(epochs)
    ]
    samples = inspect_samples(made)
    for each in samples:
        each["model_usage"]["m"]["output_tokens"] = rng.randrange(200, 9000)
    return samples


def imported(tmp_path, *paths, **options):
    folder = tmp_path / f"r{len(list(tmp_path.iterdir()))}"
    return import_outcomes(paths, folder, **options), Recording.open(folder)


def asked(found):
    """The note that asks, which names both ways out, and what it gives as the reason."""
    (note,) = [note for note in found.notes if "have problems of the same names" in note]
    assert "--same-problems" in note and "import each by itself" in note
    return note


def votes(tmp_path, made):
    rows = [
        {"problem_id": "p", "sample_index": i, "answer": answer, "correct": right, "expected": key}
        for i, (answer, right, key) in enumerate(made)
    ]
    _, recording = imported(tmp_path, written(tmp_path / "v.jsonl", rows))
    (run,) = summarise(recording)
    curve = {each.n: each.accuracy.value for each in run.policies if each.method == "majority"}
    return recording.samples["answer"].to_list(), curve[len(made)]


def test_right_answers_are_one_class_where_choices_are_in_another_order_each_time(tmp_path):
    made = [("A", True, "A"), ("B", True, "B"), ("A", False, "C"), ("C", False, "A")]
    assert votes(tmp_path, made) == (["0", "0", "1", "2"], 1.0)


def test_one_misjudged_sample_does_not_split_the_right_votes(tmp_path):
    made = [("1/2", True, "x")] * 3 + [("0.5", True, "x")] * 2 + [("0.5", False, "x")]
    answers, accuracy = votes(tmp_path, made + [("2", False, "x")] * 4)
    assert answers == ["0"] * 6 + ["1"] * 4
    assert accuracy == pytest.approx(5 / 6)  # each sample counts as it is marked


def test_failed_samples_with_and_without_usage_are_left_out_of_the_tests(tmp_path):
    samples = drawn(30, 8)
    for place, usage in ((0, True), (9, True), (10, False)):
        samples[place] |= {"error": {"message": "x"}, "scores": None}
        samples[place] |= {} if usage else {"model_usage": None, "output": None}
    found, recording = imported(tmp_path, log(tmp_path / "l.json", samples))
    (policy,) = recording.manifest.policies.values()
    assert policy.n == 7 and found.facts["problems"] == 30


def test_tasks_of_other_names_are_joined_where_prompts_are_the_same(tmp_path):
    def seeds(folder, **more):
        return [
            written(tmp_path / folder / f"samples_aime24_seed{s}.jsonl", documents(30, s, **more))
            for s in range(3)
        ]

    found, _ = imported(tmp_path, *seeds("told", prompt_hash=lambda number: f"h{number}"))
    assert (found.facts["problems"], found.facts["samples"]) == (30, 90)
    found, _ = imported(tmp_path, *seeds("untold"))
    assert found.facts["problems"] == 90 and "their tasks have different names" in asked(found)


def test_the_same_names_with_other_expected_answers_are_asked_about(tmp_path):
    paths = []
    for seed in range(2):
        rng = random.Random(seed)
        rows = [row | {"expected": rng.choice("ABCD")} for row in plain(40, 1, seed)]
        paths.append(written(tmp_path / f"seed{seed}.jsonl", rows))
    found, _ = imported(tmp_path, *paths)
    assert found.facts["problems"] == 80 and "expected answers differ" in asked(found)
    found, _ = imported(tmp_path, *paths, choices=Choices(same_problems=True))
    assert found.facts["problems"] == 40
    assert any("different expected answers, or some none: 3" in note for note in found.notes)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ([{"temperature": 0.6}, {"temperature": 1.0}], "temperature"),
        ([{"reasoning_effort": "low"}, {"reasoning_effort": "high"}], "reasoning effort"),
        ([{"top_p": 0.9}, {"max_tokens": 900, "top_p": 0.95}], "top_p"),
        ([{"temperature": 0.6}, {"max_tokens": 900}], None),
    ],
)
def test_other_settings_keep_files_apart(tmp_path, settings, word):
    paths = [log(tmp_path / f"{i}.json", drawn(9, 2, i), each) for i, each in enumerate(settings)]
    found, _ = imported(tmp_path, *paths)
    assert found.facts["problems"] == (18 if word else 9)
    if word:
        assert f"they differ in {word}." in asked(found)


def test_other_prompts_keep_files_apart_and_pair_models(tmp_path):
    recordings, paths = [], []
    for shots in (0, 8):
        rows = list(documents(20, shots, prompt_hash=lambda number, k=shots: f"{k} {number}"))
        paths.append(written(tmp_path / f"samples_gsm8k_2026-01-0{shots + 1}T10.jsonl", rows))
        recordings.append(imported(tmp_path, paths[-1])[1])
    found, _ = imported(tmp_path, *paths)
    assert found.facts["problems"] == 40 and "they differ in prompts." in asked(found)
    one, other = (each.manifest.workload.hash for each in recordings)
    assert one == other


def test_samples_that_a_retry_has_again_count_once(tmp_path):
    first = [each | {"uuid": f"u{i}"} for i, each in enumerate(drawn(10, 2))]
    again = first[:12] + [each | {"uuid": f"v{i}"} for i, each in enumerate(drawn(10, 2, 1)[12:])]
    for each in first[12:]:
        each |= {"error": {"message": "x"}, "scores": None}
    found, recording = imported(
        tmp_path, log(tmp_path / "a.json", first), log(tmp_path / "b.json", again)
    )
    assert any("drawn again, left out: 20" in note for note in found.notes)
    assert (found.facts["problems"], found.facts["samples"]) == (10, 20)
    assert recording.samples["error"].null_count() == 20
    assert recording.manifest.provenance["imported"]["failed_problems"] == 0


def test_files_in_folders_that_lm_eval_names_after_models_are_kept_apart(tmp_path):
    same = {"prompt_hash": lambda number: f"h{number}"}
    paths = [
        written(tmp_path / f"org__{model}" / f"samples_a_2026-01-0{seed}T10.jsonl",
                documents(20, seed, **same))
        for seed, model in enumerate(("small", "large"), 1)
    ]  # fmt: skip
    assert "they differ in the model's folder." in asked(imported(tmp_path, *paths)[0])
    again = paths[1].rename(paths[1].parent / paths[0].name)
    with pytest.raises(UsageError, match=r"folder. Import each by itself, or with --same-problems"):
        import_outcomes([paths[0], again], tmp_path / "r")


@pytest.mark.parametrize("tokens", [True, False])
def test_a_file_that_has_the_samples_of_another_is_refused(tmp_path, tokens):
    rows = [row if tokens else row | {"output_tokens": None} for row in plain(30, 4)]
    whole = written(tmp_path / "all.jsonl", rows)
    part = written(tmp_path / "part.jsonl", rows[:60])
    packed = tmp_path / "all.jsonl.gz"
    packed.write_bytes(gzip.compress(whole.read_bytes()))
    for other in (part, packed):
        with pytest.raises(UsageError, match="nearly all samples of equal number are the same"):
            import_outcomes([whole, other], tmp_path / "r")


def test_draws_that_are_cut_or_short_are_no_copies(tmp_path):
    for name, change in (
        ("cut", {"output_tokens": 9000, "answer": None, "correct": False}),
        ("short", {"output_tokens": 5, "correct": True, "answer": "A"}),
    ):
        paths = [
            written(
                tmp_path / f"{name}{seed}.jsonl",
                [row | (change if i % 20 else {}) for i, row in enumerate(plain(60, 1, seed))],
            )
            for seed in range(2)
        ]
        assert imported(tmp_path, *paths)[0].facts["problems"] == 60


def test_an_expected_answer_that_all_share_tells_nothing(tmp_path):
    paths = [
        written(tmp_path / f"{name}.jsonl", plain(20, 2, seed, expected="pass"))
        for seed, name in enumerate(("humaneval", "mbpp"))
    ]
    found, _ = imported(tmp_path, *paths)
    assert found.facts["problems"] == 40 and "nothing shows" in asked(found)


def test_survivors_of_failed_samples_do_not_stand_for_all(tmp_path):
    for hard, enough in ((15, False), (1, True)):
        samples = drawn(30, 8)
        for place, each in enumerate(samples):
            if place // 8 < hard and place % 8 < 4:
                each |= {"error": {"message": "x"}, "scores": None}
        _, recording = imported(tmp_path, log(tmp_path / "l.json", samples))
        (run,) = summarise(recording)
        if enough:
            assert evaluate(run).outcomes and read_runs(recording).runs
            continue
        for ask in (lambda run=run: evaluate(run), lambda own=recording: read_runs(own)):
            with pytest.raises(RecordingError, match=r"15 failed.*Import outcomes in which they"):
                ask()


def test_unjudged_problems_are_counted_by_advice(tmp_path):
    for unjudged in (1, 6):
        rows = [
            row | {"correct": None} if int(row["problem_id"][1:]) < unjudged else row
            for row in plain(30, 2, prompt_tokens=9)
        ]
        _, recording = imported(tmp_path, written(tmp_path / "o.jsonl", rows))
        if unjudged == 1:
            (note,) = read_runs(recording).notes
            assert "1 problem with samples that are not known to be right or wrong" in note
        else:
            with pytest.raises(RecordingError, match=r"6 of 30 problems.*--verifier math"):
                read_runs(recording)


def test_questions_that_stand_in_a_file_again_are_told(tmp_path):
    rows = documents(40, prompt_hash=lambda number: f"h{number % 5}")
    found, _ = imported(tmp_path, written(tmp_path / "samples_aime.jsonl", rows))
    assert any("40 problems have only 5 different prompts" in note for note in found.notes)
    rows = documents(40, prompt_hash=lambda number: f"h{number}")
    found, _ = imported(tmp_path, written(tmp_path / "samples_aime.jsonl", rows))
    assert not any("different prompts" in note for note in found.notes)


def test_the_few_problems_that_make_n_small_are_named(tmp_path):
    path = written(tmp_path / "o.jsonl", plain(15, [64] * 14 + [1]))
    found, _ = imported(tmp_path, path)
    assert any("Most have 64, but p14 has 1. Complete these" in note for note in found.notes)


def test_sets_of_unequal_numbers_are_better_imported_by_themselves(tmp_path):
    large = written(tmp_path / "large.jsonl", plain(200, 1))
    small = written(tmp_path / "small.jsonl", plain(9, 8, expected="other"))
    apart = Choices(same_problems=False)
    found, _ = imported(tmp_path, large, small, choices=apart)
    assert any("import each set by itself" in note for note in found.notes)


def test_joined_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    paths = [written(tmp_path / f"seed{s}" / "out.jsonl", plain(20, 1, s)) for s in range(2)]
    found, _ = imported(tmp_path, *paths)
    assert "seed0/out.jsonl, seed1/out.jsonl" in found.notes[1]
