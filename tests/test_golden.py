"""The verbs print what they printed; `python -m tests.golden_outputs` shows what differs."""

import sys

import pytest

from benchmarks.made.terminal import in_terminal
from tests.golden_outputs import KEPT, ROOT, cases, outputs, same

pytestmark = pytest.mark.slow


@pytest.mark.filterwarnings("ignore")
def test_the_verbs_print_what_they_printed(tmp_path):
    differ = [
        name
        for name, new in outputs([], tmp_path)
        if not same((KEPT / f"{name}.txt").read_text(), new)
    ]
    assert not differ, "python -m tests.golden_outputs shows what differs"
    assert {path.stem for path in KEPT.iterdir()} == set(cases())


def test_a_case_by_itself_prints_what_it_prints_after_the_others(tmp_path):
    ((name, shown),) = outputs(["import-plain-shown"], tmp_path)
    assert same((KEPT / f"{name}.txt").read_text(), shown)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("columns", "variables"),
    [
        (160, {"OPENBLAS_CORETYPE": "Haswell", "OPENBLAS_NUM_THREADS": "2", "CI": "true"}),
        (100, {"OPENBLAS_CORETYPE": "Prescott", "FORCE_COLOR": "1", "GITHUB_ACTIONS": "true"}),
    ],
)
def test_another_terminal_and_another_order_of_sums_print_the_same(columns, variables):
    cases = ("help-show", "replay-esc-json", "advise-latency-json")
    command = (sys.executable, "-m", "tests.golden_outputs", *cases)
    seen = in_terminal(*command, columns=columns, env=variables, cwd=ROOT)
    assert (seen.code, seen.lines[-1:]) == (0, ["all outputs are the kept ones"]), seen.text
