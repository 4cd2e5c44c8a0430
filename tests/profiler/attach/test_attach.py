"""Attaching over HTTP to a stub of vLLM's edges: what is kept, and that it does no harm."""

import itertools
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import profiler.attach.scraper
from benchmarks.servers.clients import everything_in, until
from benchmarks.servers.metrics_server import metrics_server
from benchmarks.servers.vllm_server import free_port
from profiler.attach.deployment import Deployment
from profiler.attach.scraper import PolledPage, Scraper
from profiler.attach.watch import watch
from profiler.doctor import examine_server
from profiler.engines.server.access import Access, read_headers, read_key
from traces.errors import EngineError, UsageError
from traces.live.metrics_page import PageReader, Series
from traces.live.numbers import numbers_in, window_of
from traces.live.watched import watched_engines
from traces.recording.manifest import Manifest
from traces.recording.reader import Recording
from traces.recording.tables import SCRAPES
from traces.recording.writer import RecordingWriter, read_clocks
from traces.schema.engine import BLOCKS, EXPERTS, UNKNOWN_METHOD, EngineConfig, Speculative

KEY = "sk-canary-31415926"


def looked_at(*accesses):
    """Return what is known of servers once they were looked at."""
    deployment = Deployment(accesses, period_s=0.1)
    deployment.connect()
    deployment.close()
    return deployment


def attach(*servers, folder, seconds=None, change=None, headers=None, **options):
    """Watch at ten polls a second, for twelve polls or for so long; `change` runs in the middle."""
    deployment = Deployment(
        [Access.of(each.url, headers) for each in servers], period_s=0.1, **options
    )
    deployment.connect()
    before, begun = len(servers[0].asked), time.monotonic()
    ticks, stop, over = [], threading.Event(), threading.Event()

    def wait(share):
        latest = begun + (60 if seconds is None else share * seconds)
        while time.monotonic() < latest and not over.wait(0.01):
            if seconds is None and len(servers[0].asked) >= before + share * 12:
                return
        assert seconds is not None or over.is_set()

    def end():
        try:
            wait(0.5)
            if change is not None:
                change()
            wait(1)
        finally:
            stop.set()

    ending = threading.Thread(target=end)
    ending.start()
    path = watch(deployment, folder, stop=stop, on_tick=lambda *tick: ticks.append(tick))
    over.set()
    ending.join()
    return Recording.open(path), ticks


def asked_again(server, times):
    before = len(server.asked)
    until(lambda: len(server.asked) > before + times)  # and the last of these was answered


def kinds(recording):
    return recording.frame("events")["kind"].to_list()


def test_what_a_page_says_is_kept_as_read(server, tmp_path):
    server.gauges = {"vllm:num_requests_running": 3}
    recording, ticks = attach(server, folder=tmp_path / "r")
    scrapes = recording.frame("scrapes")
    assert recording.complete
    (key,) = recording.manifest.engines
    config = recording.manifest.engines[key]
    assert (config.model, config.mode, config.block_size) == ("demo-s", "server", 128)
    assert config.key() == key
    assert set(scrapes["engine"]) == {key}
    polls = scrapes["time"].n_unique()
    assert polls >= 12
    assert scrapes.filter(name="vllm:num_requests_running")["value"].to_list() == [3.0] * polls
    assert scrapes["le"].is_infinite().any()
    assert not scrapes["name"].str.contains("_created|^python|^http").any()
    assert ticks
    (engine,) = watched_engines(recording)
    assert engine.numbers.polls == polls
    assert engine.numbers.generated_tokens_per_s == 0
    assert engine.events == {}


@pytest.mark.parametrize(
    ("waiting", "full", "limit"), [(7, 0.4, 4), (0, 0.4, None), (7, 0.99, None)]
)
def test_a_limit_that_no_one_tells_is_the_one_that_was_seen(server, tmp_path, waiting, full, limit):
    """Of vLLM's /metrics alone: as many as ever ran while others waited, with room in the cache."""
    server.gauges = {
        "vllm:num_requests_running": 4,
        "vllm:num_requests_waiting": waiting,
        "vllm:kv_cache_usage_perc": full,
    }
    recording, _ = attach(server, folder=tmp_path / "r")
    (engine,) = recording.manifest.engines.values()
    assert engine.max_num_seqs == limit
    notes = recording.frame("events").filter(kind="note")["detail"].to_list()
    assert [f"is taken as {limit}." in each for each in notes] == [True] * (limit is not None)


