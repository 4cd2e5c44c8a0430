"""What tensor parallelism gains by the prior: ``python benchmarks/tensor_parallel_prior.py``.

Needs ttscope[prior]. Qwen2.5 of 1.5B, 7B and 14B, one problem at a time with a prompt of 150 tokens
and `--output` tokens (thinking about a problem of MATH500), replayed from the prior of H100 and
H200. The gain is latency with one GPU over latency with more: by kernels alone, as vLLM 0.32 would
(half of the host behind the kernels), and as vLLM 0.12 and 0.7.3 would (the host's part added).
Zhao et al. 2025 (arXiv 2509.19645) measured about 1.7 for 14B with TP 4 on GH200, and losses for
small models.
"""

import argparse

from dense_models import dense

from advisor.replay.limits import Limits
from advisor.replay.replay import replay
from advisor.replay.workload import ReplayWorkload
from advisor.step_time.cost import table_cost, with_hidden
from advisor.step_time.host.law import host_part
from advisor.step_time.operators.tables import default_capture_sizes
from advisor.step_time.prior.prior import Prior, prior_of
from advisor.step_time.prior.tables import read_prior
from traces.errors import UsageError
from traces.schema.engine import EngineConfig

MODELS = (  # from their config.json
    dense("Qwen2.5-1.5B", "Qwen2ForCausalLM", (28, 1536, 12, 2, 8960, 151936), tied=True),
    dense("Qwen2.5-7B", "Qwen2ForCausalLM", (28, 3584, 28, 4, 18944, 152064)),
    dense("Qwen2.5-14B", "Qwen2ForCausalLM", (48, 5120, 40, 8, 13824, 152064)),
)
BATCHED = 8192
VERSIONS = ("0.32.0", "0.12.0", "0.7.3")
SEQS = 256


def latency_s(prior: Prior, output: int, version: str | None = None) -> float:
    """Return the latency of a problem alone, with the host's part of a version if one is given."""
    sizes = default_capture_sizes(SEQS)
    tables = prior.step_tables(
        max_num_batched_tokens=BATCHED, max_num_seqs=SEQS, capture_sizes=sizes
    )
    cost = table_cost(tables)
    if version is not None:
        size = prior.split.tensor
        part = host_part(EngineConfig(model="", tensor_parallel_size=size, vllm_version=version))
        cost = with_hidden(cost, part.seconds, part.hidden)
    work = ReplayWorkload.from_requests([150], [output])
    limits = Limits(max_num_seqs=SEQS, max_num_batched_tokens=BATCHED, async_scheduling=True)
    done = replay(work, cost, limits, concurrency=1)
    return float(done.latency_s.mean())


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--output", type=int, default=4096)
    options.add_argument("--systems", nargs="+", default=["h100_sxm", "h200_sxm"])
    given = options.parse_args()
    output = given.output
    for system in given.systems:
        tables = read_prior(system)
        print(f"\n{tables.label}: one problem at a time, {output:,} tokens")
        print(f"{'':<14}{'TP':>3}{'ms/token':>10}{'gain':>7}{'0.32':>8}{'0.12':>8}{'0.7.3':>8}")
        for facts in MODELS:
            first: list[float] = []
            for size in (1, 2, 4, 8):
                engine = EngineConfig(model=facts.name, tensor_parallel_size=size)
                try:
                    prior = prior_of(tables, facts, engine)
                except UsageError as error:
                    print(f"{facts.name:<14}{size:>3}  - {error}")
                    continue
                found = [latency_s(prior, output, version) for version in (None, *VERSIONS)]
                first = first or found
                gains = [before / after for before, after in zip(first, found, strict=True)]
                print(f"{facts.name:<14}{size:>3}{1e3 * found[0] / output:>10.2f}{gains[0]:>7.3f}"
                      + "".join(f"{gain:>8.2f}" for gain in gains[1:]))  # fmt: skip


if __name__ == "__main__":
    main()
