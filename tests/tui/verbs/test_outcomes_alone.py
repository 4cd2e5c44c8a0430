"""From outcomes alone to advice: import, replay and advise without a recorded step or GPU."""

import dataclasses
import json
import random
import shutil

import numpy as np
import pytest

from advisor.advice.advisor import Advisor
from advisor.advice.measure_next.gpu_runs import START_S
from advisor.search.budget import parse_budget
from advisor.what_if.predict import predict
from advisor.what_if.question import Question
from tests.advisor.step_time.operators.operator_tables import write_tables
from tests.advisor.step_time.prior.prior_files import KERNEL_S, decode_s, gemm_s
from tests.advisor.step_time.prior.test_recalibration import measured
from tests.tui.model_config import llama_config
from traces.recording.reader import Recording
from traces.schema.formats import value_of
from traces.summary.run import summarise
from tui.screens.entries import load
from tui.screens.library_app import FittedAdvisor
from tui.text.layout import labels

# Dense models of which the made-up tables have the shapes: (layers, hidden size, skill, tokens).
MODELS = {
    "small": (4, 512, 0.3, 1500),
    "middle": (8, 1024, 0.6, 2500),
    "large": (16, 1024, 0.8, 3000),
}
GPU = ("--gpu", "test_gpu", "--gpus", "8", "--price", "Test=2.5")
PROMPT = 120


def outcomes(path, skill, tokens, *, problems=30, samples=8, seed=0, **more):
    """Write outcomes shaped like AIME's; return the tokens [problems, samples]."""
    rng, made = random.Random(seed), []
    lines = []
    for problem in range(problems):
        chance = min(max(rng.gauss(skill, 0.3), 0.02), 0.98)
        for index in range(samples):
            right = rng.random() < chance
            made.append(int(rng.lognormvariate(0, 0.3) * tokens))
            lines.append({
                "problem_id": f"p{problem}", "sample_index": index, "output_tokens": made[-1],
                "answer": str(problem) if right else str(900 + rng.randrange(3)),
                "expected": str(problem), "correct": right, **more,
            })  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return np.array(made).reshape(problems, samples)


@pytest.fixture(scope="session")
def imported(tmp_path_factory):
    """Where the files of `three` are kept once they were imported, and the tokens of samples."""
    return tmp_path_factory.mktemp("three") / "imported", {}


@pytest.fixture
def three(run, tmp_path, prior, imported):
    """Three imported models; their recordings and the tokens of their samples."""
    kept, tokens = imported
    if kept.exists():
        shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
        return tokens
    for seed, (name, (layers, hidden, skill, length)) in enumerate(MODELS.items()):
        tokens[name] = outcomes(tmp_path / f"{name}.jsonl", skill, length, seed=seed)
        (tmp_path / f"{name}.json").write_text(json.dumps(llama_config(layers, hidden)))
        out = run.clean(
            "import", f"{name}.jsonl", "--model", f"org/{name}", "--model-config", f"{name}.json",
            "--temperature", "0.6", "--top-p", "0.95", "--max-tokens", "16384",
            "--prompt-tokens", PROMPT, "-o", f"runs/{name}",
        )  # fmt: skip
        assert f"given at the import: model org/{name}, temperature 0.6" in " ".join(out.split())
    shutil.copytree(tmp_path, kept)
    return tokens


def test_what_was_given_is_in_the_recording(run, three, tmp_path):
    manifests = [Recording.open(tmp_path / "runs" / name).manifest for name in MODELS]
    assert len({each.workload.hash for each in manifests}) == 1  # the same problems
    for name, manifest in zip(MODELS, manifests, strict=True):
        ((engine,), (policy,)) = manifest.engines.values(), manifest.policies.values()
        assert engine.model == f"org/{name}"
        assert (policy.temperature, policy.top_p, policy.max_tokens) == (0.6, 0.95, 16384)
        assert manifest.models[engine.model].num_hidden_layers == MODELS[name][0]
    samples = Recording.open(tmp_path / "runs" / "small").samples
    assert samples["prompt_tokens"].unique().to_list() == [PROMPT]
    code, out, _ = run("show", "runs/small", "runs/large")
    assert code == 0 and "2 against 1: 30 problems, paired" in out
    assert "engine.model org/small -> org/large" in out and "same engine" not in out