def test_a_use_of_the_cache_that_cannot_be_is_null_and_said(server, tmp_path):
    server.gauges = {"vllm:num_requests_running": 4, "vllm:kv_cache_usage_perc": 500}
    recording, _ = attach(server, folder=tmp_path / "r")
    (engine,) = watched_engines(recording)
    numbers = engine.numbers
    assert (numbers.running, numbers.kv_share, numbers.kv_share_max) == (4, None, None)
    notes = recording.frame("events").filter(kind="note")["detail"].to_list()
    assert any("lines of /metrics have a use of the KV cache outside 0 to 1" in n for n in notes)


def test_a_page_of_too_many_engines_is_watched_in_part_and_that_is_said(
    server, tmp_path, monkeypatch
):
    monkeypatch.setattr("traces.live.metrics_page.MOST_ENGINES", 4)
    server.engines, said = tuple(map(str, range(6))), []
    recording, _ = attach(server, folder=tmp_path / "r", say=said.append)
    assert len(watched_engines(recording)) == 4
    assert any("/metrics names 2 engines too many" in line for line in said)
    (lost,) = recording.frame("events").filter(kind="drop")["detail"]
    assert lost.endswith("those of 2 engines too many included")


NAMES = ("vllm:num_requests_running", "vllm:kv_cache_usage_perc", "vllm:generation_tokens_total")
BUCKETS = [("vllm:e2e_request_latency_seconds_bucket", le) for le in (0.5, 1.0, math.inf)]
SERIES = [*(Series("0", name) for name in NAMES), *(Series("0", n, "", le) for n, le in BUCKETS)]
SERIES += [Series("0", "vllm:num_requests_waiting"), Series("", "process_start_time_seconds")]
PAGES = st.lists(
    st.tuples(
        st.integers(1, 40).map(lambda seconds: seconds * 10**9),
        st.dictionaries(st.sampled_from(SERIES), st.integers(0, 3).map(float)),
    ),
    min_size=2,
    max_size=30,
)


@pytest.mark.slow
@given(PAGES)
def test_what_did_not_change_is_not_kept_and_nothing_is_lost(pages):
    scraper = Scraper(
        Access.of("http://127.0.0.1:1", {}), lambda label: "e", on_event=lambda *_: None
    )
    time_ns, seen, whole = 10**18, set(), []
    for pause_ns, told in pages:
        time_ns += pause_ns
        values = {SERIES[0]: 1.0} | told  # by which vLLM's pages tell an engine
        scraper._take(PolledPage(time_ns, 0.0, values))
        seen |= values.keys()
        for series in seen:
            row = {"time": time_ns, "engine": "e", "name": series.name, "labels": series.labels}
            whole.append(row | {"le": series.le, "value": values.get(series)})
    kept, scraper_kept = pl.DataFrame(whole, schema=SCRAPES), scraper.drain()
    scraper.close()
    assert scraper_kept.height <= kept.height
    windows = [window_of(rows, "e") for rows in (kept, scraper_kept)]
    assert windows[0].times.tolist() == windows[1].times.tolist()
    assert numbers_in(windows[0], "e") == numbers_in(windows[1], "e")
    for name in windows[0].gauges:
        np.testing.assert_equal(windows[0].gauges[name], windows[1].gauges[name])
    for name in windows[0].counted:
        np.testing.assert_equal(windows[0].counted[name], windows[1].counted[name])


def test_of_a_page_that_stands_still_little_is_kept(server, tmp_path):
    recording, _ = attach(server, folder=tmp_path / "r", seconds=1.0)
    scrapes = recording.frame("scrapes")
    first = scrapes.filter(pl.col("time") == scrapes["time"].min())
    assert first.height > 300
    polls = scrapes["time"].n_unique()
    assert scrapes.height <= first.height + 2 * polls  # one series a poll, and what moves
    (watched,) = watched_engines(recording)
    assert watched.numbers.polls == polls == watched.window.times.size


def test_a_page_that_did_not_fit_is_followed_by_a_whole_one(monkeypatch):
    monkeypatch.setattr(profiler.attach.scraper, "_MOST_WAITING", 1)
    scraper = Scraper(
        Access.of("http://127.0.0.1:1", {}), lambda label: "e", on_event=lambda *_: None
    )
    values = dict.fromkeys(SERIES, 1.0)
    for second in range(3):
        scraper._take(PolledPage(10**18 + second, 0.0, values))
    assert scraper.drain().height == len(SERIES)
    scraper._take(PolledPage(10**18 + 3, 0.0, values))
    assert scraper.drain().height == len(SERIES)
    scraper.close()


