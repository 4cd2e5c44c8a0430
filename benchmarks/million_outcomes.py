"""A million outcomes (125,000 problems of 8 samples): what import, show and show --policies take.

    python -m benchmarks.million_outcomes [PROBLEMS]

Prints seconds by the wall and of the processor, and the most memory, of each command by itself.
"""

import random
import sys
import tempfile
from pathlib import Path

from benchmarks.live_day import measure

SAMPLES = 8
RUN = "import sys; from tui.cli import main; sys.argv[0] = 'ttscope'; main()"


def write(path: Path, problems: int) -> None:
    """Write outcomes of made-up problems, some of whose mistakes are popular."""
    rng = random.Random(1)
    with path.open("w") as file:
        for problem in range(problems):
            chance = rng.betavariate(0.8, 0.6)
            for index in range(SAMPLES):
                right = rng.random() < chance
                answer = problem if right else f"w{min(9, int(rng.expovariate(0.8)))}"
                tokens = int(rng.lognormvariate(8, 0.5))
                file.write(
                    f'{{"problem_id": "p{problem}", "sample_index": {index}, "answer": "{answer}", '
                    f'"expected": "{problem}", "correct": {str(right).lower()}, '
                    f'"output_tokens": {tokens}}}\n'
                )


def main() -> None:
    problems = int(sys.argv[1]) if len(sys.argv) > 1 else 125_000
    with tempfile.TemporaryDirectory() as folder:
        outcomes, recording = Path(folder) / "outcomes.jsonl", str(Path(folder) / "recording")
        write(outcomes, problems)
        print(f"{problems:,} problems of {SAMPLES} samples, {outcomes.stat().st_size / 1e6:.0f} MB")
        for arguments in (
            ["import", str(outcomes), "-o", recording],
            ["show", recording],
            ["show", recording, "--policies"],
        ):
            name = " ".join(
                each for each in arguments if not each.startswith(folder) and each != "-o"
            )
            measure(f"{name:<16}", "-c", RUN, *arguments, lines=0)


if __name__ == "__main__":
    main()
