"""`record --policy`: the file's policy runs, and no option of a policy beside it."""

import json
from pathlib import Path

import pytest

from traces.errors import UsageError
from traces.schema.tts.parameters import make_policy
from tui.options import RuleOptions, Sampling, grouped, verifier_for

FIELDS = {"method": "agreement", "n": 8, "temperature": 0.8, "agree": 3}


@pytest.fixture
def kept(tmp_path) -> Path:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps({"ttscope_policy": 1, "verifier": "choice", "policy": FIELDS}))
    return path


def asked(**options):
    return grouped(options, Sampling, RuleOptions)


def test_the_file_is_the_policy(kept):
    sampling, rule = asked(policy=kept)
    assert sampling.chosen(vars(rule)) == make_policy(FIELDS)
    assert verifier_for(sampling, "problems.jsonl", None) == "choice"
    assert verifier_for(sampling, "problems.jsonl", "exact") == "exact"
    assert verifier_for(sampling, "demo:preamble", None) is None


def test_an_effort_is_of_the_policy():
    sampling, rule = asked(reasoning_effort="high")
    assert sampling.chosen(vars(rule)).reasoning_effort == "high"


@pytest.mark.parametrize("option", [{"n": 4}, {"method": "majority"}, {"agree": 2}, {"top_p": 0.9}])
def test_an_option_of_the_policy_beside_it_is_refused(kept, option):
    sampling, rule = asked(policy=kept, **option)
    with pytest.raises(UsageError, match=f"says --{next(iter(option)).replace('_', '-')} too"):
        sampling.chosen(vars(rule))
