"""What a receiver takes in becomes rows of the right engine, and all of it."""

import json
import threading
import time
from contextlib import ExitStack, contextmanager

import pytest

from benchmarks.made.spans import T0, request, span
from benchmarks.servers.clients import until
from benchmarks.servers.metrics_server import metrics_server
from benchmarks.servers.vllm_server import free_port
from profiler.attach.deployment import Deployment
from profiler.attach.receiver.incoming import Incoming
from profiler.attach.watch import watch
from profiler.engines.server.access import Access
from profiler.plugin.batches import Batch
from tests.advisor.synthetic import FACTS
from tests.profiler.attach.receiver.test_receiver import raw_steps
from traces.live.otlp import read_json
from traces.live.watched import watched_engines
from traces.recording.reader import Recording
from traces.schema.engine import EngineConfig
from tui.text.recordings.live import watched_lines

PODS = ("127.0.0.2", "127.0.0.3")


def batch(*rows, instance="i", **more):
    return Batch(v=1, instance=instance, engine=0, columns=[], rows=raw_steps(*rows), **more)


def watched(
    folder, receiver, *starts, during, goes_on=False, front=False, ranks="0", hosts=(), **options
):
    """Watch servers that began at `starts` while `during` runs, which gets their URLs.

    The watch waits little for plugins that say nothing more, so that the recording takes what came
    when it is closed. Where `during` goes on behind the end, it gets what ends the watch, and
    plugins are waited for. With a `front` the servers are workers behind it, with `hosts` they are
    on these, with one port.
    """

    def send():
        try:
            for server, asked in zip(servers, before, strict=True):
                until(lambda server=server, asked=asked: len(server.asked) >= asked + 2)
            during(stop if goes_on else urls)
        finally:
            stop.set()

    @contextmanager
    def beside(_):
        before.extend(len(each.asked) for each in servers)
        sending.start()
        yield

    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        hello_s = 30 if goes_on else 0.2
        patch.setattr("profiler.attach.receiver.incoming.HELLO_S", hello_s)
        places = [(host, free_port() if at == 0 else None) for at, host in enumerate(hosts)]
        places = [(host, places[0][1]) for host, _ in places] or [("127.0.0.1", 0)] * len(starts)
        servers = [stack.enter_context(metrics_server(at=place)) for place in places]
        for server, start in zip(servers, starts, strict=True):
            server.started, server.engines = start, ranks
        accesses = [Access.of(each.url) for each in servers]
        if front:
            url = stack.enter_context(metrics_server()).url
            accesses = [Access.of(url).with_metrics(each.url) for each in servers]
        deployment = Deployment(accesses, period_s=0.1)
        deployment.connect()
        incoming, stop = Incoming(receiver, deployment, **options), threading.Event()
        urls, before, sending = [each.url for each in servers], [], threading.Thread(target=send)
        path = watch(deployment, folder, stop=stop, probes=[incoming.watched, beside])
        sending.join()
    recording = Recording.open(path)
    engines = recording.manifest.engines
    return recording, {dict(each.other).get("url"): key for key, each in engines.items()}


def test_a_plugin_belongs_to_the_server_that_began_with_it_or_listens_there(receiver, tmp_path):
    step, now = {"running": 1, "generated": 1}, time.time_ns() + 10**10

    def send(urls):
        ports = [int(url.rpartition(":")[2]) for url in urls]
        receiver.put_batch(batch(step | {"end": now}, instance="a", process_start_s=1.7e9))
        # Two front ends, which do not tell when they began; the second saw other requests.
        other = step | {"end": now + 1, "finished": 2}
        receiver.put_batch(batch(other, instance="b", ports=[1, ports[1]]))
        part = {"end": now + 2, "generated": 3, "finished": 1}
        part |= {"running": None, "waiting": None, "kv_usage": None}
        receiver.put_batch(batch(part, instance="c", ports=[ports[1]]))
        receiver.put_batch(batch(step | {"end": now + 9}, instance="d"))  # of neither

    recording, by_url = watched(tmp_path / "r", receiver, "1.7e+09", "nan", during=send)
    rows = {row["end"]: row for row in recording.steps.to_dicts()}
    keys = [each for url, each in by_url.items() if url is not None]
    assert rows[now]["engine"] in keys
    assert rows[now + 1]["engine"] in keys
    assert rows[now]["engine"] != rows[now + 1]["engine"]
    assert rows[now + 1]["finished"] == 3
    assert rows[now + 9]["engine"] not in keys
    assert len(rows) == 3


