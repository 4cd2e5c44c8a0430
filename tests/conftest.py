"""What all tests share: the rule for tests that need vLLM, and where foreign data lies."""

import importlib.util
import os
from pathlib import Path

import pytest

# As the engine sets it: numba refuses another number of threads once it has started some.
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

# So that receivers, plugins and servers of the tests know each other, and the user's file is left.
os.environ["TTSCOPE_TOKEN"] = "a-token-of-the-tests-and-of-nobody"

SHARED = Path(__file__).parent.parent.parent / "shared"


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items):
    """Have one process run all real engines, and skip their tests where vLLM is missing.

    An engine takes both cores of a small machine: two at a time are slower than one after the
    other. Files of other tests stay together. In CI tests without vLLM fail instead.
    """
    items.sort(key=lambda item: "vllm" not in item.keywords)  # the longest work begins first
    for item in items:
        group = "vllm" if "vllm" in item.keywords else item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))
    if importlib.util.find_spec("vllm") is not None or os.environ.get("CI") == "true":
        return
    skip = pytest.mark.skip(reason="vLLM is not installed (make install)")
    for item in items:
        if "vllm" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of data measured by others; its tests are skipped where it is absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip("the folder with data measured by others is absent")
    return SHARED
