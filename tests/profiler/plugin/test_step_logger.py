"""The plugin in vLLM's own classes: it is off, it sends, and it never raises."""

import atexit
import logging
import os
import socket
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from benchmarks.servers.vllm_server import free_port
from profiler.attach.receiver.receiver import Receiver
from traces.schema.engine import Speculative

# vLLM's import brings its libraries' warnings.
pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def logger():
    """Makes loggers that send to a target, which are switched off in the end."""
    from profiler.plugin.step_logger import _SENDING, VARIABLE, StepLogger

    made = []

    def make(target, engine=3, config=None):
        os.environ.pop(VARIABLE, None)
        if target is not None:
            os.environ[VARIABLE] = target
        _SENDING.clear()
        made.append(StepLogger(config or SimpleNamespace(), engine))
        return made[-1]

    yield make
    for each in made:
        each.on = False


@pytest.fixture
def there(receiver):
    """Where the receiver listens."""
    return f"http://127.0.0.1:{receiver.port}"


@pytest.fixture
def module():
    from profiler.plugin import step_logger

    return step_logger


def step(running=2, tokens=2):
    from vllm.v1.metrics.stats import IterationStats, SchedulerStats

    iteration = IterationStats()
    iteration.num_generation_tokens = tokens
    iteration.inter_token_latencies_iter = [0.01] * tokens
    return SchedulerStats(num_running_reqs=running, kv_cache_usage=0.25), iteration


def taken(receiver, rows):
    batches, deadline = [], time.monotonic() + 10
    while sum(len(b.rows) for b in batches) < rows and time.monotonic() < deadline:
        batches += receiver.take_batches()
        time.sleep(0.02)
    return batches


def test_off_unless_told(logger):
    made = logger(None)
    made.record(*step())
    assert (made.on, len(made._ring)) == (False, 0)


def test_steps_arrive_with_what_was_seen(logger, receiver, there):
    made = logger(there)
    for _ in range(50):
        made.record(*step())
    made.record(None, None)
    made.record(None, step()[1])  # another front end has the scheduler's part of this step
    batches = taken(receiver, 51)
    rows = [row for batch in batches for row in batch.rows]
    assert len(rows) == 51
    assert rows[-1][1:4] == (None, None, None)
    assert rows[-1][9] == rows[0][9] == 2
    assert receiver.port in batches[-1].ports  # this process listens there
    assert {batch.engine for batch in batches} == {3}
    assert rows[0][1:4] == (2, 0, 0.25)
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)


@pytest.mark.parametrize(
    ("method", "model", "window", "told"),
    [
        ("ngram", "ngram", (2, 4), (None, 2, 4)),  # vLLM gives lookup its own name as a model
        ("mtp", "m", (None, None), (None, None, None)),  # and layers of the model the model's
        ("eagle3", "e", (0, 0), ("e", None, None)),
    ],
)
def test_it_says_how_the_engine_drafts(logger, receiver, there, method, model, window, told):
    drafts = SimpleNamespace(
        method=method, model=model, num_speculative_tokens=3,
        prompt_lookup_min=window[0], prompt_lookup_max=window[1],
    )  # fmt: skip
    served = SimpleNamespace(
        model="m", served_model_name="m", dtype="torch.bfloat16", quantization=None,
        max_model_len=64, enforce_eager=True,
    )  # fmt: skip
    scheduler = SimpleNamespace(max_num_seqs=4, max_num_batched_tokens=64, async_scheduling=False)
    parallel = SimpleNamespace(
        tensor_parallel_size=1, pipeline_parallel_size=1, data_parallel_size=1, world_size=1,
        enable_expert_parallel=False,
    )  # fmt: skip
    cache = SimpleNamespace(
        cache_dtype="auto", block_size=16, num_gpu_blocks=8, gpu_memory_utilization=0.9,
        enable_prefix_caching=True,
    )  # fmt: skip
    config = SimpleNamespace(
        model_config=served, scheduler_config=scheduler, parallel_config=parallel,
        cache_config=cache, speculative_config=drafts,
        observability_config=SimpleNamespace(enable_logging_iteration_details=False),
    )  # fmt: skip
    made = logger(there, config=config)
    made.record(*step())
    batch = taken(receiver, 1)[0]
    model, low, high = told
    assert batch.config.speculative == Speculative(
        method=method, num_speculative_tokens=3, model=model,
        prompt_lookup_min=low, prompt_lookup_max=high,
    )  # fmt: skip


