"""`ttscope advise`: a budget in, a recommendation out; on request checked by real runs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advisor.advice.command import SERVED_AT, attach_command, in_flight_at, servers_note
from advisor.advice.measure_next.experiments import experiment_of, write_plan
from advisor.evidence.gather import PROBLEMS_FILE
from traces.errors import RecordingError, TtscopeError, UsageError
from traces.live.watched import only_watched
from traces.plain_text import flag_word, name_word
from traces.recording.reader import Recording, find_recordings
from traces.schema.advice import Budget, Pick, Recommendation
from traces.schema.engine import EngineConfig
from traces.schema.estimate import Estimate, with_intervals
from traces.schema.formats import chance, counted, digits
from traces.schema.tts.policy import AS_SENT, Policy
from traces.summary.run import Run, summarise, to_plain
from tui.options import (
    ACCOUNTS,
    BUDGET,
    OPTIONS,
    AccountOptions,
    BudgetOptions,
    BudgetSeed,
    IntervalOf,
    Json,
    Recordings,
    option,
    read_interval,
    takes,
)
from tui.terminal import say_all, say_json, tell
from tui.text.advice import COMPARED, comparison_lines
from tui.text.layout import wrap
from tui.verbs.open_all import open_measured

if TYPE_CHECKING:
    from advisor.advice.accounts.costs import Tariff
    from advisor.advice.advisor import Advisor
    from traces.deployment.documents import Expectations


@dataclass(frozen=True, kw_only=True)
class Advise:
    """Recordings, and what to do with the answer."""

    recordings: Recordings
    learn: list[Path] | None = option(
        None, "Recordings of any problems that check the prior of --gpu.", "--with"
    )
    present: Path | None = option(None, "A recording of what runs today, to compare with.")
    explain: bool = option(False, "Print all reasons, regrets and commands too.")
    plan: Path | None = option(None, "Write what to measure next, for ttscope sweep.")
    verify: bool = option(False, "Run both picks for real.")
    output: Path | None = option(
        None, "Folder for serve.sh, policy.json, expect.json.", "-o", "--output"
    )
    interval: IntervalOf = "others"
    seed: BudgetSeed = 0
    as_json: Json = False


@dataclass(frozen=True, kw_only=True)
class DraftOptions:
    """How many tokens to draft at which batch."""

    drafts: bool = option(False, "Print how many tokens to draft at which batch. No budget.")
    speculative: str | None = option(
        None, "--drafts: what drafts, if none was recorded, as vLLM's JSON.", metavar="JSON"
    )
    acceptance: str | None = option(
        None, "--drafts: share kept at each position: .58,.31,.12.", metavar="SHARES"
    )


@takes(
    BudgetOptions,
    Advise,
    AccountOptions,
    DraftOptions,
    panels=BUDGET | {"present": OPTIONS, "effort_map": ACCOUNTS, "drafts": "Drafts by batch"},
)
def advise(
    options: BudgetOptions, asked: Advise, told: AccountOptions, drafting: DraftOptions
) -> None:
    """Recommend the system-optimal configuration for a budget."""
    from advisor.search.budget import is_given, parse_budget
    from advisor.step_time.prior.relatives import read_gpu

    if drafting.drafts:
        print_drafts(options, asked, drafting)
        return
    if drafting.speculative is not None or drafting.acceptance is not None:
        raise UsageError("--speculative and --acceptance go with --drafts")
    given, systems = options.given(), options.systems()
    budget = parse_budget(given)
    tariff = told.tariff()
    if asked.plan is not None and asked.plan.exists():
        raise UsageError(f"--plan {asked.plan}: is there already. Name another file")
    if asked.output is not None:
        from advisor.advice.promise import check_folder

        check_folder(asked.output)
    if told.effort_map and (asked.as_json or asked.verify or asked.explain):
        raise UsageError("--effort-map prints one document. Leave out --json, --verify, --explain")
    if asked.verify and systems:
        raise UsageError("--verify runs the picks on this machine, not on a --gpu. Give one")
    if asked.learn and not systems:
        raise UsageError("--with checks the prior of a --gpu. Give both")
    for system in systems:
        read_gpu(system)
    recordings = open_measured(asked.recordings)
    if not is_given(given):
        raise UsageError(
            "the budget is empty. Give a limit, such as --min-accuracy 0.75, or --optimise"
        )
    for name, value in (
        ("-o", asked.output),
        ("--plan", asked.plan),
        ("--verify", asked.verify),
    ):
        if value:
            from advisor.advice.promise import check_has_policy

            check_has_policy(recordings, name)
    today = None if asked.present is None else configuration_of(asked.present, asked.recordings)
    print_advice(
        recordings,
        budget,
        asked,
        present=today,
        systems=systems,
        power_cap_w=options.power_cap,
        tariff=tariff,
        checks=open_measured(asked.learn) if asked.learn else (),
        efforts=told.effort_map,
    )


def print_drafts(options: BudgetOptions, asked: Advise, drafting: DraftOptions) -> None:
    """Print how many tokens to draft at which batch. Raises UsageError where nothing tells."""
    from advisor.advice.command import serve_command
    from advisor.what_if.drafts.by_batch import all_drafts_by_batch
    from advisor.what_if.drafts.redrafting import read_acceptance
    from profiler.engines.options import parse_speculative
    from tui.text.commands import here
    from tui.text.recordings.drafts import drafts_json, drafts_lines

    systems = options.systems()
    if len(systems) > 1:
        raise UsageError("--drafts: give one --gpu at a time")
    given = drafting.acceptance
    found, without = all_drafts_by_batch(
        open_measured([*asked.recordings, *(asked.learn or ())]),
        speculative=parse_speculative(drafting.speculative),
        acceptance=() if given is None else read_acceptance(given),
        gpu=next(iter(systems), None),
        power_cap_w=options.power_cap,
    )
    place = here()
    path = place["model_path"]
    commands = []
    for each in found:
        engine, draft = each.served, each.speculative.model
        commands.append(
            serve_command(
                engine,
                model_path=path(engine.model),
                draft_path=None if draft is None or engine.speculative is None else path(draft),
                cpu_build=place["cpu_build"],
            )
        )
    if asked.as_json:
        say_json(drafts_json(found, without, commands))
        return
    say_all([*drafts_lines(found, without, commands)])


def configuration_of(path: Path, among: Sequence[Path]) -> tuple[EngineConfig, Policy]:
    """Return the engine and policy of what `--present` names.

    A prediction stands for the recording that it was replayed from, which is `among` recordings or
    folders of them. Raises RecordingError where that is not there or the path is no recording, and
    UsageError where it holds not one of each.
    """
    recording = Recording.open(path)
    if recording.replay_of is not None:
        others = (each for folder in among for each in find_recordings(folder))
        source = next((each for each in others if each.name == recording.replay_of), None)
        if source is None:
            raise RecordingError(
                f"--present {path}: {recording.name} is a prediction. Give the recording that it "
                f"was replayed from ({recording.replay_of})"
            )
        recording = Recording.open(source)
    engines = list(recording.manifest.engines.values())
    policies = list(recording.manifest.policies.values())
    if only_watched(recording):
        policies = [AS_SENT]
    if len(engines) != 1 or len(policies) != 1:
        raise UsageError(
            f"--present {path}: holds {len(engines)} engines and {len(policies)} policies. Name a "
            "recording of one of each"
        )
    return engines[0], policies[0]


def print_advice(
    recordings: Sequence[Recording],
    budget: Budget,
    asked: Advise,
    *,
    present: tuple[EngineConfig, Policy] | None = None,
    systems: Sequence[str] = (),
    power_cap_w: float | None = None,
    tariff: Tariff | None = None,
    checks: Sequence[Recording] = (),
    efforts: bool = False,
    extra: Mapping[str, Any] | None = None,
) -> Advisor:
    """Fit the models, choose, and print; `extra` goes into the JSON document. Return the models.

    With `efforts` the map of them is printed instead of the answer. With a `tariff` the picks'
    costs are worked out, and printed where it asks or `explain` does.
    """
    from advisor.advice.accounts.costs import accounts_of
    from advisor.advice.advisor import Advisor
    from tui.text.advice import advice_json, advice_lines, cost_lines, nearest_line
    from tui.text.commands import here, own_name
    from tui.verbs.progress import progress_bar

    plan, output = asked.plan, asked.output
    with progress_bar() as bar:
        task = bar.add_task("learning from the recordings", total=None)
        advisor = Advisor.fit(
            recordings, seed=asked.seed, gpus=systems, checks=checks, power_cap_w=power_cap_w
        )
        for note in advisor.notes(budget.rate_per_s):
            tell(note)

        def heard(done: int, total: int) -> None:
            bar.update(task, description="replayed", completed=done, total=total)

        answer = advisor.recommend(budget, **here(), present=present, progress=heard)
        accounts = None if tariff is None else accounts_of(advisor, answer, tariff)
    forwards = None if plan is None else write_plan(plan, answer, advisor.evidence, recordings)
    promised: Expectations | None = None
    if output is not None and answer.system_optimal is not None:
        from advisor.advice.promise import write_config

        promised = write_config(output, answer, advisor)
    pick = answer.system_optimal if budget.goal == "cost" else None
    if pick is not None and pick.estimates.get("cost_usd") is None:
        tell("without a price, --optimise cost minimises device time. Give --price 2.5 for USD")
    if efforts and answer.system_optimal is not None:
        from advisor.advice.accounts.efforts import efforts_of

        say_json(to_plain(efforts_of(advisor, recordings, answer)))
    answer = with_intervals(answer, read_interval(asked.interval))
    costed = {} if accounts is None or not accounts.known else {"costs": to_plain(accounts)}
    document = advice_json(answer) | costed | dict(extra or {})
    if not asked.as_json and not efforts:
        shown = accounts if asked.explain or (tariff is not None and tariff.asked) else None
        costs = [] if shown is None else cost_lines(answer, shown)
        lines = [*advice_lines(answer, explain=asked.explain), *costs, *_cap_lines(power_cap_w)]
        if plan is not None:
            lines += ["", f"plan in {plan}, measured by:"]
            lines.append(f"{own_name()} sweep {name_word(plan)} -o runs")
            if forwards is not None and forwards.commands:
                head = "Or time its kernels there, without weights. Give the result to --with:"
                lines += ["", head, *forwards.commands]
        if promised is not None:
            lines += _files_lines(promised, output, own_name(), posed=advisor.evidence.posed)
        say_all(lines)
    if asked.verify and answer.system_optimal is not None:
        folder = output or Path("runs") / "verify"
        document["verified"] = verify_picks(answer, advisor.evidence, folder, as_json=asked.as_json)
    if asked.as_json:
        say_json(document)
    if answer.system_optimal is None:
        raise TtscopeError(f"nothing fits the budget, {nearest_line(answer)}")
    return advisor


def _cap_lines(power_cap_w: float | None) -> list[str]:
    """Return how the boards of a --gpu are capped, where they are."""
    if power_cap_w is None:
        return []
    return ["", f"Boards of --gpu are capped: sudo nvidia-smi -pl {power_cap_w:g}"]


def _files_lines(
    promised: Expectations, output: Path | None, own_name: str, *, posed: bool
) -> list[str]:
    """Return how the files of `-o` are run, what they lack, and what they can be held against."""
    folder, note = name_word(output), servers_note(promised.engine)
    return [
        "",
        f"serve.sh, policy.json and expect.json in {output}, run by:",
        f"sh {folder}/serve.sh",
        f"{own_name} serve {folder}/policy.json --upstream {SERVED_AT}",
        *(wrap("", f"{note} --upstream is the router.", width=80, indent=0) if note else ()),
        *_not_told(promised),
        *_how_judged(promised, posed=posed),
        *_what_times_hold(promised, folder, own_name),
    ]


def _not_told(expected: Expectations) -> list[str]:
    """Return what must be put in before the policy can be served: outcomes may not tell it."""
    from advisor.advice.promise import verifier_of

    policy, lines = expected.policy, []
    if policy.temperature is None:
        missing = (
            'Put the temperature into policy.json first ("temperature": 0.6): the outcomes do not '
        )
        lines += wrap("", missing + "have it.", width=80, indent=0)
    if policy.n > 1 and verifier_of(expected.workload) is None:
        missing = (
            "Give serve and record --verifier exact, numeric, choice or math: the outcomes do not "
        )
        lines += wrap("", missing + "say which answers are the same one.", width=80, indent=0)
    return lines


def _how_judged(expected: Expectations, *, posed: bool) -> list[str]:
    """Return what a gate needs to judge a run by promises of outcomes; nothing of runs."""
    if posed:
        return []
    needs = (
        "No gate can judge a run by expect.json, as problems were left out, or a curve has none. "
        "Record the pick, and advise on that recording too."
    )
    if expected.problem_names is not None:
        needs = (
            "ttscope gate knows the problems of outcomes by name alone: record all of them, each "
            "with the problem_id that it has there."
        )
    return wrap("", needs, width=80, indent=0)


def _what_times_hold(expected: Expectations, folder: str, own_name: str) -> list[str]:
    """Return whether the promised latencies hold what a server adds, and else how to learn it."""
    if expected.served is not None:
        share, *ends = (
            "-" if each is None else digits(each)
            for each in (expected.served.value, expected.served.low, expected.served.high)
        )
        text = (
            f"Latencies in expect.json are through a server: {share} [{', '.join(ends)}] times the "
            "engine's"
        )
        sure, budget = expected.probability_within_budget, expected.budget
        if sure is not None and budget.max_latency_s is not None and sure < budget.confidence:
            text += f". Through it all limits hold with a probability of {chance(sure)} alone"
        return wrap("", text, width=80, indent=0)
    text = (
        "Latencies in expect.json are of the engine alone, without what HTTP adds. To have them "
        "promised through the server, record it as below and advise on that recording too."
    )
    in_flight, latency = expected.concurrency, expected.promised.get("latency_s")
    if expected.rate_per_s is not None and latency is not None:
        in_flight = in_flight_at(expected.rate_per_s, latency.value)
        flying = counted(in_flight, "problem")
        text += f" It keeps {flying} in flight, the rate times the promised latency."
    asked: dict[str, Any] = {"concurrency": in_flight}
    workload = expected.workload
    if workload is not None and in_flight is not None and workload.problems < in_flight:
        text += (
            f" The {workload.problems:,} problems cannot keep {in_flight:,} in flight: give more, "
            "else times are not judged."
        )
    if workload is not None:
        demo = workload.name.partition(":")[0] == "demo"
        named = workload.name if demo or Path(workload.name).is_file() else PROBLEMS_FILE
        if named == PROBLEMS_FILE:
            text += f" {PROBLEMS_FILE} stands for the file of the problems ({workload.name})."
        asked |= {"workload": None if named == "demo" else named}
        asked |= {"problems": workload.problems, "seed": workload.seed or None} if demo else {}
    options = [flag_word(name, value) for name, value in asked.items() if value is not None]
    start = f"{own_name} record --endpoint {SERVED_AT} --policy {folder}/policy.json \\"
    rest = " ".join([*options, "-o runs/served"])
    return [*wrap("", text, width=80, indent=0), start, f"    {rest}"]


# `ttscope advise --verify`: the picks run for real, predicted beside measured.


def verify_picks(
    answer: Recommendation, evidence: Any, folder: Path, *, as_json: bool
) -> list[dict[str, Any]]:
    """Run the system-optimal and the compute-optimal pick, print and return the comparison.

    Raises UsageError for picks that cannot be run here, TtscopeError when a run fails.
    """
    import yaml

    from advisor.advice.measure_next.experiments import sweep_plan
    from advisor.evidence.measured import measured_estimates
    from profiler.sweep.plan import load_plan
    from tui.verbs.sweep import run_shown

    named = {"system-optimal": answer.system_optimal, "compute-optimal": answer.compute_optimal}
    picks = {name: pick for name, pick in named.items() if pick is not None}
    for name, pick in picks.items():
        _check(name, pick)
    if evidence.load[1] is not None or answer.budget.rate_per_s is not None:
        raise UsageError("--verify runs so many problems in flight. It sends none at a --rate")
    document = sweep_plan([experiment_of(pick, name) for name, pick in picks.items()], evidence)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(document, file)
        file.flush()
        plan = load_plan(Path(file.name))
    outcomes = run_shown(plan, folder, again="the same command")
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if failed:
        raise TtscopeError(f"--verify: {failed[0].name} failed: {failed[0].error}")
    runs = [run for outcome in outcomes for run in summarise(Recording.open(outcome.path))]
    documents = []
    for name, pick in picks.items():
        run = next(run for run in runs if run.policy == pick.policy and _same_engine(run, pick))
        measured = measured_estimates(run)
        documents.append(
            {
                "pick": name,
                "recording": run.recording,
                "metrics": {
                    metric: {
                        "predicted": _json(pick.estimates.get(metric)),
                        "measured": _json(measured[metric]),
                    }
                    for metric in COMPARED
                },
            }
        )
        if not as_json:
            say_all(comparison_lines(name, pick, measured))
    if not as_json:
        tell(f"recordings in {folder}")
    return documents


def _check(name: str, pick: Pick) -> None:
    how = "record it with --endpoint"
    if pick.engine.by_server()[0] > 1:
        how = f"run {attach_command(pick.engine)} --workload FILE"
    if pick.engine.mode == "server":
        raise UsageError(
            f"--verify: the {name} engine was a server. Start it as the command says and {how}"
        )
    if pick.engine.data_parallel_size > 1:
        raise UsageError(
            f"--verify: the {name} pick has {pick.engine.replica_words()}, which are not run here. "
            f"Serve it and {how}"
        )


def _same_engine(run: Run, pick: Pick) -> bool:
    names = ("model", "max_num_seqs", "tensor_parallel_size", "speculative")
    return all(getattr(run.engine, name) == getattr(pick.engine, name) for name in names)


def _json(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else estimate.to_json()
