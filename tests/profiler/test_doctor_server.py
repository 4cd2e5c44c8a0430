"""The doctor looks at a server from outside and starts nothing on it."""

import os
import subprocess
import sys

import pytest

from benchmarks.servers.metrics_server import metrics_server
from profiler.doctor import examine_server
from profiler.engines.server.access import Access
from profiler.plugin.process_clock import process_start
from profiler.plugin.shared_token import shared_token
from traces.errors import EngineError
from tui.text.commands import command_lines, findings_text


def look(state):
    return {each.what: each for each in examine_server(Access.of(state.url))}


def test_a_server_with_metrics(server):
    found = look(server)
    assert found["models"].present
    server.lines, lines = (
        ["vllm:num_requests_running 1", "process_start_time_seconds 5"],
        server.lines,
    )
    assert look(server)["metrics"].detail.startswith("2 series of 1 engine")
    server.lines = lines
    assert "demo-s, 1024 tokens, vLLM 0.32.0" in found["models"].detail
    assert found["metrics"].present
    assert found["speculation"].present is None
    assert found["FLOPs, bytes"].needs == "--enable-mfu-metrics"
    (spans,) = found["spans"].run
    assert "http/protobuf" in spans
    assert 'HEADERS="authorization=Bearer%20$TTSCOPE_TOKEN"' in spans
    assert found["steps (plugin)"].run == (spans,)  # one server sends both
    told = "\n".join(findings_text(list(found.values()), width=80, indent=26))
    assert told.count("vllm serve MODEL") == told.count("TTSCOPE_PLUGIN=") == 1
    assert found["profiler"].present is None
    assert {path for path, _, _ in server.asked} == {
        "/v1/models", "/version", "/metrics", "/openapi.json",
    }  # fmt: skip


def test_a_server_here_is_started_again_as_it_was():
    """The script `vllm` of the CPU build does not start."""
    module = "vllm.entrypoints.openai.api_server"
    words = [sys.executable, "-c", "input()", "-m", module]
    with metrics_server() as state, subprocess.Popen(words, stdin=subprocess.PIPE) as begun:
        try:
            assert "vllm serve MODEL" in look(state)["spans"].run[-1]
            state.started = process_start(str(begun.pid))
            found = look(state)
        finally:
            begun.kill()
    for each in ("spans", "steps (plugin)"):
        assert f" python -m {module} --model MODEL " in found[each].run[-1]


def test_what_is_missing_says_what_it_needs():
    with metrics_server() as state:
        state.key, state.body = "secret", "python_info 1\n"
        found = look(state)
        assert "--api-key-env" in found["models"].needs
        assert "--disable-log-stats" in found["metrics"].needs
        state.gone = True
        with pytest.raises(EngineError, match="no server answers.*may speak https"):
            look(state)
        with metrics_server() as page:  # which is elsewhere, and answers
            access = Access.of(state.url).with_metrics(f"{page.url}/metrics")
            found = {each.what: each.present for each in examine_server(access)}
            assert found["metrics"] and not found["models"]


def test_sglang_is_named_and_what_it_needs_is_its_own(server):
    found = look(server.as_sglang())
    assert found["models"].detail == "demo-s, 1024 tokens, SGLang 0.5.23"
    assert "1 engine (SGLang)" in found["metrics"].detail
    assert found["speculation"].present
    assert "--enable-trace" in found["spans"].run[0]
    assert "--enable-forward-pass-metrics" in found["steps (FPM)"].needs
    assert "steps (plugin)" not in found
    assert {path for path, _, _ in server.asked} == {
        "/v1/models", "/server_info", "/metrics", "/openapi.json",
    }  # fmt: skip


def test_what_a_page_never_tells_is_not_denied(server):
    lines = ("trtllm_num_requests_running 5", "num_requests_running 5", "tgi_queue_size 1")
    server.answers |= {"/version": None}
    for line, engine in zip(lines, ("TensorRT-LLM", "NIM", "TGI"), strict=True):
        server.body = f"{line}\n"
        found = look(server)
        assert engine in found["models"].detail
        for each in (found["speculation"], found["FLOPs, bytes"]):
            assert (each.present, each.needs) == (None, None)
            assert each.detail == "this page does not say"
        assert "steps (plugin)" not in found


def test_an_engine_that_is_not_vllm_is_not_started_as_vllm(server):
    server.answers |= {"/version": None, "/v1/version": '{"release": "1.8.0"}'}
    server.software = ""
    server.body = "num_requests_running 0\n"
    found = look(server)
    assert "NIM" in found["models"].detail
    assert found["spans"].run == () and "vllm" not in found["spans"].needs.lower()
    assert "steps (plugin)" not in found


def test_the_rust_front_end_is_silent_and_what_helps_is_said(server):
    server.answers["/v1/models"] = '{"data": [{"id": "m", "owned_by": "vllm"}]}'
    server.software = ""
    found = look(server)
    assert found["front end"].present is False
    assert "VLLM_USE_RUST_FRONTEND=0" in found["front end"].needs
    for silent in ("spans", "steps (plugin)"):
        assert "Rust front end" in found[silent].detail
    assert found["spans"].run == ()
    assert found["steps (plugin)"].run[0].startswith("VLLM_USE_RUST_FRONTEND=0 ")
    assert "--fpm" in found["steps (FPM)"].needs
    with metrics_server() as state:
        state.software = "nginx/1.26.3"
        assert "front end" not in look(state)


