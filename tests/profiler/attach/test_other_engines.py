"""SGLang, and engines whose metrics are elsewhere than their API."""

import pytest

from benchmarks.servers.metrics_server import metrics_server
from profiler.attach.deployment import Deployment
from profiler.engines.server.access import Access, accesses_of
from tests.profiler.attach.test_attach import attach, looked_at
from traces.errors import EngineError, UsageError
from traces.live.engine_names import software_of
from traces.live.watched import watched_engines

INFO = {"tp_size": 2, "page_size": 16, "max_total_num_tokens": 65_536, "max_running_requests": 48}


def test_sglang_is_watched_under_the_same_numbers(server, tmp_path):
    server.as_sglang(INFO)

    def change():
        server.scale = 2.0

    recording, ticks = attach(server, folder=tmp_path / "rec", change=change)
    (watched,) = watched_engines(recording)
    assert watched.engine.tensor_parallel_size == 2 and watched.engine.vllm_version is None
    assert watched.engine.max_num_seqs == 48 and watched.engine.num_gpu_blocks == 4_097
    assert dict(watched.engine.other)["engine_name"] == "SGLang 0.5.23"
    assert watched.numbers.running == 12 and watched.numbers.finished == {"ended": 80}
    assert watched.numbers.generated_tokens_per_s > 0
    assert watched.verdict.reason is None
    assert ticks[-1][1]


def test_each_rank_of_attention_has_its_share_of_the_gpus(server):
    told = {"tp_size": 8, "pp_size": 1, "dp_size": 8, "enable_dp_attention": True}
    server.as_sglang(told)
    page = "\n".join(server.lines)
    pages = (page.replace("{", f'{{dp_rank="{rank}",') for rank in range(8))
    server.lines = "\n".join(pages).splitlines()
    deployment = looked_at(Access.of(server.url))
    (replica,) = deployment.replicas
    ranks = [deployment.engines[key] for label, key in replica.keys.items() if label]
    assert [each.num_devices for each in ranks] == [1] * 8
    assert replica.config.num_devices == 8


def test_an_engine_behind_another_front_end_is_the_one_of_its_page():
    with metrics_server() as api, metrics_server() as pod:
        pod.as_sglang()

        def seen():
            access = Access.of(api.url).with_metrics(f"{pod.url}/metrics")
            deployment = looked_at(access)
            (engine,) = {software_of(each) for each in deployment.engines.values()}
            return engine, deployment.replicas[0].config.vllm_version

        assert seen() == ("SGLang", None)  # although the front end has vLLM's /version
        pod.lines = [line.replace("sglang:", "ray_sglang_") for line in pod.lines]
        assert seen() == ("SGLang", None)
        pod.lines = ['trtllm_request_success_total{finished_reason="stop"} 4']
        assert seen() == ("TensorRT-LLM", None)
        pod.lines = ["num_requests_running 3", "num_requests_waiting 0"]
        assert seen() == ("NIM", None)
        pod.lines = ["vllm:num_requests_running 3"]
        assert seen() == ("vLLM", "0.32.0")
        api.answers |= {"/version": None, "/v1/version": '{"release": "1.8.0"}'}
        assert seen() == ("NIM", None)  # a NIM of vLLM's may have vLLM's names


TRTLLM = """
trtllm_num_requests_running{model_name="m",engine_type="trtllm",pid="7"} 5
trtllm_num_requests_waiting{model_name="m",engine_type="trtllm",pid="7"} 2
trtllm_kv_cache_utilization{model_name="m",engine_type="trtllm",pid="7"} 0.25
trtllm_max_batch_size_runtime{model_name="m",engine_type="trtllm",pid="7"} 64
trtllm_max_num_tokens_runtime{model_name="m",engine_type="trtllm",pid="7"} 8192
trtllm_kv_cache_max_blocks{model_name="m",engine_type="trtllm",pid="7"} 1000
trtllm_kv_cache_tokens_per_block{model_name="m",engine_type="trtllm",pid="7"} 32
trtllm_generation_tokens_total{model_name="m",engine_type="trtllm"} 100
trtllm_time_per_output_token_seconds_count{model_name="m",engine_type="trtllm"} 4
"""