def test_plugins_of_workers_behind_one_front_end_are_found_by_the_ports_of_their_pages(
    receiver, tmp_path
):
    step, now = {"running": 1, "generated": 1}, time.time_ns() + 10**10

    def send(urls):  # Dynamo's pages do not tell when a process began.
        for at, url in enumerate(urls):
            port = int(url.rpartition(":")[2])
            receiver.put_batch(batch(step | {"end": now + at}, instance=f"{at}", ports=[port]))

    recording, by_url = watched(tmp_path / "r", receiver, "nan", "nan", during=send, front=True)
    rows = {row["end"]: row["engine"] for row in recording.steps.to_dicts()}
    assert len(by_url) == len(recording.manifest.engines) == 2
    assert [rows[now], rows[now + 1]] == list(by_url.values())


@pytest.mark.parametrize("front", [False, True])
def test_plugins_of_pods_with_one_port_are_found_by_where_they_send_from(receiver, tmp_path, front):
    step, now, hosts = {"running": 1, "generated": 1}, time.time_ns() + 10**10, PODS

    def send(urls):
        port = int(urls[0].rpartition(":")[2])
        for at, host in enumerate([*hosts, "127.0.0.9"]):
            told = batch(step | {"end": now + at}, instance=f"{at}", ports=[port])
            receiver.put_batch(told, host)

    recording, by_url = watched(
        tmp_path / "r", receiver, "nan", "nan", during=send, front=front, hosts=hosts
    )
    rows = {row["end"]: row["engine"] for row in recording.steps.to_dicts()}
    own = [key for host in hosts for url, key in by_url.items() if host in (url or "")]
    assert [rows[now], rows[now + 1]] == own
    assert rows[now + 2] not in own


def test_a_plugin_tells_what_its_model_costs(receiver, tmp_path):
    config, facts = EngineConfig(model="other", max_num_seqs=8), FACTS["small"]

    def send(urls):
        ports = [int(url.rpartition(":")[2]) for url in urls]
        told = batch(instance="a", ports=ports, config=config, model=facts)
        receiver.put_batch(told)

    recording, _ = watched(tmp_path / "r", receiver, "1.7e+09", during=send)
    (engine,) = recording.manifest.engines.values()
    assert engine.max_num_seqs == 8
    assert recording.manifest.models[engine.model].weight_bytes == facts.weight_bytes


@pytest.mark.parametrize("start", [1.7e9, 1.7e9 + 0.01, None])
def test_a_plugin_of_a_server_that_was_started_at_the_same_moment_is_not_taken_in(
    receiver, tmp_path, start
):
    step, now = {"running": 1, "generated": 1}, time.time_ns() + 10**10

    def send(urls):
        port = int(urls[0].rpartition(":")[2])
        other = batch(step | {"end": now - 10**9}, instance="b", process_start_s=start, ports=[1])
        own = batch(step | {"end": now}, instance="a", process_start_s=1.7e9, ports=[port])
        receiver.batches.extend([other, own])  # at once, the other's first

    recording, _ = watched(tmp_path / "r", receiver, "1.7e+09", during=send)
    engines = recording.manifest.engines.items()
    (own,) = (key for key, each in engines if "instance" not in dict(each.other))
    assert recording.steps.filter(engine=own)["end"].to_list() == [now]
    assert recording.steps.height == 2


def test_the_last_steps_are_waited_for_where_a_plugin_speaks(receiver, tmp_path):
    step, end = {"running": 1, "generated": 1}, time.time_ns() + 10**10

    def send(stop):
        receiver.put_batch(batch(step | {"end": end}))
        stop.set()
        time.sleep(0.5)
        receiver.put_batch(batch(step | {"end": end + 1}))

    recording, _ = watched(tmp_path / "r", receiver, "1.7e+09", during=send, goes_on=True)
    assert recording.steps.height == 2


