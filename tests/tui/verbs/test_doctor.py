"""`doctor URL`: what it asks of a server, and the command to go on with."""

import os
import subprocess
import sys

import pytest

from benchmarks.servers.metrics_server import metrics_server
from profiler.plugin.process_clock import process_start
from tests.profiler.test_doctor_server import look


@pytest.mark.parametrize(
    ("protocol", "port", "listens"),
    [("http/protobuf", 4318, ("--listen", "4318")), ("grpc", 4317, ("--listen-grpc", "4317"))],
)
def test_what_a_server_here_began_with_is_not_asked_for(run, protocol, port, listens):
    """It sends spans and steps already, so that attach has to listen and no more."""
    words = [sys.executable, "-c", "input()", "--enable-logging-iteration-details"]
    words += [f"--otlp-traces-endpoint=http://127.0.0.1:{port}", "--enable-mfu-metrics"]
    sends = {
        "TTSCOPE_PLUGIN": "http://127.0.0.1:4318", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": protocol,
    }  # fmt: skip
    begun = subprocess.Popen(words, stdin=subprocess.PIPE, env=os.environ | sends)
    with metrics_server() as state, begun:
        try:
            state.started = process_start(str(begun.pid))
            found, out = look(state), run.ok("doctor", state.url)
        finally:
            begun.kill()
    assert found["spans"].attach == listens
    assert found["steps (plugin)"].attach == ("--listen", "4318")
    for each in ("spans", "steps (plugin)", "FLOPs, bytes"):
        assert (found[each].needs, found[each].run) == (None, ())
    command = " ".join(out[out.index("\nnext ") :].replace("\\", "").split())
    assert " --listen 4318 " in command and " ".join(listens) in command
    assert "serve MODEL" not in out


def test_a_server_that_sends_elsewhere_keeps_its_needs(run):
    with metrics_server() as state:
        assert not any(each.attach for each in look(state).values())
        assert "--listen" not in run.ok("doctor", state.url).partition("\nnext ")[2]
