"""Where a served model's files are looked for, and how many devices it has."""

import json

import httpx
import pytest

from profiler.engines.options import model_path
from profiler.engines.server.served import ask_model, describe
from profiler.engines.server.server import ServerEngine
from traces.errors import EngineError

CONFIG = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "num_hidden_layers": 2,
    "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 128, "vocab_size": 100, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}  # fmt: skip


def test_a_hub_model_has_its_facts_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    known = tmp_path / "models--org--toy-1.5b"
    (known / "snapshots" / "abc").mkdir(parents=True)
    (known / "refs").mkdir()
    (known / "refs" / "main").write_text("abc")
    (known / "snapshots" / "abc" / "config.json").write_text(json.dumps(CONFIG))
    card = {"id": "toy", "root": "org/toy-1.5b"}
    _, facts = describe(card, None, name=None, told={}, declared={})
    assert facts is not None
    assert (facts.name, facts.num_hidden_layers) == ("toy", 2)


def test_a_model_that_is_not_here_has_none(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for root in ("org/absent", "../../etc", "a" * 5_000, 7):
        config, facts = describe({"id": "toy", "root": root}, None, name=None, told={}, declared={})
        assert config.model == "toy"
        assert facts is None


def test_data_parallel_replicas_of_vllm_are_devices(server):
    server.answers["/version"] = '{"version": "0.32.0"}'
    server.engines = ("0", "1", "2")
    engine = ServerEngine(server.url, declared={"tensor_parallel_size": 2})
    engine.close()
    assert (engine.config.data_parallel_size, engine.config.num_devices) == (3, 6)
    assert engine.config.block_size == 128


def test_a_bundled_model_is_served_by_its_name_or_by_its_folder():
    folder = model_path("demo/s")
    for served, wanted, found in (
        ("demo/s", "demo/s", True), (folder, "demo/s", True), (folder, folder, True),
        ("toy", "toy", True), ("toy", None, True), ("toy", "demo/s", False),
    ):  # fmt: skip
        body = httpx.ByteStream(json.dumps({"data": [{"id": served}]}).encode())
        answer = httpx.Response(200, stream=body)
        transport = httpx.MockTransport(lambda _, answer=answer: answer)
        with httpx.Client(base_url="http://stub", transport=transport) as client:
            if found:
                assert ask_model(client, "http://stub", wanted)["id"] == served
            else:
                with pytest.raises(EngineError, match="does not serve demo/s. It serves toy"):
                    ask_model(client, "http://stub", wanted)