def test_a_restart_is_noted_and_the_new_configuration_read(server, tmp_path):
    def restart():
        server.started, server.scale, server.model = "1.8e+09", 0.1, "demo-m"

    recording, _ = attach(server, folder=tmp_path / "r", change=restart)
    assert {"restart", "counter_reset", "note"} <= set(kinds(recording))
    assert {each.model for each in recording.manifest.engines.values()} == {"demo-s", "demo-m"}
    assert recording.frame("scrapes")["engine"].n_unique() == 2
    assert all(each.numbers.generated_tokens_per_s == 0 for each in watched_engines(recording))


@pytest.mark.parametrize("began", [(17, 18), ("nan", "nan"), (17, "nan"), (17, 17)])
def test_a_load_balancer_is_refused(server, began):
    server.turns = itertools.cycle(zip(began, (1.0, 2.0), strict=True))
    with pytest.raises(EngineError, match=r"several servers answer there.*--metrics-url"):
        looked_at(Access.of(server.url))
    pages = [headers for path, headers, _ in server.asked if path == "/metrics"]
    assert len(pages) > 1 and all(each["Connection"] == "close" for each in pages)


def test_the_page_of_a_router_is_no_engines(server):
    """vLLM's production-stack has one of its own, with vLLM's names."""
    server.body = """vllm:num_incoming_requests_total{model="demo-s"} 3.0
vllm:num_requests_running{server="http://10.0.0.1:8000"} 2.0
vllm:gpu_prefix_cache_hits_total{server="http://10.0.0.1:8000"} 20.0
vllm:healthy_pods_total{server="http://10.0.0.1:8000"} 1.0
"""
    access = Access.of(server.url)
    with pytest.raises(EngineError, match=r"that of a router before several.*--metrics-url"):
        looked_at(access)
    (metrics,) = (each for each in examine_server(access) if each.what == "metrics")
    assert metrics.present is False and "a router" in metrics.detail


def test_of_servers_that_answer_in_turn_later_one_is_kept(server, tmp_path):
    def balance():
        turns = itertools.cycle([("1.7e+09", 1.0), ("1.8e+09", 2.0)])
        server.turns = itertools.chain([("1.8e+09", 2.0)], turns)
        asked_again(server, 9)

    said, folder = [], tmp_path / "r"
    recording, _ = attach(server, folder=folder, change=balance, say=said.append)
    (told,) = watched_engines(recording)
    assert said == [told.losses[0]]
    assert told.events["restart"] == 1 and told.events["gap"] >= 1
    assert "several servers answer there" in told.losses[0]
    assert told.numbers.generated_tokens_per_s == 0.0


def test_what_an_earlier_process_told_is_forgotten(server):
    lines, block = server.lines, 'block_size="128"'
    reader, told = PageReader(), []
    for life, size in enumerate((16, 32, 16)):
        server.lines = [line.replace(block, f'block_size="{size}"') for line in lines]
        server.engines, server.started = ("0", "1")[: 2 - life % 2], f"{17 + life}e+08"
        reader.read(server.page())
        told.append([each["block_size"] for each in reader.cache_config.values()])
    assert told == [["16", "16"], ["32"], ["16", "16"]]


@pytest.mark.parametrize("started", ["1.8e+09", "nan"])  # several front ends tell none
def test_a_restart_with_fewer_replicas_is_another_configuration(server, tmp_path, started):
    server.engines = ("0", "1")
    server.started = "nan" if started == "nan" else server.started

    def restart():
        server.started, server.engines, server.scale = started, ("0",), 0.5

    recording, _ = attach(server, folder=tmp_path / "r", change=restart)
    last = recording.frame("scrapes").filter(name="vllm:num_requests_running")["engine"][-1]
    engine = recording.manifest.engines[last]
    assert (engine.data_parallel_size, dict(engine.other).get("engine")) == (1, None)


def test_errors_and_hangs_are_gaps_that_end(server, tmp_path):
    def breaks():
        server.status = 500
        asked_again(server, 2)
        server.status = 200
        asked_again(server, 2)  # the first of them may have been asked for before

    recording, _ = attach(server, folder=tmp_path / "r", change=breaks)
    told = recording.frame("events")
    assert told["kind"].to_list() == ["gap", "reconnect"]
    assert told["detail"][0].endswith("/metrics: HTTP 500")
    assert recording.complete


