"""The contract of policies on the stub engine, and what each does with its samples."""

import http.server
import json
import random

import polars as pl
import pytest

from benchmarks.made.stub import StubEngine
from profiler.runs.record import record
from profiler.workload.problems import Problem, Workload
from profiler.workload.scorers import Scores
from profiler.workload.verifiers import ByText
from tests.loopback import serving
from tests.profiler.policies.policy_contract import CANCELLING, POLICIES, check, policy_of
from traces.errors import UsageError
from traces.recording.reader import Recording
from traces.schema.tts.parameters import make_policy
from traces.schema.tts.policy import Policy
from traces.summary.run import summarise


def workload(ids=range(7)):
    return Workload(
        name="own",
        problems=[Problem(problem_id=f"p{i}", prompt=f"{i}", expected="right") for i in ids],
        verifier=ByText(),
    )


def by_index(request_id):
    """Two samples of three are right."""
    index = int(request_id.rpartition(".")[2])
    return f"so</think>{'right' if index % 3 < 2 else index % 5}"


def run(name, folder, *, ids=range(7), **engine):
    made = StubEngine(**{"answers": by_index, "lengths": (4, 30)} | engine)
    return made, check(
        name,
        workload(ids),
        made,
        folder,
        tokens_made=lambda recording: made.tokens_made,
        idle=lambda: not made.live,
    )


@pytest.mark.parametrize("name", POLICIES)
def test_contract(name, tmp_path):
    engine, recording = run(name, tmp_path / "r")
    cancelled = recording.samples.filter(pl.col("cancelled_by").is_not_null())
    assert cancelled.height == len(engine.cancelled)
    assert recording.problems["error"].null_count() == 7
    if name in CANCELLING - {"adaptive in turn", "agreement in turn"}:
        assert cancelled.height


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICIES)
def test_ids_do_not_matter(name, tmp_path):
    shuffled = list(range(7))
    random.Random(1).shuffle(shuffled)
    _, plain = run(name, tmp_path / "a")
    _, other = run(name, tmp_path / "b", ids=shuffled)
    orders = [r.problems.sort("arrival")["answer"].to_list() for r in (plain, other)]
    assert orders[0] == orders[1]


@pytest.mark.parametrize("name", POLICIES)
def test_all_samples_failed(name, tmp_path):
    _, recording = run(name, tmp_path / "r", fail="all")
    problems = recording.problems
    assert problems["answer"].null_count() == problems["correct"].null_count() == 7
    assert problems["error"].str.ends_with("samples failed").all()


@pytest.mark.parametrize("name", POLICIES)
def test_nothing_parses(name, tmp_path):
    _, recording = run(name, tmp_path / "r", answers=lambda request_id: "so</think>")
    assert recording.problems["answer"].null_count() == 7
    assert not recording.problems["correct"].any()
    assert recording.problems["error"].null_count() == 7


@pytest.mark.parametrize("name", POLICIES)
def test_timeouts_answer_by_the_votes_there_are(name, tmp_path):
    engine = StubEngine(answers=by_index, lengths=(3, 3), step_s=0.002)
    slow = engine.submit

    def submit(request):
        slow(request)
        if not request.request_id.endswith(".0"):
            engine.live[request.request_id].length = 10_000

    engine.submit = submit
    path = record(workload(range(3)), policy_of(name), engine, tmp_path / "r", timeout_s=0.1)
    recording = Recording.open(path)
    problems = recording.problems
    assert not engine.live and problems["decided_at"].null_count() == 0
    assert set(recording.samples["cancelled_by"].drop_nulls()) <= {"timeout"}
    late = problems.filter(pl.col("timed_out").fill_null(False))
    if name == "beam":
        assert late["correct"].to_list() == [False] * late.height
    elif late.height:
        assert late["correct"].to_list() == [True] * 3
    seconds = (problems["decided_at"] - problems["arrival"]).max() / 1e9
    assert seconds < 15


@pytest.mark.parametrize("name", ["thinking budget", "forced thinking budget"])
def test_a_budget_is_forced_where_the_engine_keeps_none(name, tmp_path):
    engine, recording = run(name, tmp_path / "r", native=False, lengths=(8, 30))
    samples = recording.samples
    heads = samples.filter(role="sample")
    budget = policy_of(name).thinking_token_budget
    cut = heads.filter(pl.col("output_tokens") == budget)
    assert cut.height
    assert cut["answer"].null_count() == 0
    forced = samples.filter(pl.col("role") == "forced", pl.col("think_tokens") == 0)
    answers = forced.select("problem_id", "answer", sample_index="parent_sample")
    joined = cut.join(answers, on=["problem_id", "sample_index"])
    assert (joined["answer"] == joined["answer_right"]).all()
    assert all(request.thinking_token_budget is None for request in engine.submitted)
    assert set(recording.problems["prompt_tokens"]) == set(heads["prompt_tokens"]) == {5}
    if name == "thinking budget":  # every token counts in what the vote took
        (whole,) = summarise(recording)
        (vote,) = (each for each in whole.policies if (each.method, each.n) == ("majority", 3))
        assert vote.tokens_per_problem.value == samples["output_tokens"].sum() / 7


class Scorer:
    """Scores by the answer's number; counts its calls."""

    def __init__(self, score):
        self.score, self.calls = score, []

    def __call__(self, prompt, completions):
        self.calls.append((prompt, completions))
        return Scores(
            values=[self.score(text) for text in completions], prompt_tokens=9, output_tokens=0
        )


