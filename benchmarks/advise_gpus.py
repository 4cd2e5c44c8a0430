"""GPUs that were not measured, in the advice: ``python benchmarks/advise_gpus.py``.

Needs ttscope[prior]. Qwen2.5 of 1.5B, 7B and 14B, recorded somewhere else one problem at a time
with a prompt of 150 tokens and 4,096 generated, each asked of `ttscope advise` for the least
latency and the least cost on up to four GPUs (`--gpus`) of each system. Printed are the pick's
tensor-parallel size, latency and GPU-seconds, and what it cannot be told apart from.
"""

import argparse
import tempfile
from pathlib import Path

from many_recordings import PROBLEMS, write
from tensor_parallel_prior import MODELS

from advisor.advice.advisor import Advisor
from traces.recording.reader import Recording
from traces.schema.advice import Budget

TOKENS = 4096


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--systems", nargs="+", default=["h100_sxm", "h200_sxm"])
    options.add_argument("--gpus", type=int, default=4)
    given = options.parse_args()
    for facts in MODELS:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "run"
            write(folder, facts, (1, 16, None), skill=0.5, seed=0, steps=PROBLEMS * TOKENS)
            recordings = [Recording.open(folder)]
            for system in given.systems:
                advisor = Advisor.fit(recordings, gpus=[system])
                for goal in ("latency", "cost"):
                    device = system.partition("_")[0].upper()
                    budget = Budget(optimise=goal, max_gpus=given.gpus, prices=((device, 1.0),))
                    answer = advisor.recommend(budget)
                    pick = answer.system_optimal
                    if pick is None:
                        print(f"{facts.name} {system} {goal}: nothing fits")
                        continue
                    latency, device_s = (pick.estimates[n] for n in ("latency_s", "device_s"))
                    assert latency is not None and device_s is not None
                    same = " ".join(r for r in answer.reasons if r.startswith("statistically tied"))
                    print(
                        f"{facts.name:<14}{system:<10}{goal:<9}{pick.prior or 'recorded':<10}"
                        f"TP {pick.engine.tensor_parallel_size}  "
                        f"{latency.value:6.2f} s [{latency.low:.2f}, {latency.high:.2f}]  "
                        f"{device_s.value:6.2f} GPU-s"
                    )
                    print(f"    {same}" if same else "    told apart from all others")
                for why, count in answer.infeasible.items():
                    print(f"    {count:,} {why}")


if __name__ == "__main__":
    main()
