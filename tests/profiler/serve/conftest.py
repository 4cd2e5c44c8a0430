"""A policy served in front of a fake engine."""

import threading
from contextlib import contextmanager

import pytest

pytest.importorskip("aiohttp")

from benchmarks.servers.fake_engine import FakeEngine, running
from profiler.serve.serve import serve
from profiler.serve.service import Settings
from traces.deployment.documents import PolicyFile
from traces.schema.tts.parameters import make_policy


@contextmanager
def serving(folder, url, *, verifier="numeric", most_n=None, settings=None, **policy):
    """Serve a policy in front of the engine at `url`; gives where."""
    made = make_policy({"temperature": 0.8, **policy})
    document = PolicyFile(policy=made, verifier=verifier, most_n=most_n or made.n)
    ready, told = threading.Event(), {}

    def work():
        try:
            serve(
                document,
                url,
                folder,
                Settings(port=0, **{"drain_s": 1.0} | (settings or {})),
                ready=lambda where: (told.update(url=where), ready.set()),
                handed=lambda end: told.update(end=end),
            )
        except BaseException as error:
            told["error"] = error
        finally:
            ready.set()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert ready.wait(60)
    if "error" in told:
        raise told["error"]
    try:
        yield told["url"]
    finally:
        told["end"]()
        thread.join(60)
        assert not thread.is_alive()
        if "error" in told:
            raise told["error"]


@pytest.fixture
def engine():
    return FakeEngine()


@pytest.fixture
def upstream(engine):
    with running(engine) as url:
        yield url
