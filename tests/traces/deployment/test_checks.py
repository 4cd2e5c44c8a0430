"""What a server's metrics say of its traffic is held against what promises rest on."""

import pytest

from tests.advisor.synthetic import VOTE16
from traces.deployment.checks import observed_live
from traces.live.numbers import Numbers
from traces.schema.engine import EngineConfig


@pytest.mark.parametrize(("software", "tokens"), [((), 99), ((("engine_name", "SGLang"),), 100)])
def test_sglang_does_not_count_the_first_token_of_a_sample(software, tokens):
    engine = EngineConfig(model="m", mode="server", other=software)
    numbers = Numbers(
        engine="e", start_ns=0, end_ns=10**10, seconds=10.0, polls=11, resets=0,
        prompt_tokens_per_s=40.0, generated_tokens_per_s=198.0, samples_per_s=2.0,
    )  # fmt: skip
    found = observed_live(numbers, engine, VOTE16)
    assert (found["prompt_tokens"].value, found["output_tokens"].value) == (20, tokens)
