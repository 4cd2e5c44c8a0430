import dataclasses
import json

import numpy as np
import pytest

from advisor.evidence.gather import ONE_PROBLEM, gather
from advisor.evidence.pools import find_pools
from advisor.evidence.runs import read_runs
from advisor.search.space import explore
from advisor.step_time.fit import StepTimeModel
from tests.advisor.synthetic import FACTS, GREEDY, NGRAM, START, VOTE16, engine_of, record
from tests.advisor.watched import requests
from tests.traces.synthetic import simulate, write_recording
from traces.errors import RecordingError, UsageError
from traces.foreign.evaluations.importer import import_outcomes
from traces.recording.manifest import ClockReading, Manifest, WorkloadFacts
from traces.recording.reader import Recording, told_apart
from traces.recording.writer import RecordingWriter
from traces.schema.tts.methods import METHODS
from traces.schema.tts.parameters import make_policy

ENGINE = engine_of()


def write(folder, tables, **changes):
    """A recording of one engine and the greedy policy with the given rows."""
    document = Manifest(
        clock_start=ClockReading(monotonic_ns=0, unix_ns=START),
        engines={"e": ENGINE},
        policies={"p": GREEDY},
        models={"small": FACTS["small"]},
        workload=WorkloadFacts(name="sums", hash="sums", problems=2),
        concurrency=1,
    )
    writer = RecordingWriter(folder, dataclasses.replace(document, **changes), period_s=60)
    for table, rows in tables.items():
        for row in rows:
            writer.append(table, row)
    writer.close(complete=True)
    return Recording.open(folder)


def problem(name, **changes):
    row = {
        "problem_id": name, "engine": "e", "policy": "p", "prompt_tokens": 30, "arrival": START,
        "end": START + 10**9, "decided_at": START + 10**9,
    }  # fmt: skip
    return row | changes


def sample(name, **changes):
    row = {
        "problem_id": name, "engine": "e", "policy": "p", "sample_index": 0, "role": "sample",
        "output_tokens": 5, "end": START + 10**9, "answer": "0", "correct": True,
    }  # fmt: skip
    return row | changes


def step(number, **changes):
    row = {
        "engine": "e", "step": number, "wall_ns": 10**6, "prefill_requests": 0,
        "prefill_tokens": 0, "decode_requests": 1, "decode_tokens": 1, "prefill_kv_tokens": 0,
        "decode_kv_tokens": 30 + number, "prefill_query_context": 0,
    }  # fmt: skip
    return row | changes


def test_only_what_ended_is_evidence(tmp_path):
    recording = write(
        tmp_path / "r",
        {
            "problems": [
                problem("whole"),
                problem("in flight", end=None, decided_at=None),
                problem("cut"),
                problem("bare"),
            ],
            "samples": [
                sample("whole"),
                sample("whole", sample_index=1, role="scorer"),
                sample("in flight", end=None),
                sample("cut", cancelled_by="rule"),
            ],
            "steps": [
                step(0),
                step(1, profiled=True, wall_ns=10**9),
                step(2, interval_ns=2 * 10**6),
                step(3, decode_kv_tokens=None),
            ],
        },
    )
    evidence = gather([recording])
    (run,) = evidence.runs
    assert list(run.problems) == ["whole"]
    assert len(run.problems["whole"].samples) == 1
    assert evidence.steps[0].seconds.tolist() == [0.001, 0.002]


def cut_off(folder, lost, whole, **manifest):
    """A recording of problems that a timeout or an error cut off, beside whole ones."""
    rows = [problem(f"lost {i}", **each) for i, each in enumerate(lost)]
    rows += [problem(f"whole {i}") for i in range(whole)]
    samples = [sample(row["problem_id"]) for row in rows]
    return write(folder, {"problems": rows, "samples": samples, "steps": [step(0)]}, **manifest)


