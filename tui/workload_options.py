"""Options that `record` and `attach` share: what is posed, under which policy, what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Problems = Annotated[int | None, typer.Option(help="Take the first so many.")]
Seed = Annotated[int, typer.Option(help="Seed of the demo's problems.")]
Concurrency = Annotated[int, typer.Option(help="Problems in flight at a time.")]
Method = Annotated[
    str | None, typer.Option(help="See docs/policies.md; greedy, or majority at n > 1.")
]
NumSamples = Annotated[int, typer.Option("--n", help="Samples per problem; above 1 they vote.")]
ThinkingBudget = Annotated[
    int | None, typer.Option(help="Tokens of thought per sample, then the answer is forced.")
]
ReasoningEffort = Annotated[
    str | None, typer.Option(help="vLLM's: low, high, .. where the chat template knows it.")
]
MaxTokens = Annotated[int | None, typer.Option(help="Tokens per sample.")]
Temperature = Annotated[
    float | None, typer.Option(help="0 for one sample, else 0.8, unless given.")
]
TopP = Annotated[float, typer.Option(help="Nucleus sampling.")]
Timeout = Annotated[
    float | None, typer.Option(help="Seconds per problem, then the votes there are decide.")
]
BudgetCheckpoints = Annotated[
    str | None,
    typer.Option(metavar="64,128,..", help="Force answers at these tokens, after the run."),
]
CheckpointSamples = Annotated[
    int, typer.Option(help="Samples of each problem that --budget-checkpoints cut.")
]
Logprobs = Annotated[
    bool, typer.Option(help="Measure log-probabilities and confidence of every sample.")
]
RawPrompts = Annotated[
    bool, typer.Option(help="Send prompts as they are, without a chat template.")
]
SystemPrompt = Annotated[
    str | None, typer.Option(help="Said before every chat of a JSONL workload.")
]
Verifier = Annotated[
    str | None, typer.Option(help="exact, numeric, choice or math; for a JSONL workload.")
]
RecordText = Annotated[bool, typer.Option(help="Keep answers and token ids of your own workload.")]
Price = Annotated[float | None, typer.Option(help="USD per device-hour.")]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="The recording's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