def test_a_batch_that_was_on_its_way_when_the_watch_ended_is_not_the_last(receiver, tmp_path):
    step, end = {"running": 1, "generated": 1}, time.time_ns() + 10**10

    def send(stop):
        for _ in range(20):  # the shortest way tells the clocks apart, on a busy machine too
            receiver.put_batch(batch(now=time.time_ns()))
        receiver.put_batch(batch(step | {"end": end}, now=time.time_ns()))
        made = time.time_ns()
        stop.set()
        time.sleep(0.5)  # the way took so long
        receiver.put_batch(batch(step | {"end": end + 1}, now=made))
        time.sleep(0.5)
        receiver.put_batch(batch(step | {"end": end + 2}, now=time.time_ns()))

    recording, _ = watched(tmp_path / "r", receiver, "1.7e+09", during=send, goes_on=True)
    assert recording.steps.height == 3


@pytest.mark.parametrize("comes", [True, False])
def test_the_spans_of_requests_that_ended_at_the_close_are_waited_for(
    receiver, tmp_path, monkeypatch, comes
):
    """An exporter sends what ended every few seconds, and /metrics tells that something did."""
    monkeypatch.setattr("profiler.attach.receiver.incoming.HELLO_S", 0.2)
    monkeypatch.setattr("profiler.attach.receiver.incoming.FLUSH_S", 30 if comes else 1)
    stop, said = threading.Event(), []
    with metrics_server() as server:
        line = next(each for each in server.lines if each.startswith("vllm:request_success_total{"))
        series, _, before = line.rpartition(" ")

        def ends(number):
            start = (time.time_ns() - T0) / 1e9
            told = json.dumps(request(span(number, trace=f"{number}" * 2, start=start)))
            receiver.put_spans(read_json(told.encode()))

        def send():
            until(lambda: deployment.finished_since()[1])  # the first page of the watch
            server.gauges[series] = float(before) + 1
            ends(1)
            until(lambda: deployment.finished_since()[0] == 1)
            server.gauges[series] = float(before) + 2
            stop.set()
            time.sleep(0.7)
            if comes:
                ends(2)

        deployment = Deployment([Access.of(server.url)], period_s=0.1, say=said.append)
        deployment.connect()
        sending = threading.Thread(target=send)
        sending.start()
        watched = Incoming(receiver, deployment).watched
        path = watch(deployment, tmp_path / "r", stop=stop, probes=[watched])
        sending.join()
    assert Recording.open(path).problems.height == (2 if comes else 1)
    assert len(said) == 1 and "spans" in said[0]


def test_spans_of_our_own_requests_are_left_out(receiver, tmp_path):
    start = (time.time_ns() - T0) / 1e9
    bodies = [
        json.dumps(request(span(n, trace=trace, start=start)))
        for n, trace in ((1, "aa"), (2, "bb"))
    ]

    def send(_):
        for body in bodies:
            receiver.put_spans(read_json(body.encode()))

    recording, _ = watched(tmp_path / "r", receiver, "1.7e+09", during=send, own_traces={"aa" * 16})
    assert recording.problems["trace_id"].to_list() == ["bb" * 16]
    assert recording.samples.height == 1


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("heard", [1, 2])
def test_a_span_is_of_the_server_in_whose_process_the_plugin_is(receiver, tmp_path, named, heard):
    """By its tracer's name; else by its number, where no server's plugin is silent."""
    now, span_s = time.time_ns() + 10**10, (time.time_ns() - T0) / 1e9 + 10
    process = "service__instance__id" if named else "vllm__process_id"

    def send(urls):
        for at, url in enumerate(urls[:heard]):
            told = {"tracer": f"{at}"} if named else {"process_id": at}
            step, port = {"running": 1, "end": now + at}, int(url.rpartition(":")[2])
            receiver.put_batch(batch(step, instance=f"{at}", ports=[port], **told))
        until(lambda: not receiver.batches)
        for at in range(3):  # nobody watches the third's server
            sent = request(span(at + 1, trace=f"a{at}", start=span_s), **{process: f"{at}"})
            receiver.put_spans(read_json(json.dumps(sent).encode()))

    recording, _ = watched(tmp_path / "r", receiver, "1.7e+09", "1.8e+09", during=send)
    engines = dict(recording.steps.sort("end").with_row_index()["index", "engine"].iter_rows())
    found = dict(recording.problems["trace_id", "engine"].iter_rows())
    known = [found[f"a{at}" * 16] == engines.get(at) for at in range(3)]
    assert known == [named or heard == 2, heard == 2, False]
    assert len(set(found.values())) == 3