@pytest.mark.slow
def test_a_replay_has_the_times_of_the_tables(run, three, tmp_path):
    asked = ("replay", "runs/small", "--gpu", "test_gpu", "--concurrency", "1", "--json")
    out = run.ok(*asked)
    found = json.loads(out)["predicted"]
    tokens = three["small"]
    # One problem at a time: each ends with its longest sample, a step a token.
    tpot = found["tpot_s"]["p50"]["value"]
    assert found["tokens_per_problem"]["value"] == pytest.approx(tokens.sum(axis=1).mean())
    assert found["latency_s"]["mean"]["value"] == pytest.approx(
        tokens.max(axis=1).mean() * tpot, rel=0.1
    )
    assert found["device_s_per_problem"]["value"] == pytest.approx(
        found["latency_s"]["mean"]["value"], rel=1e-3
    )
    # A layer is four products of 8 tokens and their attention; the small kernels come on top, and
    # the host's part, which is below a millisecond.
    layers, hidden = MODELS["small"][:2]
    products = ((2 * hidden, hidden), (hidden, hidden), (4 * hidden, hidden), (hidden, 2 * hidden))
    products_s = sum(gemm_s(8, n, k) for n, k in products)
    floor_s = layers * (products_s + decode_s(8, PROMPT + np.median(tokens) / 2, 8, 4))
    assert floor_s < tpot < floor_s + (7 * layers + 10) * KERNEL_S + 1e-3
    out = run.ok(*asked[:-3], "--rate", "2/s", "--json")
    write_tables(tmp_path / "gpu")
    on_tables = ("--operators", "gpu", "--num-hidden-layers", "4", "--concurrency", "2")
    run("import", "small.jsonl", "--prompt-tokens", "5", "-o", "plain")
    out = run.ok("replay", "plain", *on_tables, "--json")
    found = json.loads(out)["predicted"]
    assert found["tokens_per_problem"]["value"] == pytest.approx(tokens.sum(axis=1).mean())
    assert found["latency_s"]["mean"]["extrapolated"] and found["accuracy"] is not None
    assert "has no load to replay. Give --concurrency" in run.refused(*asked[:-3], code=2)


@pytest.mark.slow
def test_advice_needs_no_recorded_step(run, three):
    asked = ("advise", "runs", *GPU, "--min-accuracy", "0.4", "--optimise", "cost")
    out = run.ok(*asked, "--api-price", "2", "--explain")
    assert "renting costs less from" in out and "prompts not counted" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 80
    told = " ".join(out.split())
    assert "(the prior), not from a run." in told
    assert "load: 1 problem in flight, as no recording says its load" in told
    assert "the pick's step times are not measured: they come from the prior" in told.lower()
    assert "marked * lie outside what was measured" in told  # contexts of more than 4,095 tokens
    # An import has no prompts to pose again.
    assert told.count("--workload problems.jsonl") == told.count("ttscope record") > 0
    out = run.ok(*asked, "--json")
    document = json.loads(out)
    picks = [*document["pareto"], document["system_optimal"]]
    assert {pick["prior"] for pick in picks} == {"test_gpu"}
    assert {pick["engine"]["model"] for pick in picks} > {"org/small"}  # not pooled
    pick = document["system_optimal"]
    value = {k: v["value"] for k, v in pick["estimates"].items() if v}
    assert value["cost_usd"] == pytest.approx(value["device_s"] * 2.5 / 3600)
    assert value["device_s"] == pytest.approx(
        value["latency_s"] * pick["engine"]["tensor_parallel_size"], rel=1e-3
    )
    low, high = (pick["estimates"]["latency_s"][end] for end in ("low", "high"))
    assert pick["estimates"]["latency_s"]["extrapolated"] and low < value["latency_s"] < high


