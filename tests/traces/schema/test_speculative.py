"""Drafts whose length goes by batch, in the words of vLLM's --speculative-config."""

from types import SimpleNamespace

import pytest

from profiler.engines.options import parse_speculative
from profiler.engines.vllm.facts import speculation_of
from traces.errors import UsageError
from traces.schema.engine import EngineConfig, Speculative

RANGES = ((1, 8, 3), (9, 64, 0))
DRAFTS = Speculative(
    method="ngram", num_speculative_tokens=3, num_speculative_tokens_per_batch_size=RANGES
)


def test_ranges_go_to_json_and_back():
    plain = DRAFTS.to_json()
    assert plain["num_speculative_tokens_per_batch_size"] == [[1, 8, 3], [9, 64, 0]]
    assert Speculative.from_json(plain) == DRAFTS
    engine = EngineConfig(model="m", speculative=DRAFTS)
    assert EngineConfig.from_json(engine.to_json()) == engine


def test_engines_without_ranges_are_named_as_before_there_could_be_any():
    """So that recordings of before are found by their engines' keys."""
    engine = EngineConfig(
        model="m", speculative=Speculative(method="ngram", num_speculative_tokens=3)
    )
    assert "num_speculative_tokens_per_batch_size" not in engine.to_json()["speculative"]
    assert engine.key() == "e-27383cd6"


def test_labels_say_how_long_drafts_are():
    engine = EngineConfig(model="m", speculative=DRAFTS)
    assert engine.label() == "tp1 ngram k0-3"
    assert "speculation by ngram, 0 to 3 tokens ahead" in engine.words()
    one = EngineConfig(model="m", speculative=DRAFTS.fixed(2))
    assert one.label() == "tp1 ngram k2"


@pytest.mark.parametrize(
    ("ranges", "words"),
    [
        ([[2, 8, 3]], "2 to 8 does not go on after 0"),
        ([[1, 8, 3], [10, 64, 1]], "10 to 64 does not go on after 8"),
        ([[1, 8, 3], [8, 64, 1]], "8 to 64 does not go on after 8"),
        ([[1, 8, 3], [9, 8, 1]], "9 to 8 does not go on after 8"),
        ([[1, 8, 4]], "4 tokens are not from 0 to 3"),
        ([[1, 8, -1]], "-1 tokens are not from 0 to 3"),
        ([[1, 8]], "must be ranges of three numbers, such as [[1, 8, 3], [9, 64, 1]]"),
        ([[1, 8, 1.5]], "must be ranges of three numbers"),
        ([[1, 8, True]], "must be ranges of three numbers"),
        ([], "must be ranges of three numbers"),
        ("1-8:3", "must be ranges of three numbers"),
        (7, "must be ranges of three numbers"),
    ],
)
def test_ranges_that_leave_a_batch_open_are_refused(ranges, words):
    data = {
        "method": "ngram",
        "num_speculative_tokens": 3,
        "num_speculative_tokens_per_batch_size": ranges,
    }
    with pytest.raises(UsageError) as caught:
        Speculative.from_json(data)
    assert words in str(caught.value)


def test_the_option_takes_ranges():
    text = (
        '{"method": "ngram", "num_speculative_tokens": 3, '
        '"num_speculative_tokens_per_batch_size": [[1, 8, 3], [9, 64, 0]]}'
    )
    assert parse_speculative(text) == DRAFTS


@pytest.mark.parametrize(
    ("told", "ranges"),
    [
        (None, None),
        ([(1, 8, 3), (9, 64, 0)], RANGES),
        ([(9, 64, 0), (1, 4, 5)], RANGES),  # vLLM sorts, fills gaps and cuts off
    ],
)
def test_a_running_engine_tells_them_as_it_reads_them(told, ranges):
    config = SimpleNamespace(
        method="ngram", model="ngram", num_speculative_tokens=3, prompt_lookup_min=2,
        prompt_lookup_max=4, num_speculative_tokens_per_batch_size=told,
    )  # fmt: skip
    engine = SimpleNamespace(speculative_config=config, model_config=SimpleNamespace(model="m"))
    found = speculation_of(engine)
    assert found.num_speculative_tokens_per_batch_size == ranges
    del config.num_speculative_tokens_per_batch_size  # as in vLLM of before
    assert speculation_of(engine).num_speculative_tokens_per_batch_size is None