def test_metrics_over_otlp_with_and_without_an_attach(logger, monkeypatch, receiver, there):
    from vllm.v1.metrics.stats import FinishedRequestStats

    from profiler.probes.otlp_metrics import INSTRUMENTS as known
    from profiler.probes.otlp_metrics import REQUEST, RUNNING, STEP_BATCH, STEP_TIME, TPOT, TTFT
    from tests.profiler.probes.test_otlp_metrics import over_http

    config = SimpleNamespace(model_config=SimpleNamespace(served_model_name="m"))
    for target in ("otlp", f"{there}, otlp"):
        with over_http(monkeypatch) as received:
            made = logger(target, config=config)
            for number in range(20):
                stats, iteration = step()
                if number == 5:
                    iteration.time_to_first_tokens_iter = [0.2]
                if number == 9:
                    ended = FinishedRequestStats(finish_reason=None, e2e_latency=3.0)
                    ended.num_generation_tokens, ended.mean_time_per_output_token = 9, 0.04
                    iteration.finished_requests = [ended]
                made.record(stats, iteration)
            made._metrics.close()
        assert received.only(STEP_TIME).count == 19
        assert (received.only(STEP_BATCH).count, received.only(STEP_BATCH).sum) == (20, 41)
        assert received.only(RUNNING).as_double == 2
        assert received.only(TTFT).sum == 0.2
        assert (received.only(REQUEST).sum, received.only(TPOT).sum) == (3, 0.04)
        assert set(received.points()) <= {each.name for each in known}
        assert len(made._ring) + len(taken(receiver, 20)) > 0 if "," in target else not made._ring


def test_metrics_without_a_collector_are_one_line(logger, monkeypatch, caplog):
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    config = SimpleNamespace(model_config=SimpleNamespace(served_model_name="m"))
    # vLLM's own logger, where it was imported, hands nothing on, and a verb may have made it quiet.
    caplog.set_level(logging.WARNING, logger="vllm.ttscope")
    monkeypatch.setattr(logging.getLogger("vllm.ttscope"), "handlers", [caplog.handler])
    made = logger("otlp", config=config)
    made.record(*step())
    assert not made.on
    assert "set OTEL_EXPORTER_OTLP_ENDPOINT" in caplog.text


def test_a_receiver_that_is_away_costs_only_rows(logger, monkeypatch, module, receiver, there):
    monkeypatch.setattr(module, "CAPACITY", 100)
    receiver.close()
    made = logger(there)
    begun = time.monotonic()
    seen = step()
    for _ in range(10_000):
        made.record(*seen)
    assert time.monotonic() - begun < 20
    assert made.on
    assert made.dropped > 1000
    assert len(made._ring) <= 100


def test_a_full_buffer_keeps_the_newest_steps(logger, monkeypatch, module):
    monkeypatch.setattr(module, "CAPACITY", 100)
    port = free_port()
    made = logger(f"http://127.0.0.1:{port}")
    seen, ends = step(), []
    for _ in range(1_000):
        made.record(*seen)
        ends.append(made._ring[-1][0])
    time.sleep(1.2)  # it has tried in vain
    assert (made.dropped, made._dropped_until) == (900, ends[899])
    late = Receiver("127.0.0.1", port)
    late.start()
    try:
        batches = taken(late, 100)
    finally:
        made.on = False
        late.close()
    assert [row[0] for each in batches for row in each.rows] == ends[900:]
    assert {(each.dropped, each.dropped_until) for each in batches} == {(900, ends[899])}