def test_a_span_is_of_a_server_that_was_not_known_when_its_plugin_began(receiver, tmp_path):
    """As of a replica of Ray Serve, which is on the page once it has served a request."""
    now = time.time_ns() + 10**10

    def send(urls):
        port = int(urls[0].rpartition(":")[2])
        for at, ports in enumerate(([], [port])):
            step = {"running": 1, "end": now + at}
            receiver.put_batch(batch(step, instance="a", tracer="a", ports=ports))
            until(lambda: not receiver.batches)
        sent = request(span(1, start=(now - T0) / 1e9), service__instance__id="a")
        receiver.put_spans(read_json(json.dumps(sent).encode()))

    recording, by_url = watched(tmp_path / "r", receiver, "1.7e+09", "1.8e+09", during=send)
    assert recording.problems["engine"].to_list() == [next(iter(by_url.values()))]


def test_spans_of_the_front_ends_of_one_server_are_of_its_model(receiver, tmp_path):
    """vLLM's name neither it nor the rank that a request was on."""

    def send(urls):
        for front in "ab":
            tracer = {"tracer": front, "ports": [int(urls[0].rpartition(":")[2])]}
            for rank in (0, 1):
                step = raw_steps({"running": 1, "end": time.time_ns()})
                told = Batch(v=1, instance=front, engine=rank, columns=[], rows=step, **tracer)
                receiver.put_batch(told)
            until(lambda: not receiver.batches)
            about = {"service__instance__id": front, "service__name": "unknown_service"}
            sent = request(span(1, trace=f"{front}1", start=(time.time_ns() - T0) / 1e9), **about)
            receiver.put_spans(read_json(json.dumps(sent).encode()))

    recording, _ = watched(tmp_path / "r", receiver, "nan", during=send, ranks="01")
    engine, *others = recording.problems["engine"].unique()
    assert recording.problems.height == 2 and not others
    assert recording.manifest.engines[engine].model == "demo-s"


STEP = {"running": 1, "generated": 1, "computed": 0}
S = 10**9


def told_before(recording):
    return recording.frame("events").filter(kind="before").sort("detail")["detail"].to_list()


@pytest.mark.parametrize("ahead_s", [0, 3600, -3600, None])
def test_steps_from_before_the_recording_are_counted_and_left_out(receiver, tmp_path, ahead_s):
    """By the clock of the server's host; a plugin that does not tell its clock has ours."""
    ahead = (ahead_s or 0) * S

    def send(_):
        now = time.time_ns() + ahead
        old = [STEP | {"end": now - each * S} for each in range(70, 5, -5)]
        new = [STEP | {"end": now + each * 1000} for each in range(4)]
        told = {} if ahead_s is None else {"now": now}
        receiver.put_batch(batch(*old, *new, **told))

    recording, _ = watched(tmp_path / "r", receiver, "1.7e+09", during=send)
    steps = recording.steps
    assert steps["step"].to_list() == [0, 1, 2, 3]
    assert steps["interval_ns"].to_list() == [None, 1000, 1000, 1000]
    assert steps["decode_kv_tokens"].null_count() == 0
    assert told_before(recording) == [
        "13 steps that ended before the recording began were left out"
    ]
    notes = recording.frame("events").filter(kind="note")["detail"].to_list()
    assert len(notes) == (1 if ahead else 0)
    assert not recording.manifest.dropped


def test_what_later_steps_read_rests_on_those_from_before(receiver, tmp_path):
    def send(_):
        now = time.time_ns()
        begun = STEP | {"end": now - 9 * S, "prompts": 100, "first_tokens": 1}
        receiver.put_batch(batch(begun, STEP | {"end": now, "continued": 1}))

    recording, _ = watched(tmp_path / "r", receiver, "1.7e+09", during=send)
    assert recording.steps["decode_kv_tokens"].to_list() == [101]


