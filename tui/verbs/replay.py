"""`ttscope replay`: a recorded run under a configuration that was never run."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import floor
from pathlib import Path
from typing import TYPE_CHECKING

from advisor.what_if.question import changed, device_asked
from traces.errors import UsageError
from traces.recording.reader import Recording
from traces.recording.reader import measured as measured_ones
from traces.schema.tts.policy import AS_SENT
from tui.options import (
    CAP_ALONE,
    OPTIONS,
    POWER_CAP,
    AgainstOptions,
    IntervalOf,
    argument,
    option,
    read_interval,
    takes,
)
from tui.terminal import say_all
from tui.text.commands import next_lines

if TYPE_CHECKING:
    from advisor.what_if.question import Question
    from traces.summary.run import Run


MOST_AGENTS = 10_000


@dataclass(frozen=True, kw_only=True)
class ReplayOptions:
    """Which run, what changes, and where step times come from."""

    recording: Path = argument("A recording.")
    change: list[str] | None = option(
        None, "engine.FIELD or policy.FIELD, repeatable.", "--set", metavar="NAME=VALUE"
    )
    learn: list[Path] | None = option(
        None, "Recordings to learn step times of other engines from, repeatable.", "--with"
    )
    at_pace_of: Path | None = option(
        None, "A recording of the asked engine: predict at that machine's pace."
    )
    acceptance: str | None = option(
        None, "Share of drafts kept at each position: .58,.31,.12.", metavar="SHARES"
    )
    run: int = option(0, "Which of its runs, from 1, if several.", show_default=False)
    seed: int = option(0, "Seed of the random draws.")
    interval: IntervalOf = "fresh"
    rate: str | None = option(None, "Problems arriving: 2/s, 30/min.")
    concurrency: int | None = option(None, "Problems in flight.")
    batch: int | None = option(
        None, "Also say how long a batch of N such problems takes.", metavar="N"
    )
    agents: str | None = option(
        None,
        "Say what so many agents at once are served, whose sessions the recording has: 8,16,32.",
        metavar="N",
    )
    max_turn_latency: str | None = option(
        None,
        "Also say how many agents have p95 turns within this time, such as 5s.",
        metavar="TIME",
    )
    replicas: int = option(1, "Engines that share the load.")
    routing: str = option("round-robin", "round-robin or least-outstanding.")
    together: bool = option(False, "Send all samples of a problem to one engine.")
    gpu: list[str] | None = option(None, "Step times of a GPU from the prior: h100_sxm.")
    tables: Path | None = option(None, "--gpu: folder of its tables, if not installed.")
    measured: list[str] | None = option(
        None,
        "--gpu: a time, or a board's watts=520, measured there at so many in flight.",
        metavar="itl=12ms@32",
    )
    power_cap: float | None = option(None, POWER_CAP, metavar="W")
    model_config: Path | None = option(
        None, "config.json of the model to predict, if not the recorded one."
    )
    operators: Path | None = option(None, "Operator tables of a GPU to take step times from.")
    num_hidden_layers: int | None = option(None, "--operators: layers of the model.")
    collectives: Path | None = option(
        None, "--operators: times of all-reduces, by CSV, Parquet, recording or h100_sxm."
    )


@takes(
    ReplayOptions,
    AgainstOptions,
    panels={
        "rate": "Load",
        "gpu": "Another GPU's step times",
        "against": "Send it to a server",
        "output": OPTIONS,
    },
)
def replay(asked: ReplayOptions, answer: AgainstOptions) -> None:
    """Predict a recorded run under a configuration that was never run."""
    from advisor.advice.accounts.costs import NO_POWER, Tariff
    from advisor.what_if.predict import predict
    from tui.terminal import say_json
    from tui.text.replay import replay_json, replay_lines

    if answer.against is None and (
        answer.workload is not None or answer.raw_prompts or answer.api_key_env is not None
    ):
        raise UsageError("--workload, --raw-prompts and --api-key-env go with --against URL")
    tariff = Tariff(kwh_price=answer.kwh_price, pue=answer.pue)
    base, recorded, question, others = question_of(asked)
    if answer.against is not None:
        from tui.verbs.against import run_against

        given = frozenset(text.partition("=")[0].strip() for text in asked.change or ())
        run_against(base, recorded, question, others, answer, given)
        return
    with contextlib.ExitStack() as stack:
        if sys.stderr.isatty():  # the first one compiles, which takes a while
            from tui.verbs.progress import progress_bar

            stack.enter_context(progress_bar()).add_task("replaying", total=None)
        prediction = predict(base, recorded, question, others)
    if tariff.asked and prediction.predicted.energy_j.per_problem is None:
        raise UsageError(f"--kwh-price: {NO_POWER}")
    shown = prediction.which(read_interval(asked.interval))
    if answer.output is not None:
        prediction.write(answer.output)
    if answer.as_json:
        say_json(replay_json(shown, tariff))
        return
    lines = list(replay_lines(shown, question, explain=answer.explain, tariff=tariff))
    if answer.output is not None:
        lines += ["", f"written   {answer.output}", *next_lines("show", answer.output)]
    elif (limit := accuracy_kept(prediction.predicted)) is not None:
        lines += next_lines("advise", asked.recording, "--min-accuracy", limit)
    say_all(lines)


def accuracy_kept(run: Run) -> str | None:
    """Return the least accuracy that advice surely finds met, as a limit; None if not known.

    Advice judges it by a run of as many other problems.
    """
    accuracy = run.accuracy
    if accuracy is None:
        return None
    low = accuracy.low if accuracy.others is None else accuracy.others.low
    return None if low is None or low < 0.01 else f"{floor(low * 100) / 100:.2f}"


def question_of(asked: ReplayOptions) -> tuple[Recording, Run, Question, list[Recording]]:
    """Return the recording, its run, what is asked, and the recordings to learn from.

    Raises UsageError for options that do not go together.
    """
    from advisor.evidence.live.drafts import with_lengths
    from advisor.evidence.live.servers import replayable
    from advisor.replay.replay import Replicas
    from advisor.search.budget import parse_value
    from advisor.step_time.prior.tables import named_tables
    from advisor.what_if.drafts.redrafting import read_acceptance
    from advisor.what_if.measured.points import check_used
    from advisor.what_if.question import Question
    from tui.verbs.open_all import open_all

    changes, gpus = asked.change or (), asked.gpu or ()
    _check_load(asked)
    if len(gpus) > 1:
        raise UsageError(f"--gpu {', '.join(gpus)}: a replay is of one. Give one at a time")
    gpu = next(iter(named_tables(asked.tables, gpus)), None)
    if asked.tables is not None and gpu is None:
        raise UsageError("--tables goes with --gpu, which says the system in it")
    _check_sources(asked, gpu)
    if asked.measured and gpu is None:
        raise UsageError("--measured goes with --gpu, whose prior it corrects")
    if asked.power_cap is not None and gpu is None:
        raise UsageError(CAP_ALONE)
    base = with_lengths(Recording.open(asked.recording))
    measured_ones([base])
    others = measured_ones(open_all(asked.learn or ()))
    recorded = _chosen(replayable(base), asked.run, base)
    engine, policy, assumed = changed(recorded, changes, device=device_asked(asked.operators, gpu))
    facts = None
    if asked.model_config is not None:
        from profiler.engines.models.model_facts import given_facts

        facts = given_facts(asked.model_config)
    question = Question(
        engine=engine,
        policy=policy,
        assumed=assumed,
        concurrency=asked.concurrency,
        rate_per_s=None if asked.rate is None else parse_value(asked.rate, "--rate"),
        replicas=Replicas(count=asked.replicas, routing=asked.routing, together=asked.together),
        seed=asked.seed,
        operators=asked.operators,
        num_hidden_layers=asked.num_hidden_layers,
        collectives=asked.collectives,
        gpu=gpu,
        measured=tuple(asked.measured or ()),
        power_cap_w=asked.power_cap,
        model_facts=facts,
        pace_of=None
        if asked.at_pace_of is None
        else with_lengths(Recording.open(asked.at_pace_of)),
        batch=asked.batch,
        agents=read_agents(asked.agents),
        max_turn_s=None
        if asked.max_turn_latency is None
        else parse_value(asked.max_turn_latency, "--max-turn-latency"),
        acceptance=() if asked.acceptance is None else read_acceptance(asked.acceptance),
    )
    names = [engine.model, *([question.model_facts.name] if question.model_facts else ())]
    check_used(others, base, names, priced=gpu is not None)
    return base, recorded, question, others


def read_agents(text: str | None) -> tuple[int, ...]:
    """Read numbers of agents: `8`, `8,16,32` or a list's text. Raises UsageError for others."""
    if text is None:
        return ()
    parts = [each.strip() for each in text.strip("[( )]").split(",")]
    counts = [int(each) if each.isascii() and each.isdigit() else 0 for each in parts]
    if not all(1 <= count <= MOST_AGENTS for count in counts):
        raise UsageError(
            f"--agents {text}: give numbers from 1 to {MOST_AGENTS:,}, such as 8,16,32"
        )
    return tuple(sorted(set(counts)))


