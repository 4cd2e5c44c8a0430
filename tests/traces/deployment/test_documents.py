"""policy.json and expect.json: what is written reads back, and what is wrong is one line."""

import dataclasses
import json
import os
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from tests.advisor.synthetic import VOTE16, engine_of
from traces.deployment.documents import (
    MOST_BYTES,
    Expectations,
    PolicyFile,
    read_expectations,
    read_policy,
    write_document,
)
from traces.errors import UsageError
from traces.recording.manifest import WorkloadFacts
from traces.schema.advice import Budget
from traces.schema.engine import Speculative
from traces.schema.estimate import Estimate
from traces.schema.tts.methods import METHODS
from traces.schema.tts.parameters import complete, make_policy

RUNNABLE = [name for name, each in METHODS.items() if not each.of_others]


@pytest.mark.parametrize("method", RUNNABLE)
@pytest.mark.parametrize("budget", [None, 64])
def test_every_policy_reads_back_as_it_was_written(tmp_path, method, budget):
    n = 1 if method == "greedy" else 8
    if method == "beam" and budget:
        pytest.skip("beam takes no budget")
    policy = make_policy(
        {"method": method, "n": n, "temperature": 0.7, "thinking_token_budget": budget}
    )
    kept = PolicyFile(policy=policy, model="m", verifier="numeric", most_n=n)
    write_document(tmp_path / "policy.json", kept)
    assert read_policy(tmp_path / "policy.json") == kept


@pytest.mark.parametrize(
    ("version", "more"),
    [
        (1, {"method": "agreement", "reasoning_effort": "low"}),
        (2, {"method": "routed", "reasoning_effort": "low"}),
        (4, {"method": "routed", "route": "easy=2@low | *=8@high"}),
    ],
)
def test_only_a_policy_with_a_table_needs_a_version_that_knows_it(tmp_path, version, more):
    policy, path = make_policy({"n": 8, "temperature": 0.7, **more}), tmp_path / "policy.json"
    write_document(path, PolicyFile(policy=policy, most_n=8))
    assert json.loads(path.read_bytes())["ttscope_policy"] == version
    assert read_policy(path).policy == policy


def test_a_table_of_both_one_effort_and_several_is_refused(tmp_path):
    path = tmp_path / "policy.json"
    policy = make_policy(
        {"method": "routed", "n": 8, "route": "easy=2@low | *=8@high", "temperature": 0.7}
    )
    write_document(path, PolicyFile(policy=policy, most_n=8))
    document = json.loads(path.read_text())
    document["policy"]["reasoning_effort"] = "low"
    path.write_text(json.dumps(document))
    with pytest.raises(UsageError, match=r"policy\.json: policy: reasoning_effort low and efforts"):
        read_policy(path)


def test_a_temperature_that_nobody_told_is_asked_for(tmp_path):
    """Samples drawn without one would be greedy, and their vote that of one."""
    policy = dataclasses.replace(make_policy({"method": "majority", "n": 8}), temperature=None)
    path = tmp_path / "policy.json"
    write_document(path, PolicyFile(policy=policy, most_n=8))
    with pytest.raises(
        UsageError, match=r'policy\.json: .* Put it in, such as "temperature": 0\.6'
    ):
        read_policy(path)
    document = json.loads(path.read_text())
    document["policy"]["temperature"] = 0.6
    path.write_text(json.dumps(document))
    assert read_policy(path).policy == dataclasses.replace(policy, temperature=0.6)


def test_expectations_read_back_as_they_were_written(tmp_path):
    estimate = Estimate(value=0.5, low=0.4, high=0.6, unit="1", runs=2, extrapolated=True)
    drafts = Speculative(method="ngram", num_speculative_tokens=3, prompt_lookup_max=4)
    kept = Expectations(
        engine=dataclasses.replace(engine_of(), speculative=drafts, other=(("seed", "1"),)),
        policy=complete(VOTE16),
        promised={"accuracy": estimate, "energy_j": None},
        assumed={"agreement": estimate},
        rate_per_s=2.0,
        workload=WorkloadFacts(name="w", hash="h", problems=3),
        budget=Budget(min_accuracy=0.5, prices=(("H100", 2.5),)),
        probability_within_budget=0.9,
    )
    write_document(tmp_path / "expect.json", kept)
    text = (tmp_path / "expect.json").read_text()
    assert "null" not in text and text.startswith('{\n  "ttscope_expect": 1,')
    known = dataclasses.replace(kept, promised={"accuracy": estimate})
    assert read_expectations(tmp_path / "expect.json") == known
    untold = dataclasses.replace(kept.policy, temperature=None)
    write_document(tmp_path / "expect.json", dataclasses.replace(kept, policy=untold))
    assert '"temperature": null' in (tmp_path / "expect.json").read_text()
    endless = dataclasses.replace(estimate, high=float("inf"))
    unknown = dataclasses.replace(estimate, value=float("nan"))
    told = dataclasses.replace(kept, promised={"accuracy": endless, "latency_s": unknown})
    write_document(tmp_path / "expect.json", told)
    found = read_expectations(tmp_path / "expect.json").promised
    assert found == {"accuracy": dataclasses.replace(estimate, high=None)}