@pytest.mark.slow
def test_a_gateway_reads_which_effort_to_use(run, three, tmp_path):
    goal = ("--min-accuracy", "0.4", "--optimise", "cost")
    lines = (tmp_path / "small.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:  # of 30 problems 12 are of one class, 18 of the other
        row["group"] = "first" if int(row["problem_id"][1:]) < 12 else "second"
    (tmp_path / "grouped.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run("import", "grouped.jsonl", "--model", "m", "--model-config", "small.json",
        "--prompt-tokens", "9", "-o", "g")  # fmt: skip
    out = run.ok("advise", "g", *GPU, "--optimise", "cost", "--effort-map")
    found = json.loads(out)
    assert (found["ttscope_effort_map"], found["model"], found["problems"]) == (1, "m", 30)
    assert {name: each["problems"] for name, each in found["classes"].items()} == {
        "first": 12, "second": 18,
    }  # fmt: skip
    (effort,) = found["efforts"]
    assert effort["use"]
    limit = effort["policy"]["max_tokens"]  # neither limit nor reason is told, but it may set one
    cut = (three["small"] >= (limit or np.inf)).mean()
    assert (effort["cut_share"] or {"value": 0})["value"] == pytest.approx(cut)
    assert effort["estimates"]["latency_p95_s"]["value"] > 0
    assert "one document" in run.refused(
        "advise", "g", *GPU, *goal, "--effort-map", "--json", code=2
    )
    assert "nothing fits the budget" in run.refused(
        "advise", "g", *GPU, "--max-latency", "1us", "--effort-map", code=1
    )


@pytest.mark.slow
def test_short_runs_on_the_gpu_would_settle_it_and_are_taken(run, three, tmp_path):
    """The pick's own short run is among them, as its speed decides against the others.

    With a limit of 0.4 the pick is another model. It is proposed by its whole run, too.
    """
    dearer = run.ok(
        "advise", "runs", *GPU, "--min-accuracy", "0.4", "--optimise", "latency", "--json"
    )
    pick, lines = (json.loads(dearer)[name] for name in ("system_optimal", "measure_next"))
    short = [line for line in lines if "a short run for" in line]
    assert short and all("the pick's expected loss" in line for line in short)
    assert any(
        line.startswith("the pick was never run") and pick["engine"]["model"] in line
        for line in lines
    )
    asked = ("advise", "runs", *GPU, "--min-accuracy", "0.3", "--optimise", "latency")
    out = run.ok(*asked, "--json")
    before = json.loads(out)["system_optimal"]
    lines = [line for line in json.loads(out)["measure_next"] if "a short run for" in line]
    assert 1 <= len(lines) <= 3
    prices = [float(line.partition("about ")[2].split(" dev-s")[0]) for line in lines]
    assert prices == sorted(prices)
    engine = before["engine"]
    mine = f"{engine['model']} tp{engine['tensor_parallel_size']}"
    (own,) = [line for line in lines if mine in line]
    command = own[own.index("ttscope record") :]
    assert "--workload problems.jsonl --problems 2 --concurrency 1" in command
    assert "--endpoint" not in command  # a server tells no steps
    # A run there took 1.6 times as long: the answer is slower by that, and surer.
    recording = Recording.open(tmp_path / "runs" / engine["model"].removeprefix("org/"))
    seconds = alone_s(recording, before)
    devices = engine["tensor_parallel_size"]
    told = float(own.partition("about ")[2].split(" dev-s")[0])
    assert told / devices == pytest.approx(START_S + 2 * seconds, rel=0.05)
    run_there(recording, engine["tensor_parallel_size"], tmp_path / "there", 1.6)
    out = run.ok(*asked, "--with", "there", "--json")
    after = json.loads(out)["system_optimal"]
    if after["engine"] == engine:
        ratio = after["estimates"]["latency_s"]["value"] / before["estimates"]["latency_s"]["value"]
        assert ratio == pytest.approx(1.6, rel=0.02)
    assert any("recalibrated by there" in why for why in json.loads(out)["reasons"])
    for given, reason in (
        (("--with", "runs/small"), "holds no steps of a GPU of --gpu"),
        (("--with", "nowhere"), "nowhere"),
    ):
        code, _, err = run(*asked, *given)
        assert code != 0 and err.count("\n") == 1 and reason in err, err
    assert "--with checks the prior of a --gpu" in run.refused(
        "advise", "runs", "--optimise", "cost", "--with", "there", code=2
    )


def alone_s(recording, pick):
    """Seconds of a problem of the pick, one at a time, by the replay."""
    ran = summarise(recording)[0]
    fields = ("tensor_parallel_size", "max_num_seqs", "max_num_batched_tokens")
    engine = dataclasses.replace(ran.engine, **{name: pick["engine"][name] for name in fields})
    policy = dataclasses.replace(ran.policy, n=pick["policy"]["n"])
    facts = recording.manifest.models[ran.engine.model]
    question = Question(
        engine=engine, policy=policy, gpu="test_gpu", model_facts=facts, concurrency=1
    )
    return predict(recording, ran, question, []).predicted.latency_s["mean"].value


def run_there(recording, size, folder, factor):
    """Record what the replay has of a GPU, its steps being slower by a factor."""
    ran = summarise(recording)[0]
    facts = recording.manifest.models[ran.engine.model]
    engine = dataclasses.replace(
        ran.engine, tensor_parallel_size=size, max_num_seqs=64, max_num_batched_tokens=2048
    )
    question = Question(
        engine=engine, policy=ran.policy, gpu="test_gpu", model_facts=facts, concurrency=1
    )
    made = measured(predict(recording, ran, question, []), folder, factor)
    manifest = dataclasses.replace(made.manifest, models={facts.name: facts}, provenance={})
    manifest.write(folder)


@pytest.mark.slow
def test_accuracy_is_that_of_the_votes_whatever_the_times(three, tmp_path):
    recordings = [Recording.open(tmp_path / "runs" / name) for name in MODELS]
    advisor = Advisor.fit(recordings, gpus=["test_gpu"])
    for name, recording in zip(MODELS, recordings, strict=True):
        rows = [
            row
            for row, kind in enumerate(advisor.space.kinds)
            if kind.engine.model == f"org/{name}" and kind.policy.n == 1
        ]
        assert rows
        row = int(np.flatnonzero(advisor.space.kind == rows[0])[0])
        metrics = advisor.under(None)
        metrics.replay([row])
        accuracy = metrics.metrics.replayed[metrics.metrics.place[row]].accuracy
        whole = recording.samples["correct"].mean()
        assert float(np.mean(accuracy)) == pytest.approx(whole, abs=1e-9)


@pytest.mark.slow
def test_the_report_has_the_same_pick(run, three, tmp_path):
    page = tmp_path / "page.html"
    run.ok("report", "runs", *GPU, "--min-accuracy", "0.4", "-o", page)
    text = page.read_text()
    assert "Its times come from operator tables of this GPU" in " ".join(text.split())
    assert "no recording holds engine steps" in text  # nothing to foretell a run from


@pytest.mark.slow
def test_a_model_without_facts_is_no_candidate_and_is_named(run, three):
    run("import", "large.jsonl", "--model", "bare", "--prompt-tokens", "9", "-o", "b")
    asked = (*GPU, "--optimise", "cost", "--json")
    out = run.ok("advise", "runs/small", "b", *asked)
    assert any("bare weighs is not known" in why for why in json.loads(out)["infeasible"])
    assert "Import it with --model-config FILE" in run.refused("advise", "b", *asked, code=2)


@pytest.mark.slow
def test_what_is_lacking_is_said_as_it_is(run, three, tmp_path):
    lines = (tmp_path / "small.jsonl").read_text().splitlines()
    (tmp_path / "fewer.jsonl").write_text("\n".join(lines[:-3]) + "\n")
    code, _, err = run("import", "fewer.jsonl", "--model", "m", "--model-config", "small.json",
                       "--prompt-tokens", "9", "-o", "f")  # fmt: skip
    code, _, err = run("advise", "f", *GPU, "--optimise", "cost")
    assert code == 0 and "left out of f: 1 problem without 8 sound samples" in err
    cases = {
        ("u/a", "u/b"): "neither says which model it is of. Import each again with --model NAME",
        ("u/a",): "whose prompt_tokens are not known. Import again with --prompt-tokens N",
        ("x/f", "runs/large"): "(29 names are the same of 29 and 30). Import files of the same",
        ("x/e", "runs/large"): "(30 of the same names, whose prompts or expected answers differ",
        ("o/a", "runs/large"): "hold different models of the name org/large",
    }
    for name in ("u/a", "u/b"):
        run("import", "small.jsonl", "-o", name)
    run(
        "import", "small.jsonl", "--model", "org/large", "--model-config", "small.json", "-o", "o/a"
    )
    (tmp_path / "f.jsonl").write_text("\n".join(lines[8:]) + "\n")
    (tmp_path / "e.jsonl").write_text("\n".join(lines).replace("expected", "answered") + "\n")
    for name in ("f", "e"):
        run("import", f"{name}.jsonl", "--model", "x", "-o", f"x/{name}")
    for recordings, reason in cases.items():
        assert reason in run.refused("advise", *recordings, *GPU, "--optimise", "cost")
    assert "or take times from a GPU (--gpu)" in run.refused(
        "advise", "runs", "--optimise", "cost", code=1
    )


def test_what_contradicts_itself_is_told(run, tmp_path):
    outcomes(tmp_path / "a.jsonl", 0.5, 100, problems=2, think_tokens=7)
    first, *lines = (tmp_path / "a.jsonl").read_text().splitlines()
    odd = json.loads(first) | {"expected": "other", "think_tokens": 10**6}
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, json.dumps(odd)]) + "\n")
    code, out, _ = run("import", "a.jsonl", "-o", "a")
    told = " ".join(out.split())
    assert code == 0 and "1 value of think_tokens that is above output_tokens" in told
    assert "different expected answers, or some none: 1. The first counts" in told


