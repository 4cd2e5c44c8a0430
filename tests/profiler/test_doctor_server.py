"""The doctor looks at a server from outside and starts nothing on it."""

from profiler.doctor import examine_server
from profiler.engines.server.access import Access
from tests.profiler.metrics_server import metrics_server


def look(state):
    return {each.what: each for each in examine_server(Access.of(state.url))}


def test_a_server_with_metrics():
    with metrics_server() as state:
        found = look(state)
        assert found["models"].present
        assert "demo-s, 1024 tokens, vLLM 0.32.0" in found["models"].detail
        assert found["metrics"].present
        assert found["speculation"].present is None
        assert found["FLOPs, bytes"].needs == "--enable-mfu-metrics"
        assert "http/protobuf" in found["spans"].needs
        assert 'HEADERS="authorization=Bearer%20$TTSCOPE_TOKEN"' in found["spans"].needs
        assert "TTSCOPE_PLUGIN" in found["steps (plugin)"].needs
        assert found["profiler"].present is None
        assert {path for path, _, _ in state.asked} == {
            "/v1/models",
            "/version",
            "/metrics",
            "/openapi.json",
        }


def test_what_is_missing_says_what_it_needs():
    with metrics_server() as state:
        state.key, state.body = "secret", "python_info 1\n"
        found = look(state)
        assert "--api-key-env" in found["models"].needs
        assert "--disable-log-stats" in found["metrics"].needs
        state.gone = True
        assert not any(each.present for each in look(state).values())