def test_problems_that_ended_before_the_recording_are_counted_and_left_out(receiver, tmp_path):
    """A phantom run of old spans; a problem that ended meanwhile is there as a whole."""

    def send(_):
        start = (time.time_ns() - T0) / 1e9
        spans = [span(n, trace="aa", start=start - 60 - n) for n in range(1, 6)]
        spans += [span(6, trace="bb", parent=99, start=start - 30)]
        spans += [span(7, trace="bb", parent=99, start=start - 1)]
        receiver.put_spans(read_json(json.dumps(request(*spans)).encode()))

    recording, _ = watched(tmp_path / "r", receiver, "1.7e+09", during=send)
    assert recording.problems["trace_id"].to_list() == ["bb" * 16]
    assert recording.samples.height == 2
    assert told_before(recording) == ["5 spans that ended before the recording began were left out"]


@pytest.mark.parametrize(("ahead_s", "count"), [(7200, 2), (0, 0)])
def test_spans_of_a_clock_that_is_ahead_are_counted_and_kept(receiver, tmp_path, ahead_s, count):
    def send(_):
        start = (time.time_ns() - T0) / 1e9 - 1.5 + ahead_s  # of 2 s
        spans = [span(n, trace="aa", start=start) for n in (1, 2)]
        receiver.put_spans(read_json(json.dumps(request(*spans)).encode()))

    recording, _ = watched(tmp_path / "r", receiver, "1.7e+09", during=send)
    assert recording.samples.height == 2
    notes = recording.frame("events").filter(kind="note")["detail"].to_list()
    said = [each for each in notes if "the clock of their sender is ahead" in each]
    assert len(said) == (count > 0) and all(f"{count} spans ended up to 7,20" in s for s in said)


@pytest.mark.parametrize(
    ("told", "lost"),
    [
        ([(900, -60)], 0),  # while nobody listened
        ([(900, -60), (950, -50)], 0),  # the rest of what waited
        ([(900, -60), (907, 1)], 7),
        ([(900, None), (907, None)], 7),  # a plugin that does not tell when
    ],
)
def test_only_drops_during_the_recording_are_its_own(receiver, tmp_path, told, lost):
    def send(_):
        now = time.time_ns()
        for count, seconds in told:
            until = None if seconds is None else now + seconds * S
            receiver.put_batch(batch(STEP | {"end": now}, dropped=count, dropped_until=until))

    recording, _ = watched(tmp_path / "r", receiver, "1.7e+09", during=send)
    assert recording.manifest.dropped.get("steps", 0) == lost


@pytest.mark.parametrize("late", [False, True])
def test_a_configuration_is_taken_over_whenever_it_comes(receiver, tmp_path, late):
    """Rows keep the key that the engine had, and the manifest says what it is."""
    config = {"model": "m", "mode": "server", "max_num_seqs": 17, "num_gpu_blocks": 101}

    def send(_):
        now, more = time.time_ns(), {"process_start_s": 1.7e9}
        if late:
            receiver.put_batch(batch(STEP | {"end": now, "kv_usage": 0.5}, **more))
            time.sleep(0.1)
        more["config"] = EngineConfig.from_json(config)
        receiver.put_batch(batch(STEP | {"end": now + 1, "kv_usage": 0.5}, **more))

    recording, _ = watched(tmp_path / "r", receiver, "1.7e+09", during=send)
    ((key, engine),) = recording.manifest.engines.items()
    assert (engine.max_num_seqs, engine.num_gpu_blocks) == (17, 101)
    assert set(recording.steps["engine"]) == {key}
    assert set(recording.frame("scrapes")["engine"]) == {key}
    assert recording.engine_key(engine) == key
    assert recording.steps["kv_blocks"].to_list()[-1] == 50


