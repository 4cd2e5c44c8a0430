"""`ttscope gate`: noise passes, a change fails with its reason, and nothing measured is no pass."""

import dataclasses
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest

from tests.advisor.synthetic import NGRAM, VOTE16, engine_of, record
from traces.deployment.checks import against_baseline, against_promises, drift, load_check
from traces.deployment.documents import Expectations, names_hash, read_expectations, write_document
from traces.deployment.reports import markdown
from traces.live.numbers import Numbers
from traces.recording.manifest import WorkloadFacts
from traces.recording.reader import Recording
from traces.schema.advice import Budget
from traces.schema.estimate import Estimate, Interval
from traces.schema.tts.parameters import complete, make_policy
from traces.summary.comparison import beside, compare
from traces.summary.run import at_price, summarise
from tui.text.recordings.gate import gate_lines
from tui.verbs.demo import SHIPPED

FEW = dataclasses.replace(VOTE16, n=2)


def promised(run, **changes):
    """What a run itself would have promised."""
    agreed = {
        "accuracy": run.accuracy, "latency_s": run.latency_s["mean"],
        "latency_p95_s": run.latency_s["p95"], "tokens": run.tokens_per_problem,
        "device_s": run.device_s_per_problem, "energy_j": None,
    }  # fmt: skip
    known = {
        "engine": run.engine,
        "policy": complete(run.policy),
        "promised": agreed,
        "assumed": {
            "output_tokens": Estimate(value=60.0, low=55.0, high=65.0, unit="tokens", of="all")
        },
        "concurrency": 4,
        "workload": run.workload,
        "budget": Budget(max_latency_s=run.latency_s["mean"].value * 1.5),
    }
    return Expectations(**known | changes)


def held(base, run=None, **changes):
    """The gate of a run against what another, or it itself, would have promised."""
    return against_promises(promised(base, **changes), run or base, "expect.json")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gated")
    made = {
        "base": record(folder / "one" / "base", engine_of(), VOTE16, problems=60),
        "again": record(folder / "two" / "again", engine_of(), VOTE16, problems=60, seed=0),
        "slow": record(folder / "three" / "slow", engine_of(), VOTE16, problems=60, drift=0.8),
        "few": record(folder / "four" / "few", engine_of(), FEW, problems=60),
        "other": record(folder / "five" / "o", engine_of(), VOTE16, problems=60, workload="other"),
        "busy": record(folder / "six" / "busy", engine_of(), VOTE16, problems=60, concurrency=16),
    }
    return made


@pytest.fixture(scope="module")
def base(runs):
    (base,) = summarise(runs["base"])
    return base


def gate(run, *arguments):
    return run("gate", *arguments)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "code"),
    [("base", 0), ("again", 0), ("slow", 3), ("few", 0), ("other", 1), ("busy", 0)],
)
def test_a_run_against_its_baseline(run, runs, name, code):
    left, out, err = gate(run, runs["base"].path, runs[name].path)
    assert left == code, out + err
    told = out.partition("\nnext ")[0]  # with long paths
    assert (told != out or code == 1) and all(len(line) <= 80 for line in told.splitlines())
    if name == "slow":
        assert "FAIL  p95>+10%" in out
    if name == "busy":  # four times as many in flight: slower, and no fault of the server
        assert "-     p95>+10%" in out and "the load is another one" in " ".join(out.split())
        junit = ("--fail-on", "p95>+5%", "--junit", "junit.xml")
        left, _, err = gate(run, runs["base"].path, runs[name].path, *junit)
        assert '<error message="p95' in Path("junit.xml").read_text()
        assert left == 1 and "p95>+5% cannot be judged: the load is another one" in err
    if name == "few":
        assert "policy.n 16 -> 2" in out


@pytest.mark.slow
def test_a_run_against_what_was_promised(run, runs, base, tmp_path):
    write_document(tmp_path / "expect.json", promised(base))
    for name, code in (("base", 0), ("again", 0), ("slow", 3), ("other", 1), ("busy", 1)):
        left, out, err = gate(run, "expect.json", runs[name].path, "--junit", "junit.xml")
        assert left == code, (name, out, err)
        suite = ElementTree.parse(tmp_path / "junit.xml").getroot()[0]
        assert (suite.get("errors") != "0", suite.get("failures") != "0") == (code == 1, code == 3)
        assert int(suite.get("tests")) == len(suite.findall("testcase"))
        if name == "slow":
            assert "FAIL  mean latency: limit at most" in out
        if name == "other":
            assert "other problems than the 60 of sums" in " ".join(out.split())
        if name == "busy":  # its accuracy is judged, its times are not
            assert "ran with 16 in flight" in " ".join(out.split())
            assert "cannot be judged" in err
            assert out.startswith("not judged: busy")


