"""Options that Python gives: what a value may be read from, and what is refused before a run."""

from pathlib import Path

import numpy as np
import pytest

import ttscope
from traces.errors import RecordingError, UsageError
from tui.options import AccountOptions, BudgetOptions, grouped
from tui.verbs.demo import SHIPPED
from tui.verbs.replay import ReplayOptions

RUN = next(SHIPPED.iterdir())
GIVEN = {"recording": "r", "change": "policy.n=4"}


def test_a_value_is_read_as_the_type_of_its_option():
    given = {"concurrency": "4", "rate": 5, "learn": "a", "gpu": ("x", "y"), "seed": np.int64(3)}
    (asked,) = grouped(GIVEN | given | {"measured": None, "together": np.True_}, ReplayOptions)
    assert (asked.concurrency, asked.rate, asked.learn) == (4, "5", [Path("a")])
    assert (asked.gpu, asked.seed, asked.measured) == (["x", "y"], 3, None)
    assert (asked.recording, asked.change, asked.together) == (Path("r"), ["policy.n=4"], True)
    budget, told = grouped(
        {"min_accuracy": np.float64(0.75), "gpus": 2.0, "pue": 2}, BudgetOptions, AccountOptions
    )
    assert (budget.min_accuracy, budget.gpus, told.pue) == ("0.75", 2, 2.0)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("concurrency", 1.5, "concurrency=1.5: wants a whole number"),  # it ended the process
        ("concurrency", "many", "concurrency=many: wants a whole number"),
        ("concurrency", True, "concurrency=True: wants a whole number"),
        ("concurrency", float("inf"), "wants a whole number"),
        ("rate", [5], "wants a text"),
        ("together", "yes", "wants True or False"),
        ("learn", [1], "learn=1: wants a path"),
        ("seed", -1, "--seed -1: must be from 0 to 9223372036854775807"),
        ("seed", 1 << 63, f"--seed {1 << 63}: must be from 0 to 9223372036854775807"),
    ],
)
def test_what_is_no_value_of_an_option_is_named(name, value, said):
    with pytest.raises(UsageError, match=said):
        grouped(GIVEN | {name: value}, ReplayOptions)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: ttscope.import_files(output="r"), "name the files to import"),
        (lambda: ttscope.open(None), "None: is no recording. Give its path"),
        (lambda: ttscope.advise([5], min_accuracy=0.5), "5: is no recording. Give its path"),
        (lambda: ttscope.open(RUN).to_polars("step"), "no table 'step': did you mean steps"),
        (lambda: ttscope.show("r", price="x"), "price=x: wants a number"),
        (lambda: ttscope.show("r", price=float("inf")), "--price must be above 0 and finite"),
        (lambda: ttscope.replay("r", {"policy.n": object()}), "policy.n: .* no value of a setting"),
        (lambda: ttscope.replay("r", ["policy.n"]), "changes are given by name"),
    ],
)
def test_what_a_function_cannot_use_is_refused_before_it_reads(call, said):
    with pytest.raises(UsageError, match=said):
        call()


def test_a_change_may_be_a_number_of_numpy():
    with pytest.raises(RecordingError, match="no such recording"):  # so it was read
        ttscope.replay("r", {"policy.n": np.int64(4)})