def test_what_was_taken_from_a_full_buffer_is_given_up_first(logger, monkeypatch, module):
    """A receiver takes connections and never answers: its batch is the oldest there is."""
    monkeypatch.setattr(module, "CAPACITY", 100)
    monkeypatch.setattr(module, "_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        made = logger(f"http://127.0.0.1:{silent.getsockname()[1]}")
        seen, deadline = step(), time.monotonic() + 20
        while not made._discarded and time.monotonic() < deadline:
            made.record(*seen)
            time.sleep(0.001)
        made.on = False
        assert made._discarded > 0
        assert len(made._pending) + len(made._ring) <= 101
        assert made._dropped_until < (made._pending or made._ring)[0][0]


@pytest.fixture
def ending(logger, monkeypatch):
    """Makes a logger, and what the end of its process would call."""
    ends = []
    monkeypatch.setattr(atexit, "register", ends.append)
    return lambda target: (logger(target), *ends)


def test_the_end_of_the_process_waits_for_all_steps(ending, monkeypatch, module, receiver, there):
    monkeypatch.setattr(module, "PERIOD_S", 3600.0)  # no round before the end
    monkeypatch.setattr(module, "_LAST_S", 60.0)
    made, end = ending(there)
    seen, steps = step(), module.MOST_ROWS + 10  # of two batches
    for _ in range(steps):
        made.record(*seen)
    end()
    assert sum(len(each.rows) for each in receiver.take_batches()) == steps


def test_the_end_of_the_process_waits_for_nobody_who_takes_nothing(ending, monkeypatch, module):
    monkeypatch.setattr(module, "PERIOD_S", 0.05)
    for name in ("_TIMEOUT_S", "_LAST_S"):
        monkeypatch.setattr(module, name, 3600.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        made, end = ending(f"http://127.0.0.1:{silent.getsockname()[1]}")
        made.record(*step())
        silent.accept()[0].close()
        with silent.accept()[0]:  # it tries again, and has no answer
            ended = threading.Thread(target=end, daemon=True)
            ended.start()
            ended.join(60.0)
            assert not ended.is_alive()


def test_a_receiver_with_another_token_is_told_of_in_one_line_and_costs_only_rows(
    logger, monkeypatch, caplog, module, receiver, there
):
    """Steps wait; who attaches next with the token that the plugin has gets them."""
    monkeypatch.setattr(module, "_LONGEST_PAUSE_S", 0.1)
    monkeypatch.setattr(module, "PERIOD_S", 0.05)
    monkeypatch.setattr(module, "CAPACITY", 100)
    monkeypatch.setenv("TTSCOPE_TOKEN", "another-token-of-nobody")
    with caplog.at_level(logging.WARNING, "vllm.ttscope"):
        made = logger(there)
        seen, deadline = step(), time.monotonic() + 20
        while receiver.strangers < 5 and time.monotonic() < deadline:
            made.record(*seen)
            time.sleep(0.01)
        for _ in range(500):
            made.record(*seen)
        monkeypatch.undo()  # the token is read again before each try
        rows = [row for each in taken(receiver, 50) for row in each.rows]
    assert len(rows) >= 50
    (line,) = [each.message for each in caplog.records]
    assert "another token" in line and "TTSCOPE_TOKEN" in line
    assert "of-nobody" not in line
    assert receiver.strangers >= 5


def test_without_a_token_it_says_one_line_and_goes_on(logger, monkeypatch, caplog, there):
    monkeypatch.setenv("TTSCOPE_TOKEN", "short")
    with caplog.at_level(logging.WARNING, "vllm.ttscope"):
        made = logger(there)
        made.record(*step())
        deadline = time.monotonic() + 10
        while not caplog.records and time.monotonic() < deadline:
            time.sleep(0.02)
    assert made.on
    (line,) = [each.message for each in caplog.records]
    assert "TTSCOPE_TOKEN: holds no token" in line


def test_every_attach_learns_the_configuration(server, logger):
    """Eight of them, one after the other, at any moment between two tries of the plugin."""
    import random

    from profiler.attach.deployment import Deployment
    from profiler.attach.receiver.incoming import Incoming
    from profiler.engines.server.access import Access

    port, draw, learned = free_port(), random.Random(1), 0
    made = logger(f"http://127.0.0.1:{port}", engine=0)
    made._head |= {"config": {"model": "m", "mode": "server", "max_num_seqs": 17}}
    made._head |= {"process_start_s": 1.7e9}
    server.started = "1.7e+09"
    for _ in range(8):
        time.sleep(draw.uniform(0, 2.5))
        receiver = Receiver("127.0.0.1", port)
        receiver.start()
        deployment = Deployment([Access.of(server.url)])
        deployment.connect()
        learned += Incoming(receiver, deployment).adopt()
        assert [each.max_num_seqs for each in deployment.engines.values()] == [17]
        deployment.close()
        receiver.close()
    assert learned == 8


def test_a_batch_whose_answer_came_too_late_counts_once(
    logger, monkeypatch, module, receiver, there
):
    kept, put = [], receiver.put_batch

    def late(batch, sender):
        kept.append(len(batch.rows))
        done = put(batch, sender)
        if len(kept) == 1:
            time.sleep(0.5)
        return done

    monkeypatch.setattr(module, "_TIMEOUT_S", 0.2)
    monkeypatch.setattr(receiver, "put_batch", late)
    made = logger(there)
    seen = step()
    for _ in range(40):
        made.record(*seen)
        time.sleep(0.05)
    batches = taken(receiver, 40)
    ends = [row[0] for each in batches for row in each.rows]
    assert sum(kept) > 40  # some came twice
    assert len(ends) == 40 and ends == sorted(set(ends))
    assert made.dropped == 0


@pytest.mark.parametrize(
    "target", ["nonsense", "https://x", "http://", "http://h:99999", "http://[::1"]
)
def test_a_broken_configuration_is_one_line(logger, caplog, target):
    with caplog.at_level(logging.WARNING, "vllm.ttscope"):
        made = logger(target)
    made.record(*step())
    assert not made.on
    assert len(caplog.records) == 1


def test_a_probe_that_raises_switches_itself_off(logger, monkeypatch, caplog, there):
    made = logger(there)
    monkeypatch.setattr(logging.getLogger("vllm.ttscope"), "propagate", True)
    with caplog.at_level(logging.WARNING, "vllm.ttscope"):
        for _ in range(3):
            made.record(SimpleNamespace(), SimpleNamespace())
    assert not made.on
    assert sum("switched itself off" in r.message for r in caplog.records) <= 1


def test_other_field_names_are_noticed_before_the_first_step(logger, monkeypatch, module):
    monkeypatch.setattr(module, "_SCHEDULER", (*module._SCHEDULER, "renamed"))
    assert not logger("http://127.0.0.1:1").on


def test_announced_twice_each_step_counts_once(logger, module, receiver, there):
    first = logger(there)
    second = module.StepLogger(SimpleNamespace(), 3)
    assert (first.on, second.on) == (True, False)
    for each in (first, second):
        each.record(*step())
    assert len(taken(receiver, 1)) == 1


@pytest.fixture(scope="module")
def completions():
    """Twenty completions at temperature 0 of an engine here that has other loggers too."""
    from profiler.engines.options import EngineOptions
    from profiler.engines.vllm.in_process import InProcessEngine
    from profiler.workload.problems import load_workload

    made = InProcessEngine(EngineOptions(model="demo/s", max_num_seqs=8))
    prompts = [str(each.prompt) for each in load_workload("demo", problems=20).problems]

    def run(*loggers):
        from vllm import SamplingParams
        from vllm.v1.metrics.loggers import StatLoggerManager

        engine, texts = made._engine, {}
        manager = StatLoggerManager(engine.vllm_config, [0])
        manager.stat_loggers = list(loggers)
        engine.logger_manager, engine.log_stats, before = manager, True, engine.log_stats
        engine.output_processor.log_stats = True
        engine.engine_core.engine_core.scheduler.log_stats = True
        for number, prompt in enumerate(prompts):
            engine.add_request(str(number), prompt, SamplingParams(temperature=0, max_tokens=16))
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    texts[output.request_id] = output.outputs[0].text
        engine.logger_manager, engine.log_stats = None, before
        return [texts[str(number)] for number in range(len(prompts))]

    yield run
    made.close()


def test_completions_are_the_same_whatever_is_wrong_with_it(
    completions, logger, monkeypatch, module, receiver, there
):
    """The same by servers and with 200 completions: benchmarks/plugin_harmless.py."""
    plain = completions()
    assert completions() == plain
    assert len(set(plain)) > 10
    row, seen = module._row, logger(there)
    assert completions(seen) == plain
    assert len([each for batch in taken(receiver, 20) for each in batch.rows]) >= 20
    seen.on = False
    for target in ("nonsense://", "http://127.0.0.1:1"):
        broken = logger(target)
        assert completions(broken) == plain
        broken.on = False
    raising = logger(there)
    monkeypatch.setattr(module, "_row", lambda *_: row(*_) and 1 / 0)
    assert completions(raising) == plain
    assert not raising.on


def test_a_replica_of_ray_serve_names_itself(logger, monkeypatch):
    class Serve:
        @staticmethod
        def get_replica_context():
            return SimpleNamespace(replica_id=SimpleNamespace(unique_id="f70zy46t"))

    def named():
        return logger(f"http://127.0.0.1:{free_port()}", engine=0)._head["replica"]

    monkeypatch.setitem(sys.modules, "ray.serve", Serve)
    assert named() == "f70zy46t"
    monkeypatch.setitem(sys.modules, "ray.serve", object())
    assert named() is None


def test_a_batch_names_the_tracer_of_its_process(logger, monkeypatch, receiver, there):
    def named(provider):
        trace = SimpleNamespace(get_tracer_provider=lambda: provider)
        monkeypatch.setitem(sys.modules, "opentelemetry.trace", trace)
        logger(there).record(*step())
        last = taken(receiver, 1)[-1]
        return last.process_id, last.tracer

    own = SimpleNamespace(attributes={"service.instance.id": "93afe4da-4068"})
    assert named(SimpleNamespace(resource=own)) == (os.getpid(), "93afe4da-4068")
    assert named(object()) == (os.getpid(), None)