def test_a_column_may_have_the_prompts_lengths_and_the_file_its_own(run, tmp_path):
    outcomes(tmp_path / "a.jsonl", 0.5, 100, problems=2, input_len=77)
    assert run("import", "a.jsonl", "--prompt-tokens", "input_len", "-o", "a")[0] == 0
    assert Recording.open(tmp_path / "a").samples["prompt_tokens"].unique().to_list() == [77]
    outcomes(tmp_path / "b.jsonl", 0.5, 100, problems=2, prompt_tokens=55)
    code, out, _ = run("import", "b.jsonl", "--prompt-tokens", "9", "-o", "b")
    assert code == 0 and "given" not in out  # as the file says it
    assert Recording.open(tmp_path / "b").samples["prompt_tokens"].unique().to_list() == [55]
    only = dataclasses.asdict(Recording.open(tmp_path / "b").manifest.workload)
    assert only["problems"] == 2


@pytest.mark.slow
def test_the_app_advises_and_asks_what_if(three, tmp_path):
    paths = [tmp_path / "runs" / name for name in MODELS]
    entries = [entry for path in paths for entry in load(path)]
    advisor = FittedAdvisor([Recording.open(path) for path in paths], systems=["test_gpu"])
    pick = advisor.recommend(parse_budget({"optimise": "latency"})).system_optimal
    assert pick is not None and pick.prior == "test_gpu"
    head, rows = advisor.what_if(pick, "engine.max_num_seqs=1", None)
    assert "engine.max_num_seqs=1, 90 % intervals of one more run" in head
    (latency,) = (row for row in rows if row[0] == "mean latency")
    assert "[" in latency[2]  # an interval
    assert latency[1] == value_of(pick.estimates["latency_s"])
    assert {labels(entry.run)[1] for entry in entries} == {"-"}  # an import tells no engine


