"""The verbs print what they printed; `python -m tests.golden_outputs` shows what differs."""

import pytest

from tests.golden_outputs import KEPT, cases, outputs, same

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
