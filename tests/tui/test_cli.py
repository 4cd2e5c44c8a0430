"""The command line: exit codes, one-line errors, and the JSON contract."""

import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from advisor.what_if.predict import predict
from advisor.what_if.question import Question, changed
from traces.errors import UsageError
from traces.recording.reader import Recording
from traces.summary.run import summarise
from tui.cli import loaded, main
from tui.verbs.demo import SHIPPED

RUN = next(SHIPPED.glob("demo-s-*-maj@16-*"))
NOBODY = "http://127.0.0.1:9"  # answers there
PROGRESS = re.compile(r", \d:\d\d:\d\d$")
ESTIMATE = {"value", "low", "high", "unit", "extrapolated"}


def truncated(folder):
    copy = folder / "truncated"
    shutil.copytree(RUN, copy)
    part = min(copy.glob("steps-*.parquet"))
    part.write_bytes(part.read_bytes()[:1000])
    return copy


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["show", "/etc/passwd"], 1, "/etc/passwd: not a recording"),
        (["show", "absent"], 1, "absent: no such recording"),
        (["replay", SHIPPED], 1, f"but a folder of {len(list(SHIPPED.iterdir()))}. Name one"),
        (["show", SHIPPED.parent], 1, "not a recording, it has no recording.json"),
        (["replay", RUN, "--max-num-seqs", "8"], 2, "Write --set engine.max_num_seqs=VALUE"),
        (["replay", RUN, "--window", "8"], 2, "Write --set policy.window=VALUE"),
        (["replay", RUN, "--set", "engine.max_num_seqs=128,policy.n=8"], 2,
         "Repeat it: --set engine.max_num_seqs=128 --set policy.n=8"),
        (["gate", RUN, RUN / "recording.json"], 2, "Name expect.json first"),
        (["doctor", NOBODY], 1, "no server answers"),
        (["replay", RUN, "--set", "foo"], 2, "give engine.FIELD=VALUE or policy.FIELD=VALUE"),
        (["replay", RUN, "--set", "policy.n=0"], 2, "n must be at least 1"),
        (["replay", RUN, "--rate", "2/s", "--concurrency", "3"], 2, "give one"),
        (["replay", RUN, "--replicas", "0"], 2, "--replicas must be at least 1"),
        (["replay", RUN, "--routing", "hash"], 2, "one of round-robin, least-outstanding"),
        (["replay", RUN, "--run", "2"], 2, "holds 1"),
        (["replay", "absent"], 1, "absent: no such recording"),
        (["record", "--n", "0"], 2, "n must be at least 1, not 0"),
        (["record"], 2, "needs --model, or --endpoint"),
        (["record", "--model", "demo/x"], 2, "no bundled model demo/x"),
        (["record", "--model", "demo/s", "--problems", "0"], 2, "--problems must be at least 1"),
        (["record", "--model", "demo/s", "--concurrency", "0"], 2, "--concurrency must be at"),
        (["record", "--model", "demo/s", "--workload", "no.jsonl"], 2, "cannot be read"),
        (["record", "--model", "demo/s", "--otlp", "x"], 2, "give an OTLP/HTTP URL"),
        (["record", "--model", "demo/s", "--speculative", "{"], 2, "--speculative: not JSON"),
        (["record", "--model", "demo/s", "--speculative", "{}"], 2, "needs method"),
        (["record", "--model", "demo/s", "--max-num-seqs", "0"], 2, "max_num_seqs must be"),
        (["record", "--model", "demo/s", "--price", "-1"], 2, "--price must be above 0"),
        (["record", "--model", "demo/s", "--temperature", "-1"], 2, "must not be negative"),
        (["record", "--model", "demo/s", "--temperature", "inf"], 2, "must be finite"),
        (["record", "--model", "demo/s", "--temperature", "nan"], 2, "must be finite"),
        (["record", "--model", "demo/s", "--timeout", "0"], 2, "--timeout must be above 0"),
        (["record", "--model", "demo/s", "--method", "vote"], 2, "no method 'vote'"),
        (["record", "--model", "demo/s", "--n", "4", "--window", "2"], 2, "is for early_stopping"),
        (["record", "--model", "demo/s", "--method", "early_stopping", "--window", "1"], 2,
         "window must be a whole number of at least 2"),
        (["record", "--model", "demo/s", "--budget-checkpoints", "a"], 2, "give token counts"),
        (["record", "--model", "demo/s", "--budget-checkpoints", "0"], 2, "above 0"),
        (["record", "--model", "demo/s", "--method", "best_of_n", "--scorer", "x"], 2,
         "--scorer x: give a URL"),
        (["record", "--endpoint", NOBODY], 1, "no server answers"),
        (["record", "--endpoint", NOBODY, "--api-key-env", "ABSENT_KEY"], 2,
         "--api-key-env: the variable ABSENT_KEY is not set"),
        (["attach", NOBODY], 1, "no server answers"),
        (["attach", "nonsense"], 2, "write http://HOST:PORT"),
        (["attach", NOBODY, "--duration", "soon"], 2, "90s, 10m or 2h"),
        (["attach", NOBODY, "--on-loss", "cry"], 2, "wait or end"),
        (["attach", NOBODY, f"{NOBODY}/v1"], 2, "named twice"),
        (["attach", NOBODY, "--workload", "demo", "--passive"], 2, "exclude"),
        (["attach", NOBODY, "--spans-without-token"], 2, "nobody listens"),
        (["attach", NOBODY, "--listen", "0.0.0.0:0", "--spans-without-token"], 2,
         "others on the network reach it"),
        (["attach", NOBODY, "--workload", "demo", "--rule", "window"], 2, "NAME=VALUE"),
        (["advise", RUN, "--max-latency", "banana"], 2, "--max-latency banana"),
        (["advise", RUN, "--min-accuracy", "1.5"], 2, "--min-accuracy 1.5"),
        pytest.param(["advise", RUN, "--max-cost", "$1"], 2, "price", marks=pytest.mark.slow),
        pytest.param(["advise", RUN, "--max-energy", "5J"], 2, "energy", marks=pytest.mark.slow),
        (["advise", RUN, "--optimise", "fun"], 2, "--optimise fun"),
        (["advise", RUN, "--confidence", "2", "--gpus", "1"], 2, "confidence"),
        (["advise", RUN], 2, "the budget is empty"),
        pytest.param(
            ["advise", RUN, "--max-latency", "1ms"],
            1,
            "nothing fits the budget, nearest to",
            marks=pytest.mark.slow,
        ),
        (["advise", "absent", "--gpus", "1"], 1, "no such recording"),
        (["show", "x" * 5_000], 1, "xx: cannot be read or written (File name too long)"),
        (["sweep", "absent.yaml"], 2, "cannot be read"),
        (["tui", SHIPPED, "--screenshot", "a.svg", "--size", "big"], 2, "--size big"),
        (["tui", SHIPPED, "--screenshot", "a.svg", "--screen", "none"], 2, "none"),
        (["tui", "absent"], 1, "absent: no such recording or folder"),
        (["tui", "absent", "--web"], 1, "absent: no such recording or folder"),
        (["nonsense"], 2, "No such command"),
        (["shwo"], 2, "did you mean show?"),
        (["advise", RUN, "--percentile", "p200", "--max-latency", "1s"], 2, "wants 50 to 99"),
        (["show"], 2, "Missing argument"),
    ],
)  # fmt: skip
def test_errors_are_one_line(run, arguments, code, message):
    got, out, err = run(*arguments)
    assert got == code and (out == "" or "nothing fits" in message), err
    # On a busy machine lines of progress come before it.
    (line,) = (each for each in err.strip().splitlines() if not PROGRESS.search(each))
    assert line.startswith("ttscope: ")
    assert message in line
    assert "Traceback" not in err