@pytest.mark.parametrize("method", ["best_of_n", "weighted", "beam"])
def test_a_scorer_decides_and_its_tokens_count(method, tmp_path):
    scorer = Scorer(lambda text: 9.0 if text.endswith("3") else 0.5)
    policy = make_policy({"method": method, "n": 4, "scorer": "mine", "temperature": 1})
    engine = StubEngine(answers=lambda name: f"so</think>{name.rpartition('.')[2]}")
    path = record(workload(), policy, engine, tmp_path / "r", scorer=scorer, record_text=True)
    recording = Recording.open(path)
    if method != "beam":  # whose last candidates have other numbers
        assert recording.problems["answer"].to_list() == ["3"] * 7
    calls = recording.samples.filter(role="scorer")
    assert calls.height == len(scorer.calls)
    assert calls["prompt_tokens"].to_list() == [9] * calls.height
    assert calls["engine"].null_count() == calls.height
    assert recording.samples.filter(role="sample")["score"].null_count() == 0


@pytest.mark.parametrize("score", [lambda text: float("nan"), lambda text: 1 / 0])
def test_a_scorer_that_fails_leaves_the_plurality(score, tmp_path):
    policy = make_policy({"method": "best_of_n", "n": 3, "scorer": "mine", "temperature": 1})
    engine = StubEngine(answers=lambda name: f"</think>{'b' if name.endswith('0') else 'a'}")
    path = record(
        workload(), policy, engine, tmp_path / "r", scorer=Scorer(score), record_text=True
    )
    recording = Recording.open(path)
    assert recording.problems["answer"].to_list() == ["a"] * 7
    assert recording.samples.filter(role="scorer")["error"].null_count() == 0


class RewardModel(http.server.BaseHTTPRequestHandler):
    """Scores a completion by its last character; fails for problem p3's prompt."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        scores = [float(text[-1]) for text in body["completions"]]
        answer = {"scores": scores, "usage": {"prompt_tokens": 8, "completion_tokens": 0}}
        raw = json.dumps(answer).encode()
        self.send_response(500 if body["prompt"] == "3" else 200)
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


def test_a_reward_model_behind_http(tmp_path):
    with serving(RewardModel) as url:
        scorer = f"{url}/score"
        policy = make_policy({"method": "best_of_n", "n": 3, "scorer": scorer, "temperature": 1})
        engine = StubEngine(answers=lambda name: f"so</think>{name[-1]}")
        path = record(workload(), policy, engine, tmp_path / "r", record_text=True)
    recording = Recording.open(path)
    answers = dict(recording.problems.select("problem_id", "answer").iter_rows())
    assert answers == {f"p{i}": "0" if i == 3 else "2" for i in range(7)}
    calls = recording.samples.filter(role="scorer")
    assert calls["error"].drop_nulls().to_list() == ["HTTP 500"] * 3
    assert calls["prompt_tokens"].drop_nulls().to_list() == [8] * 18


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "early_stopping", "n": 4, "window": 1}, "window must be a whole number of at"),
        ({"method": "early_stopping", "n": 4, "window": 5}, "window must be at most n = 4"),
        ({"method": "early_stopping", "n": 4, "window": "x"}, "window must be a whole number"),
        ({"method": "majority", "n": 4, "window": 2}, "window is for early_stopping"),
        ({"method": "adaptive", "n": 4, "threshold": 1.5}, "at most 1, not 1.5"),
        ({"method": "agreement", "n": 4, "agree": 5}, "agree must be at most n"),
        ({"method": "first_finish", "n": 4, "agree": 2}, "agree is for agreement"),
        ({"method": "first_finish", "n": 4, "first": 5}, "first must be at most n"),
        ({"method": "confidence", "n": 4, "keep": 0}, "keep must be a number"),
        ({"method": "budget_forcing", "extend": 1.5}, "extend must be a whole number"),
        ({"method": "budget_forcing", "word": ""}, "word must be a text"),
        ({"method": "sequential", "revise_prompt": "again"}, "must contain {prompt}"),
        ({"method": "beam", "n": 4, "width": 8}, "width must be at most n"),
        ({"method": "beam", "n": 4, "thinking_token_budget": 8}, "Leave out the budget"),
        ({"method": "best_of_n", "n": 4, "scorer": "ftp://x"}, "http"),
        ({"method": "best_of_n", "n": 4, "scorer": "http://me:secret@x"}, "no password"),
        ({"method": "majority", "nonsense": 4}, "no Policy field 'nonsense'"),
    ],
)
def test_impossible_parameters_are_one_line(fields, message):
    with pytest.raises(UsageError, match=message) as failure:
        make_policy(fields)
    assert "\n" not in str(failure.value)
    assert "secret" not in str(failure.value)


def test_a_scorer_must_be_named_and_given(tmp_path):
    named = make_policy({"method": "best_of_n", "n": 2, "scorer": "mine"})
    for policy, scorer in ((named, None), (Policy(method="majority", n=2), Scorer(len))):
        with pytest.raises(UsageError, match="scorer"):
            record(workload(), policy, StubEngine(), tmp_path / "r", scorer=scorer)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("fields", "label"),
    [
        ({"method": "early_stopping", "n": 16}, "esc 4/16"),
        ({"method": "adaptive", "n": 16}, "asc 0.95/16"),
        ({"method": "agreement", "n": 16}, "agree 9/16"),
        ({"method": "majority", "n": 16, "thinking_token_budget": 128}, "maj@16 128"),
        ({"method": "beam", "n": 16}, "beam 4/16"),
        ({}, "greedy"),
        ({"temperature": 0.8}, "1 sample T=0.8"),
        ({"temperature": 0.8, "reasoning_effort": "high"}, "1 sample T=0.8 high"),
    ],
)
def test_labels_say_the_rule(fields, label):
    policy = make_policy(fields)
    assert policy.label() == label
    assert Policy.from_json(policy.to_json()) == policy