POLICY = {"ttscope_policy": 1, "policy": {"method": "majority", "n": 4, "temperature": 0.8}}
EXPECT = {
    "ttscope_expect": 1,
    "engine": {"model": "m"},
    "policy": {},
    "load": {},
    "promised": {"accuracy": {"value": 1, "unit": "1"}},
}


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (read_policy, "", "is not JSON"),
        (read_policy, "\xff", "is not JSON"),
        (read_policy, "[" * 100_000, "is not JSON"),
        (read_policy, "[1]", "has no 'ttscope_policy'"),
        (read_policy, json.dumps(EXPECT), "has no 'ttscope_policy'"),
        (read_policy, json.dumps(POLICY | {"ttscope_policy": 5}), "version 5 is newer"),
        (read_policy, json.dumps(POLICY | {"ttscope_policy": 3}),
         "no 'ttscope_policy' has version 3"),
        (read_policy, json.dumps(POLICY | {"ttscope_policy": True}), "has no"),
        (read_policy, json.dumps(POLICY | {"verifer": "exact"}), "unknown field `verifer`"),
        (read_policy, json.dumps(POLICY | {"verifier": "vibes"}), "vibes"),
        (read_policy, json.dumps(POLICY | {"most_n": 2}), "most_n must lie between"),
        (read_policy, json.dumps(POLICY | {"most_n": 9999}), "most_n must lie between"),
        (read_policy, json.dumps(POLICY | {"policy": {"n": "4"}}), "policy.json"),
        (read_policy, json.dumps(POLICY | {"policy": {"metod": "greedy"}}), "did you mean method"),
        (read_policy, json.dumps(POLICY | {"policy": {"method": "as_sent"}}), "Choose a method"),
        (read_policy, json.dumps(POLICY | {"policy": {"n": 4}}), "greedy draws one sample"),
        (read_policy, "{" + " " * MOST_BYTES + "}", "is larger than"),
        (read_expectations, json.dumps(POLICY), "has no 'ttscope_expect'"),
        (read_expectations, json.dumps(EXPECT | {"engine": {}}), "engine"),
        (read_expectations, json.dumps(EXPECT | {"promised": {"accuracy": 1}}), "promised"),
        *(
            (read_expectations, json.dumps(EXPECT | {"promised": {name: told}}), message)
            for name, told, message in (
                ("speed", {"value": 1, "unit": "1"}, "speed is no quantity"),
                ("latency_pX_s", {"value": 1, "unit": "s"}, "latency_pX_s is no quantity"),
                ("latency_s", {"value": 90, "unit": "ms"}, "latency_s: is in ms. Give it in s"),
                ("tokens", {"value": 2, "low": 3, "high": 1, "unit": "tokens"}, "low lies above"),
                ("tokens", {"value": 2, "unit": "tokens", "fresh": {"low": 3, "high": 1}},
                 "low lies above high. Give the lower one first - at `$.promised[...].fresh`"),
                ("tokens", {"value": 2, "unit": "tokens", "others": {"high": 1e308}}, "<= 1e+30"),
                ("tokens", {"value": -1e308, "unit": "tokens"}, ">= -1e+30"),
                ("tokens", {"value": float("nan"), "unit": "tokens"}, "is not JSON"),
            )
        ),
        (read_expectations, json.dumps(EXPECT | {"load": {"rate_per_s": 0}}), "load.rate_per_s"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_that_names_the_file(tmp_path, read, text, message):
    path = tmp_path / "policy.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match="policy.json: ") as told:
        read(path)
    assert message in str(told.value)


def test_a_file_that_is_not_there_is_said(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        read_policy(tmp_path / "absent.json")


@pytest.mark.parametrize("read", [read_policy, read_expectations])
def test_what_has_no_size_is_read_to_the_limit_alone(read):
    source, target = os.pipe()  # as of /dev/zero, no size says how much comes

    def write():
        with suppress(BrokenPipeError), os.fdopen(target, "wb") as file:
            file.write(b" " * (2 * MOST_BYTES))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with pytest.raises(UsageError, match="is larger than 1,048,576 bytes"):
            read(Path(f"/dev/fd/{source}"))
    finally:
        os.close(source)
        writer.join()


@pytest.mark.parametrize("read", [read_policy, read_expectations])
def test_a_named_pipe_is_not_waited_for(tmp_path, read):
    path = tmp_path / "policy.json"
    os.mkfifo(path)
    with os.fdopen(os.open(path, os.O_RDWR), "wb") as held:  # who waits would get no end
        end = threading.Timer(10, held.close)
        end.start()
        with pytest.raises(UsageError, match="policy.json: is no regular file, so it is not"):
            read(path)
        end.cancel()
