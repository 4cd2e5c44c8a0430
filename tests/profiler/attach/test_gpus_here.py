"""The power of a live deployment: read where it is here, of as many GPUs as it uses."""

import dataclasses
import os
import subprocess
import time
from contextlib import contextmanager

import pytest

from benchmarks.made.fake_nvml import DRIVER_NOT_LOADED
from benchmarks.servers.metrics_server import metrics_server
from profiler.attach.deployment import Deployment
from profiler.attach.gpus_here import parse_gpus, power_probe, why_unread
from profiler.engines.server.access import Access
from profiler.plugin.process_clock import process_start
from tests.profiler.watching import watch_while
from traces.errors import UsageError
from traces.schema.engine import EngineConfig


@pytest.fixture
def server():
    with metrics_server() as state:
        state.started = repr(process_start())  # this process serves it
        yield state


def powered(folder, *servers, gpus="auto", change=None, told=None):
    """Watch for half a second; gives the recording, or the reason why no power is read."""
    deployment = Deployment([Access.of(each.url) for each in servers], period_s=0.1)
    deployment.connect()
    for replica in deployment.replicas:
        replica.config = dataclasses.replace(replica.config, **(change or {}))
        if told is not None:
            deployment.adopt(replica.keys[""], told)
    why = why_unread(deployment, parse_gpus(gpus))
    if why is not None:
        deployment.close()
        return why
    probe = power_probe(deployment, parse_gpus(gpus))
    recording = watch_while(lambda: time.sleep(0.5), deployment, folder, probes=[probe])
    assert recording.complete
    return recording


def test_all_gpus_are_read_where_their_number_is_not_told(server, nvml, tmp_path):
    power = powered(tmp_path / "r", server).frame("power")
    assert power["device"].n_unique() == 2
    assert power["watts"].null_count() == 0
    assert power.height >= 4  # each of them at the begin and at the end, and between


def test_as_many_as_the_plugins_tell(server, nvml, tmp_path):
    told = {"gpu": "Fake", "max_num_seqs": 16}
    power = powered(tmp_path / "a", server, change=told).frame("power")
    assert power["device"].n_unique() == 1


@contextmanager
def process(**environ):
    """A process that stands for a server's; gives its id."""
    with subprocess.Popen(["sleep", "60"], env=os.environ | environ) as made:
        try:
            yield made.pid
        finally:
            made.kill()


def test_they_are_those_that_cuda_shows_to_the_server(server, nvml, tmp_path, monkeypatch):
    told = {"gpu": "Fake", "max_num_seqs": 16}
    with process(CUDA_VISIBLE_DEVICES="1") as pid:
        monkeypatch.setattr("profiler.attach.gpus_here._began_here", lambda started: [pid])
        power = powered(tmp_path / "a", server, change=told).frame("power")
        assert power["device"].unique().to_list() == ["GPU-1ab0-1"]
        # Of another user's process it cannot be read.
        monkeypatch.setattr("profiler.attach.gpus_here._shown_to", lambda pid: None)
        unseen = powered(tmp_path / "b", server, change=told)
    assert unseen.frame("power").height == 0
    assert "cannot be seen" in unseen.frame("events")["detail"].item()


def test_they_are_those_on_which_the_server_or_its_children_compute(server, nvml, tmp_path):
    nvml.set("PROCESS", os.getpid(), gpu=1)
    power = powered(tmp_path / "a", server).frame("power")
    assert power["device"].unique().to_list() == ["GPU-1ab0-1"]
    nvml.set("PROCESS", os.getpid(), gpu=0)
    with process() as child:
        nvml.set("PROCESS", child, gpu=1)
        power = powered(tmp_path / "b", server).frame("power")
    assert power["device"].n_unique() == 2


def test_none_of_a_server_on_the_processor(server, nvml, tmp_path):
    told = EngineConfig(model="m", max_num_seqs=16)  # of its plugin
    assert "processor" in powered(tmp_path / "r", server, told=told)


def test_a_server_that_tells_its_limits_without_a_plugin_may_have_gpus(server, nvml, tmp_path):
    """As SGLang does, which says nothing of its GPUs."""
    power = powered(tmp_path / "r", server, change={"max_num_seqs": 16}).frame("power")
    assert power["device"].n_unique() == 2


def test_a_forwarded_port_is_not_here(server, nvml, tmp_path):
    server.started = "1.7e+09"
    assert "not run on this machine" in powered(tmp_path / "r", server)
    power = powered(tmp_path / "b", server, gpus="1").frame("power")
    assert power["device"].n_unique() == 1


def test_not_where_it_is_not_wanted(server, nvml, tmp_path):
    assert powered(tmp_path / "r", server, gpus="none") == "--gpus none was given"


def test_without_a_driver_nothing_is_said(server, nvml, tmp_path):
    nvml.set("INIT", DRIVER_NOT_LOADED)
    recording = powered(tmp_path / "r", server)
    assert recording.frame("power").height == recording.frame("events").height == 0


@pytest.mark.parametrize("text", ["", "all", "0", "-1", "65", "1.5"])
def test_numbers_that_are_none(text):
    with pytest.raises(UsageError, match="--gpus"):
        parse_gpus(text)


def test_the_clock_is_prometheus_clients():
    from prometheus_client import ProcessCollector, generate_latest
    from prometheus_client.registry import CollectorRegistry

    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    told = generate_latest(registry).decode().splitlines()
    line = next(each for each in told if each.startswith("process_start_time_seconds"))
    assert float(line.split()[1]) == pytest.approx(process_start(), abs=0.02)