def test_what_survives_a_timeout_is_no_evidence(tmp_path):
    slow, broken = {"timed_out": True}, {"error": "lost"}
    with pytest.raises(RecordingError, match="r0, greedy: of 12 problems 8 cut off by the timeout"):
        gather([cut_off(tmp_path / "r0", [slow] * 8, 4)])
    with pytest.raises(RecordingError, match="short ones. Record without --timeout, or with a lon"):
        gather([cut_off(tmp_path / "r1", [slow], 0)])
    with pytest.raises(
        RecordingError, match="r2, greedy: of 20 problems 1 cut .*, 1 with failed samples"
    ):
        gather([cut_off(tmp_path / "r2", [slow, broken], 18)])
    with pytest.raises(
        RecordingError, match="of 4 problems 2 with failed samples, .* unlike them. Record again"
    ):
        gather([cut_off(tmp_path / "r3", [broken] * 2, 2)])
    few = gather([cut_off(tmp_path / "r4", [slow, broken], 38)])
    assert len(few.runs[0].problems) == 38
    told = "left out of r4, greedy: of 40 problems 1 cut off by the timeout, 1 with failed samples"
    assert few.lost == (told,)
    imported = {"imported": {"format": "azure", "files": []}}  # as many failed as the file tells
    recording = cut_off(tmp_path / "r5", [broken] * 2, 2, provenance=imported)
    assert gather([recording]).lost == ()


def test_nothing_to_learn_from_is_said(tmp_path):
    whole = {"problems": [problem("a")], "samples": [sample("a")], "steps": [step(0)]}
    with pytest.raises(RecordingError, match="r0: no engine step"):
        gather([write(tmp_path / "r0", whole | {"steps": []})])
    with pytest.raises(RecordingError, match="r1: no finished problem"):
        gather([write(tmp_path / "r1", whole | {"samples": []})])
    unjudged = whole | {"samples": [sample("a", correct=None)]}
    with pytest.raises(RecordingError, match="r2: no sample is marked"):
        gather([write(tmp_path / "r2", unjudged)])
    with pytest.raises(RecordingError, match="r3: holds no facts of the model small"):
        gather([write(tmp_path / "r3", whole, models={})])
    with pytest.raises(UsageError, match="at least one recording"):
        gather([])


def test_different_workloads_are_refused_by_name(tmp_path):
    ours = record(tmp_path / "ours", ENGINE, GREEDY, problems=4)
    theirs = record(tmp_path / "theirs", ENGINE, GREEDY, problems=4, workload="words")
    with pytest.raises(UsageError, match=r"ours and theirs .*\(sums and words\)"):
        gather([ours, theirs])


def test_problems_of_one_name_are_told_apart(tmp_path):
    def pair(one, **changes):
        facts = [WorkloadFacts(name="demo", **each) for each in (one, one | changes)]
        both = [
            write(tmp_path / f"{changes} {i}", {}, workload=each) for i, each in enumerate(facts)
        ]
        with pytest.raises(UsageError) as error:
            gather(both)
        return str(error.value).partition("problems (")[2].partition(")")[0]

    one = {"hash": "a", "problems": 12, "seed": 1}
    assert pair(one, hash="b", problems=16) == "12 problems of demo and 16 problems of demo"
    assert pair(one, hash="b", seed=2) == (
        "12 problems of demo with seed 1 and 12 problems of demo with seed 2"
    )
    assert pair(one, hash="b") == "12 problems of demo, hash a and 12 problems of demo, hash b"


