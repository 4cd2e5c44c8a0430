"""`import ttscope`: the examples of docs/python.md run, and each answer shows itself."""

import json
import re
import shutil

import polars as pl
import pytest

import ttscope
from benchmarks.made.terminal import ROOT
from tests.test_docs import DOCS
from traces.errors import UsageError

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
    assert repr(ran["answer"]).startswith("Run demo/s")
    answer = ran["answer"]
    assert "$ per 1,000 problems" in repr(answer)
    usd = answer.costs.system_optimal.usd_per_thousand_problems.value
    assert usd == pytest.approx(1e3 * answer.system_optimal.estimates["cost_usd"].value)
    assert {each.reasoning_effort for each in answer.efforts.efforts} >= {"high"}
    html = answer._repr_html_()  # as in the report
    assert "What it costs" in html and "Which effort to use" in html
    assert ran["kept"].replay_of == ran["run"].name
    assert ran["imported"].to_polars("samples").height == 1


@pytest.mark.parametrize("name", ["run", "summary", "replay", "answer"])
def test_each_answer_has_html_and_rows(ran, name):
    answer = ran[name]
    assert "<table" in answer._repr_html_()
    assert answer.to_polars().height > 0


def test_a_wrong_option_is_named(ran):
    with pytest.raises(UsageError, match="no option min_acuracy: did you mean min_accuracy?"):
        ttscope.advise(ran["run"], min_acuracy=0.5)
