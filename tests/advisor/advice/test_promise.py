"""The files of a pick: the command runs as it is, the policy is the pick's, promises add up."""

import os
import subprocess

import pytest

from advisor.advice.advisor import Advisor
from advisor.advice.promise import expectations, write_config
from tests.advisor.synthetic import VOTE16, engine_of, record
from traces.deployment.documents import read_expectations, read_policy
from traces.schema.advice import Budget
from traces.summary.problems import voting_samples


@pytest.fixture(scope="module")
def advised(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    made = record(folder / "one", engine_of(), VOTE16, problems=30)
    advisor = Advisor.fit([made])
    return made, advisor, advisor.recommend(Budget(optimise="latency", min_accuracy=0.3))


def test_the_files_say_what_was_recommended(advised, tmp_path):
    _, advisor, answer = advised
    folder = tmp_path / "it's here"
    write_config(folder, answer, advisor.evidence)
    pick = answer.system_optimal
    assert read_policy(folder / "policy.json").policy == pick.policy
    expected = read_expectations(folder / "expect.json")
    assert (expected.engine, expected.policy) == (pick.engine, pick.policy)
    assert expected.promised == dict(pick.estimates)
    assert expected.concurrency == 4


def test_the_script_runs_the_command_with_options_of_its_own(advised, tmp_path):
    _, advisor, answer = advised
    write_config(tmp_path, answer, advisor.evidence)
    fake = tmp_path / "bin"
    fake.mkdir()
    for name in ("vllm", "python"):
        (fake / name).write_text('#!/bin/sh\nfor each in "$@"; do echo "$each"; done\n')
        (fake / name).chmod(0o755)
    ran = subprocess.run(
        [str(tmp_path / "serve.sh"), "--port", "8001"],
        env={"PATH": f"{fake}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.split()[-2:] == ["--port", "8001"]
    assert "--max-num-seqs" in ran.stdout.split()


def test_what_traffic_is_assumed_to_be_like_is_what_was_recorded(advised):
    made, advisor, answer = advised
    assumed = expectations(answer, advisor.evidence).assumed
    samples = voting_samples(made.samples.with_columns(problem="problem_id"))
    assert assumed["output_tokens"].value == pytest.approx(samples["output_tokens"].mean())
    assert assumed["prompt_tokens"].value == pytest.approx(samples["prompt_tokens"].mean())
    assert assumed["acceptance_length"] is None
    if answer.system_optimal.policy.n > 1:
        assert 1 / 16 < assumed["agreement"].value <= 1