def test_a_load_balancer_is_told():
    with metrics_server() as state:
        state.turns = iter([("1.7e+09", 1.0), ("1.8e+09", 1.0)])
        found = look(state)
    assert "load balancer" in found["metrics"].detail
    assert "--metrics-url" in found["metrics"].needs


def test_metrics_may_be_elsewhere():
    with metrics_server() as state, metrics_server() as page:
        state.status = 404
        page.metrics = "/v1/metrics"
        access = Access.of(state.url, {"Authorization": "Bearer k"})
        found = examine_server(access.with_metrics(f"{page.url}/v1/metrics"))
        assert next(each for each in found if each.what == "metrics").present
        assert {path for path, _, _ in page.asked} == {"/v1/metrics"}


def test_ray_serve_starts_its_engines_itself():
    with metrics_server() as state, metrics_server() as page:
        page.lines = ['ray_vllm_num_requests_running{ReplicaId="r",engine="0"} 1']
        access = Access.of(state.url).with_metrics(f"{page.url}/metrics")
        found = {each.what: each for each in examine_server(access)}
    assert found["metrics"].detail.startswith("1 series of 1 engine (vLLM on Ray Serve)")
    for what in ("spans", "steps (plugin)"):
        assert "engine_kwargs" in found[what].needs and not found[what].run


def test_a_front_end_without_engines_serves_no_model_yet(server):
    server.answers["/v1/models"] = '{"object": "list", "data": []}'
    server.lines = ["dynamo_frontend_queued_requests 0"]
    found = look(server)
    assert "serves no model yet" in found["models"].detail
    assert found["models"].needs == "an engine that has started"
    assert "Dynamo http://POD:8081" in found["metrics"].needs


def test_dynamo_is_told_by_its_labels_and_has_commands_of_its_own():
    line = 'vllm:num_requests_running{dynamo_component="backend",engine="0"} 1'
    with metrics_server() as state, metrics_server() as page:
        state.answers |= {"/version": None, "/openapi.json": None}
        state.answers["/v1/models"] = '{"data": [{"id": "m", "owned_by": "nvidia"}]}'
        page.lines = [line]
        access = Access.of(state.url).with_metrics(f"{page.url}/metrics")
        found = {each.what: each for each in examine_server(access)}
    assert found["metrics"].detail.startswith("2 series of 1 engine (vLLM under Dynamo)")
    assert found["models"].detail == "m, vLLM"
    for what in ("spans", "steps (plugin)"):
        assert "python -m dynamo.vllm --model MODEL" in found[what].run[-1]
    assert "DYN_FORWARDPASS_METRIC_PORT" in found["steps (FPM)"].needs
    assert found["profiler"].present is False and found["profiler"].needs is None


def test_each_depth_says_beforehand_what_it_allows(server):
    found = look(server)
    assert "KV-bound" in found["HTTP alone"].detail
    for depth in ("with spans", "with steps", "with kernels"):
        assert found[depth].present is None and found[depth].detail


def test_what_spans_need_can_be_pasted_at_80_columns(server, monkeypatch, tmp_path):
    monkeypatch.delenv("TTSCOPE_TOKEN", raising=False)
    monkeypatch.setenv("TTSCOPE_TOKEN_FILE", str(tmp_path / "a token"))
    (tmp_path / "a token").write_text("secret-" * 8 + "\n")
    (tmp_path / "a token").chmod(0o600)
    commands = look(server)["spans"].run
    lines = [line for each in commands for line in command_lines(each, width=80, indent=4)]
    assert all(len(line) <= 80 for line in lines if "a token" not in line)  # a path
    (tmp_path / "vllm").write_text('#!/bin/sh\nenv\necho "$@"\n')
    (tmp_path / "vllm").chmod(0o700)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    run = ["sh", "-c", "\n".join(lines)]
    made = subprocess.run(run, capture_output=True, text=True, env=path, check=True)
    told = made.stdout
    assert f"OTEL_EXPORTER_OTLP_HEADERS=authorization=Bearer%20{'secret-' * 8}\n" in told
    assert "TTSCOPE_PLUGIN=http://127.0.0.1:4318\n" in told
    assert "serve MODEL --enable-logging-iteration-details --otlp-traces-endpoint http" in told


def test_the_token_that_is_named_is_there(server, monkeypatch, tmp_path):
    """The command reads it before attach was ever run."""
    for name in ("TTSCOPE_TOKEN", "TTSCOPE_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    read, _ = look(server)["spans"].run
    made = tmp_path / "ttscope" / "token"
    assert read == f"TOKEN=$(cat {made})"
    assert made.stat().st_mode & 0o777 == 0o600 and shared_token() == made.read_text().strip()
    monkeypatch.setenv("TTSCOPE_TOKEN_FILE", str(tmp_path / "absent"))
    spans = look(server)["spans"]
    assert spans.run == () and "absent cannot be read" in spans.needs