def test_a_lost_server_ends_the_watch_where_asked(server, tmp_path):
    recording, _ = attach(
        server, folder=tmp_path / "r", change=lambda: setattr(server, "gone", True), reconnect=False
    )
    assert not recording.complete
    assert kinds(recording) == ["gap", "killed"]
    assert "a server is gone, as --on-loss end asks" in watched_engines(recording)[0].losses
    assert recording.frame("scrapes").height


def test_a_server_that_fails_is_left_alone_for_longer_and_longer(server, tmp_path):
    server_broken_at = []

    def breaks():
        server_broken_at.append(len(server.asked))
        server.status = 503
        asked_again(server, 4)

    attach(server, folder=tmp_path / "r", change=breaks)
    asked = [at for path, _, at in server.asked[server_broken_at[0] :] if path == "/metrics"]
    pauses = [b - a for a, b in itertools.pairwise(asked[-4:])]
    least = [0.1, 0.2, 0.4]  # a late thread makes them longer
    assert all(found > 0.9 * wanted for found, wanted in zip(pauses, least, strict=True)), pauses


def test_a_slow_page_is_asked_for_a_tenth_of_the_time(server, tmp_path, monkeypatch):
    monkeypatch.setattr(profiler.attach.scraper, "_LONGEST_PAUSE_S", 0.2)  # of failures alone
    server.hang_s = 0.1
    attach(server, folder=tmp_path / "r", seconds=3)
    asked = [
        at
        for path, headers, at in server.asked
        if path == "/metrics" and headers["Connection"] != "close"  # as those before the watch
    ]
    assert len(asked) <= 5


def test_what_came_since_the_last_poll_is_polled_at_the_end(server, tmp_path):
    deployment = Deployment([Access.of(server.url)], period_s=60.0)
    deployment.connect()
    path = watch(deployment, tmp_path / "rec", stop=threading.Event(), duration_s=1.5)
    times = Recording.open(path).frame("scrapes")["time"].unique().sort()
    assert len(times) == 2 and 1.0 < (times[1] - times[0]) / 1e9 < 10.0


def test_an_answer_is_due_from_when_it_is_asked_for(server):
    """Not from when it should have been: this thread may get no processor for seconds."""
    scraper = Scraper(Access.of(server.url), lambda label: label, on_event=lambda *_: None)
    scraper._due = time.monotonic() - 6.0
    assert scraper.silence.seconds == 0.0
    scraper.close()


def test_a_pause_of_ours_is_no_silence(server):
    scrapers = []

    def started(period_s):
        scraper = Scraper(Access.of(server.url), str, on_event=lambda *_: None, period_s=period_s)
        scraper.start()
        scrapers.append(scraper)
        return scraper

    slow = started(3600.0)
    until(lambda: slow.silence.again_s > 3000)
    assert slow.silence.seconds == 0.0
    # Where another server answers in turn it is asked again as before, and not left alone.
    server.turns = itertools.chain([("1.7e+09", 1), ("1.8e+09", 1)], itertools.repeat(("17e8", 1)))
    turns = started(0.1)
    until(lambda: turns.failures >= 5)
    assert turns.silence.another and turns.silence.again_s <= 0.1
    server.turns, server.status = iter(()), 503
    failing = started(0.1)
    until(lambda: failing.failures >= 4)
    assert not failing.silence.another
    until(lambda: failing.silence.again_s > 0.1)
    assert failing.silence.seconds > 0.6
    for scraper in scrapers:
        scraper.stop()


def test_two_replicas_with_one_configuration_are_two_engines(server, tmp_path):
    with metrics_server() as other:
        other.gauges = {"vllm:num_requests_running": 7}
        recording, _ = attach(server, other, folder=tmp_path / "r")
    running = recording.frame("scrapes").filter(name="vllm:num_requests_running")
    by_url = {dict(e.other)["url"]: key for key, e in recording.manifest.engines.items()}
    assert set(by_url) == {server.url, other.url}
    assert set(running.filter(engine=by_url[other.url])["value"]) == {7.0}
    assert len(watched_engines(recording)) == 2