def test_a_user_without_a_home_is_given_one(run, monkeypatch):
    def unknown():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("HOME", "")
    monkeypatch.setattr(Path, "home", unknown)
    assert run("--version")[0] == 0
    assert os.environ["HOME"] == "/"


def test_what_a_terminal_cannot_write_is_a_question_mark(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr(sys, "argv", ["ttscope", "show", str(RUN)])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0
    assert b"accuracy" in written.getvalue() and b"?" in written.getvalue()


FULL = "ttscope: stdout or a file cannot be written (No space left on device)\n"


@pytest.mark.parametrize(
    ("streams", "code", "said"),
    [(">&-", 0, ""), ("<&- >&- 2>&-", 0, ""), ("2>/dev/full", 0, ""), (">/dev/full", 1, FULL)],
)
def test_streams_that_are_closed_or_full_are_no_traceback(streams, code, said):
    command = f'{sys.executable} -c "from tui.cli import main; main()" show "$0" {streams}'
    told = ["sh", "-c", command, RUN]
    done = subprocess.run(told, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, said)


def test_texts_paths_and_defaults_are_read_without_pydantic():
    code = (
        "import sys; from tui.cli import loaded\n"
        "given = ['a', '--set', 'policy.n=2', '--with', 'b', '--gpu', 'h100_sxm', '--rate=2/s']\n"
        "read = loaded('replay').make_context('replay', given).params\n"
        "print(*(str(read[name]) for name in ('recording', 'change', 'learn', 'rate', 'seed')),\n"
        "      'pydantic' in sys.modules, sep='|')"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    learned = str([Path("b")])
    assert told.stdout.strip() == f"a|['policy.n=2']|{learned}|2/s|0|False"


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["a", "--seed", "7"], "seed", 7),
        (["a", "--with", "b", "--with", "c"], "learn", [Path("b"), Path("c")]),
        (["a", "--json"], "as_json", True),
        ([""], "recording", Path()),
    ],
)
def test_values_are_of_their_parameters_types(arguments, name, value):
    assert loaded("replay").make_context("replay", [*arguments]).params[name] == value


