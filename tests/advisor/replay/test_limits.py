"""What the replay takes of an engine whose KV cache has blocks of several kinds."""

import dataclasses

import pytest

from advisor.replay.limits import blocks_a_request, limits_of
from advisor.replay.workload import ReplayWorkload
from tests.advisor.synthetic import FACTS, engine_of
from traces.schema.engine import Speculative
from traces.schema.layers import Attention, Layers, State

FULL = Attention(kind="full_attention", heads=8, kv_heads=2, head_dim=64, v_head_dim=64)
WINDOW = dataclasses.replace(FULL, kind="sliding_attention", window=1024)
STATE = State(
    kind="mamba", heads=8, values=64, value_bytes=4.0, convolved_values=8, convolved_bytes=2.0
)


def model(**counts):
    parts = {
        "full": {"attention": FULL},
        "window": {"attention": WINDOW},
        "state": {"state": STATE},
    }
    layers = tuple(
        Layers(places=tuple(range(count)), **parts[name]) for name, count in counts.items()
    )
    return dataclasses.replace(FACTS["large"], layers=layers)


@pytest.mark.parametrize(
    ("counts", "context", "blocks"),
    [
        ({"full": 8}, 1600, 100),
        ({"full": 12, "window": 12}, 16_000, 1000 + 65),
        ({"full": 12, "window": 12}, 160, 10 + 10),  # within the window both hold all
        ({"full": 13, "window": 12}, 16_000, 1000 + 65),  # padded to 13 layers each
        ({"full": 5, "window": 25}, 16_000, 1000 + 5 * 65),  # six groups of five layers
        ({"full": 16, "state": 48}, 16_000, 1000 + 3),
    ],
)
def test_each_group_of_layers_takes_blocks_of_its_own(counts, context, blocks):
    assert blocks_a_request(model(**counts), 16, context) == blocks


def test_the_layers_of_a_drafter_take_blocks_among_those_of_their_kind():
    """A group has 13 layers then, as vLLM pads gpt-oss with an EAGLE head."""
    facts, one = model(full=12, window=12), model(full=1)
    assert blocks_a_request(facts, 16, 16_000, one) == 1000 + 65
    facts, two = model(full=4, state=12), model(full=2)
    assert blocks_a_request(facts, 16, 16_000) == 1000 + 3
    assert blocks_a_request(facts, 16, 16_000, two) == 1000 + 2  # groups of six
    served = ReplayWorkload.from_requests([1500], [200], arrivals=[0.0])
    drafts = Speculative(method="draft_model", num_speculative_tokens=2, model="small")
    engine = engine_of(num_gpu_blocks=2001, speculative=drafts)
    alone, drafted = (limits_of(engine, facts, served, models) for models in ({}, {"small": two}))
    assert (alone.num_blocks, drafted.num_blocks) == (int(2000 / 1.03), int(2000 / 1.02))


def test_a_cache_of_several_kinds_holds_as_many_requests():
    engine, served = (
        engine_of(num_gpu_blocks=2001),
        ReplayWorkload.from_requests([1500], [200], arrivals=[0.0]),
    )
    plain = limits_of(engine, model(full=8), served)
    assert (plain.num_blocks, plain.several_kinds) == (2000, False)
    assert plain == limits_of(engine)
    both = limits_of(engine, model(full=5, window=25), served)
    assert both.several_kinds
    assert both.num_blocks == int(2000 / ((100 + 5 * 65) / 100))
    assert both.crowded(0.9 * both.num_blocks * 16) and not both.crowded(100.0)
    longest = limits_of(engine_of(num_gpu_blocks=200), model(full=5, window=25), served)
    assert longest.num_blocks == 107  # vLLM starts where the longest request fits
