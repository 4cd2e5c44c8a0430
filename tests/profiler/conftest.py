"""What tests of the profiler share: NVIDIA's driver, a server's edges, a receiver of spans."""

import os

import pytest

from benchmarks.made import fake_nvml
from benchmarks.made.fake_nvml import FakeNvml
from benchmarks.servers.metrics_server import metrics_server


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    if fake_nvml.compiler() is None:
        assert os.environ.get("CI") != "true", "CI needs a C compiler"
        pytest.skip("no C compiler to build the fake NVML with")
    return fake_nvml.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def nvml(library, monkeypatch):
    import pynvml

    fake = FakeNvml(library)
    fake.reset(2)
    fake.lend(pynvml, monkeypatch.setattr)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    yield fake
    for gpu in range(4):
        fake.set("HANG", 0, gpu=gpu)


@pytest.fixture
def server():
    with metrics_server() as state:
        yield state


@pytest.fixture
def receiver():
    from profiler.attach.receiver.receiver import Receiver

    made = Receiver("127.0.0.1", 0)
    made.start()
    yield made
    made.close()