@pytest.mark.slow
def test_outcomes_know_their_problems_by_name(run, runs, base, tmp_path):
    outcomes = dataclasses.replace(base.workload, name="evals", hash="of-files")
    names = names_hash(base.rows["problem_id"])
    told = promised(base, workload=outcomes, problem_names=names)
    write_document(tmp_path / "expect.json", told)
    known = {name: each for name, each in told.promised.items() if each is not None}
    found = read_expectations(tmp_path / "expect.json")
    assert found == dataclasses.replace(told, promised=known)
    left, out, err = gate(run, "expect.json", runs["base"].path)
    assert left == 0, out + err
    assert "the names of the imported outcomes" in " ".join(out.split())
    assert gate(run, "expect.json", runs["slow"].path)[0] == 3
    others = dataclasses.replace(told, problem_names=names_hash(["p1", "p2"]))
    (check, *_) = against_promises(others, base, "expect.json").checks
    assert check.verdict == "absent" and check.why.endswith("Record all, each with its problem_id")


@pytest.mark.parametrize(("times", "verdict"), [(1.0, "ok"), (0.97, "ok"), (0.94, "broken")])
def test_a_run_of_the_same_problems_is_held_against_one_more_run_of_them(runs, times, verdict):
    """What other problems would have differs by more, and so do all such problems."""
    (base,) = summarise(runs["base"])
    value = times * base.tokens_per_problem.value
    told = Estimate.predicted(
        value,
        "tokens",
        fresh=Interval(low=0.95 * value, high=1.05 * value),
        others=Interval(low=0.7 * value, high=1.3 * value),
        of="others",
    )
    found = held(base, promised={"tokens": told})
    check = next(each for each in found.checks if each.kind == "promise")
    assert check.verdict == verdict
    assert check.measured == base.tokens_per_problem
    head = "90 % intervals of one more run of the same problems (measured: of all problems like"
    assert head in " ".join(gate_lines(found)) and head in markdown(found)
    assert "rest on, 90 % intervals of all problems like these" in " ".join(gate_lines(found))


@pytest.mark.slow
def test_no_number_of_problems_narrows_how_runs_differ_in_a_promise(base):
    """A time that is a fifth longer is 2.9 times the 7 % that are assumed: 88 % at most."""

    def power(field, value, half):
        ends = Interval(low=(1 - half) * value, high=(1 + half) * value)
        told = Estimate.predicted(value, "", fresh=ends, others=ends, of="others")
        gate = held(base, promised={field: told}, budget=Budget(min_accuracy=0.01))
        return next(each for each in gate.power if each.kind == "promise")

    times = [power("latency_s", base.latency_s["mean"].value, half) for half in (0.12, 0.3)]
    assert [each.more_problems for each in times] == [None, None]
    assert [each.share_of_more for each in times] == pytest.approx([0.88, 0.88], abs=0.02)
    assert power("tokens", base.tokens_per_problem.value, 0.3).more_problems is not None


def test_few_problems_cannot_keep_a_limit_on_p95_and_can_break_it(tmp_path):
    (few,) = summarise(record(tmp_path / "few", engine_of(), VOTE16, problems=20))
    p95 = few.latency_s["p95"]
    assert p95.low is not None and p95.high is None
    for share, verdict in ((2.0, "unsure"), (0.5, "broken")):
        budget = Budget(max_latency_s=share * p95.value, latency_percentile=95)
        gated = held(few, budget=budget)
        limit = next(each for each in gated.checks if each.kind == "limit")
        assert limit.verdict == verdict, limit
        assert verdict == "broken" or limit.why.startswith("too few problems to say whether it is")


@pytest.mark.slow
def test_any_percentile_of_the_latency_may_be_limited(base):
    for percentile in (75, 95):
        share = np.quantile(base.rows["latency_s"].to_numpy(), percentile / 100)
        for factor, verdict in ((2.0, "passed"), (0.5, "failed")):
            budget = Budget(max_latency_s=factor * share, latency_percentile=percentile)
            gated = held(base, budget=budget, promised={})
            assert gated.verdict == verdict
            assert gated.checks[0].name == f"p{percentile} latency"
            assert gated.checks[0].measured.value == pytest.approx(share)
            assert gated.run_to_run is not None


