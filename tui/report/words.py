"""A configuration as the page shows it, and what its numbers mean."""

from __future__ import annotations

from collections.abc import Mapping

from traces.schema.advice import ESTIMATES
from traces.schema.engine import EngineConfig, model_words
from traces.schema.quantities import quantity
from traces.schema.tts.policy import Policy
from tui.report.markup import BREAK, Html, join, tag
from tui.text.words import engine_words, policy_words


def configuration(
    engine: EngineConfig,
    policy: Policy | None,
    *,
    lead: str = "",
    imported: bool = False,
    prior: str | None = None,
) -> Html:
    """Return a configuration in two lines: the model and its policy, and the engine."""
    mark = tag("span", f"{lead} ", class_="letter") if lead else None
    return join(
        [
            tag(
                "span", mark, f"{model_words(engine.model)}: {policy_words(policy)}", class_="what"
            ),
            tag("span", engine_words(engine, imported=imported, prior=prior), class_="how"),
        ],
        BREAK,
    )


# What the page's numbers mean, in words for a reader who never saw the tool.

OF_RUN = (  # the columns of the recorded runs
    "accuracy",
    "latency_s.mean",
    "latency_s.p95",
    "ttft_s.p50",
    "tpot_s.p50",
    "tokens_per_problem",
    "device_s_per_problem",
    "cost_usd_per_problem",
    "energy_j.per_problem",
    "flops_per_problem",
)
_EXPLAINED = (*ESTIMATES, "ttft_s.p50", "tpot_s.p50")

REGRET = "Of the compute-optimal configuration minus of the system-optimal one, problem by problem."
SURE = (
    "Share of resamplings of the problems and of the models' errors in which every limit of the "
    "budget is met: the lower one of two halves of 200."
)

# Kind of step -> what it is.
KINDS: Mapping[str, str] = {
    "prefill": "Steps that only read prompts.",
    "decode": "Steps that only generate, a token (or a draft's worth) for each running sample.",
    "mixed": "Steps that read prompts and generate at once.",
    "other": "Steps that are not known to read prompts or to generate.",
    "idle": "Time in which the engine ran no step.",
}

GLOSSARY: tuple[tuple[str, str], ...] = (
    (
        "workload, problem",
        "The questions of every run, and one of them, whose answer can be checked.",
    ),
    (
        "sample",
        "One attempt of the model at a problem: its thought and its answer. A policy of several "
        "samples lets them vote.",
    ),
    (
        "policy",
        "How many samples a problem gets, how they are drawn, and how the answer is chosen: "
        "greedy (one, always the likeliest token), maj@8 (the most frequent answer of 8).",
    ),
    (
        "temperature, effort",
        "How much chance there is in the choice of each token, 0 being none, and how long the "
        "model is asked to think.",
    ),
    (
        "engine",
        "The vLLM server and how it was started: tp2 spreads the model over two devices "
        "(--tensor-parallel-size), seqs64 runs at most 64 samples at once (--max-num-seqs).",
    ),
    (
        "step",
        "One pass of the engine through the model, for all samples that are running: each gains "
        "a token, or reads a part of its prompt.",
    ),
    (
        "in flight",
        "Sent and not yet answered. The more samples run at once, the cheaper is each step for "
        "each of them.",
    ),
    (
        "candidate",
        "A configuration whose accuracy and time can be worked out from the recordings: recorded "
        "models and settings, fewer samples, other limits.",
    ),
    (
        "prior",
        "Where no run was recorded on a GPU: how long a step takes there by operator times that "
        "others measured, for the recorded samples. Its intervals are those of its known errors.",
    ),
    (
        "system-optimal",
        "Best in what is paid for and waited for (latency, cost, energy or throughput, as was "
        "asked) among the configurations that meet every limit.",
    ),
    (
        "compute-optimal",
        "The configuration that is accurate enough with the fewest FLOPs: the usual measure in "
        "papers, which does not see how the hardware is used. Of engines that run the same policy "
        "with as few FLOPs (within 5 %), it is the best of what was asked for.",
    ),
    (
        "front",
        "The configurations that no other beats in both accuracy and the other measure. What lies "
        "off it is never the best choice.",
    ),
    ("regret", "What it would cost to take the compute-optimal one instead."),
    (
        "expected loss",
        "How much worse than the best choice the pick is in what was asked for, as a share, on "
        "average over what is not known yet: step times, and the accuracy on all such problems. "
        "Where the pick would break a limit it counts as 100 %. A run that is proposed under Next "
        "shows some of that before you decide, so that less is lost.",
    ),
    *((each.noun, each.meaning) for each in map(quantity, _EXPLAINED)),
    *((f"{kind} time", meaning) for kind, meaning in KINDS.items()),
    (
        "kernel, collective",
        "A program on the device, counted by family (attention, matrix products ...). An exchange "
        "of data between devices.",
    ),
    (
        "acceptance",
        "Speculative decoding lets a cheap draft guess the next tokens. The model keeps the "
        "leading ones that it would have written. Position 1 is the first guess.",
    ),
    (
        "interval",
        "In brackets: 90 of 100 such intervals hold the true value. It covers the choice of "
        "problems and, for predictions, the error of the models.",
    ),
)