@pytest.mark.slow
def test_two_imports_are_paired_by_their_common_problems(run, tmp_path):
    rows = {}
    for name, problems in (("Qwen2.5-7B", range(12)), ("Qwen2.5-14B.v2", range(3, 15))):
        rows[name] = [
            {"problem_id": f"p{i}", "sample_index": k, "answer": str(i), "expected": str(i),
             "correct": bool((i + k) % 3)}
            for i in problems for k in range(4)
        ]  # fmt: skip
    for row in rows["Qwen2.5-14B.v2"]:
        if row["problem_id"] == "p5":  # another problem of that name
            row["expected"] = "other"
    for name, own in rows.items():
        lines = "".join(json.dumps(row) + "\n" for row in own)
        (tmp_path / f"{name}.jsonl").write_text(lines)
        assert run("import", f"{name}.jsonl", "--model", name, "-o", name)[0] == 0
        assert Recording.open(tmp_path / name).manifest.workload.name == name
    out = run.ok("show", *rows)
    told = " ".join(out.split())
    assert "2 against 1: 8 problems, paired" in told
    assert "problems left out: 3 of 1 alone, 3 of 2 alone, 1 of the same name" in told
    document = json.loads(run("show", *rows, "--json")[1])["difference"]
    assert document["problems"] == 8 and sum(document["unpaired"].values()) == 7
    out = run.ok("import", *(f"{name}.jsonl" for name in rows), "-o", "both")
    groups = Recording.open(tmp_path / "both").problems["group"].unique().sort().to_list()
    assert groups == ["14B.v2", "7B"]  # without what the names share


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--policies", "--k", "3,x"), "--k 3,x: give whole numbers from 1 up"),
        (("--policies", "--k", "0"), "k = 0: "),
        (("--policies", "--k", "17"), "can say something of 1 to 16"),
        (("--k", "3"), "--k and --max-tokens go with --policies"),
        (("--policies", "--max-tokens", "0"), "--max-tokens 0: must be at least 1"),
    ],
)
def test_numbers_of_samples_are_those_asked_for(run, tmp_path, options, reason):
    outcomes(tmp_path / "a.jsonl", 0.5, 100, problems=6, samples=4)
    run("import", "a.jsonl", "-o", "a")
    assert reason in run.refused("show", "a", *options, code=2)
    found = json.loads(run("show", "a", "--policies", "--k", "3,5", "--json")[1])["runs"][0]
    assert {each["n"] for each in found["policies"] if each["method"] == "majority"} == {3, 5}


