import re

import numpy as np
import pytest

from advisor.models.operator_files import read_operators
from tests.advisor.operator_tables import write_tables
from traces.errors import TablesError


def test_times_are_read_in_seconds_and_sorted(tmp_path):
    folder = write_tables(tmp_path)
    lines = (folder / "dense.csv").read_text().splitlines()
    (folder / "dense.csv").write_text("\n".join([lines[0], *reversed(lines[1:]), "", ""]))
    found = read_operators(folder)
    expected = [[1, 3.5e-6], [2, 4e-6], [4, 5e-6]]
    np.testing.assert_allclose(found.dense["layernorm"][:3], expected, rtol=1e-12)
    assert found.skew is None
    assert (found.gpu, found.model, found.tensor_parallel_sizes) == (
        "NVIDIA Test", "test/model", (1,)
    )  # fmt: skip


DAMAGE = [
    ("dense.csv", r"layer,tokens", "layer,count", "line 1: no column tokens (there are layer, cou"),
    ("dense.csv", r"act_fn,4,.*", "act_fn,4", "line 46: ends before time_us; the file is cut"),
    ("dense.csv", r"act_fn,4,.*", "act_fn,4,fast", "line 46: time_us is 'fast', not a number"),
    ("dense.csv", r"act_fn,4,.*", "act_fn,4,nan", "line 46: time_us is 'nan', not a number"),
    ("dense.csv", r"act_fn,4,.*", "act_fn,4,-1", "line 46: time_us is -1: no time"),
    ("dense.csv", r"act_fn,4,", "act_fn,4.5,", "line 46: tokens is 4.5, not a whole number from 1"),
    ("dense.csv", r"act_fn,4,", "act_fn,2,", "line 46: act_fn at 2 tokens a second time"),
    ("dense.csv", r"(?s)\n.*", "\n", "dense.csv: no rows below the header"),
    ("dense.csv", r"(?s).*", "", "line 1: no column layer (there are none)"),
    ("per_sequence.csv", r"lm_head,1,.*", "lm_head,-1,3", "line 2: sequences is -1"),
    ("attention.csv", r"0,0,1,16,.*", "0,0,1,16,0", "line 2: time_us is 0: no time"),
    ("attention.csv", r"0,0,1,16,.*", "0,0,0,16,9", "line 2: neither a chunk nor a decoding"),
    ("attention.csv", r"0,0,1,32,", "0,0,1,16,", "line 3: (0, 0, 1, 16) a second time"),
    ("attention.csv", r"time_us", "time_us,layer", "attention of several kinds is not modelled"),
    ("skew.csv", r"t_skew_us", "t_uneven_us", "line 1: no column t_skew_us"),
    ("skew.csv", r",30.0,90.0,", ",30.0,x,", "t_max_us is 'x', not a number"),
    ("meta.yaml", r"(?s).*", "a: [", "meta.yaml: cannot be read as YAML"),
    ("meta.yaml", r"(?s).*", "- 1", "meta.yaml: holds no mapping"),
    ("meta.yaml", r"\[1\]", "all", "tp_degrees is 'all', not a list"),
]


@pytest.mark.parametrize(("name", "old", "new", "message"), DAMAGE)
def test_damage_is_told_with_its_file_and_line(tmp_path, name, old, new, message):
    folder = write_tables(tmp_path, skew=lambda *_: 0.1)
    text = (folder / name).read_text()
    (folder / name).write_text(re.sub(old, new, text, count=1))
    with pytest.raises(TablesError) as error:
        read_operators(folder)
    assert message in str(error.value)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["dense.csv", "attention.csv", "skew.csv", "meta.yaml"])
def test_a_missing_file_is_told(tmp_path, name):
    folder = write_tables(tmp_path, skew=lambda *_: 0.1)
    (folder / name).unlink()
    with pytest.raises(TablesError, match=rf"{name}: not there"):
        read_operators(folder)


def test_what_is_no_folder_no_text_or_no_dense_model_is_refused(tmp_path):
    with pytest.raises(TablesError, match="no folder of operator times"):
        read_operators(tmp_path / "nowhere")
    folder = write_tables(tmp_path)
    (folder / "moe.csv").write_text("tokens,activated_experts,time_us\n1,2,3\n")
    with pytest.raises(TablesError, match=r"moe\.csv: such layers are not modelled"):
        read_operators(folder)
    (folder / "moe.csv").unlink()
    (folder / "dense.csv").write_bytes(np.arange(256, dtype=np.uint8).tobytes())
    with pytest.raises(TablesError, match="cannot be read as CSV"):
        read_operators(folder)