def _check_load(asked: ReplayOptions) -> None:
    """Raise UsageError where options of the load do not go together."""
    from advisor.replay.replay import ROUTINGS

    if asked.concurrency is not None and asked.rate is not None:
        raise UsageError("--concurrency and --rate: give one, problems in flight or arriving")
    if asked.batch is not None and asked.rate is not None:
        raise UsageError("--batch and --rate: give one. A batch is sent at once")
    if asked.agents is not None or asked.max_turn_latency is not None:
        for name in ("rate", "concurrency", "batch"):
            if getattr(asked, name) is not None:
                raise UsageError(f"--agents and --{name}: give one. Agents are a load of their own")
    for name, value in (
        ("--concurrency", asked.concurrency),
        ("--replicas", asked.replicas),
        ("--batch", asked.batch),
    ):
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, not {value}")
    if asked.routing not in ROUTINGS:
        raise UsageError(f"--routing {asked.routing}: one of {', '.join(ROUTINGS)}")


def _check_sources(asked: ReplayOptions, gpu: str | None) -> None:
    """Raise UsageError where options that say where step times come from do not go together."""
    operators = asked.operators
    if gpu is not None and (operators is not None or asked.num_hidden_layers is not None):
        raise UsageError("--gpu excludes --operators and --num-hidden-layers: the prior's or yours")
    if asked.model_config is not None and gpu is None and operators is None:
        raise UsageError("--model-config goes with --gpu or --operators, whose times are a model's")
    if asked.at_pace_of is not None and (gpu is not None or operators is not None):
        raise UsageError(
            "--at-pace-of goes with recorded steps, not with --gpu or --operators. To correct a "
            "prior give the recording with --with"
        )
    if asked.collectives is not None and operators is None:
        raise UsageError("--collectives goes with --operators, whose tables leave them out")


def _chosen(runs: Sequence[Run], number: int, base: Recording) -> Run:
    from advisor.evidence.live.servers import servers_of

    name = base.name
    if not runs:
        raise UsageError(f"{name}: holds no run to replay")
    untold = all(run.policy is None for run in runs) and "imported" not in base.manifest.provenance
    if number == 0 and untold and not servers_of(base):
        return runs[0]  # which says that none has a policy, or that too little was seen
    if number == 0 and len(runs) > 1:
        models = len({run.engine.model for run in runs}) > 1
        labels = ", ".join(
            f"{i} {f'{run.engine.model} ' if models else ''}{run.engine.label()} "
            f"{run.policy.label() if run.policy else AS_SENT.label()}"
            for i, run in enumerate(runs, 1)
        )
        raise UsageError(f"{name}: holds {len(runs)} runs, choose one with --run: {labels}")
    if not 0 <= number <= len(runs):
        raise UsageError(f"--run {number}: {name} holds {len(runs)}, counted from 1")
    return runs[max(number, 1) - 1]