@pytest.mark.parametrize("percentile", [75, 99])
def test_any_percentile_has_the_spread_of_its_repeats(tmp_path, percentile):
    made = [
        record(tmp_path / f"r{number}", engine_of(), FEW, problems=40, drift=drift)
        for number, drift in enumerate((0.0, 0.35, -0.25, 0.3, -0.2))
    ]
    (run,), repeats = summarise(made[0]), beside(made[:1])
    budget = Budget(max_latency_s=100.0, latency_percentile=percentile)
    slow = {f"latency_p{percentile}_s": Estimate(value=50.0, low=9.0, high=100.0, unit="s")}
    for told in (
        promised(run, budget=budget, promised={}),
        promised(run, budget=Budget(), promised=slow),
    ):
        spread = against_promises(told, run, "expect.json", repeats).run_to_run
        assert spread.recordings == 5
        one, usual = (spread.measured[f"latency_s.p{each}"] for each in (percentile, 95))
        assert one > 0.15 and usual > 0.15
    alone = held(run, budget=budget).checks[0].measured
    among = against_promises(promised(run, budget=budget), run, "expect.json", repeats).checks[0]
    assert among.measured.low < alone.low


@pytest.mark.slow
def test_a_cost_has_the_price_that_it_was_promised_at(run, tmp_path):
    vote = Recording.open(next(SHIPPED.glob("demo-s-tp1-seqs64-maj@16*")))
    (base,) = summarise(vote)
    most = 1.5 * base.device_s_per_problem.value * 2.5 / 3600
    load = vote.manifest.concurrency
    for price in (
        {"price_usd_per_device_hour": 2.5},
        {"prices": (("CPU", 2.5), ("H100", 9.0))},
        {},
    ):
        budget = Budget(max_cost_usd=most, **price)
        told = promised(base, budget=budget, promised={}, concurrency=load)
        write_document(tmp_path / "expect.json", told)
        code, out, err = gate(run, "expect.json", vote.path)
        assert (code, "device-hour" in out) == (0 if price else 1, False), err
        assert price or "no price is known. Give --price" in " ".join(err.split())
        code, out, err = gate(run, "expect.json", vote.path, "--price", 25)
        assert code == 3, err
        assert "FAIL  cost" in out
        assert ("USD per device-hour 2.5 -> 25" in out) == bool(price)


@pytest.mark.slow
def test_an_end_that_was_not_promised_breaks_nothing(base):
    """The worse end counts. The estimate itself promises nothing."""
    slow = dataclasses.replace(base.latency_s["mean"], value=1e-9, low=1e-9, high=None)
    check, *_ = held(base, budget=Budget(), promised={"latency_s": slow}).checks
    assert check.verdict == "absent" and check.why.startswith("the promise has no upper end")
    idle = {"output_tokens": Estimate(value=0.0, unit="tokens")}
    (*_, moved) = held(base, assumed=idle).checks
    assert (moved.verdict, moved.why) == ("broken", "none was assumed")
    untold = held(base, concurrency=None).checks
    assert "the promise does not say its load" in {each.why for each in untold}


@pytest.mark.slow
def test_fewer_samples_break_the_promise_of_accuracy(run, tmp_path):
    vote, alone = (
        Recording.open(next(SHIPPED.glob(f"demo-s-tp1-seqs64-{name}")))
        for name in ("maj@16*", "greedy-t0-*")
    )
    (base,) = summarise(vote)
    least = Budget(min_accuracy=base.accuracy.low)
    told = promised(base, concurrency=vote.manifest.concurrency, budget=least)
    write_document(tmp_path / "expect.json", told)
    assert gate(run, "expect.json", vote.path)[0] == 0
    left, out, _ = gate(run, "expect.json", alone.path)
    assert left == 3
    assert "policy.n 16 -> 1" in out
    assert out.count("FAIL  accuracy") == 2  # the limit and the promise
    left, out, _ = gate(run, vote.path, alone.path, "--fail-on", "accuracy<-.02")
    assert left == 3
    assert out.count("FAIL  accuracy") == 1