@pytest.mark.slow
def test_the_space_holds_only_what_was_recorded(recordings):
    space = explore(gather(recordings))
    found = [space.candidate(row) for row in range(len(space))]
    engines = {candidate.engine for candidate in found}
    assert {e.tensor_parallel_size for e in engines if e.model == "small"} == {1}
    assert {e.max_num_seqs for e in engines} == {1, 2, 4, 8, 16, 32}
    assert {e.max_num_batched_tokens for e in engines} == {256, 512}
    assert {e.data_parallel_size for e in engines} == {1, 2, 4, 8}
    large = [c for c in found if c.engine.model == "large"]
    assert {(c.policy.method, c.policy.n) for c in large} == {
        ("greedy", 1),
        *(("majority", n) for n in (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16)),
        *(
            (rule, n)
            for rule in ("agreement", "first_finish")
            for n in (4, 5, 6, 7, 8, 10, 12, 14, 16)
        ),
        *((rule, n) for rule in ("adaptive", "early_stopping") for n in (8, 16)),
        *((p.method, p.n) for p in tables_of(space, "large")),
    }
    # Greedy was never recorded with speculation.
    speculative = [c for c in found if c.engine.speculative == NGRAM]
    assert speculative and all(c.policy.method != "greedy" for c in speculative)
    assert space.dropped["speculation was not recorded with this sampling"] > 0
    ran = [c for c in found if c.recorded]
    assert len(ran) == 6
    for row in (0, len(space) // 2, len(space) - 1):
        assert space.rows_of(found[row].engine, found[row].policy) == [row]


def tables_of(space, model):
    return [each.policy for each in space.routings if each.offered and each.model == model]


def test_an_engine_too_small_for_a_sequence_is_dropped(tmp_path):
    recording = record(tmp_path / "r", ENGINE, GREEDY, problems=6)
    small = dataclasses.replace(ENGINE, num_gpu_blocks=4)
    manifest = dataclasses.replace(
        recording.manifest, engines={ENGINE.key(): small}, models={"small": FACTS["small"]}
    )
    space = explore(gather([dataclasses.replace(recording, manifest=manifest)]))
    assert not len(space)
    assert list(space.dropped) == ["the KV cache is too small for one sequence"]


def test_recordings_of_one_folder_name_are_repeats_of_each_other(tmp_path):
    days = ("mon", "tue")
    recordings = [
        record(tmp_path / day / "live", ENGINE, GREEDY, problems=12, drift=drift, seed=drift > 0)
        for day, drift in zip(days, (0.0, 0.1), strict=True)
    ]
    evidence = gather(recordings)
    assert evidence.recordings == ("mon/live", "tue/live")
    assert {run.recording for run in evidence.runs} == {"mon/live", "tue/live"}
    model = StepTimeModel().fit(evidence.steps)
    law = model.law(ENGINE)
    assert (law.runs, law.repeats) == (2, 2)
    assert sorted(model.errors_.values()) == pytest.approx([-0.1, 0.1], abs=0.02)
    assert [each.name for each in told_apart(recordings[:1])] == ["live"]


def test_votes_that_stop_early_never_mix_the_answers_of_two_runs(tmp_path):
    """Without texts an answer is the number of its class, in the order of a run's own samples."""
    rng = np.random.default_rng(0)

    def run(folder, flip):
        samples = []
        for number in range(20):
            for index in range(4):
                right = bool(rng.random() < 0.75)
                answer = str(int(right == flip))
                samples.append(
                    sample(f"p{number}", sample_index=index, answer=answer, correct=right)
                )
        rows = {"problems": [problem(f"p{number}") for number in range(20)], "samples": samples}
        policy = dataclasses.replace(VOTE16, n=4)
        return write(folder, rows | {"steps": [step(0), step(1)]}, policies={"p": policy})

    one, two = run(tmp_path / "one", True), run(tmp_path / "two", False)
    (pool,) = find_pools(gather([one, two]))
    loads = pool.loads([f"p{number}" for number in range(20)])
    for load in loads:
        judged = {(each.answer, each.correct) for each in load.samples}
        assert len({answer for answer, _ in judged}) == len(judged)
    shared = [{each.answer for each in load.samples if each.correct} for load in loads]
    assert {"0"} in shared and {"1"} in shared  # both runs have a part


def test_outcomes_without_their_answers_have_no_vote_of_several(tmp_path):
    """An import that marks samples alone: one is right as often as it is marked so."""
    rng = np.random.default_rng(4)
    lines = [
        {"problem_id": f"p{i}", "sample_index": k, "correct": bool(rng.random() < 0.6),
         "output_tokens": 50, "prompt_tokens": 20}
        for i in range(20)
        for k in range(4)
    ]  # fmt: skip
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    import_outcomes([tmp_path / "a.jsonl"], tmp_path / "a")
    evidence = gather([Recording.open(tmp_path / "a")], timed=False)
    (pool,) = find_pools(evidence)
    assert [(each.method, each.n) for each in pool.policies] == [("majority", 1)]
    (run,) = evidence.runs
    found = [run.vote_curve(name)[0] for name in run.problems]
    assert np.mean(found) == pytest.approx(np.mean([line["correct"] for line in lines]))
    assert any("without their answers" in told for told in evidence.lost)


@pytest.mark.parametrize("drawn", [True, False])
def test_the_traffic_of_every_watch_is_there_once(tmp_path, drawn):
    """Of traffic that was drawn several times one draw, of every recording and engine."""
    small, large = engine_of(), engine_of(max_num_seqs=64)
    runs = [requests("a", small, ["a.1", "a.2"], drawn=True)] * 3
    runs += [requests("a", large, ["a.3"], drawn=True)] * 3
    runs += [requests("b", small, ["b.1"], drawn=drawn)] * (3 if drawn else 1)
    evidence = dataclasses.replace(
        gather([record(tmp_path / "r", ENGINE, GREEDY, problems=4)]), runs=tuple(runs), cut=()
    )
    (pool,) = find_pools(evidence)
    assert pool.problem_ids == {"a.1", "a.2", "a.3", "b.1"}
    assert [len(each.samples) for each in pool.loads(sorted(pool.problem_ids))] == [1] * 4
    assert len(explore(evidence)) > 0


@pytest.mark.slow
def test_answers_of_different_runs_are_never_pooled(tmp_path):
    """Class numbers mean nothing in another run, so each run votes by itself."""
    from advisor.advice.advisor import Advisor

    one = record(tmp_path / "one", ENGINE, VOTE16, problems=10, seed=1)
    two = record(tmp_path / "two", ENGINE, VOTE16, problems=10, seed=2)

    def accuracy(recordings):
        advisor = Advisor.fit(recordings, draws=40)
        metrics = advisor.metrics(None)
        rows = [i for i, o in enumerate(metrics.replayed) if o.candidate.policy.n == 16]
        return metrics.values("accuracy")[rows[0]]

    assert accuracy([one, two]) == pytest.approx((accuracy([one]) + accuracy([two])) / 2)


def problems_of(folder, problems, *samples, **changes):
    """What is evidence of the problems of a recording of these rows."""
    rows = {"problems": problems, "samples": samples, "steps": [step(0), step(1)]}
    (run,) = gather([write(folder, rows, **changes)]).runs
    return run.problems


def forced(name, **changes):
    return sample(name, sample_index=1, role="forced", parent_sample=0, **changes)


def test_answers_forced_at_a_budget_are_part_of_their_sample(tmp_path):
    found = problems_of(
        tmp_path / "r",
        [problem("a"), problem("b")],
        sample("a", output_tokens=8),
        forced("a", output_tokens=3),
        sample("b", output_tokens=6),
        forced("b", output_tokens=None),  # its length is not known
    )
    lengths = {name: each.samples[0].output_tokens for name, each in found.items()}
    assert lengths == {"a": 11, "b": 6}


def test_a_prompt_is_that_of_the_samples_whatever_an_earlier_recording_says(tmp_path):
    problems = [problem("a", prompt_tokens=2_150), problem("b")]
    samples = sample("a", prompt_tokens=100), sample("b", prompt_tokens=None)
    found = problems_of(tmp_path / "r", problems, *samples)
    assert {name: each.prompt_tokens for name, each in found.items()} == {"a": 100, "b": 30}


def test_drafts_of_a_forced_answer_go_behind_those_of_its_sample(tmp_path):
    rows = (
        sample("a", output_tokens=6, drafted_per_step=[3, 3], accepted_per_step=[2, 1]),
        forced("a", output_tokens=4, drafted_per_step=[3], accepted_per_step=[2]),
    )
    engines = {"e": engine_of(speculative=NGRAM)}
    (found,) = problems_of(tmp_path / "r", [problem("a")], *rows, engines=engines)["a"].samples
    assert found.output_tokens == 10
    assert found.advance.sum() == 9
    assert sorted(found.advance.tolist()) == [1, 2, 3, 3]


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_samples_that_all_ended_are_evidence(method, tmp_path):
    n = 1 if method.name == "greedy" else 4
    policy = make_policy({"method": method.name, "n": n, "temperature": 0.8})
    rows = simulate(problems=3, n=n)
    runs, *_ = read_runs(write_recording(tmp_path / "a", rows, policy=policy))
    assert [run.policy for run in runs] == [policy] * method.all_samples_end


def test_one_problem_tells_nothing_of_others(tmp_path):
    for problems, notes in ((1, (ONE_PROBLEM,)), (2, ())):
        recording = record(tmp_path / str(problems), engine_of(), GREEDY, problems=problems)
        assert gather([recording]).lost == notes
        assert gather([recording], judged=False).lost == ()  # a replay is of these alone
