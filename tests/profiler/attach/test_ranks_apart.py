"""Data-parallel ranks that are each behind a URL of their own are one server."""

from contextlib import ExitStack

import pytest

from advisor.evidence.live.ranks import ranks_in
from advisor.evidence.live.servers import servers_of
from benchmarks.servers.clients import until
from benchmarks.servers.metrics_server import metrics_server
from profiler.attach.deployment import Deployment
from profiler.engines.server.access import Access
from tests.profiler.watching import watch_while
from traces.live.watched import servers_in, watched_engines


@pytest.fixture
def deployed():
    """Connect to servers whose pages number their engines so."""
    with ExitStack() as stack:

        def connected(*pages):
            servers = [stack.enter_context(metrics_server()) for _ in pages]
            for server, engines in zip(servers, pages, strict=True):
                server.engines = engines
            found = Deployment([Access.of(each.url) for each in servers], period_s=0.1)
            found.connect()
            stack.callback(found.close)
            return found, servers

        yield connected


@pytest.mark.parametrize(
    ("pages", "ranks"),
    [
        ([("0",), ("1",), ("2",)], 3),  # --data-parallel-external-lb
        ([("2", "3"), ("0", "1")], 4),  # --data-parallel-hybrid-lb
        ([("0",), ("0",)], 1),  # servers that share nothing
        ([("0", "1"), ("0", "1")], 2),
        ([("0",), ("3",)], None),  # not all of its ranks are named
    ],
)
def test_pages_say_which_servers_are_ranks_of_one(deployed, pages, ranks):
    found, _ = deployed(*pages)
    told = ranks_in(found.engines.values())
    assert set(told.values()) == ({ranks} if ranks else {1, None})
    assert len(told) == sum(map(len, pages)) or ranks == 1


def test_a_rank_whose_others_are_not_watched_is_no_server_of_one(deployed):
    found, _ = deployed(("3",))
    assert set(ranks_in(found.engines.values()).values()) == {None}


def test_such_ranks_are_watched_and_replayed_as_one_server(deployed, tmp_path):
    found, servers = deployed(("0",), ("1",))

    def polled():
        until(lambda: all(len(each.asked) > 20 for each in servers))

    recording = watch_while(polled, found, tmp_path / "r")
    (one,) = servers_of(recording)
    assert one.engine.by_server() == (1, 2)
    assert not {"url", "ranks"} & dict(one.engine.other).keys()
    watched = watched_engines(recording)
    assert [dict(each.engine.other)["engine"] for each in watched] == ["0", "1"]
    ((whole, numbers),) = servers_in(recording, watched)
    assert whole.data_parallel_size == 2 and numbers is not None
