"""Outcomes of three models that people serve, on the installed tables of a GPU."""

import importlib.util
import json
import os
import shutil
import subprocess

import pytest

from benchmarks.made.terminal import TTSCOPE
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
    "--min-accuracy", ".75", "--optimise", "cost",
)  # fmt: skip


def ttscope(folder, *arguments, **environment):
    """Run a command as a user does; return what it printed."""
    done = subprocess.run(
        [*TTSCOPE, *arguments], cwd=folder, capture_output=True, text=True, check=False,
        env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def runs(tmp_path_factory, shared):
    folder = tmp_path_factory.mktemp("outcomes")
    for seed, (name, (skill, tokens)) in enumerate(MODELS.items()):
        outcomes(folder / f"{name}.jsonl", skill, tokens, seed=seed)
        shutil.copy(shared / f"data/model_configs/{name}_config.json", folder / f"{name}.json")
        ttscope(
            folder, "import", f"{name}.jsonl", "--model", name.replace("--", "/"),
            "--model-config", f"{name}.json", "--max-tokens", "65536", "--prompt-tokens", "120",
            "-o", f"runs/{name}",
        )  # fmt: skip
    return folder


def test_advice_in_text_in_json_and_in_the_report(runs):
    out = ttscope(runs, *ASKED)
    assert out.startswith("Run ") and "(the prior), not from a run." in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 80
    pick = json.loads(ttscope(runs, *ASKED, "--json"))["system_optimal"]
    assert pick["engine"]["model"].rpartition("/")[2] in out
    assert pick["estimates"]["accuracy"]["value"] >= 0.75
    # Weights and samples read the memory: no problem is answered faster than it can be read.
    tokens = pick["estimates"]["tokens"]["value"] / pick["policy"]["n"]
    assert pick["estimates"]["latency_s"]["value"] > tokens * 16e9 / 3.35e12 / 8
    ttscope(runs, "report", *ASKED[1:-2], "-o", "page.html")
    page = (runs / "page.html").read_text()
    assert "Its times come from operator tables of h100_sxm" in page


def test_the_tables_of_a_gpu_are_learned_once_for_all_limits(runs, monkeypatch):
    from advisor.advice.advisor import Advisor
    from advisor.search.budget import parse_budget
    from advisor.step_time.operators import tables
    from traces.recording.reader import Recording

    recordings = [Recording.open(runs / "runs" / name) for name in MODELS]
    tables._law_of.cache_clear()
    advisor = Advisor.fit(recordings, gpus=["h100_sxm"])
    advisor.recommend(parse_budget({"min_accuracy": ".75", "optimise": "cost"}))
    offered = {
        (kind.engine.model, kind.engine.tensor_parallel_size) for kind in advisor.space.kinds
    }
    assert tables._law_of.cache_info().misses <= len(offered)
