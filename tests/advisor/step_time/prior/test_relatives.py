"""A GPU that is the chip of one with tables, with other memory or another peak."""

from dataclasses import replace

import pytest

from advisor.step_time.prior.operations.attention import DECODE
from advisor.step_time.prior.relatives import RELATIVES, Relative, read_gpu
from advisor.step_time.prior.tables import read_prior
from tests.advisor.step_time.prior.prior_files import (
    BANDWIDTH,
    KERNEL_S,
    PEAK,
    installed,
    write_prior,
)

SPEED = BANDWIDTH / 0.8  # of the memory, as the system's file has it


@pytest.fixture
def both(tmp_path, monkeypatch):
    """Return what gives a table of the GPU and of a relative with so much of its speeds."""
    folder = write_prior(tmp_path / "systems")

    def tables(family, name, *, memory=1.0, peak=1.0):
        relative = Relative(
            of="test_gpu", wires="test_gpu", device="Half", bandwidth=memory * SPEED,
            bf16_flops=peak * PEAK, memory_bytes=1e9,
        )  # fmt: skip
        monkeypatch.setitem(RELATIVES, "half", relative)
        found = read_prior("test_gpu", folder), read_gpu("half", folder)
        own, half = (each.read(family, name) for each in found)
        return own.with_columns(here=half["seconds"])

    return tables


def row(table, **wanted):
    (found,) = table.filter(**wanted).rows(named=True)
    return found


def test_a_product_takes_longer_by_what_its_bytes_do(both):
    table = both("gemm", None, memory=0.5).filter(gemm_dtype="bfloat16")
    small = row(table, m=1, n=4096, k=4096)
    moved = 2 * (4096 * 4096 + 2 * 4096) / SPEED
    assert small["here"] - small["seconds"] == pytest.approx(moved)
    large = row(table, m=4096, n=4096, k=4096)  # which computes for longer
    assert large["here"] == pytest.approx(large["seconds"])


def test_attention_that_the_memory_does_not_bound_stays(both):
    table = both("attention", DECODE, memory=0.5).filter(window_size=0)
    shape = {"num_heads": 8, "num_key_value_heads": 4}
    short = row(table, batch_size=1, step=1, **shape)
    assert short["here"] == pytest.approx(short["seconds"], rel=1e-3)
    far = row(table, batch_size=64, step=4095, **shape)  # its bytes take as long again
    moved = 2 * 64 * 4095 * 4 * 64 * 2 / (BANDWIDTH / 0.8)
    assert far["here"] - far["seconds"] == pytest.approx(moved)


def test_what_is_left_changes_with_the_peak_but_for_the_start(both):
    table = both("attention", DECODE, peak=0.5).filter(window_size=0)
    short = row(table, batch_size=1, step=1, num_heads=8, num_key_value_heads=4)
    moved = 2 * 4 * 64 * 2 / SPEED
    assert short["here"] == pytest.approx(2 * short["seconds"] - KERNEL_S - moved)


def test_a_window_bounds_what_is_read(both):
    table = both("attention", DECODE, memory=0.5)
    shape = {"num_heads": 8, "num_key_value_heads": 4, "batch_size": 1, "step": 4095}
    near = row(table, window_size=128, **shape)
    assert near["here"] - near["seconds"] == pytest.approx(2 * 128 * 4 * 64 * 2 / SPEED)


@installed
@pytest.mark.parametrize("name", ["h100_pcie", "a100_sxm_40gb"])
def test_what_a_relative_lacks_is_the_same_chips(name):
    assert read_gpu(name).others[0].system == RELATIVES[name].of


def test_the_tables_of_a_relative_are_opened_once(tmp_path, monkeypatch):
    folder = write_prior(tmp_path)
    relative = Relative(of="test_gpu", wires="test_gpu", device="Half", bandwidth=SPEED / 2)
    monkeypatch.setitem(RELATIVES, "half", replace(relative, bf16_flops=PEAK, memory_bytes=1e9))
    half = read_gpu("half", folder)
    assert read_gpu("half", folder) is half
    (folder / "data/test_gpu/gemm/vllm/0.9.0").rename(folder / "data/test_gpu/gemm/vllm/0.10.1")
    assert read_gpu("half", folder).versions["gemm"] == "0.10.1"