def test_what_was_refused_is_told_in_the_recording(receiver, tmp_path):
    def send(_):
        assert not receiver.knows("Bearer canary", spans=True)
        receiver.refuse()
        bad = span(1, gen_ai__usage__prompt_tokens=-1)
        receiver.put_spans(read_json(json.dumps(request(bad, bad)).encode()))
        receiver.overflowed += 3

    recording, _ = watched(tmp_path / "r", receiver, "1.7e+09", during=send)
    events = recording.frame("events")
    (note, again), (drop,) = (events.filter(kind=kind)["detail"] for kind in ("note", "drop"))
    assert "without the token" in note
    assert again.startswith("3 requests came faster than they could be taken")
    assert "1 requests (1 without the token), and 2 spans" in drop
    assert "canary" not in note + drop


def test_a_plugin_that_never_speaks_is_named_with_what_to_do(receiver, tmp_path):
    recording, _ = watched(tmp_path / "none", receiver, "1.7e+09", during=lambda _: None)
    (told,) = watched_engines(recording)[0].losses
    assert "the plugin never spoke" in told and "docs/attach.md" in told
    assert f"TTSCOPE_PLUGIN=http://{receiver.host}:{receiver.port}" in told
    assert told in " ".join(" ".join(watched_lines(watched_engines(recording)[0])).split())


def test_of_several_servers_those_are_named_whose_plugin_never_speaks(receiver, tmp_path):
    spoke = []

    def send(urls):
        spoke.append(urls[0])
        step = {"running": 1, "generated": 1, "end": time.time_ns() + 10**10}
        receiver.put_batch(batch(step, ports=[int(urls[0].rpartition(":")[2])]))

    starts = "1.7e+09", "1.8e+09"
    recording, _ = watched(tmp_path / "r", receiver, *starts, during=send)
    for server in watched_engines(recording):
        port = dict(server.engine.other)["url"].rpartition(":")[2]
        assert bool(server.losses) != spoke[0].endswith(f":{port}")
        assert all("the plugin of this server never spoke" in each for each in server.losses)


def test_who_speaks_with_another_token_is_no_silent_plugin(receiver, tmp_path):
    def send(_):
        assert not receiver.knows("Bearer canary", spans=False)

    recording, _ = watched(tmp_path / "r", receiver, "1.7e+09", during=send)
    (told,) = watched_engines(recording)[0].losses
    assert "another token" in told and "canary" not in told


def test_engines_named_by_plugins_and_spans_are_limited(receiver, tmp_path, monkeypatch):
    monkeypatch.setattr("profiler.attach.receiver.incoming.MOST_ENGINES", 2)

    def send(_):
        now, start = time.time_ns() + 10**10, (time.time_ns() - T0) / 1e9
        for number in range(5):
            row = STEP | {"end": now + number}
            receiver.put_batch(batch(row, instance=f"i{number}", process_start_s=1.0))
        for number in range(1, 6):
            made = span(number, start=start, gen_ai__request__model=f"m{number}")
            receiver.put_spans(read_json(json.dumps(request(made, service=f"s{number}")).encode()))

    recording, _ = watched(tmp_path / "r", receiver, "1.7e+09", during=send)
    assert len(recording.manifest.engines) == 3
    assert recording.steps.height == 2
    assert recording.manifest.dropped == {"steps": 3}
    assert recording.samples.height == 5