def test_engines_by_label(server, tmp_path):
    server.engines = ("0", "1")
    recording, _ = attach(server, folder=tmp_path / "r")
    engines = recording.manifest.engines.values()
    assert sorted(dict(e.other).get("engine", "") for e in engines) == ["", "0", "1"]
    watched = watched_engines(recording)
    assert [dict(each.engine.other)["engine"] for each in watched] == ["0", "1"]


@pytest.mark.parametrize("blocks", ["None", "48"])
def test_the_page_says_with_how_many_blocks_a_server_was_started(server, blocks):
    labels = f'engine="0",num_gpu_blocks="48",num_gpu_blocks_override="{blocks}"'
    server.lines = [line for line in server.lines if "cache_config_info{" not in line]
    server.lines.append(f"vllm:cache_config_info{{{labels}}} 1.0")
    (replica,) = looked_at(Access.of(server.url)).replicas
    assert replica.config.num_gpu_blocks == 48
    assert dict(replica.config.other).get(BLOCKS, "None") == blocks


def test_a_plugin_tells_the_gpus_of_one_replica(server):
    server.engines = ("0", "1")
    deployment = looked_at(Access.of(server.url))
    (replica,) = deployment.replicas
    told = EngineConfig(model="m", tensor_parallel_size=2, num_gpus=2, data_parallel_size=2)
    deployment.adopt(replica.keys["0"], told)
    assert replica.config.num_devices == 4
    assert [deployment.engines[replica.keys[each]].num_devices for each in ("0", "1", "")] == [
        2,
        2,
        4,
    ]


def test_a_plugin_tells_that_ranks_share_whole_experts(server):
    deployment = looked_at(Access.of(server.url))
    (replica,) = deployment.replicas
    told = EngineConfig(model="m", tensor_parallel_size=2, other=((EXPERTS, "true"),))
    for _ in range(2):
        deployment.adopt(replica.keys["0"], told)
    assert replica.config.other == ((EXPERTS, "true"),)
    assert all(each.expert_parallel for each in deployment.engines.values())


def test_a_server_that_drafts_says_how_far_ahead_on_its_page_or_by_its_plugin(server):
    name, model = "vllm:spec_decode_num", 'engine="0",model_name="demo-s"'
    of_positions = f"{name}_accepted_tokens_per_pos_total"
    drafts = [f"{name}_drafts_total{{{model}}} 40", f"{name}_draft_tokens_total{{{model}}} 81"]
    positions = [f'{of_positions}{{{model},position="{at}"}} {9 - at}' for at in range(3)]
    server.lines += drafts

    def told(*adopted):
        deployment = looked_at(Access.of(server.url))
        (replica,) = deployment.replicas
        for each in adopted:
            deployment.adopt(replica.keys["0"], EngineConfig(model="m", speculative=each))
        (engine,) = deployment.engines.values()
        return engine.speculative

    assert told() == Speculative(method=UNKNOWN_METHOD, num_speculative_tokens=2)
    server.lines += positions
    by_page = Speculative(method=UNKNOWN_METHOD, num_speculative_tokens=3)
    by_plugin = Speculative(method="eagle3", num_speculative_tokens=3, model="e")
    assert told() == told(None) == by_page
    assert told(by_plugin) == by_plugin


def test_on_a_page_of_several_engines_those_draft_that_count_drafts(server):
    server.engines = ("0", "1")
    counter = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
    server.lines += [f'{counter}{{engine="1",position="{at}"}} {9 - at}' for at in range(3)]
    deployment = looked_at(Access.of(server.url))
    (replica,) = deployment.replicas
    drafts = Speculative(method=UNKNOWN_METHOD, num_speculative_tokens=3)
    told = {label: deployment.engines[key].speculative for label, key in replica.keys.items()}
    assert told == {"": drafts, "0": None, "1": drafts}


def test_an_engine_that_is_added_leaves_that_of_a_run_in_its_recording(tmp_path):
    run, more = EngineConfig(model="of a workload"), EngineConfig(model="of a plugin")
    manifest, deployment = Manifest(clock_start=read_clocks(), engines={"run": run}), Deployment([])
    with RecordingWriter(tmp_path / "r", manifest) as writer, deployment.watched(writer):
        key = deployment.add(more)
        assert writer.manifest.engines == {"run": run, key: more}