def test_a_word_is_refused_where_a_number_is_asked():
    with pytest.raises(Exception, match="valid integer"):
        loaded("replay").make_context("replay", ["a", "--seed", "x"])


@pytest.fixture(scope="module")
def recorded():
    return summarise(Recording.open(RUN))[0]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("engine.seqs=3", "no such field: one of model"),
        ("engine.max_num_seqs=x", "give a whole number"),
        ("engine.model=3", "engine.model=3: give a text"),
        ("engine.speculative={method: ngram, num_speculative_tokens: 1.5}",
         "engine.speculative: give null or a mapping"),
        ("policy.n=3.5", "policy.n=3.5: give a whole number"),
        ("policy.n=4.0", "policy.n=4.0: give a whole number"),
        ("policy.n=abc", "policy.n=abc: give a whole number"),
        ("policy.n=true", "policy.n=True: give a whole number"),
        ("policy.n=null", "policy.n=None: give a whole number"),
        ("policy.temperature=abc", "temperature=abc: give a number"),
        ("policy.top_p=.nan", "top_p=nan: give a number"),
        ("policy.method=[a]", "give a text"),
        ("policy.method=vote", "no method"),
        ("policy.rule=x", "give its parameters by name"),
        ("policy.window=x", "policy: window"),
    ],
)  # fmt: skip
def test_settings_that_no_run_can_have(recorded, setting, message):
    with pytest.raises(UsageError, match=re.escape(message)) as told:
        changed(recorded, [setting])
    assert "\n" not in str(told.value)


def test_truncated_part_is_one_line(run, tmp_path):
    assert "truncated or corrupt" in run.refused("show", truncated(tmp_path), code=1)


def test_taken_output_is_refused_before_the_engine_starts(run, tmp_path):
    (tmp_path / "recording.json").write_bytes((RUN / "recording.json").read_bytes())
    assert "already holds a recording" in run.refused(
        "record", "--model", "demo/s", "-o", tmp_path, code=2
    )


def check_estimate(estimate):
    assert ESTIMATE <= set(estimate) <= ESTIMATE | {"of", "fresh", "others"}
    assert math.isfinite(estimate["value"])
    if estimate["low"] is not None:
        assert estimate["low"] <= estimate["value"] <= estimate["high"]


def check_advice(document):
    """The contract of `advise --json`."""
    wanted = {"budget", "system_optimal", "compute_optimal", "regret", "pareto",
              "compute_pareto", "reasons",
              "near_misses", "measure_next", "candidates", "infeasible"}  # fmt: skip
    assert wanted <= set(document)
    for name in ("system_optimal", "compute_optimal"):
        pick = document[name]
        assert {"engine", "policy", "command", "estimates", "probability_within_budget"} <= set(
            pick
        )
        assert " -m vllm.entrypoints.openai.api_server --model /" in pick["command"]
        assert f"--served-model-name {pick['engine']['model']} " in pick["command"]
        assert 0 <= pick["probability_within_budget"] <= 1
        given = {"accuracy", "latency_s", "latency_p95_s", "device_s", "tokens", "flops"}
        assert given <= {key for key, value in pick["estimates"].items() if value is not None}
        for estimate in pick["estimates"].values():
            if estimate is not None:
                check_estimate(estimate)
    for estimate in document["regret"].values():
        if estimate is not None:
            check_estimate(estimate)
    flops = [document[n]["estimates"]["flops"]["value"] for n in ("system_optimal",
             "compute_optimal")]  # fmt: skip
    assert flops[1] <= flops[0] * 1.0001


@pytest.mark.slow
def test_shipped_demo_is_the_whole_document(run):
    code, out, err = run("demo", "--once", "--json", "--shipped")
    assert code == 0, err
    assert "these are the shipped recordings (--shipped was given)" in err
    document = json.loads(out)
    check_advice(document)
    assert len(document["recordings"]) >= 5
    assert document["system_optimal"]["probability_within_budget"] >= 0.9


