"""Which models a replay is refused for: those of a kind that no run has checked it with."""

import dataclasses
import re

import pytest

from advisor.evidence.gather import gather
from advisor.evidence.unrecorded import refusal
from tests.advisor.synthetic import FACTS, GREEDY, engine_of, record
from traces.errors import RecordingError
from traces.schema.layers import Attention, Layers

FULL = dataclasses.replace(FACTS["small"], attention=("full_attention",))
ENGINE = engine_of()  # max_model_len 1024


def of(*kinds, window=None):
    return dataclasses.replace(FULL, attention=kinds, sliding_window=window)


def test_full_attention_experts_and_older_recordings_are_replayed():
    assert refusal(FULL, ENGINE) is None
    assert refusal(FACTS["small"], ENGINE) is None  # attention is not known
    assert refusal(dataclasses.replace(FULL, num_experts=8, experts_per_token=2), ENGINE) is None


@pytest.mark.parametrize(
    ("kinds", "reason"),
    [
        (("latent_attention",), "latent attention .* does not say what its layers hold"),
        (("full_attention", "sliding_attention"), "sliding windows.* Record it again"),
        (("latent_attention", "linear_attention"), "MLA.* and linear attention.* older ttscope"),
        (("full_attention", "something_new"), "layers of the kind something_new.* not counted"),
    ],
)
def test_others_are_refused_with_the_reason(kinds, reason):
    assert re.search(reason, refusal(of(*kinds), ENGINE))


def test_a_latent_in_every_layer_is_replayed_where_its_layers_are_known():
    attention = Attention(
        kind="latent_attention", heads=4, kv_heads=4, head_dim=48, v_head_dim=32, latent=64, rope=16
    )
    layers = (Layers(places=(0, 1), attention=attention),)
    latent = dataclasses.replace(of("latent_attention"), layers=layers)
    assert refusal(latent, ENGINE) is None
    assert latent.attention_flops(10) == 2 * 2 * 4 * (48 + 32) * 10
    beside = dataclasses.replace(latent, attention=("cross_attention", "latent_attention"))
    assert "an encoder" in refusal(beside, ENGINE)


@pytest.mark.parametrize("name", ["active_parameters", "weight_bytes", "kv_bytes_per_token"])
def test_what_is_not_counted_is_refused(name):
    why = refusal(dataclasses.replace(FULL, **{name: None}), ENGINE)
    assert "has parts whose weights or KV cache are not counted" in why
    unknown = dataclasses.replace(FULL, **{name: None}, uncounted="an MLP of a new form")
    assert "has an MLP of a new form, which ttscope does not count" in refusal(unknown, ENGINE)


def test_a_window_that_is_never_left_is_full_attention():
    assert refusal(of("sliding_attention", window=1024), ENGINE) is None
    assert refusal(of("sliding_attention", window=1023), ENGINE) is not None
    assert refusal(of("sliding_attention", window=None), ENGINE) is not None
    mixed = of("full_attention", "sliding_attention", window=4096)
    assert refusal(mixed, ENGINE) is not None  # blocks of two kinds


def test_a_recording_of_such_a_model_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(FACTS, "small", of("latent_attention"))
    recording = record(tmp_path / "mla", ENGINE, GREEDY, problems=4)
    with pytest.raises(RecordingError, match=r"^mla: small has latent attention") as e:
        gather([recording])
    assert "\n" not in str(e.value)
