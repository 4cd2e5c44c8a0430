import json
import shutil

import pytest

from advisor.accuracy.counterfactual import cheapest_as_good, evaluate
from advisor.evidence.runs import cut_runs, read_runs
from tests.advisor.accuracy.test_counterfactual import VOTE, forced, make_rows
from tests.traces.synthetic import engine_config, simulate, write_recording
from traces.recording.reader import Recording
from traces.summary.run import summarise
from tui.text.recordings.show import form_of, label, policy_table

pytestmark = pytest.mark.slow

KEYS = {
    *("method", "n", "budget_tokens", "accuracy", "tokens_per_problem", "bound"),
    *("rule", "basis", "error", "tokens_estimated", "fresh_run", "max_tokens", "other_problems"),
}


HOWS = ("exact", "+-", "ended", "replayed", "length", "forced", "between", "at least", "model")


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    rows = make_rows(problems=48)
    rows["answers"] = forced(rows, (16, 64), 4)
    return write_recording(tmp_path_factory.mktemp("p") / "vote", rows, policy=VOTE)


def test_forced_answers_of_an_engine_that_told_its_configuration_late(run, tmp_path):
    """Its rows keep the key that it began with (`Recording.engine_key`)."""
    rows = make_rows(problems=24)
    rows["answers"] = [row | {"policy": VOTE.key()} for row in forced(rows, (16, 64), 4)]
    first = write_recording(tmp_path / "first", rows, policy=VOTE)
    shutil.copytree(first.path, tmp_path / "late")
    manifest = json.loads((tmp_path / "late" / "recording.json").read_text())
    (engine,) = manifest["engines"].values()
    engine["max_num_batched_tokens"] = 4321
    (tmp_path / "late" / "recording.json").write_text(json.dumps(manifest))
    (tmp_path / "late" / "checksums.sha256").unlink()
    told, cut = [], []
    for recording in (first, Recording.open(tmp_path / "late")):
        _, out, _ = run("show", recording.path, "--policies", "--json")
        told.append(json.loads(out)["runs"][0]["policies"])
        cut.append(len(cut_runs(recording, read_runs(recording)[0])))
    assert told[0] == told[1]
    assert any(policy["budget_tokens"] for policy in told[0])
    assert cut == [2, 2]


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    engine = engine_config(max_num_seqs=3)
    folder = tmp_path_factory.mktemp("slow")
    return [
        write_recording(folder / name, simulate(problems=30, n=4, seqs=seqs), engine=engine)
        for name, seqs in (("fast", 8), ("slow", 3))
    ]


@pytest.mark.parametrize("budgets", [(), (16, 64)])
def test_the_legend_explains_what_is_in_the_table_and_nothing_else(tmp_path, budgets):
    """Without forced answers a budget of thought is known by a bound alone."""
    rows = make_rows(problems=24)
    if budgets:
        rows["answers"] = forced(rows, budgets, 4)
    recording = write_recording(tmp_path / "r", rows, policy=VOTE)
    (run,) = summarise(recording)
    found = evaluate(run, recording.frame("answers"))
    head, *lines = policy_table(found, None)[3:]
    place = head.index("how")
    rows = [line for line in lines if line[place - 2 : place] == "  " and " [" in line]
    shown = {line[place : place + 8].rstrip() for line in rows}
    shown = {"+-" if how.startswith("+-") else how for how in shown}
    explained = {how for how in HOWS if any(line.startswith(f"{how:<10}") for line in lines)}
    assert explained == shown
    assert ("at least" in shown) == (not budgets) and ("forced" in shown) == bool(budgets)


def test_the_table_fits_80_columns_and_says_how_each_is_known(recording):
    (run,) = summarise(recording)
    found = evaluate(run, recording.frame("answers"))
    lines = policy_table(found, cheapest_as_good(found))
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    votes = ("maj@8 ", "pass@8", "best@4", "conf 0.5@8")
    for wanted in (*votes, "esc 4/8", "asc .95 8/8", "agree 5/8", "first 4/8"):
        assert wanted in text, wanted
    for how in ("exact", "+-.", "ended", "forced", "between", "model", "think 64"):
        assert how in text, how
    squeezed = " ".join(text.split())
    assert "of the tokens of maj@8" in squeezed
    for form in dict.fromkeys(form_of(each, found.max_tokens)[0] for each in found.outcomes):
        assert sum(line.startswith(f"{form}  ") for line in lines) == 1, form
    assert "asc t k/n up to n samples until the majority is t sure, k at a time" in squeezed
    assert "\nexact     expectation over" in text
    labels = [label(outcome) for outcome in found.outcomes]
    assert len(set(labels)) == len(labels)


