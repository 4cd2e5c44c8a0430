"""How far off the prior's rules are where a table has what they stand for.

Needs ttscope[prior]. Products in FP8 and NVFP4 from those in bfloat16, experts of a shape from the
nearest other one, experts of a GPU from another's, and H100 and H200 as relatives of each other,
which differ by their memory alone: the log of predicted over measured time.
"""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import polars as pl

from advisor.step_time.prior.operations import experts, products
from advisor.step_time.prior.operations.attention import DECODE
from advisor.step_time.prior.operations.times import PRECISIONS, carried
from advisor.step_time.prior.relatives import RELATIVES, Relative, read_gpu
from advisor.step_time.prior.tables import PriorTables, read_prior

Floats = npt.NDArray[np.float64]

GPUS = ("h100_sxm", "h200_sxm", "b200_sxm", "l40s", "rtx_pro_6000_server")
PAIRS = (("h100_sxm", "h200_sxm"), ("h200_sxm", "b200_sxm"), ("l40s", "h100_sxm"))
SHAPES = ((4096, 4096), (1024, 8192), (28672, 4096), (7168, 2048), (5120, 5120))
TOKENS = np.array([1, 8, 64, 256, 1024, 4096.0])


def off(told: Floats, measured: Floats) -> Floats:
    """Return the log of predicted over measured time, by tokens."""
    return np.log(np.interp(TOKENS, *told.T) / np.interp(TOKENS, *measured.T))


def newest(tables: PriorTables) -> str:
    """Return the newest version that has a table of experts."""
    return tables.versions_of(experts.FAMILY, experts.TABLE)[0]


def as_relative(here: str, there: str) -> Iterator[tuple[str, Floats]]:
    """Yield the log of predicted over measured times of a GPU whose tables are another's."""
    own = read_prior(here)
    RELATIVES["asked"] = Relative(
        of=there, wires=there, device=here, bandwidth=float(own.gpu["mem_bw"]),
        bf16_flops=own.peak("bfloat16"), memory_bytes=own.memory_bytes,
    )  # fmt: skip
    carried_over = read_gpu("asked")
    decode = ("num_heads", "num_key_value_heads", "head_dim", "batch_size", "step", "window_size")
    for family, name, shape, form in (
        ("gemm", None, ("m", "n", "k"), {"gemm_dtype": "bfloat16"}),
        ("attention", DECODE, decode, {"attn_dtype": "bfloat16", "kv_cache_dtype": "bfloat16"}),
    ):
        told, real = (
            tables.read(family, name).filter(**form).group_by(shape).agg(pl.col("seconds").mean())
            for tables in (carried_over, own)
        )
        both = told.join(real, on=shape, suffix="_real")
        logs = np.log(both["seconds"].to_numpy() / both["seconds_real"].to_numpy())
        yield f"{family} of {here} from {there}", logs


def main() -> None:
    errors = defaultdict(list)
    for here, there in (("h200_sxm", "h100_sxm"), ("h100_sxm", "h200_sxm")):
        for rule, logs in as_relative(here, there):
            errors[rule].append(logs)
    for name in GPUS:
        tables = read_prior(name)
        for form in ("fp8", "nvfp4"):
            for n, k in SHAPES if form in products._measured(tables) else ():
                whole = products._table(tables, "bfloat16", n, k)
                before, after = (products._work(n, k, each) for each in ("bfloat16", form))
                told = carried(whole, before, after, tables)
                errors[f"products in {form}"].append(off(told, products._table(tables, form, n, k)))
        version = newest(tables)
        for form in ("bfloat16", "fp8_block", "nvfp4"):
            known = experts._shapes(tables, version, form)
            for key in [each for each in sorted(known) if each[4] * each[5] in (1, 4, 8)][::6]:
                rest = frozenset(each for each in known if each[:4] != key[:4])
                near = experts._nearest(rest, key)
                before, after = (
                    experts.Shape(*each).work(PRECISIONS[form]) for each in (near, key)
                )
                told = carried(
                    experts._table(tables, version, form, near)[0], before, after, tables
                )
                measured = experts._table(tables, version, form, key)[0]
                errors[f"experts of another shape in {form}"].append(off(told, measured))
    for here, there in PAIRS:
        own, other = read_prior(here), read_prior(there)
        versions = newest(own), newest(other)
        both = experts._shapes(own, versions[0], "bfloat16") & experts._shapes(
            other, versions[1], "bfloat16"
        )
        for key in sorted(both)[::8]:
            work = experts.Shape(*key).work(PRECISIONS["bfloat16"])
            theirs = experts._table(other, versions[1], "bfloat16", key)[0]
            told = carried(theirs, work, work, own, other)
            measured = experts._table(own, versions[0], "bfloat16", key)[0]
            errors["experts of another GPU"].append(off(told, measured))
    print("rule: times, mean log, root mean square, median absolute")
    for rule, found in sorted(errors.items()):
        logs = np.concatenate(found)
        spread = np.sqrt(np.mean(np.square(logs)))
        print(
            f"{rule:<40}{len(logs):>5}{logs.mean():>+7.2f}{spread:>6.2f}"
            f"{np.median(np.abs(logs)):>6.2f}"
        )


if __name__ == "__main__":
    main()
