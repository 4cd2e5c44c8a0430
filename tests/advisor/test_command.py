import json
import shlex

from advisor.advise import Advisor
from advisor.command import policy_request, record_command, serve_command
from tests.advisor.synthetic import GREEDY, VOTE16, engine_of, record
from traces.schema import Budget, EngineConfig, Policy, Speculative

DRAFT = Speculative(method="draft_model", num_speculative_tokens=3, model="it's small")


def test_the_command_parses_back():
    engine = engine_of("large", tensor_parallel_size=2, speculative=DRAFT, async_scheduling=False)
    words = shlex.split(serve_command(engine, model_path="/models/my large one"))
    assert words[:3] == ["vllm", "serve", "/models/my large one"]
    flags = dict(zip(words[3::2], words[4::2], strict=False))
    assert flags["--tensor-parallel-size"] == "2"
    assert flags["--max-num-seqs"] == "32"
    assert json.loads(flags["--speculative-config"]) == {
        "method": "draft_model",
        "num_speculative_tokens": 3,
        "model": "it's small",
    }


def test_the_model_that_drafts_is_named_by_its_folder_too():
    engine = engine_of("large", speculative=DRAFT)
    words = shlex.split(serve_command(engine, model_path="/models/l", draft_path="/models/s"))
    settings = json.loads(words[words.index("--speculative-config") + 1])
    assert settings == {
        "method": "draft_model",
        "num_speculative_tokens": 3,
        "model": "/models/s",
    }


def test_a_recommended_command_resolves_both_models(tmp_path):
    engine = engine_of("large", speculative=DRAFT)
    advisor = Advisor.fit([record(tmp_path / "r", engine, GREEDY, problems=8)], draws=20)
    pick = advisor.recommend(Budget(), model_path="/models/{}".format).system_optimal
    words = shlex.split(pick.command)
    assert words[2] == "/models/large"
    settings = json.loads(words[words.index("--speculative-config") + 1])
    assert settings["model"] == "/models/it's small"
    assert pick.engine.speculative.model == "it's small"


def test_what_is_not_known_is_left_to_vllm():
    assert serve_command(EngineConfig(model="m"), model_path="m") == "vllm serve m"


def test_a_thinking_budget_needs_the_reasoning_config():
    policy = Policy(method="greedy", thinking_token_budget=64, max_tokens=96)
    words = shlex.split(serve_command(EngineConfig(model="m"), model_path="m", policy=policy))
    assert json.loads(words[-1])["reasoning_end_str"] == "</think>"
    assert policy_request(policy)["body"]["thinking_token_budget"] == 64


def test_samples_are_requests_of_one():
    request = policy_request(VOTE16)
    assert request["requests"] == 16
    assert request["body"]["n"] == 1
    assert "thinking_token_budget" not in request["body"]


def test_what_to_record_next_is_a_command():
    command = record_command(
        engine_of(), VOTE16, workload="sums", problems=40, concurrency=4, seed=0
    )
    assert command.startswith("ttscope record --model small --workload sums --problems 40")
    assert "--n 16" in command and "--temperature 0.8" in command