def test_the_verb(run, recording):
    out = run.clean("show", recording.path, "--policies")
    assert max(map(len, out.splitlines())) <= 80
    out = run.ok("show", recording.path, "--policies", "--json")
    (document,) = json.loads(out)["runs"]
    assert {frozenset(policy) for policy in document["policies"]} == {frozenset(KEYS)}
    assert document["policy_notes"] == []
    assert {p["method"] for p in document["policies"]} >= {"majority", "pass_at_k", "best_of_n"}


def test_a_limit_of_tokens_is_named_and_given_once(run, recording):
    asked = ("show", recording.path, "--policies", "--max-tokens", "60")
    out = run.clean(*asked)
    assert "gives a tie" not in out  # to the vote that was recorded, under another limit
    assert "max 60" not in out  # all are
    (document,) = json.loads(run.ok(*asked, "--json"))["runs"]
    assert {policy["max_tokens"] for policy in document["policies"]} == {60}
    told = run.refused(*asked, "--max-tokens", "50", code=2)
    assert "--max-tokens is given more than once" in told


def test_limits_decide_the_exit_code(run, slow):
    paths = [each.path for each in slow]
    code, out, err = run("show", *paths, "--fail-on", "p95>+5%", "--fail-on", "tokens>+1%")
    assert (code, err) == (3, "")
    assert max(map(len, out.splitlines())) <= 80
    verdicts = [line for line in out.splitlines() if line.startswith(("FAIL", "ok"))]
    assert [line.split()[0] for line in verdicts] == ["FAIL", "ok"]
    assert "the whole interval is beyond the limit" in " ".join(out.split())
    for limits in (["p95>+900%"], ["p95>+5%", "tokens>+1%", "accuracy<-.2"]):
        given = [word for each in limits for word in ("--fail-on", each)]
        code, out, err = run("show", *paths, *given, "--json")
        gated = run("gate", *paths, *given, "--json")
        assert (code, json.loads(out)["gate"]) == (gated[0], json.loads(gated[1])), err
    assert run("show", *paths, "--fail-on", "p95>+5%", "--json")[0] == 3


def test_times_under_another_load_are_not_judged(run, tmp_path):
    paths = [
        write_recording(
            tmp_path / f"{load}", simulate(problems=30, n=4, concurrency=load), concurrency=load
        ).path
        for load in (8, 1)
    ]
    told = run.refused("show", *paths, "--fail-on", "p95>+5%", code=1)
    assert "p95>+5% cannot be judged: the load is another one (load.concurrency 8 -> 1)" in told
    run.ok("show", *paths, "--fail-on", "tokens>+90%")


def test_problems_that_fail_break_any_limit_and_a_run_that_was_cut_is_not_judged(run, tmp_path):
    rows = simulate(problems=30, n=4)
    paths = [write_recording(tmp_path / "base", rows).path]
    write_recording(tmp_path / "cut", rows, complete=False)
    for row in rows["problems"][:15]:
        row |= {"decided_at": None, "answer": None, "correct": None, "error": "HTTP 500"}
    paths.append(write_recording(tmp_path / "lost", rows).path)
    for row in rows["problems"]:
        row |= {"decided_at": None, "answer": None, "correct": None, "error": "HTTP 500"}
    write_recording(tmp_path / "none", rows)
    limit = ("--fail-on", "tokens>+90%")
    code, out, _ = run("show", *paths, *limit)
    assert code == 3 and "FAIL  problems that failed: +50.0 points" in out
    code, out, _ = run("show", paths[0], tmp_path / "none", *limit, "--json")
    (failed,) = json.loads(out)["gate"]["checks"]
    assert (code, failed["verdict"]) == (3, "broken")
    assert run("show", paths[1], paths[1], *limit)[0] == 0  # as many as before are no change
    for pair in ((paths[0], tmp_path / "cut"), (tmp_path / "cut", paths[0])):
        assert "cut is not complete" in run.refused("show", *pair, *limit, code=1)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--fail-on", "p95>5%"], 2, "give its sign"),
        (["--fail-on", "nonsense"], 2, "is not understood"),
        (["--fail-on", "energy>+1J"], 2, "is not understood"),
        (["--fail-on", "energy>+1"], 1, "was not measured in both fast and slow"),
        (["--fail-on", "cost>+5%"], 1, "cannot be judged: give --price"),
        (["--policies"], 2, "--policies judges one recording"),
    ],
)
def test_wrong_usage_is_one_line(run, slow, arguments, code, message):
    assert message in run.refused("show", *[each.path for each in slow], *arguments, code=code)


def test_a_limit_needs_two_recordings(run, slow):
    assert "give two recordings" in run.refused(
        "show", slow[0].path, "--fail-on", "p95>+5%", code=2
    )
