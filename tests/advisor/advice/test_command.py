import inspect
import json
import shlex
from dataclasses import replace

from advisor.advice.advisor import Advisor
from advisor.advice.command import (
    CpuBuild,
    command_note,
    planned,
    policy_request,
    record_command,
    serve_command,
)
from advisor.evidence.measured import Made, RunsMade
from profiler.engines.server.replicas import together
from tests.advisor.synthetic import FACTS, GREEDY, VOTE16, engine_of, record
from traces.schema.advice import Budget, Pick
from traces.schema.engine import BLOCKS, EXPERTS, EngineConfig, Speculative
from traces.schema.tts.policy import AS_SENT, Policy
from tui.screens.advice.rows import paste_text
from tui.text.advice import policy_lines
from tui.verbs.attach import attach

DRAFT = Speculative(method="draft_model", num_speculative_tokens=3, model="it's small")


def test_the_command_parses_back():
    engine = engine_of(
        "large", tensor_parallel_size=2, speculative=DRAFT, async_scheduling=False, gpu="H100"
    )
    words = shlex.split(serve_command(engine, model_path="/models/my large one"))
    assert words[:3] == ["vllm", "serve", "/models/my large one"]
    flags = dict(zip(words[3::2], words[4::2], strict=False))
    assert flags["--served-model-name"] == "large"
    assert flags["--tensor-parallel-size"] == "2"
    assert flags["--max-num-seqs"] == "32"
    assert json.loads(flags["--speculative-config"]) == {
        "method": "draft_model",
        "num_speculative_tokens": 3,
        "model": "it's small",
    }


def test_a_server_that_was_started_with_a_number_of_blocks_is_started_with_it_again():
    """Else it has as many as its memory holds, and another KV cache than the prediction."""
    recorded = engine_of(mode="server", num_gpu_blocks=48)
    assert "blocks" not in serve_command(recorded, model_path="m")
    override = replace(recorded, other=((BLOCKS, "48"),))
    assert "--num-gpu-blocks-override 48" in serve_command(override, model_path="m")
    more = replace(override, num_gpu_blocks=96)  # as --set asks
    assert "--num-gpu-blocks-override 96" in serve_command(more, model_path="m")


def test_what_a_page_does_not_tell_of_a_server_is_named():
    page = engine_of(mode="server", dtype=None, max_num_batched_tokens=None)
    pick = Pick(
        engine=page, policy=AS_SENT, command="vllm serve m", estimates={},
        probability_within_budget=1.0,
    )  # fmt: skip
    note = command_note(pick)
    for flag in ("--dtype", "--quantization", "--kv-cache-dtype", "--max-num-batched-tokens"):
        assert flag in note and flag not in serve_command(page, model_path="m")
    assert "--max-num-seqs" not in note
    assert note in " ".join(" ".join(policy_lines(pick, 80)).split())
    assert note in paste_text(pick)
    assert command_note(replace(pick, prior="h100_sxm")) == ""
    assert command_note(replace(pick, engine=engine_of(mode="server"))) == ""
    untold = engine_of(mode="server", max_num_batched_tokens=None)
    one = command_note(replace(pick, engine=untold))
    assert one.startswith("--max-num-batched-tokens is not known of this server")
    in_process = engine_of(max_num_batched_tokens=None)
    assert command_note(replace(pick, engine=in_process)) == ""


def test_a_recommended_command_resolves_both_models(tmp_path):
    engine = engine_of("large", speculative=DRAFT)
    advisor = Advisor.fit([record(tmp_path / "r", engine, GREEDY, problems=8)], draws=20)
    pick = advisor.recommend(Budget(), model_path="/models/{}".format).system_optimal
    words = shlex.split(pick.command)
    assert words[words.index("--model") + 1] == "/models/large"
    settings = json.loads(words[words.index("--speculative-config") + 1])
    assert settings["model"] == "/models/it's small"
    assert pick.engine.speculative.model == "it's small"


def test_what_is_not_known_is_left_to_vllm():
    engine = EngineConfig(model="m", mode="server")
    assert serve_command(engine, model_path="m") == "vllm serve m"
    assert serve_command(replace(engine, gpu="H100"), model_path="m") == "vllm serve m"


