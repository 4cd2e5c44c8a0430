"""Outcomes of three models that people serve, on the installed tables of a GPU."""

import importlib.util
import json
import re
import shutil

import pytest

from advisor.advice.advisor import Advisor
from advisor.step_time.prior import prior
from tests.tui.verbs.test_outcomes_alone import outcomes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("aiconfigurator_core") is None,
        reason="aiconfigurator-core is not installed (ttscope[prior])",
    ),
]
MODELS = {  # of the folder of configs: how often right, tokens of a sample
    "Qwen--Qwen3-8B": (0.70, 9000),
    "meta-llama--Meta-Llama-3.1-8B": (0.55, 4000),
    "Qwen--Qwen3-32B": (0.85, 7000),
}
ASKED = (
    "advise", "runs", "--gpu", "h100_sxm", "--gpus", "8", "--price", "H100=2.5",
    "--min-accuracy", ".7", "--optimise", "cost",
)  # fmt: skip


@pytest.fixture
def verb(run, tmp_path, shared):
    """Run a verb where the models' outcomes are imported; return what it printed."""

    def call(*arguments):
        out = run.ok(*arguments)
        return out

    for seed, (name, (skill, tokens)) in enumerate(MODELS.items()):
        outcomes(tmp_path / f"{name}.jsonl", skill, tokens, seed=seed)
        shutil.copy(shared / f"data/model_configs/{name}_config.json", tmp_path / f"{name}.json")
        call(
            "import", f"{name}.jsonl", "--model", name.replace("--", "/"),
            "--model-config", f"{name}.json", "--max-tokens", "65536", "--prompt-tokens", "120",
            "-o", f"runs/{name}",
        )  # fmt: skip
    return call


@pytest.fixture
def learned_once(monkeypatch):
    """The advisor that the first verb learns; the others ask it too."""
    fit, made = Advisor.fit.__func__, []

    def once(cls, recordings, **options):
        if not made:
            made.append(fit(cls, recordings, **options))
        return made[0]

    monkeypatch.setattr(Advisor, "fit", classmethod(once))


@pytest.mark.usefixtures("learned_once")
def test_advice_in_text_in_json_and_in_the_report(verb, tmp_path):
    prior._priced.cache_clear()
    out = verb(*ASKED)
    assert out.startswith("Run ") and "(the prior), not from a run." in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 80
    pick = json.loads(verb(*ASKED, "--json"))["system_optimal"]
    assert pick["engine"]["model"].rpartition("/")[2] in out
    assert pick["estimates"]["accuracy"]["value"] >= 0.7
    # Weights and samples read the memory: no problem is answered faster than it can be read.
    tokens = pick["estimates"]["tokens"]["value"] / pick["policy"]["n"]
    assert pick["estimates"]["latency_s"]["value"] > tokens * 16e9 / 3.35e12 / 8
    verb("report", *ASKED[1:-2], "-o", "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "times by the prior of h100_sxm" in re.sub(r"<[^>]*>", "", page)
    # A model's tables are read once for each number of devices (1, 2, 4, 8), whatever the limits.
    assert len(MODELS) <= prior._priced.cache_info().misses <= 4 * len(MODELS)