def test_the_key_goes_to_the_server_and_nowhere_else(server, tmp_path, capfd, caplog):
    caplog.set_level("DEBUG")
    server.key = KEY
    with pytest.raises(EngineError, match="wants a key") as told:
        attach(server, folder=tmp_path / "a", headers={"Authorization": "Bearer wrong-canary"})
    headers = read_headers(KEY, ["X-Org: org-canary"])
    recording, _ = attach(server, folder=tmp_path / "r", headers=headers)
    assert server.asked[-1][1]["X-Org"] == "org-canary"
    kept = everything_in(recording.path) + "".join(capfd.readouterr()) + caplog.text
    assert "canary" not in kept + str(told.value) + repr(Access.of(server.url, headers))


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("<html>login</html>", "nothing of an engine"),
        ("python_info 1\n", "nothing of an engine"),
        ("", "no metrics page"),
    ],
)
def test_what_is_no_metrics_page_of_vllm(server, tmp_path, body, told):
    server.body = body
    with pytest.raises(EngineError, match=told):
        attach(server, folder=tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_a_page_without_end_is_refused(server, tmp_path, monkeypatch):
    monkeypatch.setattr("profiler.attach.scraper._MOST_PAGE_BYTES", 10_000)
    with pytest.raises(EngineError, match="a page of more than"):
        attach(server, folder=tmp_path / "r")


def test_a_disk_that_fails_does_not_end_the_watch(server, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("traces.recording.writer.write_part", full)
    with pytest.raises(Exception, match="Writing failed .No space left on device."):
        attach(server, folder=tmp_path / "r")


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000", "ftp://h", "http://", "http://user:pw-canary@h:1", "http://h:99999",
        "http://h?token=canary", "http://[::1",
    ],
)  # fmt: skip
def test_urls_that_are_none(url):
    with pytest.raises(UsageError) as told:
        Access.of(url)
    assert "canary" not in str(told.value)


def test_urls_as_people_write_them():
    for url in ("http://h:8000", "http://h:8000/", "http://h:8000/v1/", "http://h:8000/metrics"):
        assert Access.of(url).url == "http://h:8000"
    assert Access.of("https://h/team/v1").url == "https://h/team"


def test_keys_and_headers(tmp_path, monkeypatch):
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    monkeypatch.setenv("SECRET", "from-env")
    assert read_key(None, file) == KEY
    assert read_key("SECRET", None) == "from-env"
    assert read_key(None, None) is None
    assert read_headers(KEY, ["X-A: $SECRET"])["X-A"] == "from-env"
    assert "Authorization" not in read_headers(KEY, ["authorization: Basic x"])
    file.write_text("two canary\nlines canary\n")
    bad = [
        lambda: read_key(None, file),
        lambda: read_key(None, tmp_path / "absent"),
        lambda: read_key("ABSENT_VARIABLE", None),
        lambda: read_key("SECRET", file),
        lambda: read_headers(None, ["no colon canary"]),
        lambda: read_headers(None, ["X-A: canary\r\nX-B: canary"]),
        lambda: read_headers(None, ["Host: canary"]),
        lambda: read_headers(None, ["X-A: $ABSENT_VARIABLE"]),
    ]
    for wrong in bad:
        with pytest.raises(UsageError) as told:
            wrong()
        assert "canary" not in str(told.value)


def verb(*arguments):
    code = "from tui.cli import main; main()"
    return [sys.executable, "-c", code, "attach", *arguments]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_verb_well(server, tmp_path, number):
    command = verb(server.url, "--period", "200ms", "-o", str(tmp_path / "r"), "--json")
    root = Path(__file__).parents[3]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root
    )
    # For the second part: a line is shown after the first second.
    until(lambda: process.poll() is not None or [*tmp_path.glob("r/scrapes-000001.parquet")], 120)
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    (watched,) = json.loads(out)["watched"]
    assert watched["complete"]
    assert watched["numbers"]["polls"] >= 2
    assert "tok/s" in err or "no answer yet" in err


@pytest.mark.slow
def test_sigterm_ends_it_soon_whatever_connections_are_open(server, tmp_path):
    port = free_port()
    command = verb(server.url, "--listen", str(port), "-o", str(tmp_path / "r"), "--json")
    root = Path(__file__).parents[3]
    with ExitStack() as stack:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root
        )
        while process.poll() is None and not list(tmp_path.glob("r/scrapes-*.parquet")):
            time.sleep(0.05)
        for number in range(80):
            held = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            held.sendall(b"POST /v1/traces HTTP/1.1\r\n"[: number % 25])
        begun = time.monotonic()
        process.terminate()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert time.monotonic() - begun < 30  # 3 s; others may use this machine