@pytest.mark.slow
def test_problems_of_too_many_spans_are_written_before_they_settle():
    from traces.live import span_groups

    groups = span_groups.SpanGroups(lambda span: "e", clock=lambda: 0.0)
    for number in range(1, span_groups.MOST_HELD // 100 + 3):
        for made in read_json(
            json.dumps(
                request(*[span(number * 1000 + n, parent=number) for n in range(100)])
            ).encode()
        ).spans:
            groups.add(made)
    problems, samples = groups.drain()
    assert (len(problems), len(samples)) == (2, 200)
    assert groups.drain() == ([], [])


def test_the_context_behind_missing_steps_is_not_known_until_nothing_runs(receiver, tmp_path):
    end = time.time_ns() + 10**10
    one = {"running": 1, "continued": 1, "generated": 1}
    begun = {"running": 2, "first_tokens": 1, "continued": 1, "generated": 2, "prompts": 10}
    last = {"running": 0, "continued": 1, "generated": 1, "finished": 1, "finished_context": 5000}
    fresh = {"running": 1, "first_tokens": 1, "generated": 1, "prompts": 30}

    def numbered(at, *rows):
        return [{**row, "end": end + at + n} for n, row in enumerate(rows)]

    def send(_):
        more = {"dropped": 7, "dropped_until": end - 1, "first": 0}
        receiver.put_batch(batch(*numbered(0, one, begun, one, last, fresh, one), **more))
        more = {"dropped": 9, "dropped_until": end + 8, "first": 6}
        receiver.put_batch(batch(*numbered(9, one, last, fresh, one), **more))

    recording, _ = watched(tmp_path / "r", receiver, "1.7e+09", during=send)
    steps = recording.steps.sort("end")
    read = steps["decode_kv_tokens"].to_list()
    assert read == [None, None, None, None, 0, 31, None, None, 0, 31]
    # Nor is the time across them that of a step.
    assert steps["interval_ns"].to_list() == [None, 1, 1, 1, None, 1, None, 1, None, 1]


def test_a_restarted_server_that_does_not_listen_yet_is_no_other_engine(receiver, tmp_path):
    end = time.time_ns() + 10**10
    begun = {"running": 1, "first_tokens": 1, "generated": 1, "prompts": 5000}
    fresh = {"running": 10, "first_tokens": 10, "generated": 10, "prompts": 300}
    goes_on = {"running": 10, "continued": 10, "generated": 10}

    def send(urls):
        ports = [int(urls[0].rpartition(":")[2])]
        receiver.put_batch(batch(begun | {"end": end}, ports=ports, process_start_s=1.7e9))
        told = {"instance": "again", "first": 0, "process_start_s": end / 1e9 + 1}
        receiver.put_batch(batch(**told))  # it says that it is there
        rows = [each | {"end": end + n * 10**9} for n, each in enumerate([fresh, goes_on], 2)]
        receiver.put_batch(batch(*rows, ports=ports, **told))

    recording, _ = watched(tmp_path / "r", receiver, "1.7e+09", during=send)
    assert len(recording.manifest.engines) == 1
    # The requests of the process before are gone, and how many were left is not told.
    steps = recording.steps.sort("end")
    assert steps["decode_kv_tokens"].to_list() == [0, 0, None]
    assert steps["interval_ns"].to_list() == [None, None, 10**9]


def test_a_server_that_is_restarted_with_another_limit_is_another_engine(receiver, tmp_path):
    """Each engine has its own steps, pages and events, and the first one again has its own key."""
    end, step = time.time_ns() + 10**10, {"running": 1, "generated": 1}
    pages = []

    def send(urls):
        ports = [int(urls[0].rpartition(":")[2])]
        for at, limit in enumerate((8, 16, 8)):
            config = EngineConfig(model="m", max_num_seqs=limit, num_gpu_blocks=1000 + at)
            told = {"instance": str(at), "ports": ports, "process_start_s": 1.7e9, "first": 0}
            receiver.put_batch(batch(step | {"end": end + at}, config=config, **told))
            seen = len(pages)
            until(lambda seen=seen: len(pages) > seen)
            time.sleep(1.5)  # some pages of each, and a turn of the writer that reads the batch
        late = {"instance": "1", "ports": ports, "process_start_s": 1.7e9, "first": 1}
        receiver.put_batch(batch(step | {"end": end + 9}, **late))

    with pytest.MonkeyPatch.context() as patch:
        polled = Deployment._keep
        patch.setattr(Deployment, "_keep", lambda *each: (pages.append(1), polled(*each)))
        recording, _ = watched(tmp_path / "r", receiver, "1.7e+09", during=send)
    limits = {key: each.max_num_seqs for key, each in recording.manifest.engines.items()}
    assert sorted(limits.values()) == [8, 16]
    steps = recording.steps.sort("end")["engine"].to_list()
    assert [limits[key] for key in steps] == [8, 16, 8, 16]
    events = recording.frame("events")
    assert set(events["engine"].drop_nulls()) <= limits.keys()
    notes = events.filter(kind="note")
    assert [limits[key] for key in notes["engine"]] == [16, 8]
    assert set(recording.frame("scrapes")["engine"].unique()) == limits.keys()
    assert {each.engine.max_num_seqs for each in watched_engines(recording)} == {8, 16}