@pytest.mark.slow
def test_reports_hold_every_check_and_odd_names(run, runs, tmp_path):
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    left, out, _ = gate(
        run, runs["base"].path, runs["slow"].path,
        "--junit", "junit.xml", "--markdown", "summary.md", "--json",
    )  # fmt: skip
    assert left == 3
    document = json.loads(out)
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot()[0]
    assert suite.tag == "testsuite"
    cases = suite.findall("testcase")
    assert int(suite.get("tests")) == len(document["checks"]) == len(cases)
    failed = [case.get("name") for case in cases if case.find("failure") is not None]
    broken = [each["name"] for each in document["checks"] if each["verdict"] == "broken"]
    assert failed == broken != []
    assert int(suite.get("failures")) == len(failed)
    text = summary.read_text()
    assert text.startswith("before\n### ttscope gate failed: `slow` against `base`")
    assert text.count("| FAIL |") == len(failed)
    told = {each.get("name"): float(each.get("value")) for each in suite.iter("property")}
    assert (told["level"], told["checks that share the level"]) == (0.05, document["judged"])
    for each in document["checks"]:
        noise = told[f"by noise: {each['name']} (change)"]
        assert noise == pytest.approx(each["by_noise"], rel=0.01)
        assert (each["verdict"] == "broken") <= (noise < 0.05)
    said = suite.find("system-out").text.splitlines()
    assert said[0] == "Without any change at most 5 % of runs fail this gate, its 2 checks together"
    assert all(each in text for each in said)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a recording to judge"),
        (["x", "--endpoint", "http://h"], "not both"),
        (["x", "--workload", "w.jsonl"], "--workload is for --endpoint"),
        (["x", "--fail-on", "p95>+5%"], "are its limits"),
        (["absent"], "absent"),
    ],
)
def test_wrong_use_is_one_line(run, base, tmp_path, arguments, message):
    write_document(tmp_path / "expect.json", promised(base))
    assert message in run.refused("gate", "expect.json", *arguments)


@pytest.mark.slow
def test_a_gate_that_nothing_was_measured_for_does_not_pass(base):
    for run in (base, losing(base, 1)):  # a few failures are nothing that was promised
        energy = {"energy_j": base.latency_s["mean"]}
        found = held(base, run, budget=Budget(), promised=energy)
        assert found.verdict == "not judged"
        assert "nothing that was promised was measured" in found.not_judged


def test_a_server_behind_a_router_does_not_tell_of_the_others(tmp_path):
    server = engine_of(mode="server", data_parallel_size=2)
    (base,) = summarise(record(tmp_path / "r", server, VOTE16, problems=4))
    for engine, differs in (
        (dataclasses.replace(server, data_parallel_size=4), ["engine.data_parallel_size 4 -> 2"]),
        (dataclasses.replace(server, data_parallel_size=4).of_servers(2), []),
        (dataclasses.replace(server, data_parallel_size=4).of_servers(1),
         ["engine.data_parallel_size 4 -> 2"]),
    ):  # fmt: skip
        gated = held(base, engine=engine)
        assert [each for each in gated.differs if "parallel" in each] == differs


@pytest.mark.slow
def test_acceptance_that_falls_breaks_the_gate(run, tmp_path):
    engine = engine_of(speculative=NGRAM)
    one = record(tmp_path / "a" / "one", engine, VOTE16, problems=40)
    code, out, err = gate(run, one.path, one.path)
    assert code == 0, out + err
    assert "acceptance<-5%" in out


def losing(run, count, error="2 samples failed"):
    """The run, whose first problems have no decision."""
    lost = pl.int_range(pl.len()) < count
    rows = run.rows.with_columns(
        state=pl.when(lost).then(pl.lit("failed")).otherwise("state"),
        error=pl.when(lost).then(pl.lit(error)).otherwise("error"),
        correct=pl.when(~lost).then("correct"),
    )
    return dataclasses.replace(run, rows=rows, problems_failed=count)


def gates_of(base, run):
    """The gates of a run against what an earlier one promised, and against that one itself."""
    return (
        held(base, run, budget=Budget(), promised={"tokens": base.tokens_per_problem}),
        against_baseline(["tokens>+90%"], compare(base, run), base, run),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "verdicts"),
    [(0, (None, None)), (1, ("unsure", "unsure")), (30, ("broken", "broken"))],
)
def test_problems_that_fail_break_a_gate_and_are_counted(base, count, verdicts):
    for gated, verdict in zip(gates_of(base, losing(base, count)), verdicts, strict=True):
        failed = [each for each in gated.checks if each.name == "problems that failed"]
        assert [each.verdict for each in failed] == ([verdict] if verdict else [])
        assert gated.verdict == ("failed" if verdict == "broken" else "passed")
        assert any(f"{count} of 60" in each for each in gated.differs) == (count > 0)


