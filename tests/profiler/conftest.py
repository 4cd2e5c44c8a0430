"""What tests of the profiler share: a driver that answers as NVIDIA's does."""

import os

import pytest

from benchmarks.made import fake_nvml
from benchmarks.made.fake_nvml import FakeNvml


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
