"""Several servers as one engine: problems in turn, samples of one together."""

import dataclasses

import pytest

from benchmarks.made.stub import StubEngine
from profiler.engines.server.replicas import ReplicaEngine, together
from profiler.runs.record import record
from profiler.workload.problems import load_workload
from traces.errors import UsageError
from traces.recording.reader import Recording
from traces.schema.engine import EngineConfig
from traces.schema.tts.policy import Policy

URLS = ("http://a:1", "http://b:1", "http://c:1")
SERVED = EngineConfig(model="stub", mode="server", max_model_len=512, tensor_parallel_size=2)


class Served(StubEngine):
    """A stub that notes which samples it got."""

    def __init__(self):
        super().__init__()
        self.got = []

    def submit(self, request):
        self.got.append(request.request_id)
        super().submit(request)


@pytest.mark.parametrize("method", ["majority", "early_stopping", "first_finish"])
def test_problems_go_round_and_their_samples_stay_together(tmp_path, method):
    engines = [Served() for _ in URLS]
    engine = ReplicaEngine(engines, together([SERVED] * 3, URLS))
    policy = Policy(method=method, n=4, temperature=0.8, top_p=1.0, max_tokens=30)
    workload = load_workload("demo", problems=9, seed=0)
    recording = Recording.open(record(workload, policy, engine, tmp_path / "r", concurrency=9))
    assert recording.problems.height == 9
    assert recording.samples["end"].null_count() == 0
    problems = [{name.split(".")[1] for name in each.got} for each in engines]
    assert [len(each) for each in problems] == [3, 3, 3]
    assert len(set.union(*problems)) == 9
    assert sum(len(each.got) for each in engines) == recording.samples.height
    (config,) = recording.manifest.engines.values()
    assert (config.data_parallel_size, config.num_devices) == (3, 6)
    assert dict(config.other)["urls"] == " ".join(URLS)
    assert (config.ranks, config.by_server()) == (1, (3, 1))
    uneven = together([SERVED, dataclasses.replace(SERVED, data_parallel_size=2)], URLS[:2])
    assert uneven.ranks is None and uneven.replica_words() == "3 replicas"
    assert not engine._of_request


@pytest.mark.parametrize(("ranks", "label"), [(1, "tp2 servers2"), (2, "tp2 dp2 servers2")])
def test_a_recording_without_ranks_is_of_the_configuration_of_a_new_one(ranks, label):
    now = together([dataclasses.replace(SERVED, data_parallel_size=ranks)] * 2, URLS[:2])
    data = now.to_json()
    assert EngineConfig.from_json(data) == now
    before = EngineConfig.from_json(data | {"other": data["other"][:1]})
    assert before == now and before.label() == label
    uneven = data | {"other": data["other"][:1], "data_parallel_size": 3}
    assert EngineConfig.from_json(uneven).ranks is None


def test_different_models_are_refused():
    other = dataclasses.replace(SERVED, model="another")
    with pytest.raises(UsageError, match="different models \\(another, stub\\)"):
        together([SERVED, other], URLS[:2])


def test_devices_add_up_where_all_are_known():
    gpus = dataclasses.replace(SERVED, num_gpus=2)
    assert together([gpus, gpus], URLS[:2]).num_gpus == 4
    assert together([gpus, SERVED], URLS[:2]).num_gpus is None
