"""`import ttscope`: the examples of docs/python.md run, and each answer shows itself."""

import inspect
import json
import re
import shutil
from dataclasses import fields
from importlib import metadata
from pathlib import Path

import polars as pl
import pytest

import ttscope
from benchmarks.made.terminal import ROOT
from tests.advisor.synthetic import VOTE16, engine_of, record
from tests.test_docs import DOCS
from tests.tui.report.report_page import Page
from traces.errors import UsageError
from tui.options import AccountOptions, BudgetOptions, RuleOptions, Sampling, Watch
from tui.verbs import import_export
from tui.verbs.attach import Judging, MethodRules, Pose
from tui.verbs.gate import GateOptions, judged
from tui.verbs.record import Ask, Keep
from tui.verbs.replay import ReplayOptions
from tui.verbs.show import print_show

pytestmark = pytest.mark.slow

SAMPLE = {"problem_id": "p", "sample_index": 0, "answer": "1", "correct": True, "output_tokens": 3}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The names that the examples define, run one after another on the shipped recordings."""
    folder = tmp_path_factory.mktemp("notebook")
    shutil.copytree(ROOT / "profiler" / "demo" / "recordings", folder / "recordings")
    (folder / "samples.jsonl").write_text(json.dumps(SAMPLE) + "\n")
    names = {"ttscope": ttscope}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in re.findall(
            r"```python\n(.*?)```", (DOCS / "python.md").read_text(), re.DOTALL
        ):
            exec(block, names)
        yield names


def test_the_examples_say_what_the_verbs_say(ran):
    assert "accuracy" in repr(ran["summary"])
    assert ran["numbers"].filter(pl.col("metric") == "accuracy")["value"].item() == pytest.approx(
        ran["summary"].runs[0].accuracy.value
    )
    assert repr(ran["replay"]).count("predicted") >= 2
    assert repr(ran["answer"]).startswith("Run demo/")
    answer = ran["answer"]
    assert "$ per 1,000 problems" in repr(answer)
    usd = answer.costs.system_optimal.usd_per_thousand_problems.value
    assert usd == pytest.approx(1e3 * answer.system_optimal.estimates["cost_usd"].value)
    assert {each.reasoning_effort for each in answer.efforts.efforts} >= {"high"}
    html = answer._repr_html_()  # as in the report
    assert "What it costs" in html and "Which effort to use" in html
    assert ran["kept"].replay_of == ran["run"].name
    assert ran["imported"].to_polars("samples").height == 1


def test_two_runs_a_gate_and_policies_say_what_the_verbs_say(ran, capsys):
    one, two = (str(Path(each).resolve()) for each in (ran["run"].path, ran["greedy"]))
    assert print_show([Path(one), Path(two)], price=None, as_json=False) == 0
    assert repr(ran["both"]) == capsys.readouterr().out.rstrip("\n")
    assert ran["both"].to_json()["difference"]["problems"] == ran["both"].difference.problems
    asked = GateOptions(against=Path(one), recording=Path(two), fail_on=["accuracy<-.02"])
    assert ran["gated"].to_json() == judged(asked).to_json()
    assert ran["gated"].to_polars()["verdict"].to_list() == ["broken"]
    assert repr(ran["gated"]).startswith("FAILED: ")
    assert set(ran["fewer"].filter(method="majority")["n"]) >= {3, 5}
    tokens = ran["two"].to_polars().filter(metric="tokens_per_problem", kind="relative")
    assert tokens["value"].item() == pytest.approx(1.0, abs=0.05)


WRITE = (ttscope.record, ttscope.attach, ttscope.import_files)


@pytest.mark.parametrize(
    ("function", "groups", "own"),
    [
        (
            ttscope.advise,
            (BudgetOptions, AccountOptions),
            {"recordings", "seed", "output", "solver"},
        ),
        (ttscope.replay, (ReplayOptions,), {"changes", "solver"}),
        (ttscope.record, (Ask, Sampling, RuleOptions, Keep), set()),
        (ttscope.attach, (Watch, Pose, Sampling, MethodRules, Judging), set()),
        (ttscope.import_files, (import_export.Import,), set()),
        (ttscope.compare, (ReplayOptions,), {"a", "b", "price", "solver"}),
    ],
)
def test_a_notebook_completes_every_option(function, groups, own):
    options = {field.name for group in groups for field in fields(group)}
    options -= {"change", "explain", "interval"}  # what is printed, both intervals being there
    options -= {"as_json"} if function in WRITE else set()
    names = inspect.signature(function).parameters
    assert set(names) == options | own
    kinds = {each.kind for each in names.values()}
    assert inspect.Parameter.VAR_KEYWORD not in kinds


def test_a_price_by_type_is_that_of_the_recordings_device(ran):
    costs = [
        ttscope.show(ran["run"], price=price).runs[0].cost_usd_per_problem
        for price in (2.5, "2.5", {"CPU": 2.5, "H100": 9.0}, {"H100": 9.0}, None)
    ]
    assert costs[0] is not None and costs[0] == costs[1] == costs[2]
    assert costs[3] is costs[4] is None


def test_the_version_and_the_error_are_there():
    assert ttscope.__version__ == metadata.version("ttscope")
    with pytest.raises(ttscope.TtscopeError):
        ttscope.open("nowhere")
    with pytest.raises(AttributeError):
        ttscope.nothing  # noqa: B018


@pytest.mark.parametrize("name", ["run", "summary", "both", "two", "gated", "replay", "answer"])
def test_each_answer_has_html_and_rows(ran, name):
    answer = ran[name]
    html = answer._repr_html_()
    style, _, rest = html.removeprefix('<div class="ttscope"><style>').partition("</style>")
    assert "<table" in rest and "<script" not in html
    assert all(".ttscope" in rule for rule in _outermost(style))  # it holds for nothing else
    assert answer.to_polars().height > 0


def _outermost(style):
    """Return what stands before each rule that is in no other."""
    begin, depth, found = 0, 0, []
    for at, letter in enumerate(style):
        if letter == "{" and not depth:
            found.append(style[begin:at])
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if letter == "}" and not depth:
            begin = at + 1
    return found


def test_a_cell_has_the_charts_of_the_fronts_and_its_parts_stand_apart_without_style(ran):
    html = ran["answer"]._repr_html_()
    charts = re.findall("<figcaption>.*?Accuracy against ([^<]+)", html)
    assert charts == ["mean latency", "FLOPs"] and html.count('class="front system" points') == 1
    assert 'title="Seconds from a problem' in html and "data-tip=" not in html
    bare = re.sub("<br>", "\n", re.sub("<style>.*?</style>", "", html, flags=re.DOTALL))
    text = re.sub("<[^>]+>", "", bare)
    assert re.search(r"temperature 0.8\n1 device", text) and "A system-optimal\ndemo/" in text
    replayed = re.sub("<[^>]+>", " ", ran["replay"]._repr_html_())
    places = [replayed.index(f" {name} ") for name in ("recorded", "replayed", "predicted")]
    assert places == sorted(places) and "Recorded runs" not in replayed
    read = Page(ran["replay"]._repr_html_()).text
    assert all(note in read for note in ran["replay"].prediction.notes)


def test_an_error_is_one_line_in_a_notebook(ran):
    """IPython shows what this gives in place of the traceback."""
    with pytest.raises(UsageError) as caught:
        ttscope.replay(ran["run"], {"engine.max_num_seqs": 0})
    (line,) = caught.value._render_traceback_()
    assert line == f"UsageError: {caught.value}" and "\n" not in line


def test_a_wrong_option_is_named(ran):
    with pytest.raises(TypeError, match="unexpected keyword argument 'min_acuracy'"):
        ttscope.advise(ran["run"], min_acuracy=0.5)


@pytest.mark.slow
def test_another_regression_is_put_in(tmp_path):
    from sklearn.linear_model import Ridge

    made = record(tmp_path / "r", engine_of(), VOTE16, problems=8)
    stiff = Ridge(alpha=10.0, positive=True, fit_intercept=False)
    own, other = (ttscope.replay(made, {"policy.n": 4}, solver=each) for each in (None, stiff))
    first, second = (each.prediction.predicted.latency_s["mean"] for each in (own, other))
    assert first.value != second.value
    picks = ttscope.advise(made, min_accuracy=0.1, solver=stiff).system_optimal
    assert picks is not None