@pytest.mark.slow
def test_where_all_problems_fail_the_gate_does(base):
    assert [each.verdict for each in gates_of(base, losing(base, 60))] == ["failed", "failed"]
    # As many as before are no change.
    half = losing(base, 30)
    same = against_baseline(["tokens>+90%"], compare(half, half), half, half)
    assert same.verdict == "passed" and "problems that failed 30 of 60 -> 30 of 60" in same.differs


@pytest.mark.slow
def test_a_run_that_did_not_end_is_not_judged(base):
    cut = dataclasses.replace(base, complete=False)
    fewer = dataclasses.replace(base, rows=base.rows.head(40), problems=40)
    for run, why in ((cut, "is not complete: 60 of 60"), (fewer, "40 of 60 problems ended")):
        for gated in gates_of(base, run):
            assert (gated.verdict, why in gated.not_judged) == ("not judged", True)
            assert {each.verdict for each in gated.checks} == {"absent"}
    (_, against_cut) = gates_of(cut, base)
    assert against_cut.verdict == "not judged"


@pytest.mark.slow
@pytest.mark.parametrize("error", ["client gone", "server ended"])
def test_served_questions_that_were_cut_off_are_no_failures(base, error):
    """A served recording has no fixed set of problems."""
    served = dataclasses.replace(base, workload=None)
    for count, verdict in ((2, "passed"), (20, "not judged")):
        gated = held(base, losing(served, count, error), budget=Budget())
        assert gated.verdict == verdict
        assert f"questions that were cut off {count}" in gated.differs


def test_a_replay_does_not_have_what_failed_in_the_recording(tmp_path):
    (base,) = summarise(record(tmp_path / "base", engine_of(), FEW, problems=60))
    rows = base.rows.tail(59)
    replayed = dataclasses.replace(base, replay_of="base", rows=rows, problems=59)
    for gated in gates_of(losing(base, 1), replayed):
        assert gated.verdict == "passed"
    assert "problems that failed 1 of 60 -> 0 of 59" in gated.differs


def numbers(**known):
    return Numbers(engine="e", start_ns=0, end_ns=1, seconds=1.0, polls=9, resets=0, **known)


def test_a_load_above_the_one_assumed_is_said():
    policy = make_policy({"method": "majority", "n": 4, "temperature": 0.8})
    told = Expectations(engine=engine_of(), policy=policy, promised={}, concurrency=2)
    assert load_check(told, numbers(running=7.0, waiting=0.0)).verdict == "ok"
    assert load_check(told, numbers(running=7.0, waiting=3.0)).verdict == "broken"
    assert load_check(told, numbers()).verdict == "absent"
    rate = dataclasses.replace(told, concurrency=None, rate_per_s=2.0)
    assert load_check(rate, numbers(samples_per_s=7.9)).verdict == "ok"
    assert load_check(rate, numbers(samples_per_s=9.0)).verdict == "broken"


def test_servers_of_one_promise_have_its_load_together():
    policy = make_policy({"method": "majority", "n": 4, "temperature": 0.8})
    four = dataclasses.replace(engine_of(), data_parallel_size=4).of_servers(1)
    told = Expectations(engine=four, policy=policy, promised={}, concurrency=8)
    for running, verdict in ((8.0, "ok"), (20.0, "broken")):
        servers = [(engine_of(), numbers(running=running)) for _ in range(4)]
        (load, *others) = drift(told, servers, [])
        assert (load.measured.value, load.verdict) == (4 * running, verdict)
        assert load.name not in {check.name for check in others}
        assert load_check(told, servers[0][1]).verdict == verdict  # a quarter of it
    one = dataclasses.replace(told, engine=engine_of())
    assert [check.verdict for check in drift(one, servers, [])] == ["ok"] * 4


@pytest.mark.parametrize(
    ("method", "most", "at_once"),
    [
        ({"method": "budget_forcing", "n": 4, "extend": 2}, 12, 4),
        ({"method": "beam", "n": 4, "width": 2, "depth": 4}, 16, 4),
        ({"method": "sequential", "n": 8}, 8, 1),
        ({"method": "adaptive", "n": 8, "in_flight": 2}, 8, 2),
    ],
)
def test_the_most_requests_are_those_of_the_method(method, most, at_once):
    policy = make_policy({"temperature": 0.8, **method})
    rate = Expectations(engine=engine_of(), policy=policy, promised={}, rate_per_s=2.0)
    kept = dataclasses.replace(rate, rate_per_s=None, concurrency=2)
    for share, verdict in ((1.0, "ok"), (1.2, "broken")):
        assert load_check(rate, numbers(samples_per_s=2 * most * share)).verdict == verdict
        assert load_check(kept, numbers(running=2 * at_once * share)).verdict == verdict