def test_what_ran_on_a_processor_starts_as_the_cpu_build_must():
    engine = EngineConfig(
        model="m", tensor_parallel_size=2, num_gpu_blocks=4096, block_size=128, dtype="float32"
    )
    own = CpuBuild(python="/my env/bin/python", omp_threads="4")
    words = shlex.split(
        serve_command(engine, model_path="/m", cpu_build=own, kv_bytes_per_token=3000)
    )
    assert words[:7] == [
        "OMP_NUM_THREADS=4",
        "VLLM_CPU_KVCACHE_SPACE=1",  # of each rank: 4096 * 128 * 3000 / 2 bytes
        "VLLM_CPU_OMP_THREADS_BIND=0|1",
        "/my env/bin/python", "-m", "vllm.entrypoints.openai.api_server", "--model",
    ]  # fmt: skip
    assert words[7:10] == ["/m", "--served-model-name", "m"]
    elsewhere = serve_command(EngineConfig(model="m"), model_path="m")
    assert elsewhere.startswith("OMP_NUM_THREADS=1 VLLM_CPU_KVCACHE_SPACE=1 python -m vllm.")


def test_a_server_may_have_run_in_the_cpu_build_that_is_here():
    engine = EngineConfig(model="m", mode="server")
    command = serve_command(engine, model_path="m", cpu_build=CpuBuild(python="/p"))
    assert command == "OMP_NUM_THREADS=1 /p -m vllm.entrypoints.openai.api_server --model m"
    on_gpu = replace(engine, gpu="H100")
    assert serve_command(on_gpu, model_path="m", cpu_build=CpuBuild()) == "vllm serve m"


def test_a_run_to_record_has_all_that_makes_it_that_run():
    engine = engine_of(dtype="float32")
    policy = Policy(method="majority", n=1, temperature=0.8)
    words = shlex.split(
        record_command(
            engine, policy, workload="own.jsonl", problems=None, concurrency=1, verifier="numeric"
        )
    )
    given = dict(zip(words[2::2], words[3::2], strict=True))
    assert given["--dtype"] == "float32"
    assert (given["--method"], given["--verifier"]) == ("majority", "numeric")
    command = record_command(engine, VOTE16, workload="sums", problems=40, concurrency=4, seed=0)
    assert command.startswith("ttscope record --model small --workload sums --problems 40")
    assert "--n 16" in command and "--temperature 0.8" in command
    for served in (replace(engine, mode="server"), replace(engine, data_parallel_size=2)):
        command = record_command(served, policy, workload=None, problems=None, concurrency=1)
        assert command.startswith("ttscope record --endpoint http://localhost:8000 --model small")


def test_several_servers_are_attached_to_as_no_endpoint_tells_how_many_they_are():
    one = engine_of(mode="server", data_parallel_size=2, tensor_parallel_size=2)
    engine = replace(one, data_parallel_size=6).of_servers(2)
    rule = (("agree", 5.0), ("in_flight", 8.0))
    policy = Policy(method="agreement", n=8, temperature=0.8, rule=rule)
    command = record_command(engine, policy, workload=None, problems=9, concurrency=3, seed=4)
    words = shlex.split(command)
    attached = together([one] * 3, ["http://a", "http://b", "http://c"])
    for run, counts in ((attached, True), (one, False)):
        made = RunsMade([Made(recording=None, engine=run, policy=policy)])
        assert made.has(engine, policy) == counts
    assert command.startswith("ttscope attach URL1 URL2 URL3 --listen 4318 --model small ")
    flags = {word.removeprefix("--").replace("-", "_") for word in words if word[:2] == "--"}
    assert flags <= set(inspect.signature(attach).parameters)
    assert "--workload demo --problems 9 --seed 4 --concurrency 3 " in command
    assert "--rule agree=5 --rule in_flight=8 " in command
    assert command.endswith("--tensor-parallel-size 2")


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


def test_experts_are_shared_in_the_server_too():
    engine = EngineConfig(model="m", gpu="H100", other=((EXPERTS, "true"),))
    assert "--enable-expert-parallel" in shlex.split(serve_command(engine, model_path="m"))


def test_what_record_has_no_option_for_is_told():
    plain = EngineConfig(model="m", gpu="H100", block_size=16, enforce_eager=False)
    assert planned(plain, None) == {}
    assert planned(replace(plain, gpu=None, block_size=128, enforce_eager=True), None) == {}
    odd = replace(plain, block_size=32, enforce_eager=True)
    assert planned(odd, None) == {"enforce_eager": True, "block_size": 32}
    assert planned(odd, FACTS["mixed"]) == {"enforce_eager": True}  # vLLM takes others by itself
    assert planned(replace(odd, mode="server"), None) == {}
