"""What the fields of the Advice screen hold, and mistakes in them."""

from __future__ import annotations

import numpy as np
import pytest

from advisor.search.budget import limits_of_budget
from traces.errors import UsageError
from tui.screens.advice.budget import budget_of, in_fields
from tui.screens.run.beside import told_here

UNKNOWN = np.array([np.nan])


def read(at=None, **texts):
    return budget_of(texts, percentile=95, objective="cost", price=at)


def test_fields_are_a_budget():
    budget = read(max_latency=" 5s ", gpus="2", confidence="90%", rate="", at=2.5)
    assert (budget.max_latency_s, budget.latency_percentile) == (5.0, 95)
    assert (budget.max_gpus, budget.confidence) == (2, 0.9)
    assert (budget.rate_per_s, budget.price_usd_per_device_hour) == (None, 2.5)
    assert read(gpus="1").latency_percentile is None
    assert read(confidence="0.8").confidence == 0.8


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("gpus", "1.5", "GPUs at most 1.5: wants a whole number"),
        ("gpus", "0", "GPUs at most 0: wants at least 1"),
        ("confidence", "often", "sure at least often: wants a share"),
        ("confidence", "100%", "sure at least 100%: wants a share"),
        ("max_cost", "2", "cost at most 2: is not understood"),
        ("price", "x", "price x: wants USD per device-hour"),
    ],
)
def test_mistakes_are_told_in_the_names_of_the_fields(name, text, told):
    with pytest.raises(UsageError) as error:
        read(**{name: text})
    assert in_fields(str(error.value)).startswith(told)


def test_errors_name_no_option_that_a_screen_lacks():
    told = "no samples of x were recorded. Add a recording of it with --with"
    assert in_fields(told).endswith("Add a recording of it with o on screen 1")
    assert told_here(told).endswith("Add a recording of it with ttscope replay --with")
    assert told_here("--set n=4: give engine.FIELD=VALUE") == "n=4: give engine.FIELD=VALUE"
    with pytest.raises(UsageError) as error:
        limits_of_budget(read(max_cost="$1"), prices=UNKNOWN, powered=np.isfinite(UNKNOWN))
    assert in_fields(str(error.value)).startswith(
        "cost at most in USD needs price, such as price 2.5"
    )
    assert "--" not in in_fields(str(error.value))