@pytest.mark.slow
def test_other_problems_are_not_held_to_a_promise(base):
    found = held(base, workload=WorkloadFacts(name="w", hash="x", problems=3))
    assert {each.verdict for each in found.checks if each.kind != "assumption"} == {"absent"}


@pytest.mark.slow
def test_at_a_rate_idle_devices_are_paid(tmp_path):
    """What was not measured is not judged: devices / rate is no device time that a run has."""
    (base,) = summarise(record(tmp_path / "r", engine_of(), FEW, problems=60, host=(0.0,) * 3))
    assert base.device_s_per_problem.value < 0.3
    run = at_price(dataclasses.replace(base, conditions=(None, 2.0, *base.conditions[2:])), 3600.0)
    served = dataclasses.replace(
        run,
        engine=dataclasses.replace(run.engine, mode="server"),
        device_s_per_problem=None,
        cost_usd_per_problem=None,
    )
    paid = Estimate(value=0.5, low=0.5, high=0.5, unit="device-s")
    for given, most, verdicts in (
        (run, 0.4, ["broken", "ok"]),
        (run, 0.6, ["ok", "ok"]),
        (served, 0.4, ["absent", "absent"]),
        (served, 90.0, ["absent", "absent"]),
    ):
        told = promised(
            base, concurrency=None, rate_per_s=2.0, promised={"device_s": paid},
            budget=Budget(max_device_s=most),
        )  # fmt: skip
        checks = against_promises(told, given, "expect.json").checks[:2]
        found = [each.verdict for each in checks]
        assert {each.name for each in checks} == {"device time with idle time"}
        assert [each.measured is None for each in checks] == [given is served] * 2
        assert found == verdicts, (most, checks)
        cost = dataclasses.replace(told, budget=Budget(max_cost_usd=most), promised={})
        (check, *_) = against_promises(cost, given, "expect.json").checks
        assert (check.name, check.verdict) == ("cost with idle time", verdicts[0])


@pytest.mark.slow
def test_a_lighter_load_breaks_no_device_time(tmp_path):
    """Fewer requests share a step then, and each pays for more of it."""
    same = {"problems": 60, "host": (0.0,) * 3}
    alone, four = (
        summarise(record(tmp_path / str(count), engine_of(), FEW, concurrency=count, **same))[0]
        for count in (1, 4)
    )
    assert alone.device_s_per_problem.low > 1.2 * four.device_s_per_problem.high
    agreed = {"device_s": four.device_s_per_problem}
    (check, *_) = held(four, alone, promised=agreed, budget=Budget()).checks
    assert check.verdict == "absent"
    assert check.why == "ran with 1 in flight, and was promised for 4 in flight"
    rate = dataclasses.replace(four, conditions=(None, 1.0, *four.conditions[2:]))
    for factor, verdict in ((0.1, "broken"), (9.0, "absent")):
        budget = Budget(max_latency_s=factor * four.latency_s["mean"].value)
        at_rate = {"concurrency": None, "rate_per_s": 2.0, "promised": {}, "budget": budget}
        (check, *_) = held(four, rate, **at_rate).checks
        assert check.verdict == verdict, check
    assert check.why == "1/s arrived, and it was promised for 2/s"


@pytest.mark.slow
def test_hours_without_a_problem_make_no_load_lighter(runs):
    (busy,) = summarise(runs["busy"])
    night = pl.when(pl.col("problem") >= 30).then(36_000_000_000_000).otherwise(0)
    rows = busy.rows.with_columns(pl.col("arrival", "decided_at", "end") + night)
    rate = (busy.problems - 1) / ((rows["arrival"].max() - rows["arrival"].min()) / 1e9)
    served = dataclasses.replace(busy, rows=rows, conditions=(None, rate, *busy.conditions[2:]))
    told = {"promised": {}, "budget": Budget(max_latency_s=1e-6)}
    (check, *_) = held(busy, served, **told).checks
    assert check.verdict == "absent", check
    assert check.why == "ran with 13.6 in flight, and was promised for 4 in flight"
    (check, *_) = held(busy, served, **told, concurrency=None, rate_per_s=2.0).checks
    assert check.verdict == "absent", check
    assert check.why.endswith("/s arrived in its bursts, and it was promised for 2/s")