@pytest.mark.slow
def test_shipped_demo_as_text_fits_80_columns(run):
    out = run.ok("demo", "--once", "--shipped")
    body, _, _ = out.partition("\nrecordings in ")
    assert max(map(len, body.splitlines())) <= 80
    assert "-m vllm.entrypoints.openai.api_server" in body
    assert "compute-optimal" in body


@pytest.mark.slow
def test_demo_without_vllm_says_why_and_goes_on(run, monkeypatch):
    monkeypatch.setattr("tui.verbs.demo._vllm_is_missing", lambda: "vLLM is not installed")
    code, out, err = run("demo", "--once", "--json")
    assert code == 0
    assert "vLLM is not installed" in " ".join(err.split())
    check_advice(json.loads(out))


@pytest.mark.slow
def test_show_json_has_one_document(run):
    out = run.clean("show", "--json", *sorted(SHIPPED.iterdir())[:2])
    document = json.loads(out)
    assert len(document["runs"]) == 2
    assert "difference" in document
    for run_ in document["runs"]:
        check_estimate(run_["accuracy"])
        check_estimate(run_["latency_s"]["p95"])
        assert run_["energy_j"] is None or run_["energy_j"]["total"] is None


@pytest.mark.slow
def test_replay_prints_recorded_replayed_and_predicted(run, tmp_path):
    out = run.clean(
        "replay", RUN, "--set", "engine.max_num_seqs=8", "--explain", "-o", tmp_path / "kept"
    )
    lines = out.splitlines()
    assert all(len(line) <= 80 for line in lines if str(tmp_path) not in line)
    assert "asked     engine.max_num_seqs 64 -> 8" in lines
    assert any(line.startswith("latency p95") and "[" in line for line in lines)
    assert any(line.startswith("who waited") for line in lines)
    ties = "accuracy 0.948 recorded and 0.915 replayed are of the same samples: the run gave a tied"
    assert ties in " ".join(out.split())
    out = run.ok("show", tmp_path / "kept")
    assert "seqs8" in out


@pytest.fixture(scope="module")
def predicted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predicted") / "rep"
    base = Recording.open(RUN)
    (recorded,) = summarise(base)
    engine = replace(recorded.engine, max_num_seqs=8)
    predict(base, recorded, Question(engine=engine, policy=recorded.policy)).write(folder)
    return folder


@pytest.mark.slow
def test_a_prediction_is_shown_as_one(run, predicted, tmp_path):
    told = f"predicted by replay of {Path(RUN).name}"
    out = run.ok("show", predicted)
    assert told in " ".join(out.split())
    documents = [json.loads(run("show", path, "--json")[1])["runs"][0] for path in (RUN, predicted)]
    assert [each["replay_of"] for each in documents] == [None, Path(RUN).name]
    assert run("report", RUN, predicted, "-o", tmp_path / "page.html")[0] == 0
    page = (tmp_path / "page.html").read_text()
    assert told in page
    assert "incomplete, predicted or without problems: rep" in page


@pytest.mark.slow
def test_nothing_is_learned_from_a_prediction(run, predicted):
    mend = f"rep is a prediction. Give the recording that it was replayed from ({Path(RUN).name})"
    budget = ("--optimise", "latency")
    for arguments in (
        ("replay", predicted),
        ("replay", RUN, "--with", predicted),
        ("advise", predicted, *budget),
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (1, "")
        assert err.strip().endswith(mend)
    alone, both = run("advise", RUN, *budget), run("advise", RUN, predicted, *budget)
    assert alone[:2] == both[:2]
    assert "left out, being predictions: rep" in both[2]


@pytest.mark.slow
def test_replay_json_has_one_document(run):
    out = run.clean("replay", "--json", RUN, "--set", "policy.n=4")
    document = json.loads(out)
    assert document["predicted"]["config"]["policy"]["n"] == 4
    assert document["recorded"]["config"]["policy"]["n"] == 16
    change = document["changes"]["latency_s.p95"]
    for which in ("recorded", "replayed", "predicted"):
        check_estimate(change[which])
    low, value, high = (change["predicted"][name] for name in ("low", "value", "high"))
    assert low < value < high
    assert change["relative"] == pytest.approx(value / change["replayed"]["value"] - 1)


def test_shipped_recordings_are_small_and_name_no_machine():
    files = [path for path in SHIPPED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1_500_000
    for path in SHIPPED.glob("*/recording.json"):
        manifest = json.loads(path.read_text())
        assert manifest["complete"]
        assert all("/" not in model.removeprefix("demo/") for model in manifest["models"])


def test_help_names_the_extra(run):
    for verb, extra in (("tui", "web"), ("attach", "grpc")):
        _, out, _ = run(verb, "--help")
        words = " ".join(out.replace("│", " ").split())
        assert f"(extra {extra})." in words