@pytest.mark.slow
def test_other_problems_have_an_interval_of_their_own(run, tmp_path):
    outcomes(tmp_path / "a.jsonl", 0.5, 100, problems=40, samples=4)
    run("import", "a.jsonl", "-o", "a")
    found = json.loads(run("show", "a", "--policies", "--json")[1])["runs"][0]["policies"]
    (one,) = [each for each in found if each["method"] == "majority" and each["n"] == 1]
    mean, others = one["accuracy"], one["other_problems"]
    assert others["high"] - others["low"] > 1.3 * (mean["high"] - mean["low"])
    assert "on 40 others" in run("show", "a")[1]
    text = run("show", "a", "--policies")[1]
    assert "40 other problems like these, 90 %: maj@1 [" in text


@pytest.mark.slow
def test_policies_of_outcomes_end_with_what_gives_times(run, tmp_path):
    outcomes(tmp_path / "a.jsonl", 0.6, 1500)
    (tmp_path / "a.json").write_text(json.dumps(llama_config()))
    model = ("--model", "org/a", "--model-config", "a.json", "--prompt-tokens", PROMPT)
    ends = {"bare": "import again with --model, --model-config", "known": "advise known --gpu "}
    for (name, end), options in zip(ends.items(), ((), model), strict=True):
        assert run("import", "a.jsonl", *options, "-o", name)[0] == 0
        code, out, _ = run("show", name, "--policies")
        said = " ".join(out.split())
        assert code == 0 and end in said.rpartition(" next ")[2] and "replay" not in said
        assert "samples are taken to end in the order of their tokens" in said