def test_tensorrt_llms_page_is_beside_its_json(server, tmp_path):
    server.metrics = "/prometheus/metrics"
    card = '{"data": [{"id": "m", "owned_by": "tensorrt_llm"}]}'
    server.answers |= {"/metrics": '[{"iter": 1}]', "/v1/models": card}
    server.lines = TRTLLM.split("\n")[1:-1]

    def change():
        server.scale = 2.0

    recording, _ = attach(server, folder=tmp_path / "rec", change=change)
    (watched,) = watched_engines(recording)
    elsewhere = looked_at(Access.of(server.url).with_metrics(f"{server.url}/metrics"))
    host = 'trtllm_kv_cache_host_utilization{model_name="m"} 0.5'
    server.lines.append(host)  # blocks of the host are among those
    deployment = looked_at(Access.of(server.url))
    server.status = 404
    with pytest.raises(EngineError, match="return_perf_metrics.*404"):
        Deployment([Access.of(server.url)]).connect()
    engine, numbers = watched.engine, watched.numbers
    assert software_of(engine) == "TensorRT-LLM"
    assert (engine.max_num_seqs, engine.max_num_batched_tokens) == (64, 8192)
    assert elsewhere.replicas[0].config.max_num_seqs == 64
    assert (engine.block_size, engine.num_gpu_blocks) == (32, 1001)
    assert (numbers.running, numbers.waiting, numbers.kv_share) == (5, 2, 0.25)
    assert numbers.generated_tokens_per_s > 0 and numbers.itl_s.mean is None
    assert deployment.replicas[0].config.num_gpu_blocks is None


def test_tgi_is_watched(server, tmp_path):
    lengths = ("tgi_request_input_length", 40), ("tgi_request_generated_tokens", 80)
    server.answers |= {"/version": None}
    server.lines = [
        *("tgi_batch_current_size 5", "tgi_queue_size 2", "tgi_request_success 4"),
        *(f'{name}_bucket{{le="+Inf"}} 4' for name, _ in lengths),
        *(f"{name}_sum {tokens}" for name, tokens in lengths),
        *("tgi_request_queue_duration_sum 8", "tgi_request_queue_duration_count 4"),
    ]

    def change():
        server.lines = [
            f"{name} {float(value) * 2}"
            for name, value in (line.rsplit(" ", 1) for line in server.lines)
        ]

    recording, _ = attach(server, folder=tmp_path / "rec", change=change)
    (watched,) = watched_engines(recording)
    numbers = watched.numbers
    assert software_of(watched.engine) == "TGI"
    assert numbers.finished == {"ended": 4} and numbers.queue_s.mean.value == 2.0
    assert numbers.generated_tokens_per_s == 2 * numbers.prompt_tokens_per_s > 0
    assert numbers.running_max == 10 and numbers.waiting_max == 4


def test_pods_behind_one_url_are_replicas(tmp_path):
    with metrics_server() as api, metrics_server() as one, metrics_server() as two:
        api.status = 404
        two.metrics = "/v1/metrics"
        deployment = looked_at(*accesses_of([api.url], [one.url, f"{two.url}/v1/metrics"], {}))
        assert len(deployment.engines) == 2
        assert not [path for path, _, _ in api.asked if path == "/metrics"]
        shown = {name for name in deployment.shown.values() if name}
        assert {f"{one.url}/metrics", f"{two.url}/v1/metrics"} <= shown


def test_which_page_is_whose_must_be_clear():
    urls = ["http://a:1", "http://b:1"]
    with pytest.raises(UsageError, match="1 for 2 URLs"):
        accesses_of(urls, ["http://a:8081"], {})
    first, second = accesses_of(urls, ["http://a:8081", "http://b:8081/v1/metrics/"], {})
    assert (first.metrics_page, second.metrics_page) == (
        "http://a:8081/metrics",
        "http://b:8081/v1/metrics",
    )
    with pytest.raises(UsageError, match="give no user or password"):
        accesses_of(urls[:1], ["http://me:secret@a:8081"], {})


def test_a_key_goes_to_no_other_host():
    headers = {"Authorization": "Bearer k"}
    access = Access.of("http://a:1", headers)
    assert access.with_metrics("http://a:8081").metrics_headers == headers
    assert not access.with_metrics("http://b:8081").metrics_headers
    assert not access.with_metrics("https://a:8081").metrics_headers


def test_a_router_without_metrics_says_where_to_look(server):
    for server.status, server.body in (200, "dynamo_frontend_requests_total 3\n"), (307, ""):
        with pytest.raises(EngineError, match="--metrics-url.*8081"):  # 307: LiteLLM
            Deployment([Access.of(server.url)]).connect()


def test_a_plugin_of_ray_serve_is_of_the_replica_that_it_names(server):
    """Its page's process is Ray's agent, whose start is none of an engine's."""
    page = "\n".join(server.lines).replace("vllm:", "ray_vllm_")
    both = [page.replace("{", f'{{ReplicaId="{each}",') for each in ("r1", "r2")]
    server.lines = both[0].splitlines()
    (alone,) = looked_at(Access.of(server.url)).replicas
    server.lines = "\n".join(both).splitlines()
    (replica,) = looked_at(Access.of(server.url)).replicas
    assert alone.started is None and alone.config.vllm_version == "0.32.0"
    assert alone.key_of(0, None) == alone.key_of(0, "r1") == alone.keys["0 r1"]
    assert alone.key_of(0, "r2") is alone.key_of(1, "r1") is None
    keys = [replica.key_of(0, each) for each in ("r1", "r2")]
    assert keys == [replica.keys["0 r1"], replica.keys["0 r2"]] and len(set(keys)) == 2
    assert replica.key_of(0, None) is None  # The plugin names no replica.
