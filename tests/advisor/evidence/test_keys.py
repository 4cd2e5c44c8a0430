"""Which engines may be learned from together."""

import dataclasses

import pytest

from advisor.evidence.keys import law_key, learned_as, without_limits
from advisor.evidence.measured import Made, RunsMade
from tests.advisor.synthetic import GREEDY, engine_of
from traces.schema.engine import BLOCKS, EngineConfig


def servers(*urls, **changes):
    one = engine_of(mode="server", **changes)
    return [dataclasses.replace(one, other=(("engine", "0"), ("url", url))) for url in urls]


@pytest.mark.parametrize("gpu", [None, "NVIDIA H100"])
def test_servers_share_a_law_where_they_are_known_to_be_the_same_hardware(gpu):
    first, second = servers("http://h100", "http://l4", gpu=gpu)
    assert (law_key(first) == law_key(second)) == (gpu is not None)
    assert (without_limits(first) == without_limits(second)) == (gpu is not None)
    rank = dataclasses.replace(first, other=(("engine", "1"), ("url", "http://h100")))
    assert law_key(rank) == law_key(first)


def test_servers_that_took_a_workload_in_turn_share_a_law_and_others_of_the_recording_none():
    parts = servers("http://a", "http://b", "http://c")
    whole = engine_of(mode="server", data_parallel_size=2, other=(("urls", "http://a http://b"),))
    first, second, third, of_all = learned_as(dict(enumerate([*parts, whole]))).values()
    assert law_key(first) == law_key(second) == law_key(of_all) != law_key(third)
    assert (third, of_all) == (parts[2], whole)


def test_the_engine_of_a_candidate_ran_whichever_worker_it_was():
    ran, other = servers("http://a", gpu="NVIDIA H100"), engine_of(max_num_seqs=8, gpu="NVIDIA L4")
    made = RunsMade([Made(recording=None, engine=each, policy=GREEDY) for each in ran])
    candidate = dataclasses.replace(
        without_limits(ran[0]), max_num_seqs=32, max_num_batched_tokens=512
    )
    assert made.has_engine(candidate) and not made.has_engine(other)
    assert made.has_engine(dataclasses.replace(candidate, data_parallel_size=2))


def test_how_many_blocks_a_server_was_started_with_is_no_other_law_and_no_place():
    plain = EngineConfig(model="m", mode="server", num_gpu_blocks=48)
    override = dataclasses.replace(plain, other=((BLOCKS, "48"), ("url", "http://a:8000")))
    assert law_key(dataclasses.replace(override, other=((BLOCKS, "48"),))) == law_key(plain)
    assert override.place == "http://a:8000" and plain.place == ""
